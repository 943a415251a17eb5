/* SPDX-License-Identifier: Apache-2.0 */
#include "narrow.h"

#include <math.h>
#include <string.h>

enum {
    COLUMNS = 32,      /* of a panel */
    ROWS = 12,         /* of a register tile */
    STEP = 64,         /* elements to which rows are padded */
    LINE = 64,         /* bytes of a cache line */
    UNITS_PER_LINE = 4 /* units that are multiplied for each line that is asked for */
};

/* One STEP more than needed: rows a power of two apart would fall into the same few lines of the cache. */
int64_t nf_narrow_stride(int64_t width) { return (width + STEP - 1) / STEP * STEP + STEP; }

/* The panel (bf16: width/2 units of 128 bytes), and 32 columns of a low-rank product's right side. */
int64_t nf_narrow_scratch(int64_t width, int64_t rank) { return (nf_narrow_stride(width) * 2 + rank * 4) * COLUMNS; }

#if defined(__x86_64__)
#include <immintrin.h>

#define NF_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma")))
#define NF_INLINE static inline __attribute__((always_inline)) NF_TARGET
#include "transpose16.h"

/* Masks of the first n lanes. */
NF_INLINE __mmask64 bytes_left(int64_t n) { return n >= 64 ? ~0ull : (1ull << n) - 1; }
NF_INLINE __mmask16 floats_left(int64_t n) { return n >= 16 ? 0xffff : n > 0 ? (__mmask16)((1u << n) - 1) : 0; }

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* -------- activations -------- */

NF_TARGET void nf_bf16_prepare(uint16_t *out, const float *x, int64_t ldx, int64_t rows, int64_t width) {
    int64_t stride = nf_narrow_stride(width), filled = stride - STEP;
    for (int64_t t = 0; t < rows; t++, out += stride, x += ldx)
        for (int64_t i = 0; i < filled; i += 16) {
            __mmask16 some = floats_left(width - i);
            _mm256_storeu_si256((__m256i *)(out + i), (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(some, x + i)));
        }
}

NF_INLINE __m512 scaled(const float *x, const float *factor, int64_t i, int64_t width) {
    __mmask16 some = floats_left(width - i);
    __m512 v = _mm512_maskz_loadu_ps(some, x + i);
    return factor ? _mm512_mul_ps(v, _mm512_maskz_loadu_ps(some, factor + i)) : v;
}

/* The largest magnitude of a row; *broken is set where a value is not finite. */
NF_INLINE float largest(const float *x, const float *factor, int64_t width, int *broken) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i high[4];
    for (int k = 0; k < 4; k++) high[k] = _mm512_setzero_si512();
    /* As integers: magnitudes have the order of their bits, and what is not finite is above all others. */
    for (int64_t i = 0; i < width; i += 64)
        for (int k = 0; k < 4; k++)
            high[k] = _mm512_max_epi32(high[k],
                                       _mm512_and_epi32(_mm512_castps_si512(scaled(x, factor, i + 16 * k, width)), magnitude));
    for (int k = 1; k < 4; k++) high[0] = _mm512_max_epi32(high[0], high[k]);
    int32_t top = _mm512_reduce_max_epi32(high[0]);
    *broken = top >= 0x7f800000;
    float value;
    memcpy(&value, &top, sizeof value);
    return value;
}

NF_TARGET void nf_int8_prepare(uint8_t *out, float *scale, const float *x, int64_t ldx, const float *factor, int64_t rows,
                               int64_t width) {
    const int64_t stride = nf_narrow_stride(width), filled = stride - STEP;
    for (int64_t t = 0; t < rows; t++, out += stride, x += ldx) {
        int broken;
        float top = largest(x, factor, width, &broken);
        scale[t] = broken ? NAN : top / 127.0f;
        __m512 inverse = _mm512_set1_ps(broken || top == 0.0f ? 0.0f : 127.0f / top);
        for (int64_t i = 0; i < filled; i += 16) {
            __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(scaled(x, factor, i, width), inverse));
            q = _mm512_add_epi32(q, _mm512_set1_epi32(128));
            _mm_storeu_si128((__m128i *)(out + i), _mm512_cvtusepi32_epi8(_mm512_max_epi32(q, _mm512_setzero_si512())));
        }
    }
}

/* -------- panels -------- */

NF_TARGET void nf_bf16_prepare_transposed(uint16_t *out, const float *x, int64_t ldx, int64_t rows, int64_t cols) {
    int64_t stride = nf_narrow_stride(rows), filled = stride - STEP;
    for (int64_t c = 0; c < cols; c += 16) {
        __mmask16 some = floats_left(cols - c);
        for (int64_t t = 0; t < filled; t += 16) {
            __m512i r[16];
            for (int k = 0; k < 16; k++)
                r[k] = t + k < rows ? _mm512_maskz_loadu_epi32(some, x + (t + k) * ldx + c) : _mm512_setzero_si512();
            transpose(r);
            for (int k = 0; k < 16 && c + k < cols; k++)
                _mm256_storeu_si256((__m256i *)(out + (c + k) * stride + t),
                                    (__m256i)_mm512_cvtneps_pbh(_mm512_castsi512_ps(r[k])));
        }
    }
}

/* panel (units, 32): unit u of column c is bytes 4u.. of row c of w, `bytes` long, `cols` rows. */
NF_TARGET static void panel_of_rows(__m512i *panel, const char *w, int64_t row_bytes, int64_t bytes, int64_t cols) {
    for (int half = 0; half < 2; half++)
        for (int64_t at = 0; at < bytes; at += 64) {
            __m512i r[16];
            __mmask64 some = bytes_left(bytes - at);
            for (int c = 0; c < 16; c++)
                r[c] = 16 * half + c < cols ? _mm512_maskz_loadu_epi8(some, w + (16 * half + c) * row_bytes + at)
                                            : _mm512_setzero_si512();
            transpose(r);
            for (int u = 0; u < 16; u++) panel[(at / 4 + u) * 2 + half] = r[u];
        }
}

/* panel (rows/2, 32): unit u of column c is rows 2u and 2u+1 of that column; `cols` columns count. */
NF_TARGET static void panel_of_pairs(__m512i *panel, const uint16_t *w, int64_t in, int64_t rows, int64_t cols) {
    static const uint16_t low[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                     8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i first = _mm512_loadu_si512(low), second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    __mmask32 some = cols >= 32 ? ~0u : (1u << cols) - 1;
    for (int64_t o = 0; o < rows; o += 2) {
        __m512i a = _mm512_maskz_loadu_epi16(some, w + o * in);
        __m512i b = o + 1 < rows ? _mm512_maskz_loadu_epi16(some, w + (o + 1) * in) : _mm512_setzero_si512();
        panel[o] = _mm512_permutex2var_epi16(a, first, b);
        panel[o + 1] = _mm512_permutex2var_epi16(a, second, b);
    }
}

/* panel (rows/4, 32): unit u of column c is rows 4u to 4u+3 of that column. */
NF_TARGET static void panel_of_quads(__m512i *panel, const int8_t *w, int64_t in, int64_t rows, int64_t cols) {
    __mmask32 some = cols >= 32 ? ~0u : (1u << cols) - 1;
    for (int64_t o = 0; o < rows; o += 4) {
        __m256i r[4];
        for (int k = 0; k < 4; k++)
            r[k] = o + k < rows ? _mm256_maskz_loadu_epi8(some, w + (o + k) * in) : _mm256_setzero_si256();
        __m256i low01 = _mm256_unpacklo_epi8(r[0], r[1]), high01 = _mm256_unpackhi_epi8(r[0], r[1]);
        __m256i low23 = _mm256_unpacklo_epi8(r[2], r[3]), high23 = _mm256_unpackhi_epi8(r[2], r[3]);
        /* each holds four columns in its lower and four in its upper half: 0-3|16-19, 4-7|20-23, 8-11|24-27, 12-15|28-31 */
        __m256i a = _mm256_unpacklo_epi16(low01, low23), b = _mm256_unpackhi_epi16(low01, low23);
        __m256i c = _mm256_unpacklo_epi16(high01, high23), d = _mm256_unpackhi_epi16(high01, high23);
        __m512i ab = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_permute2x128_si256(a, b, 0x20)),
                                        _mm256_permute2x128_si256(c, d, 0x20), 1);
        __m512i cd = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_permute2x128_si256(a, b, 0x31)),
                                        _mm256_permute2x128_si256(c, d, 0x31), 1);
        panel[o / 2] = ab;
        panel[o / 2 + 1] = cd;
    }
}

/* -------- the product of some rows with a panel -------- */

/* What the next panel is made of: `lines` cache lines in each of `rows` rows, `apart` bytes from one row to the next. */
typedef struct source {
    const char *at;
    int64_t rows, lines, apart;
} source;

typedef struct tile {
    float *y;
    int64_t ldy, units, a_stride; /* a_stride in bytes */
    const char *a;
    const float *a_scale; /* int8: of the rows */
    const float *w_scale; /* int8: of the columns, or NULL for 1 */
    const __m512i *panel;
    int64_t cols;
    int past;      /* whole lines are written past the caches */
    nf_addend add; /* its pointers at the tile's first column; v as (r, COLUMNS) */
    source next;
} tile;

/* Lines that are asked for, one after the other, while a group of rows is multiplied. */
typedef struct request {
    const char *row;
    int64_t line, lines, apart, left;
} request;

NF_INLINE request share_of(const source *s, int64_t group, int64_t groups) {
    int64_t from = s->rows * s->lines * group / groups, to = s->rows * s->lines * (group + 1) / groups;
    if (from == to) return (request){0};
    return (request){s->at + from / s->lines * s->apart, from % s->lines, s->lines, s->apart, to - from};
}

NF_INLINE void ask(request *r) {
    _mm_prefetch(r->row + r->line * LINE, _MM_HINT_T1);
    r->left--;
    if (++r->line == r->lines) r->line = 0, r->row += r->apart;
}

/* The place of the result, asked for early: it is written when the sums are done. */
NF_INLINE void fetch(const tile *t, int64_t row, int rows) {
    for (int r = 0; r < rows; r++) {
        _mm_prefetch((const char *)(t->y + (row + r) * t->ldy), _MM_HINT_T0);
        _mm_prefetch((const char *)(t->y + (row + r) * t->ldy + 16), _MM_HINT_T0);
    }
}

NF_INLINE __m512i unit_of(const char *row, int64_t u) {
    int32_t unit;
    memcpy(&unit, row + 4 * u, sizeof unit);
    return _mm512_set1_epi32(unit);
}

/* sum += the products of 16 units.  As instructions, because compilers move the sums about and to memory otherwise. */
NF_INLINE void add_products(__m512i *sum, __m512i x, __m512i w, const int int8) {
    if (int8)
        __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(x), "v"(w));
    else
        __asm__("vdpbf16ps %2, %1, %0" : "+v"(*sum) : "v"(x), "v"(w));
}

/* y = sums + what is added, for `rows` rows. */
NF_INLINE void put_rows(const tile *t, int64_t row, const int rows, __m512 sums[ROWS][2]) {
    const nf_addend *add = &t->add;
    const __mmask16 some[2] = {floats_left(t->cols), floats_left(t->cols - 16)};
    for (int64_t k = 0; k < add->r; k++) {
        __m512 left = _mm512_loadu_ps(add->v + k * COLUMNS), right = _mm512_loadu_ps(add->v + k * COLUMNS + 16);
        const float *u = add->u + row * add->ldu + k;
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            __m512 factor = _mm512_set1_ps(u[r * add->ldu]);
            sums[r][0] = _mm512_fmadd_ps(factor, left, sums[r][0]);
            sums[r][1] = _mm512_fmadd_ps(factor, right, sums[r][1]);
        }
    }
    for (int half = 0; half < 2; half++) {
        __m512 bias = add->bias ? _mm512_maskz_loadu_ps(some[half], add->bias + 16 * half) : _mm512_setzero_ps();
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            __m512 value = _mm512_add_ps(sums[r][half], bias);
            if (add->start)
                value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(some[half], add->start + (row + r) * add->ld + 16 * half));
            float *y = t->y + (row + r) * t->ldy + 16 * half;
            if (t->past)
                _mm512_stream_ps(y, value);
            else
                _mm512_mask_storeu_ps(y, some[half], value);
        }
    }
}

NF_INLINE __m512 column_scale(const tile *t, int half) {
    __mmask16 some = floats_left(t->cols - 16 * half);
    return t->w_scale ? _mm512_maskz_loadu_ps(some, t->w_scale + 16 * half) : _mm512_set1_ps(1.0f);
}

/* What comes next is asked for line by line, so that the sums never wait for memory. */
NF_INLINE void multiply_rows(const tile *t, int64_t row, const int rows, const int int8, const __m512i offset[2],
                             request next) {
    __m512i sums[ROWS][2];
    __m512 values[ROWS][2];
    const char *a[ROWS];
    if (!t->past) fetch(t, row, rows);
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        sums[r][0] = offset[0], sums[r][1] = offset[1];
        a[r] = t->a + (row + r) * t->a_stride;
    }
    for (int64_t u = 0; u < t->units; u++) {
        __m512i left = t->panel[2 * u], right = t->panel[2 * u + 1];
        if (u % UNITS_PER_LINE == 0 && next.left > 0) ask(&next);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            __m512i x = unit_of(a[r], u);
            add_products(&sums[r][0], x, left, int8);
            add_products(&sums[r][1], x, right, int8);
        }
    }
    const __m512 scale[2] = {column_scale(t, 0), column_scale(t, 1)};
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
        for (int half = 0; half < 2; half++)
            values[r][half] =
                !int8 ? _mm512_castsi512_ps(sums[r][half])
                      : _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][half]), _mm512_set1_ps(t->a_scale[row + r])),
                                      scale[half]);
    put_rows(t, row, rows, values);
}

/* Activations are stored with 128 added: what that adds to each sum, taken away before it begins. */
NF_INLINE void int8_offset(const tile *t, __m512i offset[2]) {
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i sums[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int64_t u = 0; u < t->units; u++)
        for (int half = 0; half < 2; half++) sums[half] = _mm512_dpbusd_epi32(sums[half], ones, t->panel[2 * u + half]);
    for (int half = 0; half < 2; half++)
        offset[half] = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sums[half], 7));
}

#define NF_ROWS(n)                                                                                                             \
    case n:                                                                                                                    \
        if (int8)                                                                                                              \
            multiply_rows(t, row, n, 1, offset, next);                                                                         \
        else                                                                                                                   \
            multiply_rows(t, row, n, 0, offset, next);                                                                         \
        break;

NF_TARGET static void multiply(const tile *t, int64_t rows, int int8) {
    __m512i offset[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    if (int8) int8_offset(t, offset);
    for (int64_t row = 0; row < rows; row += ROWS) {
        request next = share_of(&t->next, row / ROWS, (rows + ROWS - 1) / ROWS);
        switch (min64(ROWS, rows - row)) {
            NF_ROWS(1)
            NF_ROWS(2)
            NF_ROWS(3)
            NF_ROWS(4)
            NF_ROWS(5)
            NF_ROWS(6)
            NF_ROWS(7)
            NF_ROWS(8)
            NF_ROWS(9)
            NF_ROWS(10)
            NF_ROWS(11)
            NF_ROWS(12)
        }
    }
}

/* One row of activations: each weight is used once, so it is read where it lies, four rows of it at a time. */
enum { AT_ONCE = 4, AHEAD = 8192 }; /* rows side by side; bytes: how early memory is asked for */

NF_INLINE void bf16_vector(const nf_narrow *n, float *y, const char *a, int64_t o, const int64_t count) {
    const char *w = (const char *)n->w + o * n->ld * 2;
    __m512i sums[AT_ONCE];
#pragma GCC unroll 4
    for (int c = 0; c < AT_ONCE; c++) sums[c] = _mm512_setzero_si512();
    for (int64_t at = 0; at < n->in * 2; at += 64) {
        __m512i x = _mm512_loadu_si512(a + at);
        __mmask64 some = bytes_left(n->in * 2 - at);
#pragma GCC unroll 4
        for (int64_t c = 0; c < count; c++) {
            _mm_prefetch(w + c * n->ld * 2 + at + AHEAD, _MM_HINT_T0);
            add_products(&sums[c], x, _mm512_maskz_loadu_epi8(some, w + c * n->ld * 2 + at), 0);
        }
    }
#pragma GCC unroll 4
    for (int64_t c = 0; c < count; c++) y[c] = _mm512_reduce_add_ps(_mm512_castsi512_ps(sums[c]));
}

NF_INLINE void int8_vector(const nf_narrow *n, float *y, const char *a, float a_scale, int64_t o, const int64_t count) {
    const char *w = (const char *)n->w + o * n->ld;
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i sums[AT_ONCE], of_w[AT_ONCE];
#pragma GCC unroll 4
    for (int c = 0; c < AT_ONCE; c++) sums[c] = of_w[c] = _mm512_setzero_si512();
    for (int64_t at = 0; at < n->in; at += 64) {
        __m512i x = _mm512_loadu_si512(a + at);
        __mmask64 some = bytes_left(n->in - at);
#pragma GCC unroll 4
        for (int64_t c = 0; c < count; c++) {
            _mm_prefetch(w + c * n->ld + at + AHEAD, _MM_HINT_T0);
            __m512i row = _mm512_maskz_loadu_epi8(some, w + c * n->ld + at);
            add_products(&sums[c], x, row, 1);
            add_products(&of_w[c], ones, row, 1);
        }
    }
#pragma GCC unroll 4
    for (int64_t c = 0; c < count; c++) {
        int32_t sum = _mm512_reduce_add_epi32(sums[c]) - 128 * _mm512_reduce_add_epi32(of_w[c]);
        y[c] = (float)sum * a_scale * n->scale[o + c];
    }
}

NF_TARGET static void one_row(const nf_narrow *n, float *y, const void *a, const float *a_scale, int64_t o0, int64_t o1,
                              const nf_addend *add) {
    float sums[AT_ONCE];
    for (int64_t o = o0; o < o1; o += AT_ONCE) {
        int64_t count = min64(AT_ONCE, o1 - o);
        if (n->scale && count == AT_ONCE)
            int8_vector(n, sums, a, *a_scale, o, AT_ONCE);
        else if (n->scale)
            int8_vector(n, sums, a, *a_scale, o, count);
        else if (count == AT_ONCE)
            bf16_vector(n, sums, a, o, AT_ONCE);
        else
            bf16_vector(n, sums, a, o, count);
        for (int64_t i = 0, c = o - o0; i < count; i++, c++) {
            float value = sums[i] + (add->bias ? add->bias[c] : 0.0f) + (add->start ? add->start[c] : 0.0f);
            for (int64_t k = 0; k < add->r; k++) value += add->scale * add->u[k] * add->v[k * add->v_k + c * add->v_c];
            y[c] = value;
        }
    }
}

/* -------- all panels of a tile -------- */

/* The part of what is added that belongs to columns from `col` on; `memory` takes v as (r, COLUMNS). */
static nf_addend addend_at(const nf_addend *add, int64_t col, int64_t cols, float *memory) {
    nf_addend at = *add;
    if (at.start) at.start += col;
    if (at.bias) at.bias += col;
    for (int64_t k = 0; k < at.r; k++)
        for (int64_t c = 0; c < COLUMNS; c++)
            memory[k * COLUMNS + c] = c < cols ? at.scale * at.v[k * at.v_k + (col + c) * at.v_c] : 0.0f;
    at.v = memory;
    return at;
}

static float *behind_panel(void *scratch, int64_t width) {
    return (float *)((char *)scratch + nf_narrow_stride(width) * COLUMNS * (int64_t)sizeof(uint16_t));
}

/* The summed index is cut into blocks of this many bytes of a row: a panel of one is 128 KiB. */
enum { BLOCK = 4096 };

NF_TARGET void nf_narrow_forward(const nf_narrow *n, float *y, int64_t ldy, const void *a, const float *a_scale, int64_t rows,
                                 int64_t o0, int64_t o1, const nf_addend *add, void *scratch) {
    if (rows == 1) {
        one_row(n, y, a, a_scale, o0, o1, add);
        return;
    }
    int int8 = n->scale != NULL;
    int64_t size = int8 ? 1 : 2, bytes = n->in * size, apart = n->ld * size;
    tile t = {.ldy = ldy, .a_stride = nf_narrow_stride(n->in) * size, .a_scale = a_scale, .panel = scratch};
    for (int64_t o = o0; o < o1; o += COLUMNS) {
        const char *w = (const char *)n->w + o * apart;
        t.y = y + (o - o0), t.cols = min64(COLUMNS, o1 - o), t.w_scale = int8 ? n->scale + o : NULL;
        t.add = addend_at(add, o - o0, t.cols, behind_panel(scratch, n->in));
        for (int64_t k = 0; k < bytes; k += BLOCK) {
            int64_t part = min64(BLOCK, bytes - k), last = k + BLOCK >= bytes;
            t.a = (const char *)a + k, t.units = (part + 3) / 4;
            const char *next = last ? w + COLUMNS * apart : w + k + BLOCK;
            t.next = (source){0};
            if (!last || o + COLUMNS < n->out)
                t.next = (source){next, last ? min64(COLUMNS, n->out - o - COLUMNS) : t.cols, (part + LINE - 1) / LINE, apart};
            panel_of_rows(scratch, w + k, apart, part, t.cols);
            multiply(&t, rows, int8);
            t.add = (nf_addend){.start = t.y, .ld = ldy};
        }
    }
}

NF_TARGET void nf_narrow_input(const nf_narrow *n, float *dx, int64_t lddx, const void *a, const float *a_scale, int64_t rows,
                               int64_t o0, int64_t o1, int64_t i0, int64_t i1, const nf_addend *add, void *scratch) {
    int int8 = n->scale != NULL;
    int64_t size = int8 ? 1 : 2, width = o1 - o0, apart = n->ld * size, block = BLOCK / size;
    tile t = {.ldy = lddx, .a_stride = nf_narrow_stride(width) * size, .a_scale = a_scale, .panel = scratch};
    for (int64_t i = i0; i < i1; i += COLUMNS) {
        const char *w = (const char *)n->w + o0 * apart + i * size;
        t.y = dx + (i - i0), t.cols = min64(COLUMNS, i1 - i);
        t.past = add->past && width <= block && t.cols == COLUMNS && (uintptr_t)t.y % LINE == 0 && lddx % 16 == 0;
        t.add = addend_at(add, i - i0, t.cols, behind_panel(scratch, width));
        for (int64_t k = 0; k < width; k += block) {
            int64_t part = min64(block, width - k), last = k + block >= width;
            t.a = (const char *)a + k * size, t.units = (part * size + 3) / 4;
            t.next = (source){0};
            if (!last) t.next = (source){w + (k + block) * apart, min64(block, width - k - block), 1, apart};
            if (last && i + COLUMNS < n->in) t.next = (source){w + COLUMNS * size, min64(block, width), 1, apart};
            if (int8)
                panel_of_quads(scratch, (const int8_t *)w + k * apart, n->ld, part, t.cols);
            else
                panel_of_pairs(scratch, (const uint16_t *)(w + k * apart), n->ld, part, t.cols);
            multiply(&t, rows, int8);
            t.add = (nf_addend){.start = t.y, .ld = lddx};
        }
    }
    if (add->past) _mm_sfence();
}
#else /* other processors: linear.c widens such weights instead of coming here */

void nf_bf16_prepare(uint16_t *out, const float *x, int64_t ldx, int64_t rows, int64_t width) {
    (void)out, (void)x, (void)ldx, (void)rows, (void)width;
}
void nf_bf16_prepare_transposed(uint16_t *out, const float *x, int64_t ldx, int64_t rows, int64_t cols) {
    (void)out, (void)x, (void)ldx, (void)rows, (void)cols;
}
void nf_int8_prepare(uint8_t *out, float *scale, const float *x, int64_t ldx, const float *factor, int64_t rows,
                     int64_t width) {
    (void)out, (void)scale, (void)x, (void)ldx, (void)factor, (void)rows, (void)width;
}
void nf_narrow_forward(const nf_narrow *n, float *y, int64_t ldy, const void *a, const float *a_scale, int64_t rows, int64_t o0,
                       int64_t o1, const nf_addend *add, void *scratch) {
    (void)n, (void)y, (void)ldy, (void)a, (void)a_scale, (void)rows, (void)o0, (void)o1, (void)add, (void)scratch;
}
void nf_narrow_input(const nf_narrow *n, float *dx, int64_t lddx, const void *a, const float *a_scale, int64_t rows, int64_t o0,
                     int64_t o1, int64_t i0, int64_t i1, const nf_addend *add, void *scratch) {
    (void)n, (void)dx, (void)lddx, (void)a, (void)a_scale, (void)rows, (void)o0, (void)o1, (void)i0, (void)i1, (void)add;
    (void)scratch;
}
#endif
