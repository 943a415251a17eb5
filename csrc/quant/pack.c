/* SPDX-License-Identifier: Apache-2.0 */
/* Packing in groups of blocks, shared out to threads; the arithmetic is in pack.inc.h. */
#include "pack.h"

#include <math.h>
#include <string.h>

#include "../core/cpu.h"
#include "../core/pool.h"

#define LANES 16
#define SUPER 256 /* values of a K block */
#define GROUP 64  /* blocks of one task; even, because K blocks are packed in pairs */

static const struct {
    int64_t values, bytes;
} sizes[NF_BLOCK_TYPE_COUNT] = {{32, 34}, {32, 18}, {32, 20}, {32, 22}, {32, 24}, {256, 144}, {256, 176}, {256, 210}};

int64_t nf_block_values(nf_block_type type) { return sizes[type].values; }
int64_t nf_block_bytes(nf_block_type type) { return sizes[type].bytes; }

/* Half precision, to nearest even.  Below 2^-14 the sum with 0.5 has just the spacing of half's subnormal numbers. */
static uint16_t to_half(float f) {
    uint32_t bits, sign;
    memcpy(&bits, &f, sizeof bits);
    sign = bits >> 16 & 0x8000u, bits &= 0x7fffffffu;
    if (bits >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and above: infinity */
    if (bits < 0x38800000u) {
        float small = fabsf(f) + 0.5f;
        memcpy(&bits, &small, sizeof bits);
        return (uint16_t)(sign | (bits - 0x3f000000u));
    }
    return (uint16_t)(sign | ((bits - 0x38000000u + 0xfffu + (bits >> 13 & 1)) >> 13));
}

static float from_half(uint16_t h) {
    float magnitude =
        (h & 0x7c00u) ? ldexpf((float)((h & 0x3ffu) | 0x400u), (h >> 10 & 31) - 25) : ldexpf((float)(h & 0x3ffu), -24);
    return h & 0x8000u ? -magnitude : magnitude;
}

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

#define NF_TARGET
#define NF_NAME(x) x##_base
#include "pack.inc.h"
#undef NF_TARGET
#undef NF_NAME

#if defined(__x86_64__)
#define NF_TARGET __attribute__((target("avx2,fma")))
#define NF_NAME(x) x##_avx2
#include "pack.inc.h"
#undef NF_TARGET
#undef NF_NAME

#define NF_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define NF_NAME(x) x##_avx512
#include "pack.inc.h"
#undef NF_TARGET
#undef NF_NAME
#endif

typedef void (*pack_function)(nf_block_type type, uint8_t *out, const float *x, int64_t blocks);

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
    nf_block_type type;
    uint8_t *out;
    const float *x;
    int64_t blocks;
} pack_job;

static void pack_group(void *context, int64_t index, int worker) {
    const pack_job *j = context;
    int64_t first = index * GROUP, count = j->blocks - first < GROUP ? j->blocks - first : GROUP;
    (void)worker;
    j->pack(j->type, j->out + first * sizes[j->type].bytes, j->x + first * sizes[j->type].values, count);
}

/* Where the half-precision numbers of a block lie, and how many they are. */
static int halves_of(nf_block_type type, int64_t *at) {
    *at = type == NF_BLOCK_Q6_K ? 208 : 0;
    return type == NF_BLOCK_Q4_1 || type == NF_BLOCK_Q5_1 || type == NF_BLOCK_Q4_K || type == NF_BLOCK_Q5_K ? 2 : 1;
}

static nf_status check_scales(nf_block_type type, const uint8_t *out, int64_t blocks) {
    int64_t at;
    int count = halves_of(type, &at);
    for (int64_t b = 0; b < blocks; b++)
        for (int i = 0; i < count; i++)
            if ((out[b * sizes[type].bytes + at + 2 * i + 1] & 0x7c) == 0x7c)
                return nf_fail(NF_ERR_ARGUMENT, "block %lld holds values that are too large for a half-precision scale",
                               (long long)b);
    return NF_OK;
}

nf_status nf_pack_blocks(nf_block_type type, uint8_t *out, const float *x, int64_t blocks, int threads) {
    if ((int)type < 0 || type >= NF_BLOCK_TYPE_COUNT) return nf_fail(NF_ERR_ARGUMENT, "no block type %d", (int)type);
    int64_t groups = (blocks + GROUP - 1) / GROUP;
    pack_job job = {choose_function(), type, out, x, blocks};
    nf_pool *pool = NULL;
    NF_TRY(nf_pool_new(&pool, groups < threads ? (groups > 0 ? (int)groups : 1) : threads));
    nf_pool_run(pool, groups, pack_group, &job);
    nf_pool_free(pool);
    return check_scales(type, out, blocks);
}
