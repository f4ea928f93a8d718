/* Products of one-bit and ternary weights with codes, by ARMv8.6's matrix products of bytes
 * (Cortex-A710, Neoverse V1 and N2 and later, Apple M2).
 *
 * `smmla` multiplies two rows of 8 codes with two rows of 8 weights: 32 multiply-adds, twice those
 * of `sdot`.  So two rows of codes lie side by side, and so do the bits of two outputs.  A weight
 * bit becomes 0 or -1 in its byte; ternary weights -1, 0 or 1.
 *
 *   smmla  2 a cycle on Neoverse V1, 64 multiply-adds
 *   cmtst  2 or more a cycle, one for 16 weights, shared by the rows of codes
 */
#include "arm_codes.h"

enum { OUTPUTS = 8, OUTPUT_PAIRS = OUTPUTS / 2, MAX_ROW_PAIRS = MAX_ROWS / 2 };

/* The first words of two rows side by side, and the second ones. */
INLINE void pair_words(const uint64_t *const rows[2], uint32_t word, uint32_t n_words,
                       uint8x16_t pair[2])
{
    uint8x16_t a = load_words(rows[0] + word, n_words - word);
    uint8x16_t b = load_words(rows[1] + word, n_words - word);
    pair[0] = vcombine_u8(vget_low_u8(a), vget_low_u8(b));
    pair[1] = vcombine_u8(vget_high_u8(a), vget_high_u8(b));
}

INLINE void add_matrix_products(const code_tile *tile, bool ternary, const uint32_t n_rows,
                                int32_t *sums)
{
    int32x4_t sums_i32x4[MAX_ROW_PAIRS][OUTPUT_PAIRS]; /* [2 rows][2 outputs] each */
    for (uint32_t r = 0; r < n_rows / 2; r++)
        for (uint32_t o = 0; o < OUTPUT_PAIRS; o++)
            sums_i32x4[r][o] = vdupq_n_s32(0);
    const int8_t *codes = tile->codes;
    for (uint32_t word = 0; word < tile->n_words; word += 2) {
        uint8x16_t minus[OUTPUT_PAIRS][2], plus[OUTPUT_PAIRS][2];
        for (uint32_t o = 0; o < OUTPUT_PAIRS; o++) {
            pair_words(tile->bits + 2 * o, word, tile->n_words, minus[o]);
            pair_words(tile->positive + 2 * o, word, tile->n_words, plus[o]);
            if (!ternary) continue;
            minus[o][0] = vbicq_u8(minus[o][0], plus[o][0]);
            minus[o][1] = vbicq_u8(minus[o][1], plus[o][1]);
        }
        for (uint32_t k = 0; k < 8; k++, codes += 16) {
            const uint8x16_t bit = vdupq_n_u8((uint8_t)(1U << k));
            for (uint32_t half = 0; half < 2; half++) {
                int8x16_t weights[OUTPUT_PAIRS];
                for (uint32_t o = 0; o < OUTPUT_PAIRS; o++) {
                    weights[o] = vreinterpretq_s8_u8(vtstq_u8(minus[o][half], bit));
                    if (ternary)
                        weights[o] =
                            vsubq_s8(weights[o], vreinterpretq_s8_u8(vtstq_u8(plus[o][half], bit)));
                }
                for (uint32_t r = 0; r < n_rows / 2; r++) {
                    int8x16_t x = vld1q_s8(codes + (2 * r + half) * STRETCH);
                    for (uint32_t o = 0; o < OUTPUT_PAIRS; o++)
                        sums_i32x4[r][o] = vmmlaq_s32(sums_i32x4[r][o], x, weights[o]);
                }
            }
        }
    }
    for (uint32_t r = 0; r < n_rows / 2; r++) {
        for (uint32_t o = 0; o < OUTPUT_PAIRS; o++) {
            int32x4_t sum = ternary ? sums_i32x4[r][o] : vnegq_s32(sums_i32x4[r][o]);
            vst1_s32(sums + 2 * r * OUTPUTS + 2 * o, vget_low_s32(sum));
            vst1_s32(sums + (2 * r + 1) * OUTPUTS + 2 * o, vget_high_s32(sum));
        }
    }
}

static const code_tier tier = {add_matrix_products, OUTPUTS, 0, true};

BITM_ARM_CODE_KERNELS(i8mm, &tier)
