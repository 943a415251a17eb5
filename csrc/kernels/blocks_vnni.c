/* SPDX-License-Identifier: Apache-2.0 */
/* Activations for blocks, and a few rows of them times blocks, through AVX-512 VNNI. */
#include "blocks_inside.h"

#if defined(__x86_64__)
#include "blocks_avx512.h"

enum { AT_ONCE = 4 };  /* rows of W that are read side by side */
enum { ROWS = 4 };     /* of activations that share what is unpacked of them */
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

/* -------- a few rows of activations -------- */

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

/* Some rows of a weight, `row_bytes` apart, and some rows of activations, `stride` bytes apart; results ldy apart. */
typedef struct tile {
    const char *w, *a;
    int64_t row_bytes, stride, blocks;
    float *y;
    int64_t ldy;
} tile;

NF_INLINE const nf_block_pair *pair_of(const tile *j, int t, int64_t at) {
    return (const nf_block_pair *)(const void *)(j->a + t * j->stride) + at;
}

NF_INLINE void store(const tile *j, __m512 sums[ROWS][AT_ONCE], const int n, const int m) {
#pragma GCC unroll 4
    for (int t = 0; t < m; t++)
#pragma GCC unroll 4
        for (int c = 0; c < n; c++) j->y[t * j->ldy + c] = _mm512_reduce_add_ps(sums[t][c]);
}

/* The products of a pair at `w` in one row of a weight with m rows of activations. */
NF_INLINE void add_rows(nf_block_kind kind, __m512 sums[ROWS][AT_ONCE], const int c, const part *p, const char *w,
                        const int m) {
    __m512i bytes = unpack(kind, w, 0);
    __m512 scales = pair_scales(kind, w, 0);
#pragma GCC unroll 4
    for (int t = 0; t < m; t++) sums[t][c] = add_pair(sums[t][c], &p[t], bytes, scales);
}

/* Blocks of 32: n rows of w, m rows of activations; both are constants.  Whatever they are, each sum takes the same steps. */
NF_INLINE void dot_32(nf_block_kind kind, const tile *j, const int n, const int m) {
    __m512 sums[ROWS][AT_ONCE];
    part p[ROWS];
    int64_t bytes = kind == NF_BLOCK_Q8_0 ? Q8_0_BYTES : Q4_0_BYTES;
#pragma GCC unroll 4
    for (int t = 0; t < m; t++)
#pragma GCC unroll 4
        for (int c = 0; c < n; c++) sums[t][c] = _mm512_setzero_ps();
    for (int64_t at = 0; at < j->blocks / 2; at++) {
#pragma GCC unroll 4
        for (int t = 0; t < m; t++) p[t] = part_of(pair_of(j, t, at), offset_of(kind));
#pragma GCC unroll 4
        for (int c = 0; c < n; c++) {
            const char *row = j->w + c * j->row_bytes + at * 2 * bytes;
            _mm_prefetch(row + AHEAD, _MM_HINT_T0);
            add_rows(kind, sums, c, p, row, m);
        }
    }
    if (j->blocks % 2) { /* half a pair is left: the other half is zeros */
#pragma GCC unroll 4
        for (int t = 0; t < m; t++) p[t] = part_of(pair_of(j, t, j->blocks / 2), offset_of(kind));
#pragma GCC unroll 4
        for (int c = 0; c < n; c++) {
            char last[2 * Q8_0_BYTES] = {0};
            memcpy(last, j->w + c * j->row_bytes + (j->blocks - 1) * bytes, (size_t)bytes);
            add_rows(kind, sums, c, p, last, m);
        }
    }
    store(j, sums, n, m);
}

/* The same for blocks of 256. */
NF_INLINE void dot_256(nf_block_kind kind, const tile *j, const int n, const int m) {
    __m512 sums[ROWS][AT_ONCE];
    int64_t bytes = kind == NF_BLOCK_Q4_K ? Q4_K_BYTES : Q6_K_BYTES;
#pragma GCC unroll 4
    for (int t = 0; t < m; t++)
#pragma GCC unroll 4
        for (int c = 0; c < n; c++) sums[t][c] = _mm512_setzero_ps();
    for (int64_t i = 0; i < j->blocks; i++) {
        part p[ROWS][4];
        __m512 of_minima[ROWS];
        for (int t = 0; t < m; t++) {
            const nf_block_pair *a = pair_of(j, t, 4 * i);
            float sums_of_groups[8];
            for (int k = 0; k < 4; k++) p[t][k] = part_of(&a[k], offset_of(kind));
            for (int k = 0; k < 8; k++) sums_of_groups[k] = a[k / 2].d[k % 2] * (float)a[k / 2].minus_sum[k % 2];
            of_minima[t] = _mm512_zextps256_ps512(_mm256_loadu_ps(sums_of_groups));
        }
#pragma GCC unroll 4
        for (int c = 0; c < n; c++) {
            const char *row = j->w + c * j->row_bytes + i * bytes;
            __m512 minima, scales = block_scales(kind, row, &minima);
            for (int64_t line = 0; line < bytes; line += 64) _mm_prefetch(row + line + AHEAD, _MM_HINT_T0);
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++) {
                __m512i w = unpack(kind, row, k);
                __m512 of_lanes = lanes_of(kind, scales, k);
#pragma GCC unroll 4
                for (int t = 0; t < m; t++) sums[t][c] = add_pair(sums[t][c], &p[t][k], w, of_lanes);
            }
#pragma GCC unroll 4
            for (int t = 0; t < m && kind == NF_BLOCK_Q4_K; t++) sums[t][c] = _mm512_fmadd_ps(minima, of_minima[t], sums[t][c]);
        }
    }
    store(j, sums, n, m);
}

NF_INLINE void dot(nf_block_kind kind, const tile *j, const int n, const int m) {
    if (has_groups_of_32(kind))
        dot_32(kind, j, n, m);
    else
        dot_256(kind, j, n, m);
}

/* The activations of some rows with n rows of the weight. */
NF_INLINE void dots_of_rows(nf_block_kind kind, tile j, int64_t rows, const int n) {
    int64_t t = 0;
    for (; t + ROWS <= rows; t += ROWS, j.a += ROWS * j.stride, j.y += ROWS * j.ldy) dot(kind, &j, n, ROWS);
    for (; t + 2 <= rows; t += 2, j.a += 2 * j.stride, j.y += 2 * j.ldy) dot(kind, &j, n, 2);
    if (t < rows) dot(kind, &j, n, 1);
}

NF_INLINE void dots(nf_block_kind kind, const nf_blocks *b, float *y, int64_t ldy, const char *a, int64_t stride, int64_t rows,
                    int64_t o0, int64_t o1) {
    int64_t blocks = b->in / (has_groups_of_32(kind) ? 32 : 256), row_bytes = blocks * nf_block_bytes(kind);
    tile j = {(const char *)b->w + o0 * row_bytes, a, row_bytes, stride, blocks, y, ldy};
    int64_t o = o0;
    for (; o + AT_ONCE <= o1; o += AT_ONCE, j.w += AT_ONCE * row_bytes, j.y += AT_ONCE) dots_of_rows(kind, j, rows, AT_ONCE);
    for (; o < o1; o++, j.w += row_bytes, j.y++) dots_of_rows(kind, j, rows, 1);
}

NF_TARGET void nf_blocks_decode_vnni(const nf_blocks *b, float *y, int64_t ldy, const void *a, int64_t stride, int64_t rows,
                                     int64_t o0, int64_t o1) {
    NF_FOR_KIND(b->kind, dots, b, y, ldy, a, stride, rows, o0, o1)
}
#endif
