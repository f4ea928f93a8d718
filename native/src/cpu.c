#include "cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <stdint.h>

/* Feature bits of CPUID leaves 1 and 7 (Intel SDM volume 2A, CPUID). */
enum {
    LEAF1_ECX_FMA = 1 << 12,
    LEAF1_ECX_POPCNT = 1 << 23,
    LEAF1_ECX_OSXSAVE = 1 << 27,
    LEAF1_ECX_AVX = 1 << 28,
    LEAF1_ECX_F16C = 1 << 29,
    LEAF7_EBX_AVX2 = 1 << 5,
    /* Registers that the operating system saves, by XGETBV (SDM volume 1, 13.3). */
    XCR0_XMM = 1 << 1,
    XCR0_YMM = 1 << 2,
};

static bool all_of(uint32_t found, uint32_t wanted)
{
    return (found & wanted) == wanted;
}

/* The low half of extended control register 0; allowed where OSXSAVE is set. */
static uint32_t xcr0(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static bool has_avx2(void)
{
    uint32_t eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) ||
        !all_of(ecx, LEAF1_ECX_FMA | LEAF1_ECX_POPCNT | LEAF1_ECX_OSXSAVE | LEAF1_ECX_AVX |
                         LEAF1_ECX_F16C) ||
        !all_of(xcr0(), XCR0_XMM | XCR0_YMM))
        return false;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && all_of(ebx, LEAF7_EBX_AVX2);
}
#else
static bool has_avx2(void)
{
    return false;
}
#endif

bool bitm_cpu_has(bitm_tier tier)
{
    switch (tier) {
    case BITM_TIER_SCALAR:
        return true;
    case BITM_TIER_AVX2:
        return has_avx2();
    }
    return false;
}
