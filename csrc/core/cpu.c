/* SPDX-License-Identifier: Apache-2.0 */
#include "cpu.h"

#include <stdint.h>

const char *nf_isa_name(nf_isa isa) {
    static const char *const names[NF_ISA_COUNT] = {"base", "avx2", "avx512"};
    return isa >= 0 && isa < NF_ISA_COUNT ? names[isa] : "unknown";
}

nf_isa nf_cpu_isa(void) {
    unsigned has = nf_cpu_features();
    return has & NF_HAS_AVX512 ? NF_ISA_AVX512 : has & NF_HAS_AVX2 ? NF_ISA_AVX2 : NF_ISA_BASE;
}

#if defined(__x86_64__)
#include <cpuid.h>

static uint64_t xgetbv0(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((uint64_t)high << 32) | low;
}

unsigned nf_cpu_features(void) {
    enum { FMA = 1 << 12, OSXSAVE = 1 << 27, F16C = 1 << 29 };                         /* leaf 1, ecx */
    enum { AVX2 = 1 << 5, AVX512F = 1 << 16, AVX512DQ = 1 << 17, AVX512BW = 1 << 30 }; /* leaf 7, ebx */
    const uint32_t AVX512VL = 1u << 31, first = FMA | OSXSAVE | F16C;
    enum { VNNI = 1 << 11 };                    /* leaf 7, ecx */
    enum { AVX_VNNI = 1 << 4, BF16 = 1 << 5 };  /* leaf 7.1, eax */
    enum { YMM_STATE = 0x6, ZMM_STATE = 0xe6 }; /* XCR0 */
    unsigned a, b, c, d, more = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & first) != first) return 0;
    uint64_t saved = xgetbv0();
    if ((saved & YMM_STATE) != YMM_STATE || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & AVX2)) return 0;
    uint32_t wide = AVX512F | AVX512DQ | AVX512BW | AVX512VL, vnni = c & VNNI;
    if (a > 0 && __get_cpuid_count(7, 1, &more, &(unsigned){0}, &c, &d) == 0) more = 0;
    unsigned has = NF_HAS_AVX2 | (more & AVX_VNNI ? NF_HAS_AVX_VNNI : 0);
    if ((saved & ZMM_STATE) != ZMM_STATE || (b & wide) != wide) return has;
    return has | NF_HAS_AVX512 | (vnni ? NF_HAS_AVX512_VNNI : 0) | (more & BF16 ? NF_HAS_AVX512_BF16 : 0);
}
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

unsigned nf_cpu_features(void) {
    const unsigned long ASIMDDP = 1ul << 20, I8MM = 1ul << 13, BF16 = 1ul << 14; /* HWCAP, HWCAP2 of the kernel's ABI */
    unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
    return NF_HAS_NEON | (first & ASIMDDP ? NF_HAS_DOTPROD : 0) | (second & I8MM ? NF_HAS_I8MM : 0) |
           (second & BF16 ? NF_HAS_BF16 : 0);
}
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>

static unsigned feature(const char *name, nf_feature bit) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, NULL, 0) == 0 && value ? bit : 0;
}

unsigned nf_cpu_features(void) {
    return NF_HAS_NEON | feature("hw.optional.arm.FEAT_DotProd", NF_HAS_DOTPROD) |
           feature("hw.optional.arm.FEAT_I8MM", NF_HAS_I8MM) | feature("hw.optional.arm.FEAT_BF16", NF_HAS_BF16);
}
#elif defined(__aarch64__)
unsigned nf_cpu_features(void) { return NF_HAS_NEON; }
#else
unsigned nf_cpu_features(void) { return 0; }
#endif
