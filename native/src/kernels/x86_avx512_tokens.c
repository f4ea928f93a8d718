/* AVX-512 operations on one token: norms, activation functions, exponentials.
 *
 * The functions of canonical.h, operation by operation in 16 lanes; selections are masks.
 *
 *   vfmadd, vmulps, vaddps  2 a cycle on Intel servers, 1 on AMD before Zen 5
 *   vdivps, vsqrtps         one in 16 cycles and more: exact, as the canonical arithmetic wants
 */
#include "x86_avx512.h"

typedef __m512 function(__m512 x);

/* magnitude, which is not negative, with the sign of x. */
INLINE __m512 with_sign(__m512 magnitude, __m512 x)
{
    enum { FIRST_AND_SECOND_OR_THIRD = 0xEA };
    const __m512i sign = _mm512_set1_epi32(INT32_MIN);
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
        _mm512_castps_si512(x), sign, _mm512_castps_si512(magnitude), FIRST_AND_SECOND_OR_THIRD));
}

/* ---- The functions ---- */

INLINE __m512 exponential(__m512 x)
{
    return exponential_below(_mm512_min_ps(all(BITM_EXP_HIGHEST), x));
}

INLINE __m512 hyperbolic_tangent(__m512 x)
{
    __m512 a = _mm512_abs_ps(x), s = _mm512_mul_ps(a, a);
    __m512 small = all(BITM_TANH_4);
    small = _mm512_fmadd_ps(small, s, all(BITM_TANH_3));
    small = _mm512_fmadd_ps(small, s, all(BITM_TANH_2));
    small = _mm512_fmadd_ps(small, s, all(BITM_TANH_1));
    small = _mm512_fmadd_ps(small, s, all(BITM_TANH_0));
    small = _mm512_fmadd_ps(_mm512_mul_ps(small, s), a, a);
    __m512 power = exponential(_mm512_mul_ps(all(2.0F), a));
    __m512 quotient = _mm512_div_ps(all(2.0F), _mm512_add_ps(power, all(1.0F)));
    __mmask16 is_large = _mm512_cmp_ps_mask(a, all(0.625F), _CMP_NLT_UQ);
    return with_sign(_mm512_mask_sub_ps(small, is_large, all(1.0F), quotient), x);
}

INLINE __m512 gelu_tanh(__m512 x)
{
    __m512 cubic = _mm512_fmadd_ps(_mm512_mul_ps(all(0.044715F), x), _mm512_mul_ps(x, x), x);
    __m512 tanh = hyperbolic_tangent(_mm512_mul_ps(all(0.797884561F), cubic));
    return _mm512_mul_ps(_mm512_mul_ps(all(0.5F), x), _mm512_add_ps(all(1.0F), tanh));
}

INLINE __m512 relu(__m512 x)
{
    return _mm512_max_ps(x, all(0.0F));
}

INLINE __m512 swish(__m512 x)
{
    __m512 power = exponential(_mm512_sub_ps(all(-0.0F), x));
    return _mm512_div_ps(x, _mm512_add_ps(all(1.0F), power));
}

INLINE __m512 mish(__m512 x)
{
    __m512 t = exponential_below(_mm512_min_ps(x, all(20.0F)));
    __m512 n = _mm512_mul_ps(t, _mm512_add_ps(t, all(2.0F)));
    return _mm512_mul_ps(x, _mm512_div_ps(n, _mm512_add_ps(n, all(2.0F))));
}

/* ---- Activation ---- */

INLINE void apply(function *f, float *x, uint32_t n)
{
    uint32_t i = 0;
    for (; i + BITM_LANES <= n; i += BITM_LANES)
        _mm512_storeu_ps(x + i, f(_mm512_loadu_ps(x + i)));
    __mmask16 exist = first_lanes(n - i);
    if (i < n) _mm512_mask_storeu_ps(x + i, exist, f(_mm512_maskz_loadu_ps(exist, x + i)));
}

void bitm_activate__avx512(uint32_t activation, float *x, uint32_t n)
{
    BITM_ACTIVATE(activation, x, n);
}

/* ---- Sums over a token ----
 *
 * Past the end are zeros, which change no sum that starts from +0 and has no product that could
 * have become -0. */

INLINE __m512 load(const float *x, uint32_t n)
{
    return n >= BITM_LANES ? _mm512_loadu_ps(x) : _mm512_maskz_loadu_ps(first_lanes(n), x);
}

INLINE void store(float *x, uint32_t n, __m512 values)
{
    if (n >= BITM_LANES)
        _mm512_storeu_ps(x, values);
    else
        _mm512_mask_storeu_ps(x, first_lanes(n), values);
}

/* 0 past the first n. */
INLINE __m512 keep(uint32_t n, __m512 values)
{
    return n >= BITM_LANES ? values : _mm512_maskz_mov_ps(first_lanes(n), values);
}

void bitm_add_norm__avx512(const float *x, const float *residual, const float *gain,
                           const float *bias, float eps, uint32_t n, float *y)
{
    __m512 sum = _mm512_setzero_ps();
    for (uint32_t i = 0; i < n; i += BITM_LANES) {
        __m512 z = load(x + i, n - i);
        if (residual != NULL) z = _mm512_add_ps(z, load(residual + i, n - i));
        store(y + i, n - i, z);
        sum = _mm512_add_ps(sum, z);
    }
    __m512 mean = all(fold(sum) / (float)n);

    sum = _mm512_setzero_ps();
    for (uint32_t i = 0; i < n; i += BITM_LANES) {
        __m512 z = keep(n - i, _mm512_sub_ps(load(y + i, n - i), mean));
        sum = _mm512_fmadd_ps(z, z, sum);
    }
    float variance = fold(sum) / (float)n;
    __m512 factor = all(1.0F / sqrtf(variance + eps));
    for (uint32_t i = 0; i < n; i += BITM_LANES) {
        __m512 z = _mm512_mul_ps(_mm512_sub_ps(load(y + i, n - i), mean), factor);
        store(y + i, n - i, _mm512_fmadd_ps(z, load(gain + i, n - i), load(bias + i, n - i)));
    }
}

void bitm_rms_norm__avx512(const float *x, const float *gain, float eps, uint32_t n, float *y)
{
    __m512 sum = _mm512_setzero_ps();
    for (uint32_t i = 0; i < n; i += BITM_LANES) {
        __m512 z = load(x + i, n - i);
        sum = _mm512_fmadd_ps(z, z, sum);
    }
    __m512 factor = all(1.0F / sqrtf(fold(sum) / (float)n + eps));
    for (uint32_t i = 0; i < n; i += BITM_LANES) {
        __m512 z = _mm512_mul_ps(load(x + i, n - i), factor);
        store(y + i, n - i, _mm512_mul_ps(z, load(gain + i, n - i)));
    }
}

float bitm_exp_sum__avx512(float *x, uint32_t n)
{
    __m512 most = all(x[0]);
    for (uint32_t i = 0; i < n; i += BITM_LANES)
        most = _mm512_mask_max_ps(most, first_lanes(n - i), load(x + i, n - i), most);
    __m512 greatest = all(greatest_lane(most));

    __m512 sum = _mm512_setzero_ps();
    for (uint32_t i = 0; i < n; i += BITM_LANES) {
        __m512 z = exponential_below(_mm512_sub_ps(load(x + i, n - i), greatest));
        z = keep(n - i, z);
        store(x + i, n - i, z);
        sum = _mm512_add_ps(sum, z);
    }
    return fold(sum);
}
