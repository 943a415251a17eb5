/* SPDX-License-Identifier: Apache-2.0 */
/* Finds given texts (added tokens, user-defined pieces) in a text: the leftmost, and of those the longest. */
#ifndef NF_TOKENIZER_MATCHER_H
#define NF_TOKENIZER_MATCHER_H

#include "trie.h"

typedef struct nf_matcher {
    nf_trie trie;
    uint8_t begins[256]; /* whether a text begins with this byte */
    int only;            /* the one byte that all begin with; -1: there are several; -2: there are no texts */
} nf_matcher;

/* Room for texts of `bytes` bytes in all. */
nf_status nf_matcher_new(nf_matcher *out, int64_t bytes);
void nf_matcher_free(nf_matcher *matcher);
/* Add a text of at least one byte with a value below NF_NO_ID. */
void nf_matcher_add(nf_matcher *matcher, const uint8_t *text, int64_t size, uint32_t value);

/* Value of the longest text at p, p < end, and its size; or NF_NO_ID. */
static inline uint32_t nf_matcher_at(const nf_matcher *m, const uint8_t *p, const uint8_t *end, int64_t *size) {
    return m->begins[*p] ? nf_trie_longest(&m->trie, p, end, size) : NF_NO_ID;
}

/* Value of the next text from p on, its place and size; or NF_NO_ID. */
uint32_t nf_matcher_next(const nf_matcher *m, const uint8_t *p, const uint8_t *end, const uint8_t **place, int64_t *size);

#endif
