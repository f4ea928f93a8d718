/* Softmax attention of floats for heads of 64 components, which are nearly all: the order of
 * attention.cuh, in larger tiles.
 *
 * A block of 128 threads computes 64 queries.  A thread's tile is 8 queries x 4 keys, and 8 queries
 * x 4 components of the context: operands lie with their inner dimension outermost, so that three
 * 16-byte reads serve 32 multiply-adds. */
#ifndef BITM_CUDA_ATTENTION64_CUH
#define BITM_CUDA_ATTENTION64_CUH

#include "attention.cuh"

namespace bitm {

enum {
    HEAD_64 = 64,
    BLOCK_64 = 64, /* queries of a block, keys of a stage */
    THREADS_64 = 128,
    STRIDE_64 = 68, /* floats from row to row: 64 and a shift of the banks */
    QUERIES_64 = 8, /* of a thread */
    KEYS_64 = 4,    /* of a thread, and components */
};

/* Queries, a stage of keys or values, scores of all keys, and the factors of 64 rows. */
static __host__ __device__ inline size_t attention64_shared_bytes(uint32_t max_length)
{
    size_t keys = (size_t)ceil_div(max_length, BLOCK_64) * BLOCK_64;
    return sizeof(float) * (STRIDE_64 * (2 * BLOCK_64 + keys) + BLOCK_64);
}

/* 64 rows of a head, turned: to[d][row]; rows past n_rows are zeros.  A warp takes 8 rows x 16
 * components at a time. */
static __device__ inline void stage_turned(const float *from, size_t stride, uint32_t n_rows,
                                           float *to)
{
    uint32_t row = threadIdx.x / WARP * 8 + threadIdx.x % 8, part = threadIdx.x % WARP / 8;
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) {
        uint32_t r = row + i / 4 * 32, d = (i % 4 * 4 + part) * 4;
        float4 x = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
        if (r < n_rows) x = *(const float4 *)(from + r * stride + d);
        to[d * STRIDE_64 + r] = x.x;
        to[(d + 1) * STRIDE_64 + r] = x.y;
        to[(d + 2) * STRIDE_64 + r] = x.z;
        to[(d + 3) * STRIDE_64 + r] = x.w;
    }
}

/* 64 rows of a head as they are. */
static __device__ inline void stage_rows(const float *from, size_t stride, uint32_t n_rows,
                                         float *to)
{
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) {
        uint32_t r = threadIdx.x / 16 + i * 8, d = threadIdx.x % 16 * 4;
        float4 x = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
        if (r < n_rows) x = *(const float4 *)(from + r * stride + d);
        *(float4 *)(to + r * STRIDE_64 + d) = x;
    }
}

#define BITM_EACH_64                                                                               \
    _Pragma("unroll") for (int i = 0; i < QUERIES_64; i++)                                         \
        _Pragma("unroll") for (int j = 0; j < KEYS_64; j++)

/* c += a [8] x b [4], at place d of both operands */
static __device__ inline void multiply_add_64(const float *a, const float *b,
                                              float c[QUERIES_64][KEYS_64])
{
    float4 a0 = *(const float4 *)a, a1 = *(const float4 *)(a + 4), b0 = *(const float4 *)b;
    float x[QUERIES_64] = {a0.x, a0.y, a0.z, a0.w, a1.x, a1.y, a1.z, a1.w};
    float y[KEYS_64] = {b0.x, b0.y, b0.z, b0.w};
    BITM_EACH_64 c[i][j] = fmaf(x[i], y[j], c[i][j]);
}

/* sum = lane l + lane (l + 8) of the products */
static __device__ inline void lane_pair_64(const float *queries, const float *keys, uint32_t l,
                                           float sum[QUERIES_64][KEYS_64])
{
    float other[QUERIES_64][KEYS_64];
    BITM_EACH_64 sum[i][j] = other[i][j] = 0.0F;
#pragma unroll
    for (uint32_t d = l; d < HEAD_64; d += LANES) {
        multiply_add_64(queries + d * STRIDE_64, keys + d * STRIDE_64, sum);
        multiply_add_64(queries + (d + 8) * STRIDE_64, keys + (d + 8) * STRIDE_64, other);
    }
    BITM_EACH_64 sum[i][j] = sum[i][j] + other[i][j];
}

/* scores [key][query] of a thread's tile. */
static __device__ inline void find_scores_64(const float *queries, const float *keys, float scale,
                                             float *scores)
{
    float total[QUERIES_64][KEYS_64], half[QUERIES_64][KEYS_64], pair[QUERIES_64][KEYS_64];
#pragma unroll 1
    for (uint32_t odd = 0; odd < 2; odd++) {
        lane_pair_64(queries, keys, odd, half);
        lane_pair_64(queries, keys, odd + 4, pair);
        BITM_EACH_64 half[i][j] = half[i][j] + pair[i][j];
        float quarter[QUERIES_64][KEYS_64];
        lane_pair_64(queries, keys, odd + 2, quarter);
        lane_pair_64(queries, keys, odd + 6, pair);
        BITM_EACH_64 half[i][j] = half[i][j] + (quarter[i][j] + pair[i][j]);
        BITM_EACH_64 total[i][j] = odd == 0 ? half[i][j] : total[i][j] + half[i][j];
    }
#pragma unroll
    for (int j = 0; j < KEYS_64; j++) {
        float *row = scores + j * STRIDE_64;
        *(float4 *)row = make_float4(scale * total[0][j], scale * total[1][j], scale * total[2][j],
                                     scale * total[3][j]);
        *(float4 *)(row + 4) = make_float4(scale * total[4][j], scale * total[5][j],
                                           scale * total[6][j], scale * total[7][j]);
    }
}

/* scores [key][query] become exp(score - greatest of the query); factors: 1 / their sums. */
static __device__ inline void exponentials_64(float *scores, uint32_t n_tokens, float *factors)
{
    uint32_t l = threadIdx.x % LANES;
#pragma unroll 2
    for (uint32_t i = threadIdx.x / LANES; i < BLOCK_64; i += THREADS_64 / LANES) {
        float greatest = scores[i];
        for (uint32_t j = l; j < n_tokens; j += LANES)
            greatest = scores[j * STRIDE_64 + i] > greatest ? scores[j * STRIDE_64 + i] : greatest;
        greatest = warp_max<LANES>(greatest);
        float lane = 0.0F;
        for (uint32_t j = l; j < n_tokens; j += LANES) {
            float e = bitm_exp(scores[j * STRIDE_64 + i] - greatest);
            scores[j * STRIDE_64 + i] = e;
            lane += e;
        }
        float sum = fold_lanes(lane);
        if (l == 0) factors[i] = 1.0F / sum;
    }
}

/* A thread's tile of the context, of queries from `row` on of a sequence, which begins at token
 * `begin`: as floats, or as bits. */
static __device__ inline void store_context_64(const Attention &a, uint32_t begin, uint32_t row,
                                               uint32_t n_tokens, uint32_t column,
                                               const float *factors,
                                               const float context[QUERIES_64][KEYS_64])
{
#pragma unroll
    for (uint32_t r = 0; r < QUERIES_64; r += SCORE_TILE) {
        if (a.encodes) {
            uint32_t n_rows = row + r < n_tokens ? n_tokens - row - r : 0;
            store_bits(a.encoding, begin + row + r, n_rows, column, context + r, factors + r);
            continue;
        }
        for (uint32_t s = r; s < r + SCORE_TILE; s++) {
            float f = factors[s];
            if (row + s < n_tokens)
                *(float4 *)(a.context + (size_t)(begin + row + s) * a.stride + column) =
                    make_float4(context[s][0] * f, context[s][1] * f, context[s][2] * f,
                                context[s][3] * f);
        }
    }
}

static __global__ void __launch_bounds__(THREADS_64, 3) attention64_kernel(Attention a)
{
    BITM_DYNAMIC_SHARED(shared);
    uint32_t begin = a.first[blockIdx.z], n_tokens = a.first[blockIdx.z + 1] - begin;
    uint32_t first_query = blockIdx.x * BLOCK_64;
    if (first_query >= n_tokens) return;
    size_t place = (size_t)begin * a.stride + blockIdx.y * HEAD_64;
    float *queries = (float *)shared, *keys = queries + BLOCK_64 * STRIDE_64;
    float *factors = keys + BLOCK_64 * STRIDE_64, *scores = factors + BLOCK_64;
    uint32_t i = threadIdx.x / 16 * QUERIES_64, j = threadIdx.x % 16 * KEYS_64;

    stage_turned(a.query + place + (size_t)first_query * a.stride, a.stride, n_tokens - first_query,
                 queries);
    for (uint32_t first = 0; first < n_tokens; first += BLOCK_64) {
        stage_turned(a.key + place + (size_t)first * a.stride, a.stride, n_tokens - first, keys);
        __syncthreads();
        find_scores_64(queries + i, keys + j, a.score_scale, scores + (first + j) * STRIDE_64 + i);
        __syncthreads();
    }
    exponentials_64(scores, n_tokens, factors);

    float context[QUERIES_64][KEYS_64] = {};
    for (uint32_t first = 0; first < n_tokens; first += BLOCK_64) {
        uint32_t n = n_tokens - first < BLOCK_64 ? n_tokens - first : (uint32_t)BLOCK_64;
        if (first > 0) __syncthreads();
        stage_rows(a.value + place + (size_t)first * a.stride, a.stride, n, keys);
        __syncthreads();
#pragma unroll 4
        for (uint32_t k = 0; k < n; k++)
            multiply_add_64(scores + (first + k) * STRIDE_64 + i, keys + k * STRIDE_64 + j,
                            context);
    }
    store_context_64(a, begin, first_query + i, n_tokens, blockIdx.y * HEAD_64 + j, factors + i,
                     context);
}

#undef BITM_EACH_64

} // namespace bitm

#endif
