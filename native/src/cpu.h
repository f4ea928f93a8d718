/* Tiers: sets of abilities of the CPU and the operating system, one word each, used for file names,
 * kernel variants and messages alike. */
#ifndef BITM_CPU_H
#define BITM_CPU_H

#include <stdbool.h>

typedef enum bitm_tier {
    BITM_TIER_SCALAR, /* plain C */
    BITM_TIER_AVX2,   /* x86-64 with AVX2, FMA, F16C and POPCNT, ymm registers kept by the system */
    BITM_TIER_AVX512, /* AVX2, and AVX-512 F, BW, DQ and VL, with the registers they need */
    BITM_TIER_VNNI,   /* AVX512, and sums of four products of bytes */
    BITM_TIER_PERMUTE, /* VNNI, where looking 32 words up in 64 is one operation: AMD since Zen 4 */
    BITM_TIER_VPOPCNT, /* AVX512, and AVX-512 VPOPCNTDQ: bits of 64-bit words counted */
    BITM_TIER_AMX,     /* VNNI and VPOPCNT, and tiles of bytes that the system lets us use */
    BITM_TIER_VFPV4,   /* ARMv7: fused multiply-adds of single floats, and NEON */
    BITM_TIER_NEON,    /* ARMv8.0's vectors; on ARMv7 the same abilities as vfpv4 */
    BITM_TIER_DOTPROD, /* ARMv8.2's dot products of bytes */
    BITM_TIER_I8MM,    /* and of ARMv8.6 its matrix products of bytes */
} bitm_tier;

/* Whether this machine runs code of the tier. */
bool bitm_cpu_has(bitm_tier tier);

/* Whether it also runs the code as fast as the tier says: models take such kernels by themselves.
 */
bool bitm_cpu_prefers(bitm_tier tier);

#endif
