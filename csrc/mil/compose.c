/* SPDX-License-Identifier: Apache-2.0 */
/* Norms, projections with their low-rank pairs, and the ports of a part; see compose.h. */
#include "compose.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "inside.h"

/* --- ports */

nf_mil_part nf_mil_part_begin(nf_mil *p, const char *name, const nf_mil_shape *s) {
    int good = s->hidden > 0 && s->seq > 0 && s->heads > 0 && s->kv_heads > 0 && s->heads % s->kv_heads == 0 &&
               s->head_dim > 0 && s->rotary >= 0 && s->rotary % 2 == 0 && s->rotary <= s->head_dim && s->eps > 0;
    nf_mil_begin(p, name);
    if (!good) nf_mil_refuse(p, NF_ERR_ARGUMENT, "%s: the model's sizes are not those of a model", name);
    if (s->trained == NF_MIL_FULL && s->form != NF_MIL_FORM_FP16)
        nf_mil_refuse(p, NF_ERR_ARGUMENT, "%s: trained weights are inputs and so in fp16", name);
    return (nf_mil_part){.p = p, .shape = s};
}

nf_mil_v nf_mil_part_input(nf_mil_part *t, const char *role, int64_t channels, int64_t width) {
    char name[NF_MIL_NAME];
    snprintf(name, sizeof name, "i%02d_%s", t->inputs++, role);
    return nf_mil_input(t->p, name, (nf_mil_type){NF_MIL_FP16, 4, {1, channels, 1, width}});
}

void nf_mil_part_output(nf_mil_part *t, const char *role, nf_mil_v value) {
    char name[NF_MIL_NAME];
    snprintf(name, sizeof name, "o%02d_%s", t->outputs++, role);
    nf_mil_output(t->p, name, value);
}

void nf_mil_part_gradient(nf_mil_part *t, const char *role, nf_mil_v value) {
    snprintf(t->gradient[t->gradients].role, sizeof t->gradient->role, "d_%s", role);
    t->gradient[t->gradients++].value = value;
}

void nf_mil_part_end(nf_mil_part *t, nf_mil_v dx) {
    if (dx) nf_mil_part_output(t, "dx", dx);
    for (int i = 0; i < t->gradients; i++) nf_mil_part_output(t, t->gradient[i].role, t->gradient[i].value);
    nf_mil_end(t->p);
}

/* --- ops by hand */

nf_mil_v nf_mil_two(nf_mil *p, const char *op, nf_mil_v x, nf_mil_v y) {
    return nf_mil_apply(p, op, (nf_mil_arg[]){{"x", &x, 1, 0}, {"y", &y, 1, 0}}, 2);
}

nf_mil_v nf_mil_one(nf_mil *p, const char *op, nf_mil_v x) { return nf_mil_apply(p, op, (nf_mil_arg[]){{"x", &x, 1, 0}}, 1); }

nf_mil_v nf_mil_product(nf_mil *p, nf_mil_v x, nf_mil_v y, int transpose_x, int transpose_y) {
    int32_t tx = transpose_x, ty = transpose_y;
    nf_mil_arg args[] = {{"x", &x, 1, 0}, {"y", &y, 1, 0}, {"transpose_x", &tx, 1, 0}, {"transpose_y", &ty, 1, 0}};
    return nf_mil_apply(p, "matmul", args, 4);
}

nf_mil_v nf_mil_convolve(nf_mil *p, nf_mil_v x, nf_mil_v weight) {
    static const int32_t ones[2] = {1, 1}, zeros[4] = {0};
    nf_mil_arg args[] = {{"x", &x, 1, 0},      {"weight", &weight, 1, 0}, {"strides", ones, 2, 0}, {"pad_type", 0, 0, "valid"},
                         {"pad", zeros, 4, 0}, {"dilations", ones, 2, 0}, {"groups", ones, 1, 0}};
    return nf_mil_apply(p, "conv", args, 7);
}

nf_mil_v nf_mil_as(nf_mil *p, nf_mil_v x, int64_t a, int64_t b, int64_t c, int64_t d) {
    int32_t shape[4] = {(int32_t)a, (int32_t)b, (int32_t)c, (int32_t)d};
    return nf_mil_apply(p, "reshape", (nf_mil_arg[]){{"x", &x, 1, 0}, {"shape", shape, 4, 0}}, 2);
}

nf_mil_v nf_mil_over(nf_mil *p, const char *op, nf_mil_v x, int32_t axis) {
    static const int32_t yes = 1;
    return nf_mil_apply(p, op, (nf_mil_arg[]){{"x", &x, 1, 0}, {"axes", &axis, 1, 0}, {"keep_dims", &yes, 1, 0}}, 3);
}

nf_mil_v nf_mil_rows(nf_mil *p, nf_mil_v x) {
    nf_mil_type t = nf_mil_type_of(p, x);
    return nf_mil_as(p, x, 1, 1, t.dim[1], t.dim[3]);
}

nf_mil_v nf_mil_channels(nf_mil *p, nf_mil_v x) {
    nf_mil_type t = nf_mil_type_of(p, x);
    return nf_mil_as(p, x, 1, t.dim[2], 1, t.dim[3]);
}

/* --- RMSNorm */

nf_mil_v nf_mil_gain(nf_mil_part *t, const char *role, const nf_mil_array *array, int32_t axis, int64_t n) {
    if (array->rows * array->cols != n)
        return nf_mil_refuse(t->p, NF_ERR_ARGUMENT, "%s: %lld values instead of %lld", role,
                             (long long)(array->rows * array->cols), (long long)n);
    nf_mil_type type = {NF_MIL_FP16, 4, {1, axis == 1 ? n : 1, axis == 2 ? n : 1, 1}};
    if (t->shape->trained == NF_MIL_LORA) return nf_mil_weight(t->p, type, array, 0);
    return nf_mil_as(t->p, nf_mil_part_input(t, role, 1, n), 1, type.dim[1], type.dim[2], 1);
}

nf_mil_normed nf_mil_norm(nf_mil_part *t, const char *role, nf_mil_v x, nf_mil_v gain, int32_t axis, int64_t n) {
    nf_mil *p = t->p;
    nf_mil_normed norm = {.role = role, .axis = axis, .n = n, .gain = gain};
    /* below 2^-12 the squares of sqrt(eps)/m would leave fp16; any m gives the same norm */
    norm.most =
        nf_mil_two(p, "maximum", nf_mil_over(p, "reduce_max", nf_mil_one(p, "abs", x), axis), nf_mil_scalar(p, 0x1p-12f));
    nf_mil_v small = nf_mil_two(p, "real_div", x, norm.most);
    nf_mil_v squares = nf_mil_over(p, "reduce_sum", nf_mil_two(p, "mul", small, small), axis);
    nf_mil_v mean = nf_mil_two(p, "real_div", squares, nf_mil_scalar(p, (float)n));
    nf_mil_v root_eps = nf_mil_two(p, "real_div", nf_mil_scalar(p, sqrtf(t->shape->eps)), norm.most);
    nf_mil_v sum = nf_mil_two(p, "add", mean, nf_mil_two(p, "mul", root_eps, root_eps));
    norm.inverse = nf_mil_two(p, "pow", sum, nf_mil_scalar(p, -0.5f));
    norm.direction = nf_mil_two(p, "mul", small, norm.inverse);
    return norm;
}

nf_mil_v nf_mil_normed_value(nf_mil *p, const nf_mil_normed *norm) { return nf_mil_two(p, "mul", norm->direction, norm->gain); }

/* The sum over tokens, and over heads where `axis` lies inside them. */
static nf_mil_v gain_gradient(nf_mil *p, const nf_mil_normed *norm, nf_mil_v dy) {
    nf_mil_v each = nf_mil_two(p, "mul", dy, norm->direction);
    if (norm->axis == 2) each = nf_mil_over(p, "reduce_sum", each, 1);
    return nf_mil_as(p, nf_mil_over(p, "reduce_sum", each, 3), 1, 1, 1, norm->n);
}

nf_mil_v nf_mil_norm_gradient(nf_mil_part *t, const nf_mil_normed *norm, nf_mil_v dy, int dx) {
    nf_mil *p = t->p;
    if (t->shape->trained == NF_MIL_FULL) {
        char role[24];
        snprintf(role, sizeof role, "%s_gain", norm->role);
        nf_mil_part_gradient(t, role, gain_gradient(p, norm, dy));
    }
    if (!dx) return 0;
    nf_mil_v g = nf_mil_two(p, "mul", dy, norm->gain);
    nf_mil_v most = nf_mil_over(p, "reduce_max", nf_mil_one(p, "abs", g), norm->axis);
    most = nf_mil_two(p, "maximum", most, nf_mil_scalar(p, 0x1p-14f)); /* the least normal fp16: no division by 0 */
    nf_mil_v small = nf_mil_two(p, "real_div", g, most);
    nf_mil_v dot = nf_mil_over(p, "reduce_sum", nf_mil_two(p, "mul", small, norm->direction), norm->axis);
    nf_mil_v mean = nf_mil_two(p, "real_div", dot, nf_mil_scalar(p, (float)norm->n));
    nf_mil_v rest = nf_mil_two(p, "sub", small, nf_mil_two(p, "mul", norm->direction, mean));
    nf_mil_v factor = nf_mil_two(p, "mul", nf_mil_two(p, "real_div", norm->inverse, norm->most), most);
    return nf_mil_two(p, "mul", rest, factor);
}

/* --- projections */

int nf_mil_is_trained(const nf_mil_part *t, const nf_mil_linear *about) {
    return t->shape->trained == NF_MIL_FULL || about->rank > 0;
}

static nf_mil_v role_input(nf_mil_part *t, const char *role, const char *what, int64_t channels, int64_t width) {
    char name[24];
    snprintf(name, sizeof name, "%s_%s", role, what);
    return nf_mil_part_input(t, name, channels, width);
}

static void role_gradient(nf_mil_part *t, const char *role, const char *what, nf_mil_v value) {
    char name[24];
    snprintf(name, sizeof name, "%s_%s", role, what);
    nf_mil_part_gradient(t, name, value);
}

nf_mil_projection nf_mil_project(nf_mil_part *t, const char *role, const nf_mil_linear *about, int64_t out, int64_t in) {
    nf_mil *p = t->p;
    nf_mil_projection w = {.about = about, .role = role};
    int full = t->shape->trained == NF_MIL_FULL;
    if (about->weight.rows != out || about->weight.cols != in)
        nf_mil_refuse(p, NF_ERR_ARGUMENT, "%s: weight (%lld, %lld) instead of (%lld, %lld)", role,
                      (long long)about->weight.rows, (long long)about->weight.cols, (long long)out, (long long)in);
    if (about->rank < 0 || (full && about->rank))
        nf_mil_refuse(p, NF_ERR_ARGUMENT, "%s: rank %lld", role, (long long)about->rank);
    if (about->bias.rows && about->bias.rows * about->bias.cols != out)
        nf_mil_refuse(p, NF_ERR_ARGUMENT, "%s: bias of %lld", role, (long long)about->bias.rows);
    if (full) w.weight = nf_mil_as(p, role_input(t, role, "weight", out, in), 1, 1, out, in);
    if (full && about->bias.rows) w.bias = nf_mil_as(p, role_input(t, role, "bias", 1, out), 1, out, 1, 1);
    if (!full && about->bias.rows) w.bias = nf_mil_weight(p, (nf_mil_type){NF_MIL_FP16, 4, {1, out, 1, 1}}, &about->bias, 0);
    if (about->rank) w.a = nf_mil_as(p, role_input(t, role, "lora_a", about->rank, in), 1, 1, about->rank, in);
    if (about->rank) w.b = nf_mil_as(p, role_input(t, role, "lora_b", about->rank, out), 1, 1, about->rank, out);
    return w;
}

/* The frozen matrix or its transpose as a convolution weight. */
static nf_mil_v frozen(nf_mil_part *t, const nf_mil_linear *about, int transposed) {
    const nf_mil_array *a = &about->weight;
    if (t->shape->form != NF_MIL_FORM_FP16) return nf_mil_weight_int8(t->p, a, transposed);
    nf_mil_type type = {NF_MIL_FP16, 4, {transposed ? a->cols : a->rows, transposed ? a->rows : a->cols, 1, 1}};
    return nf_mil_weight(t->p, type, a, transposed);
}

/* x in steps of `scale` from -127 to 127, which is exact in int8 products. */
static nf_mil_v in_steps(nf_mil *p, nf_mil_v x, float scale) {
    nf_mil_v s = nf_mil_scalar(p, scale);
    nf_mil_v q = nf_mil_apply(p, "quantize",
                              (nf_mil_arg[]){{"input", &x, 1, 0}, {"scale", &s, 1, 0}, {"output_dtype", 0, 0, "int8"}}, 3);
    return nf_mil_apply(p, "dequantize", (nf_mil_arg[]){{"input", &q, 1, 0}, {"scale", &s, 1, 0}}, 2);
}

/* scale * A x: [1, 1, r, S] */
static nf_mil_v low_rank(nf_mil_part *t, const nf_mil_projection *w, nf_mil_v x) {
    nf_mil_v h = nf_mil_product(t->p, w->a, nf_mil_rows(t->p, x), 0, 0);
    return nf_mil_two(t->p, "mul", h, nf_mil_scalar(t->p, w->about->scale));
}

nf_mil_v nf_mil_projected(nf_mil_part *t, const nf_mil_projection *w, nf_mil_v x) {
    nf_mil *p = t->p;
    nf_mil_v y;
    if (w->weight)
        y = nf_mil_channels(p, nf_mil_product(p, w->weight, nf_mil_rows(p, x), 0, 0));
    else if (t->shape->form == NF_MIL_FORM_W8A8 && w->about->input_scale > 0)
        y = nf_mil_convolve(p, in_steps(p, x, w->about->input_scale), frozen(t, w->about, 0));
    else
        y = nf_mil_convolve(p, x, frozen(t, w->about, 0));
    if (w->bias) y = nf_mil_two(p, "add", y, w->bias);
    if (!w->a) return y;
    return nf_mil_two(p, "add", y, nf_mil_channels(p, nf_mil_product(p, w->b, low_rank(t, w, x), 1, 0)));
}

nf_mil_v nf_mil_projection_gradient(nf_mil_part *t, const nf_mil_projection *w, nf_mil_v dy, nf_mil_v x, int dx) {
    nf_mil *p = t->p;
    if (w->weight) {
        nf_mil_v flat = nf_mil_rows(p, dy);
        role_gradient(t, w->role, "weight", nf_mil_channels(p, nf_mil_product(p, flat, nf_mil_rows(p, x), 0, 1)));
        if (w->bias)
            role_gradient(t, w->role, "bias",
                          nf_mil_as(p, nf_mil_over(p, "reduce_sum", dy, 3), 1, 1, 1, w->about->weight.rows));
        return dx ? nf_mil_channels(p, nf_mil_product(p, w->weight, flat, 1, 0)) : 0;
    }
    nf_mil_v through = dx ? nf_mil_convolve(p, dy, frozen(t, w->about, 1)) : 0;
    if (!w->a) return through;
    nf_mil_v flat = nf_mil_rows(p, dy); /* u = scale * B^T dy;  dA = u x^T, dB^T = (scale A x) dy^T, dx += A^T u */
    nf_mil_v u = nf_mil_two(p, "mul", nf_mil_product(p, w->b, flat, 0, 0), nf_mil_scalar(p, w->about->scale));
    role_gradient(t, w->role, "lora_a", nf_mil_channels(p, nf_mil_product(p, u, nf_mil_rows(p, x), 0, 1)));
    role_gradient(t, w->role, "lora_b", nf_mil_channels(p, nf_mil_product(p, low_rank(t, w, x), flat, 0, 1)));
    return dx ? nf_mil_two(p, "add", through, nf_mil_channels(p, nf_mil_product(p, w->a, u, 1, 0))) : 0;
}
