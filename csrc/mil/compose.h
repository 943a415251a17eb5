/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of a transformer are made of, out of the ops of mil_ops.c alone; inside this folder. */
#ifndef NF_MIL_COMPOSE_H
#define NF_MIL_COMPOSE_H

#include "layers.h"

typedef nf_mil_value nf_mil_v;

/* A procedure while it is written: its ports are numbered, gradients wait until dx has become the first output. */
typedef struct nf_mil_part {
    nf_mil *p;
    const nf_mil_shape *shape;
    int inputs, outputs, gradients;
    struct {
        char role[28];
        nf_mil_v value;
    } gradient[24];
} nf_mil_part;

nf_mil_part nf_mil_part_begin(nf_mil *p, const char *name, const nf_mil_shape *shape);
/* A port [1, channels, 1, width]. */
nf_mil_v nf_mil_part_input(nf_mil_part *t, const char *role, int64_t channels, int64_t width);
void nf_mil_part_output(nf_mil_part *t, const char *role, nf_mil_v value);
void nf_mil_part_gradient(nf_mil_part *t, const char *role, nf_mil_v value);
/* dx unless it is 0, then the gradients. */
void nf_mil_part_end(nf_mil_part *t, nf_mil_v dx);

nf_mil_v nf_mil_two(nf_mil *p, const char *op, nf_mil_v x, nf_mil_v y);
nf_mil_v nf_mil_one(nf_mil *p, const char *op, nf_mil_v x);
nf_mil_v nf_mil_product(nf_mil *p, nf_mil_v x, nf_mil_v y, int transpose_x, int transpose_y);
nf_mil_v nf_mil_convolve(nf_mil *p, nf_mil_v x, nf_mil_v weight);
nf_mil_v nf_mil_as(nf_mil *p, nf_mil_v x, int64_t a, int64_t b, int64_t c, int64_t d); /* reshape */
nf_mil_v nf_mil_over(nf_mil *p, const char *op, nf_mil_v x, int32_t axis);             /* a reduction that keeps the axis */
nf_mil_v nf_mil_rows(nf_mil *p, nf_mil_v x);                                           /* [1, C, 1, S] as [1, 1, C, S] */
nf_mil_v nf_mil_channels(nf_mil *p, nf_mil_v x);                                       /* and back */

/* RMSNorm (Zhang & Sennrich 2019) over `axis`, 1 or 2.  With m = max|x| it is (x/m) / sqrt(mean((x/m)^2) + eps/m^2): nothing
   overflows in fp16 and eps, which fp16 has no good value for, enters as (sqrt(eps)/m)^2. */
typedef struct nf_mil_normed {
    const char *role;
    int32_t axis;
    int64_t n;
    nf_mil_v gain, most, inverse, direction; /* direction: x / rms(x) = (x/m) * inverse */
} nf_mil_normed;
nf_mil_normed nf_mil_norm(nf_mil_part *t, const char *role, nf_mil_v x, nf_mil_v gain, int32_t axis, int64_t n);
/* The norm itself: direction * gain. */
nf_mil_v nf_mil_normed_value(nf_mil *p, const nf_mil_normed *norm);
/* dx = (g - direction * mean(g * direction)) / rms, g = gain * dy, computed with g/max|g|.  Keeps the gain's gradient. */
nf_mil_v nf_mil_norm_gradient(nf_mil_part *t, const nf_mil_normed *norm, nf_mil_v dy, int dx);
/* A gain of n values along `axis`, constant or an input. */
nf_mil_v nf_mil_gain(nf_mil_part *t, const char *role, const nf_mil_array *array, int32_t axis, int64_t n);

typedef struct nf_mil_projection {
    const nf_mil_linear *about;
    const char *role;
    nf_mil_v weight, a, b, bias; /* weight: of nf_mil_full, [1, 1, out, in] */
} nf_mil_projection;
/* Declares its ports; refuses a weight that is not (out, in). */
nf_mil_projection nf_mil_project(nf_mil_part *t, const char *role, const nf_mil_linear *about, int64_t out, int64_t in);
nf_mil_v nf_mil_projected(nf_mil_part *t, const nf_mil_projection *w, nf_mil_v x);
/* Keeps the gradients of what is trained (x is read then alone); gives that of x, or 0 when it is not wanted. */
nf_mil_v nf_mil_projection_gradient(nf_mil_part *t, const nf_mil_projection *w, nf_mil_v dy, nf_mil_v x, int dx);
/* Whether anything of it is trained. */
int nf_mil_is_trained(const nf_mil_part *t, const nf_mil_linear *about);

/* Attention while it is written: its ports, tables, and values of the forward pass. */
typedef struct nf_mil_attending {
    const nf_mil_attention *about;
    nf_mil_v x, documents;
    nf_mil_projection q, k, v, o;
    nf_mil_v q_gain, k_gain;
    nf_mil_normed norm, q_norm, k_norm;
    nf_mil_v n;            /* normed x */
    nf_mil_v turn;         /* P [1, 1, d, d]: (P x) is x with each pair (a, b) as (-b, a) */
    nf_mil_v q_cos, q_sin; /* [1, 1, d, S], times 1/sqrt(d), which keeps the scores small */
    nf_mil_v k_cos, k_sin;
    nf_mil_v spread, gather;        /* [H, K, 1, 1]: each key head to its query heads, and the transpose; 0 when H = K */
    nf_mil_v q_heads, keys, values; /* rotated, spread */
    nf_mil_v probabilities;
} nf_mil_attending;
/* Declares the ports of the weights; `documents` may be 0. */
nf_mil_attending nf_mil_attention_open(nf_mil_part *t, const nf_mil_attention *w, nf_mil_v x, nf_mil_v documents);
nf_mil_v nf_mil_attention_value(nf_mil_part *t, nf_mil_attending *a);
/* Keeps the gradients of what is trained; gives that of x, or 0 when it is not wanted. The forward values are made if needed. */
nf_mil_v nf_mil_attention_gradient(nf_mil_part *t, nf_mil_attending *a, nf_mil_v dy, int dx);
int nf_mil_attention_trained(const nf_mil_part *t, const nf_mil_attention *w);

/* The same for the feed-forward part. */
typedef struct nf_mil_feeding {
    const nf_mil_ffn *about;
    nf_mil_v x;
    nf_mil_projection gate, up, down;
    nf_mil_normed norm;
    nf_mil_v n, g, u, s, a; /* normed, gate, up, sigmoid(g), g * s */
} nf_mil_feeding;
nf_mil_feeding nf_mil_ffn_open(nf_mil_part *t, const nf_mil_ffn *w, nf_mil_v x);
nf_mil_v nf_mil_ffn_value(nf_mil_part *t, nf_mil_feeding *f);
nf_mil_v nf_mil_ffn_gradient(nf_mil_part *t, nf_mil_feeding *f, nf_mil_v dy, int dx);

/* x + y where either may be missing. */
static inline nf_mil_v nf_mil_sum(nf_mil *p, nf_mil_v x, nf_mil_v y) { return x && y ? nf_mil_two(p, "add", x, y) : x ? x : y; }

#endif
