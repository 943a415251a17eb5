/* SPDX-License-Identifier: Apache-2.0 */
/* One weight matrix as the engine stores it, and the two products that training needs of a frozen one.
   Everything above works in tiles through these functions, so a new way of storing a weight is a new kind here. */
#ifndef NF_KERNELS_LINEAR_H
#define NF_KERNELS_LINEAR_H

#include <stdint.h>

#include "blocks.h"
#include "outliers.h"

typedef enum nf_linear_kind {
    NF_LINEAR_F32 = 0,   /* float32 */
    NF_LINEAR_BF16 = 1,  /* bf16 bits; activations are rounded to bf16 too where the processor multiplies them */
    NF_LINEAR_INT8 = 2,  /* int8 and a scale for each row; activations int8 with a scale for each token */
    NF_LINEAR_BLOCKS = 3 /* blocks of GGUF; activations int8 with a scale for each 32 */
} nf_linear_kind;

/* w: (out, in) row-major in the form of `kind`, rows ld elements apart (ld = in from nf_linear_of), owned by the caller;
   scale: (out,) of int8; bias: (out,) or NULL. */
typedef struct nf_linear {
    nf_linear_kind kind;
    int64_t out, in, ld;
    const void *w;
    const float *scale;
    const float *bias;
    nf_blocks blocks;                    /* of NF_LINEAR_BLOCKS */
    const struct nf_narrow_form *narrow; /* how the processor multiplies it; NULL: it is widened to float32, tile by tile */
    const struct nf_kernels *rows;       /* of int8: for what is taken out of it */
} nf_linear;

nf_linear nf_linear_of(nf_linear_kind kind, int64_t out, int64_t in, const void *w, const float *scale);

nf_linear nf_linear_of_blocks(nf_block_kind kind, int64_t out, int64_t in, const void *w);

/* What is taken out of rows of int8, (rows,) each. */
typedef struct nf_taken {
    int32_t *counts;
    nf_outliers *of_rows;
} nf_taken;

/* Rows of activations, and their prepared form where the kind of weight has one. */
typedef struct nf_operand {
    const float *x; /* (rows, width), ld apart */
    int64_t ld, width;
    void *prepared;
    float *scale;   /* of the prepared rows of int8 */
    nf_taken taken; /* from them, of an input */
} nf_operand;

/* Bytes of memory for the prepared form of `rows` rows, whatever the kind. */
int64_t nf_operand_bytes(int64_t rows, int64_t width);
nf_operand nf_operand_in(void *memory, const float *x, int64_t ld, int64_t rows, int64_t width);

/* Prepare some rows for products with `l`: of its input, or of the gradient of its outputs [o0, o0 + width). */
void nf_linear_prepare(const nf_linear *l, const nf_operand *a, int64_t row, int64_t rows);
void nf_linear_prepare_gradient(const nf_linear *l, const nf_operand *a, int64_t o0, int64_t row, int64_t rows);

/* What is added to a product where its result is written: every part may be absent, and NULL stands for none at all.
   Pointers are those of the tile's first row and column. */
typedef struct nf_addend {
    const float *start; /* (rows, cols), rows ld apart; may be where the result goes */
    int64_t ld;
    const float *bias;     /* (cols,) */
    int64_t r;             /* scale * u v, u (rows, r) with rows ldu apart, v (r, cols); 0: none */
    const float *u, *v;    /* v[k, c] = v[k * v_k + c * v_c] */
    int64_t ldu, v_k, v_c; /* one of v_k, v_c is 1 */
    float scale;
    int past; /* the result goes past the caches where it can: it is large and not read again soon */
} nf_addend;

/* The first rows of an operand that was prepared for `like` (float32 or bf16) as a weight: (rows, width). */
nf_linear nf_linear_of_operand(const nf_linear *like, const nf_operand *a, int64_t rows);

/* Scratch bytes that one worker needs for the products below, with weights of up to `width` inputs or outputs and added
   products of up to `rank`. */
int64_t nf_linear_scratch(int64_t width, int64_t rank);

/* y (rows, o1-o0) = x[row : row+rows] W[o0:o1]^T + add.  W's own bias is not added. One thread. */
void nf_linear_tile(const nf_linear *l, float *y, int64_t ldy, const nf_operand *x, int64_t row, int64_t rows, int64_t o0,
                    int64_t o1, const nf_addend *add, void *scratch);

/* y (rows, o1-o0) = x W[o0:o1]^T for a few rows that share the reading of W; each is computed as it would be alone. */
void nf_linear_decode(const nf_linear *l, float *y, int64_t ldy, const nf_operand *x, int64_t rows, int64_t o0, int64_t o1,
                      void *scratch);

/* dx (rows, i1-i0) = dy[row : row+rows] W[o0 : o0+width, i0:i1] + add; width is that of dy. One thread. */
void nf_linear_tile_input(const nf_linear *l, float *dx, int64_t lddx, const nf_operand *dy, int64_t row, int64_t rows,
                          int64_t o0, int64_t i0, int64_t i1, const nf_addend *add, void *scratch);

/* The gradient of a trained weight (float32 or bf16), d_w[o0:o1, i0:i1] = dy[:, o0:o1]^T x[:, i0:i1], sums over `rows` rows;
   with `add` it is added to what is there.
   dy: its float32 rows, with the prepared form of its transpose, from nf_linear_prepare_transposed; x: prepared as an input. */
void nf_linear_prepare_transposed(const nf_linear *l, const nf_operand *dy, int64_t rows, int64_t o0, int64_t o1);
void nf_linear_gradient_tile(const nf_linear *l, float *d_w, int64_t ldw, const nf_operand *dy, const nf_operand *x,
                             int64_t rows, int64_t o0, int64_t o1, int64_t i0, int64_t i1, int add, void *scratch);

/* row (in,) = W[index] as float32. */
void nf_linear_row(const nf_linear *l, float *row, int64_t index);

#endif
