/* SPDX-License-Identifier: Apache-2.0 */
/* Activations for blocks, and one row of them times blocks, through AVX-512 VNNI. */
#include "blocks_inside.h"

#if defined(__x86_64__)
#include "blocks_avx512.h"

enum { AT_ONCE = 4 };  /* rows of W that are read side by side */
enum { AHEAD = 8192 }; /* bytes: how early memory is asked for; without that a core gets a third of what it can read */

/* -------- activations -------- */

NF_INLINE void prepare_group(nf_block_pair *to, int group, __m512 a, __m512 b) {
    const __m512i exponent = _mm512_set1_epi32(0x7f800000);
    __mmask16 broken = _mm512_cmpeq_epi32_mask(_mm512_and_epi32(_mm512_castps_si512(a), exponent), exponent) |
                       _mm512_cmpeq_epi32_mask(_mm512_and_epi32(_mm512_castps_si512(b), exponent), exponent);
    float top = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    int quiet = broken || !(top > NF_BLOCK_SMALLEST);
    __m512 inverse = _mm512_set1_ps(quiet ? 0.0f : 127.0f / top);
    __m512i qa = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)), qb = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
    if (quiet) qa = qb = _mm512_setzero_si512();
    _mm_storeu_si128((__m128i *)(void *)(to->q + 32 * group), _mm512_cvtepi32_epi8(qa));
    _mm_storeu_si128((__m128i *)(void *)(to->q + 32 * group + 16), _mm512_cvtepi32_epi8(qb));
    to->d[group] = broken ? __builtin_nanf("") : quiet ? 0.0f : top / 127.0f;
    to->minus_sum[group] = -_mm512_reduce_add_epi32(_mm512_add_epi32(qa, qb));
}

NF_INLINE __m512 some_of(const float *x, int64_t left) {
    return _mm512_maskz_loadu_ps(left >= 16 ? 0xffff : left > 0 ? (__mmask16)((1u << left) - 1) : 0, x);
}

NF_TARGET void nf_blocks_prepare_vnni(void *out, int64_t stride, const float *x, int64_t ldx, int64_t rows, int64_t width) {
    for (int64_t t = 0; t < rows; t++) {
        nf_block_pair *pairs = (void *)((char *)out + t * stride);
        for (int64_t at = 0; at < 2 * nf_block_pairs(width); at++) {
            const float *from = x + t * ldx + at * 32;
            int64_t left = width - at * 32;
            prepare_group(&pairs[at / 2], (int)(at % 2), some_of(from, left), some_of(from + 16, left - 16));
        }
    }
}

/* -------- one row of activations -------- */

/* 64 activations, what their sums begin at, and the scale of each lane. */
typedef struct part {
    __m512i x, start;
    __m512 d;
} part;

NF_INLINE part part_of(const nf_block_pair *a, int offset) {
    part p = {.x = _mm512_loadu_si512(a->q), .start = _mm512_setzero_si512()};
    if (offset) {
        __m512i offsets = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8((char)offset), p.x);
        p.start = _mm512_sub_epi32(_mm512_setzero_si512(), offsets);
    }
    p.d = _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_broadcast_ss(&a->d[0])), _mm256_broadcast_ss(&a->d[1]), 1);
    return p;
}

NF_INLINE __m512 add_pair(__m512 sum, const part *p, __m512i w, __m512 scales) {
    __m512 whole = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(p->start, w, p->x));
    return _mm512_fmadd_ps(whole, _mm512_mul_ps(scales, p->d), sum);
}

/* Blocks of 32: y[c] = row c of w . a, for n rows row_bytes apart; n is a constant. */
NF_INLINE void dot_32(nf_block_kind kind, float *y, const char *w, int64_t row_bytes, int64_t groups, const nf_block_pair *a,
                      const int n) {
    __m512 sums[AT_ONCE];
    int64_t bytes = kind == NF_BLOCK_Q8_0 ? Q8_0_BYTES : Q4_0_BYTES;
#pragma GCC unroll 4
    for (int c = 0; c < n; c++) sums[c] = _mm512_setzero_ps();
    for (int64_t at = 0; at < groups / 2; at++) {
        part p = part_of(&a[at], offset_of(kind));
#pragma GCC unroll 4
        for (int c = 0; c < n; c++) {
            const char *row = w + c * row_bytes;
            _mm_prefetch(row + at * 2 * bytes + AHEAD, _MM_HINT_T0);
            sums[c] = add_pair(sums[c], &p, unpack(kind, row, at), pair_scales(kind, row, at));
        }
    }
    if (groups % 2) { /* half a pair is left: the other half is zeros */
        part p = part_of(&a[groups / 2], offset_of(kind));
#pragma GCC unroll 4
        for (int c = 0; c < n; c++) {
            char last[2 * Q8_0_BYTES] = {0};
            memcpy(last, w + c * row_bytes + (groups - 1) * bytes, (size_t)bytes);
            sums[c] = add_pair(sums[c], &p, unpack(kind, last, 0), pair_scales(kind, last, 0));
        }
    }
#pragma GCC unroll 4
    for (int c = 0; c < n; c++) y[c] = _mm512_reduce_add_ps(sums[c]);
}

/* The same for blocks of 256. */
NF_INLINE void dot_256(nf_block_kind kind, float *y, const char *w, int64_t row_bytes, int64_t blocks, const nf_block_pair *a,
                       const int n) {
    __m512 sums[AT_ONCE];
    int64_t bytes = kind == NF_BLOCK_Q4_K ? Q4_K_BYTES : Q6_K_BYTES;
#pragma GCC unroll 4
    for (int c = 0; c < n; c++) sums[c] = _mm512_setzero_ps();
    for (int64_t i = 0; i < blocks; i++) {
        part p[4];
        for (int k = 0; k < 4; k++) p[k] = part_of(&a[4 * i + k], offset_of(kind));
        float sums_of_groups[8];
        for (int k = 0; k < 8; k++) sums_of_groups[k] = a[4 * i + k / 2].d[k % 2] * (float)a[4 * i + k / 2].minus_sum[k % 2];
        __m512 of_minima = _mm512_zextps256_ps512(_mm256_loadu_ps(sums_of_groups));
#pragma GCC unroll 4
        for (int c = 0; c < n; c++) {
            const char *row = w + c * row_bytes;
            __m512 minima, scales = block_scales(kind, row + i * bytes, &minima);
            for (int64_t line = 0; line < bytes; line += 64) _mm_prefetch(row + i * bytes + line + AHEAD, _MM_HINT_T0);
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++)
                sums[c] = add_pair(sums[c], &p[k], unpack(kind, row, 4 * i + k), lanes_of(kind, scales, k));
            if (kind == NF_BLOCK_Q4_K) sums[c] = _mm512_fmadd_ps(minima, of_minima, sums[c]);
        }
    }
#pragma GCC unroll 4
    for (int c = 0; c < n; c++) y[c] = _mm512_reduce_add_ps(sums[c]);
}

NF_INLINE void dots(nf_block_kind kind, const nf_blocks *b, float *y, int64_t ldy, const char *a, int64_t stride, int64_t rows,
                    int64_t o0, int64_t o1) {
    int64_t values = has_groups_of_32(kind) ? 32 : 256, blocks = b->in / values, row_bytes = blocks * nf_block_bytes(kind);
    for (int64_t o = o0; o < o1; o += AT_ONCE) {
        const char *w = (const char *)b->w + o * row_bytes;
        for (int64_t t = 0; t < rows; t++) {
            const nf_block_pair *x = (const void *)(a + t * stride);
            float *to = y + t * ldy + (o - o0);
            if (o1 - o >= AT_ONCE && has_groups_of_32(kind))
                dot_32(kind, to, w, row_bytes, blocks, x, AT_ONCE);
            else if (o1 - o >= AT_ONCE)
                dot_256(kind, to, w, row_bytes, blocks, x, AT_ONCE);
            else
                for (int64_t c = 0; c < o1 - o; c++)
                    if (has_groups_of_32(kind))
                        dot_32(kind, to + c, w + c * row_bytes, row_bytes, blocks, x, 1);
                    else
                        dot_256(kind, to + c, w + c * row_bytes, row_bytes, blocks, x, 1);
        }
    }
}

NF_TARGET void nf_blocks_decode_vnni(const nf_blocks *b, float *y, int64_t ldy, const void *a, int64_t stride, int64_t rows,
                                     int64_t o0, int64_t o1) {
    NF_FOR_KIND(b->kind, dots, b, y, ldy, a, stride, rows, o0, o1)
}
#endif
