/* Softmax attention of floats for heads of 64 components, which are nearly all: the order of
 * attention.cuh, in larger tiles.
 *
 * A block of 128 threads computes 64 queries.  A thread's tile is 8 queries x 4 keys, in one part or
 * two, and 8 queries x 4 components of the context: operands lie with their inner dimension
 * outermost, so that three 16-byte reads serve 32 multiply-adds. */
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

/* Queries, a stage of keys or values, scores of all keys, and two sums of 64 rows. */
static __host__ __device__ inline size_t attention64_shared_bytes(uint32_t max_length)
{
    size_t keys = (size_t)ceil_div(max_length, BLOCK_64) * BLOCK_64;
    return sizeof(float) * (STRIDE_64 * (2 * BLOCK_64 + keys) + 2 * BLOCK_64);
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

/* Of a tile of ROWS queries. */
#define BITM_EACH_64                                                                               \
    _Pragma("unroll") for (int i = 0; i < ROWS; i++)                                               \
        _Pragma("unroll") for (int j = 0; j < KEYS_64; j++)

template <int N> static __device__ inline void read_floats(const float *from, float (&x)[N])
{
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        float4 four = *(const float4 *)(from + i);
        x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
    }
}

static __device__ inline void read_floats(const float *from, float (&x)[2])
{
    float2 two = *(const float2 *)from;
    x[0] = two.x, x[1] = two.y;
}

template <int N> static __device__ inline void write_floats(const float (&x)[N], float *to)
{
#pragma unroll
    for (int i = 0; i < N; i += 4)
        *(float4 *)(to + i) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
}

static __device__ inline void write_floats(const float (&x)[2], float *to)
{
    *(float2 *)to = make_float2(x[0], x[1]);
}

/* c += a [ROWS] x b [4], at place d of both operands */
template <int ROWS>
static __device__ inline void multiply_add_64(const float *a, const float *b,
                                              float c[ROWS][KEYS_64])
{
    float x[ROWS], y[KEYS_64];
    read_floats(a, x);
    read_floats(b, y);
    BITM_EACH_64 c[i][j] = fmaf(x[i], y[j], c[i][j]);
}

/* sum = lane l + lane (l + 8) of the products */
template <int ROWS>
static __device__ inline void lane_pair_64(const float *queries, const float *keys, uint32_t l,
                                           float sum[ROWS][KEYS_64])
{
    float other[ROWS][KEYS_64];
    BITM_EACH_64 sum[i][j] = other[i][j] = 0.0F;
    queries += l * STRIDE_64;
    keys += l * STRIDE_64;
#pragma unroll
    for (uint32_t d = 0; d < HEAD_64; d += LANES) {
        multiply_add_64<ROWS>(queries + d * STRIDE_64, keys + d * STRIDE_64, sum);
        multiply_add_64<ROWS>(queries + (d + 8) * STRIDE_64, keys + (d + 8) * STRIDE_64, other);
    }
    BITM_EACH_64 sum[i][j] = sum[i][j] + other[i][j];
}

/* total = the products of ROWS queries and a thread's keys.  Five sums of each are alive at a time:
 * fewer rows leave registers for more blocks, more rows read a key less often. */
template <int ROWS>
static __device__ inline void find_products_64(const float *queries, const float *keys,
                                               float total[ROWS][KEYS_64])
{
    float half[ROWS][KEYS_64], pair[ROWS][KEYS_64];
#pragma unroll 1
    for (uint32_t odd = 0; odd < 2; odd++) {
        lane_pair_64<ROWS>(queries, keys, odd, half);
        lane_pair_64<ROWS>(queries, keys, odd + 4, pair);
        BITM_EACH_64 half[i][j] = half[i][j] + pair[i][j];
        float quarter[ROWS][KEYS_64];
        lane_pair_64<ROWS>(queries, keys, odd + 2, quarter);
        lane_pair_64<ROWS>(queries, keys, odd + 6, pair);
        BITM_EACH_64 half[i][j] = half[i][j] + (quarter[i][j] + pair[i][j]);
        BITM_EACH_64 total[i][j] = odd == 0 ? half[i][j] : total[i][j] + half[i][j];
    }
}

/* scores [key][query] of a thread's tile. */
template <int ROWS>
static __device__ inline void store_scores_64(const float total[ROWS][KEYS_64], float scale,
                                              float *scores)
{
#pragma unroll
    for (int j = 0; j < KEYS_64; j++) {
        float of_key[ROWS];
#pragma unroll
        for (int i = 0; i < ROWS; i++)
            of_key[i] = scale * total[i][j];
        write_floats(of_key, scores + j * STRIDE_64);
    }
}

/* scores [key][query] become exp(score - greatest of the query).  A thread takes every other key of
 * a query: neighbouring threads read neighbouring floats, and a thread folds 8 of the 16 lanes of a
 * sum by itself.  sums [2][64]: of the even lanes, of the odd ones. */
static __device__ inline void exponentials_64(float *scores, uint32_t n_tokens, float *sums)
{
    enum { HALF = LANES / 2 };
    scores += threadIdx.x % BLOCK_64;
    float greatest = scores[0], lane[HALF] = {};
#pragma unroll 8
    for (uint32_t j = 1; j < n_tokens; j++)
        greatest = scores[j * STRIDE_64] > greatest ? scores[j * STRIDE_64] : greatest;
    __syncthreads(); /* all have read what is written now */
#pragma unroll 1
    for (uint32_t first = threadIdx.x / BLOCK_64; first < n_tokens; first += LANES) {
        float *score = scores + first * STRIDE_64;
#pragma unroll
        for (uint32_t m = 0; m < HALF; m++) {
            float e = bitm_exp(score[m * 2 * STRIDE_64] - greatest);
            e = first + m * 2 < n_tokens ? e : 0.0F; /* no branch: keys past the last have rows */
            score[m * 2 * STRIDE_64] = e;
            lane[m] += e;
        }
    }
#pragma unroll
    for (int step = HALF / 2; step > 0; step /= 2)
#pragma unroll
        for (int m = 0; m < step; m++)
            lane[m] = lane[m] + lane[m + step];
    sums[threadIdx.x] = lane[0];
}

/* The same for a block of 16 queries, of at most 64 keys: 8 neighbouring threads have a query, and
 * each of them every eighth key, which are two lanes of its sum.  sums [16]: of all lanes. */
static __device__ inline void exponentials_16(float *scores, uint32_t n_tokens, float *sums)
{
    enum { HALF = LANES / 2 };
    uint32_t query = threadIdx.x / HALF, first = threadIdx.x % HALF;
    scores += query;
    float greatest = scores[0], lane[2] = {};
    for (uint32_t j = first; j < n_tokens; j += HALF)
        greatest = scores[j * STRIDE_64] > greatest ? scores[j * STRIDE_64] : greatest;
    greatest = warp_max<HALF>(greatest);
#pragma unroll 1
    for (uint32_t j = first; j < n_tokens; j += LANES) {
#pragma unroll
        for (uint32_t m = 0; m < 2; m++) { /* keys past the last have rows */
            float *score = scores + (j + m * HALF) * STRIDE_64;
            *score = bitm_exp(*score - greatest);
            lane[m] += j + m * HALF < n_tokens ? *score : 0.0F;
        }
    }
    float sum = lane[0] + lane[1];
#pragma unroll
    for (int step = HALF / 2; step > 0; step /= 2)
        sum = sum + __shfl_xor_sync(ALL_THREADS, sum, step);
    if (first == 0) sums[query] = sum;
}

/* 1 / the sums of the exponentials of a thread's queries, of which neighbouring threads compute one
 * each. */
static __device__ inline void factors_64(const float *sums, float (&factors)[QUERIES_64])
{
    uint32_t mine = threadIdx.x % QUERIES_64, first = threadIdx.x % WARP - mine;
    float factor = 1.0F / (sums[mine] + sums[BLOCK_64 + mine]);
#pragma unroll
    for (uint32_t r = 0; r < QUERIES_64; r++)
        factors[r] = __shfl_sync(ALL_THREADS, factor, (int)(first + r));
}

/* Those of a block of 16 queries. */
static __device__ inline void factors_64(const float *sums, float (&factors)[2])
{
    factors[0] = 1.0F / sums[0];
    factors[1] = 1.0F / sums[1];
}

/* A thread's tile of the context, of queries from `row` on of a sequence, which begins at token
 * `begin`: as floats, or as bits. */
template <int ROWS>
static __device__ inline void
store_context_64(const Attention &a, uint32_t begin, uint32_t row, uint32_t n_tokens,
                 uint32_t column, const float *sums, const float context[ROWS][KEYS_64])
{
    float factors[ROWS];
    factors_64(sums, factors);
    uint32_t n_rows = row < n_tokens ? n_tokens - row : 0;
    if (a.encodes) {
        store_bits<ROWS>(a.encoding, begin + row, n_rows, column, context, factors);
        return;
    }
#pragma unroll
    for (uint32_t r = 0; r < ROWS; r++) {
        float f = factors[r];
        if (r < n_rows)
            *(float4 *)(a.context + (size_t)(begin + row + r) * a.stride + column) = make_float4(
                context[r][0] * f, context[r][1] * f, context[r][2] * f, context[r][3] * f);
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
    float *sums = keys + BLOCK_64 * STRIDE_64, *scores = sums + 2 * BLOCK_64;
    uint32_t i = threadIdx.x / 16 * QUERIES_64, j = threadIdx.x % 16 * KEYS_64;

    stage_turned(a.query + place + (size_t)first_query * a.stride, a.stride, n_tokens - first_query,
                 queries);
    for (uint32_t first = 0; first < n_tokens; first += BLOCK_64) {
        stage_turned(a.key + place + (size_t)first * a.stride, a.stride, n_tokens - first, keys);
        __syncthreads();
        float products[QUERIES_64][KEYS_64];
        find_products_64<QUERIES_64>(queries + i, keys + j, products);
        store_scores_64<QUERIES_64>(products, a.score_scale, scores + (first + j) * STRIDE_64 + i);
        __syncthreads();
    }
    exponentials_64(scores, n_tokens, sums);

    float context[QUERIES_64][KEYS_64] = {};
    for (uint32_t first = 0; first < n_tokens; first += BLOCK_64) {
        uint32_t n = n_tokens - first < BLOCK_64 ? n_tokens - first : (uint32_t)BLOCK_64;
        if (first > 0) __syncthreads();
        stage_rows(a.value + place + (size_t)first * a.stride, a.stride, n, keys);
        __syncthreads();
#pragma unroll 4
        for (uint32_t k = 0; k < n; k++)
            multiply_add_64<QUERIES_64>(scores + (first + k) * STRIDE_64 + i,
                                        keys + k * STRIDE_64 + j, context);
    }
    store_context_64<QUERIES_64>(a, begin, first_query + i, n_tokens, blockIdx.y * HEAD_64 + j,
                                 sums + i, context);
}

#undef BITM_EACH_64

} // namespace bitm

#endif
