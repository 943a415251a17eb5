/* SPDX-License-Identifier: Apache-2.0 */
/* What the processor and the operating system offer, from our own cpuid. */
#ifndef NF_CORE_CPU_H
#define NF_CORE_CPU_H

typedef enum nf_isa {
    NF_ISA_BASE = 0,   /* what the compiler targets without flags: SSE2, NEON */
    NF_ISA_AVX2 = 1,   /* AVX2 and FMA */
    NF_ISA_AVX512 = 2, /* AVX-512 F, BW, DQ, VL */
    NF_ISA_COUNT = 3
} nf_isa;

/* The best instruction set that this machine can run. */
nf_isa nf_cpu_isa(void);

/* Instructions for narrow products, beside those of NF_ISA_AVX512. */
typedef struct nf_cpu_dot {
    int bf16; /* vdpbf16ps */
    int int8; /* vpdpbusd */
} nf_cpu_dot;
nf_cpu_dot nf_cpu_dots(void);

/* "base", "avx2" or "avx512". */
const char *nf_isa_name(nf_isa isa);

#endif
