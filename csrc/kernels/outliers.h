/* SPDX-License-Identifier: Apache-2.0 */
/* The few values of a row of activations that would cost all others their digits in int8: they are kept beside the row and
   multiplied in float32 (as the outlier columns of LLM.int8(), Dettmers et al. 2022, but found in each row by itself).

   A row has outliers if at most nf_outliers_most of its values are above 1/8 of the largest: the rest is then rounded to steps
   at least eight times finer.  The same again for what is left, as long as all are not too many.  That compares magnitudes and
   computes nothing, so it is the same for every instruction set, thread count and neighbour in the batch. */
#ifndef NF_KERNELS_OUTLIERS_H
#define NF_KERNELS_OUTLIERS_H

#include <stdint.h>

enum { NF_OUTLIERS = 16 }; /* the most of a row; LLM.int8() found up to 7 columns in models of up to 13 billion weights */

#define NF_OUTLIER_RATIO 0.125f

typedef struct nf_outlier {
    int32_t at; /* column */
    float value;
} nf_outlier;

/* A row's outliers by column. */
typedef struct nf_outliers {
    nf_outlier list[NF_OUTLIERS];
} nf_outliers;

/* Of a short row a share only: all of its values would be few. */
static inline int32_t nf_outliers_most(int64_t width) { return width < 16 * NF_OUTLIERS ? (int32_t)(width / 16) : NF_OUTLIERS; }

/* Find the outliers of a finite row with the largest magnitude *top; *top becomes the largest of the others.  Returns how many. */
int32_t nf_outliers_find(nf_outliers *found, float *top, const float *x, int64_t width);

#endif
