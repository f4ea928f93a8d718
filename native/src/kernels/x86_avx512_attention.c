/* AVX-512 attention.
 *
 * Keys are laid out anew once for a head: 16 of them side by side, component by component, so that
 * a vector holds the same component of 16 keys.  The canonical lanes of a dot are then sums of
 * different registers, their fold is plain additions, and scores come out 16 at a time.  Values are
 * copied to lie together: heads lie in rows of all heads, whose distance maps them to a few sets of
 * the caches.  Queries are taken in blocks, so that keys and values are read once for a block, and
 * only a block's scores exist.
 *
 *   vfmadd        the products                 2 a cycle, latency 4: at least 8 sums at once
 *   vbroadcastss  a component, a probability   a load alone, 2 a cycle with all other loads
 *
 * Four queries meet two chunks of keys: 8 products for 6 loads.  Of the 5 partial folds of each of
 * the 8 sums some wait in memory, which is faster (5 to 10 %) than 4 products for 4 loads and all
 * in registers.  Without a shuffle, 16 dots of 64 components take 64 products and 15 additions. */
#include "x86_avx512.h"

enum {
    CHUNK = BITM_ATTENTION_CHUNK,
    MOST_COMMON_SIZE = 64,
    TILE_QUERIES = 4, /* of scores at work together; a divisor of BITM_ATTENTION_QUERIES */
    TILE_CHUNKS = 2,
    CONTEXT_QUERIES = 4, /* whose contexts are at work together; another divisor */
    CONTEXT_VECTORS = 4, /* of a context's components at work together */
};

/* ---- Layout ---- */

static void lay_out_keys(const bitm_attention_head *h)
{
    const bitm_attention *a = h->attention;
    for (size_t j = 0; j < h->n_padded; j += CHUNK) {
        float *columns = h->keys + j * a->head_size;
        for (uint32_t d = 0; d < a->head_size; d += 16) {
            __mmask16 exist = first_lanes(a->head_size - d);
            __m512i v[16];
#pragma GCC unroll 16
            for (size_t i = 0; i < 16; i++)
                v[i] = j + i < a->n_tokens
                           ? _mm512_maskz_loadu_epi32(exist, a->key + (j + i) * a->stride + d)
                           : _mm512_setzero_si512();
            transpose_lanes(v);
#pragma GCC unroll 16
            for (uint32_t i = 0; i < 16; i++)
                if (d + i < a->head_size)
                    _mm512_storeu_si512(columns + (size_t)(d + i) * CHUNK, v[i]);
        }
    }
}

/* ---- Scores ---- */

/* Chunks of keys and queries whose products are at work; the numbers of both are constants of the
 * functions that follow. */
typedef struct tile {
    const float *keys;  /* [chunks, n, CHUNK] */
    const float *query; /* [queries, n], stride apart */
    size_t stride;
    uint32_t n; /* head size */
    uint32_t n_queries, n_chunks;
} tile;

typedef struct tile_sums {
    __m512 of[TILE_QUERIES][TILE_CHUNKS];
} tile_sums;

INLINE void add(const tile *t, tile_sums *sums, const tile_sums *others)
{
#pragma GCC unroll 4
    for (uint32_t q = 0; q < t->n_queries; q++)
#pragma GCC unroll 2
        for (uint32_t k = 0; k < t->n_chunks; k++)
            sums->of[q][k] = _mm512_add_ps(sums->of[q][k], others->of[q][k]);
}

/* One of the canonical lanes. */
INLINE void find_lane(const tile *t, uint32_t lane, tile_sums *sums)
{
#pragma GCC unroll 4
    for (uint32_t q = 0; q < t->n_queries; q++)
#pragma GCC unroll 2
        for (uint32_t k = 0; k < t->n_chunks; k++)
            sums->of[q][k] = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (uint32_t d = lane; d < t->n; d += BITM_LANES) {
        __m512 key[TILE_CHUNKS];
#pragma GCC unroll 2
        for (uint32_t k = 0; k < t->n_chunks; k++)
            key[k] = _mm512_loadu_ps(t->keys + ((size_t)k * t->n + d) * CHUNK);
#pragma GCC unroll 4
        for (uint32_t q = 0; q < t->n_queries; q++) {
            __m512 x = _mm512_set1_ps(t->query[q * t->stride + d]);
#pragma GCC unroll 2
            for (uint32_t k = 0; k < t->n_chunks; k++)
                sums->of[q][k] = _mm512_fmadd_ps(x, key[k], sums->of[q][k]);
        }
    }
}

/* Folds of lanes, from that of 16 on: sums of 2 of them, then 4. */
INLINE void find_pair(const tile *t, uint32_t lane, tile_sums *sums)
{
    tile_sums others;
    find_lane(t, lane, sums);
    find_lane(t, lane + 8, &others);
    add(t, sums, &others);
}

INLINE void find_four(const tile *t, uint32_t lane, tile_sums *sums)
{
    tile_sums others;
    find_pair(t, lane, sums);
    find_pair(t, lane + 4, &others);
    add(t, sums, &others);
}

INLINE void find_dots(const tile *t, tile_sums *sums)
{
    tile_sums odd, others;
    find_four(t, 0, sums);
    find_four(t, 2, &others);
    add(t, sums, &others);
    find_four(t, 1, &odd);
    find_four(t, 3, &others);
    add(t, &odd, &others);
    add(t, sums, &odd);
}

INLINE void find_tile(const bitm_attention_head *h, size_t query, size_t row,
                      const uint32_t n_queries, size_t key, const uint32_t n_chunks,
                      uint32_t head_size)
{
    const bitm_attention *a = h->attention;
    const tile t = {.keys = h->keys + key * head_size,
                    .query = a->query + (query + row) * a->stride,
                    .stride = a->stride,
                    .n = head_size,
                    .n_queries = n_queries,
                    .n_chunks = n_chunks};
    tile_sums sums;
    find_dots(&t, &sums);
#pragma GCC unroll 4
    for (uint32_t q = 0; q < n_queries; q++)
#pragma GCC unroll 2
        for (uint32_t k = 0; k < n_chunks; k++)
            _mm512_storeu_ps(h->scores + (row + q) * h->n_padded + key + (size_t)k * CHUNK,
                             _mm512_mul_ps(all(a->score_scale), sums.of[q][k]));
}

/* Rows [0, n) of scores, of queries from `query` on, with some chunks of keys. */
INLINE void find_columns(const bitm_attention_head *h, size_t query, uint32_t n, size_t key,
                         const uint32_t n_chunks, uint32_t head_size)
{
    uint32_t i = 0;
    for (; i + TILE_QUERIES <= n; i += TILE_QUERIES)
        find_tile(h, query, i, TILE_QUERIES, key, n_chunks, head_size);
    for (; i < n; i++)
        find_tile(h, query, i, 1, key, n_chunks, head_size);
}

INLINE void find_scores(const bitm_attention_head *h, size_t query, uint32_t n, uint32_t head_size)
{
    size_t key = 0;
    for (; key + TILE_CHUNKS * CHUNK <= h->n_padded; key += TILE_CHUNKS * CHUNK)
        find_columns(h, query, n, key, TILE_CHUNKS, head_size);
    for (; key < h->n_padded; key += CHUNK)
        find_columns(h, query, n, key, 1, head_size);
}

/* ---- Contexts ---- */

/* Components [d, d + n) of the contexts, n_vectors of 16, times the factor of each query. */
INLINE void find_components(const bitm_attention_head *h, size_t query, size_t row,
                            const uint32_t n_queries, const float factor[], uint32_t d, uint32_t n,
                            const uint32_t n_vectors)
{
    const bitm_attention *a = h->attention;
    const float *value = h->values + d, *score = h->scores + row * h->n_padded;
    __m512 sums[CONTEXT_QUERIES][CONTEXT_VECTORS];
#pragma GCC unroll 4
    for (uint32_t q = 0; q < n_queries; q++)
#pragma GCC unroll 4
        for (uint32_t k = 0; k < n_vectors; k++)
            sums[q][k] = _mm512_setzero_ps();
    for (size_t j = 0; j < a->n_tokens; j++, value += a->head_size) {
        __m512 v[CONTEXT_VECTORS];
#pragma GCC unroll 4
        for (uint32_t k = 0; k < n_vectors; k++)
            v[k] = _mm512_maskz_loadu_ps(first_lanes(n - 16 * k), value + 16 * k);
#pragma GCC unroll 4
        for (uint32_t q = 0; q < n_queries; q++) {
            __m512 p = _mm512_set1_ps(score[q * h->n_padded + j]);
#pragma GCC unroll 4
            for (uint32_t k = 0; k < n_vectors; k++)
                sums[q][k] = _mm512_fmadd_ps(p, v[k], sums[q][k]);
        }
    }
#pragma GCC unroll 4
    for (uint32_t q = 0; q < n_queries; q++)
#pragma GCC unroll 4
        for (uint32_t k = 0; k < n_vectors; k++)
            _mm512_mask_storeu_ps(a->context + (query + row + q) * a->context_stride + d + 16 * k,
                                  first_lanes(n - 16 * k),
                                  _mm512_mul_ps(sums[q][k], all(factor[q])));
}

/* Rows of scores become exponentials, as bitm_exp_sum does it; factor: 1 / their sums.  Several
 * rows at once, since each has to wait for its greatest score, and for a sum in one register. */
INLINE void find_exponentials(const bitm_attention_head *h, size_t row, const uint32_t n_queries,
                              float factor[])
{
    float *scores = h->scores + row * h->n_padded;
    __m512 most[CONTEXT_QUERIES], sum[CONTEXT_QUERIES];
    const uint32_t n = h->attention->n_tokens;
#pragma GCC unroll 4
    for (uint32_t q = 0; q < n_queries; q++) {
        most[q] = all(scores[q * h->n_padded]);
        sum[q] = _mm512_setzero_ps();
    }
    for (uint32_t j = 0; j < n; j += BITM_LANES)
#pragma GCC unroll 4
        for (uint32_t q = 0; q < n_queries; q++)
            most[q] = _mm512_mask_max_ps(most[q], first_lanes(n - j),
                                         _mm512_loadu_ps(scores + q * h->n_padded + j), most[q]);
#pragma GCC unroll 4
    for (uint32_t q = 0; q < n_queries; q++)
        most[q] = all(greatest_lane(most[q]));
    for (uint32_t j = 0; j < n; j += BITM_LANES)
#pragma GCC unroll 4
        for (uint32_t q = 0; q < n_queries; q++) {
            float *place = scores + q * h->n_padded + j;
            __m512 e = exponential_below(_mm512_sub_ps(_mm512_loadu_ps(place), most[q]));
            e = _mm512_maskz_mov_ps(first_lanes(n - j), e);
            _mm512_storeu_ps(place, e);
            sum[q] = _mm512_add_ps(sum[q], e);
        }
#pragma GCC unroll 4
    for (uint32_t q = 0; q < n_queries; q++)
        factor[q] = 1.0F / fold(sum[q]);
}

INLINE void find_contexts(const bitm_attention_head *h, size_t query, size_t row,
                          const uint32_t n_queries)
{
    enum { COMPONENTS = 16 * CONTEXT_VECTORS };
    uint32_t n = h->attention->head_size, d = 0;
    float factor[CONTEXT_QUERIES];
    find_exponentials(h, row, n_queries, factor);
    for (; d + COMPONENTS <= n; d += COMPONENTS)
        find_components(h, query, row, n_queries, factor, d, COMPONENTS, CONTEXT_VECTORS);
    for (; d < n; d += 16)
        find_components(h, query, row, n_queries, factor, d, smaller(16, n - d), 1);
}

void bitm_attention__avx512(const bitm_attention *attention, uint32_t token, uint32_t n_tokens)
{
    bitm_attention_head h = bitm_attention_open(attention);
    lay_out_keys(&h);
    size_t end = (size_t)token + n_tokens;
    for (size_t query = token; query < end; query += BITM_ATTENTION_QUERIES) {
        uint32_t n = smaller(BITM_ATTENTION_QUERIES, (uint32_t)(end - query)), i = 0;
        if (attention->head_size == MOST_COMMON_SIZE)
            find_scores(&h, query, n, MOST_COMMON_SIZE);
        else
            find_scores(&h, query, n, attention->head_size);
        for (; i + CONTEXT_QUERIES <= n; i += CONTEXT_QUERIES)
            find_contexts(&h, query, i, CONTEXT_QUERIES);
        for (; i < n; i++)
            find_contexts(&h, query, i, 1);
    }
}
