/* Products of bits whose results become codes of two levels, on Hopper: no float is computed, a sum
 * is compared with the limits of its output (sum_limits.cuh).
 *
 * Blocks stay: each has 128 outputs, whose weights lie in shared memory, and takes one 128 tokens
 * after another, which bulk copies bring while those before are multiplied.  A kernel computes up
 * to three linears of the same sizes. */
#ifndef BITM_CUDA_GEMM_BITS_WGMMA_CUH
#define BITM_CUDA_GEMM_BITS_WGMMA_CUH

#include "gemm_wgmma.cuh"

namespace bitm {

enum { BITS_STAGES = 3 };

struct BitsProduct {
    Product product; /* whole blocks of outputs; all inputs have the same step */
    Encoding encoding;
    const SumLimits *limits;
};

struct BitsProducts {
    BitsProduct of[3];
    uint32_t n_blocks;        /* of outputs of a product */
    uint32_t n_weight_planes; /* of the terms */
};

/* What a block's results are compared with, and the barriers of its copies. */
struct BitsShared {
    SumLimits limits[WGMMA_OUTPUTS];
    uint64_t weights, inputs[BITS_STAGES];
};

/* It is followed by the weights, by planes, and a plane of the inputs of 128 tokens a stage. */
static __host__ __device__ inline uint32_t bits_shared_bytes(uint32_t n_pieces,
                                                             uint32_t n_weight_planes)
{
    uint32_t rows = WGMMA_OUTPUTS * n_weight_planes + WGMMA_TOKENS * BITS_STAGES;
    return (uint32_t)sizeof(BitsShared) + rows * n_pieces * PIECE_BYTES;
}

#if BITM_HAS_WGMMA

/* A block's way through its tokens: part, part + n_parts, ... of their blocks, and n_terms steps
 * for each. */
struct BitsSteps {
    uint32_t part, n_parts, n_terms, n;
};

/* Starts to copy the inputs of a step; one thread does it. */
static __device__ inline void fetch_step(const Product &p, const BitsSteps &steps, uint32_t number,
                                         BitsShared *shared, uint4 *stages)
{
    uint32_t token = (steps.part + number / steps.n_terms * steps.n_parts) * WGMMA_TOKENS;
    uint32_t left = p.n_tokens - token, stage = number % BITS_STAGES;
    uint32_t n_bytes = (left < WGMMA_TOKENS ? left : WGMMA_TOKENS) * p.n_input_pieces * PIECE_BYTES;
    const uint4 *from = p.inputs + p.terms[number % steps.n_terms].input_plane * p.input_stride +
                        piece_place(token, 0, p.n_input_pieces);
    expect_bytes(&shared->inputs[stage], n_bytes);
    copy_bulk(stages + stage * WGMMA_TOKENS * p.n_input_pieces, from, n_bytes,
              &shared->inputs[stage]);
}

static __device__ inline void fetch_weights(const Product &p, uint32_t n_planes, uint32_t output,
                                            BitsShared *shared, uint4 *weights)
{
    uint32_t n = WGMMA_OUTPUTS * p.n_weight_pieces;
    expect_bytes(&shared->weights, n_planes * n * PIECE_BYTES);
    for (uint32_t plane = 0; plane < n_planes; plane++)
        copy_bulk(weights + plane * n,
                  p.weights + plane * p.weight_stride + piece_place(output, 0, p.n_weight_pieces),
                  n * PIECE_BYTES, &shared->weights);
}

/* Whether no input of a block's tokens is 0: as in gemm_wgmma_kernel, the last term is known then. */
static __device__ inline bool are_dense(const Product &p, const BitsSteps &steps)
{
    bool full = true;
    for (uint32_t token = steps.part * WGMMA_TOKENS + threadIdx.x % WGMMA_TOKENS;
         token < p.n_tokens; token += steps.n_parts * WGMMA_TOKENS)
        full = full && p.n_nonzero[token] == p.n_columns;
    return __syncthreads_and(full) != 0;
}

/* acc += a AND b over all columns of 64 tokens and 128 outputs. */
template <int PIECES>
static __device__ inline void multiply_bits(const uint4 *inputs, const uint4 *weights,
                                            int32_t acc[64])
{
    wgmma_fence();
#pragma unroll
    for (int piece = 0; piece < PIECES; piece += 2)
        wgmma_bits(acc, tile_descriptor(inputs + piece * TILE_ROWS, PIECES),
                   tile_descriptor(weights + piece * TILE_ROWS, PIECES));
    wgmma_commit();
    wgmma_wait<0>();
}

/* Bits of a thread's 32 outputs of two tokens, in the order of store_greater_bits.  LEFT: some output
 * has a limit on the left. */
template <bool LEFT>
static __device__ inline void compare_sums(const int32_t acc[64], int32_t multiplier,
                                           const int32_t code_sums[2], const SumLimits *limits,
                                           uint32_t bits[2])
{
    bits[0] = bits[1] = 0;
#pragma unroll
    for (int i = 0; i < 16; i++) {
        int4 two = *(const int4 *)(limits + i * 8);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            int32_t sum = acc[i * 4 + k] * multiplier - code_sums[k / 2];
            bool is_greater = sum >= (k % 2 == 0 ? two.y : two.w);
            if (LEFT) is_greater |= sum <= (k % 2 == 0 ? two.x : two.z);
            if (is_greater) bits[k / 2] |= 1u << (i * 2 + k % 2);
        }
    }
}

/* Two tokens' bits as planes: four neighbouring threads have bits of four words of each. */
static __device__ inline void store_greater_bits(const Encoding &e, const uint32_t tokens[2],
                                                 uint32_t n_tokens, uint32_t output,
                                                 const uint32_t bits[2])
{
    uint32_t word = threadIdx.x % 4, n_planes = n_planes_of(e), n_greater = 0;
    uint32_t *row =
        (uint32_t *)(e.planes + piece_place(tokens[0], output / PIECE_BITS, e.n_pieces)) + word;
    uint32_t next = TILE_ROWS * e.n_pieces * 4; /* to the token 8 further */
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t planes[2] = {transpose_pairs_4(bits[half]), 0};
        n_greater += (uint32_t)__popc(planes[0]) << half * 16;
        planes_of_greater(e, planes);
        if (tokens[half] < n_tokens) {
            row[half * next] = planes[0];
            if (n_planes > 1) row[half * next + e.plane_stride * 4] = planes[1];
        }
    }
    if (!e.counts) return;
    n_greater += __shfl_xor_sync(ALL_THREADS, n_greater, 1);
    n_greater += __shfl_xor_sync(ALL_THREADS, n_greater, 2);
    uint32_t token = word == 0 ? tokens[0] : tokens[1]; /* two of the four count one each */
    if (word < 2 && token < n_tokens)
        count_greater(e, token, n_greater >> word * 16 & 0xFFFF, WGMMA_OUTPUTS);
}

/* The limits of sums before the ones of dense inputs are added; returns whether any is on the left. */
static __device__ inline bool place_limits(const BitsProduct &of, uint32_t output, int32_t of_ones,
                                           SumLimits *limits)
{
    bool has_left = false;
    if (threadIdx.x < WGMMA_OUTPUTS) {
        uint32_t o = output + threadIdx.x;
        int32_t ones = of_ones != 0 ? (int32_t)of.product.row_ones[o] * of_ones : 0;
        SumLimits l = of.limits[o];
        limits[threadIdx.x] = SumLimits{l.left - ones, l.right - ones};
        has_left = l.left > -NO_LIMIT;
    }
    return __syncthreads_or(has_left) != 0;
}

#endif

/* Blocks: of the outputs of all products, and parts of the tokens; PIECES: of a row. */
template <int PIECES>
static __global__ void __launch_bounds__(WGMMA_THREADS, 2) gemm_bits_kernel(BitsProducts a)
{
#if BITM_HAS_WGMMA
    BITM_DYNAMIC_SHARED(memory);
    const BitsProduct &of = a.of[blockIdx.x / a.n_blocks];
    const Product &p = of.product;
    uint32_t output = blockIdx.x % a.n_blocks * WGMMA_OUTPUTS;
    BitsShared *shared = (BitsShared *)memory;
    uint4 *weights = (uint4 *)(shared + 1);
    uint4 *stages = weights + WGMMA_OUTPUTS * PIECES * a.n_weight_planes;
    uint32_t n_tiles = ceil_div(p.n_tokens, WGMMA_TOKENS);
    BitsSteps steps = {blockIdx.y, gridDim.y, p.n_terms, 0};
    if (threadIdx.x == 0) {
        init_barrier(&shared->weights);
        for (int stage = 0; stage < BITS_STAGES; stage++)
            init_barrier(&shared->inputs[stage]);
        fetch_weights(p, a.n_weight_planes, output, shared, weights);
    }
    wait_for_kernels_before(p.n_tokens);
    if (threadIdx.x == 0) fetch_step(p, steps, 0, shared, stages);
    bool dense = p.n_nonzero != NULL && are_dense(p, steps);
    if (dense) steps.n_terms--; /* the last counts nonzero inputs */
    steps.n = ceil_div(n_tiles - steps.part, steps.n_parts) * steps.n_terms;
    if (threadIdx.x == 0)
        for (uint32_t s = 1; s < BITS_STAGES && s < steps.n; s++)
            fetch_step(p, steps, s, shared, stages);
    int32_t of_ones = dense ? p.terms[steps.n_terms].multiplier : 0;
    int32_t multiplier = p.terms[steps.n_terms - 1].multiplier * (dense ? of_ones : 1);
    bool has_left = place_limits(of, output, of_ones, shared->limits);
    const SumLimits *limits = shared->limits + threadIdx.x % 4 * 2;
    wait_for_phase(&shared->weights, 0);

    uint32_t s = 0;
    for (uint32_t tile = steps.part; tile < n_tiles; tile += steps.n_parts) {
        uint32_t row = tile * WGMMA_TOKENS + threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4;
        const uint32_t tokens[2] = {row, row + 8};
        int32_t code_sums[2] = {0, 0}, acc[64];
#pragma unroll
        for (int half = 0; half < 2; half++)
            if (p.subtract_code_sum && tokens[half] < p.n_tokens)
                code_sums[half] = p.epilogue.tokens.code_sum[tokens[half]];
#pragma unroll
        for (int i = 0; i < 64; i++)
            acc[i] = 0;
        for (uint32_t term = 0; term < steps.n_terms; term++, s++) {
            if (term > 0) {
                int32_t before = p.terms[term - 1].multiplier;
#pragma unroll
                for (int i = 0; i < 64; i++)
                    acc[i] *= before;
            }
            uint32_t stage = s % BITS_STAGES;
            wait_for_phase(&shared->inputs[stage], s / BITS_STAGES % 2);
            multiply_bits<PIECES>(
                stages + (stage * WGMMA_TOKENS + threadIdx.x / 128 * 64) * PIECES,
                weights + p.terms[term].weight_plane * WGMMA_OUTPUTS * PIECES, acc);
            __syncthreads(); /* the stage is done with */
            if (threadIdx.x == 0 && s + BITS_STAGES < steps.n)
                fetch_step(p, steps, s + BITS_STAGES, shared, stages);
        }
        uint32_t bits[2];
        if (has_left)
            compare_sums<true>(acc, multiplier, code_sums, limits, bits);
        else
            compare_sums<false>(acc, multiplier, code_sums, limits, bits);
        store_greater_bits(of.encoding, tokens, p.n_tokens, output, bits);
    }
#else
    (void)a;
#endif
}

} // namespace bitm

#endif
