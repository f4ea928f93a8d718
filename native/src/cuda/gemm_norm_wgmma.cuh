/* A product, the residual, the norm and the inputs of what follows in one kernel, on Hopper.
 *
 * A block computes all outputs of TOKENS tokens, so that it has whole rows for the norm: outputs
 * are the left operand, tokens the right one.  After the products bulk copies bring the residual
 * into rows in the operands' place, and results are added to it as it comes; then 16 threads take a
 * row each as in tokens.cuh.  The floats between a linear and its norm go through no
 * other memory. */
#ifndef BITM_CUDA_GEMM_NORM_WGMMA_CUH
#define BITM_CUDA_GEMM_NORM_WGMMA_CUH

#include "gemm_wgmma_bytes.cuh"
#include "hopper.cuh"
#include "tokens.cuh"

namespace bitm {

struct ProductNorm {
    Product product; /* as many outputs as the norm has columns */
    Norm norm;       /* x: the product's results in its place; residual: not NULL */
    Followers followers;
};

enum { RESIDUAL_PARTS = 4 };

/* What lies in shared memory before the rows of results. */
template <int N, int TOKENS> struct NormFacts {
    float gain[N], bias[N];
    /* Of the product, so that nothing is loaded while the residual comes. */
    float row_scale[N], row_bias[N], step[TOKENS];
    int32_t row_ones[N], code_sum[TOKENS];
    uint64_t residual[RESIDUAL_PARTS]; /* barriers of its copies */
};

/* A block's sizes: N16 is a sixteenth of the outputs, of which each warpgroup has TILES x 64. */
template <int N16, int TOKENS_, int WARPGROUPS, bool BYTES_> struct NormShape {
    static constexpr bool BYTES = BYTES_;
    enum : uint32_t {
        N = N16 * LANES,
        TOKENS = TOKENS_,
        THREADS = WARPGROUPS * 128,
        TILES = N / 64 / WARPGROUPS,
        BLOCKS = THREADS == 256 && TILES * TOKENS <= 192 ? 2 : 1, /* of a multiprocessor */
        MOST_BYTES = (BLOCKS == 2 ? 113 : 227) * 1024,
        WEIGHT_PIECES = BYTES_ ? 1 : 2, /* of a row in a stage */
        INPUT_PIECES = BYTES_ ? BYTES_PIECES : 2,
        STAGE_PIECES = N * WEIGHT_PIECES + TOKENS * INPUT_PIECES,
        STAGE_BYTES = STAGE_PIECES * PIECE_BYTES,
        ROW = N + 4, /* floats from row to row of results: a warp's fall into different banks */
        FACT_BYTES = sizeof(NormFacts<N, TOKENS>),
        ROOM = (MOST_BYTES - FACT_BYTES) / STAGE_BYTES,
        STAGES = ROOM < 8 ? ROOM : 8,
        ROW_BYTES = ROW * TOKENS * 4,
        SHARED_BYTES = FACT_BYTES +
            (STAGES * STAGE_BYTES > ROW_BYTES ? STAGES * STAGE_BYTES : ROW_BYTES),
    };
    static_assert(STAGES >= 3 && SHARED_BYTES <= MOST_BYTES && FACT_BYTES % 16 == 0, "");
};

#if BITM_HAS_WGMMA

/* Starts to copy a stage; they count as in fetch_stage.  Pieces past a row's end are zeros. */
template <typename S>
static __device__ inline void fetch_norm_stage(const Product &p, uint32_t n_stages, uint32_t number,
                                               uint32_t token, uint4 *shared)
{
    uint32_t stage = number % n_stages;
    const Term &term = p.terms[number / n_stages];
    uint4 *to = shared + number % S::STAGES * S::STAGE_PIECES;
    copy_rows<S::N, S::WEIGHT_PIECES, S::THREADS, false>(
        p.weights + term.weight_plane * p.weight_stride, 0, p.n_weight_pieces,
        stage * S::WEIGHT_PIECES, to);
    copy_rows<S::TOKENS, S::INPUT_PIECES, S::THREADS, S::BYTES>(
        p.inputs + term.input_plane * p.input_stride, token, p.n_input_pieces,
        stage * S::INPUT_PIECES, to + S::N * S::WEIGHT_PIECES);
}

template <typename S, bool SIGNED>
static __device__ inline void multiply_norm_stage(const uint4 *stage,
                                                  int32_t acc[S::TILES][S::TOKENS / 2])
{
    const uint4 *inputs = stage + S::N * S::WEIGHT_PIECES;
    const uint4 *weights = stage + threadIdx.x / 128 * S::TILES * 64 * S::WEIGHT_PIECES;
#pragma unroll
    for (int tile = 0; tile < S::TILES; tile++, weights += 64 * S::WEIGHT_PIECES) {
        if (!S::BYTES) {
            if (tile == 0) wgmma_fence();
            wgmma_bits_of<S::TOKENS>(acc[tile], tile_descriptor(weights, S::WEIGHT_PIECES),
                                     tile_descriptor(inputs, S::INPUT_PIECES));
        } else {
            multiply_piece<SIGNED, S::TOKENS>(weights + threadIdx.x % 128 / WARP * 16, TILE_ROWS,
                                              inputs, S::INPUT_PIECES, tile != 0, acc[tile]);
        }
    }
    if (!S::BYTES) wgmma_commit();
}

/* acc += the product of a term; *s: the number of its first stage, then of the next term's. */
template <typename S, bool SIGNED>
static __device__ inline void multiply_norm_term(const Product &p, uint32_t n_stages,
                                                 uint32_t n_all, uint32_t token, uint4 *shared,
                                                 uint32_t *s, int32_t acc[S::TILES][S::TOKENS / 2])
{
    for (uint32_t k = 0; k < n_stages; k++, ++*s) {
        copy_wait<S::STAGES - 2>();
        __syncthreads();
        multiply_norm_stage<S, SIGNED>(shared + *s % S::STAGES * S::STAGE_PIECES, acc);
        if (*s + S::STAGES - 1 < n_all)
            fetch_norm_stage<S>(p, n_stages, *s + S::STAGES - 1, token, shared);
        copy_commit();
        wgmma_wait<0>();
    }
}

/* acc = the sum over n_terms of a warpgroup's outputs. */
template <typename S>
static __device__ inline void multiply_norm_terms(const Product &p, uint32_t n_terms,
                                                  uint32_t token, uint4 *shared,
                                                  int32_t acc[S::TILES][S::TOKENS / 2])
{
    uint32_t n_stages = ceil_div(p.n_input_pieces, S::INPUT_PIECES), n_all = n_stages * n_terms;
#pragma unroll 1
    for (uint32_t s = 0; s < S::STAGES - 1; s++) {
        if (s < n_all) fetch_norm_stage<S>(p, n_stages, s, token, shared);
        copy_commit();
    }
    uint32_t s = 0;
    for (uint32_t t = 0; t < n_terms; t++) {
        if (S::BYTES && p.terms[t].is_signed)
            multiply_norm_term<S, true>(p, n_stages, n_all, token, shared, &s, acc);
        else
            multiply_norm_term<S, false>(p, n_stages, n_all, token, shared, &s, acc);
        uint32_t multiplier = (uint32_t)p.terms[t].multiplier;
#pragma unroll
        for (int tile = 0; tile < S::TILES; tile++)
#pragma unroll
            for (int i = 0; i < S::TOKENS / 2; i++)
                acc[tile][i] = (int32_t)((uint32_t)acc[tile][i] * multiplier);
    }
}

/* Starts to copy the residual into the rows of results, in parts.  Every warp takes some rows: bulk
 * copies of the threads of a warp begin one after the other. */
template <typename S>
static __device__ inline void fetch_residual(const float *residual, float *results,
                                             uint64_t *barriers)
{
    enum : uint32_t { ROWS = S::TOKENS / RESIDUAL_PARTS };
    if (threadIdx.x < RESIDUAL_PARTS)
        expect_bytes(&barriers[threadIdx.x], ROWS * S::N * sizeof(float));
    if (threadIdx.x % WARP != 0) return;
    for (uint32_t row = threadIdx.x / WARP; row < S::TOKENS; row += S::THREADS / WARP)
        copy_bulk(results + row * S::ROW, residual + (size_t)row * S::N, S::N * sizeof(float),
                  &barriers[row / ROWS]);
}

/* Adds the linear's results to the rows, [TOKENS][ROW], of the residual. */
template <typename S>
static __device__ inline void finish_product(const Product &p, bool dense,
                                             int32_t acc[S::TILES][S::TOKENS / 2],
                                             NormFacts<S::N, S::TOKENS> *facts, float *results)
{
    uint32_t first =
        threadIdx.x / 128 * S::TILES * 64 + threadIdx.x % 128 / WARP * 16 + threadIdx.x % WARP / 4;
    float scale[S::TILES * 2], bias[S::TILES * 2];
#pragma unroll
    for (int i = 0; i < S::TILES * 2; i++) {
        scale[i] = facts->row_scale[first + i / 2 * 64 + i % 2 * 8];
        bias[i] = facts->row_bias[first + i / 2 * 64 + i % 2 * 8];
    }
    if (dense) {
        int32_t multiplier = p.terms[1].multiplier;
#pragma unroll
        for (int i = 0; i < S::TILES * 2; i++) {
            int32_t ones = facts->row_ones[first + i / 2 * 64 + i % 2 * 8];
#pragma unroll
            for (int j = 0; j < S::TOKENS / 4; j++) {
                int32_t *sum = &acc[i / 2][j / 2 * 4 + i % 2 * 2 + j % 2];
                *sum = (*sum + ones) * multiplier;
            }
        }
    }
#pragma unroll
    for (int j = 0; j < S::TOKENS / 8; j++) { /* two tokens */
        if (j * RESIDUAL_PARTS % (S::TOKENS / 8) == 0)
            wait_for_phase(&facts->residual[j * RESIDUAL_PARTS * 8 / S::TOKENS], 0);
        uint32_t t = j * 8 + threadIdx.x % 4 * 2;
        float2 step = *(const float2 *)(facts->step + t);
        int2 code_sum = *(const int2 *)(facts->code_sum + t);
        float *to = results + t * S::ROW + first;
#pragma unroll
        for (int i = 0; i < S::TILES * 2; i++) {
            const int32_t *sums = &acc[i / 2][j * 4 + i % 2 * 2];
            float *place = to + i / 2 * 64 + i % 2 * 8;
            place[0] += fmaf((float)(sums[0] - code_sum.x), scale[i] * step.x, bias[i]);
            place[S::ROW] += fmaf((float)(sums[1] - code_sum.y), scale[i] * step.y, bias[i]);
        }
    }
}

/* Starts to copy what the model knows of outputs. */
template <typename S>
static __device__ inline void copy_output_facts(const Product &p, const Norm &norm,
                                                NormFacts<S::N, S::TOKENS> *facts)
{
    for (uint32_t i = threadIdx.x * 4; i < S::N; i += S::THREADS * 4) {
        copy_async(facts->gain + i, norm.gain + i);
        copy_async(facts->bias + i, norm.bias + i);
        copy_async(facts->row_scale + i, p.epilogue.row_scale + i);
        copy_async(facts->row_bias + i, p.epilogue.bias + i);
        if (p.n_nonzero != NULL) copy_async(facts->row_ones + i, p.row_ones + i);
    }
}

#endif

template <int N16, int TOKENS, int WARPGROUPS, bool BYTES>
static __global__ void __launch_bounds__(NormShape<N16, TOKENS, WARPGROUPS, BYTES>::THREADS,
                                         NormShape<N16, TOKENS, WARPGROUPS, BYTES>::BLOCKS)
    gemm_norm_kernel(ProductNorm a)
{
#if BITM_HAS_WGMMA
    typedef NormShape<N16, TOKENS, WARPGROUPS, BYTES> S;
    BITM_DYNAMIC_SHARED(shared);
    const Product &p = a.product;
    uint32_t token = blockIdx.x * TOKENS, n_terms = p.n_terms, warp = threadIdx.x / WARP;
    const float *residual = a.norm.residual + (size_t)token * S::N;
    NormFacts<S::N, TOKENS> *facts = (NormFacts<S::N, TOKENS> *)shared;
    float *results = (float *)(facts + 1);
    copy_output_facts<S>(p, a.norm, facts);
    copy_commit();
    if (threadIdx.x < RESIDUAL_PARTS) init_barrier(&facts->residual[threadIdx.x]);
    wait_for_kernels_before(p.n_tokens);
    if (threadIdx.x < TOKENS) {
        const TokenFacts &tokens = p.epilogue.tokens;
        facts->step[threadIdx.x] = tokens.step[token + threadIdx.x];
        facts->code_sum[threadIdx.x] =
            p.subtract_code_sum ? tokens.code_sum[token + threadIdx.x] : 0;
    }
    bool dense = false;
    if (!BYTES && p.n_nonzero != NULL) { /* as in gemm_wgmma.cuh */
        bool full = threadIdx.x >= TOKENS || p.n_nonzero[token + threadIdx.x] == p.n_columns;
        dense = __syncthreads_and(full) != 0;
        if (dense) n_terms--;
    }
    int32_t acc[S::TILES][TOKENS / 2];
#pragma unroll
    for (int tile = 0; tile < S::TILES; tile++)
#pragma unroll
        for (int i = 0; i < TOKENS / 2; i++)
            acc[tile][i] = 0;
    multiply_norm_terms<S>(p, n_terms, token, (uint4 *)results, acc);
    __syncthreads(); /* all products are done with the operands */
    fetch_residual<S>(residual, results, facts->residual);
    finish_product<S>(p, dense, acc, facts, results);
    __syncthreads();

    /* The two rows of a warp are 4 apart, in other banks. */
    uint32_t l = threadIdx.x % LANES,
             row = warp / 4 * 8 + warp % 4 + threadIdx.x % WARP / LANES * 4;
#pragma unroll 1
    for (; row < TOKENS; row += S::THREADS / LANES) {
        float value[N16], *y = results + row * S::ROW;
#pragma unroll
        for (int i = 0; i < N16; i++)
            value[i] = y[l + i * LANES];
        finish_norm<N16>(a.norm, NormPlaces{facts->gain, facts->bias, y}, l, value);
        publish_tiles();
        __syncwarp();
        if (l == 0) store_bulk(a.norm.y + (size_t)(token + row) * S::N, y, S::N * sizeof(float));
        encode_followers<N16>(a.followers, token + row, l, value);
    }
    if (l != 0) return;
    store_commit();
    wait_for_stores<0>();
#else
    (void)a;
#endif
}

} // namespace bitm

#endif
