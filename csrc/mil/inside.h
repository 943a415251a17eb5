/* SPDX-License-Identifier: Apache-2.0 */
/* The records behind mil.h; included by the files of this folder alone. */
#ifndef NF_MIL_INSIDE_H
#define NF_MIL_INSIDE_H

#include <stddef.h>

#include "mil.h"

enum { NF_MIL_MAX_PARAMS = 8, NF_MIL_NAME = 48, NF_MIL_MAX_RECORDS = 1 << 20 };

typedef enum nf_mil_origin { NF_MIL_FROM_INPUT = 1, NF_MIL_FROM_SCALAR, NF_MIL_FROM_BLOB, NF_MIL_FROM_OP } nf_mil_origin;

typedef struct nf_mil_record { /* a value */
    nf_mil_type type;
    nf_mil_origin origin;
    int32_t from; /* port, blob or op */
    int32_t procedure;
    int32_t uses;
    int32_t port; /* an input's or output's, counted from 1; 0: none */
    int inlined;  /* a constant that stands in the brackets of its op */
    float scalar;
} nf_mil_record;

typedef struct nf_mil_operand { /* a bound parameter: items[first : first + count], or a word */
    int32_t first, count;
    char text[8];
} nf_mil_operand;

struct nf_mil_op_row;
typedef struct nf_mil_call { /* an op with its parameters, in the order of its row */
    const struct nf_mil_op_row *row;
    nf_mil_operand operand[NF_MIL_MAX_PARAMS];
    nf_mil_value result;
} nf_mil_call;

typedef struct nf_mil_port {
    char name[NF_MIL_NAME];
    nf_mil_value value;
    int32_t procedure;
    int is_output;
} nf_mil_port;

typedef struct nf_mil_blob { /* one entry of the weight file */
    enum { NF_MIL_BLOB_FP16, NF_MIL_BLOB_INT8, NF_MIL_BLOB_SCALES } form;
    nf_mil_array source;
    int transposed;
    uint16_t *owned;       /* the copy of a table, in fp16, which source points to */
    int64_t count, offset; /* values; place of the entry's metadata in the file */
} nf_mil_blob;

typedef struct nf_mil_function {
    nf_mil_procedure about;
    char name[NF_MIL_NAME];
    int32_t first_value, last_value; /* values of the procedure: first <= v < last */
    int32_t first_call, last_call;
} nf_mil_function;

/* A growing array; `size` bytes each. */
typedef struct nf_mil_list {
    void *at;
    int32_t count, room;
} nf_mil_list;

struct nf_mil {
    nf_mil_dialect dialect;
    nf_mil_limits limits;
    nf_status status;
    char message[224];
    int open, finished;
    nf_mil_list values, calls, items, ports, blobs, functions; /* items: int32_t */
    int64_t blob_end;
    char *text;
};

/* A row of the op table; see mil_ops.c. */
typedef int (*nf_mil_rule)(nf_mil *p, const nf_mil_call *call, nf_mil_type *out);
typedef struct nf_mil_param {
    const char *name;
    nf_mil_param_kind kind;
    unsigned dtypes; /* of a value: bits 1 << nf_mil_dtype */
} nf_mil_param;
typedef struct nf_mil_op_row {
    const char *name;
    nf_mil_dialect since;
    nf_mil_rule rule;
    enum { NF_MIL_MOVES, NF_MIL_COMPUTES, NF_MIL_MULTIPLIES } work; /* what the cost counts */
    int attributes;                                                 /* parameters stand in the brackets: op()[...] */
    nf_mil_param params[NF_MIL_MAX_PARAMS];
} nf_mil_op_row;
const nf_mil_op_row *nf_mil_find_op(const char *name);

/* Keep the first error; returns 0, which is also "no value". */
int nf_mil_refuse(nf_mil *p, nf_status status, const char *format, ...) NF_PRINTF(3, 4);
/* The same for an op, with its name and the shapes of its values in front. */
int nf_mil_refuse_call(nf_mil *p, const nf_mil_call *call, const char *format, ...) NF_PRINTF(3, 4);

/* Room for one more item at the end of a list, zeroed; NULL after an error. */
void *nf_mil_grow(nf_mil *p, nf_mil_list *list, size_t size);
nf_mil_value nf_mil_add_value(nf_mil *p, nf_mil_type type, nf_mil_origin origin, int32_t from);

static inline nf_mil_record *nf_mil_record_of(const nf_mil *p, nf_mil_value v) { return (nf_mil_record *)p->values.at + v - 1; }
static inline nf_mil_call *nf_mil_call_at(const nf_mil *p, int32_t i) { return (nf_mil_call *)p->calls.at + i; }
static inline nf_mil_blob *nf_mil_blob_at(const nf_mil *p, int32_t i) { return (nf_mil_blob *)p->blobs.at + i; }
static inline nf_mil_port *nf_mil_ports_of(const nf_mil *p) { return p->ports.at; }
static inline nf_mil_function *nf_mil_function_at(const nf_mil *p, int32_t i) { return (nf_mil_function *)p->functions.at + i; }
static inline const int32_t *nf_mil_items_of(const nf_mil *p, const nf_mil_operand *o) {
    return (const int32_t *)p->items.at + o->first;
}
/* The type of value n of a parameter, and the number of one. */
static inline const nf_mil_type *nf_mil_operand_type(const nf_mil *p, const nf_mil_operand *o, int32_t n) {
    return &nf_mil_record_of(p, nf_mil_items_of(p, o)[n])->type;
}
static inline int64_t nf_mil_size(const nf_mil_type *t) {
    int64_t size = 1;
    for (int32_t i = 0; i < t->rank; i++) size *= t->dim[i];
    return size;
}

const char *nf_mil_dtype_name(nf_mil_dtype dtype);
/* "[1, 64, 1, 32]" into `out`, which holds at least 96 bytes; returns it. */
char *nf_mil_shape_text(char *out, const nf_mil_type *type);
/* Write all of the text; NULL when memory ends. */
char *nf_mil_write_text(const nf_mil *p, int64_t *size);
void nf_mil_free_blobs(nf_mil *p);

#endif
