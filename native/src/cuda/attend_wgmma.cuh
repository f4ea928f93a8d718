/* Query, key, value and attention of short sequences in one kernel, on Hopper.
 *
 * A block has one head of one sequence of at most 64 tokens.  The three products of bits are so small
 * (64 tokens x 64 outputs) that all their operands lie in shared memory at once; their results become
 * floats in shared memory, where attention64.cuh's steps take them, and what leaves the block are the
 * bits of the context: none of the four float arrays of a layer's attention goes through memory. */
#ifndef BITM_CUDA_ATTEND_WGMMA_CUH
#define BITM_CUDA_ATTEND_WGMMA_CUH

#include "attention64.cuh"
#include "hopper.cuh"

namespace bitm {

/* What differs between query, key and value: each has inputs of its own, as shifts before a quantizer
 * may differ. */
struct HeadLinear {
    const uint4 *inputs, *weights; /* planes of tiles of bits */
    const uint32_t *n_nonzero;     /* of the inputs; NULL: see Product */
    const float *step;
    const int32_t *code_sum;
    const float *row_scale, *bias;
    const uint32_t *row_ones;
};

struct Attend {
    HeadLinear linears[3];
    Product product; /* what they share: sizes and terms */
    uint32_t n_weight_planes, n_input_planes;
    Attention attention; /* encodes */
};

/* Pieces of the operands of one linear: inputs of 64 tokens, 64 rows of weights. */
static __host__ __device__ inline uint32_t head_pieces(const Attend &a)
{
    return BLOCK_64 * a.product.n_input_pieces * (a.n_input_planes + a.n_weight_planes);
}

/* Query, key and value as floats, and factors; scores take the operands' place. */
static __host__ __device__ inline size_t attend_shared_bytes(const Attend &a)
{
    size_t operands = (size_t)head_pieces(a) * 3 * PIECE_BYTES;
    size_t scores = sizeof(float) * STRIDE_64 * BLOCK_64;
    size_t floats = sizeof(float) * (3 * STRIDE_64 * BLOCK_64 + BLOCK_64);
    return floats + (operands > scores ? operands : scores);
}

#if BITM_HAS_WGMMA

/* Starts to copy 64 rows of tiles from row number `row`, which need not begin a tile. */
static __device__ inline void copy_rows_64(const uint4 *from, size_t row, uint32_t n_pieces,
                                           uint4 *to)
{
    for (uint32_t i = threadIdx.x; i < BLOCK_64 * n_pieces; i += THREADS_64) {
        uint32_t r = i / TILE_ROWS / n_pieces * TILE_ROWS + i % TILE_ROWS;
        copy_async(to + i, from + piece_place(row + r, i / TILE_ROWS % n_pieces, n_pieces));
    }
}

/* Starts to copy the operands of a linear: planes of inputs, then planes of weights. */
static __device__ inline void fetch_head(const Attend &a, const HeadLinear &linear, size_t token,
                                         size_t output, uint4 *to)
{
    const Product &p = a.product;
    uint32_t n = p.n_input_pieces;
    for (uint32_t plane = 0; plane < a.n_input_planes; plane++, to += BLOCK_64 * n)
        copy_rows_64(linear.inputs + plane * p.input_stride, token, n, to);
    for (uint32_t plane = 0; plane < a.n_weight_planes; plane++, to += BLOCK_64 * n)
        copy_rows_64(linear.weights + plane * p.weight_stride, output, n, to);
}

/* acc [64 tokens, 64 outputs] = the sum over n_terms. */
static __device__ inline void multiply_head(const Attend &a, uint32_t n_terms,
                                            const uint4 *operands, int32_t acc[32])
{
    uint32_t n = a.product.n_input_pieces;
    const uint4 *inputs = operands, *weights = operands + a.n_input_planes * BLOCK_64 * n;
#pragma unroll
    for (int i = 0; i < 32; i++)
        acc[i] = 0;
    for (uint32_t t = 0; t < n_terms; t++) {
        const Term &term = a.product.terms[t];
        const uint4 *x = inputs + term.input_plane * BLOCK_64 * n;
        const uint4 *w = weights + term.weight_plane * BLOCK_64 * n;
        wgmma_fence();
        for (uint32_t piece = 0; piece < n; piece += 2)
            wgmma_bits_64(acc, tile_descriptor(x + piece * TILE_ROWS, n),
                          tile_descriptor(w + piece * TILE_ROWS, n));
        wgmma_commit();
        wgmma_wait<0>();
#pragma unroll
        for (int i = 0; i < 32; i++)
            acc[i] = (int32_t)((uint32_t)acc[i] * (uint32_t)term.multiplier);
    }
}

/* The results of a head's linear as floats: [component][token] if turned, else [token][component]. */
static __device__ inline void finish_head(const Attend &a, const HeadLinear &linear, size_t token,
                                          size_t output, bool dense, bool turned,
                                          const int32_t acc[32], float *to)
{
    const Product &p = a.product;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t row = threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4 + half * 8;
        float step = linear.step[token + row];
        int32_t code_sum = p.subtract_code_sum ? linear.code_sum[token + row] : 0;
#pragma unroll
        for (int i = 0; i < 16; i++) {
            uint32_t d = i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2;
            int32_t sum = acc[i / 2 * 4 + half * 2 + i % 2];
            if (dense) sum = (sum + (int32_t)linear.row_ones[output + d]) * p.terms[1].multiplier;
            float value = finished<EPILOGUE_PLAIN>(p.epilogue, 0, 0, (float)(sum - code_sum),
                                                   linear.row_scale[output + d],
                                                   linear.bias[output + d], step);
            to[turned ? d * STRIDE_64 + row : row * STRIDE_64 + d] = value;
        }
    }
}

#endif

static __global__ void __launch_bounds__(THREADS_64, 2) attend_kernel(Attend a)
{
#if BITM_HAS_WGMMA
    BITM_DYNAMIC_SHARED(shared);
    const Product &p = a.product;
    uint32_t begin = a.attention.first[blockIdx.y];
    uint32_t n_tokens = a.attention.first[blockIdx.y + 1] - begin;
    if (n_tokens == 0) return;
    size_t output = (size_t)blockIdx.x * HEAD_64;
    float *queries = (float *)shared, *keys = queries + BLOCK_64 * STRIDE_64;
    float *values = keys + BLOCK_64 * STRIDE_64, *factors = values + BLOCK_64 * STRIDE_64;
    uint4 *operands = (uint4 *)(factors + BLOCK_64);
    float *scores = (float *)operands;

    for (uint32_t k = 0; k < 3; k++)
        fetch_head(a, a.linears[k], begin, output, operands + k * head_pieces(a));
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    for (uint32_t k = 0; k < 3; k++) {
        const HeadLinear &linear = a.linears[k];
        bool dense = false;
        if (linear.n_nonzero != NULL) { /* as in gemm_wgmma.cuh */
            bool full = threadIdx.x >= n_tokens ||
                        linear.n_nonzero[begin + threadIdx.x] == p.n_columns;
            dense = __syncthreads_and(full) != 0;
        }
        int32_t acc[32];
        multiply_head(a, dense ? p.n_terms - 1 : p.n_terms, operands + k * head_pieces(a), acc);
        finish_head(a, linear, begin, output, dense, k < 2, acc,
                    queries + k * BLOCK_64 * STRIDE_64);
    }
    __syncthreads(); /* floats are complete, operands done with */

    uint32_t i = threadIdx.x / 16 * QUERIES_64, j = threadIdx.x % 16 * KEYS_64;
    find_scores_64(queries + i, keys + j, a.attention.score_scale, scores + j * STRIDE_64 + i);
    __syncthreads();
    exponentials_64(scores, n_tokens, factors);
    __syncthreads();
    float context[QUERIES_64][KEYS_64] = {};
    for (uint32_t k = 0; k < n_tokens; k++)
        multiply_add_64(scores + k * STRIDE_64 + i, values + k * STRIDE_64 + j, context);
#pragma unroll
    for (uint32_t r = 0; r < QUERIES_64; r += SCORE_TILE) {
        uint32_t n_rows = i + r < n_tokens ? n_tokens - i - r : 0;
        store_bits(a.attention.encoding, begin + i + r, n_rows, (uint32_t)output + j, context + r,
                   factors + i + r);
    }
#else
    (void)a;
#endif
}

} // namespace bitm

#endif
