/* SPDX-License-Identifier: Apache-2.0 */
#if !defined(__APPLE__)
#define _POSIX_C_SOURCE 200809L
#endif
#include "worker.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

struct nf_worker {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t posted, done;
    nf_worker_call call, discard; /* call is NULL while nothing is to be done */
    void *context;
    int lost, stopped;
};

static void destroy(nf_worker *w) {
    pthread_cond_destroy(&w->posted);
    pthread_cond_destroy(&w->done);
    pthread_mutex_destroy(&w->mutex);
    free(w);
}

/* The mutex is held.  Returns with it held, whatever became of the caller in the meantime. */
static void run_posted(nf_worker *w) {
    nf_worker_call call = w->call;
    pthread_mutex_unlock(&w->mutex);
    call(w->context);
    pthread_mutex_lock(&w->mutex);
    if (w->lost) w->discard(w->context);
    w->call = NULL;
    pthread_cond_signal(&w->done);
}

static void *serve(void *argument) {
    nf_worker *w = argument;
    pthread_mutex_lock(&w->mutex);
    while (!w->stopped) {
        if (w->call)
            run_posted(w);
        else
            pthread_cond_wait(&w->posted, &w->mutex);
    }
    int lost = w->lost;
    pthread_mutex_unlock(&w->mutex);
    if (lost) destroy(w); /* nobody joins a lost thread */
    return NULL;
}

/* Waits that do not jump with the wall clock. */
static int init_done(pthread_cond_t *done) {
#if defined(__APPLE__)
    return pthread_cond_init(done, NULL);
#else
    pthread_condattr_t attributes;
    if (pthread_condattr_init(&attributes) != 0) return -1;
    int failed = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) || pthread_cond_init(done, &attributes);
    pthread_condattr_destroy(&attributes);
    return failed;
#endif
}

static struct timespec from_now(double seconds) {
    struct timespec now = {0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    double nanoseconds = (double)now.tv_nsec + (seconds - (double)(time_t)seconds) * 1e9;
    now.tv_sec += (time_t)seconds + (nanoseconds >= 1e9);
    now.tv_nsec = (long)(nanoseconds >= 1e9 ? nanoseconds - 1e9 : nanoseconds);
    return now;
}

static int wait_until(nf_worker *w, struct timespec deadline) {
#if defined(__APPLE__)
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    struct timespec left = {deadline.tv_sec - now.tv_sec, deadline.tv_nsec - now.tv_nsec};
    if (left.tv_nsec < 0) left.tv_sec--, left.tv_nsec += 1000000000;
    return left.tv_sec < 0 ? ETIMEDOUT : pthread_cond_timedwait_relative_np(&w->done, &w->mutex, &left);
#else
    return pthread_cond_timedwait(&w->done, &w->mutex, &deadline);
#endif
}

nf_status nf_worker_start(nf_worker **out) {
    *out = NULL;
    nf_worker *w = calloc(1, sizeof *w);
    if (!w) return nf_fail(NF_ERR_MEMORY, "no memory for a thread that waits for the device");
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->posted, NULL);
    if (init_done(&w->done) != 0 || pthread_create(&w->thread, NULL, serve, w) != 0) {
        free(w);
        return nf_fail(NF_ERR_THREAD, "the thread that waits for the device could not be started");
    }
    *out = w;
    return NF_OK;
}

nf_status nf_worker_run(nf_worker *w, nf_worker_call call, nf_worker_call discard, void *context, double seconds) {
    pthread_mutex_lock(&w->mutex);
    if (w->lost) {
        pthread_mutex_unlock(&w->mutex);
        return nf_fail(NF_ERR_STATE, "an earlier call of this thread has not returned");
    }
    struct timespec deadline = from_now(seconds);
    w->call = call, w->discard = discard, w->context = context;
    pthread_cond_signal(&w->posted);
    while (w->call && !w->lost)
        if (wait_until(w, deadline) == ETIMEDOUT && w->call) w->lost = 1;
    int lost = w->lost;
    pthread_mutex_unlock(&w->mutex);
    return lost ? nf_fail(NF_ERR_TIMEOUT, "no answer within %g s", seconds) : NF_OK;
}

void nf_worker_stop(nf_worker *w) {
    if (!w) return;
    pthread_mutex_lock(&w->mutex);
    int lost = w->lost;
    w->stopped = 1;
    pthread_cond_signal(&w->posted);
    if (lost) pthread_detach(w->thread);
    pthread_mutex_unlock(&w->mutex);
    if (lost) return;
    pthread_join(w->thread, NULL);
    destroy(w);
}
