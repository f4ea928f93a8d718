/* Layers of signs in one kernel, on Hopper: attention_output and its norm, intermediate, output and
 * its norm, and query, key and value of the layer after; and, where every sequence lies within a
 * block's tokens, attention and so one layer after the other.
 *
 * A block has TOKENS tokens from end to end.  Their values stay in shared memory as rows of floats,
 * and their bits as right operands of products; of intermediate there are no floats
 * (sum_limits.cuh).  Weights are left operands: they come from the second cache straight into
 * registers, each thread's in the order in which it wants them (order_weights_kernel), several
 * products ahead, norms or not. */
#ifndef BITM_CUDA_LAYER_SIGNS_CUH
#define BITM_CUDA_LAYER_SIGNS_CUH

#include "layer_attention.cuh"
#include "layer_norms.cuh"
#include "layer_products.cuh"

namespace bitm {

#if BITM_HAS_WGMMA

/* ---- Copies ---- */

/* Starts to copy the residual into the rows: one thread, unless rows have to be copied one by one.
 */
template <typename S>
static __device__ inline void fetch_residual(const SignLayers &a, uint32_t token, float *rows,
                                             uint64_t *barrier)
{
    enum : uint32_t { ROW_BYTES = S::N * sizeof(float), ALL_BYTES = S::TOKENS * S::ROW * 4 };
    const float *from = a.residual + (size_t)token * a.residual_row;
    bool at_once = a.residual_row == S::ROW;
    if (threadIdx.x == 0) expect_bytes(barrier, at_once ? ALL_BYTES : S::TOKENS * ROW_BYTES);
    if (at_once) {
        if (threadIdx.x == 0) copy_bulk_once(rows, from, ALL_BYTES, barrier);
    } else if (threadIdx.x % WARP == 0) {
        for (uint32_t row = threadIdx.x / WARP; row < S::TOKENS; row += LAYER_THREADS / WARP)
            copy_bulk(rows + row * S::ROW, from + (size_t)row * S::N, ROW_BYTES, barrier);
    }
}

/* Starts to copy a set from a plane. */
template <typename S>
static __device__ inline void fetch_set(const uint4 *plane, uint32_t token, uint4 *set)
{
    const uint4 *from = plane + piece_place(token, 0, S::PIECES);
    for (uint32_t i = threadIdx.x; i < S::SET; i += LAYER_THREADS)
        copy_async(set + i, from + i);
}

/* Stores the rows, some of them each warp. */
template <typename S>
static __device__ inline void store_rows(const SignLayers &a, uint32_t token, const float *rows)
{
    enum : uint32_t { OF_WARP = S::TOKENS / (LAYER_THREADS / WARP) };
    uint32_t first = threadIdx.x / WARP * OF_WARP;
    if (threadIdx.x % WARP != 0) return;
    float *to = a.results + (size_t)(token + first) * a.results_row;
    const float *from = rows + first * S::ROW;
    if (a.results_row == S::ROW) {
        store_bulk_kept(to, from, OF_WARP * S::ROW * sizeof(float));
    } else {
        for (uint32_t row = 0; row < OF_WARP; row++, from += S::ROW, to += S::N)
            store_bulk(to, from, S::N * sizeof(float));
    }
    store_commit();
}

/* The first rows, whose place is lent, to memory or back. */
template <typename S>
static __device__ inline void copy_lent_rows(uint32_t n_rows, const float *from, uint32_t from_row,
                                             float *to, uint32_t to_row)
{
    for (uint32_t i = threadIdx.x; i < n_rows * S::N; i += LAYER_THREADS)
        to[i / S::N * to_row + i % S::N] = from[i / S::N * from_row + i % S::N];
    __syncthreads();
}

/* ---- Signs with zeros ---- */

/* Whether normalize_rows has left a word of nonzero signs in memory: otherwise they are all ones.
 */
static __device__ inline bool has_zeros(const uint32_t parts_with_zeros[2], uint32_t row,
                                        uint32_t word)
{
    return (parts_with_zeros[row / WARP] >> word & 1) != 0;
}

/* The set of the nonzero signs of a kind. */
template <typename S>
static __device__ inline void load_nonzero(uint4 *plane, uint32_t token,
                                           const uint32_t parts_with_zeros[2], uint4 *set)
{
    for (uint32_t i = threadIdx.x; i < S::SET * 4; i += LAYER_THREADS) {
        uint32_t row = i / (S::PIECES * 4), word = i % (S::PIECES * 4);
        *word_of_set<S>(set, row, word) = has_zeros(parts_with_zeros, row, word)
                                              ? *word_of_set<S>(plane, token + row, word)
                                              : ~0u;
    }
}

/* Completes the plane of them. */
template <typename S>
static __device__ inline void store_nonzero(uint4 *plane, uint32_t token,
                                            const uint32_t parts_with_zeros[2])
{
    for (uint32_t i = threadIdx.x; i < S::SET * 4; i += LAYER_THREADS) {
        uint32_t row = i / (S::PIECES * 4), word = i % (S::PIECES * 4);
        if (!has_zeros(parts_with_zeros, row, word))
            *word_of_set<S>(plane, token + row, word) = ~0u;
    }
}

/* ---- A layer ---- */

/* The sums of the codes that a linear takes, from their bits. */
template <typename S>
static __device__ inline void sum_codes(const LayerHalf &linear, const uint4 *set,
                                        uint32_t n_pieces, int32_t *code_sums)
{
    enum : uint32_t { THREADS = LAYER_THREADS / S::TOKENS }; /* of a token */
    uint32_t token = threadIdx.x / THREADS;
    int32_t n = 0;
    for (uint32_t piece = threadIdx.x % THREADS; piece < n_pieces; piece += THREADS)
        n += popc_piece(set[piece_place(token, piece, n_pieces)]);
    n = warp_sum<THREADS>(n);
    if (threadIdx.x % THREADS == 0)
        code_sums[token] = code_sum_of(linear, n, n_pieces * PIECE_BITS);
    __syncthreads();
}

/* What linears whose results become bits are given: signs by kind, and where results go. */
struct BitsPlaces {
    const uint4 *signs, *nonzero; /* NULL: no sign is 0 */
    uint4 *sets;
};

/* Intermediate into the sets from SET_INNER on, or query, key and value into theirs.  All threads
 * have met. */
template <typename S>
static __device__ inline void
multiply_all_to_bits(LayerWeights<S::H256> *weights, const LayerSigns &layer, bool is_last,
                     const BitsPlaces &places, const LayerFacts<S::TOKENS> *facts)
{
    const uint32_t group = threadIdx.x / GROUP_THREADS;
    const uint32_t n_rounds = is_last ? operand_rounds(S::H256) : S::H256;
    OutputBlock after = is_last ? OutputBlock{1 + group / S::H256, group % S::H256 * 256}
                                : OutputBlock{0, group * S::N};
    ByteLimits limits = limits_of_byte(layer.to_bits[after.number], after.output);
#pragma unroll 1
    for (uint32_t round = 0; round < n_rounds; round++) {
        const OutputBlock block = after;
        if (is_last) {
            uint32_t next = (round + 1) * LAYER_WARPGROUPS + group;
            after = OutputBlock{1 + next / S::H256, next % S::H256 * 256};
        } else {
            after.output += 256;
            if (round + 1 == n_rounds) after.number = ~0u;
        }
        uint32_t bytes[S::TOKENS / 8] = {};
        bool is_there = block.number <= LAYER_OPERANDS;
        if (is_there) {
            uint32_t kind = is_last ? layer.kinds[block.number - 1] : 0;
            const uint4 *nonzero = places.nonzero + kind * S::SET;
            const LayerInputs inputs = {
                tile_descriptor(places.signs + kind * S::SET, S::PIECES),
                places.nonzero == NULL ? 0 : tile_descriptor(nonzero, S::PIECES)};
            multiply_to_bits<S>(weights, layer, block, after, &limits, inputs,
                                (const uint32_t *)facts->sign_sums[kind], bytes);
        }
        /* Value may take the place of query's inputs. */
        if (is_last && round == 1) __syncthreads();
        if (!is_there) continue;
        if (is_last)
            store_bytes<S>(bytes, ~0u, places.sets + (block.number - 1) * S::SET,
                           block.output / PIECE_BITS, S::PIECES);
        else
            store_bytes<S>(bytes, ~layer.inverts, places.sets + SET_INNER * S::SET,
                           block.output / PIECE_BITS, S::INNER_PIECES);
    }
    publish_tiles();
    __syncthreads();
}

/* Stores what the layer after is to have of query, key and value, whose signs are none of them 0.
 */
template <typename S>
static __device__ inline void store_operands(const SignLayers &a, uint32_t token, const uint4 *sets)
{
    size_t first = piece_place(token, 0, S::PIECES);
    size_t second = (size_t)a.n_tokens * S::PIECES + first;
    for (int k = 0; k < LAYER_OPERANDS; k++) {
        for (uint32_t i = threadIdx.x; i < S::SET; i += LAYER_THREADS)
            a.operands[k][second + i] = make_uint4(~0u, ~0u, ~0u, ~0u);
        if (threadIdx.x == (uint32_t)k * WARP)
            store_bulk(a.operands[k] + first, sets + k * S::SET, S::SET * PIECE_BYTES);
    }
    store_commit();
}

/* Stores signs for kernels after. */
template <typename S>
static __device__ inline void store_signs(const SignLayers &a, uint32_t token, const uint4 *signs,
                                          const LayerFacts<S::TOKENS> *facts)
{
    const uint32_t n = a.signs.n;
    if (threadIdx.x < n)
        store_bulk(a.signs.encodings[threadIdx.x].planes + piece_place(token, 0, S::PIECES),
                   signs + threadIdx.x * S::SET, S::SET * PIECE_BYTES);
    store_commit();
    for (uint32_t k = 0; k < n; k++)
        store_nonzero<S>(a.nonzero[k], token, facts->parts_with_zeros[k]);
    for (uint32_t i = threadIdx.x; i < n * S::TOKENS; i += LAYER_THREADS) {
        const Encoding &e = a.signs.encodings[i / S::TOKENS];
        uint32_t t = i % S::TOKENS, n_zeros = (uint32_t)facts->n_zeros[i / S::TOKENS][t];
        store_token_facts(e, token + t, e.quantizer.step,
                          (int32_t)facts->sign_sums[i / S::TOKENS][t] - (int32_t)S::N,
                          S::N - n_zeros);
    }
}

/* What of a layer's second half is wanted. */
enum HalfEnd {
    END_BITS, /* of the linears that take the norm's signs, as always of the first half */
    END_ROWS, /* in memory, by a store that is under way */
    END_ROWS_AND_BITS,
};

/* Half a layer: adds the first linear, from its inputs, to the rows, normalizes these, and leaves
 * bits of the linears that take their signs. */
template <typename S>
static __device__ inline void run_half(const SignLayers &a, const LayerSigns &layer, uint32_t i,
                                       HalfEnd wanted, const LayerInputs &inputs, uint32_t token,
                                       LayerWeights<S::H256> *weights, float *rows, uint4 *sets,
                                       LayerFacts<S::TOKENS> *facts)
{
    const LayerHalf &half = layer.halves[i];
    const bool is_last = i == 1;
    const uint32_t n = is_last ? layer.n_kinds : 1;
    const NormSigns signs = {layer.shifts + i, n,
                             sets + (is_last ? LAYER_SETS - n : SET_CONTEXT) * S::SET};
    multiply_to_rows<S>(weights, half, is_last ? 4 : 1, inputs, facts->code_sums, &facts->residual,
                        rows);
    bool dense = normalize_rows<S>(a, half, signs, token, rows, facts);
    if (wanted != END_BITS && (dense || wanted == END_ROWS)) store_rows<S>(a, token, rows);
    if (wanted == END_ROWS) return;
    BitsPlaces places = {signs.sets, NULL, sets};
    float *aside = a.results + (size_t)token * a.results_row; /* for lent rows */
    if (!dense) {
        copy_lent_rows<S>(n * S::SET_ROWS, rows, S::ROW, aside, S::N);
        places.nonzero = (const uint4 *)rows;
        for (uint32_t k = 0; k < n; k++)
            load_nonzero<S>(a.nonzero[k], token, facts->parts_with_zeros[k],
                            (uint4 *)rows + k * S::SET);
        publish_tiles();
        __syncthreads();
    }
    multiply_all_to_bits<S>(weights, layer, is_last, places, facts);
    if (dense) return;
    copy_lent_rows<S>(n * S::SET_ROWS, aside, S::N, rows, S::ROW);
    if (wanted != END_ROWS_AND_BITS) return;
    publish_tiles();
    __syncthreads();
    store_rows<S>(a, token, rows);
}

#endif

/* ATTENDS: attention is the kernel's. */
template <int H256, int TOKENS, bool ATTENDS>
static __global__ void __launch_bounds__(LAYER_THREADS, 1) layer_signs_kernel(SignLayers a)
{
#if BITM_HAS_WGMMA
    typedef LayerShape<H256, TOKENS> S;
    BITM_DYNAMIC_SHARED(shared);
    LayerFacts<TOKENS> *facts = (LayerFacts<TOKENS> *)shared;
    float *rows = (float *)(facts + 1);
    uint4 *sets = (uint4 *)(rows + TOKENS * S::ROW);
    const uint32_t token = blockIdx.x * TOKENS;
    if (threadIdx.x == 0) {
        init_barrier(&facts->residual);
        init_barrier(&facts->exponentials);
    }
    LayerWeights<H256> weights;
    weights.begin(a.layers[0]);
    __syncthreads();
    /* Without attention the kernel before is attention's, and has begun when those were over that
     * wrote the residual. */
    if (!ATTENDS) fetch_residual<S>(a, token, rows, &facts->residual);
    wait_for_all_before();
    let_next_begin();
    if (ATTENDS) fetch_residual<S>(a, token, rows, &facts->residual);
    /* Attention: every query has all tokens of the block.  Otherwise: no input is 0. */
    bool plain = true;
    if (ATTENDS) {
        for (uint32_t k = 0; k < LAYER_OPERANDS; k++)
            fetch_set<S>(a.operands[k], token, sets + k * S::SET);
        plain = find_keys(a.first, a.sequence_of, token, facts->keys);
    } else {
        fetch_set<S>(a.context, token, sets);
        if (a.context_nonzero != NULL)
            fetch_set<S>(a.context + a.plane_stride, token, sets + S::SET);
        if (threadIdx.x < TOKENS) {
            facts->code_sums[threadIdx.x] = a.context_sum[token + threadIdx.x];
            if (a.context_nonzero != NULL) plain = a.context_nonzero[token + threadIdx.x] == S::N;
        }
    }
    copy_commit();
    copy_wait<0>();
    plain = __syncthreads_and(plain) != 0;

#pragma unroll 1
    for (uint32_t l = 0;; l++) {
        const LayerSigns &layer = a.layers[l];
        const bool is_end = !ATTENDS || l + 1 == a.n_layers;
        LayerInputs inputs = {tile_descriptor(sets, S::PIECES), 0};
        if (ATTENDS) {
            attend<S>(layer.attention, plain, l % 2, sets, facts);
            sum_codes<S>(layer.halves[0], sets, S::PIECES, facts->code_sums);
        } else if (!plain) {
            inputs.nonzero = tile_descriptor(sets + S::SET, S::PIECES);
        }
#pragma unroll 1
        for (uint32_t i = 0; i < 2; i++) {
            HalfEnd wanted = i == 0 || !is_end   ? END_BITS
                             : a.leaves_operands ? END_ROWS_AND_BITS
                                                 : END_ROWS;
            run_half<S>(a, layer, i, wanted, inputs, token, &weights, rows, sets, facts);
            if (i == 1) break;
            uint4 *inner = sets + SET_INNER * S::SET;
            sum_codes<S>(layer.halves[1], inner, S::INNER_PIECES, facts->code_sums);
            inputs = LayerInputs{tile_descriptor(inner, S::INNER_PIECES), 0};
        }
        if (is_end) break;
        weights.begin(a.layers[l + 1]);
    }

    if (a.signs.later.counts && threadIdx.x < TOKENS)
        begin_token(a.signs.later, token + threadIdx.x);
    if (a.leaves_operands)
        store_operands<S>(a, token, sets);
    else
        store_signs<S>(a, token, sets + (LAYER_SETS - a.signs.n) * S::SET, facts);
    wait_for_stores<0>();
#else
    (void)a;
#endif
}

} // namespace bitm

#endif
