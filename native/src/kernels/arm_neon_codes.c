/* NEON products of one-bit and ternary weights with int8 and int16 codes.
 *
 * A weight bit is a mask of a byte; masked codes add up in lanes of 16 bits, pairs at once.  The
 * limit: 16 multiply-adds are two operations, `and` and `sadalp`, the latter on one pipe alone: 16
 * a cycle on Cortex-A72, 8 on Cortex-A53.  Considered for ARMv8.0 without dot products, in
 * operations for 128 multiply-adds:
 *
 *   and, sadalp            16, balanced on two pipes
 *   smlal with -1 and 1    16, all on the pipe that multiplies
 *   8 bit planes           24: and, cnt, add for each
 *   look-up of nibbles     16 or more: tbl of 16 bytes is three micro-operations on Cortex-A72
 *   codes halved to 7 bits 15, 12 of them on one pipe: uaba adds a difference in bytes
 *
 * Ternary weights: a code is complemented where its weight is -1, which is one less than negated,
 * and masked where it is not 0: eor, and, sadalp. */
#include "arm_codes.h"

INLINE void add_masked(const code_tile *tile, bool ternary, const uint32_t n_rows, int32_t *sums)
{
    enum { OUTPUTS = 2 };
    int16x8_t sums_i16x8[MAX_ROWS][OUTPUTS];
    for (uint32_t r = 0; r < n_rows; r++)
        for (uint32_t o = 0; o < OUTPUTS; o++)
            sums_i16x8[r][o] = vdupq_n_s16(0);
    const int8_t *codes = tile->codes;
    for (uint32_t word = 0; word < tile->n_words; word += 2) {
        uint8x16_t bits[OUTPUTS], negative[OUTPUTS];
        for (uint32_t o = 0; o < OUTPUTS; o++) {
            bits[o] = load_words(tile->bits[o] + word, tile->n_words - word);
            negative[o] = bits[o];
            if (ternary)
                negative[o] =
                    vbicq_u8(bits[o], load_words(tile->positive[o] + word, tile->n_words - word));
        }
        for (int k = 0; k < 8; k++, codes += 16) {
            const uint8x16_t bit = vdupq_n_u8((uint8_t)(1U << k));
            int8x16_t mask[OUTPUTS], complement[OUTPUTS];
            for (uint32_t o = 0; o < OUTPUTS; o++) {
                mask[o] = vreinterpretq_s8_u8(vtstq_u8(bits[o], bit));
                complement[o] = ternary ? vreinterpretq_s8_u8(vtstq_u8(negative[o], bit)) : mask[o];
            }
            for (uint32_t r = 0; r < n_rows; r++) {
                int8x16_t x = vld1q_s8(codes + r * STRETCH);
                for (uint32_t o = 0; o < OUTPUTS; o++) {
                    int8x16_t term = ternary ? veorq_s8(x, complement[o]) : x;
                    sums_i16x8[r][o] = vpadalq_s8(sums_i16x8[r][o], vandq_s8(term, mask[o]));
                }
            }
        }
    }
    for (uint32_t r = 0; r < n_rows; r++) {
        int32x4_t both =
            add_pairs_i32(vpaddlq_s16(sums_i16x8[r][0]), vpaddlq_s16(sums_i16x8[r][1]));
        vst1_s32(sums + r * OUTPUTS, vpadd_s32(vget_low_s32(both), vget_high_s32(both)));
    }
}

static const code_tier tier = {add_masked, 2, 1, false};

BITM_ARM_CODE_KERNELS(neon, &tier)
