/* Attention of codes of 8 bits: what the ARM tiers share.
 *
 * Both products are dots of rows of bytes: of queries with keys, and of probabilities with the
 * values of a component, which are therefore kept component by component.  Rows are filled up to
 * whole vectors.  A tile of a few rows by 4 has its sums in registers, so that loads serve several
 * multiply-adds.
 *
 * Codes of probabilities, 0 to 255, are taken less 128, as signed bytes; each sum lacks then 128
 * times the sum of the component's values, known beforehand. */
#ifndef BITM_ARM_ATTENTION_I8_H
#define BITM_ARM_ATTENTION_I8_H

#include "arm_neon.h"

#include <math.h>
#include <string.h>

enum {
    CODES = 16, /* of a vector */
    QUERIES = 4,
#if defined(__aarch64__)
    TILE_QUERIES = 4, /* with TILE_ROWS: 16 of 32 registers are sums */
    TOGETHER = 4,     /* vectors that go through a chain of operations step by step */
#else
    TILE_QUERIES = 2, /* 8 of 16 */
    TOGETHER = 2,
#endif
    TILE_ROWS = 4,
    FOURS = 4,         /* vectors of floats that hold as many as one of codes */
    CODE_OFFSET = 128, /* of codes of probabilities */
};

/* What a tier brings: adds to 4 sums the products of 16 codes, each to any of them.  a may have the
 * code -128, b may not. */
INLINE int32x4_t add_products(int32x4_t sums, int8x16_t a, int8x16_t b);

/* ---- Floats ---- */

INLINE float32x4_t all(float x)
{
    return vdupq_n_f32(x);
}

/* a > b ? a : b, where b is a number. */
INLINE float32x4_t greater_of(float32x4_t a, float32x4_t b)
{
#if defined(__aarch64__)
    return vmaxnmq_f32(a, b);
#else
    return vbslq_f32(vcgtq_f32(a, b), a, b);
#endif
}

/* The low bytes of 16 words. */
INLINE uint8x16_t low_bytes(const uint32x4_t words[FOURS])
{
    uint16x8_t halves[2];
    for (int k = 0; k < 2; k++)
        halves[k] =
            vuzpq_u16(vreinterpretq_u16_u32(words[2 * k]), vreinterpretq_u16_u32(words[2 * k + 1]))
                .val[0];
    return vuzpq_u8(vreinterpretq_u8_u16(halves[0]), vreinterpretq_u8_u16(halves[1])).val[0];
}

/* Of ARMv7: whether a step is below 2^-126, which vectors there take for 0. */
INLINE bool is_denormal(float step)
{
#if defined(__aarch64__)
    (void)step;
    return false;
#else
    return step != 0.0F && fabsf(step) < 0x1p-126F;
#endif
}

/* ---- Codes ---- */

/* The codes of a token, 0 past its components; its step. */
INLINE float quantize_token(const bitm_attention *a, const float *x, int8_t *codes, size_t n)
{
    float step, unused_sum;
    memset(codes + a->head_size, 0, n - a->head_size);
    bitm_quantize_i8__neon(x, a->head_size, codes, &step, &unused_sum);
    return step;
}

/* The tokens past the last are copies of it: so the greatest score is one of a real token. */
static bool quantize_keys(const bitm_attention *a, const bitm_attention_codes *c)
{
    int8_t *keys = c->keys;
    bool fits = true;
    for (size_t j = 0; j < c->n_padded; j++) {
        int8_t *codes = keys + j * c->n_columns;
        if (j < a->n_tokens) {
            c->key_step[j] = quantize_token(a, a->key + j * a->stride, codes, c->n_columns);
            fits = fits && !is_denormal(c->key_step[j]);
        } else {
            memcpy(codes, codes - c->n_columns, c->n_columns);
            c->key_step[j] = c->key_step[j - 1];
        }
    }
    return fits;
}

/* Of 16 components the first n, 0 in place of the others. */
INLINE void load_components(const float *x, uint32_t n, float32x4_t components[FOURS])
{
    for (uint32_t k = 0; k < FOURS; k++)
        components[k] = load_floats(x + 4 * k, n > 4 * k ? n - 4 * k : 0);
}

/* The factors of 16 components from values to codes, and their steps, both 0 where the factor would
 * not be finite.  False where ARMv7's vectors would lose values that count: as is_tiny of
 * arm_neon_quantize.c. */
INLINE bool find_factors(const bitm_attention *a, uint32_t d, const uint32_t n, float *step,
                         float32x4_t factors[FOURS])
{
    const uint32x4_t infinity = vdupq_n_u32(0x7F800000U);
    uint32x4_t most[FOURS];
    float32x4_t x[FOURS];
    for (int k = 0; k < FOURS; k++)
        most[k] = vdupq_n_u32(0);
    for (size_t j = 0; j < a->n_tokens; j++) {
        load_components(a->value + j * a->stride + d, n, x);
        /* By the bits, which order magnitudes as integers do; NaNs, above all, are taken for 0. */
        for (int k = 0; k < FOURS; k++) {
            uint32x4_t bits = vreinterpretq_u32_f32(vabsq_f32(x[k]));
            most[k] = vmaxq_u32(most[k], vandq_u32(bits, vcleq_u32(bits, infinity)));
        }
    }
    float greatest[CODES], factor[CODES];
    bool fits = true;
    for (int k = 0; k < FOURS; k++)
        vst1q_f32(greatest + 4 * k, vreinterpretq_f32_u32(most[k]));
    for (int i = 0; i < CODES; i++) {
        factor[i] = 127.0F / greatest[i];
        const bool is_usable = greatest[i] > 0.0F && factor[i] <= 3.402823466e38F;
        if (!is_usable) factor[i] = 0.0F;
        step[i] = is_usable ? greatest[i] / 127.0F : 0.0F;
#if !defined(__aarch64__)
        fits = fits && (greatest[i] == 0.0F || greatest[i] >= 0x1p-90F);
#endif
    }
    for (int k = 0; k < FOURS; k++)
        factors[k] = vld1q_f32(factor + 4 * k);
    return fits;
}

/* Codes in the low bytes; -127 of what is not a number.  None can be above 127: a factor is at most
 * 127 / greatest, rounded. */
INLINE uint32x4_t value_codes(float32x4_t x, float32x4_t factor)
{
    float32x4_t code = greater_of(vmulq_f32(x, factor), all(-127.0F));
    return vreinterpretq_u32_f32(vaddq_f32(code, all(BITM_ROUND_MAGIC)));
}

/* 16 components, of which n exist, of all tokens; 0 past the last. */
INLINE bool quantize_components(const bitm_attention *a, const bitm_attention_codes *c, uint32_t d,
                                const uint32_t n)
{
    enum { TOKENS = 4 };
    float32x4_t factors[FOURS], x[FOURS];
    uint32x4_t bytes[FOURS]; /* of 4 components each: a word of 4 tokens */
    bool fits = find_factors(a, d, n, c->value_step + d, factors);
    for (size_t j = 0; j < c->n_padded; j += TOKENS) {
        for (int k = 0; k < FOURS; k++)
            bytes[k] = vdupq_n_u32(0);
        for (size_t t = 0; t < TOKENS; t++) {
            load_components(a->value + (j + t) * a->stride + d, j + t < a->n_tokens ? n : 0, x);
            for (int k = 0; k < FOURS; k++) {
                uint32x4_t codes = value_codes(x[k], factors[k]);
                /* Into the highest byte, in front of the tokens before. */
                bytes[k] = vsriq_n_u32(vshlq_n_u32(codes, 24), bytes[k], 8);
            }
        }
        uint32_t *row = (uint32_t *)c->values + (d * c->n_padded + j) / TOKENS;
        const size_t stride = c->n_padded / TOKENS;
        for (int k = 0; k < FOURS; k++, row += 4 * stride) {
            vst1q_lane_u32(row, bytes[k], 0);
            vst1q_lane_u32(row + stride, bytes[k], 1);
            vst1q_lane_u32(row + 2 * stride, bytes[k], 2);
            vst1q_lane_u32(row + 3 * stride, bytes[k], 3);
        }
    }
    return fits;
}

static bool quantize_values(const bitm_attention *a, const bitm_attention_codes *c)
{
    int32_t *sums = (int32_t *)c->sums; /* of the values of a component, times 128 */
    uint32_t d = 0;
    bool fits = true;
    for (; d + CODES <= a->head_size; d += CODES)
        fits = quantize_components(a, c, d, CODES) && fits;
    if (d < a->head_size) fits = quantize_components(a, c, d, a->head_size - d) && fits;
    const int8_t *codes = c->values;
    for (d = 0; d < c->n_columns; d++) {
        int32x4_t sum = vdupq_n_s32(0);
        for (size_t j = 0; j < c->n_padded; j += CODES, codes += CODES)
            sum = vpadalq_s16(sum, vpaddlq_s8(vld1q_s8(codes)));
        sums[d] = sum_of_i32(sum) * CODE_OFFSET;
    }
    return fits;
}

/* ---- Dots ---- */

/* Dots of the rows a with 4 rows b, n codes each: one vector for each row a. */
INLINE void multiply_tile(const int8_t *a, const int8_t *b, size_t n, int32x4_t dots[TILE_QUERIES])
{
    int32x4_t sums[TILE_QUERIES][TILE_ROWS];
    for (int q = 0; q < TILE_QUERIES; q++)
        for (int r = 0; r < TILE_ROWS; r++)
            sums[q][r] = vdupq_n_s32(0);
    for (size_t i = 0; i < n; i += CODES) {
        int8x16_t rows[TILE_ROWS];
        for (size_t r = 0; r < TILE_ROWS; r++)
            rows[r] = vld1q_s8(b + r * n + i);
        for (size_t q = 0; q < TILE_QUERIES; q++) {
            int8x16_t codes = vld1q_s8(a + q * n + i);
            for (int r = 0; r < TILE_ROWS; r++)
                sums[q][r] = add_products(sums[q][r], codes, rows[r]);
        }
    }
    for (int q = 0; q < TILE_QUERIES; q++)
        dots[q] = add_pairs_i32(add_pairs_i32(sums[q][0], sums[q][1]),
                                add_pairs_i32(sums[q][2], sums[q][3]));
}

/* ---- Probabilities ---- */

/* bitm_probability_code of four vectors, in the low bytes. */
INLINE void probability_codes(float32x4_t x[FOURS], uint32x4_t codes[FOURS])
{
    for (int first = 0; first < FOURS; first += TOGETHER) {
        float32x4_t shifted[TOGETHER], r[TOGETHER], p[TOGETHER];
        for (int k = 0; k < TOGETHER; k++) {
            float32x4_t clamped = greater_of(x[first + k], all(BITM_PROBABILITY_LOWEST));
            shifted[k] = vaddq_f32(clamped, all(BITM_ROUND_MAGIC));
            r[k] = vsubq_f32(clamped, vsubq_f32(shifted[k], all(BITM_ROUND_MAGIC)));
        }
        for (int k = 0; k < TOGETHER; k++)
            p[k] = vfmaq_f32(all(BITM_PROBABILITY_2), all(BITM_PROBABILITY_3), r[k]);
        for (int k = 0; k < TOGETHER; k++)
            p[k] = vfmaq_f32(all(BITM_PROBABILITY_1), p[k], r[k]);
        for (int k = 0; k < TOGETHER; k++)
            p[k] = vfmaq_f32(all(BITM_PROBABILITY_0), p[k], r[k]);
        for (int k = 0; k < TOGETHER; k++) {
            uint32x4_t n = vshlq_n_u32(vreinterpretq_u32_f32(shifted[k]), 23);
            p[k] = vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(p[k]), n));
            codes[first + k] = vreinterpretq_u32_f32(vaddq_f32(p[k], all(BITM_ROUND_MAGIC)));
        }
    }
}

/* Codes of the n_padded scores of a query, less 128; returns the sum of those of n_tokens. */
INLINE int32_t quantize_scores(const float *scores, float32x4_t greatest, size_t n_tokens,
                               size_t n_padded, int8_t *codes)
{
    float most[4];
    vst1q_f32(most, greatest);
    most[0] = most[0] > most[1] ? most[0] : most[1];
    most[2] = most[2] > most[3] ? most[2] : most[3];
    greatest = all(most[0] > most[2] ? most[0] : most[2]);
    uint32x4_t sums = vdupq_n_u32(0);
    for (size_t j = 0; j < n_padded; j += CODES) {
        float32x4_t x[FOURS];
        uint32x4_t words[FOURS];
        for (size_t k = 0; k < FOURS; k++)
            x[k] = vsubq_f32(vld1q_f32(scores + j + 4 * k), greatest);
        probability_codes(x, words);
        uint8x16_t bytes = low_bytes(words);
        sums = vpadalq_u16(sums, vpaddlq_u8(bytes));
        vst1q_s8(codes + j, vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(CODE_OFFSET))));
    }
    int32_t last = codes[n_padded - 1] + CODE_OFFSET; /* as each copy of the last token */
    return sum_of_i32(vreinterpretq_s32_u32(sums)) - (int32_t)(n_padded - n_tokens) * last;
}

/* ---- Contexts ---- */

/* The first n of 4 components; one by one on ARMv7: products may fall below 2^-126. */
INLINE void store_components(float *y, uint32_t n, int32x4_t dots, const float *step, float factor)
{
#if defined(__aarch64__)
    store_floats(y, n, vmulq_f32(vcvtq_f32_s32(dots), vmulq_n_f32(vld1q_f32(step), factor)));
#else
    int32_t room[4];
    vst1q_s32(room, dots);
    for (uint32_t i = 0; i < n && i < 4; i++)
        y[i] = (float)room[i] * (step[i] * factor);
#endif
}

/* Contexts of n queries, at most QUERIES, from query i on; the others' rows are the last's.  False
 * where ARMv7's vectors do not do. */
INLINE bool attend(const bitm_attention *a, const bitm_attention_codes *c, size_t i, uint32_t n)
{
    const size_t n_padded = c->n_padded, n_columns = c->n_columns;
    int8_t *queries = c->queries, *codes = c->codes;
    float step[QUERIES], factor[QUERIES];
    float32x4_t greatest[QUERIES];
    int32x4_t dots[TILE_QUERIES];
    for (uint32_t q = 0; q < QUERIES; q++) {
        const size_t token = i + (q < n ? q : n - 1);
        step[q] =
            quantize_token(a, a->query + token * a->stride, queries + q * n_columns, n_columns);
        /* A step below 2^-126 may count, of keys as large as floats are. */
        if (is_denormal(step[q])) return false;
        step[q] *= a->score_scale * BITM_LOG2_E;
        if (is_denormal(step[q])) return false;
        greatest[q] = all(-INFINITY);
    }
    for (size_t j = 0; j < n_padded; j += TILE_ROWS)
        for (size_t first = 0; first < QUERIES; first += TILE_QUERIES) {
            multiply_tile(queries + first * n_columns, (int8_t *)c->keys + j * n_columns, n_columns,
                          dots);
            for (size_t q = first; q < first + TILE_QUERIES; q++) {
                float32x4_t scale = vmulq_n_f32(vld1q_f32(c->key_step + j), step[q]);
                float32x4_t scores = vmulq_f32(vcvtq_f32_s32(dots[q - first]), scale);
                greatest[q] = greater_of(scores, greatest[q]);
                vst1q_f32(c->scores + q * n_padded + j, scores);
            }
        }
    for (size_t q = 0; q < QUERIES; q++)
        factor[q] = 1.0F / (float)quantize_scores(c->scores + q * n_padded, greatest[q],
                                                  a->n_tokens, n_padded, codes + q * n_padded);
    float *context = a->context + i * a->context_stride;
    for (uint32_t d = 0; d < a->head_size; d += TILE_ROWS)
        for (uint32_t first = 0; first < n; first += TILE_QUERIES) {
            const int32x4_t offsets = vld1q_s32((int32_t *)c->sums + d);
            multiply_tile(codes + first * n_padded, (int8_t *)c->values + d * n_padded, n_padded,
                          dots);
            for (uint32_t q = first; q < n && q < first + TILE_QUERIES; q++)
                store_components(context + q * a->context_stride + d, a->head_size - d,
                                 vaddq_s32(dots[q - first], offsets), c->value_step + d, factor[q]);
        }
    return true;
}

/* Returns the first query whose context is still to be found: `end`, but on ARMv7. */
INLINE uint32_t attend_all(const bitm_attention *attention, uint32_t token, uint32_t end)
{
    const bitm_attention_codes c = bitm_attention_codes_open(attention);
    if (!quantize_keys(attention, &c) || !quantize_values(attention, &c)) return token;
    while (token < end) {
        const uint32_t n = smaller(QUERIES, end - token);
        if (!attend(attention, &c, token, n)) return token;
        token += n;
    }
    return end;
}

#endif
