/* SPDX-License-Identifier: Apache-2.0 */
/* The body of products of one row of activations with blocks, a group of 32 at a time.  A file includes it once for
   each form, with
     NF_NAME(x)   a name of its own for each function
     NF_TARGET    a function attribute that turns the instructions on
     NF_ADD(sums, g, x, d)  the sums and the products of a group with 32 activations x, times d and the group's scales
   It gives the vector vf, sum_of_floats, and unpack(kind, row, at), which makes a `group` with the minimum m.
   What belongs to a form is undefined at the end. */

enum { NF_NAME(AHEAD) = 4096 }; /* bytes: how early memory is asked for */

static inline __attribute__((always_inline)) NF_TARGET float NF_NAME(dot)(nf_block_kind kind, const uint8_t *row,
                                                                          const nf_block_pair *pairs, int64_t groups) {
    vf sums = {0};
    float least = 0.0f;
    for (int64_t at = 0; at < groups; at++) {
        const nf_block_pair *p = &pairs[at / 2];
        const group g = unpack(kind, row, at);
        sums = NF_ADD(sums, &g, p->q + at % 2 * 32, p->d[at % 2]);
        if (kind == NF_BLOCK_Q4_K) least += g.m * p->d[at % 2] * (float)p->minus_sum[at % 2];
        __builtin_prefetch(row + at * nf_block_bytes(kind) * 32 / nf_block_values(kind) + NF_NAME(AHEAD), 0, 3);
    }
    return sum_of_floats(sums) + least;
}

static inline __attribute__((always_inline)) NF_TARGET void NF_NAME(dots)(nf_block_kind kind, const nf_blocks *b, float *y,
                                                                          int64_t ldy, const char *a, int64_t stride,
                                                                          int64_t rows, int64_t o0, int64_t o1) {
    int64_t row_bytes = b->in / nf_block_values(kind) * nf_block_bytes(kind);
    for (int64_t o = o0; o < o1; o++)
        for (int64_t t = 0; t < rows; t++)
            y[t * ldy + (o - o0)] =
                NF_NAME(dot)(kind, (const uint8_t *)b->w + o * row_bytes, (const void *)(a + t * stride), b->in / 32);
}

NF_TARGET void NF_NAME(nf_blocks_decode)(const nf_blocks *b, float *y, int64_t ldy, const void *a, int64_t stride, int64_t rows,
                                         int64_t o0, int64_t o1) {
    NF_FOR_KIND(b->kind, NF_NAME(dots), b, y, ldy, a, stride, rows, o0, o1)
}

#undef NF_NAME
#undef NF_TARGET
#undef NF_ADD
