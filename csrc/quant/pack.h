/* SPDX-License-Identifier: Apache-2.0 */
/* float32 rows to the block types of GGUF, byte for byte as llama.cpp lays them out. */
#ifndef NF_QUANT_PACK_H
#define NF_QUANT_PACK_H

#include <stdint.h>

#include "../core/block_types.h"
#include "../core/status.h"

/* Pack `blocks` blocks of finite values.  The bytes do not depend on `threads`.
   Fails with NF_ERR_ARGUMENT where values are too large for a half-precision scale. */
nf_status nf_pack_blocks(nf_block_kind kind, uint8_t *out, const float *x, int64_t blocks, int threads);

#endif
