/* SPDX-License-Identifier: Apache-2.0 */
/* The formulas in double, as plainly as they can be written: what the fast kernels are compared with. */
#ifndef NF_TESTS_PLAIN_H
#define NF_TESTS_PLAIN_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

/* c (M, N) = op(a) op(b) */
static inline double plain_product(int ta, int tb, int64_t M, int64_t N, int64_t K, const double *a, const double *b, int64_t i,
                                   int64_t j) {
    double sum = 0.0;
    for (int64_t k = 0; k < K; k++) sum += (ta ? a[k * M + i] : a[i * K + k]) * (tb ? b[j * K + k] : b[k * N + j]);
    return sum;
}

static inline void plain_rmsnorm(double *out, const double *x, const double *gain, int64_t rows, int64_t C, double eps) {
    for (int64_t t = 0; t < rows; t++) {
        double mean = 0.0;
        for (int64_t i = 0; i < C; i++) mean += x[t * C + i] * x[t * C + i] / (double)C;
        for (int64_t i = 0; i < C; i++) out[t * C + i] = gain[i] * x[t * C + i] / sqrt(mean + eps);
    }
}

static inline void plain_rope(double *out, const double *x, const double *cosine, const double *sine, int64_t rows,
                              int64_t heads, int64_t d, int64_t half, int interleaved) {
    for (int64_t t = 0; t < rows; t++)
        for (int64_t h = 0; h < heads; h++) {
            const double *in = x + (t * heads + h) * d;
            double *to = out + (t * heads + h) * d;
            for (int64_t i = 2 * half; i < d; i++) to[i] = in[i];
            for (int64_t i = 0; i < half; i++) {
                int64_t a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + half;
                to[a] = in[a] * cosine[t * half + i] - in[b] * sine[t * half + i];
                to[b] = in[b] * cosine[t * half + i] + in[a] * sine[t * half + i];
            }
        }
}

static inline double plain_silu(double x) { return x / (1.0 + exp(-x)); }

/* Causal attention of one document; q (T, H, d), k and v (T, K, d); out (T, H, d). */
static inline void plain_attention(double *out, const double *q, const double *k, const double *v, int64_t T, int64_t H,
                                   int64_t K, int64_t d) {
    double *p = malloc((size_t)T * sizeof *p);
    for (int64_t t = 0; t < T; t++)
        for (int64_t h = 0; h < H; h++) {
            int64_t g = h / (H / K);
            double sum = 0.0;
            for (int64_t u = 0; u <= t; u++) {
                double score = 0.0;
                for (int64_t i = 0; i < d; i++) score += q[(t * H + h) * d + i] * k[(u * K + g) * d + i];
                p[u] = exp(score / sqrt((double)d));
                sum += p[u];
            }
            for (int64_t i = 0; i < d; i++) {
                out[(t * H + h) * d + i] = 0.0;
                for (int64_t u = 0; u <= t; u++) out[(t * H + h) * d + i] += p[u] / sum * v[(u * K + g) * d + i];
            }
        }
    free(p);
}

/* Its gradients, from d_out (T, H, d); d_q as q, d_k and d_v as k.  With p the softmax weights of a row and dp = d_out v^T,
   the scores' gradient is p * (dp - sum(p * dp)) / sqrt(d). */
static inline void plain_attention_backward(double *d_q, double *d_k, double *d_v, const double *d_out, const double *q,
                                            const double *k, const double *v, int64_t T, int64_t H, int64_t K, int64_t d) {
    double *p = malloc((size_t)T * sizeof *p), *dp = malloc((size_t)T * sizeof *dp), scale = 1.0 / sqrt((double)d);
    for (int64_t i = 0; i < T * H * d; i++) d_q[i] = 0.0;
    for (int64_t i = 0; i < T * K * d; i++) d_k[i] = d_v[i] = 0.0;
    for (int64_t t = 0; t < T; t++)
        for (int64_t h = 0; h < H; h++) {
            int64_t at = (t * H + h) * d, g = h / (H / K) * d;
            double sum = 0.0, delta = 0.0, top = -INFINITY;
            for (int64_t u = 0; u <= t; u++) {
                p[u] = scale * plain_product(0, 1, 1, 1, d, q + at, k + u * K * d + g, 0, 0);
                dp[u] = plain_product(0, 1, 1, 1, d, d_out + at, v + u * K * d + g, 0, 0);
                if (p[u] > top) top = p[u];
            }
            for (int64_t u = 0; u <= t; u++) sum += p[u] = exp(p[u] - top);
            for (int64_t u = 0; u <= t; u++) delta += (p[u] /= sum) * dp[u];
            for (int64_t u = 0; u <= t; u++)
                for (int64_t i = 0; i < d; i++) {
                    double ds = p[u] * (dp[u] - delta) * scale;
                    d_q[at + i] += ds * k[u * K * d + g + i];
                    d_k[u * K * d + g + i] += ds * q[at + i];
                    d_v[u * K * d + g + i] += p[u] * d_out[at + i];
                }
        }
    free(p), free(dp);
}

/* Sum over n rows of -log softmax(W x)[target]. */
static inline double plain_cross_entropy(const double *w, const double *x, const int32_t *targets, int64_t n, int64_t D,
                                         int64_t V) {
    double loss = 0.0;
    for (int64_t t = 0; t < n; t++) {
        double sum = 0.0, wanted = 0.0;
        for (int64_t v = 0; v < V; v++) {
            double logit = 0.0;
            for (int64_t i = 0; i < D; i++) logit += w[v * D + i] * x[t * D + i];
            sum += exp(logit);
            if (v == targets[t]) wanted = logit;
        }
        loss += log(sum) - wanted;
    }
    return loss;
}

#endif
