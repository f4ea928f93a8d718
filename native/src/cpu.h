/* Tiers: sets of abilities of the CPU and the operating system, one word each, used for file names,
 * kernel variants and messages alike. */
#ifndef BITM_CPU_H
#define BITM_CPU_H

#include <stdbool.h>

typedef enum bitm_tier {
    BITM_TIER_SCALAR, /* plain C */
    BITM_TIER_AVX2,   /* x86-64 with AVX2, FMA, F16C and POPCNT, ymm registers kept by the system */
} bitm_tier;

/* Whether this machine runs code of the tier. */
bool bitm_cpu_has(bitm_tier tier);

#endif
