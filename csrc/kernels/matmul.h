/* SPDX-License-Identifier: Apache-2.0 */
/* float32 matrix products: Accelerate on macOS, OpenBLAS where it was found at build time, plain C otherwise. */
#ifndef NF_KERNELS_MATMUL_H
#define NF_KERNELS_MATMUL_H

#include <stdint.h>

/* c (M, N) = alpha * op(a) op(b) + beta * c, row-major; ld* are row strides in elements.
   ta: a is stored (K, M) and used transposed; tb: b is stored (N, K). One thread; concurrent calls are safe.
   With beta = 0, c is not read. */
void nf_matmul(int ta, int tb, int64_t M, int64_t N, int64_t K, float alpha, const float *a, int64_t lda, const float *b,
               int64_t ldb, float beta, float *c, int64_t ldc);

/* Keep the library from starting threads of its own; called once per engine. */
void nf_matmul_single_thread(void);

/* What computes: "Accelerate", OpenBLAS's own description, or "plain C". */
const char *nf_matmul_library(void);

#endif
