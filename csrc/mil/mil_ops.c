/* SPDX-License-Identifier: Apache-2.0 */
/* The ops: one row each, with parameters, the dialect from which it exists, and the rule that gives the result's type.
   Names, parameters and rules are those of Apple's operator definitions in coremltools (ops/defs/iOS15 to iOS18); the tests
   build every op there too. A row says all parameters, also those with a default. */
#include <string.h>

#include "inside.h"

/* The types of the first two values, and the numbers of a parameter. */
static const nf_mil_type *first(nf_mil *p, const nf_mil_call *c) { return nf_mil_operand_type(p, &c->operand[0], 0); }
static const nf_mil_type *second(nf_mil *p, const nf_mil_call *c) { return nf_mil_operand_type(p, &c->operand[1], 0); }
static const int32_t *numbers(nf_mil *p, const nf_mil_call *c, int i) { return nf_mil_items_of(p, &c->operand[i]); }

static int is_constant(nf_mil *p, const nf_mil_call *c, int i) {
    const nf_mil_record *record = nf_mil_record_of(p, numbers(p, c, i)[0]);
    return record->origin == NF_MIL_FROM_SCALAR || record->origin == NF_MIL_FROM_BLOB;
}

static int same(nf_mil *p, const nf_mil_call *c, nf_mil_type *out) {
    *out = *first(p, c);
    return 1;
}

/* Shapes side by side from the last axis: equal, or one of them is 1. */
static int broadcast(nf_mil *p, const nf_mil_call *c, const nf_mil_type *x, const nf_mil_type *y, int32_t skip,
                     nf_mil_type *out) {
    int32_t rank = x->rank > y->rank ? x->rank : y->rank;
    for (int32_t i = skip; i < rank; i++) { /* counted from the end */
        int64_t a = i < x->rank ? x->dim[x->rank - 1 - i] : 1, b = i < y->rank ? y->dim[y->rank - 1 - i] : 1;
        if (a != b && a != 1 && b != 1) return nf_mil_refuse_call(p, c, "the shapes do not go together");
        out->dim[rank - 1 - i] = a == 1 ? b : a;
    }
    out->rank = rank;
    out->dtype = x->dtype;
    return x->dtype == y->dtype ||
           nf_mil_refuse_call(p, c, "%s and %s", nf_mil_dtype_name(x->dtype), nf_mil_dtype_name(y->dtype));
}

static int pair(nf_mil *p, const nf_mil_call *c, nf_mil_type *out) {
    return broadcast(p, c, first(p, c), second(p, c), 0, out);
}

/* 1x1 convolutions without padding or steps are all that is written. */
static int conv(nf_mil *p, const nf_mil_call *c, nf_mil_type *out) {
    const nf_mil_type *x = first(p, c), *w = second(p, c);
    if (x->rank != 4 || w->rank != 4 || w->dim[1] != x->dim[1]) return nf_mil_refuse_call(p, c, "channels do not match");
    if (w->dim[2] != 1 || w->dim[3] != 1) return nf_mil_refuse_call(p, c, "only 1x1 windows");
    if (x->dim[1] > p->limits.conv_inputs)
        return nf_mil_refuse_call(p, c, "at most %lld input channels", (long long)p->limits.conv_inputs);
    static const int32_t wanted[3][4] = {{1, 1}, {0, 0, 0, 0}, {1, 1}};
    static const int place[3] = {2, 4, 5}, length[3] = {2, 4, 2};
    int plain = !strcmp(c->operand[3].text, "valid") && numbers(p, c, 6)[0] == 1;
    for (int i = 0; i < 3; i++)
        plain = plain && c->operand[place[i]].count == length[i] &&
                !memcmp(numbers(p, c, place[i]), wanted[i], (size_t)length[i] * sizeof(int32_t));
    if (!plain) return nf_mil_refuse_call(p, c, "only strides and dilations 1, no padding, one group");
    *out = (nf_mil_type){x->dtype, 4, {x->dim[0], w->dim[0], x->dim[2], x->dim[3]}};
    return 1;
}

static int matmul(nf_mil *p, const nf_mil_call *c, nf_mil_type *out) {
    const nf_mil_type *x = first(p, c), *y = second(p, c);
    if (x->rank < 2 || y->rank < 2) return nf_mil_refuse_call(p, c, "both must be matrices");
    int tx = numbers(p, c, 2)[0] != 0, ty = numbers(p, c, 3)[0] != 0;
    int64_t inner = x->dim[x->rank - (tx ? 2 : 1)], other = y->dim[y->rank - (ty ? 1 : 2)];
    if (inner != other) return nf_mil_refuse_call(p, c, "inner sizes %lld and %lld", (long long)inner, (long long)other);
    if (!broadcast(p, c, x, y, 2, out)) return 0;
    out->dim[out->rank - 2] = x->dim[x->rank - (tx ? 1 : 2)];
    out->dim[out->rank - 1] = y->dim[y->rank - (ty ? 2 : 1)];
    return 1;
}

static int reshape(nf_mil *p, const nf_mil_call *c, nf_mil_type *out) {
    const nf_mil_operand *shape = &c->operand[1];
    if (shape->count > 4) return nf_mil_refuse_call(p, c, "rank %d is more than 4", shape->count);
    out->dtype = first(p, c)->dtype;
    out->rank = shape->count;
    for (int32_t i = 0; i < shape->count; i++) out->dim[i] = numbers(p, c, 1)[i];
    char text[96];
    for (int32_t i = 0; i < shape->count; i++)
        if (out->dim[i] < 1) return nf_mil_refuse_call(p, c, "shape %s", nf_mil_shape_text(text, out));
    return nf_mil_size(out) == nf_mil_size(first(p, c)) ||
           nf_mil_refuse_call(p, c, "%s has another size", nf_mil_shape_text(text, out));
}

static int transpose(nf_mil *p, const nf_mil_call *c, nf_mil_type *out) {
    const nf_mil_type *x = first(p, c);
    *out = *x;
    int seen = 0;
    for (int32_t i = 0; i < c->operand[1].count && i < x->rank; i++) {
        int32_t axis = numbers(p, c, 1)[i];
        if (axis < 0 || axis >= x->rank) return nf_mil_refuse_call(p, c, "perm has axis %d", axis);
        seen |= 1 << axis;
        out->dim[i] = x->dim[axis];
    }
    return (c->operand[1].count == x->rank && seen == (1 << x->rank) - 1) ||
           nf_mil_refuse_call(p, c, "perm must name each of %d axes once", x->rank);
}

static int slice(nf_mil *p, const nf_mil_call *c, nf_mil_type *out) {
    const nf_mil_type *x = first(p, c);
    if (c->operand[1].count != x->rank || c->operand[2].count != x->rank)
        return nf_mil_refuse_call(p, c, "begin and size need %d numbers", x->rank);
    *out = *x;
    for (int32_t i = 0; i < x->rank; i++) {
        int64_t begin = numbers(p, c, 1)[i], size = numbers(p, c, 2)[i];
        if (begin < 0 || size < 1 || begin + size > x->dim[i])
            return nf_mil_refuse_call(p, c, "axis %d: %lld values from %lld on", i, (long long)size, (long long)begin);
        out->dim[i] = size;
    }
    return 1;
}

static int axis_of(nf_mil *p, const nf_mil_call *c, int32_t given, int32_t rank, int32_t *axis) {
    *axis = given < 0 ? given + rank : given;
    return (*axis >= 0 && *axis < rank) || nf_mil_refuse_call(p, c, "axis %d of rank %d", given, rank);
}

static int concat(nf_mil *p, const nf_mil_call *c, nf_mil_type *out) {
    int32_t axis;
    *out = *first(p, c);
    if (numbers(p, c, 2)[0]) return nf_mil_refuse_call(p, c, "interleave is not written");
    if (!axis_of(p, c, numbers(p, c, 1)[0], out->rank, &axis)) return 0;
    for (int32_t n = 1; n < c->operand[0].count; n++) {
        const nf_mil_type *x = nf_mil_operand_type(p, &c->operand[0], n);
        int equal = x->rank == out->rank && x->dtype == out->dtype;
        for (int32_t i = 0; equal && i < x->rank; i++) equal = i == axis || x->dim[i] == out->dim[i];
        if (!equal) return nf_mil_refuse_call(p, c, "only axis %d may differ", axis);
        out->dim[axis] += x->dim[axis];
    }
    return 1;
}

static int softmax(nf_mil *p, const nf_mil_call *c, nf_mil_type *out) {
    int32_t axis;
    *out = *first(p, c);
    return axis_of(p, c, numbers(p, c, 1)[0], out->rank, &axis);
}

static int reduce(nf_mil *p, const nf_mil_call *c, nf_mil_type *out) {
    const nf_mil_type *x = first(p, c);
    int gone[4] = {0}, keep = numbers(p, c, 2)[0] != 0;
    for (int32_t i = 0; i < c->operand[1].count; i++) {
        int32_t axis;
        if (!axis_of(p, c, numbers(p, c, 1)[i], x->rank, &axis)) return 0;
        gone[axis] = 1;
    }
    out->dtype = x->dtype;
    out->rank = 0;
    for (int32_t i = 0; i < x->rank; i++)
        if (!gone[i] || keep) out->dim[out->rank++] = gone[i] ? 1 : x->dim[i];
    return 1;
}

static int clip(nf_mil *p, const nf_mil_call *c, nf_mil_type *out) {
    if (!is_constant(p, c, 1) || !is_constant(p, c, 2) || second(p, c)->rank || nf_mil_operand_type(p, &c->operand[2], 0)->rank)
        return nf_mil_refuse_call(p, c, "alpha and beta must be constant scalars");
    return same(p, c, out);
}

static int cast(nf_mil *p, const nf_mil_call *c, nf_mil_type *out) {
    *out = *first(p, c);
    for (nf_mil_dtype d = NF_MIL_FP16; d <= NF_MIL_FP32; d++)
        if (!strcmp(c->operand[1].text, nf_mil_dtype_name(d))) {
            out->dtype = d;
            return 1;
        }
    return nf_mil_refuse_call(p, c, "dtype '%s': fp16 or fp32", c->operand[1].text);
}

/* One scale for all values, or one for each channel of `axis` 1; fp16 on the other side. */
static int check_scale(nf_mil *p, const nf_mil_call *c) {
    const nf_mil_type *scale = nf_mil_operand_type(p, &c->operand[1], 0);
    return (is_constant(p, c, 1) && scale->rank == 0) || nf_mil_refuse_call(p, c, "scale must be a constant scalar");
}

static int quantize(nf_mil *p, const nf_mil_call *c, nf_mil_type *out) {
    *out = *first(p, c);
    out->dtype = NF_MIL_INT8;
    return check_scale(p, c) && (!strcmp(c->operand[2].text, "int8") || nf_mil_refuse_call(p, c, "output_dtype must be int8"));
}

static int dequantize(nf_mil *p, const nf_mil_call *c, nf_mil_type *out) {
    *out = *first(p, c);
    out->dtype = NF_MIL_FP16;
    return check_scale(p, c);
}

/* int8 rows with a scale for each: data [n, k, 1, 1], scale [n, 1, 1, 1], all constant. */
static int shift_scale(nf_mil *p, const nf_mil_call *c, nf_mil_type *out) {
    const nf_mil_type *data = first(p, c), *scale = second(p, c);
    int good = is_constant(p, c, 0) && is_constant(p, c, 1) && data->rank == scale->rank && data->rank > 0;
    for (int32_t i = 0; good && i < data->rank; i++) good = scale->dim[i] == (i ? 1 : data->dim[0]);
    *out = *data;
    out->dtype = NF_MIL_FP16;
    return good || nf_mil_refuse_call(p, c, "a constant with a scale for each row");
}

/* The same with a vector of scales, as it was written before ios18. */
static int affine(nf_mil *p, const nf_mil_call *c, nf_mil_type *out) {
    const nf_mil_type *data = first(p, c), *scale = second(p, c);
    int good = is_constant(p, c, 0) && is_constant(p, c, 1) && scale->rank == 1 && scale->dim[0] == data->dim[0] &&
               numbers(p, c, 2)[0] == 0 && numbers(p, c, 3)[0] == 0;
    *out = *data;
    out->dtype = NF_MIL_FP16;
    return good || nf_mil_refuse_call(p, c, "a constant with a scale for each row, axis 0, zero_point 0");
}

#define F16 (1u << NF_MIL_FP16)
#define FLOATS (F16 | 1u << NF_MIL_FP32)
#define I8 (1u << NF_MIL_INT8)
#define X(dtypes) {"x", NF_MIL_PARAM_VALUE, dtypes}
#define Y(dtypes) {"y", NF_MIL_PARAM_VALUE, dtypes}
#define PAIR(name)                                                                                                             \
    {                                                                                                                          \
        name, NF_MIL_IOS16, pair, NF_MIL_COMPUTES, 0, { X(FLOATS), Y(FLOATS) }                                                 \
    }
#define UNARY(name)                                                                                                            \
    {                                                                                                                          \
        name, NF_MIL_IOS16, same, NF_MIL_COMPUTES, 0, { X(FLOATS) }                                                            \
    }
#define REDUCE(name)                                                                                                           \
    {                                                                                                                          \
        name, NF_MIL_IOS16, reduce, NF_MIL_COMPUTES, 0, {                                                                      \
            X(FLOATS), {"axes", NF_MIL_PARAM_INTS, 0}, {"keep_dims", NF_MIL_PARAM_BOOL, 0}                                     \
        }                                                                                                                      \
    }

/* clang-format off */
static const nf_mil_op_row ROWS[] = {
    {"conv", NF_MIL_IOS16, conv, NF_MIL_MULTIPLIES, 0,
     {X(FLOATS), {"weight", NF_MIL_PARAM_VALUE, FLOATS}, {"strides", NF_MIL_PARAM_INTS, 0}, {"pad_type", NF_MIL_PARAM_TEXT, 0},
      {"pad", NF_MIL_PARAM_INTS, 0}, {"dilations", NF_MIL_PARAM_INTS, 0}, {"groups", NF_MIL_PARAM_INT, 0}}},
    {"matmul", NF_MIL_IOS16, matmul, NF_MIL_MULTIPLIES, 0,
     {X(FLOATS), Y(FLOATS), {"transpose_x", NF_MIL_PARAM_BOOL, 0}, {"transpose_y", NF_MIL_PARAM_BOOL, 0}}},
    PAIR("add"), PAIR("sub"), PAIR("mul"), PAIR("real_div"), PAIR("maximum"), PAIR("minimum"), PAIR("pow"),
    UNARY("abs"), UNARY("sigmoid"), UNARY("silu"), UNARY("tanh"), UNARY("exp"), UNARY("sqrt"),
    REDUCE("reduce_sum"), REDUCE("reduce_mean"), REDUCE("reduce_max"),
    {"clip", NF_MIL_IOS16, clip, NF_MIL_COMPUTES, 0,
     {X(FLOATS), {"alpha", NF_MIL_PARAM_VALUE, FLOATS}, {"beta", NF_MIL_PARAM_VALUE, FLOATS}}},
    {"softmax", NF_MIL_IOS16, softmax, NF_MIL_COMPUTES, 0, {X(FLOATS), {"axis", NF_MIL_PARAM_INT, 0}}},
    {"reshape", NF_MIL_IOS16, reshape, NF_MIL_MOVES, 0, {X(FLOATS), {"shape", NF_MIL_PARAM_INTS, 0}}},
    {"transpose", NF_MIL_IOS16, transpose, NF_MIL_MOVES, 0, {X(FLOATS), {"perm", NF_MIL_PARAM_INTS, 0}}},
    {"slice_by_size", NF_MIL_IOS16, slice, NF_MIL_MOVES, 0,
     {X(FLOATS), {"begin", NF_MIL_PARAM_INTS, 0}, {"size", NF_MIL_PARAM_INTS, 0}}},
    {"concat", NF_MIL_IOS16, concat, NF_MIL_MOVES, 0,
     {{"values", NF_MIL_PARAM_LIST, FLOATS}, {"axis", NF_MIL_PARAM_INT, 0}, {"interleave", NF_MIL_PARAM_BOOL, 0}}},
    /* older, but the chips that want ios16 refuse it: maderix/ANE pull request 6, M1 and M2 */
    {"cast", NF_MIL_IOS18, cast, NF_MIL_COMPUTES, 0, {X(FLOATS), {"dtype", NF_MIL_PARAM_TEXT, 0}}},
    /* defined from ios17 on */
    {"quantize", NF_MIL_IOS18, quantize, NF_MIL_COMPUTES, 0,
     {{"input", NF_MIL_PARAM_VALUE, F16}, {"scale", NF_MIL_PARAM_VALUE, F16}, {"output_dtype", NF_MIL_PARAM_TEXT, 0}}},
    {"dequantize", NF_MIL_IOS18, dequantize, NF_MIL_COMPUTES, 0,
     {{"input", NF_MIL_PARAM_VALUE, I8}, {"scale", NF_MIL_PARAM_VALUE, F16}}},
    {"constexpr_blockwise_shift_scale", NF_MIL_IOS18, shift_scale, NF_MIL_MOVES, 0,
     {{"data", NF_MIL_PARAM_VALUE, I8}, {"scale", NF_MIL_PARAM_VALUE, F16}}},
    {"constexpr_affine_dequantize", NF_MIL_IOS16, affine, NF_MIL_MOVES, 1,
     {{"quantized_data", NF_MIL_PARAM_VALUE, I8}, {"scale", NF_MIL_PARAM_VALUE, F16}, {"axis", NF_MIL_PARAM_INT, 0},
      {"zero_point", NF_MIL_PARAM_INT, 0}}},
};
/* clang-format on */
enum { ROW_COUNT = sizeof ROWS / sizeof *ROWS };

const nf_mil_op_row *nf_mil_find_op(const char *name) {
    for (int i = 0; name && i < ROW_COUNT; i++)
        if (!strcmp(ROWS[i].name, name)) return &ROWS[i];
    return NULL;
}

const char *nf_mil_op_name(int32_t index) { return index >= 0 && index < ROW_COUNT ? ROWS[index].name : NULL; }

const char *nf_mil_op_param(const char *op, int32_t index, int32_t *kind) {
    const nf_mil_op_row *row = nf_mil_find_op(op);
    *kind = 0;
    if (!row || index < 0 || index >= NF_MIL_MAX_PARAMS || !row->params[index].name) return NULL;
    *kind = (int32_t)row->params[index].kind;
    return row->params[index].name;
}
