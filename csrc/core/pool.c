/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if defined(__x86_64__) || defined(__i386__)
#define nf_pause() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define nf_pause() __asm__ volatile("yield")
#else
#define nf_pause() ((void)0)
#endif

/* Between two loops of one step a worker is needed again within microseconds; sleeping and waking costs more. */
enum { SPIN = 4000 };
enum { CACHE_LINE = 64 };

/* A worker has a run of neighbouring tasks, which share memory with each other and, from one loop to the next, with those
   that it had before; when its run is done it helps with those of the others. */
typedef struct worker {
    _Alignas(CACHE_LINE) atomic_llong next; /* first task of the run that nobody has taken */
    long long end;
    struct nf_pool *pool;
    pthread_t thread;
    int index;
} worker;

struct nf_pool {
    nf_task task;
    void *context;
    atomic_ullong round; /* counts loops; a change wakes the workers */
    atomic_int busy;     /* workers that have not finished the current loop */
    atomic_int sleepers; /* workers waiting on `wake` */
    atomic_int stop;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    int threads;
    int started;
    pid_t owner;
    worker workers[];
};

static void take_tasks(nf_pool *pool, int index) {
    for (int k = 0; k < pool->threads; k++) {
        worker *whose = &pool->workers[(index + k) % pool->threads];
        while (atomic_load(&whose->next) < whose->end) {
            long long i = atomic_fetch_add(&whose->next, 1);
            if (i < whose->end) pool->task(pool->context, i, index);
        }
    }
}

static unsigned long long wait_for_round(nf_pool *pool, unsigned long long seen) {
    for (int i = 0; i < SPIN; i++) {
        unsigned long long now = atomic_load(&pool->round);
        if (now != seen) return now;
        nf_pause();
    }
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(&pool->round) == seen) pthread_cond_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->lock);
    return atomic_load(&pool->round);
}

static void next_round(nf_pool *pool) {
    atomic_fetch_add(&pool->round, 1);
    if (atomic_load(&pool->sleepers) > 0) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
    }
}

static void *work(void *argument) {
    worker *self = argument;
    nf_pool *pool = self->pool;
    unsigned long long seen = 0;
    for (;;) {
        seen = wait_for_round(pool, seen);
        if (atomic_load(&pool->stop)) return NULL;
        take_tasks(pool, self->index);
        atomic_fetch_sub(&pool->busy, 1);
    }
}

nf_status nf_pool_new(nf_pool **out, int threads) {
    *out = NULL;
    if (threads < 1 || threads > 1024) return nf_fail(NF_ERR_ARGUMENT, "threads=%d: must be from 1 to 1024", threads);
    size_t bytes = sizeof(nf_pool) + (size_t)threads * sizeof(worker);
    nf_pool *pool = aligned_alloc(CACHE_LINE, bytes); /* a multiple of it, as both parts are */
    if (!pool) return nf_fail(NF_ERR_MEMORY, "no memory for a pool of %d threads", threads);
    memset(pool, 0, bytes);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->threads = threads;
    pool->owner = getpid();
    for (int i = 1; i < threads; i++) {
        worker *w = &pool->workers[i];
        w->pool = pool;
        w->index = i;
        if (pthread_create(&w->thread, NULL, work, w) != 0) {
            nf_pool_free(pool);
            return nf_fail(NF_ERR_THREAD, "thread %d of %d could not be started", i + 1, threads);
        }
        pool->started = i;
    }
    *out = pool;
    return NF_OK;
}

void nf_pool_free(nf_pool *pool) {
    if (!pool) return;
    if (pool->owner == getpid()) {
        atomic_store(&pool->stop, 1);
        next_round(pool);
        for (int i = 1; i <= pool->started; i++) pthread_join(pool->workers[i].thread, NULL);
        pthread_cond_destroy(&pool->wake);
        pthread_mutex_destroy(&pool->lock);
    }
    free(pool);
}

int nf_pool_threads(const nf_pool *pool) { return pool->threads; }

void nf_pool_run(nf_pool *pool, int64_t count, nf_task task, void *context) {
    if (pool->threads == 1 || count <= 1 || pool->owner != getpid()) {
        for (int64_t i = 0; i < count; i++) task(context, i, 0);
        return;
    }
    pool->task = task;
    pool->context = context;
    for (int i = 0; i < pool->threads; i++) {
        pool->workers[i].end = count * (i + 1) / pool->threads;
        atomic_store(&pool->workers[i].next, count * i / pool->threads);
    }
    atomic_store(&pool->busy, pool->started);
    next_round(pool);
    take_tasks(pool, 0);
    for (int i = 0; atomic_load(&pool->busy) > 0; i++) {
        if (i < SPIN)
            nf_pause();
        else
            sched_yield(); /* more threads than cores: let the others run */
    }
}
