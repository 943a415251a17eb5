/* SPDX-License-Identifier: Apache-2.0 */
#include "cpu.h"

#include <stdint.h>

const char *nf_isa_name(nf_isa isa) {
    static const char *const names[NF_ISA_COUNT] = {"base", "avx2", "avx512"};
    return isa >= 0 && isa < NF_ISA_COUNT ? names[isa] : "unknown";
}

#if defined(__x86_64__)
#include <cpuid.h>

static uint64_t xgetbv0(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((uint64_t)high << 32) | low;
}

nf_isa nf_cpu_isa(void) {
    enum { FMA = 1 << 12, OSXSAVE = 1 << 27 };                                         /* leaf 1, ecx */
    enum { AVX2 = 1 << 5, AVX512F = 1 << 16, AVX512DQ = 1 << 17, AVX512BW = 1 << 30 }; /* leaf 7, ebx */
    const uint32_t AVX512VL = 1u << 31;
    enum { YMM_STATE = 0x6, ZMM_STATE = 0xe6 }; /* XCR0 */
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE) || !(c & FMA)) return NF_ISA_BASE;
    uint64_t saved = xgetbv0();
    if ((saved & YMM_STATE) != YMM_STATE || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & AVX2)) return NF_ISA_BASE;
    uint32_t wide = AVX512F | AVX512DQ | AVX512BW | AVX512VL;
    return (saved & ZMM_STATE) == ZMM_STATE && (b & wide) == wide ? NF_ISA_AVX512 : NF_ISA_AVX2;
}

nf_cpu_dot nf_cpu_dots(void) {
    enum { VNNI = 1 << 11 }; /* leaf 7, ecx */
    enum { BF16 = 1 << 5 };  /* leaf 7.1, eax */
    nf_cpu_dot has = {0};
    unsigned a, b, c, d;
    if (nf_cpu_isa() != NF_ISA_AVX512) return has;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) has.int8 = (c & VNNI) != 0;
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) has.bf16 = (a & BF16) != 0;
    return has;
}
#else
nf_isa nf_cpu_isa(void) { return NF_ISA_BASE; }
nf_cpu_dot nf_cpu_dots(void) { return (nf_cpu_dot){0}; }
#endif
