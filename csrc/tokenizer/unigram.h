/* SPDX-License-Identifier: Apache-2.0 */
/* Unigram language model (Kudo 2018, arXiv:1804.10959): the cut into pieces with the best sum of scores. */
#ifndef NF_TOKENIZER_UNIGRAM_H
#define NF_TOKENIZER_UNIGRAM_H

#include "buffer.h"
#include "trie.h"

typedef struct nf_unigram {
    nf_trie trie;        /* text -> id of each piece that may be used */
    const float *scores; /* by id; the caller's */
    const uint8_t *kept; /* by id: user-defined, always taken; the caller's */
    float best, worst;   /* highest and lowest score of the ordinary pieces */
    uint32_t unknown;    /* id for a character that no piece of its own length has */
} nf_unigram;

/* Scratch of one thread. All zero is a fresh one. */
typedef struct nf_lattice {
    nf_bytes nodes;
} nf_lattice;

/* Append (id, size in bytes) of each piece of the normalised text to out. */
nf_status nf_unigram_cut(nf_words *out, nf_lattice *lattice, const nf_unigram *model, const uint8_t *text, int64_t size);

#endif
