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

#if !defined(__CUDACC_RTC__) /* which has these built in */
#include <math.h>
#include <stdint.h>
#include <string.h>
#endif

/* The CUDA sources define it with their own words. */
#ifndef BITM_INLINE
#define BITM_INLINE static inline
#endif

enum { BITM_LANES = 16 };

/* 1.5 * 2^23: adding it to a float below 2^22 rounds to an integer, ties to even, held in the low
 * bits. */
#define BITM_ROUND_MAGIC 12582912.0F

#define BITM_LOG2_E 1.44269504F
#define BITM_LN2_HIGH 0.693359375F /* 10 bits, so that n * BITM_LN2_HIGH is exact */
#define BITM_LN2_LOW -2.12194440e-4F
#define BITM_EXP_LOWEST -87.0F         /* below, exp is 0 */
#define BITM_EXP_HIGHEST 88.0F         /* above, exp is exp(88) */
#define BITM_PROBABILITY_LOWEST -10.0F /* below, a probability's code is 0 */
#define BITM_GELU_END 5.5425F          /* from here on, erf(-x / sqrt(2)) rounds to -1 */

/* Polynomials fitted by native/tools/fit_functions.py. */
/* exp(r) = 1 + r + r^2 P(r), |r| <= ln(2) / 2 */
#define BITM_EXP_0 0.5F
#define BITM_EXP_1 0.166665182F
#define BITM_EXP_2 0.041666206F
#define BITM_EXP_3 0.0083688898F
#define BITM_EXP_4 0.00139504916F
/* log2(erfc(x / sqrt(2))) = x P(x), 0 <= x < BITM_GELU_END */
#define BITM_GELU_0 -1.15110886F
#define BITM_GELU_1 -0.459164321F
#define BITM_GELU_2 -0.0526666082F
#define BITM_GELU_3 0.00736312475F
#define BITM_GELU_4 -0.000406980107F
#define BITM_GELU_5 -5.76970415e-05F
#define BITM_GELU_6 8.85840564e-06F
/* 2^r / 2 = P(r), |r| <= 1 / 2 */
#define BITM_HALF_EXP2_0 0.5F
#define BITM_HALF_EXP2_1 0.346573502F
#define BITM_HALF_EXP2_2 0.120111212F
#define BITM_HALF_EXP2_3 0.0277536679F
#define BITM_HALF_EXP2_4 0.0048357565F
#define BITM_HALF_EXP2_5 0.000663236366F
/* 255 * 2^r = P(r), |r| <= 1 / 2 */
#define BITM_PROBABILITY_0 255.0F
#define BITM_PROBABILITY_1 176.78714F
#define BITM_PROBABILITY_2 61.7637939F
#define BITM_PROBABILITY_3 14.027277F
/* tanh(x) = x + x^3 P(x^2), |x| < 0.625 */
#define BITM_TANH_0 -0.333332837F
#define BITM_TANH_1 0.133314908F
#define BITM_TANH_2 -0.0537434965F
#define BITM_TANH_3 0.0206505861F
#define BITM_TANH_4 -0.0057170447F

/* The fold of the 16 lanes of a sum. */
BITM_INLINE float bitm_fold(const float lanes[BITM_LANES])
{
    float half[BITM_LANES / 2];
    for (int l = 0; l < 8; l++)
        half[l] = lanes[l] + lanes[l + 8];
    for (int l = 0; l < 4; l++)
        half[l] = half[l] + half[l + 4];
    return (half[0] + half[2]) + (half[1] + half[3]);
}

/* To the nearest integer, ties to even; abs(x) < 2^22. */
BITM_INLINE float bitm_round(float x)
{
    return (x + BITM_ROUND_MAGIC) - BITM_ROUND_MAGIC;
}

/* The code of a value z, SPEC.md 3.4; lo where z is not a number. */
BITM_INLINE float bitm_code(float z, float base, float divisor, float factor, float lo, float hi)
{
    float code = (z - base) / divisor * factor;
    code = code > lo ? code : lo;
    return bitm_round(code < hi ? code : hi);
}

/* e^x with an error below 1.1 units in the last place; 0 below -87, e^88 above 88. */
BITM_INLINE float bitm_exp(float x)
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

/* 255 * 2^x, x <= 0, with an error below 0.03; less than 1/2 where x is not a number. */
BITM_INLINE float bitm_probability(float x)
{
    float clamped = x > BITM_PROBABILITY_LOWEST ? x : BITM_PROBABILITY_LOWEST;
    float shifted = clamped + BITM_ROUND_MAGIC;
    float r = clamped - (shifted - BITM_ROUND_MAGIC);
    float p = BITM_PROBABILITY_3;
    p = fmaf(p, r, BITM_PROBABILITY_2);
    p = fmaf(p, r, BITM_PROBABILITY_1);
    p = fmaf(p, r, BITM_PROBABILITY_0);
    /* Times 2^n: the low bits of `shifted` hold n, added to the exponent. */
    uint32_t bits, n;
    memcpy(&bits, &p, sizeof bits);
    memcpy(&n, &shifted, sizeof n);
    bits += n << 23;
    float probability;
    memcpy(&probability, &bits, sizeof probability);
    return probability;
}

/* The code of a probability that is 2^x of the greatest. */
BITM_INLINE int32_t bitm_probability_code(float x)
{
    return (int32_t)bitm_round(bitm_probability(x));
}

/* The hyperbolic tangent, with an error below 1.5 units in the last place. */
BITM_INLINE float bitm_tanh(float x)
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

/* ---- Activation functions, SPEC.md 3.2 ---- */

/* x Phi(x) as max(x, 0) - a Phi(-a) with a = abs(x), where Phi(-a) = erfc(a / sqrt(2)) / 2 is a
 * power of 2 with the exponent a P(a): nothing cancels.  The error is below 2^-23 abs(x).  Phi(-a)
 * is 0 where 1 + erf(-a / sqrt(2)) is 0 in float32, as in PyTorch: a sign of the result is then 0.
 */
BITM_INLINE float bitm_gelu(float x)
{
    float a = fabsf(x);
    float p = BITM_GELU_6;
    p = fmaf(p, a, BITM_GELU_5);
    p = fmaf(p, a, BITM_GELU_4);
    p = fmaf(p, a, BITM_GELU_3);
    p = fmaf(p, a, BITM_GELU_2);
    p = fmaf(p, a, BITM_GELU_1);
    p = fmaf(p, a, BITM_GELU_0);
    float exponent = a * p;
    float shifted = exponent + BITM_ROUND_MAGIC;
    float r = exponent - (shifted - BITM_ROUND_MAGIC);
    float q = BITM_HALF_EXP2_5;
    q = fmaf(q, r, BITM_HALF_EXP2_4);
    q = fmaf(q, r, BITM_HALF_EXP2_3);
    q = fmaf(q, r, BITM_HALF_EXP2_2);
    q = fmaf(q, r, BITM_HALF_EXP2_1);
    q = fmaf(q, r, BITM_HALF_EXP2_0);
    /* Times 2^n: the low bits of `shifted` hold n, added to the exponent. */
    uint32_t bits, n;
    memcpy(&bits, &q, sizeof bits);
    memcpy(&n, &shifted, sizeof n);
    bits = a < BITM_GELU_END ? bits + (n << 23) : 0;
    float tail;
    memcpy(&tail, &bits, sizeof tail);
    return fmaf(-a, tail, x > 0.0F ? x : 0.0F);
}

BITM_INLINE float bitm_gelu_tanh(float x)
{
    float cubic = fmaf(0.044715F * x, x * x, x);
    return (0.5F * x) * (1.0F + bitm_tanh(0.797884561F * cubic));
}

BITM_INLINE float bitm_swish(float x)
{
    return x / (1.0F + bitm_exp(-x));
}

/* x tanh(log(1 + e^x)) with t = e^x: tanh(log u) = (u^2 - 1) / (u^2 + 1), u = 1 + t. */
BITM_INLINE float bitm_mish(float x)
{
    float t = bitm_exp(x < 20.0F ? x : 20.0F);
    float n = t * (t + 2.0F);
    return x * (n / (n + 2.0F));
}

/* binary16 to binary32, exact; denormals included.  Written in masks, so that compilers make
 * vectors of it. */
BITM_INLINE float bitm_f16_to_f32(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000U) << 16;
    uint32_t exponent = (half >> 10) & 0x1FU;
    uint32_t fraction = half & 0x3FFU;
    uint32_t is_denormal = 0U - (uint32_t)(exponent == 0);
    uint32_t is_special = 0U - (uint32_t)(exponent == 31); /* an infinity, not a number */
    uint32_t bits = ((exponent + 112U) << 23) | (fraction << 13) | (is_special & 0x7F800000U);
    float magnitude = (float)(int32_t)fraction * 5.9604644775390625e-8F;
    uint32_t denormal;
    memcpy(&denormal, &magnitude, sizeof denormal);
    bits = sign | (is_denormal & denormal) | (~is_denormal & bits);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#endif
