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

/* DENSE: no sign is 0. */
template <bool DENSE>
static __device__ inline int32_t product_of_signs(const Signs &a, const Signs &b)
{
    int32_t product = DENSE ? SIGNS_HEAD : 0;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t both = DENSE ? 0xFFFFFFFF : a.nonzero[i] & b.nonzero[i];
        if (!DENSE) product += __popc(both);
        product -= 2 * __popc((a.positive[i] ^ b.positive[i]) & both);
    }
    return product;
}

static __device__ inline bool is_dense(const Signs &a)
{
    return (a.nonzero[0] & a.nonzero[1]) == 0xFFFFFFFF;
}

/* Shared memory: queries and keys, the values by component, and every warp's exponentials. */
static __host__ __device__ inline size_t signs_shared_bytes(uint32_t n_tokens)
{
    return (size_t)ceil_div(n_tokens, WARP) *
           (2 * WARP * sizeof(Signs) + SIGNS_HEAD * sizeof(uint2) +
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

static __device__ inline float score_of_signs(const SignAttention &a, int32_t product)
{
    return (float)product * a.score_step * a.score_scale;
}

/* The greatest of a warp. */
static __device__ inline int32_t warp_most(int32_t x)
{
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(ALL_THREADS, x);
#else
    for (int step = WARP / 2; step > 0; step /= 2) {
        int32_t other = __shfl_xor_sync(ALL_THREADS, x, step);
        x = other > x ? other : x;
    }
    return x;
#endif
}

/* exponentials [n_tokens]; returns their sum. */
template <bool DENSE>
static __device__ inline float find_exponentials(const SignAttention &a, const Signs &query,
                                                 const Signs *keys, uint32_t n_tokens,
                                                 uint32_t lane, float *exponentials)
{
    int32_t most = -SIGNS_HEAD;
    float sum = 0.0F;
    for (uint32_t j = lane; j < n_tokens; j += WARP) {
        int32_t product = product_of_signs<DENSE>(query, keys[j]);
        exponentials[j] = score_of_signs(a, product);
        most = product > most ? product : most;
    }
    float greatest = score_of_signs(a, warp_most(most)); /* steps are positive */
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

/* The least exponential whose quotient reaches the threshold: it is near their product, so every
 * thread tries another float. False where it is not found there. */
static __device__ inline bool find_least(float threshold, float sum, uint32_t lane, float *least)
{
    float x = __int_as_float(__float_as_int(threshold * sum) + (int32_t)lane - WARP / 2);
    uint32_t reach = __ballot_sync(ALL_THREADS, x / sum >= threshold);
    *least = __shfl_sync(ALL_THREADS, x, __ffs((int)reach) - 1);
    return reach != 0 && (reach & 1) == 0 && reach + (reach & -reach) == 0; /* all after the first */
}

/* products: those of two components of the values with probabilities of 0 and 1. */
template <bool DENSE>
static __device__ inline void sum_values(const SignAttention &a, const float *exponentials,
                                         float sum, const uint2 *values, uint32_t n_tokens,
                                         uint32_t lane, int32_t products[2])
{
    enum { MANY = 2 * WARP }; /* tokens: with fewer, quotients are sooner found */
    float least;
    bool is_known = n_tokens > MANY && find_least(a.threshold, sum, lane, &least);
    products[0] = products[1] = 0;
    for (uint32_t first = 0; first < n_tokens; first += WARP, values += SIGNS_HEAD) {
        float e = exponentials[first + lane];
        bool is_one = is_known ? e >= least : e / sum >= a.threshold;
        uint32_t ones = __ballot_sync(ALL_THREADS, first + lane < n_tokens && is_one);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint2 component = values[half * WARP + lane];
            products[half] += 2 * __popc(ones & component.x) -
                              __popc(DENSE ? ones : ones & component.y);
        }
    }
}

/* The words of a row's planes that begin at a column, of a value each of a warp's threads; counts
 * their bits. */
template <int RULE>
static __device__ inline void store_row_word(const Encoding &e, size_t token, uint32_t column,
                                             float z, uint32_t lane, int32_t n_bits[2])
{
    uint32_t mine[2] = {0, 0};
    add_bits<RULE>(e, z, 0, mine);
    finish_bits<RULE>(e, mine);
    uint32_t *word = (uint32_t *)(e.planes + piece_place(token, column / PIECE_BITS, e.n_pieces)) +
                     column % PIECE_BITS / 32;
    for (uint32_t p = 0; p < n_planes_of(e) && p < 2; p++) {
        uint32_t plane = __ballot_sync(ALL_THREADS, mine[p] & 1);
        n_bits[p] += __popc(plane);
        if (lane == p) word[p * e.plane_stride * 4] = plane;
    }
}

template <int RULE>
static __device__ inline void store_context_bits(const Encoding &e, size_t token, uint32_t column,
                                                 const float shifted[2], uint32_t lane)
{
    int32_t n_bits[2] = {0, 0};
#pragma unroll
    for (uint32_t half = 0; half < 2; half++)
        store_row_word<RULE>(e, token, column + half * WARP, shifted[half], lane, n_bits);
    if (e.counts && lane == 0) count_bits(e, token, n_bits[0], n_bits[1]);
}

/* A head of a query's context, shifted where it is encoded. */
static __device__ inline void store_context(const SignAttention &a, size_t token, uint32_t column,
                                            const float context[2], uint32_t lane)
{
    if (!a.encodes) {
        for (uint32_t half = 0; half < 2; half++)
            a.context[token * a.stride + column + half * WARP + lane] = context[half];
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

/* A head of a sequence in shared memory. */
struct SignHead {
    Signs *queries, *keys; /* [n_tokens] */
    uint2 *values;         /* [n_words, SIGNS_HEAD] */
    float *exponentials;   /* [n_words, WARP], of the thread's warp */
};

template <bool DENSE>
static __device__ inline void attend_queries(const SignAttention &a, const SignHead &h,
                                             uint32_t begin, uint32_t n_tokens)
{
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, column = blockIdx.x * SIGNS_HEAD;
    float shifts[2] = {0.0F, 0.0F};
    for (uint32_t half = 0; half < 2 && a.encodes; half++)
        shifts[half] = shift_of(a.encoding, column + half * WARP + lane);
    for (uint32_t i = blockIdx.z * SIGNS_WARPS + warp; i < n_tokens; i += gridDim.z * SIGNS_WARPS) {
        float sum = find_exponentials<DENSE>(a, h.queries[i], h.keys, n_tokens, lane,
                                             h.exponentials);
        int32_t products[2];
        sum_values<DENSE>(a, h.exponentials, sum, h.values, n_tokens, lane, products);
        const float context[2] = {(float)products[0] * a.context_step + shifts[0],
                                  (float)products[1] * a.context_step + shifts[1]};
        store_context(a, begin + i, column, context, lane);
    }
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
    SignHead h;
    h.queries = (Signs *)shared;
    h.keys = h.queries + n_words * WARP;
    h.values = (uint2 *)(h.keys + n_words * WARP);
    h.exponentials = (float *)(h.values + n_words * SIGNS_HEAD) + warp * n_words * WARP;

    bool dense = true;
    for (uint32_t j = threadIdx.x; j < n_tokens; j += SIGNS_THREADS) {
        h.queries[j] = signs_of(a, a.query, begin + j, head);
        h.keys[j] = signs_of(a, a.key, begin + j, head);
        dense = dense && is_dense(h.queries[j]) && is_dense(h.keys[j]);
    }
    for (uint32_t word = warp; word < n_words; word += SIGNS_WARPS) {
        uint32_t j = word * WARP + lane;
        Signs value = {};
        if (j < n_tokens) {
            value = signs_of(a, a.value, begin + j, head);
            dense = dense && is_dense(value);
        }
        turn_values(value, lane, h.values + word * SIGNS_HEAD);
    }
    if (__syncthreads_and(dense))
        attend_queries<true>(a, h, begin, n_tokens);
    else
        attend_queries<false>(a, h, begin, n_tokens);
}

} // namespace bitm

#endif
