/* SPDX-License-Identifier: Apache-2.0 */
/* Packing in groups of blocks, shared out to threads; the arithmetic is in pack.inc.h. */
#include "pack.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../core/cpu.h"
#include "../core/half.h"
#include "../core/pool.h"

#define LANES 16
#define SUPER 256 /* values of a K block */
#define TRIED 4   /* candidates that are tried at once */
#define GROUP 64  /* blocks of one task; even, because K blocks are packed in pairs */

static void put_half(uint8_t *out, uint16_t h) {
    out[0] = (uint8_t)h;
    out[1] = (uint8_t)(h >> 8);
}

/* The eight 6-bit scales s and minima t of a Q4_K or Q5_K block: the low 4 bits of the last four share bytes, their high
   2 bits lie above the first four. */
static void put_scales(uint8_t *out, const uint8_t *s, const uint8_t *t) {
    for (int j = 0; j < 4; j++) {
        out[j] = (uint8_t)(s[j] | (s[j + 4] >> 4) << 6);
        out[j + 4] = (uint8_t)(t[j] | (t[j + 4] >> 4) << 6);
        out[j + 8] = (uint8_t)((s[j + 4] & 15) | (t[j + 4] & 15) << 4);
    }
}

/* Four rows x of n values to four columns of t; n is a multiple of 4. */
static inline void four_lanes_of(float *t, const float *x, int n) {
#if defined(__x86_64__)
    for (int i = 0; i < n; i += 4) {
        __m128 a = _mm_loadu_ps(x + i), b = _mm_loadu_ps(x + n + i);
        __m128 c = _mm_loadu_ps(x + 2 * n + i), d = _mm_loadu_ps(x + 3 * n + i);
        float *to = t + i * LANES;
        _MM_TRANSPOSE4_PS(a, b, c, d);
        _mm_storeu_ps(to, a), _mm_storeu_ps(to + LANES, b);
        _mm_storeu_ps(to + 2 * LANES, c), _mm_storeu_ps(to + 3 * LANES, d);
    }
#else
    for (int p = 0; p < 4; p++)
        for (int i = 0; i < n; i++) t[i * LANES + p] = x[p * n + i];
#endif
}

#define NF_TARGET
#define NF_NAME(x) x##_base
#define NF_MIN(a, b) choose((a) < (b), a, b)
#define NF_MAX(a, b) choose((a) > (b), a, b)
#include "pack.inc.h"
#undef NF_TARGET
#undef NF_NAME
#undef NF_MIN
#undef NF_MAX

#if defined(__x86_64__)
/* a vector of 16 lanes as two of 8 */
#define lower(v) _mm256_loadu_ps((const float *)&(v))
#define upper(v) _mm256_loadu_ps((const float *)&(v) + 8)
#define halves(a, b)                                                                                                           \
    ((union {                                                                                                                  \
        __m256 half[2];                                                                                                        \
        vf whole;                                                                                                              \
    }){.half = {a, b}})                                                                                                        \
        .whole
#define NF_TARGET __attribute__((target("avx2,fma")))
#define NF_NAME(x) x##_avx2
#define NF_MIN(a, b) halves(_mm256_min_ps(lower(a), lower(b)), _mm256_min_ps(upper(a), upper(b)))
#define NF_MAX(a, b) halves(_mm256_max_ps(lower(a), lower(b)), _mm256_max_ps(upper(a), upper(b)))
#include "pack.inc.h"
#undef NF_TARGET
#undef NF_NAME
#undef NF_MIN
#undef NF_MAX

#define NF_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define NF_NAME(x) x##_avx512
#define NF_MIN(a, b) (vf) _mm512_min_ps((__m512)(a), (__m512)(b))
#define NF_MAX(a, b) (vf) _mm512_max_ps((__m512)(a), (__m512)(b))
#include "pack.inc.h"
#undef NF_TARGET
#undef NF_NAME
#undef NF_MIN
#undef NF_MAX
#endif

typedef void (*pack_function)(nf_block_kind kind, int nearest, uint8_t *out, const float *x, int64_t blocks);

static pack_function choose_function(void) {
#if defined(__x86_64__)
    nf_isa isa = nf_cpu_isa();
    if (isa == NF_ISA_AVX512) return pack_avx512;
    if (isa == NF_ISA_AVX2) return pack_avx2;
#endif
    return pack_base;
}

typedef struct pack_job {
    pack_function pack;
    nf_block_kind kind;
    int nearest;
    nf_pack_form form;
    uint8_t *out;
    const uint8_t *values;
    int64_t blocks;
    atomic_llong nonfinite, too_large; /* the first block that is; `blocks` when there is none */
} pack_job;

static void note_first(atomic_llong *first, int64_t block) {
    long long known = atomic_load(first);
    while (block < known && !atomic_compare_exchange_weak(first, &known, block)) {
    }
}

/* x (n,) = values as float32; they may lie at any address. */
static void widen(float *x, const uint8_t *values, nf_pack_form form, int64_t n) {
    if (form == NF_PACK_F32) memcpy(x, values, (size_t)n * sizeof *x);
    for (int64_t i = 0; form != NF_PACK_F32 && i < n; i++) {
        uint16_t half;
        memcpy(&half, values + 2 * i, sizeof half);
        if (form == NF_PACK_F16) {
            x[i] = nf_half_to_float(half);
            continue;
        }
        uint32_t bits = (uint32_t)half << 16;
        memcpy(x + i, &bits, sizeof bits);
    }
}

/* Whether an exponent is full. */
static int any_nonfinite(const float *x, int64_t n) {
    int found = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        found |= (bits & 0x7f800000) == 0x7f800000;
    }
    return found;
}

/* Whether a scale or minimum of a packed block is infinite. */
static int overflows(nf_block_kind kind, const uint8_t *block) {
    int two = kind == NF_BLOCK_Q4_1 || kind == NF_BLOCK_Q5_1 || kind == NF_BLOCK_Q4_K || kind == NF_BLOCK_Q5_K;
    const uint8_t *at = block + (kind == NF_BLOCK_Q6_K ? 208 : 0);
    return (at[1] & 0x7c) == 0x7c || (two && (at[3] & 0x7c) == 0x7c);
}

/* Everything is done to a group while it is in the cache. */
static void pack_group(void *context, int64_t index, int worker) {
    pack_job *j = context;
    float x[GROUP * SUPER];
    int64_t first = index * GROUP, count = j->blocks - first < GROUP ? j->blocks - first : GROUP;
    int64_t each = nf_block_values(j->kind), bytes = nf_block_bytes(j->kind);
    uint8_t *out = j->out + first * bytes;
    (void)worker;
    widen(x, j->values + first * each * (j->form == NF_PACK_F32 ? 4 : 2), j->form, count * each);
    if (any_nonfinite(x, count * each)) {
        int64_t bad = 0;
        while (!any_nonfinite(x + bad * each, each)) bad++;
        note_first(&j->nonfinite, first + bad);
        return;
    }
    j->pack(j->kind, j->nearest, out, x, count);
    for (int64_t b = 0; b < count; b++)
        if (overflows(j->kind, out + b * bytes)) note_first(&j->too_large, first + b);
}

nf_status nf_pack_blocks(nf_block_kind kind, int nearest, uint8_t *out, const void *values, nf_pack_form form, int64_t blocks,
                         int threads) {
    if ((int)kind < 0 || kind >= NF_BLOCK_KINDS) return nf_fail(NF_ERR_ARGUMENT, "no block type %d", (int)kind);
    int64_t groups = (blocks + GROUP - 1) / GROUP;
    pack_job job = {choose_function(), kind, nearest, form, out, values, blocks, blocks, blocks};
    nf_pool *pool = NULL;
    NF_TRY(nf_pool_new(&pool, groups < threads ? (groups > 0 ? (int)groups : 1) : threads));
    nf_pool_run(pool, groups, pack_group, &job);
    nf_pool_free(pool);
    long long nonfinite = atomic_load(&job.nonfinite), too_large = atomic_load(&job.too_large);
    if (nonfinite < blocks) return nf_fail(NF_ERR_ARGUMENT, "block %lld holds NaN or infinite values", nonfinite);
    if (too_large == blocks) return NF_OK;
    return nf_fail(NF_ERR_ARGUMENT, "block %lld holds values that are too large for a half-precision scale", too_large);
}
