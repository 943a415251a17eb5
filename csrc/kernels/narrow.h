/* SPDX-License-Identifier: Apache-2.0 */
/* Products with narrow weights: bf16 x bf16 -> f32 and u8 x s8 -> s32, for processors with AVX-512 BF16 and VNNI.

   Both instructions multiply groups of neighbours along the summed index, two bf16 or four bytes in one 32-bit unit, and
   add them to 16 sums.  So one blocking serves both: an operand is rows of units; the weight is brought into panels of 32
   columns, (units, 32), as it is needed and used for all rows of a tile.  That costs a few per cent of the product for
   a hundred rows, and the weight stays as it lies in its file. */
#ifndef NF_KERNELS_NARROW_H
#define NF_KERNELS_NARROW_H

#include <stdint.h>

#include "linear.h"

/* Elements between two rows of a prepared operand of `width` elements: a whole number of units, the rest filled with 0. */
int64_t nf_narrow_stride(int64_t width);

/* Scratch bytes for one worker, a summed index of up to `width` and an added low-rank product of up to `rank`. */
int64_t nf_narrow_scratch(int64_t width, int64_t rank);

/* out (rows, nf_narrow_stride(width)) = x (rows, width) rounded to nearest even; NaN stays NaN. */
void nf_bf16_prepare(uint16_t *out, const float *x, int64_t ldx, int64_t rows, int64_t width);

/* out (cols, nf_narrow_stride(rows)) = the transpose of x (rows, cols), rounded as above. */
void nf_bf16_prepare_transposed(uint16_t *out, const float *x, int64_t ldx, int64_t rows, int64_t cols);

/* out = round(x * factor / scale) + 128 with scale (rows,) = max |x * factor| / 127 of the row; factor (width,) or NULL.
   A row with a value that is not finite gets scale NaN, so that it shows in the product. */
void nf_int8_prepare(uint8_t *out, float *scale, const float *x, int64_t ldx, const float *factor, int64_t rows, int64_t width);

/* One weight, (out, in) row-major with rows ld elements apart. */
typedef struct nf_narrow {
    const void *w;      /* uint16_t bf16 bits, or int8_t */
    const float *scale; /* (out,) of int8 rows; NULL: bf16 */
    int64_t out, in, ld;
} nf_narrow;

/* y (rows, o1-o0) = a W[o0:o1]^T + what is added.  a: prepared rows of width `in`; a_scale: (rows,) for int8. */
void nf_narrow_forward(const nf_narrow *n, float *y, int64_t ldy, const void *a, const float *a_scale, int64_t rows, int64_t o0,
                       int64_t o1, const nf_addend *add, void *scratch);

/* dx (rows, i1-i0) = a W[o0:o1, i0:i1] + what is added.  a: prepared rows of width o1-o0; for int8 the rows were multiplied
   with scale[o0:o1] before they were rounded. */
void nf_narrow_input(const nf_narrow *n, float *dx, int64_t lddx, const void *a, const float *a_scale, int64_t rows, int64_t o0,
                     int64_t o1, int64_t i0, int64_t i1, const nf_addend *add, void *scratch);

#endif
