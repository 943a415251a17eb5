/* SPDX-License-Identifier: Apache-2.0 */
#include "optimizer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../core/pool.h"
#include "rows.h"

enum { PIECE = 1 << 16 }; /* values of one task; a function of nothing, so the cut does not show in the result */

typedef struct job {
    const nf_kernels *kernels;
    float *p, *m, *v;
    uint16_t *rounded;
    const float *g;
    int64_t n;
    float lr, beta1, beta2, eps, weight_decay, correction1, correction2, grad_scale;
} job;

static void adamw_piece(void *context, int64_t index, int worker) {
    const job *j = context;
    int64_t at = index * PIECE, n = j->n - at < PIECE ? j->n - at : PIECE;
    (void)worker;
    j->kernels->adamw(j->p + at, j->g + at, j->m + at, j->v + at, n, j->lr, j->beta1, j->beta2, j->eps, j->weight_decay,
                      j->correction1, j->correction2, j->grad_scale);
    if (j->rounded) j->kernels->to_bf16(j->rounded + at, j->p + at, n);
}

nf_status nf_adamw(float *p, uint16_t *rounded, const float *g, float *m, float *v, int64_t n, int64_t t, double lr,
                   double beta1, double beta2, double eps, double weight_decay, double grad_scale, int threads) {
    if (t < 1) return nf_fail(NF_ERR_ARGUMENT, "step %lld: the first step is 1", (long long)t);
    job j = {nf_kernels_for(nf_cpu_isa()),
             p,
             m,
             v,
             rounded,
             g,
             n,
             (float)lr,
             (float)beta1,
             (float)beta2,
             (float)eps,
             (float)weight_decay,
             (float)(1.0 - pow(beta1, (double)t)),
             (float)(1.0 - pow(beta2, (double)t)),
             (float)grad_scale};
    int64_t pieces = (n + PIECE - 1) / PIECE;
    nf_pool *pool;
    NF_TRY(nf_pool_new(&pool, pieces < threads ? (pieces > 0 ? (int)pieces : 1) : threads));
    nf_pool_run(pool, pieces, adamw_piece, &j);
    nf_pool_free(pool);
    return NF_OK;
}

typedef struct squares_job {
    const float *x;
    int64_t n;
    double *sums; /* of each piece */
} squares_job;

static void squares_piece(void *context, int64_t index, int worker) {
    enum { LANES = 8 };
    const squares_job *j = context;
    int64_t i = index * PIECE, end = i + PIECE < j->n ? i + PIECE : j->n;
    double part[LANES] = {0}, total = 0.0;
    (void)worker;
    for (; i + LANES <= end; i += LANES)
        for (int l = 0; l < LANES; l++) part[l] += (double)j->x[i + l] * (double)j->x[i + l];
    for (; i < end; i++) total += (double)j->x[i] * (double)j->x[i];
    for (int l = 0; l < LANES; l++) total += part[l];
    j->sums[index] = total;
}

nf_status nf_sum_of_squares(double *sum, const float *x, int64_t n, int threads) {
    int64_t pieces = (n + PIECE - 1) / PIECE;
    squares_job j = {x, n, malloc((size_t)(pieces + 1) * sizeof(double))};
    nf_pool *pool = NULL;
    nf_status status = j.sums ? nf_pool_new(&pool, pieces < threads ? (pieces > 0 ? (int)pieces : 1) : threads)
                              : nf_fail(NF_ERR_MEMORY, "no memory for %lld sums", (long long)pieces);
    if (status == NF_OK) nf_pool_run(pool, pieces, squares_piece, &j);
    *sum = 0.0;
    for (int64_t i = 0; status == NF_OK && i < pieces; i++) *sum += j.sums[i];
    nf_pool_free(pool);
    free(j.sums);
    return status;
}

int64_t nf_first_nonfinite(const float *x, int64_t n) {
    enum { BLOCK = 4096 };
    const uint32_t exponent = 0x7f800000u;
    for (int64_t from = 0; from < n; from += BLOCK) {
        int64_t end = from + BLOCK < n ? from + BLOCK : n;
        uint32_t bad = 0;
        for (int64_t i = from; i < end; i++) {
            uint32_t bits;
            memcpy(&bits, x + i, sizeof bits);
            bad |= (bits & exponent) == exponent;
        }
        for (int64_t i = from; bad && i < end; i++)
            if (!isfinite(x[i])) return i;
    }
    return -1;
}
