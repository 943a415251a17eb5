/* SPDX-License-Identifier: Apache-2.0 */
/* One weight matrix as the engine stores it, and the two products that training needs of a frozen one.
   Everything above works in tiles through these functions, so a new way of storing a weight is a new kind here. */
#ifndef NF_KERNELS_LINEAR_H
#define NF_KERNELS_LINEAR_H

#include <stdint.h>

typedef enum nf_linear_kind {
    NF_LINEAR_NONE = 0, /* not set */
    NF_LINEAR_F32 = 1   /* row-major float32, the caller's memory */
} nf_linear_kind;

/* w: (out, in) float32, owned by the caller; bias: (out,) or NULL. */
typedef struct nf_linear {
    nf_linear_kind kind;
    int64_t out, in;
    const float *w;
    const float *bias;
} nf_linear;

/* y (rows, o1-o0) = x (rows, in) W[o0:o1]^T + beta * y.  The bias is not added. One thread. */
void nf_linear_tile(const nf_linear *l, float *y, int64_t ldy, const float *x, int64_t ldx, int64_t rows, int64_t o0,
                    int64_t o1, float beta);

/* dx (rows, i1-i0) = dy (rows, o1-o0) W[o0:o1, i0:i1] + beta * dx. One thread. */
void nf_linear_tile_input(const nf_linear *l, float *dx, int64_t lddx, const float *dy, int64_t lddy, int64_t rows,
                          int64_t o0, int64_t o1, int64_t i0, int64_t i1, float beta);

/* row (in,) = W[index]. */
void nf_linear_row(const nf_linear *l, float *row, int64_t index);

#endif
