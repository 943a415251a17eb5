/* SPDX-License-Identifier: Apache-2.0 */
/* A set of texts, each with a value, walked byte by byte: an edge (node, byte) -> (child, value) in a table of pairs. */
#ifndef NF_TOKENIZER_TRIE_H
#define NF_TOKENIZER_TRIE_H

#include "pieces.h"

typedef struct nf_trie {
    nf_pairs edges; /* left node, right byte, id child, rank value of the text that ends at the child, or NF_NO_ID */
    uint32_t nodes; /* 0 is the root */
} nf_trie;

/* Room for texts of `bytes` bytes in all. */
nf_status nf_trie_new(nf_trie *out, int64_t bytes);
void nf_trie_free(nf_trie *trie);
/* Add a text of at least one byte; the last of two equal ones stays. */
void nf_trie_add(nf_trie *trie, const uint8_t *text, int64_t size, uint32_t value);
/* Value of the longest text that begins at p, p < end, and its size; or NF_NO_ID. */
uint32_t nf_trie_longest(const nf_trie *trie, const uint8_t *p, const uint8_t *end, int64_t *size);

#endif
