/* SPDX-License-Identifier: Apache-2.0 */
/* ane.h on machines without the bridge: nothing opens, and the message says what to use instead. */
#include "ane.h"

static nf_status unsupported(void) {
    return nf_fail(NF_ERR_UNSUPPORTED, "this build has no bridge to the Neural Engine, which only Apple's own processors have; "
                                       "use the cpu backend");
}

int nf_ane_built(void) { return 0; }
int nf_ane_compile_count(void) { return 0; }

nf_status nf_ane_open(nf_ane_device **out, const char *framework, const char *cache) {
    (void)framework, (void)cache;
    *out = NULL;
    return unsupported();
}
void nf_ane_close(nf_ane_device *device) { (void)device; }

void nf_ane_device_info(const nf_ane_device *device, nf_ane_info *out) {
    (void)device;
    *out = (nf_ane_info){.cores = -1, .engines = -1, .virtual_machine = -1, .scratch = ""};
}

nf_status nf_ane_program_load(nf_ane_program **out, nf_ane_device *device, const char *mil, size_t mil_size,
                              const nf_ane_blob *blobs, int n_blobs) {
    (void)device, (void)mil, (void)mil_size, (void)blobs, (void)n_blobs;
    *out = NULL;
    return unsupported();
}
void nf_ane_program_free(nf_ane_program *program) { (void)program; }

nf_ane_origin nf_ane_program_origin(const nf_ane_program *program) {
    (void)program;
    return NF_ANE_COMPILED;
}

int nf_ane_program_procedures(const nf_ane_program *program) {
    (void)program;
    return 0;
}

nf_status nf_ane_program_load_by_donor(nf_ane_program **out, const nf_ane_program *donor, const char *mil, size_t mil_size,
                                       const nf_ane_blob *blobs, int n_blobs) {
    (void)donor, (void)mil, (void)mil_size, (void)blobs, (void)n_blobs;
    *out = NULL;
    return unsupported();
}

nf_status nf_ane_program_procedure(const nf_ane_program *program, const char *name, int *out) {
    (void)program, (void)name;
    *out = -1;
    return unsupported();
}

nf_status nf_ane_program_inputs(const nf_ane_program *program, int procedure, const nf_ane_port **out, int *n) {
    (void)program, (void)procedure;
    *out = NULL, *n = 0;
    return unsupported();
}

nf_status nf_ane_program_outputs(const nf_ane_program *program, int procedure, const nf_ane_port **out, int *n) {
    return nf_ane_program_inputs(program, procedure, out, n);
}

nf_status nf_ane_surface_new(nf_ane_surface **out, nf_ane_device *device, int64_t bytes) {
    (void)device, (void)bytes;
    *out = NULL;
    return unsupported();
}
void nf_ane_surface_free(nf_ane_surface *surface) { (void)surface; }

int64_t nf_ane_surface_bytes(const nf_ane_surface *surface) {
    (void)surface;
    return 0;
}

nf_status nf_ane_surface_lock(nf_ane_surface *surface, int read_only, void **base) {
    (void)surface, (void)read_only;
    *base = NULL;
    return unsupported();
}

nf_status nf_ane_surface_unlock(nf_ane_surface *surface, int read_only) {
    (void)surface, (void)read_only;
    return unsupported();
}

nf_status nf_ane_request_new(nf_ane_request **out, nf_ane_program *program, int procedure, nf_ane_surface *const *inputs,
                             int n_inputs, nf_ane_surface *const *outputs, int n_outputs) {
    (void)program, (void)procedure, (void)inputs, (void)n_inputs, (void)outputs, (void)n_outputs;
    *out = NULL;
    return unsupported();
}
void nf_ane_request_free(nf_ane_request *request) { (void)request; }

nf_status nf_ane_request_run(nf_ane_request *request, double seconds) {
    (void)request, (void)seconds;
    return unsupported();
}
