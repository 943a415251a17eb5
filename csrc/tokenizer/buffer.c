/* SPDX-License-Identifier: Apache-2.0 */
#define _DEFAULT_SOURCE
#include "buffer.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

enum { LARGE_PAGE = 1 << 21 };

void *nf_table_new(int64_t bytes) {
    if (bytes < LARGE_PAGE / 2) return calloc(1, bytes > 0 ? (size_t)bytes : 1);
    size_t size = ((size_t)bytes + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE;
    void *table = aligned_alloc(LARGE_PAGE, size);
    if (!table) return NULL;
#ifdef MADV_HUGEPAGE
    madvise(table, size, MADV_HUGEPAGE); /* advice: nothing is lost when it is not taken */
#endif
    return memset(table, 0, size);
}
