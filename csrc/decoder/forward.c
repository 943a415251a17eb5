/* SPDX-License-Identifier: Apache-2.0 */
/* Forward pass of the blocks: x += attention(norm(x)); x += swiglu(norm(x)). */
#include <math.h>
#include <stddef.h>

#include "../kernels/convert.h"
#include "engine.h"

typedef struct job {
    nf_engine *e;
    const stream *s;
    block *b;
    activations *act;
    int64_t layer;
} job;

void nf_rope_angles(nf_engine *e, int64_t t, int32_t position) {
    int64_t half = e->shape.rotary / 2;
    for (int64_t i = 0; i < half; i++) {
        /* The angle is rounded to float32 as the models were trained; its sine and cosine are not. */
        double angle = (double)((float)position * e->inverse_frequencies[i]);
        e->cosine[t * half + i] = (float)cos(angle) * e->shape.rope_factor;
        e->sine[t * half + i] = (float)sin(angle) * e->shape.rope_factor;
    }
}

static void embed_rows(void *context, int64_t index, int worker) {
    const job *j = context;
    const nf_shape *c = &j->e->shape;
    (void)worker;
    for (int64_t t = index * ROW_TILE, end = nf_min(t + ROW_TILE, j->s->T); t < end; t++) {
        nf_linear_row(&j->e->embed, j->act->x + t * c->hidden, j->s->tokens[t]);
        nf_rope_angles(j->e, t, j->s->positions[t]);
    }
}

static void norm_and_lora(const job *j, const norm *n, const float *x, projection *const *p, int count, int64_t row,
                          int64_t rows, int worker) {
    nf_engine *e = j->e;
    int64_t D = e->shape.hidden;
    e->kernels->rmsnorm_forward(e->normed + row * D, D, x + row * D, D, n->gain, rows, D, e->shape.eps);
    nf_project_rows(e, p, count, j->s, e->normed, row, rows, worker);
}

static void attention_norm_rows(void *context, int64_t index, int worker) {
    const job *j = context;
    projection *qkv[] = {&j->b->p[P_Q], &j->b->p[P_K], &j->b->p[P_V]};
    int64_t row = index * ROW_TILE;
    norm_and_lora(j, &j->b->attn_norm, j->act->x, qkv, 3, row, nf_min(ROW_TILE, j->s->T - row), worker);
}

/* Norm and rotation of some rows of heads, from `raw`, which may be x itself. */
static void rotate_heads(nf_engine *e, const norm *n, float *x, const float *raw, int64_t heads, int64_t row, int64_t rows) {
    const nf_shape *c = &e->shape;
    int64_t d = c->head_dim, half = c->rotary / 2, width = heads * d, at = row * width;
    if (n->gain) e->kernels->rmsnorm_forward(x + at, d, raw + at, d, n->gain, rows * heads, d, c->eps);
    e->kernels->rope(x + at, width, e->cosine + row * half, e->sine + row * half, rows, heads, d, half, c->interleaved, 1.0f);
}

void nf_rotate_queries(nf_engine *e, const block *b, int64_t row, int64_t rows) {
    rotate_heads(e, &b->q_norm, b->act.q, nf_q_before(&b->act), e->shape.heads, row, rows);
}

void nf_rotate(nf_engine *e, const block *b, int64_t row, int64_t rows) {
    nf_rotate_queries(e, b, row, rows);
    rotate_heads(e, &b->k_norm, b->act.k, nf_k_before(&b->act), e->shape.kv_heads, row, rows);
}

/* q/k norm, rotation, and the way of k and v to where attention reads them. */
static void rotate_rows(void *context, int64_t index, int worker) {
    const job *j = context;
    const activations *a = j->act;
    int64_t row = index * ROW_TILE, rows = nf_min(ROW_TILE, j->s->T - row);
    int64_t K = j->e->shape.kv_heads * j->e->shape.head_dim;
    (void)worker;
    nf_rotate(j->e, j->b, row, rows);
    if (j->s->cache) {
        nf_cached cached = nf_cache_layer(j->s->cache, j->layer);
        nf_cached_put(&cached, j->s->cache->length + row, a->k + row * K, a->v + row * K, rows);
    } else if (j->e->kv_form.kind != NF_LINEAR_F32) {
        j->e->kernels->to_bf16((uint16_t *)a->keys + row * K, a->k + row * K, rows * K);
        j->e->kernels->to_bf16((uint16_t *)a->values + row * K, a->v + row * K, rows * K);
    }
}

static void ffn_norm_rows(void *context, int64_t index, int worker) {
    const job *j = context;
    projection *gate_up[] = {&j->b->p[P_GATE], &j->b->p[P_UP]};
    int64_t row = index * ROW_TILE;
    norm_and_lora(j, &j->b->ffn_norm, j->act->middle, gate_up, 2, row, nf_min(ROW_TILE, j->s->T - row), worker);
}

static void swiglu_rows(void *context, int64_t index, int worker) {
    const job *j = context;
    nf_engine *e = j->e;
    projection *down[] = {&j->b->p[P_DOWN]};
    int64_t row = index * ROW_TILE, rows = nf_min(ROW_TILE, j->s->T - row), F = e->shape.ffn;
    e->kernels->swiglu_forward(e->acted + row * F, j->act->gate + row * F, j->act->up + row * F, rows * F);
    nf_project_rows(e, down, 1, j->s, e->acted, row, rows, worker);
}

nf_attention nf_attention_of(const nf_engine *e, const stream *s, const activations *a) {
    const nf_shape *c = &e->shape;
    return (nf_attention){.heads = c->heads,
                          .kv_heads = c->kv_heads,
                          .d = c->head_dim,
                          .scale = 1.0f / sqrtf((float)c->head_dim),
                          .spans = s->spans,
                          .n_spans = s->n_spans,
                          .form = e->kv_form,
                          .k = a->keys,
                          .v = a->values};
}

/* From the block's kept input to its output, which goes to `out` unless that is NULL. */
static void forward_block(nf_engine *e, const stream *s, int64_t layer, float *out) {
    block *b = &e->blocks[layer];
    activations *a = &b->act;
    job j = {.e = e, .s = s, .b = b, .act = a, .layer = layer};
    int64_t row_tiles = nf_tiles(s->T, ROW_TILE);
    projection *qkv[] = {&b->p[P_Q], &b->p[P_K], &b->p[P_V]}, *o[] = {&b->p[P_O]};
    projection *gate_up[] = {&b->p[P_GATE], &b->p[P_UP]}, *down[] = {&b->p[P_DOWN]};

    nf_pool_run(e->pool, row_tiles, attention_norm_rows, &j);
    nf_project(e, qkv, 3, (float *const[]){nf_q_before(a), nf_k_before(a), a->v}, e->normed, NULL, s->T);
    nf_pool_run(e->pool, row_tiles, rotate_rows, &j);

    nf_attention attention = nf_attention_of(e, s, a);
    if (s->cache) {
        const float *k, *v;
        nf_cache_wide(e, s->cache, layer, s->cache->length + s->T, &k, &v);
        attention.form = (nf_linear){.kind = NF_LINEAR_F32};
        attention.k = k, attention.v = v;
    }
    nf_attention_forward(e->pool, e->kernels, &attention, a->attended, s->keep ? a->lse : NULL, a->q, e->attention_scratch);
    if (b->p[P_O].r || e->narrow) nf_project_prepare(e, o, 1, s, a->attended);
    nf_project(e, o, 1, (float *const[]){a->middle}, a->attended, a->x, s->T);

    nf_pool_run(e->pool, row_tiles, ffn_norm_rows, &j);
    nf_project(e, gate_up, 2, (float *const[]){a->gate, a->up}, e->normed, NULL, s->T);
    nf_pool_run(e->pool, row_tiles, swiglu_rows, &j);
    if (out) nf_project(e, down, 1, (float *const[]){out}, e->acted, a->middle, s->T);
}

void nf_forward_again(nf_engine *e, const stream *s, int64_t layer) { forward_block(e, s, layer, NULL); }

void nf_forward(nf_engine *e, const stream *s) {
    job j = {.e = e, .s = s, .act = &e->blocks[0].act};
    nf_pool_run(e->pool, nf_tiles(s->T, ROW_TILE), embed_rows, &j);
    for (int64_t layer = 0, last = e->shape.layers - 1; layer <= last; layer++)
        forward_block(e, s, layer, layer < last ? e->blocks[layer + 1].act.x : e->x);
}
