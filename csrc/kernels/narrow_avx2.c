/* SPDX-License-Identifier: Apache-2.0 */
/* Products with narrow weights through AVX2 and FMA, and AVX-VNNI where it is. */
#include <stddef.h>

#include "narrow_inside.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#define NF_W 8
typedef float vf __attribute__((vector_size(32)));
typedef int32_t vi __attribute__((vector_size(32)));

#define NF_TARGET_AVX2 __attribute__((target("avx2,fma")))
#define NF_INLINE static inline __attribute__((always_inline)) NF_TARGET_AVX2

/* -------- what the body takes for granted -------- */

/* All bits of the first n lanes. */
NF_INLINE __m256i lanes_left(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n < 8 ? (int)n : 8), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

NF_INLINE vf floats_at(const float *p, int64_t n) {
    return (vf)(n >= 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, lanes_left(n)));
}

NF_INLINE void put_floats(float *p, vf v, int64_t n) {
    if (n >= 8)
        _mm256_storeu_ps(p, (__m256)v);
    else
        _mm256_maskstore_ps(p, lanes_left(n), (__m256)v);
}

NF_INLINE vi splat(int32_t x) { return (vi)_mm256_set1_epi32(x); }
NF_INLINE vi whole(vf v) { return (vi)_mm256_cvtps_epi32((__m256)v); }
NF_INLINE vi larger(vi a, vi b) { return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b); }

NF_INLINE void put_past(float *p, vf v) { _mm256_stream_ps(p, (__m256)v); }
NF_INLINE void past_done(void) { _mm_sfence(); }
NF_INLINE float sum_of_floats(vf v) { return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7])); }

NF_INLINE int32_t sum_of_units(vi v) { return v[0] + v[1] + v[2] + v[3] + v[4] + v[5] + v[6] + v[7]; }

NF_INLINE int32_t largest_of_units(vi v) {
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
    __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1)));
}

/* In place: 8 vectors of 8 units become their transpose. */
NF_INLINE void transpose(vi r[8]) {
    __m256i t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32((__m256i)r[i], (__m256i)r[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32((__m256i)r[i], (__m256i)r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int k = 0; k < 2; k++) {
            r[i + 2 * k] = (vi)_mm256_unpacklo_epi64(t[i + k], t[i + k + 2]);
            r[i + 2 * k + 1] = (vi)_mm256_unpackhi_epi64(t[i + k], t[i + k + 2]);
        }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2x128_si256((__m256i)r[i], (__m256i)r[i + 4], 0x20);
        t[i + 4] = _mm256_permute2x128_si256((__m256i)r[i], (__m256i)r[i + 4], 0x31);
    }
    for (int i = 0; i < 8; i++) r[i] = (vi)t[i];
}

/* -------- units -------- */

/* The first n bytes from memory, the rest 0. */
NF_INLINE __m256i bytes_at(const char *p, int64_t n) {
    char some[32] = {0};
    if (n >= 32) return _mm256_loadu_si256((const __m256i *)(const void *)p);
    if (n > 0) memcpy(some, p, (size_t)n);
    return _mm256_loadu_si256((const __m256i *)(const void *)some);
}

NF_INLINE __m128i few_bytes_at(const char *p, int64_t n) {
    return n >= 16 ? _mm_loadu_si128((const __m128i *)(const void *)p) : _mm256_castsi256_si128(bytes_at(p, n));
}

NF_INLINE vi units_at(const char *row, int64_t left) { return (vi)bytes_at(row, left); }

/* Bytes as 16 bits. */
NF_INLINE vi wide_units_at(const char *row, int64_t left) { return (vi)_mm256_cvtepi8_epi16(few_bytes_at(row, left)); }

NF_INLINE void put_pairs(vi *to, __m256i a, __m256i b) {
    __m256i low = _mm256_unpacklo_epi16(a, b), high = _mm256_unpackhi_epi16(a, b); /* columns 0-3|8-11, 4-7|12-15 */
    to[0] = (vi)_mm256_permute2x128_si256(low, high, 0x20);
    to[1] = (vi)_mm256_permute2x128_si256(low, high, 0x31);
}

NF_INLINE void pairs_across(vi *to, const char *w, int64_t apart, int64_t rows, int64_t cols) {
    put_pairs(to, bytes_at(w, rows > 0 ? 2 * cols : 0), bytes_at(w + apart, rows > 1 ? 2 * cols : 0));
}

NF_INLINE void wide_pairs_across(vi *to, const char *w, int64_t apart, int64_t rows, int64_t cols) {
    put_pairs(to, (__m256i)wide_units_at(w, rows > 0 ? cols : 0), (__m256i)wide_units_at(w + apart, rows > 1 ? cols : 0));
}

NF_INLINE void quads_across(vi *to, const char *w, int64_t apart, int64_t rows, int64_t cols) {
    __m128i r[4];
    for (int k = 0; k < 4; k++) r[k] = few_bytes_at(w + k * apart, rows > k ? cols : 0);
    __m128i low01 = _mm_unpacklo_epi8(r[0], r[1]), high01 = _mm_unpackhi_epi8(r[0], r[1]);
    __m128i low23 = _mm_unpacklo_epi8(r[2], r[3]), high23 = _mm_unpackhi_epi8(r[2], r[3]);
    to[0] = (vi)_mm256_set_m128i(_mm_unpackhi_epi16(low01, low23), _mm_unpacklo_epi16(low01, low23));
    to[1] = (vi)_mm256_set_m128i(_mm_unpackhi_epi16(high01, high23), _mm_unpacklo_epi16(high01, high23));
}

/* -------- forms -------- */

/* The lower halves of the lanes. */
NF_INLINE __m128i halves_of(__m256i v) {
    const __m256i low = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1, 0, 1, 4, 5, 8, 9, 12, 13, -1,
                                         -1, -1, -1, -1, -1, -1, -1);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_shuffle_epi8(v, low), 0x08));
}

NF_INLINE void put_words(char *to, vi q) { _mm_storeu_si128((__m128i *)(void *)to, halves_of((__m256i)q)); }
NF_INLINE void put_high_halves(uint16_t *to, vi v) { put_words((char *)to, (vi)_mm256_srli_epi32((__m256i)v, 16)); }
NF_INLINE void put_offset_bytes(char *to, vi q) {
    __m128i words = halves_of((__m256i)(q + 128));
    _mm_storel_epi64((__m128i *)(void *)to, _mm_packus_epi16(words, words));
}

/* Products of 16 bits: those of bytes, as they are paired by vpmaddubsw, do not fit into its sums. */
NF_INLINE void add_words(vi *sum, vi x, vi w) { *sum += (vi)_mm256_madd_epi16((__m256i)x, (__m256i)w); }

NF_INLINE vi in_vector(vi x) {
    __asm__("" : "+x"(x));
    return x;
}
NF_INLINE void add_fused(vi *sum, vf x, vf w) { __asm__("vfmadd231ps %2, %1, %0" : "+x"(*sum) : "x"(x), "x"(w)); }
/* With the mask in memory: there is no register for it. */
NF_INLINE vi upper_halves(vi x) {
    static const vi upper = {-65536, -65536, -65536, -65536, -65536, -65536, -65536, -65536};
    __asm__("vpand %1, %0, %0" : "+x"(x) : "m"(upper));
    return x;
}
#include "narrow_plain.h"

/* 16 registers hold the sums of six rows and one half of the units at a time, so all first halves are multiplied before the
   second ones; memory is read again between them. */
NF_INLINE void sums_by_halves(const tile *t, const char *const *a, vi sums[6][2], const int rows, request next) {
    const vi *panel = t->panel;
    for (int64_t u = 0, units = t->units; u < units; u++) {
        if (u % UNITS_PER_LINE == 0) ask(&next);
        for (int half = 0; half < 2; half++) {
            vf left = half_of(panel[2 * u], half), right = half_of(panel[2 * u + 1], half);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                int32_t unit;
                memcpy(&unit, a[r] + 4 * u, sizeof unit);
                vf x = half_of(in_vector(splat(unit)), half);
                add_fused(&sums[r][0], x, left);
                add_fused(&sums[r][1], x, right);
            }
            __asm__ volatile("" : : : "memory");
        }
    }
}

#define NF_TARGET NF_TARGET_AVX2
#define NF_NAME(x) narrow_##x##_avx2_fused
#define NF_LABEL "avx2"
#define NF_NEEDS NF_HAS_AVX2
#define NF_INT8 0
#define NF_SIZE 2
#define NF_OFFSET 0
#define NF_ROWS 6
#define NF_SUMS sums_by_halves
#define NF_ADD add_halves
#define NF_UNITS units_at
#define NF_ACROSS pairs_across
#define NF_PUT put_rounded
#include "narrow.inc.h"

#define NF_TARGET NF_TARGET_AVX2
#define NF_NAME(x) narrow_##x##_avx2_words
#define NF_LABEL "avx2"
#define NF_NEEDS NF_HAS_AVX2
#define NF_INT8 1
#define NF_SIZE 2
#define NF_OFFSET 0
#define NF_ROWS 6
#define NF_ADD add_words
#define NF_UNITS wide_units_at
#define NF_ACROSS wide_pairs_across
#define NF_PUT put_words
#include "narrow.inc.h"

#if defined(__clang__) || __GNUC__ >= 11 /* the assemblers of older ones do not know it */
/* As an instruction, because compilers move the sums about and to memory otherwise. */
NF_INLINE void add_vnni(vi *sum, vi x, vi w) { __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(*sum) : "x"(x), "x"(w)); }

#define NF_TARGET NF_TARGET_AVX2
#define NF_NAME(x) narrow_##x##_avx2_vnni
#define NF_LABEL "avx-vnni"
#define NF_NEEDS NF_HAS_AVX2 | NF_HAS_AVX_VNNI
#define NF_INT8 1
#define NF_SIZE 1
#define NF_OFFSET 128
#define NF_ROWS 6
#define NF_ADD add_vnni
#define NF_UNITS units_at
#define NF_ACROSS quads_across
#define NF_PUT put_offset_bytes
#include "narrow.inc.h"

#define NF_HAVE_VNNI
#endif

const nf_narrow_form *const nf_narrow_avx2[] = {&narrow_form_avx2_fused,
#ifdef NF_HAVE_VNNI
                                                &narrow_form_avx2_vnni,
#endif
                                                &narrow_form_avx2_words, NULL};
#else
const nf_narrow_form *const nf_narrow_avx2[] = {NULL};
#endif
