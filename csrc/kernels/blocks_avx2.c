/* SPDX-License-Identifier: Apache-2.0 */
/* One row of activations times blocks through AVX2: 32 products at a time.  The instruction wants one factor without sign, so it
   gets |w| and x with the sign of w. */
#include "blocks_inside.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define NF_TARGET __attribute__((target("avx2,fma,f16c")))
#define NF_INLINE static inline __attribute__((always_inline)) NF_TARGET

typedef __m256 vf;

NF_INLINE float half_of(const uint8_t *p) { return _cvtsh_ss(nf_half_at(p)); }
NF_INLINE __m256i bytes_at(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)(const void *)p); }

/* 32 values: value[i] = d * q[i] - m, with the d of the first and of the last 16 in the halves of a vector. */
typedef struct group {
    __m256i q;
    __m256 d;
    float m;
} group;

NF_INLINE group unpack_q4_k(const uint8_t *block, int which) {
    const __m256i low4 = _mm256_set1_epi8(15);
    __m256i nibbles = bytes_at(block + Q4_K_NIBBLES + which / 2 * 32);
    uint64_t scales, minima;
    nf_q4_k_scales(block + Q4_K_SCALES, &scales, &minima);
    return (group){_mm256_and_si256(which % 2 ? _mm256_srli_epi16(nibbles, 4) : nibbles, low4),
                   _mm256_set1_ps(half_of(block) * (float)(scales >> 8 * which & 63)),
                   half_of(block + 2) * (float)(minima >> 8 * which & 63)};
}

NF_INLINE group unpack_q6_k(const uint8_t *block, int which) {
    __m256i low = bytes_at(block + which / 4 * 64 + which % 2 * 32), high = bytes_at(block + Q6_K_HIGH + which / 4 * 32);
    if (which % 4 >= 2) low = _mm256_srli_epi16(low, 4);
    high =
        _mm256_slli_epi16(_mm256_and_si256(_mm256_srl_epi16(high, _mm_cvtsi32_si128(which % 4 * 2)), _mm256_set1_epi8(3)), 4);
    __m256i q = _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi8(15)), high);
    const int8_t *scales = (const int8_t *)block + Q6_K_SCALES + 2 * which;
    float d = half_of(block + Q6_K_D);
    return (group){_mm256_sub_epi8(q, _mm256_set1_epi8(32)),
                   _mm256_set_m128(_mm_set1_ps(d * (float)scales[1]), _mm_set1_ps(d * (float)scales[0])), 0.0f};
}

NF_INLINE group unpack(nf_block_kind kind, const uint8_t *row, int64_t at) {
    if (kind == NF_BLOCK_Q8_0) {
        const uint8_t *block = row + at * Q8_0_BYTES;
        return (group){bytes_at(block + 2), _mm256_set1_ps(half_of(block)), 0.0f};
    }
    if (kind == NF_BLOCK_Q4_0) {
        const uint8_t *block = row + at * Q4_0_BYTES;
        __m128i raw = _mm_loadu_si128((const __m128i *)(const void *)(block + 2));
        __m256i both = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(raw, 4), raw), _mm256_set1_epi8(15));
        return (group){_mm256_sub_epi8(both, _mm256_set1_epi8(8)), _mm256_set1_ps(half_of(block)), 0.0f};
    }
    return kind == NF_BLOCK_Q4_K ? unpack_q4_k(row + at / 8 * Q4_K_BYTES, (int)(at % 8))
                                 : unpack_q6_k(row + at / 8 * Q6_K_BYTES, (int)(at % 8));
}

NF_INLINE vf add_group(vf sums, const group *g, const int8_t *x, float d) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(g->q), _mm256_sign_epi8(bytes_at((const uint8_t *)x), g->q));
    __m256 whole = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    return _mm256_fmadd_ps(whole, _mm256_mul_ps(g->d, _mm256_set1_ps(d)), sums);
}

NF_INLINE float sum_of_floats(vf v) { return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7])); }

#define NF_NAME(x) x##_avx2
#define NF_ADD add_group
#include "blocks_row.inc.h"
#endif
