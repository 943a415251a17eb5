/* SPDX-License-Identifier: Apache-2.0 */
/* Blocks as vectors of AVX-512, for blocks_vnni.c and blocks_panel.c.  VNNI wants one factor without sign: it is the weight, with
   an offset z (128, 8, 0, 32) that the format has or that is added; sums begin at -z * (sum of the activations).
   Everything goes by pairs of groups: 64 values of a weight in one vector, in their natural order. */
#ifndef NF_KERNELS_BLOCKS_AVX512_H
#define NF_KERNELS_BLOCKS_AVX512_H

#include <immintrin.h>

#include "blocks_inside.h"

#define NF_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")))
#define NF_INLINE static inline __attribute__((always_inline)) NF_TARGET

NF_INLINE int offset_of(nf_block_kind kind) {
    return kind == NF_BLOCK_Q8_0 ? 128 : kind == NF_BLOCK_Q4_0 ? 8 : kind == NF_BLOCK_Q6_K ? 32 : 0;
}

NF_INLINE int has_groups_of_32(nf_block_kind kind) { return kind == NF_BLOCK_Q8_0 || kind == NF_BLOCK_Q4_0; }

NF_INLINE __m512i two(const void *low, const void *high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(low)), _mm256_loadu_si256(high), 1);
}

/* Pair `at` of a row as 64 bytes without sign. */
NF_INLINE __m512i unpack(nf_block_kind kind, const char *row, int64_t at) {
    const __m512i low4 = _mm512_set1_epi8(15), high_half = _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4);
    if (kind == NF_BLOCK_Q8_0) {
        const char *block = row + at * 2 * Q8_0_BYTES + 2;
        return _mm512_xor_si512(two(block, block + Q8_0_BYTES), _mm512_set1_epi8((char)0x80));
    }
    if (kind == NF_BLOCK_Q4_0) {
        const char *block = row + at * 2 * Q4_0_BYTES + 2;
        __m256i a = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)block));
        __m256i b = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)(block + Q4_0_BYTES)));
        __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
        return _mm512_and_si512(_mm512_srlv_epi64(both, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4)), low4);
    }
    if (kind == NF_BLOCK_Q4_K) {
        __m256i a = _mm256_loadu_si256((const void *)(row + at / 4 * Q4_K_BYTES + Q4_K_NIBBLES + at % 4 * 32));
        return _mm512_and_si512(_mm512_srlv_epi64(_mm512_broadcast_i64x4(a), high_half), low4);
    }
    const char *block = row + at / 4 * Q6_K_BYTES;
    __m512i low = _mm512_loadu_si512(block + at % 4 / 2 * 64);
    __m512i high = _mm512_broadcast_i64x4(_mm256_loadu_si256((const void *)(block + Q6_K_HIGH + at % 4 / 2 * 32)));
    if (at % 2)
        low = _mm512_srli_epi64(low, 4), high = _mm512_srlv_epi64(high, _mm512_setr_epi64(0, 0, 0, 0, 2, 2, 2, 2));
    else
        high = _mm512_sllv_epi64(high, _mm512_setr_epi64(4, 4, 4, 4, 2, 2, 2, 2));
    return _mm512_or_si512(_mm512_and_si512(low, low4), _mm512_and_si512(high, _mm512_set1_epi8(0x30)));
}

/* -------- scales -------- */

/* Eight lanes of each block's scale. */
NF_INLINE __m512 pair_scales(nf_block_kind kind, const char *row, int64_t at) {
    int64_t bytes = kind == NF_BLOCK_Q8_0 ? Q8_0_BYTES : Q4_0_BYTES;
    const char *block = row + at * 2 * bytes;
    __m128i a = _mm_set1_epi16((short)nf_half_at(block)), b = _mm_set1_epi16((short)nf_half_at(block + bytes));
    return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1));
}

NF_INLINE __m512 half_of(const char *p) { return _mm512_cvtph_ps(_mm256_set1_epi16((short)nf_half_at(p))); }

/* The scales of a block of 256: of 32 values in eight lanes (Q4_K), of 16 values in sixteen (Q6_K); and the minima. */
NF_INLINE __m512 block_scales(nf_block_kind kind, const char *block, __m512 *minima) {
    *minima = _mm512_setzero_ps();
    if (kind == NF_BLOCK_Q6_K) {
        __m512i scales = _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(block + Q6_K_SCALES)));
        return _mm512_mul_ps(_mm512_cvtepi32_ps(scales), half_of(block + Q6_K_D));
    }
    uint64_t scales, least;
    nf_q4_k_scales((const uint8_t *)block + Q4_K_SCALES, &scales, &least);
    __m512i both = _mm512_cvtepu8_epi32(_mm_set_epi64x((long long)least, (long long)scales));
    __m512 d = _mm512_mask_blend_ps(0xff00, half_of(block), half_of(block + 2));
    __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(both), d);
    *minima = _mm512_zextps256_ps512(_mm512_extractf32x8_ps(product, 1));
    return product;
}

/* The scale of each lane of pair k of a block of 256. */
NF_INLINE __m512 lanes_of(nf_block_kind kind, __m512 scales, int k) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i index = kind == NF_BLOCK_Q6_K ? _mm512_add_epi32(_mm512_srli_epi32(lane, 2), _mm512_set1_epi32(4 * k))
                                          : _mm512_add_epi32(_mm512_srli_epi32(lane, 3), _mm512_set1_epi32(2 * k));
    return _mm512_permutexvar_ps(index, scales);
}

#endif
