/* Products of 1-bit weights and int8 codes on Hopper: wgmma m64n128k32.
 *
 * Weights are the left operand, which may come from registers: each thread expands the bits of its
 * part to bytes of 0 and 1, so that a stage's weights take an eighth of the shared memory and of
 * its bandwidth.  A block of two warpgroups computes 128 outputs x 128 tokens in stages of 128
 * columns. */
#ifndef BITM_CUDA_GEMM_WGMMA_BYTES_CUH
#define BITM_CUDA_GEMM_WGMMA_BYTES_CUH

#include "gemm.cuh"
#include "gemm_wgmma.cuh"

namespace bitm {

enum {
    BYTES_STAGES = 4,
    BYTES_PIECES = 8, /* of inputs in a stage; one of weights */
    BYTES_STAGE_PIECES = WGMMA_TOKENS * BYTES_PIECES + WGMMA_OUTPUTS,
    BYTES_OPERANDS = BYTES_STAGES * BYTES_STAGE_PIECES * PIECE_BYTES,
    BYTES_SHARED_BYTES = BYTES_OPERANDS + WGMMA_TOKENS * 8, /* steps and sums of codes */
};

#if BITM_HAS_WGMMA

/* Starts to copy a stage; the pieces of inputs past a row's end are zeros. */
static __device__ inline void fetch_bytes_stage(const Product &p, uint32_t number, uint32_t token,
                                                uint32_t output, uint4 *shared)
{
    uint32_t n_stages = ceil_div(p.n_input_pieces, BYTES_PIECES), stage = number % n_stages;
    const Term &term = p.terms[number / n_stages];
    uint4 *to = shared + number % BYTES_STAGES * BYTES_STAGE_PIECES;
    copy_rows<WGMMA_TOKENS, BYTES_PIECES, WGMMA_THREADS, true>(
        p.inputs + term.input_plane * p.input_stride, token, p.n_input_pieces, stage * BYTES_PIECES,
        to);
    copy_rows<WGMMA_OUTPUTS, 1, WGMMA_THREADS, false>(
        p.weights + term.weight_plane * p.weight_stride, output, p.n_weight_pieces, stage,
        to + WGMMA_TOKENS * BYTES_PIECES);
}

/* acc [64 outputs, N tokens] += a piece of weights x BYTES_PIECES pieces of codes, which begin at
 * `codes` in tiles of `pieces`.  rows: of a warp's 16 outputs; the last 8 are `next` pieces on.
 * The bytes of 32 columns are made while those before are multiplied: of both no more is held in
 * registers, since without room for them nvcc lets every product wait for the one before. */
template <bool SIGNED, int N>
static __device__ inline void multiply_piece(const uint4 *rows, uint32_t next, const uint4 *codes,
                                             uint32_t pieces, const bool waits, int32_t *acc)
{
    const uint32_t *words = (const uint32_t *)rows + threadIdx.x % WARP;
    uint32_t first = words[0], last = words[next * 4], weights[2][4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        uint32_t *a = weights[k % 2];
        if (k > 1 || waits) wgmma_wait<1>(); /* a is free */
#pragma unroll
        for (int r = 0; r < 4; r++)
            a[r] = bytes_of_weights(r % 2 == 0 ? first : last, k * 2 + r / 2);
        wgmma_fence();
        wgmma_bytes_of<SIGNED, N>(acc, a, tile_descriptor(codes + k * 2 * TILE_ROWS, pieces));
        wgmma_commit();
    }
}

/* acc [64 outputs, N tokens] += the product of a term whose rows lie whole in shared memory; bits:
 * under way until a wait. */
template <bool BYTES, bool SIGNED, int N>
static __device__ inline void multiply_rows(const Product &p, const uint4 *inputs,
                                            const uint4 *weights, int32_t *acc)
{
    uint32_t n = p.n_weight_pieces;
    if (!BYTES) {
        wgmma_fence();
        for (uint32_t piece = 0; piece < n; piece += 2)
            wgmma_bits_of<N>(acc, tile_descriptor(weights + piece * TILE_ROWS, n),
                             tile_descriptor(inputs + piece * TILE_ROWS, n));
        wgmma_commit();
        return;
    }
    weights += threadIdx.x % 128 / WARP * 2 * n * TILE_ROWS;
    for (uint32_t first = 0; first < n; first += 2) {
#pragma unroll
        for (uint32_t i = 0; i < 2; i++)
            multiply_piece<SIGNED, N>(weights + (first + i) * TILE_ROWS, n * TILE_ROWS,
                                      inputs + (first + i) * BYTES_PIECES * TILE_ROWS,
                                      p.n_input_pieces, i != 0, acc);
        wgmma_wait<0>(); /* none is under way at a loop's end: see multiply_piece */
    }
}

template <bool SIGNED>
static __device__ inline void multiply_bytes_stage(const uint4 *stage, int32_t acc[64])
{
    const uint4 *weights = stage + WGMMA_TOKENS * BYTES_PIECES + threadIdx.x / WARP * 16;
    multiply_piece<SIGNED, WGMMA_TOKENS>(weights, TILE_ROWS, stage, BYTES_PIECES, false, acc);
}

template <bool SIGNED>
static __device__ inline void multiply_bytes_term(const Product &p, uint32_t n_stages,
                                                  uint32_t n_all, uint32_t token, uint32_t output,
                                                  uint4 *shared, uint32_t *s, int32_t acc[64])
{
    for (uint32_t k = 0; k < n_stages; k++, ++*s) {
        copy_wait<BYTES_STAGES - 2>();
        __syncthreads();
        multiply_bytes_stage<SIGNED>(shared + *s % BYTES_STAGES * BYTES_STAGE_PIECES, acc);
        if (*s + BYTES_STAGES - 1 < n_all)
            fetch_bytes_stage(p, *s + BYTES_STAGES - 1, token, output, shared);
        copy_commit();
        wgmma_wait<0>();
    }
}

/* The epilogue, from steps and sums of codes of the block's tokens.  WHOLE: the block has outputs
 * only that are; nothing is asked then between one result and the next, so that they overlap. */
template <int KIND, bool WHOLE>
static __device__ inline void store_bytes_product(const Product &p, uint32_t token, uint32_t output,
                                                  const float *steps, const int32_t *code_sums,
                                                  const int4 *results)
{
    const Epilogue &e = p.epilogue;
    uint32_t first_output = output + threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4;
    uint32_t first_token = threadIdx.x % 4 * 2;
    float scale[2], bias[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t o = first_output + half * 8;
        scale[half] = WHOLE || o < p.n_outputs ? e.row_scale[o] : 0.0F;
        bias[half] = WHOLE || o < p.n_outputs ? e.bias[o] : 0.0F;
    }
    uint32_t n = p.n_tokens - token < WGMMA_TOKENS ? 8 : 16; /* or blocks of 64 tokens */
#pragma unroll 4
    for (uint32_t i = 0; i < n; i++) {
        int4 pairs = results[i * WGMMA_THREADS];
        const int32_t sums[2][2] = {{pairs.x, pairs.y}, {pairs.z, pairs.w}};
#pragma unroll
        for (uint32_t k = 0; k < 2; k++) {
            uint32_t place = first_token + i * 8 + k, t = token + place;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint32_t o = first_output + half * 8;
                float dot = (float)(sums[half][k] - code_sums[place]);
                if (WHOLE || o < p.n_outputs)
                    e.outputs[t * e.stride + o] =
                        finished<KIND>(e, t, o, dot, scale[half], bias[half], steps[place]);
            }
        }
    }
}

#endif

/* Memory holds whole blocks of tokens and outputs; what lies in those past the last is ignored. */
template <int KIND>
static __global__ void __launch_bounds__(WGMMA_THREADS, 2) gemm_wgmma_bytes_kernel(Product p)
{
#if BITM_HAS_WGMMA
    BITM_DYNAMIC_SHARED(shared_bytes);
    uint4 *shared = (uint4 *)shared_bytes;
    float *steps = (float *)(shared_bytes + BYTES_OPERANDS);
    int32_t *code_sums = (int32_t *)(steps + WGMMA_TOKENS);
    const Epilogue &e = p.epilogue;
    uint32_t token = blockIdx.y * WGMMA_TOKENS, output = blockIdx.x * WGMMA_OUTPUTS;
    uint32_t n_stages = ceil_div(p.n_input_pieces, BYTES_PIECES), n_all = n_stages * p.n_terms;
    wait_for_kernels_before(p.n_tokens);
    int32_t acc[64];
#pragma unroll
    for (int i = 0; i < 64; i++)
        acc[i] = 0;
    for (uint32_t s = 0; s < BYTES_STAGES - 1; s++) {
        if (s < n_all) fetch_bytes_stage(p, s, token, output, shared);
        copy_commit();
    }
    if (threadIdx.x < WGMMA_TOKENS) { /* read here: between stores each would be waited for */
        uint32_t t = token + threadIdx.x;
        bool is_token = t < p.n_tokens;
        steps[threadIdx.x] = is_token ? e.tokens.step[t] : 0.0F;
        code_sums[threadIdx.x] = is_token && p.subtract_code_sum ? e.tokens.code_sum[t] : 0;
    }
    uint32_t s = 0;
    for (uint32_t t = 0; t < p.n_terms; t++) {
        if (p.terms[t].is_signed)
            multiply_bytes_term<true>(p, n_stages, n_all, token, output, shared, &s, acc);
        else
            multiply_bytes_term<false>(p, n_stages, n_all, token, output, shared, &s, acc);
        uint32_t multiplier = (uint32_t)p.terms[t].multiplier;
#pragma unroll
        for (int i = 0; i < 64; i++)
            acc[i] = (int32_t)((uint32_t)acc[i] * multiplier);
    }
    const int4 *results = store_results(acc, shared);
    if (output + WGMMA_OUTPUTS <= p.n_outputs)
        store_bytes_product<KIND, true>(p, token, output, steps, code_sums, results);
    else
        store_bytes_product<KIND, false>(p, token, output, steps, code_sums, results);
#else
    (void)p;
#endif
}

} // namespace bitm

#endif
