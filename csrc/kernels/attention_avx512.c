/* SPDX-License-Identifier: Apache-2.0 */
/* Attention through AVX-512 BF16, in tiles that stay in registers.

   Lanes are queries: scores stand as (keys, queries), so the softmax goes down columns and never across a vector.  A product takes
   units, two bf16 neighbours along the summed index: from one side a unit for all lanes, from the other a vector of units, one for
   each lane.  Names say how an operand is laid out, in units but for the last:
     x_t      (blocks of 32 rows, d/2, 32 rows): summed over d
     x_pairs  (pairs of rows, W), W being d rounded up to 32: summed over rows
     x_rows   (keys, queries) bf16: summed over queries
   Each is made once for a tile.  Forward and backward weights come from the same exp2; those of keys that a query does not see are
   exactly 0. */
#include "attention_inside.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#define NF_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")))
#define NF_INLINE static inline __attribute__((always_inline)) NF_TARGET
#include "transpose16.h"

enum {
    UNIT = 4, /* bytes */
    LANES = 16,
    BLOCK = 32, /* queries of a register tile: two vectors */
    BQ = 128,   /* queries of a tile */
    BK = 64,    /* keys whose weights are kept at a time */
    KEYS = 256, /* keys whose gradients are summed before they are stored */
    EACH = 4    /* units that are multiplied for each cache line that is asked for */
};

static const float LOG2E = 1.44269504f;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
static inline int64_t width_of(int64_t d) { return up(d, 2 * LANES); }

/* -------- lanes -------- */

/* The first n lanes, and those from n on. */
NF_INLINE __mmask16 before_lane(int64_t n) { return n >= LANES ? 0xffff : n > 0 ? (__mmask16)((1u << n) - 1) : 0; }
NF_INLINE __mmask16 from_lane(int64_t n) { return (__mmask16)~before_lane(n); }

/* 2^x in the lanes of `wanted`, else 0; relative error 3e-6, a thousandth of what rounding to bf16 does.  Below -126 it is 0; NaN
   stays NaN. */
NF_INLINE __m512 exp2_of(__m512 x, __mmask16 wanted) {
    __mmask16 some = _mm512_mask_cmp_ps_mask(wanted, x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(x, n);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(9.5701017e-3f), f, _mm512_set1_ps(5.59178603e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.240247448f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.693121815f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.999999261f));
    return _mm512_maskz_scalef_ps(some, p, n);
}

NF_INLINE __m512i to_bf16(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

/* Two rows of 32 become 32 units of one of each. */
NF_INLINE void put_pairs(uint32_t *to, __m512i a, __m512i b) {
    static const uint16_t low[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                     8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i first = _mm512_loadu_si512(low), second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, first, b));
    _mm512_storeu_si512(to + LANES, _mm512_permutex2var_epi16(a, second, b));
}

/* -------- memory asked for while something is multiplied -------- */

/* Rows of some cache lines, `apart` bytes from one to the next. */
typedef struct source {
    const char *at;
    int64_t rows, lines, apart, line;
} source;

/* The last source comes first. */
typedef struct requests {
    source list[8];
    int count;
} requests;

static inline void want(requests *w, const void *at, int64_t rows, int64_t bytes, int64_t apart) {
    if (rows > 0 && w->count < 8) w->list[w->count++] = (source){at, rows, up(bytes, 64) / 64, apart, 0};
}

NF_INLINE void ask(requests *w) {
    if (w->count == 0) return;
    source *s = &w->list[w->count - 1];
    __builtin_prefetch(s->at + 64 * s->line, 0, 2);
    if (++s->line < s->lines) return;
    s->line = 0, s->at += s->apart;
    w->count -= --s->rows == 0;
}

/* -------- products -------- */

/* As an instruction, because compilers move the sums about and to memory otherwise. */
NF_INLINE void add_unit(__m512 *sum, __m512i x, __m512i w) { __asm__("vdpbf16ps %2, %1, %0" : "+v"(*sum) : "v"(x), "v"(w)); }

NF_INLINE __m512i unit_at(const void *p) {
    int32_t unit;
    memcpy(&unit, p, sizeof unit);
    return _mm512_set1_epi32(unit);
}

/* sums (R, C vectors) += for each u the units at a + r * row + u * step, in bytes, times the vectors b[u], `apart` units apart. */
NF_INLINE void multiply(__m512 *sums, const void *a, const int64_t row, int64_t step, const uint32_t *b, int64_t apart,
                        int64_t units, const int R, const int C, requests *next) {
    const char *at = a;
    for (int64_t u = 0; u < units; u++, at += step, b += apart) {
        __m512i w[4];
        if (u % EACH == 0) ask(next);
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) w[c] = _mm512_loadu_si512(b + LANES * c);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            __m512i x = unit_at(at + r * row);
#pragma GCC unroll 8
            for (int c = 0; c < C; c++) add_unit(&sums[r * C + c], x, w[c]);
        }
    }
}

/* -------- operands -------- */

/* 32 values from x[i] of d on as bf16, from float32 or as they are; 0 behind d, and everywhere without `there`. */
NF_INLINE __m512i values_at(const void *x, int64_t i, int64_t d, int there, const int wide) {
    int64_t left = there ? d - i : 0;
    const float *from = (const float *)x + i;
    if (wide)
        return to_bf16(_mm512_maskz_loadu_ps(before_lane(left), from),
                       _mm512_maskz_loadu_ps(before_lane(left - LANES), from + LANES));
    return _mm512_maskz_loadu_epi16(before_lane(left) | (__mmask32)before_lane(left - LANES) << LANES, (const uint16_t *)x + i);
}

/* x_t and x_pairs, unless they are NULL, of `rows` rows of d values, ld bytes apart; 0 behind them, up to a whole block. */
NF_INLINE void load_any(uint32_t *x_t, uint32_t *x_pairs, const void *x, int64_t ld, int64_t rows, int64_t d, const int wide) {
    const int64_t units = d / 2, W = width_of(d);
    for (int64_t t = 0; t < up(rows, BLOCK); t += LANES)
        for (int64_t i = 0; i < d; i += 2 * LANES) {
            __m512i r[LANES];
#pragma GCC unroll 16
            for (int k = 0; k < LANES; k++) r[k] = values_at((const char *)x + (t + k) * ld, i, d, t + k < rows, wide);
            if (x_pairs)
#pragma GCC unroll 16
                for (int k = 0; k < LANES; k += 2) put_pairs(x_pairs + (t + k) / 2 * W + i, r[k], r[k + 1]);
            if (!x_t) continue;
            transpose16(r);
            uint32_t *to = x_t + t / BLOCK * BLOCK * units + t % BLOCK + i / 2 * BLOCK;
            for (int64_t u = 0; u < least(LANES, units - i / 2); u++) _mm512_storeu_si512(to + u * BLOCK, r[u]);
        }
}

static NF_TARGET void load_floats(uint32_t *x_t, uint32_t *x_pairs, const float *x, int64_t ld, int64_t rows, int64_t d) {
    load_any(x_t, x_pairs, x, ld * (int64_t)sizeof *x, rows, d, 1);
}

static NF_TARGET void load_halves(uint32_t *x_t, uint32_t *x_pairs, const uint16_t *x, int64_t ld, int64_t rows, int64_t d) {
    load_any(x_t, x_pairs, x, ld * (int64_t)sizeof *x, rows, d, 0);
}

/* Where row t of x_t begins. */
static inline const uint32_t *row_of(const uint32_t *x_t, int64_t t, int64_t d) {
    return x_t + t / BLOCK * BLOCK * d / 2 + t % BLOCK;
}

/* to (rows, d) (+)= factor times the transpose of x_t (d, BLOCK), a factor for each row. */
static NF_TARGET void put_transposed(float *to, int64_t ld, const float *x_t, int64_t rows, int64_t d, const float *factor,
                                     int add) {
    for (int64_t t = 0; t < rows; t += LANES)
        for (int64_t i = 0; i < d; i += LANES) {
            __m512i r[LANES];
            __m512 f = _mm512_loadu_ps(factor + t);
            __mmask16 some = before_lane(d - i);
#pragma GCC unroll 16
            for (int k = 0; k < LANES; k++) r[k] = (__m512i)_mm512_mul_ps(_mm512_loadu_ps(x_t + (i + k) * BLOCK + t), f);
            transpose16(r);
            for (int64_t k = 0; k < LANES && t + k < rows; k++) {
                float *at = to + (t + k) * ld + i;
                __m512 value = (__m512)r[k];
                if (add) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(some, at));
                _mm512_mask_storeu_ps(at, some, value);
            }
        }
}

/* y_t (d, BLOCK) = y_t * factor + the product of pairs (rows, d) and weights (pairs of rows, BLOCK); `first`: y_t was empty. */
static NF_TARGET void add_pairs(float *y_t, const __m512 *factor, const uint32_t *pairs, const uint32_t *weights, int64_t units,
                                int64_t d, int first, requests *next) {
    const int64_t W = width_of(d);
    for (int64_t i = 0; i < d; i += 8) {
        __m512 sums[16];
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++)
#pragma GCC unroll 2
            for (int c = 0; c < 2; c++)
                sums[2 * r + c] =
                    first ? _mm512_setzero_ps() : _mm512_mul_ps(_mm512_loadu_ps(y_t + (i + r) * BLOCK + LANES * c), factor[c]);
        multiply(sums, pairs + i, UNIT, W * UNIT, weights, BLOCK, units, 8, 2, next);
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++)
#pragma GCC unroll 2
            for (int c = 0; c < 2; c++) _mm512_storeu_ps(y_t + (i + r) * BLOCK + LANES * c, sums[2 * r + c]);
    }
}

/* -------- a worker's memory -------- */

typedef struct room {
    uint32_t *q_t, *q_pairs, *g_t, *g_pairs; /* of BQ queries; g: the gradient of the output */
    uint32_t *k_t, *v_t, *k_pairs;           /* of KEYS keys and values; forward: of BK keys and, the pairs, values */
    uint32_t *weights;                       /* (BK/2, BLOCK) units: softmax weights, backward: the scores' gradient */
    uint16_t *p_rows, *s_rows;               /* (BK, BQ) bf16: softmax weights and the scores' gradient */
    float *scores;                           /* (BK, BLOCK) */
    float *y_t;                              /* (BQ/BLOCK, W, BLOCK): out, backward: d_q */
    float *d_k, *d_v;                        /* (KEYS, W) */
    float *top, *total;                      /* (BQ,): of each query, in base 2; backward: log-sum-exp and delta */
    requests next;
} room;

static int64_t furnish(room *r, void *memory, int64_t d) {
    nf_pieces p = {memory, 0};
    r->next.count = 0;
    const int64_t W = width_of(d), size = sizeof(uint32_t);
    r->q_t = nf_take(&p, BQ * d / 2 * size), r->g_t = nf_take(&p, BQ * d / 2 * size);
    r->q_pairs = nf_take(&p, BQ / 2 * W * size), r->g_pairs = nf_take(&p, BQ / 2 * W * size);
    r->k_t = nf_take(&p, KEYS * d / 2 * size), r->v_t = nf_take(&p, KEYS * d / 2 * size);
    r->k_pairs = nf_take(&p, KEYS / 2 * W * size), r->weights = nf_take(&p, BK / 2 * BLOCK * size);
    r->p_rows = nf_take(&p, BK * BQ * 2), r->s_rows = nf_take(&p, BK * BQ * 2);
    r->scores = nf_take(&p, BK * BLOCK * size), r->y_t = nf_take(&p, BQ * W * size);
    r->d_k = nf_take(&p, KEYS * W * size), r->d_v = nf_take(&p, KEYS * W * size);
    r->top = nf_take(&p, BQ * size), r->total = nf_take(&p, BQ * size);
    return p.used;
}

static int64_t bytes(int64_t d) {
    room counted;
    return furnish(&counted, NULL, d);
}

/* -------- forward -------- */

/* scores (seen, BLOCK) of a block of queries whose first is at position `first`, with the keys from k0 on; those that a query
   does not see are -infinity.  top (2): the largest of each query. */
static NF_TARGET void score(float *scores, __m512 *top, requests *next, const uint32_t *q_t, const uint32_t *k_t, int64_t k0,
                            int64_t seen, int64_t first, int64_t d) {
    const __m512 hidden = _mm512_set1_ps(-INFINITY);
    top[0] = top[1] = hidden;
    for (int64_t at = k0; at < k0 + seen; at += 8, scores += 8 * BLOCK) {
        __m512 sums[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) sums[i] = _mm512_setzero_ps();
        multiply(sums, row_of(k_t, at - k0, d), UNIT, BLOCK * UNIT, q_t, BLOCK, d / 2, 8, 2, next);
        if (at + 7 > first)
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++)
                sums[i] = _mm512_mask_mov_ps(hidden, from_lane(at + i / 2 - first - LANES * (i % 2)), sums[i]);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            top[i % 2] = _mm512_max_ps(top[i % 2], sums[i]);
            _mm512_storeu_ps(scores + LANES * i, sums[i]);
        }
    }
}

/* One step of a running softmax: weights (units of keys, BLOCK) = exp2(scores * factor - top). */
static NF_TARGET void soften(uint32_t *weights, const float *scores, const __m512 *top, __m512 *total, __m512 factor,
                             int64_t units) {
    __m512 sums[4];
    for (int i = 0; i < 4; i++) sums[i] = _mm512_setzero_ps();
    for (int64_t u = 0; u < units; u++, scores += 2 * BLOCK, weights += BLOCK) {
        __m512 p[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            p[i] = exp2_of(_mm512_fmsub_ps(_mm512_loadu_ps(scores + LANES * i), factor, top[i % 2]), 0xffff);
            sums[i] = _mm512_add_ps(sums[i], p[i]);
        }
        put_pairs(weights, to_bf16(p[0], p[1]), to_bf16(p[2], p[3]));
    }
    for (int c = 0; c < 2; c++) total[c] = _mm512_add_ps(total[c], _mm512_add_ps(sums[c], sums[c + 2]));
}

/* The keys [k0, k0+seen) for one block of queries. */
static NF_TARGET void forward_block(room *r, const nf_attention *a, int64_t block, int64_t k0, int64_t seen, int64_t first) {
    const __m512 factor = _mm512_set1_ps(a->scale * LOG2E);
    float *tops = r->top + block * BLOCK, *totals = r->total + block * BLOCK;
    __m512 top[2], total[2], correction[2];
    score(r->scores, top, &r->next, r->q_t + block * BLOCK * a->d / 2, r->k_t, k0, seen, first, a->d);
    for (int c = 0; c < 2; c++) {
        __m512 old = _mm512_loadu_ps(tops + LANES * c);
        top[c] = _mm512_max_ps(old, _mm512_mul_ps(top[c], factor));
        correction[c] = exp2_of(_mm512_sub_ps(old, top[c]), 0xffff);
        total[c] = _mm512_mul_ps(_mm512_loadu_ps(totals + LANES * c), correction[c]);
    }
    const int64_t units = (seen + 1) / 2;
    soften(r->weights, r->scores, top, total, factor, units);
    for (int c = 0; c < 2; c++) {
        _mm512_storeu_ps(tops + LANES * c, top[c]);
        _mm512_storeu_ps(totals + LANES * c, total[c]);
    }
    add_pairs(r->y_t + block * BLOCK * width_of(a->d), correction, r->k_pairs, r->weights, units, a->d, k0 == 0, &r->next);
}

/* Where the result of a tile goes, and what the same tile of the next head begins with; k and v are at the first key. */
static void want_next_head(const nf_attention_job *j, requests *next, const uint16_t *k, const uint16_t *v, int64_t keys,
                           int64_t at, int64_t rows, int64_t h) {
    const int64_t d = j->a->d, H = j->a->heads * d, K = j->a->kv_heads * d, group = j->a->heads / j->a->kv_heads;
    if (h + 1 < j->a->heads) {
        const int64_t further = (h + 1) / group > h / group ? d : 0;
        want(next, v + further, keys, 2 * d, 2 * K);
        want(next, k + further, keys, 2 * d, 2 * K);
        want(next, j->q + at * H + (h + 1) * d, rows, 4 * d, 4 * H);
    }
    want(next, j->out + at * H + h * d, rows, 4 * d, 4 * H);
}

static NF_TARGET void forward(const nf_attention_job *j, const nf_span *span, int64_t row, int64_t rows, int64_t h,
                              void *memory) {
    const nf_attention *a = j->a;
    const int64_t d = a->d, H = a->heads * d, K = a->kv_heads * d, kv_head = h / (a->heads / a->kv_heads);
    const int64_t at = span->q_start + row, before = span->kv_len - span->q_len + row;
    const uint16_t *k = (const uint16_t *)a->k + span->kv_start * K + kv_head * d;
    const uint16_t *v = (const uint16_t *)a->v + span->kv_start * K + kv_head * d;
    room r;
    furnish(&r, memory, d);
    for (int t = 0; t < BQ; t++) r.top[t] = -INFINITY, r.total[t] = 0.0f;
    load_floats(r.q_t, NULL, j->q + at * H + h * d, H, rows, d);
    want_next_head(j, &r.next, k, v, least(BK, span->kv_len), at, rows, h);
    for (int64_t k0 = 0; k0 < before + rows; k0 += BK) {
        int64_t keys = least(BK, before + rows - k0), more = least(BK, before + rows - k0 - BK);
        want(&r.next, k + (k0 + BK) * K, more, 2 * d, 2 * K);
        want(&r.next, v + (k0 + BK) * K, more, 2 * d, 2 * K);
        load_halves(r.k_t, NULL, k + k0 * K, K, keys, d);
        load_halves(NULL, r.k_pairs, v + k0 * K, K, keys, d);
        for (int64_t block = 0; block * BLOCK < rows; block++) {
            int64_t first = before + block * BLOCK, seen = least(keys, first + BLOCK - k0);
            if (seen > 0) forward_block(&r, a, block, k0, seen, first);
        }
    }
    for (int64_t t = 0; t < rows; t++) {
        if (j->lse) j->lse[(at + t) * a->heads + h] = r.top[t] / LOG2E + logf(r.total[t]);
        r.total[t] = 1.0f / r.total[t];
    }
    for (int64_t t = 0; t < rows; t += BLOCK)
        put_transposed(j->out + (at + t) * H + h * d, H, r.y_t + t * width_of(d), least(BLOCK, rows - t), d, r.total + t, 0);
}

/* -------- backward -------- */

/* Of four keys from `at` on and a block of queries: the weights and the gradient of the scores, before `scale`.  p_rows, s_rows:
   at the first key and query; pairs: at the first key.  Not inlined: constants would take the registers of the loop. */
static __attribute__((noinline)) NF_TARGET void weigh(uint16_t *p_rows, uint16_t *s_rows, uint32_t *pairs, room *r,
                                                      int64_t block, const uint32_t *k, const uint32_t *v, int64_t units,
                                                      int64_t at, int64_t first, float scale) {
    const uint32_t *q = r->q_t + block * BLOCK * units, *g = r->g_t + block * BLOCK * units;
    const float *lse = r->top + block * BLOCK, *delta = r->total + block * BLOCK;
    const __m512 factor = _mm512_set1_ps(scale * LOG2E);
    __m512 s[8], dp[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) s[i] = dp[i] = _mm512_setzero_ps();
    for (int64_t u = 0; u < units; u++, q += BLOCK, g += BLOCK, k += BLOCK, v += BLOCK) {
        __m512i w[4];
        if (u % EACH == 0) ask(&r->next);
#pragma GCC unroll 2
        for (int c = 0; c < 2; c++) w[c] = _mm512_loadu_si512(q + LANES * c), w[2 + c] = _mm512_loadu_si512(g + LANES * c);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            __m512i x = unit_at(k + i), y = unit_at(v + i);
            add_unit(&s[2 * i], x, w[0]), add_unit(&s[2 * i + 1], x, w[1]);
            add_unit(&dp[2 * i], y, w[2]), add_unit(&dp[2 * i + 1], y, w[3]);
        }
    }
    __m512i rows[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
#pragma GCC unroll 2
        for (int c = 0; c < 2; c++) {
            __mmask16 seen = at + 3 > first ? from_lane(at + i - first - LANES * c) : 0xffff;
            __m512 *p = &s[2 * i + c], *ds = &dp[2 * i + c];
            *p = exp2_of(_mm512_fmsub_ps(*p, factor, _mm512_loadu_ps(lse + LANES * c)), seen);
            *ds = _mm512_maskz_mul_ps(seen, *p, _mm512_sub_ps(*ds, _mm512_loadu_ps(delta + LANES * c)));
        }
        rows[i] = to_bf16(dp[2 * i], dp[2 * i + 1]);
        _mm512_storeu_si512(p_rows + i * BQ, to_bf16(s[2 * i], s[2 * i + 1]));
        _mm512_storeu_si512(s_rows + i * BQ, rows[i]);
    }
    put_pairs(pairs, rows[0], rows[1]);
    put_pairs(pairs + BLOCK, rows[2], rows[3]);
}

/* y: 4 rows of C vectors, W apart, += the product of rows, BQ apart, and pairs, from unit u0 on; `first`: y was empty. */
NF_INLINE void add_rows(float *y, const uint16_t *rows, const uint32_t *pairs, int64_t W, int64_t u0, int64_t units,
                        const int C, int first, requests *next) {
    __m512 sums[16];
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) sums[r * C + c] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(y + r * W + LANES * c);
    multiply(sums, rows + 2 * u0, BQ * 2, UNIT, pairs + u0 * W, W, units - u0, 4, C, next);
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) _mm512_storeu_ps(y + r * W + LANES * c, sums[r * C + c]);
}

/* y (keys, W) += the product of rows (keys, queries) and pairs (queries, d); the first key is `ahead` positions behind the first
   query, and no query before a key sees it.  `first`: y was empty. */
static NF_TARGET void add_keys(float *y, const uint16_t *rows, const uint32_t *pairs, int64_t keys, int64_t ahead,
                               int64_t queries, int64_t d, int first, requests *next) {
    const int64_t W = width_of(d), units = up(queries, BLOCK) / 2;
    for (int64_t k = 0; k < keys; k += 4) {
        int64_t u0 = ahead + k > 0 ? (ahead + k) / 2 : 0, i = 0;
        for (; i + 4 * LANES <= W; i += 4 * LANES)
            add_rows(y + k * W + i, rows + k * BQ, pairs + i, W, u0, units, 4, first, next);
        for (; i < W; i += 2 * LANES) add_rows(y + k * W + i, rows + k * BQ, pairs + i, W, u0, units, 2, first, next);
    }
}

/* A tile of queries of one head, and in base 2 the log-sum-exp of each, with delta = sum(d_out * out). */
static NF_TARGET void load_queries(const nf_attention_job *j, room *r, int64_t at, int64_t rows, int64_t h) {
    const nf_attention *a = j->a;
    const int64_t d = a->d, H = a->heads * d;
    const float *q = j->q + at * H + h * d, *g = j->d_out + at * H + h * d, *out = j->fixed_out + at * H + h * d;
    load_floats(r->q_t, r->q_pairs, q, H, rows, d);
    load_floats(r->g_t, r->g_pairs, g, H, rows, d);
    for (int64_t t = 0; t < rows; t++) {
        r->total[t] = j->kernels->dot(g + t * H, out + t * H, d);
        r->top[t] = j->fixed_lse[(at + t) * a->heads + h] * LOG2E;
    }
    for (int64_t t = rows; t < up(rows, BLOCK); t++) r->total[t] = 0.0f, r->top[t] = INFINITY; /* of weight 0 */
}

/* The queries [row, row+rows) of head h and the keys [k0, k0+keys): their share of d_q, d_k and d_v. */
static NF_TARGET void backward_tile(const nf_attention_job *j, room *r, const nf_span *span, int64_t row, int64_t rows,
                                    int64_t h, int64_t k0, int64_t keys) {
    const nf_attention *a = j->a;
    const int64_t d = a->d, H = a->heads * d, W = width_of(d), at = span->q_start + row;
    const __m512 one[2] = {_mm512_set1_ps(1.0f), _mm512_set1_ps(1.0f)};
    load_queries(j, r, at, rows, h);
    want(&r->next, j->d_q + at * H + h * d, rows, 4 * d, 4 * H);
    for (int64_t k1 = k0; k1 < least(k0 + keys, row + rows); k1 += BK) {
        int64_t cols = least(BK, k0 + keys - k1);
        for (int64_t block = 0; block * BLOCK < rows; block++) {
            int64_t first = row + block * BLOCK, seen = least(cols, first + BLOCK - k1);
            if (seen <= 0) continue;
            for (int64_t c = 0; c < seen; c += 4)
                weigh(r->p_rows + c * BQ + block * BLOCK, r->s_rows + c * BQ + block * BLOCK, r->weights + c / 2 * BLOCK, r,
                      block, row_of(r->k_t, k1 - k0 + c, d), row_of(r->v_t, k1 - k0 + c, d), d / 2, k1 + c, first, a->scale);
            add_pairs(r->y_t + block * BLOCK * W, one, r->k_pairs + (k1 - k0) / 2 * W, r->weights, up(seen, 4) / 2, d, k1 == k0,
                      &r->next);
        }
        cols = least(cols, row + rows - k1);
        const int first = k1 >= row && h % (a->heads / a->kv_heads) == 0; /* no query saw these keys before */
        add_keys(r->d_v + (k1 - k0) * W, r->p_rows, r->g_pairs, cols, k1 - row, rows, d, first, &r->next);
        add_keys(r->d_k + (k1 - k0) * W, r->s_rows, r->q_pairs, cols, k1 - row, rows, d, first, &r->next);
    }
    float scales[BLOCK];
    for (int i = 0; i < BLOCK; i++) scales[i] = a->scale;
    for (int64_t t = 0; t < rows; t += BLOCK)
        if (k0 < row + t + BLOCK)
            put_transposed(j->d_q + (at + t) * H + h * d, H, r->y_t + t * W, least(BLOCK, rows - t), d, scales, k0 > 0);
}

/* to (rows, d), ld apart = factor * from (rows, W). */
static NF_TARGET void put_rows(float *to, int64_t ld, const float *from, int64_t rows, int64_t d, float factor) {
    for (int64_t t = 0; t < rows; t++, to += ld, from += width_of(d))
        for (int64_t i = 0; i < d; i += LANES)
            _mm512_mask_storeu_ps(to + i, before_lane(d - i), _mm512_mul_ps(_mm512_loadu_ps(from + i), _mm512_set1_ps(factor)));
}

/* What the tile of queries at `row` begins with, or behind the last one the next: of the next head, or of the next keys. */
static void want_next(const nf_attention_job *j, requests *next, const nf_span *span, int64_t row, int64_t h, int64_t k0) {
    const nf_attention *a = j->a;
    const int64_t d = a->d, H = a->heads * d, K = a->kv_heads * d;
    if (row >= span->q_len) h++, row = k0;
    if (h >= a->heads) return;
    const int64_t at = span->q_start + row, rows = least(BQ, span->q_len - row), kv_head = h / (a->heads / a->kv_heads);
    const int64_t of_k = (span->kv_start + row) * K + kv_head * d;
    next->count = 0;
    want(next, (const uint16_t *)a->v + of_k, rows, 2 * d, 2 * K);
    want(next, (const uint16_t *)a->k + of_k, rows, 2 * d, 2 * K);
    want(next, j->fixed_out + at * H + h * d, rows, 4 * d, 4 * H);
    want(next, j->d_out + at * H + h * d, rows, 4 * d, 4 * H);
    want(next, j->q + at * H + h * d, rows, 4 * d, 4 * H);
}

static NF_TARGET void backward(const nf_attention_job *j, const nf_span *span, int64_t kv_head, void *memory) {
    const nf_attention *a = j->a;
    const int64_t d = a->d, K = a->kv_heads * d, group = a->heads / a->kv_heads, T = span->q_len;
    const uint16_t *k = (const uint16_t *)a->k + span->kv_start * K + kv_head * d;
    const uint16_t *v = (const uint16_t *)a->v + span->kv_start * K + kv_head * d;
    room r;
    furnish(&r, memory, d);
    for (int64_t k0 = 0; k0 < T; k0 += KEYS) {
        int64_t keys = least(KEYS, T - k0), at = (span->kv_start + k0) * K + kv_head * d;
        load_halves(r.k_t, r.k_pairs, k + k0 * K, K, keys, d);
        load_halves(r.v_t, NULL, v + k0 * K, K, keys, d);
        for (int64_t h = kv_head * group; h < (kv_head + 1) * group; h++)
            for (int64_t row = k0; row < T; row += BQ) {
                want_next(j, &r.next, span, row + BQ, h, k0);
                if (row + BQ >= T && h % group == group - 1) {
                    want(&r.next, j->d_k + at, keys, 4 * d, 4 * K);
                    want(&r.next, j->d_v + at, keys, 4 * d, 4 * K);
                }
                backward_tile(j, &r, span, row, least(BQ, T - row), h, k0, keys);
            }
        put_rows(j->d_v + at, K, r.d_v, keys, d, 1.0f);
        put_rows(j->d_k + at, K, r.d_k, keys, d, a->scale);
    }
}

static const nf_attention_tiles tiles = {BQ, bytes, forward, backward};
const nf_attention_tiles *const nf_attention_avx512_bf16 = &tiles;
#else
const nf_attention_tiles *const nf_attention_avx512_bf16 = NULL;
#endif
