/* SPDX-License-Identifier: Apache-2.0 */
#include "linear.h"

#include <assert.h>
#include <string.h>

#include "matmul.h"

void nf_linear_tile(const nf_linear *l, float *y, int64_t ldy, const float *x, int64_t ldx, int64_t rows, int64_t o0,
                    int64_t o1, float beta) {
    assert(l->kind == NF_LINEAR_F32);
    nf_matmul(0, 1, rows, o1 - o0, l->in, 1.0f, x, ldx, l->w + o0 * l->in, l->in, beta, y, ldy);
}

void nf_linear_tile_input(const nf_linear *l, float *dx, int64_t lddx, const float *dy, int64_t lddy, int64_t rows,
                          int64_t o0, int64_t o1, int64_t i0, int64_t i1, float beta) {
    assert(l->kind == NF_LINEAR_F32);
    nf_matmul(0, 0, rows, i1 - i0, o1 - o0, 1.0f, dy, lddy, l->w + o0 * l->in + i0, l->in, beta, dx, lddx);
}

void nf_linear_row(const nf_linear *l, float *row, int64_t index) {
    assert(l->kind == NF_LINEAR_F32);
    memcpy(row, l->w + index * l->in, (size_t)l->in * sizeof *row);
}
