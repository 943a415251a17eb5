/* SPDX-License-Identifier: Apache-2.0 */
/* Each kernel's output against the plain form in double, and its gradient against finite differences of that form.
   Every instruction set that this machine can run is tested. */
#include <string.h>

#include "../../csrc/core/pool.h"
#include "../../csrc/kernels/attention.h"
#include "../../csrc/kernels/convert.h"
#include "../../csrc/kernels/cross_entropy.h"
#include "../../csrc/kernels/matmul.h"
#include "../../csrc/kernels/narrow.h"
#include "../../csrc/kernels/optimizer.h"
#include "check.h"
#include "plain.h"

/* float32 rounds to 6e-8; the sums here have up to a hundred terms of mixed sign. */
static const double LIMIT = 1e-6;

static const nf_kernels *kernels;
static nf_pool *pool;
static char title[96];

static const char *named(const char *what, nf_isa isa) {
    snprintf(title, sizeof title, "%s: %s", nf_isa_name(isa), what);
    return title;
}

static double bf16_value(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

static double weighted(const double *out, const double *weights, int64_t n) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) sum += out[i] * weights[i];
    return sum;
}

/* -------- matmul -------- */

static void test_matmul(void) {
    enum { M = 7, N = 21, K = 35 };
    float *a = new_floats(M * K, 1), *b = new_floats(N * K, 2), *c = new_floats(M * N, 3), *old = new_floats(M * N, 3);
    double *da = to_double(a, M * K), *db = to_double(b, N * K), expected[M * N];
    for (int ta = 0; ta < 2; ta++)
        for (int tb = 0; tb < 2; tb++) {
            memcpy(c, old, M * N * sizeof *c);
            nf_matmul(ta, tb, M, N, K, 0.5f, a, ta ? M : K, b, tb ? K : N, 2.0f, c, N);
            for (int i = 0; i < M; i++)
                for (int j = 0; j < N; j++)
                    expected[i * N + j] = 0.5 * plain_product(ta, tb, M, N, K, da, db, i, j) + 2.0 * (double)old[i * N + j];
            snprintf(title, sizeof title, "matmul ta=%d tb=%d (%.30s)", ta, tb, nf_matmul_library());
            check_close(title, c, expected, M * N, LIMIT);
        }
    for (int i = 0; i < M * N; i++) c[i] = NAN;
    nf_matmul(0, 1, 1, N, K, 1.0f, a, K, b, K, 0.0f, c, N);
    for (int j = 0; j < N; j++) expected[j] = plain_product(0, 1, 1, N, K, da, db, 0, j);
    check_close("matmul of one row; beta 0 does not read c", c, expected, N, LIMIT);
    free(a), free(b), free(c), free(old), free(da), free(db);
}

/* -------- rmsnorm -------- */

typedef struct norm_case {
    double *x, *gain, *out, *weights;
    int64_t rows, C;
} norm_case;

static double norm_value(void *context) {
    norm_case *n = context;
    plain_rmsnorm(n->out, n->x, n->gain, n->rows, n->C, 1e-5);
    return weighted(n->out, n->weights, n->rows * n->C);
}

static void test_rmsnorm(nf_isa isa) {
    const int64_t widths[] = {1, 5, 16, 67};
    for (int w = 0; w < 4; w++) {
        int64_t rows = 3, C = widths[w], n = rows * C;
        float *x = new_floats(n, 4), *gain = new_floats(C, 5), *d_y = new_floats(n, 6), *out = new_floats(n, 0);
        float *d_x = new_floats(n, 0), *d_gain = new_floats(C, 0);
        norm_case c = {to_double(x, n), to_double(gain, C), malloc((size_t)n * 8), to_double(d_y, n), rows, C};
        kernels->rmsnorm_forward(out, C, x, C, gain, rows, C, 1e-5f);
        norm_value(&c);
        check_close(named("rmsnorm", isa), out, c.out, n, LIMIT);
        kernels->rmsnorm_backward(d_x, C, d_gain, d_y, C, x, C, gain, rows, C, 1e-5f, 0);
        double *fx = differences(norm_value, &c, c.x, n), *fg = differences(norm_value, &c, c.gain, C);
        if (C > 1) check_close(named("rmsnorm d_x", isa), d_x, fx, n, LIMIT); /* one value alone has gradient 0 */
        check_close(named("rmsnorm d_gain", isa), d_gain, fg, C, LIMIT);
        kernels->rmsnorm_backward(d_y, C, NULL, d_y, C, x, C, gain, rows, C, 1e-5f, 0);
        check(memcmp(d_x, d_y, (size_t)n * 4) == 0, named("rmsnorm d_x in the place of d_y", isa));
        free(x), free(gain), free(d_y), free(out), free(d_x), free(d_gain), free(fx), free(fg);
        free(c.x), free(c.gain), free(c.out), free(c.weights);
    }
}

/* -------- rope -------- */

typedef struct rope_case {
    double *x, *cosine, *sine, *out, *weights;
    int64_t rows, heads, d, half;
    int interleaved;
} rope_case;

static double rope_value(void *context) {
    rope_case *c = context;
    plain_rope(c->out, c->x, c->cosine, c->sine, c->rows, c->heads, c->d, c->half, c->interleaved);
    return weighted(c->out, c->weights, c->rows * c->heads * c->d);
}

static void test_rope(nf_isa isa) {
    for (int interleaved = 0; interleaved < 2; interleaved++) {
        int64_t rows = 3, heads = 2, d = 22, half = 9, n = rows * heads * d; /* partial: 18 of 22 turn */
        float *x = new_floats(n, 7), *cosine = new_floats(rows * half, 8), *sine = new_floats(rows * half, 9);
        float *d_out = new_floats(n, 10);
        rope_case c = {to_double(x, n),
                       to_double(cosine, rows * half),
                       to_double(sine, rows * half),
                       malloc((size_t)n * 8),
                       to_double(d_out, n),
                       rows,
                       heads,
                       d,
                       half,
                       interleaved};
        rope_value(&c);
        kernels->rope(x, heads * d, cosine, sine, rows, heads, d, half, interleaved, 1.0f);
        check_close(named(interleaved ? "rope interleaved" : "rope half", isa), x, c.out, n, LIMIT);
        kernels->rope(d_out, heads * d, cosine, sine, rows, heads, d, half, interleaved, -1.0f);
        double *fx = differences(rope_value, &c, c.x, n);
        check_close(named("rope d_x", isa), d_out, fx, n, LIMIT);
        free(x), free(cosine), free(sine), free(d_out), free(fx);
        free(c.x), free(c.cosine), free(c.sine), free(c.out), free(c.weights);
    }
}

/* -------- swiglu -------- */

typedef struct swiglu_case {
    double *gate, *up, *out, *weights;
    int64_t n;
} swiglu_case;

static double swiglu_value(void *context) {
    swiglu_case *c = context;
    for (int64_t i = 0; i < c->n; i++) c->out[i] = plain_silu(c->gate[i]) * c->up[i];
    return weighted(c->out, c->weights, c->n);
}

static void test_swiglu(nf_isa isa) {
    int64_t n = 77;
    float *gate = new_floats(n, 11), *up = new_floats(n, 12), *d_out = new_floats(n, 13), *out = new_floats(n, 0);
    float *d_up = new_floats(n, 0);
    for (int64_t i = 0; i < n; i++) gate[i] *= 8.0f;
    swiglu_case c = {to_double(gate, n), to_double(up, n), malloc((size_t)n * 8), to_double(d_out, n), n};
    swiglu_value(&c);
    kernels->swiglu_forward(out, gate, up, n);
    check_close(named("swiglu", isa), out, c.out, n, LIMIT);
    double *fg = differences(swiglu_value, &c, c.gate, n), *fu = differences(swiglu_value, &c, c.up, n);
    kernels->swiglu_backward(d_out, d_up, d_out, gate, up, n);
    check_close(named("swiglu d_gate, in the place of d_out", isa), d_out, fg, n, LIMIT);
    check_close(named("swiglu d_up", isa), d_up, fu, n, LIMIT);
    float extreme[4] = {-200.0f, 200.0f, -88.0f, 88.0f}, one[4] = {1, 1, 1, 1}, result[4];
    kernels->swiglu_forward(result, extreme, one, 4);
    check(fabsf(result[0]) < 1e-30f && result[1] == 200.0f && fabsf(result[2]) < 1e-30f && result[3] == 88.0f,
          named("swiglu far out", isa));
    free(gate), free(up), free(d_out), free(out), free(d_up), free(fg), free(fu);
    free(c.gate), free(c.up), free(c.out), free(c.weights);
}

/* -------- attention -------- */

typedef struct attention_case {
    double *q, *k, *v, *out, *weights;
    const int64_t *lengths;
    int64_t documents, T, H, K, d;
} attention_case;

static double attention_value(void *context) {
    attention_case *c = context;
    for (int64_t i = 0, at = 0; i < c->documents; at += c->lengths[i++])
        plain_attention(c->out + at * c->H * c->d, c->q + at * c->H * c->d, c->k + at * c->K * c->d, c->v + at * c->K * c->d,
                        c->lengths[i], c->H, c->K, c->d);
    return weighted(c->out, c->weights, c->T * c->H * c->d);
}

/* bf16 keys and values: the plain form gets the rounded values, and queries, probabilities and gradients are rounded to 8 bits
   of mantissa on the way. */
static void attention_shape(nf_isa isa, nf_linear_kind kind, const int64_t *lengths, int64_t documents, int64_t H, int64_t K,
                            int64_t d, int gradients) {
    int64_t T = 0;
    nf_span spans[4];
    for (int64_t i = 0; i < documents; T += lengths[i++]) spans[i] = (nf_span){T, lengths[i], T, lengths[i]};
    int64_t nq = T * H * d, nk = T * K * d;
    float *q = new_floats(nq, 14), *k = new_floats(nk, 15), *v = new_floats(nk, 16), *d_out = new_floats(nq, 17);
    float *out = new_floats(nq, 0), *lse = new_floats(T * H, 0), *d_q = new_floats(nq, 0), *d_k = new_floats(nk, 0);
    float *d_v = new_floats(nk, 0), *scratch = aligned_alloc(64, (size_t)(2 * nf_attention_scratch(d)) * sizeof(float));
    uint16_t *k_bits = malloc((size_t)nk * 2), *v_bits = malloc((size_t)nk * 2);
    nf_to_bf16(k_bits, k, nk), nf_to_bf16(v_bits, v, nk);
    attention_case c = {.lengths = lengths, .documents = documents, .T = T, .H = H, .K = K, .d = d};
    c.q = to_double(q, nq), c.k = to_double(k, nk), c.v = to_double(v, nk), c.weights = to_double(d_out, nq);
    c.out = malloc((size_t)nq * 8);
    nf_attention a = {H, K, d, (float)(1.0 / sqrt((double)d)), spans, documents, nf_linear_of(kind, 0, 0, NULL, NULL), k, v};
    double limit = LIMIT;
    if (kind == NF_LINEAR_BF16) {
        for (int64_t i = 0; i < nk; i++) c.k[i] = bf16_value(k_bits[i]), c.v[i] = bf16_value(v_bits[i]);
        a.k = k_bits, a.v = v_bits, limit = 1e-2;
    }
    attention_value(&c);
    nf_attention_forward(pool, kernels, &a, out, lse, q, scratch);
    char what[80];
    snprintf(what, sizeof what, "attention %s T=%d H=%d K=%d d=%d", kind == NF_LINEAR_F32 ? "f32" : "bf16", (int)T, (int)H,
             (int)K, (int)d);
    check_close(named(what, isa), out, c.out, nq, limit);
    if (gradients) {
        nf_attention_backward(pool, kernels, &a, d_q, d_k, d_v, d_out, out, lse, q, scratch);
        double *fq = differences(attention_value, &c, c.q, nq), *fk = differences(attention_value, &c, c.k, nk);
        double *fv = differences(attention_value, &c, c.v, nk);
        check_close(named("attention d_q", isa), d_q, fq, nq, limit);
        check_close(named("attention d_k", isa), d_k, fk, nk, limit);
        check_close(named("attention d_v", isa), d_v, fv, nk, limit);
        free(fq), free(fk), free(fv);
    }
    free(q), free(k), free(v), free(d_out), free(out), free(lse), free(d_q), free(d_k), free(d_v), free(scratch);
    free(c.q), free(c.k), free(c.v), free(c.out), free(c.weights), free(k_bits), free(v_bits);
}

static void test_attention(nf_isa isa) {
    for (nf_linear_kind kind = NF_LINEAR_F32; kind <= NF_LINEAR_BF16; kind++) {
        attention_shape(isa, kind, (const int64_t[]){9, 1, 5}, 3, 4, 2, 6, 1);
        attention_shape(isa, kind, (const int64_t[]){100}, 1, 2, 1, 4, 1); /* more than one tile of queries */
        attention_shape(isa, kind, (const int64_t[]){260, 2}, 2, 1, 1, 2, isa == nf_cpu_isa()); /* blocks of keys */
    }
}

/* -------- cross-entropy -------- */

typedef struct entropy_case {
    double *w, *x;
    const int32_t *targets;
    int64_t n, D, V;
} entropy_case;

static double entropy_value(void *context) {
    entropy_case *c = context;
    return plain_cross_entropy(c->w, c->x, c->targets, c->n, c->D, c->V);
}

static void entropy_shape(nf_isa isa, int64_t n, int64_t D, int64_t V, int head_differences) {
    float *w = new_floats(V * D, 18), *x = new_floats(n * D, 19), *losses = new_floats(n, 0), *d_x = new_floats(n * D, 0);
    float *d_w = new_floats(V * D, 0),
          *scratch = new_floats(nf_cross_entropy_scratch(n, D, V, 2, 1) + nf_cross_entropy_scratch(n, D, V, 2, 0), 0);
    int32_t *targets = malloc((size_t)n * sizeof *targets);
    for (int64_t i = 0; i < n; i++) targets[i] = (int32_t)(i * 7919 % V);
    entropy_case c = {to_double(w, V * D), to_double(x, n * D), targets, n, D, V};
    nf_linear head = nf_linear_of(NF_LINEAR_F32, V, D, w, NULL);
    double *fx = differences(entropy_value, &c, c.x, n * D), expected = entropy_value(&c);
    for (int trained = 0; trained < 2; trained++) {
        nf_cross_entropy(pool, kernels, &head, x, targets, n, losses, d_x, trained ? d_w : NULL, 1, scratch);
        float total = 0.0f;
        for (int64_t i = 0; i < n; i++) total += losses[i];
        check_close(named("cross-entropy", isa), &total, &expected, 1, LIMIT);
        check_close(named(trained ? "cross-entropy d_x, trained head" : "cross-entropy d_x, frozen head", isa), d_x, fx, n * D,
                    LIMIT);
    }
    if (head_differences) {
        double *fw = differences(entropy_value, &c, c.w, V * D);
        check_close(named("cross-entropy d_w", isa), d_w, fw, V * D, LIMIT);
        free(fw);
    }
    free(w), free(x), free(losses), free(d_x), free(d_w), free(scratch), free(targets), free(fx), free(c.w), free(c.x);
}

static void test_cross_entropy(nf_isa isa) {
    entropy_shape(isa, 3, 5, 40, 1);
    entropy_shape(isa, 5, 6, 700, 1);   /* two chunks of the vocabulary */
    entropy_shape(isa, 2, 4, 9000, 0);  /* stripes, and more than one block of a trained head */
    entropy_shape(isa, 130, 2, 600, 0); /* more than one tile of rows */
}

/* -------- low-rank products -------- */

static void low_rank_shape(nf_isa isa, int64_t rows, int64_t K, int64_t r) {
    float *x = new_floats(rows * K, 40), *a = new_floats(r * K, 41), *u = new_floats(rows * r, 42),
          *h = new_floats(rows * r, 0);
    float *d_a = new_floats(r * K, 43), *d_b = new_floats(r * K, 0);
    double *dx = to_double(x, rows * K), *da = to_double(a, r * K), *du = to_double(u, rows * r);
    double *eh = malloc((size_t)(rows * r) * 8), *eg = malloc((size_t)(r * K) * 8);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t k = 0; k < r; k++) eh[t * r + k] = 0.5 * plain_product(0, 1, rows, r, K, dx, da, t, k);
    for (int64_t k = 0; k < r; k++)
        for (int64_t c = 0; c < K; c++) {
            eg[k * K + c] = (double)d_a[k * K + c] + 0.5 * plain_product(1, 0, r, K, rows, du, dx, k, c);
            d_b[c * r + k] = d_a[k * K + c];
        }
    kernels->low_rank(h, x, K, a, rows, K, r, 0.5f);
    check_close(named("low-rank product", isa), h, eh, rows * r, LIMIT);
    kernels->low_rank_gradient(d_a, K, 1, u, x, K, rows, K, r, 0.5f);
    check_close(named("low-rank gradient", isa), d_a, eg, r * K, LIMIT);
    kernels->low_rank_gradient(d_b, 1, r, u, x, K, rows, K, r, 0.5f);
    for (int64_t i = 0; i < r * K; i++) d_a[i] = d_b[i % K * r + i / K];
    check_close(named("low-rank gradient, transposed", isa), d_a, eg, r * K, LIMIT);
    free(x), free(a), free(u), free(h), free(d_a), free(d_b), free(dx), free(da), free(du), free(eh), free(eg);
}

static void test_low_rank(nf_isa isa) {
    low_rank_shape(isa, 1, 5, 1);
    low_rank_shape(isa, 7, 67, 8);
    low_rank_shape(isa, 6, 33, 13);
}

/* -------- linear -------- */

/* A weight of one kind, and its values in double. */
typedef struct stored {
    nf_linear l;
    float *w, *scale;
    uint16_t *bits;
    int8_t *bytes;
    double *values;
} stored;

static stored store(nf_linear_kind kind, int64_t out, int64_t in) {
    int64_t n = out * in;
    stored s = {.w = new_floats(n, 30), .scale = new_floats(out, 0), .bits = malloc((size_t)n * 2), .bytes = malloc((size_t)n)};
    s.values = malloc((size_t)n * 8);
    nf_to_bf16(s.bits, s.w, n);
    nf_to_int8(s.bytes, s.scale, s.w, out, in);
    const void *forms[] = {s.w, s.bits, s.bytes};
    s.l = nf_linear_of(kind, out, in, forms[kind], kind == NF_LINEAR_INT8 ? s.scale : NULL);
    for (int64_t i = 0; i < n; i++)
        s.values[i] = kind == NF_LINEAR_F32    ? (double)s.w[i]
                      : kind == NF_LINEAR_BF16 ? bf16_value(s.bits[i])
                                               : (double)s.bytes[i] * (double)s.scale[i / in];
    return s;
}

static void discard(stored *s) { free(s->w), free(s->scale), free(s->bits), free(s->bytes), free(s->values); }

enum { RANK = 3 };

/* expected (rows, cols) = a (rows, n) times values as (n, cols) or (cols, n), and u (rows, RANK) times v likewise. */
static double *product_with(const stored *s, int transposed, const float *a, const float *u, const float *v, int64_t rows,
                            int64_t cols, int64_t n) {
    double *expected = malloc((size_t)(rows * cols) * 8);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t c = 0; c < cols; c++) {
            double sum = 0.0;
            for (int64_t k = 0; k < n; k++) sum += (double)a[t * n + k] * s->values[transposed ? c * n + k : k * cols + c];
            for (int64_t k = 0; k < RANK; k++)
                sum += 0.5 * (double)u[t * RANK + k] * (double)v[transposed ? c * RANK + k : k * cols + c];
            expected[t * cols + c] = sum;
        }
    return expected;
}

/* y = x W^T + start + bias + u v and dx = dy W + u v, in two tiles each, against the product of the stored values in double.
   `form` NULL widens the weight. */
static void linear_shape(nf_linear_kind kind, const nf_narrow_form *form, int64_t rows, int64_t out, int64_t in) {
    stored s = store(kind, out, in);
    s.l.narrow = form;
    float *x = new_floats(rows * in, 31), *dy = new_floats(rows * out, 32), *start = new_floats(rows * out, 33);
    float *y = new_floats(rows * out, 0), *dx = new_floats(rows * in, 34), *bias = new_floats(out, 35);
    float *u = new_floats(rows * RANK, 36), *b = new_floats(out * RANK, 37), *a_of = new_floats(in * RANK, 38);
    double *ey = product_with(&s, 1, x, u, b, rows, out, in), *ex = product_with(&s, 0, dy, u, a_of, rows, in, out);
    for (int64_t i = 0; i < rows * out; i++) ey[i] += (double)start[i] + (double)bias[i % out];
    int64_t widest = in > out ? in : out, half = out / 2;
    void *memory = malloc((size_t)nf_operand_bytes(rows, widest)),
         *scratch = aligned_alloc(64, (size_t)(nf_linear_scratch(widest, RANK) + 63) / 64 * 64);
    nf_operand a = nf_operand_in(memory, x, in, rows, in);
    nf_linear_prepare(&s.l, &a, 0, rows);
    nf_addend add = {.start = start, .ld = out, .bias = bias, .r = RANK, .u = u, .ldu = RANK, .v = b, .v_k = 1, .v_c = RANK};
    add.scale = 0.5f;
    memcpy(y, start, (size_t)(rows * out) * sizeof *y); /* the second tile adds to what is there */
    nf_linear_tile(&s.l, y, out, &a, 0, rows, 0, half, &add, scratch);
    add.start = y + half, add.bias = bias + half, add.v = b + half * RANK;
    nf_linear_tile(&s.l, y + half, out, &a, 0, rows, half, out, &add, scratch);
    a = nf_operand_in(memory, dy, out, rows, out);
    nf_linear_prepare_gradient(&s.l, &a, 0, 0, rows);
    add = (nf_addend){.r = RANK, .u = u, .ldu = RANK, .v = a_of, .v_k = in, .v_c = 1, .scale = 0.5f};
    nf_linear_tile_input(&s.l, dx, in, &a, 0, rows, 0, 0, in / 2, &add, scratch);
    add.v = a_of + in / 2;
    nf_linear_tile_input(&s.l, dx + in / 2, in, &a, 0, rows, 0, in / 2, in, &add, scratch);
    /* activations are rounded to 8 bits of mantissa (2^-9 of the largest), or to 255 steps (1/254) */
    double limit = !s.l.narrow ? 2e-6 : kind == NF_LINEAR_BF16 ? 4e-3 : 2e-2;
    static const char *const names[] = {"f32", "bf16", "int8"};
    snprintf(title, sizeof title, "%s %s %dx%dx%d", names[kind], form ? form->name : "widened", (int)rows, (int)out, (int)in);
    check_close(title, y, ey, rows * out, limit);
    check_close(title, dx, ex, rows * in, limit);
    free(x), free(dy), free(start), free(y), free(dx), free(bias), free(u), free(b), free(a_of), free(ey), free(ex);
    free(memory), free(scratch), discard(&s);
}

/* What is not finite must show in the product, zeros and denormals must not disturb it. */
static void test_hostile_operands(nf_linear_kind kind, const nf_narrow_form *form) {
    enum { ROWS = 5, OUT = 40, IN = 70 };
    float *w = new_floats(OUT * IN, 35), *x = new_floats(ROWS * IN, 36), y[ROWS * OUT], dx[ROWS * IN], scale[OUT];
    uint16_t bits[OUT * IN];
    int8_t bytes[OUT * IN];
    for (int i = 0; i < IN; i++) x[IN + i] = 0.0f, x[2 * IN + i] = 1e-41f;
    x[3 * IN + 39] = NAN, x[4 * IN] = INFINITY;
    nf_to_bf16(bits, w, OUT * IN);
    nf_to_int8(bytes, scale, w, OUT, IN);
    nf_linear l = nf_linear_of(kind, OUT, IN, kind == NF_LINEAR_BF16 ? (void *)bits : (void *)bytes,
                               kind == NF_LINEAR_BF16 ? NULL : scale);
    l.narrow = form;
    void *memory = malloc((size_t)nf_operand_bytes(ROWS, IN)),
         *scratch = aligned_alloc(64, (size_t)(nf_linear_scratch(IN, 0) + 63) / 64 * 64);
    nf_operand a = nf_operand_in(memory, x, IN, ROWS, IN);
    nf_linear_prepare(&l, &a, 0, ROWS);
    nf_linear_tile(&l, y, OUT, &a, 0, ROWS, 0, OUT, NULL, scratch);
    a = nf_operand_in(memory, x, IN, ROWS, OUT);
    nf_linear_prepare_gradient(&l, &a, 0, 0, ROWS);
    nf_linear_tile_input(&l, dx, IN, &a, 0, ROWS, 0, 0, IN, NULL, scratch);
    for (int back = 0; back < 2; back++) {
        const int n = back ? IN : OUT;
        const float *r = back ? dx : y;
        int good = 1;
        for (int o = 0; o < n; o++)
            good &= isfinite(r[o]) && r[n + o] == 0.0f && fabsf(r[2 * n + o]) < 1e-38f && !isfinite(r[3 * n + o]) &&
                    !isfinite(r[4 * n + o]);
        snprintf(title, sizeof title, "%s %s %s: NaN and infinity show, zeros and denormals are quiet",
                 kind == NF_LINEAR_BF16 ? "bf16" : "int8", form ? form->name : "widened", back ? "dX" : "forward");
        check(good, title);
    }
    free(w), free(x), free(memory), free(scratch);
}

static void test_rounding(void) {
    uint16_t nan_bits, rounded[2];
    const float odd[2] = {1.00390625f, 1.01171875f}; /* halfway between two bf16: to even, down and up */
    const float nan_value = NAN;
    nf_to_bf16(&nan_bits, &nan_value, 1);
    nf_to_bf16(rounded, odd, 2);
    check(isnan(bf16_value(nan_bits)) && bf16_value(rounded[0]) == 1.0 && bf16_value(rounded[1]) == 1.015625,
          "rounding to bf16");
}

/* A row of activations as int8, by definition. */
static float plain_int8(int8_t *q, const float *x, const float *factor, int64_t n) {
    float top = 0.0f;
    for (int64_t i = 0; i < n; i++) top = fmaxf(top, fabsf(factor ? x[i] * factor[i] : x[i]));
    for (int64_t i = 0; i < n; i++) {
        volatile float step = (factor ? x[i] * factor[i] : x[i]) * (top < 1e-30f ? 0.0f : 127.0f / top); /* rounded by itself */
        q[i] = (int8_t)rintf(step);
    }
    return top / 127.0f;
}

/* int8 gives the same bits in every form: whole numbers, and two products in a given order. */
static void int8_shape(const nf_narrow_form *form, int64_t rows, int64_t out, int64_t in) {
    float *x = new_floats(rows * in, 50), *dy = new_floats(rows * out, 51), *scale = new_floats(out, 52),
          *wide = new_floats(out * in, 53);
    float *y = new_floats(rows * out, 0), *dx = new_floats(rows * in, 0);
    int8_t *w = malloc((size_t)(out * in)), *q = malloc((size_t)(in > out ? in : out));
    for (int64_t i = 0; i < out * in; i++) w[i] = (int8_t)floorf(wide[i] * 128.0f); /* -128 too */
    for (int64_t i = 0; i < rows * in; i += 5) x[i] = x[i] < 0.0f ? -1.0f : 1.0f;   /* the largest sums */
    memset(w, -128, (size_t)in);
    nf_linear l = nf_linear_of(NF_LINEAR_INT8, out, in, w, scale);
    l.narrow = form;
    int64_t widest = in > out ? in : out;
    void *memory = malloc((size_t)nf_operand_bytes(rows, widest)),
         *scratch = aligned_alloc(64, (size_t)(nf_linear_scratch(widest, 0) + 63) / 64 * 64);
    nf_operand a = nf_operand_in(memory, x, in, rows, in);
    nf_linear_prepare(&l, &a, 0, rows);
    nf_linear_tile(&l, y, out, &a, 0, rows, 0, out, NULL, scratch);
    a = nf_operand_in(memory, dy, out, rows, out);
    nf_linear_prepare_gradient(&l, &a, 0, 0, rows);
    nf_linear_tile_input(&l, dx, in, &a, 0, rows, 0, 0, in, NULL, scratch);
    int same = 1;
    for (int64_t t = 0; t < rows; t++) {
        float of_row = plain_int8(q, x + t * in, NULL, in);
        for (int64_t o = 0; o < out; o++) {
            int32_t sum = 0;
            for (int64_t i = 0; i < in; i++) sum += q[i] * w[o * in + i];
            same &= y[t * out + o] == (float)sum * of_row * scale[o];
        }
        of_row = plain_int8(q, dy + t * out, scale, out);
        for (int64_t i = 0; i < in; i++) {
            int32_t sum = 0;
            for (int64_t o = 0; o < out; o++) sum += q[o] * w[o * in + i];
            same &= dx[t * in + i] == (float)sum * of_row;
        }
    }
    snprintf(title, sizeof title, "int8 %s %dx%dx%d is exact", form->name, (int)rows, (int)out, (int)in);
    check(same, title);
    free(x), free(dy), free(scale), free(wide), free(y), free(dx), free(w), free(q), free(memory), free(scratch);
}

/* -------- outliers -------- */

static int descending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* The smallest magnitude that is taken out of a row, INFINITY for none: by definition, from the sorted row. */
static float plain_outliers(const float *x, int n) {
    float *sorted = new_floats(n, 0), least = INFINITY;
    int most = n / 16 < 16 ? n / 16 : 16, taken = 0;
    for (int i = 0; i < n; i++) sorted[i] = fabsf(x[i]);
    qsort(sorted, (size_t)n, sizeof *sorted, descending);
    while (taken < n && sorted[taken] > 0.0f) {
        int end = taken;
        while (end < n && sorted[end] > sorted[taken] / 8) end++;
        if (end > most) break;
        taken = end, least = sorted[end - 1];
    }
    free(sorted);
    return least;
}

enum { OUTLIER_ROWS = 11 };

/* Rows of noise with what real models do to it, and what they should not. */
static float *hostile_rows(int n) {
    float *x = new_floats(OUTLIER_ROWS * n, 60);
    const int most = n / 16 < 16 ? n / 16 : 16;
    x[n + 3] = 60.0f;                                             /* one column */
    x[2 * n] = -20.0f, x[2 * n + n / 2] = 100.0f;                 /* two, first and in the middle */
    x[3 * n + n - 1] = 3000.0f, x[3 * n + 7] = 40.0f;             /* behind the largest, another */
    for (int i = 0; i < most; i++) x[4 * n + 2 * i] = 50.0f;      /* as many as there may be */
    for (int i = 0; i < most + 1; i++) x[5 * n + 2 * i] = 50.0f;  /* one too many */
    for (int i = 0; i < n; i++) x[6 * n + i] = i == 5 ? 2.0f : 0; /* alone */
    for (int i = 0; i < n; i++) x[7 * n + i] *= 1e-41f;
    x[7 * n + 1] = 1e30f;
    x[8 * n + 1] = 3e38f, x[8 * n + 2] = NAN;
    x[9 * n + 1] = -INFINITY, x[9 * n + 2] = 60.0f;
    for (int i = 0; i < n; i++) x[10 * n + i] = 0.0f;
    return x;
}

/* y = x W^T of int8 with outliers: what is taken out and what is left are exact, their sum is one of a few float32. */
static void outliers_shape(const nf_narrow_form *form, int out, int in) {
    float *x = hostile_rows(in), *rest = new_floats(in, 0), *y = new_floats(OUTLIER_ROWS * out, 0), *alone = new_floats(out, 0);
    stored s = store(NF_LINEAR_INT8, out, in);
    int8_t *q = malloc((size_t)in);
    s.l.narrow = form;
    void *memory = malloc((size_t)nf_operand_bytes(OUTLIER_ROWS, in)),
         *scratch = aligned_alloc(64, (size_t)(nf_linear_scratch(in, 0) + 63) / 64 * 64);
    nf_operand a = nf_operand_in(memory, x, in, OUTLIER_ROWS, in);
    nf_linear_prepare(&s.l, &a, 0, OUTLIER_ROWS);
    nf_linear_tile(&s.l, y, out, &a, 0, OUTLIER_ROWS, 0, out, NULL, scratch);
    int counted = 1, near = 1, shows = 1, independent = 1;
    for (int t = 0; t < OUTLIER_ROWS; t++) {
        const float *row = x + t * in;
        if (t == 8 || t == 9) {
            for (int o = 0; o < out; o++) shows &= !isfinite(y[t * out + o]);
            continue;
        }
        float least = plain_outliers(row, in), of_row;
        int count = 0;
        for (int i = 0; i < in; i++) count += fabsf(row[i]) >= least, rest[i] = fabsf(row[i]) >= least ? 0.0f : row[i];
        counted &= a.taken.counts[t] == count;
        of_row = plain_int8(q, rest, NULL, in);
        for (int o = 0; o < out; o++) {
            double sum = 0.0, largest = 0.0, product;
            for (int i = 0; i < in; i++) {
                product = (fabsf(row[i]) >= least ? (double)row[i] : (double)q[i] * (double)of_row) * s.values[o * in + i];
                sum += product, largest = fmax(largest, fabs(product));
            }
            near &= fabs((double)y[t * out + o] - sum) <= 1e-5 * largest; /* some 20 roundings of 6e-8 */
        }
        nf_operand one = nf_operand_in(memory, row, in, 1, in);
        nf_linear_prepare(&s.l, &one, 0, 1);
        nf_linear_tile(&s.l, alone, out, &one, 0, 1, 0, out, NULL, scratch);
        independent &= one.taken.counts[0] == count && memcmp(alone, y + t * out, (size_t)out * sizeof *y) == 0;
        nf_linear_prepare(&s.l, &a, 0, OUTLIER_ROWS);
    }
    snprintf(title, sizeof title, "int8 %s %dx%d: outliers as by definition", form->name, out, in);
    check(counted, title);
    check(near, "  and products with them");
    check(independent, "  each row as it is alone");
    check(shows, "  and NaN and infinity show");
    free(x), free(rest), free(y), free(alone), free(q), free(memory), free(scratch), discard(&s);
}

/* -------- bf16 -------- */

/* Sums of the rounded values in float32, whatever multiplies them. */
static void bf16_shape(const nf_narrow_form *form, int64_t rows, int64_t out, int64_t in) {
    stored s = store(NF_LINEAR_BF16, out, in);
    float *x = new_floats(rows * in, 54), *y = new_floats(rows * out, 0), *transposed = new_floats(rows * in, 0);
    uint16_t *bits = malloc((size_t)(rows * in) * 2);
    s.l.narrow = form;
    nf_to_bf16(bits, x, rows * in);
    double *xd = malloc((size_t)(rows * in) * 8), *expected = malloc((size_t)(rows * out) * 8);
    for (int64_t i = 0; i < rows * in; i++) xd[i] = bf16_value(bits[i]), transposed[i % in * rows + i / in] = x[i];
    for (int64_t i = 0; i < rows * out; i++) expected[i] = plain_product(0, 1, rows, out, in, xd, s.values, i / out, i % out);
    void *memory = malloc((size_t)nf_operand_bytes(rows, in)),
         *scratch = aligned_alloc(64, (size_t)(nf_linear_scratch(in, 0) + 63) / 64 * 64);
    nf_operand a = nf_operand_in(memory, x, in, rows, in);
    nf_linear_prepare(&s.l, &a, 0, rows);
    nf_linear_tile(&s.l, y, out, &a, 0, rows, 0, out, NULL, scratch);
    snprintf(title, sizeof title, "bf16 %s %dx%dx%d of rounded values", form->name, (int)rows, (int)out, (int)in);
    check_close(title, y, expected, rows * out, LIMIT);
    nf_operand from = {.x = transposed, .ld = rows, .width = rows, .prepared = a.prepared, .scale = a.scale};
    nf_linear_prepare_transposed(&s.l, &from, in, 0, rows);
    nf_linear_tile(&s.l, y, out, &a, 0, rows, 0, out, NULL, scratch);
    check_close("  and from the transpose", y, expected, rows * out, LIMIT);
    free(x), free(y), free(transposed), free(bits), free(xd), free(expected), free(memory), free(scratch), discard(&s);
}

/* What is written past the caches is what is written through them; lines that are not whole are among it. */
static void test_past(const nf_narrow_form *form) {
    enum { ROWS = 7, OUT = 33, IN = 80 };
    stored s = store(NF_LINEAR_BF16, OUT, IN);
    float *dy = new_floats(ROWS * OUT, 56), *dx[2];
    s.l.narrow = form;
    void *memory = malloc((size_t)nf_operand_bytes(ROWS, OUT)),
         *scratch = aligned_alloc(64, (size_t)(nf_linear_scratch(IN, 0) + 63) / 64 * 64);
    nf_operand a = nf_operand_in(memory, dy, OUT, ROWS, OUT);
    nf_linear_prepare_gradient(&s.l, &a, 0, 0, ROWS);
    for (int past = 0; past < 2; past++) {
        nf_addend add = {.past = past};
        dx[past] = aligned_alloc(64, ROWS * IN * sizeof(float));
        nf_linear_tile_input(&s.l, dx[past], IN, &a, 0, ROWS, 0, 0, IN, &add, scratch);
    }
    snprintf(title, sizeof title, "bf16 %s: the same past the caches", form->name);
    check(memcmp(dx[0], dx[1], ROWS * IN * sizeof(float)) == 0, title);
    free(dy), free(dx[0]), free(dx[1]), free(memory), free(scratch), discard(&s);
}

static void linear_shapes(nf_linear_kind kind, const nf_narrow_form *form) {
    linear_shape(kind, form, 1, 9, 5);
    linear_shape(kind, form, 1, 70, 130);
    linear_shape(kind, form, 13, 37, 67);
    linear_shape(kind, form, 25, 64, 192);
    linear_shape(kind, form, 14, 2100, 33); /* several blocks of the summed index */
    linear_shape(kind, form, 3, 33, 2100);
    linear_shape(kind, form, 8, 130, 33);
    if (kind != NF_LINEAR_F32) test_hostile_operands(kind, form);
}

static void test_linear(void) {
    const nf_narrow_form *form;
    for (nf_linear_kind kind = NF_LINEAR_F32; kind <= NF_LINEAR_INT8; kind++) linear_shapes(kind, NULL);
    for (int i = 0; (form = nf_narrow_form_at(i)); i++) {
        if (form->needs & ~nf_cpu_features()) {
            printf("--    %s %s is not tested: this processor lacks it\n", form->int8 ? "int8" : "bf16", form->name);
            continue;
        }
        linear_shapes(form->int8 ? NF_LINEAR_INT8 : NF_LINEAR_BF16, form);
        for (int64_t rows = 1; rows < 16; rows++) /* each number of rows of a register tile */
            (form->int8 ? int8_shape : bf16_shape)(form, rows, 40 - rows, 60 + rows);
        if (!form->int8) test_past(form);
        if (form->int8) outliers_shape(form, 37, 70), outliers_shape(form, 150, 515);
        (form->int8 ? int8_shape : bf16_shape)(form, 1, 67, 515);
        (form->int8 ? int8_shape : bf16_shape)(form, 30, 67, 515);
    }
    const nf_narrow_form *plain = nf_narrow_best(1, NF_HAS_AVX2 | NF_HAS_NEON);
    check(!nf_narrow_best(0, 0) && (!plain || !(plain->needs & ~(unsigned)(NF_HAS_AVX2 | NF_HAS_NEON))),
          "the best form needs no more than it may");
    test_rounding();
}

/* -------- optimiser -------- */

static void test_adamw(void) {
    enum { N = 1000, STEPS = 5 };
    float *p = new_floats(N, 20), *g = new_floats(N, 21), *m = new_floats(N, 0), *v = new_floats(N, 0);
    double *dp = to_double(p, N), dm[N] = {0}, dv[N] = {0}, squares = 0.0;
    uint16_t bits[N], rounded[N];
    for (int t = 1; t <= STEPS; t++) {
        check(nf_adamw(p, bits, g, m, v, N, t, 1e-2, 0.9, 0.999, 1e-8, 0.1, 0.5, 2) == NF_OK, "adamw runs");
        for (int i = 0; i < N; i++) {
            double grad = 0.5 * (double)g[i];
            dm[i] = 0.9 * dm[i] + 0.1 * grad;
            dv[i] = 0.999 * dv[i] + 0.001 * grad * grad;
            dp[i] -= 1e-2 * 0.1 * dp[i];
            dp[i] -= 1e-2 * (dm[i] / (1.0 - pow(0.9, t))) / (sqrt(dv[i] / (1.0 - pow(0.999, t))) + 1e-8);
        }
    }
    check_close("adamw after five steps", p, dp, N, LIMIT);
    nf_to_bf16(rounded, p, N);
    check(memcmp(bits, rounded, sizeof bits) == 0, "adamw rounds what it has made");
    check(nf_adamw(p, NULL, g, m, v, N, 0, 1e-2, 0.9, 0.999, 1e-8, 0.1, 0.5, 2) == NF_ERR_ARGUMENT, "adamw refuses step 0");
    double expected = 0.0;
    for (int i = 0; i < N; i++) expected += (double)g[i] * (double)g[i];
    for (int threads = 1; threads < 3; threads++) {
        check(nf_sum_of_squares(&squares, g, N, threads) == NF_OK, "sum of squares");
        float sum = (float)squares;
        check_close("sum of squares", &sum, &expected, 1, LIMIT);
    }
    check(nf_first_nonfinite(g, N) == -1, "all finite");
    g[777] = INFINITY;
    check(nf_first_nonfinite(g, N) == 777 && nf_sum_of_squares(&squares, g, N, 2) == NF_OK && isinf(squares),
          "infinity is found");
    g[500] = NAN;
    check(nf_first_nonfinite(g, N) == 500 && nf_sum_of_squares(&squares, g, N, 2) == NF_OK && isnan(squares), "NaN is found");
    free(p), free(g), free(m), free(v), free(dp);
}

/* -------- pool -------- */

enum { MOST_TASKS = 40 };

/* The first task takes long: what its thread would have done next is left to the others. */
static void count_task(void *context, int64_t index, int worker) {
    int *times = context;
    (void)worker;
    for (volatile int i = 0; index == 0 && i < 100000; i++) continue;
    times[index]++;
}

static void test_pool(void) {
    for (int threads = 1; threads <= 5; threads++) {
        nf_pool *own;
        int wrong = 0;
        check(nf_pool_new(&own, threads) == NF_OK, "a pool");
        for (int64_t count = 0; count <= MOST_TASKS; count++) {
            int times[MOST_TASKS + 1] = {0};
            nf_pool_run(own, count, count_task, times);
            for (int64_t i = 0; i <= MOST_TASKS; i++) wrong += times[i] != (i < count);
        }
        check(wrong == 0, "each task runs once");
        nf_pool_free(own);
    }
}

int main(void) {
    if (nf_pool_new(&pool, 2) != NF_OK) return 1;
    nf_matmul_single_thread();
    test_pool();
    test_matmul();
    test_adamw();
    test_linear();
    for (nf_isa isa = NF_ISA_BASE; isa <= nf_cpu_isa(); isa++) {
        kernels = nf_kernels_for(isa);
        test_rmsnorm(isa);
        test_rope(isa);
        test_swiglu(isa);
        test_attention(isa);
        test_cross_entropy(isa);
        test_low_rank(isa);
    }
    nf_pool_free(pool);
    return report();
}
