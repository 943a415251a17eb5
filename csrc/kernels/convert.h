/* SPDX-License-Identifier: Apache-2.0 */
/* Narrow forms of float32 weights. */
#ifndef NF_KERNELS_CONVERT_H
#define NF_KERNELS_CONVERT_H

#include <stdint.h>

#include "../core/status.h"

/* Round n float32 values to bf16, to nearest even; NaN stays NaN. */
void nf_to_bf16(uint16_t *out, const float *x, int64_t n);

/* The same in pieces on several threads. */
nf_status nf_to_bf16_threads(uint16_t *out, const float *x, int64_t n, int threads);

/* Rows of int8 with scale = max |row| / 127 each. */
void nf_to_int8(int8_t *out, float *scale, const float *x, int64_t rows, int64_t width);

#endif
