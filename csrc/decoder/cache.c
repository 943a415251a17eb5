/* SPDX-License-Identifier: Apache-2.0 */
/* Keys and values of one sequence. */
#include <stdlib.h>

#include "engine.h"

nf_status nf_cache_new(nf_cache **out, const nf_engine *e, int64_t capacity, nf_cache_kind kind) {
    *out = NULL;
    if (capacity < 1 || capacity > 1 << 24) return nf_fail(NF_ERR_ARGUMENT, "a cache of %lld tokens", (long long)capacity);
    if (kind < NF_CACHE_F32 || kind > NF_CACHE_INT8) return nf_fail(NF_ERR_ARGUMENT, "a cache of kind %d", (int)kind);
    nf_cache *cache = calloc(1, sizeof *cache);
    if (!cache) return nf_fail(NF_ERR_MEMORY, "no memory for a cache");
    const nf_shape *c = &e->shape;
    cache->capacity = capacity, cache->layers = c->layers, cache->width = c->kv_heads * c->head_dim;
    cache->kind = kind, cache->isa = nf_cpu_isa(), cache->heads = c->kv_heads, cache->d = c->head_dim;
    size_t values = (size_t)(cache->layers * capacity * cache->width), size = values * (size_t)nf_cached_size(kind);
    size_t scales = kind == NF_CACHE_INT8 ? values / (size_t)cache->d * sizeof(float) : 0;
    size_t wide = kind == NF_CACHE_F32 ? 0 : (size_t)(capacity * cache->width) * sizeof(float);
    cache->k = malloc(size), cache->v = malloc(size);
    if (scales) cache->k_scale = malloc(scales), cache->v_scale = malloc(scales);
    if (wide) cache->wide_k = malloc(wide), cache->wide_v = malloc(wide);
    if (!cache->k || !cache->v || (scales && (!cache->k_scale || !cache->v_scale)) ||
        (wide && (!cache->wide_k || !cache->wide_v))) {
        nf_cache_free(cache);
        return nf_fail(NF_ERR_MEMORY, "no memory for a cache of %lld tokens (%.1f MB)", (long long)capacity,
                       2.0 * (double)(size + scales + wide) / 1e6);
    }
    *out = cache;
    return NF_OK;
}

void nf_cache_free(nf_cache *cache) {
    if (!cache) return;
    free(cache->k), free(cache->v);
    free(cache->k_scale), free(cache->v_scale);
    free(cache->wide_k), free(cache->wide_v);
    free(cache);
}

int64_t nf_cache_length(const nf_cache *cache) { return cache->length; }

nf_status nf_cache_truncate(nf_cache *cache, int64_t length) {
    if (length < 0 || length > cache->length)
        return nf_fail(NF_ERR_ARGUMENT, "truncate to %lld of %lld tokens", (long long)length, (long long)cache->length);
    cache->length = length;
    return NF_OK;
}

nf_cached nf_cache_layer(const nf_cache *cache, int64_t layer) {
    int64_t values = layer * cache->capacity * cache->width, scales = layer * cache->capacity * cache->heads;
    int64_t bytes = values * nf_cached_size(cache->kind);
    nf_cached c = {cache->kind, cache->isa, cache->heads, cache->d, (char *)cache->k + bytes, (char *)cache->v + bytes,
                   NULL,        NULL};
    if (cache->k_scale) c.k_scale = cache->k_scale + scales, c.v_scale = cache->v_scale + scales;
    return c;
}

enum { GET_ROWS = 64 };

typedef struct job {
    nf_cached from;
    nf_cache *cache;
    int64_t length;
} job;

static void widen_rows(void *context, int64_t index, int worker) {
    const job *j = context;
    int64_t at = index * GET_ROWS;
    (void)worker;
    nf_cached_get(&j->from, at, j->cache->wide_k + at * j->cache->width, j->cache->wide_v + at * j->cache->width,
                  nf_min(GET_ROWS, j->length - at));
}

void nf_cache_wide(nf_engine *e, nf_cache *cache, int64_t layer, int64_t length, const float **k, const float **v) {
    job j = {nf_cache_layer(cache, layer), cache, length};
    if (cache->kind == NF_CACHE_F32) {
        *k = j.from.k, *v = j.from.v;
        return;
    }
    nf_pool_run(e->pool, nf_tiles(length, GET_ROWS), widen_rows, &j);
    *k = cache->wide_k, *v = cache->wide_v;
}
