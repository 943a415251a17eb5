/* SPDX-License-Identifier: Apache-2.0 */
/* Grouped-query causal attention in tiles of queries x keys (Dao 2023, FlashAttention-2): no T x T matrix exists.
   Keys and values are used as weights are, in float32 or bf16 (see linear.h); all that is summed or kept is float32.
   Layout: q, out: (T, H*d); k, v: (T_kv, K*d); query head h reads key head h / (H/K). */
#ifndef NF_KERNELS_ATTENTION_H
#define NF_KERNELS_ATTENTION_H

#include <stdint.h>

#include "../core/pool.h"
#include "linear.h"
#include "rows.h"

/* One document: queries q[q_start : q_start+q_len] are the last q_len of the kv_len positions at kv_start. */
typedef struct nf_span {
    int64_t q_start, q_len, kv_start, kv_len;
} nf_span;

typedef struct nf_attention {
    int64_t heads, kv_heads, d;
    float scale; /* of the scores, usually 1/sqrt(d) */
    const nf_span *spans;
    int64_t n_spans;
    nf_linear form; /* how k and v are stored, float32 or bf16; only kind and narrow count */
    const void *k, *v;
} nf_attention;

/* Floats of scratch for each worker, enough for both directions. */
int64_t nf_attention_scratch(int64_t d);

/* lse: (T, H) log-sum-exp of each row's scaled scores, kept for the backward pass; NULL when that is not needed.
   scratch: workers x nf_attention_scratch(d), aligned to 64 bytes. */
void nf_attention_forward(nf_pool *pool, const nf_kernels *kernels, const nf_attention *a, float *out, float *lse,
                          const float *q, float *scratch);

/* d_q, d_k, d_v are written (not added to).  q_len must equal kv_len in every span. */
void nf_attention_backward(nf_pool *pool, const nf_kernels *kernels, const nf_attention *a, float *d_q, float *d_k, float *d_v,
                           const float *d_out, const float *out, const float *lse, const float *q, float *scratch);

#endif
