/* SPDX-License-Identifier: Apache-2.0 */
/* Byte-pair merging (Sennrich et al. 2016, arXiv:1508.07909): the lowest rank first, leftmost among equals. */
#ifndef NF_TOKENIZER_MERGE_H
#define NF_TOKENIZER_MERGE_H

#include "buffer.h"
#include "pieces.h"

/* A word as symbols: number i is symbols[i], or symbols[text[i]] where the symbols are bytes. */
typedef struct nf_symbols {
    const uint8_t *text; /* NULL: symbols[i] */
    const uint32_t *symbols;
    int64_t count;
} nf_symbols;

enum { NF_VERDICT_BITS = 10 };

/* Scratch of one thread, reused from word to word; of one table of merges. All zero is a fresh one. */
typedef struct nf_merger {
    nf_words dead;                           /* bits of places that lead nowhere */
    nf_words plain;                          /* two neighbours that are merged by definition */
    uint64_t verdicts[1 << NF_VERDICT_BITS]; /* what came out: left << 23 | right << 2 | same << 1 | 1 */
} nf_merger;

void nf_merger_free(nf_merger *merger);

/* Append to `out` what merging the word until no pair is known gives. Time is linear in the length, and memory beside `out` is
   an eighth of a byte for each symbol.
   NF_ERR_STATE: a symbol that `merges` does not have. */
nf_status nf_merge(nf_words *out, nf_merger *merger, const nf_merges *merges, nf_symbols word);

#endif
