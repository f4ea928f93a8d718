/* What the files of the ARM tiers share.  Included by arm_*.c alone.
 *
 * The vectors of ARMv8.0 (Raspberry Pi 3 and 4, Jetson Nano) and of ARMv7 with VFPv4 (32-bit
 * systems on a Raspberry Pi 2 and later) have nearly the same instructions, so one source serves
 * both.  ARMv7 lacks half of the registers, division, and numbers below 2^-126: its vectors take
 * them for zeros.  There floats go through vectors only where no such number can arise, and
 * otherwise through the scalar unit, which has them: see arm_neon_floats.c. */
#ifndef BITM_ARM_NEON_H
#define BITM_ARM_NEON_H

#include <arm_neon.h>

#include "../file.h"
#include "canonical.h"
#include "kernels.h"

/* A helper of an inner loop: its constant arguments must be seen by the compiler. */
#define INLINE static inline __attribute__((always_inline))

INLINE uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* ---- What one of the two architectures lacks ---- */

/* Sums of neighbours: of a, then of b. */
INLINE uint8x16_t add_pairs_u8(uint8x16_t a, uint8x16_t b)
{
#if defined(__aarch64__)
    return vpaddq_u8(a, b);
#else
    return vcombine_u8(vpadd_u8(vget_low_u8(a), vget_high_u8(a)),
                       vpadd_u8(vget_low_u8(b), vget_high_u8(b)));
#endif
}

INLINE uint16x8_t add_pairs_u16(uint16x8_t a, uint16x8_t b)
{
#if defined(__aarch64__)
    return vpaddq_u16(a, b);
#else
    return vcombine_u16(vpadd_u16(vget_low_u16(a), vget_high_u16(a)),
                        vpadd_u16(vget_low_u16(b), vget_high_u16(b)));
#endif
}

INLINE int32x4_t add_pairs_i32(int32x4_t a, int32x4_t b)
{
#if defined(__aarch64__)
    return vpaddq_s32(a, b);
#else
    return vcombine_s32(vpadd_s32(vget_low_s32(a), vget_high_s32(a)),
                        vpadd_s32(vget_low_s32(b), vget_high_s32(b)));
#endif
}

INLINE float32x4_t add_pairs_f32(float32x4_t a, float32x4_t b)
{
#if defined(__aarch64__)
    return vpaddq_f32(a, b);
#else
    return vcombine_f32(vpadd_f32(vget_low_f32(a), vget_high_f32(a)),
                        vpadd_f32(vget_low_f32(b), vget_high_f32(b)));
#endif
}

INLINE int32_t sum_of_i32(int32x4_t x)
{
    int32x2_t two = vadd_s32(vget_low_s32(x), vget_high_s32(x));
    return vget_lane_s32(vpadd_s32(two, two), 0);
}

/* ---- Floats ---- */

/* The first n of 4 floats, where n may be more; 0 in the lanes past them. */
INLINE float32x4_t load_floats(const float *x, uint32_t n)
{
    if (n >= 4) return vld1q_f32(x);
    float room[4] = {0};
    for (uint32_t i = 0; i < n; i++)
        room[i] = x[i];
    return vld1q_f32(room);
}

INLINE void store_floats(float *x, uint32_t n, float32x4_t values)
{
    if (n >= 4) {
        vst1q_f32(x, values);
        return;
    }
    float room[4];
    vst1q_f32(room, values);
    for (uint32_t i = 0; i < n; i++)
        x[i] = room[i];
}

/* 64 bytes, all ones or zeros, to a bit each: byte i has bit i % 8 left, and neighbours add up. */
INLINE uint64_t bits_of(const uint8x16_t masks[4])
{
    const uint8x16_t bit = vcombine_u8(vcreate_u8(UINT64_C(0x8040201008040201)),
                                       vcreate_u8(UINT64_C(0x8040201008040201)));
    uint8x8_t pairs[4];
    for (int k = 0; k < 4; k++) {
        uint8x16_t bits = vandq_u8(masks[k], bit);
        pairs[k] = vpadd_u8(vget_low_u8(bits), vget_high_u8(bits));
    }
    uint8x8_t fours[2] = {vpadd_u8(pairs[0], pairs[1]), vpadd_u8(pairs[2], pairs[3])};
    return vget_lane_u64(vreinterpret_u64_u8(vpadd_u8(fours[0], fours[1])), 0);
}

/* The 16 canonical lanes of a sum: 0 to 3, 4 to 7, 8 to 11, 12 to 15. */
typedef struct lanes {
    float32x4_t four[4];
} lanes;

/* The first half of a fold: 4 sums in which 4 lanes each have met. */
INLINE float32x4_t fold_to_four(lanes sum)
{
    return vaddq_f32(vaddq_f32(sum.four[0], sum.four[2]), vaddq_f32(sum.four[1], sum.four[3]));
}

INLINE float fold(lanes sum)
{
    float32x4_t four = fold_to_four(sum);
    float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(vpadd_f32(two, two), 0);
}

/* ---- The epilogue of products ---- */

/* Of the first n of 4 outputs, n at least 1: see bitm_gemm.  On ARMv7 one by one: a result may be
 * below 2^-126.  is_plain: the gemm is. */
INLINE void store_outputs(const bitm_gemm *gemm, bool is_plain, size_t token, size_t output,
                          uint32_t n, float32x4_t dot)
{
    float *y = gemm->outputs + token * gemm->output_stride + output;
#if defined(__aarch64__)
    float32x4_t scale =
        vmulq_n_f32(load_floats(gemm->row_scale + output, n), gemm->token_step[token]);
    float32x4_t value = vfmaq_f32(load_floats(gemm->bias + output, n), dot, scale);
    if (!is_plain && gemm->row_offset != NULL)
        value = vfmaq_f32(value, load_floats(gemm->row_offset + output, n),
                          vdupq_n_f32(gemm->token_sum[token]));
    if (!is_plain && gemm->row_base != NULL)
        value = vfmaq_f32(value, load_floats(gemm->row_base + output, n),
                          vdupq_n_f32(gemm->token_base[token]));
    if (!is_plain && gemm->accumulate) value = vaddq_f32(load_floats(y, n), value);
    store_floats(y, n, value);
#else
    float dots[4];
    vst1q_f32(dots, dot);
    for (size_t i = 0, o = output; i < n && i < 4; i++, o++) {
        float value = fmaf(dots[i], gemm->row_scale[o] * gemm->token_step[token], gemm->bias[o]);
        if (!is_plain && gemm->row_offset != NULL)
            value = fmaf(gemm->row_offset[o], gemm->token_sum[token], value);
        if (!is_plain && gemm->row_base != NULL)
            value = fmaf(gemm->row_base[o], gemm->token_base[token], value);
        y[i] = !is_plain && gemm->accumulate ? y[i] + value : value;
    }
#endif
}

/* Whether results have no terms but the first two. */
INLINE bool is_plain_gemm(const bitm_gemm *gemm)
{
    return gemm->row_offset == NULL && gemm->row_base == NULL && !gemm->accumulate;
}

/* Of integer dots [n_outputs], and their activation function. */
static inline void store_dots(const bitm_gemm *gemm, size_t token, size_t output,
                              uint32_t n_outputs, const int32_t *dots)
{
    const bitm_gemm g = *gemm; /* a copy that no store of results can change */
    uint32_t o = 0;
    for (; is_plain_gemm(&g) && o + 4 <= n_outputs; o += 4)
        store_outputs(&g, true, token, output + o, 4, vcvtq_f32_s32(vld1q_s32(dots + o)));
    for (; o < n_outputs; o += 4)
        store_outputs(&g, false, token, output + o, n_outputs - o,
                      vcvtq_f32_s32(vld1q_s32(dots + o)));
    if (g.activation != BITM_ACTIVATION_NONE)
        bitm_activate__neon(g.activation, g.outputs + token * g.output_stride + output, n_outputs);
}

/* ---- Bits ---- */

INLINE size_t words_of(const bitm_gemm *gemm)
{
    return ((size_t)gemm->n_inputs + 63) / 64;
}

/* Two words of a row as 16 bytes, of which the first n_words exist; 0 in place of a missing one. */
INLINE uint8x16_t load_words(const uint64_t *words, size_t n_words)
{
    const uint8_t *bytes = (const uint8_t *)words;
    return n_words > 1 ? vld1q_u8(bytes) : vcombine_u8(vld1_u8(bytes), vdup_n_u8(0));
}

#endif
