/* SPDX-License-Identifier: Apache-2.0 */
/* The one allocation of an engine: all that a call needs has its place in it before the first. */
#define _POSIX_C_SOURCE 200809L
#include <assert.h>
#include <stdlib.h>

#include "../kernels/cross_entropy.h"
#include "engine.h"

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
