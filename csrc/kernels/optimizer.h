/* SPDX-License-Identifier: Apache-2.0 */
/* What an optimiser does to flat arrays of float32. */
#ifndef NF_KERNELS_OPTIMIZER_H
#define NF_KERNELS_OPTIMIZER_H

#include <stdint.h>

#include "../core/status.h"

/* Step t >= 1 of AdamW (Loshchilov & Hutter 2019, decoupled weight decay) on n values, in place:
     g' = grad_scale g;  m = b1 m + (1-b1) g';  v = b2 v + (1-b2) g'^2
     p = p - lr weight_decay p - lr (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps)
   rounded: (n,) takes the new p as bf16, or NULL. */
nf_status nf_adamw(float *p, uint16_t *rounded, const float *g, float *m, float *v, int64_t n, int64_t t, double lr,
                   double beta1, double beta2, double eps, double weight_decay, double grad_scale, int threads);

/* Sum of squares in double, in a fixed order; NaN and infinity come through. */
nf_status nf_sum_of_squares(double *sum, const float *x, int64_t n, int threads);

/* Index of the first value that is NaN or infinite, or -1. */
int64_t nf_first_nonfinite(const float *x, int64_t n);

#endif
