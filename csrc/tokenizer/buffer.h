/* SPDX-License-Identifier: Apache-2.0 */
/* Arrays that grow: bytes, and numbers of 32 bits. All zero is an empty one; free with nf_bytes_free, nf_words_free. */
#ifndef NF_TOKENIZER_BUFFER_H
#define NF_TOKENIZER_BUFFER_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../core/status.h"

typedef struct nf_bytes {
    uint8_t *at;
    int64_t size, capacity;
} nf_bytes;

typedef struct nf_words {
    uint32_t *at;
    int64_t size, capacity;
} nf_words;

static inline nf_status nf_grow(void **at, int64_t *capacity, int64_t wanted, size_t width) {
    int64_t larger = *capacity + *capacity / 2;
    if (larger < wanted) larger = wanted;
    void *moved = realloc(*at, (size_t)larger * width);
    if (!moved) return nf_fail(NF_ERR_MEMORY, "no memory for %lld bytes of text or ids", (long long)larger * (long long)width);
    *at = moved;
    *capacity = larger;
    return NF_OK;
}

/* For nf_words_reserve: many words lie in large pages, of which only those that are written take memory. */
nf_status nf_words_grow(nf_words *w, int64_t wanted);

/* Room for `more` items behind the last. */
static inline nf_status nf_bytes_reserve(nf_bytes *b, int64_t more) {
    if (b->size + more <= b->capacity) return NF_OK;
    return nf_grow((void **)&b->at, &b->capacity, b->size + more, 1);
}

static inline nf_status nf_words_reserve(nf_words *w, int64_t more) {
    if (w->size + more <= w->capacity) return NF_OK;
    return nf_words_grow(w, w->size + more);
}

static inline nf_status nf_bytes_append(nf_bytes *b, const void *data, int64_t size) {
    if (size == 0) return NF_OK;
    NF_TRY(nf_bytes_reserve(b, size));
    memcpy(b->at + b->size, data, (size_t)size);
    b->size += size;
    return NF_OK;
}

static inline nf_status nf_words_push(nf_words *w, uint32_t value) {
    NF_TRY(nf_words_reserve(w, 1));
    w->at[w->size++] = value;
    return NF_OK;
}

enum { NF_LARGE_PAGE = 1 << 21 };

/* Memory in large pages, where the system has them and it is not less than half of one: writing to small ones for the first time takes
   longer than encoding what is written. Free with free(). NULL: no memory. */
void *nf_large_new(int64_t bytes);

/* The same, zeroed, for a table that is read at random: with small pages most reads would wait for the address as well. */
void *nf_table_new(int64_t bytes);

static inline void nf_bytes_free(nf_bytes *b) { free(b->at); }
static inline void nf_words_free(nf_words *w) { free(w->at); }

#endif
