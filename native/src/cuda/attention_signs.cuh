/* Softmax attention of signs whose probabilities become 0 or 1: SPEC.md section 4.
 *
 * All products are counts of bits.  Four neighbouring threads, a quad, have a query: thread t the
 * keys j for which j % 4 == t, and with them the lanes t, t + 4, t + 8 and t + 12 of the sum of
 * exponentials; later 16 of the context's components.  Keys come in chunks of 64, 16 of them a
 * thread's share.  A thread counts anew for the greatest score, for the sum, and for the
 * probabilities.
 *
 * Where no sign is 0 ("dense"), exponentials are looked up by distance, and with up to 64 keys stay
 * in registers.  Blocks have a head and
 * some of the queries of one sequence after another, so that the table is copied rarely. */
#ifndef BITM_CUDA_ATTENTION_SIGNS_CUH
#define BITM_CUDA_ATTENTION_SIGNS_CUH

#include "attention.cuh"
#include "hopper.cuh"
#include "sign_exponentials.cuh"

namespace bitm {

enum {
    SIGNS_THREADS = 256,
    SIGNS_WARPS = SIGNS_THREADS / WARP,
    /* Blocks on a multiprocessor, at least: fewer leave registers for sequences of many chunks. */
    SIGNS_BLOCKS = 4,
    LONG_SIGNS_BLOCKS = 3,
    QUAD = 4,
    SIGNS_QUERIES = SIGNS_THREADS / QUAD, /* of a block at once, at most */
    CHUNK = 64,
    SHARE = CHUNK / QUAD,
};

struct SignAttention {
    const uint4 *query, *key, *value; /* planes of bits: positive, nonzero */
    uint32_t n_pieces;                /* of a row of a plane */
    size_t plane_stride;              /* pieces */
    const uint32_t *first;            /* tokens of the sequences */
    uint32_t n_tokens, n_sequences;
    uint32_t n_queries;            /* of a block at once: whole warps have them */
    float score_step, score_scale; /* a score is the product, times the one, times the other */
    const float *exponentials;     /* see sign_exponentials_kernel */
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

static __device__ inline bool is_dense(const Signs &a)
{
    return (a.nonzero[0] & a.nonzero[1]) == 0xFFFFFFFF;
}

/* ---- Shared memory ---- */

/* 64 bits for each item of the shares of a quad's threads, in two planes: positive, nonzero. */
struct alignas(16) Shares {
    uint2 planes[2][CHUNK];
};

/* Threads read two items at once, those of a quad side by side. */
static __device__ inline uint32_t place_in_shares(uint32_t thread, uint32_t item)
{
    return (item / 2 * QUAD + thread) * 2 + item % 2;
}

/* Items 2 * i and 2 * i + 1 of a thread. */
static __device__ inline uint4 two_items(const Shares &s, int plane, uint32_t thread, uint32_t i)
{
    return ((const uint4 *)s.planes[plane])[i * QUAD + thread];
}

/* 64 keys, and their values by component: thread t of a quad has the keys 4 * i + t, and the
 * components 16 * t + i.  The bits of a component are in the order of the keys that threads have:
 * bit 16 * t + i is that of key 4 * i + t. */
struct SignChunk {
    Shares keys, values;
};

/* What depends on the head alone, and the chunks of a sequence. */
struct alignas(16) SignHead {
    float shifts[QUAD][SHARE + 4]; /* of components; padded to part the banks of a quad's threads */
    float exponentials[SIGN_EXPONENTIALS];
};

static __host__ __device__ inline size_t signs_shared_bytes(uint32_t n_tokens)
{
    return sizeof(SignHead) + (size_t)ceil_div(n_tokens, CHUNK) * sizeof(SignChunk);
}

/* From the model: nothing that another kernel of the stream writes. */
static __device__ inline void load_head(const SignAttention &a, uint32_t head, SignHead *h)
{
    for (uint32_t i = threadIdx.x; i < SIGN_EXPONENTIALS / 2; i += SIGNS_THREADS)
        ((float2 *)h->exponentials)[i] = ((const float2 *)a.exponentials)[i];
    uint32_t d = threadIdx.x;
    if (d < SIGNS_HEAD)
        h->shifts[d / SHARE][d % SHARE] =
            a.encodes ? shift_of(a.encoding, head * SIGNS_HEAD + d) : 0.0F;
}

/* A head of a sequence. */
struct SignSequence {
    uint32_t head, begin, n_tokens;
};

/* The keys to shared memory; whether all are dense. */
static __device__ inline bool load_keys(const SignAttention &a, const SignSequence &s,
                                        SignChunk *chunks)
{
    bool dense = true;
#pragma unroll 1
    for (uint32_t j = threadIdx.x; j < s.n_tokens; j += SIGNS_THREADS) {
        Signs key = signs_of(a, a.key, s.begin + j, s.head);
        Shares &keys = chunks[j / CHUNK].keys;
        uint32_t place = place_in_shares(j % QUAD, j % CHUNK / QUAD);
        keys.planes[0][place] = make_uint2(key.positive[0], key.positive[1]);
        keys.planes[1][place] = make_uint2(key.nonzero[0], key.nonzero[1]);
        dense = dense && is_dense(key);
    }
    return dense;
}

/* A plane of the values, by component; whether all are dense.  A warp turns 32 tokens, the last
 * warp the first ones: the first warps have keys to load. */
template <int PLANE>
static __device__ inline bool load_values(const SignAttention &a, const SignSequence &s,
                                          SignChunk *chunks)
{
    uint32_t lane = threadIdx.x % WARP, n_words = ceil_div(s.n_tokens, CHUNK) * 2;
    bool dense = true;
#pragma unroll 1
    for (uint32_t word = SIGNS_WARPS - 1 - threadIdx.x / WARP; word < n_words;
         word += SIGNS_WARPS) {
        uint32_t t = word % 2 * 2 + lane / SHARE; /* the thread that has the key */
        uint32_t j = word / 2 * CHUNK + lane % SHARE * QUAD + t;
        Signs value = {};
        if (j < s.n_tokens) {
            value = signs_of(a, a.value, s.begin + j, s.head);
            dense = dense && is_dense(value);
        }
        uint32_t *words = (uint32_t *)chunks[word / 2].values.planes[PLANE] + word % 2;
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            uint32_t d = half * WARP + lane;
            words[place_in_shares(d / SHARE, d % SHARE) * 2] =
                transpose_bits_32(PLANE == 0 ? value.positive[half] : value.nonzero[half]);
        }
    }
    return dense;
}

/* ---- Probabilities ---- */

/* How many components differ, or where signs may be 0, 64 less the product. */
template <bool DENSE>
static __device__ inline int32_t distance_of(const Signs &query, uint2 positive, uint2 nonzero)
{
    uint32_t differ[2] = {query.positive[0] ^ positive.x, query.positive[1] ^ positive.y};
    if (DENSE) return __popc(differ[0]) + __popc(differ[1]);
    uint32_t both[2] = {query.nonzero[0] & nonzero.x, query.nonzero[1] & nonzero.y};
    return SIGNS_HEAD - __popc(both[0]) - __popc(both[1]) +
           2 * (__popc(differ[0] & both[0]) + __popc(differ[1] & both[1]));
}

/* From the query to the thread's keys in a chunk, where n_keys are left. */
template <bool DENSE>
static __device__ inline void find_distances(const Signs &query, const Shares &keys, uint32_t t,
                                             uint32_t n_keys, int32_t distances[SHARE])
{
    enum { NO_KEY = DENSE ? (int)SIGNS_NO_KEY : 2 * SIGNS_HEAD + 1 };
#pragma unroll
    for (uint32_t i = 0; i < SHARE / 2; i++) {
        uint4 p = two_items(keys, 0, t, i), n = DENSE ? p : two_items(keys, 1, t, i);
        distances[2 * i] = distance_of<DENSE>(query, make_uint2(p.x, p.y), make_uint2(n.x, n.y));
        distances[2 * i + 1] =
            distance_of<DENSE>(query, make_uint2(p.z, p.w), make_uint2(n.z, n.w));
    }
    if (n_keys >= CHUNK) return;
#pragma unroll
    for (uint32_t i = 0; i < SHARE; i++)
        if (i * QUAD + t >= n_keys) distances[i] = NO_KEY;
}

/* What exponentials of a query's keys are found from. */
struct Nearest {
    const float *exponentials; /* by distance, where dense */
    float score;
};

template <bool DENSE>
static __device__ inline float score_at(const SignAttention &a, int32_t distance)
{
    return score_of_signs(SIGNS_HEAD - (DENSE ? 2 : 1) * distance, a.score_step, a.score_scale);
}

/* Not inlined: for signs of 0, which are rare, it would take most of the registers and the code. */
static __device__ __noinline__ float exponential_of(float x)
{
    return bitm_exp(x);
}

template <bool DENSE>
static __device__ inline float exponential(const SignAttention &a, const Nearest &nearest,
                                           int32_t distance)
{
    if (DENSE) return nearest.exponentials[distance];
    float e = exponential_of(score_at<DENSE>(a, distance) - nearest.score);
    return distance <= 2 * SIGNS_HEAD ? e : 0.0F;
}

/* The fold of a canonical sum: thread t of a quad holds lanes t, t + 4, t + 8 and t + 12. */
static __device__ inline float fold_quad(const float lanes[4])
{
    float sum = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
    sum = sum + __shfl_xor_sync(ALL_THREADS, sum, 2);
    return sum + __shfl_xor_sync(ALL_THREADS, sum, 1);
}

static __device__ inline int32_t quad_least(int32_t x)
{
    for (int step = QUAD / 2; step > 0; step /= 2) {
        int32_t other = __shfl_xor_sync(ALL_THREADS, x, step);
        x = other < x ? other : x;
    }
    return x;
}

/* Which of a chunk's keys have the probability 1: bit 16 * t + i is that of key 4 * i + t. */
static __device__ inline uint2 find_ones(const float exponentials[SHARE], float least, uint32_t t,
                                         uint32_t n_keys)
{
    uint32_t mine = 0;
#pragma unroll
    for (uint32_t i = 0; i < SHARE; i++)
        if (exponentials[i] >= least) mine |= 1u << i;
    if (n_keys < CHUNK) mine &= (1u << (n_keys + QUAD - 1 - t) / QUAD) - 1; /* keys that are */
    uint32_t word = mine << t % 2 * SHARE;
    word |= __shfl_xor_sync(ALL_THREADS, word, 1);
    uint32_t other = __shfl_xor_sync(ALL_THREADS, word, 2);
    return t < 2 ? make_uint2(word, other) : make_uint2(other, word);
}

/* ---- Context ---- */

/* The sum of a component's signs, of the values whose probability is 1. */
template <bool DENSE>
static __device__ inline int32_t sum_signs(uint2 ones, int32_t n_ones, uint2 positive,
                                           uint2 nonzero)
{
    if (!DENSE) n_ones = __popc(ones.x & nonzero.x) + __popc(ones.y & nonzero.y);
    return 2 * (__popc(ones.x & positive.x) + __popc(ones.y & positive.y)) - n_ones;
}

template <bool DENSE>
static __device__ inline void add_values(const Shares &values, uint2 ones, uint32_t t,
                                         int32_t products[SHARE])
{
    int32_t n_ones = __popc(ones.x) + __popc(ones.y);
#pragma unroll
    for (uint32_t i = 0; i < SHARE / 2; i++) {
        uint4 p = two_items(values, 0, t, i), n = DENSE ? p : two_items(values, 1, t, i);
        products[2 * i] +=
            sum_signs<DENSE>(ones, n_ones, make_uint2(p.x, p.y), make_uint2(n.x, n.y));
        products[2 * i + 1] +=
            sum_signs<DENSE>(ones, n_ones, make_uint2(p.z, p.w), make_uint2(n.z, n.w));
    }
}

/* products: of a query's probabilities, 0 and 1, with the thread's components of the values.  ONE:
 * there is one chunk. */
template <bool DENSE, bool ONE>
static __device__ inline void attend_query(const SignAttention &a, const Signs &query,
                                           const SignHead &head, const SignChunk *chunks,
                                           uint32_t n_tokens, uint32_t t, int32_t products[SHARE])
{
    const uint32_t end = ONE ? 1 : n_tokens; /* the chunks' first keys are before it */
    int32_t distances[SHARE], least_distance = 2 * SIGNS_HEAD;
#pragma unroll 1
    for (uint32_t j = 0; j < end; j += CHUNK) {
        find_distances<DENSE>(query, chunks[j / CHUNK].keys, t, n_tokens - j, distances);
#pragma unroll
        for (uint32_t i = 0; i < SHARE; i++)
            least_distance = distances[i] < least_distance ? distances[i] : least_distance;
    }
    least_distance = quad_least(least_distance);
    Nearest nearest = {DENSE ? exponentials_from(head.exponentials, least_distance) : NULL,
                       score_at<DENSE>(a, least_distance)};

    float exponentials[SHARE], lanes[SHARE / QUAD] = {};
#pragma unroll 1
    for (uint32_t j = 0; j < end; j += CHUNK) {
        if (!ONE) find_distances<DENSE>(query, chunks[j / CHUNK].keys, t, n_tokens - j, distances);
#pragma unroll
        for (uint32_t i = 0; i < SHARE; i++) {
            exponentials[i] = exponential<DENSE>(a, nearest, distances[i]);
            lanes[i % (SHARE / QUAD)] += exponentials[i];
        }
    }
    float least = find_least(a.threshold, fold_quad(lanes), t);

#pragma unroll 1
    for (uint32_t j = 0; j < end; j += CHUNK) {
        const SignChunk &chunk = chunks[j / CHUNK];
        if (!ONE) {
            find_distances<DENSE>(query, chunk.keys, t, n_tokens - j, distances);
#pragma unroll
            for (uint32_t i = 0; i < SHARE; i++)
                exponentials[i] = exponential<DENSE>(a, nearest, distances[i]);
        }
        uint2 ones = find_ones(exponentials, least, t, n_tokens - j);
        add_values<DENSE>(chunk.values, ones, t, products);
    }
}

/* Where the context of a head of a query goes. */
struct ContextPlace {
    size_t token;
    bool is_query; /* otherwise nothing is stored */
    uint32_t column, t;
};

template <int RULE>
static __device__ inline void store_context_bits(const Encoding &e, const ContextPlace &to,
                                                 const float shifted[SHARE])
{
    uint32_t planes[2] = {0, 0};
#pragma unroll
    for (uint32_t i = 0; i < SHARE; i++)
        add_bits<RULE>(e, shifted[i], i, planes);
    finish_bits<RULE>(e, planes);
    /* Of two neighbours one gets the word of the first plane, the other that of the second. */
    uint32_t plane = to.t % 2, halves = (planes[0] & 0xFFFF) | planes[1] << SHARE;
    uint32_t word = exchange_bits(halves, 1, SHARE, 0xFFFF);
    if (to.is_query && plane < n_planes_of(e))
        word_at(e, to.token, to.column + to.t / 2 * 32)[plane == 0 ? 0 : e.plane_stride * 4] = word;
    if (!e.counts) return;
    int32_t n_bits = __popc(word);
    n_bits += __shfl_xor_sync(ALL_THREADS, n_bits, 2);
    int32_t of_second = __shfl_xor_sync(ALL_THREADS, n_bits, 1);
    if (to.is_query && to.t == 0) count_bits(e, to.token, n_bits, of_second);
}

/* shifts: of the thread's components, zeros where the context is not encoded. */
static __device__ inline void store_context(const SignAttention &a, const ContextPlace &to,
                                            const int32_t products[SHARE], const float *shifts)
{
    float z[SHARE];
#pragma unroll
    for (uint32_t i = 0; i < SHARE; i++)
        z[i] = (float)products[i] * a.context_step + shifts[i];
    if (!a.encodes) {
        float *context = a.context + to.token * a.stride + to.column + to.t * SHARE;
#pragma unroll
        for (uint32_t i = 0; i < SHARE; i += 4)
            if (to.is_query)
                *(float4 *)(context + i) = make_float4(z[i], z[i + 1], z[i + 2], z[i + 3]);
        return;
    }
    BitsRule rule = bits_rule(a.encoding);
    if (rule == RULE_SIGNS)
        store_context_bits<RULE_SIGNS>(a.encoding, to, z);
    else if (rule == RULE_TWO_LEVELS)
        store_context_bits<RULE_TWO_LEVELS>(a.encoding, to, z);
    else
        store_context_bits<RULE_LEVELS>(a.encoding, to, z);
}

/* Queries of a sequence from `first_query` on, as many as the block has at once. */
static __device__ inline void attend_sequence(const SignAttention &a, const SignSequence &s,
                                              uint32_t first_query, const SignHead &head,
                                              SignChunk *chunks)
{
    uint32_t t = threadIdx.x % QUAD, number = threadIdx.x / QUAD, i = first_query + number;
    bool is_query = number < a.n_queries && i < s.n_tokens;
    Signs query = signs_of(a, a.query, s.begin + (is_query ? i : first_query), s.head);
    bool dense = load_keys(a, s, chunks) & load_values<0>(a, s, chunks) & is_dense(query);
    dense = __syncthreads_and(dense) != 0;
    if (!dense) {
        (void)load_values<1>(a, s, chunks);
        __syncthreads();
    }
    if (!__any_sync(ALL_THREADS, is_query)) return;

    int32_t products[SHARE] = {};
    if (!dense)
        attend_query<false, false>(a, query, head, chunks, s.n_tokens, t, products);
    else if (s.n_tokens > CHUNK)
        attend_query<true, false>(a, query, head, chunks, s.n_tokens, t, products);
    else
        attend_query<true, true>(a, query, head, chunks, s.n_tokens, t, products);
    ContextPlace to = {s.begin + i, is_query, s.head * SIGNS_HEAD, t};
    store_context(a, to, products, head.shifts[t]);
}

/* Blocks: heads, parts of the sequences' queries, and as many as divide the sequences. */
template <int BLOCKS>
static __global__ void __launch_bounds__(SIGNS_THREADS, BLOCKS)
    attention_signs_kernel(SignAttention a)
{
    BITM_DYNAMIC_SHARED(shared);
    SignHead *head = (SignHead *)shared;
    SignChunk *chunks = (SignChunk *)(head + 1);
    load_head(a, blockIdx.x, head);
    wait_for_all_before();
    let_next_begin(); /* all blocks run at once */
    uint32_t first_query = blockIdx.y * a.n_queries;
    for (uint32_t i = blockIdx.z; i < a.n_sequences; i += gridDim.z) {
        uint32_t begin = a.first[i], n_tokens = a.first[i + 1] - begin;
        SignSequence s = {blockIdx.x, begin, n_tokens};
        if (first_query < n_tokens) attend_sequence(a, s, first_query, *head, chunks);
        __syncthreads(); /* the chunks are free */
    }
}

} // namespace bitm

#endif
