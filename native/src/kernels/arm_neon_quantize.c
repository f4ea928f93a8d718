/* NEON quantization: from floats to codes, and from these to planes of their bits.
 *
 * On ARMv7 the model's own quantizers are left to the scalar unit: they divide, and whether a
 * value is above 0 must hold for the tiniest, which vectors take for 0 there.
 *
 *   fcmgt, bsl  selections as the scalar kernels write them
 *   fdiv        the model's own quantizers divide
 *   cmtst, addp a plane: one bit of 16 bytes
 */
#include "arm_neon.h"

#include <string.h>

INLINE float32x4_t all(float x)
{
    return vdupq_n_f32(x);
}

/* a > b ? a : b, and the reverse. */
INLINE float32x4_t greater_of(float32x4_t a, float32x4_t b)
{
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}

INLINE float32x4_t lesser_of(float32x4_t a, float32x4_t b)
{
    return vbslq_f32(vcltq_f32(a, b), a, b);
}

/* To the nearest integer, as bitm_round. */
INLINE float32x4_t to_integer(float32x4_t x)
{
    return vsubq_f32(vaddq_f32(x, all(BITM_ROUND_MAGIC)), all(BITM_ROUND_MAGIC));
}

INLINE void store_i16(int16_t *codes, int32x4_t four, uint32_t n)
{
    int16x4_t narrow = vmovn_s32(four);
    if (n >= 4) {
        vst1_s16(codes, narrow);
        return;
    }
    int16_t room[4];
    vst1_s16(room, narrow);
    for (uint32_t i = 0; i < n; i++)
        codes[i] = room[i];
}

/* ---- The runtime's own quantization ---- */

/* By the bits of floats, which order magnitudes as integers do; NaNs, above all numbers, are taken
 * for 0. */
static float max_abs(const float *x, uint32_t n)
{
    const uint32x4_t infinity = vdupq_n_u32(0x7F800000U);
    uint32x4_t most = vdupq_n_u32(0);
    uint32_t i = 0;
    for (; i < n / 4 * 4; i += 4) {
        uint32x4_t bits = vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x + i)));
        most = vmaxq_u32(most, vandq_u32(bits, vcleq_u32(bits, infinity)));
    }
    if (i < n) {
        uint32x4_t bits = vreinterpretq_u32_f32(vabsq_f32(load_floats(x + i, n - i)));
        most = vmaxq_u32(most, vandq_u32(bits, vcleq_u32(bits, infinity)));
    }
    uint32x2_t two = vmax_u32(vget_low_u32(most), vget_high_u32(most));
    uint32_t greatest = vget_lane_u32(vpmax_u32(two, two), 0);
    float value;
    memcpy(&value, &greatest, sizeof value);
    return value;
}

/* The factor from values to codes, and *step back; both 0 where the factor would not be finite. */
static float code_factor(float greatest, float max_code, float *step)
{
    float factor = max_code / greatest;
    if (!(greatest > 0.0F) || !(factor <= 3.402823466e38F)) {
        *step = 0.0F;
        return 0.0F;
    }
    *step = greatest / max_code;
    return factor;
}

INLINE int32x4_t codes_of(float32x4_t x, float factor, float max_code)
{
    float32x4_t code = to_integer(vmulq_n_f32(x, factor));
    code = greater_of(code, all(-max_code));
    return vcvtq_s32_f32(lesser_of(code, all(max_code)));
}

/* Of ARMv7: whether values below 2^-126 count, which the vectors there take for 0.  Where the
 * greatest is 2^-90, they are nowhere near a code of 1; zeros alone are zeros anyhow. */
static bool is_tiny(float greatest)
{
#if defined(__aarch64__)
    (void)greatest;
    return false;
#else
    return greatest != 0.0F && greatest < 0x1p-90F;
#endif
}

void bitm_quantize_i8__neon(const float *x, uint32_t n, int8_t *codes, float *step, float *sum)
{
    float greatest = max_abs(x, n), factor = code_factor(greatest, 127.0F, step);
    int32x4_t total = vdupq_n_s32(0);
    uint32_t i = 0;
    if (is_tiny(greatest)) {
#if BITM_HAVE_VFPV4
        bitm_quantize_i8__vfpv4(x, n, codes, step, sum);
        return;
#endif
    }
    for (; i + 16 <= n; i += 16) {
        int16x4_t c[4];
        for (uint32_t k = 0; k < 4; k++) {
            int32x4_t four = codes_of(vld1q_f32(x + i + 4 * k), factor, 127.0F);
            total = vaddq_s32(total, four);
            c[k] = vmovn_s32(four);
        }
        vst1q_s8(codes + i, vcombine_s8(vmovn_s16(vcombine_s16(c[0], c[1])),
                                        vmovn_s16(vcombine_s16(c[2], c[3]))));
    }
    for (; i < n; i += 4) {
        int32x4_t four = codes_of(load_floats(x + i, n - i), factor, 127.0F);
        int16_t room[4];
        store_i16(room, four, 4);
        for (uint32_t k = 0; k < smaller(4, n - i); k++)
            codes[i + k] = (int8_t)room[k];
        total = vaddq_s32(total, four);
    }
    *sum = *step * (float)sum_of_i32(total);
}

void bitm_quantize_i16__neon(const float *x, uint32_t n, int16_t max_code, int16_t *codes,
                             float *step, float *sum)
{
    float greatest = max_abs(x, n), factor = code_factor(greatest, (float)max_code, step);
    int32x4_t total = vdupq_n_s32(0);
    if (is_tiny(greatest)) {
#if BITM_HAVE_VFPV4
        bitm_quantize_i16__vfpv4(x, n, max_code, codes, step, sum);
        return;
#endif
    }
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        int32x4_t low = codes_of(vld1q_f32(x + i), factor, (float)max_code);
        int32x4_t high = codes_of(vld1q_f32(x + i + 4), factor, (float)max_code);
        total = vaddq_s32(total, vaddq_s32(low, high));
        vst1q_s16(codes + i, vcombine_s16(vmovn_s32(low), vmovn_s32(high)));
    }
    for (; i < n; i += 4) {
        int32x4_t four = codes_of(load_floats(x + i, n - i), factor, (float)max_code);
        store_i16(codes + i, four, n - i);
        total = vaddq_s32(total, four);
    }
    *sum = *step * (float)sum_of_i32(total);
}

/* ---- A model's own quantizers ---- */

#if defined(__aarch64__)
/* z of the first n of 4 values. */
INLINE float32x4_t shifted(const bitm_quantization *q, const float *x, size_t i, uint32_t n)
{
    float32x4_t z = load_floats(x + i, n);
    if (q->shift != NULL) z = vaddq_f32(z, load_floats(q->shift + i, n));
    if (!q->clips) return z;
    z = greater_of(z, all(q->clip_lo));
    return lesser_of(z, all(q->clip_hi));
}

/* What tells a code, fixed for a row. */
typedef enum told_by { BY_SIGN, BY_SIGN_ABOVE_0, BY_THRESHOLD, BY_QUOTIENT } told_by;

/* The codes of the first n of 4 values from value i on. */
INLINE int32x4_t quantized(const bitm_quantization *q, const told_by kind, const float *x, size_t i,
                           uint32_t n)
{
    float32x4_t z = shifted(q, x, i, n);
    switch (kind) {
    case BY_SIGN: /* masks are -1 */
        return vreinterpretq_s32_u32(vsubq_u32(vcltzq_f32(z), vcgtzq_f32(z)));
    case BY_SIGN_ABOVE_0:
        return vnegq_s32(vreinterpretq_s32_u32(vcgtzq_f32(z)));
    case BY_THRESHOLD:
        return vsubq_s32(vdupq_n_s32((int32_t)q->lo),
                         vreinterpretq_s32_u32(vcgeq_f32(z, all(q->threshold))));
    default:
        break;
    }
    float32x4_t code = vdivq_f32(vsubq_f32(z, all(q->base)), all(q->divisor));
    code = vmulq_n_f32(code, q->factor);
    code = greater_of(code, all(q->lo));
    return vcvtq_s32_f32(to_integer(lesser_of(code, all(q->hi))));
}

/* Of a row without shift or clip, without clip, or with any. */
typedef enum moved_by { BY_NOTHING, BY_SHIFT, BY_ANY } moved_by;

INLINE int32_t quantize_row(const bitm_quantization *quantization, const told_by kind,
                            const moved_by moved, const float *x, uint32_t n, int16_t *codes)
{
    bitm_quantization q = *quantization; /* a copy that no store of codes can change */
    if (moved != BY_ANY) q.clips = false;
    if (moved == BY_NOTHING) q.shift = NULL;
    if (moved == BY_SHIFT && q.shift == NULL) __builtin_unreachable();
    int32x4_t sum = vdupq_n_s32(0);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        int32x4_t low = quantized(&q, kind, x, i, 4), high = quantized(&q, kind, x, i + 4, 4);
        int16x8_t eight = vcombine_s16(vmovn_s32(low), vmovn_s32(high));
        vst1q_s16(codes + i, eight);
        sum = vpadalq_s16(sum, eight);
    }
    int32_t total = sum_of_i32(sum);
    for (; i < n; i += 4) {
        uint32_t n_left = n - (uint32_t)i;
        store_i16(codes + i, quantized(&q, kind, x, i, n_left), n_left);
        for (size_t k = i; k < n && k < i + 4; k++)
            total += codes[k];
    }
    return total;
}

/* A loop of its own for each kind. */
INLINE int32_t quantize_by(const bitm_quantization *q, const told_by kind, const float *x,
                           uint32_t n, int16_t *codes)
{
    if (q->clips) return quantize_row(q, kind, BY_ANY, x, n, codes);
    if (q->shift != NULL) return quantize_row(q, kind, BY_SHIFT, x, n, codes);
    return quantize_row(q, kind, BY_NOTHING, x, n, codes);
}

int32_t bitm_quantize__neon(const bitm_quantization *q, const float *x, uint32_t n, int16_t *codes)
{
    if (q->sign && q->lo < 0.0F) return quantize_by(q, BY_SIGN, x, n, codes);
    if (q->sign) return quantize_by(q, BY_SIGN_ABOVE_0, x, n, codes);
    if (q->two_codes) return quantize_by(q, BY_THRESHOLD, x, n, codes);
    return quantize_by(q, BY_QUOTIENT, x, n, codes);
}

/* Masks of 16 bits to masks of bytes. */
INLINE uint8x16_t narrow(uint16x8_t low, uint16x8_t high)
{
    return vcombine_u8(vmovn_u16(low), vmovn_u16(high));
}

/* Where 64 codes are not 0, and where they are above 0. */
INLINE void put_signs(const int16x8_t c[8], size_t n_words, uint64_t *planes)
{
    const int16x8_t zero = vdupq_n_s16(0);
    uint8x16_t nonzero[4], positive[4];
    for (int k = 0; k < 4; k++) {
        nonzero[k] = narrow(vtstq_s16(c[2 * k], c[2 * k]), vtstq_s16(c[2 * k + 1], c[2 * k + 1]));
        positive[k] = narrow(vcgtq_s16(c[2 * k], zero), vcgtq_s16(c[2 * k + 1], zero));
    }
    planes[0] = bits_of(nonzero);
    planes[n_words] = bits_of(positive);
}

INLINE void put_bits(const int16x8_t c[8], uint32_t n_planes, size_t n_words, uint64_t *planes)
{
    for (uint32_t p = 0; p < n_planes; p++) {
        const int16x8_t bit = vdupq_n_s16((int16_t)(uint16_t)(1U << p));
        uint8x16_t plane[4];
        for (int k = 0; k < 4; k++)
            plane[k] = narrow(vtstq_s16(c[2 * k], bit), vtstq_s16(c[2 * k + 1], bit));
        planes[p * n_words] = bits_of(plane);
    }
}

int32_t bitm_quantize_planes__neon(const bitm_quantization *quantization, const float *x,
                                   uint32_t n, uint32_t n_planes, uint64_t *planes)
{
    bitm_quantization q = *quantization;
    const bool are_signs = q.sign && q.lo < 0.0F;
    const size_t n_words = ((size_t)n + 63) / 64;
    int32_t sum = 0;
    for (size_t word = 0; word < n_words; word++) {
        int16_t codes[64] = {0};
        int16x8_t c[8];
        sum += bitm_quantize__neon(&q, x + 64 * word, smaller(64, n - 64 * (uint32_t)word), codes);
        for (int k = 0; k < 8; k++)
            c[k] = vld1q_s16(codes + 8 * k);
        if (are_signs)
            put_signs(c, n_words, planes + word);
        else
            put_bits(c, n_planes, n_words, planes + word);
        if (q.shift != NULL) q.shift += 64;
    }
    return sum;
}

/* Four masks of 32 bits to masks of bytes. */
INLINE uint8x16_t narrow_all(const uint32x4_t masks[4])
{
    return narrow(vcombine_u16(vmovn_u32(masks[0]), vmovn_u32(masks[1])),
                  vcombine_u16(vmovn_u32(masks[2]), vmovn_u32(masks[3])));
}

/* Which of 16 values from i on, of which n exist, have code 1, as masks of bytes; anything where
 * none exists. */
static uint8x16_t compute_gelu_bits(const bitm_gelu_codes *codes, const float *x, size_t i,
                                    uint32_t n)
{
    float values[16] = {0};
    uint32x4_t is_set[4];
    memcpy(values, x + i, smaller(n, 16) * sizeof *values);
    bitm_activate__neon(BITM_ACTIVATION_GELU, values, 16);
    for (uint32_t k = 0; k < 4; k++) {
        const uint32_t left = n > 4 * k ? n - 4 * k : 0;
        float32x4_t z = vld1q_f32(values + 4 * k);
        if (codes->shift != NULL) z = vaddq_f32(z, load_floats(codes->shift + i + 4 * k, left));
        is_set[k] = vcgeq_f32(z, all(codes->threshold));
    }
    return narrow_all(is_set);
}

/* The same of 16 that exist, told without a GELU if all are. */
INLINE uint8x16_t find_gelu_bits(const bitm_gelu_codes *codes, const float *x, size_t i)
{
    uint32x4_t is_set[4], told = vdupq_n_u32(~0U);
    for (uint32_t k = 0; k < 4; k++) {
        float32x4_t above =
            vsubq_f32(vld1q_f32(x + i + 4 * k), vld1q_f32(codes->limits + i + 4 * k));
        is_set[k] = vcgtzq_f32(above);
        told = vandq_u32(told, vcgeq_f32(vabsq_f32(above), all(BITM_GELU_BAND)));
    }
    return vminvq_u32(told) != 0 ? narrow_all(is_set) : compute_gelu_bits(codes, x, i, 16);
}

int32_t bitm_gelu_bits__neon(const bitm_gelu_codes *codes, const float *x, uint32_t n,
                             uint64_t *bits)
{
    int32_t sum = 0;
    for (size_t i = 0; i < n; i += 64) {
        uint8x16_t masks[4];
        for (uint32_t k = 0; k < 4; k++) {
            const size_t first = i + 16 * k;
            masks[k] = vdupq_n_u8(0);
            if (first + 16 <= n)
                masks[k] = find_gelu_bits(codes, x, first);
            else if (first < n)
                masks[k] = compute_gelu_bits(codes, x, first, n - (uint32_t)first);
        }
        uint64_t word = bits_of(masks);
        if (n - i < 64) word &= (UINT64_C(1) << (n - i)) - 1;
        bits[i / 64] = word;
        sum += __builtin_popcountll(word);
    }
    return sum;
}

/* 0 and -0 are equal, but the scalar kernel keeps the first of them: so its sign is looked up. */
static float first_zero(const bitm_quantization *q, const float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += 4) {
        float z[4];
        vst1q_f32(z, shifted(q, x, i, n - i));
        for (uint32_t k = 0; k < smaller(4, n - i); k++)
            if (z[k] == 0.0F) return z[k];
    }
    return 0.0F;
}

void bitm_extremes__neon(const bitm_quantization *q, const float *x, uint32_t n, float extremes[2])
{
    float32x4_t first = vdupq_laneq_f32(shifted(q, x, 0, 1), 0);
    float32x4_t least = first, greatest = first;
    uint32_t i = 0;
    for (; i + 4 <= n; i += 4) {
        float32x4_t z = shifted(q, x, i, 4);
        least = lesser_of(z, least);
        greatest = greater_of(z, greatest);
    }
    float low[4], high[4], last[4];
    vst1q_f32(low, least);
    vst1q_f32(high, greatest);
    if (i < n) vst1q_f32(last, shifted(q, x, i, n - i));
    extremes[0] = low[0];
    extremes[1] = high[0];
    for (uint32_t k = 1; k < 4; k++) {
        extremes[0] = low[k] < extremes[0] ? low[k] : extremes[0];
        extremes[1] = high[k] > extremes[1] ? high[k] : extremes[1];
    }
    for (uint32_t k = 0; k < n - i; k++) {
        extremes[0] = last[k] < extremes[0] ? last[k] : extremes[0];
        extremes[1] = last[k] > extremes[1] ? last[k] : extremes[1];
    }
    if (extremes[0] == 0.0F || extremes[1] == 0.0F) {
        float zero = first_zero(q, x, n);
        if (extremes[0] == 0.0F) extremes[0] = zero;
        if (extremes[1] == 0.0F) extremes[1] = zero;
    }
}
#endif
