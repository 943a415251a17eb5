/* SPDX-License-Identifier: Apache-2.0 */
#include "cache.h"

#include "buffer.h"

nf_status nf_cache_new_words(nf_cache *cache) {
    cache->buckets = nf_table_new((int64_t)sizeof *cache->buckets << NF_CACHE_BITS);
    cache->longer = nf_table_new((int64_t)sizeof *cache->longer << NF_CACHE_LONG_BITS);
    cache->arena = malloc(NF_CACHE_ARENA);
    cache->epoch = 1;
    cache->used = 0;
    if (!cache->buckets || !cache->longer || !cache->arena) return nf_fail(NF_ERR_MEMORY, "no memory for a cache of words");
    return NF_OK;
}

void nf_cache_free_words(nf_cache *cache) {
    free(cache->buckets);
    free(cache->longer);
    free(cache->arena);
}

static uint64_t hash_long(const uint8_t *p, int64_t size) {
    uint64_t hash = (uint64_t)size, a, b;
    for (; size > 16; p += 16, size -= 16) {
        memcpy(&a, p, 8);
        memcpy(&b, p + 8, 8);
        hash = nf_mix(hash ^ a, b);
    }
    uint8_t rest[16] = {0};
    memcpy(rest, p, (size_t)size);
    memcpy(&a, rest, 8);
    memcpy(&b, rest + 8, 8);
    return nf_mix(hash ^ a, b);
}

const uint32_t *nf_cache_find_long(const nf_cache *cache, const uint8_t *p, int64_t size, uint64_t *hash, int64_t *count) {
    *hash = hash_long(p, size);
    const struct nf_cached_long *slot = &cache->longer[*hash & ((1u << NF_CACHE_LONG_BITS) - 1)];
    if (slot->hash != *hash || slot->epoch != cache->epoch || slot->bytes != size) return NULL;
    const uint8_t *ids = cache->arena + slot->at;
    if (memcmp(ids + 4 * slot->ids, p, (size_t)size) != 0) return NULL;
    *count = slot->ids;
    return (const uint32_t *)(const void *)ids;
}

void nf_cache_put_long(nf_cache *cache, uint64_t hash, const uint8_t *p, int64_t size, const uint32_t *ids, int64_t count) {
    if (size > NF_CACHE_LONG || count > NF_CACHE_LONG) return;
    uint32_t wanted = (uint32_t)(4 * count + (size + 3) / 4 * 4);
    if (cache->used + wanted > NF_CACHE_ARENA) {
        cache->used = 0;
        cache->epoch++;
    }
    struct nf_cached_long *slot = &cache->longer[hash & ((1u << NF_CACHE_LONG_BITS) - 1)];
    *slot = (struct nf_cached_long){hash, cache->used, cache->epoch, (uint16_t)size, (uint16_t)count};
    memcpy(cache->arena + cache->used, ids, (size_t)count * sizeof *ids);
    memcpy(cache->arena + cache->used + 4 * count, p, (size_t)size);
    cache->used += wanted;
}
