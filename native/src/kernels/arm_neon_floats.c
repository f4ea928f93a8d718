/* NEON products of floats, and attention.
 *
 * The 16 canonical lanes of a dot are four vectors.  A tile of 4 tokens and 4 outputs has 16 sums
 * at work in registers, so it goes over its inputs four times, for a quarter of the lanes each:
 * 8 loads serve 16 multiply-adds.
 *
 *   fmla  2 a cycle on Cortex-A72, a latency of 7: at least 14 sums at once
 *   ldr   1 a cycle
 *
 * ARMv7: vectors take numbers below 2^-126 for zeros.  None arises in a sum of products whose
 * terms are multiples of 2^-126: the sum is one too, and rounding keeps that.  A float of at least
 * 2^e is a multiple of 2^(e - 23), so magnitudes tell; where they are too small, the scalar unit
 * computes the block. */
#include "arm_neon.h"

#include <string.h>

enum {
#if defined(__aarch64__)
    TILE_TOKENS = 4, /* with TILE_OUTPUTS: 16 of 32 registers are sums */
#else
    TILE_TOKENS = 2, /* 8 of 16 */
#endif
    TILE_OUTPUTS = 4,
    CONTEXT_VECTORS = 4, /* of the components of a context */
    MAX_TOGETHER = 1024, /* tokens of a sequence whose queries are taken together */
    BLOCK_TOKENS = 16,   /* tokens that one conversion of weights serves */
    STRETCH = 1024,      /* weights of a row converted at a time; a multiple of 64 */
};

/* ---- Whether ARMv7 may use vectors ---- */

/* Whether each of n values is 0 or at least 2^exponent; always where vectors have all numbers. */
static bool is_0_or_above(int exponent, const float *x, uint32_t n)
{
#if defined(__aarch64__)
    (void)exponent, (void)x, (void)n;
    return true;
#else
    const uint32x4_t least = vdupq_n_u32(((uint32_t)(127 + exponent) << 24) - 1);
    uint32x4_t small = vdupq_n_u32(0);
    for (uint32_t i = 0; i < n; i += 4) {
        /* Twice the bits, so without the sign, less 1: of zeros the greatest there is. */
        uint32x4_t bits = vreinterpretq_u32_f32(load_floats(x + i, n - i));
        uint32x4_t size = vsubq_u32(vaddq_u32(bits, bits), vdupq_n_u32(1));
        small = vorrq_u32(small, vcltq_u32(size, least));
    }
    return sum_of_i32(vreinterpretq_s32_u32(small)) == 0;
#endif
}

/* ---- Dots ---- */

INLINE uint32x4_t first_lanes(uint32_t n)
{
    const uint32x4_t lane_u32x4 =
        vcombine_u32(vcreate_u32(UINT64_C(1) << 32), vcreate_u32(UINT64_C(3) << 32 | 2));
    return vcltq_u32(lane_u32x4, vdupq_n_u32(n));
}

/* The elements past the last whole 16, followed by zeros. */
typedef struct rest {
    float a[TILE_TOKENS][BITM_LANES], b[TILE_OUTPUTS][BITM_LANES];
} rest;

INLINE void copy_rest(const float *rows, size_t stride, uint32_t n_rows, uint32_t n,
                      float copies[][BITM_LANES])
{
    for (uint32_t r = 0; r < n_rows; r++) {
        memset(copies[r], 0, sizeof copies[r]);
        memcpy(copies[r], rows + r * stride, n * sizeof *rows);
    }
}

/* Adds to sums [n_a, n_b], or starts them with, the products of n elements of the rows a and b, so
 * many floats apart. */
INLINE void add_dots(const float *a, size_t stride_a, const uint32_t n_a, const float *b,
                     size_t stride_b, const uint32_t n_b, uint32_t n, bool starts, lanes *sums)
{
    rest last;
    uint32_t n_last = n % BITM_LANES, end = n - n_last;
    if (n_last > 0) {
        copy_rest(a + end, stride_a, n_a, n_last, last.a);
        copy_rest(b + end, stride_b, n_b, n_last, last.b);
    }
    for (uint32_t quarter = 0; quarter < 4; quarter++, a += 4, b += 4) {
        float32x4_t local[TILE_TOKENS * TILE_OUTPUTS], weights[TILE_OUTPUTS];
        for (uint32_t k = 0; k < n_a * n_b; k++)
            local[k] = starts ? vdupq_n_f32(0.0F) : sums[k].four[quarter];
        for (size_t i = 0; i < end; i += BITM_LANES) {
            for (uint32_t q = 0; q < n_b; q++)
                weights[q] = vld1q_f32(b + q * stride_b + i);
            for (uint32_t r = 0; r < n_a; r++) {
                float32x4_t x = vld1q_f32(a + r * stride_a + i);
                for (uint32_t q = 0; q < n_b; q++)
                    local[r * n_b + q] = vfmaq_f32(local[r * n_b + q], x, weights[q]);
            }
        }
        if (4 * quarter < n_last) {
            /* Lanes that have no element stay as they are: a product of zeros could change -0. */
            uint32x4_t exists = first_lanes(n_last - 4 * quarter);
            for (uint32_t q = 0; q < n_b; q++)
                weights[q] = vld1q_f32(last.b[q] + 4 * quarter);
            for (uint32_t r = 0; r < n_a; r++) {
                float32x4_t x = vld1q_f32(last.a[r] + 4 * quarter);
                for (uint32_t q = 0; q < n_b; q++) {
                    float32x4_t *sum = &local[r * n_b + q];
                    *sum = vbslq_f32(exists, vfmaq_f32(*sum, x, weights[q]), *sum);
                }
            }
        }
        for (uint32_t k = 0; k < n_a * n_b; k++)
            sums[k].four[quarter] = local[k];
    }
}

/* The folds of four sums, each as fold() does it. */
INLINE float32x4_t fold_four(const lanes sums[4])
{
    float32x4_t two[2];
    for (int k = 0; k < 2; k++) {
        float32x4_t a = fold_to_four(sums[2 * k]), b = fold_to_four(sums[2 * k + 1]);
        two[k] = vaddq_f32(vcombine_f32(vget_low_f32(a), vget_low_f32(b)),
                           vcombine_f32(vget_high_f32(a), vget_high_f32(b)));
    }
    return add_pairs_f32(two[0], two[1]);
}

/* ---- Weights as floats ---- */

/* 4 bits from bit `shift` on as 0 or `value`. */
INLINE float32x4_t bits_to_floats(uint64_t word, uint32_t shift, float value)
{
    const uint32x4_t bit_u32x4 =
        vcombine_u32(vcreate_u32(UINT64_C(2) << 32 | 1), vcreate_u32(UINT64_C(8) << 32 | 4));
    uint32x4_t mask = vtstq_u32(vdupq_n_u32((uint32_t)(word >> shift)), bit_u32x4);
    return vreinterpretq_f32_u32(vandq_u32(mask, vreinterpretq_u32_f32(vdupq_n_f32(value))));
}

/* w1: 2 b - 1; w2: 2 positive - nonzero. */
static void expand_bits(const bitm_gemm *gemm, bool ternary, size_t output, uint32_t first,
                        uint32_t n, float *weights)
{
    size_t n_words = words_of(gemm);
    const uint64_t *row = (const uint64_t *)gemm->weights + output * n_words + first / 64;
    const uint64_t *positive = ternary ? row + gemm->n_rows * n_words : row;
    for (uint32_t i = 0; i < n; i += 4) {
        float32x4_t two = bits_to_floats(positive[i / 64], i % 64, 2.0F);
        float32x4_t one = ternary ? bits_to_floats(row[i / 64], i % 64, 1.0F) : vdupq_n_f32(1.0F);
        vst1q_f32(weights + i, vsubq_f32(two, one));
    }
}

static void expand_i8(const int8_t *codes, uint32_t n, float *weights)
{
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        int16x8_t wide = vmovl_s8(vld1_s8(codes + i));
        vst1q_f32(weights + i, vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))));
        vst1q_f32(weights + i + 4, vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide))));
    }
    for (; i < n; i++)
        weights[i] = (float)codes[i];
}

/* As bitm_f16_to_f32. */
INLINE float32x4_t halves_to_floats(uint16x4_t halves)
{
#if defined(__aarch64__)
    return vcvt_f32_f16(vreinterpret_f16_u16(halves));
#else
    /* The instruction is there, but gcc wants a choice of formats for it, which clang refuses. */
    const uint32x4_t rebias = vdupq_n_u32((127 - 15) << 23);
    uint32x4_t bits = vmovl_u16(halves), magnitude = vandq_u32(bits, vdupq_n_u32(0x7FFF));
    uint32x4_t value = vaddq_u32(vshlq_n_u32(magnitude, 13), rebias);
    uint32x4_t is_finite = vcltq_u32(magnitude, vdupq_n_u32(0x7C00));
    value = vaddq_u32(value, vbicq_u32(rebias, is_finite));
    uint32x4_t denormal = vreinterpretq_u32_f32(vmulq_n_f32(vcvtq_f32_u32(magnitude), 0x1p-24F));
    value = vbslq_u32(vcltq_u32(magnitude, vdupq_n_u32(0x400)), denormal, value);
    uint32x4_t sign = vshlq_n_u32(vandq_u32(bits, vdupq_n_u32(0x8000)), 16);
    return vreinterpretq_f32_u32(vorrq_u32(value, sign));
#endif
}

static void expand_f16(const uint16_t *halves, uint32_t n, float *weights)
{
    uint32_t i = 0;
    for (; i + 4 <= n; i += 4)
        vst1q_f32(weights + i, halves_to_floats(vld1_u16(halves + i)));
    for (; i < n; i++)
        weights[i] = bitm_f16_to_f32(halves[i]);
}

/* n weights of a row from input `first` on: in `room`, or where they lie. */
INLINE const float *weights_of(const bitm_gemm *gemm, bitm_dtype kind, size_t output,
                               uint32_t first, uint32_t n, float *room)
{
    size_t place = output * gemm->n_inputs + first;
    switch (kind) {
    case BITM_DTYPE_F32:
        return (const float *)gemm->weights + place;
    case BITM_DTYPE_F16:
        expand_f16((const uint16_t *)gemm->weights + place, n, room);
        break;
    case BITM_DTYPE_I8:
        expand_i8((const int8_t *)gemm->weights + place, n, room);
        break;
    case BITM_DTYPE_BIT1:
        expand_bits(gemm, false, output, first, n, room);
        break;
    case BITM_DTYPE_TERN:
        expand_bits(gemm, true, output, first, n, room);
        break;
    }
    return room;
}

/* ---- Products ---- */

/* At most BLOCK_TOKENS tokens; TILE_OUTPUTS or fewer outputs. */
INLINE void multiply_block(const bitm_gemm *gemm, bitm_dtype kind, uint32_t token,
                           uint32_t n_tokens, uint32_t output, uint32_t n_outputs)
{
    size_t stride = gemm->n_inputs;
    const float *inputs = (const float *)gemm->inputs + token * stride;
    float room[TILE_OUTPUTS][STRETCH];
    lanes sums[BLOCK_TOKENS * TILE_OUTPUTS];
    memset(sums, 0, sizeof sums);
    for (uint32_t first = 0; first < gemm->n_inputs; first += STRETCH) {
        uint32_t n = smaller(STRETCH, gemm->n_inputs - first);
        size_t weight_stride = kind == BITM_DTYPE_F32 ? stride : STRETCH;
        const float *weights = NULL, *x = inputs + first;
        for (uint32_t o = n_outputs; o-- > 0;)
            weights = weights_of(gemm, kind, output + o, first, n, room[o]);
        if (n_outputs < TILE_OUTPUTS) {
            for (uint32_t k = 0; k < n_tokens * n_outputs; k++) {
                uint32_t t = k / n_outputs, o = k % n_outputs;
                add_dots(x + t * stride, stride, 1, weights + o * weight_stride, weight_stride, 1,
                         n, false, sums + t * TILE_OUTPUTS + o);
            }
            continue;
        }
        uint32_t t = 0;
        for (; t + TILE_TOKENS <= n_tokens; t += TILE_TOKENS)
            add_dots(x + t * stride, stride, TILE_TOKENS, weights, weight_stride, TILE_OUTPUTS, n,
                     false, sums + t * TILE_OUTPUTS);
        for (; t < n_tokens; t++)
            add_dots(x + t * stride, stride, 1, weights, weight_stride, TILE_OUTPUTS, n, false,
                     sums + t * TILE_OUTPUTS);
    }
    for (uint32_t t = 0; t < n_tokens; t++)
        store_outputs(gemm, false, token + t, output, n_outputs,
                      fold_four(sums + t * TILE_OUTPUTS));
}

/* Whether products of the block's inputs and weights are multiples of 2^-126: see above. */
INLINE bool fits_vectors(const bitm_gemm *gemm, bitm_dtype kind, uint32_t token, uint32_t n_tokens,
                         uint32_t output, uint32_t n_outputs)
{
    enum { DIGITS = 23, LEAST = -126, LEAST_F16 = -24, LEAST_F32 = -40 };
    int exponent = LEAST + DIGITS; /* of inputs, where weights are integers */
    if (kind == BITM_DTYPE_F16) exponent = LEAST + DIGITS - LEAST_F16;
    if (kind == BITM_DTYPE_F32) exponent = LEAST_F32;
    uint32_t n = gemm->n_inputs;
    bool fits = true;
    for (size_t t = token; t < (size_t)token + n_tokens; t++)
        fits = fits && is_0_or_above(exponent, (const float *)gemm->inputs + t * n, n);
    for (size_t o = output; kind == BITM_DTYPE_F32 && o < (size_t)output + n_outputs; o++)
        fits = fits && is_0_or_above(exponent, (const float *)gemm->weights + o * n, n);
    return fits;
}

INLINE void multiply(const bitm_gemm *gemm, bitm_dtype kind, uint32_t token, uint32_t n_tokens,
                     uint32_t output, uint32_t n_outputs)
{
    for (uint32_t t = 0; t < n_tokens; t += BLOCK_TOKENS) {
        uint32_t n = smaller(BLOCK_TOKENS, n_tokens - t);
        for (uint32_t o = 0; o < n_outputs; o += TILE_OUTPUTS)
            multiply_block(gemm, kind, token + t, n, output + o,
                           smaller(TILE_OUTPUTS, n_outputs - o));
        for (size_t i = token + t; gemm->activation != BITM_ACTIVATION_NONE && i < token + t + n;
             i++)
            bitm_activate__neon(gemm->activation, gemm->outputs + i * gemm->output_stride + output,
                                n_outputs);
    }
}

#if BITM_HAVE_VFPV4
#define ELSE_SCALAR(op) bitm_##op##__vfpv4(gemm, token, n_tokens, output, n_outputs)
#else
#define ELSE_SCALAR(op) (void)0 /* vectors always fit */
#endif
#define FLOAT_KERNEL(op, kind)                                                                     \
    void bitm_##op##__neon(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,               \
                           uint32_t output, uint32_t n_outputs)                                    \
    {                                                                                              \
        if (fits_vectors(gemm, kind, token, n_tokens, output, n_outputs))                          \
            multiply(gemm, kind, token, n_tokens, output, n_outputs);                              \
        else                                                                                       \
            ELSE_SCALAR(op);                                                                       \
    }
FLOAT_KERNEL(gemm_w1f32, BITM_DTYPE_BIT1)
FLOAT_KERNEL(gemm_w2f32, BITM_DTYPE_TERN)
FLOAT_KERNEL(gemm_i8, BITM_DTYPE_I8)
FLOAT_KERNEL(gemm_f16, BITM_DTYPE_F16)
FLOAT_KERNEL(gemm_f32, BITM_DTYPE_F32)

/* ---- Attention ---- */

/* scores [n_queries][n_tokens], max_tokens apart, of queries next to each other. */
INLINE void find_scores(const bitm_attention *attention, const float *query,
                        const uint32_t n_queries, float *scores, size_t max_tokens)
{
    uint32_t n_keys = attention->n_tokens, n = attention->head_size, j = 0;
    size_t stride = attention->stride;
    const float *key = attention->key;
    lanes sums[TILE_TOKENS * TILE_OUTPUTS];
    for (; j + TILE_OUTPUTS <= n_keys; j += TILE_OUTPUTS, key += TILE_OUTPUTS * stride) {
        add_dots(query, stride, n_queries, key, stride, TILE_OUTPUTS, n, true, sums);
        for (uint32_t q = 0; q < n_queries; q++)
            vst1q_f32(scores + q * max_tokens + j,
                      vmulq_n_f32(fold_four(sums + q * TILE_OUTPUTS), attention->score_scale));
    }
    for (; j < n_keys; j++, key += stride) {
        add_dots(query, stride, n_queries, key, stride, 1, n, true, sums);
        for (uint32_t q = 0; q < n_queries; q++)
            scores[q * max_tokens + j] = attention->score_scale * fold(sums[q]);
    }
}

/* The first n of 4 components times the factor, one by one on ARMv7: they may fall below 2^-126. */
INLINE void store_scaled(float *y, uint32_t n, float32x4_t values, float factor)
{
#if defined(__aarch64__)
    store_floats(y, n, vmulq_n_f32(values, factor));
#else
    float room[4];
    vst1q_f32(room, values);
    for (uint32_t i = 0; i < n && i < 4; i++)
        y[i] = room[i] * factor;
#endif
}

/* Components [d, d + n) of the contexts, n_vectors of 4, times the factor of each query. */
INLINE void find_components(const bitm_attention *attention, const float *scores, size_t max_tokens,
                            const uint32_t n_queries, const float factor[], uint32_t d, uint32_t n,
                            const uint32_t n_vectors, float *context)
{
    const float *value = attention->value + d;
    float32x4_t sums[TILE_TOKENS][CONTEXT_VECTORS];
    for (uint32_t q = 0; q < n_queries; q++)
        for (uint32_t k = 0; k < n_vectors; k++)
            sums[q][k] = vdupq_n_f32(0.0F);
    for (uint32_t j = 0; j < attention->n_tokens; j++, value += attention->stride) {
        float32x4_t v[CONTEXT_VECTORS];
        for (uint32_t k = 0; k < n_vectors; k++)
            v[k] = load_floats(value + 4 * k, n - 4 * k);
        for (uint32_t q = 0; q < n_queries; q++) {
            float32x4_t score = vld1q_dup_f32(scores + q * max_tokens + j);
            for (uint32_t k = 0; k < n_vectors; k++)
                sums[q][k] = vfmaq_f32(sums[q][k], score, v[k]);
        }
    }
    for (uint32_t q = 0; q < n_queries; q++)
        for (uint32_t k = 0; k < n_vectors; k++)
            store_scaled(context + q * attention->context_stride + d + 4 * k, n - 4 * k, sums[q][k],
                         factor[q]);
}

enum { LEAST_TERM = -40 }; /* products of terms so large are multiples of 2^-126 */

/* The context of queries [i, i + n_queries). */
INLINE void attend(const bitm_attention *attention, uint32_t i, const uint32_t n_queries,
                   float *scores, size_t max_tokens)
{
    enum { COMPONENTS = 4 * CONTEXT_VECTORS };
    uint32_t n = attention->head_size, d = 0;
    float factor[TILE_TOKENS], *context = attention->context + i * attention->context_stride;
    bool fits = true;
    find_scores(attention, attention->query + i * attention->stride, n_queries, scores, max_tokens);
    for (uint32_t q = 0; q < n_queries; q++) {
        float *row = scores + q * max_tokens;
        factor[q] = 1.0F / bitm_exp_sum__neon(row, attention->n_tokens);
        fits = fits && is_0_or_above(LEAST_TERM, row, attention->n_tokens);
    }
    if (!fits) {
#if BITM_HAVE_VFPV4
        bitm_attention__vfpv4(attention, i, n_queries);
#endif
        return;
    }
    for (; d + COMPONENTS <= n; d += COMPONENTS)
        find_components(attention, scores, max_tokens, n_queries, factor, d, COMPONENTS,
                        CONTEXT_VECTORS, context);
    for (; d < n; d += 4)
        find_components(attention, scores, max_tokens, n_queries, factor, d, n - d, 1, context);
}

/* Whether queries, keys and values of the head let vectors be used. */
static bool head_fits_vectors(const bitm_attention *attention, uint32_t token, uint32_t n_tokens)
{
    size_t stride = attention->stride;
    uint32_t n = attention->head_size;
    bool fits = true;
    for (size_t i = token; i < (size_t)token + n_tokens; i++)
        fits = fits && is_0_or_above(LEAST_TERM, attention->query + i * stride, n);
    for (size_t j = 0; j < attention->n_tokens; j++)
        fits = fits && is_0_or_above(LEAST_TERM, attention->key + j * stride, n) &&
               is_0_or_above(LEAST_TERM, attention->value + j * stride, n);
    return fits;
}

/* A few queries at a time share the loads of keys and values, where their scores fit on the
 * stack. */
void bitm_attention__neon(const bitm_attention *attention, uint32_t token, uint32_t n_tokens)
{
    float scores[TILE_TOKENS * MAX_TOGETHER];
    uint32_t i = token, end = token + n_tokens;
    if (!head_fits_vectors(attention, token, n_tokens)) {
#if BITM_HAVE_VFPV4
        bitm_attention__vfpv4(attention, token, n_tokens);
#endif
        return;
    }
    for (; attention->n_tokens <= MAX_TOGETHER && i + TILE_TOKENS <= end; i += TILE_TOKENS)
        attend(attention, i, TILE_TOKENS, scores, MAX_TOGETHER);
    for (; i < end; i++)
        attend(attention, i, 1, attention->scores, 0);
}
