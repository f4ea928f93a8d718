/* AVX2 operations on one token: norms, activation functions, exponentials.
 *
 * The functions of canonical.h, operation by operation in 8 lanes; selections are blends, so both
 * sides are computed.  vmaxps and vminps are written as the comparison they replace: max(a, b) is
 * a > b ? a : b.
 *
 *   vfmadd, vmulps, vaddps  2 a cycle each
 *   vdivps, vsqrtps         one in 3 to 8 cycles: exact, as the canonical arithmetic wants them
 */
#include "x86_avx2.h"

typedef __m256 function(__m256 x);

INLINE __m256 absolute(__m256 x)
{
    return _mm256_andnot_ps(all(-0.0F), x);
}

/* magnitude with the sign of x; magnitude is not negative. */
INLINE __m256 with_sign(__m256 magnitude, __m256 x)
{
    return _mm256_or_ps(absolute(magnitude), _mm256_and_ps(x, all(-0.0F)));
}

/* where a < b: x, elsewhere y. */
INLINE __m256 where_less(__m256 a, __m256 b, __m256 x, __m256 y)
{
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}

/* ---- The functions ---- */

INLINE __m256 exponential(__m256 x)
{
    __m256 clamped = _mm256_max_ps(all(BITM_EXP_LOWEST), x);
    clamped = _mm256_min_ps(all(BITM_EXP_HIGHEST), clamped);
    __m256 shifted = _mm256_fmadd_ps(clamped, all(BITM_LOG2_E), all(BITM_ROUND_MAGIC));
    __m256 n = _mm256_sub_ps(shifted, all(BITM_ROUND_MAGIC));
    __m256 r = _mm256_fmadd_ps(n, all(-BITM_LN2_HIGH), clamped);
    r = _mm256_fmadd_ps(n, all(-BITM_LN2_LOW), r);
    __m256 p = all(BITM_EXP_4);
    p = _mm256_fmadd_ps(p, r, all(BITM_EXP_3));
    p = _mm256_fmadd_ps(p, r, all(BITM_EXP_2));
    p = _mm256_fmadd_ps(p, r, all(BITM_EXP_1));
    p = _mm256_fmadd_ps(p, r, all(BITM_EXP_0));
    p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), all(1.0F));
    __m256i bits = _mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(127));
    __m256 power = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 23));
    __m256 vanishes = _mm256_cmp_ps(x, all(BITM_EXP_LOWEST), _CMP_LT_OQ);
    return _mm256_andnot_ps(vanishes, _mm256_mul_ps(p, power));
}

INLINE __m256 hyperbolic_tangent(__m256 x)
{
    __m256 a = absolute(x), s = _mm256_mul_ps(a, a);
    __m256 small = all(BITM_TANH_4);
    small = _mm256_fmadd_ps(small, s, all(BITM_TANH_3));
    small = _mm256_fmadd_ps(small, s, all(BITM_TANH_2));
    small = _mm256_fmadd_ps(small, s, all(BITM_TANH_1));
    small = _mm256_fmadd_ps(small, s, all(BITM_TANH_0));
    small = _mm256_fmadd_ps(_mm256_mul_ps(small, s), a, a);
    __m256 power = exponential(_mm256_mul_ps(all(2.0F), a));
    __m256 quotient = _mm256_div_ps(all(2.0F), _mm256_add_ps(power, all(1.0F)));
    __m256 large = _mm256_sub_ps(all(1.0F), quotient);
    return with_sign(where_less(a, all(0.625F), small, large), x);
}

INLINE __m256 gelu(__m256 x)
{
    __m256 a = absolute(x);
    __m256 p = all(BITM_GELU_6);
    p = _mm256_fmadd_ps(p, a, all(BITM_GELU_5));
    p = _mm256_fmadd_ps(p, a, all(BITM_GELU_4));
    p = _mm256_fmadd_ps(p, a, all(BITM_GELU_3));
    p = _mm256_fmadd_ps(p, a, all(BITM_GELU_2));
    p = _mm256_fmadd_ps(p, a, all(BITM_GELU_1));
    p = _mm256_fmadd_ps(p, a, all(BITM_GELU_0));
    __m256 exponent = _mm256_mul_ps(a, p);
    __m256 shifted = _mm256_add_ps(exponent, all(BITM_ROUND_MAGIC));
    __m256 r = _mm256_sub_ps(exponent, _mm256_sub_ps(shifted, all(BITM_ROUND_MAGIC)));
    __m256 q = all(BITM_HALF_EXP2_5);
    q = _mm256_fmadd_ps(q, r, all(BITM_HALF_EXP2_4));
    q = _mm256_fmadd_ps(q, r, all(BITM_HALF_EXP2_3));
    q = _mm256_fmadd_ps(q, r, all(BITM_HALF_EXP2_2));
    q = _mm256_fmadd_ps(q, r, all(BITM_HALF_EXP2_1));
    q = _mm256_fmadd_ps(q, r, all(BITM_HALF_EXP2_0));
    __m256i n = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    __m256 tail = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(q), n));
    tail = _mm256_and_ps(tail, _mm256_cmp_ps(a, all(BITM_GELU_END), _CMP_LT_OQ));
    return _mm256_fnmadd_ps(a, tail, _mm256_max_ps(x, all(0.0F)));
}

INLINE __m256 gelu_tanh(__m256 x)
{
    __m256 cubic = _mm256_fmadd_ps(_mm256_mul_ps(all(0.044715F), x), _mm256_mul_ps(x, x), x);
    __m256 tanh = hyperbolic_tangent(_mm256_mul_ps(all(0.797884561F), cubic));
    return _mm256_mul_ps(_mm256_mul_ps(all(0.5F), x), _mm256_add_ps(all(1.0F), tanh));
}

INLINE __m256 relu(__m256 x)
{
    return _mm256_max_ps(x, all(0.0F));
}

INLINE __m256 swish(__m256 x)
{
    __m256 power = exponential(_mm256_xor_ps(x, all(-0.0F)));
    return _mm256_div_ps(x, _mm256_add_ps(all(1.0F), power));
}

INLINE __m256 mish(__m256 x)
{
    __m256 t = exponential(_mm256_min_ps(x, all(20.0F)));
    __m256 n = _mm256_mul_ps(t, _mm256_add_ps(t, all(2.0F)));
    return _mm256_mul_ps(x, _mm256_div_ps(n, _mm256_add_ps(n, all(2.0F))));
}

/* ---- Activation ---- */

INLINE void apply(function *f, float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += 8)
        store_floats(x + i, n - i, f(load_floats(x + i, n - i)));
}

void bitm_activate__avx2(uint32_t activation, float *x, uint32_t n)
{
    BITM_ACTIVATE(activation, x, n);
}

/* ---- Sums over a token ----
 *
 * Two vectors are the 16 lanes.  Past the end they get +0, which changes no sum that starts from +0
 * and has no product that could have become -0. */

INLINE lanes load(const float *x, uint32_t n)
{
    return (lanes){load_floats(x, n), load_floats(x + 8, less_8(n))};
}

INLINE void store(float *x, uint32_t n, lanes values)
{
    store_floats(x, n, values.low);
    store_floats(x + 8, less_8(n), values.high);
}

/* 0 past the first n. */
INLINE lanes keep(uint32_t n, lanes values)
{
    if (n >= BITM_LANES) return values;
    __m256 low = _mm256_castsi256_ps(first_lanes(n));
    __m256 high = _mm256_castsi256_ps(first_lanes(less_8(n)));
    return (lanes){_mm256_and_ps(values.low, low), _mm256_and_ps(values.high, high)};
}

INLINE lanes add(lanes a, lanes b)
{
    return (lanes){_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}

INLINE lanes multiply_add(lanes a, lanes b, lanes c)
{
    return (lanes){_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}

INLINE lanes scale(lanes a, float factor)
{
    return (lanes){_mm256_mul_ps(a.low, all(factor)), _mm256_mul_ps(a.high, all(factor))};
}

INLINE lanes zeros(void)
{
    return (lanes){_mm256_setzero_ps(), _mm256_setzero_ps()};
}

void bitm_add_norm__avx2(const float *x, const float *residual, const float *gain,
                         const float *bias, float eps, uint32_t n, float *y)
{
    lanes sum = zeros();
    for (uint32_t i = 0; i < n; i += BITM_LANES) {
        lanes z = load(x + i, n - i);
        if (residual != NULL) z = add(z, load(residual + i, n - i));
        store(y + i, n - i, z);
        sum = add(sum, z);
    }
    __m256 mean = all(fold(sum) / (float)n);

    sum = zeros();
    for (uint32_t i = 0; i < n; i += BITM_LANES) {
        lanes z = load(y + i, n - i);
        z = keep(n - i, (lanes){_mm256_sub_ps(z.low, mean), _mm256_sub_ps(z.high, mean)});
        store(y + i, n - i, z);
        sum = multiply_add(z, z, sum);
    }
    float variance = fold(sum) / (float)n;
    float factor = 1.0F / sqrtf(variance + eps);
    for (uint32_t i = 0; i < n; i += BITM_LANES) {
        lanes z = scale(load(y + i, n - i), factor);
        store(y + i, n - i, multiply_add(z, load(gain + i, n - i), load(bias + i, n - i)));
    }
}

void bitm_rms_norm__avx2(const float *x, const float *gain, float eps, uint32_t n, float *y)
{
    lanes sum = zeros();
    for (uint32_t i = 0; i < n; i += BITM_LANES) {
        lanes z = load(x + i, n - i);
        sum = multiply_add(z, z, sum);
    }
    float factor = 1.0F / sqrtf(fold(sum) / (float)n + eps);
    for (uint32_t i = 0; i < n; i += 8) {
        __m256 z = _mm256_mul_ps(load_floats(x + i, n - i), all(factor));
        store_floats(y + i, n - i, _mm256_mul_ps(z, load_floats(gain + i, n - i)));
    }
}

/* The greatest of x [n], found in whole vectors as far as they go. */
INLINE float greatest_of(const float *x, uint32_t n)
{
    lanes most = {all(x[0]), all(x[0])};
    uint32_t i = 0;
    for (; i + BITM_LANES <= n; i += BITM_LANES) {
        most.low = _mm256_max_ps(_mm256_loadu_ps(x + i), most.low);
        most.high = _mm256_max_ps(_mm256_loadu_ps(x + i + 8), most.high);
    }
    __m256 eight = _mm256_max_ps(most.low, most.high);
    for (; i < n; i += 8) {
        __m256 mask = _mm256_castsi256_ps(first_lanes(n - i));
        eight = _mm256_max_ps(_mm256_blendv_ps(eight, load_floats(x + i, n - i), mask), eight);
    }
    return greatest_lane(eight);
}

float bitm_exp_sum__avx2(float *x, uint32_t n)
{
    const __m256 greatest = all(greatest_of(x, n));
    lanes sum = zeros();
    uint32_t i = 0;
    for (; i + BITM_LANES <= n; i += BITM_LANES) {
        lanes z = {exponential(_mm256_sub_ps(_mm256_loadu_ps(x + i), greatest)),
                   exponential(_mm256_sub_ps(_mm256_loadu_ps(x + i + 8), greatest))};
        _mm256_storeu_ps(x + i, z.low);
        _mm256_storeu_ps(x + i + 8, z.high);
        sum = add(sum, z);
    }
    if (i < n) {
        lanes z = load(x + i, n - i);
        z.low = exponential(_mm256_sub_ps(z.low, greatest));
        z.high = exponential(_mm256_sub_ps(z.high, greatest));
        z = keep(n - i, z);
        store(x + i, n - i, z);
        sum = add(sum, z);
    }
    return fold(sum);
}
