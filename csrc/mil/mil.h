/* SPDX-License-Identifier: Apache-2.0 */
/* A typed builder for MIL, the text that Apple's compiler makes Neural Engine programs of; see docs/ane.md.

   A program holds procedures (functions of the text). Values carry a shape and a dtype; the type of a result is inferred by
   the op's row in mil_ops.c, and whatever does not fit is refused there.  Errors are sticky: after the first one every call
   does nothing and gives value 0, and nf_mil_finish says what it was, with the op and the shapes.

   Ownership: the program owns its records, its text and copies of its tables.  Weights stay with the caller, who keeps them
   in place until nf_mil_write_blob has been called; nothing of their size is allocated.  One caller at a time; no globals. */
#ifndef NF_MIL_H
#define NF_MIL_H

#include <stdint.h>

#include "../core/status.h"

typedef enum nf_mil_dtype { NF_MIL_FP16 = 1, NF_MIL_FP32 = 2, NF_MIL_INT8 = 3, NF_MIL_INT32 = 4, NF_MIL_BOOL = 5 } nf_mil_dtype;

/* program(1.0) with func<ios16> (M1, M2), or program(1.3) with func<ios18>. */
typedef enum nf_mil_dialect { NF_MIL_IOS16 = 16, NF_MIL_IOS18 = 18 } nf_mil_dialect;

typedef struct nf_mil_type {
    nf_mil_dtype dtype;
    int32_t rank; /* 0 to 4 */
    int64_t dim[4];
} nf_mil_type;

/* What the device and its compiler take; see device.c for values and sources. */
typedef struct nf_mil_limits {
    int64_t width;       /* last axis of any value */
    int64_t axis;        /* any axis */
    int64_t conv_inputs; /* input channels of a convolution */
    int64_t row_values;  /* widths of fp16 ports are multiples of this */
    int64_t blob_bytes;  /* weights of one program */
    int64_t procedures;  /* functions of one program */
    int64_t compiles;    /* programs that one process may compile; for planners */
} nf_mil_limits;

extern const nf_mil_limits nf_mil_device_limits;

/* Numbers of the caller: (rows, cols) row-major; a vector is (rows, 1).  data NULL with rows > 0: not there yet, sizes only;
   equal keys that are not 0 then mean the same array. */
typedef enum nf_mil_stored { NF_MIL_STORED_F32 = 0, NF_MIL_STORED_F16 = 1, NF_MIL_STORED_BF16 = 2 } nf_mil_stored;
typedef struct nf_mil_array {
    const void *data;
    nf_mil_stored stored;
    int64_t rows, cols;
    int32_t key;
} nf_mil_array;

typedef struct nf_mil nf_mil;
typedef int32_t nf_mil_value; /* 0: none */

/* `limits` is copied; NULL means nf_mil_device_limits. */
nf_status nf_mil_new(nf_mil **out, nf_mil_dialect dialect, const nf_mil_limits *limits);
void nf_mil_free(nf_mil *program);

/* Procedures are written one after the other; values belong to the procedure in which they were made. */
void nf_mil_begin(nf_mil *program, const char *name);
/* Every value must have been used, directly or as an output. */
void nf_mil_end(nf_mil *program);

/* Ports. Surfaces are bound in the alphabetical order of names by some systems, so names must be declared in that order. */
nf_mil_value nf_mil_input(nf_mil *program, const char *name, nf_mil_type type);
void nf_mil_output(nf_mil *program, const char *name, nf_mil_value value);

/* Constants. A scalar is fp16, rounded to nearest. */
nf_mil_value nf_mil_scalar(nf_mil *program, float value);
/* fp16 in the blob from float32 values of the type's size, which are copied; equal tables are stored once. */
nf_mil_value nf_mil_table(nf_mil *program, nf_mil_type type, const float *values);
/* fp16 in the blob from the caller's array, or its transpose; the same array is stored once. */
nf_mil_value nf_mil_weight(nf_mil *program, nf_mil_type type, const nf_mil_array *array, int transposed);
/* A convolution weight [rows, cols, 1, 1] (of the transpose if so) as int8 with an fp16 scale per row: max|row| / 127. */
nf_mil_value nf_mil_weight_int8(nf_mil *program, const nf_mil_array *array, int transposed);

/* One argument of an op: values (VALUE, LIST), numbers (INT, INTS, BOOL) or a word (TEXT). */
typedef struct nf_mil_arg {
    const char *name;
    const int32_t *items; /* values or numbers, count of them */
    int32_t count;
    const char *text; /* of TEXT, else NULL */
} nf_mil_arg;

/* An op by its name in MIL with all parameters of its row, in any order.  The same op on the same values is written once. */
nf_mil_value nf_mil_apply(nf_mil *program, const char *op, const nf_mil_arg *args, int32_t count);

/* Parameter i of an op: its name, or NULL past the last one or for an unknown op; *kind gets a nf_mil_param_kind. */
typedef enum nf_mil_param_kind {
    NF_MIL_PARAM_VALUE = 1, /* a run-time value or a constant */
    NF_MIL_PARAM_LIST = 2,  /* several */
    NF_MIL_PARAM_INT = 3,   /* the rest are literals, written as named constants */
    NF_MIL_PARAM_INTS = 4,
    NF_MIL_PARAM_BOOL = 5,
    NF_MIL_PARAM_TEXT = 6
} nf_mil_param_kind;
const char *nf_mil_op_name(int32_t index); /* NULL past the last one */
const char *nf_mil_op_param(const char *op, int32_t index, int32_t *kind);

/* The type of a value; rank 0 and no dtype after an error. */
nf_mil_type nf_mil_type_of(const nf_mil *program, nf_mil_value value);

/* The first error, or the text (zero-terminated, UTF-8, owned by the program). Nothing can be added afterwards. */
nf_status nf_mil_finish(nf_mil *program, const char **text, int64_t *size);

/* The weight file that the text names "@model_path/weights/weight.bin"; 0 bytes when there is none. */
int64_t nf_mil_blob_bytes(const nf_mil *program);
nf_status nf_mil_write_blob(const nf_mil *program, uint8_t *out);

/* What a finished program consists of. */
typedef struct nf_mil_procedure {
    const char *name; /* owned by the program */
    int32_t inputs, outputs, ops;
    int64_t matrix_flops;   /* of conv and matmul, 2 per multiply-add */
    int64_t element_values; /* results of all other ops that compute */
} nf_mil_procedure;
int32_t nf_mil_procedures(const nf_mil *program);
nf_status nf_mil_procedure_at(const nf_mil *program, int32_t index, nf_mil_procedure *out);
/* Port `index` of a procedure, an input or an output: *name is owned by the program. */
nf_status nf_mil_port_at(const nf_mil *program, int32_t procedure, int is_output, int32_t index, const char **name,
                         nf_mil_type *type);

#endif
