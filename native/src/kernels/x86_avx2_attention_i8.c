/* AVX2 attention of codes: see bitm_attention_i8_fn.
 *
 * Codes are kept as 16 bits: vpmaddubsw of bytes would not hold the sums of two products of 255 by
 * 127, and with smaller codes it needs as many operations.  Keys are laid out anew once for a head:
 * two components of 16 keys side by side, so that scores come out 8 at a time.  Values lie the same
 * way: two tokens of all components.  Queries are taken in blocks, so that keys and values are read
 * once for a block, and only a block's scores exist.
 *
 *   vpmaddwd      16 multiply-adds, 2 a cycle on Zen and Intel; an addition beside it
 *   vpbroadcastd  two codes in all lanes: a load alone
 *
 * Four queries meet two vectors: 8 products for 6 loads, and all in registers. */
#include "x86_avx2.h"

#include <string.h>

enum {
    CHUNK = BITM_ATTENTION_CHUNK,
    QUERIES = BITM_ATTENTION_QUERIES,
    TILE = 4,    /* queries at work together */
    VECTORS = 2, /* of keys, or of components, at work together */
    LANES = 8,
};

/* ---- Codes ---- */

/* To the nearest integer: the low bits of x + BITM_ROUND_MAGIC hold it. */
INLINE __m256i to_integers(__m256 x)
{
    __m256i bits = _mm256_castps_si256(_mm256_add_ps(x, all(BITM_ROUND_MAGIC)));
    return _mm256_sub_epi32(bits, _mm256_castps_si256(all(BITM_ROUND_MAGIC)));
}

/* Two codes of 16 bits in each lane. */
INLINE __m256i pairs(__m256i low, __m256i high)
{
    return _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xAA);
}

/* Codes [n_columns] of a token, zeros past its components; returns their step. */
INLINE float quantize_token(const float *x, uint32_t head_size, size_t n_columns, int16_t *codes)
{
    int8_t *bytes = (int8_t *)codes; /* of which the first half are taken up from the end on */
    float step, unused_sum;
    bitm_quantize_i8__avx2(x, head_size, bytes, &step, &unused_sum);
    memset(bytes + head_size, 0, n_columns - head_size);
    for (size_t d = n_columns; d > 0; d -= 16) {
        __m128i sixteen = _mm_loadu_si128((const __m128i *)(bytes + d - 16));
        _mm256_storeu_si256((__m256i *)(codes + d - 16), _mm256_cvtepi8_epi16(sixteen));
    }
    return step;
}

/* Keys as [n_padded / CHUNK, n_columns / 2, CHUNK, 2]. */
static void lay_out_keys(const bitm_attention *a, const bitm_attention_codes *c)
{
    int16_t *laid_out = c->keys, *rows = c->values; /* [LANES, n_columns]: values come later */
    for (size_t j = 0; j < c->n_padded; j += LANES) {
        bitm_attention_ask(a, a->key, j + LANES, LANES, a->n_tokens);
        bitm_attention_ask(a, a->value, j, LANES, a->n_tokens);
        memset(rows, 0, LANES * c->n_columns * sizeof *rows);
        for (size_t i = 0; i < LANES && j + i < a->n_tokens; i++)
            c->key_step[j + i] = quantize_token(a->key + (j + i) * a->stride, a->head_size,
                                                c->n_columns, rows + i * c->n_columns);
        int16_t *column = laid_out + j / CHUNK * CHUNK * c->n_columns + j % CHUNK * 2;
        for (size_t d = 0; d < c->n_columns; d += 16) {
            __m256 v[LANES];
            for (size_t i = 0; i < LANES; i++)
                v[i] = _mm256_castsi256_ps(
                    _mm256_loadu_si256((const __m256i *)(rows + i * c->n_columns + d)));
            transpose_floats(v);
            for (size_t i = 0; i < LANES; i++)
                _mm256_storeu_si256((__m256i *)(column + (d / 2 + i) * CHUNK * 2),
                                    _mm256_castps_si256(v[i]));
        }
    }
}

/* Codes of 8 components of a token; of none where there is no such token. */
INLINE __m256i value_codes(const bitm_attention *a, size_t j, uint32_t d, __m256 factor)
{
    if (j >= a->n_tokens) return _mm256_setzero_si256();
    __m256 v = load_floats(a->value + j * a->stride + d, a->head_size - d);
    /* No code is greater than 127, but a value that is not a number must become one. */
    return to_integers(_mm256_max_ps(_mm256_mul_ps(v, factor), all(-127.0F)));
}

/* Values as [n_padded / 2, n_columns, 2], and the steps of components. */
static void lay_out_values(const bitm_attention *a, const bitm_attention_codes *c)
{
    memset(c->values, 0, c->n_padded * c->n_columns * sizeof(int16_t));
    for (uint32_t d = 0; d < a->head_size; d += LANES) {
        __m256 greatest = _mm256_setzero_ps();
        for (size_t j = 0; j < a->n_tokens; j++) {
            __m256 v = load_floats(a->value + j * a->stride + d, a->head_size - d);
            greatest = _mm256_max_ps(_mm256_andnot_ps(all(-0.0F), v), greatest);
        }
        __m256 factor = _mm256_div_ps(all(127.0F), greatest);
        /* As bitm_quantize_i8 has it: no codes where the factor is not finite. */
        __m256 usable = _mm256_and_ps(_mm256_cmp_ps(greatest, _mm256_setzero_ps(), _CMP_GT_OQ),
                                      _mm256_cmp_ps(factor, all(3.402823466e38F), _CMP_LE_OQ));
        factor = _mm256_and_ps(usable, factor);
        _mm256_storeu_ps(c->value_step + d,
                         _mm256_and_ps(usable, _mm256_div_ps(greatest, all(127.0F))));
        int16_t *laid_out = (int16_t *)c->values + (size_t)d * 2;
        for (size_t j = 0; j < a->n_tokens; j += 2, laid_out += c->n_columns * 2)
            _mm256_storeu_si256((__m256i *)laid_out, pairs(value_codes(a, j, d, factor),
                                                           value_codes(a, j + 1, d, factor)));
    }
}

/* ---- Products ---- */

/* The numbers of both are constants of the functions that change them. */
typedef struct tile_sums {
    __m256i of[TILE][VECTORS];
} tile_sums;

/* Sums of n_pairs products of pairs of codes x, rows x_stride apart, with vectors y, that are
 * y_stride apart from pair to pair. */
INLINE void multiply(const int16_t *x, size_t x_stride, const int16_t *y, size_t y_stride,
                     size_t n_pairs, const uint32_t n_queries, tile_sums *sums)
{
    for (uint32_t q = 0; q < n_queries; q++)
        for (uint32_t k = 0; k < VECTORS; k++)
            sums->of[q][k] = _mm256_setzero_si256();
    for (size_t i = 0; i < n_pairs; i++, y += y_stride) {
        __m256i y_i16x16[VECTORS];
        for (uint32_t k = 0; k < VECTORS; k++)
            y_i16x16[k] = _mm256_loadu_si256((const __m256i *)(y + (size_t)k * 2 * LANES));
        for (uint32_t q = 0; q < n_queries; q++) {
            int32_t pair;
            memcpy(&pair, x + q * x_stride + 2 * i, sizeof pair);
            __m256i x_i16x16 = _mm256_set1_epi32(pair);
            for (uint32_t k = 0; k < VECTORS; k++)
                sums->of[q][k] =
                    _mm256_add_epi32(sums->of[q][k], _mm256_madd_epi16(x_i16x16, y_i16x16[k]));
        }
    }
}

/* ---- Scores ---- */

INLINE void find_tile(const bitm_attention_codes *c, const float factor[], uint32_t row,
                      const uint32_t n_queries, size_t key)
{
    tile_sums sums;
    multiply((const int16_t *)c->queries + row * c->n_columns, c->n_columns,
             (const int16_t *)c->keys + key * c->n_columns, (size_t)CHUNK * 2, c->n_columns / 2,
             n_queries, &sums);
    for (uint32_t k = 0; k < VECTORS; k++) {
        __m256 step = _mm256_loadu_ps(c->key_step + key + (size_t)k * LANES);
        for (uint32_t q = 0; q < n_queries; q++)
            _mm256_storeu_ps(c->scores + (row + q) * c->n_padded + key + (size_t)k * LANES,
                             _mm256_mul_ps(_mm256_cvtepi32_ps(sums.of[q][k]),
                                           _mm256_mul_ps(all(factor[row + q]), step)));
    }
}

static void find_scores(const bitm_attention *a, const bitm_attention_codes *c, size_t query,
                        uint32_t n)
{
    float factor[QUERIES];
    for (uint32_t i = 0; i < n; i++)
        factor[i] = quantize_token(a->query + (query + i) * a->stride, a->head_size, c->n_columns,
                                   (int16_t *)c->queries + i * c->n_columns) *
                    (a->score_scale * BITM_LOG2_E);
    for (size_t key = 0; key < c->n_padded; key += CHUNK) {
        uint32_t i = 0;
        for (; i + TILE <= n; i += TILE)
            find_tile(c, factor, i, TILE, key);
        for (; i < n; i++)
            find_tile(c, factor, i, 1, key);
    }
}

/* ---- Contexts ---- */

/* bitm_probability_code of 8 numbers. */
INLINE __m256i probability_codes(__m256 x)
{
    __m256 clamped = _mm256_max_ps(x, all(BITM_PROBABILITY_LOWEST));
    __m256 shifted = _mm256_add_ps(clamped, all(BITM_ROUND_MAGIC));
    __m256 r = _mm256_sub_ps(clamped, _mm256_sub_ps(shifted, all(BITM_ROUND_MAGIC)));
    __m256 p = all(BITM_PROBABILITY_3);
    p = _mm256_fmadd_ps(p, r, all(BITM_PROBABILITY_2));
    p = _mm256_fmadd_ps(p, r, all(BITM_PROBABILITY_1));
    p = _mm256_fmadd_ps(p, r, all(BITM_PROBABILITY_0));
    __m256i n = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return to_integers(_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), n)));
}

/* A row of scores becomes codes; returns 1 / their sum. */
INLINE float find_codes(const bitm_attention_codes *c, uint32_t n, uint32_t row)
{
    float *scores = c->scores + row * c->n_padded;
    int16_t *codes = (int16_t *)c->codes + row * c->n_padded;
    /* Scores past the last: as good as none, and after the greatest is known codes of 0. */
    for (size_t j = n; j < c->n_padded; j++)
        scores[j] = scores[0];
    __m256 most = all(scores[0]);
    for (size_t j = 0; j < c->n_padded; j += LANES)
        most = _mm256_max_ps(_mm256_loadu_ps(scores + j), most);
    most = all(greatest_lane(most));
    __m256i sum = _mm256_setzero_si256();
    for (uint32_t j = 0; j < c->n_padded; j += CHUNK) {
        __m256i code[VECTORS];
        for (uint32_t k = 0; k < VECTORS; k++) {
            __m256 x = _mm256_sub_ps(_mm256_loadu_ps(scores + j + (size_t)k * LANES), most);
            uint32_t place = j + k * LANES;
            code[k] =
                _mm256_and_si256(probability_codes(x), first_lanes(place < n ? n - place : 0));
            sum = _mm256_add_epi32(sum, code[k]);
        }
        /* Packing works in lanes: it leaves fours in the order 0, 2, 1, 3. */
        __m256i packed = _mm256_packs_epi32(code[0], code[1]);
        _mm256_storeu_si256((__m256i *)(codes + j), _mm256_permute4x64_epi64(packed, 0xD8));
    }
    return 1.0F / (float)sum_lanes(sum);
}

/* Contexts of some queries, whose codes are found. */
INLINE void find_contexts(const bitm_attention *a, const bitm_attention_codes *c, size_t query,
                          uint32_t row, const uint32_t n_queries, const float factor[])
{
    for (uint32_t d = 0; d < c->n_columns; d += VECTORS * LANES) {
        tile_sums sums;
        multiply((const int16_t *)c->codes + row * c->n_padded, c->n_padded,
                 (const int16_t *)c->values + (size_t)d * 2, c->n_columns * 2,
                 ((size_t)a->n_tokens + 1) / 2, n_queries, &sums);
        for (uint32_t q = 0; q < n_queries; q++) {
            float *context = a->context + (query + row + q) * a->context_stride;
            for (uint32_t k = 0; k < VECTORS && d + k * LANES < a->head_size; k++) {
                uint32_t place = d + k * LANES;
                __m256 step = _mm256_loadu_ps(c->value_step + place);
                store_floats(context + place, a->head_size - place,
                             _mm256_mul_ps(_mm256_cvtepi32_ps(sums.of[q][k]),
                                           _mm256_mul_ps(step, all(factor[row + q]))));
            }
        }
    }
}

void bitm_attention_i8__avx2(const bitm_attention *attention, uint32_t token, uint32_t n_tokens)
{
    const bitm_attention_codes c = bitm_attention_codes_open(attention);
    lay_out_keys(attention, &c);
    lay_out_values(attention, &c);
    const size_t end = (size_t)token + n_tokens;
    for (size_t query = token; query < end; query += QUERIES) {
        uint32_t n = smaller(QUERIES, (uint32_t)(end - query)), i = 0;
        float factor[QUERIES];
        bitm_attention_ask(attention, attention->query, query + n, QUERIES, end);
        find_scores(attention, &c, query, n);
        for (uint32_t row = 0; row < n; row++)
            factor[row] = find_codes(&c, attention->n_tokens, row);
        for (; i + TILE <= n; i += TILE)
            find_contexts(attention, &c, query, i, TILE, factor);
        for (; i < n; i++)
            find_contexts(attention, &c, query, i, 1, factor);
    }
}
