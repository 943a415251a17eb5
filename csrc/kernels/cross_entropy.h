/* SPDX-License-Identifier: Apache-2.0 */
/* Softmax cross-entropy of a linear head, its gradient fused in, in chunks of the vocabulary: with a frozen head
   rows x V never exists, with a trained one as much of it as half of the head's gradient takes. */
#ifndef NF_KERNELS_CROSS_ENTROPY_H
#define NF_KERNELS_CROSS_ENTROPY_H

#include <stdint.h>

#include "../core/pool.h"
#include "linear.h"
#include "rows.h"

/* Floats of scratch for n rows of width D, a vocabulary of V and `workers` threads; `trained` as below. */
int64_t nf_cross_entropy_scratch(int64_t n, int64_t D, int64_t V, int workers, int trained);

/* losses: (n,) -log softmax(W x)[target].
   d_x: (n, D) gradient of their sum, or NULL when only the loss is wanted.
   d_w: (V, D) gradient of the head, or NULL while the head is frozen (then each logit is computed once; else those that are
   not kept twice); with `add` it is added to what is there. */
void nf_cross_entropy(nf_pool *pool, const nf_kernels *kernels, const nf_linear *head, const float *x, const int32_t *targets,
                      int64_t n, float *losses, float *d_x, float *d_w, int add, float *scratch);

#endif
