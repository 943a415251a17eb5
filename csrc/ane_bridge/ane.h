/* SPDX-License-Identifier: Apache-2.0 */
/* The Neural Engine behind plain C: open the private framework, compile and load MIL programs, run them on surfaces.

   The .m files, one for each handle, are this interface on machines with Objective-C; ane_stub.c elsewhere answers
   NF_ERR_UNSUPPORTED.  Failures leave one line in nf_last_error(), with what the system said.  All calls may come from any
   thread, but a handle is freed when no call uses it any more; evaluations of one program follow each other.

   Who owns what: the caller frees each handle with its own _free or _close, in the order request, surface, program, device.
   What comes back by `const` pointer belongs to the handle it was asked of. */
#ifndef NF_ANE_BRIDGE_ANE_H
#define NF_ANE_BRIDGE_ANE_H

#include <stddef.h>
#include <stdint.h>

#include "../core/status.h"

typedef struct nf_ane_device nf_ane_device;
typedef struct nf_ane_program nf_ane_program;
typedef struct nf_ane_surface nf_ane_surface;
typedef struct nf_ane_request nf_ane_request;

/* 1 when this build has the bridge, 0 when it has the stub. */
int nf_ane_built(void);

/* Programs that this process has compiled so far.  The system takes about 119. */
int nf_ane_compile_count(void);

/* Open the framework and compare the type of every method that will be called with the one that we call it by.
   framework: library with the private classes; NULL means the one of the system.
   cache: folder in which compiled programs outlive the process; NULL means none.  It is made when it is missing.
   Folders that dead processes left in the scratch folder are removed. */
nf_status nf_ane_open(nf_ane_device **out, const char *framework, const char *cache);
void nf_ane_close(nf_ane_device *device);

/* What the system says of the device; text is "" and a number is -1 where it says nothing. */
typedef struct nf_ane_info {
    char architecture[32]; /* "h16g" */
    char subtype[32];      /* "h16" */
    char os_build[32];     /* "25A354" */
    int cores, engines, virtual_machine;
    const char *scratch; /* folder of the programs that are loaded without the cache */
} nf_ane_info;
void nf_ane_device_info(const nf_ane_device *device, nf_ane_info *out);

/* A weight file: `path` as in the BLOBFILE of the program, "@model_path/weights/w.bin". */
typedef struct nf_ane_blob {
    const char *path;
    const void *data;
    size_t size;
} nf_ane_blob;

typedef enum nf_ane_origin {
    NF_ANE_COMPILED = 0, /* in this process */
    NF_ANE_CACHED = 1    /* by an earlier one, or for a donor; does not count against the compile budget */
} nf_ane_origin;

/* Compile (or take from the cache) and load a program.  mil: UTF-8 text.  The bytes of text and blobs are read, not copied,
   and must stay as they are until nf_ane_program_free. */
nf_status nf_ane_program_load(nf_ane_program **out, nf_ane_device *device, const char *mil, size_t mil_size,
                              const nf_ane_blob *blobs, int n_blobs);
/* Load a program that differs from the loaded `donor` in its one weight file alone, from what the compiler made of that one:
   nothing is compiled.  Reported to work (mechramc/Orion) and not relied on: compare results before they are used. */
nf_status nf_ane_program_load_by_donor(nf_ane_program **out, const nf_ane_program *donor, const char *mil, size_t mil_size,
                                       const nf_ane_blob *blobs, int n_blobs);
/* Unloads.  After a timeout the system may still use the program: then memory and folder are left to it. */
void nf_ane_program_free(nf_ane_program *program);
nf_ane_origin nf_ane_program_origin(const nf_ane_program *program);

/* How a tensor lies in its surface, as the loaded program says: value (n, c, h, w) begins at byte
   n * batch_stride + c * plane_stride + h * row_stride + w * element_bytes. */
typedef struct nf_ane_port {
    const char *name;  /* of the parameter or result in the program */
    int symbol;        /* its number in the program */
    int element_bytes; /* 2: float16, 4: float32 */
    int64_t batches, channels, height, width;
    int64_t batch_stride, plane_stride, row_stride; /* bytes */
    int64_t bytes;                                  /* what its surface must have at least */
} nf_ane_port;

/* The functions of a program are its procedures, in the order of their numbers. */
int nf_ane_program_procedures(const nf_ane_program *program);
nf_status nf_ane_program_procedure(const nf_ane_program *program, const char *name, int *out);

/* Ports of a procedure in the order of their symbols. */
nf_status nf_ane_program_inputs(const nf_ane_program *program, int procedure, const nf_ane_port **out, int *n);
nf_status nf_ane_program_outputs(const nf_ane_program *program, int procedure, const nf_ane_port **out, int *n);

/* Memory that processor and Neural Engine share, zero at first, at least `bytes` long. */
nf_status nf_ane_surface_new(nf_ane_surface **out, nf_ane_device *device, int64_t bytes);
void nf_ane_surface_free(nf_ane_surface *surface);
int64_t nf_ane_surface_bytes(const nf_ane_surface *surface);

/* The processor may read (and write unless `read_only`) *base until the unlock, which takes the same `read_only`. */
nf_status nf_ane_surface_lock(nf_ane_surface *surface, int read_only, void **base);
nf_status nf_ane_surface_unlock(nf_ane_surface *surface, int read_only);

/* Bind surfaces to the ports of a procedure, one for each in the order of the ports. */
nf_status nf_ane_request_new(nf_ane_request **out, nf_ane_program *program, int procedure, nf_ane_surface *const *inputs,
                             int n_inputs, nf_ane_surface *const *outputs, int n_outputs);
void nf_ane_request_free(nf_ane_request *request);

/* Evaluate and wait.  NF_ERR_TIMEOUT after `seconds`; the program cannot run again then and is to be freed.
   0 waits for ever, on the calling thread, which saves the hand-over to another one. */
nf_status nf_ane_request_run(nf_ane_request *request, double seconds);

#endif
