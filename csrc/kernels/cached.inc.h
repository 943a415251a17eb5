/* SPDX-License-Identifier: Apache-2.0 */
/* The body of the cache kernels.  cached.c includes it once for each instruction set with NF_TARGET, NF_NAME(x), NF_W (float
   lanes of a vector), NF_LOAD_HALF(p) and NF_LOAD_INT8(p), NF_W values at p as a vector, and NF_SUM(v) of its lanes.
   All are undefined at the end. */

#define vf NF_NAME(vf)
typedef float vf __attribute__((vector_size(NF_W * 4)));
#define NF_INLINE static inline __attribute__((always_inline)) NF_TARGET

NF_INLINE vf NF_NAME(load)(nf_cache_kind kind, const void *from, int64_t i) {
    vf v;
    if (kind == NF_CACHE_F16) return (vf)NF_LOAD_HALF((const uint16_t *)from + i);
    if (kind == NF_CACHE_INT8) return (vf)NF_LOAD_INT8((const int8_t *)from + i);
    memcpy(&v, (const float *)from + i, sizeof v);
    return v;
}

NF_INLINE float NF_NAME(value)(nf_cache_kind kind, const void *from, int64_t i) {
    if (kind == NF_CACHE_F16) return nf_half_to_float(((const uint16_t *)from)[i]);
    return kind == NF_CACHE_INT8 ? (float)((const int8_t *)from)[i] : ((const float *)from)[i];
}

/* s[t] = q . k_t for n positions, `row` values apart. */
NF_INLINE void NF_NAME(scores)(nf_cache_kind kind, float *s, const float *q, const void *k, int64_t row, int64_t d, int64_t n) {
    for (int64_t t = 0; t < n; t++) {
        vf even = {0}, odd = {0}, x[2];
        float rest = 0.0f;
        int64_t i = 0;
        for (; i + 2 * NF_W <= d; i += 2 * NF_W) {
            memcpy(x, q + i, sizeof x);
            even += x[0] * NF_NAME(load)(kind, k, t * row + i);
            odd += x[1] * NF_NAME(load)(kind, k, t * row + i + NF_W);
        }
        for (; i < d; i++) rest += q[i] * NF_NAME(value)(kind, k, t * row + i);
        s[t] = NF_SUM(even + odd) + rest;
    }
}

/* out (d,) += sum over n positions of p[t] * v_t, four vectors of it at a time. */
NF_INLINE void NF_NAME(mix)(nf_cache_kind kind, float *out, const float *p, const void *v, int64_t row, int64_t d, int64_t n) {
    int64_t i = 0;
    for (; i + 4 * NF_W <= d; i += 4 * NF_W) {
        vf o[4];
        memcpy(o, out + i, sizeof o);
        for (int64_t t = 0; t < n; t++)
            for (int j = 0; j < 4; j++) o[j] += p[t] * NF_NAME(load)(kind, v, t * row + i + j * NF_W);
        memcpy(out + i, o, sizeof o);
    }
    for (; i + NF_W <= d; i += NF_W) {
        vf o;
        memcpy(&o, out + i, sizeof o);
        for (int64_t t = 0; t < n; t++) o += p[t] * NF_NAME(load)(kind, v, t * row + i);
        memcpy(out + i, &o, sizeof o);
    }
    for (; i < d; i++)
        for (int64_t t = 0; t < n; t++) out[i] += p[t] * NF_NAME(value)(kind, v, t * row + i);
}

static NF_TARGET void NF_NAME(scores_of)(nf_cache_kind kind, float *s, const float *q, const void *k, int64_t row, int64_t d,
                                         int64_t n) {
    if (kind == NF_CACHE_F16)
        NF_NAME(scores)(NF_CACHE_F16, s, q, k, row, d, n);
    else if (kind == NF_CACHE_INT8)
        NF_NAME(scores)(NF_CACHE_INT8, s, q, k, row, d, n);
    else
        NF_NAME(scores)(NF_CACHE_F32, s, q, k, row, d, n);
}

static NF_TARGET void NF_NAME(mix_of)(nf_cache_kind kind, float *out, const float *p, const void *v, int64_t row, int64_t d,
                                      int64_t n) {
    if (kind == NF_CACHE_F16)
        NF_NAME(mix)(NF_CACHE_F16, out, p, v, row, d, n);
    else if (kind == NF_CACHE_INT8)
        NF_NAME(mix)(NF_CACHE_INT8, out, p, v, row, d, n);
    else
        NF_NAME(mix)(NF_CACHE_F32, out, p, v, row, d, n);
}

static NF_TARGET void NF_NAME(halves)(uint16_t *out, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        float clamped = x[i] > 65504.0f && x[i] < INFINITY ? 65504.0f : x[i] < -65504.0f && x[i] > -INFINITY ? -65504.0f : x[i];
        out[i] = nf_float_to_half(clamped);
    }
}

/* out (n,) = values [at, at + n) */
static NF_TARGET void NF_NAME(fetch)(nf_cache_kind kind, float *out, const void *from, int64_t at, int64_t n) {
    int64_t i = 0;
    for (; i + NF_W <= n; i += NF_W) {
        vf v = NF_NAME(load)(kind, from, at + i);
        memcpy(out + i, &v, sizeof v);
    }
    for (; i < n; i++) out[i] = NF_NAME(value)(kind, from, at + i);
}

#undef vf
#undef NF_INLINE
#undef NF_TARGET
#undef NF_NAME
#undef NF_W
#undef NF_SUM
#undef NF_LOAD_HALF
#undef NF_LOAD_INT8
