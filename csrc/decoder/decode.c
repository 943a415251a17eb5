/* SPDX-License-Identifier: Apache-2.0 */
/* One token for each of a few sequences.  The weights are read once for all of them, and reading them is what takes the time;
   each row goes through the kernels for one row, so it does not matter what stands beside it. */
#include <math.h>

#include "../kernels/matmul.h"
#include "engine.h"

/* Columns of one tile of a product: few enough for an even share of each thread, enough for a stream of memory. */
static int64_t tile_columns(int64_t out) {
    int64_t cols = (out / 24 + 31) / 32 * 32;
    return cols < 32 ? 32 : cols > 256 ? 256 : cols;
}

typedef struct step {
    nf_engine *e;
    nf_cache *const *caches;
    const int32_t *tokens, *positions;
    stream s; /* T: the rows */
    block *b;
    int64_t layer;
    float *logits;
} step;

/* Products of the same rows: y[i] = x W_i^T + bias + low-rank pair, (+ residual), or all of a gated feed-forward's inner half. */
typedef struct product {
    const step *s;
    projection *const *p;
    float *const *y;
    const float *x, *residual;
    float *acted; /* silu(y[0]) * y[1] of the same columns; then y[0] and y[1] have one tile */
    int n;
    int64_t tiles;
} product;

static int64_t tiles_of(const projection *p) { return nf_tiles(p->base.out, tile_columns(p->base.out)); }

static void product_columns(const product *j, int which, int64_t o0, int64_t o1, int worker) {
    const projection *p = j->p[which];
    nf_engine *e = j->s->e;
    int64_t out = p->base.out, in = p->base.in, T = j->s->s.T;
    float *y = j->y[which] + o0;
    nf_operand x = nf_operand_in(e->input, j->x, in, T, in);
    nf_linear_decode(&p->base, y, out, &x, T, o0, o1, e->product_scratch + worker * e->product_bytes);
    for (int64_t t = 0; t < T; t++, y += out) {
        if (p->base.bias) e->kernels->add_scaled(y, p->base.bias + o0, 1.0f, o1 - o0);
        if (p->r) nf_matmul(0, 1, 1, o1 - o0, p->r, p->scale, p->h + t * p->r, p->r, p->b + o0 * p->r, p->r, 1.0f, y, out);
        if (j->residual) e->kernels->add_scaled(y, j->residual + t * out + o0, 1.0f, o1 - o0);
    }
}

/* Threads take every so-many-th index; so that each reads on where it was, those indices are neighbouring tiles. */
static void product_tile(void *context, int64_t index, int worker) {
    const product *j = context;
    nf_engine *e = j->s->e;
    int64_t threads = nf_pool_threads(e->pool), each = nf_tiles(j->tiles, threads);
    int64_t tile = index % threads * each + index / threads;
    int which = 0;
    if (tile >= j->tiles) return;
    while (!j->acted && tile >= tiles_of(j->p[which])) tile -= tiles_of(j->p[which++]);
    int64_t out = j->p[which]->base.out, o0 = tile * tile_columns(out), o1 = nf_min(o0 + tile_columns(out), out);
    product_columns(j, which, o0, o1, worker);
    if (!j->acted) return;
    product_columns(j, 1, o0, o1, worker);
    for (int64_t at = o0; at < j->s->s.T * out; at += out)
        e->kernels->swiglu_forward(j->acted + at, j->y[0] + at, j->y[1] + at, o1 - o0);
}

static void multiply(product j) {
    nf_pool *pool = j.s->e->pool;
    int64_t threads = nf_pool_threads(pool);
    for (int i = 0; i < (j.acted ? 1 : j.n); i++) j.tiles += tiles_of(j.p[i]);
    nf_pool_run(pool, nf_tiles(j.tiles, threads) * threads, product_tile, &j);
}

/* -------- rows: what is done for each token between the products -------- */

static void embed_row(void *context, int64_t t, int worker) {
    const step *j = context;
    nf_engine *e = j->e;
    (void)worker;
    nf_linear_row(&e->embed, e->x + t * e->shape.hidden, j->tokens[t]);
    nf_rope_angles(e, t, j->positions[t]);
}

static void norm_row(const step *j, const norm *n, const float *x, projection *const *p, int count, int64_t t, int worker) {
    nf_engine *e = j->e;
    int64_t D = e->shape.hidden;
    e->kernels->rmsnorm_forward(e->normed + t * D, D, x + t * D, D, n->gain, 1, D, e->shape.eps);
    nf_project_rows(e, p, count, &j->s, e->normed, t, 1, worker);
}

static void attention_norm_row(void *context, int64_t t, int worker) {
    const step *j = context;
    projection *qkv[] = {&j->b->p[P_Q], &j->b->p[P_K], &j->b->p[P_V]};
    norm_row(j, &j->b->attn_norm, j->e->x, qkv, 3, t, worker);
}

static void rotate_row(void *context, int64_t t, int worker) {
    const step *j = context;
    (void)worker;
    nf_rotate(j->e, j->b, t, 1);
    nf_cached cached = nf_cache_layer(j->caches[t], j->layer);
    int64_t K = cached.heads * cached.d;
    nf_cached_put(&cached, j->positions[t], j->b->act.k + t * K, j->b->act.v + t * K, 1);
}

/* The query heads of one key head of one row. */
static void attend(void *context, int64_t index, int worker) {
    const step *j = context;
    nf_engine *e = j->e;
    const nf_shape *c = &e->shape;
    int64_t t = index / c->kv_heads, head = index % c->kv_heads, group = c->heads / c->kv_heads;
    int64_t at = (t * c->heads + head * group) * c->head_dim;
    nf_cached cached = nf_cache_layer(j->caches[t], j->layer);
    nf_cached_attention(e->kernels, &cached, j->b->act.attended + at, j->b->act.q + at, head, group, j->positions[t] + 1,
                        1.0f / sqrtf((float)c->head_dim), e->attention_scratch + worker * e->attention_floats);
}

static void attended_row(void *context, int64_t t, int worker) {
    const step *j = context;
    nf_project_rows(j->e, (projection *const[]){&j->b->p[P_O]}, 1, &j->s, j->b->act.attended, t, 1, worker);
}

static void ffn_norm_row(void *context, int64_t t, int worker) {
    const step *j = context;
    projection *gate_up[] = {&j->b->p[P_GATE], &j->b->p[P_UP]};
    norm_row(j, &j->b->ffn_norm, j->b->act.middle, gate_up, 2, t, worker);
}

static void acted_row(void *context, int64_t t, int worker) {
    const step *j = context;
    nf_project_rows(j->e, (projection *const[]){&j->b->p[P_DOWN]}, 1, &j->s, j->e->acted, t, 1, worker);
}

static void decode_block(step *j) {
    nf_engine *e = j->e;
    block *b = j->b;
    activations *a = &b->act;
    int64_t n = j->s.T;
    projection *qkv[] = {&b->p[P_Q], &b->p[P_K], &b->p[P_V]}, *o[] = {&b->p[P_O]};
    projection *gate_up[] = {&b->p[P_GATE], &b->p[P_UP]}, *down[] = {&b->p[P_DOWN]};

    nf_pool_run(e->pool, n, attention_norm_row, j);
    multiply((product){.s = j, .p = qkv, .n = 3, .y = (float *const[]){nf_q_before(a), nf_k_before(a), a->v}, .x = e->normed});
    nf_pool_run(e->pool, n, rotate_row, j);
    nf_pool_run(e->pool, n * e->shape.kv_heads, attend, j);
    nf_pool_run(e->pool, n, attended_row, j);
    multiply((product){.s = j, .p = o, .n = 1, .y = (float *const[]){a->middle}, .x = a->attended, .residual = e->x});
    nf_pool_run(e->pool, n, ffn_norm_row, j);
    multiply((product){.s = j, .p = gate_up, .n = 2, .y = (float *const[]){a->gate, a->up}, .x = e->normed, .acted = e->acted});
    nf_pool_run(e->pool, n, acted_row, j);
    multiply((product){.s = j, .p = down, .n = 1, .y = (float *const[]){e->x}, .x = e->acted, .residual = a->middle});
}

static void head_row(void *context, int64_t t, int worker) {
    const step *j = context;
    nf_engine *e = j->e;
    projection head = {.base = e->head}, *heads[] = {&head};
    norm_row(j, &e->final_norm, e->x, heads, 1, t, worker);
}

void nf_decode(nf_engine *e, nf_cache *const *caches, const int32_t *tokens, int64_t n, float *logits) {
    for (int64_t i = 0; i < n; i++) e->picked_at[i] = (int32_t)caches[i]->length++;
    step j = {.e = e, .caches = caches, .tokens = tokens, .positions = e->picked_at, .s = {.T = n}, .logits = logits};
    nf_pool_run(e->pool, n, embed_row, &j);
    for (j.layer = 0; j.layer < e->shape.layers; j.layer++) {
        j.b = &e->blocks[j.layer];
        decode_block(&j);
    }
    projection head = {.base = e->head}, *heads[] = {&head};
    nf_pool_run(e->pool, n, head_row, &j);
    multiply((product){.s = &j, .p = heads, .n = 1, .y = (float *const[]){logits}, .x = e->normed});
}
