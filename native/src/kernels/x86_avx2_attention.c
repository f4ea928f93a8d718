/* AVX2 attention.
 *
 * Keys are laid out anew once for a head: 16 of them side by side, component by component, so that
 * a vector holds the same component of 8 keys.  The canonical lanes of a dot are then sums of
 * different registers, their fold is plain additions, and scores come out 8 at a time.  Values are
 * copied to lie together: heads lie in rows of all heads, whose distance maps them to a few sets of
 * the caches.  Queries are taken in blocks, so that keys and values are read once for a block, and
 * only a block's scores exist.
 *
 *   vfmadd        the products                 2 a cycle, latency 4: at least 8 sums at once
 *   vbroadcastss  a component, a probability   a load alone, 2 a cycle with all other loads
 */
#include "x86_avx2.h"

#include <math.h>

enum {
    CHUNK = BITM_ATTENTION_CHUNK,
    MOST_COMMON_SIZE = 64,
    TILE = 3, /* queries at work together; a divisor of BITM_ATTENTION_QUERIES */
    CHUNK_VECTORS = CHUNK / 8,
    CONTEXT_VECTORS = 4, /* of a context's components at work together */
    NEAR = 64,           /* values that are added to a block's contexts at a time: 16 KB */
};

/* ---- Layout ---- */

static void lay_out_keys(const bitm_attention_head *h)
{
    const bitm_attention *a = h->attention;
    for (size_t j = 0; j < h->n_padded; j += 8) {
        float *column = h->keys + j / CHUNK * CHUNK * a->head_size + j % CHUNK;
        for (uint32_t d = 0; d < a->head_size; d += 8) {
            __m256 v[8];
            for (size_t i = 0; i < 8; i++)
                v[i] = j + i < a->n_tokens
                           ? load_floats(a->key + (j + i) * a->stride + d, a->head_size - d)
                           : _mm256_setzero_ps();
            transpose_floats(v);
            for (uint32_t i = 0; i < smaller(8, a->head_size - d); i++)
                _mm256_storeu_ps(column + (size_t)(d + i) * CHUNK, v[i]);
        }
    }
}

/* ---- Scores ---- */

/* A chunk of keys and a few queries, whose products are at work. */
typedef struct tile {
    const float *keys; /* [n, CHUNK] */
    const float *query;
    size_t stride; /* from query to query */
    uint32_t n;    /* head size */
} tile;

typedef struct tile_sums {
    __m256 of[TILE][CHUNK_VECTORS];
} tile_sums;

INLINE void add(tile_sums *sums, const tile_sums *others, const uint32_t n_queries)
{
    for (uint32_t q = 0; q < n_queries; q++)
        for (int k = 0; k < CHUNK_VECTORS; k++)
            sums->of[q][k] = _mm256_add_ps(sums->of[q][k], others->of[q][k]);
}

/* One of the canonical lanes. */
INLINE void find_lane(const tile *t, uint32_t lane, const uint32_t n_queries, tile_sums *sums)
{
    for (uint32_t q = 0; q < n_queries; q++)
        for (int k = 0; k < CHUNK_VECTORS; k++)
            sums->of[q][k] = _mm256_setzero_ps();
    for (uint32_t d = lane; d < t->n; d += BITM_LANES) {
        __m256 key[CHUNK_VECTORS];
        for (int k = 0; k < CHUNK_VECTORS; k++)
            key[k] = _mm256_loadu_ps(t->keys + (size_t)d * CHUNK + 8 * k);
        for (uint32_t q = 0; q < n_queries; q++) {
            __m256 x = _mm256_broadcast_ss(t->query + q * t->stride + d);
            for (int k = 0; k < CHUNK_VECTORS; k++)
                sums->of[q][k] = _mm256_fmadd_ps(x, key[k], sums->of[q][k]);
        }
    }
}

/* Folds of lanes, from that of 16 on: sums of 2 of them, then 4. */
INLINE void find_pair(const tile *t, uint32_t lane, const uint32_t n_queries, tile_sums *sums)
{
    tile_sums others;
    find_lane(t, lane, n_queries, sums);
    find_lane(t, lane + 8, n_queries, &others);
    add(sums, &others, n_queries);
}

INLINE void find_four(const tile *t, uint32_t lane, const uint32_t n_queries, tile_sums *sums)
{
    tile_sums others;
    find_pair(t, lane, n_queries, sums);
    find_pair(t, lane + 4, n_queries, &others);
    add(sums, &others, n_queries);
}

INLINE void find_dots(const tile *t, const uint32_t n_queries, tile_sums *sums)
{
    tile_sums odd, others;
    find_four(t, 0, n_queries, sums);
    find_four(t, 2, n_queries, &others);
    add(sums, &others, n_queries);
    find_four(t, 1, n_queries, &odd);
    find_four(t, 3, n_queries, &others);
    add(&odd, &others, n_queries);
    add(sums, &odd, n_queries);
}

INLINE void find_tile(const bitm_attention_head *h, size_t query, size_t row, size_t key,
                      const uint32_t n_queries, uint32_t head_size)
{
    const bitm_attention *a = h->attention;
    const __m256 scale = _mm256_set1_ps(a->score_scale);
    tile t = {h->keys + key * head_size, a->query + query * a->stride, a->stride, head_size};
    tile_sums sums;
    find_dots(&t, n_queries, &sums);
    for (uint32_t q = 0; q < n_queries; q++)
        for (int k = 0; k < CHUNK_VECTORS; k++)
            _mm256_storeu_ps(h->scores + (row + q) * h->n_padded + key + 8 * k,
                             _mm256_mul_ps(scale, sums.of[q][k]));
}

/* Rows [0, n) of scores for queries [query, query + n): of a chunk of keys for all, before the
 * next.
 */
INLINE void find_scores(const bitm_attention_head *h, size_t query, uint32_t n, uint32_t head_size)
{
    for (size_t key = 0; key < h->n_padded; key += CHUNK) {
        uint32_t i = 0;
        for (; i + TILE <= n; i += TILE)
            find_tile(h, query + i, i, key, TILE, head_size);
        for (; i < n; i++)
            find_tile(h, query + i, i, key, 1, head_size);
    }
}

/* ---- Contexts ---- */

/* Tokens whose values are added to the contexts: a stretch of all, in order. */
typedef struct stretch {
    size_t begin, end;
} stretch;

/* Adds values to components [d, d + n) of the contexts, n_vectors of 8; after the last token, they
 * are multiplied by the factor of each query. */
INLINE void add_components(const bitm_attention_head *h, stretch tokens, size_t query, size_t row,
                           const uint32_t n_queries, const float factor[], uint32_t d, uint32_t n,
                           const uint32_t n_vectors)
{
    const bitm_attention *a = h->attention;
    const float *value = h->values + tokens.begin * a->head_size + d;
    const float *score = h->scores + row * h->n_padded;
    float *context = a->context + query * a->context_stride + d;
    const bool ends = tokens.end == a->n_tokens;
    __m256 sums[TILE][CONTEXT_VECTORS];
    for (uint32_t q = 0; q < n_queries; q++)
        for (uint32_t k = 0; k < n_vectors; k++)
            sums[q][k] = tokens.begin == 0
                             ? _mm256_setzero_ps()
                             : load_floats(context + q * a->context_stride + 8 * k, n - 8 * k);
    for (size_t j = tokens.begin; j < tokens.end; j++, value += a->head_size) {
        __m256 p[TILE];
        for (uint32_t q = 0; q < n_queries; q++)
            p[q] = _mm256_broadcast_ss(score + q * h->n_padded + j);
        for (uint32_t k = 0; k < n_vectors; k++) {
            __m256 v = load_floats(value + 8 * k, n - 8 * k);
            for (uint32_t q = 0; q < n_queries; q++)
                sums[q][k] = _mm256_fmadd_ps(p[q], v, sums[q][k]);
        }
    }
    for (uint32_t q = 0; q < n_queries; q++)
        for (uint32_t k = 0; k < n_vectors; k++) {
            __m256 sum = sums[q][k];
            if (ends) sum = _mm256_mul_ps(sum, _mm256_set1_ps(factor[q]));
            store_floats(context + q * a->context_stride + 8 * k, n - 8 * k, sum);
        }
}

INLINE void add_values(const bitm_attention_head *h, stretch tokens, size_t query, size_t row,
                       const uint32_t n_queries, const float factor[])
{
    enum { COMPONENTS = 8 * CONTEXT_VECTORS };
    uint32_t n = h->attention->head_size, d = 0;
    for (; d + COMPONENTS <= n; d += COMPONENTS)
        add_components(h, tokens, query, row, n_queries, factor, d, COMPONENTS, CONTEXT_VECTORS);
    for (; d < n; d += 8)
        add_components(h, tokens, query, row, n_queries, factor, d, smaller(8, n - d), 1);
}

/* The sum of e^(score - greatest score) of a row, which become the scores.  Those past the last key
 * are made -inf first: their exponentials are 0, and the row is a whole number of vectors. */
static float find_exponentials(const bitm_attention_head *h, float *scores)
{
    for (size_t j = h->attention->n_tokens; j < h->n_padded; j++)
        scores[j] = -INFINITY;
    return bitm_exp_sum__avx2(scores, (uint32_t)h->n_padded);
}

/* Contexts of queries [query, query + n), from rows [0, n) of scores: values that the first cache
 * holds serve all of them, before the next. */
static void find_contexts(const bitm_attention_head *h, size_t query, uint32_t n)
{
    const size_t n_tokens = h->attention->n_tokens;
    float factor[BITM_ATTENTION_QUERIES];
    for (uint32_t i = 0; i < n; i++)
        factor[i] = 1.0F / find_exponentials(h, h->scores + i * h->n_padded);
    for (stretch tokens = {0, 0}; tokens.begin < n_tokens; tokens.begin = tokens.end) {
        uint32_t i = 0;
        tokens.end = tokens.begin + NEAR < n_tokens ? tokens.begin + NEAR : n_tokens;
        for (; i + TILE <= n; i += TILE)
            add_values(h, tokens, query + i, i, TILE, factor + i);
        for (; i < n; i++)
            add_values(h, tokens, query + i, i, 1, factor + i);
    }
}

void bitm_attention__avx2(const bitm_attention *attention, uint32_t token, uint32_t n_tokens)
{
    bitm_attention_head h = bitm_attention_open(attention);
    lay_out_keys(&h);
    size_t end = (size_t)token + n_tokens;
    for (size_t query = token; query < end; query += BITM_ATTENTION_QUERIES) {
        uint32_t n = smaller(BITM_ATTENTION_QUERIES, (uint32_t)(end - query));
        if (attention->head_size == MOST_COMMON_SIZE)
            find_scores(&h, query, n, MOST_COMMON_SIZE);
        else
            find_scores(&h, query, n, attention->head_size);
        find_contexts(&h, query, n);
    }
}
