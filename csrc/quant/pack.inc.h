/* SPDX-License-Identifier: Apache-2.0 */
/* The arithmetic of packing.  pack.c includes it once for each instruction set with
     NF_TARGET  function attribute that turns the instruction set on
     NF_NAME(x) a name of its own for each function
     NF_MIN, NF_MAX(a, b) of vectors: b where they are equal

   A K block is parts of 32 or 16 values with a scale each.  The best scale of a part is searched among about twenty
   candidates; 16 parts are searched at once, one in each lane of a vector, so no sum runs across lanes and the result is
   the same for every instruction set but for fused multiply-adds. */

#define vf NF_NAME(vf)
#define vi NF_NAME(vi)
#define vb NF_NAME(vb)
typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint8_t vb __attribute__((vector_size(LANES)));

#define NF_INLINE static inline __attribute__((always_inline)) NF_TARGET
#define NF_KERNEL static NF_TARGET
#define choose NF_NAME(choose)
#define vmin NF_NAME(vmin)
#define vmax NF_NAME(vmax)
#define vround NF_NAME(vround)
#define vload NF_NAME(vload)
#define levels NF_NAME(levels)
#define fit_range NF_NAME(fit_range)
#define sum_levels NF_NAME(sum_levels)
#define fit_symmetric NF_NAME(fit_symmetric)
#define fit_eight NF_NAME(fit_eight)
#define fit_four NF_NAME(fit_four)
#define as_half NF_NAME(as_half)
#define pack_fitted NF_NAME(pack_fitted)
#define lanes_of NF_NAME(lanes_of)
#define pack_simple NF_NAME(pack_simple)
#define pack_range NF_NAME(pack_range)
#define pack_symmetric NF_NAME(pack_symmetric)
#define finish_range NF_NAME(finish_range)

NF_INLINE vf vload(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
NF_INLINE vf choose(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }
NF_INLINE vf vmin(vf a, vf b) { return NF_MIN(a, b); }
NF_INLINE vf vmax(vf a, vf b) { return NF_MAX(a, b); }
/* To nearest even, for magnitudes below 2^22. */
NF_INLINE vf vround(vf v) { return (v + 12582912.0f) - 12582912.0f; }

/* -------- blocks of 32 with one scale: Q4_0, Q4_1, Q5_0, Q5_1 -------- */

/* Whole numbers trunc(|v| + 0.5) with v's sign, exact also just below a half. */
NF_INLINE int32_t NF_NAME(half_away)(float v) {
    float a = fabsf(v);
    int32_t whole = (int32_t)a;
    whole += 2.0f * (a - (float)whole) >= 1.0f;
    return v < 0.0f ? -whole : whole;
}

/* Five-bit levels: the low halves as for four bits, and the fifth bits in 32 bits before them. */
NF_INLINE void NF_NAME(put_levels)(uint8_t *out, const uint8_t *q, int five) {
    if (five) {
        uint32_t high = 0;
        for (int i = 0; i < 32; i++) high |= (uint32_t)(q[i] >> 4) << i;
        for (int i = 0; i < 4; i++) *out++ = (uint8_t)(high >> 8 * i);
    }
    for (int i = 0; i < 16; i++) out[i] = (uint8_t)((q[i] & 15) | (q[i + 16] & 15) << 4);
}

/* d (q - half): the value of largest magnitude becomes exactly -half. */
NF_KERNEL void NF_NAME(pack_signed)(uint8_t *out, const float *x, int half) {
    float top = 0.0f, value = 0.0f;
    for (int i = 0; i < 32; i++)
        if (fabsf(x[i]) > top) top = fabsf(x[i]), value = x[i];
    float d = value / (float)-half, inverse = d != 0.0f ? 1.0f / d : 0.0f;
    uint8_t q[32];
    /* the product of two float32 is exact in double, so the rounding does not depend on fused multiply-adds */
    for (int i = 0; i < 32; i++) {
        int32_t level = (int32_t)((double)x[i] * (double)inverse + (half + 0.5));
        q[i] = (uint8_t)(level < 2 * half - 1 ? level : 2 * half - 1);
    }
    put_half(out, nf_float_to_half(d));
    NF_NAME(put_levels)(out + 2, q, half == 16);
}

/* d q + m between the smallest and the largest value. */
NF_KERNEL void NF_NAME(pack_between)(uint8_t *out, const float *x, int top) {
    float low = x[0], high = x[0];
    for (int i = 1; i < 32; i++) low = x[i] < low ? x[i] : low, high = x[i] > high ? x[i] : high;
    float d = (high - low) / (float)top, inverse = d > 0.0f ? 1.0f / d : 0.0f;
    uint8_t q[32];
    for (int i = 0; i < 32; i++) {
        int32_t level = (int32_t)((x[i] - low) * inverse + 0.5f);
        q[i] = (uint8_t)(level < top ? level : top);
    }
    put_half(out, nf_float_to_half(d));
    put_half(out + 2, nf_float_to_half(low));
    NF_NAME(put_levels)(out + 4, q, top == 31);
}

/* -------- the search for the scale of a part, 16 parts at once --------
   TRIED candidates share each reading of the values, and their sums do not wait for each other. */

/* t (n, 16): value i of each of 16 parts that lie one after the other; parts from `given` on are zeros. */
NF_INLINE void lanes_of(float *t, const float *x, int n, int given) {
    for (int p = 0; p < LANES; p += 4) {
        if (p + 4 <= given) {
            four_lanes_of(t + p, x + p * n, n);
            continue;
        }
        for (int j = p; j < p + 4; j++)
            for (int i = 0; i < n; i++) t[i * LANES + j] = j < given ? x[j * n + i] : 0.0f;
    }
}

/* For each of `tries` steps the sums of w q, w q q and w q x, where q is x in those steps, at most `top`. */
NF_INLINE void sum_levels(vf *sqs, vf *sqqs, vf *sxqs, const vf *inverse, const float *above, const float *w, float top,
                          int tries) {
    const vf zero = {0};
    for (int c = 0; c < tries; c++) sqs[c] = sqqs[c] = sxqs[c] = zero;
    for (int i = 0; i < 32; i++) {
        vf over = vload(above + i * LANES), weight = vload(w + i * LANES);
        for (int c = 0; c < tries; c++) {
            vf q = vround(over * inverse[c]);
            if (top < INFINITY) q = vmin(q, zero + top);
            vf wq = weight * q;
            sqs[c] += wq, sqqs[c] += wq * q, sxqs[c] += wq * over;
        }
    }
}

/* scale and minimum (>= 0) so that x ~ scale q - minimum with 0 <= q <= top.  Each candidate step between the levels
   gives a rounding, each rounding its best line by weighted least squares; the least weighted error wins.  Large values
   weigh more: |x| + the part's root mean square. */
NF_KERNEL void fit_range(float *scale, float *minimum, const float *t, float top, float first, float step, int steps) {
    const vf zero = {0};
    vf low = zero, high = zero - INFINITY, squares = zero;
    for (int i = 0; i < 32; i++) {
        vf x = vload(t + i * LANES);
        low = vmin(low, x), high = vmax(high, x), squares += x * x;
    }
    float w[32 * LANES], above[32 * LANES]; /* weights, x - low */
    vf sum_w = zero, sum_x = zero, sum_xx = zero, rms = squares * (1.0f / 32.0f), width = high - low;
    for (int p = 0; p < LANES; p++) rms[p] = sqrtf(rms[p]);
    for (int i = 0; i < 32; i++) {
        vf x = vload(t + i * LANES), weight = vmax(x, -x) + rms, over = x - low;
        memcpy(w + i * LANES, &weight, sizeof weight);
        memcpy(above + i * LANES, &over, sizeof over);
        sum_w += weight, sum_x += weight * over, sum_xx += weight * over * over;
    }
    vf spread = choose(width > zero, width, zero + 1.0f), best = zero + INFINITY, best_scale = width / top, best_low = low;
    vf inverse[TRIED], sqs[TRIED], sqqs[TRIED], sxqs[TRIED];
    for (int k = -1; k < steps; k++) {
        int tried = (k + 1) % TRIED;
        if (tried == 0) {
            float last = first + step * (float)(k + TRIED - 1);
            for (int c = 0; c < TRIED; c++) inverse[c] = (top + (k + c < 0 ? 0.0f : first + step * (float)(k + c))) / spread;
            if (last < 0.49f) /* nothing can be rounded beyond the top */
                sum_levels(sqs, sqqs, sxqs, inverse, above, w, INFINITY, TRIED);
            else if (k + TRIED / 2 < steps)
                sum_levels(sqs, sqqs, sxqs, inverse, above, w, top, TRIED);
            else
                sum_levels(sqs, sqqs, sxqs, inverse, above, w, top, TRIED / 2);
        }
        vf sq = sqs[tried], sqq = sqqs[tried], sxq = sxqs[tried];
        vf determinant = sum_w * sqq - sq * sq;
        vi solvable = determinant > 1e-6f * sum_w * sqq; /* all values equal: the line between the two ends */
        determinant = choose(solvable, determinant, zero + 1.0f);
        vf s = choose(solvable, (sum_w * sxq - sum_x * sq) / determinant, width / top);
        vf m = choose(solvable, (sqq * sum_x - sq * sxq) / determinant, zero);
        vi positive = m + low > zero; /* the best line through 0 instead; x = above + low */
        vf through = (sxq + low * sq) / choose(sqq > zero, sqq, zero + 1.0f);
        s = choose(positive, through, s), m = choose(positive, -low, m);
        vf error = sum_xx + s * s * sqq + m * m * sum_w + 2.0f * (s * m * sq - s * sxq - m * sum_x);
        vi better = (s >= zero) & (error < best);
        best = choose(better, error, best), best_scale = choose(better, s, best_scale);
        best_low = choose(better, m + low, best_low);
    }
    vf flipped = -best_low;
    memcpy(scale, &best_scale, sizeof best_scale);
    memcpy(minimum, &flipped, sizeof flipped);
}

/* scale so that x ~ scale q with -32 <= q <= 31; values weigh as their squares. */
NF_KERNEL void fit_symmetric(float *scale, const float *t) {
    const vf zero = {0};
    vf top = zero, value = zero;
    for (int i = 0; i < 16; i++) {
        vf x = vload(t + i * LANES), a = vmax(x, -x);
        value = choose(a > top, x, value), top = vmax(a, top);
    }
    vf divisor = choose(top > zero, value, zero + 1.0f), best = zero, best_scale = zero;
    vf inverse[TRIED], sqqs[TRIED], sxqs[TRIED];
    for (int k = -9; k <= 9; k++) {
        int tried = (k + 9) % TRIED;
        if (tried == 0) {
            for (int c = 0; c < TRIED; c++) {
                inverse[c] = -(32.0f + 0.1f * (float)(k + c)) / divisor;
                sqqs[c] = sxqs[c] = zero;
            }
            for (int i = 0; i < 16; i++) {
                vf x = vload(t + i * LANES), w = x * x, wx = w * x;
                for (int c = 0; c < TRIED; c++) {
                    vf q = vmin(vmax(vround(x * inverse[c]), zero - 32.0f), zero + 31.0f);
                    sqqs[c] += w * q * q, sxqs[c] += wx * q;
                }
            }
        }
        vf sqq = sqqs[tried], sxq = sxqs[tried];
        vf safe = choose(sqq > zero, sqq, zero + 1.0f), gain = sxq * sxq / safe; /* how much of the error it takes away */
        vi better = gain > best;
        best = choose(better, gain, best), best_scale = choose(better, sxq / safe, best_scale);
    }
    memcpy(scale, &best_scale, sizeof best_scale);
}

/* scale so that x ~ scale q with |q| <= 127, by least squares, after rounding with the usual step, top / 127, and with
   eight others around it.  All values weigh the same. */
NF_KERNEL void fit_eight(float *scale, const float *t) {
    static const float steps[] = {127.0f, 123.0f, 124.0f, 125.0f, 126.0f, 128.0f, 129.0f, 130.0f, 131.0f};
    const vf zero = {0};
    vf top = zero;
    for (int i = 0; i < 32; i++) top = vmax(top, vmax(vload(t + i * LANES), -vload(t + i * LANES)));
    vf unit = 1.0f / choose(top > zero, top, zero + 1.0f), best = zero, best_scale = zero;
    for (size_t k = 0; k < sizeof steps / sizeof *steps; k++) {
        vf inverse = unit * steps[k], sqq = zero, sxq = zero;
        for (int i = 0; i < 32; i++) {
            vf x = vload(t + i * LANES), q = vround(x * inverse);
            if (steps[k] > 127.0f) q = vmin(vmax(q, zero - 127.0f), zero + 127.0f);
            sqq += q * q, sxq += x * q;
        }
        vf safe = choose(sqq > zero, sqq, zero + 1.0f), gain = sxq * sxq / safe;
        vi better = gain > best;
        best = choose(better, gain, best), best_scale = choose(better, sxq / safe, best_scale);
    }
    memcpy(scale, &best_scale, sizeof best_scale);
}

/* Each value as float16 has it; what is too large becomes infinity. */
NF_INLINE vf as_half(vf v) {
    const vf zero = {0};
    vi sign = (vi)v & INT32_MIN, size = (vi)v & INT32_MAX;
    vf normal = (vf)((size + 0xfff + (size >> 13 & 1)) & ~0x1fff), small = ((vf)size + 0.5f) - 0.5f;
    vf near = choose((vf)size < zero + 0x1p-14f, small, normal);
    return (vf)((vi)choose((vf)size < zero + 65520.0f, near, zero + INFINITY) | sign);
}

/* The scale of least squared error, x ~ scale q with -8 <= q <= 7, among some: those that take the value of largest size to a
   place from 7 to 9 steps off, on either side, as float16 has them. */
NF_KERNEL void fit_four(float *scale, const float *t) {
    const vf zero = {0};
    vf top = zero, value = zero;
    for (int i = 0; i < 32; i++) {
        vf x = vload(t + i * LANES), a = vmax(x, -x);
        value = choose(a > top, x, value), top = vmax(a, top);
    }
    vf least = zero + INFINITY, best = value / -8.0f, d[TRIED], inverse[TRIED], errors[TRIED];
    for (int k = 0; k < 18; k++) {
        int tried = k % TRIED;
        if (tried == 0) {
            for (int c = 0; c < TRIED; c++) {
                float steps = 7.0f + 0.25f * (float)((k + c) / 2);
                d[c] = as_half(value / ((k + c) % 2 ? steps : -steps));
                inverse[c] = 1.0f / choose(d[c] == zero, zero + 1.0f, d[c]), errors[c] = zero;
            }
            for (int i = 0; i < 32; i++) {
                vf x = vload(t + i * LANES);
                for (int c = 0; c < TRIED; c++) {
                    vf q = vmin(vmax(vround(x * inverse[c]), zero - 8.0f), zero + 7.0f), e = x - d[c] * q;
                    errors[c] += e * e;
                }
            }
        }
        vi better = (errors[tried] < least) & (d[tried] != zero);
        least = choose(better, errors[tried], least), best = choose(better, d[tried], best);
    }
    memcpy(scale, &best, sizeof best);
}

/* -------- K blocks -------- */

/* q[i] = round(x[i] * inverse + offset) between low and high, plus add; n is a multiple of LANES. */
NF_INLINE void levels(uint8_t *q, const float *x, int n, float inverse, float offset, float low, float high, int add) {
    const vf zero = {0};
    for (int i = 0; i < n; i += LANES) {
        vf v = vmin(vmax(vload(x + i) * inverse + offset, zero + low), zero + high);
        vb level = __builtin_convertvector(__builtin_convertvector(vround(v), vi) + add, vb);
        memcpy(q + i, &level, sizeof level);
    }
}

/* One Q4_K or Q5_K block from the scales and minima of its 8 parts. */
NF_INLINE void finish_range(uint8_t *out, const float *x, const float *scale, const float *minimum, int five) {
    float top_scale = 0.0f, top_minimum = 0.0f, top = five ? 31.0f : 15.0f;
    for (int j = 0; j < 8; j++) {
        top_scale = scale[j] > top_scale ? scale[j] : top_scale;
        top_minimum = minimum[j] > top_minimum ? minimum[j] : top_minimum;
    }
    float to_six = top_scale > 0.0f ? 63.0f / top_scale : 0.0f, to_six_m = top_minimum > 0.0f ? 63.0f / top_minimum : 0.0f;
    uint16_t d = nf_float_to_half(top_scale / 63.0f), m = nf_float_to_half(top_minimum / 63.0f);
    uint8_t s[8], t[8], q[SUPER];
    for (int j = 0; j < 8; j++) {
        s[j] = (uint8_t)(to_six * scale[j] + 0.5f), t[j] = (uint8_t)(to_six_m * minimum[j] + 0.5f);
        float unit = nf_half_to_float(d) * s[j], base = nf_half_to_float(m) * t[j], inverse = unit > 0.0f ? 1.0f / unit : 0.0f;
        levels(q + 32 * j, x + 32 * j, 32, inverse, base * inverse, 0.0f, top, 0);
    }
    put_half(out, d);
    put_half(out + 2, m);
    put_scales(out + 4, s, t);
    uint8_t *high = out + 16, *low = out + (five ? 48 : 16);
    if (five) memset(high, 0, 32);
    for (int n = 0; n < SUPER; n += 64, low += 32)
        for (int i = 0; i < 32; i++) {
            low[i] = (uint8_t)((q[n + i] & 15) | (q[n + 32 + i] & 15) << 4);
            if (five) high[i] |= (uint8_t)((q[n + i] >> 4 | q[n + 32 + i] >> 4 << 1) << n / 32);
        }
}

/* Two blocks are 16 parts; a last block alone leaves lanes empty. */
NF_KERNEL void pack_range(uint8_t *out, const float *x, int64_t blocks, int five) {
    float t[32 * LANES], scale[LANES], minimum[LANES];
    int64_t bytes = nf_block_bytes(five ? NF_BLOCK_Q5_K : NF_BLOCK_Q4_K);
    for (int64_t b = 0; b < blocks; b += 2) {
        int given = b + 1 < blocks ? 2 : 1;
        lanes_of(t, x + b * SUPER, 32, 8 * given);
        fit_range(scale, minimum, t, five ? 31.0f : 15.0f, five ? -0.5f : -1.0f, 0.1f, five ? 16 : 21);
        for (int i = 0; i < given; i++)
            finish_range(out + (b + i) * bytes, x + (b + i) * SUPER, scale + 8 * i, minimum + 8 * i, five);
    }
}

NF_KERNEL void pack_symmetric(uint8_t *out, const float *x) {
    float t[16 * LANES], scale[LANES], top = 0.0f, largest = 0.0f;
    lanes_of(t, x, 16, LANES);
    fit_symmetric(scale, t);
    for (int j = 0; j < 16; j++)
        if (fabsf(scale[j]) > top) top = fabsf(scale[j]), largest = scale[j];
    float to_eight = top > 0.0f ? -128.0f / largest : 0.0f; /* the largest scale becomes exactly -128 */
    uint16_t d = nf_float_to_half(top > 0.0f ? largest / -128.0f : 0.0f);
    uint8_t q[SUPER], *low = out, *high = out + 128;
    for (int j = 0; j < 16; j++) {
        int32_t s = NF_NAME(half_away)(to_eight * scale[j]);
        s = s > 127 ? 127 : s;
        out[192 + j] = (uint8_t)(int8_t)s;
        float unit = nf_half_to_float(d) * (float)s;
        levels(q + 16 * j, x + 16 * j, 16, unit != 0.0f ? 1.0f / unit : 0.0f, 0.0f, -32.0f, 31.0f, 32);
    }
    for (int n = 0; n < SUPER; n += 128, low += 64, high += 32)
        for (int i = 0; i < 32; i++) {
            const uint8_t *p = q + n + i;
            low[i] = (uint8_t)((p[0] & 15) | (p[64] & 15) << 4);
            low[i + 32] = (uint8_t)((p[32] & 15) | (p[96] & 15) << 4);
            high[i] = (uint8_t)(p[0] >> 4 | p[32] >> 4 << 2 | p[64] >> 4 << 4 | p[96] >> 4 << 6);
        }
    put_half(out + 208, d);
}

/* Q8_0, or Q4_0, with the scale of least squared error: 16 blocks at once; fewer at the end leave lanes empty. */
NF_KERNEL void pack_fitted(nf_block_kind kind, uint8_t *out, const float *x, int64_t blocks) {
    float t[32 * LANES], scale[LANES];
    for (int64_t b = 0; b < blocks; b += LANES) {
        int given = blocks - b < LANES ? (int)(blocks - b) : LANES;
        lanes_of(t, x + 32 * b, 32, given);
        if (kind == NF_BLOCK_Q8_0)
            fit_eight(scale, t);
        else
            fit_four(scale, t);
        for (int i = 0; i < given; i++) {
            const float *values = x + 32 * (b + i);
            uint8_t *block = out + (b + i) * nf_block_bytes(kind), q[32];
            uint16_t d = nf_float_to_half(scale[i]);
            float unit = nf_half_to_float(d), inverse = unit != 0.0f ? 1.0f / unit : 0.0f;
            put_half(block, d);
            if (kind == NF_BLOCK_Q8_0) {
                levels(block + 2, values, 32, inverse, 0.0f, -127.0f, 127.0f, 0);
            } else {
                levels(q, values, 32, inverse, 0.0f, -8.0f, 7.0f, 8);
                NF_NAME(put_levels)(block + 2, q, 0);
            }
        }
    }
}

NF_KERNEL void pack_simple(nf_block_kind kind, uint8_t *out, const float *x) {
    switch (kind) {
    case NF_BLOCK_Q4_0:
        NF_NAME(pack_signed)(out, x, 8);
        break;
    case NF_BLOCK_Q5_0:
        NF_NAME(pack_signed)(out, x, 16);
        break;
    case NF_BLOCK_Q4_1:
        NF_NAME(pack_between)(out, x, 15);
        break;
    case NF_BLOCK_Q5_1:
        NF_NAME(pack_between)(out, x, 31);
        break;
    default:
        pack_symmetric(out, x);
    }
}

NF_KERNEL void NF_NAME(pack)(nf_block_kind kind, int nearest, uint8_t *out, const float *x, int64_t blocks) {
    if (kind == NF_BLOCK_Q4_K || kind == NF_BLOCK_Q5_K) {
        pack_range(out, x, blocks, kind == NF_BLOCK_Q5_K);
        return;
    }
    if (kind == NF_BLOCK_Q8_0 || (kind == NF_BLOCK_Q4_0 && nearest)) {
        pack_fitted(kind, out, x, blocks);
        return;
    }
    for (int64_t b = 0; b < blocks; b++) pack_simple(kind, out + b * nf_block_bytes(kind), x + b * nf_block_values(kind));
}

#undef vf
#undef vi
#undef vb
#undef NF_INLINE
#undef NF_KERNEL
#undef choose
#undef vmin
#undef vmax
#undef vround
#undef vload
#undef levels
#undef fit_range
#undef sum_levels
#undef fit_symmetric
#undef fit_eight
#undef fit_four
#undef as_half
#undef pack_fitted
#undef lanes_of
#undef pack_simple
#undef pack_range
#undef pack_symmetric
#undef finish_range
