/* AVX-512 products of floats.
 *
 * The 16 canonical lanes of a dot are one vector.  Four rows meet four others, 16 sums, so that a
 * loaded vector serves four; then 16 sums fold together, into one vector of dots.
 *
 *   vfmadd      the products             2 a cycle on Intel servers, latency 4: 8 sums at once
 *   vshuff32x4, vshufps  folding         1 a cycle: 30 for 16 dots
 *   vcvtph2ps   binary16 weights         1 a cycle
 *   vblendmps   bits as weights -1 and 1
 */
#include "x86_avx512.h"

enum {
    ROWS = 4,            /* of each side of a tile */
    OUTPUTS = 16,        /* of a product that are finished together */
    BLOCK_TOKENS = 48,   /* tokens that one conversion of weights serves */
    STRETCH = 1024,      /* weights of a row converted at a time; a multiple of 64 */
    AHEAD_BYTES = 24576, /* from reading weights to asking for others */
};

/* ---- Dots ---- */

/* The folds of 16 sums, each as fold() does it; lane 4 i + j is that of sum 4 j + i. */
INLINE __m512 fold_16(const __m512 sums[16])
{
    __m512 eight[8], four[4], two[2];
#pragma GCC unroll 8
    for (int k = 0; k < 8; k++)
        eight[k] = _mm512_add_ps(_mm512_shuffle_f32x4(sums[2 * k], sums[2 * k + 1], 0x44),
                                 _mm512_shuffle_f32x4(sums[2 * k], sums[2 * k + 1], 0xEE));
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++)
        four[k] = _mm512_add_ps(_mm512_shuffle_f32x4(eight[2 * k], eight[2 * k + 1], 0x88),
                                _mm512_shuffle_f32x4(eight[2 * k], eight[2 * k + 1], 0xDD));
#pragma GCC unroll 2
    for (int k = 0; k < 2; k++)
        two[k] = _mm512_add_ps(_mm512_shuffle_ps(four[2 * k], four[2 * k + 1], 0x44),
                               _mm512_shuffle_ps(four[2 * k], four[2 * k + 1], 0xEE));
    return _mm512_add_ps(_mm512_shuffle_ps(two[0], two[1], 0x88),
                         _mm512_shuffle_ps(two[0], two[1], 0xDD));
}

/* Adds to sums [b row][a row] the products of n elements of rows a and b.  Lanes past the end stay
 * as they are: adding a product of zeros could change -0. */
INLINE void add_dots(const float *const a[ROWS], const float *const b[ROWS], uint32_t n,
                     __m512 sums[ROWS * ROWS])
{
    __m512 local[ROWS * ROWS];
    const float *a0 = a[0], *a1 = a[1], *a2 = a[2], *a3 = a[3];
    const float *b0 = b[0], *b1 = b[1], *b2 = b[2], *b3 = b[3];
#pragma GCC unroll 16
    for (int k = 0; k < ROWS * ROWS; k++)
        local[k] = sums[k];
    uint32_t i = 0;
    for (; i + BITM_LANES <= n; i += BITM_LANES) {
        const __m512 x[ROWS] = {_mm512_loadu_ps(a0 + i), _mm512_loadu_ps(a1 + i),
                                _mm512_loadu_ps(a2 + i), _mm512_loadu_ps(a3 + i)};
        const __m512 y[ROWS] = {_mm512_loadu_ps(b0 + i), _mm512_loadu_ps(b1 + i),
                                _mm512_loadu_ps(b2 + i), _mm512_loadu_ps(b3 + i)};
#pragma GCC unroll 16
        for (int k = 0; k < ROWS * ROWS; k++)
            local[k] = _mm512_fmadd_ps(y[k / ROWS], x[k % ROWS], local[k]);
    }
    if (i < n) {
        __mmask16 exist = first_lanes(n - i);
#pragma GCC unroll 16
        for (int k = 0; k < ROWS * ROWS; k++)
            local[k] = _mm512_mask3_fmadd_ps(_mm512_maskz_loadu_ps(exist, b[k / ROWS] + i),
                                             _mm512_maskz_loadu_ps(exist, a[k % ROWS] + i),
                                             local[k], exist);
    }
#pragma GCC unroll 16
    for (int k = 0; k < ROWS * ROWS; k++)
        sums[k] = local[k];
}

/* Rows from `first` on, `stride` apart, the last one again where there are fewer than four. */
INLINE void find_rows(const float *first, size_t stride, uint32_t n, const float *rows[ROWS])
{
    for (uint32_t r = 0; r < ROWS; r++)
        rows[r] = first + (r < n ? r : n - 1) * stride;
}

/* ---- Weights as floats ---- */

/* w1: 2 b - 1; w2: 2 positive - nonzero. */
INLINE __m512 load_bits(const bitm_gemm *gemm, bool ternary, size_t output, uint32_t input)
{
    size_t n_words = ((size_t)gemm->n_inputs + 63) / 64;
    const uint64_t *row = (const uint64_t *)gemm->weights + output * n_words + input / 64;
    const uint64_t *positive = ternary ? row + gemm->n_rows * n_words : row;
    __m512 one = _mm512_set1_ps(1.0F), two = _mm512_set1_ps(2.0F);
    __mmask16 plus = (__mmask16)(*positive >> input % 64);
    if (!ternary) return _mm512_mask_blend_ps(plus, _mm512_set1_ps(-1.0F), one);
    __m512 minus = _mm512_maskz_mov_ps((__mmask16)(*row >> input % 64), _mm512_set1_ps(-1.0F));
    return _mm512_mask_add_ps(minus, plus, minus, two);
}

/* Weights from `input` on of which the first n exist: at least 1. */
INLINE __m512 load_weights(const bitm_gemm *gemm, bitm_dtype kind, size_t output, uint32_t input,
                           uint32_t n)
{
    size_t place = output * gemm->n_inputs + input;
    __mmask16 exist = first_lanes(n);
    switch (kind) {
    case BITM_DTYPE_F32: {
        const float *weights = (const float *)gemm->weights + place;
        return n >= 16 ? _mm512_loadu_ps(weights) : _mm512_maskz_loadu_ps(exist, weights);
    }
    case BITM_DTYPE_F16: {
        const uint16_t *weights = (const uint16_t *)gemm->weights + place;
        return _mm512_cvtph_ps(n >= 16 ? _mm256_loadu_si256((const __m256i *)weights)
                                       : _mm256_maskz_loadu_epi16(exist, weights));
    }
    case BITM_DTYPE_I8: {
        const int8_t *weights = (const int8_t *)gemm->weights + place;
        __m128i codes = n >= 16 ? _mm_loadu_si128((const __m128i *)weights)
                                : _mm_maskz_loadu_epi8(exist, weights);
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
    }
    case BITM_DTYPE_BIT1:
        return load_bits(gemm, false, output, input);
    case BITM_DTYPE_TERN:
        break;
    }
    return load_bits(gemm, true, output, input);
}

/* Whether weights of a kind have an element each, rather than bits. */
INLINE bool has_elements(bitm_dtype kind)
{
    return kind != BITM_DTYPE_BIT1 && kind != BITM_DTYPE_TERN;
}

/* The element numbered `place` of weights of a kind that has one for each. */
INLINE const uint8_t *weight_at(const bitm_gemm *gemm, bitm_dtype kind, size_t place)
{
    size_t n_bytes = kind == BITM_DTYPE_F32 ? 4 : kind == BITM_DTYPE_F16 ? 2 : 1;
    return (const uint8_t *)gemm->weights + place * n_bytes;
}

/* ---- Products ---- */

/* Four outputs, at most BLOCK_TOKENS tokens: dots [token][OUTPUTS], from the first of them on. */
INLINE void multiply_four(const bitm_gemm *gemm, bitm_dtype kind, size_t token, uint32_t n_tokens,
                          size_t output, uint32_t n_outputs, float (*dots)[OUTPUTS])
{
    _Alignas(64) float room[ROWS][STRETCH];
    __m512 sums[BLOCK_TOKENS / ROWS][ROWS * ROWS];
    const float *x[ROWS], *weights[ROWS];
    size_t n_inputs = gemm->n_inputs;
    for (uint32_t t = 0; t < n_tokens; t += ROWS)
        for (int k = 0; k < ROWS * ROWS; k++)
            sums[t / ROWS][k] = _mm512_setzero_ps();
    for (uint32_t first = 0; first < n_inputs; first += STRETCH) {
        uint32_t n = smaller(STRETCH, gemm->n_inputs - first);
        if (kind == BITM_DTYPE_F32) {
            find_rows((const float *)gemm->weights + output * n_inputs + first, n_inputs, n_outputs,
                      weights);
        } else {
            find_rows(room[0], STRETCH, n_outputs, weights);
            for (uint32_t o = 0; o < n_outputs; o++)
                for (uint32_t i = 0; i < n; i += BITM_LANES) {
                    if (has_elements(kind))
                        ask_for(weight_at(gemm, kind, (output + o) * n_inputs + first + i),
                                AHEAD_BYTES);
                    _mm512_store_ps(room[o] + i,
                                    load_weights(gemm, kind, output + o, first + i, n - i));
                }
        }
        for (uint32_t t = 0; t < n_tokens; t += ROWS) {
            find_rows((const float *)gemm->inputs + (token + t) * n_inputs + first, n_inputs,
                      n_tokens - t, x);
            add_dots(x, weights, n, sums[t / ROWS]);
        }
    }
    for (uint32_t t = 0; t < n_tokens; t += ROWS) {
        _Alignas(64) float folds[ROWS][ROWS];
        _mm512_store_ps(folds[0], fold_16(sums[t / ROWS]));
        for (uint32_t r = 0; r < smaller(ROWS, n_tokens - t); r++)
            _mm_storeu_ps(dots[t + r], _mm_load_ps(folds[r]));
    }
}

/* One token, 16 outputs: weights are used once, so they are not stored as floats, and memory is
 * what they wait for (a masked LM's head, 47 MB). */
INLINE void multiply_token(const bitm_gemm *gemm, bitm_dtype kind, size_t token, uint32_t output,
                           uint32_t n_outputs, float *dots)
{
    const float *x = (const float *)gemm->inputs + token * gemm->n_inputs;
    uint32_t n = gemm->n_inputs;
    __m512 sums[OUTPUTS];
    for (uint32_t first = 0; first < OUTPUTS; first += ROWS) {
        size_t row[ROWS];
        for (uint32_t r = 0; r < ROWS; r++) {
            row[r] = smaller(output + first + r, output + n_outputs - 1);
            sums[first + r] = _mm512_setzero_ps();
        }
        uint32_t i = 0;
        for (; i + BITM_LANES <= n; i += BITM_LANES) {
            __m512 inputs = _mm512_loadu_ps(x + i);
            for (uint32_t r = 0; r < ROWS; r++) {
                ask_for(weight_at(gemm, kind, row[r] * n + i), AHEAD_BYTES);
                sums[first + r] = _mm512_fmadd_ps(load_weights(gemm, kind, row[r], i, BITM_LANES),
                                                  inputs, sums[first + r]);
            }
        }
        __mmask16 exist = first_lanes(n - i);
        for (uint32_t r = 0; r < ROWS && i < n; r++)
            sums[first + r] =
                _mm512_mask3_fmadd_ps(load_weights(gemm, kind, row[r], i, n - i),
                                      _mm512_maskz_loadu_ps(exist, x + i), sums[first + r], exist);
    }
    /* Lane 4 i + j is of output 4 j + i. */
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_ps(dots, _mm512_permutexvar_ps(order, fold_16(sums)));
}

/* At most BLOCK_TOKENS tokens. */
INLINE void multiply_block(const bitm_gemm *gemm, bitm_dtype kind, uint32_t token,
                           uint32_t n_tokens, uint32_t output, uint32_t n_outputs)
{
    _Alignas(64) float dots[BLOCK_TOKENS][OUTPUTS];
    for (uint32_t o = 0; o < n_outputs; o += OUTPUTS) {
        uint32_t n = smaller(OUTPUTS, n_outputs - o);
        if (n_tokens == 1 && has_elements(kind)) {
            multiply_token(gemm, kind, token, output + o, n, dots[0]);
        } else {
            for (uint32_t k = 0; k < n; k += ROWS)
                multiply_four(gemm, kind, token, n_tokens, (size_t)output + o + k,
                              smaller(ROWS, n - k), (float (*)[OUTPUTS])(dots[0] + k));
        }
        epilogue e = begin_epilogue(gemm, (size_t)output + o, first_lanes(n));
        for (uint32_t t = 0; t < n_tokens; t++)
            store_outputs(gemm, &e, token + t, _mm512_load_ps(dots[t]));
    }
}

INLINE void multiply(const bitm_gemm *gemm, bitm_dtype kind, uint32_t token, uint32_t n_tokens,
                     uint32_t output, uint32_t n_outputs)
{
    for (uint32_t t = 0; t < n_tokens; t += BLOCK_TOKENS)
        multiply_block(gemm, kind, token + t, smaller(BLOCK_TOKENS, n_tokens - t), output,
                       n_outputs);
}

void bitm_gemm_w1f32__avx512(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                             uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, BITM_DTYPE_BIT1, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2f32__avx512(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                             uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, BITM_DTYPE_TERN, token, n_tokens, output, n_outputs);
}

void bitm_gemm_i8__avx512(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens, uint32_t output,
                          uint32_t n_outputs)
{
    multiply(gemm, BITM_DTYPE_I8, token, n_tokens, output, n_outputs);
}

void bitm_gemm_f16__avx512(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                           uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, BITM_DTYPE_F16, token, n_tokens, output, n_outputs);
}

void bitm_gemm_f32__avx512(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                           uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, BITM_DTYPE_F32, token, n_tokens, output, n_outputs);
}
