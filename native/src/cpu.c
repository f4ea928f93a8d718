#include "cpu.h"

#include "os.h"

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
    LEAF7_EBX_AVX512F = 1 << 16,
    LEAF7_EBX_AVX512DQ = 1 << 17,
    LEAF7_EBX_AVX512BW = 1 << 30,
    LEAF7_ECX_AVX512VNNI = 1 << 11,
    LEAF7_ECX_AVX512VPOPCNTDQ = 1 << 14,
    LEAF7_EDX_AMX_TILE = 1 << 24,
    LEAF7_EDX_AMX_INT8 = 1 << 25,
    /* Registers that the operating system saves, by XGETBV (SDM volume 1, 13.3). */
    XCR0_XMM = 1 << 1,
    XCR0_YMM = 1 << 2,
    XCR0_MASKS = 1 << 5,
    XCR0_ZMM_UPPER_HALVES = 1 << 6, /* of registers 0 to 15 */
    XCR0_ZMM_16_TO_31 = 1 << 7,
    XCR0_TILE_CONFIGURATION = 1 << 17,
    XCR0_TILES = 1 << 18,
};
#define LEAF7_EBX_AVX512VL (UINT32_C(1) << 31)

typedef struct leaf {
    uint32_t eax, ebx, ecx, edx;
} leaf;

/* All zeros where the CPU has no such leaf. */
static leaf cpuid(uint32_t number)
{
    leaf found = {0};
    if (!__get_cpuid_count(number, 0, &found.eax, &found.ebx, &found.ecx, &found.edx))
        return (leaf){0};
    return found;
}

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
    return all_of(cpuid(1).ecx, LEAF1_ECX_FMA | LEAF1_ECX_POPCNT | LEAF1_ECX_OSXSAVE |
                                    LEAF1_ECX_AVX | LEAF1_ECX_F16C) &&
           all_of(xcr0(), XCR0_XMM | XCR0_YMM) && all_of(cpuid(7).ebx, LEAF7_EBX_AVX2);
}

static bool has_avx512(void)
{
    return has_avx2() && all_of(xcr0(), XCR0_MASKS | XCR0_ZMM_UPPER_HALVES | XCR0_ZMM_16_TO_31) &&
           all_of(cpuid(7).ebx,
                  LEAF7_EBX_AVX512F | LEAF7_EBX_AVX512DQ | LEAF7_EBX_AVX512BW | LEAF7_EBX_AVX512VL);
}

static bool has_vnni(void)
{
    return has_avx512() && all_of(cpuid(7).ecx, LEAF7_ECX_AVX512VNNI);
}

/* Intel's vpermt2w of 512 bits is three operations, two of them on one port (uops.info). */
static bool permutes_at_once(void)
{
    leaf vendor = cpuid(0); /* AuthenticAMD, in registers b, d, c */
    return vendor.ebx == 0x68747541 && vendor.edx == 0x69746E65 && vendor.ecx == 0x444D4163;
}

static bool has_vpopcnt(void)
{
    return has_avx512() && all_of(cpuid(7).ecx, LEAF7_ECX_AVX512VPOPCNTDQ);
}

static bool has_amx(void)
{
    return has_vnni() && has_vpopcnt() && all_of(xcr0(), XCR0_TILE_CONFIGURATION | XCR0_TILES) &&
           all_of(cpuid(7).edx, LEAF7_EDX_AMX_TILE | LEAF7_EDX_AMX_INT8) && bitm_os_allow_tiles();
}
#endif

#if defined(__aarch64__) || defined(__arm__)
/* No instruction tells a program what an ARM processor can do: the operating system does. */
static bool has_arm(uint32_t wanted)
{
    return (bitm_os_arm_abilities() & wanted) == wanted;
}
#endif

bool bitm_cpu_has(bitm_tier tier)
{
    switch (tier) {
    case BITM_TIER_SCALAR:
        return true;
#if defined(__x86_64__)
    case BITM_TIER_AVX2:
        return has_avx2();
    case BITM_TIER_AVX512:
        return has_avx512();
    case BITM_TIER_VNNI:
    case BITM_TIER_PERMUTE:
        return has_vnni();
    case BITM_TIER_VPOPCNT:
        return has_vpopcnt();
    case BITM_TIER_AMX:
        return has_amx();
#elif defined(__aarch64__) || defined(__arm__)
    case BITM_TIER_VFPV4:
    case BITM_TIER_NEON:
        return has_arm(BITM_ARM_NEON);
    case BITM_TIER_DOTPROD:
        return has_arm(BITM_ARM_NEON | BITM_ARM_DOTPROD);
    case BITM_TIER_I8MM:
        return has_arm(BITM_ARM_NEON | BITM_ARM_DOTPROD | BITM_ARM_I8MM);
#endif
    default:
        return false;
    }
}

bool bitm_cpu_prefers(bitm_tier tier)
{
#if defined(__x86_64__)
    if (tier == BITM_TIER_PERMUTE && !permutes_at_once()) return false;
#endif
    return bitm_cpu_has(tier);
}
