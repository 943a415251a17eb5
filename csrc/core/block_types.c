/* SPDX-License-Identifier: Apache-2.0 */
#include "block_types.h"

static const struct {
    int64_t values, bytes;
} sizes[NF_BLOCK_KINDS] = {
    [NF_BLOCK_Q8_0] = {32, 34}, [NF_BLOCK_Q4_0] = {32, 18}, [NF_BLOCK_Q4_K] = {256, 144}, [NF_BLOCK_Q6_K] = {256, 210},
    [NF_BLOCK_Q4_1] = {32, 20}, [NF_BLOCK_Q5_0] = {32, 22}, [NF_BLOCK_Q5_1] = {32, 24},   [NF_BLOCK_Q5_K] = {256, 176},
};

int64_t nf_block_values(nf_block_kind kind) { return sizes[kind].values; }
int64_t nf_block_bytes(nf_block_kind kind) { return sizes[kind].bytes; }
