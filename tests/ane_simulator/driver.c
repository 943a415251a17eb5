/* SPDX-License-Identifier: Apache-2.0 */
/* The bridge from C, for valgrind and the sanitizers:  driver SIMULATOR CACHE CYCLES [THREADS]

   Each cycle opens the device and goes every way that ends in success or in an error.  What is left behind by 1 cycle and by
   200 must be equal.  With THREADS each of them evaluates one program as often as there are cycles. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ane_bridge/ane.h"

#define BODY(op)                                                                                                               \
    "program(1.3)\n{ func main<ios18>(tensor<fp16, [1,4,1,32]> x) {\n"                                                         \
    "tensor<fp16, [1,4,1,32]> y = " op "(x=x)[name=string(\"y\")];\n} -> (y); }\n"

static int (*set)(const char *, int);

static void expect(int ok, const char *what) {
    if (ok) return;
    printf("FAIL  %s (%s)\n", what, nf_last_error());
    exit(1);
}

typedef struct loaded {
    nf_ane_device *device;
    nf_ane_program *program;
    nf_ane_surface *in, *out;
    nf_ane_request *request;
} loaded;

static nf_status load(loaded *l, const char *framework, const char *cache, const char *mil) {
    *l = (loaded){0};
    NF_TRY(nf_ane_open(&l->device, framework, cache));
    NF_TRY(nf_ane_program_load(&l->program, l->device, mil, strlen(mil), NULL, 0));
    const nf_ane_port *ports;
    int n;
    NF_TRY(nf_ane_program_inputs(l->program, 0, &ports, &n));
    NF_TRY(nf_ane_surface_new(&l->in, l->device, ports[0].bytes));
    NF_TRY(nf_ane_surface_new(&l->out, l->device, ports[0].bytes));
    return nf_ane_request_new(&l->request, l->program, 0, &l->in, 1, &l->out, 1);
}

static void unload(loaded *l) {
    nf_ane_request_free(l->request);
    nf_ane_surface_free(l->in);
    nf_ane_surface_free(l->out);
    nf_ane_program_free(l->program);
    nf_ane_close(l->device);
}

/* relu of 3 and -3. */
static int gives_back(const loaded *l) {
    uint16_t *x, *y;
    if (nf_ane_surface_lock(l->in, 0, (void **)&x) != NF_OK) return 0;
    x[0] = 0x4200, x[1] = 0xc200;
    if (nf_ane_surface_unlock(l->in, 0) != NF_OK || nf_ane_request_run(l->request, 5.0) != NF_OK) return 0;
    if (nf_ane_surface_lock(l->out, 1, (void **)&y) != NF_OK) return 0;
    int right = y[0] == 0x4200 && y[1] == 0;
    return nf_ane_surface_unlock(l->out, 1) == NF_OK && right;
}

/* A program like `donor` with a weight file of its own, which nothing reads. */
static void give(const nf_ane_program *donor) {
    const nf_ane_blob blob = {"@model_path/weights/w.bin", "8 bytes.", 8};
    nf_ane_program *p;
    expect(nf_ane_program_load_by_donor(&p, donor, BODY("relu"), strlen(BODY("relu")), &blob, 1) == NF_OK, "donor");
    expect(p && nf_ane_program_origin(p) == NF_ANE_CACHED, "not compiled");
    nf_ane_program_free(p);
    expect(nf_ane_program_load_by_donor(&p, donor, BODY("relu"), strlen(BODY("relu")), NULL, 0) == NF_ERR_ARGUMENT && !p,
           "no file");
}

static void cycle(const char *framework, const char *cache) {
    loaded l;
    nf_ane_surface *small = NULL;
    nf_ane_request *request = NULL;
    int at;
    expect(load(&l, framework, cache, BODY("relu")) == NF_OK && gives_back(&l), "load and evaluate");
    expect(nf_ane_request_run(l.request, 0.0) == NF_OK, "evaluate on this thread");
    expect(nf_ane_program_procedure(l.program, "main", &at) == NF_OK && at == 0, "procedure by name");
    expect(nf_ane_program_procedure(l.program, "other", &at) == NF_ERR_ARGUMENT, "unknown procedure");
    expect(nf_ane_request_new(&request, l.program, 0, &l.in, 1, &small, 0) == NF_ERR_ARGUMENT, "too few surfaces");
    set("throw", 1);
    expect(nf_ane_request_run(l.request, 5.0) == NF_ERR_DEVICE, "exception");
    set("throw", 0);
    give(l.program);
    unload(&l);
    expect(load(&l, framework, cache, BODY("frob")) == NF_ERR_DEVICE, "a program that does not compile");
    unload(&l);
    set("load_failures", 2);
    expect(load(&l, framework, NULL, BODY("abs")) == NF_ERR_DEVICE, "a program that does not load");
    unload(&l);
    set("mute", 1);
    expect(load(&l, framework, NULL, BODY("abs")) == NF_ERR_DEVICE, "a program that does not describe itself");
    set("mute", 0);
    unload(&l);
    expect(nf_ane_open(&l.device, "/nowhere.so", NULL) == NF_ERR_UNSUPPORTED, "no framework");
}

static loaded shared;
static int evaluations;

static void *evaluate(void *unused) {
    (void)unused;
    for (int i = 0; i < evaluations; i++) expect(nf_ane_request_run(shared.request, 30.0) == NF_OK, "evaluate on a thread");
    return NULL;
}

static void run_threads(const char *framework, int threads) {
    pthread_t thread[64];
    expect(threads <= 64 && load(&shared, framework, NULL, BODY("relu")) == NF_OK, "load");
    for (int i = 0; i < threads; i++) pthread_create(&thread[i], NULL, evaluate, NULL);
    for (int i = 0; i < threads; i++) pthread_join(thread[i], NULL);
    expect(gives_back(&shared), "result after the threads");
    unload(&shared);
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    void *simulator = dlopen(argv[1], RTLD_NOW);
    if (simulator) *(void **)&set = dlsym(simulator, "ane_sim_set");
    if (!set) return printf("no simulator: %s\n", dlerror()), 2;
    set("budget", 1 << 20);
    evaluations = atoi(argv[3]);
    for (int i = 0; argc < 5 && i < evaluations; i++) cycle(argv[1], argv[2]);
    if (argc >= 5) run_threads(argv[1], atoi(argv[4]));
    return 0;
}
