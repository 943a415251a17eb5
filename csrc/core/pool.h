/* SPDX-License-Identifier: Apache-2.0 */
/* A pool of threads that share the tasks of one loop at a time. */
#ifndef NF_CORE_POOL_H
#define NF_CORE_POOL_H

#include <stdint.h>

#include "status.h"

typedef struct nf_pool nf_pool;

/* One task. `index` is in [0, count); `worker` in [0, threads) names the thread, for scratch memory. */
typedef void (*nf_task)(void *context, int64_t index, int worker);

/* A pool of `threads` >= 1 threads, the caller of nf_pool_run being one of them. */
nf_status nf_pool_new(nf_pool **out, int threads);
void nf_pool_free(nf_pool *pool);
int nf_pool_threads(const nf_pool *pool);

/* Run task(context, 0..count-1), each once, in any order, and return when all are done. Not to be nested, and one
   caller at a time. In a forked child, where the pool's threads do not exist, the caller runs every task itself. */
void nf_pool_run(nf_pool *pool, int64_t count, nf_task task, void *context);

#endif
