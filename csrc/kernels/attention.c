/* SPDX-License-Identifier: Apache-2.0 */
#include "attention_inside.h"

#include <math.h>
#include <string.h>

#include "../core/cpu.h"
#include "narrow.h"

enum { BQ = 96, BK = 256 }; /* a tile of scores is 96 KiB: it stays in the second-level cache with its keys */

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* What one worker computes in.  A prepared operand stands beside the float32 rows that it is made of. */
typedef struct room {
    nf_operand q, d_out, q_t, d_out_t; /* (BQ, d), and (d, BQ) transposed */
    nf_operand p;                      /* (BQ, BK): probabilities, then the scores' gradient */
    float *scores, *d_scores;          /* (BQ, BK) */
    float *o;                          /* (BQ, d) */
    float *wide_q_t, *wide_d_out_t;    /* (d, BQ): float32 is transposed here */
    float *dk_t, *dv_t;                /* (d, BK) */
    float *m, *l, *correction;         /* (BQ,); in the backward pass m is delta and l the log-sum-exp */
    void *products;
} room;

static float *take_floats(nf_pieces *p, int64_t n) { return nf_take(p, n * (int64_t)sizeof(float)); }

static nf_operand take_operand(nf_pieces *p, const float *x, int64_t rows, int64_t width) {
    void *memory = nf_take(p, nf_operand_bytes(rows, width));
    return p->memory ? nf_operand_in(memory, x, width, rows, width) : (nf_operand){0};
}

static int64_t furnish(room *r, void *memory, int64_t d) {
    nf_pieces p = {memory, 0};
    r->scores = take_floats(&p, BQ * BK), r->d_scores = take_floats(&p, BQ * BK);
    r->o = take_floats(&p, BQ * d), r->dk_t = take_floats(&p, d * BK), r->dv_t = take_floats(&p, d * BK);
    r->m = take_floats(&p, BQ), r->l = take_floats(&p, BQ), r->correction = take_floats(&p, BQ);
    r->q = take_operand(&p, NULL, BQ, d), r->d_out = take_operand(&p, NULL, BQ, d);
    r->wide_q_t = take_floats(&p, d * BQ), r->wide_d_out_t = take_floats(&p, d * BQ);
    r->q_t = take_operand(&p, r->wide_q_t, d, BQ), r->d_out_t = take_operand(&p, r->wide_d_out_t, d, BQ);
    r->p = take_operand(&p, r->scores, BQ, BK);
    r->products = nf_take(&p, nf_linear_scratch(d > BK ? d : BK, 0));
    return p.used;
}

static int64_t bytes(int64_t d) {
    room counted;
    return furnish(&counted, NULL, d);
}

/* One head of a document's keys or values as a weight: (kv_len, d). */
static nf_linear rows_of(const nf_attention *a, const void *x, const nf_span *span, int64_t kv_head) {
    int64_t ld = a->kv_heads * a->d, size = a->form.kind == NF_LINEAR_F32 ? 4 : 2;
    const char *at = (const char *)x + (span->kv_start * ld + kv_head * a->d) * size;
    return (nf_linear){.kind = a->form.kind, .narrow = a->form.narrow, .out = span->kv_len, .in = a->d, .ld = ld, .w = at};
}

/* -------- forward -------- */

static void forward_tile(const nf_attention_job *j, const nf_span *span, int64_t row, int64_t rows, int64_t h, void *memory) {
    const nf_attention *a = j->a;
    int64_t d = a->d, H = a->heads * d, before = span->kv_len - span->q_len + row;
    int64_t kv_head = h / (a->heads / a->kv_heads);
    nf_linear keys = rows_of(a, a->k, span, kv_head), values = rows_of(a, a->v, span, kv_head);
    room r;
    furnish(&r, memory, d);
    for (int64_t t = 0; t < rows; t++) r.m[t] = -INFINITY, r.l[t] = 0.0f;
    r.q.x = j->q + (span->q_start + row) * H + h * d, r.q.ld = H;
    nf_linear_prepare(&keys, &r.q, 0, rows);
    for (int64_t k0 = 0; k0 < before + rows; k0 += BK) {
        int64_t cols = min64(BK, before + rows - k0);
        nf_linear_tile(&keys, r.scores, BK, &r.q, 0, rows, k0, k0 + cols, NULL, r.products);
        j->kernels->softmax_block(r.scores, BK, rows, cols, a->scale, before - k0 + 1, 1, r.m, r.l, r.correction);
        if (k0 > 0)
            for (int64_t t = 0; t < rows; t++) j->kernels->scale(r.o + t * d, r.correction[t], d);
        nf_addend so_far = {.start = k0 > 0 ? r.o : NULL, .ld = d};
        r.p.width = cols;
        nf_linear_prepare(&values, &r.p, 0, rows);
        nf_linear_tile_input(&values, r.o, d, &r.p, 0, rows, k0, 0, d, &so_far, r.products);
    }
    for (int64_t t = 0; t < rows; t++) {
        int64_t at = span->q_start + row + t;
        j->kernels->scale(r.o + t * d, 1.0f / r.l[t], d);
        memcpy(j->out + at * H + h * d, r.o + t * d, (size_t)d * sizeof *r.o);
        if (j->lse) j->lse[at * a->heads + h] = r.m[t] + logf(r.l[t]);
    }
}

/* -------- backward -------- */

/* x, `rows` rows of d values ld apart, transposed as an operand. */
static void load_transposed(const nf_attention_job *j, nf_operand *x_t, float *room, const nf_linear *keys, const float *x,
                            int64_t ld, int64_t rows) {
    int64_t d = j->a->d;
    if (keys->narrow) {
        x_t->x = x, x_t->ld = ld;
        nf_linear_prepare_transposed(keys, x_t, rows, 0, d);
    } else {
        j->kernels->transpose(room, BQ, x, ld, rows, d);
    }
    x_t->width = rows;
}

/* A tile of queries of one head: rows and their transposes, delta = sum(d_out * out) and the log-sum-exp of each row. */
static void load_queries(const nf_attention_job *j, room *r, const nf_linear *keys, int64_t at, int64_t rows, int64_t h) {
    const nf_attention *a = j->a;
    int64_t d = a->d, H = a->heads * d;
    r->q.x = j->q + at * H + h * d, r->d_out.x = j->d_out + at * H + h * d, r->q.ld = r->d_out.ld = H;
    for (int64_t t = 0; t < rows; t++) {
        r->m[t] = j->kernels->dot(r->d_out.x + t * H, j->fixed_out + (at + t) * H + h * d, d);
        r->l[t] = j->fixed_lse[(at + t) * a->heads + h];
    }
    load_transposed(j, &r->q_t, r->wide_q_t, keys, r->q.x, H, rows);
    load_transposed(j, &r->d_out_t, r->wide_d_out_t, keys, r->d_out.x, H, rows);
    nf_linear_prepare(keys, &r->q, 0, rows);
    nf_linear_prepare(keys, &r->d_out, 0, rows);
}

/* Prepare x (rows, cols) as an operand, and give the same rows as a weight. */
static nf_linear as_weight(room *r, const nf_linear *like, float *x, int64_t rows, int64_t cols) {
    r->p.x = x, r->p.width = cols;
    nf_linear_prepare(like, &r->p, 0, rows);
    return nf_linear_of_operand(like, &r->p, rows);
}

/* The queries [row, row+rows) of head h and the keys [k0, k0+cols): their share of d_q, of dk_t and of dv_t. */
static void backward_tile(const nf_attention_job *j, room *r, const nf_linear *keys, const nf_linear *values,
                          const nf_span *span, int64_t row, int64_t rows, int64_t h, int64_t k0) {
    const nf_attention *a = j->a;
    int64_t d = a->d, H = a->heads * d, at = span->q_start + row, cols = min64(BK, row + rows - k0);
    float *d_q = j->d_q + at * H + h * d;
    load_queries(j, r, keys, at, rows, h);
    nf_linear_tile(keys, r->scores, BK, &r->q, 0, rows, k0, k0 + cols, NULL, r->products);
    j->kernels->softmax_again(r->scores, BK, rows, cols, a->scale, row - k0 + 1, 1, r->l);
    nf_linear p = as_weight(r, keys, r->scores, rows, cols);
    nf_addend dv_t = {.start = r->dv_t, .ld = BK}, dk_t = {.start = r->dk_t, .ld = BK};
    nf_linear_tile_input(&p, r->dv_t, BK, &r->d_out_t, 0, d, 0, 0, cols, &dv_t, r->products);
    nf_linear_tile(values, r->d_scores, BK, &r->d_out, 0, rows, k0, k0 + cols, NULL, r->products);
    j->kernels->softmax_backward(r->d_scores, r->scores, BK, rows, cols, a->scale, r->m);
    nf_linear ds = as_weight(r, keys, r->d_scores, rows, cols);
    nf_linear_tile_input(&ds, r->dk_t, BK, &r->q_t, 0, d, 0, 0, cols, &dk_t, r->products);
    nf_addend so_far = {.start = k0 > 0 ? d_q : NULL, .ld = H};
    nf_linear_tile_input(keys, d_q, H, &r->p, 0, rows, k0, 0, d, &so_far, r->products);
}

static void backward_group(const nf_attention_job *j, const nf_span *span, int64_t kv_head, void *memory) {
    const nf_attention *a = j->a;
    int64_t d = a->d, K = a->kv_heads * d, group = a->heads / a->kv_heads, T = span->q_len;
    nf_linear keys = rows_of(a, a->k, span, kv_head), values = rows_of(a, a->v, span, kv_head);
    room r;
    furnish(&r, memory, d);
    for (int64_t k0 = 0; k0 < T; k0 += BK) {
        memset(r.dk_t, 0, (size_t)(d * BK) * sizeof *r.dk_t);
        memset(r.dv_t, 0, (size_t)(d * BK) * sizeof *r.dv_t);
        for (int64_t h = kv_head * group; h < (kv_head + 1) * group; h++)
            for (int64_t row = k0 / BQ * BQ; row < T; row += BQ)
                backward_tile(j, &r, &keys, &values, span, row, min64(BQ, T - row), h, k0);
        int64_t first = (span->kv_start + k0) * K + kv_head * d;
        j->kernels->transpose(j->d_k + first, K, r.dk_t, BK, d, min64(BK, T - k0));
        j->kernels->transpose(j->d_v + first, K, r.dv_t, BK, d, min64(BK, T - k0));
    }
}

static const nf_attention_tiles any_tiles = {BQ, bytes, forward_tile, backward_group};

/* -------- tasks -------- */

/* The tiles for these keys and values on this machine. */
static const nf_attention_tiles *tiles_of(const nf_attention *a) {
    int bf16 = a->form.kind == NF_LINEAR_BF16 && a->form.narrow && a->form.narrow->needs & NF_HAS_AVX512_BF16;
    return bf16 && nf_attention_avx512_bf16 && a->d % 2 == 0 ? nf_attention_avx512_bf16 : &any_tiles;
}

int64_t nf_attention_scratch(int64_t d) {
    int64_t most = bytes(d), other = nf_attention_avx512_bf16 ? nf_attention_avx512_bf16->bytes(d) : 0;
    return (other > most ? other : most) / (int64_t)sizeof(float);
}

static void *memory_of(const nf_attention_job *j, int worker) { return j->scratch + worker * nf_attention_scratch(j->a->d); }

static int64_t count_tiles(const nf_span *span, int64_t queries) { return (span->q_len + queries - 1) / queries; }

/* Task `index` of a tile and a head.  Long rows first would balance better, but spans are few. */
static void forward_task(void *context, int64_t index, int worker) {
    const nf_attention_job *j = context;
    const nf_attention_tiles *tiles = tiles_of(j->a);
    const nf_span *span = j->a->spans;
    int64_t h = index % j->a->heads, tile = index / j->a->heads;
    for (; tile >= count_tiles(span, tiles->queries); span++) tile -= count_tiles(span, tiles->queries);
    int64_t row = (count_tiles(span, tiles->queries) - 1 - tile) * tiles->queries;
    tiles->forward(j, span, row, min64(tiles->queries, span->q_len - row), h, memory_of(j, worker));
}

void nf_attention_forward(nf_pool *pool, const nf_kernels *kernels, const nf_attention *a, float *out, float *lse,
                          const float *q, float *scratch) {
    nf_attention_job j = {.kernels = kernels, .a = a, .out = out, .lse = lse, .q = q, .scratch = scratch};
    int64_t count = 0;
    for (int64_t s = 0; s < a->n_spans; s++) count += count_tiles(&a->spans[s], tiles_of(a)->queries);
    nf_pool_run(pool, count * a->heads, forward_task, &j);
}

static void backward_task(void *context, int64_t index, int worker) {
    const nf_attention_job *j = context;
    const nf_attention *a = j->a;
    tiles_of(a)->backward(j, &a->spans[index / a->kv_heads], index % a->kv_heads, memory_of(j, worker));
}

void nf_attention_backward(nf_pool *pool, const nf_kernels *kernels, const nf_attention *a, float *d_q, float *d_k, float *d_v,
                           const float *d_out, const float *out, const float *lse, const float *q, float *scratch) {
    nf_attention_job j = {.kernels = kernels, .a = a, .d_q = d_q, .d_k = d_k, .d_v = d_v, .scratch = scratch};
    j.q = q, j.d_out = d_out, j.fixed_out = out, j.fixed_lse = lse;
    nf_pool_run(pool, a->n_spans * a->kv_heads, backward_task, &j);
}
