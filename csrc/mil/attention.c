/* SPDX-License-Identifier: Apache-2.0 */
/* x + Wo attention(rope(Wq n), rope(Wk n), Wv n), n = norm(x), and its gradient; see layers.h.
   Heads are [1, H, d, S], so that no axis is ever swapped: scores are q^T k, [1, H, S, S], a row for each query. */
#include <math.h>
#include <stdlib.h>

#include "compose.h"
#include "inside.h"

enum { MASKED = -30000 }; /* two of them still fit into fp16, and exp of either is 0 */

typedef nf_mil_attending attention;

/* --- tables */

static nf_mil_v table(nf_mil *p, int64_t a, int64_t b, int64_t c, int64_t d, const float *values) {
    return values ? nf_mil_table(p, (nf_mil_type){NF_MIL_FP16, 4, {a, b, c, d}}, values)
                  : nf_mil_refuse(p, NF_ERR_MEMORY, "no memory for a table of %lld values", (long long)(a * b * c * d));
}

/* Partner of value i of a head, or -1 beyond the rotated ones; *pair is the number of its frequency, *sign that of P. */
static int64_t partner(const nf_mil_shape *s, int64_t i, int64_t *pair, float *sign) {
    int64_t half = s->rotary / 2;
    if (i >= s->rotary) return -1;
    int second = s->interleaved ? i % 2 == 1 : i >= half;
    *pair = s->interleaved ? i / 2 : i % half;
    *sign = second ? 1.0f : -1.0f;
    return i + (s->interleaved ? 1 : half) * (second ? -1 : 1);
}

static nf_mil_v turn_table(nf_mil *p, const nf_mil_shape *s) {
    int64_t d = s->head_dim, pair;
    float *values = calloc((size_t)(d * d), sizeof *values), sign;
    for (int64_t i = 0; values && i < d; i++) {
        int64_t other = partner(s, i, &pair, &sign);
        if (other >= 0) values[i * d + other] = sign;
    }
    nf_mil_v made = table(p, 1, 1, d, d, values);
    free(values);
    return made;
}

/* cos or sin of each value's angle at each place, times `scale`; 1 or 0 where nothing turns. */
static nf_mil_v angle_table(nf_mil *p, const nf_mil_shape *s, double (*of)(double), double scale) {
    int64_t d = s->head_dim, S = s->seq, pair = 0;
    float *values = malloc((size_t)(d * S) * sizeof *values), sign;
    for (int64_t i = 0; values && i < d; i++) {
        int turns = partner(s, i, &pair, &sign) >= 0;
        for (int64_t t = 0; t < S; t++) {
            double angle = turns ? (double)t * (double)s->inverse_frequencies[pair] : 0.0;
            values[i * S + t] = (float)(of(angle) * scale * (turns ? (double)s->rope_factor : 1.0));
        }
    }
    nf_mil_v made = table(p, 1, 1, d, S, values);
    free(values);
    return made;
}

static nf_mil_v causal_table(nf_mil *p, int64_t S) {
    float *values = malloc((size_t)(S * S) * sizeof *values);
    for (int64_t i = 0; values && i < S * S; i++) values[i] = i % S > i / S ? (float)MASKED : 0.0f;
    nf_mil_v made = table(p, 1, 1, S, S, values);
    free(values);
    return made;
}

static nf_mil_v head_table(nf_mil *p, int64_t H, int64_t K, int transposed) {
    float *values = calloc((size_t)(H * K), sizeof *values);
    for (int64_t h = 0; values && h < H; h++) values[transposed ? h / (H / K) * H + h : h * K + h / (H / K)] = 1.0f;
    nf_mil_v made = transposed ? table(p, K, H, 1, 1, values) : table(p, H, K, 1, 1, values);
    free(values);
    return made;
}

/* --- the forward pass */

attention nf_mil_attention_open(nf_mil_part *t, const nf_mil_attention *w, nf_mil_v x, nf_mil_v documents) {
    const nf_mil_shape *s = t->shape;
    int64_t q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
    attention a = {.about = w, .x = x, .documents = documents};
    nf_mil_v gain = nf_mil_gain(t, "norm_gain", &w->norm, 1, s->hidden);
    if (w->q_norm.rows) a.q_gain = nf_mil_gain(t, "q_norm_gain", &w->q_norm, 2, s->head_dim);
    if (w->k_norm.rows) a.k_gain = nf_mil_gain(t, "k_norm_gain", &w->k_norm, 2, s->head_dim);
    a.q = nf_mil_project(t, "q", &w->q, q, s->hidden);
    a.k = nf_mil_project(t, "k", &w->k, kv, s->hidden);
    a.v = nf_mil_project(t, "v", &w->v, kv, s->hidden);
    a.o = nf_mil_project(t, "o", &w->o, s->hidden, q);
    a.norm = nf_mil_norm(t, "norm", a.x, gain, 1, s->hidden);
    a.n = nf_mil_normed_value(t->p, &a.norm);
    double scale = 1.0 / sqrt((double)s->head_dim);
    a.turn = turn_table(t->p, s);
    a.q_cos = angle_table(t->p, s, cos, scale);
    a.q_sin = angle_table(t->p, s, sin, scale);
    a.k_cos = angle_table(t->p, s, cos, 1.0);
    a.k_sin = angle_table(t->p, s, sin, 1.0);
    if (s->heads != s->kv_heads) a.spread = head_table(t->p, s->heads, s->kv_heads, 0);
    return a;
}

static nf_mil_v heads(nf_mil_part *t, nf_mil_v x, int64_t count) {
    return nf_mil_as(t->p, x, 1, count, t->shape->head_dim, t->shape->seq);
}

static nf_mil_v joined(nf_mil_part *t, nf_mil_v x, int64_t count) {
    return nf_mil_as(t->p, x, 1, count * t->shape->head_dim, 1, t->shape->seq);
}

/* x cos + (P x) sin (Su et al. 2021) */
static nf_mil_v rope(nf_mil *p, nf_mil_v x, nf_mil_v turn, nf_mil_v cosine, nf_mil_v sine) {
    nf_mil_v turned = nf_mil_two(p, "mul", nf_mil_product(p, turn, x, 0, 0), sine);
    return nf_mil_two(p, "add", nf_mil_two(p, "mul", x, cosine), turned);
}

/* dy cos + P^T (dy sin) */
static nf_mil_v rope_gradient(nf_mil *p, nf_mil_v dy, nf_mil_v turn, nf_mil_v cosine, nf_mil_v sine) {
    nf_mil_v turned = nf_mil_product(p, turn, nf_mil_two(p, "mul", dy, sine), 1, 0);
    return nf_mil_two(p, "add", nf_mil_two(p, "mul", dy, cosine), turned);
}

static nf_mil_v spread(nf_mil *p, const attention *a, nf_mil_v x) { return a->spread ? nf_mil_convolve(p, x, a->spread) : x; }

/* 0 where query i may see key j; documents that begin later or earlier are hidden like later places. */
static nf_mil_v mask(nf_mil_part *t, const attention *a) {
    nf_mil *p = t->p;
    nf_mil_v causal = causal_table(p, t->shape->seq);
    if (!a->documents) return causal;
    nf_mil_v x = nf_mil_two(p, "sub", a->documents, nf_mil_as(p, a->documents, 1, 1, t->shape->seq, 1));
    nf_mil_v alpha = nf_mil_scalar(p, -1.0f), beta = nf_mil_scalar(p, 0.0f);
    x = nf_mil_apply(p, "clip", (nf_mil_arg[]){{"x", &x, 1, 0}, {"alpha", &alpha, 1, 0}, {"beta", &beta, 1, 0}}, 3);
    return nf_mil_two(p, "add", nf_mil_two(p, "mul", x, nf_mil_scalar(p, -(float)MASKED)), causal);
}

static nf_mil_v head_norm(nf_mil_part *t, const char *role, nf_mil_v x, nf_mil_v gain, nf_mil_normed *norm) {
    *norm = nf_mil_norm(t, role, x, gain, 2, t->shape->head_dim);
    return nf_mil_normed_value(t->p, norm);
}

static void attend(nf_mil_part *t, attention *a, int with_values) {
    nf_mil *p = t->p;
    const nf_mil_shape *s = t->shape;
    nf_mil_v q = heads(t, nf_mil_projected(t, &a->q, a->n), s->heads);
    nf_mil_v k = heads(t, nf_mil_projected(t, &a->k, a->n), s->kv_heads);
    if (a->q_gain) q = head_norm(t, "q_norm", q, a->q_gain, &a->q_norm);
    if (a->k_gain) k = head_norm(t, "k_norm", k, a->k_gain, &a->k_norm);
    a->q_heads = rope(p, q, a->turn, a->q_cos, a->q_sin);
    a->keys = spread(p, a, rope(p, k, a->turn, a->k_cos, a->k_sin));
    if (with_values) a->values = spread(p, a, heads(t, nf_mil_projected(t, &a->v, a->n), s->kv_heads));
    nf_mil_v scores = nf_mil_two(p, "add", nf_mil_product(p, a->q_heads, a->keys, 1, 0), mask(t, a));
    static const int32_t last = -1;
    a->probabilities = nf_mil_apply(p, "softmax", (nf_mil_arg[]){{"x", &scores, 1, 0}, {"axis", &last, 1, 0}}, 2);
}

static nf_mil_v attended(nf_mil_part *t, const attention *a) {
    return joined(t, nf_mil_product(t->p, a->values, a->probabilities, 0, 1), t->shape->heads);
}

nf_mil_v nf_mil_attention_value(nf_mil_part *t, attention *a) {
    attend(t, a, 1);
    return nf_mil_two(t->p, "add", a->x, nf_mil_projected(t, &a->o, attended(t, a)));
}

/* --- the backward pass */

/* Gradient of the scores: p (dp - sum(p dp)), dp = d_out^T v. */
static nf_mil_v score_gradient(nf_mil *p, const attention *a, nf_mil_v d_out) {
    nf_mil_v dp = nf_mil_product(p, d_out, a->values, 1, 0);
    nf_mil_v sum = nf_mil_over(p, "reduce_sum", nf_mil_two(p, "mul", a->probabilities, dp), -1);
    return nf_mil_two(p, "mul", a->probabilities, nf_mil_two(p, "sub", dp, sum));
}

/* From a gradient of rotated heads to that of the projection's input. */
static nf_mil_v through_heads(nf_mil_part *t, const attention *a, const nf_mil_projection *w, const nf_mil_normed *norm,
                              nf_mil_v dy, int64_t count, nf_mil_v cosine, nf_mil_v sine, int dx) {
    dy = rope_gradient(t->p, dy, a->turn, cosine, sine);
    if (norm->direction) dy = nf_mil_norm_gradient(t, norm, dy, 1);
    return nf_mil_projection_gradient(t, w, joined(t, dy, count), a->n, dx);
}

static nf_mil_v gathered(nf_mil_part *t, attention *a, nf_mil_v x) {
    const nf_mil_shape *s = t->shape;
    if (!a->spread) return x;
    if (!a->gather) a->gather = head_table(t->p, s->heads, s->kv_heads, 1);
    return nf_mil_convolve(t->p, x, a->gather);
}

int nf_mil_attention_trained(const nf_mil_part *t, const nf_mil_attention *w) {
    return nf_mil_is_trained(t, &w->q) || w->k.rank || w->v.rank || w->o.rank;
}

nf_mil_v nf_mil_attention_gradient(nf_mil_part *t, attention *a, nf_mil_v dy, int dx) {
    nf_mil *p = t->p;
    const nf_mil_shape *s = t->shape;
    const nf_mil_attention *w = a->about;
    int q = dx || w->q.rank, k = dx || w->k.rank, v = dx || w->v.rank, o = nf_mil_is_trained(t, &w->o);
    attend(t, a, q || k || o);
    nf_mil_v d_out = nf_mil_projection_gradient(t, &a->o, dy, o ? attended(t, a) : 0, q || k || v);
    if (q || k || v) d_out = heads(t, d_out, s->heads);
    nf_mil_v scores = q || k ? score_gradient(p, a, d_out) : 0, dn = 0;
    if (q)
        dn = through_heads(t, a, &a->q, &a->q_norm, nf_mil_product(p, a->keys, scores, 0, 1), s->heads, a->q_cos, a->q_sin, dx);
    if (k) {
        nf_mil_v d_keys = gathered(t, a, nf_mil_product(p, a->q_heads, scores, 0, 0));
        dn = nf_mil_sum(p, dn, through_heads(t, a, &a->k, &a->k_norm, d_keys, s->kv_heads, a->k_cos, a->k_sin, dx));
    }
    if (v) {
        nf_mil_v d_values = joined(t, gathered(t, a, nf_mil_product(p, d_out, a->probabilities, 0, 0)), s->kv_heads);
        dn = nf_mil_sum(p, dn, nf_mil_projection_gradient(t, &a->v, d_values, a->n, dx));
    }
    return dx ? nf_mil_two(p, "add", dy, nf_mil_norm_gradient(t, &a->norm, dn, 1)) : 0;
}
