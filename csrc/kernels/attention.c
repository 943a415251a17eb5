/* SPDX-License-Identifier: Apache-2.0 */
#include "attention.h"

#include <math.h>
#include <string.h>

#include "matmul.h"

enum { BQ = 64, BK = 256 }; /* a tile of scores is 64 KiB: it stays in the second-level cache with its keys */

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

int64_t nf_attention_scratch(int64_t d) { return 2 * BQ * BK + BQ * d + 4 * BQ; }

typedef struct job {
    const nf_kernels *kernels;
    const nf_attention *a;
    float *out, *lse, *d_q, *d_k, *d_v, *scratch;
    const float *q, *k, *v, *d_out, *fixed_out, *fixed_lse;
} job;

/* Where task `index` of sum(ceil(q_len/BQ)) * heads tasks lies. Long rows first would balance better, but spans are few. */
static void find_tile(const nf_attention *a, int64_t index, int64_t *span, int64_t *tile, int64_t *head) {
    *head = index % a->heads;
    index /= a->heads;
    for (*span = 0; index >= (a->spans[*span].q_len + BQ - 1) / BQ; ++*span) index -= (a->spans[*span].q_len + BQ - 1) / BQ;
    *tile = (a->spans[*span].q_len + BQ - 1) / BQ - 1 - index;
}

static void forward_tile(void *context, int64_t index, int worker) {
    const job *j = context;
    const nf_attention *a = j->a;
    int64_t s, tile, h, d = a->d, H = a->heads * d, K = a->kv_heads * d;
    find_tile(a, index, &s, &tile, &h);
    const nf_span *span = &a->spans[s];
    int64_t row = tile * BQ, rows = min64(BQ, span->q_len - row), before = span->kv_len - span->q_len + row;
    int64_t kv_head = h / (a->heads / a->kv_heads);
    float *scores = j->scratch + worker * nf_attention_scratch(d), *o = scores + 2 * BQ * BK;
    float *m = o + BQ * d, *l = m + BQ, *correction = l + BQ;
    for (int64_t t = 0; t < rows; t++) m[t] = -INFINITY, l[t] = 0.0f;
    const float *q = j->q + (span->q_start + row) * H + h * d;
    for (int64_t k0 = 0; k0 < before + rows; k0 += BK) {
        int64_t cols = min64(BK, before + rows - k0);
        const float *k = j->k + (span->kv_start + k0) * K + kv_head * d, *v = j->v + (span->kv_start + k0) * K + kv_head * d;
        nf_matmul(0, 1, rows, cols, d, 1.0f, q, H, k, K, 0.0f, scores, BK);
        j->kernels->softmax_block(scores, BK, rows, cols, a->scale, before - k0 + 1, 1, m, l, correction);
        if (k0 > 0)
            for (int64_t t = 0; t < rows; t++) j->kernels->scale(o + t * d, correction[t], d);
        nf_matmul(0, 0, rows, d, cols, 1.0f, scores, BK, v, K, k0 > 0 ? 1.0f : 0.0f, o, d);
    }
    for (int64_t t = 0; t < rows; t++) {
        int64_t at = span->q_start + row + t;
        j->kernels->scale(o + t * d, 1.0f / l[t], d);
        memcpy(j->out + at * H + h * d, o + t * d, (size_t)d * sizeof *o);
        if (j->lse) j->lse[at * a->heads + h] = m[t] + logf(l[t]);
    }
}

void nf_attention_forward(nf_pool *pool, const nf_kernels *kernels, const nf_attention *a, float *out, float *lse,
                          const float *q, const float *k, const float *v, float *scratch) {
    job j = {.kernels = kernels, .a = a, .out = out, .lse = lse, .q = q, .k = k, .v = v, .scratch = scratch};
    int64_t tiles = 0;
    for (int64_t s = 0; s < a->n_spans; s++) tiles += (a->spans[s].q_len + BQ - 1) / BQ;
    nf_pool_run(pool, tiles * a->heads, forward_tile, &j);
}

/* All query heads of one key head in one document: nobody else writes their d_q, d_k and d_v. */
static void backward_group(void *context, int64_t index, int worker) {
    const job *j = context;
    const nf_attention *a = j->a;
    int64_t d = a->d, H = a->heads * d, K = a->kv_heads * d, group = a->heads / a->kv_heads;
    const nf_span *span = &a->spans[index / a->kv_heads];
    int64_t kv_head = index % a->kv_heads, T = span->q_len, at = span->q_start;
    float *p = j->scratch + worker * nf_attention_scratch(d), *dp = p + BQ * BK, *delta = dp + BQ * BK + BQ * d;
    float *lse = delta + BQ;
    const float *k = j->k + at * K + kv_head * d, *v = j->v + at * K + kv_head * d;
    float *d_k = j->d_k + at * K + kv_head * d, *d_v = j->d_v + at * K + kv_head * d;
    for (int64_t t = 0; t < T; t++) {
        memset(d_k + t * K, 0, (size_t)d * sizeof *d_k);
        memset(d_v + t * K, 0, (size_t)d * sizeof *d_v);
    }
    for (int64_t h = kv_head * group; h < (kv_head + 1) * group; h++)
        for (int64_t row = 0; row < T; row += BQ) {
            int64_t rows = min64(BQ, T - row), first = (at + row) * H + h * d;
            const float *q = j->q + first, *d_out = j->d_out + first;
            for (int64_t t = 0; t < rows; t++) {
                delta[t] = j->kernels->dot(d_out + t * H, j->fixed_out + first + t * H, d);
                lse[t] = j->fixed_lse[(at + row + t) * a->heads + h];
            }
            for (int64_t k0 = 0; k0 < row + rows; k0 += BK) {
                int64_t cols = min64(BK, row + rows - k0);
                nf_matmul(0, 1, rows, cols, d, 1.0f, q, H, k + k0 * K, K, 0.0f, p, BK);
                j->kernels->softmax_again(p, BK, rows, cols, a->scale, row - k0 + 1, 1, lse);
                nf_matmul(1, 0, cols, d, rows, 1.0f, p, BK, d_out, H, 1.0f, d_v + k0 * K, K);
                nf_matmul(0, 1, rows, cols, d, 1.0f, d_out, H, v + k0 * K, K, 0.0f, dp, BK);
                j->kernels->softmax_backward(dp, p, BK, rows, cols, a->scale, delta);
                nf_matmul(1, 0, cols, d, rows, 1.0f, dp, BK, q, H, 1.0f, d_k + k0 * K, K);
                nf_matmul(0, 0, rows, d, cols, 1.0f, dp, BK, k + k0 * K, K, k0 > 0 ? 1.0f : 0.0f, j->d_q + first, H);
            }
        }
}

void nf_attention_backward(nf_pool *pool, const nf_kernels *kernels, const nf_attention *a, float *d_q, float *d_k, float *d_v,
                           const float *d_out, const float *out, const float *lse, const float *q, const float *k,
                           const float *v, float *scratch) {
    job j = {.kernels = kernels,
             .a = a,
             .d_q = d_q,
             .d_k = d_k,
             .d_v = d_v,
             .q = q,
             .k = k,
             .v = v,
             .d_out = d_out,
             .fixed_out = out,
             .fixed_lse = lse,
             .scratch = scratch};
    nf_pool_run(pool, a->n_spans * a->kv_heads, backward_group, &j);
}
