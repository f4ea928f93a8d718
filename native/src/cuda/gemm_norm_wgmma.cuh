/* A product of bits, the residual, the norm and the inputs of what follows in one kernel, on
 * Hopper.
 *
 * A block computes all outputs of TOKENS tokens, so that it has whole rows for the norm: outputs
 * are the left operand, tokens the right one.  Results become floats in the operands' shared
 * memory, where 16 threads take a token each as in tokens.cuh: the floats between a linear and its
 * norm go through no memory. */
#ifndef BITM_CUDA_GEMM_NORM_WGMMA_CUH
#define BITM_CUDA_GEMM_NORM_WGMMA_CUH

#include "gemm_wgmma.cuh"
#include "tokens.cuh"

namespace bitm {

struct ProductNorm {
    Product product; /* as many outputs as the norm has columns */
    Norm norm;       /* x: the product's results in its place; residual: not NULL */
    Followers followers;
};

enum { NORM_PIECES = 2 }; /* of every row in a stage */

/* A warpgroup for every 16 tokens: a thread has n / 8 accumulators whatever `tokens` is. */
static __host__ __device__ constexpr uint32_t norm_threads(uint32_t tokens)
{
    return tokens * 8;
}

static __host__ __device__ constexpr uint32_t norm_stages(uint32_t tokens)
{
    return tokens == 64 ? 7 : 4;
}

/* Pieces of a stage: n rows of weights, then the tokens. */
static __host__ __device__ constexpr uint32_t norm_stage_pieces(uint32_t n, uint32_t tokens)
{
    return (n + tokens) * NORM_PIECES;
}

/* Floats from row to row of results: those of a warp fall into different banks. */
static __host__ __device__ constexpr uint32_t norm_row(uint32_t n)
{
    return n + 4;
}

static __host__ __device__ constexpr uint32_t gemm_norm_shared_bytes(uint32_t n, uint32_t tokens)
{
    uint32_t operands = norm_stages(tokens) * norm_stage_pieces(n, tokens) * PIECE_BYTES;
    uint32_t floats = norm_row(n) * tokens * (uint32_t)sizeof(float);
    return operands > floats ? operands : floats;
}

#if BITM_HAS_WGMMA

/* Starts to copy a stage; they count as in fetch_stage. */
template <int N, int TOKENS>
static __device__ inline void fetch_norm_stage(const Product &p, uint32_t number, uint32_t token,
                                               uint4 *shared)
{
    uint32_t n_stages = p.n_input_pieces / NORM_PIECES, first = number % n_stages * NORM_PIECES;
    const Term &term = p.terms[number / n_stages];
    uint4 *to = shared + number % norm_stages(TOKENS) * norm_stage_pieces(N, TOKENS);
    copy_rows<N, NORM_PIECES, norm_threads(TOKENS)>(p.weights + term.weight_plane * p.weight_stride,
                                                    0, p.n_weight_pieces, first, to);
    copy_rows<TOKENS, NORM_PIECES, norm_threads(TOKENS)>(
        p.inputs + term.input_plane * p.input_stride, token, p.n_input_pieces, first,
        to + N * NORM_PIECES);
}

/* acc = the sum over n_terms of a warpgroup's TILES x 64 outputs. */
template <int N, int TOKENS, int TILES>
static __device__ inline void multiply_norm_stages(const Product &p, uint32_t n_terms,
                                                   uint32_t token, uint4 *shared,
                                                   int32_t acc[TILES][TOKENS / 2])
{
    constexpr uint32_t STAGES = norm_stages(TOKENS);
    uint32_t n_stages = p.n_input_pieces / NORM_PIECES, n_all = n_stages * n_terms, s = 0;
    for (; s < STAGES - 1; s++) {
        if (s < n_all) fetch_norm_stage<N, TOKENS>(p, s, token, shared);
        copy_commit();
    }
    s = 0;
    for (uint32_t term = 0; term < n_terms; term++) {
        for (uint32_t k = 0; k < n_stages; k++, s++) {
            copy_wait<STAGES - 2>();
            __syncthreads();
            const uint4 *weights = shared + s % STAGES * norm_stage_pieces(N, TOKENS);
            uint64_t inputs = tile_descriptor(weights + N * NORM_PIECES, NORM_PIECES);
            weights += threadIdx.x / 128 * TILES * 64 * NORM_PIECES;
            wgmma_fence();
#pragma unroll
            for (int tile = 0; tile < TILES; tile++)
                wgmma_bits_of<TOKENS>(
                    acc[tile], tile_descriptor(weights + tile * 64 * NORM_PIECES, NORM_PIECES),
                    inputs);
            wgmma_commit();
            if (s + STAGES - 1 < n_all)
                fetch_norm_stage<N, TOKENS>(p, s + STAGES - 1, token, shared);
            copy_commit();
            wgmma_wait<0>();
        }
        uint32_t multiplier = (uint32_t)p.terms[term].multiplier;
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
#pragma unroll
            for (int i = 0; i < TOKENS / 2; i++)
                acc[tile][i] = (int32_t)((uint32_t)acc[tile][i] * multiplier);
    }
}

/* The linear's results, rows [TOKENS][norm_row(N)]. */
template <int N, int TOKENS, int TILES>
static __device__ inline void finish_product(const Product &p, uint32_t token, bool dense,
                                             int32_t acc[TILES][TOKENS / 2], float *results)
{
    const Epilogue &e = p.epilogue;
    int32_t multiplier = p.terms[1].multiplier;
#pragma unroll
    for (int i = 0; i < TILES * 2; i++) {
        uint32_t o = (threadIdx.x / 128 * TILES + i / 2) * 64 + threadIdx.x % 128 / WARP * 16 +
                     threadIdx.x % WARP / 4 + i % 2 * 8;
        float scale = e.row_scale[o], bias = e.bias[o];
        int32_t ones = dense ? (int32_t)p.row_ones[o] : 0;
#pragma unroll
        for (int j = 0; j < TOKENS / 4; j++) {
            uint32_t t = j / 2 * 8 + threadIdx.x % 4 * 2 + j % 2;
            int32_t sum = acc[i / 2][j / 2 * 4 + i % 2 * 2 + j % 2];
            if (dense) sum = (sum + ones) * multiplier;
            if (p.subtract_code_sum) sum -= e.tokens.code_sum[token + t];
            results[t * norm_row(N) + o] = finished<EPILOGUE_PLAIN>(e, 0, 0, (float)sum, scale,
                                                                    bias, e.tokens.step[token + t]);
        }
    }
}

#endif

/* N16: a sixteenth of the outputs, which are 512, 768 or 1024. */
template <int N16, int TOKENS>
static __global__ void __launch_bounds__(norm_threads(TOKENS), TOKENS == 32 && N16 < 64 ? 2 : 1)
    gemm_norm_kernel(ProductNorm a)
{
#if BITM_HAS_WGMMA
    BITM_DYNAMIC_SHARED(shared);
    constexpr int N = N16 * LANES, TILES = N * 16 / (64 * TOKENS);
    const Product &p = a.product;
    uint32_t token = blockIdx.x * TOKENS, n_terms = p.n_terms;
    bool dense = false;
    if (p.n_nonzero != NULL) { /* as in gemm_wgmma.cuh */
        bool full = threadIdx.x >= TOKENS || p.n_nonzero[token + threadIdx.x] == p.n_columns;
        dense = __syncthreads_and(full) != 0;
        if (dense) n_terms--;
    }
    int32_t acc[TILES][TOKENS / 2];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int i = 0; i < TOKENS / 2; i++)
            acc[tile][i] = 0;
    multiply_norm_stages<N, TOKENS, TILES>(p, n_terms, token, (uint4 *)shared, acc);
    float *results = (float *)shared;
    __syncthreads(); /* all products are done with the operands */
    finish_product<N, TOKENS, TILES>(p, token, dense, acc, results);
    __syncthreads();

    /* The two rows of a warp are 4 apart, in other banks. */
    uint32_t l = threadIdx.x % LANES, warp = threadIdx.x / WARP;
    uint32_t row = warp / 4 * 8 + warp % 4 + threadIdx.x % WARP / LANES * 4;
#pragma unroll 1
    for (int round = 0; round < 2; round++, row += TOKENS / 2) {
        const float *residual = a.norm.residual + (size_t)(token + row) * N;
        float value[N16];
#pragma unroll
        for (int i = 0; i < N16; i++)
            value[i] = results[row * norm_row(N) + l + i * LANES] + residual[l + i * LANES];
        finish_norm<N16>(a.norm, a.followers, token + row, l, value);
    }
#else
    (void)a;
#endif
}

} // namespace bitm

#endif
