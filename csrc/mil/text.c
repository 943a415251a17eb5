/* SPDX-License-Identifier: Apache-2.0 */
/* The text of a program in either dialect. They differ in the versions and in how a scalar type is spelled: `int32` in
   ios18, `tensor<int32, []>` in ios16.  Each literal parameter becomes a named constant, once per procedure. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "inside.h"

static const char *const DTYPES[] = {"", "fp16", "fp32", "int8", "int32", "bool"};
static const char *const BLOB_PATH = "@model_path/weights/weight.bin";

const char *nf_mil_dtype_name(nf_mil_dtype dtype) { return DTYPES[dtype]; }

char *nf_mil_shape_text(char *out, const nf_mil_type *t) {
    size_t used = 1;
    out[0] = '[';
    for (int32_t i = 0; i < t->rank; i++)
        used += (size_t)snprintf(out + used, 24, "%s%lld", i ? ", " : "", (long long)t->dim[i]);
    out[used] = ']';
    out[used + 1] = 0;
    return out;
}

typedef struct text { /* a growing text; `failed` once memory has ended */
    char *at;
    size_t used, room;
    int failed;
} text;

NF_PRINTF(2, 3) static void put(text *t, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int need = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (t->used + (size_t)need + 1 > t->room) {
        size_t room = 2 * t->room + (size_t)need + 4096;
        char *at = t->failed ? NULL : realloc(t->at, room);
        if (at) {
            t->at = at;
            t->room = room;
        } else {
            t->failed = 1;
        }
    }
    if (!t->failed) t->used += (size_t)vsnprintf(t->at + t->used, t->room - t->used, format, again);
    va_end(again);
}

typedef struct writer {
    const nf_mil *p;
    const nf_mil_function *f;
    text out;
    text literals; /* those of this procedure, zero-terminated one after the other */
    int literal_count;
} writer;

/* fp16, or tensor<fp16, []> */
static void put_scalar_type(writer *w, text *t, const char *dtype) {
    put(t, w->p->dialect == NF_MIL_IOS16 ? "tensor<%s, []>" : "%s", dtype);
}

static void put_type(writer *w, const nf_mil_type *t) {
    char shape[96];
    if (t->rank == 0)
        put_scalar_type(w, &w->out, DTYPES[t->dtype]);
    else
        put(&w->out, "tensor<%s, %s>", DTYPES[t->dtype], nf_mil_shape_text(shape, t));
}

/* Results are called op_3, constants k_3 (weights) and scalar_3, by their number within the procedure. */
static void put_name(writer *w, nf_mil_value v) {
    const nf_mil *p = w->p;
    const nf_mil_record *record = nf_mil_record_of(p, v);
    if (record->port) {
        put(&w->out, "%s", nf_mil_ports_of(p)[record->port - 1].name);
        return;
    }
    const char *stem = record->origin == NF_MIL_FROM_SCALAR ? "scalar" : record->origin == NF_MIL_FROM_BLOB ? "weight" : "";
    if (record->origin == NF_MIL_FROM_OP) stem = nf_mil_call_at(p, record->from)->row->name;
    put(&w->out, "%s_%d", stem, v - w->f->first_value);
}

static void put_named(writer *w, nf_mil_value v) {
    put(&w->out, "[name = ");
    put_scalar_type(w, &w->out, "string");
    put(&w->out, "(\"");
    put_name(w, v);
    put(&w->out, "\")");
}

static void put_blob(writer *w, const nf_mil_record *record) {
    put_type(w, &record->type);
    put(&w->out, "(BLOBFILE(path = ");
    put_scalar_type(w, &w->out, "string");
    put(&w->out, "(\"%s\"), offset = ", BLOB_PATH);
    put_scalar_type(w, &w->out, "uint64");
    put(&w->out, "(%lld)))", (long long)nf_mil_blob_at(w->p, record->from)->offset);
}

/* A value of fp16 without rounding and without a decimal point, which depends on the locale: -0x333p-13 */
static void put_hex(text *t, float value) {
    int exponent;
    int32_t digits = (int32_t)(frexpf(fabsf(value), &exponent) * 2048.0f); /* the 11 bits of fp16 */
    for (exponent = digits ? exponent - 11 : 0; digits && digits % 2 == 0; digits /= 2) exponent++;
    put(t, "(%s0x%xp%d)", signbit(value) ? "-" : "", (unsigned)digits, exponent);
}

static void put_constant(writer *w, nf_mil_value v) {
    const nf_mil_record *record = nf_mil_record_of(w->p, v);
    put(&w->out, "        ");
    put_type(w, &record->type);
    put(&w->out, " ");
    put_name(w, v);
    put(&w->out, " = const()");
    put_named(w, v);
    put(&w->out, ", val = ");
    if (record->origin == NF_MIL_FROM_BLOB) {
        put_blob(w, record);
    } else {
        put_type(w, &record->type);
        put_hex(&w->out, record->scalar);
    }
    put(&w->out, "];\n");
}

/* The type and value of a literal parameter: tensor<int32, [2]>([1, 1]), bool(true), string("valid"). */
static void put_literal(writer *w, text *t, const nf_mil_operand *o, nf_mil_param_kind kind, const char *dtype) {
    const int32_t *items = nf_mil_items_of(w->p, o);
    if (kind == NF_MIL_PARAM_INTS)
        put(t, "tensor<int32, [%d]>([", o->count);
    else
        put_scalar_type(w, t, kind == NF_MIL_PARAM_TEXT ? "string" : kind == NF_MIL_PARAM_BOOL ? "bool" : dtype);
    if (kind == NF_MIL_PARAM_TEXT) put(t, "(\"%s\")", o->text);
    if (kind == NF_MIL_PARAM_BOOL) put(t, "(%s)", items[0] ? "true" : "false");
    if (kind == NF_MIL_PARAM_INT) put(t, "(%d)", items[0]);
    for (int32_t n = 0; kind == NF_MIL_PARAM_INTS && n < o->count; n++) put(t, "%s%d", n ? ", " : "", items[n]);
    if (kind == NF_MIL_PARAM_INTS) put(t, "])");
}

/* The number of a literal among those of the procedure, which is written as a constant when it is new. */
static int literal_number(writer *w, const nf_mil_operand *o, nf_mil_param_kind kind) {
    size_t begin = w->literals.used, at = 0;
    put_literal(w, &w->literals, o, kind, "int32");
    if (w->literals.failed) return 0;
    for (int n = 0; n < w->literal_count; n++, at += strlen(w->literals.at + at) + 1)
        if (!strcmp(w->literals.at + at, w->literals.at + begin)) {
            w->literals.used = begin;
            return n;
        }
    const char *value = w->literals.at + begin;
    w->literals.used++; /* its zero */
    put(&w->out, "        %.*s literal_%d = const()[name = ", (int)(strchr(value, '(') - value), value, w->literal_count);
    put_scalar_type(w, &w->out, "string");
    put(&w->out, "(\"literal_%d\"), val = %s];\n", w->literal_count, value);
    return w->literal_count++;
}

static void put_values(writer *w, const nf_mil_operand *o, nf_mil_param_kind kind) {
    if (kind == NF_MIL_PARAM_LIST) put(&w->out, "(");
    for (int32_t n = 0; n < o->count; n++) {
        if (n) put(&w->out, ", ");
        put_name(w, nf_mil_items_of(w->p, o)[n]);
    }
    if (kind == NF_MIL_PARAM_LIST) put(&w->out, ")");
}

static void put_call(writer *w, const nf_mil_call *call) {
    const nf_mil_op_row *row = call->row;
    int literal[NF_MIL_MAX_PARAMS] = {0};
    for (int i = 0; i < NF_MIL_MAX_PARAMS && row->params[i].name; i++)
        if (row->params[i].kind > NF_MIL_PARAM_LIST) literal[i] = literal_number(w, &call->operand[i], row->params[i].kind);
    put(&w->out, "        ");
    put_type(w, &nf_mil_record_of(w->p, call->result)->type);
    put(&w->out, " ");
    put_name(w, call->result);
    put(&w->out, " = %s(", row->name);
    for (int i = 0; i < NF_MIL_MAX_PARAMS && row->params[i].name; i++) {
        put(&w->out, "%s%s = ", i ? ", " : "", row->params[i].name);
        if (row->params[i].kind > NF_MIL_PARAM_LIST)
            put(&w->out, "literal_%d", literal[i]);
        else
            put_values(w, &call->operand[i], row->params[i].kind);
    }
    put(&w->out, ")");
    put_named(w, call->result);
    put(&w->out, "];\n");
}

/* op()[name = ..., quantized_data = ..., scale = ..., axis = ..., zero_point = ...] */
static void put_attributes(writer *w, const nf_mil_call *call) {
    const nf_mil_op_row *row = call->row;
    put(&w->out, "        ");
    put_type(w, &nf_mil_record_of(w->p, call->result)->type);
    put(&w->out, " ");
    put_name(w, call->result);
    put(&w->out, " = %s()", row->name);
    put_named(w, call->result);
    for (int i = 0; i < NF_MIL_MAX_PARAMS && row->params[i].name; i++) {
        const nf_mil_operand *o = &call->operand[i];
        put(&w->out, ", %s = ", row->params[i].name);
        if (row->params[i].kind == NF_MIL_PARAM_VALUE)
            put_blob(w, nf_mil_record_of(w->p, nf_mil_items_of(w->p, o)[0]));
        else
            put_literal(w, &w->out, o, row->params[i].kind, strcmp(row->params[i].name, "zero_point") ? "int32" : "int8");
    }
    put(&w->out, "];\n");
}

static void put_function(writer *w, int32_t index) {
    const nf_mil *p = w->p;
    w->f = nf_mil_function_at(p, index);
    w->literals.used = 0;
    w->literal_count = 0;
    put(&w->out, "    func %s<ios%d>(", w->f->name, p->dialect);
    const nf_mil_port *ports = nf_mil_ports_of(p);
    for (int32_t i = 0, n = 0; i < p->ports.count; i++)
        if (ports[i].procedure == index && !ports[i].is_output) {
            if (n++) put(&w->out, ", ");
            put_type(w, &nf_mil_record_of(p, ports[i].value)->type);
            put(&w->out, " %s", ports[i].name);
        }
    put(&w->out, ") {\n");
    for (nf_mil_value v = w->f->first_value; v <= w->f->last_value; v++) {
        const nf_mil_record *record = nf_mil_record_of(p, v);
        if (record->origin == NF_MIL_FROM_OP) {
            const nf_mil_call *call = nf_mil_call_at(p, record->from);
            (call->row->attributes ? put_attributes : put_call)(w, call);
        } else if (record->origin != NF_MIL_FROM_INPUT && !record->inlined) {
            put_constant(w, v);
        }
    }
    put(&w->out, "    } -> (");
    for (int32_t i = 0, n = 0; i < p->ports.count; i++)
        if (ports[i].procedure == index && ports[i].is_output) put(&w->out, "%s%s", n++ ? ", " : "", ports[i].name);
    put(&w->out, ");\n");
}

/* The versions are those of programs that were seen to compile. */
static void put_head(writer *w) {
    static const char *const info[][2] = {{"coremlc-component-MIL", "3510.2.1"},
                                          {"coremlc-version", "3505.4.1"},
                                          {"coremltools-component-milinternal", ""},
                                          {"coremltools-version", "9.0"}};
    put(&w->out, "program(%s)\n[buildInfo = dict<", w->p->dialect == NF_MIL_IOS16 ? "1.0" : "1.3");
    put_scalar_type(w, &w->out, "string");
    put(&w->out, ", ");
    put_scalar_type(w, &w->out, "string");
    put(&w->out, ">({");
    for (size_t i = 0; i < sizeof info / sizeof *info; i++)
        put(&w->out, "%s{\"%s\", \"%s\"}", i ? ", " : "", info[i][0], info[i][1]);
    put(&w->out, "})]\n{\n");
}

char *nf_mil_write_text(const nf_mil *p, int64_t *size) {
    writer w = {.p = p};
    put_head(&w);
    for (int32_t i = 0; i < p->functions.count; i++) put_function(&w, i);
    put(&w.out, "}\n");
    free(w.literals.at);
    *size = (int64_t)w.out.used;
    if (!w.out.failed && !w.literals.failed) return w.out.at;
    free(w.out.at);
    return NULL;
}
