/* SPDX-License-Identifier: Apache-2.0 */
/* Products with blocks through AVX-512 VNNI.  The instruction wants one factor without sign: it is the weight, with an offset
   z (128, 8, 0, 32) that the format has or that is added; sums begin at -z * (sum of the activations).
   Everything goes by pairs of groups: 64 values of a weight in one vector, in their natural order. */
#include "blocks_inside.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define NF_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")))
#define NF_INLINE static inline __attribute__((always_inline)) NF_TARGET
#define NF_BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")))
#define NF_BF16_INLINE static inline __attribute__((always_inline)) NF_BF16

enum { COLUMNS = 32, MANY = 256, AT_ONCE = 4 }; /* of a panel; rows of a panel's sums; rows of W that are read side by side */
enum { AHEAD = 8192 }; /* bytes: how early memory is asked for; without that a core gets a third of what it can read */

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

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
    switch (b->kind) { /* a constant kind in each case */
    case NF_BLOCK_Q8_0:
        dots(NF_BLOCK_Q8_0, b, y, ldy, a, stride, rows, o0, o1);
        return;
    case NF_BLOCK_Q4_0:
        dots(NF_BLOCK_Q4_0, b, y, ldy, a, stride, rows, o0, o1);
        return;
    case NF_BLOCK_Q4_K:
        dots(NF_BLOCK_Q4_K, b, y, ldy, a, stride, rows, o0, o1);
        return;
    default:
        dots(NF_BLOCK_Q6_K, b, y, ldy, a, stride, rows, o0, o1);
    }
}

/* -------- many rows of activations -------- */

/* One pair of groups of 32 rows of W, columns of the product here: unit u (4 values) of column c is in units[2 u + c / 16].
   Its scales are per 16 values; `minima` is only used by Q4_K. */
typedef struct panel {
    __m512i units[32];
    float scales[4][COLUMNS], minima[2][COLUMNS];
} panel;

typedef struct panel_scratch {
    float sums[MANY][COLUMNS];
    panel panel;
} panel_scratch;

int64_t nf_blocks_scratch_vnni(void) { return sizeof(panel_scratch); }

/* In place: 16 vectors of 16 units become their transpose. */
NF_INLINE void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int k = 0; k < 2; k++) {
            r[i + 2 * k] = _mm512_unpacklo_epi64(t[i + k], t[i + k + 2]);
            r[i + 2 * k + 1] = _mm512_unpackhi_epi64(t[i + k], t[i + k + 2]);
        }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* The scales of pair `at` of a row, one for each 16 values, and the minima of its two groups. */
NF_INLINE void column_scales(nf_block_kind kind, panel *to, int c, const char *row, int64_t at) {
    float values[16], least[16];
    __m512 minima = _mm512_setzero_ps(), scales;
    int first = 0, step = 8;
    if (has_groups_of_32(kind)) {
        scales = pair_scales(kind, row, at);
    } else {
        scales = block_scales(kind, row + at / 4 * (kind == NF_BLOCK_Q4_K ? Q4_K_BYTES : Q6_K_BYTES), &minima);
        step = kind == NF_BLOCK_Q4_K ? 1 : 0, first = (int)(at % 4) * (kind == NF_BLOCK_Q4_K ? 2 : 4);
    }
    _mm512_storeu_ps(values, scales);
    for (int i = 0; i < 4; i++) to->scales[i][c] = values[first + (step ? i / 2 * step : i)];
    if (kind != NF_BLOCK_Q4_K) return;
    _mm512_storeu_ps(least, minima);
    for (int i = 0; i < 2; i++) to->minima[i][c] = least[first + i];
}

/* Columns beyond `cols` repeat the last one; what is computed for them is not stored. */
NF_INLINE void fill_panel(nf_block_kind kind, panel *to, const char *w, int64_t row_bytes, int64_t groups, int64_t at,
                          int64_t cols) {
    int64_t pair_bytes = nf_block_bytes(kind) * 64 / (has_groups_of_32(kind) ? 32 : 256);
    int cut = has_groups_of_32(kind) && 2 * at + 1 == groups; /* half a pair: the other half is zeros */
    for (int half = 0; half < 2; half++) {
        __m512i r[16];
        for (int c = 0; c < 16; c++) {
            const char *row = w + min64(16 * half + c, cols - 1) * row_bytes;
            char last[2 * Q8_0_BYTES] = {0};
            _mm_prefetch(row + (at + 2) * pair_bytes, _MM_HINT_T0);
            if (cut) memcpy(last, row + (groups - 1) * nf_block_bytes(kind), (size_t)nf_block_bytes(kind));
            r[c] = cut ? unpack(kind, last, 0) : unpack(kind, row, at);
            column_scales(kind, to, 16 * half + c, cut ? last : row, cut ? 0 : at);
        }
        transpose(r);
        for (int u = 0; u < 16; u++) to->units[2 * u + half] = r[u];
    }
}

/* sum += the products of 16 units.  As an instruction, because compilers move the sums about and to memory otherwise. */
NF_INLINE void add_units(__m512i *sum, __m512i w, __m512i x) { __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(w), "v"(x)); }

/* Of one group of 32 values: sums of some rows += the panel's columns . the rows. */
NF_INLINE void add_group(nf_block_kind kind, panel_scratch *s, int64_t at, int group, const char *a, int64_t stride,
                         int64_t rows) {
    const panel *p = &s->panel;
    const int parts = kind == NF_BLOCK_Q6_K ? 2 : 1, units = 8 / parts, offset = offset_of(kind);
    __m512i w[16];
    for (int i = 0; i < 16; i++) w[i] = p->units[16 * group + i];
    for (int64_t t = 0; t < rows; t++, a += stride) {
        const nf_block_pair *x = (const nf_block_pair *)(const void *)a + at;
        const int8_t *q = x->q + 32 * group;
        const __m512 d = _mm512_set1_ps(x->d[group]);
        const __m512i minus_sum = _mm512_set1_epi32(x->minus_sum[group]);
        __m512 of_group[2];
        for (int part = 0; part < parts; part++) {
            __m512i sums[2];
            if (kind == NF_BLOCK_Q6_K) { /* minus the sum of 16: from the bytes, as only that of 32 is kept */
                __m128i bytes = _mm_loadu_si128((const void *)(q + 16 * part));
                __m128i four = _mm_dpbusd_epi32(_mm_setzero_si128(), _mm_set1_epi8(32), bytes);
                four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
                four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1));
                sums[0] = sums[1] = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_broadcastd_epi32(four));
            } else {
                sums[0] = sums[1] = offset ? _mm512_slli_epi32(minus_sum, offset == 128 ? 7 : 3) : _mm512_setzero_si512();
            }
#pragma GCC unroll 8
            for (int u = 0; u < units; u++) {
                int32_t unit;
                memcpy(&unit, q + 16 * part + 4 * u, sizeof unit);
                __m512i four = _mm512_set1_epi32(unit);
                add_units(&sums[0], w[2 * (part * units + u)], four);
                add_units(&sums[1], w[2 * (part * units + u) + 1], four);
            }
            for (int half = 0; half < 2; half++) {
                __m512 scale = _mm512_loadu_ps(p->scales[2 * group + part] + 16 * half);
                __m512 whole = _mm512_cvtepi32_ps(sums[half]);
                of_group[half] = part ? _mm512_fmadd_ps(whole, scale, of_group[half]) : _mm512_mul_ps(whole, scale);
            }
        }
        for (int half = 0; half < 2; half++) {
            if (kind == NF_BLOCK_Q4_K) {
                __m512 minima = _mm512_loadu_ps(p->minima[group] + 16 * half);
                of_group[half] = _mm512_fmadd_ps(minima, _mm512_cvtepi32_ps(minus_sum), of_group[half]);
            }
            float *sum = s->sums[t] + 16 * half;
            _mm512_store_ps(sum, _mm512_fmadd_ps(of_group[half], d, _mm512_load_ps(sum)));
        }
    }
}

NF_INLINE void panels(nf_block_kind kind, const nf_blocks *b, float *y, int64_t ldy, const char *a, int64_t stride,
                      int64_t rows, int64_t o0, int64_t o1, float beta, panel_scratch *s) {
    int64_t row_bytes = b->in / (has_groups_of_32(kind) ? 32 : 256) * nf_block_bytes(kind), groups = b->in / 32;
    for (int64_t o = o0; o < o1; o += COLUMNS) {
        int64_t cols = min64(COLUMNS, o1 - o);
        memset(s->sums, 0, (size_t)rows * sizeof *s->sums);
        for (int64_t at = 0; 2 * at < groups; at++) {
            fill_panel(kind, &s->panel, (const char *)b->w + o * row_bytes, row_bytes, groups, at, cols);
            add_group(kind, s, at, 0, a, stride, rows);
            if (2 * at + 1 < groups) add_group(kind, s, at, 1, a, stride, rows);
        }
        for (int64_t t = 0; t < rows; t++)
            for (int64_t c = 0; c < cols; c++) {
                float *to = y + t * ldy + (o - o0) + c;
                *to = s->sums[t][c] + (beta != 0.0f ? *to : 0.0f);
            }
    }
}

NF_TARGET void nf_blocks_forward_vnni(const nf_blocks *b, float *y, int64_t ldy, const void *a, int64_t stride, int64_t rows,
                                      int64_t o0, int64_t o1, float beta, void *scratch) {
    for (int64_t t = 0; t < rows; t += MANY) {
        const char *from = (const char *)a + t * stride;
        float *to = y + t * ldy;
        int64_t n = min64(MANY, rows - t);
        switch (b->kind) { /* a constant kind in each case */
        case NF_BLOCK_Q8_0:
            panels(NF_BLOCK_Q8_0, b, to, ldy, from, stride, n, o0, o1, beta, scratch);
            break;
        case NF_BLOCK_Q4_0:
            panels(NF_BLOCK_Q4_0, b, to, ldy, from, stride, n, o0, o1, beta, scratch);
            break;
        case NF_BLOCK_Q4_K:
            panels(NF_BLOCK_Q4_K, b, to, ldy, from, stride, n, o0, o1, beta, scratch);
            break;
        default:
            panels(NF_BLOCK_Q6_K, b, to, ldy, from, stride, n, o0, o1, beta, scratch);
        }
    }
}
/* -------- as bf16 -------- */

/* Pair `at` of a row as bf16: the first 32 values, then the others. */
NF_BF16_INLINE void pair_to_bf16(nf_block_kind kind, uint16_t *out, const char *row, int64_t at) {
    __m512 minima = _mm512_setzero_ps(), scales;
    __m512i w = unpack(kind, row, at);
    if (has_groups_of_32(kind))
        scales = pair_scales(kind, row, at);
    else
        scales = block_scales(kind, row + at / 4 * (kind == NF_BLOCK_Q4_K ? Q4_K_BYTES : Q6_K_BYTES), &minima);
    __m512 values[4];
    for (int i = 0; i < 4; i++) { /* 16 values each */
        int which = has_groups_of_32(kind)  ? i / 2 * 8
                    : kind == NF_BLOCK_Q4_K ? (int)(at % 4) * 2 + i / 2
                                            : (int)(at % 4) * 4 + i;
        __m128i bytes = i == 0   ? _mm512_extracti32x4_epi32(w, 0)
                        : i == 1 ? _mm512_extracti32x4_epi32(w, 1)
                        : i == 2 ? _mm512_extracti32x4_epi32(w, 2)
                                 : _mm512_extracti32x4_epi32(w, 3);
        __m512i whole = _mm512_sub_epi32(_mm512_cvtepu8_epi32(bytes), _mm512_set1_epi32(offset_of(kind)));
        __m512 d = _mm512_permutexvar_ps(_mm512_set1_epi32(which), scales);
        __m512 m = _mm512_permutexvar_ps(_mm512_set1_epi32(which), minima);
        values[i] = _mm512_fmsub_ps(_mm512_cvtepi32_ps(whole), d, m);
    }
    _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh(values[1], values[0]));
    _mm512_storeu_si512(out + 32, (__m512i)_mm512_cvtne2ps_pbh(values[3], values[2]));
}

NF_BF16_INLINE void strip_to_bf16(nf_block_kind kind, const nf_blocks *b, uint16_t *out, int64_t o0, int64_t rows, int64_t at) {
    int64_t bytes = nf_block_bytes(kind), row_bytes = b->in / nf_block_values(kind) * bytes, groups = b->in / 32;
    for (int64_t t = 0; t < rows; t++, out += 64) {
        const char *row = (const char *)b->w + (o0 + t) * row_bytes;
        char last[2 * Q8_0_BYTES] = {0};
        if (has_groups_of_32(kind) && 2 * at + 1 == groups) {
            memcpy(last, row + (groups - 1) * bytes, (size_t)bytes);
            pair_to_bf16(kind, out, last, 0);
        } else {
            pair_to_bf16(kind, out, row, at);
        }
    }
}

NF_BF16 void nf_blocks_strip_vnni(const nf_blocks *b, uint16_t *out, int64_t o0, int64_t rows, int64_t at) {
    switch (b->kind) { /* a constant kind in each case */
    case NF_BLOCK_Q8_0:
        strip_to_bf16(NF_BLOCK_Q8_0, b, out, o0, rows, at);
        return;
    case NF_BLOCK_Q4_0:
        strip_to_bf16(NF_BLOCK_Q4_0, b, out, o0, rows, at);
        return;
    case NF_BLOCK_Q4_K:
        strip_to_bf16(NF_BLOCK_Q4_K, b, out, o0, rows, at);
        return;
    default:
        strip_to_bf16(NF_BLOCK_Q6_K, b, out, o0, rows, at);
    }
}
#else /* other processors: linear.c widens such weights instead of coming here */

int64_t nf_blocks_scratch_vnni(void) { return 0; }
void nf_blocks_prepare_vnni(void *out, int64_t stride, const float *x, int64_t ldx, int64_t rows, int64_t width) {
    (void)out, (void)stride, (void)x, (void)ldx, (void)rows, (void)width;
}
void nf_blocks_strip_vnni(const nf_blocks *b, uint16_t *out, int64_t o0, int64_t rows, int64_t at) {
    (void)b, (void)out, (void)o0, (void)rows, (void)at;
}
void nf_blocks_decode_vnni(const nf_blocks *b, float *y, int64_t ldy, const void *a, int64_t stride, int64_t rows, int64_t o0,
                           int64_t o1) {
    (void)b, (void)y, (void)ldy, (void)a, (void)stride, (void)rows, (void)o0, (void)o1;
}
void nf_blocks_forward_vnni(const nf_blocks *b, float *y, int64_t ldy, const void *a, int64_t stride, int64_t rows, int64_t o0,
                            int64_t o1, float beta, void *scratch) {
    (void)b, (void)y, (void)ldy, (void)a, (void)stride, (void)rows, (void)o0, (void)o1, (void)beta, (void)scratch;
}
#endif
