/* SPDX-License-Identifier: Apache-2.0 */
#include "cached.h"

#include <math.h>
#include <string.h>

#include "../core/half.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

enum { BK = 256 }; /* positions of one block of scores */

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

#define NF_TARGET
#define NF_NAME(x) x##_base
#define NF_W 4
typedef float four __attribute__((vector_size(16)));
#if defined(__aarch64__)
static inline four four_halves(const uint16_t *p) { return (four)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
static inline four four_bytes(const int8_t *p) {
    int32_t bytes;
    memcpy(&bytes, p, sizeof bytes);
    return (four)vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(bytes))))));
}
#else
static inline four four_halves(const uint16_t *p) {
    return (four){nf_half_to_float(p[0]), nf_half_to_float(p[1]), nf_half_to_float(p[2]), nf_half_to_float(p[3])};
}
static inline four four_bytes(const int8_t *p) { return (four){p[0], p[1], p[2], p[3]}; }
#endif
static inline float four_sum(four v) { return (v[0] + v[1]) + (v[2] + v[3]); }
#define NF_SUM(v) four_sum(v)
#define NF_LOAD_HALF(p) four_halves(p)
#define NF_LOAD_INT8(p) four_bytes(p)
#include "cached.inc.h"

#if defined(__x86_64__)
#define NF_TARGET __attribute__((target("avx2,fma,f16c")))
#define NF_NAME(x) x##_avx2
#define NF_W 8
#define NF_SUM(v) four_sum((four)_mm_add_ps(_mm256_castps256_ps128((__m256)(v)), _mm256_extractf128_ps((__m256)(v), 1)))
#define NF_LOAD_HALF(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#define NF_LOAD_INT8(p) _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(p))))
#include "cached.inc.h"

#define NF_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#define NF_NAME(x) x##_avx512
#define NF_W 16
#define NF_SUM(v) _mm512_reduce_add_ps((__m512)(v))
#define NF_LOAD_HALF(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(p)))
#define NF_LOAD_INT8(p) _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(p))))
#include "cached.inc.h"
#endif

/* The functions of one instruction set. */
typedef struct readers {
    void (*scores)(nf_cache_kind, float *, const float *, const void *, int64_t, int64_t, int64_t);
    void (*mix)(nf_cache_kind, float *, const float *, const void *, int64_t, int64_t, int64_t);
    void (*fetch)(nf_cache_kind, float *, const void *, int64_t, int64_t);
    void (*halves)(uint16_t *, const float *, int64_t);
} readers;

static readers readers_of(nf_isa isa) {
#if defined(__x86_64__)
    if (isa == NF_ISA_AVX512) return (readers){scores_of_avx512, mix_of_avx512, fetch_avx512, halves_avx512};
    if (isa == NF_ISA_AVX2) return (readers){scores_of_avx2, mix_of_avx2, fetch_avx2, halves_avx2};
#endif
    (void)isa;
    return (readers){scores_of_base, mix_of_base, fetch_base, halves_base};
}

int64_t nf_cached_size(nf_cache_kind kind) { return kind == NF_CACHE_F32 ? 4 : kind == NF_CACHE_F16 ? 2 : 1; }

/* -------- storing and fetching -------- */

/* One head: a value that is not finite makes the scale NaN, so that it shows. */
static void to_bytes(int8_t *out, float *scale, const float *x, int64_t d) {
    float top = 0.0f, infinite = 0.0f;
    for (int64_t i = 0; i < d; i++) {
        top = fabsf(x[i]) > top ? fabsf(x[i]) : top;
        infinite += x[i] * 0.0f;
    }
    float inverse = top > 1e-30f && infinite == 0.0f ? 127.0f / top : 0.0f;
    *scale = infinite == 0.0f ? top / 127.0f : NAN;
    for (int64_t i = 0; i < d; i++) out[i] = inverse > 0.0f ? (int8_t)lrintf(x[i] * inverse) : 0;
}

static void put(const nf_cached *c, void *to, float *scale, int64_t at, const float *x, int64_t rows) {
    int64_t width = c->heads * c->d;
    if (c->kind == NF_CACHE_F32) memcpy((float *)to + at * width, x, (size_t)(rows * width) * sizeof *x);
    if (c->kind == NF_CACHE_F16) readers_of(c->isa).halves((uint16_t *)to + at * width, x, rows * width);
    if (c->kind == NF_CACHE_INT8)
        for (int64_t i = 0; i < rows * c->heads; i++)
            to_bytes((int8_t *)to + at * width + i * c->d, scale + at * c->heads + i, x + i * c->d, c->d);
}

void nf_cached_put(const nf_cached *c, int64_t at, const float *k, const float *v, int64_t rows) {
    put(c, c->k, c->k_scale, at, k, rows);
    put(c, c->v, c->v_scale, at, v, rows);
}

static void get(const nf_cached *c, const void *from, const float *scale, int64_t at, float *x, int64_t rows) {
    int64_t width = c->heads * c->d;
    readers_of(c->isa).fetch(c->kind, x, from, at * width, rows * width);
    if (c->kind != NF_CACHE_INT8) return;
    for (int64_t i = 0; i < rows * c->heads; i++)
        for (int64_t k = i * c->d; k < (i + 1) * c->d; k++) x[k] *= scale[at * c->heads + i];
}

void nf_cached_get(const nf_cached *c, int64_t at, float *k, float *v, int64_t rows) {
    get(c, c->k, c->k_scale, at, k, rows);
    get(c, c->v, c->v_scale, at, v, rows);
}

/* -------- attention -------- */

int64_t nf_cached_scratch(int64_t group) { return group * (BK + 3); }

/* s (group, BK) *= the scales of `n` positions. */
static void scale_columns(float *s, const float *scale, int64_t heads, int64_t group, int64_t n) {
    for (int64_t g = 0; g < group; g++)
        for (int64_t t = 0; t < n; t++) s[g * BK + t] *= scale[t * heads];
}

void nf_cached_attention(const nf_kernels *kernels, const nf_cached *c, float *out, const float *q, int64_t head, int64_t group,
                         int64_t length, float scale, float *scratch) {
    readers read = readers_of(c->isa);
    int64_t d = c->d, row = c->heads * d, size = nf_cached_size(c->kind);
    float *s = scratch, *m = s + group * BK, *l = m + group, *correction = l + group;
    for (int64_t g = 0; g < group; g++) m[g] = -INFINITY, l[g] = 0.0f;
    memset(out, 0, (size_t)(group * d) * sizeof *out);
    for (int64_t t0 = 0; t0 < length; t0 += BK) {
        int64_t n = min64(BK, length - t0), first = (t0 * row + head * d) * size;
        for (int64_t g = 0; g < group; g++) read.scores(c->kind, s + g * BK, q + g * d, (const char *)c->k + first, row, d, n);
        if (c->kind == NF_CACHE_INT8) scale_columns(s, c->k_scale + t0 * c->heads + head, c->heads, group, n);
        kernels->softmax_block(s, BK, group, n, scale, n, 0, m, l, correction);
        if (c->kind == NF_CACHE_INT8) scale_columns(s, c->v_scale + t0 * c->heads + head, c->heads, group, n);
        for (int64_t g = 0; g < group; g++) {
            if (t0 > 0) kernels->scale(out + g * d, correction[g], d);
            read.mix(c->kind, out + g * d, s + g * BK, (const char *)c->v + first, row, d, n);
        }
    }
    for (int64_t g = 0; g < group; g++) kernels->scale(out + g * d, 1.0f / l[g], d);
}
