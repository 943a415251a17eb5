/* SPDX-License-Identifier: Apache-2.0 */
/* Products with narrow weights: bf16 x bf16 -> float32 and int8 x int8 -> int32, in a form for each set of instructions.

   Everything goes by units of 32 bits: neighbours along the summed index, two of 16 bits or four bytes, as the dot product
   instructions of the processors take them (AVX-512 BF16, VNNI, arm64 dotprod, bf16 and i8mm); where there are none, two steps
   of an ordinary instruction do the same.  So one blocking serves all (narrow.inc.h): an operand is rows of units; the weight
   is brought into panels of some columns, (units, columns), as it is needed and used for all rows of a tile.  That costs a
   few per cent of the product for a hundred rows, and the weight stays as it lies in its file.

   Sums of int8 are exact whole numbers and the same in every form; sums of bf16 differ in their order, and AVX-512 BF16 takes
   denormal numbers for zeros. */
#ifndef NF_KERNELS_NARROW_H
#define NF_KERNELS_NARROW_H

#include <stdint.h>

#include "linear.h"

/* Elements between two rows of a prepared operand of `width` elements: a whole number of units, the rest filled with 0. */
int64_t nf_narrow_stride(int64_t width);

/* Scratch bytes for one worker, a summed index of up to `width` and an added low-rank product of up to `rank`. */
int64_t nf_narrow_scratch(int64_t width, int64_t rank);

/* One weight, (out, in) row-major with rows ld elements apart. */
typedef struct nf_narrow {
    const void *w;      /* uint16_t bf16 bits, or int8_t */
    const float *scale; /* (out,) of int8 rows; NULL: bf16 */
    int64_t out, in, ld;
} nf_narrow;

/* The functions for one kind of weight through one set of instructions. One thread each. */
typedef struct nf_narrow_form {
    const char *name;
    unsigned needs; /* nf_feature bits */
    int int8;       /* 0: bf16 */
    int64_t size;   /* bytes of a prepared element: 2 of bf16, and what the instruction takes of int8 */

    /* out (rows, nf_narrow_stride(width)) = x (rows, width), the rest 0.  bf16: rounded to nearest even, NaN stays NaN.
       int8: round(x * factor / scale) with scale (rows,) = max |x * factor| / 127 of the row and factor (width,) or NULL; a row
       with a value that is not finite gets scale NaN, so that it shows in the product.  Without a factor a row's outliers may
       be taken out, and 0 is in their place. */
    void (*prepare)(void *out, float *scale, const float *x, int64_t ldx, const float *factor, int64_t rows, int64_t width,
                    const nf_taken *taken);

    /* Only bf16: out (cols, nf_narrow_stride(rows)) = the transpose of x (rows, cols), rounded as above. */
    void (*prepare_transposed)(uint16_t *out, const float *x, int64_t ldx, int64_t rows, int64_t cols);

    /* y (rows, o1-o0) = a W[o0:o1]^T + what is added.  a: prepared rows of width `in`; a_scale: (rows,) for int8. */
    void (*forward)(const nf_narrow *n, float *y, int64_t ldy, const void *a, const float *a_scale, int64_t rows, int64_t o0,
                    int64_t o1, const nf_addend *add, void *scratch);

    /* dx (rows, i1-i0) = a W[o0:o1, i0:i1] + what is added.  a: prepared rows of width o1-o0; for int8 the rows were multiplied
       with scale[o0:o1] before they were rounded. */
    void (*input)(const nf_narrow *n, float *dx, int64_t lddx, const void *a, const float *a_scale, int64_t rows, int64_t o0,
                  int64_t o1, int64_t i0, int64_t i1, const nf_addend *add, void *scratch);
} nf_narrow_form;

/* The best form of a kind among those that need no more than `features`, or NULL. */
const nf_narrow_form *nf_narrow_best(int int8, unsigned features);

/* Form `index` of all that were compiled, best first, or NULL behind the last. */
const nf_narrow_form *nf_narrow_form_at(int index);

#endif
