/* Products of bits whose results become codes of two levels, on Hopper: no float is computed, a sum
 * is compared with the limits of its output (sum_limits.cuh).
 *
 * Blocks stay: each has 128 outputs, whose weights lie in shared memory, and takes one 128 tokens
 * after another, which bulk copies bring while those before are multiplied.  Weights are in an
 * order in which a thread has sums of 32 neighbouring outputs, a whole word of a token's bits.  A
 * kernel computes up to three linears of the same sizes. */
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

/* What a block's sums are compared with, in the order of weights, and barriers of its copies. */
struct BitsShared {
    SumLimits limits[WGMMA_OUTPUTS];
    uint64_t barriers[BITS_STAGES + 1]; /* an even number of them */
};

/* It is followed by the weights, by planes, and a plane of the inputs of 128 tokens a stage. */
static __host__ __device__ inline uint32_t bits_shared_bytes(uint32_t n_pieces,
                                                             uint32_t n_weight_planes)
{
    uint32_t rows = WGMMA_OUTPUTS * n_weight_planes + WGMMA_TOKENS * BITS_STAGES;
    return (uint32_t)sizeof(BitsShared) + rows * n_pieces * PIECE_BYTES;
}

#if BITM_HAS_WGMMA

/* The place of an output's weights: of four neighbouring threads, each has sums of two neighbours
 * in every eight of them, and is to have those of a word. */
static __device__ inline uint32_t place_of_output(uint32_t output)
{
    return output % 32 / 2 * 8 + output / 32 * 2 + output % 2;
}

/* Starts to copy weights [n_planes][128 outputs], in that order. */
template <int PIECES>
static __device__ inline void fetch_weights(const Product &p, uint32_t n_planes, uint32_t output,
                                            uint4 *weights)
{
    for (uint32_t plane = 0; plane < n_planes; plane++) {
        const uint4 *from = p.weights + plane * p.weight_stride + piece_place(output, 0, PIECES);
        for (uint32_t i = threadIdx.x; i < WGMMA_OUTPUTS * PIECES; i += WGMMA_THREADS) {
            uint32_t o = i / (TILE_ROWS * PIECES) * TILE_ROWS + i % TILE_ROWS;
            uint32_t piece = i / TILE_ROWS % PIECES;
            copy_async(weights + plane * WGMMA_OUTPUTS * PIECES +
                           piece_place(place_of_output(o), piece, PIECES),
                       from + i);
        }
    }
    copy_commit();
}

/* A block's way through its tokens: part, part + n_parts, ... of their blocks, and n_terms steps
 * for each. */
struct BitsSteps {
    uint32_t part, n_parts, n_terms, n;
};

/* Starts to copy the inputs of a step; one thread does it. */
template <int PIECES>
static __device__ inline void fetch_step(const Product &p, const BitsSteps &steps, uint32_t number,
                                         uint64_t *barriers, uint4 *stages)
{
    uint32_t token = (steps.part + number / steps.n_terms * steps.n_parts) * WGMMA_TOKENS;
    uint32_t left = p.n_tokens - token, stage = number % BITS_STAGES;
    uint32_t n_bytes = (left < WGMMA_TOKENS ? left : WGMMA_TOKENS) * PIECES * PIECE_BYTES;
    expect_bytes(&barriers[stage], n_bytes);
    copy_bulk(stages + stage * WGMMA_TOKENS * PIECES,
              p.inputs + p.terms[number % steps.n_terms].input_plane * p.input_stride +
                  piece_place(token, 0, PIECES),
              n_bytes, &barriers[stage]);
}

/* Whether no input of a block's tokens is 0: the last term is known then, as in gemm_wgmma.cuh. */
static __device__ inline bool are_dense(const Product &p, const BitsSteps &steps)
{
    bool full = true;
#pragma unroll 4
    for (uint32_t token = steps.part * WGMMA_TOKENS + threadIdx.x % WGMMA_TOKENS;
         token < p.n_tokens; token += steps.n_parts * WGMMA_TOKENS)
        full &= p.n_nonzero[token] == p.n_columns;
    return __syncthreads_and(full) != 0;
}

/* What the model knows of a thread's output. */
struct OutputLimits {
    SumLimits limits;
    int32_t ones; /* positive weights, where they are known */
};

static __device__ inline OutputLimits read_limits(const BitsProduct &of, uint32_t output)
{
    OutputLimits l = {SumLimits{-NO_LIMIT, 0}, 0};
    if (threadIdx.x >= WGMMA_OUTPUTS) return l;
    l.limits = of.limits[output + threadIdx.x];
    if (of.product.n_nonzero != NULL) l.ones = (int32_t)of.product.row_ones[output + threadIdx.x];
    return l;
}

/* The limits of sums before ones, so often, are added; returns whether any is on the left. */
static __device__ inline bool place_limits(const OutputLimits &l, int32_t of_ones,
                                           SumLimits *limits)
{
    if (threadIdx.x < WGMMA_OUTPUTS)
        limits[place_of_output(threadIdx.x)] =
            SumLimits{l.limits.left - l.ones * of_ones, l.limits.right - l.ones * of_ones};
    return __syncthreads_or(l.limits.left > -NO_LIMIT) != 0;
}

/* acc = or += a AND b over all columns of 64 tokens and 128 outputs, by descriptors. */
template <int PIECES>
static __device__ inline void multiply_bits(uint64_t inputs, uint64_t weights, bool is_first,
                                            int32_t acc[64])
{
    wgmma_fence();
    wgmma_bits_onto(!is_first, acc, inputs, weights);
#pragma unroll
    for (int piece = 2; piece < PIECES; piece += 2)
        wgmma_bits(acc, inputs + piece * TILE_ROWS, weights + piece * TILE_ROWS);
    wgmma_commit();
    wgmma_wait<0>();
}

/* Words of a thread's 32 outputs of two tokens.  LEFT: some output has a limit on the left. */
template <bool LEFT>
static __device__ inline void compare_sums(const int32_t acc[64], int32_t multiplier,
                                           const int32_t code_sums[2], const SumLimits *limits,
                                           uint32_t words[2])
{
    words[0] = words[1] = 0;
#pragma unroll
    for (int i = 0; i < 16; i++) {
        int4 two = *(const int4 *)(limits + i * 8);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            int32_t sum = acc[i * 4 + k] * multiplier - code_sums[k / 2];
            bool is_greater = sum >= (k % 2 == 0 ? two.y : two.w);
            if (LEFT) is_greater |= sum <= (k % 2 == 0 ? two.x : two.z);
            if (is_greater) words[k / 2] |= 1u << (i * 2 + k % 2);
        }
    }
}

/* Where a thread's words go, what they become, and what a bit of each code counts. */
struct BitsTarget {
    uint32_t *words; /* of the thread's first token */
    size_t plane_words;
    uint32_t n_planes, next_words; /* to the token 8 further */
    CodeMasks masks;
    int32_t *code_sum;   /* of token 0; NULL: nothing is counted */
    uint32_t *n_nonzero; /* NULL: not counted */
    int32_t lower, greater;
};

static __device__ inline BitsTarget target_of(const Encoding &e, uint32_t output, uint32_t token)
{
    BitsTarget t;
    t.words = word_at(e, token, output + threadIdx.x % 4 * 32);
    t.plane_words = e.plane_stride * 4;
    t.n_planes = n_planes_of(e);
    t.next_words = TILE_ROWS * e.n_pieces * 4;
    t.masks = masks_of_two(e);
    const uint2 codes = codes_of_two(e);
    t.code_sum = e.counts ? e.code_sum : NULL;
    t.n_nonzero = e.counts && e.form == FORM_SIGN ? e.n_nonzero : NULL;
    t.lower = sum_of_planes(e, (int32_t)codes.x & 1, (int32_t)codes.x >> 1 & 1);
    t.greater = sum_of_planes(e, (int32_t)codes.y & 1, (int32_t)codes.y >> 1 & 1);
    return t;
}

static __device__ inline void store_word_of(const BitsTarget &t, uint32_t *to, uint32_t word)
{
    to[0] = plane_of_greater(t.masks, 0, word);
    if (t.n_planes > 1) to[t.plane_words] = plane_of_greater(t.masks, 1, word);
}

/* Four neighbouring threads count their words of two tokens. */
static __device__ inline void count_words(const BitsTarget &t, const uint32_t tokens[2],
                                          uint32_t n_tokens, const uint32_t words[2])
{
    uint32_t counts = (uint32_t)__popc(words[0]) | (uint32_t)__popc(words[1]) << 16;
    counts += __shfl_xor_sync(ALL_THREADS, counts, 1);
    counts += __shfl_xor_sync(ALL_THREADS, counts, 2);
    uint32_t half = threadIdx.x % 4, token = half == 0 ? tokens[0] : tokens[1];
    if (half > 1 || token >= n_tokens) return;
    int32_t n_greater = (int32_t)(counts >> half * 16 & 0xFFFF);
    int32_t n_lower = WGMMA_OUTPUTS - n_greater;
    atomicAdd(t.code_sum + token, n_greater * t.greater + n_lower * t.lower);
    if (t.n_nonzero != NULL) atomicAdd(t.n_nonzero + token, (uint32_t)WGMMA_OUTPUTS);
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
    uint64_t *barriers = shared->barriers;
    uint4 *weights = (uint4 *)(shared + 1);
    uint4 *stages = weights + WGMMA_OUTPUTS * PIECES * a.n_weight_planes;
    if (threadIdx.x == 0)
        for (int stage = 0; stage < BITS_STAGES; stage++)
            init_barrier(&barriers[stage]);
    fetch_weights<PIECES>(p, a.n_weight_planes, output, weights);
    OutputLimits output_limits = read_limits(of, output);
    uint32_t row = threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4;
    BitsTarget target = target_of(of.encoding, output, blockIdx.y * WGMMA_TOKENS + row);

    wait_for_kernels_before(p.n_tokens);
    BitsSteps steps = {blockIdx.y, gridDim.y, p.n_terms, 0};
    if (threadIdx.x == 0) fetch_step<PIECES>(p, steps, 0, barriers, stages);
    bool dense = p.n_nonzero != NULL && are_dense(p, steps);
    if (dense) steps.n_terms--; /* the last counts nonzero inputs */
    uint32_t n_tiles = ceil_div(p.n_tokens, WGMMA_TOKENS);
    steps.n = ceil_div(n_tiles - steps.part, steps.n_parts) * steps.n_terms;
    if (threadIdx.x == 0)
        for (uint32_t s = 1; s < BITS_STAGES && s < steps.n; s++)
            fetch_step<PIECES>(p, steps, s, barriers, stages);
    int32_t of_ones = dense ? p.terms[steps.n_terms].multiplier : 0;
    int32_t multiplier = p.terms[steps.n_terms - 1].multiplier * (dense ? of_ones : 1);
    copy_wait<0>();
    bool has_left = place_limits(output_limits, of_ones, shared->limits);
    const SumLimits *limits = shared->limits + threadIdx.x % 4 * 2;
    const int32_t *code_sum = p.subtract_code_sum ? p.epilogue.tokens.code_sum : NULL;
    uint64_t weight_tiles = tile_descriptor(weights, PIECES);
    uint64_t input_tiles = tile_descriptor(stages + threadIdx.x / 128 * 64 * PIECES, PIECES);
    size_t next_tile = (size_t)steps.n_parts * (WGMMA_TOKENS / TILE_ROWS) * target.next_words;

    uint32_t s = 0, stage = 0, phase = 0;
    for (uint32_t tile = steps.part; tile < n_tiles; tile += steps.n_parts) {
        const uint32_t tokens[2] = {tile * WGMMA_TOKENS + row, tile * WGMMA_TOKENS + row + 8};
        int32_t code_sums[2] = {0, 0}, acc[64];
#pragma unroll
        for (int half = 0; half < 2; half++)
            if (code_sum != NULL && tokens[half] < p.n_tokens)
                code_sums[half] = code_sum[tokens[half]];
        for (uint32_t term = 0; term < steps.n_terms; term++, s++) {
            if (term > 0) {
                int32_t before = p.terms[term - 1].multiplier;
#pragma unroll
                for (int i = 0; i < 64; i++)
                    acc[i] *= before;
            }
            wait_for_phase(&barriers[stage], phase);
            multiply_bits<PIECES>(
                input_tiles + stage * WGMMA_TOKENS * PIECES,
                weight_tiles + p.terms[term].weight_plane * WGMMA_OUTPUTS * PIECES, term == 0, acc);
            __syncthreads(); /* the stage is done with */
            if (threadIdx.x == 0 && s + BITS_STAGES < steps.n)
                fetch_step<PIECES>(p, steps, s + BITS_STAGES, barriers, stages);
            if (++stage == BITS_STAGES) stage = 0, phase ^= 1;
        }
        uint32_t words[2];
        if (has_left)
            compare_sums<true>(acc, multiplier, code_sums, limits, words);
        else
            compare_sums<false>(acc, multiplier, code_sums, limits, words);
#pragma unroll
        for (int half = 0; half < 2; half++)
            if (tokens[half] < p.n_tokens)
                store_word_of(target, target.words + half * target.next_words, words[half]);
        target.words += next_tile;
        if (target.code_sum != NULL) count_words(target, tokens, p.n_tokens, words);
    }
#else
    (void)a;
#endif
}

} // namespace bitm

#endif
