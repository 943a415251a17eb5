/* SPDX-License-Identifier: Apache-2.0 */
/* Products with narrow weights through AVX-512: with VNNI and BF16, and without them. */
#include <stddef.h>

#include "narrow_inside.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#define NF_W 16
typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));

#define NF_AVX512 "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"
#define NF_INLINE static inline __attribute__((always_inline, target(NF_AVX512)))
#include "transpose16.h"

/* -------- what the body takes for granted -------- */

/* Masks of the first n lanes. */
NF_INLINE __mmask64 bytes_left(int64_t n) { return n >= 64 ? ~0ull : n > 0 ? (1ull << n) - 1 : 0; }
NF_INLINE __mmask32 halves_left(int64_t n) { return n >= 32 ? ~0u : n > 0 ? (1u << n) - 1 : 0; }
NF_INLINE __mmask16 floats_left(int64_t n) { return n >= 16 ? 0xffff : n > 0 ? (__mmask16)((1u << n) - 1) : 0; }

NF_INLINE vf floats_at(const float *p, int64_t n) { return (vf)_mm512_maskz_loadu_ps(floats_left(n), p); }
NF_INLINE void put_floats(float *p, vf v, int64_t n) { _mm512_mask_storeu_ps(p, floats_left(n), (__m512)v); }
NF_INLINE void put_past(float *p, vf v) { _mm512_stream_ps(p, (__m512)v); }
NF_INLINE void past_done(void) { _mm_sfence(); }
NF_INLINE float sum_of_floats(vf v) { return _mm512_reduce_add_ps((__m512)v); }
NF_INLINE int32_t sum_of_units(vi v) { return _mm512_reduce_add_epi32((__m512i)v); }
NF_INLINE int32_t largest_of_units(vi v) { return _mm512_reduce_max_epi32((__m512i)v); }
NF_INLINE vi splat(int32_t x) { return (vi)_mm512_set1_epi32(x); }
NF_INLINE vi whole(vf v) { return (vi)_mm512_cvtps_epi32((__m512)v); }
NF_INLINE vi larger(vi a, vi b) { return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b); }
NF_INLINE void transpose(vi r[16]) { transpose16((__m512i *)r); }

/* -------- units -------- */

NF_INLINE vi units_at(const char *row, int64_t left) { return (vi)_mm512_maskz_loadu_epi8(bytes_left(left), row); }

/* Bytes as 16 bits. */
NF_INLINE vi wide_units_at(const char *row, int64_t left) {
    return (vi)_mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(halves_left(left), row));
}

NF_INLINE void put_pairs(vi *to, __m512i a, __m512i b) {
    static const uint16_t low[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                     8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i first = _mm512_loadu_si512(low), second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    to[0] = (vi)_mm512_permutex2var_epi16(a, first, b);
    to[1] = (vi)_mm512_permutex2var_epi16(a, second, b);
}

NF_INLINE void pairs_across(vi *to, const char *w, int64_t apart, int64_t rows, int64_t cols) {
    __mmask32 some = halves_left(cols);
    put_pairs(to, _mm512_maskz_loadu_epi16(rows > 0 ? some : 0, w), _mm512_maskz_loadu_epi16(rows > 1 ? some : 0, w + apart));
}

NF_INLINE void wide_pairs_across(vi *to, const char *w, int64_t apart, int64_t rows, int64_t cols) {
    put_pairs(to, (__m512i)wide_units_at(w, rows > 0 ? cols : 0), (__m512i)wide_units_at(w + apart, rows > 1 ? cols : 0));
}

NF_INLINE void quads_across(vi *to, const char *w, int64_t apart, int64_t rows, int64_t cols) {
    static const uint16_t low[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                     32, 48, 33, 49, 34, 50, 35, 51, 36, 52, 37, 53, 38, 54, 39, 55};
    const __m512i first = _mm512_loadu_si512(low), second = _mm512_add_epi16(first, _mm512_set1_epi16(8));
    __mmask32 some = halves_left(cols);
    __m256i r[4];
    for (int k = 0; k < 4; k++) r[k] = _mm256_maskz_loadu_epi8(rows > k ? some : 0, w + k * apart);
    __m512i even = _mm512_inserti64x4(_mm512_castsi256_si512(r[0]), r[2], 1);
    __m512i odd = _mm512_inserti64x4(_mm512_castsi256_si512(r[1]), r[3], 1);
    /* pairs of the first two rows in the lower halves, of the others in the upper ones: columns 0-7|16-23, and 8-15|24-31 */
    __m512i a = _mm512_unpacklo_epi8(even, odd), b = _mm512_unpackhi_epi8(even, odd);
    to[0] = (vi)_mm512_permutex2var_epi16(a, first, b);
    to[1] = (vi)_mm512_permutex2var_epi16(a, second, b);
}

NF_INLINE void quads_across_pair(vi *to, vi *other, const char *w, int64_t apart) {
    __m512i r[4], pairs[4], quads[4], half[4];
    for (int k = 0; k < 4; k++) r[k] = _mm512_loadu_si512(w + k * apart);
    for (int k = 0; k < 2; k++) {
        pairs[2 * k] = _mm512_unpacklo_epi8(r[2 * k], r[2 * k + 1]);
        pairs[2 * k + 1] = _mm512_unpackhi_epi8(r[2 * k], r[2 * k + 1]);
    }
    for (int k = 0; k < 2; k++) { /* four columns of each sixteen */
        quads[2 * k] = _mm512_unpacklo_epi16(pairs[k], pairs[2 + k]);
        quads[2 * k + 1] = _mm512_unpackhi_epi16(pairs[k], pairs[2 + k]);
    }
    for (int k = 0; k < 2; k++) {
        half[k] = _mm512_shuffle_i32x4(quads[2 * k], quads[2 * k + 1], 0x44);
        half[2 + k] = _mm512_shuffle_i32x4(quads[2 * k], quads[2 * k + 1], 0xee);
    }
    to[0] = (vi)_mm512_shuffle_i32x4(half[0], half[1], 0x88), to[1] = (vi)_mm512_shuffle_i32x4(half[0], half[1], 0xdd);
    other[0] = (vi)_mm512_shuffle_i32x4(half[2], half[3], 0x88), other[1] = (vi)_mm512_shuffle_i32x4(half[2], half[3], 0xdd);
}

/* -------- forms -------- */

/* sum += the products of 16 units.  As instructions, because compilers move the sums about and to memory otherwise. */
NF_INLINE void add_vnni(vi *sum, vi x, vi w) { __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(x), "v"(w)); }
NF_INLINE void add_bf16(vi *sum, vi x, vi w) { __asm__("vdpbf16ps %2, %1, %0" : "+v"(*sum) : "v"(x), "v"(w)); }
NF_INLINE void add_words(vi *sum, vi x, vi w) { *sum += (vi)_mm512_madd_epi16((__m512i)x, (__m512i)w); }

NF_INLINE void put_offset_bytes(char *to, vi q) {
    _mm_storeu_si128((__m128i *)(void *)to, _mm512_cvtepi32_epi8((__m512i)(q + 128)));
}
NF_INLINE void put_words(char *to, vi q) { _mm256_storeu_si256((__m256i *)(void *)to, _mm512_cvtepi32_epi16((__m512i)q)); }
NF_INLINE void put_high_halves(uint16_t *to, vi v) {
    _mm256_storeu_si256((__m256i *)(void *)to, _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)v, 16)));
}
#define NF_TARGET __attribute__((target(NF_AVX512 ",avx512bf16")))
static inline __attribute__((always_inline)) NF_TARGET void put_bf16(uint16_t *to, vf v) {
    _mm256_storeu_si256((__m256i *)(void *)to, (__m256i)_mm512_cvtneps_pbh((__m512)v));
}
#define NF_NAME(x) narrow_##x##_avx512_bf16
#define NF_LABEL "avx512-bf16"
#define NF_NEEDS NF_HAS_AVX512 | NF_HAS_AVX512_BF16
#define NF_INT8 0
#define NF_SIZE 2
#define NF_OFFSET 0
#define NF_ROWS 12
#define NF_ADD add_bf16
#define NF_UNITS units_at
#define NF_ACROSS pairs_across
#define NF_PUT put_bf16
#include "narrow.inc.h"

NF_INLINE vi in_vector(vi x) {
    __asm__("" : "+v"(x));
    return x;
}
NF_INLINE void add_fused(vi *sum, vf x, vf w) { __asm__("vfmadd231ps %2, %1, %0" : "+v"(*sum) : "v"(x), "v"(w)); }
NF_INLINE vi upper_halves(vi x) { return x & (int32_t)0xffff0000; }
#include "narrow_plain.h"
#define NF_TARGET __attribute__((target(NF_AVX512)))
#define NF_NAME(x) narrow_##x##_avx512_fused
#define NF_LABEL "avx512"
#define NF_NEEDS NF_HAS_AVX512
#define NF_INT8 0
#define NF_SIZE 2
#define NF_OFFSET 0
#define NF_ROWS 12
#define NF_ADD add_halves
#define NF_UNITS units_at
#define NF_ACROSS pairs_across
#define NF_PUT put_rounded
#include "narrow.inc.h"

#define NF_TARGET __attribute__((target(NF_AVX512 ",avx512vnni")))
#define NF_NAME(x) narrow_##x##_avx512_vnni
#define NF_LABEL "avx512-vnni"
#define NF_NEEDS NF_HAS_AVX512 | NF_HAS_AVX512_VNNI
#define NF_INT8 1
#define NF_SIZE 1
#define NF_OFFSET 128
#define NF_ROWS 12
#define NF_ADD add_vnni
#define NF_UNITS units_at
#define NF_ACROSS quads_across
#define NF_ACROSS_PAIR quads_across_pair
#define NF_PUT put_offset_bytes
#include "narrow.inc.h"

#define NF_TARGET __attribute__((target(NF_AVX512)))
#define NF_NAME(x) narrow_##x##_avx512_words
#define NF_LABEL "avx512"
#define NF_NEEDS NF_HAS_AVX512
#define NF_INT8 1
#define NF_SIZE 2
#define NF_OFFSET 0
#define NF_ROWS 12
#define NF_ADD add_words
#define NF_UNITS wide_units_at
#define NF_ACROSS wide_pairs_across
#define NF_PUT put_words
#include "narrow.inc.h"

const nf_narrow_form *const nf_narrow_avx512[] = {&narrow_form_avx512_bf16, &narrow_form_avx512_fused, &narrow_form_avx512_vnni,
                                                  &narrow_form_avx512_words, NULL};
#else
const nf_narrow_form *const nf_narrow_avx512[] = {NULL};
#endif
