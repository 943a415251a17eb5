/* SPDX-License-Identifier: Apache-2.0 */
/* MIL text for the simulator: read, checked as the device's compiler is reported to check it, and executed.

   All values are held as float; after each operation they are rounded to the type that the program gives them, so float16
   values are what a float16 machine holds.  Sums inside products are float32, as the device's are reported to be wide. */
#ifndef ANE_SIMULATOR_MIL_H
#define ANE_SIMULATOR_MIL_H

#include <stddef.h>
#include <stdint.h>

enum { SIM_RANK = 6, SIM_NAME = 96, SIM_ARGS = 12 };

typedef enum sim_dtype { SIM_F16, SIM_F32, SIM_I8, SIM_U8, SIM_I16, SIM_I32, SIM_U32, SIM_U64, SIM_BOOL, SIM_STRING } sim_dtype;

typedef struct sim_type {
    sim_dtype dtype;
    int rank;
    int64_t shape[SIM_RANK];
} sim_type;

typedef struct sim_value {
    char name[SIM_NAME];
    sim_type type;
    int constant;
    float *data;
    char *text; /* of a string */
} sim_value;

/* n > 1 or `tuple` for values=(a, b). */
typedef struct sim_arg {
    char name[32];
    int tuple, n, *values; /* indices of values of the function */
} sim_arg;

typedef struct sim_op {
    const struct sim_rule *rule;
    char kind[48];
    int line, n_args, n_out, *out;
    sim_arg args[SIM_ARGS];
} sim_op;

typedef struct sim_function {
    char name[SIM_NAME];
    sim_value *values;
    sim_op *ops;
    int n_values, n_ops, n_inputs, n_outputs;
    int *inputs, *outputs; /* in alphabetical order, as the device numbers them */
} sim_function;

typedef struct sim_program {
    int modern; /* program(1.3), not program(1.0) */
    sim_function *functions;
    int n_functions;
    char error[256]; /* why it was not taken; "" when it was */
} sim_program;

/* Weight files by the name that the program uses ("@model_path/weights/w.bin"). */
typedef struct sim_file {
    char name[256];
    const unsigned char *bytes;
    size_t size;
} sim_file;

/* mil.c: never NULL; error says whether it was taken. The constants are copied. */
sim_program *sim_read(const char *text, size_t size, const sim_file *files, int n_files);
void sim_free(sim_program *program);

/* ops.c */
typedef struct sim_rule {
    const char *name;
    int since_modern; /* unknown to program(1.0) */
    /* 1 and *out (n_out types), or 0 with a reason in error. */
    int (*shape)(sim_function *f, sim_op *op, sim_type *out, char *error);
    void (*run)(sim_function *f, sim_op *op);
    int variant;
} sim_rule;
const sim_rule *sim_find_rule(const char *name);
void sim_run(sim_function *f);

int64_t sim_count(const sim_type *type);
float sim_round(sim_dtype dtype, float x);
const char *sim_dtype_name(sim_dtype dtype);
int sim_dtype_of(const char *name); /* -1 when there is none */

/* ports.c: a tensor as [batches, channels, height, width] in a surface, rows padded; strides in bytes. */
typedef struct sim_port {
    int64_t shape[4], row, plane, batch;
} sim_port;
sim_port sim_port_of(const sim_value *v);

/* Values from the surface (`in`) or to it. */
void sim_move_port(sim_value *v, unsigned char *base, int in);

/* switches.c: the reported behaviours and what has been counted, see the table there. */
int sim_get(const char *name);
void sim_add(const char *name, int n);

#endif
