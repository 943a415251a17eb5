/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../kernels/cross_entropy.h"
#include "../kernels/matmul.h"
#include "engine.h"

/* -------- setting up -------- */

static nf_status check_shape(const nf_shape *c) {
    const int64_t sizes[] = {c->layers, c->hidden, c->heads, c->kv_heads, c->head_dim, c->ffn, c->vocab};
    static const char *const names[] = {"layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab"};
    for (int i = 0; i < 7; i++)
        if (sizes[i] < 1 || sizes[i] > INT32_MAX)
            return nf_fail(NF_ERR_ARGUMENT, "%s=%lld: out of range", names[i], (long long)sizes[i]);
    if (c->heads % c->kv_heads)
        return nf_fail(NF_ERR_ARGUMENT, "heads=%lld is no multiple of kv_heads=%lld", (long long)c->heads,
                       (long long)c->kv_heads);
    if (c->rotary < 0 || c->rotary > c->head_dim || c->rotary % 2)
        return nf_fail(NF_ERR_ARGUMENT, "rotary=%lld: must be even and at most head_dim=%lld", (long long)c->rotary,
                       (long long)c->head_dim);
    return NF_OK;
}

/* (out, in) of each projection */
static void projection_shape(const nf_shape *c, int which, int64_t *out, int64_t *in) {
    int64_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim, D = c->hidden, F = c->ffn;
    const int64_t shapes[P_COUNT][2] = {{q, D}, {kv, D}, {kv, D}, {D, q}, {F, D}, {F, D}, {D, F}};
    *out = shapes[which][0], *in = shapes[which][1];
}

nf_status nf_engine_new(nf_engine **out, const nf_shape *shape, const float *inverse_frequencies, int threads) {
    *out = NULL;
    NF_TRY(check_shape(shape));
    nf_engine *e = calloc(1, sizeof *e);
    if (!e) return nf_fail(NF_ERR_MEMORY, "no memory for an engine");
    size_t half = (size_t)shape->rotary / 2;
    e->shape = *shape;
    e->blocks = calloc((size_t)shape->layers, sizeof *e->blocks);
    e->inverse_frequencies = malloc((half ? half : 1) * sizeof(float));
    nf_status status = NF_OK;
    if (!e->blocks || !e->inverse_frequencies)
        status = nf_fail(NF_ERR_MEMORY, "no memory for %lld layers", (long long)shape->layers);
    else
        status = nf_pool_new(&e->pool, threads);
    if (status != NF_OK) {
        nf_engine_free(e);
        return status;
    }
    nf_engine_set_frequencies(e, inverse_frequencies);
    e->kernels = nf_kernels_for(nf_cpu_isa());
    nf_matmul_single_thread();
    *out = e;
    return NF_OK;
}

void nf_engine_set_frequencies(nf_engine *e, const float *inverse_frequencies) {
    memcpy(e->inverse_frequencies, inverse_frequencies, (size_t)e->shape.rotary / 2 * sizeof(float));
}

void nf_engine_free(nf_engine *e) {
    if (!e) return;
    nf_pool_free(e->pool);
    free(e->inverse_frequencies);
    free(e->blocks);
    free(e->arena);
    free(e);
}

static int projection_of(nf_slot slot) {
    switch (slot) {
    case NF_Q:
    case NF_Q_BIAS:
        return P_Q;
    case NF_K:
    case NF_K_BIAS:
        return P_K;
    case NF_V:
    case NF_V_BIAS:
        return P_V;
    case NF_O:
        return P_O;
    case NF_GATE:
        return P_GATE;
    case NF_UP:
        return P_UP;
    case NF_DOWN:
        return P_DOWN;
    default:
        return -1;
    }
}

/* The matrix of a slot, NULL if it has none. */
static nf_linear *matrix_of(nf_engine *e, nf_slot slot, int64_t layer) {
    if (slot == NF_EMBED) return &e->embed;
    if (slot == NF_HEAD) return &e->head;
    int which = slot == NF_Q_BIAS || slot == NF_K_BIAS || slot == NF_V_BIAS ? -1 : projection_of(slot);
    return which < 0 ? NULL : &e->blocks[layer].p[which].base;
}

/* Put a matrix into its slot, with the slot's shape. */
static void set_matrix(nf_engine *e, nf_slot slot, int64_t layer, nf_linear given) {
    nf_linear *l = matrix_of(e, slot, layer);
    given.bias = l->bias;
    *l = given;
    e->narrow |= given.kind != NF_LINEAR_F32;
    int which = projection_of(slot);
    if (which >= 0) e->blocks[layer].p[which].key = (int32_t)(layer * P_COUNT + which);
}

static void matrix_shape(const nf_engine *e, nf_slot slot, int64_t *out, int64_t *in) {
    *out = e->shape.vocab, *in = e->shape.hidden;
    if (slot != NF_EMBED && slot != NF_HEAD) projection_shape(&e->shape, projection_of(slot), out, in);
}

static nf_status check_matrix(nf_engine *e, nf_slot slot, int64_t layer) {
    int per_layer = slot > NF_EMBED && slot < NF_FINAL_NORM;
    if (slot < 0 || slot >= NF_SLOT_COUNT || (per_layer && (layer < 0 || layer >= e->shape.layers)) ||
        !matrix_of(e, slot, layer))
        return nf_fail(NF_ERR_ARGUMENT, "no matrix of slot %d in layer %lld", (int)slot, (long long)layer);
    return NF_OK;
}

nf_status nf_engine_set_blocks(nf_engine *e, nf_slot slot, int64_t layer, const void *weight, nf_block_kind kind) {
    int64_t out, in;
    NF_TRY(check_matrix(e, slot, layer));
    if (kind < 0 || kind >= NF_BLOCK_MULTIPLIED) return nf_fail(NF_ERR_ARGUMENT, "blocks of kind %d", (int)kind);
    matrix_shape(e, slot, &out, &in);
    if (in % nf_block_values(kind))
        return nf_fail(NF_ERR_ARGUMENT, "rows of %lld values are no whole blocks of %lld", (long long)in,
                       (long long)nf_block_values(kind));
    set_matrix(e, slot, layer, nf_linear_of_blocks(kind, out, in, weight));
    return NF_OK;
}

nf_status nf_engine_set_narrow(nf_engine *e, nf_slot slot, int64_t layer, const void *weight, const float *scale) {
    int64_t out, in;
    NF_TRY(check_matrix(e, slot, layer));
    matrix_shape(e, slot, &out, &in);
    set_matrix(e, slot, layer, nf_linear_of(scale ? NF_LINEAR_INT8 : NF_LINEAR_BF16, out, in, weight, scale));
    return NF_OK;
}

nf_status nf_engine_set(nf_engine *e, nf_slot slot, int64_t layer, const float *weight, float *gradient) {
    const nf_shape *c = &e->shape;
    int per_layer = slot > NF_EMBED && slot < NF_FINAL_NORM, which = projection_of(slot);
    if (slot < 0 || slot >= NF_SLOT_COUNT || (per_layer && (layer < 0 || layer >= c->layers)))
        return nf_fail(NF_ERR_ARGUMENT, "no slot %d in layer %lld", (int)slot, (long long)layer);
    block *b = per_layer ? &e->blocks[layer] : NULL;
    norm given = {weight, gradient};
    int64_t out = 0, in = 0;
    if (matrix_of(e, slot, layer)) matrix_shape(e, slot, &out, &in);
    switch (slot) {
    case NF_EMBED:
        set_matrix(e, slot, 0, nf_linear_of(NF_LINEAR_F32, out, in, weight, NULL));
        e->d_embed = gradient;
        return NF_OK;
    case NF_HEAD:
        set_matrix(e, slot, 0, nf_linear_of(NF_LINEAR_F32, out, in, weight, NULL));
        e->d_head = gradient;
        return NF_OK;
    case NF_ATTN_NORM:
        b->attn_norm = given;
        return NF_OK;
    case NF_FFN_NORM:
        b->ffn_norm = given;
        return NF_OK;
    case NF_Q_NORM:
        b->q_norm = given;
        return NF_OK;
    case NF_K_NORM:
        b->k_norm = given;
        return NF_OK;
    case NF_FINAL_NORM:
        e->final_norm = given;
        return NF_OK;
    case NF_Q_BIAS:
    case NF_K_BIAS:
    case NF_V_BIAS:
        b->p[which].base.bias = weight;
        b->p[which].d_bias = gradient;
        return NF_OK;
    default:
        break;
    }
    set_matrix(e, slot, layer, nf_linear_of(NF_LINEAR_F32, out, in, weight, NULL));
    b->p[which].d_weight = gradient;
    return NF_OK;
}

nf_status nf_engine_set_lora(nf_engine *e, nf_slot slot, int64_t layer, int64_t r, float scale, float dropout, const float *a,
                             const float *b, float *d_a, float *d_b) {
    int which = projection_of(slot);
    if (which < 0 || slot == NF_Q_BIAS || slot == NF_K_BIAS || slot == NF_V_BIAS || layer < 0 || layer >= e->shape.layers ||
        r < 1)
        return nf_fail(NF_ERR_ARGUMENT, "no low-rank pair of rank %lld for slot %d in layer %lld", (long long)r, (int)slot,
                       (long long)layer);
    projection *p = &e->blocks[layer].p[which];
    p->r = r, p->scale = scale, p->dropout = dropout;
    p->a = a, p->b = b, p->d_a = d_a, p->d_b = d_b;
    return NF_OK;
}

/* -------- the arena -------- */

/* Hands out pieces of one allocation; with base NULL it only counts. */
typedef struct arena {
    char *base;
    size_t used;
} arena;

static void *take(arena *a, int64_t count, size_t size) {
    void *p = a->base ? a->base + a->used : NULL;
    a->used += ((size_t)count * size + 63) / 64 * 64;
    return p;
}

static float *floats(arena *a, int64_t count) { return take(a, count, sizeof(float)); }

/* With narrow weights the scores are products of bf16 too, where the processor has them; a cache is float32. */
static nf_linear kv_form_of(const nf_engine *e) {
    nf_linear form = nf_linear_of(NF_LINEAR_BF16, 0, 0, NULL, NULL);
    return e->narrow && e->mode != NF_MODE_INFER && form.narrow ? form : (nf_linear){.kind = NF_LINEAR_F32};
}

static void place_activations(const nf_engine *e, arena *a, activations *act, int64_t T, int training) {
    const nf_shape *c = &e->shape;
    int64_t H = c->heads * c->head_dim, K = c->kv_heads * c->head_dim;
    int raw = training && c->qk_norm;
    act->q = raw ? e->q : floats(a, T * H);
    if (e->kv_form.kind == NF_LINEAR_F32) {
        act->keys = act->k = floats(a, T * K), act->values = act->v = floats(a, T * K);
    } else {
        act->k = e->d_k, act->v = e->d_v; /* free until the backward pass */
        act->keys = take(a, T * K, sizeof(uint16_t)), act->values = take(a, T * K, sizeof(uint16_t));
    }
    act->q_raw = raw ? floats(a, T * H) : NULL, act->k_raw = raw ? floats(a, T * K) : NULL;
    act->attended = floats(a, T * H);
    act->lse = training ? floats(a, T * c->heads) : NULL;
    act->middle = floats(a, T * c->hidden);
    act->gate = floats(a, T * c->ffn), act->up = floats(a, T * c->ffn);
}

/* lora_width: sum of r over one block's pairs; dropout: whether any pair drops. */
static void place_all(nf_engine *e, arena *a, int64_t lora_width, int dropout, int workers) {
    const nf_shape *c = &e->shape;
    int64_t T = e->max_tokens, D = c->hidden, H = c->heads * c->head_dim, K = c->kv_heads * c->head_dim, F = c->ffn;
    int64_t widest = F > D ? F : D;
    int training = e->mode != NF_MODE_INFER;
    widest = H > widest ? H : widest;
    e->x = floats(a, T * D);
    e->cosine = floats(a, T * c->rotary / 2), e->sine = floats(a, T * c->rotary / 2);
    e->normed = floats(a, T * D), e->acted = floats(a, T * F);
    e->picked = floats(a, T * D);
    e->losses = floats(a, T);
    e->picked_at = take(a, T, sizeof(int32_t)), e->picked_target = take(a, T, sizeof(int32_t));
    e->spans = take(a, T, sizeof(nf_span));
    int64_t tiles = nf_attention_scratch(c->head_dim), one = nf_cached_scratch(c->heads / c->kv_heads);
    e->attention_floats = tiles > one ? tiles : one;
    e->attention_scratch = floats(a, workers * e->attention_floats);
    e->worker_floats = dropout ? (T > widest ? T : widest) * 128 : 0; /* rows x input, or T x columns of a gradient */
    e->worker_scratch = floats(a, workers * e->worker_floats);
    int64_t prepared = e->narrow ? nf_operand_bytes(T, widest) : 0;
    e->input = take(a, prepared, 1);
    int full = e->mode == NF_MODE_FULL;
    for (int i = 0; i < 3; i++) e->d_output[i] = take(a, training ? prepared : 0, 1);
    for (int i = 0; i < 3; i++) e->d_output_t[i] = take(a, full && e->narrow ? nf_operand_bytes(widest, T) : 0, 1);
    e->product_bytes = e->narrow ? (nf_linear_scratch(widest > T ? widest : T, lora_width) + 63) / 64 * 64 : 0;
    e->product_scratch = take(a, workers * e->product_bytes, 1);
    e->entropy_scratch = floats(a, nf_cross_entropy_scratch(T, D, c->vocab, workers, e->mode == NF_MODE_FULL));

    if (training) {
        e->q = c->qk_norm ? floats(a, T * H) : NULL;
        e->d_q = floats(a, T * H), e->d_k = floats(a, T * K), e->d_v = floats(a, T * K), e->d_attended = floats(a, T * H);
        e->d_gate = floats(a, T * F), e->d_up = floats(a, T * F), e->d_normed = floats(a, T * D),
        e->d_picked = floats(a, T * D);
        e->d_h = floats(a, T * lora_width), e->b_transposed = floats(a, lora_width * widest);
        e->partial = floats(a, nf_tiles(T, ROW_TILE) * (D > 2 * c->head_dim ? D : 2 * c->head_dim));
    }

    int64_t sets = training && !e->recompute ? c->layers : 1;
    int64_t inputs = training ? c->layers : 0; /* of the blocks */
    float *x = floats(a, inputs * T * D);
    float *h = floats(a, sets * lora_width * T);
    activations shared;
    for (int64_t i = 0; i < c->layers; i++) {
        if (i < sets) place_activations(e, a, &shared, T, training);
        if (!e->blocks) continue; /* only counting */
        e->blocks[i].act = shared;
        e->blocks[i].act.x = training ? x + i * T * D : e->x;
        int64_t used = (i < sets ? i : 0) * lora_width * T;
        for (int p = 0; p < P_COUNT; p++) {
            e->blocks[i].p[p].h = a->base ? h + used : NULL;
            used += e->blocks[i].p[p].r * T;
        }
    }
}

int64_t nf_engine_arena_bytes(const nf_shape *shape, nf_mode mode, int narrow, int64_t max_tokens, int recompute,
                              int64_t lora_width, int threads) {
    nf_engine e = {.shape = *shape, .mode = mode, .narrow = narrow, .max_tokens = max_tokens, .recompute = recompute};
    e.kv_form = kv_form_of(&e);
    arena counting = {0};
    place_all(&e, &counting, lora_width, 0, threads);
    return (int64_t)counting.used;
}

static nf_status check_complete(const nf_engine *e) {
    if (!e->embed.w || !e->final_norm.gain) return nf_fail(NF_ERR_STATE, "embedding or final norm is not set");
    for (int64_t i = 0; i < e->shape.layers; i++) {
        const block *b = &e->blocks[i];
        if (!b->attn_norm.gain || !b->ffn_norm.gain)
            return nf_fail(NF_ERR_STATE, "a norm of layer %lld is not set", (long long)i);
        if (e->shape.qk_norm != (b->q_norm.gain && b->k_norm.gain))
            return nf_fail(NF_ERR_STATE, "q and k norm of layer %lld do not fit qk_norm=%d", (long long)i,
                           (int)e->shape.qk_norm);
        for (int p = 0; p < P_COUNT; p++)
            if (!b->p[p].base.w) return nf_fail(NF_ERR_STATE, "matrix %d of layer %lld is not set", p, (long long)i);
    }
    return NF_OK;
}

nf_status nf_engine_reserve(nf_engine *e, nf_mode mode, int64_t max_tokens, int recompute) {
    NF_TRY(check_complete(e));
    if (max_tokens < 1 || max_tokens > 1 << 24)
        return nf_fail(NF_ERR_ARGUMENT, "max_tokens=%lld: out of range", (long long)max_tokens);
    int64_t lora_width = 0, dropout = 0;
    for (int64_t i = 0; i < e->shape.layers; i++) {
        int64_t width = 0;
        for (int p = 0; p < P_COUNT; p++) {
            width += e->blocks[i].p[p].r;
            dropout |= mode == NF_MODE_LORA && e->blocks[i].p[p].dropout > 0.0f;
        }
        lora_width = width > lora_width ? width : lora_width;
    }
    e->mode = mode, e->max_tokens = max_tokens, e->recompute = recompute, e->kv_form = kv_form_of(e);
    if (mode == NF_MODE_FULL && e->embed.kind == NF_LINEAR_INT8) return nf_fail(NF_ERR_STATE, "int8 weights cannot be trained");
    if (!e->head.w) {
        e->head = e->embed;
        e->d_head = e->d_embed;
    }
    arena counting = {0}, real = {0};
    place_all(e, &counting, lora_width, (int)dropout, nf_pool_threads(e->pool));
    free(e->arena);
    if (posix_memalign((void **)&e->arena, 64, counting.used) != 0) {
        e->arena = NULL;
        e->max_tokens = 0;
        return nf_fail(NF_ERR_MEMORY, "no memory for %.1f MB of activations", (double)counting.used / 1e6);
    }
    real.base = (char *)e->arena;
    place_all(e, &real, lora_width, (int)dropout, nf_pool_threads(e->pool));
    assert(real.used == counting.used);
    return NF_OK;
}

/* -------- a training step -------- */

typedef struct head_job {
    nf_engine *e;
    int64_t n;
} head_job;

static void pick_rows(void *context, int64_t index, int worker) {
    const head_job *j = context;
    nf_engine *e = j->e;
    int64_t D = e->shape.hidden;
    (void)worker;
    for (int64_t i = index * ROW_TILE, end = nf_min(i + ROW_TILE, j->n); i < end; i++)
        e->kernels->rmsnorm_forward(e->picked + i * D, D, e->x + e->picked_at[i] * D, D, e->final_norm.gain, 1, D,
                                    e->shape.eps);
}

/* Turn the rows of e->x that were picked into their gradients; the caller clears the others. */
static void unpick_rows(void *context, int64_t index, int worker) {
    const head_job *j = context;
    nf_engine *e = j->e;
    int64_t D = e->shape.hidden;
    float *d_gain = e->final_norm.d_gain ? e->partial + index * D : NULL;
    (void)worker;
    if (d_gain) memset(d_gain, 0, (size_t)D * sizeof *d_gain);
    for (int64_t i = index * ROW_TILE, end = nf_min(i + ROW_TILE, j->n); i < end; i++) {
        float *x = e->x + e->picked_at[i] * D;
        e->kernels->rmsnorm_backward(x, D, d_gain, e->d_picked + i * D, D, x, D, e->final_norm.gain, 1, D, e->shape.eps, 0);
    }
}

static void head_backward(nf_engine *e, const int32_t *targets, int64_t T, int64_t n) {
    head_job j = {e, n};
    int64_t D = e->shape.hidden, tiles = nf_tiles(n, ROW_TILE);
    for (int64_t t = 0; t < T; t++)
        if (targets[t] < 0) memset(e->x + t * D, 0, (size_t)D * sizeof(float));
    nf_pool_run(e->pool, tiles, unpick_rows, &j);
    if (e->final_norm.d_gain)
        for (int64_t i = 0; i < tiles; i++) e->kernels->add_scaled(e->final_norm.d_gain, e->partial + i * D, 1.0f, D);
}

static nf_status check_ids(const nf_engine *e, const int32_t *ids, int64_t n, int64_t lowest, const char *what) {
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < lowest || ids[i] >= e->shape.vocab)
            return nf_fail(NF_ERR_ARGUMENT, "%s %lld is %d, outside the vocabulary of %lld", what, (long long)i, ids[i],
                           (long long)e->shape.vocab);
    return NF_OK;
}

static nf_status set_spans(nf_engine *e, const int32_t *bounds, int64_t documents, int64_t T) {
    if (documents < 1 || documents > T || bounds[0] != 0 || bounds[documents] != T)
        return nf_fail(NF_ERR_ARGUMENT, "bounds: %lld documents do not cover %lld tokens", (long long)documents, (long long)T);
    for (int64_t i = 0; i < documents; i++) {
        int64_t length = bounds[i + 1] - bounds[i];
        if (length < 1) return nf_fail(NF_ERR_ARGUMENT, "bounds: document %lld is empty", (long long)i);
        e->spans[i] = (nf_span){bounds[i], length, bounds[i], length};
    }
    return NF_OK;
}

/* -------- gradients that are not written as a whole -------- */

enum { CLEAR_ROWS = 256 };

static void clear_rows(void *context, int64_t index, int worker) {
    const nf_engine *e = context;
    int64_t D = e->shape.hidden, row = index * CLEAR_ROWS, rows = nf_min(CLEAR_ROWS, e->shape.vocab - row);
    (void)worker;
    memset(e->d_embed + row * D, 0, (size_t)(rows * D) * sizeof(float));
}

static void clear(float *gradient, int64_t n) {
    if (gradient) memset(gradient, 0, (size_t)n * sizeof *gradient);
}

static void clear_block(block *b, const nf_shape *c, int matrices) {
    clear(b->attn_norm.d_gain, c->hidden), clear(b->ffn_norm.d_gain, c->hidden);
    clear(b->q_norm.d_gain, c->head_dim), clear(b->k_norm.d_gain, c->head_dim);
    for (int i = 0; i < P_COUNT; i++) {
        projection *p = &b->p[i];
        clear(p->d_bias, p->base.out);
        if (matrices) clear(p->d_weight, p->base.out * p->base.in);
        if (p->r) clear(p->d_a, p->r * p->base.in), clear(p->d_b, p->base.out * p->r);
    }
}

/* All that a step adds to; with `all` also what it writes: the matrices of the blocks, and the head. */
static void clear_gradients(nf_engine *e, int all) {
    for (int64_t i = 0; i < e->shape.layers; i++) clear_block(&e->blocks[i], &e->shape, all);
    clear(e->final_norm.d_gain, e->shape.hidden);
    if (e->d_embed && (all || e->d_embed != e->d_head))
        nf_pool_run(e->pool, nf_tiles(e->shape.vocab, CLEAR_ROWS), clear_rows, e);
    if (all && e->d_head != e->d_embed) clear(e->d_head, e->shape.vocab * e->shape.hidden);
}

nf_status nf_engine_step(nf_engine *e, const int32_t *tokens, const int32_t *targets, const int32_t *positions, int64_t T,
                         const int32_t *bounds, int64_t documents, nf_gradients gradients, uint64_t seed, double *loss,
                         int64_t *counted) {
    int backward = gradients != NF_GRADIENTS_NONE, add = gradients == NF_GRADIENTS_ADD;
    *loss = 0.0, *counted = 0;
    if (backward && e->mode == NF_MODE_INFER) return nf_fail(NF_ERR_STATE, "the engine was opened for inference");
    if (T < 1 || T > e->max_tokens)
        return nf_fail(NF_ERR_ARGUMENT, "%lld tokens in one step, room for %lld", (long long)T, (long long)e->max_tokens);
    NF_TRY(check_ids(e, tokens, T, 0, "token"));
    NF_TRY(check_ids(e, targets, T, -1, "target"));
    NF_TRY(set_spans(e, bounds, documents, T));
    stream s = {.tokens = tokens, .positions = positions, .T = T, .spans = e->spans, .n_spans = documents};
    s.keep = backward, s.add = add, s.dropout = backward && e->mode == NF_MODE_LORA, s.seed = seed;

    head_job j = {.e = e};
    for (int64_t t = 0; t < T; t++)
        if (targets[t] >= 0) e->picked_at[j.n] = (int32_t)t, e->picked_target[j.n++] = targets[t];
    if (gradients == NF_GRADIENTS_WRITE) clear_gradients(e, j.n == 0);
    if (j.n == 0) return NF_OK;
    nf_forward(e, &s);
    nf_pool_run(e->pool, nf_tiles(j.n, ROW_TILE), pick_rows, &j);
    nf_cross_entropy(e->pool, e->kernels, &e->head, e->picked, e->picked_target, j.n, e->losses, backward ? e->d_picked : NULL,
                     backward ? e->d_head : NULL, add, e->entropy_scratch);
    for (int64_t i = 0; i < j.n; i++) *loss += e->losses[i];
    *counted = j.n;
    if (!backward) return NF_OK;
    head_backward(e, targets, T, j.n);
    nf_backward(e, &s);
    return NF_OK;
}

/* -------- generation -------- */

/* One piece that fits the arena: positions follow those in the cache. */
static void infer_piece(nf_engine *e, nf_cache *cache, const int32_t *tokens, int64_t T, int64_t wanted, float *logits) {
    e->spans[0] = (nf_span){0, T, 0, cache->length + T};
    stream s = {.tokens = tokens, .positions = e->picked_at, .T = T, .spans = e->spans, .n_spans = 1, .cache = cache};
    for (int64_t t = 0; t < T; t++) e->picked_at[t] = (int32_t)(cache->length + t);
    nf_forward(e, &s);
    cache->length += T;
    if (wanted == 0) return;
    head_job j = {e, wanted};
    for (int64_t i = 0; i < wanted; i++) e->picked_at[i] = (int32_t)(T - wanted + i);
    nf_pool_run(e->pool, nf_tiles(wanted, ROW_TILE), pick_rows, &j);
    projection head = {.base = e->head}, *heads[] = {&head};
    s.T = wanted;
    if (e->narrow) nf_project_prepare(e, heads, 1, &s, e->picked);
    nf_project(e, heads, 1, (float *const[]){logits}, e->picked, NULL, wanted);
}

static nf_status check_room(const nf_cache *cache, int64_t T) {
    if (T < 1 || cache->length + T > cache->capacity)
        return nf_fail(NF_ERR_ARGUMENT, "%lld tokens after %lld in a cache of %lld", (long long)T, (long long)cache->length,
                       (long long)cache->capacity);
    return NF_OK;
}

nf_status nf_engine_decode(nf_engine *e, nf_cache *const *caches, const int32_t *tokens, int64_t n, float *logits) {
    if (n < 1 || n > e->max_tokens)
        return nf_fail(NF_ERR_ARGUMENT, "%lld sequences at once, room for %lld", (long long)n, (long long)e->max_tokens);
    for (int64_t i = 0; i < n; i++) {
        int64_t same = 0;
        for (int64_t k = 0; k <= i; k++) same += caches[k] == caches[i];
        NF_TRY(check_room(caches[i], same));
    }
    NF_TRY(check_ids(e, tokens, n, 0, "token"));
    nf_decode(e, caches, tokens, n, logits);
    return NF_OK;
}

nf_status nf_engine_logits(nf_engine *e, nf_cache *cache, const int32_t *tokens, int64_t T, int last_only, float *logits) {
    if (e->max_tokens < 1) return nf_fail(NF_ERR_STATE, "nothing is reserved");
    NF_TRY(check_room(cache, T));
    NF_TRY(check_ids(e, tokens, T, 0, "token"));
    if (T == 1) {
        nf_decode(e, &cache, tokens, 1, logits);
        return NF_OK;
    }
    for (int64_t from = 0; from < T; from += e->max_tokens) {
        int64_t n = nf_min(e->max_tokens, T - from), wanted = !last_only ? n : from + n == T ? 1 : 0;
        infer_piece(e, cache, tokens + from, n, wanted, last_only ? logits : logits + from * e->shape.vocab);
    }
    return NF_OK;
}
