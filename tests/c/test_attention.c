/* SPDX-License-Identifier: Apache-2.0 */
/* Attention in float32 and in each form of bf16 that this machine can run, against the plain form in double: ragged sizes, packed
   documents, keys before the queries, hostile values, and the same bits with any number of threads. */
#include <string.h>

#include "../../csrc/core/cpu.h"
#include "../../csrc/core/pool.h"
#include "../../csrc/kernels/attention.h"
#include "../../csrc/kernels/convert.h"
#include "../../csrc/kernels/matmul.h"
#include "../../csrc/kernels/narrow.h"
#include "check.h"
#include "plain.h"

enum { THREADS = 3, FIELDS = 5 };

static nf_pool *pools[THREADS];
static const nf_kernels *kernels;
static nf_linear form;
static char title[128];

static const char *named(const char *what, int64_t T, int64_t d) {
    snprintf(title, sizeof title, "%s %s T=%d d=%d: %s", form.kind == NF_LINEAR_F32 ? "f32" : "bf16",
             form.narrow ? form.narrow->name : "", (int)T, (int)d, what);
    return title;
}

/* -------- a call -------- */

/* q and gradients as (T, H, d), k and v as (T, K, d); the numbers of keys and values are those that bf16 holds. */
typedef struct call {
    int64_t T, H, K, d, documents, before; /* before: keys of the only document that have no query */
    nf_span spans[4];
    float *q, *k, *v, *d_out;
    uint16_t *k_bits, *v_bits;
    float *results[FIELDS]; /* out, lse, d_q, d_k, d_v */
    float *scratch;
} call;

static int64_t size_of(const call *c, int field) {
    int64_t queries = c->T - c->before, sizes[] = {queries * c->H * c->d, queries * c->H, 0, 0, 0};
    sizes[2] = sizes[0], sizes[3] = sizes[4] = c->T * c->K * c->d;
    return sizes[field];
}

/* What bf16 holds of n numbers between -size and size. */
static float *numbers(int64_t n, uint64_t seed, float size) {
    float *x = new_floats(n, seed);
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        x[i] *= size;
        memcpy(&bits, &x[i], sizeof bits);
        bits &= 0xffff0000;
        memcpy(&x[i], &bits, sizeof bits);
    }
    return x;
}

static call new_call(const int64_t *lengths, int64_t documents, int64_t before, int64_t H, int64_t K, int64_t d, float size) {
    call c = {.H = H, .K = K, .d = d, .documents = documents, .before = before};
    for (int64_t i = 0; i < documents; c.T += lengths[i++]) c.spans[i] = (nf_span){c.T, lengths[i] - before, c.T, lengths[i]};
    int64_t n = c.T * K * d;
    c.q = numbers(size_of(&c, 0), 1, size), c.k = numbers(n, 2, size), c.v = numbers(n, 3, 1.0f);
    c.d_out = numbers(size_of(&c, 0), 4, 1.0f);
    c.k_bits = malloc((size_t)n * 2), c.v_bits = malloc((size_t)n * 2);
    for (int i = 0; i < FIELDS; i++) c.results[i] = new_floats(size_of(&c, i), 0);
    c.scratch = aligned_alloc(64, ((size_t)(THREADS * nf_attention_scratch(d)) * sizeof(float) + 63) / 64 * 64);
    return c;
}

static void discard(call *c) {
    free(c->q), free(c->k), free(c->v), free(c->d_out), free(c->k_bits), free(c->v_bits), free(c->scratch);
    for (int i = 0; i < FIELDS; i++) free(c->results[i]);
}

/* All results with 1 + `more` threads, from memory full of NaN: what is there must not count. */
static void run(call *c, int more) {
    nf_attention a = {c->H, c->K, c->d, (float)(1.0 / sqrt((double)c->d)), c->spans, c->documents, form, c->k, c->v};
    if (form.kind == NF_LINEAR_BF16) {
        nf_to_bf16(c->k_bits, c->k, c->T * c->K * c->d), nf_to_bf16(c->v_bits, c->v, c->T * c->K * c->d);
        a.k = c->k_bits, a.v = c->v_bits;
    }
    for (int i = 0; i < FIELDS; i++) memset(c->results[i], 0xff, (size_t)size_of(c, i) * sizeof(float));
    memset(c->scratch, 0xff, (size_t)(THREADS * nf_attention_scratch(c->d)) * sizeof(float));
    float **r = c->results;
    nf_attention_forward(pools[more], kernels, &a, r[0], r[1], c->q, c->scratch);
    if (!c->before) nf_attention_backward(pools[more], kernels, &a, r[2], r[3], r[4], c->d_out, r[0], r[1], c->q, c->scratch);
}

/* -------- against the plain form -------- */

static const char *const names[] = {"out", "lse", "d_q", "d_k", "d_v"};

/* float32 rounds to 6e-8, sums have a few hundred terms, and scores of hundreds are wrong by 2e-5 themselves; bf16 has 8 bits of
   mantissa, of weights and gradients too. */
static double limit_of(float size) { return form.kind == NF_LINEAR_BF16 ? 1e-2 : size > 1.0f ? 2e-5 : 2e-6; }

/* The keys before the first query are positions whose results nobody asks for. */
static void compare(const call *c, double limit, int scores_matter) {
    int64_t nq = c->T * c->H * c->d, nk = c->T * c->K * c->d, cut = c->before * c->H * c->d;
    double *q = calloc((size_t)nq, 8), *d_out = calloc((size_t)nq, 8), *k = to_double(c->k, nk), *v = to_double(c->v, nk);
    double *expected[FIELDS] = {malloc((size_t)nq * 8), NULL, malloc((size_t)nq * 8), malloc((size_t)nk * 8),
                                malloc((size_t)nk * 8)};
    for (int64_t i = cut; i < nq; i++) q[i] = c->q[i - cut], d_out[i] = c->d_out[i - cut];
    for (int64_t s = 0; s < c->documents; s++) {
        int64_t at = c->spans[s].kv_start * c->H * c->d, of_k = c->spans[s].kv_start * c->K * c->d, T = c->spans[s].kv_len;
        plain_attention(expected[0] + at, q + at, k + of_k, v + of_k, T, c->H, c->K, c->d);
        plain_attention_backward(expected[2] + at, expected[3] + of_k, expected[4] + of_k, d_out + at, q + at, k + of_k,
                                 v + of_k, T, c->H, c->K, c->d);
    }
    scores_matter &= c->T > 1; /* else d_q and d_k are 0 */
    check_close(named(names[0], c->T, c->d), c->results[0], expected[0] + cut, size_of(c, 0), limit);
    for (int i = scores_matter ? 2 : 4; i < FIELDS && !c->before; i++)
        check_close(named(names[i], c->T, c->d), c->results[i], expected[i], size_of(c, i), limit);
    for (int i = 0; i < FIELDS; i++) free(expected[i]);
    free(q), free(d_out), free(k), free(v);
}

static void shape(const int64_t *lengths, int64_t documents, int64_t before, int64_t H, int64_t K, int64_t d, float size) {
    call c = new_call(lengths, documents, before, H, K, d, size);
    float *first[FIELDS];
    int same = 1;
    run(&c, 0);
    compare(&c, limit_of(size), 1);
    for (int i = 0; i < FIELDS; i++) {
        first[i] = malloc((size_t)size_of(&c, i) * sizeof(float));
        memcpy(first[i], c.results[i], (size_t)size_of(&c, i) * sizeof(float));
    }
    for (int more = 1; more < THREADS; more++) {
        run(&c, more);
        for (int i = 0; i < FIELDS; i++) same &= !memcmp(first[i], c.results[i], (size_t)size_of(&c, i) * sizeof(float));
    }
    check(same, named("the same bits with any number of threads", c.T, d));
    for (int i = 0; i < FIELDS; i++) free(first[i]);
    discard(&c);
}

static void test_shapes(void) {
    static const int64_t widths[] = {2, 7, 8, 20, 64, 80, 128};
    for (int i = 0; i < 7; i++) shape((const int64_t[]){70, 1, 5}, 3, 0, 2, 1, widths[i], 1.0f);
    for (int64_t T = 1; T < 140; T += T < 36 ? 7 : 31) shape(&T, 1, 0, 2, 2, 16, 1.0f);
    shape((const int64_t[]){300, 140}, 2, 0, 6, 2, 64, 1.0f); /* several tiles, and blocks of keys */
    shape((const int64_t[]){600}, 1, 0, 1, 1, 32, 1.0f);
    for (int64_t before = 1; before < 300; before += 59) shape((const int64_t[]){before + 75}, 1, before, 3, 1, 24, 1.0f);
    /* Scores of hundreds, which float32 holds without an error that matters: one key has all the weight. */
    shape((const int64_t[]){200}, 1, 0, 1, 1, 64, 16.0f);
}

/* -------- what is not finite, and what is all but nothing -------- */

static int finite_rows(const float *x, int64_t width, int64_t from, int64_t to, int finite) {
    int good = 1;
    for (int64_t t = from; t < to; t++) {
        int all = 1;
        for (int64_t i = 0; i < width; i++) all &= isfinite(x[t * width + i]);
        good &= all == finite;
    }
    return good;
}

/* A value in row `bad` of x (T, d), of the first document. */
static void spoil(const int64_t T[2], int64_t bad, float value, int which) {
    static const char *const what[] = {"what is not finite in q", "in k", "in d_out"};
    const int64_t d = 64, all = T[0] + T[1];
    call c = new_call(T, 2, 0, 1, 1, d, 1.0f);
    (which == 0 ? c.q : which == 1 ? c.k : c.d_out)[bad * d + 5] = value;
    run(&c, 1);
    float **r = c.results;
    int good = 1;
    for (int i = 0; i < FIELDS; i++) good &= finite_rows(r[i], i == 1 ? 1 : d, T[0], all, 1); /* the other document */
    if (which == 0) good &= finite_rows(r[0], d, 0, bad, 1) && finite_rows(r[0], d, bad, bad + 1, 0);
    if (which == 0) good &= finite_rows(r[0], d, bad + 1, T[0], 1);
    if (which == 1) good &= finite_rows(r[0], d, 0, bad, 1) && finite_rows(r[0], d, bad, T[0], !isnan(value));
    if (which == 2) good &= finite_rows(r[2], d, bad, bad + 1, 0);
    if (which != 1) good &= finite_rows(r[4], d, 0, bad + 1, 0); /* who is seen by that row */
    check(good, named(what[which], all, d));
    discard(&c);
}

static void test_hostile(void) {
    for (int which = 0; which < 3; which++)
        for (int64_t bad = 0; bad < 150; bad += 21) spoil((const int64_t[]){150, 40}, bad, NAN, which);
    call c = new_call((const int64_t[]){90}, 1, 0, 1, 1, 64, 1.0f);
    for (int64_t i = 0; i < 90 * 64; i++) c.q[i] = c.k[i] = i % 3 ? 0.0f : 1e-41f; /* the mean of what is seen */
    run(&c, 1);
    compare(&c, limit_of(1.0f), 0);
    for (int64_t i = 0; i < 90 * 64; i++) c.q[i] = 0.0f, c.v[i] = c.d_out[i] = 0.0f;
    run(&c, 1);
    for (int i = 0; i < FIELDS; i++) {
        int zero = 1;
        for (int64_t t = 0; t < size_of(&c, i); t++) zero &= i == 1 ? isfinite(c.results[i][t]) : c.results[i][t] == 0.0f;
        check(zero, named("all zeros", 90, 64));
    }
    discard(&c);
}

/* -------- the plain form itself -------- */

typedef struct plain_case {
    double *q, *k, *v, *d_out;
} plain_case;

enum { T0 = 5, H0 = 2, D0 = 3, Q0 = T0 * H0 * D0, K0 = T0 * D0 };

static double plain_value(void *context) {
    const plain_case *c = context;
    double out[Q0], sum = 0.0;
    plain_attention(out, c->q, c->k, c->v, T0, H0, 1, D0);
    for (int i = 0; i < Q0; i++) sum += out[i] * c->d_out[i];
    return sum;
}

static void test_plain(void) {
    float *x[4] = {new_floats(Q0, 5), new_floats(K0, 6), new_floats(K0, 7), new_floats(Q0, 8)};
    plain_case c = {to_double(x[0], Q0), to_double(x[1], K0), to_double(x[2], K0), to_double(x[3], Q0)};
    double d_q[Q0], d_k[K0], d_v[K0], *got[] = {d_q, d_k, d_v}, *at[] = {c.q, c.k, c.v};
    plain_attention_backward(d_q, d_k, d_v, c.d_out, c.q, c.k, c.v, T0, H0, 1, D0);
    for (int i = 0; i < 3; i++) {
        int64_t n = i == 0 ? Q0 : K0;
        double *expected = differences(plain_value, &c, at[i], n);
        float rounded[Q0];
        for (int64_t t = 0; t < n; t++) rounded[t] = (float)got[i][t];
        check_close("the plain gradient against differences", rounded, expected, n, 1e-6);
        free(expected);
    }
    for (int i = 0; i < 4; i++) free(x[i]);
    free(c.q), free(c.k), free(c.v), free(c.d_out);
}

int main(void) {
    const nf_narrow_form *narrow;
    for (int i = 0; i < THREADS; i++)
        if (nf_pool_new(&pools[i], i + 1) != NF_OK) return 1;
    nf_matmul_single_thread();
    kernels = nf_kernels_for(nf_cpu_isa());
    test_plain();
    form = nf_linear_of(NF_LINEAR_F32, 0, 0, NULL, NULL);
    test_shapes(), test_hostile();
    for (int i = 0; (narrow = nf_narrow_form_at(i)); i++) {
        if (narrow->int8 || narrow->needs & ~nf_cpu_features()) continue;
        form = nf_linear_of(NF_LINEAR_BF16, 0, 0, NULL, NULL), form.narrow = narrow;
        test_shapes(), test_hostile();
    }
    for (int i = 0; i < THREADS; i++) nf_pool_free(pools[i]);
    return report();
}
