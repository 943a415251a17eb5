/* SPDX-License-Identifier: Apache-2.0 */
/* Many rows of activations times blocks, through panels of 32 columns as in narrow.c; and blocks as bf16. */
#include "blocks_inside.h"

#if defined(__x86_64__)
#include "blocks_avx512.h"
#include "transpose16.h"

enum { COLUMNS = 32, MANY = 256 }; /* of a panel; rows of its sums */

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

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

int64_t nf_blocks_scratch(void) { return sizeof(panel_scratch); }

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
        transpose16(r);
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

NF_TARGET void nf_blocks_forward(const nf_blocks *b, float *y, int64_t ldy, const void *a, int64_t stride, int64_t rows,
                                 int64_t o0, int64_t o1, float beta, void *scratch) {
    for (int64_t t = 0; t < rows; t += MANY) {
        const char *from = (const char *)a + t * stride;
        float *to = y + t * ldy;
        int64_t n = min64(MANY, rows - t);
        NF_FOR_KIND(b->kind, panels, b, to, ldy, from, stride, n, o0, o1, beta, scratch)
    }
}

/* -------- as bf16 -------- */

/* Pair `at` of a row as bf16: the first 32 values, then the others. */
NF_INLINE void pair_to_bf16(nf_block_kind kind, uint16_t *out, const char *row, int64_t at) {
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

NF_INLINE void strip_to_bf16(nf_block_kind kind, const nf_blocks *b, uint16_t *out, int64_t o0, int64_t rows, int64_t at) {
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

NF_TARGET void nf_blocks_strip(const nf_blocks *b, uint16_t *out, int64_t o0, int64_t rows,
                               int64_t at){NF_FOR_KIND(b -> kind, strip_to_bf16, b, out, o0, rows, at)}
#else /* linear.c widens such weights instead of coming here */

int64_t nf_blocks_scratch(void) { return 0; }
void nf_blocks_strip(const nf_blocks *b, uint16_t *out, int64_t o0, int64_t rows, int64_t at) {
    (void)b, (void)out, (void)o0, (void)rows, (void)at;
}
void nf_blocks_forward(const nf_blocks *b, float *y, int64_t ldy, const void *a, int64_t stride, int64_t rows, int64_t o0,
                       int64_t o1, float beta, void *scratch) {
    (void)b, (void)y, (void)ldy, (void)a, (void)stride, (void)rows, (void)o0, (void)o1, (void)beta, (void)scratch;
}
#endif
