/* SPDX-License-Identifier: Apache-2.0 */
/* The handles of ane.h, and what every entry does with the system's errors; included by the .m files of this folder alone.
   Manual reference counting: handles are C structs that retain what they hold. */
#ifndef NF_ANE_BRIDGE_ANE_INSIDE_H
#define NF_ANE_BRIDGE_ANE_INSIDE_H

#import <Foundation/Foundation.h>

#include <pthread.h>

#include "ane.h"
#include "claims.h"
#include "folders.h"
#include "worker.h"

enum {
    NF_ANE_QOS = 21, /* user-initiated; 0 to 63 were seen to be accepted with equal speed */
    NF_ANE_SURFACE_PROPERTIES = 6
};
static const int64_t NF_ANE_LARGEST = (int64_t)1 << 40; /* bytes of a surface, or a number in a description */

struct nf_ane_device {
    void *image, *surface_image;
    Class<NFDescriptorClass> descriptors;
    Class<NFModelClass> models;
    Class<NFRequestClass> requests;
    Class<NFSurfaceObjectClass> surface_objects;
    Class surfaces;
    NSString *surface_keys[NF_ANE_SURFACE_PROPERTIES];
    int can_cache;
    char scratch[NF_PATH], cache[NF_PATH]; /* cache: folder of this system's build, "" for none */
    nf_ane_info info;
};

typedef struct nf_ane_procedure {
    int number; /* of the request */
    nf_ane_port *inputs, *outputs;
    int n_inputs, n_outputs;
} nf_ane_procedure;

struct nf_ane_program {
    nf_ane_device *device;
    id<NFModel> model;
    int loaded, lost; /* lost: an evaluation has not returned */
    nf_ane_origin origin;
    char folder[NF_PATH], marker[NF_PATH]; /* marker: "" for a cached folder */
    int lock;                              /* of a cached folder, else -1 */
    nf_ane_procedure *procedures;
    int n_procedures;
    NSDictionary *numbers; /* name of a procedure -> number */
    pthread_mutex_t mutex; /* one evaluation at a time */
    nf_worker *worker;
};

struct nf_ane_surface {
    id<NFSurface> surface;
    id object; /* the framework's view of it */
    int64_t bytes;
};

/* --- guard.m */

/* "" where there is no text. */
const char *nf_ane_text_of(NSString *text);

/* NF_ERR_DEVICE with what the system said; `what`: the call that failed. */
nf_status nf_ane_refuse(NSError *error, const char *what);
nf_status nf_ane_refuse_exception(id thrown, const char *what);

/* The body of every entry: its own pool, and nothing thrown leaves it. */
#define NF_ANE_GUARDED(what, expression)                                                                                       \
    @autoreleasepool {                                                                                                         \
        @try {                                                                                                                 \
            return (expression);                                                                                               \
        } @catch (id thrown) {                                                                                                 \
            return nf_ane_refuse_exception(thrown, what);                                                                      \
        }                                                                                                                      \
    }

/* Release both, guarded; nil is allowed. */
nf_status nf_ane_release(id a, id b);

/* --- ports.m */

/* Fill in the procedures of a program that was loaded. */
nf_status nf_ane_describe(nf_ane_program *program);
void nf_ane_free_procedures(nf_ane_program *program);

/* NF_ERR_ARGUMENT when the program has no procedure `at`. */
nf_status nf_ane_check_procedure(const nf_ane_program *program, int at);

#endif
