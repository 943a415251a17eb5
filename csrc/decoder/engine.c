/* SPDX-License-Identifier: Apache-2.0 */
/* An engine from beginning to end, a training step, and generation. */
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
