/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of values to the block types of GGUF, byte for byte as llama.cpp lays them out. */
#ifndef NF_QUANT_PACK_H
#define NF_QUANT_PACK_H

#include <stdint.h>

#include "../core/block_types.h"
#include "../core/status.h"

/* How the values lie in memory, at any address. */
typedef enum nf_pack_form { NF_PACK_F32 = 0, NF_PACK_F16 = 1, NF_PACK_BF16 = 2 } nf_pack_form;

/* Pack `blocks` blocks.  The bytes do not depend on `threads`.
   Q4_0, Q4_1, Q5_0 and Q5_1 are what llama.cpp makes of the values; with `nearest` Q4_0 has the scale of least squared error,
   as Q8_0 and the K types always have.
   Fails with NF_ERR_ARGUMENT where values are NaN, infinite, or too large for a half-precision scale. */
nf_status nf_pack_blocks(nf_block_kind kind, int nearest, uint8_t *out, const void *values, nf_pack_form form, int64_t blocks,
                         int threads);

#endif
