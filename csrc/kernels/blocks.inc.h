/* SPDX-License-Identifier: Apache-2.0 */
/* The body of the plain block kernels.  blocks.c includes it once for each instruction set with NF_TARGET, a function
   attribute that turns the instructions on, and NF_NAME(x), a name of its own for each function.  Both are undefined at the
   end. */

#define NF_INLINE static inline __attribute__((always_inline)) NF_TARGET

/* 32 values: value[i] = d[i / 16] * q[i] - m */
typedef struct NF_NAME(group) {
    int8_t q[32];
    float d[2], m;
} NF_NAME(group);

NF_INLINE void NF_NAME(unpack_q6_k)(NF_NAME(group) * g, const uint8_t *block, int64_t which) {
    const uint8_t *low = block + (which / 4) * 64 + (which % 2) * 32, *high = block + Q6_K_HIGH + (which / 4) * 32;
    int low_shift = which % 4 >= 2 ? 4 : 0, high_shift = (int)(which % 4) * 2;
    for (int i = 0; i < 32; i++) g->q[i] = (int8_t)(((low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4) - 32);
    const int8_t *scales = (const int8_t *)block + Q6_K_SCALES + which * 2;
    float d = nf_half_to_float(nf_half_at(block + Q6_K_D));
    g->d[0] = d * scales[0], g->d[1] = d * scales[1];
}

NF_INLINE void NF_NAME(unpack_q4_k)(NF_NAME(group) * g, const uint8_t *block, int64_t which) {
    const uint8_t *nibbles = block + Q4_K_NIBBLES + (which / 2) * 32;
    int shift = which % 2 ? 4 : 0;
    for (int i = 0; i < 32; i++) g->q[i] = (int8_t)(nibbles[i] >> shift & 15);
    uint64_t scales, minima;
    nf_q4_k_scales(block + Q4_K_SCALES, &scales, &minima);
    g->d[0] = g->d[1] = nf_half_to_float(nf_half_at(block)) * (float)(scales >> 8 * which & 63);
    g->m = nf_half_to_float(nf_half_at(block + 2)) * (float)(minima >> 8 * which & 63);
}

/* Group `at` of a row of `kind`. */
NF_INLINE void NF_NAME(unpack)(NF_NAME(group) * g, nf_block_kind kind, const uint8_t *row, int64_t at) {
    g->m = 0.0f;
    if (kind == NF_BLOCK_Q8_0) {
        const uint8_t *block = row + at * Q8_0_BYTES;
        memcpy(g->q, block + 2, 32);
        g->d[0] = g->d[1] = nf_half_to_float(nf_half_at(block));
    } else if (kind == NF_BLOCK_Q4_0) {
        const uint8_t *block = row + at * Q4_0_BYTES;
        for (int i = 0; i < 16; i++)
            g->q[i] = (int8_t)((block[2 + i] & 15) - 8), g->q[16 + i] = (int8_t)((block[2 + i] >> 4) - 8);
        g->d[0] = g->d[1] = nf_half_to_float(nf_half_at(block));
    } else if (kind == NF_BLOCK_Q4_K) {
        NF_NAME(unpack_q4_k)(g, row + at / 8 * Q4_K_BYTES, at % 8);
    } else {
        NF_NAME(unpack_q6_k)(g, row + at / 8 * Q6_K_BYTES, at % 8);
    }
}

static NF_TARGET void NF_NAME(widen)(const nf_blocks *b, float *out, int64_t o, int64_t i0, int64_t n) {
    const uint8_t *row = row_of(b, o);
    NF_NAME(group) g;
    for (int64_t at = i0 / 32; at * 32 < i0 + n; at++) {
        float values[32];
        int64_t from = at * 32 < i0 ? i0 - at * 32 : 0, to = i0 + n - at * 32 < 32 ? i0 + n - at * 32 : 32;
        NF_NAME(unpack)(&g, b->kind, row, at);
        for (int i = 0; i < 32; i++) values[i] = g.d[i / 16] * (float)g.q[i] - g.m;
        memcpy(out + at * 32 + from - i0, values + from, (size_t)(to - from) * sizeof *out);
    }
}

/* One group. */
NF_INLINE void NF_NAME(prepare_group)(int8_t *q, float *d, int32_t *minus_sum, const float *values) {
    float top = 0.0f, infinite = 0.0f;
    for (int i = 0; i < 32; i++) {
        float size = fabsf(values[i]);
        top = size > top ? size : top;
        infinite += values[i] * 0.0f; /* NaN when the value is not finite */
    }
    float inverse = infinite == 0.0f && top > NF_BLOCK_SMALLEST ? 127.0f / top : 0.0f;
    int32_t sum = 0;
    for (int i = 0; i < 32; i++) {
        int32_t whole = inverse > 0.0f ? round_to_whole(values[i] * inverse) : 0;
        q[i] = (int8_t)whole;
        sum += whole;
    }
    *d = infinite != 0.0f ? NAN : inverse > 0.0f ? top / 127.0f : 0.0f;
    *minus_sum = -sum;
}

static NF_TARGET void NF_NAME(prepare)(void *out, int64_t stride, const float *x, int64_t ldx, int64_t rows, int64_t width) {
    for (int64_t t = 0; t < rows; t++) {
        nf_block_pair *pairs = (void *)((char *)out + t * stride);
        for (int64_t at = 0; at < 2 * nf_block_pairs(width); at++) {
            float values[32] = {0};
            int64_t n = width - at * 32 < 32 ? width - at * 32 : 32;
            if (n > 0) memcpy(values, x + t * ldx + at * 32, (size_t)n * sizeof *values);
            nf_block_pair *p = &pairs[at / 2];
            NF_NAME(prepare_group)(p->q + at % 2 * 32, &p->d[at % 2], &p->minus_sum[at % 2], values);
        }
    }
}

#undef NF_INLINE
#undef NF_TARGET
#undef NF_NAME
