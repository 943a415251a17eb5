/* SPDX-License-Identifier: Apache-2.0 */
/* Weights in the block formats of GGUF, multiplied in their own bytes.

   A row of a weight is a row of blocks.  Whatever the format, 32 neighbours are  value = d * q - m  with small whole q:
     Q8_0  d float16, 32 int8                                    Q4_0  d float16, 32 nibbles, 8 subtracted
     Q4_K  256 values: d and m of each 32 in 6 bits, 32 nibbles  Q6_K  256 values: d of each 16 in 8 bits, 6 bits less 32
   Activations are rounded to int8 with a scale for each 32 values, so the products within 32 values are exact whole numbers;
   they are scaled and summed in float32. */
#ifndef NF_KERNELS_BLOCKS_H
#define NF_KERNELS_BLOCKS_H

#include <stdint.h>

#include "../core/block_types.h"

/* Which instructions compute; of those that a machine has, the last is best. */
typedef enum nf_block_path {
    NF_BLOCK_PLAIN = 0,
    NF_BLOCK_AVX2 = 1,
    NF_BLOCK_VNNI = 2, /* AVX-512 with VNNI and BF16 */
    NF_BLOCK_NEON = 3,
    NF_BLOCK_DOTPROD = 4,
    NF_BLOCK_PATHS = 5
} nf_block_path;
int nf_block_path_runs(nf_block_path path);
nf_block_path nf_block_path_here(void);

/* w: rows of `in` values, owned by the caller, without alignment. */
typedef struct nf_blocks {
    nf_block_kind kind;
    nf_block_path path;
    const void *w;
    int64_t in;
} nf_blocks;

/* out (n,) = values [i0, i0+n) of row o. */
void nf_blocks_widen(const nf_blocks *b, float *out, int64_t o, int64_t i0, int64_t n);

/* The first row with a scale that is not finite, -1 when there is none. */
int64_t nf_blocks_first_nonfinite(nf_block_kind kind, const void *w, int64_t rows, int64_t in);

/* Bytes of one prepared row of activations. */
int64_t nf_blocks_operand_bytes(int64_t width);

/* Round rows of activations, `stride` bytes apart in `out`.  In 32 values with one that is not finite the scale is NaN, so that
   it shows in the product. */
void nf_blocks_prepare(nf_block_path path, void *out, int64_t stride, const float *x, int64_t ldx, int64_t rows, int64_t width);

/* y (rows, o1-o0) = a W[o0:o1]^T, each row computed as it would be alone: for a few rows, as in decoding. One thread. */
void nf_blocks_decode(const nf_blocks *b, float *y, int64_t ldy, const void *a, int64_t stride, int64_t rows, int64_t o0,
                      int64_t o1);

/* y (rows, o1-o0) = a W[o0:o1]^T + beta * y, beta 0 or 1, for many rows.  Only with NF_BLOCK_VNNI.
   One thread; scratch of nf_blocks_scratch() bytes. */
void nf_blocks_forward(const nf_blocks *b, float *y, int64_t ldy, const void *a, int64_t stride, int64_t rows, int64_t o0,
                       int64_t o1, float beta, void *scratch);
int64_t nf_blocks_scratch(void);

/* out (rows, 64) = columns [64 at, 64 at + 64) of rows [o0, o0 + rows) as bf16; columns that W does not have are 0.
   Only with NF_BLOCK_VNNI. */
void nf_blocks_strip(const nf_blocks *b, uint16_t *out, int64_t o0, int64_t rows, int64_t at);

#endif
