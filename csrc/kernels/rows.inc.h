/* SPDX-License-Identifier: Apache-2.0 */
/* The body of the row kernels.  rows.c includes it once for each instruction set with
     NF_TARGET  function attribute that turns the instruction set on
     NF_NAME(x) a name of its own for each function
     NF_W       float lanes of a vector
   and where there are instructions for them
     NF_EXP(x), NF_LARGER(a, b), NF_SUM(v)  in place of what vexp, vmax and sum do with plain vectors
   Vectors are the compiler's own vector extension; the tail of a row is handled in a padded vector, so every element goes
   through the same arithmetic wherever it stands. */

#define vf NF_NAME(vf)
#define vi NF_NAME(vi)
typedef float vf __attribute__((vector_size(NF_W * 4)));
typedef int32_t vi __attribute__((vector_size(NF_W * 4)));

#define NF_INLINE static inline __attribute__((always_inline)) NF_TARGET
#define NF_KERNEL static NF_TARGET
#define load NF_NAME(load)
#define store NF_NAME(store)
#define load_some NF_NAME(load_some)
#define store_some NF_NAME(store_some)
#define sum NF_NAME(sum)
#define vmax NF_NAME(vmax)
#define choose NF_NAME(choose)
#define vexp NF_NAME(vexp)

NF_INLINE vf load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

NF_INLINE void store(float *p, vf v) { memcpy(p, &v, sizeof v); }

/* The first n < NF_W lanes from memory, the rest 0. */
NF_INLINE vf load_some(const float *p, int64_t n) {
    float padded[NF_W] = {0};
    for (int64_t i = 0; i < n; i++) padded[i] = p[i];
    return load(padded);
}

NF_INLINE void store_some(float *p, vf v, int64_t n) {
    float padded[NF_W];
    store(padded, v);
    for (int64_t i = 0; i < n; i++) p[i] = padded[i];
}

/* Pairwise, so that the order is the same for every vector width's own tree. */
NF_INLINE float sum(vf v) {
#ifdef NF_SUM
    return NF_SUM(v);
#else
    float lanes[NF_W];
    store(lanes, v);
    for (int step = NF_W / 2; step > 0; step /= 2)
        for (int i = 0; i < step; i++) lanes[i] += lanes[i + step];
    return lanes[0];
#endif
}

NF_INLINE vf choose(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }

/* Of a NaN and another the second. */
NF_INLINE vf vmax(vf a, vf b) {
#ifdef NF_LARGER
    return NF_LARGER(a, b);
#else
    return choose(a > b, a, b);
#endif
}

/* exp(x) with relative error below 2 units in the last place: x = n ln2 + r, |r| <= ln2/2, Taylor to degree 7 in r.
   Below -87.3 the result is 0 (or the smallest normal number), above 88.3 it stays finite; NaN stays NaN. */
NF_INLINE vf vexp(vf x) {
#ifdef NF_EXP
    return NF_EXP(x);
#else
    const float log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f, round = 12582912.0f; /* 1.5*2^23 */
    vf zero = {0};
    vi tiny = x < -87.3f;
    vf clamped = choose(x > 88.3f, zero + 88.3f, choose(tiny, zero - 87.3f, x));
    vf n = (clamped * log2e + round) - round;
    vf r = clamped - n * ln2_high - n * ln2_low;
    vf p = zero + 1.0f / 5040.0f;
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    vi power = (__builtin_convertvector(choose(n == n, n, zero), vi) + 127) << 23;
    return choose(tiny, zero, p * (vf)power);
#endif
}

/* Run `body` over [0, n) in vectors; `i` is the place, `k` how many lanes count (NF_W but in the tail). */
#define NF_LANES(n, body_full, body_some)                                                                                      \
    do {                                                                                                                       \
        int64_t i = 0;                                                                                                         \
        for (; i + NF_W <= (n); i += NF_W) {                                                                                   \
            body_full                                                                                                          \
        }                                                                                                                      \
        if (i < (n)) {                                                                                                         \
            int64_t k = (n) - i;                                                                                               \
            body_some                                                                                                          \
        }                                                                                                                      \
    } while (0)

NF_KERNEL float NF_NAME(dot)(const float *a, const float *b, int64_t n) {
    vf t[4] = {{0}}; /* four sums: one would wait for itself */
    int64_t i = 0;
    for (; i + 4 * NF_W <= n; i += 4 * NF_W)
        for (int j = 0; j < 4; j++) t[j] += load(a + i + j * NF_W) * load(b + i + j * NF_W);
    for (; i + NF_W <= n; i += NF_W) t[0] += load(a + i) * load(b + i);
    if (i < n) t[1] += load_some(a + i, n - i) * load_some(b + i, n - i);
    return sum((t[0] + t[1]) + (t[2] + t[3]));
}

NF_KERNEL void NF_NAME(scale)(float *x, float f, int64_t n) {
    NF_LANES(n, store(x + i, load(x + i) * f);, store_some(x + i, load_some(x + i, k) * f, k););
}

NF_KERNEL void NF_NAME(add_scaled)(float *y, const float *x, float f, int64_t n) {
    NF_LANES(n, store(y + i, load(y + i) + f * load(x + i));
             , store_some(y + i, load_some(y + i, k) + f * load_some(x + i, k), k););
}

NF_KERNEL void NF_NAME(rmsnorm_forward)(float *out, int64_t ldo, const float *x, int64_t ldx, const float *gain, int64_t rows,
                                        int64_t C, float eps) {
    for (int64_t t = 0; t < rows; t++, out += ldo, x += ldx) {
        float r = 1.0f / sqrtf(NF_NAME(dot)(x, x, C) / (float)C + eps);
        NF_LANES(C, store(out + i, load(x + i) * r * load(gain + i));
                 , store_some(out + i, load_some(x + i, k) * r * load_some(gain + i, k), k););
    }
}

NF_KERNEL void NF_NAME(rmsnorm_backward)(float *d_x, int64_t lddx, float *d_gain, const float *d_y, int64_t lddy,
                                         const float *x, int64_t ldx, const float *gain, int64_t rows, int64_t C, float eps,
                                         int add) {
    for (int64_t t = 0; t < rows; t++, d_x += lddx, d_y += lddy, x += ldx) {
        float r = 1.0f / sqrtf(NF_NAME(dot)(x, x, C) / (float)C + eps);
        vf along = {0};
        NF_LANES(C, along += load(d_y + i) * load(gain + i) * load(x + i);
                 , along += load_some(d_y + i, k) * load_some(gain + i, k) * load_some(x + i, k););
        float f = sum(along) * r * r * r / (float)C;
        if (d_gain)
            NF_LANES(C, store(d_gain + i, load(d_gain + i) + load(d_y + i) * (load(x + i) * r));
                     ,
                     store_some(d_gain + i, load_some(d_gain + i, k) + load_some(d_y + i, k) * (load_some(x + i, k) * r), k););
        NF_LANES(C, vf d = r * load(d_y + i) * load(gain + i) - f * load(x + i); store(d_x + i, add ? load(d_x + i) + d : d);
                 , vf d = r * load_some(d_y + i, k) * load_some(gain + i, k) - f * load_some(x + i, k);
                 store_some(d_x + i, add ? load_some(d_x + i, k) + d : d, k););
    }
}

NF_KERNEL void NF_NAME(rope)(float *x, int64_t ldx, const float *cosine, const float *sine, int64_t rows, int64_t heads,
                             int64_t d, int64_t half, int interleaved, float sign) {
    for (int64_t t = 0; t < rows; t++, x += ldx, cosine += half, sine += half)
        for (int64_t h = 0; h < heads; h++) {
            float *head = x + h * d;
            if (interleaved) {
                for (int64_t i = 0; i < half; i++) {
                    float a = head[2 * i], b = head[2 * i + 1], c = cosine[i], s = sign * sine[i];
                    head[2 * i] = a * c - b * s;
                    head[2 * i + 1] = b * c + a * s;
                }
            } else {
                for (int64_t i = 0; i < half; i++) {
                    float a = head[i], b = head[i + half], c = cosine[i], s = sign * sine[i];
                    head[i] = a * c - b * s;
                    head[i + half] = b * c + a * s;
                }
            }
        }
}

NF_KERNEL void NF_NAME(swiglu_forward)(float *out, const float *gate, const float *up, int64_t n) {
    NF_LANES(n, vf g = load(gate + i); store(out + i, g / (1.0f + vexp(-g)) * load(up + i));, vf g = load_some(gate + i, k);
             store_some(out + i, g / (1.0f + vexp(-g)) * load_some(up + i, k), k););
}

NF_KERNEL void NF_NAME(swiglu_backward)(float *d_gate, float *d_up, const float *d_out, const float *gate, const float *up,
                                        int64_t n) {
#define NF_SWIGLU(get, put)                                                                                                    \
    vf g = get(gate), d = get(d_out), u = get(up), sigmoid = 1.0f / (1.0f + vexp(-g)), silu = g * sigmoid;                     \
    put(d_up, d *silu);                                                                                                        \
    put(d_gate, d * u * (sigmoid + silu * (1.0f - sigmoid)));
#define NF_GET(p) load(p + i)
#define NF_PUT(p, v) store(p + i, v)
#define NF_GET_SOME(p) load_some(p + i, k)
#define NF_PUT_SOME(p, v) store_some(p + i, v, k)
    NF_LANES(n, NF_SWIGLU(NF_GET, NF_PUT), NF_SWIGLU(NF_GET_SOME, NF_PUT_SOME));
#undef NF_SWIGLU
#undef NF_GET
#undef NF_PUT
#undef NF_GET_SOME
#undef NF_PUT_SOME
}

NF_INLINE int64_t NF_NAME(seen)(int64_t row, int64_t cols, int64_t visible, int64_t causal) {
    int64_t n = visible + row * causal;
    return n < 0 ? 0 : n < cols ? n : cols;
}

/* s[0:n] = exp(scale*s - top), the rest of the row 0; returns the sum. */
NF_INLINE float NF_NAME(exp_row)(float *s, int64_t n, int64_t cols, float scale, float top) {
    vf total = {0}, other = {0};
    int64_t i = 0;
    for (; i + 2 * NF_W <= n; i += 2 * NF_W) {
        vf a = vexp(load(s + i) * scale - top), b = vexp(load(s + i + NF_W) * scale - top);
        store(s + i, a), store(s + i + NF_W, b);
        total += a, other += b;
    }
    for (; i < n; i += NF_W) {
        float kept[NF_W] = {0};
        int64_t k = n - i < NF_W ? n - i : NF_W;
        vf e = vexp(load_some(s + i, k) * scale - top);
        store_some(s + i, e, k), store_some(kept, e, k);
        total += load(kept);
    }
    total += other;
    memset(s + n, 0, (size_t)(cols - n) * sizeof *s);
    return sum(total);
}

/* The largest of `top` and scale * s[0:n]; NaN does not count. */
NF_INLINE float NF_NAME(top_of)(const float *s, int64_t n, float scale, float top) {
    if (n < NF_W) {
        for (int64_t i = 0; i < n; i++) top = s[i] * scale > top ? s[i] * scale : top;
        return top;
    }
    vf high = load(s), other = high;
    float lanes[NF_W];
    int64_t i = 0;
    for (; i + 2 * NF_W <= n; i += 2 * NF_W) high = vmax(load(s + i), high), other = vmax(load(s + i + NF_W), other);
    if (i + NF_W <= n) high = vmax(load(s + i), high);
    high = vmax(vmax(load(s + n - NF_W), other), high);
    store(lanes, high);
    for (int j = 0; j < NF_W; j++) top = lanes[j] * scale > top ? lanes[j] * scale : top;
    return top;
}

NF_KERNEL void NF_NAME(softmax_block)(float *s, int64_t ld, int64_t rows, int64_t cols, float scale, int64_t visible,
                                      int64_t causal, float *m, float *l, float *correction) {
    for (int64_t t = 0; t < rows; t++, s += ld) {
        int64_t n = NF_NAME(seen)(t, cols, visible, causal);
        float top = NF_NAME(top_of)(s, n, scale, m[t]);
        correction[t] = n > 0 && m[t] > -FLT_MAX ? expf(m[t] - top) : (n > 0 ? 0.0f : 1.0f);
        m[t] = top;
        l[t] = l[t] * correction[t] + NF_NAME(exp_row)(s, n, cols, scale, top);
    }
}

NF_KERNEL float NF_NAME(softmax_row)(float *s, int64_t n, float *m, float *l) {
    const float slack = 8.0f; /* exp of it, and sums of that, are far from the end of float32 */
    float top = NF_NAME(top_of)(s, n, 1.0f, *m), correction = 1.0f;
    if (!(top <= *m + slack)) correction = *m > -FLT_MAX ? expf(*m - top) : 0.0f, *m = top;
    *l = *l * correction + NF_NAME(exp_row)(s, n, n, 1.0f, *m);
    return correction;
}

NF_KERNEL void NF_NAME(softmax_again)(float *s, int64_t ld, int64_t rows, int64_t cols, float scale, int64_t visible,
                                      int64_t causal, const float *lse) {
    for (int64_t t = 0; t < rows; t++, s += ld)
        NF_NAME(exp_row)(s, NF_NAME(seen)(t, cols, visible, causal), cols, scale, lse[t]);
}

NF_KERNEL void NF_NAME(softmax_backward)(float *dp, const float *p, int64_t ld, int64_t rows, int64_t cols, float scale,
                                         const float *delta) {
    for (int64_t t = 0; t < rows; t++, dp += ld, p += ld)
        NF_LANES(cols, store(dp + i, load(p + i) * (load(dp + i) - delta[t]) * scale);
                 , store_some(dp + i, load_some(p + i, k) * (load_some(dp + i, k) - delta[t]) * scale, k););
}

typedef float NF_NAME(four) __attribute__((vector_size(16)));

/* A block of 4 x 4. */
NF_INLINE void NF_NAME(transpose_four)(float *to, int64_t ldt, const float *from, int64_t ldf) {
    NF_NAME(four) a[4], b[4];
    for (int i = 0; i < 4; i++) memcpy(&a[i], from + i * ldf, sizeof a[i]);
    for (int i = 0; i < 2; i++) {
        b[2 * i] = (NF_NAME(four)){a[2 * i][0], a[2 * i + 1][0], a[2 * i][1], a[2 * i + 1][1]};
        b[2 * i + 1] = (NF_NAME(four)){a[2 * i][2], a[2 * i + 1][2], a[2 * i][3], a[2 * i + 1][3]};
    }
    for (int i = 0; i < 2; i++) {
        a[2 * i] = (NF_NAME(four)){b[i][0], b[i][1], b[i + 2][0], b[i + 2][1]};
        a[2 * i + 1] = (NF_NAME(four)){b[i][2], b[i][3], b[i + 2][2], b[i + 2][3]};
    }
    for (int i = 0; i < 4; i++) memcpy(to + i * ldt, &a[i], sizeof a[i]);
}

/* Sixteen rows at a time, so that a line of the result is written at once: its lines may share a place in the cache. */
NF_KERNEL void NF_NAME(transpose)(float *to, int64_t ldt, const float *from, int64_t ldf, int64_t rows, int64_t cols) {
    int64_t whole_rows = rows & ~3ll, whole_cols = cols & ~3ll;
    for (int64_t first = 0; first < whole_rows; first += 16)
        for (int64_t c = 0; c < whole_cols; c += 4)
            for (int64_t r = first; r < whole_rows && r < first + 16; r += 4)
                NF_NAME(transpose_four)(to + c * ldt + r, ldt, from + r * ldf + c, ldf);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = r < whole_rows ? whole_cols : 0; c < cols; c++) to[c * ldt + r] = from[r * ldf + c];
}

/* Blocks of 4 x 4 dot products; places behind the last row or column are computed from the last one and dropped. */
NF_KERNEL void NF_NAME(low_rank)(float *h, const float *x, int64_t ldx, const float *a, int64_t rows, int64_t K, int64_t r,
                                 float scale) {
    for (int64_t t = 0; t < rows; t += 4)
        for (int64_t k = 0; k < r; k += 4) {
            const float *left[4], *right[4];
            vf sums[4][4] = {{{0}}};
            for (int i = 0; i < 4; i++) {
                left[i] = x + (t + i < rows ? t + i : rows - 1) * ldx;
                right[i] = a + (k + i < r ? k + i : r - 1) * K;
            }
#define NF_DOTS(get)                                                                                                           \
    for (int p = 0; p < 4; p++)                                                                                                \
        for (int q = 0; q < 4; q++) sums[p][q] += get(left[p]) * get(right[q]);
#define NF_GET(p) load(p + i)
#define NF_GET_SOME(p) load_some(p + i, k_left)
            int64_t i = 0;
            for (; i + NF_W <= K; i += NF_W) NF_DOTS(NF_GET)
            int64_t k_left = K - i;
            if (k_left) NF_DOTS(NF_GET_SOME)
#undef NF_DOTS
#undef NF_GET
#undef NF_GET_SOME
            for (int p = 0; p < 4 && t + p < rows; p++)
                for (int q = 0; q < 4 && k + q < r; q++) h[(t + p) * r + k + q] = scale * sum(sums[p][q]);
        }
}

/* Blocks of 8 values of r and two vectors of columns.  Rows lie too far apart for the processor to foresee them. */
NF_KERNEL void NF_NAME(low_rank_gradient)(float *out, int64_t out_k, int64_t out_c, const float *u, const float *x, int64_t ldx,
                                          int64_t rows, int64_t cols, int64_t r, float scale) {
    for (int64_t c = 0; c < cols; c += 2 * NF_W)
        for (int64_t k = 0; k < r; k += 8) {
            int64_t n = cols - c < 2 * NF_W ? cols - c : 2 * NF_W, at[8];
            vf sums[8][2] = {{{0}}};
            for (int q = 0; q < 8; q++) at[q] = k + q < r ? k + q : r - 1; /* what is behind r is computed and dropped */
            for (int64_t t = 0; t < rows; t++) {
                const float *from = x + t * ldx + c;
                vf left, right = {0};
                __builtin_prefetch(from + ROWS_AHEAD * ldx, 0, 3), __builtin_prefetch(from + ROWS_AHEAD * ldx + NF_W, 0, 3);
                if (n == 2 * NF_W) {
                    left = load(from), right = load(from + NF_W);
                } else {
                    left = n < NF_W ? load_some(from, n) : load(from);
                    if (n > NF_W) right = load_some(from + NF_W, n - NF_W);
                }
                for (int q = 0; q < 8; q++) {
                    float f = u[t * r + at[q]];
                    sums[q][0] += f * left, sums[q][1] += f * right;
                }
            }
            for (int q = 0; q < 8 && k + q < r; q++) {
                float lanes[2 * NF_W], *to = out + (k + q) * out_k + c * out_c;
                store(lanes, sums[q][0]), store(lanes + NF_W, sums[q][1]);
                for (int64_t i = 0; i < n; i++) to[i * out_c] += scale * lanes[i];
            }
        }
}

NF_KERNEL void NF_NAME(adamw)(float *p, const float *g, float *m, float *v, int64_t n, float lr, float beta1, float beta2,
                              float eps, float weight_decay, float correction1, float correction2, float grad_scale) {
    float step = lr / correction1, root = 1.0f / sqrtf(correction2), keep = 1.0f - lr * weight_decay;
    for (int64_t i = 0; i < n; i++) {
        float grad = g[i] * grad_scale;
        m[i] = beta1 * m[i] + (1.0f - beta1) * grad;
        v[i] = beta2 * v[i] + (1.0f - beta2) * grad * grad;
        p[i] = p[i] * keep - step * m[i] / (sqrtf(v[i]) * root + eps);
    }
}

NF_KERNEL void NF_NAME(to_bf16)(uint16_t *out, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, quiet = bits >> 16 | 0x40;
        out[i] = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
    }
}

static const nf_kernels NF_NAME(table) = {
    .rmsnorm_forward = NF_NAME(rmsnorm_forward),
    .rmsnorm_backward = NF_NAME(rmsnorm_backward),
    .rope = NF_NAME(rope),
    .swiglu_forward = NF_NAME(swiglu_forward),
    .swiglu_backward = NF_NAME(swiglu_backward),
    .softmax_block = NF_NAME(softmax_block),
    .softmax_row = NF_NAME(softmax_row),
    .softmax_again = NF_NAME(softmax_again),
    .softmax_backward = NF_NAME(softmax_backward),
    .scale = NF_NAME(scale),
    .add_scaled = NF_NAME(add_scaled),
    .dot = NF_NAME(dot),
    .transpose = NF_NAME(transpose),
    .low_rank = NF_NAME(low_rank),
    .low_rank_gradient = NF_NAME(low_rank_gradient),
    .adamw = NF_NAME(adamw),
    .to_bf16 = NF_NAME(to_bf16),
};

#undef vf
#undef vi
#undef NF_INLINE
#undef NF_KERNEL
#undef NF_LANES
#undef load
#undef store
#undef load_some
#undef store_some
#undef sum
#undef vmax
#undef choose
#undef vexp
