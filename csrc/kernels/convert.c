/* SPDX-License-Identifier: Apache-2.0 */
#include "convert.h"

#include <math.h>

#include "../core/pool.h"
#include "rows.h"

void nf_to_bf16(uint16_t *out, const float *x, int64_t n) { nf_kernels_for(nf_cpu_isa())->to_bf16(out, x, n); }

typedef struct job {
    uint16_t *out;
    const float *x;
    int64_t n;
} job;

enum { PIECE = 1 << 16 };

static void bf16_piece(void *context, int64_t index, int worker) {
    const job *j = context;
    int64_t at = index * PIECE;
    (void)worker;
    nf_to_bf16(j->out + at, j->x + at, j->n - at < PIECE ? j->n - at : PIECE);
}

nf_status nf_to_bf16_threads(uint16_t *out, const float *x, int64_t n, int threads) {
    int64_t pieces = (n + PIECE - 1) / PIECE;
    job j = {out, x, n};
    nf_pool *pool;
    NF_TRY(nf_pool_new(&pool, pieces < threads ? (pieces > 0 ? (int)pieces : 1) : threads));
    nf_pool_run(pool, pieces, bf16_piece, &j);
    nf_pool_free(pool);
    return NF_OK;
}

void nf_to_int8(int8_t *out, float *scale, const float *x, int64_t rows, int64_t width) {
    for (int64_t t = 0; t < rows; t++, x += width, out += width) {
        float top = 0.0f;
        for (int64_t i = 0; i < width; i++) top = fabsf(x[i]) > top ? fabsf(x[i]) : top;
        scale[t] = top / 127.0f;
        float inverse = top > 0.0f ? 127.0f / top : 0.0f;
        for (int64_t i = 0; i < width; i++) out[i] = (int8_t)lrintf(x[i] * inverse);
    }
}
