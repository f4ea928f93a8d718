/* AVX-512 quantization: from floats to codes, or to planes of their bits.
 *
 *   vcvtps2dq   rounds to nearest even, as adding and subtracting BITM_ROUND_MAGIC does
 *   vmaxps      selections as the scalar kernels write them: max(a, b) is a > b ? a : b
 *   vdivps      the model's own quantizers divide
 *   vptestmd    one bit of 16 codes; of signs and of two codes a comparison gives it
 */
#include "x86_avx512.h"

#include <string.h>

/* ---- The runtime's own quantization ---- */

static float max_abs(const float *x, uint32_t n)
{
    __m512 greatest[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    uint32_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (uint32_t k = 0; k < 2; k++)
            greatest[k] =
                _mm512_max_ps(_mm512_abs_ps(_mm512_loadu_ps(x + i + 16 * k)), greatest[k]);
    for (; i < n; i += 16) {
        __m512 values = _mm512_maskz_loadu_ps(first_lanes(n - i), x + i);
        greatest[0] = _mm512_max_ps(_mm512_abs_ps(values), greatest[0]);
    }
    return greatest_lane(_mm512_max_ps(greatest[0], greatest[1]));
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

/* No value is greater than max_code, but one that is not a number must become a code. */
INLINE __m512i codes_of(__m512 x, float factor, float max_code)
{
    return to_integers(_mm512_max_ps(_mm512_mul_ps(x, all(factor)), all(-max_code)));
}

void bitm_quantize_i8__avx512(const float *x, uint32_t n, int8_t *codes, float *step, float *sum)
{
    /* Packing works in lanes: it leaves fours in the order 0, 4, 8, 12, 1, 5 ... */
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    float factor = code_factor(max_abs(x, n), 127.0F, step);
    __m512i total = _mm512_setzero_si512();
    uint32_t i = 0;
    for (; i + 64 <= n; i += 64) {
        __m512i c[4];
        for (uint32_t k = 0; k < 4; k++) {
            c[k] = codes_of(_mm512_loadu_ps(x + i + 16 * k), factor, 127.0F);
            total = _mm512_add_epi32(total, c[k]);
        }
        __m512i packed =
            _mm512_packs_epi16(_mm512_packs_epi32(c[0], c[1]), _mm512_packs_epi32(c[2], c[3]));
        _mm512_storeu_si512(codes + i, _mm512_permutexvar_epi32(order, packed));
    }
    for (; i < n; i += 16) {
        __mmask16 exist = first_lanes(n - i);
        __m512i c = codes_of(_mm512_maskz_loadu_ps(exist, x + i), factor, 127.0F);
        _mm_mask_storeu_epi8(codes + i, exist, _mm512_cvtepi32_epi8(c));
        total = _mm512_add_epi32(total, c);
    }
    *sum = *step * (float)_mm512_reduce_add_epi32(total);
}

void bitm_quantize_i16__avx512(const float *x, uint32_t n, int16_t max_code, int16_t *codes,
                               float *step, float *sum)
{
    float factor = code_factor(max_abs(x, n), (float)max_code, step);
    __m512i total = _mm512_setzero_si512();
    for (uint32_t i = 0; i < n; i += 16) {
        __mmask16 exist = first_lanes(n - i);
        __m512i c = codes_of(_mm512_maskz_loadu_ps(exist, x + i), factor, (float)max_code);
        _mm256_mask_storeu_epi16(codes + i, exist, _mm512_cvtepi32_epi16(c));
        total = _mm512_add_epi32(total, c);
    }
    *sum = *step * (float)_mm512_reduce_add_epi32(total);
}

/* ---- A model's own quantizers ---- */

/* z of values from i on; 0 or anything else where no value exists. */
INLINE __m512 shifted(const bitm_quantization *q, const float *x, uint32_t i, __mmask16 exist)
{
    __m512 z = _mm512_maskz_loadu_ps(exist, x + i);
    if (q->shift != NULL) z = _mm512_add_ps(z, _mm512_maskz_loadu_ps(exist, q->shift + i));
    if (!q->clips) return z;
    z = _mm512_max_ps(z, all(q->clip_lo));
    return _mm512_min_ps(z, all(q->clip_hi));
}

/* What tells a code, fixed for a row. */
typedef enum told_by { BY_SIGN, BY_SIGN_ABOVE_0, BY_THRESHOLD, BY_QUOTIENT } told_by;

/* Which of 16 values from i on have the greater of two codes. */
INLINE __mmask16 is_greater(const bitm_quantization *q, const told_by kind, const float *x,
                            uint32_t i, __mmask16 exist)
{
    __m512 z = shifted(q, x, i, exist);
    if (kind == BY_THRESHOLD)
        return _mm512_mask_cmp_ps_mask(exist, z, all(q->threshold), _CMP_GE_OQ);
    return _mm512_mask_cmp_ps_mask(exist, z, _mm512_setzero_ps(), _CMP_GT_OQ);
}

/* Which are below 0. */
INLINE __mmask16 is_negative(const bitm_quantization *q, const float *x, uint32_t i,
                             __mmask16 exist)
{
    return _mm512_mask_cmp_ps_mask(exist, shifted(q, x, i, exist), _mm512_setzero_ps(), _CMP_LT_OQ);
}

/* The codes of 16 values from i on. */
INLINE __m512i quantized(const bitm_quantization *q, const told_by kind, const float *x, uint32_t i,
                         __mmask16 exist)
{
    const __m512i one = _mm512_set1_epi32(1);
    __m512i code;
    switch (kind) {
    case BY_SIGN:
        code = _mm512_maskz_mov_epi32(is_greater(q, kind, x, i, exist), one);
        return _mm512_mask_sub_epi32(code, is_negative(q, x, i, exist), code, one);
    case BY_SIGN_ABOVE_0:
        return _mm512_maskz_mov_epi32(is_greater(q, kind, x, i, exist), one);
    case BY_THRESHOLD:
        return _mm512_mask_blend_epi32(is_greater(q, kind, x, i, exist),
                                       _mm512_set1_epi32((int32_t)q->lo),
                                       _mm512_set1_epi32((int32_t)q->hi));
    default:
        break;
    }
    __m512 z = shifted(q, x, i, exist);
    z = _mm512_mul_ps(_mm512_div_ps(_mm512_sub_ps(z, all(q->base)), all(q->divisor)),
                      all(q->factor));
    return to_integers(_mm512_min_ps(_mm512_max_ps(z, all(q->lo)), all(q->hi)));
}

/* A copy, which no store of codes can change. */
INLINE bitm_quantization copy_of(const bitm_quantization *quantization, const bool is_moved)
{
    bitm_quantization q = *quantization;
    if (!is_moved) {
        q.shift = NULL;
        q.clips = false;
    }
    return q;
}

INLINE int32_t quantize_row(const bitm_quantization *quantization, const told_by kind,
                            const bool is_moved, const float *x, uint32_t n, int16_t *codes)
{
    const bitm_quantization q = copy_of(quantization, is_moved);
    __m512i sum = _mm512_setzero_si512();
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m512i c = quantized(&q, kind, x, i, 0xFFFF);
        _mm256_storeu_si256((__m256i *)(void *)(codes + i), _mm512_cvtepi32_epi16(c));
        sum = _mm512_add_epi32(sum, c);
    }
    if (i < n) {
        __mmask16 exist = first_lanes(n - i);
        __m512i c = quantized(&q, kind, x, i, exist);
        _mm256_mask_storeu_epi16(codes + i, exist, _mm512_cvtepi32_epi16(c));
        sum = _mm512_mask_add_epi32(sum, exist, sum, c);
    }
    return _mm512_reduce_add_epi32(sum);
}

/* A loop of its own for each kind. */
INLINE int32_t quantize_by(const bitm_quantization *q, const told_by kind, const float *x,
                           uint32_t n, int16_t *codes)
{
    return q->shift != NULL || q->clips ? quantize_row(q, kind, true, x, n, codes)
                                        : quantize_row(q, kind, false, x, n, codes);
}

int32_t bitm_quantize__avx512(const bitm_quantization *q, const float *x, uint32_t n,
                              int16_t *codes)
{
    if (q->sign && q->lo < 0.0F) return quantize_by(q, BY_SIGN, x, n, codes);
    if (q->sign) return quantize_by(q, BY_SIGN_ABOVE_0, x, n, codes);
    if (q->two_codes) return quantize_by(q, BY_THRESHOLD, x, n, codes);
    return quantize_by(q, BY_QUOTIENT, x, n, codes);
}

/* Planes of 64 values from i on, n_words words from one to the next; returns the sum of codes. */
INLINE int32_t quantize_word(const bitm_quantization *q, const told_by kind, const float *x,
                             uint32_t i, uint32_t n, uint32_t n_planes, size_t n_words,
                             uint64_t *planes)
{
    const uint64_t exist = first_bytes(n - i);
    if (kind == BY_QUOTIENT) {
        __m512i codes[4], sum = _mm512_setzero_si512();
        for (uint32_t k = 0; k < 4; k++) {
            __mmask16 lanes = (__mmask16)(exist >> 16 * k);
            codes[k] = _mm512_maskz_mov_epi32(lanes, quantized(q, kind, x, i + 16 * k, lanes));
            sum = _mm512_add_epi32(sum, codes[k]);
        }
        for (uint32_t p = 0; p < n_planes; p++) {
            uint64_t plane = 0;
            for (uint32_t k = 0; k < 4; k++)
                plane |= (uint64_t)_mm512_test_epi32_mask(codes[k], _mm512_set1_epi32(1 << p))
                         << 16 * k;
            planes[p * n_words] = plane;
        }
        return _mm512_reduce_add_epi32(sum);
    }
    uint64_t greater = 0, negative = 0;
    for (uint32_t k = 0; k < 4; k++) {
        __mmask16 lanes = (__mmask16)(exist >> 16 * k);
        greater |= (uint64_t)is_greater(q, kind, x, i + 16 * k, lanes) << 16 * k;
        if (kind == BY_SIGN) negative |= (uint64_t)is_negative(q, x, i + 16 * k, lanes) << 16 * k;
    }
    if (kind == BY_SIGN) {
        planes[0] = greater | negative;
        planes[n_words] = greater;
    } else { /* codes 0 and 1 */
        planes[0] = greater;
        for (uint32_t p = 1; p < n_planes; p++)
            planes[p * n_words] = 0;
    }
    return __builtin_popcountll(greater) - __builtin_popcountll(negative);
}

INLINE int32_t quantize_words(const bitm_quantization *quantization, const told_by kind,
                              const bool is_moved, const float *x, uint32_t n, uint32_t n_planes,
                              uint64_t *planes)
{
    const bitm_quantization q = copy_of(quantization, is_moved);
    const size_t n_words = ((size_t)n + 63) / 64;
    int32_t sum = 0;
    for (uint32_t i = 0; i < n; i += 64)
        sum += quantize_word(&q, kind, x, i, n, n_planes, n_words, planes + i / 64);
    return sum;
}

INLINE int32_t quantize_words_by(const bitm_quantization *q, const told_by kind, const float *x,
                                 uint32_t n, uint32_t n_planes, uint64_t *planes)
{
    return q->shift != NULL || q->clips ? quantize_words(q, kind, true, x, n, n_planes, planes)
                                        : quantize_words(q, kind, false, x, n, n_planes, planes);
}

int32_t bitm_quantize_planes__avx512(const bitm_quantization *q, const float *x, uint32_t n,
                                     uint32_t n_planes, uint64_t *planes)
{
    if (q->sign && q->lo < 0.0F) return quantize_words_by(q, BY_SIGN, x, n, n_planes, planes);
    if (q->sign) return quantize_words_by(q, BY_SIGN_ABOVE_0, x, n, n_planes, planes);
    if (q->two_codes && q->lo == 0.0F)
        return quantize_words_by(q, BY_THRESHOLD, x, n, n_planes, planes);
    return quantize_words_by(q, BY_QUOTIENT, x, n, n_planes, planes);
}

/* Which of 16 values from i on have code 1. */
INLINE __mmask16 gelu_reaches(const bitm_gelu_codes *codes, const float *x, uint32_t i,
                              __mmask16 exist)
{
    __m512 values = _mm512_maskz_loadu_ps(exist, x + i);
    __m512 above = _mm512_sub_ps(values, _mm512_maskz_loadu_ps(exist, codes->limits + i));
    __mmask16 told =
        _mm512_mask_cmp_ps_mask(exist, _mm512_abs_ps(above), all(BITM_GELU_BAND), _CMP_GE_OQ);
    if (told == exist)
        return _mm512_mask_cmp_ps_mask(exist, above, _mm512_setzero_ps(), _CMP_GT_OQ);
    __m512 z = gelu(values);
    if (codes->shift != NULL) z = _mm512_add_ps(z, _mm512_maskz_loadu_ps(exist, codes->shift + i));
    return _mm512_mask_cmp_ps_mask(exist, z, all(codes->threshold), _CMP_GE_OQ);
}

int32_t bitm_gelu_bits__avx512(const bitm_gelu_codes *codes, const float *x, uint32_t n,
                               uint64_t *bits)
{
    int32_t sum = 0;
    for (uint32_t i = 0; i < n; i += 64) {
        const uint64_t exist = first_bytes(n - i);
        uint64_t word = 0;
        for (uint32_t k = 0; k < 64; k += 16)
            word |= (uint64_t)gelu_reaches(codes, x, i + k, (__mmask16)(exist >> k)) << k;
        bits[i / 64] = word;
        sum += __builtin_popcountll(word);
    }
    return sum;
}

/* 0 and -0 are equal, but the scalar kernel keeps the first of them: so its sign is looked up. */
static float first_zero(const bitm_quantization *q, const float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += 16) {
        __mmask16 exist = first_lanes(n - i);
        __m512 z = shifted(q, x, i, exist);
        uint32_t zeros = _mm512_mask_cmp_ps_mask(exist, z, _mm512_setzero_ps(), _CMP_EQ_OQ);
        if (zeros == 0) continue;
        uint32_t negative = _mm512_movepi32_mask(_mm512_castps_si512(z));
        return (negative & zeros & (~zeros + 1)) != 0 ? -0.0F : 0.0F;
    }
    return 0.0F;
}

void bitm_extremes__avx512(const bitm_quantization *q, const float *x, uint32_t n,
                           float extremes[2])
{
    __m512 least = _mm512_broadcastss_ps(_mm512_castps512_ps128(shifted(q, x, 0, 1)));
    __m512 greatest = least;
    for (uint32_t i = 0; i < n; i += 16) {
        __mmask16 exist = first_lanes(n - i);
        __m512 z = shifted(q, x, i, exist);
        least = _mm512_mask_min_ps(least, exist, z, least);
        greatest = _mm512_mask_max_ps(greatest, exist, z, greatest);
    }
    extremes[0] = -greatest_lane(_mm512_xor_ps(least, all(-0.0F)));
    extremes[1] = greatest_lane(greatest);
    if (extremes[0] == 0.0F || extremes[1] == 0.0F) {
        float zero = first_zero(q, x, n);
        if (extremes[0] == 0.0F) extremes[0] = zero;
        if (extremes[1] == 0.0F) extremes[1] = zero;
    }
}
