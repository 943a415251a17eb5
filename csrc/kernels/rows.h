/* SPDX-License-Identifier: Apache-2.0 */
/* Kernels that work row by row, compiled from one body (rows.inc.h) for each instruction set.
   All arrays are float32, row-major, without alignment. One thread each; callers cut the rows into tasks. */
#ifndef NF_KERNELS_ROWS_H
#define NF_KERNELS_ROWS_H

#include <stdint.h>

#include "../core/cpu.h"

typedef struct nf_kernels {
    /* RMSNorm (Zhang & Sennrich 2019): out = gain * x / sqrt(mean(x^2) + eps).  x, out: (rows, C) with row strides. */
    void (*rmsnorm_forward)(float *out, int64_t ldo, const float *x, int64_t ldx, const float *gain, int64_t rows, int64_t C,
                            float eps);
    /* dx (+)= r * (gain*dy - xhat * mean(gain*dy*xhat));  d_gain += sum over rows of dy*xhat (NULL: not wanted).
       d_x may be d_y when add is 0. */
    void (*rmsnorm_backward)(float *d_x, int64_t lddx, float *d_gain, const float *d_y, int64_t lddy, const float *x,
                             int64_t ldx, const float *gain, int64_t rows, int64_t C, float eps, int add);
    /* Rotary embedding (Su et al. 2021) in place on `heads` heads of width d in each row: the first 2*half values of a
       head turn by angles with cos, sin: (rows, half).  sign = -1 turns back (the gradient). */
    void (*rope)(float *x, int64_t ldx, const float *cosine, const float *sine, int64_t rows, int64_t heads, int64_t d,
                 int64_t half, int interleaved, float sign);
    /* SwiGLU (Shazeer 2020): out = silu(gate) * up, n values. */
    void (*swiglu_forward)(float *out, const float *gate, const float *up, int64_t n);
    /* d_up = d_out * silu(gate);  d_gate = d_out * up * silu'(gate).  Either may be d_out. */
    void (*swiglu_backward)(float *d_gate, float *d_up, const float *d_out, const float *gate, const float *up, int64_t n);
    /* One step of a running softmax over a block of scores, for `rows` rows with `cols` columns each, ld apart:
       s = exp(scale*s - m_new) in place, m = max(m, scale*s), l = l*correction + sum(s), correction = exp(m - m_new).
       In row i only the first `visible + i*causal` columns count (clamped to cols); the others become 0. */
    void (*softmax_block)(float *s, int64_t ld, int64_t rows, int64_t cols, float scale, int64_t visible, int64_t causal,
                          float *m, float *l, float *correction);
    /* The same for one row of which all n values count, and m a point of reference within 8 of the largest value so far: it
       moves rarely, so that what was weighted before hardly ever has to be scaled.  Returns the correction. */
    float (*softmax_row)(float *s, int64_t n, float *m, float *l);
    /* p = exp(scale*s - lse[i]) in place, masked as above. */
    void (*softmax_again)(float *s, int64_t ld, int64_t rows, int64_t cols, float scale, int64_t visible, int64_t causal,
                          const float *lse);
    /* ds = scale * p * (dp - delta[i]), written over dp. */
    void (*softmax_backward)(float *dp, const float *p, int64_t ld, int64_t rows, int64_t cols, float scale,
                             const float *delta);
    /* x (n,) *= f */
    void (*scale)(float *x, float f, int64_t n);
    /* y (n,) += f * x */
    void (*add_scaled)(float *y, const float *x, float f, int64_t n);
    /* sum of a[i]*b[i] */
    float (*dot)(const float *a, const float *b, int64_t n);
    /* to (cols, rows), ldt apart = the transpose of from (rows, cols), ldf apart. */
    void (*transpose)(float *to, int64_t ldt, const float *from, int64_t ldf, int64_t rows, int64_t cols);
    /* The small side of a low-rank product: h (rows, r) = scale * x a^T, x: (rows, K) with rows ldx apart, a: (r, K). */
    void (*low_rank)(float *h, const float *x, int64_t ldx, const float *a, int64_t rows, int64_t K, int64_t r, float scale);
    /* out[k * out_k + c * out_c] += scale * sum over rows of u[t, k] * x[t, c];  u: (rows, r), x: (rows, cols), ldx apart. */
    void (*low_rank_gradient)(float *out, int64_t out_k, int64_t out_c, const float *u, const float *x, int64_t ldx,
                              int64_t rows, int64_t cols, int64_t r, float scale);
    /* AdamW with decoupled weight decay (Loshchilov & Hutter 2019), n values, in place.  g is multiplied by grad_scale;
       correction1 = 1 - beta1^t, correction2 = 1 - beta2^t. */
    void (*adamw)(float *p, const float *g, float *m, float *v, int64_t n, float lr, float beta1, float beta2, float eps,
                  float weight_decay, float correction1, float correction2, float grad_scale);
    /* out = x rounded to bf16, to nearest even, n values; NaN stays NaN. */
    void (*to_bf16)(uint16_t *out, const float *x, int64_t n);
} nf_kernels;

/* The kernels compiled for `isa`; the caller makes sure that the machine can run them. */
const nf_kernels *nf_kernels_for(nf_isa isa);

#endif
