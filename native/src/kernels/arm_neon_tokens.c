/* NEON operations on one token: norms, activation functions, exponentials.
 *
 * The functions of canonical.h, operation by operation in 4 lanes; selections compute both sides.
 *
 * On ARMv7 vectors take numbers below 2^-126 for zeros and cannot divide.  Exponentials and the
 * GELU of inputs that are not tiny meet neither limit (see there); all else is left to the scalar
 * unit.
 *
 *   fmla, fmul, fadd  2 a cycle on Cortex-A72, a latency of 7: two vectors at once
 *   fdiv, fsqrt       exact, as the canonical arithmetic wants them; once a token in norms
 */
#include "arm_neon.h"

#include <string.h>

INLINE float32x4_t all(float x)
{
    return vdupq_n_f32(x);
}

/* a * b + c */
INLINE float32x4_t multiply_add(float32x4_t a, float32x4_t b, float32x4_t c)
{
    return vfmaq_f32(c, a, b);
}

/* where a < b: x, elsewhere y. */
INLINE float32x4_t where_less(float32x4_t a, float32x4_t b, float32x4_t x, float32x4_t y)
{
    return vbslq_f32(vcltq_f32(a, b), x, y);
}

/* ---- The functions ---- */

INLINE float32x4_t exponential(float32x4_t x)
{
    float32x4_t clamped = where_less(x, all(BITM_EXP_LOWEST), all(BITM_EXP_LOWEST), x);
    clamped = where_less(all(BITM_EXP_HIGHEST), clamped, all(BITM_EXP_HIGHEST), clamped);
    float32x4_t shifted = multiply_add(clamped, all(BITM_LOG2_E), all(BITM_ROUND_MAGIC));
    float32x4_t n = vsubq_f32(shifted, all(BITM_ROUND_MAGIC));
    float32x4_t r = multiply_add(n, all(-BITM_LN2_HIGH), clamped);
    r = multiply_add(n, all(-BITM_LN2_LOW), r);
    float32x4_t p = all(BITM_EXP_4);
    p = multiply_add(p, r, all(BITM_EXP_3));
    p = multiply_add(p, r, all(BITM_EXP_2));
    p = multiply_add(p, r, all(BITM_EXP_1));
    p = multiply_add(p, r, all(BITM_EXP_0));
    p = vaddq_f32(multiply_add(p, vmulq_f32(r, r), r), all(1.0F));
    uint32x4_t bits = vaddq_u32(vreinterpretq_u32_f32(shifted), vdupq_n_u32(127));
    float32x4_t power = vreinterpretq_f32_u32(vshlq_n_u32(bits, 23));
    return where_less(x, all(BITM_EXP_LOWEST), all(0.0F), vmulq_f32(p, power));
}

INLINE float32x4_t gelu(float32x4_t x)
{
    float32x4_t a = vabsq_f32(x), p = all(BITM_GELU_6);
    p = multiply_add(p, a, all(BITM_GELU_5));
    p = multiply_add(p, a, all(BITM_GELU_4));
    p = multiply_add(p, a, all(BITM_GELU_3));
    p = multiply_add(p, a, all(BITM_GELU_2));
    p = multiply_add(p, a, all(BITM_GELU_1));
    p = multiply_add(p, a, all(BITM_GELU_0));
    float32x4_t exponent = vmulq_f32(a, p);
    float32x4_t shifted = vaddq_f32(exponent, all(BITM_ROUND_MAGIC));
    float32x4_t r = vsubq_f32(exponent, vsubq_f32(shifted, all(BITM_ROUND_MAGIC)));
    float32x4_t q = all(BITM_HALF_EXP2_5);
    q = multiply_add(q, r, all(BITM_HALF_EXP2_4));
    q = multiply_add(q, r, all(BITM_HALF_EXP2_3));
    q = multiply_add(q, r, all(BITM_HALF_EXP2_2));
    q = multiply_add(q, r, all(BITM_HALF_EXP2_1));
    q = multiply_add(q, r, all(BITM_HALF_EXP2_0));
    uint32x4_t n = vshlq_n_u32(vreinterpretq_u32_f32(shifted), 23);
    uint32x4_t bits = vaddq_u32(vreinterpretq_u32_f32(q), n);
    bits = vandq_u32(bits, vcltq_f32(a, all(BITM_GELU_END)));
    return vfmsq_f32(where_less(all(0.0F), x, x, all(0.0F)), a, vreinterpretq_f32_u32(bits));
}

/* ---- Exponentials ----
 *
 * exp is normal or 0, and a difference below 2^-126 has the same exponential as 0: 1. */

INLINE float greatest_of(const float *x, uint32_t n)
{
    float32x4_t most = all(x[0]);
    uint32_t i = 0;
    for (; i + 4 <= n; i += 4) {
        float32x4_t values = vld1q_f32(x + i);
        most = where_less(most, values, values, most);
    }
    float room[4], greatest = x[0];
    vst1q_f32(room, most);
    for (int k = 0; k < 4; k++)
        greatest = room[k] > greatest ? room[k] : greatest;
    for (; i < n; i++)
        greatest = x[i] > greatest ? x[i] : greatest;
    return greatest;
}

float bitm_exp_sum__neon(float *x, uint32_t n)
{
    float32x4_t greatest = all(greatest_of(x, n));
    lanes sum = {{all(0.0F), all(0.0F), all(0.0F), all(0.0F)}};
    uint32_t i = 0;
    for (; i + BITM_LANES <= n; i += BITM_LANES) {
        for (int k = 0; k < 4; k++) {
            float32x4_t y = exponential(vsubq_f32(vld1q_f32(x + i + 4 * k), greatest));
            vst1q_f32(x + i + 4 * k, y);
            sum.four[k] = vaddq_f32(sum.four[k], y);
        }
    }
    for (int k = 0; i < n; i += 4, k++) {
        store_floats(x + i, n - i, exponential(vsubq_f32(load_floats(x + i, n - i), greatest)));
        sum.four[k] = vaddq_f32(sum.four[k], load_floats(x + i, n - i));
    }
    return fold(sum);
}

/* ---- Activation ---- */

typedef float32x4_t function(float32x4_t x);

INLINE void apply(function *f, float *x, uint32_t n)
{
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        float32x4_t a = f(vld1q_f32(x + i)), b = f(vld1q_f32(x + i + 4));
        vst1q_f32(x + i, a);
        vst1q_f32(x + i + 4, b);
    }
    for (; i < n; i += 4)
        store_floats(x + i, n - i, f(load_floats(x + i, n - i)));
}

#if defined(__aarch64__)
/* magnitude with the sign of x. */
INLINE float32x4_t with_sign(float32x4_t magnitude, float32x4_t x)
{
    return vbslq_f32(vdupq_n_u32(0x80000000U), x, magnitude);
}

INLINE float32x4_t hyperbolic_tangent(float32x4_t x)
{
    float32x4_t a = vabsq_f32(x), s = vmulq_f32(a, a);
    float32x4_t small = all(BITM_TANH_4);
    small = multiply_add(small, s, all(BITM_TANH_3));
    small = multiply_add(small, s, all(BITM_TANH_2));
    small = multiply_add(small, s, all(BITM_TANH_1));
    small = multiply_add(small, s, all(BITM_TANH_0));
    small = multiply_add(vmulq_f32(small, s), a, a);
    float32x4_t power = exponential(vmulq_f32(all(2.0F), a));
    float32x4_t quotient = vdivq_f32(all(2.0F), vaddq_f32(power, all(1.0F)));
    float32x4_t large = vsubq_f32(all(1.0F), quotient);
    return with_sign(where_less(a, all(0.625F), small, large), x);
}

INLINE float32x4_t gelu_tanh(float32x4_t x)
{
    float32x4_t cubic = multiply_add(vmulq_f32(all(0.044715F), x), vmulq_f32(x, x), x);
    float32x4_t tanh = hyperbolic_tangent(vmulq_f32(all(0.797884561F), cubic));
    return vmulq_f32(vmulq_f32(all(0.5F), x), vaddq_f32(all(1.0F), tanh));
}

INLINE float32x4_t relu(float32x4_t x)
{
    return where_less(all(0.0F), x, x, all(0.0F));
}

INLINE float32x4_t swish(float32x4_t x)
{
    return vdivq_f32(x, vaddq_f32(all(1.0F), exponential(vnegq_f32(x))));
}

INLINE float32x4_t mish(float32x4_t x)
{
    float32x4_t t = exponential(where_less(x, all(20.0F), x, all(20.0F)));
    float32x4_t n = vmulq_f32(t, vaddq_f32(t, all(2.0F)));
    return vmulq_f32(x, vdivq_f32(n, vaddq_f32(n, all(2.0F))));
}

void bitm_activate__neon(uint32_t activation, float *x, uint32_t n)
{
    switch (activation) {
    case BITM_ACTIVATION_GELU:
        apply(gelu, x, n);
        break;
    case BITM_ACTIVATION_GELU_TANH:
        apply(gelu_tanh, x, n);
        break;
    case BITM_ACTIVATION_RELU:
        apply(relu, x, n);
        break;
    case BITM_ACTIVATION_SWISH:
        apply(swish, x, n);
        break;
    case BITM_ACTIVATION_MISH:
        apply(mish, x, n);
        break;
    default:
        break;
    }
}

/* ---- Norms ----
 *
 * Lanes past the end get +0, which changes no sum that starts from +0. */

INLINE lanes load(const float *x, uint32_t n)
{
    float room[BITM_LANES];
    if (n < BITM_LANES) {
        memset(room, 0, sizeof room);
        memcpy(room, x, n * sizeof *x);
        x = room;
    }
    return (lanes){{vld1q_f32(x), vld1q_f32(x + 4), vld1q_f32(x + 8), vld1q_f32(x + 12)}};
}

/* Stores the first n; returns the values with 0 in place of the others. */
INLINE lanes store(float *x, uint32_t n, lanes values)
{
    float room[BITM_LANES], *y = n < BITM_LANES ? room : x;
    for (int k = 0; k < 4; k++)
        vst1q_f32(y + 4 * k, values.four[k]);
    if (n >= BITM_LANES) return values;
    memcpy(x, room, n * sizeof *x);
    return load(x, n);
}

INLINE lanes zeros(void)
{
    return (lanes){{all(0.0F), all(0.0F), all(0.0F), all(0.0F)}};
}

INLINE lanes add(lanes a, lanes b)
{
    for (int k = 0; k < 4; k++)
        a.four[k] = vaddq_f32(a.four[k], b.four[k]);
    return a;
}

INLINE lanes add_products(lanes a, lanes b, lanes sum)
{
    for (int k = 0; k < 4; k++)
        sum.four[k] = multiply_add(a.four[k], b.four[k], sum.four[k]);
    return sum;
}

INLINE lanes scale(lanes x, float factor)
{
    for (int k = 0; k < 4; k++)
        x.four[k] = vmulq_n_f32(x.four[k], factor);
    return x;
}

void bitm_add_norm__neon(const float *x, const float *residual, const float *gain,
                         const float *bias, float eps, uint32_t n, float *y)
{
    lanes sum = zeros();
    for (uint32_t i = 0; i < n; i += BITM_LANES) {
        lanes z = load(x + i, n - i);
        if (residual != NULL) z = add(z, load(residual + i, n - i));
        sum = add(sum, store(y + i, n - i, z));
    }
    float mean = fold(sum) / (float)n;

    sum = zeros();
    for (uint32_t i = 0; i < n; i += BITM_LANES) {
        lanes z = load(y + i, n - i);
        for (int k = 0; k < 4; k++)
            z.four[k] = vsubq_f32(z.four[k], all(mean));
        z = store(y + i, n - i, z);
        sum = add_products(z, z, sum);
    }
    float variance = fold(sum) / (float)n;
    float factor = 1.0F / sqrtf(variance + eps);
    for (uint32_t i = 0; i < n; i += BITM_LANES) {
        lanes z = scale(load(y + i, n - i), factor);
        (void)store(y + i, n - i, add_products(z, load(gain + i, n - i), load(bias + i, n - i)));
    }
}

void bitm_rms_norm__neon(const float *x, const float *gain, float eps, uint32_t n, float *y)
{
    lanes sum = zeros();
    for (uint32_t i = 0; i < n; i += BITM_LANES) {
        lanes z = load(x + i, n - i);
        sum = add_products(z, z, sum);
    }
    float factor = 1.0F / sqrtf(fold(sum) / (float)n + eps);
    for (uint32_t i = 0; i < n; i += BITM_LANES) {
        lanes z = scale(load(x + i, n - i), factor), g = load(gain + i, n - i);
        for (int k = 0; k < 4; k++)
            z.four[k] = vmulq_f32(z.four[k], g.four[k]);
        (void)store(y + i, n - i, z);
    }
}

#else

/* Whether values are 0 or at least 2^-100, so that no step of GELU falls below 2^-126. */
static bool is_far_from_zero(const float *x, uint32_t n)
{
    const uint32_t least = (127 - 100) << 23;
    uint32x4_t tiny = vdupq_n_u32(0);
    for (uint32_t i = 0; i < n; i += 4) {
        /* Twice the bits, so without the sign, less 1: of zeros the greatest there is. */
        uint32x4_t bits = vreinterpretq_u32_f32(load_floats(x + i, n - i));
        uint32x4_t size = vsubq_u32(vaddq_u32(bits, bits), vdupq_n_u32(1));
        tiny = vorrq_u32(tiny, vcltq_u32(size, vdupq_n_u32(2 * least - 1)));
    }
    return sum_of_i32(vreinterpretq_s32_u32(tiny)) == 0;
}

void bitm_activate__neon(uint32_t activation, float *x, uint32_t n)
{
    if (activation == BITM_ACTIVATION_GELU && is_far_from_zero(x, n))
        apply(gelu, x, n);
    else
        bitm_activate__vfpv4(activation, x, n);
}

#endif
