/* AVX2 products of floats.
 *
 * The 16 canonical lanes of a dot are two vectors, and each half of them is added up alone: so the
 * sums of 3 tokens by 4 outputs are 12 registers, and a step loads 7 vectors for 12 products.
 * Weights of other types become floats once for many tokens.  Those of 8 outputs stay in the first
 * cache while tokens come by from the second.
 *
 *   vfmadd    the products                2 a cycle, latency 4 or 5: at least 10 sums at once
 *   vmovups   tokens, weights             2 a cycle
 *   vcvtph2ps binary16 weights            1 a cycle
 *   vpsllvd   a bit to each lane's sign   1 or 2 a cycle
 */
#include "x86_avx2.h"

#include <string.h>

/* ---- Dots ---- */

enum {
    TILE_TOKENS = 3, /* with TILE_OUTPUTS: sums, 3 tokens and a weight fill the 16 registers */
    TILE_OUTPUTS = 4,
    PANEL_TILES = 2, /* of outputs whose weights are floats at a time */
    PANEL = PANEL_TILES * TILE_OUTPUTS,
    STRETCH = 512,       /* weights of a row converted at a time; a multiple of 64 */
    APART = 8,           /* floats between rows: odd ones begin in other banks than even ones */
    SUM_TILES = 8,       /* of tokens whose sums wait for the next stretch */
    BLOCK_TOKENS = 96,   /* tokens that one conversion serves where there is one stretch */
    AHEAD_BYTES = 12288, /* of one token's weights, from reading to asking */
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

/* Rows of tokens and of weights, of which so many inputs are at work. */
typedef struct tile {
    const float *tokens;
    size_t stride; /* floats from token to token */
    const float *weights[TILE_OUTPUTS];
    uint32_t n;
} tile;

/* Sums of 8 lanes, of all 16: 0 to 7, 8 to 15. */
typedef __m256 half_sums[TILE_TOKENS][TILE_OUTPUTS];
typedef half_sums tile_sums[2];

/* Adds products to the sums of the 8 lanes from `lane` on. */
INLINE void add_half(const tile *x, const uint32_t n_tokens, size_t lane, half_sums sums)
{
    const float *tokens = x->tokens, *weights[TILE_OUTPUTS];
    size_t stride = x->stride, end = x->n / BITM_LANES * BITM_LANES;
    for (uint32_t o = 0; o < TILE_OUTPUTS; o++)
        weights[o] = x->weights[o];
    for (size_t i = lane; i < end; i += BITM_LANES) {
        __m256 token[TILE_TOKENS];
        for (uint32_t t = 0; t < n_tokens; t++)
            token[t] = in_register(_mm256_loadu_ps(tokens + t * stride + i));
        for (uint32_t o = 0; o < TILE_OUTPUTS; o++) {
            __m256 weight = in_register(_mm256_loadu_ps(weights[o] + i));
            for (uint32_t t = 0; t < n_tokens; t++)
                sums[t][o] = _mm256_fmadd_ps(token[t], weight, sums[t][o]);
        }
    }
}

/* The inputs that fill no 16 lanes. */
static void add_rest(const tile *x, uint32_t n_tokens, tile_sums sums)
{
    uint32_t first = x->n / BITM_LANES * BITM_LANES;
    for (uint32_t t = 0; t < n_tokens; t++)
        for (uint32_t o = 0; o < TILE_OUTPUTS; o++) {
            lanes sum = {sums[0][t][o], sums[1][t][o]};
            add_last_products(x->tokens + t * x->stride + first, x->weights[o] + first,
                              x->n - first, &sum);
            sums[0][t][o] = sum.low;
            sums[1][t][o] = sum.high;
        }
}

/* The dots of 4 outputs from half of their lanes, to which the other half has been added: the
 * canonical fold. */
INLINE __m128 fold_4(const __m256 eight[TILE_OUTPUTS])
{
    /* Four lanes of outputs 0 and 1, of 2 and 3. */
    __m256 four01 = _mm256_add_ps(_mm256_permute2f128_ps(eight[0], eight[1], 0x20),
                                  _mm256_permute2f128_ps(eight[0], eight[1], 0x31));
    __m256 four23 = _mm256_add_ps(_mm256_permute2f128_ps(eight[2], eight[3], 0x20),
                                  _mm256_permute2f128_ps(eight[2], eight[3], 0x31));
    /* Two lanes of 0, of 2; of 1, of 3. */
    __m256 two = _mm256_add_ps(_mm256_shuffle_ps(four01, four23, _MM_SHUFFLE(1, 0, 1, 0)),
                               _mm256_shuffle_ps(four01, four23, _MM_SHUFFLE(3, 2, 3, 2)));
    __m128 low = _mm256_castps256_ps128(two), high = _mm256_extractf128_ps(two, 1);
    __m128 one = _mm_add_ps(_mm_shuffle_ps(low, high, _MM_SHUFFLE(2, 0, 2, 0)),
                            _mm_shuffle_ps(low, high, _MM_SHUFFLE(3, 1, 3, 1)));
    return _mm_shuffle_ps(one, one, _MM_SHUFFLE(3, 1, 2, 0));
}

/* Which of a dot's stretches is at work: that where sums begin at 0, that after which they end. */
typedef struct stretch {
    bool begins, ends;
} stretch;

/* Adds the tile's products to sums; at the end, dots [n_tokens, TILE_OUTPUTS] are folds of them. */
INLINE void multiply_tile(const tile *x, const uint32_t n_tokens, stretch place, tile_sums sums,
                          float *dots)
{
    half_sums half;
    for (uint32_t k = 0; k < 2; k++) {
        for (uint32_t t = 0; t < n_tokens; t++)
            for (uint32_t o = 0; o < TILE_OUTPUTS; o++)
                half[t][o] = place.begins ? _mm256_setzero_ps() : sums[k][t][o];
        add_half(x, n_tokens, k * 8, half);
        for (uint32_t t = 0; t < n_tokens; t++)
            for (uint32_t o = 0; o < TILE_OUTPUTS; o++)
                sums[k][t][o] = half[t][o];
    }
    if (x->n % BITM_LANES > 0) add_rest(x, n_tokens, sums);
    for (uint32_t t = 0; place.ends && t < n_tokens; t++) {
        __m256 eight[TILE_OUTPUTS];
        for (uint32_t o = 0; o < TILE_OUTPUTS; o++)
            eight[o] = _mm256_add_ps(sums[0][t][o], sums[1][t][o]);
        _mm_storeu_ps(dots + t * TILE_OUTPUTS, fold_4(eight));
    }
}

/* ---- Weights as floats ---- */

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

/* Asks for what will be wanted so many bytes later.  Beyond the last row that asks for
 * nothing that matters, and nothing is read. */
INLINE void ask_for(const void *element, size_t ahead_bytes)
{
    _mm_prefetch((const char *)((uintptr_t)element + ahead_bytes), _MM_HINT_T1);
}

/* ahead: elements from this row to the same of the next panel. */
static void expand_i8(const int8_t *codes, uint32_t n, size_t ahead, float *weights)
{
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        ask_for(codes + i, ahead);
        __m256i code = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(codes + i)));
        _mm256_store_ps(weights + i, _mm256_cvtepi32_ps(code));
    }
    for (; i < n; i++)
        weights[i] = (float)codes[i];
}

static void expand_f16(const uint16_t *halves, uint32_t n, size_t ahead, float *weights)
{
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        ask_for(halves + i, ahead * sizeof *halves);
        _mm256_store_ps(weights + i,
                        _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(halves + i))));
    }
    for (; i < n; i++)
        weights[i] = bitm_f16_to_f32(halves[i]);
}

/* n weights of a row from input `first` on: in `room`, or where they lie. */
INLINE const float *weights_of(const bitm_gemm *gemm, bitm_dtype kind, size_t output,
                               uint32_t first, uint32_t n, float *room)
{
    size_t place = output * gemm->n_inputs + first, ahead = (size_t)PANEL * gemm->n_inputs;
    switch (kind) {
    case BITM_DTYPE_F32:
        return (const float *)gemm->weights + place;
    case BITM_DTYPE_F16:
        expand_f16((const uint16_t *)gemm->weights + place, n, ahead, room);
        break;
    case BITM_DTYPE_I8:
        expand_i8((const int8_t *)gemm->weights + place, n, ahead, room);
        break;
    case BITM_DTYPE_BIT1:
        expand_bits(gemm, false, output, first, n, room);
        break;
    case BITM_DTYPE_TERN:
        expand_bits(gemm, true, output, first, n, room);
        break;
    }
    return room;
}

/* ---- Products ---- */

/* A panel's outputs for the tokens of a tile, whose dots are [PANEL_TILES, n_tokens,
 * TILE_OUTPUTS]. */
INLINE void store_panel(const bitm_gemm *gemm, uint32_t token, const uint32_t n_tokens,
                        uint32_t output, uint32_t n_outputs, const float *dots)
{
    for (uint32_t t = 0; t < n_tokens; t++, dots += TILE_OUTPUTS) {
        epilogue e = open_epilogue(gemm, token + t, output);
        __m256 eight = _mm256_loadu2_m128(dots + n_tokens * TILE_OUTPUTS, dots);
        if (n_outputs == PANEL)
            store_outputs(&e, 0, PANEL, eight);
        else
            store_outputs(&e, 0, n_outputs, eight);
    }
}

/* Adds a stretch of inputs, from `first` on, to sums of n_tokens tokens with a panel's outputs; at
 * its end, stores the outputs. */
INLINE void multiply_tiles(const bitm_gemm *gemm, const float *const weights[PANEL], uint32_t first,
                           uint32_t n, uint32_t token, const uint32_t n_tokens, uint32_t output,
                           uint32_t n_outputs, tile_sums sums[PANEL_TILES])
{
    float dots[PANEL_TILES * TILE_TOKENS * TILE_OUTPUTS];
    stretch place = {first == 0, first + n == gemm->n_inputs};
    tile x = {.tokens = (const float *)gemm->inputs + (size_t)token * gemm->n_inputs + first,
              .stride = gemm->n_inputs,
              .n = n};
    for (uint32_t k = 0; k * TILE_OUTPUTS < n_outputs; k++) {
        for (uint32_t o = 0; o < TILE_OUTPUTS; o++)
            x.weights[o] = weights[k * TILE_OUTPUTS + o];
        multiply_tile(&x, n_tokens, place, sums[k], dots + k * n_tokens * TILE_OUTPUTS);
    }
    if (n_outputs <= TILE_OUTPUTS) /* nothing is in the second tile */
        memset(dots + n_tokens * TILE_OUTPUTS, 0, n_tokens * TILE_OUTPUTS * sizeof *dots);
    if (place.ends) store_panel(gemm, token, n_tokens, output, n_outputs, dots);
}

/* The rest of a block, which fills no tile, or a whole tile. */
static void multiply_some(const bitm_gemm *gemm, const float *const weights[PANEL], uint32_t first,
                          uint32_t n, uint32_t token, uint32_t n_tokens, uint32_t output,
                          uint32_t n_outputs, tile_sums sums[PANEL_TILES])
{
    if (n_tokens == 1)
        multiply_tiles(gemm, weights, first, n, token, 1, output, n_outputs, sums);
    else if (n_tokens == 2)
        multiply_tiles(gemm, weights, first, n, token, 2, output, n_outputs, sums);
    else
        multiply_tiles(gemm, weights, first, n, token, TILE_TOKENS, output, n_outputs, sums);
}

/* At most PANEL outputs, and as many tokens as block_tokens says. */
INLINE void multiply_panel(const bitm_gemm *gemm, bitm_dtype kind, uint32_t token,
                           uint32_t n_tokens, uint32_t output, uint32_t n_outputs)
{
    _Alignas(64) float room[PANEL][STRETCH + APART];
    tile_sums sums[SUM_TILES][PANEL_TILES];
    const float *weights[PANEL];
    for (uint32_t first = 0; first < gemm->n_inputs; first += STRETCH) {
        uint32_t n = smaller(STRETCH, gemm->n_inputs - first);
        for (uint32_t o = 0; o < PANEL; o++) /* rows past the last: any, for nothing */
            weights[o] =
                o < n_outputs ? weights_of(gemm, kind, output + o, first, n, room[o]) : weights[0];
        for (uint32_t t = 0; t < n_tokens; t += TILE_TOKENS) {
            /* Sums of one stretch are done with at once. */
            uint32_t slot = gemm->n_inputs > STRETCH ? t / TILE_TOKENS : 0;
            multiply_some(gemm, weights, first, n, token + t, smaller(TILE_TOKENS, n_tokens - t),
                          output, n_outputs, sums[slot]);
        }
    }
}

/* The element numbered `place` of weights of a kind that has one for each. */
INLINE const uint8_t *weight_at(const bitm_gemm *gemm, bitm_dtype kind, size_t place)
{
    size_t n_bytes = kind == BITM_DTYPE_F32 ? 4 : kind == BITM_DTYPE_F16 ? 2 : 1;
    return (const uint8_t *)gemm->weights + place * n_bytes;
}

INLINE __m256 load_weights(const bitm_gemm *gemm, bitm_dtype kind, size_t place)
{
    const uint8_t *weights = weight_at(gemm, kind, place);
    if (kind == BITM_DTYPE_F32) return _mm256_loadu_ps((const float *)(const void *)weights);
    if (kind == BITM_DTYPE_F16) return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)weights));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)weights)));
}

/* One token: its weights are used once, so they are not stored as floats, and memory is what they
 * wait for (a masked LM's head, 47 MB).  One row after the other, for that is one stream for the
 * prefetcher of the CPU, which stops at pages: what follows is asked for as well. */
INLINE void multiply_token(const bitm_gemm *gemm, bitm_dtype kind, uint32_t token, uint32_t output)
{
    const float *x = (const float *)gemm->inputs + (size_t)token * gemm->n_inputs;
    size_t n = gemm->n_inputs, row = output * n;
    uint32_t i = 0;
    lanes sum = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (; i + BITM_LANES <= n; i += BITM_LANES) {
        ask_for(weight_at(gemm, kind, row + i), AHEAD_BYTES);
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

/* Tokens that one conversion of weights serves. */
INLINE uint32_t block_tokens(const bitm_gemm *gemm)
{
    return gemm->n_inputs > STRETCH ? SUM_TILES * TILE_TOKENS : BLOCK_TOKENS;
}

INLINE void multiply(const bitm_gemm *gemm, bitm_dtype kind, uint32_t token, uint32_t n_tokens,
                     uint32_t output, uint32_t n_outputs)
{
    const uint32_t block = block_tokens(gemm);
    for (uint32_t t = 0; t < n_tokens; t += block) {
        uint32_t n = smaller(block, n_tokens - t), o = 0;
        if (n == 1 && kind != BITM_DTYPE_BIT1 && kind != BITM_DTYPE_TERN)
            for (; o < n_outputs; o++)
                multiply_token(gemm, kind, token + t, output + o);
        for (; o < n_outputs; o += PANEL)
            multiply_panel(gemm, kind, token + t, n, output + o, smaller(PANEL, n_outputs - o));
        activate_block(gemm, token + t, n, output, n_outputs);
    }
}

void bitm_gemm_w1f32__avx2(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                           uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, BITM_DTYPE_BIT1, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2f32__avx2(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                           uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, BITM_DTYPE_TERN, token, n_tokens, output, n_outputs);
}

void bitm_gemm_i8__avx2(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens, uint32_t output,
                        uint32_t n_outputs)
{
    multiply(gemm, BITM_DTYPE_I8, token, n_tokens, output, n_outputs);
}

void bitm_gemm_f16__avx2(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens, uint32_t output,
                         uint32_t n_outputs)
{
    multiply(gemm, BITM_DTYPE_F16, token, n_tokens, output, n_outputs);
}

void bitm_gemm_f32__avx2(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens, uint32_t output,
                         uint32_t n_outputs)
{
    multiply(gemm, BITM_DTYPE_F32, token, n_tokens, output, n_outputs);
}
