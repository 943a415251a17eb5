/* SPDX-License-Identifier: Apache-2.0 */
/* Programs, procedures, values and the first error; see mil.h. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../core/half.h"
#include "inside.h"

/* --- errors and records */

int nf_mil_refuse(nf_mil *p, nf_status status, const char *format, ...) {
    if (p->status != NF_OK) return 0;
    va_list args;
    va_start(args, format);
    vsnprintf(p->message, sizeof p->message, format, args);
    va_end(args);
    p->status = status;
    return 0;
}

int nf_mil_refuse_call(nf_mil *p, const nf_mil_call *call, const char *format, ...) {
    char line[sizeof p->message], shape[96];
    size_t used = (size_t)snprintf(line, sizeof line, "%s(", call->row->name);
    for (int i = 0; i < NF_MIL_MAX_PARAMS && call->row->params[i].name; i++)
        for (int32_t n = 0; call->row->params[i].kind <= NF_MIL_PARAM_LIST && n < call->operand[i].count; n++) {
            const nf_mil_type *t = nf_mil_operand_type(p, &call->operand[i], n);
            int wrote = snprintf(line + used, sizeof line - used, "%s%s %s", i + n ? ", " : "", call->row->params[i].name,
                                 nf_mil_shape_text(shape, t));
            if (wrote > 0 && used + (size_t)wrote < sizeof line / 2) used += (size_t)wrote; /* the rule itself needs room */
        }
    used += (size_t)snprintf(line + used, sizeof line - used, "): ");
    va_list args;
    va_start(args, format);
    vsnprintf(line + used, sizeof line - used, format, args);
    va_end(args);
    return nf_mil_refuse(p, NF_ERR_ARGUMENT, "%s", line);
}

void *nf_mil_grow(nf_mil *p, nf_mil_list *list, size_t size) {
    if (list->count == list->room) {
        int32_t room = list->room ? 2 * list->room : 64;
        void *at = room <= NF_MIL_MAX_RECORDS ? realloc(list->at, (size_t)room * size) : NULL;
        if (!at) {
            nf_mil_refuse(p, NF_ERR_MEMORY, "the program has too many parts (%d)", list->count);
            return NULL;
        }
        list->at = at;
        list->room = room;
    }
    return memset((char *)list->at + (size_t)list->count++ * size, 0, size);
}

static int check_axes(nf_mil *p, const nf_mil_type *type, const char *what) {
    char shape[96];
    if (type->rank < 0 || type->rank > 4 || type->dtype < NF_MIL_FP16 || type->dtype > NF_MIL_BOOL)
        return nf_mil_refuse(p, NF_ERR_ARGUMENT, "%s: rank %d, dtype %d is no type", what, type->rank, type->dtype);
    for (int32_t i = 0; i < type->rank; i++) {
        int64_t limit = i == type->rank - 1 ? p->limits.width : p->limits.axis;
        if (type->dim[i] < 1 || type->dim[i] > limit)
            return nf_mil_refuse(p, NF_ERR_ARGUMENT, "%s: shape %s, axis %d must be from 1 to %lld", what,
                                 nf_mil_shape_text(shape, type), i, (long long)limit);
    }
    return 1;
}

static nf_mil_function *current(nf_mil *p) {
    if (p->status != NF_OK) return NULL;
    if (!p->open || p->finished) {
        nf_mil_refuse(p, NF_ERR_STATE, "no procedure is open");
        return NULL;
    }
    return nf_mil_function_at(p, p->functions.count - 1);
}

nf_mil_value nf_mil_add_value(nf_mil *p, nf_mil_type type, nf_mil_origin origin, int32_t from) {
    nf_mil_function *f = current(p);
    if (!f || (origin == NF_MIL_FROM_BLOB && !check_axes(p, &type, "a constant"))) return 0;
    nf_mil_record *record = nf_mil_grow(p, &p->values, sizeof *record);
    if (!record) return 0;
    *record = (nf_mil_record){.type = type, .origin = origin, .from = from, .procedure = p->functions.count - 1};
    return f->last_value = p->values.count;
}

nf_mil_type nf_mil_type_of(const nf_mil *p, nf_mil_value value) {
    return value > 0 && value <= p->values.count ? nf_mil_record_of(p, value)->type : (nf_mil_type){0};
}

static int check_value(nf_mil *p, nf_mil_value value, const char *what) {
    if (value < 1 || value > p->values.count || nf_mil_record_of(p, value)->procedure != p->functions.count - 1)
        return nf_mil_refuse(p, NF_ERR_ARGUMENT, "%s: value %d is not of this procedure", what, value);
    nf_mil_record_of(p, value)->uses++;
    return 1;
}

/* --- life */

nf_status nf_mil_new(nf_mil **out, nf_mil_dialect dialect, const nf_mil_limits *limits) {
    *out = NULL;
    if (dialect != NF_MIL_IOS16 && dialect != NF_MIL_IOS18)
        return nf_fail(NF_ERR_ARGUMENT, "MIL dialect %d is not known", dialect);
    nf_mil *p = calloc(1, sizeof *p);
    if (!p) return nf_fail(NF_ERR_MEMORY, "no memory for a MIL program");
    p->dialect = dialect;
    p->limits = limits ? *limits : nf_mil_device_limits;
    p->blob_end = 64; /* the header of the weight file */
    *out = p;
    return NF_OK;
}

void nf_mil_free(nf_mil *p) {
    if (!p) return;
    nf_mil_free_blobs(p);
    nf_mil_list *lists[] = {&p->values, &p->calls, &p->items, &p->ports, &p->blobs, &p->functions};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) free(lists[i]->at);
    free(p->text);
    free(p);
}

/* --- procedures and ports */

static int check_name(nf_mil *p, const char *name) {
    size_t length = name ? strlen(name) : 0;
    int good = length > 0 && length < NF_MIL_NAME && !(name[0] >= '0' && name[0] <= '9');
    for (size_t i = 0; good && i < length; i++)
        good = (name[i] >= 'a' && name[i] <= 'z') || (name[i] >= '0' && name[i] <= '9') || name[i] == '_';
    return good || nf_mil_refuse(p, NF_ERR_ARGUMENT, "name '%.60s': a-z, 0-9 and _ only, at most %d, no digit first",
                                 name ? name : "", NF_MIL_NAME - 1);
}

void nf_mil_begin(nf_mil *p, const char *name) {
    if (p->status != NF_OK || !check_name(p, name)) return;
    if (p->open || p->finished) {
        nf_mil_refuse(p, NF_ERR_STATE, "%s: a procedure is open, or the program is finished", name);
        return;
    }
    for (int32_t i = 0; i < p->functions.count; i++)
        if (!strcmp(nf_mil_function_at(p, i)->name, name))
            nf_mil_refuse(p, NF_ERR_ARGUMENT, "two procedures are called %s", name);
    if (p->functions.count >= p->limits.procedures)
        nf_mil_refuse(p, NF_ERR_ARGUMENT, "%s: more than %lld procedures", name, (long long)p->limits.procedures);
    nf_mil_function *f = p->status == NF_OK ? nf_mil_grow(p, &p->functions, sizeof *f) : NULL;
    if (!f) return;
    snprintf(f->name, sizeof f->name, "%s", name);
    f->first_value = p->values.count + 1;
    f->last_value = p->values.count;
    f->first_call = f->last_call = p->calls.count;
    p->open = 1;
}

static const char *describe(const nf_mil *p, const nf_mil_record *record) {
    if (record->origin == NF_MIL_FROM_INPUT) return nf_mil_ports_of(p)[record->from].name;
    return record->origin == NF_MIL_FROM_OP ? nf_mil_call_at(p, record->from)->row->name : "a constant";
}

void nf_mil_end(nf_mil *p) {
    nf_mil_function *f = current(p);
    if (!f) return;
    char shape[96];
    for (nf_mil_value v = f->first_value; v <= f->last_value; v++) {
        const nf_mil_record *record = nf_mil_record_of(p, v);
        if (!record->uses)
            nf_mil_refuse(p, NF_ERR_ARGUMENT, "%s: %s %s is never used", f->name, describe(p, record),
                          nf_mil_shape_text(shape, &record->type));
    }
    if (!f->about.outputs) nf_mil_refuse(p, NF_ERR_ARGUMENT, "%s has no output", f->name);
    p->open = 0;
}

/* An op's name, which gave zeros on an M1 (imperatormk/ane-train), or one that the text gives itself: op_3, weight_3, ... */
static int reserved(const char *name) {
    char stem[NF_MIL_NAME];
    snprintf(stem, sizeof stem, "%s", name);
    size_t length = strlen(stem);
    while (length && stem[length - 1] >= '0' && stem[length - 1] <= '9') length--;
    if (length && length < strlen(stem) && stem[length - 1] == '_') stem[length - 1] = 0;
    return nf_mil_find_op(stem) || !strcmp(stem, "weight") || !strcmp(stem, "scalar") || !strcmp(stem, "literal");
}

static nf_mil_port *add_port(nf_mil *p, const char *name, int is_output, const nf_mil_type *type) {
    if (!current(p) || !check_name(p, name) || !check_axes(p, type, name)) return NULL;
    if (reserved(name)) {
        nf_mil_refuse(p, NF_ERR_ARGUMENT, "port %s: the name of an op or of a value of the text", name);
        return NULL;
    }
    char shape[96];
    int64_t row = p->limits.row_values / (type->dtype == NF_MIL_FP32 ? 2 : 1);
    row = row > 1 ? row : 1;
    if (type->rank != 4 || (type->dtype != NF_MIL_FP16 && type->dtype != NF_MIL_FP32) || type->dim[3] % row) {
        nf_mil_refuse(p, NF_ERR_ARGUMENT, "port %s %s: must be fp16 or fp32 of rank 4, its last axis a multiple of %lld", name,
                      nf_mil_shape_text(shape, type), (long long)row);
        return NULL;
    }
    const nf_mil_port *others = nf_mil_ports_of(p);
    for (int32_t i = 0; i < p->ports.count; i++)
        if (others[i].procedure == p->functions.count - 1 &&
            (!strcmp(others[i].name, name) || (others[i].is_output == is_output && strcmp(others[i].name, name) > 0))) {
            nf_mil_refuse(p, NF_ERR_ARGUMENT, "port %s comes after %s: ports are declared in alphabetical order", name,
                          others[i].name);
            return NULL;
        }
    nf_mil_port *port = nf_mil_grow(p, &p->ports, sizeof *port);
    if (!port) return NULL;
    snprintf(port->name, sizeof port->name, "%s", name);
    port->procedure = p->functions.count - 1;
    port->is_output = is_output;
    return port;
}

nf_mil_value nf_mil_input(nf_mil *p, const char *name, nf_mil_type type) {
    nf_mil_port *port = add_port(p, name, 0, &type);
    if (!port) return 0;
    current(p)->about.inputs++;
    port->value = nf_mil_add_value(p, type, NF_MIL_FROM_INPUT, p->ports.count - 1);
    if (port->value) nf_mil_record_of(p, port->value)->port = p->ports.count;
    return port->value;
}

void nf_mil_output(nf_mil *p, const char *name, nf_mil_value value) {
    if (!current(p) || !check_value(p, value, name)) return;
    nf_mil_record *record = nf_mil_record_of(p, value);
    if (record->origin != NF_MIL_FROM_OP || record->port) {
        nf_mil_refuse(p, NF_ERR_ARGUMENT, "output %s: must be the result of an op, and of one output", name);
        return;
    }
    nf_mil_port *port = add_port(p, name, 1, &record->type);
    if (!port) return;
    port->value = value;
    record->port = p->ports.count;
    current(p)->about.outputs++;
}

/* --- constants without a blob, and ops */

nf_mil_value nf_mil_scalar(nf_mil *p, float value) {
    const nf_mil_function *f = current(p);
    if (!f) return 0;
    float rounded = nf_half_to_float(nf_float_to_half(value));
    for (nf_mil_value v = f->first_value; v <= f->last_value; v++)
        if (nf_mil_record_of(p, v)->origin == NF_MIL_FROM_SCALAR && nf_mil_record_of(p, v)->scalar == rounded) return v;
    if (!(rounded - rounded == 0.0f))
        return nf_mil_refuse(p, NF_ERR_ARGUMENT, "the scalar %g is not finite in fp16", (double)value);
    nf_mil_value made = nf_mil_add_value(p, (nf_mil_type){.dtype = NF_MIL_FP16}, NF_MIL_FROM_SCALAR, 0);
    if (made) nf_mil_record_of(p, made)->scalar = rounded;
    return made;
}

static int bind(nf_mil *p, nf_mil_call *call, int i, const nf_mil_arg *arg) {
    const nf_mil_param *param = &call->row->params[i];
    nf_mil_operand *operand = &call->operand[i];
    const char *op = call->row->name;
    if (param->kind == NF_MIL_PARAM_TEXT) {
        if (!arg->text || strlen(arg->text) >= sizeof operand->text)
            return nf_mil_refuse(p, NF_ERR_ARGUMENT, "%s: %s must be a short word", op, param->name);
        memcpy(operand->text, arg->text, strlen(arg->text) + 1);
        return 1;
    }
    int many = param->kind == NF_MIL_PARAM_LIST || param->kind == NF_MIL_PARAM_INTS;
    if (arg->text || !arg->items || arg->count < 1 || (!many && arg->count != 1))
        return nf_mil_refuse(p, NF_ERR_ARGUMENT, "%s: %s must be %s", op, param->name, many ? "a list" : "one value or number");
    operand->first = p->items.count;
    for (int32_t n = 0; n < arg->count; n++) {
        int is_value = param->kind <= NF_MIL_PARAM_LIST;
        if (is_value && !check_value(p, arg->items[n], op)) return 0;
        int32_t *item = nf_mil_grow(p, &p->items, sizeof *item);
        if (!item) return 0;
        *item = arg->items[n];
        operand->count++;
        if (is_value && call->row->attributes) nf_mil_record_of(p, arg->items[n])->inlined = 1;
        const nf_mil_type *type = is_value ? &nf_mil_record_of(p, arg->items[n])->type : NULL;
        if (type && !(param->dtypes >> type->dtype & 1))
            return nf_mil_refuse(p, NF_ERR_ARGUMENT, "%s: %s cannot be %s", op, param->name, nf_mil_dtype_name(type->dtype));
    }
    return 1;
}

static const nf_mil_arg *argument(const nf_mil_arg *args, int32_t count, const char *name) {
    const nf_mil_arg *found = NULL;
    for (int32_t n = 0; n < count; n++)
        if (!strcmp(args[n].name, name)) found = found ? NULL : &args[n];
    return found;
}

static int bind_all(nf_mil *p, nf_mil_call *call, const nf_mil_arg *args, int32_t count) {
    int32_t wanted = 0;
    for (const nf_mil_param *param = call->row->params; wanted < NF_MIL_MAX_PARAMS && param->name; param++, wanted++) {
        const nf_mil_arg *arg = argument(args, count, param->name);
        if (!arg) return nf_mil_refuse(p, NF_ERR_ARGUMENT, "%s: %s must be given, once", call->row->name, param->name);
        if (!bind(p, call, (int)wanted, arg)) return 0;
    }
    return wanted == count ||
           nf_mil_refuse(p, NF_ERR_ARGUMENT, "%s: %d arguments for %d parameters", call->row->name, count, wanted);
}

static void count_work(nf_mil *p, const nf_mil_call *call, const nf_mil_type *result) {
    nf_mil_procedure *about = &current(p)->about;
    about->ops++;
    if (call->row->work == NF_MIL_COMPUTES) about->element_values += nf_mil_size(result);
    if (call->row->work != NF_MIL_MULTIPLIES) return;
    const nf_mil_type *x = nf_mil_operand_type(p, &call->operand[0], 0), *y = nf_mil_operand_type(p, &call->operand[1], 0);
    int64_t inner = y->dim[1]; /* input channels of a convolution weight */
    if (!strcmp(call->row->name, "matmul")) inner = x->dim[x->rank - (nf_mil_items_of(p, &call->operand[2])[0] ? 2 : 1)];
    about->matrix_flops += 2 * inner * nf_mil_size(result);
}

/* Equal numbers, the same value, or two names of one constant in the weight file. */
static int same_item(const nf_mil *p, nf_mil_param_kind kind, int32_t a, int32_t b) {
    if (a == b || kind > NF_MIL_PARAM_LIST) return a == b;
    const nf_mil_record *x = nf_mil_record_of(p, a), *y = nf_mil_record_of(p, b);
    return x->origin == NF_MIL_FROM_BLOB && y->origin == NF_MIL_FROM_BLOB && x->from == y->from &&
           !memcmp(&x->type, &y->type, sizeof x->type);
}

/* The result of the same op on the same values, earlier in the procedure; 0 when there is none. */
static nf_mil_value made_before(const nf_mil *p, const nf_mil_function *f, const nf_mil_call *call) {
    for (int32_t k = f->first_call; k < f->last_call; k++) {
        const nf_mil_call *other = nf_mil_call_at(p, k);
        int equal = other->row == call->row;
        for (int n = 0; equal && n < NF_MIL_MAX_PARAMS && call->row->params[n].name; n++) {
            const nf_mil_operand *a = &other->operand[n], *b = &call->operand[n];
            equal = a->count == b->count && !strcmp(a->text, b->text);
            for (int32_t i = 0; equal && i < a->count; i++)
                equal = same_item(p, call->row->params[n].kind, nf_mil_items_of(p, a)[i], nf_mil_items_of(p, b)[i]);
        }
        if (equal) return other->result;
    }
    return 0;
}

nf_mil_value nf_mil_apply(nf_mil *p, const char *op, const nf_mil_arg *args, int32_t count) {
    nf_mil_function *f = current(p);
    if (!f) return 0;
    nf_mil_call call = {.row = nf_mil_find_op(op)};
    if (!call.row) return nf_mil_refuse(p, NF_ERR_ARGUMENT, "the op %.40s is not known", op);
    if (call.row->since > p->dialect)
        return nf_mil_refuse(p, NF_ERR_ARGUMENT, "%s is not in the dialect ios%d", op, p->dialect);
    int32_t items = p->items.count;
    if (!bind_all(p, &call, args, count)) return 0;
    nf_mil_value before = made_before(p, f, &call);
    if (before) {
        p->items.count = items;
        return before;
    }
    nf_mil_type result = {0};
    if (!call.row->rule(p, &call, &result) || !check_axes(p, &result, op)) return 0;
    nf_mil_call *kept = nf_mil_grow(p, &p->calls, sizeof *kept);
    if (!kept) return 0;
    call.result = nf_mil_add_value(p, result, NF_MIL_FROM_OP, p->calls.count - 1);
    *kept = call;
    f->last_call = p->calls.count;
    count_work(p, &call, &result);
    return call.result;
}

/* --- the end */

nf_status nf_mil_finish(nf_mil *p, const char **text, int64_t *size) {
    *text = NULL;
    *size = 0;
    if (p->open) nf_mil_refuse(p, NF_ERR_STATE, "a procedure is open");
    if (!p->functions.count) nf_mil_refuse(p, NF_ERR_STATE, "the program has no procedure");
    if (nf_mil_blob_bytes(p) > p->limits.blob_bytes)
        nf_mil_refuse(p, NF_ERR_ARGUMENT, "%lld bytes of weights in one program, at most %lld load",
                      (long long)nf_mil_blob_bytes(p), (long long)p->limits.blob_bytes);
    if (p->status == NF_OK && !p->finished) {
        p->finished = 1;
        p->text = nf_mil_write_text(p, size);
        if (!p->text) nf_mil_refuse(p, NF_ERR_MEMORY, "no memory for the text of the program");
    }
    if (p->status != NF_OK) return nf_fail(p->status, "%s", p->message);
    *text = p->text;
    *size = (int64_t)strlen(p->text);
    return NF_OK;
}

int32_t nf_mil_procedures(const nf_mil *p) { return p->functions.count; }

nf_status nf_mil_procedure_at(const nf_mil *p, int32_t index, nf_mil_procedure *out) {
    if (index < 0 || index >= p->functions.count) return nf_fail(NF_ERR_ARGUMENT, "there is no procedure %d", index);
    *out = nf_mil_function_at(p, index)->about;
    out->name = nf_mil_function_at(p, index)->name;
    return NF_OK;
}

nf_status nf_mil_port_at(const nf_mil *p, int32_t procedure, int is_output, int32_t index, const char **name,
                         nf_mil_type *type) {
    for (int32_t i = 0; i < p->ports.count; i++) {
        const nf_mil_port *port = nf_mil_ports_of(p) + i;
        if (port->procedure != procedure || port->is_output != (is_output != 0) || index-- > 0) continue;
        *name = port->name;
        *type = nf_mil_type_of(p, port->value);
        return NF_OK;
    }
    return nf_fail(NF_ERR_ARGUMENT, "procedure %d has no such port", procedure);
}
