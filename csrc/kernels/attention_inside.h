/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of attention share: one call's arguments, and the tiles of work in a form for the processor. */
#ifndef NF_KERNELS_ATTENTION_INSIDE_H
#define NF_KERNELS_ATTENTION_INSIDE_H

#include <stddef.h>

#include "attention.h"

typedef struct nf_attention_job {
    const nf_kernels *kernels;
    const nf_attention *a;
    float *out, *lse, *d_q, *d_k, *d_v, *scratch;
    const float *q, *d_out, *fixed_out, *fixed_lse;
} nf_attention_job;

/* One worker computes in `memory`, `bytes(d)` long and aligned to 64. */
typedef struct nf_attention_tiles {
    int64_t queries; /* at most in one call of forward */
    int64_t (*bytes)(int64_t d);
    /* Queries [row, row+rows) of a document in head h. */
    void (*forward)(const nf_attention_job *j, const nf_span *span, int64_t row, int64_t rows, int64_t h, void *memory);
    /* All query heads of one key head in one document: nobody else writes their d_q, d_k and d_v. */
    void (*backward)(const nf_attention_job *j, const nf_span *span, int64_t kv_head, void *memory);
} nf_attention_tiles;

/* For keys and values in bf16 whose form has AVX-512 BF16, and even d; NULL in programs for other processors. */
extern const nf_attention_tiles *const nf_attention_avx512_bf16;

/* Hands out pieces of `memory` on 64-byte lines; with NULL it only counts. */
typedef struct nf_pieces {
    char *memory;
    int64_t used;
} nf_pieces;

static inline void *nf_take(nf_pieces *p, int64_t bytes) {
    void *at = p->memory ? p->memory + p->used : NULL;
    p->used += (bytes + 63) / 64 * 64;
    return at;
}

#endif
