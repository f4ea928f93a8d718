/* Softmax attention of floats in the canonical order (bitm_attention_fn of kernels/kernels.h).
 *
 * A block computes some queries of one head of one sequence.  Scores are products of 16 lanes; a
 * thread computes whole ones, lane after lane in the order in which they fold, so that only four
 * partial sums of each score are alive.  For this the components of queries and keys lie in shared
 * memory lane by lane: component d at d % 16 * n + d / 16, n = components of a lane. */
#ifndef BITM_CUDA_ATTENTION_CUH
#define BITM_CUDA_ATTENTION_CUH

#include "quantize.cuh"

namespace bitm {

enum {
    ATTENTION_THREADS = 256,
    SCORE_TILE = 4,     /* queries x keys, or x components, of a thread */
    VALUE_COLUMNS = 64, /* of the context at once: n_queries is at most 64 */
};

/* Below all scores. */
#define BITM_NO_SCORE __uint_as_float(0xFF800000u)

struct Attention {
    const float *query, *key, *value; /* [n_tokens, stride] */
    float *context;
    uint32_t stride; /* A */
    uint32_t head_size;
    float score_scale;
    const uint32_t *first; /* [n_sequences + 1] */
    uint32_t n_queries;    /* of a block, a multiple of SCORE_TILE, as the following */
    uint32_t n_keys;       /* staged at once */
    uint32_t score_stride; /* floats from row to row of scores */
    /* What follows takes the context in planes of bits, of a static quantizer: written in the place
     * of the floats.  head_size is VALUE_COLUMNS then. */
    uint32_t encodes;
    Encoding encoding;
};

/* Writes the word of a row's planes that begins at a column. */
static __device__ inline void store_word(const Encoding &e, size_t token, bool is_row,
                                         uint32_t column, const uint32_t planes[2])
{
    uint32_t n_bits[2] = {0, 0};
    uint32_t *word = word_at(e, token, column);
#pragma unroll
    for (uint32_t p = 0; p < 2; p++) {
        if (p >= n_planes_of(e)) continue;
        n_bits[p] = (uint32_t)__popc(planes[p]);
        if (is_row) word[p * e.plane_stride * 4] = planes[p];
    }
    if (e.counts && is_row) count_bits(e, token, (int32_t)n_bits[0], (int32_t)n_bits[1]);
}

/* Writes a tile of the context as bits, the first n_rows of at most 8.  8 neighbouring threads have
 * the 32 columns of a word of each row; transposed, each has the word of a row. */
template <int ROWS, int RULE>
static __device__ inline void store_bits_by(const Encoding &e, size_t token, uint32_t n_rows,
                                            uint32_t column, const float context[ROWS][SCORE_TILE],
                                            const float factors[ROWS])
{
    uint32_t planes[2] = {0, 0}, row = threadIdx.x % 8;
#pragma unroll
    for (uint32_t c = 0; c < SCORE_TILE; c++) {
        float shift = shift_of(e, column + c);
#pragma unroll
        for (uint32_t r = 0; r < ROWS; r++)
            add_bits<RULE>(e, context[r][c] * factors[r] + shift, r * SCORE_TILE + c, planes);
    }
    finish_bits<RULE>(e, planes);
#pragma unroll
    for (uint32_t p = 0; p < 2; p++)
        if (p < n_planes_of(e)) planes[p] = transpose_nibbles_8(planes[p]);
    store_word(e, token + row, row < ROWS && row < n_rows, column, planes);
}

template <int ROWS>
static __device__ inline void store_bits(const Encoding &e, size_t token, uint32_t n_rows,
                                         uint32_t column, const float context[ROWS][SCORE_TILE],
                                         const float factors[ROWS])
{
    BitsRule rule = bits_rule(e);
    if (rule == RULE_SIGNS)
        store_bits_by<ROWS, RULE_SIGNS>(e, token, n_rows, column, context, factors);
    else if (rule == RULE_TWO_LEVELS)
        store_bits_by<ROWS, RULE_TWO_LEVELS>(e, token, n_rows, column, context, factors);
    else
        store_bits_by<ROWS, RULE_LEVELS>(e, token, n_rows, column, context, factors);
}

/* Floats of a staged row of queries or keys: padded so that rows begin in different banks. */
static __host__ __device__ inline uint32_t staged_row(uint32_t head_size)
{
    return ceil_div(head_size, LANES) * LANES + 4;
}

static __host__ __device__ inline uint32_t staged_keys(uint32_t head_size, uint32_t n_keys)
{
    uint32_t row = staged_row(head_size);
    return n_keys * (row > VALUE_COLUMNS ? row : (uint32_t)VALUE_COLUMNS);
}

/* Rows hold a whole number of stages of keys, and begin in different banks. */
static __host__ __device__ inline uint32_t score_stride(uint32_t max_length, uint32_t n_keys)
{
    return ceil_div(max_length, n_keys) * n_keys + LANES;
}

static __host__ __device__ inline size_t
attention_shared_bytes(uint32_t head_size, uint32_t n_queries, uint32_t n_keys, uint32_t max_length)
{
    return sizeof(float) *
           ((size_t)staged_row(head_size) * n_queries + staged_keys(head_size, n_keys) +
            (size_t)n_queries * score_stride(max_length, n_keys) + n_queries);
}

/* Rows [0, n_rows) of a head, lane by lane; missing rows and components are zeros. */
static __device__ inline void stage_lanes(const float *from, size_t stride, uint32_t n_rows,
                                          uint32_t n_wanted, uint32_t head_size, float *to)
{
    uint32_t n = ceil_div(head_size, LANES), width = n * LANES, row_floats = staged_row(head_size);
    for (uint32_t i = threadIdx.x; i < n_wanted * width; i += ATTENTION_THREADS) {
        uint32_t row = i / width, d = i % width;
        bool inside = row < n_rows && d < head_size;
        to[row * row_floats + d % LANES * n + d / LANES] = inside ? from[row * stride + d] : 0.0F;
    }
}

/* Lane l of the products of SCORE_TILE queries and keys; N: components of a lane, 0: n of them. */
template <int N>
static __device__ inline void lane_products(const float *query, const float *key,
                                            uint32_t query_step, uint32_t key_step, uint32_t n,
                                            uint32_t l, float lane[SCORE_TILE][SCORE_TILE])
{
    uint32_t count = N > 0 ? N : n;
#pragma unroll
    for (int i = 0; i < SCORE_TILE; i++)
#pragma unroll
        for (int j = 0; j < SCORE_TILE; j++)
            lane[i][j] = 0.0F;
    if (N == 4) {
        float4 q[SCORE_TILE];
#pragma unroll
        for (int i = 0; i < SCORE_TILE; i++)
            q[i] = *(const float4 *)(query + i * query_step + l * 4);
#pragma unroll
        for (int j = 0; j < SCORE_TILE; j++) {
            float4 k = *(const float4 *)(key + j * key_step + l * 4);
#pragma unroll
            for (int i = 0; i < SCORE_TILE; i++) {
                float sum = fmaf(q[i].x, k.x, 0.0F);
                sum = fmaf(q[i].y, k.y, sum);
                sum = fmaf(q[i].z, k.z, sum);
                lane[i][j] = fmaf(q[i].w, k.w, sum);
            }
        }
        return;
    }
    for (uint32_t m = 0; m < count; m++)
#pragma unroll
        for (int i = 0; i < SCORE_TILE; i++)
#pragma unroll
            for (int j = 0; j < SCORE_TILE; j++)
                lane[i][j] = fmaf(query[i * query_step + l * n + m], key[j * key_step + l * n + m],
                                  lane[i][j]);
}

/* scores = the folded lanes: ((h0 + h4) + (h2 + h6)) + ((h1 + h5) + (h3 + h7)), hl = lane l + lane
 * (l + 8). */
template <int N>
static __device__ inline void fold_products(const float *query, const float *key,
                                            uint32_t query_step, uint32_t key_step, uint32_t n,
                                            float total[SCORE_TILE][SCORE_TILE])
{
    float quarter[SCORE_TILE][SCORE_TILE], half[SCORE_TILE][SCORE_TILE];
    float a[SCORE_TILE][SCORE_TILE], b[SCORE_TILE][SCORE_TILE];
#define BITM_EACH                                                                                  \
    _Pragma("unroll") for (int i = 0; i < SCORE_TILE; i++)                                         \
        _Pragma("unroll") for (int j = 0; j < SCORE_TILE; j++)
    for (uint32_t odd = 0; odd < 2; odd++) {
        for (uint32_t two = 0; two < 2; two++) {
            uint32_t l = odd + two * 2;
            lane_products<N>(query, key, query_step, key_step, n, l, a);
            lane_products<N>(query, key, query_step, key_step, n, l + 8, b);
            BITM_EACH quarter[i][j] = a[i][j] + b[i][j];
            lane_products<N>(query, key, query_step, key_step, n, l + 4, a);
            lane_products<N>(query, key, query_step, key_step, n, l + 12, b);
            BITM_EACH quarter[i][j] = quarter[i][j] + (a[i][j] + b[i][j]);
            BITM_EACH half[i][j] = two == 0 ? quarter[i][j] : half[i][j] + quarter[i][j];
        }
        BITM_EACH total[i][j] = odd == 0 ? half[i][j] : total[i][j] + half[i][j];
    }
#undef BITM_EACH
}

/* scores of the staged queries and keys, the first of them number `first`.  A thread takes every
 * (n_keys / SCORE_TILE)th key: neighbouring threads read neighbouring rows. */
template <int N>
static __device__ inline void find_scores(const Attention &a, const float *queries,
                                          const float *keys, uint32_t first, float *scores)
{
    uint32_t row = staged_row(a.head_size), n = ceil_div(a.head_size, LANES);
    uint32_t n_across = a.n_keys / SCORE_TILE;
    for (uint32_t tile = threadIdx.x; tile < a.n_queries / SCORE_TILE * n_across;
         tile += ATTENTION_THREADS) {
        uint32_t i = tile / n_across * SCORE_TILE, j = tile % n_across;
        float total[SCORE_TILE][SCORE_TILE];
        fold_products<N>(queries + i * row, keys + j * row, row, n_across * row, n, total);
        for (int r = 0; r < SCORE_TILE; r++)
            for (int c = 0; c < SCORE_TILE; c++)
                scores[(i + r) * a.score_stride + first + j + c * n_across] =
                    a.score_scale * total[r][c];
    }
}

/* Every row of scores becomes exp(score - greatest), factors 1 / their sums.  16 threads a row. */
static __device__ inline void exponentials(const Attention &a, uint32_t n_tokens, float *scores,
                                           float *factors)
{
    uint32_t l = threadIdx.x % LANES;
    for (uint32_t i = threadIdx.x / LANES; i < a.n_queries; i += ATTENTION_THREADS / LANES) {
        float *row = scores + i * a.score_stride;
        float greatest = row[0];
        for (uint32_t j = l; j < n_tokens; j += LANES)
            greatest = row[j] > greatest ? row[j] : greatest;
        for (int step = 8; step > 0; step /= 2) {
            float other = __shfl_xor_sync(ALL_THREADS, greatest, step);
            greatest = other > greatest ? other : greatest;
        }
        float lane = 0.0F;
        for (uint32_t j = l; j < n_tokens; j += LANES) {
            row[j] = bitm_exp(row[j] - greatest);
            lane += row[j];
        }
        float sum = fold_lanes(lane);
        if (l == 0) factors[i] = 1.0F / sum;
    }
}

/* Adds the products of the staged values, rows of VALUE_COLUMNS, to a tile of the context: its
 * queries from row i, components from column d of the stage. */
static __device__ inline void add_values(const Attention &a, const float *values,
                                         const float *scores, uint32_t n_keys, uint32_t i,
                                         uint32_t d, float context[SCORE_TILE][SCORE_TILE])
{
    const float *row = scores + i * a.score_stride;
    for (uint32_t j = 0; j < n_keys; j++) {
        float4 v = *(const float4 *)(values + j * VALUE_COLUMNS + d);
#pragma unroll
        for (int r = 0; r < SCORE_TILE; r++) {
            float p = row[r * a.score_stride + j];
            context[r][0] = fmaf(p, v.x, context[r][0]);
            context[r][1] = fmaf(p, v.y, context[r][1]);
            context[r][2] = fmaf(p, v.z, context[r][2]);
            context[r][3] = fmaf(p, v.w, context[r][3]);
        }
    }
}

template <int N>
static __global__ void __launch_bounds__(ATTENTION_THREADS) attention_kernel(Attention a)
{
    BITM_DYNAMIC_SHARED(shared);
    uint32_t begin = a.first[blockIdx.z], n_tokens = a.first[blockIdx.z + 1] - begin;
    uint32_t first_query = blockIdx.x * a.n_queries;
    if (first_query >= n_tokens) return;
    size_t place = (size_t)begin * a.stride + blockIdx.y * a.head_size;
    uint32_t row_floats = staged_row(a.head_size);
    float *queries = (float *)shared;
    float *keys = queries + a.n_queries * row_floats; /* values too: VALUE_COLUMNS at a time */
    float *scores = keys + staged_keys(a.head_size, a.n_keys);
    float *factors = scores + a.n_queries * a.score_stride;

    stage_lanes(a.query + place + (size_t)first_query * a.stride, a.stride, n_tokens - first_query,
                a.n_queries, a.head_size, queries);
    for (uint32_t first = 0; first < n_tokens; first += a.n_keys) {
        stage_lanes(a.key + place + (size_t)first * a.stride, a.stride, n_tokens - first, a.n_keys,
                    a.head_size, keys);
        __syncthreads();
        find_scores<N>(a, queries, keys, first, scores);
        __syncthreads();
    }
    exponentials(a, n_tokens, scores, factors);

    uint32_t i = threadIdx.x / (VALUE_COLUMNS / SCORE_TILE) * SCORE_TILE;
    uint32_t d = threadIdx.x % (VALUE_COLUMNS / SCORE_TILE) * SCORE_TILE;
    for (uint32_t column = 0; column < a.head_size; column += VALUE_COLUMNS) {
        float context[SCORE_TILE][SCORE_TILE] = {};
        for (uint32_t first = 0; first < n_tokens; first += a.n_keys) {
            uint32_t n = n_tokens - first < a.n_keys ? n_tokens - first : a.n_keys;
            __syncthreads(); /* the stage is free, and at first the scores are complete */
            for (uint32_t k = threadIdx.x; k < n * VALUE_COLUMNS; k += ATTENTION_THREADS) {
                uint32_t component = column + k % VALUE_COLUMNS;
                keys[k] = component < a.head_size
                              ? a.value[place + (size_t)(first + k / VALUE_COLUMNS) * a.stride +
                                        component]
                              : 0.0F;
            }
            __syncthreads();
            if (i < a.n_queries) add_values(a, keys, scores + first, n, i, d, context);
        }
        if (a.encodes) {
            uint32_t row = first_query + i, n_rows = row < n_tokens ? n_tokens - row : 0;
            if (i >= a.n_queries) n_rows = 0;
            float inverse[SCORE_TILE];
            for (uint32_t r = 0; r < SCORE_TILE; r++)
                inverse[r] = n_rows > 0 ? factors[i + r] : 0.0F;
            store_bits<SCORE_TILE>(a.encoding, begin + row, n_rows, blockIdx.y * a.head_size + d,
                                   context, inverse);
            continue;
        }
        for (uint32_t r = 0; r < SCORE_TILE; r++)
            for (uint32_t c = 0; c < SCORE_TILE; c++)
                if (i < a.n_queries && first_query + i + r < n_tokens &&
                    column + d + c < a.head_size)
                    a.context[place + (size_t)(first_query + i + r) * a.stride + column + d + c] =
                        context[r][c] * factors[i + r];
    }
}

} // namespace bitm

#endif
