/* SPDX-License-Identifier: Apache-2.0 */
/* Packing to GGUF blocks: buffers of exactly the right size, odd counts, threads, values that cannot be packed. */
#include <string.h>

#include "../../csrc/core/half.h"
#include "../../csrc/kernels/blocks.h"
#include "../../csrc/quant/pack.h"
#include "check.h"

static const char *const names[NF_BLOCK_KINDS] = {"Q8_0", "Q4_0", "Q4_K", "Q6_K", "Q4_1", "Q5_0", "Q5_1", "Q5_K"};

static uint8_t *pack(nf_block_kind type, int nearest, const float *x, int64_t blocks, int threads, nf_status *status) {
    uint8_t *out = malloc((size_t)(blocks * nf_block_bytes(type)) + 1);
    if (!out) abort();
    *status = nf_pack_blocks(type, nearest, out, x, NF_PACK_F32, blocks, threads);
    return out;
}

static void test_type(nf_block_kind type, int nearest) {
    static const int64_t counts[] = {0, 1, 2, 3, 15, 16, 17, 64, 65, 200};
    char line[80];
    int same = 1, fine = 1;
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        int64_t n = counts[i] * nf_block_values(type);
        float *x = new_floats(n > 0 ? n : 1, 7);
        nf_status one, three;
        uint8_t *a = pack(type, nearest, x, counts[i], 1, &one), *b = pack(type, nearest, x, counts[i], 3, &three);
        fine &= one == NF_OK && three == NF_OK;
        same &= memcmp(a, b, (size_t)(counts[i] * nf_block_bytes(type))) == 0;
        free(a), free(b), free(x);
    }
    snprintf(line, sizeof line, "%s: any number of blocks, threads change nothing", names[type]);
    check(same && fine, line);
}

static void test_values(nf_block_kind type, int nearest) {
    static const float extremes[] = {0.0f, -0.0f, 1e-45f, -1e-30f, 6e4f, -6e4f, 3e38f, -3e38f, INFINITY, NAN};
    char line[80];
    int64_t n = nf_block_values(type);
    float *x = new_floats(2 * n, 0);
    nf_status status;
    for (size_t i = 0; i < sizeof extremes / sizeof *extremes; i++) {
        x[n + 5] = extremes[i];
        free(pack(type, nearest, x, 2, 1, &status));
        if (!isfinite(extremes[i])) check(status == NF_ERR_ARGUMENT, "what is not finite is refused");
        if (fabsf(extremes[i]) >= 1e30f || isnan(extremes[i])) continue; /* refused or not, nothing may break */
        snprintf(line, sizeof line, "%s: packs %g", names[type], (double)extremes[i]);
        check(status == NF_OK, line);
    }
    x[n + 5] = 3e12f;
    free(pack(type, nearest, x, 2, 1, &status));
    snprintf(line, sizeof line, "%s: refuses a scale beyond half precision", names[type]);
    check(status == NF_ERR_ARGUMENT, line);
    free(x);
}

/* Values in two bytes, at an odd address, give the bytes of the same values in float32. */
static void test_forms(nf_block_kind type, int nearest) {
    enum { BLOCKS = 67 };
    char line[80];
    int64_t n = BLOCKS * nf_block_values(type);
    float *wide = new_floats(n, 3), *x = new_floats(n, 3);
    uint8_t *narrow = malloc((size_t)(2 * n + 1));
    if (!narrow) abort();
    for (int form = NF_PACK_F16; form <= NF_PACK_BF16; form++) {
        nf_status status[2];
        for (int64_t i = 0; i < n; i++) {
            uint32_t bits;
            memcpy(&bits, wide + i, sizeof bits);
            uint16_t half = form == NF_PACK_F16 ? nf_float_to_half(wide[i]) : (uint16_t)(bits >> 16);
            bits = (uint32_t)half << 16;
            if (form == NF_PACK_F16)
                x[i] = nf_half_to_float(half);
            else
                memcpy(x + i, &bits, sizeof bits);
            memcpy(narrow + 1 + 2 * i, &half, sizeof half);
        }
        uint8_t *a = pack(type, nearest, x, BLOCKS, 1, &status[0]), *b = pack(type, nearest, x, BLOCKS, 1, &status[1]);
        status[1] = nf_pack_blocks(type, nearest, b, narrow + 1, (nf_pack_form)form, BLOCKS, 2);
        int same = memcmp(a, b, (size_t)(BLOCKS * nf_block_bytes(type))) == 0;
        snprintf(line, sizeof line, "%s: the same from %s", names[type], form == NF_PACK_F16 ? "float16" : "bf16");
        check(status[0] == NF_OK && status[1] == NF_OK && same, line);
        free(a), free(b);
    }
    free(wide), free(x), free(narrow);
}

/* Rounding to blocks: no value is further from its own than half a step. */
static void test_nearest(void) {
    enum { N = 96 };
    float x[2 * N], back[N];
    random_floats(x, 2 * N, 9);
    for (int i = 0; i < 32; i++) x[N + i] = 0.0f, x[N + 32 + i] *= 1e-6f;
    uint8_t q8[2 * N / 32 * 34], q4[2 * N / 32 * 18];
    check(nf_pack_blocks(NF_BLOCK_Q8_0, 1, q8, x, NF_PACK_F32, 2 * N / 32, 1) == NF_OK, "packs Q8_0");
    check(nf_pack_blocks(NF_BLOCK_Q4_0, 1, q4, x, NF_PACK_F32, 2 * N / 32, 1) == NF_OK, "packs Q4_0");
    for (int kind = NF_BLOCK_Q8_0; kind <= NF_BLOCK_Q4_0; kind++)
        for (int row = 0; row < 2; row++) {
            nf_blocks b = {(nf_block_kind)kind, NF_BLOCK_PLAIN, kind == NF_BLOCK_Q8_0 ? q8 : q4, N};
            nf_blocks_widen(&b, back, row, 0, N);
            int good = 1;
            for (int i = 0; i < N; i += 32) {
                float top = 0.0f, worst = 0.0f;
                for (int k = i; k < i + 32; k++) {
                    top = fmaxf(top, fabsf(x[row * N + k]));
                    worst = fmaxf(worst, fabsf(back[k] - x[row * N + k]));
                }
                /* half a step, and what a scale of 11 bits (fewer where it is denormal) adds at the top */
                good &= worst <= (kind == NF_BLOCK_Q8_0 ? top / 254.0f : top / 7.0f) * 1.1f + 4e-6f;
            }
            check(good, kind == NF_BLOCK_Q8_0 ? "to Q8_0" : "to Q4_0");
        }
}

int main(void) {
    for (int type = 0; type < NF_BLOCK_KINDS; type++) {
        for (int nearest = 0; nearest <= (type == NF_BLOCK_Q4_0); nearest++) {
            test_type((nf_block_kind)type, nearest);
            test_values((nf_block_kind)type, nearest);
            test_forms((nf_block_kind)type, nearest);
        }
    }
    test_nearest();
    uint8_t out;
    check(nf_pack_blocks(NF_BLOCK_KINDS, 0, &out, NULL, NF_PACK_F32, 0, 1) == NF_ERR_ARGUMENT, "an unknown type is refused");
    return report();
}
