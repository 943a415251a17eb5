/* SPDX-License-Identifier: Apache-2.0 */
/* One row of activations times blocks on arm64, with dotprod and without it. */
#include "blocks_inside.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#define NF_INLINE static inline __attribute__((always_inline))

typedef float32x4_t vf;

/* 32 values: value[i] = d[i / 16] * q[i] - m */
typedef struct group {
    int8x16_t q[2];
    float d[2], m;
} group;

NF_INLINE float half_of(const uint8_t *p) {
    float16_t value;
    memcpy(&value, p, sizeof value);
    return (float)value;
}

NF_INLINE float sum_of_floats(vf v) { return vaddvq_f32(v); }

NF_INLINE group unpack_q4_k(const uint8_t *block, int which) {
    const float d = half_of(block), m = half_of(block + 2);
    uint64_t scales, minima;
    nf_q4_k_scales(block + Q4_K_SCALES, &scales, &minima);
    group g = {.m = m * (float)(minima >> 8 * which & 63)};
    g.d[0] = g.d[1] = d * (float)(scales >> 8 * which & 63);
    for (int half = 0; half < 2; half++) {
        uint8x16_t nibbles = vld1q_u8(block + Q4_K_NIBBLES + which / 2 * 32 + 16 * half);
        g.q[half] = vreinterpretq_s8_u8(which % 2 ? vshrq_n_u8(nibbles, 4) : vandq_u8(nibbles, vdupq_n_u8(15)));
    }
    return g;
}

NF_INLINE group unpack_q6_k(const uint8_t *block, int which) {
    const int8_t *scales = (const int8_t *)block + Q6_K_SCALES + 2 * which;
    const float d = half_of(block + Q6_K_D);
    group g = {.d = {d * (float)scales[0], d * (float)scales[1]}};
    for (int half = 0; half < 2; half++) {
        uint8x16_t low = vld1q_u8(block + which / 4 * 64 + which % 2 * 32 + 16 * half);
        uint8x16_t high = vld1q_u8(block + Q6_K_HIGH + which / 4 * 32 + 16 * half);
        low = which % 4 >= 2 ? vshrq_n_u8(low, 4) : vandq_u8(low, vdupq_n_u8(15));
        high = vandq_u8(vshlq_u8(high, vdupq_n_s8((int8_t)(which % 4 * -2))), vdupq_n_u8(3));
        g.q[half] = vsubq_s8(vreinterpretq_s8_u8(vorrq_u8(low, vshlq_n_u8(high, 4))), vdupq_n_s8(32));
    }
    return g;
}

NF_INLINE group unpack(nf_block_kind kind, const uint8_t *row, int64_t at) {
    if (kind == NF_BLOCK_Q4_K) return unpack_q4_k(row + at / 8 * Q4_K_BYTES, (int)(at % 8));
    if (kind == NF_BLOCK_Q6_K) return unpack_q6_k(row + at / 8 * Q6_K_BYTES, (int)(at % 8));
    const uint8_t *block = row + at * (kind == NF_BLOCK_Q8_0 ? Q8_0_BYTES : Q4_0_BYTES);
    group g = {.m = 0.0f};
    g.d[0] = g.d[1] = half_of(block);
    if (kind == NF_BLOCK_Q8_0) {
        for (int half = 0; half < 2; half++) g.q[half] = vld1q_s8((const int8_t *)block + 2 + 16 * half);
    } else {
        uint8x16_t both = vld1q_u8(block + 2);
        g.q[0] = vsubq_s8(vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15))), vdupq_n_s8(8));
        g.q[1] = vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(both, 4)), vdupq_n_s8(8));
    }
    return g;
}

NF_INLINE vf scaled_sums(vf sums, const group *g, int32x4_t first, int32x4_t second, float d) {
    sums = vfmaq_n_f32(sums, vcvtq_f32_s32(first), g->d[0] * d);
    return vfmaq_n_f32(sums, vcvtq_f32_s32(second), g->d[1] * d);
}

/* Two products of bytes fit into 16 bits, because activations are never -128. */
NF_INLINE int32x4_t products(int8x16_t q, int8x16_t x) {
    int16x8_t low = vmull_s8(vget_low_s8(q), vget_low_s8(x));
    return vpaddlq_s16(vmlal_s8(low, vget_high_s8(q), vget_high_s8(x)));
}

NF_INLINE vf add_group(vf sums, const group *g, const int8_t *x, float d) {
    return scaled_sums(sums, g, products(g->q[0], vld1q_s8(x)), products(g->q[1], vld1q_s8(x + 16)), d);
}

#define NF_NAME(x) x##_neon
#define NF_TARGET
#define NF_ADD add_group
#include "blocks_row.inc.h"

#if !defined(__clang__) || __clang_major__ >= 16 /* older ones know this only for a whole file */
#define NF_TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
static inline __attribute__((always_inline)) NF_TARGET vf add_group_dotprod(vf sums, const group *g, const int8_t *x, float d) {
    const int32x4_t zero = vdupq_n_s32(0);
    return scaled_sums(sums, g, vdotq_s32(zero, g->q[0], vld1q_s8(x)), vdotq_s32(zero, g->q[1], vld1q_s8(x + 16)), d);
}
#define NF_NAME(x) x##_dotprod
#define NF_ADD add_group_dotprod
#include "blocks_row.inc.h"
#else
void nf_blocks_decode_dotprod(const nf_blocks *b, float *y, int64_t ldy, const void *a, int64_t stride, int64_t rows,
                              int64_t o0, int64_t o1) {
    nf_blocks_decode_neon(b, y, ldy, a, stride, rows, o0, o1);
}
#endif
#endif
