/* SPDX-License-Identifier: Apache-2.0 */
/* Bind surfaces to a procedure and evaluate it, with a time limit or without. */
#include <stdio.h>
#include <stdlib.h>

#include "ane_inside.h"

struct nf_ane_request {
    nf_ane_program *program;
    id request;
};

static nf_status bind_ports(NSMutableArray *objects, NSMutableArray *symbols, const nf_ane_port *ports, int n,
                            nf_ane_surface *const *surfaces, int given) {
    if (given != n) return nf_fail(NF_ERR_ARGUMENT, "%d surfaces for %d ports", given, n);
    for (int i = 0; i < n; i++) {
        if (nf_ane_surface_bytes(surfaces[i]) < ports[i].bytes)
            return nf_fail(NF_ERR_ARGUMENT, "port %s needs %lld bytes, its surface has %lld", ports[i].name,
                           (long long)ports[i].bytes, (long long)nf_ane_surface_bytes(surfaces[i]));
        [objects addObject:surfaces[i]->object];
        [symbols addObject:[NSNumber numberWithInt:ports[i].symbol]];
    }
    return NF_OK;
}

typedef struct surfaces {
    nf_ane_surface *const *inputs, *const *outputs;
    int n_inputs, n_outputs;
} surfaces;

static nf_status new_request(nf_ane_request *r, int at, surfaces bound) {
    const nf_ane_procedure *p = &r->program->procedures[at];
    NSMutableArray *inputs = [NSMutableArray array], *outputs = [NSMutableArray array];
    NSMutableArray *input_symbols = [NSMutableArray array], *output_symbols = [NSMutableArray array];
    NF_TRY(bind_ports(inputs, input_symbols, p->inputs, p->n_inputs, bound.inputs, bound.n_inputs));
    NF_TRY(bind_ports(outputs, output_symbols, p->outputs, p->n_outputs, bound.outputs, bound.n_outputs));
    r->request = [[r->program->device->requests requestWithInputs:inputs
                                                     inputIndices:input_symbols
                                                          outputs:outputs
                                                    outputIndices:output_symbols
                                                    weightsBuffer:nil
                                                        perfStats:nil
                                                   procedureIndex:[NSNumber numberWithInt:p->number]] retain];
    return r->request ? NF_OK : nf_fail(NF_ERR_DEVICE, "the Neural Engine did not take the surfaces");
}

static nf_status new_request_guarded(nf_ane_request *r, int at, surfaces bound) {
    NF_ANE_GUARDED("request", new_request(r, at, bound));
}

nf_status nf_ane_request_new(nf_ane_request **out, nf_ane_program *program, int procedure, nf_ane_surface *const *inputs,
                             int n_inputs, nf_ane_surface *const *outputs, int n_outputs) {
    *out = NULL;
    NF_TRY(nf_ane_check_procedure(program, procedure));
    nf_ane_request *r = calloc(1, sizeof *r);
    if (!r) return nf_fail(NF_ERR_MEMORY, "no memory for a request");
    r->program = program;
    nf_status status = new_request_guarded(r, procedure, (surfaces){inputs, outputs, n_inputs, n_outputs});
    if (status == NF_OK)
        *out = r;
    else
        nf_ane_request_free(r);
    return status;
}

void nf_ane_request_free(nf_ane_request *request) {
    if (request) nf_ane_release(request->request, nil);
    free(request);
}

/* One evaluation.  It holds what it uses, so that it may outlive its caller's patience. */
typedef struct evaluation {
    id<NFModel> model;
    id request;
    nf_status status;
    char message[256];
} evaluation;

static nf_status evaluate(id<NFModel> model, id request) {
    NSError *error = nil;
    if ([model evaluateWithQoS:NF_ANE_QOS options:@{} request:request error:&error]) return NF_OK;
    return nf_ane_refuse(error, "evaluate");
}

static nf_status evaluate_guarded(id<NFModel> model, id request) { NF_ANE_GUARDED("evaluate", evaluate(model, request)); }

static void run_evaluation(void *context) {
    evaluation *e = context;
    e->status = evaluate_guarded(e->model, e->request);
    if (e->status != NF_OK) snprintf(e->message, sizeof e->message, "%s", nf_last_error());
}

static void discard_evaluation(void *context) {
    evaluation *e = context;
    nf_ane_release(e->request, e->model);
    free(e);
}

static nf_status evaluate_in_time(nf_ane_program *p, id request, double seconds) {
    if (!p->worker) NF_TRY(nf_worker_start(&p->worker));
    evaluation *e = calloc(1, sizeof *e);
    if (!e) return nf_fail(NF_ERR_MEMORY, "no memory for an evaluation");
    e->model = [(id)p->model retain], e->request = [request retain];
    if (nf_worker_run(p->worker, run_evaluation, discard_evaluation, e, seconds) != NF_OK) {
        p->lost = 1;
        return nf_fail(NF_ERR_TIMEOUT, "the Neural Engine did not answer within %g s", seconds);
    }
    nf_status status = e->status == NF_OK ? NF_OK : nf_fail(e->status, "%s", e->message);
    discard_evaluation(e);
    return status;
}

nf_status nf_ane_request_run(nf_ane_request *request, double seconds) {
    nf_ane_program *p = request->program;
    pthread_mutex_lock(&p->mutex);
    nf_status status;
    if (p->lost)
        status = nf_fail(NF_ERR_STATE, "an earlier evaluation of this program has not returned; load the program again");
    else if (seconds > 0.0)
        status = evaluate_in_time(p, request->request, seconds);
    else
        status = evaluate_guarded(p->model, request->request);
    pthread_mutex_unlock(&p->mutex);
    return status;
}
