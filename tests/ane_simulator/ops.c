/* SPDX-License-Identifier: Apache-2.0 */
/* The operations: for each a rule for the shapes of its results and the arithmetic in plain loops. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mil.h"

#define REFUSE(...) return snprintf(error, 160, __VA_ARGS__), 0

static const struct {
    const char *name;
    sim_dtype dtype;
} dtypes[] = {{"fp16", SIM_F16},  {"fp32", SIM_F32},   {"int8", SIM_I8},    {"uint8", SIM_U8},  {"int16", SIM_I16},
              {"int32", SIM_I32}, {"uint32", SIM_U32}, {"uint64", SIM_U64}, {"bool", SIM_BOOL}, {"string", SIM_STRING}};

const char *sim_dtype_name(sim_dtype dtype) { return dtypes[dtype].name; }

int sim_dtype_of(const char *name) {
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (strcmp(dtypes[i].name, name) == 0) return (int)dtypes[i].dtype;
    return -1;
}

int64_t sim_count(const sim_type *t) {
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++) {
        if (t->shape[i] < 1 || t->shape[i] > ((int64_t)1 << 40) / n) return -1;
        n *= t->shape[i];
    }
    return n;
}

static float whole(float x, float low, float high) {
    float y = nearbyintf(x);
    return y < low ? low : y > high ? high : y;
}

float sim_round(sim_dtype dtype, float x) {
    switch (dtype) {
    case SIM_F16:
        return (float)(_Float16)x;
    case SIM_I8:
        return whole(x, -128, 127);
    case SIM_U8:
        return whole(x, 0, 255);
    case SIM_BOOL:
        return x != 0.0f;
    default:
        return x;
    }
}

/* --- arguments */

static sim_arg *argument(sim_op *op, const char *name) {
    for (int i = 0; i < op->n_args; i++)
        if (strcmp(op->args[i].name, name) == 0) return &op->args[i];
    return NULL;
}

static sim_value *operand(sim_function *f, sim_op *op, const char *name) {
    sim_arg *a = argument(op, name);
    return a && a->n == 1 ? &f->values[a->values[0]] : NULL;
}

static sim_value *result(sim_function *f, sim_op *op) { return &f->values[op->out[0]]; }

static sim_value *parameter(sim_function *f, sim_op *op, const char *name) {
    sim_value *v = operand(f, op, name);
    return v && v->constant && v->data ? v : NULL;
}

static int64_t integer(sim_function *f, sim_op *op, const char *name, int64_t otherwise) {
    sim_value *v = parameter(f, op, name);
    return v ? (int64_t)v->data[0] : otherwise;
}

static float real(sim_function *f, sim_op *op, const char *name, float otherwise) {
    sim_value *v = parameter(f, op, name);
    return v ? v->data[0] : otherwise;
}

/* An axis from 0 on; -1 when it is out of range. */
static int axis_of(sim_function *f, sim_op *op, int rank, int64_t otherwise) {
    int64_t a = integer(f, op, "axis", otherwise);
    if (a < 0) a += rank;
    return a >= 0 && a < rank ? (int)a : -1;
}

static int is_real(sim_dtype d) { return d == SIM_F16 || d == SIM_F32; }

static void store(sim_value *v, int64_t i, float x) { v->data[i] = sim_round(v->type.dtype, x); }

static void strides_of(const sim_type *t, int64_t *strides) {
    int64_t step = 1;
    for (int i = t->rank - 1; i >= 0; i--) strides[i] = step, step *= t->shape[i];
}

/* Call visit for each place of `t`, with the offset of each of two operands whose strides are given. */
typedef struct walk {
    int64_t at[SIM_RANK], a, b;
} walk;

static int64_t advance(walk *w, const sim_type *t, const int64_t *a, const int64_t *b) {
    for (int i = t->rank - 1; i >= 0; i--) {
        w->a += a[i], w->b += b[i];
        if (++w->at[i] < t->shape[i]) return 1;
        w->at[i] = 0, w->a -= a[i] * t->shape[i], w->b -= b[i] * t->shape[i];
    }
    return 0;
}

/* --- element by element */

static int broadcast(const sim_type *a, const sim_type *b, sim_type *out) {
    out->rank = a->rank > b->rank ? a->rank : b->rank;
    for (int i = 0; i < out->rank; i++) {
        int64_t x = i < a->rank ? a->shape[a->rank - 1 - i] : 1, y = i < b->rank ? b->shape[b->rank - 1 - i] : 1;
        if (x != y && x != 1 && y != 1) return 0;
        out->shape[out->rank - 1 - i] = x > y ? x : y;
    }
    return 1;
}

static void broadcast_strides(const sim_type *in, const sim_type *out, int64_t *strides) {
    int64_t own[SIM_RANK];
    strides_of(in, own);
    for (int i = 0; i < out->rank; i++) {
        int k = i - (out->rank - in->rank);
        strides[i] = k < 0 || in->shape[k] == 1 ? 0 : own[k];
    }
}

enum { ADD, SUB, MUL, DIV, MAX, MIN, POW, GREATER, GREATER_EQUAL, LESS, LESS_EQUAL, EQUAL, NOT_EQUAL };

static int shape_binary(sim_function *f, sim_op *op, sim_type *out, char *error) {
    sim_value *x = operand(f, op, "x"), *y = operand(f, op, "y");
    if (!x || !y) REFUSE("wants x and y");
    if (x->type.dtype != y->type.dtype)
        REFUSE("x is %s, y is %s", sim_dtype_name(x->type.dtype), sim_dtype_name(y->type.dtype));
    if (!broadcast(&x->type, &y->type, out)) REFUSE("the shapes of x and y do not fit");
    out->dtype = op->rule->variant >= GREATER ? SIM_BOOL : x->type.dtype;
    return 1;
}

static float binary(int kind, float a, float b) {
    switch (kind) {
    case ADD:
        return a + b;
    case SUB:
        return a - b;
    case MUL:
        return a * b;
    case DIV:
        return a / b;
    case MAX:
        return a > b ? a : b;
    case MIN:
        return a < b ? a : b;
    case POW:
        return powf(a, b);
    case GREATER:
        return a > b;
    case GREATER_EQUAL:
        return a >= b;
    case LESS:
        return a < b;
    case LESS_EQUAL:
        return a <= b;
    case EQUAL:
        return a == b;
    default:
        return a != b;
    }
}

static void run_binary(sim_function *f, sim_op *op) {
    sim_value *x = operand(f, op, "x"), *y = operand(f, op, "y"), *out = result(f, op);
    int64_t a[SIM_RANK], b[SIM_RANK], i = 0;
    walk w = {0};
    broadcast_strides(&x->type, &out->type, a);
    broadcast_strides(&y->type, &out->type, b);
    do store(out, i++, binary(op->rule->variant, x->data[w.a], y->data[w.b]));
    while (advance(&w, &out->type, a, b));
}

enum { SIGMOID, TANH, EXP, RELU, SQRT, RSQRT, ABS, ERF, SILU, SIGN, ROUND, SQUARE, LOG, INVERSE, IDENTITY, CLIP };

static int shape_unary(sim_function *f, sim_op *op, sim_type *out, char *error) {
    sim_value *x = operand(f, op, "x");
    if (!x || !is_real(x->type.dtype)) REFUSE("wants a real x");
    *out = x->type;
    return 1;
}

static float unary(int kind, float x, float alpha, float beta) {
    switch (kind) {
    case SIGMOID:
        return 1.0f / (1.0f + expf(-x));
    case TANH:
        return tanhf(x);
    case EXP:
        return expf(x);
    case RELU:
        return x > 0.0f ? x : 0.0f;
    case SQRT:
        return sqrtf(x);
    case RSQRT:
        return 1.0f / sqrtf(x + alpha);
    case ABS:
        return fabsf(x);
    case ERF:
        return erff(x);
    case SILU:
        return x / (1.0f + expf(-x));
    case SIGN:
        return (float)((x > 0.0f) - (x < 0.0f));
    case ROUND:
        return nearbyintf(x);
    case SQUARE:
        return x * x;
    case LOG:
        return logf(x + alpha);
    case INVERSE:
        return 1.0f / (x + alpha);
    case CLIP:
        return x < alpha ? alpha : x > beta ? beta : x;
    default:
        return x;
    }
}

static void run_unary(sim_function *f, sim_op *op) {
    sim_value *x = operand(f, op, "x"), *out = result(f, op);
    int clip = op->rule->variant == CLIP;
    float alpha = real(f, op, clip ? "alpha" : "epsilon", 0.0f), beta = real(f, op, "beta", 0.0f);
    for (int64_t i = 0, n = sim_count(&out->type); i < n; i++) store(out, i, unary(op->rule->variant, x->data[i], alpha, beta));
}

static int shape_cast(sim_function *f, sim_op *op, sim_type *out, char *error) {
    sim_value *x = operand(f, op, "x"), *to = operand(f, op, "dtype");
    int dtype = to && to->text ? sim_dtype_of(to->text) : -1;
    if (!x || dtype < 0) REFUSE("wants x and a known dtype");
    if (dtype == SIM_I32 || dtype == SIM_U32 || dtype == SIM_U64 || dtype == SIM_STRING) REFUSE("to %s is refused", to->text);
    *out = x->type;
    out->dtype = (sim_dtype)dtype;
    return 1;
}

static int shape_select(sim_function *f, sim_op *op, sim_type *out, char *error) {
    sim_value *cond = operand(f, op, "cond"), *a = operand(f, op, "a"), *b = operand(f, op, "b");
    if (!cond || !a || !b || cond->type.dtype != SIM_BOOL || a->type.dtype != b->type.dtype)
        REFUSE("wants a bool cond, a and b");
    sim_type both;
    if (!broadcast(&a->type, &b->type, &both) || !broadcast(&both, &cond->type, out)) REFUSE("the shapes do not fit");
    out->dtype = a->type.dtype;
    return 1;
}

static void run_select(sim_function *f, sim_op *op) {
    sim_value *cond = operand(f, op, "cond"), *a = operand(f, op, "a"), *b = operand(f, op, "b"), *out = result(f, op);
    int64_t sa[SIM_RANK], sb[SIM_RANK], sc[SIM_RANK], none[SIM_RANK] = {0}, i = 0;
    walk w = {0}, c = {0};
    broadcast_strides(&a->type, &out->type, sa);
    broadcast_strides(&b->type, &out->type, sb);
    broadcast_strides(&cond->type, &out->type, sc);
    do {
        store(out, i++, cond->data[c.a] != 0.0f ? a->data[w.a] : b->data[w.b]);
        advance(&c, &out->type, sc, none);
    } while (advance(&w, &out->type, sa, sb));
}

/* --- products.  Sums are float32; what is too large for the device becomes infinite. */

static float product(float sum) {
    float limit = (float)sim_get("matmul_limit");
    return limit > 0.0f && fabsf(sum) > limit ? copysignf(INFINITY, sum) : sum;
}

/* out (M, N) = x (M, K) y (K, N), each row added up in `sums` (N). */
static void multiply(sim_value *out, int64_t at, const float *x, const float *y, int64_t M, int64_t K, int64_t N) {
    float *sums = malloc((size_t)N * sizeof *sums);
    for (int64_t m = 0; m < M; m++) {
        memset(sums, 0, (size_t)N * sizeof *sums);
        for (int64_t k = 0; k < K; k++)
            for (int64_t n = 0; n < N; n++) sums[n] += x[m * K + k] * y[k * N + n];
        for (int64_t n = 0; n < N; n++) sums[n] = product(sums[n]);
        for (int64_t n = 0; n < N; n++) store(out, at + m * N + n, sums[n]);
    }
    free(sums);
}

static float *transposed(const float *x, int64_t rows, int64_t columns) {
    float *out = malloc((size_t)(rows * columns) * sizeof *out);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < columns; k++) out[k * rows + i] = x[i * columns + k];
    return out;
}

/* The leading axes of a product. */
static sim_type leading(const sim_type *t) {
    sim_type out = *t;
    out.rank = t->rank - 2;
    return out;
}

static int shape_matmul(sim_function *f, sim_op *op, sim_type *out, char *error) {
    sim_value *x = operand(f, op, "x"), *y = operand(f, op, "y");
    if (!x || !y || x->type.rank < 2 || y->type.rank < 2) REFUSE("wants x and y with at least 2 axes");
    if (x->type.dtype != y->type.dtype || !is_real(x->type.dtype)) REFUSE("wants x and y of one real type");
    const int64_t *a = x->type.shape + x->type.rank - 2, *b = y->type.shape + y->type.rank - 2;
    int tx = integer(f, op, "transpose_x", 0) != 0, ty = integer(f, op, "transpose_y", 0) != 0;
    sim_type left = leading(&x->type), right = leading(&y->type);
    if (a[!tx] != b[ty]) REFUSE("%lld columns by %lld rows", (long long)a[!tx], (long long)b[ty]);
    if (!broadcast(&left, &right, out)) REFUSE("the leading axes do not fit");
    out->shape[out->rank] = a[tx], out->shape[out->rank + 1] = b[!ty];
    out->rank += 2, out->dtype = x->type.dtype;
    return 1;
}

static void run_matmul(sim_function *f, sim_op *op) {
    sim_value *x = operand(f, op, "x"), *y = operand(f, op, "y"), *out = result(f, op);
    int tx = integer(f, op, "transpose_x", 0) != 0, ty = integer(f, op, "transpose_y", 0) != 0;
    const int64_t *sx = x->type.shape + x->type.rank - 2, *sy = y->type.shape + y->type.rank - 2;
    int64_t M = sx[tx], K = sx[!tx], N = sy[!ty], a[SIM_RANK], b[SIM_RANK], batch = 0;
    sim_type left = leading(&x->type), right = leading(&y->type), all = leading(&out->type);
    walk w = {0};
    broadcast_strides(&left, &all, a);
    broadcast_strides(&right, &all, b);
    do {
        const float *px = x->data + w.a * M * K, *py = y->data + w.b * K * N;
        float *ox = tx ? transposed(px, K, M) : NULL, *oy = ty ? transposed(py, N, K) : NULL;
        multiply(out, batch++ * M * N, ox ? ox : px, oy ? oy : py, M, K, N);
        free(ox), free(oy);
    } while (advance(&w, &all, a, b));
}

/* x (..., K), weight (N, K), bias (N,): x weight^T + bias */
static int shape_linear(sim_function *f, sim_op *op, sim_type *out, char *error) {
    sim_value *x = operand(f, op, "x"), *w = operand(f, op, "weight"), *bias = operand(f, op, "bias");
    if (!x || !w || !w->constant || w->type.rank != 2 || x->type.rank < 1) REFUSE("wants x and a constant weight (N, K)");
    if (x->type.shape[x->type.rank - 1] != w->type.shape[1]) REFUSE("x and weight do not fit");
    if (bias && sim_count(&bias->type) != w->type.shape[0]) REFUSE("bias and weight do not fit");
    *out = x->type;
    out->shape[out->rank - 1] = w->type.shape[0];
    return 1;
}

static void run_linear(sim_function *f, sim_op *op) {
    sim_value *x = operand(f, op, "x"), *w = operand(f, op, "weight"), *bias = operand(f, op, "bias"), *out = result(f, op);
    int64_t K = w->type.shape[1], N = w->type.shape[0], M = sim_count(&x->type) / K;
    float *turned = transposed(w->data, N, K);
    multiply(out, 0, x->data, turned, M, K, N);
    for (int64_t i = 0; bias && i < M * N; i++) store(out, i, out->data[i] + bias->data[i % N]);
    free(turned);
}

static int all_are(sim_function *f, sim_op *op, const char *name, float wanted, float otherwise) {
    sim_value *v = parameter(f, op, name);
    for (int64_t i = 0; v && i < sim_count(&v->type); i++)
        if (v->data[i] != wanted) return 0;
    return v || otherwise == wanted;
}

/* x (B, C, H, W), weight (O, C, 1, 1): a product over channels */
static int shape_conv(sim_function *f, sim_op *op, sim_type *out, char *error) {
    sim_value *x = operand(f, op, "x"), *w = operand(f, op, "weight"), *pad = operand(f, op, "pad_type");
    if (!x || !w || x->type.rank != 4 || w->type.rank != 4) REFUSE("wants x and weight with 4 axes");
    if (argument(op, "bias")) REFUSE("has no bias on the device");
    if (x->type.dtype != w->type.dtype) REFUSE("x and weight have different types");
    if (w->type.shape[2] != 1 || w->type.shape[3] != 1) REFUSE("only 1x1 is known here");
    if (!all_are(f, op, "strides", 1, 1) || !all_are(f, op, "dilations", 1, 1) || !all_are(f, op, "pad", 0, 0))
        REFUSE("strides and dilations must be 1, pad 0");
    if (integer(f, op, "groups", 1) != 1) REFUSE("only one group is known here");
    if (pad && pad->text && strcmp(pad->text, "valid") != 0) REFUSE("pad_type must be valid");
    if (x->type.shape[1] != w->type.shape[1])
        REFUSE("%lld channels for a weight of %lld", (long long)x->type.shape[1], (long long)w->type.shape[1]);
    if (x->type.shape[1] > sim_get("conv_limit")) REFUSE("%lld input channels", (long long)x->type.shape[1]);
    *out = x->type;
    out->shape[1] = w->type.shape[0];
    return 1;
}

static void run_conv(sim_function *f, sim_op *op) {
    sim_value *x = operand(f, op, "x"), *w = operand(f, op, "weight"), *out = result(f, op);
    int64_t C = x->type.shape[1], O = w->type.shape[0], S = x->type.shape[2] * x->type.shape[3];
    for (int64_t b = 0; b < x->type.shape[0]; b++) multiply(out, b * O * S, w->data, x->data + b * C * S, O, C, S);
}

/* --- along axes */

enum { SUM, MEAN, HIGHEST, LOWEST, SUM_SQUARE };

static int marked_axes(sim_function *f, sim_op *op, int rank, int *marks) {
    sim_value *axes = parameter(f, op, "axes");
    memset(marks, 0, SIM_RANK * sizeof *marks);
    for (int64_t i = 0; axes && i < sim_count(&axes->type); i++) {
        int a = (int)axes->data[i] + (axes->data[i] < 0 ? rank : 0);
        if (a < 0 || a >= rank || marks[a]) return 0;
        marks[a] = 1;
    }
    return axes != NULL;
}

static int shape_reduce(sim_function *f, sim_op *op, sim_type *out, char *error) {
    sim_value *x = operand(f, op, "x");
    int marks[SIM_RANK], keep = integer(f, op, "keep_dims", 0) != 0;
    if (!x || !is_real(x->type.dtype)) REFUSE("wants a real x");
    if (!marked_axes(f, op, x->type.rank, marks)) REFUSE("wants constant axes of x");
    out->dtype = x->type.dtype, out->rank = 0;
    for (int i = 0; i < x->type.rank; i++)
        if (!marks[i] || keep) out->shape[out->rank++] = marks[i] ? 1 : x->type.shape[i];
    return 1;
}

static float step(int kind, float sum, float x) {
    switch (kind) {
    case HIGHEST:
        return x > sum ? x : sum;
    case LOWEST:
        return x < sum ? x : sum;
    case SUM_SQUARE:
        return sum + x * x;
    default:
        return sum + x;
    }
}

static void run_reduce(sim_function *f, sim_op *op) {
    sim_value *x = operand(f, op, "x"), *out = result(f, op);
    int marks[SIM_RANK], kind = op->rule->variant, half = sim_get("half_sums");
    int64_t to[SIM_RANK], from[SIM_RANK], place = 1, n = sim_count(&out->type), members = sim_count(&x->type) / n;
    marked_axes(f, op, x->type.rank, marks);
    strides_of(&x->type, from);
    for (int i = x->type.rank - 1; i >= 0; i--) to[i] = marks[i] ? 0 : place, place *= marks[i] ? 1 : x->type.shape[i];
    for (int64_t i = 0; i < n; i++) out->data[i] = kind == HIGHEST ? -INFINITY : kind == LOWEST ? INFINITY : 0.0f;
    walk w = {0};
    do {
        float sum = step(kind, out->data[w.a], x->data[w.b]);
        out->data[w.a] = half ? sim_round(SIM_F16, sum) : sum;
    } while (advance(&w, &x->type, to, from));
    for (int64_t i = 0; i < n; i++) store(out, i, kind == MEAN ? out->data[i] / (float)members : out->data[i]);
}

static int shape_softmax(sim_function *f, sim_op *op, sim_type *out, char *error) {
    if (!shape_unary(f, op, out, error)) return 0;
    if (axis_of(f, op, out->rank, -1) < 0) REFUSE("axis is out of range");
    return 1;
}

static void run_softmax(sim_function *f, sim_op *op) {
    sim_value *x = operand(f, op, "x"), *out = result(f, op);
    int axis = axis_of(f, op, x->type.rank, -1);
    int64_t strides[SIM_RANK], n = x->type.shape[axis], total = sim_count(&x->type);
    strides_of(&x->type, strides);
    int64_t s = strides[axis];
    for (int64_t outer = 0; outer < total; outer += n * s)
        for (int64_t i = outer; i < outer + s; i++) {
            float top = -INFINITY, sum = 0.0f;
            for (int64_t k = 0; k < n; k++) top = fmaxf(top, x->data[i + k * s]);
            for (int64_t k = 0; k < n; k++) sum += out->data[i + k * s] = expf(x->data[i + k * s] - top);
            for (int64_t k = 0; k < n; k++) store(out, i + k * s, out->data[i + k * s] / sum);
        }
}

/* --- places */

static int shape_concat(sim_function *f, sim_op *op, sim_type *out, char *error) {
    sim_arg *values = argument(op, "values");
    if (!values || !values->tuple || values->n < 1) REFUSE("wants values=(a, b)");
    if (sim_get("no_concat")) REFUSE("this chip has none");
    if (integer(f, op, "interleave", 0)) REFUSE("interleave is not known here");
    *out = f->values[values->values[0]].type;
    int axis = axis_of(f, op, out->rank, out->rank);
    if (axis < 0) REFUSE("axis is out of range");
    out->shape[axis] = 0;
    for (int k = 0; k < values->n; k++) {
        sim_type *t = &f->values[values->values[k]].type;
        if (t->rank != out->rank || t->dtype != out->dtype) REFUSE("value %d has another type", k);
        for (int i = 0; i < t->rank; i++)
            if (i != axis && t->shape[i] != out->shape[i]) REFUSE("value %d has another shape", k);
        out->shape[axis] += t->shape[axis];
    }
    return 1;
}

/* Copy `rows` pieces between a whole and one of its parts along an axis. */
static void copy_rows(float *to, int64_t to_step, const float *from, int64_t from_step, int64_t length, int64_t rows) {
    for (int64_t i = 0; i < rows; i++) memcpy(to + i * to_step, from + i * from_step, (size_t)length * sizeof *to);
}

static int64_t inner_of(const sim_type *t, int axis) {
    int64_t n = 1;
    for (int i = axis + 1; i < t->rank; i++) n *= t->shape[i];
    return n;
}

static void run_concat(sim_function *f, sim_op *op) {
    sim_value *out = result(f, op);
    sim_arg *values = argument(op, "values");
    int axis = axis_of(f, op, out->type.rank, 0);
    int64_t inner = inner_of(&out->type, axis), whole_step = out->type.shape[axis] * inner, at = 0;
    for (int k = 0; k < values->n; k++) {
        sim_value *v = &f->values[values->values[k]];
        int64_t length = v->type.shape[axis] * inner;
        copy_rows(out->data + at, whole_step, v->data, length, length, sim_count(&out->type) / whole_step);
        at += length;
    }
}

static int shape_split(sim_function *f, sim_op *op, sim_type *out, char *error) {
    sim_value *x = operand(f, op, "x"), *sizes = parameter(f, op, "split_sizes");
    int axis = x ? axis_of(f, op, x->type.rank, SIM_RANK) : -1;
    if (axis < 0) REFUSE("wants x and one of its axes");
    int64_t n = sizes ? sim_count(&sizes->type) : integer(f, op, "num_splits", 0), sum = 0;
    if (n != op->n_out) REFUSE("%d results of %lld parts", op->n_out, (long long)n);
    if (!sizes && x->type.shape[axis] % n) REFUSE("%lld does not divide %lld", (long long)n, (long long)x->type.shape[axis]);
    for (int i = 0; i < op->n_out; i++) {
        out[i] = x->type;
        out[i].shape[axis] = sizes ? (int64_t)sizes->data[i] : x->type.shape[axis] / n;
        sum += out[i].shape[axis];
    }
    if (sum != x->type.shape[axis]) REFUSE("the parts add up to %lld of %lld", (long long)sum, (long long)x->type.shape[axis]);
    return 1;
}

static void run_split(sim_function *f, sim_op *op) {
    sim_value *x = operand(f, op, "x");
    int axis = axis_of(f, op, x->type.rank, 0);
    int64_t inner = inner_of(&x->type, axis), whole_step = x->type.shape[axis] * inner, at = 0;
    for (int i = 0; i < op->n_out; i++) {
        sim_value *out = &f->values[op->out[i]];
        int64_t length = out->type.shape[axis] * inner;
        copy_rows(out->data, length, x->data + at, whole_step, length, sim_count(&x->type) / whole_step);
        at += length;
    }
}

/* Where a slice begins, how far it steps, and the axes that it drops. */
typedef struct cut {
    int64_t begin[SIM_RANK], size[SIM_RANK], stride[SIM_RANK];
    int squeeze[SIM_RANK];
} cut;

static float at_axis(const sim_value *v, int i, float otherwise) {
    return v && i < sim_count(&v->type) ? v->data[i] : otherwise;
}

static int cut_by_size(sim_function *f, sim_op *op, const sim_type *t, cut *c) {
    sim_value *begin = parameter(f, op, "begin"), *size = parameter(f, op, "size");
    if (!begin || !size || sim_count(&begin->type) != t->rank || sim_count(&size->type) != t->rank) return 0;
    for (int i = 0; i < t->rank; i++) {
        c->begin[i] = (int64_t)begin->data[i];
        c->size[i] = size->data[i] == -1 ? t->shape[i] - c->begin[i] : (int64_t)size->data[i];
        c->stride[i] = 1;
    }
    return 1;
}

static int cut_by_index(sim_function *f, sim_op *op, const sim_type *t, cut *c) {
    sim_value *begin = parameter(f, op, "begin"), *end = parameter(f, op, "end"), *stride = parameter(f, op, "stride");
    sim_value *from_first = parameter(f, op, "begin_mask"), *to_last = parameter(f, op, "end_mask");
    sim_value *squeeze = parameter(f, op, "squeeze_mask");
    if (!begin || !end || sim_count(&begin->type) != t->rank || sim_count(&end->type) != t->rank) return 0;
    for (int i = 0; i < t->rank; i++) {
        int64_t n = t->shape[i], b = (int64_t)begin->data[i], e = (int64_t)end->data[i];
        b = at_axis(from_first, i, 0) != 0 ? 0 : b < 0 ? b + n : b;
        e = at_axis(to_last, i, 0) != 0 ? n : e < 0 ? e + n : e;
        c->squeeze[i] = at_axis(squeeze, i, 0) != 0;
        if (c->squeeze[i]) e = b + 1;
        c->begin[i] = b, c->stride[i] = (int64_t)at_axis(stride, i, 1);
        c->size[i] = c->stride[i] > 0 ? (e - b + c->stride[i] - 1) / c->stride[i] : 0;
    }
    return 1;
}

static int read_cut(sim_function *f, sim_op *op, const sim_type *t, cut *c) {
    *c = (cut){0};
    if (!(op->rule->variant ? cut_by_size : cut_by_index)(f, op, t, c)) return 0;
    for (int i = 0; i < t->rank; i++)
        if (c->begin[i] < 0 || c->size[i] < 1 || c->begin[i] + (c->size[i] - 1) * c->stride[i] >= t->shape[i]) return 0;
    return 1;
}

static int shape_slice(sim_function *f, sim_op *op, sim_type *out, char *error) {
    sim_value *x = operand(f, op, "x");
    cut c;
    if (!x || !read_cut(f, op, &x->type, &c)) REFUSE("wants x and a constant range inside it");
    out->dtype = x->type.dtype, out->rank = 0;
    for (int i = 0; i < x->type.rank; i++)
        if (!c.squeeze[i]) out->shape[out->rank++] = c.size[i];
    return 1;
}

/* out, whatever its axes are called, = x at `begin` with `strides` over `shape` */
static void gather_places(sim_value *out, const float *x, const sim_type *shape, const int64_t *strides) {
    int64_t none[SIM_RANK] = {0}, i = 0;
    walk w = {0};
    do out->data[i++] = x[w.a];
    while (advance(&w, shape, strides, none));
}

static void run_slice(sim_function *f, sim_op *op) {
    sim_value *x = operand(f, op, "x");
    cut c;
    read_cut(f, op, &x->type, &c);
    int64_t strides[SIM_RANK], begin = 0;
    sim_type shape = x->type;
    strides_of(&x->type, strides);
    for (int i = 0; i < shape.rank; i++)
        begin += c.begin[i] * strides[i], strides[i] *= c.stride[i], shape.shape[i] = c.size[i];
    gather_places(result(f, op), x->data + begin, &shape, strides);
}

static int shape_transpose(sim_function *f, sim_op *op, sim_type *out, char *error) {
    sim_value *x = operand(f, op, "x"), *perm = parameter(f, op, "perm");
    int used = 0;
    if (!x || !perm || sim_count(&perm->type) != x->type.rank) REFUSE("wants x and a constant perm of its axes");
    *out = x->type;
    for (int i = 0; i < out->rank; i++) {
        int p = (int)perm->data[i] + (perm->data[i] < 0 ? out->rank : 0);
        if (p < 0 || p >= out->rank || used >> p & 1) REFUSE("perm is no permutation");
        used |= 1 << p, out->shape[i] = x->type.shape[p];
    }
    return 1;
}

static void run_transpose(sim_function *f, sim_op *op) {
    sim_value *x = operand(f, op, "x"), *perm = parameter(f, op, "perm"), *out = result(f, op);
    int64_t own[SIM_RANK], strides[SIM_RANK];
    strides_of(&x->type, own);
    for (int i = 0; i < out->type.rank; i++) strides[i] = own[(int)perm->data[i] + (perm->data[i] < 0 ? out->type.rank : 0)];
    gather_places(out, x->data, &out->type, strides);
}

static int shape_reshape(sim_function *f, sim_op *op, sim_type *out, char *error) {
    sim_value *x = operand(f, op, "x"), *shape = parameter(f, op, "shape");
    if (!x || !shape || sim_count(&shape->type) > SIM_RANK) REFUSE("wants x and a constant shape");
    int free_axis = -1;
    int64_t known = 1;
    out->dtype = x->type.dtype, out->rank = (int)sim_count(&shape->type);
    for (int i = 0; i < out->rank; i++) {
        out->shape[i] = (int64_t)shape->data[i];
        if (out->shape[i] == -1 && free_axis < 0)
            free_axis = i;
        else
            known *= out->shape[i];
    }
    if (free_axis >= 0 && known > 0) out->shape[free_axis] = sim_count(&x->type) / known;
    if (sim_count(out) != sim_count(&x->type))
        REFUSE("%lld values into %lld", (long long)sim_count(&x->type), (long long)sim_count(out));
    return 1;
}

/* expand_dims (variant 1) and squeeze */
static int shape_axes(sim_function *f, sim_op *op, sim_type *out, char *error) {
    sim_value *x = operand(f, op, "x"), *axes = parameter(f, op, "axes");
    int marks[SIM_RANK], expand = op->rule->variant, at = 0;
    int rank = x && axes ? x->type.rank + (expand ? (int)sim_count(&axes->type) : 0) : SIM_RANK + 1;
    if (rank > SIM_RANK || !marked_axes(f, op, rank, marks)) REFUSE("wants x and constant axes");
    out->dtype = x->type.dtype, out->rank = 0;
    for (int i = 0; i < rank; i++) {
        if (expand)
            out->shape[out->rank++] = marks[i] ? 1 : x->type.shape[at++];
        else if (!marks[i])
            out->shape[out->rank++] = x->type.shape[i];
        else if (x->type.shape[i] != 1)
            REFUSE("axis %d is not 1", i);
    }
    return 1;
}

static void run_copy(sim_function *f, sim_op *op) {
    sim_value *x = operand(f, op, "x"), *out = result(f, op);
    for (int64_t i = 0, n = sim_count(&out->type); i < n; i++) store(out, i, x->data[i]);
}

static int shape_tile(sim_function *f, sim_op *op, sim_type *out, char *error) {
    sim_value *x = operand(f, op, "x"), *reps = parameter(f, op, "reps");
    if (!x || !reps || sim_count(&reps->type) != x->type.rank) REFUSE("wants x and constant reps for each axis");
    *out = x->type;
    for (int i = 0; i < out->rank; i++) out->shape[i] *= (int64_t)reps->data[i];
    return 1;
}

static void run_tile(sim_function *f, sim_op *op) {
    sim_value *x = operand(f, op, "x"), *out = result(f, op);
    int64_t strides[SIM_RANK], to[SIM_RANK];
    strides_of(&x->type, strides);
    strides_of(&out->type, to);
    for (int64_t i = 0, n = sim_count(&out->type); i < n; i++) {
        int64_t from = 0;
        for (int a = 0; a < x->type.rank; a++) from += i / to[a] % out->type.shape[a] % x->type.shape[a] * strides[a];
        out->data[i] = x->data[from];
    }
}

/* --- quantised values */

/* scale and zero_point are scalars, or vectors along `axis`; the blockwise form has one scale for each block. */
static float factor(const sim_value *v, const sim_type *t, int64_t i, int axis, float otherwise) {
    if (!v) return otherwise;
    int64_t n = sim_count(&v->type);
    return v->data[n == 1 ? 0 : i / inner_of(t, axis) % t->shape[axis]];
}

static float block_factor(const sim_value *v, const sim_type *t, int64_t i, float otherwise) {
    int64_t strides[SIM_RANK], own[SIM_RANK], at = 0;
    if (!v) return otherwise;
    strides_of(t, strides);
    strides_of(&v->type, own);
    for (int a = 0; a < t->rank; a++) at += i / strides[a] % t->shape[a] / (t->shape[a] / v->type.shape[a]) * own[a];
    return v->data[at];
}

static int shape_affine(sim_function *f, sim_op *op, sim_type *out, char *error) {
    sim_value *q = parameter(f, op, "quantized_data"), *scale = parameter(f, op, "scale");
    if (!q || !scale || !is_real(scale->type.dtype)) REFUSE("wants constant quantized_data and a real scale");
    if (q->type.dtype != SIM_I8 && q->type.dtype != SIM_U8) REFUSE("quantized_data is %s", sim_dtype_name(q->type.dtype));
    int axis = axis_of(f, op, q->type.rank, 0);
    if (axis < 0 || (sim_count(&scale->type) != 1 && sim_count(&scale->type) != q->type.shape[axis]))
        REFUSE("scale and axis do not fit");
    *out = q->type;
    out->dtype = scale->type.dtype;
    return 1;
}

static void run_affine(sim_function *f, sim_op *op) {
    sim_value *q = operand(f, op, "quantized_data"), *out = result(f, op);
    sim_value *scale = operand(f, op, "scale"), *zero = operand(f, op, "zero_point");
    int axis = axis_of(f, op, q->type.rank, 0);
    for (int64_t i = 0, n = sim_count(&q->type); i < n; i++)
        store(out, i, (q->data[i] - factor(zero, &q->type, i, axis, 0)) * factor(scale, &q->type, i, axis, 1));
}

static int shape_blockwise(sim_function *f, sim_op *op, sim_type *out, char *error) {
    sim_value *q = parameter(f, op, "data"), *scale = parameter(f, op, "scale");
    if (!q || !scale || q->type.rank != scale->type.rank) REFUSE("wants constant data and a scale with as many axes");
    for (int i = 0; i < q->type.rank; i++)
        if (q->type.shape[i] % scale->type.shape[i]) REFUSE("axis %d is not whole blocks", i);
    *out = q->type;
    out->dtype = scale->type.dtype;
    return 1;
}

static void run_blockwise(sim_function *f, sim_op *op) {
    sim_value *q = operand(f, op, "data"), *scale = operand(f, op, "scale"), *offset = operand(f, op, "offset"),
              *out = result(f, op);
    for (int64_t i = 0, n = sim_count(&q->type); i < n; i++)
        store(out, i, (q->data[i] - block_factor(offset, &q->type, i, 0)) * block_factor(scale, &q->type, i, 1));
}

/* quantize (variant 1): round(x / scale) + zero_point; dequantize: (x - zero_point) * scale */
static int shape_quantize(sim_function *f, sim_op *op, sim_type *out, char *error) {
    sim_value *x = operand(f, op, "input"), *scale = parameter(f, op, "scale"), *to = operand(f, op, "output_dtype");
    if (!x || !scale) REFUSE("wants input and a constant scale");
    *out = x->type;
    out->dtype = scale->type.dtype;
    if (!op->rule->variant)
        return x->type.dtype == SIM_I8 || x->type.dtype == SIM_U8 || (snprintf(error, 160, "input is no int8"), 0);
    if (!to || !to->text || (strcmp(to->text, "int8") != 0 && strcmp(to->text, "uint8") != 0))
        REFUSE("output_dtype is int8 or uint8");
    out->dtype = (sim_dtype)sim_dtype_of(to->text);
    return 1;
}

static void run_quantize(sim_function *f, sim_op *op) {
    sim_value *x = operand(f, op, "input"), *out = result(f, op);
    sim_value *scale = operand(f, op, "scale"), *zero = operand(f, op, "zero_point");
    int axis = axis_of(f, op, x->type.rank, 0);
    for (int64_t i = 0, n = sim_count(&x->type); i < n; i++) {
        float s = factor(scale, &x->type, i, axis, 1), z = factor(zero, &x->type, i, axis, 0);
        store(out, i, op->rule->variant ? nearbyintf(x->data[i] / s) + z : (x->data[i] - z) * s);
    }
}

/* --- attention as one op: the mask has no effect on the device */

static int shape_attention(sim_function *f, sim_op *op, sim_type *out, char *error) {
    sim_value *q = operand(f, op, "query"), *k = operand(f, op, "key"), *v = operand(f, op, "value");
    if (!q || !k || !v || q->type.rank != 4 || k->type.rank != 4 || v->type.rank != 4)
        REFUSE("wants query, key and value with 4 axes");
    for (int i = 0; i < 2; i++)
        if (q->type.shape[i] != k->type.shape[i] || k->type.shape[i] != v->type.shape[i]) REFUSE("batches or heads differ");
    if (q->type.shape[3] != k->type.shape[3] || k->type.shape[2] != v->type.shape[2]) REFUSE("the shapes do not fit");
    *out = q->type;
    out->shape[3] = v->type.shape[3];
    return 1;
}

static void attend(sim_value *out, const float *q, const sim_value *k, const sim_value *v, int64_t head, int64_t row,
                   const float *mask) {
    int64_t T = k->type.shape[2], D = k->type.shape[3], E = v->type.shape[3];
    const float *keys = k->data + head * T * D, *values = v->data + head * T * E;
    float *p = malloc((size_t)T * sizeof *p), top = -INFINITY, sum = 0.0f;
    for (int64_t t = 0; t < T; t++) {
        p[t] = mask ? mask[t] : 0.0f;
        for (int64_t d = 0; d < D; d++) p[t] += q[d] * keys[t * D + d] / sqrtf((float)D);
        top = fmaxf(top, p[t]);
    }
    for (int64_t t = 0; t < T; t++) sum += p[t] = expf(p[t] - top);
    for (int64_t e = 0; e < E; e++) {
        float x = 0.0f;
        for (int64_t t = 0; t < T; t++) x += p[t] / sum * values[t * E + e];
        store(out, (head * out->type.shape[2] + row) * E + e, x);
    }
    free(p);
}

static void run_attention(sim_function *f, sim_op *op) {
    sim_value *q = operand(f, op, "query"), *k = operand(f, op, "key"), *v = operand(f, op, "value");
    sim_value *mask = sim_get("ignore_mask") ? NULL : operand(f, op, "attn_mask");
    int64_t S = q->type.shape[2], D = q->type.shape[3], T = k->type.shape[2], rows = mask ? sim_count(&mask->type) / T : 0;
    for (int64_t i = 0; i < sim_count(&q->type) / D; i++)
        attend(result(f, op), q->data + i * D, k, v, i / S, i % S, mask ? mask->data + i % rows * T : NULL);
}

/* x normalised over `axes`, times gamma plus beta */
static int shape_layer_norm(sim_function *f, sim_op *op, sim_type *out, char *error) {
    int marks[SIM_RANK];
    if (!shape_unary(f, op, out, error)) return 0;
    if (!marked_axes(f, op, out->rank, marks) || !marks[out->rank - 1]) REFUSE("is known here over the last axes");
    for (int i = 1; i < out->rank; i++)
        if (marks[i - 1] && !marks[i]) REFUSE("is known here over the last axes");
    return 1;
}

static void run_layer_norm(sim_function *f, sim_op *op) {
    sim_value *x = operand(f, op, "x"), *out = result(f, op), *gamma = operand(f, op, "gamma"), *beta = operand(f, op, "beta");
    int marks[SIM_RANK];
    int64_t n = 1, total = sim_count(&x->type);
    marked_axes(f, op, x->type.rank, marks);
    for (int i = 0; i < x->type.rank; i++) n *= marks[i] ? x->type.shape[i] : 1;
    for (int64_t row = 0; row < total; row += n) {
        float mean = 0.0f, square = 0.0f;
        for (int64_t i = 0; i < n; i++) mean += x->data[row + i] / (float)n;
        for (int64_t i = 0; i < n; i++) square += (x->data[row + i] - mean) * (x->data[row + i] - mean) / (float)n;
        float by = 1.0f / sqrtf(square + real(f, op, "epsilon", 1e-5f));
        for (int64_t i = 0; i < n; i++)
            store(out, row + i,
                  (x->data[row + i] - mean) * by * (gamma ? gamma->data[i] : 1.0f) + (beta ? beta->data[i] : 0.0f));
    }
}

/* --- the table.  What is missing is refused: gather, scatter, cumsum, gelu and others were seen not to compile. */

/* clang-format off */
static const sim_rule rules[] = {
    {"add", 0, shape_binary, run_binary, ADD}, {"sub", 0, shape_binary, run_binary, SUB},
    {"mul", 0, shape_binary, run_binary, MUL}, {"real_div", 0, shape_binary, run_binary, DIV},
    {"maximum", 0, shape_binary, run_binary, MAX}, {"minimum", 0, shape_binary, run_binary, MIN},
    {"pow", 0, shape_binary, run_binary, POW},
    {"greater", 0, shape_binary, run_binary, GREATER}, {"greater_equal", 0, shape_binary, run_binary, GREATER_EQUAL},
    {"less", 0, shape_binary, run_binary, LESS}, {"less_equal", 0, shape_binary, run_binary, LESS_EQUAL},
    {"equal", 0, shape_binary, run_binary, EQUAL}, {"not_equal", 0, shape_binary, run_binary, NOT_EQUAL},
    {"sigmoid", 0, shape_unary, run_unary, SIGMOID}, {"tanh", 0, shape_unary, run_unary, TANH},
    {"exp", 0, shape_unary, run_unary, EXP}, {"relu", 0, shape_unary, run_unary, RELU},
    {"sqrt", 0, shape_unary, run_unary, SQRT}, {"rsqrt", 0, shape_unary, run_unary, RSQRT},
    {"abs", 0, shape_unary, run_unary, ABS}, {"erf", 0, shape_unary, run_unary, ERF},
    {"silu", 0, shape_unary, run_unary, SILU}, {"sign", 0, shape_unary, run_unary, SIGN},
    {"round", 0, shape_unary, run_unary, ROUND}, {"square", 0, shape_unary, run_unary, SQUARE},
    {"log", 0, shape_unary, run_unary, LOG}, {"inverse", 0, shape_unary, run_unary, INVERSE},
    {"identity", 0, shape_unary, run_unary, IDENTITY}, {"clip", 0, shape_unary, run_unary, CLIP},
    {"cast", 1, shape_cast, run_copy, 0}, {"select", 0, shape_select, run_select, 0},
    {"matmul", 0, shape_matmul, run_matmul, 0}, {"linear", 0, shape_linear, run_linear, 0},
    {"conv", 0, shape_conv, run_conv, 0},
    {"reduce_sum", 0, shape_reduce, run_reduce, SUM}, {"reduce_mean", 0, shape_reduce, run_reduce, MEAN},
    {"reduce_max", 0, shape_reduce, run_reduce, HIGHEST}, {"reduce_min", 0, shape_reduce, run_reduce, LOWEST},
    {"reduce_sum_square", 0, shape_reduce, run_reduce, SUM_SQUARE},
    {"softmax", 0, shape_softmax, run_softmax, 0}, {"layer_norm", 0, shape_layer_norm, run_layer_norm, 0},
    {"concat", 0, shape_concat, run_concat, 0}, {"split", 0, shape_split, run_split, 0},
    {"slice_by_index", 0, shape_slice, run_slice, 0}, {"slice_by_size", 0, shape_slice, run_slice, 1},
    {"transpose", 0, shape_transpose, run_transpose, 0}, {"reshape", 0, shape_reshape, run_copy, 0},
    {"expand_dims", 0, shape_axes, run_copy, 1}, {"squeeze", 0, shape_axes, run_copy, 0}, {"tile", 0, shape_tile, run_tile, 0},
    {"constexpr_affine_dequantize", 0, shape_affine, run_affine, 0},
    {"constexpr_blockwise_shift_scale", 1, shape_blockwise, run_blockwise, 0},
    {"quantize", 1, shape_quantize, run_quantize, 1}, {"dequantize", 1, shape_quantize, run_quantize, 0},
    {"scaled_dot_product_attention", 1, shape_attention, run_attention, 0},
};
/* clang-format on */

const sim_rule *sim_find_rule(const char *name) {
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (strcmp(rules[i].name, name) == 0) return &rules[i];
    return NULL;
}

void sim_run(sim_function *f) {
    for (int i = 0; i < f->n_ops; i++)
        if (f->ops[i].rule && !f->values[f->ops[i].out[0]].constant) f->ops[i].rule->run(f, &f->ops[i]);
}
