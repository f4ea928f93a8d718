/* Attention in the kernel of layers of signs (layer_signs.cuh), where a block has whole sequences:
 * softmax of signs, none of them 0, whose probabilities become 0 or 1.
 *
 * Both products are of bits.  Queries are left operands, from registers, in which all heads but one
 * are 0: so 256 columns of keys, four heads, are a right operand as they lie.  Exponentials are
 * looked up by distance (sign_exponentials.cuh), in the place of the products.  A thread's results
 * of either product are of two queries, a quad's four threads have all columns of them. */
#ifndef BITM_CUDA_LAYER_ATTENTION_CUH
#define BITM_CUDA_LAYER_ATTENTION_CUH

#include "layer_shape.cuh"

namespace bitm {

#if BITM_HAS_WGMMA

/* What attention has in shared memory besides queries, keys and values. */
template <typename S> struct AttentionPlaces {
    float *exponentials;
    int32_t *counts; /* [HEADS, TOKENS] of the positive components of a key, negated */
};

template <typename S> static __device__ inline AttentionPlaces<S> attention_places(uint4 *sets)
{
    float *exponentials = (float *)(sets + SET_EXPONENTIALS * S::SET);
    return AttentionPlaces<S>{exponentials,
                              (int32_t *)(exponentials + S::EXPONENTIAL_BYTES / sizeof(float))};
}

/* The keys of the block's queries; whether they are all tokens, of every one.  A token of no
 * sequence has itself. */
static __device__ inline bool find_keys(const uint32_t *first, const uint32_t *sequence_of,
                                        uint32_t token, KeyRange *keys)
{
    if (threadIdx.x >= BLOCK_KEYS) return true;
    uint32_t sequence = sequence_of[token + threadIdx.x];
    uint32_t begin = first[sequence] - token, end = first[sequence + 1] - token;
    bool is_inside = begin <= threadIdx.x && threadIdx.x < end;
    if (!is_inside) {
        begin = threadIdx.x;
        end = begin + 1;
    }
    keys[threadIdx.x] = KeyRange{(uint8_t)begin, (uint8_t)end};
    return end - begin == BLOCK_KEYS;
}

/* ---- Keys and values ---- */

/* counts [n_heads, 64]: of the positive components of keys, negated. */
static __device__ inline void count_keys(const uint4 *keys, uint32_t n_pieces, uint32_t n_heads,
                                         int32_t *counts)
{
    for (uint32_t i = threadIdx.x; i < n_heads * BLOCK_KEYS; i += blockDim.x) {
        uint32_t head = i / BLOCK_KEYS;
        const uint4 *piece = keys + piece_place(i % BLOCK_KEYS, head / 2, n_pieces);
        uint2 bits = ((const uint2 *)piece)[head % 2];
        counts[i] = -(__popc(bits.x) + __popc(bits.y));
    }
}

/* Values of n_heads by component, in their place: row d of a piece, of two heads, has the bits of
 * component d, in word t those of the keys whose probabilities thread t of a quad has: bit 16 * h +
 * b of head h is that of key b / 2 * 8 + 2 * t + b % 2.  Two warps a piece. */
static __device__ inline void turn_values(uint4 *values, uint32_t n_pieces, uint32_t n_heads)
{
    uint32_t lane = threadIdx.x % WARP, piece = threadIdx.x / WARP / 2,
             half = threadIdx.x / WARP % 2; /* of a head's components */
    bool takes_part = piece < ceil_div(n_heads, 2);
    uint32_t words[2][2] = {}; /* by threads t / 2, heads */
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t t = i * 2 + lane / 16, key = lane % 16 / 2 * 8 + 2 * t + lane % 2;
        if (!takes_part) continue;
        const uint32_t *bits = (const uint32_t *)(values + piece_place(key, piece, n_pieces));
        words[i][0] = bits[half];
        words[i][1] = bits[2 + half];
    }
    __syncthreads();
    if (takes_part) {
        for (uint32_t i = 0; i < 2; i++)
            for (uint32_t head = 0; head < 2; head++)
                words[i][head] = transpose_bits_32(words[i][head]);
        values[piece_place(half * WARP + lane, piece, n_pieces)] =
            make_uint4(__byte_perm(words[0][0], words[0][1], 0x5410),
                       __byte_perm(words[0][0], words[0][1], 0x7632),
                       __byte_perm(words[1][0], words[1][1], 0x5410),
                       __byte_perm(words[1][0], words[1][1], 0x7632));
    }
    publish_tiles();
}

/* ---- A head ---- */

static __device__ inline int32_t quad_sum(int32_t x)
{
    return warp_sum<4>(x);
}

/* The left operand in whose 256 columns all words are 0 but one of a thread's two queries, of the
 * first 128 columns or the second. */
static __device__ inline uint4 operand_of_head(bool is_second, const uint32_t words[2])
{
    return is_second ? make_uint4(0, 0, words[0], words[1]) : make_uint4(words[0], words[1], 0, 0);
}

/* acc: of key j and query i, twice the components that are positive in both, less those of the key:
 * the components that differ are the query's positive ones less this. */
static __device__ inline void multiply_keys(const uint4 &query, uint64_t keys,
                                            const int32_t *counts, int32_t acc[32])
{
#pragma unroll
    for (int j = 0; j < 8; j++) {
        int2 count = *(const int2 *)(counts + j * 8 + threadIdx.x % 4 * 2);
        acc[j * 4] = acc[j * 4 + 2] = count.x;
        acc[j * 4 + 1] = acc[j * 4 + 3] = count.y;
    }
    wgmma_fence();
    wgmma_rows_64(true, acc, query, keys);
    wgmma_rows_64(true, acc, query, keys);
    wgmma_commit();
    wgmma_wait<0>();
}

/* Query i of the thread's two: acc of keys that are not its own becomes that of none. */
static __device__ inline uint32_t leave_out_keys(KeyRange keys, int32_t n_positive, int i,
                                                 int32_t acc[32])
{
    uint32_t own = 0;
#pragma unroll
    for (uint32_t b = 0; b < 16; b++) {
        uint32_t j = b / 2 * 8 + threadIdx.x % 4 * 2 + b % 2;
        if (j - keys.begin < (uint32_t)keys.end - keys.begin)
            own |= 1u << b;
        else
            acc[b / 2 * 4 + i * 2 + b % 2] = n_positive - SIGNS_NO_KEY;
    }
    return own;
}

/* Of the thread's keys those whose probability is 1, of query i: bit b is that of acc's b / 2 * 4 +
 * i * 2 + b % 2.  The sum of exponentials is the canonical one: its lane is j % 16, and where the
 * first key is not a multiple of 16 lanes change places, which their fold does not tell. */
static __device__ inline uint32_t find_ones(const float *table, float threshold, int32_t n_positive,
                                            int i, const int32_t acc[32])
{
    int32_t most = acc[i * 2];
#pragma unroll
    for (int b = 1; b < 16; b++)
        most = max(most, acc[b / 2 * 4 + i * 2 + b % 2]);
    for (int step = 1; step < 4; step *= 2)
        most = max(most, __shfl_xor_sync(ALL_THREADS, most, step));
    table = exponentials_from(table, n_positive - most) + n_positive;
    float e[16], lanes[4] = {};
#pragma unroll
    for (int b = 0; b < 16; b++) {
        e[b] = table[-acc[b / 2 * 4 + i * 2 + b % 2]];
        lanes[b % 4] += e[b];
    }
    float sums[2] = {lanes[0] + lanes[2], lanes[1] + lanes[3]};
    for (int step = 2; step > 0; step--) {
        sums[0] += __shfl_xor_sync(ALL_THREADS, sums[0], step);
        sums[1] += __shfl_xor_sync(ALL_THREADS, sums[1], step);
    }
    float least = find_least(threshold, sums[0] + sums[1], threadIdx.x % 4);
    uint32_t ones = 0;
#pragma unroll
    for (int b = 0; b < 16; b++)
        if (e[b] >= least) ones |= 1u << b;
    return ones;
}

/* Bits of the context, of the thread's two queries in the halves of a word: bit b is that of
 * component b / 2 * 8 + 2 * t + b % 2.  n_ones: of probabilities, in halves likewise. */
static __device__ inline uint32_t multiply_values(const uint4 &ones, uint64_t values,
                                                  uint32_t n_ones, const uint32_t *limits)
{
    int32_t acc[32];
    wgmma_fence();
    wgmma_rows_64(false, acc, ones, values);
    wgmma_commit();
    uint2 of_two[8];
#pragma unroll
    for (int j = 0; j < 8; j++)
        of_two[j] = *(const uint2 *)(limits + j * 8 + threadIdx.x % 4 * 2);
    wgmma_wait<0>();
    uint32_t bits = 0;
#pragma unroll
    for (int b = 0; b < 16; b++) {
        const int32_t *sum = acc + b / 2 * 4 + b % 2;
        uint32_t sums = (uint32_t)sum[2] * 0x10000u + (uint32_t)sum[0];
        uint32_t limit = b % 2 == 0 ? of_two[b / 2].x : of_two[b / 2].y;
        bits = bits >> 1 | ((limit + n_ones - 2 * sums) & HALF_SIGNS);
    }
    return bits;
}

/* A head: tiles of 256 columns of keys and values, in which it has one of four places. */
struct HeadPlaces {
    uint64_t keys, values; /* see tile_descriptor */
    uint32_t place;
    const int32_t *counts;     /* of the keys: see count_keys */
    const float *exponentials; /* once they have come */
    const uint32_t *limits;    /* of the context's components */
};

/* The first of a thread's two queries; the other one is 8 after it. */
static __device__ inline uint32_t query_of_thread()
{
    return threadIdx.x % GROUP_THREADS / WARP * 16 + threadIdx.x % WARP / 4;
}

/* Whether a thread holds words of queries in the left operand of a head, and then which of two: see
 * attend_head. */
static __device__ inline bool has_word(uint32_t place)
{
    return threadIdx.x % 4 / 2 == place % 2;
}

static __device__ inline uint32_t word_of_head()
{
    return threadIdx.x % 2;
}

/* A warpgroup's 64 queries of a head.  words: of the thread's two, number word_of_head, 0 where it
 * has none.  whole: every query has all keys; otherwise those of keys.  Returns word_of_head of the
 * context's bits of query query_of_thread() + 8 * (threadIdx.x % 4 / 2). */
static __device__ inline uint32_t attend_head(const LayerAttention &a, const HeadPlaces &h,
                                              uint32_t words[2], bool whole, const KeyRange *keys,
                                              uint64_t *barrier, uint32_t phase)
{
    const uint32_t query = query_of_thread();
    const bool is_second = h.place / 2 != 0;
    const int32_t n_positive[2] = {quad_sum(__popc(words[0])), quad_sum(__popc(words[1]))};
    int32_t acc[32];
    multiply_keys(operand_of_head(is_second, words), h.keys, h.counts, acc);
    uint32_t own[2] = {0xFFFF, 0xFFFF};
    if (!whole) {
        own[0] = leave_out_keys(keys[query], n_positive[0], 0, acc);
        own[1] = leave_out_keys(keys[query + 8], n_positive[1], 1, acc);
    }
    wait_for_phase(barrier, phase);
    uint32_t n_ones[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t ones = find_ones(h.exponentials, a.threshold, n_positive[i], i, acc) & own[i];
        n_ones[i] = (uint32_t)quad_sum(__popc(ones));
        words[i] = ones << h.place % 2 * 16;
    }
    uint32_t bits = multiply_values(operand_of_head(is_second, words), h.values,
                                    n_ones[0] | n_ones[1] << 16, h.limits);
    return transpose_pairs_4(bits ^ ~a.inverts);
}

/* The bits of attention_output's inputs in the place of the queries'.  All threads have met; whole:
 * every query has all tokens of the block.  phase: of the barrier of exponentials. */
template <typename S>
static __device__ inline void attend(const LayerAttention &a, bool whole, uint32_t phase,
                                     uint4 *sets, LayerFacts<S::TOKENS> *facts)
{
    const AttentionPlaces<S> places = attention_places<S>(sets);
    uint4 *keys = sets + SET_KEY * S::SET, *values = sets + SET_VALUE * S::SET;
    if (threadIdx.x == 0) {
        expect_bytes(&facts->exponentials, S::EXPONENTIAL_BYTES);
        copy_bulk(places.exponentials, a.exponentials, S::EXPONENTIAL_BYTES, &facts->exponentials);
    }
    count_keys(keys, S::PIECES, S::HEADS, places.counts);
    turn_values(values, S::PIECES, S::HEADS);
    __syncthreads();

    const uint32_t group = threadIdx.x / GROUP_THREADS, query = query_of_thread();
    const uint64_t key_tiles = tile_descriptor(keys, S::PIECES),
                   value_tiles = tile_descriptor(values, S::PIECES);
#pragma unroll 1
    for (uint32_t i = 0; i < S::H256; i++) {
        const uint32_t head = i * LAYER_WARPGROUPS + group, word = head * 2 + word_of_head();
        const HeadPlaces of_head = {key_tiles + i * 2 * TILE_ROWS,
                                    value_tiles + i * 2 * TILE_ROWS,
                                    group,
                                    places.counts + head * S::TOKENS,
                                    places.exponentials,
                                    a.context_limits + head * SIGNS_HEAD};
        uint32_t words[2] = {0, 0};
        if (has_word(group)) {
            words[0] = *word_of_set<S>(sets, query, word);
            words[1] = *word_of_set<S>(sets, query + 8, word);
        }
        uint32_t bits =
            attend_head(a, of_head, words, whole, facts->keys, &facts->exponentials, phase);
        *word_of_set<S>(sets, query + threadIdx.x % 4 / 2 * 8, word) = bits;
    }
    publish_tiles();
    __syncthreads();
}

#endif

} // namespace bitm

#endif
