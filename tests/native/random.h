/* Random numbers that are the same everywhere: splitmix64, Steele et al. 2014. */
#ifndef RANDOM_H
#define RANDOM_H

#include <stdint.h>

typedef struct random_state {
    uint64_t state;
} random_state;

static inline uint64_t random_u64(random_state *random)
{
    uint64_t z = random->state += 0x9E3779B97F4A7C15U;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
    return z ^ (z >> 31);
}

/* 0 to n - 1 */
static inline uint32_t random_below(random_state *random, uint32_t n)
{
    return (uint32_t)((random_u64(random) >> 32) * n >> 32);
}

/* From -1 to 1. */
static inline float random_float(random_state *random)
{
    return (float)((int32_t)(random_u64(random) >> 32)) * 0x1p-31F;
}

#endif
