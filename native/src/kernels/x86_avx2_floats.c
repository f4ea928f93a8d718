/* AVX2 products of floats.
 *
 * The 16 canonical lanes of a dot are two vectors.  Each step multiplies 16 inputs of a few tokens
 * by those of a few outputs, so that a loaded vector serves several sums; weights of other types
 * become floats once for many tokens.
 *
 *   vfmadd    the products                2 a cycle, latency 4 or 5: at least 10 sums at once
 *   vcvtph2ps binary16 weights            1 a cycle
 *   vpsllvd   a bit to each lane's sign   1 or 2 a cycle
 */
#include "x86_avx2.h"

#include <string.h>

/* ---- Dots ---- */

enum {
    TILE_TOKENS = 3, /* with TILE_OUTPUTS: 12 of the 16 registers are sums */
    TILE_OUTPUTS = 2,
    AHEAD_BYTES = 12288, /* of one token's weights, from reading to asking */
    BLOCK_TOKENS = 48,   /* tokens that one conversion of weights serves */
    STRETCH = 1024,      /* weights of a row converted at a time; a multiple of 64 */
};

/* An operand that several sums use: left alone, gcc loads it again for each. */
INLINE __m256 in_register(__m256 x)
{
    __asm__("" : "+x"(x));
    return x;
}

/* Lanes that have no element stay as they are: adding a product of zeros could change -0. */
INLINE void add_last_products(const float *a, const float *b, uint32_t n, lanes *sum)
{
    __m256 low = _mm256_fmadd_ps(load_floats(a, n), load_floats(b, n), sum->low);
    __m256 high =
        _mm256_fmadd_ps(load_floats(a + 8, less_8(n)), load_floats(b + 8, less_8(n)), sum->high);
    sum->low = _mm256_blendv_ps(sum->low, low, _mm256_castsi256_ps(first_lanes(n)));
    sum->high = _mm256_blendv_ps(sum->high, high, _mm256_castsi256_ps(first_lanes(less_8(n))));
}

/* Adds to sums [n_a, n_b] the products of n elements of the rows a and b, so many floats apart. */
INLINE void add_dots(const float *a, size_t stride_a, const uint32_t n_a, const float *b,
                     size_t stride_b, const uint32_t n_b, uint32_t n, lanes *sums)
{
    lanes local[TILE_TOKENS * TILE_OUTPUTS];
    for (uint32_t k = 0; k < n_a * n_b; k++)
        local[k] = sums[k];
    uint32_t i = 0;
    for (; i + BITM_LANES <= n; i += BITM_LANES) {
        __m256 low[TILE_OUTPUTS], high[TILE_OUTPUTS];
        for (uint32_t q = 0; q < n_b; q++)
            low[q] = _mm256_loadu_ps(b + q * stride_b + i);
        for (uint32_t r = 0; r < n_a; r++) {
            __m256 x = in_register(_mm256_loadu_ps(a + r * stride_a + i));
            for (uint32_t q = 0; q < n_b; q++)
                local[r * n_b + q].low = _mm256_fmadd_ps(x, low[q], local[r * n_b + q].low);
        }
        for (uint32_t q = 0; q < n_b; q++)
            high[q] = _mm256_loadu_ps(b + q * stride_b + i + 8);
        for (uint32_t r = 0; r < n_a; r++) {
            __m256 x = in_register(_mm256_loadu_ps(a + r * stride_a + i + 8));
            for (uint32_t q = 0; q < n_b; q++)
                local[r * n_b + q].high = _mm256_fmadd_ps(x, high[q], local[r * n_b + q].high);
        }
    }
    for (uint32_t k = 0; i < n && k < n_a * n_b; k++)
        add_last_products(a + k / n_b * stride_a + i, b + k % n_b * stride_b + i, n - i, &local[k]);
    for (uint32_t k = 0; k < n_a * n_b; k++)
        sums[k] = local[k];
}

/* ---- Weights as floats ---- */

typedef enum weight_kind {
    WEIGHTS_BIT1,
    WEIGHTS_TERN,
    WEIGHTS_I8,
    WEIGHTS_F16,
    WEIGHTS_F32
} weight_kind;

/* 8 bits from bit `shift` on as 0 or `value`. */
INLINE __m256 bits_to_floats(uint64_t word, uint32_t shift, float value)
{
    const __m256i left_i32x8 = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
    __m256i bits = _mm256_set1_epi32((int)(word >> shift & 255));
    __m256i mask = _mm256_srai_epi32(_mm256_sllv_epi32(bits, left_i32x8), 31);
    return _mm256_and_ps(_mm256_castsi256_ps(mask), _mm256_set1_ps(value));
}

/* w1: 2 b - 1; w2: 2 positive - nonzero. */
static void expand_bits(const bitm_gemm *gemm, bool ternary, size_t output, uint32_t first,
                        uint32_t n, float *weights)
{
    size_t n_words = ((size_t)gemm->n_inputs + 63) / 64;
    const uint64_t *row = (const uint64_t *)gemm->weights + output * n_words + first / 64;
    const uint64_t *positive = ternary ? row + gemm->n_rows * n_words : row;
    for (uint32_t i = 0; i < n; i += 8) {
        __m256 two = bits_to_floats(positive[i / 64], i % 64, 2.0F);
        __m256 one = ternary ? bits_to_floats(row[i / 64], i % 64, 1.0F) : _mm256_set1_ps(1.0F);
        _mm256_store_ps(weights + i, _mm256_sub_ps(two, one));
    }
}

static void expand_i8(const int8_t *codes, uint32_t n, float *weights)
{
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256i code = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(codes + i)));
        _mm256_store_ps(weights + i, _mm256_cvtepi32_ps(code));
    }
    for (; i < n; i++)
        weights[i] = (float)codes[i];
}

static void expand_f16(const uint16_t *halves, uint32_t n, float *weights)
{
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_store_ps(weights + i,
                        _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(halves + i))));
    for (; i < n; i++)
        weights[i] = bitm_f16_to_f32(halves[i]);
}

/* n weights of a row from input `first` on: in `room`, or where they lie. */
INLINE const float *weights_of(const bitm_gemm *gemm, weight_kind kind, size_t output,
                               uint32_t first, uint32_t n, float *room)
{
    size_t place = output * gemm->n_inputs + first;
    switch (kind) {
    case WEIGHTS_F32:
        return (const float *)gemm->weights + place;
    case WEIGHTS_F16:
        expand_f16((const uint16_t *)gemm->weights + place, n, room);
        break;
    case WEIGHTS_I8:
        expand_i8((const int8_t *)gemm->weights + place, n, room);
        break;
    case WEIGHTS_BIT1:
        expand_bits(gemm, false, output, first, n, room);
        break;
    case WEIGHTS_TERN:
        expand_bits(gemm, true, output, first, n, room);
        break;
    }
    return room;
}

/* ---- Products ---- */

/* At most BLOCK_TOKENS tokens and TILE_OUTPUTS outputs. */
INLINE void multiply_block(const bitm_gemm *gemm, weight_kind kind, uint32_t token,
                           uint32_t n_tokens, uint32_t output, const uint32_t n_outputs)
{
    const float *inputs = (const float *)gemm->inputs + (size_t)token * gemm->n_inputs;
    size_t stride = gemm->n_inputs;
    _Alignas(32) float room[TILE_OUTPUTS][STRETCH];
    lanes sums[BLOCK_TOKENS * TILE_OUTPUTS];
    for (uint32_t k = 0; k < n_tokens * n_outputs; k++)
        sums[k].low = sums[k].high = _mm256_setzero_ps();
    for (uint32_t first = 0; first < gemm->n_inputs; first += STRETCH) {
        uint32_t n = smaller(STRETCH, gemm->n_inputs - first);
        const float *weights = NULL;
        for (uint32_t o = n_outputs; o-- > 0;)
            weights = weights_of(gemm, kind, output + o, first, n, room[o]);
        size_t weight_stride = kind == WEIGHTS_F32 ? stride : STRETCH;
        const float *x = inputs + first;
        uint32_t t = 0;
        for (; t + TILE_TOKENS <= n_tokens; t += TILE_TOKENS)
            add_dots(x + t * stride, stride, TILE_TOKENS, weights, weight_stride, n_outputs, n,
                     sums + t * n_outputs);
        for (; t < n_tokens; t++)
            add_dots(x + t * stride, stride, 1, weights, weight_stride, n_outputs, n,
                     sums + t * n_outputs);
    }
    for (uint32_t k = 0; k < n_tokens * n_outputs; k++)
        store_output(gemm, token + k / n_outputs, output + k % n_outputs, fold(sums[k]));
}

/* The element numbered `place` of weights of a kind that has one for each. */
INLINE const uint8_t *weight_at(const bitm_gemm *gemm, weight_kind kind, size_t place)
{
    size_t n_bytes = kind == WEIGHTS_F32 ? 4 : kind == WEIGHTS_F16 ? 2 : 1;
    return (const uint8_t *)gemm->weights + place * n_bytes;
}

INLINE __m256 load_weights(const bitm_gemm *gemm, weight_kind kind, size_t place)
{
    const uint8_t *weights = weight_at(gemm, kind, place);
    if (kind == WEIGHTS_F32) return _mm256_loadu_ps((const float *)(const void *)weights);
    if (kind == WEIGHTS_F16) return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)weights));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)weights)));
}

/* One token: its weights are used once, so they are not stored as floats, and memory is what they
 * wait for (a masked LM's head, 47 MB).  One row after the other, for that is one stream for the
 * prefetcher of the CPU, which stops at pages: what follows is asked for as well.  Beyond the last
 * row that asks for nothing that matters, and nothing is read. */
INLINE void multiply_token(const bitm_gemm *gemm, weight_kind kind, uint32_t token, uint32_t output)
{
    const float *x = (const float *)gemm->inputs + (size_t)token * gemm->n_inputs;
    size_t n = gemm->n_inputs, row = output * n;
    uint32_t i = 0;
    lanes sum = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (; i + BITM_LANES <= n; i += BITM_LANES) {
        uintptr_t address = (uintptr_t)weight_at(gemm, kind, row + i);
        _mm_prefetch((const char *)(address + AHEAD_BYTES), _MM_HINT_T1);
        __m256 low = load_weights(gemm, kind, row + i),
               high = load_weights(gemm, kind, row + i + 8);
        sum.low = _mm256_fmadd_ps(low, _mm256_loadu_ps(x + i), sum.low);
        sum.high = _mm256_fmadd_ps(high, _mm256_loadu_ps(x + i + 8), sum.high);
    }
    _Alignas(32) float room[BITM_LANES];
    uint32_t n_last = (uint32_t)n - i;
    const float *weights = weights_of(gemm, kind, output, i, n_last, room);
    if (n_last > 0) add_last_products(weights, x + i, n_last, &sum);
    store_output(gemm, token, output, fold(sum));
}

INLINE void multiply(const bitm_gemm *gemm, weight_kind kind, uint32_t token, uint32_t n_tokens,
                     uint32_t output, uint32_t n_outputs)
{
    for (uint32_t t = 0; t < n_tokens; t += BLOCK_TOKENS) {
        uint32_t n = smaller(BLOCK_TOKENS, n_tokens - t), o = 0;
        if (n == 1 && kind != WEIGHTS_BIT1 && kind != WEIGHTS_TERN)
            for (; o < n_outputs; o++)
                multiply_token(gemm, kind, token + t, output + o);
        for (; o + TILE_OUTPUTS <= n_outputs; o += TILE_OUTPUTS)
            multiply_block(gemm, kind, token + t, n, output + o, TILE_OUTPUTS);
        if (o < n_outputs) multiply_block(gemm, kind, token + t, n, output + o, 1);
        activate_block(gemm, token + t, n, output, n_outputs);
    }
}

void bitm_gemm_w1f32__avx2(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                           uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, WEIGHTS_BIT1, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2f32__avx2(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                           uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, WEIGHTS_TERN, token, n_tokens, output, n_outputs);
}

void bitm_gemm_i8__avx2(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens, uint32_t output,
                        uint32_t n_outputs)
{
    multiply(gemm, WEIGHTS_I8, token, n_tokens, output, n_outputs);
}

void bitm_gemm_f16__avx2(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens, uint32_t output,
                         uint32_t n_outputs)
{
    multiply(gemm, WEIGHTS_F16, token, n_tokens, output, n_outputs);
}

void bitm_gemm_f32__avx2(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens, uint32_t output,
                         uint32_t n_outputs)
{
    multiply(gemm, WEIGHTS_F32, token, n_tokens, output, n_outputs);
}
