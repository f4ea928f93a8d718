/* NEON operations on one token: norms, activation functions, exponentials.
 *
 * The functions of canonical.h, operation by operation in 4 lanes; selections compute both sides.
 *
 * On ARMv7 vectors take numbers below 2^-126 for zeros and cannot divide.  Exponentials and the
 * GELU of inputs that are not tiny meet neither limit (see there); all else is left to the scalar
 * unit.
 *
 *   fmla, fmul, fadd  2 a cycle on Cortex-A72, a latency of 7: four vectors at once
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

/* ---- The functions ----
 *
 * A function is one long chain of operations, each of which takes 3 to 7 cycles, and a core's
 * queues see 8 to 16 operations ahead: so several vectors go through it step by step, together. */

enum {
#if defined(__aarch64__)
    TOGETHER = 4,
#else
    TOGETHER = 2, /* half the registers */
#endif
};

/* Vectors at the same step; x[k] = f(x[k]) of each. */
typedef struct group {
    float32x4_t of[TOGETHER];
} group;

INLINE group all_of(float x)
{
    group g;
    for (int k = 0; k < TOGETHER; k++)
        g.of[k] = all(x);
    return g;
}

/* a * b + c, a step of a polynomial. */
INLINE group step(group a, group b, float c)
{
    for (int k = 0; k < TOGETHER; k++)
        a.of[k] = multiply_add(a.of[k], b.of[k], all(c));
    return a;
}

/* bitm_exp of values up to BITM_EXP_HIGHEST.  What is below BITM_EXP_LOWEST becomes 0 in the end,
 * whatever comes out before. */
INLINE group exponential(group x)
{
    group shifted, r, p = all_of(BITM_EXP_4);
    for (int k = 0; k < TOGETHER; k++)
        shifted.of[k] = multiply_add(x.of[k], all(BITM_LOG2_E), all(BITM_ROUND_MAGIC));
    for (int k = 0; k < TOGETHER; k++) {
        float32x4_t n = vsubq_f32(shifted.of[k], all(BITM_ROUND_MAGIC));
        r.of[k] = multiply_add(n, all(-BITM_LN2_HIGH), x.of[k]);
        r.of[k] = multiply_add(n, all(-BITM_LN2_LOW), r.of[k]);
    }
    p = step(p, r, BITM_EXP_3);
    p = step(p, r, BITM_EXP_2);
    p = step(p, r, BITM_EXP_1);
    p = step(p, r, BITM_EXP_0);
    for (int k = 0; k < TOGETHER; k++) {
        float32x4_t sum = multiply_add(p.of[k], vmulq_f32(r.of[k], r.of[k]), r.of[k]);
        uint32x4_t n = vaddq_u32(vreinterpretq_u32_f32(shifted.of[k]), vdupq_n_u32(127));
        float32x4_t power = vreinterpretq_f32_u32(vshlq_n_u32(n, 23));
        sum = vmulq_f32(vaddq_f32(sum, all(1.0F)), power);
        x.of[k] = where_less(x.of[k], all(BITM_EXP_LOWEST), all(0.0F), sum);
    }
    return x;
}

INLINE group gelu(group x)
{
    group a, exponent, shifted, r, p = all_of(BITM_GELU_6), q = all_of(BITM_HALF_EXP2_5);
    for (int k = 0; k < TOGETHER; k++)
        a.of[k] = vabsq_f32(x.of[k]);
    p = step(p, a, BITM_GELU_5);
    p = step(p, a, BITM_GELU_4);
    p = step(p, a, BITM_GELU_3);
    p = step(p, a, BITM_GELU_2);
    p = step(p, a, BITM_GELU_1);
    p = step(p, a, BITM_GELU_0);
    for (int k = 0; k < TOGETHER; k++) {
        exponent.of[k] = vmulq_f32(a.of[k], p.of[k]);
        shifted.of[k] = vaddq_f32(exponent.of[k], all(BITM_ROUND_MAGIC));
        r.of[k] = vsubq_f32(exponent.of[k], vsubq_f32(shifted.of[k], all(BITM_ROUND_MAGIC)));
    }
    q = step(q, r, BITM_HALF_EXP2_4);
    q = step(q, r, BITM_HALF_EXP2_3);
    q = step(q, r, BITM_HALF_EXP2_2);
    q = step(q, r, BITM_HALF_EXP2_1);
    q = step(q, r, BITM_HALF_EXP2_0);
    for (int k = 0; k < TOGETHER; k++) {
        uint32x4_t n = vshlq_n_u32(vreinterpretq_u32_f32(shifted.of[k]), 23);
        uint32x4_t bits = vaddq_u32(vreinterpretq_u32_f32(q.of[k]), n);
        bits = vandq_u32(bits, vcltq_f32(a.of[k], all(BITM_GELU_END)));
        float32x4_t above = where_less(all(0.0F), x.of[k], x.of[k], all(0.0F));
        x.of[k] = vfmsq_f32(above, a.of[k], vreinterpretq_f32_u32(bits));
    }
    return x;
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

/* Stores the exponentials of the first n of a group, n at least 1, and adds them to their lanes;
 * past them they are 0. */
INLINE void add_exponentials(float *x, uint32_t n, float32x4_t greatest, float32x4_t sums[TOGETHER])
{
    float room[4 * TOGETHER];
    bool is_whole = n >= 4 * TOGETHER;
    if (!is_whole) {
        for (uint32_t i = 0; i < 4 * TOGETHER; i++)
            room[i] = i < n ? x[i] : -INFINITY;
    }
    group g;
    for (int k = 0; k < TOGETHER; k++)
        g.of[k] = vsubq_f32(vld1q_f32((is_whole ? x : room) + 4 * k), greatest);
    g = exponential(g);
    for (int k = 0; k < TOGETHER; k++) {
        vst1q_f32((is_whole ? x : room) + 4 * k, g.of[k]);
        sums[k] = vaddq_f32(sums[k], g.of[k]);
    }
    for (uint32_t i = 0; !is_whole && i < n; i++)
        x[i] = room[i];
}

float bitm_exp_sum__neon(float *x, uint32_t n)
{
    float32x4_t greatest = all(greatest_of(x, n));
    lanes sum = {{all(0.0F), all(0.0F), all(0.0F), all(0.0F)}};
    uint32_t i = 0;
    for (; i + BITM_LANES <= n; i += BITM_LANES)
        for (uint32_t k = 0; k < 4; k += TOGETHER)
            add_exponentials(x + i + 4 * k, 4 * TOGETHER, greatest, sum.four + k);
    for (uint32_t k = 0; k < 4 && i < n; k += TOGETHER, i += 4 * TOGETHER)
        add_exponentials(x + i, n - i, greatest, sum.four + k);
    return fold(sum);
}

/* ---- Activation ---- */

typedef group function(group x);

INLINE void apply(function *f, float *x, uint32_t n)
{
    uint32_t i = 0;
    group g;
    for (; i + 4 * TOGETHER <= n; i += 4 * TOGETHER) {
        for (int k = 0; k < TOGETHER; k++)
            g.of[k] = vld1q_f32(x + i + 4 * k);
        g = f(g);
        for (int k = 0; k < TOGETHER; k++)
            vst1q_f32(x + i + 4 * k, g.of[k]);
    }
    if (i == n) return;
    float room[4 * TOGETHER] = {0};
    memcpy(room, x + i, (n - i) * sizeof *x);
    for (int k = 0; k < TOGETHER; k++)
        g.of[k] = vld1q_f32(room + 4 * k);
    g = f(g);
    for (int k = 0; k < TOGETHER; k++)
        vst1q_f32(room + 4 * k, g.of[k]);
    memcpy(x + i, room, (n - i) * sizeof *x);
}

#if defined(__aarch64__)
/* Any value's: see BITM_EXP_HIGHEST. */
INLINE group exponential_of_any(group x)
{
    for (int k = 0; k < TOGETHER; k++)
        x.of[k] = where_less(all(BITM_EXP_HIGHEST), x.of[k], all(BITM_EXP_HIGHEST), x.of[k]);
    return exponential(x);
}

INLINE group hyperbolic_tangent(group x)
{
    group a, s, twice, small = all_of(BITM_TANH_4);
    for (int k = 0; k < TOGETHER; k++) {
        a.of[k] = vabsq_f32(x.of[k]);
        s.of[k] = vmulq_f32(a.of[k], a.of[k]);
        twice.of[k] = vmulq_f32(all(2.0F), a.of[k]);
    }
    small = step(small, s, BITM_TANH_3);
    small = step(small, s, BITM_TANH_2);
    small = step(small, s, BITM_TANH_1);
    small = step(small, s, BITM_TANH_0);
    group power = exponential_of_any(twice);
    for (int k = 0; k < TOGETHER; k++) {
        float32x4_t near_0 = multiply_add(vmulq_f32(small.of[k], s.of[k]), a.of[k], a.of[k]);
        float32x4_t quotient = vdivq_f32(all(2.0F), vaddq_f32(power.of[k], all(1.0F)));
        float32x4_t size = where_less(a.of[k], all(0.625F), near_0, vsubq_f32(all(1.0F), quotient));
        x.of[k] = vbslq_f32(vdupq_n_u32(0x80000000U), x.of[k], size); /* with the sign of x */
    }
    return x;
}

INLINE group gelu_tanh(group x)
{
    group y;
    for (int k = 0; k < TOGETHER; k++) {
        float32x4_t z = x.of[k];
        float32x4_t cubic = multiply_add(vmulq_f32(all(0.044715F), z), vmulq_f32(z, z), z);
        y.of[k] = vmulq_f32(all(0.797884561F), cubic);
    }
    y = hyperbolic_tangent(y);
    for (int k = 0; k < TOGETHER; k++)
        x.of[k] = vmulq_f32(vmulq_f32(all(0.5F), x.of[k]), vaddq_f32(all(1.0F), y.of[k]));
    return x;
}

INLINE group relu(group x)
{
    for (int k = 0; k < TOGETHER; k++)
        x.of[k] = where_less(all(0.0F), x.of[k], x.of[k], all(0.0F));
    return x;
}

INLINE group swish(group x)
{
    group y;
    for (int k = 0; k < TOGETHER; k++)
        y.of[k] = vnegq_f32(x.of[k]);
    y = exponential_of_any(y);
    for (int k = 0; k < TOGETHER; k++)
        x.of[k] = vdivq_f32(x.of[k], vaddq_f32(all(1.0F), y.of[k]));
    return x;
}

INLINE group mish(group x)
{
    group t;
    for (int k = 0; k < TOGETHER; k++)
        t.of[k] = where_less(x.of[k], all(20.0F), x.of[k], all(20.0F));
    t = exponential(t);
    for (int k = 0; k < TOGETHER; k++) {
        float32x4_t n = vmulq_f32(t.of[k], vaddq_f32(t.of[k], all(2.0F)));
        x.of[k] = vmulq_f32(x.of[k], vdivq_f32(n, vaddq_f32(n, all(2.0F))));
    }
    return x;
}

void bitm_activate__neon(uint32_t activation, float *x, uint32_t n)
{
    BITM_ACTIVATE(activation, x, n);
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
