/* All of a layer of signs but its attention in one kernel, on Hopper: attention_output and its
 * norm, intermediate, output and its norm, and query, key and value of the layer after.
 *
 * A block has TOKENS tokens from end to end.  Their values stay in shared memory as rows of floats,
 * and their bits as right operands of products; of intermediate there are no floats
 * (sum_limits.cuh).  Weights are left operands: they come from the second cache straight into
 * registers, each thread's in the order in which it wants them (order_weights_kernel), several
 * products ahead, norms or not. */
#ifndef BITM_CUDA_LAYER_SIGNS_CUH
#define BITM_CUDA_LAYER_SIGNS_CUH

#include "layer_norms.cuh"
#include "layer_products.cuh"

namespace bitm {

#if BITM_HAS_WGMMA

/* ---- Copies ---- */

/* Starts to copy the residual into the rows: one thread, unless rows have to be copied one by one.
 */
template <typename S>
static __device__ inline void fetch_residual(const LayerSigns &a, uint32_t token, float *rows,
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

/* Starts to copy the planes of the context. */
template <typename S>
static __device__ inline void fetch_context(const LayerSigns &a, uint32_t token, uint4 *context,
                                            uint4 *nonzero)
{
    const uint4 *from = a.context + piece_place(token, 0, S::PIECES);
    for (uint32_t i = threadIdx.x; i < S::SET; i += LAYER_THREADS) {
        copy_async(context + i, from + i);
        if (a.context_nonzero != NULL) copy_async(nonzero + i, from + a.context_stride + i);
    }
    copy_commit();
}

/* A thread starts to store rows, a group of its stores. */
template <typename S>
static __device__ inline void store_rows(const LayerSigns &a, uint32_t token, const float *rows,
                                         uint32_t first, uint32_t end)
{
    float *to = a.results + (size_t)(token + first) * a.results_row;
    const float *from = rows + first * S::ROW;
    if (a.results_row == S::ROW) {
        store_bulk_kept(to, from, (end - first) * S::ROW * sizeof(float));
    } else {
        for (uint32_t row = first; row < end; row++, from += S::ROW, to += S::N)
            store_bulk(to, from, S::N * sizeof(float));
    }
    store_commit();
}

/* The nonzero signs of kind k as normalize_rows has left them: word i of row `row`. */
template <typename S>
static __device__ inline uint32_t nonzero_word(const Encoding &e, uint32_t token, uint32_t row,
                                               uint32_t i, const uint32_t parts_with_zeros[2])
{
    if ((parts_with_zeros[row / WARP] >> i & 1) == 0) return ~0u;
    return word_at(e, token + row, i * 32)[e.plane_stride * 4];
}

/* The set of them. */
template <typename S>
static __device__ inline void load_nonzero(const Encoding &e, uint32_t token,
                                           const uint32_t parts_with_zeros[2], uint4 *set)
{
    for (uint32_t i = threadIdx.x; i < S::SET * 4; i += LAYER_THREADS) {
        uint32_t row = i / (S::PIECES * 4), word = i % (S::PIECES * 4);
        ((uint32_t *)(set + piece_place(row, word / 4, S::PIECES)))[word % 4] =
            nonzero_word<S>(e, token, row, word, parts_with_zeros);
    }
    publish_tiles();
}

/* Completes the plane of them. */
template <typename S>
static __device__ inline void store_nonzero(const Encoding &e, uint32_t token,
                                            const uint32_t parts_with_zeros[2])
{
    for (uint32_t i = threadIdx.x; i < S::SET * 4; i += LAYER_THREADS) {
        uint32_t row = i / (S::PIECES * 4), word = i % (S::PIECES * 4);
        if ((parts_with_zeros[row / WARP] >> word & 1) == 0)
            word_at(e, token + row, word * 32)[e.plane_stride * 4] = ~0u;
    }
}

/* The first rows, whose place is lent, to memory or back. */
template <typename S>
static __device__ inline void copy_lent_rows(const float *from, uint32_t from_row, float *to,
                                             uint32_t to_row)
{
    for (uint32_t i = threadIdx.x; i < S::SET_ROWS * S::N; i += LAYER_THREADS)
        to[i / S::N * to_row + i % S::N] = from[i / S::N * from_row + i % S::N];
    __syncthreads();
}

/* ---- A layer ---- */

/* The sums of the codes that output takes, from their bits. */
template <typename S>
static __device__ inline void sum_inner_codes(const LayerLinear &output, const uint4 *inner,
                                              int32_t *code_sums)
{
    enum : uint32_t { THREADS = LAYER_THREADS / S::TOKENS }; /* of a token */
    uint32_t token = threadIdx.x / THREADS;
    int32_t n = 0;
    for (uint32_t piece = threadIdx.x % THREADS; piece < S::INNER_PIECES; piece += THREADS) {
        uint4 bits = inner[piece_place(token, piece, S::INNER_PIECES)];
        n += __popc(bits.x) + __popc(bits.y) + __popc(bits.z) + __popc(bits.w);
    }
    n = warp_sum<THREADS>(n);
    if (threadIdx.x % THREADS == 0)
        code_sums[token] = output.bit != 0 ? output.bit * n : 2 * n - (int32_t)S::N * 4;
    __syncthreads();
}

/* Stores what the layer after is to have of query, key and value: results [3], whose signs are none
 * of them 0. */
template <typename S>
static __device__ inline void store_operands(const LayerSigns &a, uint32_t token,
                                             const uint4 *results)
{
    size_t first = piece_place(token, 0, S::PIECES);
    size_t second = (size_t)a.n_tokens * S::PIECES + first;
    for (int k = 0; k < LAYER_OPERANDS; k++) {
        for (uint32_t i = threadIdx.x; i < S::SET; i += LAYER_THREADS)
            a.planes[k][second + i] = make_uint4(~0u, ~0u, ~0u, ~0u);
        if (threadIdx.x == (uint32_t)k * WARP)
            store_bulk(a.planes[k] + first, results + k * S::SET, S::SET * PIECE_BYTES);
    }
    store_commit();
    wait_for_stores<0>();
}

/* Stores the rows, and signs for kernels after. */
template <typename S>
static __device__ inline void store_layer(const LayerSigns &a, uint32_t token, const uint4 *sets,
                                          const LayerFacts<S::TOKENS> *facts, const float *rows)
{
    const Followers &signs = a.halves[1].signs;
    if (threadIdx.x < signs.n)
        store_bulk(signs.encodings[threadIdx.x].planes + piece_place(token, 0, S::PIECES),
                   sets + threadIdx.x * S::SET, S::SET * PIECE_BYTES);
    store_commit();
    if (threadIdx.x % WARP == 0) {
        enum : uint32_t { OF_WARP = S::TOKENS / (LAYER_THREADS / WARP) };
        uint32_t first = threadIdx.x / WARP * OF_WARP;
        store_rows<S>(a, token, rows, first, first + OF_WARP);
    }
    for (uint32_t k = 0; k < signs.n; k++)
        store_nonzero<S>(signs.encodings[k], token, facts->parts_with_zeros[k]);
    for (uint32_t i = threadIdx.x; i < signs.n * S::TOKENS; i += LAYER_THREADS) {
        const Encoding &e = signs.encodings[i / S::TOKENS];
        uint32_t t = i % S::TOKENS, n_zeros = (uint32_t)facts->n_zeros[i / S::TOKENS][t];
        store_token_facts(e, token + t, e.quantizer.step,
                          (int32_t)facts->sign_sums[i / S::TOKENS][t] - (int32_t)S::N,
                          S::N - n_zeros);
    }
    wait_for_stores<0>();
}

#endif

template <int H256, int TOKENS>
static __global__ void __launch_bounds__(LAYER_THREADS, 1) layer_signs_kernel(LayerSigns a)
{
#if BITM_HAS_WGMMA
    typedef LayerShape<H256, TOKENS> S;
    BITM_DYNAMIC_SHARED(shared);
    LayerFacts<TOKENS> *facts = (LayerFacts<TOKENS> *)shared;
    float *rows = (float *)(facts + 1);
    uint4 *set = (uint4 *)(rows + TOKENS * S::ROW), *inner = set + S::SET;
    uint32_t token = blockIdx.x * TOKENS, group = threadIdx.x / GROUP_THREADS;
    float *aside = a.results + (size_t)token * a.results_row; /* for lent rows */
    if (threadIdx.x == 0) init_barrier(facts->residual);
    LayerWeights<H256> weights;
    weights.next = a.weights + group * group_weight_pieces(H256) + threadIdx.x % GROUP_THREADS;
#pragma unroll
    for (int slot = 0; slot < LAYER_AHEAD; slot++)
        weights.fetch(slot);
    __syncthreads();
    /* The kernel before, attention's, has begun when those were over that wrote the residual. */
    fetch_residual<S>(a, token, rows, facts->residual);
    wait_for_all_before();
    let_next_begin();
    fetch_context<S>(a, token, set, inner);
    bool dense = true;
    if (threadIdx.x < TOKENS) {
        facts->code_sums[threadIdx.x] = a.context_sum[token + threadIdx.x];
        if (a.context_nonzero != NULL) dense = a.context_nonzero[token + threadIdx.x] == S::N;
    }
    copy_wait<0>();
    dense = __syncthreads_and(dense) != 0;
    LayerInputs inputs = {tile_descriptor(set, S::PIECES),
                          dense ? 0 : tile_descriptor(inner, S::PIECES)};

#pragma unroll 1
    for (uint32_t i = 0; i < 2; i++) {
        const LayerHalf &half = a.halves[i];
        const bool is_last = i == 1;
        uint4 *sets = is_last ? inner : set;
        multiply_to_rows<S>(&weights, half.to_rows, is_last ? 4 : 1, inputs, facts->code_sums,
                            facts->residual, rows);
        dense = normalize_rows<S>(half, a.eps, token, rows, sets, facts);
        if (is_last && a.n_operands == 0) break;
        uint4 *lent = (uint4 *)rows, *nonzero = lent;
        if (is_last) {
            nonzero = (uint4 *)(rows + S::OPERAND_ROWS * S::ROW);
            if (threadIdx.x == LAYER_OPERANDS * GROUP_THREADS) {
                store_rows<S>(a, token, rows, 0, S::OPERAND_ROWS);
                store_rows<S>(a, token, rows, S::OPERAND_ROWS, S::TOKENS);
                if (dense)
                    wait_for_stores<1>(); /* only the first are lent */
                else
                    wait_for_stores<0>();
            }
        } else if (!dense) {
            copy_lent_rows<S>(rows, S::ROW, aside, S::N);
        }
        if (!dense) {
            __syncthreads();
            for (uint32_t k = 0; k < half.signs.n; k++)
                load_nonzero<S>(half.signs.encodings[k], token, facts->parts_with_zeros[k],
                                nonzero + k * S::SET);
            __syncthreads();
        }
        uint32_t number = is_last ? group : 0,
                 k = is_last && group < LAYER_OPERANDS ? a.sets[group] : 0;
        inputs.bits = tile_descriptor(sets + k * S::SET, S::PIECES);
        inputs.nonzero = dense ? 0 : tile_descriptor(nonzero + k * S::SET, S::PIECES);
        const BitsPlace to =
            is_last ? BitsPlace{lent + group * S::SET, 0, S::PIECES, ~0u, true}
                    : BitsPlace{inner, group * S::PIECES, S::INNER_PIECES, ~a.inverts, false};
        if (number < LAYER_OPERANDS)
            multiply_to_bits<S>(&weights, half.to_bits[number], is_last ? 0 : group * S::N, inputs,
                                (const uint32_t *)facts->sign_sums[k], to);
        else
            __syncthreads(); /* as there, before anything is stored */
        publish_tiles();
        __syncthreads();
        if (is_last) break;
        if (!dense) copy_lent_rows<S>(aside, S::N, rows, S::ROW);
        sum_inner_codes<S>(a.halves[1].to_rows, inner, facts->code_sums);
        inputs = LayerInputs{tile_descriptor(inner, S::INNER_PIECES), 0};
    }

    if (a.halves[1].signs.later.counts && threadIdx.x < TOKENS)
        begin_token(a.halves[1].signs.later, token + threadIdx.x);
    if (a.n_operands > 0)
        store_operands<S>(a, token, (const uint4 *)rows);
    else
        store_layer<S>(a, token, inner, facts, rows);
#else
    (void)a;
#endif
}

} // namespace bitm

#endif
