/* SPDX-License-Identifier: Apache-2.0 */
#include "matmul.h"

#if defined(NF_USE_ACCELERATE) || defined(NF_USE_OPENBLAS)
/* The prototypes of the few functions used here: no header is needed, and the packaged OpenBLAS has prefixed names. */
#define NF_JOIN_(a, b) a##b
#define NF_JOIN(a, b) NF_JOIN_(a, b)
#ifndef BLAS_SYMBOL_PREFIX
#define BLAS_SYMBOL_PREFIX
#endif
#define NF_CBLAS(name) NF_JOIN(BLAS_SYMBOL_PREFIX, cblas_##name)
enum { CblasRowMajor = 101, CblasNoTrans = 111, CblasTrans = 112 };
void NF_CBLAS(sgemm)(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b,
                     int ldb, float beta, float *c, int ldc);
void NF_CBLAS(sgemv)(int order, int trans, int m, int n, float alpha, const float *a, int lda, const float *x, int incx,
                     float beta, float *y, int incy);
#endif

#if defined(NF_CBLAS)

void nf_matmul(int ta, int tb, int64_t M, int64_t N, int64_t K, float alpha, const float *a, int64_t lda, const float *b,
               int64_t ldb, float beta, float *c, int64_t ldc) {
    if (M == 0 || N == 0) return;
    if (M == 1 && !ta) { /* one token: read the matrix once, at memory speed */
        int rows = (int)(tb ? N : K), cols = (int)(tb ? K : N);
        NF_CBLAS(sgemv)(CblasRowMajor, tb ? CblasNoTrans : CblasTrans, rows, cols, alpha, b, (int)ldb, a, 1, beta, c, 1);
        return;
    }
    NF_CBLAS(sgemm)(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, (int)M, (int)N, (int)K,
                    alpha, a, (int)lda, b, (int)ldb, beta, c, (int)ldc);
}

#if defined(NF_USE_OPENBLAS)
#define NF_OPENBLAS(name) NF_JOIN(BLAS_SYMBOL_PREFIX, openblas_##name)
void NF_OPENBLAS(set_num_threads)(int n);
char *NF_OPENBLAS(get_config)(void);
void nf_matmul_single_thread(void) { NF_OPENBLAS(set_num_threads)(1); }
const char *nf_matmul_library(void) { return NF_OPENBLAS(get_config)(); }
#else
void nf_matmul_single_thread(void) {} /* Accelerate decides by itself and is safe to call from several threads */
const char *nf_matmul_library(void) { return "Accelerate"; }
#endif

#else /* plain C: simple, correct, some 10 times slower */

static void scale_rows(float *c, int64_t ldc, int64_t M, int64_t N, float beta) {
    for (int64_t i = 0; i < M; i++)
        for (int64_t j = 0; j < N; j++) c[i * ldc + j] = beta == 0.0f ? 0.0f : beta * c[i * ldc + j];
}

void nf_matmul(int ta, int tb, int64_t M, int64_t N, int64_t K, float alpha, const float *a, int64_t lda, const float *b,
               int64_t ldb, float beta, float *c, int64_t ldc) {
    if (!tb) { /* rows of b are contiguous: c_row += a_ik * b_row */
        scale_rows(c, ldc, M, N, beta);
        for (int64_t i = 0; i < M; i++)
            for (int64_t k = 0; k < K; k++) {
                float f = alpha * (ta ? a[k * lda + i] : a[i * lda + k]);
                for (int64_t j = 0; j < N; j++) c[i * ldc + j] += f * b[k * ldb + j];
            }
        return;
    }
    for (int64_t i = 0; i < M; i++)
        for (int64_t j = 0; j < N; j++) {
            enum { LANES = 16 };
            float part[LANES] = {0}, rest = 0.0f, sum = 0.0f;
            int64_t k = 0;
            if (!ta)
                for (; k + LANES <= K; k += LANES)
                    for (int l = 0; l < LANES; l++) part[l] += a[i * lda + k + l] * b[j * ldb + k + l];
            for (; k < K; k++) rest += (ta ? a[k * lda + i] : a[i * lda + k]) * b[j * ldb + k];
            for (int l = 0; l < LANES; l++) sum += part[l];
            float old = beta == 0.0f ? 0.0f : beta * c[i * ldc + j];
            c[i * ldc + j] = old + alpha * (sum + rest);
        }
}

void nf_matmul_single_thread(void) {}
const char *nf_matmul_library(void) { return "plain C"; }

#endif
