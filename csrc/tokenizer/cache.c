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

/* Room for `bytes` in the arena. */
static uint32_t take(nf_cache *cache, uint32_t bytes) {
    if (cache->used + bytes > NF_CACHE_ARENA) {
        cache->used = 0;
        cache->epoch++;
    }
    cache->used += bytes;
    return cache->used - bytes;
}

void nf_cache_put_long(nf_cache *cache, uint64_t hash, const uint8_t *p, int64_t size, const uint32_t *ids, int64_t count) {
    if (size > NF_CACHE_LONG || count > NF_CACHE_LONG) return;
    const uint32_t at = take(cache, (uint32_t)(4 * count + (size + 3) / 4 * 4));
    struct nf_cached_long *slot = &cache->longer[hash & ((1u << NF_CACHE_LONG_BITS) - 1)];
    *slot = (struct nf_cached_long){hash, at, cache->epoch, (uint16_t)size, (uint16_t)count};
    memcpy(cache->arena + at, ids, (size_t)count * sizeof *ids);
    memcpy(cache->arena + at + 4 * count, p, (size_t)size);
}

static nf_cached *other_bucket(const nf_cache *cache, const nf_word_key *key) {
    return cache->buckets[nf_mix(key->low, key->high) >> NF_CACHE_BITS & ((1u << NF_CACHE_BITS) - 1)];
}

static int holds(const nf_cached *slot, const nf_word_key *key) { return slot->low == key->low && slot->high == key->high; }

const nf_cached *nf_cache_find_other(const nf_cache *cache, const nf_word_key *key) {
    const nf_cached *bucket = other_bucket(cache, key);
    return holds(&bucket[0], key) ? &bucket[0] : holds(&bucket[1], key) ? &bucket[1] : NULL;
}

/* The slot of a word, a free one, or the one whose word has to go. */
static nf_cached *slot_for(nf_cache *cache, const nf_word_key *key) {
    nf_cached *first = nf_cache_bucket(cache, key), *other = other_bucket(cache, key);
    nf_cached *const slots[] = {&first[0], &first[1], &other[0], &other[1]};
    for (int i = 0; i < 4; i++)
        if (holds(slots[i], key)) return slots[i];
    for (int i = 0; i < 4; i++)
        if (slots[i]->high == 0) return slots[i];
    first[1] = first[0];
    return &first[0];
}

void nf_cache_put(nf_cache *cache, nf_word_key key, const uint32_t *ids, int64_t count) {
    if (count < 1) return;
    nf_cached *slot = slot_for(cache, &key);
    *slot = (nf_cached){key.low, key.high, {0}};
    if (count <= NF_CACHE_IDS) {
        memcpy(slot->ids, ids, (size_t)count * sizeof *ids);
        slot->ids[0] |= (uint32_t)count << 24;
        return;
    }
    const uint32_t at = take(cache, (uint32_t)(4 * count));
    memcpy(cache->arena + at, ids, (size_t)count * sizeof *ids);
    slot->ids[0] = NF_CACHE_MANY << 24 | (uint32_t)count;
    slot->ids[1] = at;
    slot->ids[2] = cache->epoch;
}
