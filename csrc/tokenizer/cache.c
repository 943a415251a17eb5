/* SPDX-License-Identifier: Apache-2.0 */
#include "cache.h"

#include "buffer.h"

nf_status nf_cache_new_words(nf_cache *cache) {
    cache->buckets = nf_table_new((int64_t)sizeof *cache->buckets << NF_CACHE_BITS);
    cache->arena = nf_large_new(NF_CACHE_ARENA);
    cache->epoch = 1;
    cache->used = 0;
    if (!cache->buckets || !cache->arena) return nf_fail(NF_ERR_MEMORY, "no memory for a cache of words");
    return NF_OK;
}

void nf_cache_free_words(nf_cache *cache) {
    free(cache->buckets);
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

nf_word_key nf_cache_long_key(const uint8_t *p, int64_t size) {
    return (nf_word_key){hash_long(p, size), (uint64_t)(NF_CACHE_BYTES + 1) << 56 | (uint64_t)size};
}

const uint32_t *nf_cache_many(const nf_cache *cache, const nf_cached *slot, const uint8_t *p, int64_t *count) {
    const nf_word_key key = {slot->low, slot->high};
    if (slot->ids[2] != cache->epoch) return NULL;
    *count = slot->ids[0] & NF_CACHE_ID_MASK;
    const uint8_t *ids = cache->arena + slot->ids[1];
    if (nf_cache_is_long(&key) && memcmp(ids + 4 * *count, p, (size_t)nf_cache_size(&key)) != 0) return NULL;
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

/* The buckets side by side are a pair: the second of two lines often comes along with the first. */
static nf_cached *other_bucket(const nf_cache *cache, const nf_cached *bucket) {
    return cache->buckets[(bucket - cache->buckets[0]) / 2 ^ 1];
}

static int holds(const nf_cached *slot, const nf_word_key *key) { return slot->low == key->low && slot->high == key->high; }

const nf_cached *nf_cache_find_other(const nf_cache *cache, const nf_cached *bucket, const nf_word_key *key) {
    const nf_cached *other = other_bucket(cache, bucket);
    return holds(&other[0], key) ? &other[0] : holds(&other[1], key) ? &other[1] : NULL;
}

/* The slot of a word, a free one, or the one whose word has to go. */
static nf_cached *slot_for(nf_cache *cache, const nf_word_key *key) {
    nf_cached *first = nf_cache_bucket(cache, key), *other = other_bucket(cache, first);
    nf_cached *const slots[] = {&first[0], &first[1], &other[0], &other[1]};
    for (int i = 0; i < 4; i++)
        if (holds(slots[i], key)) return slots[i];
    for (int i = 0; i < 4; i++)
        if (slots[i]->high == 0) return slots[i];
    first[1] = first[0];
    return &first[0];
}

void nf_cache_put(nf_cache *cache, nf_word_key key, const uint8_t *p, const uint32_t *ids, int64_t count) {
    if (count < 1 || count > NF_CACHE_LONG) return;
    const int64_t bytes = nf_cache_is_long(&key) ? nf_cache_size(&key) : 0;
    nf_cached *slot = slot_for(cache, &key);
    *slot = (nf_cached){key.low, key.high, {0}};
    if (count <= NF_CACHE_IDS && bytes == 0) {
        memcpy(slot->ids, ids, (size_t)count * sizeof *ids);
        slot->ids[0] |= (uint32_t)count << 24;
        return;
    }
    const uint32_t at = take(cache, (uint32_t)(4 * count + (bytes + 3) / 4 * 4));
    memcpy(cache->arena + at, ids, (size_t)count * sizeof *ids);
    memcpy(cache->arena + at + 4 * count, p, (size_t)bytes);
    slot->ids[0] = NF_CACHE_MANY << 24 | (uint32_t)count;
    slot->ids[1] = at;
    slot->ids[2] = cache->epoch;
}
