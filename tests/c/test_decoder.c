/* SPDX-License-Identifier: Apache-2.0 */
/* The engine through its header: gradients of every weight against finite differences of its own loss, misuse, memory.
   The Python tests compare it with PyTorch; this one runs under the sanitizers. */
#include <string.h>

#include "../../csrc/decoder/decoder.h"
#include "check.h"

enum { LAYERS = 2, D = 12, HEADS = 4, KV = 2, HEAD = 4, FFN = 20, V = 23, T = 11, R = 2, SLOTS = NF_SLOT_COUNT };

typedef struct model {
    nf_engine *engine;
    float *weight[SLOTS][LAYERS], *gradient[SLOTS][LAYERS];
    float *a[SLOTS][LAYERS], *b[SLOTS][LAYERS], *d_a[SLOTS][LAYERS], *d_b[SLOTS][LAYERS];
} model;

static int64_t slot_size(int slot) {
    switch (slot) {
    case NF_EMBED:
    case NF_HEAD:
        return V * D;
    case NF_Q:
    case NF_O:
        return HEADS * HEAD * D;
    case NF_K:
    case NF_V:
        return KV * HEAD * D;
    case NF_Q_BIAS:
        return HEADS * HEAD;
    case NF_K_BIAS:
    case NF_V_BIAS:
        return KV * HEAD;
    case NF_Q_NORM:
    case NF_K_NORM:
        return HEAD;
    case NF_GATE:
    case NF_UP:
    case NF_DOWN:
        return FFN * D;
    default:
        return D;
    }
}

static int layers_of(int slot) { return slot > NF_EMBED && slot < NF_FINAL_NORM ? LAYERS : 1; }
static int has_pair(int slot) { return slot == NF_Q || slot == NF_V || slot == NF_O || slot == NF_UP || slot == NF_DOWN; }

static const int32_t tokens[T] = {1, 5, 9, 2, 22, 0, 7, 7, 3, 4, 8}, targets[T] = {5, 9, -1, 22, 0, 7, 3, -1, 4, 8, 1};
static const int32_t positions[T] = {0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3}, bounds[3] = {0, 7, T};

static int64_t width_of(int slot) { return slot == NF_DOWN ? FFN : slot == NF_O ? HEADS * HEAD : D; }

static void build(model *m, nf_mode mode, int threads) {
    memset(m, 0, sizeof *m);
    nf_shape shape = {LAYERS, D, HEADS, KV, HEAD, FFN, V, 2, 1, 1.0f, 1, 1e-5f};
    float frequency = 1.0f;
    check(nf_engine_new(&m->engine, &shape, &frequency, threads) == NF_OK, "engine");
    for (int slot = 0; slot < SLOTS; slot++)
        for (int l = 0; l < layers_of(slot); l++) {
            uint64_t seed = (uint64_t)(slot * 10 + l + 1);
            float *w = m->weight[slot][l] = new_floats(slot_size(slot), seed);
            for (int64_t i = 0; i < slot_size(slot); i++)
                w[i] = w[i] * 0.5f + (slot_size(slot) <= D && slot != NF_Q_BIAS ? 1.0f : 0.0f);
            if (mode == NF_MODE_FULL) m->gradient[slot][l] = new_floats(slot_size(slot), 0);
            nf_engine_set(m->engine, (nf_slot)slot, l, w, m->gradient[slot][l]);
            if (mode == NF_MODE_FULL || !has_pair(slot)) continue;
            int64_t in = R * width_of(slot), out = R * slot_size(slot) / width_of(slot);
            m->a[slot][l] = new_floats(in, seed + 500), m->b[slot][l] = new_floats(out, seed + 700);
            m->d_a[slot][l] = new_floats(in, 0), m->d_b[slot][l] = new_floats(out, 0);
            nf_engine_set_lora(m->engine, (nf_slot)slot, l, R, 0.5f, 0.25f, m->a[slot][l], m->b[slot][l], m->d_a[slot][l],
                               m->d_b[slot][l]);
        }
    check(nf_engine_reserve(m->engine, mode, T, 0) == NF_OK, "reserve");
}

static void destroy(model *m) {
    nf_engine_free(m->engine);
    for (int slot = 0; slot < SLOTS; slot++)
        for (int l = 0; l < LAYERS; l++) {
            free(m->weight[slot][l]), free(m->gradient[slot][l]);
            free(m->a[slot][l]), free(m->b[slot][l]), free(m->d_a[slot][l]), free(m->d_b[slot][l]);
        }
}

static double step(model *m, nf_gradients gradients) {
    double loss;
    int64_t counted;
    if (nf_engine_step(m->engine, tokens, targets, positions, T, bounds, 2, gradients, 9, &loss, &counted) != NF_OK) return NAN;
    return counted == 9 ? loss : NAN;
}

/* Along the gradient itself the loss must change by |gradient|^2 per unit: one float32-sized question per tensor.
   Dropout is part of the function, so the steps of the difference run backward too. */
static void check_slope(model *m, float *values, float *gradient, int64_t n, const char *what) {
    double squares = 0.0;
    float *start = new_floats(n, 0), *direction = new_floats(n, 0);
    for (int64_t i = 0; i < n; i++) gradient[i] = 1e3f; /* of an earlier step */
    step(m, NF_GRADIENTS_WRITE);
    memcpy(start, values, (size_t)n * 4), memcpy(direction, gradient, (size_t)n * 4);
    for (int64_t i = 0; i < n; i++) squares += (double)direction[i] * (double)direction[i];
    float h = (float)(2e-2 / sqrt(squares + 1e-20));
    for (int64_t i = 0; i < n; i++) values[i] = start[i] + h * direction[i];
    double above = step(m, NF_GRADIENTS_ADD);
    for (int64_t i = 0; i < n; i++) values[i] = start[i] - h * direction[i];
    double below = step(m, NF_GRADIENTS_ADD);
    memcpy(values, start, (size_t)n * 4);
    float slope = (float)((above - below) / (2.0 * h));
    check_close(what, &slope, &squares, 1, 1e-2); /* float32 loss of 30 over a step of 0.02, and the curvature */
    free(start), free(direction);
}

static void test_gradients(nf_mode mode) {
    model m;
    char what[80];
    build(&m, mode, 2);
    check(isfinite(step(&m, NF_GRADIENTS_ADD)), "step");
    for (int slot = 0; slot < SLOTS; slot++)
        for (int l = 0; l < layers_of(slot); l++) {
            snprintf(what, sizeof what, "slope of slot %d layer %d, mode %d", slot, l, (int)mode);
            if (m.gradient[slot][l]) check_slope(&m, m.weight[slot][l], m.gradient[slot][l], slot_size(slot), what);
            if (!m.a[slot][l]) continue;
            check_slope(&m, m.a[slot][l], m.d_a[slot][l], R * width_of(slot), what);
            check_slope(&m, m.b[slot][l], m.d_b[slot][l], R * slot_size(slot) / width_of(slot), what);
        }
    destroy(&m);
}

/* Tokens one by one, and as several rows of one call, against all at once; limits of what a cache keeps. */
static void test_generation(nf_cache_kind kind, double limit) {
    model m;
    nf_cache *cache, *other;
    float whole[T * V], piece[V], rows[3 * V];
    build(&m, NF_MODE_INFER, 2);
    check(nf_cache_new(&cache, m.engine, T, kind) == NF_OK && nf_cache_new(&other, m.engine, T, kind) == NF_OK, "caches");
    check(nf_engine_logits(m.engine, cache, tokens, T, 0, whole) == NF_OK && nf_cache_length(cache) == T, "logits of all");
    check(nf_engine_logits(m.engine, cache, tokens, 1, 1, piece) == NF_ERR_ARGUMENT, "a full cache refuses");
    check(nf_cache_truncate(cache, 0) == NF_OK && nf_cache_truncate(cache, 1) == NF_ERR_ARGUMENT, "truncate");
    double expected[V];
    for (int t = 0; t < T; t++) {
        for (int v = 0; v < V; v++) expected[v] = whole[t * V + v];
        nf_engine_logits(m.engine, cache, tokens + t, 1, 1, piece);
        check_close("logits token by token", piece, expected, V, limit);
        nf_cache *const three[3] = {other, other, other};
        if (t % 3 == 0 && t + 3 <= T) check(nf_engine_decode(m.engine, three, tokens + t, 3, rows) == NF_OK, "three at once");
        if (t < T / 3 * 3) check(memcmp(piece, rows + t % 3 * V, sizeof piece) == 0, "a row of three is the same as alone");
    }
    check(isnan(step(&m, NF_GRADIENTS_ADD)), "an engine for inference refuses to train");
    check(isfinite(step(&m, NF_GRADIENTS_NONE)), "but says the loss");
    nf_cache_free(cache), nf_cache_free(other);
    nf_cache_free(NULL);
    destroy(&m);
    nf_engine_free(NULL);
}

static void test_misuse(void) {
    nf_engine *e;
    float one = 1.0f;
    nf_shape good = {LAYERS, D, HEADS, KV, HEAD, FFN, V, HEAD, 0, 1.0f, 0, 1e-5f}, bad = good;
    bad.kv_heads = 3;
    check(nf_engine_new(&e, &bad, &one, 1) == NF_ERR_ARGUMENT && strstr(nf_last_error(), "kv_heads=3"), nf_last_error());
    bad = good, bad.rotary = 3;
    check(nf_engine_new(&e, &bad, &one, 1) == NF_ERR_ARGUMENT && strstr(nf_last_error(), "rotary=3"), nf_last_error());
    bad = good, bad.vocab = 0;
    check(nf_engine_new(&e, &bad, &one, 1) == NF_ERR_ARGUMENT && strstr(nf_last_error(), "vocab=0"), nf_last_error());
    float frequencies[2] = {1.0f, 0.1f};
    check(nf_engine_new(&e, &good, frequencies, 0) == NF_ERR_ARGUMENT, nf_last_error());
    check(nf_engine_new(&e, &good, frequencies, 1) == NF_OK, "engine");
    check(nf_engine_set(e, NF_Q, LAYERS, &one, NULL) == NF_ERR_ARGUMENT, nf_last_error());
    check(nf_engine_set_lora(e, NF_EMBED, 0, 4, 1.0f, 0.0f, &one, &one, NULL, NULL) == NF_ERR_ARGUMENT, nf_last_error());
    check(nf_engine_reserve(e, NF_MODE_LORA, 4, 0) == NF_ERR_STATE, nf_last_error());
    int64_t kept = nf_engine_arena_bytes(&good, NF_MODE_LORA, 1, 64, 0, 8, 2);
    check(kept > 64 * D * 4, "arena bytes");
    check(nf_engine_arena_bytes(&good, NF_MODE_LORA, 1, 64, 1, 8, 2) < kept, "recomputing needs less memory");
    check(nf_engine_set_blocks(e, NF_Q, 0, &one, NF_BLOCK_Q4_0) == NF_ERR_ARGUMENT && strstr(nf_last_error(), "whole blocks"),
          nf_last_error());
    check(nf_engine_set_blocks(e, NF_ATTN_NORM, 0, &one, NF_BLOCK_Q4_0) == NF_ERR_ARGUMENT, nf_last_error());
    nf_engine_free(e);
}

int main(void) {
    test_gradients(NF_MODE_FULL);
    test_gradients(NF_MODE_LORA);
    test_generation(NF_CACHE_F32, 1e-5);
    test_generation(NF_CACHE_F16, 2e-3);  /* 11 bits */
    test_generation(NF_CACHE_INT8, 3e-2); /* 255 steps for each head */
    test_misuse();
    return report();
}
