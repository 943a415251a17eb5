/* SPDX-License-Identifier: Apache-2.0 */
/* Attention through AVX-512 BF16, in tiles that stay in registers.

   Lanes are queries: scores stand as (keys, queries), so the softmax goes down columns and never across a vector, and rows of
   keys and values are multiplied from where they lie.  A product takes units, two bf16 neighbours along the summed index: from
   one side a unit for all lanes, from the other a vector of units, one for each lane.  Names say how an operand is laid out:
     x_t      (blocks of 32 queries, d/2 units, 32 queries): summed over d
     x_pairs  (pairs of rows, W): summed over rows
     x_rows   (keys, queries) bf16: summed over queries
   Forward and backward weights come from the same exp2; those of keys that a query does not see are exactly 0. */
#include "attention_inside.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#define NF_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")))
#define NF_INLINE static inline __attribute__((always_inline)) NF_TARGET
#include "transpose16.h"

enum {
    LANES = 16,
    BLOCK = 32, /* queries of a register tile: two vectors */
    BQ = 128,   /* queries of a tile */
    BK = 64,    /* keys whose weights are kept at a time */
    KEYS = 256  /* keys whose gradients are summed before they are stored */
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

/* -------- products -------- */

/* As an instruction, because compilers move the sums about and to memory otherwise. */
NF_INLINE void add_unit(__m512 *sum, __m512i x, __m512i w) { __asm__("vdpbf16ps %2, %1, %0" : "+v"(*sum) : "v"(x), "v"(w)); }

NF_INLINE __m512i unit_at(const char *p) {
    int32_t unit;
    memcpy(&unit, p, sizeof unit);
    return _mm512_set1_epi32(unit);
}

/* sums (R, C vectors) += the units a[r][u], `step` bytes apart, times the vectors b[u], `apart` units apart. */
NF_INLINE void multiply(__m512 *sums, const char *const *a, int64_t step, const uint32_t *b, int64_t apart, int64_t units,
                        const int R, const int C) {
    for (int64_t u = 0, at = 0; u < units; u++, at += step, b += apart) {
        __m512i w[4];
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) w[c] = _mm512_loadu_si512(b + LANES * c);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            __m512i x = unit_at(a[r] + at);
#pragma GCC unroll 8
            for (int c = 0; c < C; c++) add_unit(&sums[r * C + c], x, w[c]);
        }
    }
}

/* -------- operands -------- */

/* x_t and, unless it is NULL, x_pairs of `rows` float32 rows of d values, ldx apart; 0 behind them, up to a whole block. */
static NF_TARGET void load_rows(uint32_t *x_t, uint32_t *x_pairs, const float *x, int64_t ldx, int64_t rows, int64_t d) {
    const int64_t units = d / 2, W = width_of(d);
    for (int64_t t = 0; t < up(rows, BLOCK); t += LANES)
        for (int64_t i = 0; i < d; i += 2 * LANES) {
            __m512i r[LANES];
            __mmask16 left = before_lane(d - i), right = before_lane(d - i - LANES);
#pragma GCC unroll 16
            for (int k = 0; k < LANES; k++) {
                __mmask16 there = t + k < rows ? 0xffff : 0;
                const float *from = x + (t + k) * ldx + i;
                r[k] = to_bf16(_mm512_maskz_loadu_ps(left & there, from), _mm512_maskz_loadu_ps(right & there, from + LANES));
            }
            if (x_pairs)
                for (int k = 0; k < LANES; k += 2) put_pairs(x_pairs + (t + k) / 2 * W + i, r[k], r[k + 1]);
            transpose16(r);
            uint32_t *to = x_t + t / BLOCK * BLOCK * units + t % BLOCK;
            for (int64_t u = 0; u < LANES && i / 2 + u < units; u++) _mm512_storeu_si512(to + (i / 2 + u) * BLOCK, r[u]);
        }
}

/* x_pairs of `rows` rows of bf16, ld apart; 0 behind them, up to an even number of pairs. */
static NF_TARGET void pair_rows(uint32_t *x_pairs, const uint16_t *x, int64_t ld, int64_t rows, int64_t d) {
    const int64_t W = width_of(d);
    for (int64_t t = 0; t < up(rows, 4); t += 2)
        for (int64_t i = 0; i < d; i += 2 * LANES) {
            __mmask32 some = d - i >= 32 ? ~0u : (1u << (d - i)) - 1;
            const uint16_t *from = x + t * ld + i;
            put_pairs(x_pairs + t / 2 * W + i, _mm512_maskz_loadu_epi16(t < rows ? some : 0, from),
                      _mm512_maskz_loadu_epi16(t + 1 < rows ? some : 0, from + ld));
        }
}

/* Where `count` rows of keys or values from `first` on lie; those behind the last are the last, and never seen. */
NF_INLINE void find_rows(const char **a, const uint16_t *x, int64_t ld, int64_t first, int64_t all, const int count) {
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) a[i] = (const char *)(x + least(first + i, all - 1) * ld);
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
                                int64_t d, int first) {
    const int64_t W = width_of(d);
    for (int64_t i = 0; i < d; i += 8) {
        __m512 sums[16];
        const char *a[8];
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++) {
            a[r] = (const char *)(pairs + i + r);
#pragma GCC unroll 2
            for (int c = 0; c < 2; c++)
                sums[2 * r + c] =
                    first ? _mm512_setzero_ps() : _mm512_mul_ps(_mm512_loadu_ps(y_t + (i + r) * BLOCK + LANES * c), factor[c]);
        }
        multiply(sums, a, W * (int64_t)sizeof(uint32_t), weights, BLOCK, units, 8, 2);
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++)
#pragma GCC unroll 2
            for (int c = 0; c < 2; c++) _mm512_storeu_ps(y_t + (i + r) * BLOCK + LANES * c, sums[2 * r + c]);
    }
}

/* -------- a worker's memory -------- */

typedef struct room {
    uint32_t *q_t, *q_pairs, *g_t, *g_pairs; /* of BQ queries; g: the gradient of the output */
    uint32_t *k_pairs;                       /* of KEYS keys; forward: of BK values */
    uint32_t *weights;                       /* (BK/2, BLOCK) units: softmax weights, backward: the scores' gradient */
    uint16_t *p_rows, *s_rows;               /* (BK, BQ) bf16: softmax weights and the scores' gradient */
    float *scores;                           /* (BK, BLOCK) */
    float *y_t;                              /* (BQ/BLOCK, W, BLOCK): out, backward: d_q */
    float *d_k, *d_v;                        /* (KEYS, W) */
    float *top, *total;                      /* (BQ,): of each query, in base 2; backward: log-sum-exp and delta */
} room;

static int64_t furnish(room *r, void *memory, int64_t d) {
    nf_pieces p = {memory, 0};
    const int64_t W = width_of(d), size = sizeof(uint32_t);
    r->q_t = nf_take(&p, BQ * d / 2 * size), r->g_t = nf_take(&p, BQ * d / 2 * size);
    r->q_pairs = nf_take(&p, BQ / 2 * W * size), r->g_pairs = nf_take(&p, BQ / 2 * W * size);
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
static NF_TARGET void score(float *scores, __m512 *top, const uint32_t *q_t, const uint16_t *k, int64_t ld, int64_t all,
                            int64_t k0, int64_t seen, int64_t first, int64_t d) {
    const __m512 hidden = _mm512_set1_ps(-INFINITY);
    top[0] = top[1] = hidden;
    for (int64_t at = k0; at < k0 + seen; at += 8, scores += 8 * BLOCK) {
        __m512 sums[16];
        const char *a[8];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) sums[i] = _mm512_setzero_ps();
        find_rows(a, k, ld, at, all, 8);
        multiply(sums, a, sizeof(uint32_t), q_t, BLOCK, d / 2, 8, 2);
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
static NF_TARGET void forward_block(room *r, const nf_attention_job *j, const uint16_t *k, const nf_span *span, int64_t block,
                                    int64_t k0, int64_t seen, int64_t first) {
    const nf_attention *a = j->a;
    const __m512 factor = _mm512_set1_ps(a->scale * LOG2E);
    float *tops = r->top + block * BLOCK, *totals = r->total + block * BLOCK;
    __m512 top[2], total[2], correction[2];
    score(r->scores, top, r->q_t + block * BLOCK * a->d / 2, k, a->kv_heads * a->d, span->kv_len, k0, seen, first, a->d);
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
    add_pairs(r->y_t + block * BLOCK * width_of(a->d), correction, r->k_pairs, r->weights, units, a->d, k0 == 0);
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
    load_rows(r.q_t, NULL, j->q + at * H + h * d, H, rows, d);
    for (int64_t k0 = 0; k0 < before + rows; k0 += BK) {
        int64_t keys = least(BK, before + rows - k0);
        pair_rows(r.k_pairs, v + k0 * K, K, keys, d);
        for (int64_t block = 0; block * BLOCK < rows; block++) {
            int64_t first = before + block * BLOCK, seen = least(keys, first + BLOCK - k0);
            if (seen > 0) forward_block(&r, j, k, span, block, k0, seen, first);
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
   at the first key and query; pairs: at the first key. */
NF_INLINE void weigh(uint16_t *p_rows, uint16_t *s_rows, uint32_t *pairs, const room *r, int64_t block, const char *const *k,
                     const char *const *v, int64_t units, int64_t at, int64_t first, __m512 factor) {
    const uint32_t *q = r->q_t + block * BLOCK * units, *g = r->g_t + block * BLOCK * units;
    const float *lse = r->top + block * BLOCK, *delta = r->total + block * BLOCK;
    __m512 s[8], dp[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) s[i] = dp[i] = _mm512_setzero_ps();
    for (int64_t u = 0; u < units; u++, q += BLOCK, g += BLOCK) {
        __m512i w[4];
#pragma GCC unroll 2
        for (int c = 0; c < 2; c++) w[c] = _mm512_loadu_si512(q + LANES * c), w[2 + c] = _mm512_loadu_si512(g + LANES * c);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            __m512i x = unit_at(k[i] + 4 * u), y = unit_at(v[i] + 4 * u);
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

/* y (4, W), W vectors of columns from `i` on += the units of a from u0 on times pairs. */
NF_INLINE void add_rows(float *y, const uint16_t *rows, const uint32_t *pairs, int64_t W, int64_t u0, int64_t units,
                        const int C) {
    __m512 sums[16];
    const char *a[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
        a[r] = (const char *)(rows + r * BQ + 2 * u0);
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) sums[r * C + c] = _mm512_loadu_ps(y + r * W + LANES * c);
    }
    multiply(sums, a, sizeof(uint32_t), pairs + u0 * W, W, units - u0, 4, C);
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) _mm512_storeu_ps(y + r * W + LANES * c, sums[r * C + c]);
}

/* y (keys, W) += the product of rows (keys, queries) and pairs (queries, d); the first key is `ahead` positions behind the first
   query, and no query before a key sees it. */
static NF_TARGET void add_keys(float *y, const uint16_t *rows, const uint32_t *pairs, int64_t keys, int64_t ahead,
                               int64_t queries, int64_t d) {
    const int64_t W = width_of(d), units = up(queries, BLOCK) / 2;
    for (int64_t k = 0; k < keys; k += 4) {
        int64_t u0 = ahead + k > 0 ? (ahead + k) / 2 : 0, i = 0;
        for (; i + 4 * LANES <= W; i += 4 * LANES) add_rows(y + k * W + i, rows + k * BQ, pairs + i, W, u0, units, 4);
        for (; i < W; i += 2 * LANES) add_rows(y + k * W + i, rows + k * BQ, pairs + i, W, u0, units, 2);
    }
}

/* A tile of queries of one head, and in base 2 the log-sum-exp of each, with delta = sum(d_out * out). */
static NF_TARGET void load_queries(const nf_attention_job *j, room *r, int64_t at, int64_t rows, int64_t h) {
    const nf_attention *a = j->a;
    const int64_t d = a->d, H = a->heads * d;
    const float *q = j->q + at * H + h * d, *g = j->d_out + at * H + h * d, *out = j->fixed_out + at * H + h * d;
    load_rows(r->q_t, r->q_pairs, q, H, rows, d);
    load_rows(r->g_t, r->g_pairs, g, H, rows, d);
    for (int64_t t = 0; t < rows; t++) {
        r->total[t] = j->kernels->dot(g + t * H, out + t * H, d);
        r->top[t] = j->fixed_lse[(at + t) * a->heads + h] * LOG2E;
    }
    for (int64_t t = rows; t < up(rows, BLOCK); t++) r->total[t] = 0.0f, r->top[t] = INFINITY; /* of weight 0 */
}

/* The queries [row, row+rows) of head h and the keys [k0, k0+keys): their share of d_q, d_k and d_v. */
static NF_TARGET void backward_tile(const nf_attention_job *j, room *r, const uint16_t *k, const uint16_t *v,
                                    const nf_span *span, int64_t row, int64_t rows, int64_t h, int64_t k0, int64_t keys) {
    const nf_attention *a = j->a;
    const int64_t d = a->d, H = a->heads * d, K = a->kv_heads * d, W = width_of(d), at = span->q_start + row;
    const __m512 factor = _mm512_set1_ps(a->scale * LOG2E), one[2] = {_mm512_set1_ps(1.0f), _mm512_set1_ps(1.0f)};
    load_queries(j, r, at, rows, h);
    for (int64_t k1 = k0; k1 < least(k0 + keys, row + rows); k1 += BK) {
        int64_t cols = least(BK, k0 + keys - k1);
        for (int64_t block = 0; block * BLOCK < rows; block++) {
            int64_t first = row + block * BLOCK, seen = least(cols, first + BLOCK - k1);
            if (seen <= 0) continue;
            for (int64_t c = 0; c < seen; c += 4) {
                const char *of_k[4], *of_v[4];
                find_rows(of_k, k, K, k1 + c, span->kv_len, 4);
                find_rows(of_v, v, K, k1 + c, span->kv_len, 4);
                weigh(r->p_rows + c * BQ + block * BLOCK, r->s_rows + c * BQ + block * BLOCK, r->weights + c / 2 * BLOCK, r,
                      block, of_k, of_v, d / 2, k1 + c, first, factor);
            }
            add_pairs(r->y_t + block * BLOCK * W, one, r->k_pairs + (k1 - k0) / 2 * W, r->weights, up(seen, 4) / 2, d,
                      k1 == k0);
        }
        cols = least(cols, row + rows - k1);
        add_keys(r->d_v + (k1 - k0) * W, r->p_rows, r->g_pairs, cols, k1 - row, rows, d);
        add_keys(r->d_k + (k1 - k0) * W, r->s_rows, r->q_pairs, cols, k1 - row, rows, d);
    }
    float scales[BLOCK];
    for (int i = 0; i < BLOCK; i++) scales[i] = a->scale;
    for (int64_t t = 0; t < rows; t += BLOCK)
        if (k0 < row + t + BLOCK)
            put_transposed(j->d_q + (at + t) * H + h * d, H, r->y_t + t * W, least(BLOCK, rows - t), d, scales, k0 > 0);
}

static NF_TARGET void backward(const nf_attention_job *j, const nf_span *span, int64_t kv_head, void *memory) {
    const nf_attention *a = j->a;
    const int64_t d = a->d, K = a->kv_heads * d, W = width_of(d), group = a->heads / a->kv_heads, T = span->q_len;
    const uint16_t *k = (const uint16_t *)a->k + span->kv_start * K + kv_head * d;
    const uint16_t *v = (const uint16_t *)a->v + span->kv_start * K + kv_head * d;
    room r;
    furnish(&r, memory, d);
    for (int64_t k0 = 0; k0 < T; k0 += KEYS) {
        int64_t keys = least(KEYS, T - k0), at = (span->kv_start + k0) * K + kv_head * d;
        memset(r.d_k, 0, (size_t)(KEYS * W) * sizeof *r.d_k);
        memset(r.d_v, 0, (size_t)(KEYS * W) * sizeof *r.d_v);
        pair_rows(r.k_pairs, k + k0 * K, K, keys, d);
        for (int64_t h = kv_head * group; h < (kv_head + 1) * group; h++)
            for (int64_t row = k0 / BQ * BQ; row < T; row += BQ)
                backward_tile(j, &r, k, v, span, row, least(BQ, T - row), h, k0, keys);
        for (int64_t t = 0; t < keys; t++) {
            memcpy(j->d_v + at + t * K, r.d_v + t * W, (size_t)d * sizeof *r.d_v);
            memcpy(j->d_k + at + t * K, r.d_k + t * W, (size_t)d * sizeof *r.d_k);
            j->kernels->scale(j->d_k + at + t * K, a->scale, d);
        }
    }
}

static const nf_attention_tiles tiles = {BQ, bytes, forward, backward};
const nf_attention_tiles *const nf_attention_avx512_bf16 = &tiles;
#else
const nf_attention_tiles *const nf_attention_avx512_bf16 = NULL;
#endif
