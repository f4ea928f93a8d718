/* Products of one-bit and ternary weights with codes, by ARMv8.2's dot products of bytes
 * (Raspberry Pi 5, phones since 2018).
 *
 * `sdot` multiplies 16 codes with 16 weights and adds fours of them.  A weight bit becomes 0 or -1
 * in its byte; ternary weights -1, 0 or 1.  The limit: 32 multiply-adds a cycle, two `sdot` on
 * Cortex-A76; making weights takes one operation for 16 of them, shared by the 8 rows of codes.
 *
 *   sdot, cmtst  2 a cycle
 */
#include "arm_codes.h"

INLINE void add_dot_products(const code_tile *tile, bool ternary, const uint32_t n_rows,
                             int32_t *sums)
{
    enum { OUTPUTS = 2 };
    int32x4_t sums_i32x4[MAX_ROWS][OUTPUTS];
    for (uint32_t r = 0; r < n_rows; r++)
        for (uint32_t o = 0; o < OUTPUTS; o++)
            sums_i32x4[r][o] = vdupq_n_s32(0);
    const int8_t *codes = tile->codes;
    for (uint32_t word = 0; word < tile->n_words; word += 2) {
        uint8x16_t minus[OUTPUTS], plus[OUTPUTS]; /* w1: minus alone, and the sum negated */
        for (uint32_t o = 0; o < OUTPUTS; o++) {
            minus[o] = plus[o] = load_words(tile->bits[o] + word, tile->n_words - word);
            if (!ternary) continue;
            plus[o] = load_words(tile->positive[o] + word, tile->n_words - word);
            minus[o] = vbicq_u8(minus[o], plus[o]);
        }
        for (int k = 0; k < 8; k++, codes += 16) {
            const uint8x16_t bit = vdupq_n_u8((uint8_t)(1U << k));
            int8x16_t weights[OUTPUTS];
            for (uint32_t o = 0; o < OUTPUTS; o++) {
                weights[o] = vreinterpretq_s8_u8(vtstq_u8(minus[o], bit));
                if (ternary)
                    weights[o] = vsubq_s8(weights[o], vreinterpretq_s8_u8(vtstq_u8(plus[o], bit)));
            }
            for (uint32_t r = 0; r < n_rows; r++) {
                int8x16_t x = vld1q_s8(codes + r * STRETCH);
                for (uint32_t o = 0; o < OUTPUTS; o++)
                    sums_i32x4[r][o] = vdotq_s32(sums_i32x4[r][o], x, weights[o]);
            }
        }
    }
    for (uint32_t r = 0; r < n_rows; r++) {
        int32x4_t both = vpaddq_s32(sums_i32x4[r][0], sums_i32x4[r][1]);
        int32x2_t sum = vpadd_s32(vget_low_s32(both), vget_high_s32(both));
        vst1_s32(sums + r * OUTPUTS, ternary ? sum : vneg_s32(sum));
    }
}

static const code_tier tier = {add_dot_products, 2, 0, false};

BITM_ARM_CODE_KERNELS(dotprod, &tier)
