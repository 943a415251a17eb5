/* SPDX-License-Identifier: Apache-2.0 */
/* A thread for calls that may never return: the caller waits for a time and then goes on without it. */
#ifndef NF_ANE_BRIDGE_WORKER_H
#define NF_ANE_BRIDGE_WORKER_H

#include "../core/status.h"

typedef struct nf_worker nf_worker;
typedef void (*nf_worker_call)(void *context);

nf_status nf_worker_start(nf_worker **out);

/* Run call(context) on the thread and wait for it.  Calls come from one thread at a time.  After NF_ERR_TIMEOUT the worker is
   lost: it takes no more calls, and when the call returns after all it runs discard(context). */
nf_status nf_worker_run(nf_worker *worker, nf_worker_call call, nf_worker_call discard, void *context, double seconds);

/* Ends the thread; a lost one ends by itself when its call returns.  NULL is allowed. */
void nf_worker_stop(nf_worker *worker);

#endif
