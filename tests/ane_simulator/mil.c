/* SPDX-License-Identifier: Apache-2.0 */
/* The reader: text to functions with values and operations, constants from text or weight files, every shape compared with the
   rule of its operation, and the limits that are reported of the compiler. */
#include "mil.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct reader {
    const char *at, *end;
    int line;
    sim_program *program;
    const sim_file *files;
    int n_files;
} reader;

static void *grown(void *array, int n, size_t size) {
    if (n & (n - 1)) return array; /* room up to the next power of two */
    void *bigger = realloc(array, (size_t)(n ? 2 * n : 1) * size);
    if (!bigger) abort();
    return bigger;
}

/* The first error stays; the cursor goes to the end so that all loops end. */
__attribute__((format(printf, 2, 3))) static void fail(reader *r, const char *format, ...) {
    if (!*r->program->error) {
        int n = snprintf(r->program->error, sizeof r->program->error, "line %d: ", r->line);
        va_list args;
        va_start(args, format);
        vsnprintf(r->program->error + n, sizeof r->program->error - (size_t)n, format, args);
        va_end(args);
    }
    r->at = r->end;
}

static int peek(reader *r) {
    while (r->at < r->end) {
        if (isspace((unsigned char)*r->at))
            r->line += *r->at++ == '\n';
        else if (r->at + 1 < r->end && r->at[0] == '/' && r->at[1] == '/')
            while (r->at < r->end && *r->at != '\n') r->at++;
        else
            return (unsigned char)*r->at;
    }
    return 0;
}

static int take(reader *r, char c) {
    if (peek(r) != c) return 0;
    r->at++;
    return 1;
}

static void expect(reader *r, char c) {
    int found = peek(r);
    if (!take(r, c)) fail(r, "expected '%c', found '%c'", c, found ? found : '$');
}

static void word(reader *r, char *out, size_t size) {
    size_t n = 0;
    for (peek(r); r->at < r->end && (isalnum((unsigned char)*r->at) || *r->at == '_') && n + 1 < size; r->at++)
        out[n++] = *r->at;
    out[n] = '\0';
    if (n == 0) fail(r, "expected a name");
}

static void quoted(reader *r, char *out, size_t size) {
    size_t n = 0;
    expect(r, '"');
    for (; r->at < r->end && *r->at != '"' && n + 1 < size; r->at++) out[n++] = *r->at;
    out[n] = '\0';
    expect(r, '"');
}

/* Numbers end inside the text: a byte 0 follows it. */
static double number(reader *r) {
    char *end;
    peek(r);
    double x = strtod(r->at, &end);
    if (end == r->at)
        fail(r, "expected a number");
    else
        r->at = end;
    return x;
}

static sim_type read_type(reader *r, const char *first) {
    sim_type t = {0};
    char name[32];
    snprintf(name, sizeof name, "%s", first);
    int tensor = strcmp(first, "tensor") == 0;
    if (tensor) {
        expect(r, '<');
        word(r, name, sizeof name);
        expect(r, ',');
        expect(r, '[');
        while (r->at < r->end && peek(r) != ']') {
            if (t.rank == SIM_RANK) {
                fail(r, "more than %d axes", SIM_RANK);
                break;
            }
            t.shape[t.rank++] = (int64_t)number(r);
            take(r, ',');
        }
        expect(r, ']');
        expect(r, '>');
    } else if (!r->program->modern) {
        fail(r, "program(1.0) spells scalars tensor<%s, []>", first);
    }
    int dtype = sim_dtype_of(name);
    if (dtype < 0) fail(r, "unknown type '%s'", name);
    t.dtype = dtype < 0 ? SIM_F32 : (sim_dtype)dtype;
    for (int i = 0; i < t.rank; i++)
        if (t.shape[i] < 1) fail(r, "an axis of length %lld", (long long)t.shape[i]);
    return t;
}

static int new_value(sim_function *f, const char *name, sim_type type) {
    f->values = grown(f->values, f->n_values, sizeof *f->values);
    sim_value *v = &f->values[f->n_values];
    *v = (sim_value){.type = type};
    snprintf(v->name, sizeof v->name, "%s", name);
    return f->n_values++;
}

static int find_value(const sim_function *f, const char *name) {
    for (int i = f->n_values - 1; i >= 0; i--)
        if (strcmp(f->values[i].name, name) == 0) return i;
    return -1;
}

static float *new_data(reader *r, const sim_type *type) {
    int64_t n = sim_count(type);
    float *data = n > 0 && n <= (int64_t)1 << 31 ? calloc((size_t)n, sizeof *data) : NULL;
    if (!data) fail(r, "a tensor of %lld values", (long long)n);
    return data;
}

static uint64_t little(const unsigned char *bytes, int n) {
    uint64_t x = 0;
    for (int i = n - 1; i >= 0; i--) x = x << 8 | bytes[i];
    return x;
}

static float element(sim_dtype dtype, const unsigned char *p) {
    _Float16 half;
    float single;
    switch (dtype) {
    case SIM_F16:
        memcpy(&half, p, 2);
        return (float)half;
    case SIM_F32:
        memcpy(&single, p, 4);
        return single;
    case SIM_I8:
        return (float)(int8_t)*p;
    default:
        return (float)*p;
    }
}

/* The file's own header and one record: sentinel, type, size and place of the data (MILBlob storage format, version 2). */
static void from_file(reader *r, float *data, const sim_type *type, const char *path, uint64_t offset) {
    static const struct {
        sim_dtype dtype;
        uint32_t code;
        int bytes;
    } codes[] = {{SIM_F16, 1, 2}, {SIM_F32, 2, 4}, {SIM_U8, 3, 1}, {SIM_I8, 4, 1}};
    const sim_file *file = NULL;
    for (int i = 0; i < r->n_files; i++)
        if (strcmp(r->files[i].name, path) == 0) file = &r->files[i];
    if (!file) {
        fail(r, "no weight file %s", path);
        return;
    }
    if (file->size < 64 || little(file->bytes + 4, 4) != 2 || offset % 64 || offset < 64 || offset > file->size - 64) {
        fail(r, "%s: no record at %llu", path, (unsigned long long)offset);
        return;
    }
    const unsigned char *record = file->bytes + offset;
    uint64_t size = little(record + 8, 8), place = little(record + 16, 8), n = (uint64_t)sim_count(type);
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        if (codes[i].dtype != type->dtype || little(record + 4, 4) != codes[i].code) continue;
        if (little(record, 4) != 0xdeadbeef || size != n * (uint64_t)codes[i].bytes || place > file->size ||
            size > file->size - place)
            break;
        for (uint64_t k = 0; k < n; k++) data[k] = element(type->dtype, file->bytes + place + k * (uint64_t)codes[i].bytes);
        return;
    }
    fail(r, "%s: the record at %llu is not %llu values of %s", path, (unsigned long long)offset, (unsigned long long)n,
         sim_dtype_name(type->dtype));
}

static int read_literal(reader *r, sim_function *f, const char *first);

static void read_blobfile(reader *r, sim_function *f, float *data, const sim_type *type) {
    char name[32];
    int path = -1, offset = -1;
    expect(r, '(');
    for (int i = 0; i < 2 && r->at < r->end; i++) {
        char first[32];
        word(r, name, sizeof name);
        expect(r, '=');
        word(r, first, sizeof first);
        int value = read_literal(r, f, first);
        *(strcmp(name, "path") == 0 ? &path : &offset) = value;
        if (i == 0) expect(r, ',');
    }
    expect(r, ')');
    if (path < 0 || offset < 0 || !f->values[path].text || f->values[offset].type.dtype != SIM_U64)
        fail(r, "BLOBFILE wants path and offset");
    else if (data)
        from_file(r, data, type, f->values[path].text, (uint64_t)f->values[offset].data[0]);
}

static float read_scalar(reader *r) {
    int c = peek(r);
    char name[16];
    if (c != 't' && c != 'f') return (float)number(r);
    word(r, name, sizeof name);
    if (strcmp(name, "true") != 0 && strcmp(name, "false") != 0) fail(r, "unknown value '%s'", name);
    return strcmp(name, "true") == 0;
}

static void read_numbers(reader *r, float *data, const sim_type *type) {
    int64_t n = sim_count(type), k = 0;
    int list = take(r, '[');
    for (; r->at < r->end && k < n && peek(r) != ']'; k++) {
        data[k] = sim_round(type->dtype, read_scalar(r));
        take(r, ',');
    }
    if (list) expect(r, ']');
    if (k != n) fail(r, "%lld values for a tensor of %lld", (long long)k, (long long)n);
}

/* TYPE(...): a constant without a name; -1 after an error. */
static int read_literal(reader *r, sim_function *f, const char *first) {
    sim_type type = read_type(r, first);
    int at = new_value(f, "", type);
    char text[512];
    f->values[at].constant = 1;
    expect(r, '(');
    if (type.dtype == SIM_STRING) {
        quoted(r, text, sizeof text);
        f->values[at].text = strdup(text);
    } else {
        float *data = new_data(r, &type);
        f->values[at].data = data;
        if (r->end - r->at > 8 && peek(r) == 'B' && strncmp(r->at, "BLOBFILE", 8) == 0) {
            r->at += 8;
            read_blobfile(r, f, data, &type);
        } else if (data) {
            read_numbers(r, data, &type);
        }
    }
    expect(r, ')');
    return *r->program->error ? -1 : at;
}

static void read_operand(reader *r, sim_function *f, sim_arg *a) {
    char name[SIM_NAME];
    word(r, name, sizeof name);
    int c = peek(r), value = c == '<' || c == '(' ? read_literal(r, f, name) : find_value(f, name);
    if (value < 0) fail(r, "unknown value '%s'", name);
    a->values = grown(a->values, a->n, sizeof *a->values);
    a->values[a->n++] = value;
}

static void read_args(reader *r, sim_function *f, sim_op *op, char close) {
    while (r->at < r->end && peek(r) != close) {
        sim_arg a = {0};
        word(r, a.name, sizeof a.name);
        expect(r, '=');
        if (take(r, '(')) {
            a.tuple = 1;
            while (r->at < r->end && peek(r) != ')') {
                read_operand(r, f, &a);
                take(r, ',');
            }
            expect(r, ')');
        } else {
            read_operand(r, f, &a);
        }
        if (strcmp(a.name, "name") == 0)
            free(a.values);
        else if (op->n_args < SIM_ARGS)
            op->args[op->n_args++] = a;
        else
            free(a.values), fail(r, "%s has too many arguments", op->kind);
        take(r, ',');
    }
    expect(r, close);
}

static int same_type(const sim_type *a, const sim_type *b) {
    return a->dtype == b->dtype && a->rank == b->rank && memcmp(a->shape, b->shape, sizeof *a->shape * (size_t)a->rank) == 0;
}

static void describe(char *out, size_t size, const sim_type *t) {
    int n = snprintf(out, size, "%s[", sim_dtype_name(t->dtype));
    for (int i = 0; i < t->rank && n < (int)size - 24; i++)
        n += snprintf(out + n, size - (size_t)n, "%s%lld", i ? "," : "", (long long)t->shape[i]);
    snprintf(out + n, size - (size_t)n, "]");
}

static void check_limits(reader *r, const sim_value *v) {
    for (int i = 0; i < v->type.rank; i++)
        if (v->type.shape[i] > sim_get(i + 1 == v->type.rank ? "width_limit" : "axis_limit"))
            fail(r, "%s: axis %d has the length %lld", v->name, i, (long long)v->type.shape[i]);
}

/* The value of a const is its own; other results get memory, and for constant operands at once a value. */
static void finish_op(reader *r, sim_function *f, sim_op *op) {
    sim_type *out = calloc((size_t)op->n_out, sizeof *out);
    char error[160] = "";
    op->rule = sim_find_rule(op->kind);
    if (!op->rule)
        fail(r, "the compiler has no op %s", op->kind);
    else if (op->rule->since_modern && !r->program->modern)
        fail(r, "program(1.0) has no op %s", op->kind);
    else if (!op->rule->shape(f, op, out, error))
        fail(r, "%s: %s", op->kind, error);
    for (int i = 0; i < op->n_out && !*r->program->error; i++) {
        sim_value *v = &f->values[op->out[i]];
        if (!same_type(&v->type, &out[i])) {
            char wanted[96], got[96];
            describe(wanted, sizeof wanted, &out[i]);
            describe(got, sizeof got, &v->type);
            fail(r, "%s: %s is declared %s, the op gives %s", op->kind, v->name, got, wanted);
        }
        check_limits(r, v);
        v->data = new_data(r, &v->type);
    }
    free(out);
    if (*r->program->error || strncmp(op->kind, "constexpr_", 10) != 0) return;
    op->rule->run(f, op);
    for (int i = 0; i < op->n_out; i++) f->values[op->out[i]].constant = 1;
}

static void finish_const(reader *r, sim_function *f, sim_op *op) {
    sim_value *to = &f->values[op->out[0]];
    for (int i = 0; i < op->n_args && !*r->program->error; i++) {
        sim_value *from = &f->values[op->args[i].values[0]];
        if (strcmp(op->args[i].name, "val") != 0) continue;
        if (!same_type(&from->type, &to->type)) fail(r, "%s: val has another type", to->name);
        to->data = from->data, to->text = from->text, to->constant = 1;
        from->data = NULL, from->text = NULL;
        return;
    }
    fail(r, "const %s has no val", to->name);
}

static void read_op(reader *r, sim_function *f) {
    sim_op op = {.line = r->line};
    do {
        char first[32], name[SIM_NAME];
        word(r, first, sizeof first);
        sim_type type = read_type(r, first);
        word(r, name, sizeof name);
        if (find_value(f, name) >= 0) fail(r, "%s is there already", name);
        op.out = grown(op.out, op.n_out, sizeof *op.out);
        op.out[op.n_out++] = new_value(f, name, type);
    } while (take(r, ','));
    expect(r, '=');
    word(r, op.kind, sizeof op.kind);
    expect(r, '(');
    read_args(r, f, &op, ')');
    if (take(r, '[')) read_args(r, f, &op, ']');
    expect(r, ';');
    int is_const = strcmp(op.kind, "const") == 0;
    if (!*r->program->error) (is_const ? finish_const : finish_op)(r, f, &op);
    f->ops = grown(f->ops, f->n_ops, sizeof *f->ops);
    f->ops[f->n_ops++] = op;
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* The device numbers ports in the alphabetical order of their names. */
static void sort_ports(sim_function *f, int *ports, int n) {
    char **names = malloc((size_t)n * sizeof *names + 1);
    for (int i = 0; i < n; i++) names[i] = f->values[ports[i]].name;
    qsort(names, (size_t)n, sizeof *names, by_name);
    for (int i = 0; i < n; i++) ports[i] = find_value(f, names[i]);
    free(names);
}

static void check_port(reader *r, const sim_value *v) {
    if (v->type.rank > 4) fail(r, "port %s has %d axes", v->name, v->type.rank);
    if (v->type.dtype != SIM_F16 && v->type.dtype != SIM_F32)
        fail(r, "port %s is %s; ports are fp16 or fp32", v->name, sim_dtype_name(v->type.dtype));
}

static void read_inputs(reader *r, sim_function *f) {
    expect(r, '(');
    while (r->at < r->end && peek(r) != ')') {
        char first[32], name[SIM_NAME];
        word(r, first, sizeof first);
        sim_type type = read_type(r, first);
        word(r, name, sizeof name);
        f->inputs = grown(f->inputs, f->n_inputs, sizeof *f->inputs);
        int at = f->inputs[f->n_inputs++] = new_value(f, name, type);
        check_port(r, &f->values[at]);
        check_limits(r, &f->values[at]);
        f->values[at].data = new_data(r, &type);
        take(r, ',');
    }
    expect(r, ')');
}

static void read_outputs(reader *r, sim_function *f) {
    expect(r, '-');
    expect(r, '>');
    expect(r, '(');
    while (r->at < r->end && peek(r) != ')') {
        char name[SIM_NAME];
        word(r, name, sizeof name);
        int at = find_value(f, name);
        if (at < 0)
            fail(r, "unknown result '%s'", name);
        else if (f->values[at].constant)
            fail(r, "the result %s is constant", name);
        else
            check_port(r, &f->values[at]);
        f->outputs = grown(f->outputs, f->n_outputs, sizeof *f->outputs);
        f->outputs[f->n_outputs++] = at;
        take(r, ',');
    }
    expect(r, ')');
    expect(r, ';');
}

static void read_function(reader *r, sim_function *f) {
    char word_of[32];
    word(r, f->name, sizeof f->name);
    expect(r, '<');
    word(r, word_of, sizeof word_of);
    if (strcmp(word_of, r->program->modern ? "ios18" : "ios16") != 0)
        fail(r, "opset %s does not belong to this dialect", word_of);
    expect(r, '>');
    read_inputs(r, f);
    expect(r, '{');
    while (r->at < r->end && peek(r) != '}') read_op(r, f);
    expect(r, '}');
    read_outputs(r, f);
    if (*r->program->error) return;
    sort_ports(f, f->inputs, f->n_inputs);
    sort_ports(f, f->outputs, f->n_outputs);
}

static void read_head(reader *r) {
    char name[32];
    word(r, name, sizeof name);
    expect(r, '(');
    double version = number(r);
    expect(r, ')');
    if (strcmp(name, "program") != 0 || (version != 1.0 && version != 1.3)) fail(r, "neither program(1.0) nor program(1.3)");
    r->program->modern = version > 1.0;
    if (r->program->modern && sim_get("old_chip")) fail(r, "this chip takes program(1.0)");
    if (take(r, '[')) { /* buildInfo: nothing in it counts */
        for (int depth = 1; r->at < r->end && depth > 0; r->at++) depth += *r->at == '[' ? 1 : *r->at == ']' ? -1 : 0;
    }
}

sim_program *sim_read(const char *text, size_t size, const sim_file *files, int n_files) {
    sim_program *p = calloc(1, sizeof *p);
    char *copy = malloc(size + 1), name[32];
    if (!p || !copy) abort();
    memcpy(copy, text, size);
    copy[size] = '\0';
    reader r = {copy, copy + size, 1, p, files, n_files};
    read_head(&r);
    expect(&r, '{');
    while (r.at < r.end && peek(&r) != '}') {
        word(&r, name, sizeof name);
        if (strcmp(name, "func") != 0) fail(&r, "expected func, found %s", name);
        p->functions = grown(p->functions, p->n_functions, sizeof *p->functions);
        p->functions[p->n_functions] = (sim_function){0};
        read_function(&r, &p->functions[p->n_functions++]);
    }
    expect(&r, '}');
    if (!*p->error && p->n_functions == 0) fail(&r, "no function");
    if (!*p->error && p->n_functions > 1 && sim_get("one_procedure")) fail(&r, "more than one function");
    free(copy);
    return p;
}

static void free_function(sim_function *f) {
    for (int i = 0; i < f->n_values; i++) free(f->values[i].data), free(f->values[i].text);
    for (int i = 0; i < f->n_ops; i++) {
        for (int k = 0; k < f->ops[i].n_args; k++) free(f->ops[i].args[k].values);
        free(f->ops[i].out);
    }
    free(f->values), free(f->ops), free(f->inputs), free(f->outputs);
}

void sim_free(sim_program *p) {
    if (!p) return;
    for (int i = 0; i < p->n_functions; i++) free_function(&p->functions[i]);
    free(p->functions);
    free(p);
}
