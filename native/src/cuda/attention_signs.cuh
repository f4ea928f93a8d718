/* Softmax attention of signs whose probabilities become 0 or 1: SPEC.md section 4.
 *
 * All products are counts of bits.  A warp has one query: every thread some of its keys, later some
 * of the context's components.  Exponentials and their sum are those of the other kernels, in the
 * canonical order. */
#ifndef BITM_CUDA_ATTENTION_SIGNS_CUH
#define BITM_CUDA_ATTENTION_SIGNS_CUH

#include "attention.cuh"
#include "hopper.cuh"

namespace bitm {

enum { SIGNS_THREADS = 256, SIGNS_WARPS = SIGNS_THREADS / WARP, SIGNS_HEAD = 64 };

struct SignAttention {
    const uint4 *query, *key, *value; /* planes of bits: positive, nonzero */
    uint32_t n_pieces;                /* of a row of a plane */
    size_t plane_stride;              /* pieces */
    const uint32_t *first;            /* tokens of the sequences */
    uint32_t n_tokens;
    float score_step, score_scale; /* a score is the product, times the one, times the other */
    float threshold;               /* the least probability whose code is 1 */
    float context_step;            /* of the products of probabilities and values */
    float *context;                /* [n_tokens, stride] */
    uint32_t stride;
    uint32_t encodes;
    Encoding encoding;
};

/* The signs of a head of a token: bits of the positive ones, and of those that are not 0. */
struct Signs {
    uint32_t positive[2], nonzero[2];
};

static __device__ inline Signs signs_of(const SignAttention &a, const uint4 *planes, size_t token,
                                        uint32_t head)
{
    uint32_t column = head * SIGNS_HEAD;
    const uint4 *piece = planes + piece_place(token, column / PIECE_BITS, a.n_pieces);
    uint2 positive = ((const uint2 *)piece)[column % PIECE_BITS / SIGNS_HEAD];
    uint2 nonzero = ((const uint2 *)(piece + a.plane_stride))[column % PIECE_BITS / SIGNS_HEAD];
    return Signs{{positive.x, positive.y}, {nonzero.x, nonzero.y}};
}

static __device__ inline int32_t product_of_signs(const Signs &a, const Signs &b)
{
    int32_t product = 0;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t both = a.nonzero[i] & b.nonzero[i];
        product += __popc(both) - 2 * __popc((a.positive[i] ^ b.positive[i]) & both);
    }
    return product;
}

/* Shared memory: the keys, the values by component, and every warp's exponentials. */
static __host__ __device__ inline size_t signs_shared_bytes(uint32_t n_tokens)
{
    return (size_t)ceil_div(n_tokens, WARP) *
           (WARP * sizeof(Signs) + SIGNS_HEAD * sizeof(uint2) +
            SIGNS_WARPS * WARP * sizeof(float));
}

/* Bits of 32 values of one component: positive, nonzero. */
static __device__ inline void turn_values(const Signs &value, uint32_t lane, uint2 *components)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint2 mine = make_uint2(0, 0);
        for (uint32_t d = 0; d < WARP; d++) {
            uint32_t positive = __ballot_sync(ALL_THREADS, value.positive[half] >> d & 1);
            uint32_t nonzero = __ballot_sync(ALL_THREADS, value.nonzero[half] >> d & 1);
            if (d == lane) mine = make_uint2(positive, nonzero);
        }
        components[half * WARP + lane] = mine;
    }
}

/* exponentials [n_tokens]; returns their sum. */
static __device__ inline float find_exponentials(const SignAttention &a, const Signs &query,
                                                 const Signs *keys, uint32_t n_tokens,
                                                 uint32_t lane, float *exponentials)
{
    float greatest = -3.402823466e38F, sum = 0.0F;
    for (uint32_t j = lane; j < n_tokens; j += WARP) {
        float score = (float)product_of_signs(query, keys[j]) * a.score_step * a.score_scale;
        exponentials[j] = score;
        greatest = score > greatest ? score : greatest;
    }
    greatest = warp_max(greatest);
    for (uint32_t first = 0; first < n_tokens; first += WARP) {
        uint32_t j = first + lane;
        float e = j < n_tokens ? bitm_exp(exponentials[j] - greatest) : 0.0F;
        exponentials[j] = e;
        /* Both halves of the warp hold the same lanes of the sum. */
        sum += __shfl_sync(ALL_THREADS, e, (int)(lane % LANES));
        sum += __shfl_sync(ALL_THREADS, e, (int)(lane % LANES + LANES));
    }
    return fold_lanes(sum);
}

template <int RULE>
static __device__ inline void store_context_bits(const Encoding &e, size_t token, uint32_t column,
                                                 float context, uint32_t lane)
{
    uint32_t mine[2] = {0, 0}, planes[2];
    add_bits<RULE>(e, context + shift_of(e, column + lane), 0, mine);
    finish_bits<RULE>(e, mine);
    planes[0] = __ballot_sync(ALL_THREADS, mine[0] & 1);
    planes[1] = __ballot_sync(ALL_THREADS, mine[1] & 1);
    store_word(e, token, lane == 0, column, planes);
}

/* 32 components of a query's context. */
static __device__ inline void store_context(const SignAttention &a, size_t token, uint32_t column,
                                            float context, uint32_t lane)
{
    if (!a.encodes) {
        a.context[token * a.stride + column + lane] = context;
        return;
    }
    BitsRule rule = bits_rule(a.encoding);
    if (rule == RULE_SIGNS)
        store_context_bits<RULE_SIGNS>(a.encoding, token, column, context, lane);
    else if (rule == RULE_TWO_LEVELS)
        store_context_bits<RULE_TWO_LEVELS>(a.encoding, token, column, context, lane);
    else
        store_context_bits<RULE_LEVELS>(a.encoding, token, column, context, lane);
}

/* Blocks: heads, sequences, and parts of their queries. */
static __global__ void __launch_bounds__(SIGNS_THREADS) attention_signs_kernel(SignAttention a)
{
    BITM_DYNAMIC_SHARED(shared);
    wait_for_kernels_before(a.n_tokens);
    uint32_t head = blockIdx.x, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    uint32_t begin = a.first[blockIdx.y], n_tokens = a.first[blockIdx.y + 1] - begin;
    uint32_t n_words = ceil_div(n_tokens, WARP);
    if (blockIdx.z * SIGNS_WARPS >= n_tokens) return;
    Signs *keys = (Signs *)shared;
    uint2 *values = (uint2 *)(keys + n_words * WARP); /* [n_words, SIGNS_HEAD] */
    float *exponentials = (float *)(values + n_words * SIGNS_HEAD) + warp * n_words * WARP;

    for (uint32_t j = threadIdx.x; j < n_tokens; j += SIGNS_THREADS)
        keys[j] = signs_of(a, a.key, begin + j, head);
    for (uint32_t word = warp; word < n_words; word += SIGNS_WARPS) {
        uint32_t j = word * WARP + lane;
        Signs value = {};
        if (j < n_tokens) value = signs_of(a, a.value, begin + j, head);
        turn_values(value, lane, values + word * SIGNS_HEAD);
    }
    __syncthreads();

    for (uint32_t i = blockIdx.z * SIGNS_WARPS + warp; i < n_tokens; i += gridDim.z * SIGNS_WARPS) {
        Signs query = signs_of(a, a.query, begin + i, head);
        float sum = find_exponentials(a, query, keys, n_tokens, lane, exponentials);
        int32_t products[2] = {0, 0};
        for (uint32_t word = 0; word < n_words; word++) {
            uint32_t j = word * WARP + lane;
            bool is_one = j < n_tokens && exponentials[j] / sum >= a.threshold;
            uint32_t ones = __ballot_sync(ALL_THREADS, is_one);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint2 component = values[word * SIGNS_HEAD + half * WARP + lane];
                products[half] += 2 * __popc(ones & component.x) - __popc(ones & component.y);
            }
        }
#pragma unroll
        for (uint32_t half = 0; half < 2; half++)
            store_context(a, begin + i, head * SIGNS_HEAD + half * WARP,
                          (float)products[half] * a.context_step, lane);
    }
}

} // namespace bitm

#endif
