/* SPDX-License-Identifier: Apache-2.0 */
/* Packing in groups of blocks, shared out to threads; the arithmetic is in pack.inc.h. */
#include "pack.h"

#include <math.h>
#include <string.h>

#include "../core/cpu.h"
#include "../core/half.h"
#include "../core/pool.h"

#define LANES 16
#define SUPER 256 /* values of a K block */
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

typedef void (*pack_function)(nf_block_kind kind, uint8_t *out, const float *x, int64_t blocks);

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
    uint8_t *out;
    const float *x;
    int64_t blocks;
} pack_job;

static void pack_group(void *context, int64_t index, int worker) {
    const pack_job *j = context;
    int64_t first = index * GROUP, count = j->blocks - first < GROUP ? j->blocks - first : GROUP;
    (void)worker;
    j->pack(j->kind, j->out + first * nf_block_bytes(j->kind), j->x + first * nf_block_values(j->kind), count);
}

/* Where the half-precision numbers of a block lie, and how many they are. */
static int halves_of(nf_block_kind kind, int64_t *at) {
    *at = kind == NF_BLOCK_Q6_K ? 208 : 0;
    return kind == NF_BLOCK_Q4_1 || kind == NF_BLOCK_Q5_1 || kind == NF_BLOCK_Q4_K || kind == NF_BLOCK_Q5_K ? 2 : 1;
}

static nf_status check_scales(nf_block_kind kind, const uint8_t *out, int64_t blocks) {
    int64_t at;
    int count = halves_of(kind, &at);
    for (int64_t b = 0; b < blocks; b++)
        for (int i = 0; i < count; i++)
            if ((out[b * nf_block_bytes(kind) + at + 2 * i + 1] & 0x7c) == 0x7c)
                return nf_fail(NF_ERR_ARGUMENT, "block %lld holds values that are too large for a half-precision scale",
                               (long long)b);
    return NF_OK;
}

nf_status nf_pack_blocks(nf_block_kind kind, uint8_t *out, const float *x, int64_t blocks, int threads) {
    if ((int)kind < 0 || kind >= NF_BLOCK_KINDS) return nf_fail(NF_ERR_ARGUMENT, "no block type %d", (int)kind);
    int64_t groups = (blocks + GROUP - 1) / GROUP;
    pack_job job = {choose_function(), kind, out, x, blocks};
    nf_pool *pool = NULL;
    NF_TRY(nf_pool_new(&pool, groups < threads ? (groups > 0 ? (int)groups : 1) : threads));
    nf_pool_run(pool, groups, pack_group, &job);
    nf_pool_free(pool);
    return check_scales(kind, out, blocks);
}
