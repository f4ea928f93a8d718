/* The products of a layer of signs (layer_signs.cuh): weights in registers times bits in shared
 * memory, added to rows of floats or compared with limits. */
#ifndef BITM_CUDA_LAYER_PRODUCTS_CUH
#define BITM_CUDA_LAYER_PRODUCTS_CUH

#include "layer_shape.cuh"

namespace bitm {

#if BITM_HAS_WGMMA

/* A thread's weights: batch i of all is in slot i % LAYER_SLOTS. */
template <int H256> struct LayerWeights {
    const uint4 *next;
    uint4 batches[LAYER_SLOTS][H256];

    __device__ inline void begin(const LayerSigns &layer)
    {
        next = layer.weights + threadIdx.x / GROUP_THREADS * group_weight_pieces(H256) +
               threadIdx.x % GROUP_THREADS;
#pragma unroll
        for (int slot = 0; slot < LAYER_AHEAD; slot++)
            fetch(slot);
    }

    __device__ inline void fetch(int slot)
    {
        slot %= LAYER_SLOTS;
#pragma unroll
        for (int k = 0; k < H256; k++)
            batches[slot][k] = __ldcg(next + k * GROUP_THREADS);
        next += H256 * GROUP_THREADS;
    }
};

/* Bits that are multiplied: descriptors of tiles, nonzero 0 where no input is 0. */
struct LayerInputs {
    uint64_t bits, nonzero;
};

/* How the sum of inputs times weights follows from how many bits both have:
 * (both * between + both of nonzero) * multiplier + of_ones * positive weights - codes' sum. */
struct SumRule {
    int32_t between, multiplier, of_ones;
};

/* bit: what one of the inputs counts; 0: they are signs. */
static __device__ inline SumRule rule_of(int32_t bit, bool dense)
{
    if (bit != 0) return SumRule{0, 2 * bit, 0};
    return dense ? SumRule{0, 4, -2} : SumRule{-2, -2, 0};
}

/* Of inputs that have so many bits. */
static __device__ inline int32_t code_sum_of(const LayerHalf &linear, int32_t n_bits,
                                             uint32_t n_columns)
{
    return linear.bit != 0 ? linear.bit * n_bits : 2 * n_bits - (int32_t)n_columns;
}

/* acc = weights AND bits of a batch, or += . */
template <typename S>
static __device__ inline void multiply_batch(const uint4 weights[], uint64_t bits, bool onto,
                                             int32_t acc[])
{
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < S::H256; k++)
        wgmma_rows_of<S::TOKENS>(onto || k > 0, acc, weights[k], bits + k * 2 * TILE_ROWS);
    wgmma_commit();
    wgmma_wait<0>();
}

/* acc = or += a batch's part of the sums of 64 outputs, but for the rule's last step; what is not
 * dense comes in one batch. */
template <typename S>
static __device__ inline void multiply(const uint4 weights[], const LayerInputs &inputs,
                                       const SumRule &rule, bool onto, int32_t acc[])
{
    multiply_batch<S>(weights, inputs.bits, onto, acc);
    if (inputs.nonzero == 0) return;
#pragma unroll
    for (int i = 0; i < S::TOKENS / 2; i++)
        acc[i] *= rule.between;
    multiply_batch<S>(weights, inputs.nonzero, true, acc);
}

/* The first of a thread's outputs of a tile whose results are floats. */
static __device__ inline uint32_t output_of_tile(uint32_t tile)
{
    return tile * 64 + threadIdx.x % GROUP_THREADS / WARP * 16 + threadIdx.x % WARP / 4 * 2;
}

/* What is known of a thread's two outputs of a tile, loaded before it is wanted. */
struct TileFacts {
    float2 scale, bias;
    uint2 ones; /* where they count */
};

static __device__ inline TileFacts facts_of_tile(const LayerHalf &linear, const SumRule &rule,
                                                 uint32_t tile)
{
    uint32_t output = output_of_tile(tile);
    TileFacts facts = {*(const float2 *)(linear.row_scale + output),
                       *(const float2 *)(linear.bias + output), make_uint2(0, 0)};
    if (rule.of_ones != 0) facts.ones = *(const uint2 *)(linear.row_ones + output);
    return facts;
}

/* Of a token, whose sums are sum[0] and sum[2]; step: of the inputs. */
static __device__ inline float2 results_of(const int32_t sum[], const SumRule &rule, float step,
                                           const TileFacts &facts, int32_t code_sum)
{
    int32_t first = sum[0] * rule.multiplier + rule.of_ones * (int32_t)facts.ones.x - code_sum;
    int32_t second = sum[2] * rule.multiplier + rule.of_ones * (int32_t)facts.ones.y - code_sum;
    return make_float2(fmaf((float)first, facts.scale.x * step, facts.bias.x),
                       fmaf((float)second, facts.scale.y * step, facts.bias.y));
}

/* Adds the results of a tile to the rows. */
template <typename S>
static __device__ inline void add_to_rows(const int32_t acc[], const SumRule &rule, float step,
                                          const TileFacts &facts, const int32_t *code_sums,
                                          uint32_t tile, float *rows)
{
    enum : int { AT_ONCE = 2 }; /* loads of so many 8 tokens before they are stored */
    uint32_t t = threadIdx.x % 4 * 2;
    float *to = rows + t * S::ROW + output_of_tile(tile);
#pragma unroll
    for (int j = 0; j < S::TOKENS / 8; j += AT_ONCE) {
        float2 y[AT_ONCE][2];
        int2 sums[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            sums[i] = *(const int2 *)(code_sums + (j + i) * 8 + t);
            y[i][0] = *(const float2 *)(to + (j + i) * 8 * S::ROW);
            y[i][1] = *(const float2 *)(to + ((j + i) * 8 + 1) * S::ROW);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int32_t *sum = acc + (j + i) * 4 + e;
                const float2 results =
                    results_of(sum, rule, step, facts, e == 0 ? sums[i].x : sums[i].y);
                y[i][e].x += results.x;
                y[i][e].y += results.y;
                *(float2 *)(to + ((j + i) * 8 + e) * S::ROW) = y[i][e];
            }
        }
    }
}

/* Adds a linear to the rows, once these have come: a warpgroup H256 tiles of 64 outputs.
 * n_batches: of a tile, 1 or 4. */
template <typename S>
static __device__ inline void multiply_to_rows(LayerWeights<S::H256> *weights,
                                               const LayerHalf &linear, uint32_t n_batches,
                                               const LayerInputs &inputs, const int32_t *code_sums,
                                               uint64_t *residual, float *rows)
{
    const SumRule rule = rule_of(linear.bit, inputs.nonzero == 0);
    const bool is_long = n_batches > 1;
    uint32_t tile = threadIdx.x / GROUP_THREADS * S::H256, end = tile + S::H256;
    TileFacts next = facts_of_tile(linear, rule, tile);
#pragma unroll 1
    while (tile < end) {
        int32_t acc[S::TOKENS / 2];
#pragma unroll
        for (int b = 0; b < LAYER_SLOTS; b++) {
            bool is_used = tile < end;
            LayerInputs of_batch = inputs;
            if (is_long) of_batch.bits += b * S::PIECES * TILE_ROWS;
            if (is_used) multiply<S>(weights->batches[b], of_batch, rule, is_long && b > 0, acc);
            weights->fetch(b + LAYER_AHEAD);
            if (!is_used || (is_long && b + 1 < LAYER_SLOTS)) continue;
            const TileFacts facts = next;
            if (tile + 1 < end) next = facts_of_tile(linear, rule, tile + 1);
            wait_for_phase(residual, 0);
            add_to_rows<S>(acc, rule, linear.step, facts, code_sums, tile++, rows);
        }
    }
    __syncthreads();
}

/* ---- Results as bits ---- */

/* The limits of a thread's 8 outputs of 256, loaded before they are wanted. */
struct ByteLimits {
    uint4 outputs[2];
};

/* An outputs' 256: the first of the thread's 8. */
static __device__ inline uint32_t output_of_byte(uint32_t first)
{
    return first + (threadIdx.x % GROUP_THREADS / WARP * 8 + threadIdx.x % WARP / 4) * 8;
}

static __device__ inline ByteLimits limits_of_byte(const BitsLinear &linear, uint32_t first)
{
    const uint4 *from = (const uint4 *)(linear.limits + output_of_byte(first));
    return ByteLimits{{from[0], from[1]}};
}

/* Of four outputs whose inputs have zeros: positive weights do not count. */
static __device__ inline void forget_ones(uint4 *limits, const uint4 &ones)
{
    limits->x = packed_limits(unpacked_limits(limits->x), -2 * (int32_t)ones.x);
    limits->y = packed_limits(unpacked_limits(limits->y), -2 * (int32_t)ones.y);
    limits->z = packed_limits(unpacked_limits(limits->z), -2 * (int32_t)ones.z);
    limits->w = packed_limits(unpacked_limits(limits->w), -2 * (int32_t)ones.w);
}

static __device__ inline SumLimits limits_of(const ByteLimits &limits, int output)
{
    const uint4 &four = limits.outputs[output / 4];
    return unpacked_limits(output % 4 == 0   ? four.x
                           : output % 4 == 1 ? four.y
                           : output % 4 == 2 ? four.z
                                             : four.w);
}

static __device__ inline bool has_left(const ByteLimits &limits)
{
    bool any = false;
#pragma unroll
    for (int i = 0; i < 8; i++)
        any |= limits_of(limits, i).left > -FAR_LIMIT;
    return __any_sync(ALL_THREADS, any) != 0;
}

/* Appends a bit for either output to the bytes of TOKENS / 4 tokens, which are the upper ones of a
 * word's halves, two tokens a word: a bit is 0 where the code is the greater one.  Differences of
 * sums and limits are halves too, and so are code_sums, N more than they are.  LEFT: some output
 * has a limit on the left. */
template <typename S, bool LEFT>
static __device__ inline void compare_tile(const int32_t acc[], int32_t multiplier,
                                           const SumLimits limits[2], const uint32_t *code_sums,
                                           uint32_t bytes[])
{
    const int32_t more = S::N; /* of the sums of codes */
    const uint32_t right[2] = {limit_on_right(limits[0].right - more),
                               limit_on_right(limits[1].right - more)};
    const uint32_t left[2] = {limit_on_left(limits[0].left - more),
                              limit_on_left(limits[1].left - more)};
#pragma unroll
    for (int j = 0; j < S::TOKENS / 8; j++) {
        uint32_t codes = code_sums[j * 4 + threadIdx.x % 4];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int32_t *two = acc + j * 4 + half * 2;
            uint32_t sums = (uint32_t)two[1] * 0x10000u + (uint32_t)two[0];
            uint32_t below = right[half] + codes - sums * (uint32_t)multiplier;
            if (LEFT) below &= left[half] - codes + sums * (uint32_t)multiplier;
            bytes[j] = bytes[j] >> 1 | (below & HALF_SIGNS);
        }
    }
}

/* A thread's bytes of 256 outputs, to a piece and the next of a set's rows of so many.  inverts:
 * what is stored, all bits. */
template <typename S>
static __device__ inline void store_bytes(const uint32_t bytes[], uint32_t inverts, uint4 *set,
                                          uint32_t piece, uint32_t n_pieces)
{
    uint32_t byte = threadIdx.x % GROUP_THREADS / WARP * 8 + threadIdx.x % WARP / 4;
    unsigned char *to =
        (unsigned char *)(set + piece_place(threadIdx.x % 4 * 2, piece + byte / 16, n_pieces)) +
        byte % 16;
#pragma unroll
    for (int j = 0; j < S::TOKENS / 8; j++, to += n_pieces * TILE_ROWS * PIECE_BYTES) {
        to[0] = (unsigned char)((bytes[j] ^ inverts) >> 8);
        to[PIECE_BYTES] = (unsigned char)((bytes[j] ^ inverts) >> 24);
    }
}

/* 256 outputs of a linear whose results become bits, and where these go: a piece of each row. */
struct OutputBlock {
    uint32_t number; /* of to_bits; past the last: none */
    uint32_t output; /* the first */
};

/* Bits of the results of a block, the thread's bytes of TOKENS / 4 tokens: see compare_tile. *next:
 * the block's limits, and then those of the one after. */
template <typename S, typename Weights>
static __device__ inline void multiply_to_bits(Weights *weights, const LayerSigns &layer,
                                               const OutputBlock &block, const OutputBlock &after,
                                               ByteLimits *next, const LayerInputs &inputs,
                                               const uint32_t *code_sums, uint32_t bytes[])
{
    const SumRule rule = rule_of(0, inputs.nonzero == 0);
    ByteLimits limits = *next;
    if (after.number <= LAYER_OPERANDS)
        *next = limits_of_byte(layer.to_bits[after.number], after.output);
    if (inputs.nonzero != 0) {
        const uint4 *ones =
            (const uint4 *)(layer.to_bits[block.number].row_ones + output_of_byte(block.output));
        forget_ones(&limits.outputs[0], ones[0]);
        forget_ones(&limits.outputs[1], ones[1]);
    }
    bool left = has_left(limits);
#pragma unroll
    for (int b = 0; b < LAYER_SLOTS; b++) {
        int32_t acc[S::TOKENS / 2];
        multiply<S>(weights->batches[b], inputs, rule, false, acc);
        weights->fetch(b + LAYER_AHEAD);
        const SumLimits of_tile[2] = {limits_of(limits, b * 2), limits_of(limits, b * 2 + 1)};
        if (left)
            compare_tile<S, true>(acc, rule.multiplier, of_tile, code_sums, bytes);
        else
            compare_tile<S, false>(acc, rule.multiplier, of_tile, code_sums, bytes);
    }
}

#endif

} // namespace bitm

#endif
