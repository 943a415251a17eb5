/* SPDX-License-Identifier: Apache-2.0 */
/* float16 bits and float32, one value at a time; compilers make vectors of loops over these. */
#ifndef NF_CORE_HALF_H
#define NF_CORE_HALF_H

#include <stdint.h>
#include <string.h>

/* The exponent moves by 112; denormals are whole multiples of 2^-24, infinity and NaN keep a full exponent. */
static inline float nf_half_to_float(uint16_t bits) {
    uint32_t exponent = bits >> 10 & 31, wide = (uint32_t)(bits & 0x7fff) << 13;
    float value = (float)(bits & 0x3ff) * 0x1p-24f;
    if (exponent) {
        wide += exponent == 31 ? 224u << 23 : 112u << 23;
        memcpy(&value, &wide, sizeof value);
    }
    return bits & 0x8000 ? -value : value;
}

/* To nearest even; what is too large becomes infinity, NaN stays NaN. */
static inline uint16_t nf_float_to_half(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size >= 0x477ff000) return (uint16_t)(sign | (size > 0x7f800000 ? 0x7e00 : 0x7c00)); /* from 65520 on */
    if (size < 0x38800000) { /* below 2^-14: adding 1/2 leaves multiples of 2^-24 in the low bits */
        float small;
        memcpy(&small, &size, sizeof small);
        small += 0.5f;
        memcpy(&bits, &small, sizeof bits);
        return (uint16_t)(sign | (bits - 0x3f000000));
    }
    return (uint16_t)(sign | (((size + 0xfff + (size >> 13 & 1)) >> 13) - (112u << 10)));
}

#endif
