/* SPDX-License-Identifier: Apache-2.0 */
/* The little that the C tests share: seeded numbers, checks that count, and central differences in double. */
#ifndef NF_TESTS_CHECK_H
#define NF_TESTS_CHECK_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static int failures, checks;

static inline void check(int ok, const char *what) {
    checks++;
    failures += !ok;
    printf("%s  %s\n", ok ? "ok  " : "FAIL", what);
}

/* Largest difference relative to the largest expected value. */
static inline double relative_error(const float *got, const double *expected, int64_t n) {
    double difference = 0.0, largest = 1e-300;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)got[i] - expected[i]), e = fabs(expected[i]);
        if (!(d <= difference)) difference = d; /* NaN counts as worst */
        if (e > largest) largest = e;
    }
    return difference / largest;
}

static inline void check_close(const char *what, const float *got, const double *expected, int64_t n, double tolerance) {
    char line[160];
    double error = relative_error(got, expected, n);
    snprintf(line, sizeof line, "%-58s %.1e (limit %.0e)", what, error, tolerance);
    check(error <= tolerance, line);
}

/* Numbers in [-1, 1) that float32 holds exactly. */
static inline void random_floats(float *x, int64_t n, uint64_t seed) {
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    for (int64_t i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        x[i] = (float)((int32_t)(state >> 33) - (1 << 30)) / (float)(1 << 30);
    }
}

static inline float *new_floats(int64_t n, uint64_t seed) {
    float *x = malloc((size_t)n * sizeof *x);
    if (!x) abort();
    if (seed)
        random_floats(x, n, seed);
    else
        for (int64_t i = 0; i < n; i++) x[i] = 0.0f;
    return x;
}

static inline double *to_double(const float *x, int64_t n) {
    double *d = malloc((size_t)n * sizeof *d);
    if (!d) abort();
    for (int64_t i = 0; i < n; i++) d[i] = x[i];
    return d;
}

/* gradient (n,) of value(context) with respect to x, which `value` reads: central differences with step h.
   The error is about h^2 of the third derivative plus 1e-16/h: below 1e-8 for h = 1e-4 and values of order one. */
static inline double *differences(double (*value)(void *), void *context, double *x, int64_t n) {
    const double h = 1e-4;
    double *gradient = malloc((size_t)n * sizeof *gradient);
    if (!gradient) abort();
    for (int64_t i = 0; i < n; i++) {
        double at = x[i];
        x[i] = at + h;
        double above = value(context);
        x[i] = at - h;
        gradient[i] = (above - value(context)) / (2.0 * h);
        x[i] = at;
    }
    return gradient;
}

static inline int report(void) {
    printf("%d passed, %d failed\n", checks - failures, failures);
    return failures != 0;
}

#endif
