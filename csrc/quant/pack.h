/* SPDX-License-Identifier: Apache-2.0 */
/* float32 rows to the block types of GGUF, byte for byte as llama.cpp lays them out. */
#ifndef NF_QUANT_PACK_H
#define NF_QUANT_PACK_H

#include <stdint.h>

#include "../core/status.h"

/* A block holds a scale (and a minimum) in half precision and the values as small whole numbers. */
typedef enum nf_block_type {
    NF_BLOCK_Q8_0, /* 32 values, 8 bits:             x = d q */
    NF_BLOCK_Q4_0, /* 32 values, 4 bits:             x = d (q - 8) */
    NF_BLOCK_Q4_1, /* 32 values, 4 bits:             x = d q + m */
    NF_BLOCK_Q5_0, /* 32 values, 5 bits:             x = d (q - 16) */
    NF_BLOCK_Q5_1, /* 32 values, 5 bits:             x = d q + m */
    NF_BLOCK_Q4_K, /* 8 x 32 values, 4 bits:         x = d s q - m t, s and t of 6 bits for each 32 */
    NF_BLOCK_Q5_K, /* 8 x 32 values, 5 bits:         likewise */
    NF_BLOCK_Q6_K, /* 16 x 16 values, 6 bits:        x = d s (q - 32), s of 8 bits for each 16 */
    NF_BLOCK_TYPE_COUNT
} nf_block_type;

/* Values of one block, and its bytes. */
int64_t nf_block_values(nf_block_type type);
int64_t nf_block_bytes(nf_block_type type);

/* Pack `blocks` blocks of finite values.  The bytes do not depend on `threads`.
   Fails with NF_ERR_ARGUMENT where values are too large for a half-precision scale. */
nf_status nf_pack_blocks(nf_block_type type, uint8_t *out, const float *x, int64_t blocks, int threads);

#endif
