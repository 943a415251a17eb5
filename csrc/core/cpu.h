/* SPDX-License-Identifier: Apache-2.0 */
/* What the processor and the operating system offer, from our own cpuid, or on arm64 from the operating system. */
#ifndef NF_CORE_CPU_H
#define NF_CORE_CPU_H

/* One bit each. */
typedef enum nf_feature {
    NF_HAS_AVX2 = 1,         /* AVX2, FMA and F16C */
    NF_HAS_AVX_VNNI = 2,     /* vpdpbusd of 256 bits, without AVX-512 */
    NF_HAS_AVX512 = 4,       /* AVX-512 F, BW, DQ, VL, and all of NF_HAS_AVX2 */
    NF_HAS_AVX512_VNNI = 8,  /* vpdpbusd of 512 bits */
    NF_HAS_AVX512_BF16 = 16, /* vdpbf16ps */
    NF_HAS_NEON = 32,        /* every arm64 */
    NF_HAS_DOTPROD = 64,     /* sdot */
    NF_HAS_I8MM = 128,       /* smmla */
    NF_HAS_BF16 = 256        /* bfdot, bfmmla */
} nf_feature;

/* All that this machine has. */
unsigned nf_cpu_features(void);

typedef enum nf_isa {
    NF_ISA_BASE = 0,   /* what the compiler targets without flags: SSE2, NEON */
    NF_ISA_AVX2 = 1,   /* NF_HAS_AVX2 */
    NF_ISA_AVX512 = 2, /* NF_HAS_AVX512 */
    NF_ISA_COUNT = 3
} nf_isa;

/* The best instruction set for kernels that know no others than these three. */
nf_isa nf_cpu_isa(void);

/* "base", "avx2" or "avx512". */
const char *nf_isa_name(nf_isa isa);

#endif
