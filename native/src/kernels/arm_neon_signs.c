/* NEON attention of signs: distances of a query from keys, and what is looked up by them.
 *
 *   cnt, addp  a key's distance from the counts of its bytes: 31 operations and loads for 16 keys
 *   tbl        16 of 64 bytes: four of them 16 floats, which zip puts together
 *   cmhi       16 distances become masks */
#include "arm_neon.h"

enum { KEYS = 16 }; /* of which distances are bytes of one vector */

/* The distances of 16 keys: neighbouring counts of bytes add up three times. */
INLINE uint8x16_t distances_of(uint8x16_t query, const uint64_t *keys)
{
    uint8x16_t counts[8];
    for (int i = 0; i < 8; i++)
        counts[i] = vcntq_u8(veorq_u8(load_words(keys + 2 * i, 2), query));
    for (int n = 4; n > 0; n /= 2)
        for (int i = 0; i < n; i++)
            counts[i] = add_pairs_u8(counts[2 * i], counts[2 * i + 1]);
    return counts[0];
}

uint8_t bitm_sign_distances__neon(uint64_t query, const uint64_t *keys, uint32_t n,
                                  uint8_t *distances)
{
    const uint8x16_t q = vreinterpretq_u8_u64(vdupq_n_u64(query));
    uint8x16_t least = vdupq_n_u8(UINT8_MAX);
    uint64_t last[KEYS];
    for (uint32_t j = 0; j < n; j += KEYS, keys += KEYS) {
        if (n - j < KEYS) keys = bitm_last_keys(keys, n - j, KEYS, last);
        uint8x16_t bytes = distances_of(q, keys);
        vst1q_u8(distances + j, bytes);
        least = vminq_u8(least, bytes);
    }
    uint8x8_t lower = vmin_u8(vget_low_u8(least), vget_high_u8(least));
    for (int i = 0; i < 3; i++)
        lower = vpmin_u8(lower, lower);
    return vget_lane_u8(lower, 0);
}

/* A byte of each of the 64 floats of a table. */
#if defined(__aarch64__)
typedef uint8x16x4_t byte_table;

INLINE uint8x16_t look_up(byte_table table, uint8x16_t at)
{
    return vqtbl4q_u8(table, at);
}
#else
typedef union byte_table {
    uint8x16_t val[4];
    uint8x8x4_t halves[2];
} byte_table;

INLINE uint8x16_t look_up(byte_table table, uint8x16_t at)
{
    const uint8x8_t half = vdup_n_u8(32);
    uint8x8_t low = vget_low_u8(at), high = vget_high_u8(at);
    return vcombine_u8(
        vtbx4_u8(vtbl4_u8(table.halves[0], low), table.halves[1], vsub_u8(low, half)),
        vtbx4_u8(vtbl4_u8(table.halves[0], high), table.halves[1], vsub_u8(high, half)));
}
#endif

/* 0 in those of the lanes, which are `first` and the next ones, that are not below n. */
INLINE float32x4_t keep(uint32_t n, uint32_t first, float32x4_t values)
{
    static const uint32_t numbers[] = {0, 1, 2, 3};
    uint32x4_t lane = vaddq_u32(vld1q_u32(numbers), vdupq_n_u32(first));
    uint32x4_t exists = vcltq_u32(lane, vdupq_n_u32(n));
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(values), exists));
}

float bitm_table_sum__neon(const float table[BITM_DISTANCES], const uint8_t *distances, uint32_t n)
{
    const uint8x16_t last = vdupq_n_u8(BITM_DISTANCES - 1);
    byte_table bytes[4]; /* the lowest ones first */
    for (int i = 0; i < 4; i++) {
        uint8x16x4_t sixteen = vld4q_u8((const uint8_t *)(table + 16 * i));
        for (int k = 0; k < 4; k++)
            bytes[k].val[i] = sixteen.val[k];
    }
    lanes sum = {{vdupq_n_f32(0.0F), vdupq_n_f32(0.0F), vdupq_n_f32(0.0F), vdupq_n_f32(0.0F)}};
    for (uint32_t j = 0; j < n; j += BITM_LANES) {
        uint8x16_t at = vandq_u8(vld1q_u8(distances + j), last);
        uint8x16x2_t lower = vzipq_u8(look_up(bytes[0], at), look_up(bytes[1], at));
        uint8x16x2_t upper = vzipq_u8(look_up(bytes[2], at), look_up(bytes[3], at));
        float32x4_t found[4];
        for (int half = 0; half < 2; half++) {
            uint16x8x2_t both = vzipq_u16(vreinterpretq_u16_u8(lower.val[half]),
                                          vreinterpretq_u16_u8(upper.val[half]));
            for (int k = 0; k < 2; k++)
                found[2 * half + k] = vreinterpretq_f32_u16(both.val[k]);
        }
        for (uint32_t k = 0; k < 4; k++)
            sum.four[k] = vaddq_f32(sum.four[k], keep(n - j, 4 * k, found[k]));
    }
    return fold(sum);
}

int32_t bitm_near_bits__neon(const uint8_t *distances, uint32_t n, uint8_t end, uint64_t *bits)
{
    const uint8x16_t ends = vdupq_n_u8(end);
    int32_t sum = 0;
    for (uint32_t j = 0; j < n; j += 64) {
        uint8x16_t masks[4];
        for (int k = 0; k < 4; k++)
            masks[k] = vcltq_u8(vld1q_u8(distances + j + 16 * k), ends);
        uint64_t near = bits_of(masks);
        if (n - j < 64) near &= (UINT64_C(1) << (n - j)) - 1;
        bits[j / 64] = near;
        sum += __builtin_popcountll(near);
    }
    return sum;
}
