/* SPDX-License-Identifier: Apache-2.0 */
/* The block types of GGUF, byte for byte as llama.cpp lays them out. */
#ifndef NF_CORE_BLOCK_TYPES_H
#define NF_CORE_BLOCK_TYPES_H

#include <stdint.h>

/* A block holds a scale (and a minimum) in half precision and the values as small whole numbers. */
typedef enum nf_block_kind {
    NF_BLOCK_Q8_0 = 0, /* 32 values, 8 bits:      x = d q */
    NF_BLOCK_Q4_0 = 1, /* 32 values, 4 bits:      x = d (q - 8) */
    NF_BLOCK_Q4_K = 2, /* 8 x 32 values, 4 bits:  x = d s q - m t, s and t of 6 bits for each 32 */
    NF_BLOCK_Q6_K = 3, /* 16 x 16 values, 6 bits: x = d s (q - 32), s of 8 bits for each 16 */
    NF_BLOCK_Q4_1 = 4, /* 32 values, 4 bits:      x = d q + m */
    NF_BLOCK_Q5_0 = 5, /* 32 values, 5 bits:      x = d (q - 16) */
    NF_BLOCK_Q5_1 = 6, /* 32 values, 5 bits:      x = d q + m */
    NF_BLOCK_Q5_K = 7, /* as Q4_K, 5 bits */
    NF_BLOCK_KINDS = 8,
    NF_BLOCK_MULTIPLIED = 4 /* the kinds before are those of kernels/blocks.h */
} nf_block_kind;

/* Values of one block, and its bytes. A row must be whole blocks. */
int64_t nf_block_values(nf_block_kind kind);
int64_t nf_block_bytes(nf_block_kind kind);

#endif
