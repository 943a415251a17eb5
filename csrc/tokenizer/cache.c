/* SPDX-License-Identifier: Apache-2.0 */
#include "cache.h"

#include "buffer.h"

#define BUSY UINT64_MAX

static void cache_free(nf_cache *cache) {
    if (!cache) return;
    free(cache->buckets);
    free(cache->arena);
    free(cache);
}

/* NULL: no memory. Of the arena only what is written takes memory. */
static nf_cache *cache_new(int bits) {
    nf_cache *cache = calloc(1, sizeof *cache);
    if (!cache) return NULL;
    const int64_t bytes = (int64_t)sizeof *cache->buckets << bits;
    *cache = (nf_cache){nf_table_new(bytes), ((uint64_t)1 << bits) - 1, malloc((size_t)bytes), 0, bits, 64 - bits, 1};
    if (cache->buckets && cache->arena) return cache;
    cache_free(cache);
    return NULL;
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

static nf_cached *slot_at(const nf_cache *cache, int64_t bucket, int i) {
    return &cache->buckets[(uint64_t)(bucket + i / 2) & cache->mask][i % 2];
}

const nf_cached *nf_cache_find_behind(const nf_cache *cache, const nf_cached *bucket, const nf_word_key *key) {
    const int64_t first = (bucket - cache->buckets[0]) / 2;
    for (int i = 2; i < 2 * NF_CACHE_REACH; i++) {
        const nf_cached *slot = slot_at(cache, first, i);
        if (!nf_cache_differs(slot, key->low, key->high)) return slot;
        if (__atomic_load_n(&slot->high, __ATOMIC_RELAXED) == 0) return NULL;
    }
    return NULL;
}

/* A slot for a word, which nobody else writes to now; NULL: it is there already (*room is 1), or there is none. */
static nf_cached *claim(nf_cache *cache, const nf_word_key *key, int *room) {
    const int64_t first = (nf_cache_bucket(cache, key) - cache->buckets[0]) / 2;
    *room = 1;
    for (int i = 0; i < 2 * NF_CACHE_REACH; i++) {
        nf_cached *slot = slot_at(cache, first, i);
        uint64_t high = __atomic_load_n(&slot->high, __ATOMIC_RELAXED);
        if (high == 0 && __atomic_compare_exchange_n(&slot->high, &high, BUSY, 0, __ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE))
            return slot;
        if (!nf_cache_differs(slot, key->low, key->high)) return NULL;
    }
    *room = 0;
    return NULL;
}

int nf_cache_put(nf_cache *cache, nf_word_key key, const uint8_t *p, const uint32_t *ids, int64_t count) {
    if (count < 1 || count > NF_CACHE_LONG) return 1;
    const int64_t bytes = nf_cache_is_long(&key) ? nf_cache_size(&key) : 0;
    const int many = count > NF_CACHE_IDS || bytes > 0;
    uint32_t at = 0, kept[NF_CACHE_IDS] = {0};
    if (many) {
        const uint32_t size = (uint32_t)(4 * count + (bytes + 3) / 4 * 4);
        at = __atomic_fetch_add(&cache->used, size, __ATOMIC_RELAXED);
        if (at + size > sizeof *cache->buckets << cache->bits) {
            __atomic_fetch_sub(&cache->used, size, __ATOMIC_RELAXED); /* so that it never wraps around */
            return 0;
        }
        memcpy(cache->arena + at, ids, (size_t)count * sizeof *ids);
        memcpy(cache->arena + at + 4 * count, p, (size_t)bytes);
        kept[0] = NF_CACHE_MANY << 24 | (uint32_t)count;
        kept[1] = at;
    } else {
        memcpy(kept, ids, (size_t)count * sizeof *ids);
        kept[0] |= (uint32_t)count << 24;
    }
    int room;
    nf_cached *slot = claim(cache, &key, &room);
    if (!slot) return room;
    for (int i = 0; i < NF_CACHE_IDS; i++) __atomic_store_n(&slot->ids[i], kept[i], __ATOMIC_RELAXED);
    __atomic_store_n(&slot->low, key.low, __ATOMIC_RELAXED);
    __atomic_store_n(&slot->high, key.high, __ATOMIC_RELEASE);
    return 1;
}

/* -------- the table of the moment -------- */

/* Put into a table what is in another one, to which threads may be adding. */
static void copy_words(nf_cache *to, const nf_cache *from) {
    for (uint64_t i = 0; i < 2 * (from->mask + 1); i++) {
        const nf_cached *slot = &from->buckets[i / 2][i % 2];
        const uint64_t high = __atomic_load_n(&slot->high, __ATOMIC_ACQUIRE);
        if (high == 0 || high == BUSY) continue;
        int64_t count = slot->ids[0] >> 24;
        uint32_t few[NF_CACHE_IDS];
        memcpy(few, slot->ids, sizeof few);
        few[0] &= NF_CACHE_ID_MASK;
        if (count == NF_CACHE_MANY) count = few[0];
        const uint32_t *ids = slot->ids[0] >> 24 == NF_CACHE_MANY ? (const void *)(from->arena + few[1]) : few;
        nf_cache_put(to, (nf_word_key){slot->low, high}, (const uint8_t *)(ids + count), ids, count);
    }
}

nf_status nf_known_new(nf_known **out) {
    nf_known *known = *out = calloc(1, sizeof *known);
    if (!known) return nf_fail(NF_ERR_MEMORY, "no memory for a table of words");
    pthread_mutex_init(&known->lock, NULL);
    return NF_OK;
}

void nf_known_free(nf_known *known) {
    if (!known) return;
    cache_free(known->now);
    pthread_mutex_destroy(&known->lock);
    free(known);
}

nf_status nf_known_take(nf_known *known, nf_cache **held) {
    pthread_mutex_lock(&known->lock);
    if (!known->now) known->now = cache_new(NF_CACHE_FIRST_BITS);
    nf_cache *before = *held;
    *held = known->now;
    if (*held) (*held)->holders++;
    const int last = before && --before->holders == 0;
    pthread_mutex_unlock(&known->lock);
    if (last) cache_free(before);
    return *held ? NF_OK : nf_fail(NF_ERR_MEMORY, "no memory for a table of words");
}

void nf_known_release(nf_known *known, nf_cache **held) {
    if (!*held) return;
    pthread_mutex_lock(&known->lock);
    const int last = --(*held)->holders == 0;
    pthread_mutex_unlock(&known->lock);
    if (last) cache_free(*held);
    *held = NULL;
}

nf_status nf_known_replace(nf_known *known, nf_cache **held) {
    pthread_mutex_lock(&known->lock);
    const int mine = known->now == *held && !known->replacing;
    if (mine) known->replacing = 1;
    pthread_mutex_unlock(&known->lock);
    if (mine) {
        const int larger = (*held)->bits < NF_CACHE_LAST_BITS;
        nf_cache *next = cache_new((*held)->bits + larger); /* without memory for another, the old one stays */
        if (next && larger) copy_words(next, *held);
        pthread_mutex_lock(&known->lock);
        if (next) {
            known->now->holders--; /* the caller holds it as well */
            known->now = next;
        }
        known->replacing = 0;
        pthread_mutex_unlock(&known->lock);
    }
    return nf_known_take(known, held);
}
