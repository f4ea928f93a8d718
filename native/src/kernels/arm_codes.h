/* Products of one-bit and ternary weights with int8 and int16 codes: what the ARM tiers share.
 *
 * A tier has a tile: the sums of a few rows of codes with the weights of a few outputs, from bits
 * that become bytes in registers.  `cmtst` with one bit of all bytes makes 16 weights of 16 bytes
 * of bits in one operation, so codes are brought into the order in which bits k of 16 bytes lie:
 * place [k][j] of each 128 codes has code 8 j + k.  That takes 3 operations a vector, once for all
 * outputs of a block.
 *
 * int16 codes are two rows of bytes: code = 256 high + low + 128, both signed. */
#ifndef BITM_ARM_CODES_H
#define BITM_ARM_CODES_H

#include "arm_neon.h"

#include <string.h>

enum {
#if defined(__aarch64__)
    MAX_ROWS = 8, /* of codes at work together */
#else
    MAX_ROWS = 4,
#endif
    MAX_TILE_OUTPUTS = 8,
    STRETCH = 2048, /* inputs at a time: sums of so many bytes in 8 lanes of 16 bits fit */
    STRETCH_WORDS = STRETCH / 64,
    VECTOR = 128, /* inputs of a vector of bits */
    BLOCK_OUTPUTS = 64,
    LOW_OFFSET = 128, /* of the low bytes of int16 codes */
};

/* The order of a tile's work. */
typedef struct code_tile {
    const int8_t *codes;                        /* [n_rows][STRETCH], reordered */
    const uint64_t *bits[MAX_TILE_OUTPUTS];     /* w1: weight 1; ternary: nonzero */
    const uint64_t *positive[MAX_TILE_OUTPUTS]; /* of ternary weights */
    uint32_t n_words;
} code_tile;

/* sums [n_rows][tile_outputs] = of w1: the sum of the codes whose bits are set; of ternary weights:
 * the dot less `excess` for each -1. */
typedef void code_tile_fn(const code_tile *tile, bool ternary, uint32_t n_rows, int32_t *sums);

/* What a tier brings. */
typedef struct code_tier {
    code_tile_fn *run; /* for n_rows of 1, 2, 4, and 8 where MAX_ROWS is; inlined */
    uint32_t tile_outputs;
    int32_t excess;
    bool pairs_rows; /* see pair_rows; n_rows is 2 at least */
} code_tier;

/* ---- Codes in order ---- */

/* 128 codes, byte by byte of bits. */
INLINE void reorder(const int8x16_t v[8], int8_t *place)
{
    int8x16x2_t by2[4], by4[4];
    for (int i = 0; i < 4; i++)
        by2[i] = vuzpq_s8(v[2 * i], v[2 * i + 1]); /* codes 2 j, codes 2 j + 1 */
    for (int odd = 0; odd < 2; odd++)
        for (int i = 0; i < 2; i++)
            by4[2 * odd + i] = vuzpq_s8(by2[2 * i].val[odd], by2[2 * i + 1].val[odd]);
    for (int odd = 0; odd < 2; odd++) {
        for (int two = 0; two < 2; two++) {
            int8x16x2_t by8 = vuzpq_s8(by4[2 * odd].val[two], by4[2 * odd + 1].val[two]);
            vst1q_s8(place + (odd + 2 * two) * 16, by8.val[0]);
            vst1q_s8(place + (odd + 2 * two + 4) * 16, by8.val[1]);
        }
    }
}

/* Reorders n int8 codes of a stretch; returns their sum. */
static int32_t order_i8(const int8_t *codes, uint32_t n, int8_t *row)
{
    int32x4_t sum = vdupq_n_s32(0);
    for (uint32_t i = 0; i < n; i += VECTOR, codes += VECTOR, row += VECTOR) {
        int8_t room[VECTOR];
        if (n - i < VECTOR) {
            memset(room, 0, sizeof room);
            memcpy(room, codes, n - i);
        }
        const int8_t *from = n - i < VECTOR ? room : codes;
        int8x16_t v[8];
        for (int k = 0; k < 8; k++) {
            v[k] = vld1q_s8(from + 16 * k);
            sum = vpadalq_s16(sum, vpaddlq_s8(v[k]));
        }
        reorder(v, row);
    }
    return sum_of_i32(sum);
}

/* The same of int16 codes, low and high bytes. */
static int32_t order_i16(const int16_t *codes, uint32_t n, int8_t *low_row, int8_t *high_row)
{
    const int8x16_t offset = vdupq_n_s8(-LOW_OFFSET);
    int32x4_t sum = vdupq_n_s32(0);
    for (uint32_t i = 0; i < n; i += VECTOR, codes += VECTOR) {
        int16_t room[VECTOR];
        if (n - i < VECTOR) {
            memset(room, 0, sizeof room);
            memcpy(room, codes, (n - i) * sizeof *codes);
        }
        const int16_t *from = n - i < VECTOR ? room : codes;
        int8x16_t low[8], high[8];
        for (int k = 0; k < 8; k++) {
            int16x8_t first = vld1q_s16(from + 16 * k), second = vld1q_s16(from + 16 * k + 8);
            sum = vpadalq_s16(vpadalq_s16(sum, first), second);
            int8x16x2_t bytes = vuzpq_s8(vreinterpretq_s8_s16(first), vreinterpretq_s8_s16(second));
            low[k] = veorq_s8(bytes.val[0], offset);
            high[k] = bytes.val[1];
        }
        reorder(low, low_row + i);
        reorder(high, high_row + i);
    }
    return sum_of_i32(sum);
}

/* Two rows in the order of a tier that multiplies two by two: of each two vectors, the first
 * halves of both, and the second halves. */
INLINE void pair_rows(int8_t *first, int8_t *second, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += 16) {
        int8x16_t a = vld1q_s8(first + i), b = vld1q_s8(second + i);
        vst1q_s8(first + i, vcombine_s8(vget_low_s8(a), vget_low_s8(b)));
        vst1q_s8(second + i, vcombine_s8(vget_high_s8(a), vget_high_s8(b)));
    }
}

/* ---- Counts of weights ---- */

static int32_t count_weights(const uint64_t *words, uint32_t n_words)
{
    uint16x8_t counts = vdupq_n_u16(0);
    for (uint32_t i = 0; i < n_words; i += 2)
        counts = vpadalq_u8(counts, vcntq_u8(load_words(words + i, n_words - i)));
    return sum_of_i32(vreinterpretq_s32_u32(vpaddlq_u16(counts)));
}

/* ---- The product ---- */

/* A product at work on the rows of a few tokens. */
typedef struct code_work {
    const bitm_gemm *gemm;
    uint32_t n_tokens, n_rows;
    _Alignas(16) int8_t codes[MAX_ROWS * STRETCH];
    _Alignas(16) int32_t dots[MAX_ROWS * BLOCK_OUTPUTS]; /* [n_tokens][BLOCK_OUTPUTS] */
} code_work;

/* Orders the codes of a stretch; returns nothing, but takes their sums from the dots of one-bit
 * weights: with bits b, dot = 2 (sum of b x) - (sum of x). */
INLINE void order_codes(code_work *w, const code_tier *tier, bool ternary, bool wide,
                        uint32_t token, uint32_t first, uint32_t n, uint32_t n_outputs)
{
    const bitm_gemm *gemm = w->gemm;
    for (uint32_t t = 0; t < w->n_tokens; t++) {
        size_t place = (size_t)(token + t) * gemm->n_inputs + first;
        int8_t *row = w->codes + t * (wide ? 2 : 1) * STRETCH;
        int32_t sum = wide ? order_i16((const int16_t *)gemm->inputs + place, n, row, row + STRETCH)
                           : order_i8((const int8_t *)gemm->inputs + place, n, row);
        if (ternary) continue;
        int32_t *dots = w->dots + t * BLOCK_OUTPUTS;
        for (uint32_t o = 0; o < n_outputs; o += 4)
            vst1q_s32(dots + o, vsubq_s32(vld1q_s32(dots + o), vdupq_n_s32(sum)));
    }
    if (tier->pairs_rows)
        for (uint32_t r = 0; r < w->n_rows; r += 2)
            pair_rows(w->codes + r * STRETCH, w->codes + (r + 1) * STRETCH,
                      (n + VECTOR - 1) / VECTOR * VECTOR);
}

/* Adds a tile's sums to the dots of outputs [output, output + tile_outputs), places of the block.
 */
INLINE void add_sums(code_work *w, const code_tier *tier, bool ternary, bool wide,
                     const code_tile *tile, const int32_t *sums, uint32_t output)
{
    bool is_corrected = wide || (ternary && tier->excess != 0);
    for (uint32_t o = 0; o < tier->tile_outputs; o += 2) {
        int32_t more[2] = {0}; /* what the sums lack */
        for (uint32_t k = 0; is_corrected && k < 2; k++) {
            int32_t n_set = count_weights(tile->bits[o + k], tile->n_words);
            int32_t n_positive =
                ternary ? count_weights(tile->positive[o + k], tile->n_words) : n_set;
            int32_t n_negative = n_set - n_positive, excess = tier->excess * n_negative;
            more[k] = excess;
            if (wide) more[k] += 256 * excess + LOW_OFFSET * (n_positive - n_negative);
        }
        int32x2_t lacking = vld1_s32(more);
        for (uint32_t t = 0; t < w->n_tokens; t++) {
            const int32_t *row = sums + t * (wide ? 2 : 1) * tier->tile_outputs + o;
            int32x2_t sum = vadd_s32(vld1_s32(row), lacking);
            if (wide) sum = vmla_n_s32(sum, vld1_s32(row + tier->tile_outputs), 256);
            int32_t *dots = w->dots + t * BLOCK_OUTPUTS + output + o;
            vst1_s32(dots, vmla_n_s32(vld1_s32(dots), sum, ternary ? 1 : 2));
        }
    }
}

/* Outputs [output, output + n_outputs), a block at most, of the tokens. */
INLINE void multiply_codes(code_work *w, const code_tier *tier, bool ternary, bool wide,
                           const uint32_t n_rows, uint32_t token, uint32_t output,
                           uint32_t n_outputs)
{
    const bitm_gemm *gemm = w->gemm;
    size_t n_words = words_of(gemm), last = (size_t)output + n_outputs - 1;
    memset(w->dots, 0, w->n_tokens * BLOCK_OUTPUTS * sizeof w->dots[0]);
    for (size_t word = 0; word < n_words; word += STRETCH_WORDS) {
        uint32_t n_stretch = smaller(STRETCH_WORDS, (uint32_t)(n_words - word));
        uint32_t first = (uint32_t)word * 64, n = smaller(STRETCH, gemm->n_inputs - first);
        order_codes(w, tier, ternary, wide, token, first, n, n_outputs);
        for (uint32_t o = 0; o < n_outputs; o += tier->tile_outputs) {
            code_tile tile = {.codes = w->codes, .n_words = n_stretch};
            for (uint32_t k = 0; k < tier->tile_outputs; k++) {
                size_t row = output + o + k < last ? output + o + k : last;
                tile.bits[k] = (const uint64_t *)gemm->weights + row * n_words + word;
                tile.positive[k] = tile.bits[k] + (ternary ? gemm->n_rows * n_words : 0);
            }
            int32_t sums[MAX_ROWS * MAX_TILE_OUTPUTS] = {0};
            tier->run(&tile, ternary, n_rows, sums);
            add_sums(w, tier, ternary, wide, &tile, sums, o);
        }
    }
    for (uint32_t t = 0; t < w->n_tokens; t++)
        store_dots(gemm, token + t, output, n_outputs, w->dots + t * BLOCK_OUTPUTS);
}

INLINE void gemm_codes(const bitm_gemm *gemm, const code_tier *tier, bool ternary, bool wide,
                       uint32_t token, uint32_t n_tokens, uint32_t output, uint32_t n_outputs)
{
    code_work w; /* large: its arrays stay as they are until their use */
    w.gemm = gemm;
    uint32_t rows_per_token = wide ? 2 : 1;
    for (uint32_t t = 0; t < n_tokens; t += w.n_tokens) {
        uint32_t n_left = (n_tokens - t) * rows_per_token, n_rows = MAX_ROWS;
        while (n_rows > n_left)
            n_rows /= 2;
        w.n_rows = n_rows;
        w.n_tokens = n_rows / rows_per_token;
        if (tier->pairs_rows && n_rows == 1) { /* beside a row of whatever there is */
            memset(w.codes + STRETCH, 0, STRETCH);
            w.n_rows = n_rows = 2;
        }
        for (uint32_t o = 0; o < n_outputs; o += BLOCK_OUTPUTS) {
            uint32_t n = smaller(BLOCK_OUTPUTS, n_outputs - o);
            switch (n_rows) {
#define ROWS(n_rows)                                                                               \
    case n_rows:                                                                                   \
        multiply_codes(&w, tier, ternary, wide, n_rows, token + t, output + o, n);                 \
        break
                ROWS(1);
                ROWS(2);
                ROWS(4);
#undef ROWS
            default:
                multiply_codes(&w, tier, ternary, wide, MAX_ROWS, token + t, output + o, n);
                break;
            }
        }
    }
}

/* The four kernels of a tier. */
#define BITM_ARM_CODE_KERNEL(op, variant, tier, ternary, wide)                                     \
    void bitm_##op##__##variant(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,          \
                                uint32_t output, uint32_t n_outputs)                               \
    {                                                                                              \
        gemm_codes(gemm, tier, ternary, wide, token, n_tokens, output, n_outputs);                 \
    }
#define BITM_ARM_CODE_KERNELS(variant, tier)                                                       \
    BITM_ARM_CODE_KERNEL(gemm_w1a8, variant, tier, false, false)                                   \
    BITM_ARM_CODE_KERNEL(gemm_w1a16, variant, tier, false, true)                                   \
    BITM_ARM_CODE_KERNEL(gemm_w2a8, variant, tier, true, false)                                    \
    BITM_ARM_CODE_KERNEL(gemm_w2a16, variant, tier, true, true)

#endif
