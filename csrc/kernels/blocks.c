/* SPDX-License-Identifier: Apache-2.0 */
#include "blocks.h"

#include <math.h>
#include <string.h>

#include "../core/cpu.h"
#include "../core/half.h"
#include "blocks_inside.h"

static const uint8_t *row_of(const nf_blocks *b, int64_t o) {
    return (const uint8_t *)b->w + o * (b->in / nf_block_values(b->kind) * nf_block_bytes(b->kind));
}

/* To the nearest, ties to even, for |x| <= 2^22: adding 1.5 * 2^23 leaves the whole number in the low bits. */
static inline int32_t round_to_whole(float x) {
    float shifted = x + 12582912.0f;
    int32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    return bits - 0x4b400000;
}

#define NF_TARGET
#define NF_NAME(x) x##_base
#include "blocks.inc.h"

/* The product of two rows. */
static inline float dot_base(nf_block_kind kind, const uint8_t *row, const nf_block_pair *pairs, int64_t groups) {
    group_base g;
    float total = 0.0f;
    for (int64_t at = 0; at < groups; at++) {
        const nf_block_pair *x = &pairs[at / 2];
        const int8_t *q = x->q + at % 2 * 32;
        int32_t sums[2] = {0, 0};
        unpack_base(&g, kind, row, at);
        for (int half = 0; half < 2; half++)
            for (int i = 16 * half; i < 16 * half + 16; i++) sums[half] += (int16_t)(g.q[i] * q[i]);
        float product = g.d[0] * (float)sums[0] + g.d[1] * (float)sums[1] + g.m * (float)x->minus_sum[at % 2];
        total += x->d[at % 2] * product;
    }
    return total;
}

static inline void dots_base(nf_block_kind kind, const nf_blocks *b, float *y, int64_t ldy, const char *a, int64_t stride,
                             int64_t rows, int64_t o0, int64_t o1) {
    for (int64_t o = o0; o < o1; o++)
        for (int64_t t = 0; t < rows; t++)
            y[t * ldy + (o - o0)] = dot_base(kind, row_of(b, o), (const void *)(a + t * stride), b->in / 32);
}

static void decode_base(const nf_blocks *b, float *y, int64_t ldy, const void *a, int64_t stride, int64_t rows, int64_t o0,
                        int64_t o1){NF_FOR_KIND(b -> kind, dots_base, b, y, ldy, a, stride, rows, o0, o1)}

#if defined(__x86_64__)
#define NF_TARGET __attribute__((target("avx2,fma,f16c")))
#define NF_NAME(x) x##_avx2
#include "blocks.inc.h"
#endif

/* -------- paths -------- */

static const struct {
    unsigned needs; /* nf_feature bits */
    void (*prepare)(void *out, int64_t stride, const float *x, int64_t ldx, int64_t rows, int64_t width);
    void (*widen)(const nf_blocks *b, float *out, int64_t o, int64_t i0, int64_t n);
    void (*decode)(const nf_blocks *b, float *y, int64_t ldy, const void *a, int64_t stride, int64_t rows, int64_t o0,
                   int64_t o1);
} paths[NF_BLOCK_PATHS] = {
    [NF_BLOCK_PLAIN] = {0, prepare_base, widen_base, decode_base},
#if defined(__x86_64__)
    [NF_BLOCK_AVX2] = {NF_HAS_AVX2, prepare_avx2, widen_avx2, nf_blocks_decode_avx2},
    [NF_BLOCK_VNNI] = {NF_HAS_AVX512 | NF_HAS_AVX512_VNNI | NF_HAS_AVX512_BF16, nf_blocks_prepare_vnni, widen_avx2,
                       nf_blocks_decode_vnni},
#elif defined(__aarch64__)
    [NF_BLOCK_NEON] = {NF_HAS_NEON, prepare_base, widen_base, nf_blocks_decode_neon},
    [NF_BLOCK_DOTPROD] = {NF_HAS_NEON | NF_HAS_DOTPROD, prepare_base, widen_base, nf_blocks_decode_dotprod},
#endif
};

int nf_block_path_runs(nf_block_path path) { return paths[path].decode && !(paths[path].needs & ~nf_cpu_features()); }

nf_block_path nf_block_path_here(void) {
    int path = NF_BLOCK_PATHS - 1;
    while (!nf_block_path_runs((nf_block_path)path)) path--;
    return (nf_block_path)path;
}

void nf_blocks_widen(const nf_blocks *b, float *out, int64_t o, int64_t i0, int64_t n) {
    paths[b->path].widen(b, out, o, i0, n);
}

int64_t nf_blocks_first_nonfinite(nf_block_kind kind, const void *w, int64_t rows, int64_t in) {
    nf_blocks b = {kind, NF_BLOCK_PLAIN, w, in};
    int64_t bytes = nf_block_bytes(kind), blocks = in / nf_block_values(kind), d = kind == NF_BLOCK_Q6_K ? Q6_K_D : 0;
    for (int64_t o = 0; o < rows; o++)
        for (int64_t i = 0; i < blocks; i++) {
            const uint8_t *block = row_of(&b, o) + i * bytes;
            int bad = (nf_half_at(block + d) & 0x7c00) == 0x7c00;
            if (kind == NF_BLOCK_Q4_K) bad |= (nf_half_at(block + 2) & 0x7c00) == 0x7c00;
            if (bad) return o;
        }
    return -1;
}

int64_t nf_blocks_operand_bytes(int64_t width) { return nf_block_pairs(width) * (int64_t)sizeof(nf_block_pair); }

void nf_blocks_prepare(nf_block_path path, void *out, int64_t stride, const float *x, int64_t ldx, int64_t rows,
                       int64_t width) {
    paths[path].prepare(out, stride, x, ldx, rows, width);
}

void nf_blocks_decode(const nf_blocks *b, float *y, int64_t ldy, const void *a, int64_t stride, int64_t rows, int64_t o0,
                      int64_t o1) {
    paths[b->path].decode(b, y, ldy, a, stride, rows, o0, o1);
}
