/* SPDX-License-Identifier: Apache-2.0 */
#include "outliers.h"

#include <string.h>

/* Magnitudes have the order of their bits, and whole numbers are compared several at a time. */
static int32_t bits_of(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x7fffffff;
}

/* How many magnitudes are above `limit`, and the largest of the others. */
static int32_t count_above(const float *x, int64_t width, int32_t limit, int32_t *largest) {
    int32_t count = 0, top = 0;
    for (int64_t i = 0; i < width; i++) {
        int32_t bits = bits_of(x[i]), rest = bits > limit ? 0 : bits;
        count += bits > limit;
        top = rest > top ? rest : top;
    }
    *largest = top;
    return count;
}

int32_t nf_outliers_find(nf_outliers *found, float *top, const float *x, int64_t width) {
    int32_t limit = INT32_MAX, rest, n = 0;
    while (*top > 0.0f) {
        int32_t next = bits_of(*top * NF_OUTLIER_RATIO);
        if (count_above(x, width, next, &rest) > nf_outliers_most(width)) break;
        limit = next;
        memcpy(top, &rest, sizeof rest);
    }
    for (int64_t i = 0; i < width && limit < INT32_MAX; i++)
        if (bits_of(x[i]) > limit) found->list[n++] = (nf_outlier){(int32_t)i, x[i]};
    return n;
}
