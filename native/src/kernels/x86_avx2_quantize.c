/* AVX2 quantization: from floats to codes, or to planes of their bits; dots of planes.
 *
 *   vmaxps, vminps  selections as the scalar kernels write them: max(a, b) is a > b ? a : b
 *   vdivps          the model's own quantizers divide
 *   vmovmskps       one bit of 8 codes; of signs and of two codes a comparison gives it
 */
#include "x86_avx2.h"

#include <string.h>

/* To the nearest integer, as bitm_round. */
INLINE __m256 to_integer(__m256 x)
{
    return _mm256_sub_ps(_mm256_add_ps(x, all(BITM_ROUND_MAGIC)), all(BITM_ROUND_MAGIC));
}

/* Stores the first n of 8 codes. */
INLINE void store_i16(int16_t *codes, __m256i codes_i32x8, uint32_t n)
{
    __m128i packed = _mm_packs_epi32(_mm256_castsi256_si128(codes_i32x8),
                                     _mm256_extracti128_si256(codes_i32x8, 1));
    if (n >= 8) {
        _mm_storeu_si128((__m128i *)codes, packed);
        return;
    }
    int16_t room[8];
    _mm_storeu_si128((__m128i *)room, packed);
    memcpy(codes, room, n * sizeof *codes);
}

INLINE void store_i8(int8_t *codes, __m256i codes_i32x8, uint32_t n)
{
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(codes_i32x8),
                                    _mm256_extracti128_si256(codes_i32x8, 1));
    __m128i packed = _mm_packs_epi16(words, words);
    if (n >= 8) {
        _mm_storel_epi64((__m128i *)codes, packed);
        return;
    }
    int8_t room[16];
    _mm_storeu_si128((__m128i *)room, packed);
    memcpy(codes, room, n);
}

INLINE void store_32_i8(int8_t *codes, const __m256i codes_i32x8[4])
{
    /* Packing works in lanes: it leaves fours in the order 0, 2, 4, 6, 1, 3, 5, 7. */
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(codes_i32x8[0], codes_i32x8[1]),
                                        _mm256_packs_epi32(codes_i32x8[2], codes_i32x8[3]));
    _mm256_storeu_si256((__m256i *)codes, _mm256_permutevar8x32_epi32(packed, order));
}

/* ---- The runtime's own quantization ---- */

static float max_abs(const float *x, uint32_t n)
{
    __m256 greatest = _mm256_setzero_ps();
    for (uint32_t i = 0; i < n; i += 8) {
        __m256 values = load_floats(x + i, n - i);
        greatest = _mm256_max_ps(_mm256_andnot_ps(all(-0.0F), values), greatest);
    }
    return greatest_lane(greatest);
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

INLINE __m256i codes_of(__m256 x, float factor, float max_code)
{
    __m256 code = to_integer(_mm256_mul_ps(x, all(factor)));
    code = _mm256_max_ps(code, all(-max_code));
    code = _mm256_min_ps(code, all(max_code));
    return _mm256_cvttps_epi32(code);
}

void bitm_quantize_i8__avx2(const float *x, uint32_t n, int8_t *codes, float *step, float *sum)
{
    float factor = code_factor(max_abs(x, n), 127.0F, step);
    __m256i total = _mm256_setzero_si256();
    uint32_t i = 0;
    for (; i + 32 <= n; i += 32) {
        __m256i c[4];
        for (uint32_t k = 0; k < 4; k++) {
            c[k] = codes_of(_mm256_loadu_ps(x + i + 8 * k), factor, 127.0F);
            total = _mm256_add_epi32(total, c[k]);
        }
        store_32_i8(codes + i, c);
    }
    for (; i < n; i += 8) {
        __m256i eight = codes_of(load_floats(x + i, n - i), factor, 127.0F);
        store_i8(codes + i, eight, n - i);
        total = _mm256_add_epi32(total, eight);
    }
    *sum = *step * (float)sum_lanes(total);
}

void bitm_quantize_i16__avx2(const float *x, uint32_t n, int16_t max_code, int16_t *codes,
                             float *step, float *sum)
{
    float factor = code_factor(max_abs(x, n), (float)max_code, step);
    __m256i total = _mm256_setzero_si256();
    for (uint32_t i = 0; i < n; i += 8) {
        __m256i eight = codes_of(load_floats(x + i, n - i), factor, (float)max_code);
        store_i16(codes + i, eight, n - i);
        total = _mm256_add_epi32(total, eight);
    }
    *sum = *step * (float)sum_lanes(total);
}

/* ---- A model's own quantizers ---- */

/* z of the first n of 8 values. */
INLINE __m256 shifted(const bitm_quantization *q, const float *x, uint32_t i, uint32_t n)
{
    __m256 z = load_floats(x + i, n);
    if (q->shift != NULL) z = _mm256_add_ps(z, load_floats(q->shift + i, n));
    if (!q->clips) return z;
    z = _mm256_max_ps(z, all(q->clip_lo));
    return _mm256_min_ps(z, all(q->clip_hi));
}

/* What tells a code, fixed for a row. */
typedef enum told_by { BY_SIGN, BY_SIGN_ABOVE_0, BY_THRESHOLD, BY_QUOTIENT } told_by;

/* The codes of the first n of 8 values from value i on. */
INLINE __m256i quantized(const bitm_quantization *q, const told_by kind, const float *x, uint32_t i,
                         uint32_t n)
{
    const __m256 zero = _mm256_setzero_ps();
    __m256 z = shifted(q, x, i, n), code;
    switch (kind) { /* masks are -1 */
    case BY_SIGN:
        return _mm256_sub_epi32(_mm256_castps_si256(_mm256_cmp_ps(z, zero, _CMP_LT_OQ)),
                                _mm256_castps_si256(_mm256_cmp_ps(z, zero, _CMP_GT_OQ)));
    case BY_SIGN_ABOVE_0:
        return _mm256_srli_epi32(_mm256_castps_si256(_mm256_cmp_ps(z, zero, _CMP_GT_OQ)), 31);
    case BY_THRESHOLD:
        code = _mm256_cmp_ps(z, all(q->threshold), _CMP_GE_OQ);
        return _mm256_sub_epi32(_mm256_set1_epi32((int32_t)q->lo), _mm256_castps_si256(code));
    default:
        break;
    }
    code = _mm256_div_ps(_mm256_sub_ps(z, all(q->base)), all(q->divisor));
    code = _mm256_mul_ps(code, all(q->factor));
    code = _mm256_max_ps(code, all(q->lo));
    return _mm256_cvttps_epi32(to_integer(_mm256_min_ps(code, all(q->hi))));
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
    __m256i sum = _mm256_setzero_si256();
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m256i low = quantized(&q, kind, x, i, 8), high = quantized(&q, kind, x, i + 8, 8);
        __m256i mixed = _mm256_packs_epi32(low, high);
        _mm256_storeu_si256((__m256i *)(codes + i),
                            _mm256_permute4x64_epi64(mixed, _MM_SHUFFLE(3, 1, 2, 0)));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(mixed, _mm256_set1_epi16(1)));
    }
    for (; i < n; i += 8) {
        __m256i eight = quantized(&q, kind, x, i, n - i);
        store_i16(codes + i, eight, n - i);
        sum = _mm256_add_epi32(sum, _mm256_and_si256(eight, first_lanes(n - i)));
    }
    return sum_lanes(sum);
}

/* A loop of its own for each kind. */
INLINE int32_t quantize_by(const bitm_quantization *q, const told_by kind, const float *x,
                           uint32_t n, int16_t *codes)
{
    return q->shift != NULL || q->clips ? quantize_row(q, kind, true, x, n, codes)
                                        : quantize_row(q, kind, false, x, n, codes);
}

int32_t bitm_quantize__avx2(const bitm_quantization *q, const float *x, uint32_t n, int16_t *codes)
{
    if (q->sign && q->lo < 0.0F) return quantize_by(q, BY_SIGN, x, n, codes);
    if (q->sign) return quantize_by(q, BY_SIGN_ABOVE_0, x, n, codes);
    if (q->two_codes) return quantize_by(q, BY_THRESHOLD, x, n, codes);
    return quantize_by(q, BY_QUOTIENT, x, n, codes);
}

/* Which of 64 values from i on, of which n exist, have the greater of two codes, or are negative.
 */
INLINE uint64_t bits_told(const bitm_quantization *q, const told_by kind, const bool negative,
                          const float *x, uint32_t i, const uint32_t n)
{
    uint64_t bits = 0;
    for (uint32_t k = 0; k < 64; k += 8) {
        if (n <= k) break;
        __m256 z = shifted(q, x, i + k, n - k), zero = _mm256_setzero_ps();
        __m256 mask = kind == BY_THRESHOLD ? _mm256_cmp_ps(z, all(q->threshold), _CMP_GE_OQ)
                      : negative           ? _mm256_cmp_ps(z, zero, _CMP_LT_OQ)
                                           : _mm256_cmp_ps(z, zero, _CMP_GT_OQ);
        bits |= (uint64_t)(uint32_t)_mm256_movemask_ps(mask) << k;
    }
    return n < 64 ? bits & ((UINT64_C(1) << n) - 1) : bits;
}

/* Planes of codes that are divided for; returns their sum. */
INLINE int32_t divide_word(const bitm_quantization *q, const float *x, uint32_t i, const uint32_t n,
                           uint32_t n_planes, size_t n_words, uint64_t *planes)
{
    __m256i codes[8], sum = _mm256_setzero_si256();
    for (uint32_t k = 0; k < 8; k++) {
        codes[k] = _mm256_setzero_si256();
        if (n <= 8 * k) continue;
        codes[k] = quantized(q, BY_QUOTIENT, x, i + 8 * k, n - 8 * k);
        if (n < 8 * k + 8) codes[k] = _mm256_and_si256(codes[k], first_lanes(n - 8 * k));
        sum = _mm256_add_epi32(sum, codes[k]);
    }
    for (uint32_t p = 0; p < n_planes; p++) {
        const __m128i to_sign = _mm_cvtsi32_si128(31 - (int)p);
        uint64_t plane = 0;
        for (uint32_t k = 0; k < 8; k++) {
            __m256 bits = _mm256_castsi256_ps(_mm256_sll_epi32(codes[k], to_sign));
            plane |= (uint64_t)(uint32_t)_mm256_movemask_ps(bits) << 8 * k;
        }
        planes[p * n_words] = plane;
    }
    return sum_lanes(sum);
}

/* Planes of 64 values from i on, of which n exist, n_words words from one to the next; returns the
 * sum of codes. */
INLINE int32_t quantize_word(const bitm_quantization *q, const told_by kind, const float *x,
                             uint32_t i, const uint32_t n, uint32_t n_planes, size_t n_words,
                             uint64_t *planes)
{
    if (kind == BY_QUOTIENT) return divide_word(q, x, i, n, n_planes, n_words, planes);
    uint64_t greater = bits_told(q, kind, false, x, i, n);
    if (kind == BY_SIGN) {
        uint64_t negative = bits_told(q, kind, true, x, i, n);
        planes[0] = greater | negative;
        planes[n_words] = greater;
        return (int32_t)_mm_popcnt_u64(greater) - (int32_t)_mm_popcnt_u64(negative);
    }
    planes[0] = greater; /* codes 0 and 1 */
    for (uint32_t p = 1; p < n_planes; p++)
        planes[p * n_words] = 0;
    return (int32_t)_mm_popcnt_u64(greater);
}

INLINE int32_t quantize_words(const bitm_quantization *quantization, const told_by kind,
                              const bool is_moved, const float *x, uint32_t n, uint32_t n_planes,
                              uint64_t *planes)
{
    const bitm_quantization q = copy_of(quantization, is_moved);
    const size_t n_words = ((size_t)n + 63) / 64;
    int32_t sum = 0;
    uint32_t i = 0;
    for (; i + 64 <= n; i += 64)
        sum += quantize_word(&q, kind, x, i, 64, n_planes, n_words, planes + i / 64);
    if (i < n) sum += quantize_word(&q, kind, x, i, n - i, n_planes, n_words, planes + i / 64);
    return sum;
}

INLINE int32_t quantize_words_by(const bitm_quantization *q, const told_by kind, const float *x,
                                 uint32_t n, uint32_t n_planes, uint64_t *planes)
{
    return q->shift != NULL || q->clips ? quantize_words(q, kind, true, x, n, n_planes, planes)
                                        : quantize_words(q, kind, false, x, n, n_planes, planes);
}

int32_t bitm_quantize_planes__avx2(const bitm_quantization *q, const float *x, uint32_t n,
                                   uint32_t n_planes, uint64_t *planes)
{
    if (q->sign && q->lo < 0.0F) return quantize_words_by(q, BY_SIGN, x, n, n_planes, planes);
    if (q->sign) return quantize_words_by(q, BY_SIGN_ABOVE_0, x, n, n_planes, planes);
    if (q->two_codes && q->lo == 0.0F)
        return quantize_words_by(q, BY_THRESHOLD, x, n, n_planes, planes);
    return quantize_words_by(q, BY_QUOTIENT, x, n, n_planes, planes);
}

/* Which of 8 values from i on, of which n exist, have code 1; anything where none exists. */
static uint32_t compute_gelu_bits(const bitm_gelu_codes *codes, const float *x, uint32_t i,
                                  uint32_t n)
{
    float z[8];
    _mm256_storeu_ps(z, load_floats(x + i, n));
    bitm_activate__avx2(BITM_ACTIVATION_GELU, z, 8);
    __m256 values = _mm256_loadu_ps(z);
    if (codes->shift != NULL) values = _mm256_add_ps(values, load_floats(codes->shift + i, n));
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(values, all(codes->threshold), _CMP_GE_OQ));
}

/* The bits of 64 values from i on, of which n exist, so far as they can be told without a GELU. */
INLINE uint64_t tell_gelu_bits(const bitm_gelu_codes *codes, const float *x, uint32_t i,
                               const uint32_t n, uint64_t *told)
{
    uint64_t bits = 0;
    *told = 0;
    for (uint32_t k = 0; k < 64 && k < n; k += 8) {
        __m256 below =
            _mm256_sub_ps(load_floats(codes->limits + i + k, n - k), load_floats(x + i + k, n - k));
        __m256 is_far =
            _mm256_cmp_ps(_mm256_andnot_ps(all(-0.0F), below), all(BITM_GELU_BAND), _CMP_GE_OQ);
        bits |= (uint64_t)(uint32_t)_mm256_movemask_ps(below) << k;
        *told |= (uint64_t)(uint32_t)_mm256_movemask_ps(is_far) << k;
    }
    return bits;
}

int32_t bitm_gelu_bits__avx2(const bitm_gelu_codes *codes, const float *x, uint32_t n,
                             uint64_t *bits)
{
    int32_t sum = 0;
    for (uint32_t i = 0; i < n; i += 64) {
        const uint64_t exist = n - i < 64 ? (UINT64_C(1) << (n - i)) - 1 : ~UINT64_C(0);
        uint64_t told, word = n - i >= 64 ? tell_gelu_bits(codes, x, i, 64, &told)
                                          : tell_gelu_bits(codes, x, i, n - i, &told);
        for (uint64_t left = exist & ~told; left != 0;) {
            const uint32_t k = (uint32_t)__builtin_ctzll(left) / 8 * 8;
            const uint64_t eight = UINT64_C(0xFF) << k;
            word &= ~eight;
            word |= (uint64_t)compute_gelu_bits(codes, x, i + k, n - i - k) << k;
            left &= ~eight;
        }
        bits[i / 64] = word & exist;
        sum += (int32_t)_mm_popcnt_u64(word & exist);
    }
    return sum;
}

/* 0 and -0 are equal, but the scalar kernel keeps the first of them: so its sign is looked up. */
static float first_zero(const bitm_quantization *q, const float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += 8) {
        __m256 z = shifted(q, x, i, n - i);
        __m256 is_zero = _mm256_cmp_ps(z, _mm256_setzero_ps(), _CMP_EQ_OQ);
        __m256 mask = _mm256_castsi256_ps(first_lanes(n - i));
        int found = _mm256_movemask_ps(_mm256_and_ps(is_zero, mask));
        if (found == 0) continue;
        int lowest = found & -found;
        return (_mm256_movemask_ps(z) & lowest) != 0 ? -0.0F : 0.0F;
    }
    return 0.0F;
}

void bitm_extremes__avx2(const bitm_quantization *q, const float *x, uint32_t n, float extremes[2])
{
    __m256 first = _mm256_broadcastss_ps(_mm256_castps256_ps128(shifted(q, x, 0, 1)));
    __m256 least = first, greatest = first;
    for (uint32_t i = 0; i < n; i += 8) {
        __m256 mask = _mm256_castsi256_ps(first_lanes(n - i));
        __m256 z = _mm256_blendv_ps(first, shifted(q, x, i, n - i), mask);
        least = _mm256_min_ps(z, least);
        greatest = _mm256_max_ps(z, greatest);
    }
    extremes[0] = -greatest_lane(_mm256_xor_ps(least, all(-0.0F)));
    extremes[1] = greatest_lane(greatest);
    if (extremes[0] == 0.0F || extremes[1] == 0.0F) {
        float zero = first_zero(q, x, n);
        if (extremes[0] == 0.0F) extremes[0] = zero;
        if (extremes[1] == 0.0F) extremes[1] = zero;
    }
}

/* ---- Products of planes ---- */

INLINE void dot_rows(const bitm_planes *a, const uint32_t n_a, const bitm_planes *b,
                     const uint32_t n_b, const uint32_t n_words, uint32_t n_rows, int32_t *dots)
{
    int32_t a_weights[BITM_MAX_PLANES], b_weights[BITM_MAX_PLANES]; /* no store can change them */
    memcpy(a_weights, a->weights, n_a * sizeof a_weights[0]);
    memcpy(b_weights, b->weights, n_b * sizeof b_weights[0]);
    const uint64_t *first = a->bits, *y = b->bits;
    for (uint32_t j = 0; j < n_rows; j++) {
        int32_t sum = 0;
        for (uint32_t q = 0; q < n_b; q++, y += n_words) {
            const uint64_t *x = first;
            int32_t part = 0;
            for (uint32_t p = 0; p < n_a; p++, x += n_words) {
                int32_t count = 0;
                for (size_t i = 0; i < n_words; i++)
                    count += (int32_t)__builtin_popcountll(x[i] & y[i]);
                part += a_weights[p] * count;
            }
            sum += b_weights[q] * part;
        }
        dots[j] = sum;
    }
}

INLINE __m256i count_bits(__m256i words)
{
    const __m256i nibble_u8x32 = _mm256_set1_epi8(15);
    const __m256i counts_u8x32 =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    __m256i low = _mm256_and_si256(words, nibble_u8x32);
    __m256i high = _mm256_and_si256(_mm256_srli_epi16(words, 4), nibble_u8x32);
    return _mm256_sad_epu8(_mm256_add_epi8(_mm256_shuffle_epi8(counts_u8x32, low),
                                           _mm256_shuffle_epi8(counts_u8x32, high)),
                           _mm256_setzero_si256());
}

/* Rows of one word, such as the signs of a head: 8 at a time. */
INLINE void dot_words(const bitm_planes *a, const bitm_planes *b, uint32_t n_rows, int32_t *dots)
{
    const __m256i x = _mm256_set1_epi64x((int64_t)a->bits[0]);
    const __m256i weight = _mm256_set1_epi32(a->weights[0] * b->weights[0]);
    uint32_t j = 0;
    for (; j + 8 <= n_rows; j += 8) {
        __m256 counts[2]; /* in the even lanes */
        for (int k = 0; k < 2; k++) {
            __m256i y = _mm256_loadu_si256((const __m256i *)(b->bits + j + 4 * k));
            counts[k] = _mm256_castsi256_ps(count_bits(_mm256_and_si256(x, y)));
        }
        __m256i all = _mm256_castps_si256(_mm256_shuffle_ps(counts[0], counts[1], 0x88));
        all = _mm256_permute4x64_epi64(all, 0xD8);
        _mm256_storeu_si256((__m256i *)(dots + j), _mm256_mullo_epi32(all, weight));
    }
    const bitm_planes rest = {.bits = b->bits + j, .weights = b->weights, .n_planes = 1};
    dot_rows(a, 1, &rest, 1, 1, n_rows - j, dots + j);
}

/* Signs, bits with signs, codes of four bits: loops over so few planes would cost more than these.
 */
INLINE void dot_planes(const bitm_planes *a, const bitm_planes *b, const uint32_t n_words,
                       uint32_t n_rows, int32_t *dots)
{
    if (a->n_planes == 2 && b->n_planes == 2)
        dot_rows(a, 2, b, 2, n_words, n_rows, dots);
    else if (a->n_planes == 1 && b->n_planes == 2)
        dot_rows(a, 1, b, 2, n_words, n_rows, dots);
    else if (a->n_planes == 1 && b->n_planes == 1 && n_words == 1)
        dot_words(a, b, n_rows, dots);
    else if (a->n_planes == 1 && b->n_planes == 1)
        dot_rows(a, 1, b, 1, n_words, n_rows, dots);
    else if (a->n_planes == 4 && b->n_planes == 4)
        dot_rows(a, 4, b, 4, n_words, n_rows, dots);
    else
        dot_rows(a, a->n_planes, b, b->n_planes, n_words, n_rows, dots);
}

/* A head has one word, texts of 128 tokens two: too few for a loop. */
void bitm_dot_planes__avx2(const bitm_planes *a, const bitm_planes *b, uint32_t n_words,
                           uint32_t n_rows, int32_t *dots)
{
    switch (n_words) {
    case 1:
        dot_planes(a, b, 1, n_rows, dots);
        break;
    case 2:
        dot_planes(a, b, 2, n_rows, dots);
        break;
    case 4:
        dot_planes(a, b, 4, n_rows, dots);
        break;
    case 8:
        dot_planes(a, b, 8, n_rows, dots);
        break;
    default:
        dot_planes(a, b, n_words, n_rows, dots);
        break;
    }
}
