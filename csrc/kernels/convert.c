/* SPDX-License-Identifier: Apache-2.0 */
#include "convert.h"

#include <math.h>
#include <string.h>

void nf_to_bf16(uint16_t *out, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        out[i] = (uint16_t)(isnan(x[i]) ? (bits >> 16 | 0x40) : rounded);
    }
}

void nf_to_int8(int8_t *out, float *scale, const float *x, int64_t rows, int64_t width) {
    for (int64_t t = 0; t < rows; t++, x += width, out += width) {
        float top = 0.0f;
        for (int64_t i = 0; i < width; i++) top = fabsf(x[i]) > top ? fabsf(x[i]) : top;
        scale[t] = top / 127.0f;
        float inverse = top > 0.0f ? 127.0f / top : 0.0f;
        for (int64_t i = 0; i < width; i++) out[i] = (int8_t)lrintf(x[i] * inverse);
    }
}
