/* SPDX-License-Identifier: Apache-2.0 */
/* Products with narrow weights on arm64: through i8mm and bf16, through dotprod, and with neither. */
#include <stddef.h>

#include "narrow_inside.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#include <math.h>
#include <string.h>

#define NF_W 4
typedef float32x4_t vf;
typedef int32x4_t vi;

#define NF_INLINE static inline __attribute__((always_inline))

/* -------- what the body takes for granted -------- */

NF_INLINE vf floats_at(const float *p, int64_t n) {
    float some[4] = {0};
    if (n >= 4) return vld1q_f32(p);
    for (int64_t i = 0; i < n; i++) some[i] = p[i];
    return vld1q_f32(some);
}

NF_INLINE void put_floats(float *p, vf v, int64_t n) {
    float all[4];
    if (n >= 4) {
        vst1q_f32(p, v);
        return;
    }
    vst1q_f32(all, v);
    for (int64_t i = 0; i < n; i++) p[i] = all[i];
}

NF_INLINE void put_past(float *p, vf v) { vst1q_f32(p, v); } /* C has no other stores here */
NF_INLINE void past_done(void) {}
NF_INLINE float sum_of_floats(vf v) { return vaddvq_f32(v); }
NF_INLINE int32_t sum_of_units(vi v) { return vaddvq_s32(v); }
NF_INLINE int32_t largest_of_units(vi v) { return vmaxvq_s32(v); }
NF_INLINE vi splat(int32_t x) { return vdupq_n_s32(x); }
NF_INLINE vi whole(vf v) { return vcvtnq_s32_f32(v); }
NF_INLINE vi larger(vi a, vi b) { return vmaxq_s32(a, b); }

/* In place: 4 vectors of 4 units become their transpose. */
NF_INLINE void transpose(vi r[4]) {
    int64x2_t a = vreinterpretq_s64_s32(vtrn1q_s32(r[0], r[1])), b = vreinterpretq_s64_s32(vtrn2q_s32(r[0], r[1]));
    int64x2_t c = vreinterpretq_s64_s32(vtrn1q_s32(r[2], r[3])), d = vreinterpretq_s64_s32(vtrn2q_s32(r[2], r[3]));
    r[0] = vreinterpretq_s32_s64(vtrn1q_s64(a, c)), r[1] = vreinterpretq_s32_s64(vtrn1q_s64(b, d));
    r[2] = vreinterpretq_s32_s64(vtrn2q_s64(a, c)), r[3] = vreinterpretq_s32_s64(vtrn2q_s64(b, d));
}

/* -------- units -------- */

/* The first n bytes from memory, the rest 0. */
NF_INLINE int8x16_t bytes_at(const char *p, int64_t n) {
    int8_t some[16] = {0};
    if (n >= 16) return vld1q_s8((const int8_t *)p);
    if (n > 0) memcpy(some, p, (size_t)n);
    return vld1q_s8(some);
}

NF_INLINE vi units_at(const char *row, int64_t left) { return vreinterpretq_s32_s8(bytes_at(row, left)); }

NF_INLINE void pairs_across(vi *to, const char *w, int64_t apart, int64_t rows, int64_t cols) {
    int16x8_t a = vreinterpretq_s16_s8(bytes_at(w, rows > 0 ? 2 * cols : 0));
    int16x8_t b = vreinterpretq_s16_s8(bytes_at(w + apart, rows > 1 ? 2 * cols : 0));
    to[0] = vreinterpretq_s32_s16(vzip1q_s16(a, b)), to[1] = vreinterpretq_s32_s16(vzip2q_s16(a, b));
}

NF_INLINE void quads_across(vi *to, const char *w, int64_t apart, int64_t rows, int64_t cols) {
    int8x16_t r[4];
    for (int k = 0; k < 4; k++) /* eight columns */
        r[k] = bytes_at(w + k * apart, rows <= k ? 0 : cols < 8 ? cols : 8);
    int16x8_t low = vreinterpretq_s16_s8(vzip1q_s8(r[0], r[1])), high = vreinterpretq_s16_s8(vzip1q_s8(r[2], r[3]));
    to[0] = vreinterpretq_s32_s16(vzip1q_s16(low, high)), to[1] = vreinterpretq_s32_s16(vzip2q_s16(low, high));
}

NF_INLINE void put_bytes(char *to, vi q) {
    int16x4_t words = vmovn_s32(q);
    int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
    memcpy(to, &bytes, 4);
}

NF_INLINE void put_high_halves(uint16_t *to, vi v) { vst1_u16(to, vshrn_n_u32(vreinterpretq_u32_s32(v), 16)); }

/* -------- forms -------- */

NF_INLINE vi in_vector(vi x) {
    __asm__("" : "+w"(x));
    return x;
}
NF_INLINE void add_fused(vi *sum, vf x, vf w) { *sum = (vi)vfmaq_f32((vf)*sum, x, w); }
NF_INLINE vi upper_halves(vi x) { return x & (int32_t)0xffff0000; }
#include "narrow_plain.h"

/* Two products of bytes fit into 16 bits as long as none is -128 * -128, and activations are never -128. */
NF_INLINE void add_bytes(vi *sum, vi x, vi w) {
    int8x16_t a = vreinterpretq_s8_s32(x), b = vreinterpretq_s8_s32(w);
    int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
    *sum = vpadalq_s16(*sum, vpaddq_s16(low, high));
}

#define NF_TARGET
#define NF_NAME(x) narrow_##x##_neon_fused
#define NF_LABEL "neon"
#define NF_NEEDS NF_HAS_NEON
#define NF_INT8 0
#define NF_SIZE 2
#define NF_OFFSET 0
#define NF_ROWS 12
#define NF_ADD add_halves
#define NF_UNITS units_at
#define NF_ACROSS pairs_across
#define NF_PUT put_rounded
#include "narrow.inc.h"

#define NF_TARGET
#define NF_NAME(x) narrow_##x##_neon_bytes
#define NF_LABEL "neon"
#define NF_NEEDS NF_HAS_NEON
#define NF_INT8 1
#define NF_SIZE 1
#define NF_OFFSET 0
#define NF_ROWS 6
#define NF_ADD add_bytes
#define NF_UNITS units_at
#define NF_ACROSS quads_across
#define NF_PUT put_bytes
#include "narrow.inc.h"

#if !defined(__clang__) || __clang_major__ >= 16 /* older ones know these only for a whole file */
#define NF_TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
static inline __attribute__((always_inline)) NF_TARGET void add_dotprod(vi *sum, vi x, vi w) {
    *sum = vdotq_s32(*sum, vreinterpretq_s8_s32(x), vreinterpretq_s8_s32(w));
}
#define NF_NAME(x) narrow_##x##_neon_dotprod
#define NF_LABEL "neon-dotprod"
#define NF_NEEDS NF_HAS_NEON | NF_HAS_DOTPROD
#define NF_INT8 1
#define NF_SIZE 1
#define NF_OFFSET 0
#define NF_ROWS 12
#define NF_ADD add_dotprod
#define NF_UNITS units_at
#define NF_ACROSS quads_across
#define NF_PUT put_bytes
#include "narrow.inc.h"

#define NF_TARGET_MATRIX __attribute__((target("arch=armv8.2-a+dotprod+i8mm+bf16")))
#define NF_NEEDS_MATRIX (NF_HAS_NEON | NF_HAS_DOTPROD | NF_HAS_I8MM | NF_HAS_BF16)
enum { MATRIX_ROWS = 12 };
static inline __attribute__((always_inline)) NF_TARGET_MATRIX void add_bfdot(vi *sum, vi x, vi w) {
    *sum = (vi)vbfdotq_f32((vf)*sum, (bfloat16x8_t)x, (bfloat16x8_t)w);
}

/* The instructions multiply 8 bytes along the summed index, two units, of two rows with those of two columns: a sum holds
   [row 0: column 0, 1; row 1: column 0, 1]. */
static inline __attribute__((always_inline)) NF_TARGET_MATRIX vi add_matrix(vi sum, vi x, vi w, const int int8) {
    return int8 ? vmmlaq_s32(sum, (int8x16_t)x, (int8x16_t)w) : (vi)vbfmmlaq_f32((vf)sum, (bfloat16x8_t)x, (bfloat16x8_t)w);
}

static inline __attribute__((always_inline)) NF_TARGET_MATRIX vi two_rows(const char *first, const char *second, int64_t u) {
    return vreinterpretq_s32_s8(vcombine_s8(vld1_s8((const int8_t *)first + 4 * u), vld1_s8((const int8_t *)second + 4 * u)));
}

static inline __attribute__((always_inline)) NF_TARGET_MATRIX void
sums_by_matrix(const tile *t, const char *const *a, vi sums[MATRIX_ROWS][2], const int rows, request next, const int int8) {
    const vi *panel = t->panel;
    vi square[MATRIX_ROWS / 2][4];
    for (int r = 0; r < rows; r += 2)
        for (int c = 0; c < 4; c++) square[r / 2][c] = splat(0);
    for (int64_t u = 0; u < t->units; u += 2) {
        vi w[4];
        for (int half = 0; half < 2; half++) {
            w[2 * half] = vzip1q_s32(panel[2 * u + half], panel[2 * u + 2 + half]);
            w[2 * half + 1] = vzip2q_s32(panel[2 * u + half], panel[2 * u + 2 + half]);
        }
        if (u % UNITS_PER_LINE == 0) ask(&next);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r += 2) {
            vi x = two_rows(a[r], a[r + 1 < rows ? r + 1 : r], u);
            for (int c = 0; c < 4; c++) square[r / 2][c] = add_matrix(square[r / 2][c], x, w[c], int8);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
        for (int half = 0; half < 2; half++) {
            int64x2_t left = vreinterpretq_s64_s32(square[r / 2][2 * half]);
            int64x2_t right = vreinterpretq_s64_s32(square[r / 2][2 * half + 1]);
            sums[r][half] = vreinterpretq_s32_s64(r % 2 ? vzip2q_s64(left, right) : vzip1q_s64(left, right));
        }
}

#define NF_TARGET NF_TARGET_MATRIX
#define NF_NAME(x) narrow_##x##_neon_bf16
#define NF_LABEL "neon-bf16"
#define NF_NEEDS NF_NEEDS_MATRIX
#define NF_INT8 0
#define NF_SIZE 2
#define NF_OFFSET 0
#define NF_ROWS 12
#define NF_ADD add_bfdot
#define NF_SUMS(t, a, sums, rows, next) sums_by_matrix(t, a, sums, rows, next, 0)
#define NF_UNITS units_at
#define NF_ACROSS pairs_across
#define NF_PUT put_rounded
#include "narrow.inc.h"

#define NF_TARGET NF_TARGET_MATRIX
#define NF_NAME(x) narrow_##x##_neon_i8mm
#define NF_LABEL "neon-i8mm"
#define NF_NEEDS NF_NEEDS_MATRIX
#define NF_INT8 1
#define NF_SIZE 1
#define NF_OFFSET 0
#define NF_ROWS 12
#define NF_ADD add_dotprod
#define NF_SUMS(t, a, sums, rows, next) sums_by_matrix(t, a, sums, rows, next, 1)
#define NF_UNITS units_at
#define NF_ACROSS quads_across
#define NF_PUT put_bytes
#include "narrow.inc.h"

#define NF_HAVE_DOTS
#endif

const nf_narrow_form *const nf_narrow_neon[] = {
#ifdef NF_HAVE_DOTS
    &narrow_form_neon_bf16,  &narrow_form_neon_i8mm,  &narrow_form_neon_dotprod,
#endif
    &narrow_form_neon_fused, &narrow_form_neon_bytes, NULL};
#else
const nf_narrow_form *const nf_narrow_neon[] = {NULL};
#endif
