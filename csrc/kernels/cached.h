/* SPDX-License-Identifier: Apache-2.0 */
/* Keys and values as a cache holds them, and the attention of one query position that reads them in that form. */
#ifndef NF_KERNELS_CACHED_H
#define NF_KERNELS_CACHED_H

#include <stdint.h>

#include "rows.h"

typedef enum nf_cache_kind {
    NF_CACHE_F32 = 0,
    NF_CACHE_F16 = 1, /* to nearest even; what is too large becomes the largest float16 */
    NF_CACHE_INT8 = 2 /* with a scale for each head of each position */
} nf_cache_kind;

/* Positions of one layer: k, v (positions, heads * d) in the form of `kind`; k_scale, v_scale (positions, heads) of int8. */
typedef struct nf_cached {
    nf_cache_kind kind;
    nf_isa isa; /* whose instructions read and write it */
    int64_t heads, d;
    void *k, *v;
    float *k_scale, *v_scale;
} nf_cached;

/* Bytes of a value. */
int64_t nf_cached_size(nf_cache_kind kind);

/* Store `rows` positions from `at` on; k, v: (rows, heads * d) float32. */
void nf_cached_put(const nf_cached *c, int64_t at, const float *k, const float *v, int64_t rows);

/* k, v (rows, heads * d) = positions [at, at + rows) as float32. */
void nf_cached_get(const nf_cached *c, int64_t at, float *k, float *v, int64_t rows);

/* out (group * d) of the `group` query heads that read key head `head`: softmax(scale * q k^T) v over `length` positions.
   q: (group * d). Scratch: nf_cached_scratch floats. One thread. */
int64_t nf_cached_scratch(int64_t group);
void nf_cached_attention(const nf_kernels *kernels, const nf_cached *c, float *out, const float *q, int64_t head, int64_t group,
                         int64_t length, float scale, float *scratch);

#endif
