/* AVX-512 VNNI attention of codes: see bitm_attention_i8_fn.
 *
 * vpdpbusd multiplies unsigned by signed bytes, four neighbours into one sum.  Keys are laid out
 * anew once for a head: four components of 16 keys side by side, 128 more than they are; scores
 * then come out 16 at a time, too great by 128 times the sum of the query's codes, which the sums
 * begin with.  Values lie the same way: four tokens of 16 components, and probabilities are the
 * unsigned operand.  Queries are taken in blocks, so that keys and values are read once for a
 * block, and only a block's scores exist.
 *
 *   vpdpbusd      64 multiply-adds, 2 a cycle (ports 0 and 5 of Intel servers; 1 on Zen 4)
 *   vpbroadcastd  four codes in all lanes: a load alone
 *
 * Four queries meet four chunks of keys, or four vectors of components: 16 products for 8 loads. */
#include "x86_avx512.h"

#include <string.h>

enum {
    CHUNK = BITM_ATTENTION_CHUNK,
    QUERIES = BITM_ATTENTION_QUERIES,
    TILE = 4, /* queries at work together, and chunks of keys, and vectors of components */
};

/* The numbers of both are constants of the functions that change them. */
typedef struct tile_sums {
    __m512i of[TILE][TILE];
} tile_sums;

/* ---- Codes ---- */

/* Keys as [n_padded / CHUNK, n_columns / 4, CHUNK, 4] unsigned bytes. */
static void lay_out_keys(const bitm_attention *a, const bitm_attention_codes *c)
{
    const __m512i offset_u8x64 = _mm512_set1_epi8((char)-128);
    const uint32_t n_columns = (uint32_t)c->n_columns;
    uint8_t *laid_out = c->keys;
    for (size_t j = 0; j < c->n_padded; j += CHUNK, laid_out += CHUNK * c->n_columns) {
        const uint32_t n = smaller(CHUNK, (uint32_t)(a->n_tokens - j));
        bitm_attention_ask(a, a->key, j + CHUNK, CHUNK, a->n_tokens);
        bitm_attention_ask(a, a->value, j, CHUNK, a->n_tokens);
        int8_t *codes = c->values; /* [CHUNK, head_size]: values are laid out later */
        float unused_sum;
        for (uint32_t i = 0; i < n; i++)
            bitm_quantize_i8__avx512(a->key + (j + i) * a->stride, a->head_size,
                                     codes + (size_t)i * a->head_size, &c->key_step[j + i],
                                     &unused_sum);
        for (uint32_t d = 0; d < n_columns; d += 64) {
            __mmask64 exist = first_bytes(a->head_size - d);
            __m512i v[CHUNK];
#pragma GCC unroll 16
            for (uint32_t i = 0; i < CHUNK; i++) {
                v[i] = i < n ? _mm512_maskz_loadu_epi8(exist, codes + (size_t)i * a->head_size + d)
                             : _mm512_setzero_si512();
                v[i] = _mm512_xor_si512(v[i], offset_u8x64);
            }
            transpose_lanes(v);
#pragma GCC unroll 16
            for (uint32_t i = 0; i < 16; i++)
                if (d + 4 * i < n_columns)
                    _mm512_storeu_si512(laid_out + (size_t)(d / 4 + i) * 64, v[i]);
        }
    }
}

/* The greatest size of 16 components over all tokens. */
INLINE __m512 greatest_values(const bitm_attention *a, uint32_t d, __mmask16 exist)
{
    __m512 greatest[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (size_t j = 0; j < a->n_tokens; j++) {
        __m512 v = _mm512_maskz_loadu_ps(exist, a->value + j * a->stride + d);
        greatest[j % 2] = _mm512_max_ps(_mm512_abs_ps(v), greatest[j % 2]);
    }
    return _mm512_max_ps(greatest[0], greatest[1]);
}

/* Values as [n_padded / 4, n_columns, 4] signed bytes, and the steps of components. */
static void lay_out_values(const bitm_attention *a, const bitm_attention_codes *c)
{
    for (uint32_t d = 0; d < a->head_size; d += 16) {
        __mmask16 exist = first_lanes(a->head_size - d);
        __m512 greatest = greatest_values(a, d, exist);
        __m512 factor = _mm512_div_ps(all(127.0F), greatest);
        /* As bitm_quantize_i8 has it: no codes where the factor is not finite. */
        __mmask16 usable = _mm512_cmp_ps_mask(greatest, all(0.0F), _CMP_GT_OQ) &
                           _mm512_cmp_ps_mask(factor, all(3.402823466e38F), _CMP_LE_OQ);
        factor = _mm512_maskz_mov_ps(usable, factor);
        _mm512_storeu_ps(c->value_step + d, _mm512_maskz_div_ps(usable, greatest, all(127.0F)));
        int8_t *laid_out = (int8_t *)c->values + (size_t)d * 4;
        for (size_t j = 0; j < c->n_padded; j += 4, laid_out += c->n_columns * 4) {
            __m512i four = _mm512_setzero_si512();
            for (uint32_t i = 0; i < 4 && j + i < a->n_tokens; i++) {
                __m512 v = _mm512_maskz_loadu_ps(exist, a->value + (j + i) * a->stride + d);
                __m512i code = to_integers(_mm512_max_ps(_mm512_mul_ps(v, factor), all(-127.0F)));
                code = _mm512_and_si512(code, _mm512_set1_epi32(0xFF));
                four =
                    _mm512_or_si512(four, _mm512_sllv_epi32(code, _mm512_set1_epi32((int)(8 * i))));
            }
            _mm512_storeu_si512(laid_out, four);
        }
    }
}

/* ---- Products ---- */

/* sum += products, in place: gcc would copy sums around otherwise. */
INLINE void add_products(__m512i *sum, __m512i x_u8x64, __m512i y_i8x64)
{
    *sum = _mm512_dpbusd_epi32(*sum, x_u8x64, y_i8x64);
    __asm__("" : "+v"(*sum));
}

/* The codes of a block of queries, as products need them. */
typedef struct query_block {
    const int8_t *codes;    /* [QUERIES, n_columns] */
    int32_t start[QUERIES]; /* -128 * the sum of a query's codes */
    float factor[QUERIES];
} query_block;

static query_block quantize_queries(const bitm_attention *a, const bitm_attention_codes *c,
                                    size_t query, uint32_t n)
{
    query_block block = {.codes = c->queries};
    const float scale = a->score_scale * BITM_LOG2_E;
    int8_t *codes = c->queries;
    for (uint32_t i = 0; i < n; i++, codes += c->n_columns) {
        float unused_sum;
        memset(codes, 0, c->n_columns);
        bitm_quantize_i8__avx512(a->query + (query + i) * a->stride, a->head_size, codes,
                                 &block.factor[i], &unused_sum);
        block.factor[i] *= scale;
        __m512i sum = _mm512_setzero_si512();
        for (uint32_t d = 0; d < c->n_columns; d += 64)
            sum = _mm512_dpbusd_epi32(
                sum, _mm512_set1_epi8(1),
                _mm512_maskz_loadu_epi8(first_bytes((uint32_t)c->n_columns - d), codes + d));
        block.start[i] = -128 * _mm512_reduce_add_epi32(sum);
    }
    return block;
}

/* Scores of queries [row, row + n_queries) of a block with chunks of keys from `key` on. */
INLINE void find_tile(const bitm_attention_codes *c, const query_block *block, uint32_t row,
                      const uint32_t n_queries, size_t key, const uint32_t n_chunks,
                      const uint32_t n_columns)
{
    const uint8_t *keys = (const uint8_t *)c->keys + key * n_columns;
    const int8_t *codes = block->codes + (size_t)row * n_columns;
    tile_sums sums;
#pragma GCC unroll 4
    for (uint32_t q = 0; q < n_queries; q++)
#pragma GCC unroll 4
        for (uint32_t k = 0; k < n_chunks; k++)
            sums.of[q][k] = _mm512_set1_epi32(block->start[row + q]);
    for (uint32_t d = 0; d < n_columns; d += 4) {
        __m512i key_u8x64[TILE];
#pragma GCC unroll 4
        for (uint32_t k = 0; k < n_chunks; k++)
            key_u8x64[k] = _mm512_loadu_si512(keys + ((size_t)k * n_columns + d) * CHUNK);
#pragma GCC unroll 4
        for (uint32_t q = 0; q < n_queries; q++) {
            __m512i x_i8x64 = _mm512_set1_epi32(four_codes(codes + (size_t)q * n_columns + d));
#pragma GCC unroll 4
            for (uint32_t k = 0; k < n_chunks; k++)
                add_products(&sums.of[q][k], key_u8x64[k], x_i8x64);
        }
    }
#pragma GCC unroll 4
    for (uint32_t k = 0; k < n_chunks; k++) {
        __m512 step = _mm512_loadu_ps(c->key_step + key + (size_t)k * CHUNK);
#pragma GCC unroll 4
        for (uint32_t q = 0; q < n_queries; q++)
            _mm512_storeu_ps(c->scores + (row + q) * c->n_padded + key + (size_t)k * CHUNK,
                             _mm512_mul_ps(_mm512_cvtepi32_ps(sums.of[q][k]),
                                           _mm512_mul_ps(all(block->factor[row + q]), step)));
    }
}

INLINE void find_columns(const bitm_attention_codes *c, const query_block *block, uint32_t n,
                         size_t key, const uint32_t n_chunks, uint32_t n_columns)
{
    uint32_t i = 0;
    for (; i + TILE <= n; i += TILE)
        find_tile(c, block, i, TILE, key, n_chunks, n_columns);
    for (; i < n; i++)
        find_tile(c, block, i, 1, key, n_chunks, n_columns);
}

static void find_scores(const bitm_attention_codes *c, const query_block *block, uint32_t n)
{
    const uint32_t n_columns = (uint32_t)c->n_columns;
    size_t key = 0;
    for (; key + TILE * CHUNK <= c->n_padded; key += (size_t)TILE * CHUNK)
        find_columns(c, block, n, key, TILE, n_columns);
    for (; key < c->n_padded; key += CHUNK)
        find_columns(c, block, n, key, 1, n_columns);
}

/* bitm_probability_code of 16 numbers. */
INLINE __m512i probability_codes(__m512 x)
{
    __m512 clamped = _mm512_max_ps(x, all(BITM_PROBABILITY_LOWEST));
    __m512 shifted = _mm512_add_ps(clamped, all(BITM_ROUND_MAGIC));
    __m512 r = _mm512_sub_ps(clamped, _mm512_sub_ps(shifted, all(BITM_ROUND_MAGIC)));
    __m512 p = all(BITM_PROBABILITY_3);
    p = _mm512_fmadd_ps(p, r, all(BITM_PROBABILITY_2));
    p = _mm512_fmadd_ps(p, r, all(BITM_PROBABILITY_1));
    p = _mm512_fmadd_ps(p, r, all(BITM_PROBABILITY_0));
    return to_integers(times_power_of_2(p, shifted));
}

/* Rows of scores become codes; factor: 1 / their sums.  Several rows at once, since each has to
 * wait for its greatest score. */
INLINE void find_codes(const bitm_attention_codes *c, uint32_t n, uint32_t row,
                       const uint32_t n_queries, float factor[])
{
    const float *scores = c->scores + row * c->n_padded;
    uint8_t *codes = (uint8_t *)c->codes + row * c->n_padded;
    __m512 most[TILE];
    __m512i sum[TILE];
#pragma GCC unroll 4
    for (uint32_t q = 0; q < n_queries; q++) {
        most[q] = all(scores[q * c->n_padded]);
        sum[q] = _mm512_setzero_si512();
    }
    for (uint32_t j = 0; j < n; j += CHUNK)
#pragma GCC unroll 4
        for (uint32_t q = 0; q < n_queries; q++)
            most[q] = _mm512_mask_max_ps(most[q], first_lanes(n - j),
                                         _mm512_loadu_ps(scores + q * c->n_padded + j), most[q]);
#pragma GCC unroll 4
    for (uint32_t q = 0; q < n_queries; q++)
        most[q] = all(greatest_lane(most[q]));
    for (uint32_t j = 0; j < n; j += CHUNK)
#pragma GCC unroll 4
        for (uint32_t q = 0; q < n_queries; q++) {
            __m512 x = _mm512_sub_ps(_mm512_loadu_ps(scores + q * c->n_padded + j), most[q]);
            __m512i code = _mm512_maskz_mov_epi32(first_lanes(n - j), probability_codes(x));
            _mm_storeu_si128((__m128i *)(codes + q * c->n_padded + j), _mm512_cvtepi32_epi8(code));
            sum[q] = _mm512_add_epi32(sum[q], code);
        }
#pragma GCC unroll 4
    for (uint32_t q = 0; q < n_queries; q++)
        factor[q] = 1.0F / (float)_mm512_reduce_add_epi32(sum[q]);
}

/* Components [d, d + 16 n_vectors) of the contexts of some queries. */
INLINE void find_components(const bitm_attention *a, const bitm_attention_codes *c, size_t query,
                            uint32_t row, const uint32_t n_queries, const float factor[],
                            uint32_t d, const uint32_t n_vectors)
{
    const int8_t *values = (const int8_t *)c->values + (size_t)d * 4;
    const uint8_t *codes = (const uint8_t *)c->codes + row * c->n_padded;
    tile_sums sums;
#pragma GCC unroll 4
    for (uint32_t q = 0; q < n_queries; q++)
#pragma GCC unroll 4
        for (uint32_t k = 0; k < n_vectors; k++)
            sums.of[q][k] = _mm512_setzero_si512();
    for (size_t j = 0; j < a->n_tokens; j += 4, values += c->n_columns * 4) {
        __m512i value_i8x64[TILE];
#pragma GCC unroll 4
        for (uint32_t k = 0; k < n_vectors; k++)
            value_i8x64[k] = _mm512_loadu_si512(values + (size_t)k * 64);
#pragma GCC unroll 4
        for (uint32_t q = 0; q < n_queries; q++) {
            __m512i p_u8x64 = _mm512_set1_epi32(four_codes(codes + q * c->n_padded + j));
#pragma GCC unroll 4
            for (uint32_t k = 0; k < n_vectors; k++)
                add_products(&sums.of[q][k], p_u8x64, value_i8x64[k]);
        }
    }
#pragma GCC unroll 4
    for (uint32_t k = 0; k < n_vectors; k++) {
        __mmask16 exist = first_lanes(a->head_size - d - 16 * k);
        __m512 step = _mm512_loadu_ps(c->value_step + d + 16 * k);
#pragma GCC unroll 4
        for (uint32_t q = 0; q < n_queries; q++)
            _mm512_mask_storeu_ps(a->context + (query + row + q) * a->context_stride + d + 16 * k,
                                  exist,
                                  _mm512_mul_ps(_mm512_cvtepi32_ps(sums.of[q][k]),
                                                _mm512_mul_ps(step, all(factor[q]))));
    }
}

INLINE void find_contexts(const bitm_attention *a, const bitm_attention_codes *c, size_t query,
                          uint32_t row, const uint32_t n_queries)
{
    float factor[TILE];
    uint32_t d = 0;
    find_codes(c, a->n_tokens, row, n_queries, factor);
    for (; d + 16 * TILE <= c->n_columns; d += 16 * TILE)
        find_components(a, c, query, row, n_queries, factor, d, TILE);
    for (; d < c->n_columns; d += 16)
        find_components(a, c, query, row, n_queries, factor, d, 1);
}

void bitm_attention_i8__vnni(const bitm_attention *attention, uint32_t token, uint32_t n_tokens)
{
    const bitm_attention_codes c = bitm_attention_codes_open(attention);
    lay_out_keys(attention, &c);
    lay_out_values(attention, &c);
    const size_t end = (size_t)token + n_tokens;
    for (size_t query = token; query < end; query += QUERIES) {
        uint32_t n = smaller(QUERIES, (uint32_t)(end - query)), i = 0;
        bitm_attention_ask(attention, attention->query, query + n, QUERIES, end);
        const query_block block = quantize_queries(attention, &c, query, n);
        find_scores(&c, &block, n);
        for (; i + TILE <= n; i += TILE)
            find_contexts(attention, &c, query, i, TILE);
        for (; i < n; i++)
            find_contexts(attention, &c, query, i, 1);
    }
}
