/* SPDX-License-Identifier: Apache-2.0 */
#define _DEFAULT_SOURCE
#include "buffer.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

void *nf_large_new(int64_t bytes) {
    if (bytes < NF_LARGE_PAGE / 2) return malloc(bytes > 0 ? (size_t)bytes : 1);
    const size_t size = ((size_t)bytes + NF_LARGE_PAGE - 1) / NF_LARGE_PAGE * NF_LARGE_PAGE;
    void *at = aligned_alloc(NF_LARGE_PAGE, size);
#ifdef MADV_HUGEPAGE
    if (at) madvise(at, size, MADV_HUGEPAGE); /* advice: nothing is lost when it is not taken */
#endif
    return at;
}

void *nf_table_new(int64_t bytes) {
    void *table = nf_large_new(bytes);
    return table ? memset(table, 0, bytes > 0 ? (size_t)bytes : 1) : NULL;
}

nf_status nf_words_grow(nf_words *w, int64_t wanted) {
    const int64_t larger = w->capacity + w->capacity / 2, capacity = larger < wanted ? wanted : larger;
    const int64_t bytes = capacity * (int64_t)sizeof *w->at;
    if (bytes < NF_LARGE_PAGE) return nf_grow((void **)&w->at, &w->capacity, wanted, sizeof *w->at);
    uint32_t *moved = nf_large_new(bytes);
    if (!moved) return nf_fail(NF_ERR_MEMORY, "no memory for %lld bytes of ids", (long long)bytes);
    if (w->size) memcpy(moved, w->at, (size_t)w->size * sizeof *moved);
    free(w->at);
    w->at = moved;
    w->capacity = capacity;
    return NF_OK;
}
