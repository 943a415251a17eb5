/* SPDX-License-Identifier: Apache-2.0 */
/* Words that were encoded before and their ids: one table that all threads read and add to without waiting for each other.

   Short words lie in the table itself, two to a cache line, so that a hit costs one line and one store of 16 bytes. Of longer
   ones the table has a hash; their bytes, and the ids of those that have many, lie in an arena. What is in a table stays as it
   is. A full one is replaced: by a larger one with the same words, in the end by an empty one; whoever holds it goes on with it
   until it is convenient to change. */
#ifndef NF_TOKENIZER_CACHE_H
#define NF_TOKENIZER_CACHE_H

#include <pthread.h>
#include <stdint.h>
#include <string.h>

#include "../core/status.h"

enum {
    NF_CACHE_BYTES = 15,      /* of a short word */
    NF_CACHE_IDS = 4,         /* of a short word */
    NF_CACHE_LONG = 256,      /* bytes of a longer word */
    NF_CACHE_REACH = 16,      /* buckets from its own on in which a word may lie */
    NF_CACHE_FIRST_BITS = 18, /* buckets of two words: 16 MiB */
    NF_CACHE_LAST_BITS = 19
};
#define NF_CACHE_ID_MASK 0xFFFFFFu /* the count stands above the first id */
#define NF_CACHE_MANY 0xFFu

typedef struct nf_cached {
    uint64_t low, high;         /* the bytes; the last is their number, 0 in a free slot, all ones while it is written */
    uint32_t ids[NF_CACHE_IDS]; /* the number of ids is in the highest byte of the first; NF_CACHE_MANY there: ids[0] has the
                                   number, and they lie in the arena at ids[1] */
} nf_cached;

/* What a word is found by. Short: its bytes, and their number in the highest. Longer: a hash; size, and NF_CACHE_BYTES + 1 in the
   highest byte. */
typedef struct nf_word_key {
    uint64_t low, high;
} nf_word_key;

typedef struct nf_cache {
    nf_cached (*buckets)[2];
    uint64_t mask;
    uint8_t *arena;
    uint32_t used;   /* of the arena, which has as many bytes as the buckets */
    int bits, shift; /* shift: of a hash, to the number of a bucket */
    int64_t holders; /* under the lock of nf_known */
} nf_cache;

/* The table of the moment. */
typedef struct nf_known {
    pthread_mutex_t lock;
    nf_cache *now; /* NULL: none yet; else it is one of its holders */
    int replacing; /* a thread makes another */
} nf_known;

nf_status nf_known_new(nf_known **out);
void nf_known_free(nf_known *known);

/* Let *held, which may be NULL, be the table of the moment. */
nf_status nf_known_take(nf_known *known, nf_cache **held);
/* Give *held back, which may be NULL. */
void nf_known_release(nf_known *known, nf_cache **held);
/* The table that is held is full: replace it, unless somebody else does. */
nf_status nf_known_replace(nf_known *known, nf_cache **held);

static inline uint64_t nf_mix(uint64_t a, uint64_t b) {
    unsigned __int128 product = (unsigned __int128)(a ^ 0x9E3779B97F4A7C15u) * (b ^ 0xD6E8FEB86659FD93u);
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Bytes set, then as many clear: from 16 - size on, what keeps the first `size` bytes of a word. A look-up, since sizes follow
   no rule that a branch could be foretold by. */
static const uint8_t nf_kept_bytes[32] = {255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255};

/* The key of a word of 1 to NF_CACHE_BYTES bytes; `readable` bytes may be read from p on. */
static inline nf_word_key nf_cache_key(const uint8_t *p, int64_t size, int64_t readable) {
    nf_word_key key;
    if (readable < 16) {
        uint8_t bytes[16] = {0};
        memcpy(bytes, p, (size_t)size);
        memcpy(&key.low, bytes, 8);
        memcpy(&key.high, bytes + 8, 8);
    } else {
        memcpy(&key.low, p, 8);
        memcpy(&key.high, p + 8, 8);
        uint64_t low, high;
        memcpy(&low, nf_kept_bytes + 16 - size, 8);
        memcpy(&high, nf_kept_bytes + 24 - size, 8);
        key.low &= low;
        key.high &= high;
    }
    key.high |= (uint64_t)size << 56;
    return key;
}

/* The key of a word of NF_CACHE_BYTES + 1 to NF_CACHE_LONG bytes. */
nf_word_key nf_cache_long_key(const uint8_t *p, int64_t size);

static inline int nf_cache_is_long(const nf_word_key *key) { return key->high >> 56 > NF_CACHE_BYTES; }

/* The bytes of the word. */
static inline int64_t nf_cache_size(const nf_word_key *key) {
    return (int64_t)(nf_cache_is_long(key) ? key->high & 0xFFFF : key->high >> 56);
}

/* The two slots where a word is looked for first. */
static inline const nf_cached *nf_cache_bucket(const nf_cache *cache, const nf_word_key *key) {
    return cache->buckets[(key->low * 0x9E3779B97F4A7C15u + key->high * 0xD6E8FEB86659FD93u) >> cache->shift];
}

/* What differs between a slot and a key; where it is 0, the ids of the slot are there too. */
static inline uint64_t nf_cache_differs(const nf_cached *slot, uint64_t low, uint64_t high) {
    const uint64_t above = __atomic_load_n(&slot->high, __ATOMIC_ACQUIRE) ^ high;
    return above | (__atomic_load_n(&slot->low, __ATOMIC_RELAXED) ^ low);
}

/* The slot of a word that is not in its bucket, but in one behind it; or NULL. */
const nf_cached *nf_cache_find_behind(const nf_cache *cache, const nf_cached *bucket, const nf_word_key *key);

/* Keep the word at p. Returns 0 where there is no room for it. */
int nf_cache_put(nf_cache *cache, nf_word_key key, const uint8_t *p, const uint32_t *ids, int64_t count);

/* The ids and their number of a slot with NF_CACHE_MANY; NULL if the slot is that of another longer word than the one at p. */
static inline const uint32_t *nf_cache_many(const nf_cache *cache, const nf_cached *slot, const uint8_t *p, int64_t *count) {
    const nf_word_key key = {slot->low, slot->high};
    const uint8_t *ids = cache->arena + slot->ids[1];
    *count = slot->ids[0] & NF_CACHE_ID_MASK;
    if (nf_cache_is_long(&key) && memcmp(ids + 4 * *count, p, (size_t)nf_cache_size(&key)) != 0) return NULL;
    return (const uint32_t *)(const void *)ids;
}

#endif
