/* SPDX-License-Identifier: Apache-2.0 */
/* Products with weights in blocks, on every path that this machine has, against the same values in double; caches in every
   form.  That the blocks mean what GGUF says is tested in Python, against the gguf package. */
#include <string.h>

#include "../../csrc/core/half.h"
#include "../../csrc/kernels/cached.h"
#include "../../csrc/kernels/linear.h"
#include "check.h"
#include "plain.h"

static const char *const names[NF_BLOCK_MULTIPLIED] = {"Q8_0", "Q4_0", "Q4_K", "Q6_K"};
static char title[120];

static int64_t row_bytes(nf_block_kind kind, int64_t in) { return in / nf_block_values(kind) * nf_block_bytes(kind); }

static void set_half(uint8_t *block, int64_t at, uint16_t bits) { memcpy(block + at, &bits, sizeof bits); }

/* Where the float16 values of a block are. */
static int64_t place_of_scale(nf_block_kind kind) { return kind == NF_BLOCK_Q6_K ? 208 : 0; }

/* Any bytes, with scales between 2^-8 and 2^-7. */
static uint8_t *random_blocks(nf_block_kind kind, int64_t out, int64_t in, uint64_t seed) {
    int64_t size = out * row_bytes(kind, in), bytes = nf_block_bytes(kind);
    uint8_t *w = malloc((size_t)size);
    float *x = new_floats(size, seed);
    for (int64_t i = 0; i < size; i++) w[i] = (uint8_t)(int)(x[i] * 128.0f + 128.0f);
    for (int64_t i = 0; i < size; i += bytes) {
        set_half(w + i, place_of_scale(kind), (uint16_t)(0x1c00 + (w[i] << 2)));
        if (kind == NF_BLOCK_Q4_K) set_half(w + i, 2, (uint16_t)(0x1c00 + (w[i + 5] << 2)));
    }
    free(x);
    return w;
}

/* The activations as they are after rounding: 8 bits for each 32 of a row. */
static double *rounded(const float *x, int64_t rows, int64_t width) {
    double *r = to_double(x, rows * width);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t b = 0; b < width; b += 32) {
            double top = 0.0;
            for (int64_t i = t * width + b; i < t * width + b + 32; i++) top = fabs(r[i]) > top ? fabs(r[i]) : top;
            for (int64_t i = t * width + b; i < t * width + b + 32; i++) r[i] = rint(r[i] * 127.0 / top) * top / 127.0;
        }
    return r;
}

static double *widened(const nf_blocks *b, int64_t out) {
    float *row = new_floats(b->in, 0);
    double *w = malloc((size_t)(out * b->in) * sizeof *w);
    for (int64_t o = 0; o < out; o++) {
        nf_blocks_widen(b, row, o, 0, b->in);
        for (int64_t i = 0; i < b->in; i++) w[o * b->in + i] = row[i];
    }
    free(row);
    return w;
}

static void product(nf_block_kind kind, nf_block_path path, int64_t rows, int64_t out, int64_t in) {
    uint8_t *w = random_blocks(kind, out, in, 1);
    nf_blocks b = {kind, path, w, in};
    float *x = new_floats(rows * in, 2), *y = new_floats(rows * out, 0), *alone = new_floats(rows * out, 0);
    double *wide = widened(&b, out), *xr = rounded(x, rows, in), *expected = malloc((size_t)(rows * out) * sizeof *expected);
    for (int64_t i = 0; i < rows * out; i++) expected[i] = plain_product(0, 1, rows, out, in, xr, wide, i / out, i % out);
    int64_t stride = nf_blocks_operand_bytes(in) + 64;
    char *a = aligned_alloc(64, (size_t)(rows * stride + 63) / 64 * 64);
    nf_blocks_prepare(path, a, stride, x, in, rows, in);
    nf_blocks_decode(&b, y, out, a, stride, rows, 0, out / 2);
    nf_blocks_decode(&b, y + out / 2, out, a, stride, rows, out / 2, out);
    snprintf(title, sizeof title, "%s path %d, one row at a time, %dx%dx%d", names[kind], path, (int)rows, (int)out, (int)in);
    /* an activation in the middle between two steps may be rounded the other way: 1/127 of it, among `in` of them */
    check_close(title, y, expected, rows * out, 2e-3);
    for (int64_t t = 0; t < rows; t++) nf_blocks_decode(&b, alone + t * out, out, a + t * stride, stride, 1, 0, out);
    if (out % 8 == 0) check(memcmp(y, alone, (size_t)(rows * out) * sizeof *y) == 0, "a row does not depend on the others");
    if (path == NF_BLOCK_VNNI) {
        void *scratch = aligned_alloc(64, (size_t)(nf_blocks_scratch() + 63) / 64 * 64);
        for (int64_t i = 0; i < rows * out; i++) alone[i] = 1.0f, expected[i] += 1.0;
        nf_blocks_forward(&b, alone, out, a, stride, rows, 0, out, 1.0f, scratch);
        snprintf(title, sizeof title, "%s many rows, %dx%dx%d", names[kind], (int)rows, (int)out, (int)in);
        check_close(title, alone, expected, rows * out, 2e-3);
        double *sums = to_double(y, rows * out);
        for (int64_t i = 0; i < rows * out; i++) sums[i] += 1.0;
        check_close("  and the same as one at a time", alone, sums, rows * out, 2e-6);
        free(scratch), free(sums);
    }
    free(w), free(x), free(y), free(alone), free(wide), free(xr), free(expected), free(a);
}

/* Forward and dX through linear.h, where they are multiplied as they are and where they are widened. */
static void linear(nf_block_kind kind, int native, int64_t rows, int64_t out, int64_t in) {
    uint8_t *w = random_blocks(kind, out, in, 3);
    nf_linear l = nf_linear_of_blocks(kind, out, in, w);
    if (!native) l.narrow = NULL;
    float *x = new_floats(rows * in, 4), *dy = new_floats(rows * out, 5), *y = new_floats(rows * out, 6);
    float *dx = new_floats(rows * in, 0);
    double *wide = widened(&l.blocks, out), *ey = to_double(y, rows * out), *ex = malloc((size_t)(rows * in) * sizeof *ex);
    double *xd = to_double(x, rows * in), *dyd = to_double(dy, rows * out);
    for (int64_t i = 0; i < rows * out; i++) ey[i] += plain_product(0, 1, rows, out, in, xd, wide, i / out, i % out);
    for (int64_t i = 0; i < rows * in; i++)
        ex[i] = plain_product(0, 0, rows, in, out, dyd, wide, i / in, i % in) + xd[i] + xd[i % in] +
                0.5 * dyd[i / in * out] * xd[i % in];
    int64_t widest = in > out ? in : out;
    void *memory = malloc((size_t)nf_operand_bytes(rows, widest)),
         *scratch = aligned_alloc(64, (size_t)(nf_linear_scratch(widest, 0) + 63) / 64 * 64);
    nf_operand a = nf_operand_in(memory, x, in, rows, in);
    nf_linear_prepare(&l, &a, 0, rows);
    nf_addend start = {.start = y, .ld = out};
    nf_linear_tile(&l, y, out, &a, 0, rows, 0, out, &start, scratch);
    a = nf_operand_in(memory, dy, out, rows, out);
    nf_linear_prepare_gradient(&l, &a, 0, 0, rows);
    nf_addend added = {
        .start = x, .ld = in, .bias = x, .r = 1, .u = dy, .ldu = out, .v = x, .v_k = in, .v_c = 1, .scale = 0.5f};
    nf_linear_tile_input(&l, dx, in, &a, 0, rows, 0, 0, in / 2 + 1, &added, scratch);
    added.start += in / 2 + 1, added.bias += in / 2 + 1, added.v += in / 2 + 1;
    nf_linear_tile_input(&l, dx + in / 2 + 1, in, &a, 0, rows, 0, in / 2 + 1, in, &added, scratch);
    snprintf(title, sizeof title, "%s %s %dx%dx%d", names[kind], l.narrow ? "native" : "widened", (int)rows, (int)out, (int)in);
    check_close(title, y, ey, rows * out, l.narrow ? 2e-2 : 2e-6); /* activations in 255 steps, or float32 */
    check_close(title, dx, ex, rows * in, l.narrow ? 1e-2 : 2e-6); /* gradient and weight in bf16, or float32 */
    free(w), free(x), free(dy), free(y), free(dx), free(wide), free(ey), free(ex), free(xd), free(dyd), free(memory);
    free(scratch);
}

/* What is not finite must show in the product; zeros and denormals must not disturb it. */
static void hostile(nf_block_kind kind, nf_block_path path) {
    enum { ROWS = 6, OUT = 40, IN = 512 };
    uint8_t *w = random_blocks(kind, OUT, IN, 7);
    float *x = new_floats(ROWS * IN, 8), y[ROWS * OUT], many[ROWS * OUT];
    int64_t bytes = row_bytes(kind, IN), at = place_of_scale(kind);
    nf_blocks b = {kind, path, w, IN};
    check(nf_blocks_first_nonfinite(kind, w, OUT, IN) == -1, "scales are finite");
    memset(w + bytes, 0, (size_t)bytes);
    set_half(w + 2 * bytes, at, 0x7e00);                        /* NaN */
    set_half(w + 3 * bytes + nf_block_bytes(kind), at, 0x7c00); /* infinity */
    for (int64_t i = 0; i < bytes; i += nf_block_bytes(kind)) {
        set_half(w + 4 * bytes + i, at, 1); /* the smallest denormal */
        if (kind == NF_BLOCK_Q4_K) set_half(w + 4 * bytes + i, 2, 0);
    }
    check(nf_blocks_first_nonfinite(kind, w, OUT, IN) == 2, "the row of the NaN is named");
    for (int i = 0; i < IN; i++) x[IN + i] = 0.0f, x[2 * IN + i] = 1e-41f, x[5 * IN + i] *= 3e38f;
    x[3 * IN + 69] = NAN, x[4 * IN] = -INFINITY;
    int64_t stride = nf_blocks_operand_bytes(IN);
    char *a = aligned_alloc(64, (size_t)(ROWS * stride));
    void *scratch = aligned_alloc(64, (size_t)(nf_blocks_scratch() + 63) / 64 * 64 + 64);
    nf_blocks_prepare(path, a, stride, x, IN, ROWS, IN);
    nf_blocks_decode(&b, y, OUT, a, stride, ROWS, 0, OUT);
    memcpy(many, y, sizeof many);
    if (path == NF_BLOCK_VNNI) nf_blocks_forward(&b, many, OUT, a, stride, ROWS, 0, OUT, 0.0f, scratch);
    for (int form = 0; form < 2; form++) {
        const float *r = form ? many : y;
        int good = !isfinite(r[2]) && !isfinite(r[3]) && r[1] == 0.0f && fabsf(r[4]) < 0.1f;
        for (int o = 5; o < OUT; o++)
            good &= isfinite(r[o]) && r[OUT + o] == 0.0f && fabsf(r[2 * OUT + o]) < 1e-30f && isnan(r[3 * OUT + o]) &&
                    isnan(r[4 * OUT + o]);
        good &= isnan(r[OUT + 2]) && isnan(r[4 * OUT + 1]);
        snprintf(title, sizeof title, "%s path %d: NaN and infinity show, zeros and denormals are quiet", names[kind], path);
        check(good, title);
    }
    free(w), free(x), free(a), free(scratch);
}

static void test_halves(void) {
    int same = 1;
    for (int bits = 0; bits < 0x7c00; bits++)
        same &= nf_float_to_half(nf_half_to_float((uint16_t)bits)) == bits &&
                nf_float_to_half(-nf_half_to_float((uint16_t)bits)) == (bits | 0x8000);
    check(same, "every float16 comes back");
    check(nf_float_to_half(65519.0f) == 0x7bff && nf_float_to_half(65520.0f) == 0x7c00 &&
              nf_float_to_half(1.00048828125f) == 0x3c00 && nf_float_to_half(1.00146484375f) == 0x3c02 &&
              (nf_float_to_half(NAN) & 0x7e00) == 0x7e00,
          "float16: ties to even, overflow, NaN");
}

/* -------- caches -------- */

static void cache_shape(nf_isa isa, nf_cache_kind kind, int64_t length, int64_t heads, int64_t group, int64_t d) {
    int64_t width = heads * d, n = length * width;
    float *k = new_floats(n, 10), *v = new_floats(n, 11), *q = new_floats(heads * group * d, 12);
    float *out = new_floats(heads * group * d, 0), *scratch = new_floats(nf_cached_scratch(group), 0);
    float *wk = new_floats(n, 0), *wv = new_floats(n, 0);
    nf_cached c = {kind,
                   isa,
                   heads,
                   d,
                   malloc((size_t)n * 4),
                   malloc((size_t)n * 4),
                   new_floats(length * heads, 0),
                   new_floats(length * heads, 0)};
    nf_cached_put(&c, 0, k, v, length - 1);
    nf_cached_put(&c, length - 1, k + (length - 1) * width, v + (length - 1) * width, 1);
    nf_cached_get(&c, 0, wk, wv, length);
    double *dk = to_double(wk, n), *dv = to_double(wv, n), *exact = to_double(k, n),
           *expected = malloc((size_t)(n * group) * 8);
    double *dq = malloc((size_t)(n * group) * 8);
    for (int64_t i = 0; i < n * group; i++) dq[i] = q[i % (heads * group * d)]; /* the query stands in the last row */
    plain_attention(expected, dq, dk, dv, length, heads * group, heads, d);
    for (int64_t h = 0; h < heads; h++)
        nf_cached_attention(nf_kernels_for(isa), &c, out + h * group * d, q + h * group * d, h, group, length,
                            (float)(1.0 / sqrt((double)d)), scratch);
    snprintf(title, sizeof title, "cache %d isa %d, %d positions, %dx%d heads of %d", kind, isa, (int)length, (int)heads,
             (int)group, (int)d);
    check_close(title, out, expected + (length - 1) * heads * group * d, heads * group * d, 2e-5);
    /* what storing costs: nothing, 11 bits, 255 steps */
    check_close("  and what it holds", wk, exact, n, kind == NF_CACHE_F32 ? 0.0 : kind == NF_CACHE_F16 ? 5e-4 : 4e-3);
    free(k), free(v), free(q), free(out), free(scratch), free(wk), free(wv), free(c.k), free(c.v), free(c.k_scale);
    free(c.v_scale), free(dk), free(dv), free(exact), free(expected), free(dq);
}

static void test_caches(void) {
    for (int isa = NF_ISA_BASE; isa <= (int)nf_cpu_isa(); isa++)
        for (int kind = NF_CACHE_F32; kind <= NF_CACHE_INT8; kind++) {
            cache_shape((nf_isa)isa, (nf_cache_kind)kind, 1, 1, 1, 4);
            cache_shape((nf_isa)isa, (nf_cache_kind)kind, 19, 2, 3, 40);
            cache_shape((nf_isa)isa, (nf_cache_kind)kind, 300, 2, 1, 64); /* two blocks of scores */
            cache_shape((nf_isa)isa, (nf_cache_kind)kind, 40, 1, 2, 90);
        }
    float k[2] = {1e6f, NAN}, v[2] = {-1e6f, INFINITY}, wk[2], wv[2];
    uint16_t stored[4];
    nf_cached c = {NF_CACHE_F16, nf_cpu_isa(), 1, 2, stored, stored + 2, NULL, NULL};
    nf_cached_put(&c, 0, k, v, 1);
    nf_cached_get(&c, 0, wk, wv, 1);
    check(wk[0] == 65504.0f && isnan(wk[1]) && wv[0] == -65504.0f && isinf(wv[1]),
          "float16 cache: large values, NaN, infinity");
    int8_t bytes[4];
    float scales[2];
    c = (nf_cached){NF_CACHE_INT8, nf_cpu_isa(), 1, 2, bytes, bytes + 2, scales, scales + 1};
    nf_cached_put(&c, 0, k, v, 1);
    check(isnan(scales[0]) && isnan(scales[1]), "int8 cache: what is not finite makes the scale NaN");
}

int main(void) {
    for (int kind = 0; kind < NF_BLOCK_MULTIPLIED; kind++) {
        int64_t unit = nf_block_values((nf_block_kind)kind);
        for (int path = 0; path < NF_BLOCK_PATHS; path++) {
            if (!nf_block_path_runs((nf_block_path)path)) continue;
            product((nf_block_kind)kind, (nf_block_path)path, 1, 9, unit);
            product((nf_block_kind)kind, (nf_block_path)path, 3, 40, 3 * unit);
            product((nf_block_kind)kind, (nf_block_path)path, 7, 24, 3 * unit);
            product((nf_block_kind)kind, (nf_block_path)path, 2, 64, 6 * unit);
            product((nf_block_kind)kind, (nf_block_path)path, 13, 37, 5 * unit);
            hostile((nf_block_kind)kind, (nf_block_path)path);
        }
        for (int native = 0; native < 2; native++) {
            linear((nf_block_kind)kind, native, 1, 9, unit);
            linear((nf_block_kind)kind, native, 13, 70, 3 * unit);
            linear((nf_block_kind)kind, native, 300, 33, 2 * unit); /* more rows than a panel's sums */
        }
    }
    test_halves();
    test_caches();
    return report();
}
