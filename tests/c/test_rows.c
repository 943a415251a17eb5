/* SPDX-License-Identifier: Apache-2.0 */
/* Row kernels on ragged sizes and hostile values against their definition: zeros and denormals must not disturb, and what is not
   finite must show where it belongs and nowhere else.  Every instruction set that this machine can run is tested. */
#include <string.h>

#include "../../csrc/core/pool.h"
#include "../../csrc/kernels/attention.h"
#include "../../csrc/kernels/convert.h"
#include "../../csrc/kernels/cross_entropy.h"
#include "check.h"

static const nf_kernels *kernels;
static nf_isa isa;
static char title[96];

static void check_named(int ok, const char *what) {
    snprintf(title, sizeof title, "%s: %s", nf_isa_name(isa), what);
    check(ok, title);
}

/* Within a few roundings of `size`, or the same where it is not finite. */
static int near(float got, double expected, double size) {
    if (isnan(expected)) return isnan(got);
    if (isinf(expected)) return isinf(got) && (got > 0) == (expected > 0);
    return fabs((double)got - expected) <= 1e-6 * size + 1e-44;
}

static int all_finite(const float *x, int64_t n) {
    int good = 1;
    for (int64_t i = 0; i < n; i++) good &= isfinite(x[i]);
    return good;
}

static int none_finite(const float *x, int64_t n) {
    int good = 1;
    for (int64_t i = 0; i < n; i++) good &= !isfinite(x[i]);
    return good;
}

/* Noise with a few of each kind among it. */
static float *hostile(int64_t n, uint64_t seed) {
    static const float odd[] = {0.0f, -0.0f, 1e-41f, -1e-45f, 1e30f, NAN, INFINITY, -INFINITY};
    float *x = new_floats(n, seed);
    for (int64_t i = 2, k = 0; i < n; i += 3, k++) x[i] = odd[(uint64_t)k % 8];
    return x;
}

static void test_vectors(int64_t n) {
    float *x = hostile(n, 1), *y = new_floats(n, 2), *old = new_floats(n, 2), *a = new_floats(n, 3);
    int added = 1, scaled = 1;
    double dot = 0.0;
    uint16_t *bits = calloc((size_t)n, 2), *expected = calloc((size_t)n, 2);
    kernels->add_scaled(y, x, 0.5f, n);
    for (int64_t i = 0; i < n; i++) {
        double value = (double)old[i] + 0.5 * (double)x[i];
        added &= near(y[i], value, isfinite(value) ? fabs(value) + 1.0 : 1.0);
        dot += (double)a[i] * (double)old[i];
    }
    check_named(near(kernels->dot(a, old, n), dot, (double)n), "dot");
    memcpy(y, x, (size_t)n * sizeof *y);
    kernels->scale(y, -3.0f, n);
    for (int64_t i = 0; i < n; i++) scaled &= near(y[i], -3.0 * (double)x[i], fabs((double)x[i]));
    a[n - 1] = NAN;
    check_named(isnan(kernels->dot(a, old, n)), "dot shows NaN");
    kernels->to_bf16(bits, x, n), nf_to_bf16(expected, x, n);
    check_named(added && scaled, "add_scaled and scale");
    check_named(memcmp(bits, expected, (size_t)n * 2) == 0, "to_bf16");
    free(x), free(y), free(old), free(a), free(bits), free(expected);
}

static void test_transpose(int64_t rows, int64_t cols) {
    float *from = hostile(rows * (cols + 3), 4), *to = new_floats(cols * (rows + 2), 5);
    int same = 1;
    kernels->transpose(to, rows + 2, from, cols + 3, rows, cols);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t c = 0; c < cols; c++) same &= memcmp(&to[c * (rows + 2) + t], &from[t * (cols + 3) + c], sizeof *to) == 0;
    check_named(same, "transpose");
    free(from), free(to);
}

/* Two blocks of scores, the second causal; in row 1 is NaN, row 2 has scores far apart, row 3 all the same. */
static void test_softmax(int64_t cols) {
    enum { ROWS = 4 };
    const int64_t ld = cols + 2;
    float *first = new_floats(ROWS * ld, 6), *second = new_floats(ROWS * ld, 7), *dp = new_floats(ROWS * ld, 8);
    float m[ROWS], l[ROWS], correction[ROWS], lse[ROWS], delta[ROWS] = {0.1f, 0.2f, 0.3f, 0.4f};
    first[ld] = NAN, first[2 * ld] = 3e4f;
    for (int64_t c = 0; c < cols; c++) first[3 * ld + c] = second[3 * ld + c] = -1e-41f;
    float *one = new_floats(ROWS * ld, 0), *two = new_floats(ROWS * ld, 0), *ds = new_floats(ROWS * ld, 0);
    memcpy(one, first, (size_t)(ROWS * ld) * 4), memcpy(two, second, (size_t)(ROWS * ld) * 4);
    memcpy(ds, dp, (size_t)(ROWS * ld) * 4);
    for (int t = 0; t < ROWS; t++) m[t] = -INFINITY, l[t] = 0.0f;
    kernels->softmax_block(one, ld, ROWS, cols, 0.5f, cols, 0, m, l, correction);
    kernels->softmax_block(two, ld, ROWS, cols, 0.5f, 1, 1, m, l, correction);
    int sums = 1, again = 1, back = 1, masked = 1;
    for (int t = 0; t < ROWS; t++) {
        double top = -INFINITY, total = 0.0;
        int64_t visible = t + 1 < cols ? t + 1 : cols;
        for (int64_t c = 0; c < cols; c++) top = fmax(top, 0.5 * (double)first[t * ld + c]);
        for (int64_t c = 0; c < visible; c++) top = fmax(top, 0.5 * (double)second[t * ld + c]);
        for (int64_t c = 0; c < cols; c++) total += exp(0.5 * (double)first[t * ld + c] - top);
        for (int64_t c = 0; c < visible; c++) total += exp(0.5 * (double)second[t * ld + c] - top);
        for (int64_t c = visible; c < cols; c++) masked &= two[t * ld + c] == 0.0f;
        lse[t] = (float)(top + log(total));
        if (t == 1)
            sums &= isnan(l[t]);
        else
            sums &= near((float)((double)m[t] + log((double)l[t])), top + log(total), fabs(top) + 10.0);
    }
    check_named(sums && masked, "softmax_block: running sums; NaN stays in its row");
    memcpy(one, second, (size_t)(ROWS * ld) * 4);
    kernels->softmax_again(one, ld, ROWS, cols, 0.5f, 1, 1, lse);
    kernels->softmax_backward(ds, one, ld, ROWS, cols, 0.5f, delta);
    for (int t = 0; t < ROWS; t++)
        for (int64_t c = 0; c < cols; c++) {
            double p = c < t + 1 ? exp(0.5 * (double)second[t * ld + c] - (double)lse[t]) : 0.0;
            again &= near(one[t * ld + c], p, 1.0);
            back &= near(ds[t * ld + c], 0.5 * p * ((double)dp[t * ld + c] - (double)delta[t]), 1.0);
        }
    check_named(again && back, "softmax_again and softmax_backward");
    free(first), free(second), free(dp), free(one), free(two), free(ds);
}

/* A row in two parts: m moves only where the second is far above the first, and what was summed is scaled with it. */
static void test_softmax_row(int64_t n, float ahead) {
    float *s = new_floats(2 * n, 13), *kept = new_floats(2 * n, 13), m = -INFINITY, l = 0.0f;
    double top = -INFINITY, total = 0.0;
    for (int64_t i = n; i < 2 * n; i++) s[i] = kept[i] += ahead;
    for (int64_t i = 0; i < 2 * n; i++) top = fmax(top, (double)kept[i]);
    for (int64_t i = 0; i < 2 * n; i++) total += exp((double)kept[i] - top);
    float none = kernels->softmax_row(s, n, &m, &l), before = m, correction = kernels->softmax_row(s + n, n, &m, &l);
    int right = none == 0.0f && near((float)((double)m + log((double)l)), top + log(total), fabs(top) + 10.0);
    right &= ahead < 8.0f ? m == before && correction == 1.0f : near(correction, exp((double)before - (double)m), 1.0);
    for (int64_t i = 0; i < n; i++) right &= near(s[n + i], exp((double)kept[n + i] - (double)m), exp(top - (double)m));
    s[0] = NAN;
    kernels->softmax_row(s, n, &m, &l);
    check_named(right && isnan(l), "softmax_row: a point of reference that moves rarely; NaN stays");
    free(s), free(kept);
}

static void test_swiglu(int64_t n) {
    float *gate = hostile(n, 9), *up = new_floats(n, 10), *out = new_floats(n, 0), *d_gate = new_floats(n, 0);
    float *d_up = new_floats(n, 0), *d_out = new_floats(n, 11);
    int forward = 1, back = 1;
    kernels->swiglu_forward(out, gate, up, n);
    kernels->swiglu_backward(d_gate, d_up, d_out, gate, up, n);
    for (int64_t i = 0; i < n; i++) {
        double g = gate[i], s = 1.0 / (1.0 + exp(-g)), u = up[i], d = d_out[i];
        if (!isfinite(gate[i])) {
            forward &= !isfinite(out[i]), back &= !isfinite(d_gate[i]) && !isfinite(d_up[i]);
            continue;
        }
        forward &= near(out[i], g * s * u, fabs(g) + 1.0);
        back &= near(d_gate[i], d * u * (s + g * s * (1.0 - s)), 2.0) && near(d_up[i], d * g * s, fabs(g) + 1.0);
    }
    check_named(forward, "swiglu_forward");
    check_named(back, "swiglu_backward");
    free(gate), free(up), free(out), free(d_gate), free(d_up), free(d_out);
}

static void test_rmsnorm(int64_t C) {
    enum { ROWS = 5 };
    float *x = new_floats(ROWS * C, 12), *gain = new_floats(C, 13), *y = new_floats(ROWS * C, 0),
          *d_x = new_floats(ROWS * C, 0);
    for (int64_t i = 0; i < C; i++) x[C + i] = 0.0f, x[2 * C + i] = 1e-41f;
    x[3 * C + C / 2] = NAN, x[4 * C + C - 1] = INFINITY;
    kernels->rmsnorm_forward(y, C, x, C, gain, ROWS, C, 1e-5f);
    kernels->rmsnorm_backward(d_x, C, NULL, gain, 0, x, C, gain, ROWS, C, 1e-5f, 0);
    int quiet = all_finite(y, 3 * C) && all_finite(d_x, 3 * C);
    for (int64_t i = 0; i < C; i++) quiet &= y[C + i] == 0.0f && fabsf(y[2 * C + i]) < 1e-37f;
    check_named(quiet, "rmsnorm: zeros and denormals are quiet");
    check_named(none_finite(y + 3 * C, C) && !isfinite(y[5 * C - 1]) && none_finite(d_x + 3 * C, C) &&
                    !isfinite(d_x[5 * C - 1]),
                "rmsnorm: NaN and infinity show");
    free(x), free(gain), free(y), free(d_x);
}

static void test_rope(int64_t half, int interleaved) {
    const int64_t d = 2 * half + 1, n = 2 * 2 * d;
    float *x = new_floats(n, 14), *cosine = new_floats(2 * half, 15), *sine = new_floats(2 * half, 16);
    x[d + 0] = NAN; /* row 0, head 1, its first pair */
    kernels->rope(x, 2 * d, cosine, sine, 2, 2, d, half, interleaved, 1.0f);
    int64_t partner = d + (interleaved ? 1 : half);
    int shows = isnan(x[d]) && isnan(x[partner]), others = 1;
    for (int64_t i = 0; i < n; i++) others &= i == d || i == partner || isfinite(x[i]);
    check_named(shows && others, "rope: NaN stays in its pair");
    free(x), free(cosine), free(sine);
}

static void test_low_rank(int64_t K, int64_t r) {
    enum { ROWS = 6 };
    float *x = new_floats(ROWS * K, 17), *a = new_floats(r * K, 18), *h = new_floats(ROWS * r, 0), *g = new_floats(r * K, 0);
    x[2 * K + K - 1] = NAN, x[4 * K] = INFINITY;
    for (int64_t i = 0; i < K; i++) x[3 * K + i] = 1e-41f;
    kernels->low_rank(h, x, K, a, ROWS, K, r, 0.5f);
    check_named(all_finite(h, 2 * r) && none_finite(h + 2 * r, r) && all_finite(h + 3 * r, r) && none_finite(h + 4 * r, r) &&
                    all_finite(h + 5 * r, r),
                "low_rank: what is not finite stays in its row");
    float *u = new_floats(ROWS * r, 19);
    kernels->low_rank_gradient(g, K, 1, u, x, K, ROWS, K, r, 0.5f);
    int shows = 1;
    for (int64_t k = 0; k < r; k++)
        for (int64_t c = 0; c < K; c++) shows &= (c == 0 || c == K - 1) == !isfinite(g[k * K + c]);
    check_named(shows, "low_rank_gradient: and in its column");
    free(x), free(a), free(h), free(g), free(u);
}

static void test_adamw(int64_t n) {
    float *p = new_floats(n, 20), *g = new_floats(n, 21), *m = new_floats(n, 0), *v = new_floats(n, 0);
    int64_t bad = n / 2;
    for (int64_t i = 0; i < n; i++) g[i] = i % 2 ? 0.0f : 1e-41f;
    g[bad] = NAN;
    kernels->adamw(p, g, m, v, n, 1e-2f, 0.9f, 0.999f, 1e-8f, 0.0f, 0.1f, 0.001f, 1.0f);
    int shows = 1;
    for (int64_t i = 0; i < n; i++) shows &= (i == bad) == isnan(p[i]);
    check_named(shows, "adamw: NaN stays in its place");
    free(p), free(g), free(m), free(v);
}

/* Two documents of 40 and 30: NaN in key 10 of the first reaches the rows from 10 on that may see it, and no others. */
static void test_attention(nf_pool *pool, nf_linear_kind kind) {
    enum { T = 70, FIRST = 40, D = 6, BAD = 10 };
    nf_span spans[] = {{0, FIRST, 0, FIRST}, {FIRST, T - FIRST, FIRST, T - FIRST}};
    float *q = new_floats(T * D, 22), *k = new_floats(T * D, 23), *v = new_floats(T * D, 24), *out = new_floats(T * D, 0);
    float *lse = new_floats(T, 0), *scratch = aligned_alloc(64, (size_t)(2 * nf_attention_scratch(D)) * sizeof(float));
    uint16_t k_bits[T * D], v_bits[T * D];
    for (int i = 0; i < D; i++) k[i] = 0.0f, k[D + i] = 1e-41f;
    k[BAD * D + 1] = NAN;
    nf_to_bf16(k_bits, k, T * D), nf_to_bf16(v_bits, v, T * D);
    nf_attention a = {1, 1, D, 0.4f, spans, 2, nf_linear_of(kind, 0, 0, NULL, NULL), k, v};
    if (kind == NF_LINEAR_BF16) a.k = k_bits, a.v = v_bits;
    if (kind == NF_LINEAR_F32 || a.form.narrow) {
        nf_attention_forward(pool, kernels, &a, out, lse, q, scratch);
        check_named(all_finite(out, BAD * D) && none_finite(out + BAD * D, (FIRST - BAD) * D) &&
                        all_finite(out + FIRST * D, (T - FIRST) * D),
                    kind == NF_LINEAR_F32 ? "attention: NaN reaches who sees it"
                                          : "attention in bf16: NaN reaches who sees it");
    }
    free(q), free(k), free(v), free(out), free(lse), free(scratch);
}

static void test_cross_entropy(nf_pool *pool) {
    enum { N = 5, D = 7, V = 530 };
    float *w = new_floats(V * D, 25), *x = new_floats(N * D, 26), losses[N], d_x[N * D];
    float *scratch = new_floats(nf_cross_entropy_scratch(N, D, V, 2, 0), 0);
    const int32_t targets[N] = {0, V - 1, 5, 512, 1};
    nf_linear head = nf_linear_of(NF_LINEAR_F32, V, D, w, NULL);
    for (int i = 0; i < D; i++) x[i] = 0.0f, x[D + i] = 1e-41f;
    x[3 * D + 2] = NAN;
    nf_cross_entropy(pool, kernels, &head, x, targets, N, losses, d_x, NULL, 0, scratch);
    check_named(near(losses[0], log(V), 10.0) && near(losses[1], log(V), 10.0) && isfinite(losses[2]) && isnan(losses[3]) &&
                    isfinite(losses[4]) && all_finite(d_x, 3 * D) && none_finite(d_x + 3 * D, D) && all_finite(d_x + 4 * D, D),
                "cross-entropy: NaN stays in its row");
    free(w), free(x), free(scratch);
}

/* Rows of int8, by definition. */
static void test_to_int8(int64_t width) {
    enum { ROWS = 3 };
    float *x = new_floats(ROWS * width, 27), scale[ROWS];
    int8_t *q = malloc((size_t)(ROWS * width));
    int good = 1;
    for (int64_t i = 0; i < width; i++) x[width + i] = 0.0f, x[2 * width + i] *= 1e-30f;
    nf_to_int8(q, scale, x, ROWS, width);
    for (int64_t t = 0; t < ROWS; t++) {
        float top = 0.0f;
        for (int64_t i = 0; i < width; i++) top = fmaxf(top, fabsf(x[t * width + i]));
        good &= near(scale[t], (double)top / 127.0, (double)top / 127.0);
        for (int64_t i = 0; i < width; i++) /* half a step, and a rounding */
            good &= fabs((double)q[t * width + i] * (double)scale[t] - (double)x[t * width + i]) <= 0.50002 * (double)scale[t];
    }
    check(good, "rows of int8");
    free(x), free(q);
}

int main(void) {
    nf_pool *pool;
    if (nf_pool_new(&pool, 2) != NF_OK) return 1;
    for (int64_t width = 1; width < 80; width += 13) test_to_int8(width);
    for (isa = NF_ISA_BASE; isa <= nf_cpu_isa(); isa++) {
        kernels = nf_kernels_for(isa);
        for (int64_t n = 1; n < 70; n += n < 20 ? 1 : 7) test_vectors(n), test_swiglu(n), test_adamw(n);
        for (int64_t n = 2; n < 70; n += 11) test_rmsnorm(n), test_low_rank(n, n % 9 + 1), test_softmax(n);
        for (int64_t n = 2; n < 70; n += 11) test_softmax_row(n, 2.0f), test_softmax_row(n, 20.0f);
        for (int64_t n = 1; n < 40; n += 6) test_transpose(n, 41 - n), test_rope(n, 0), test_rope(n, 1);
        for (nf_linear_kind kind = NF_LINEAR_F32; kind <= NF_LINEAR_BF16; kind++) test_attention(pool, kind);
        test_cross_entropy(pool);
    }
    nf_pool_free(pool);
    return report();
}
