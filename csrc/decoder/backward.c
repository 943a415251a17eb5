/* SPDX-License-Identifier: Apache-2.0 */
/* Backward pass of the blocks.  e->x holds the gradient of the residual stream and is turned, block by block, from the
   gradient of a block's output into that of its input.  Below the lowest trained layer nothing is computed. */
#include <math.h>
#include <string.h>

#include "engine.h"

typedef struct job {
    nf_engine *e;
    const stream *s;
    block *b;
    const norm *norm;
    const float *x; /* input of the norm */
    int64_t tiles;
    projection *const *p; /* a group of projections, */
    float *const *d_y;    /* the gradients of their outputs, */
    const float *input;   /* their input, */
    int n, wants_d_x;     /* and whether its gradient is wanted */
} job;

static int has_lora(const block *b, int first, int last) {
    for (int i = first; i <= last; i++)
        if (b->p[i].r) return 1;
    return 0;
}

/* -------- norms -------- */

/* The normed input again: cheaper to compute than to keep for every layer. */
static void renormalise(const job *j, int64_t row, int64_t rows) {
    nf_engine *e = j->e;
    int64_t D = e->shape.hidden;
    e->kernels->rmsnorm_forward(e->normed + row * D, D, j->x + row * D, D, j->norm->gain, rows, D, e->shape.eps);
}

/* Whether a gradient of the job's weights needs their input. */
static int needs_input(const job *j) {
    for (int i = 0; i < j->n; i++)
        if (j->p[i]->r || j->p[i]->d_weight) return 1;
    return 0;
}

static void gradient_rows(const job *j, int64_t row, int64_t rows) {
    nf_project_gradient_rows(j->e, j->p, j->n, j->s, j->d_y, j->input, j->wants_d_x, row, rows);
}

/* The gradient of the norm's input, and with that what the projections below it want. */
static void norm_backward_rows(void *context, int64_t index, int worker) {
    const job *j = context;
    nf_engine *e = j->e;
    int64_t row = index * ROW_TILE, rows = nf_min(ROW_TILE, j->s->T - row), D = e->shape.hidden;
    float *d_gain = j->norm->d_gain ? e->partial + index * D : NULL;
    (void)worker;
    if (d_gain) memset(d_gain, 0, (size_t)D * sizeof *d_gain);
    e->kernels->rmsnorm_backward(e->x + row * D, D, d_gain, e->d_normed + row * D, D, j->x + row * D, D, j->norm->gain, rows, D,
                                 e->shape.eps, 1);
    if (j->n) gradient_rows(j, row, rows);
}

static void add_partials(nf_engine *e, float *d_gain, int64_t tiles, int64_t width) {
    for (int64_t i = 0; i < tiles; i++) e->kernels->add_scaled(d_gain, e->partial + i * width, 1.0f, width);
}

/* e->x += gradient through the norm of e->d_normed; then the job's projections, if it has any, begin with e->x. */
static void norm_backward(job *j) {
    int64_t tiles = nf_tiles(j->s->T, ROW_TILE);
    nf_pool_run(j->e->pool, tiles, norm_backward_rows, j);
    if (j->norm->d_gain) add_partials(j->e, j->norm->d_gain, tiles, j->e->shape.hidden);
}

/* -------- feed-forward half -------- */

static void down_rows(void *context, int64_t index, int worker) {
    const job *j = context;
    nf_engine *e = j->e;
    int64_t F = e->shape.ffn, row = index * ROW_TILE, rows = nf_min(ROW_TILE, j->s->T - row), at = row * F;
    (void)worker;
    if (needs_input(j)) e->kernels->swiglu_forward(e->acted + at, j->b->act.gate + at, j->b->act.up + at, rows * F);
    gradient_rows(j, row, rows);
}

static void swiglu_backward_rows(void *context, int64_t index, int worker) {
    const job *j = context;
    nf_engine *e = j->e;
    int64_t F = e->shape.ffn, row = index * ROW_TILE, rows = nf_min(ROW_TILE, j->s->T - row), at = row * F;
    (void)worker;
    e->kernels->swiglu_backward(e->d_gate + at, e->d_up + at, e->d_gate + at, j->b->act.gate + at, j->b->act.up + at, rows * F);
    if (needs_input(j)) renormalise(j, row, rows);
    gradient_rows(j, row, rows);
}

/* Down to the gradient of the normed input. */
static void ffn_backward(nf_engine *e, const stream *s, block *b, int down_to_input) {
    int64_t tiles = nf_tiles(s->T, ROW_TILE);
    projection *down[] = {&b->p[P_DOWN]}, *gate_up[] = {&b->p[P_GATE], &b->p[P_UP]};
    float *d_x[] = {e->x}, *d_gate_up[] = {e->d_gate, e->d_up};
    int deeper = down_to_input || has_lora(b, P_GATE, P_UP);
    job j = {.e = e, .s = s, .b = b, .p = down, .d_y = d_x, .input = e->acted, .n = 1, .wants_d_x = deeper};
    nf_project_begin_backward(e, down, 1);
    nf_pool_run(e->pool, tiles, down_rows, &j);
    nf_project_backward(e, down, 1, d_x, e->acted, deeper ? e->d_gate : NULL, s);
    if (!deeper) return;
    j = (job){.e = e, .s = s, .b = b, .p = gate_up, .d_y = d_gate_up, .input = e->normed, .n = 2, .wants_d_x = down_to_input};
    j.norm = &b->ffn_norm, j.x = b->act.middle;
    nf_project_begin_backward(e, gate_up, 2);
    nf_pool_run(e->pool, tiles, swiglu_backward_rows, &j);
    nf_project_backward(e, gate_up, 2, d_gate_up, e->normed, down_to_input ? e->d_normed : NULL, s);
}

/* -------- attention half -------- */

static void head_norm_backward(const job *j, const norm *n, float *d, const float *raw, int64_t heads, int64_t row,
                               int64_t rows, float *partial) {
    int64_t d_head = j->e->shape.head_dim;
    float *d_gain = n->d_gain ? partial : NULL;
    if (d_gain) memset(d_gain, 0, (size_t)d_head * sizeof *d_gain);
    float *at = d + row * heads * d_head;
    j->e->kernels->rmsnorm_backward(at, d_head, d_gain, at, d_head, raw + row * heads * d_head, d_head, n->gain, rows * heads,
                                    d_head, j->e->shape.eps, 0);
}

static void rotate_back_rows(void *context, int64_t index, int worker) {
    const job *j = context;
    nf_engine *e = j->e;
    const nf_shape *c = &e->shape;
    int64_t row = index * ROW_TILE, rows = nf_min(ROW_TILE, j->s->T - row), d = c->head_dim, half = c->rotary / 2;
    int64_t H = c->heads * d, K = c->kv_heads * d;
    const float *cosine = e->cosine + row * half, *sine = e->sine + row * half;
    (void)worker;
    e->kernels->rope(e->d_q + row * H, H, cosine, sine, rows, c->heads, d, half, c->interleaved, -1.0f);
    e->kernels->rope(e->d_k + row * K, K, cosine, sine, rows, c->kv_heads, d, half, c->interleaved, -1.0f);
    if (j->b->q_norm.gain) {
        float *partial = e->partial + index * d;
        head_norm_backward(j, &j->b->q_norm, e->d_q, j->b->act.q_raw, c->heads, row, rows, partial);
        head_norm_backward(j, &j->b->k_norm, e->d_k, j->b->act.k_raw, c->kv_heads, row, rows, partial + j->tiles * d);
    }
    if (needs_input(j)) renormalise(j, row, rows);
    gradient_rows(j, row, rows);
}

/* The queries of the forward pass again. */
static void rotate_query_rows(void *context, int64_t index, int worker) {
    const job *j = context;
    int64_t row = index * ROW_TILE;
    (void)worker;
    nf_rotate_queries(j->e, j->b, row, nf_min(ROW_TILE, j->s->T - row));
}

/* From the gradient of the normed input of the half above. */
static void attention_backward(nf_engine *e, const stream *s, block *b, int down_to_input) {
    activations *a = &b->act;
    int64_t tiles = nf_tiles(s->T, ROW_TILE), d = e->shape.head_dim;
    projection *o[] = {&b->p[P_O]}, *qkv[] = {&b->p[P_Q], &b->p[P_K], &b->p[P_V]};
    float *d_x[] = {e->x}, *d_qkv[] = {e->d_q, e->d_k, e->d_v};
    int deeper = down_to_input || has_lora(b, P_Q, P_V);
    job j = {.e = e, .s = s, .b = b, .p = o, .d_y = d_x, .input = a->attended, .n = 1, .wants_d_x = deeper};
    j.norm = &b->ffn_norm, j.x = a->middle;
    nf_project_begin_backward(e, o, 1);
    norm_backward(&j);
    nf_project_backward(e, o, 1, d_x, a->attended, deeper ? e->d_attended : NULL, s);
    if (!deeper) return;
    if (a->q_raw) nf_pool_run(e->pool, tiles, rotate_query_rows, &j);
    nf_attention attention = nf_attention_of(e, s, a);
    nf_attention_backward(e->pool, e->kernels, &attention, e->d_q, e->d_k, e->d_v, e->d_attended, a->attended, a->lse, a->q,
                          e->attention_scratch);
    j = (job){
        .e = e, .s = s, .b = b, .p = qkv, .d_y = d_qkv, .input = e->normed, .n = 3, .wants_d_x = down_to_input, .tiles = tiles};
    j.norm = &b->attn_norm, j.x = a->x;
    nf_project_begin_backward(e, qkv, 3);
    nf_pool_run(e->pool, tiles, rotate_back_rows, &j);
    if (b->q_norm.d_gain) {
        add_partials(e, b->q_norm.d_gain, tiles, d);
        for (int64_t i = 0; i < tiles; i++) e->kernels->add_scaled(b->k_norm.d_gain, e->partial + (tiles + i) * d, 1.0f, d);
    }
    nf_project_backward(e, qkv, 3, d_qkv, e->normed, down_to_input ? e->d_normed : NULL, s);
    j.n = 0; /* what is below begins with a product of its own */
    if (down_to_input) norm_backward(&j);
}

/* -------- embedding -------- */

enum { EMBED_COLS = 64 };

/* A stripe of columns of every token's row, in the order of the stream. */
static void embed_backward_columns(void *context, int64_t index, int worker) {
    const job *j = context;
    int64_t D = j->e->shape.hidden, col = index * EMBED_COLS, cols = nf_min(EMBED_COLS, D - col);
    (void)worker;
    for (int64_t t = 0; t < j->s->T; t++)
        j->e->kernels->add_scaled(j->e->d_embed + j->s->tokens[t] * D + col, j->e->x + t * D + col, 1.0f, cols);
}

static int64_t lowest_layer(const nf_engine *e) {
    if (e->mode == NF_MODE_FULL) return -1;
    for (int64_t i = 0; i < e->shape.layers; i++)
        if (has_lora(&e->blocks[i], 0, P_COUNT - 1)) return i;
    return e->shape.layers;
}

void nf_backward(nf_engine *e, const stream *s) {
    int64_t lowest = lowest_layer(e);
    for (int64_t i = e->shape.layers - 1; i >= 0 && i >= lowest; i--) {
        block *b = &e->blocks[i];
        if (e->recompute) nf_forward_again(e, s, i);
        int below = i > lowest, attention = below || has_lora(b, P_Q, P_O);
        ffn_backward(e, s, b, attention);
        if (attention) attention_backward(e, s, b, below);
    }
    if (e->d_embed) {
        job j = {.e = e, .s = s};
        nf_pool_run(e->pool, nf_tiles(e->shape.hidden, EMBED_COLS), embed_backward_columns, &j);
    }
}
