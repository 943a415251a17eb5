/* SPDX-License-Identifier: Apache-2.0 */
/* Byte-pair merging (Sennrich et al. 2016, arXiv:1508.07909): the lowest rank first, leftmost among equals. */
#ifndef NF_TOKENIZER_MERGE_H
#define NF_TOKENIZER_MERGE_H

#include "buffer.h"
#include "pieces.h"

/* Scratch of one thread, reused from word to word. All zero is a fresh one. */
typedef struct nf_merger {
    nf_words symbols; /* the word: filled by the caller, merged in place */
    nf_words starts, scratch, kept;
} nf_merger;

void nf_merger_free(nf_merger *merger);

/* Merge merger->symbols until no pair is known. Time is linear in the length, as a long word goes through in windows. */
nf_status nf_merge(nf_merger *merger, const nf_merges *merges);

#endif
