/* The canonical float arithmetic (DESIGN section 5, CONTRIBUTING.md "One answer everywhere").
 *
 * Every float operation of the runtime is one of: +, -, *, / and square root, correctly rounded;
 * the fused multiply-add; comparison and selection.  Their order is written here and in kernels.h,
 * so scalar code, SIMD code and every compiler give the same bits:
 *
 * - A sum over n elements runs in 16 lanes: lane l adds elements l, l + 16, l + 32 ... in this
 * order, starting from +0; then lanes fold in halves: l += l + 8, l += l + 4, l += l + 2, l += l
 * + 1.
 * - A sum of products uses one fused multiply-add for each element of a lane.
 * - Functions are the ones of this file; no libm but fmaf and sqrtf, which are exact by definition.
 * - All files are compiled with -ffp-contract=off: only a written fmaf is fused.
 *
 * Functions return normal numbers, zeros or infinities where their true value is at least 2^-126,
 * and exp flushes smaller values to 0, so machines without denormals agree.
 */
#ifndef BITM_CANONICAL_H
#define BITM_CANONICAL_H

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { BITM_LANES = 16 };

/* 1.5 * 2^23: adding it to a float below 2^22 rounds to an integer, ties to even, held in the low
 * bits. */
#define BITM_ROUND_MAGIC 12582912.0F

#define BITM_LOG2_E 1.44269504F
#define BITM_LN2_HIGH 0.693359375F /* 10 bits, so that n * BITM_LN2_HIGH is exact */
#define BITM_LN2_LOW -2.12194440e-4F
#define BITM_EXP_LOWEST -87.0F /* below, exp is 0 */
#define BITM_EXP_HIGHEST 88.0F /* above, exp is exp(88) */
#define BITM_SQRT_HALF 0.707106781F

/* Polynomials fitted by native/tools/fit_functions.py. */
/* exp(r) = 1 + r + r^2 P(r), |r| <= ln(2) / 2 */
#define BITM_EXP_0 0.5F
#define BITM_EXP_1 0.166665182F
#define BITM_EXP_2 0.041666206F
#define BITM_EXP_3 0.0083688898F
#define BITM_EXP_4 0.00139504916F
/* erf(x) = x + x P(x^2), |x| < 1 */
#define BITM_ERF_SMALL_0 0.128379166F
#define BITM_ERF_SMALL_1 -0.37612626F
#define BITM_ERF_SMALL_2 0.112836003F
#define BITM_ERF_SMALL_3 -0.0268544443F
#define BITM_ERF_SMALL_4 0.00518953567F
#define BITM_ERF_SMALL_5 -0.000802084222F
#define BITM_ERF_SMALL_6 7.88912294e-05F
/* erf(x) = 1 - exp(-x P(x)), 1 <= x < 4 */
#define BITM_ERF_LARGE_0 1.12859952F
#define BITM_ERF_LARGE_1 0.63541013F
#define BITM_ERF_LARGE_2 0.105669051F
#define BITM_ERF_LARGE_3 -0.0230916291F
#define BITM_ERF_LARGE_4 0.00318200816F
#define BITM_ERF_LARGE_5 -0.000138747026F
#define BITM_ERF_LARGE_6 -2.84358812e-05F
#define BITM_ERF_LARGE_7 3.55704765e-06F
/* tanh(x) = x + x^3 P(x^2), |x| < 0.625 */
#define BITM_TANH_0 -0.333332837F
#define BITM_TANH_1 0.133314908F
#define BITM_TANH_2 -0.0537434965F
#define BITM_TANH_3 0.0206505861F
#define BITM_TANH_4 -0.0057170447F

/* The fold of the 16 lanes of a sum. */
static inline float bitm_fold(const float lanes[BITM_LANES])
{
    float half[BITM_LANES / 2];
    for (int l = 0; l < 8; l++)
        half[l] = lanes[l] + lanes[l + 8];
    for (int l = 0; l < 4; l++)
        half[l] = half[l] + half[l + 4];
    return (half[0] + half[2]) + (half[1] + half[3]);
}

/* To the nearest integer, ties to even; abs(x) < 2^22. */
static inline float bitm_round(float x)
{
    return (x + BITM_ROUND_MAGIC) - BITM_ROUND_MAGIC;
}

/* e^x with an error below 1.1 units in the last place; 0 below -87, e^88 above 88. */
static inline float bitm_exp(float x)
{
    float clamped = x < BITM_EXP_LOWEST ? BITM_EXP_LOWEST : x;
    clamped = clamped > BITM_EXP_HIGHEST ? BITM_EXP_HIGHEST : clamped;
    float shifted = fmaf(clamped, BITM_LOG2_E, BITM_ROUND_MAGIC);
    float n = shifted - BITM_ROUND_MAGIC;
    float r = fmaf(n, -BITM_LN2_HIGH, clamped);
    r = fmaf(n, -BITM_LN2_LOW, r);
    float p = BITM_EXP_4;
    p = fmaf(p, r, BITM_EXP_3);
    p = fmaf(p, r, BITM_EXP_2);
    p = fmaf(p, r, BITM_EXP_1);
    p = fmaf(p, r, BITM_EXP_0);
    p = fmaf(p, r * r, r) + 1.0F;
    /* 2^n: the low bits of `shifted` hold n, moved into the exponent. */
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return x < BITM_EXP_LOWEST ? 0.0F : p * power;
}

/* The error function, with an error below 1.3 units in the last place. */
static inline float bitm_erf(float x)
{
    float a = fabsf(x);
    float s = a * a;
    float small = BITM_ERF_SMALL_6;
    small = fmaf(small, s, BITM_ERF_SMALL_5);
    small = fmaf(small, s, BITM_ERF_SMALL_4);
    small = fmaf(small, s, BITM_ERF_SMALL_3);
    small = fmaf(small, s, BITM_ERF_SMALL_2);
    small = fmaf(small, s, BITM_ERF_SMALL_1);
    small = fmaf(small, s, BITM_ERF_SMALL_0);
    small = fmaf(small, a, a);

    float b = a < 4.0F ? a : 4.0F;
    float large = BITM_ERF_LARGE_7;
    large = fmaf(large, b, BITM_ERF_LARGE_6);
    large = fmaf(large, b, BITM_ERF_LARGE_5);
    large = fmaf(large, b, BITM_ERF_LARGE_4);
    large = fmaf(large, b, BITM_ERF_LARGE_3);
    large = fmaf(large, b, BITM_ERF_LARGE_2);
    large = fmaf(large, b, BITM_ERF_LARGE_1);
    large = fmaf(large, b, BITM_ERF_LARGE_0);
    large = 1.0F - bitm_exp(-(large * b));

    return copysignf(a < 1.0F ? small : large, x);
}

/* The hyperbolic tangent, with an error below 1.5 units in the last place. */
static inline float bitm_tanh(float x)
{
    float a = fabsf(x);
    float s = a * a;
    float small = BITM_TANH_4;
    small = fmaf(small, s, BITM_TANH_3);
    small = fmaf(small, s, BITM_TANH_2);
    small = fmaf(small, s, BITM_TANH_1);
    small = fmaf(small, s, BITM_TANH_0);
    small = fmaf(small * s, a, a);
    float large = 1.0F - 2.0F / (bitm_exp(2.0F * a) + 1.0F);
    return copysignf(a < 0.625F ? small : large, x);
}

/* Activation functions, SPEC.md 3.2. */
static inline float bitm_gelu(float x)
{
    return (0.5F * x) * (1.0F + bitm_erf(x * BITM_SQRT_HALF));
}

static inline float bitm_gelu_tanh(float x)
{
    float cubic = fmaf(0.044715F * x, x * x, x);
    return (0.5F * x) * (1.0F + bitm_tanh(0.797884561F * cubic));
}

static inline float bitm_swish(float x)
{
    return x / (1.0F + bitm_exp(-x));
}

/* x tanh(log(1 + e^x)) with t = e^x: tanh(log u) = (u^2 - 1) / (u^2 + 1), u = 1 + t. */
static inline float bitm_mish(float x)
{
    float t = bitm_exp(x < 20.0F ? x : 20.0F);
    float n = t * (t + 2.0F);
    return x * (n / (n + 2.0F));
}

/* binary16 to binary32, exact; denormals included. */
static inline float bitm_f16_to_f32(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000U) << 16;
    uint32_t exponent = (half >> 10) & 0x1FU;
    uint32_t fraction = half & 0x3FFU;
    uint32_t bits = sign | ((exponent + 112U) << 23) | (fraction << 13);
    if (exponent == 31) bits = sign | 0x7F800000U | (fraction << 13);
    if (exponent == 0) {
        float magnitude = (float)fraction * 0x1p-24F;
        memcpy(&bits, &magnitude, sizeof bits);
        bits |= sign;
    }
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#endif
