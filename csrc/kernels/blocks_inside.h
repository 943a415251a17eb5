/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of blocks share: how a block lies in memory. */
#ifndef NF_KERNELS_BLOCKS_INSIDE_H
#define NF_KERNELS_BLOCKS_INSIDE_H

#include <string.h>

#include "blocks.h"

/* Groups with no larger value are taken for zeros: 127 divided by it would not be finite. */
#define NF_BLOCK_SMALLEST 1e-30f

enum { Q8_0_BYTES = 34, Q4_0_BYTES = 18, Q4_K_BYTES = 144, Q6_K_BYTES = 210 };
enum { Q4_K_SCALES = 4, Q4_K_NIBBLES = 16, Q6_K_HIGH = 128, Q6_K_SCALES = 192, Q6_K_D = 208 }; /* places in a block */

/* What a prepared row holds for two groups of 32 activations, so that one place of memory has all that a product needs. */
typedef struct nf_block_pair {
    int8_t q[64];
    float d[2];
    int32_t minus_sum[2];
} nf_block_pair;

static inline int64_t nf_block_pairs(int64_t width) { return (width + 63) / 64; }

static inline uint16_t nf_half_at(const void *p) {
    uint16_t bits;
    memcpy(&bits, p, sizeof bits);
    return bits;
}

/* The eight scales and eight minima of a Q4_K block, one byte each, from their twelve bytes of 6 bits. */
static inline void nf_q4_k_scales(const uint8_t *packed, uint64_t *scales, uint64_t *minima) {
    uint64_t first, last;
    memcpy(&first, packed, sizeof first);
    memcpy(&last, packed + 4, sizeof last); /* its upper half counts: the low four bits of the last four of each */
    uint64_t high = first >> 6 & 0x0303030303030303, rest = last >> 32;
    *scales = (first & 0x3f3f3f3f) | ((rest & 0x0f0f0f0f) | (high & 0xffffffff) << 4) << 32;
    *minima = (first >> 32 & 0x3f3f3f3f) | ((rest >> 4 & 0x0f0f0f0f) | high >> 32 << 4) << 32;
}

/* function(kind, ...) with a constant kind, so that what it does for a kind is compiled for each. */
#define NF_FOR_KIND(given, function, ...)                                                                                      \
    switch (given) {                                                                                                           \
    case NF_BLOCK_Q8_0:                                                                                                        \
        function(NF_BLOCK_Q8_0, __VA_ARGS__);                                                                                  \
        break;                                                                                                                 \
    case NF_BLOCK_Q4_0:                                                                                                        \
        function(NF_BLOCK_Q4_0, __VA_ARGS__);                                                                                  \
        break;                                                                                                                 \
    case NF_BLOCK_Q4_K:                                                                                                        \
        function(NF_BLOCK_Q4_K, __VA_ARGS__);                                                                                  \
        break;                                                                                                                 \
    default:                                                                                                                   \
        function(NF_BLOCK_Q6_K, __VA_ARGS__);                                                                                  \
    }

/* blocks_avx2.c, blocks_neon.c and blocks_vnni.c; only where nf_block_path_runs() says so. */
void nf_blocks_decode_avx2(const nf_blocks *b, float *y, int64_t ldy, const void *a, int64_t stride, int64_t rows, int64_t o0,
                           int64_t o1);
void nf_blocks_decode_neon(const nf_blocks *b, float *y, int64_t ldy, const void *a, int64_t stride, int64_t rows, int64_t o0,
                           int64_t o1);
void nf_blocks_decode_dotprod(const nf_blocks *b, float *y, int64_t ldy, const void *a, int64_t stride, int64_t rows,
                              int64_t o0, int64_t o1);
void nf_blocks_prepare_vnni(void *out, int64_t stride, const float *x, int64_t ldx, int64_t rows, int64_t width);
void nf_blocks_decode_vnni(const nf_blocks *b, float *y, int64_t ldy, const void *a, int64_t stride, int64_t rows, int64_t o0,
                           int64_t o1);

#endif
