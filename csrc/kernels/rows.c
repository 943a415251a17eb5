/* SPDX-License-Identifier: Apache-2.0 */
#include "rows.h"

#include <float.h>
#include <math.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { ROWS_AHEAD = 24 }; /* how early a row is asked for where few columns of many rows are read */

#define NF_TARGET
#define NF_NAME(x) x##_base
#define NF_W 4
#include "rows.inc.h"
#undef NF_TARGET
#undef NF_NAME
#undef NF_W

#if defined(__x86_64__)
#define NF_TARGET __attribute__((target("avx2,fma")))
#define NF_NAME(x) x##_avx2
#define NF_W 8
#include "rows.inc.h"
#undef NF_TARGET
#undef NF_NAME
#undef NF_W

#define NF_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))

/* The sum of vexp in rows.inc.h, with two instructions for its beginning and end. */
static inline __attribute__((always_inline)) NF_TARGET __m512 exp_by_scale(__m512 x) {
    __mmask16 some = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.3f), _CMP_NLT_UQ); /* NaN too */
    x = _mm512_min_ps(_mm512_set1_ps(88.3f), x);                                 /* of a NaN and a number the second */
    __m512 n =
        _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x), one = _mm512_set1_ps(1.0f);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.0f / 5040.0f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(_mm512_fmadd_ps(p, r, one), r, one);
    return _mm512_maskz_scalef_ps(some, p, n);
}

#define NF_NAME(x) x##_avx512
#define NF_W 16
#define NF_EXP(x) (vf) exp_by_scale((__m512)(x))
#define NF_LARGER(a, b) (vf) _mm512_max_ps((__m512)(a), (__m512)(b))
#define NF_SUM(v) _mm512_reduce_add_ps((__m512)(v))
#include "rows.inc.h"
#undef NF_TARGET
#undef NF_NAME
#undef NF_W
#undef NF_EXP
#undef NF_LARGER
#undef NF_SUM
#endif

const nf_kernels *nf_kernels_for(nf_isa isa) {
#if defined(__x86_64__)
    if (isa == NF_ISA_AVX512) return &table_avx512;
    if (isa == NF_ISA_AVX2) return &table_avx2;
#endif
    (void)isa;
    return &table_base;
}
