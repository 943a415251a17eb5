/* SPDX-License-Identifier: Apache-2.0 */
#include "rows.h"

#include <float.h>
#include <math.h>
#include <string.h>

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
#define NF_NAME(x) x##_avx512
#define NF_W 16
#include "rows.inc.h"
#undef NF_TARGET
#undef NF_NAME
#undef NF_W
#endif

const nf_kernels *nf_kernels_for(nf_isa isa) {
#if defined(__x86_64__)
    if (isa == NF_ISA_AVX512) return &table_avx512;
    if (isa == NF_ISA_AVX2) return &table_avx2;
#endif
    (void)isa;
    return &table_base;
}
