/* A layer of signs but its attention in one kernel (layer_signs.cuh), where there are few tokens:
 * attention_output and its norm, intermediate, output and its norm.
 *
 * A cluster of four blocks has 8 tokens, a block a quarter of every linear's outputs, a warpgroup
 * 64 of them at once, in the order of layer_signs.cuh.  Weights are on their way to registers
 * before their inputs are there.  The blocks send each other results, of which each gets whole rows
 * of two tokens, and signs, of which each gets all; every block has a barrier for each of these. */
#ifndef BITM_CUDA_LAYER_CLUSTER_CUH
#define BITM_CUDA_LAYER_CLUSTER_CUH

#include "gemm_norm_cluster.cuh"
#include "layer_products.cuh"

namespace bitm {

/* As LayerShape. */
template <int H256_> struct LayerClusterShape {
    enum : uint32_t {
        H256 = H256_,
        TOKENS = CLUSTER_TOKENS,
        N = H256 * 256,
        PIECES = H256 * 2,
        INNER_PIECES = PIECES * 4,
        SET = TOKENS * PIECES,
        THREADS = H256 * GROUP_THREADS,
    };
};

template <int H256> struct alignas(16) LayerClusterMemory {
    typedef LayerClusterShape<H256> S;
    uint4 context[2][S::SET], signs[2][S::SET]; /* positive, nonzero */
    uint4 part_of_inner[S::SET];                /* this block's */
    uint4 inner[S::SET * 4];
    ClusterRows<S::N> rows;
    int32_t code_sums[CLUSTER_TOKENS];
    uint16_t sign_sums[CLUSTER_TOKENS]; /* N more than they are */
    /* Barriers: of copies from memory, and of what the blocks send. */
    uint64_t copies, results_sent[2], signs_sent, inner_sent;
};

#if BITM_HAS_WGMMA

/* Four batches of a thread's weights; each makes room for the one that follows it after four. */
template <int H256> struct ClusterWeights {
    const uint4 *next;
    uint4 batches[LAYER_SLOTS][H256];

    __device__ inline void fetch_all(const uint4 *from)
    {
        next = from;
#pragma unroll
        for (int slot = 0; slot < LAYER_SLOTS; slot++)
            fetch(slot + LAYER_AHEAD);
    }

    /* As multiply_to_bits calls it, LAYER_AHEAD further than the slot that is free. */
    __device__ inline void fetch(int slot)
    {
        slot = (slot - LAYER_AHEAD) % LAYER_SLOTS;
#pragma unroll
        for (int k = 0; k < H256; k++)
            batches[slot][k] = __ldcg(next + k * GROUP_THREADS);
        next += H256 * GROUP_THREADS;
    }
};

/* Sends the results of a thread's two outputs to the blocks that have the tokens. */
template <int N>
static __device__ inline void send_results(const int32_t acc[4], const SumRule &rule, float step,
                                           const TileFacts &facts, const int32_t *code_sums,
                                           uint32_t tile, float rows[][ClusterShape<N>::ROW],
                                           uint64_t *barrier)
{
    uint32_t t = threadIdx.x % 4; /* of a quad, and the block that has its tokens */
    uint32_t to_barrier = place_in_block(barrier, t);
#pragma unroll
    for (int e = 0; e < CLUSTER_ROWS; e++) {
        float2 two = results_of(acc + e, rule, step, facts, code_sums[t * CLUSTER_ROWS + e]);
        send_to_block(place_in_block(&rows[e][output_of_tile(tile)], t), to_barrier,
                      make_uint2(__float_as_uint(two.x), __float_as_uint(two.y)));
    }
}

/* Sends the signs of a thread's four columns to all blocks: of 8 threads with a word each sends
 * either plane to one of them. */
template <typename S>
static __device__ inline void send_signs(const float values[4], const float4 &shift, uint32_t token,
                                         uint32_t column, uint4 (*planes)[S::SET],
                                         uint64_t *barrier)
{
    static_assert(CLUSTER_BLOCKS == 4, "");
    const Encoding none = {};
    uint32_t unit = threadIdx.x % 8, bits[2] = {0, 0};
    add_bits<RULE_SIGNS>(none, values[0] + shift.x, 0, bits);
    add_bits<RULE_SIGNS>(none, values[1] + shift.y, 1, bits);
    add_bits<RULE_SIGNS>(none, values[2] + shift.z, 2, bits);
    add_bits<RULE_SIGNS>(none, values[3] + shift.w, 3, bits);
#pragma unroll
    for (int p = 0; p < 2; p++) {
        bits[p] <<= unit * 4;
        for (int step = 1; step < 8; step *= 2)
            bits[p] |= __shfl_xor_sync(ALL_THREADS, bits[p], step);
    }
    uint32_t to = unit % 4, plane = unit / 4;
    send_to_block(place_in_block(word_of_set<S>(planes[plane], token, column / 32), to),
                  place_in_block(barrier, to), plane == 0 ? bits[0] : bits[1]);
}

/* The sums of signs in two planes, N more than they are; whether none is 0.  The block meets. */
template <typename S>
static __device__ inline bool sum_cluster_signs(const uint4 (*planes)[S::SET], uint16_t *sign_sums)
{
    enum : uint32_t { THREADS = 16 }; /* of a token */
    uint32_t token = threadIdx.x / THREADS, piece = threadIdx.x % THREADS;
    int32_t positive = 0, nonzero = 0;
    if (token < S::TOKENS && piece < S::PIECES) {
        positive = popc_piece(planes[0][piece_place(token, piece, S::PIECES)]);
        nonzero = popc_piece(planes[1][piece_place(token, piece, S::PIECES)]);
    }
    positive = warp_sum<THREADS>(positive);
    nonzero = warp_sum<THREADS>(nonzero);
    if (token < S::TOKENS && piece == 0)
        sign_sums[token] = (uint16_t)(2 * positive - nonzero + (int32_t)S::N);
    return __syncthreads_and(token >= S::TOKENS || nonzero == (int32_t)S::N) != 0;
}

/* Of what output takes. */
template <typename S>
static __device__ inline void sum_cluster_codes(const LayerHalf &linear, const uint4 *inner,
                                                int32_t *code_sums)
{
    enum : uint32_t { THREADS = 16 };
    uint32_t token = threadIdx.x / THREADS;
    int32_t n = 0;
    if (token < S::TOKENS)
        for (uint32_t piece = threadIdx.x % THREADS; piece < S::INNER_PIECES; piece += THREADS)
            n += popc_piece(inner[piece_place(token, piece, S::INNER_PIECES)]);
    n = warp_sum<THREADS>(n);
    if (token < S::TOKENS && threadIdx.x % THREADS == 0)
        code_sums[token] = code_sum_of(linear, n, S::N * 4);
    __syncthreads();
}

#endif

/* Blocks follow each other in clusters. */
template <int H256>
static __global__ void __launch_bounds__(LayerClusterShape<H256>::THREADS)
    layer_cluster_kernel(SignLayers a)
{
#if BITM_HAS_WGMMA
    typedef LayerClusterShape<H256> S;
    enum : uint32_t { SET_BYTES = S::SET * PIECE_BYTES, ROW_BYTES = S::N * sizeof(float) };
    BITM_DYNAMIC_SHARED(shared);
    LayerClusterMemory<H256> *m = (LayerClusterMemory<H256> *)shared;
    ClusterRows<S::N> *rows = &m->rows;
    const LayerSigns &layer = a.layers[0];
    const LayerHalf &first = layer.halves[0], &last = layer.halves[1];
    const uint32_t rank = blockIdx.x % CLUSTER_BLOCKS, group = threadIdx.x / GROUP_THREADS;
    const uint32_t token = blockIdx.x / CLUSTER_BLOCKS * CLUSTER_TOKENS;
    const uint32_t own_token = token + rank * CLUSTER_ROWS;
    if (threadIdx.x == 0) {
        init_barrier(&m->copies);
        init_barrier(&m->results_sent[0]);
        init_barrier(&m->results_sent[1]);
        init_barrier(&m->signs_sent);
        init_barrier(&m->inner_sent);
        expect_bytes(&m->results_sent[0], CLUSTER_ROWS * ROW_BYTES);
        expect_bytes(&m->results_sent[1], CLUSTER_ROWS * ROW_BYTES);
        expect_bytes(&m->signs_sent, 2 * SET_BYTES);
        expect_bytes(&m->inner_sent, 4 * SET_BYTES);
    }
    if (threadIdx.x < 3 * CLUSTER_ROWS * 2) (&rows->n_bits[0][0][0])[threadIdx.x] = 0;

    /* Of the model: weights, and facts of the thread's outputs and columns. */
    const uint4 *batches =
        layer.weights + rank * group_weight_pieces(H256) + threadIdx.x % GROUP_THREADS;
    const uint32_t batch_pieces = H256 * GROUP_THREADS;
    uint4 of_first[H256];
#pragma unroll
    for (int k = 0; k < H256; k++)
        of_first[k] = __ldcg(batches + group * batch_pieces + k * GROUP_THREADS);
    ClusterWeights<H256> weights;
    weights.fetch_all(batches +
                      (batches_before_part(H256, PART_INTERMEDIATE) + group * 4) * batch_pieces);
    weights.next = batches + (batches_before_part(H256, PART_OUTPUT) + group * 4) * batch_pieces;
    const uint32_t tile = rank * H256 + group;
    const SumRule inner_rule = rule_of(last.bit, true);
    const OutputBlock block = {0, tile * 256}, none = {~0u, 0};
    ByteLimits limits = limits_of_byte(layer.to_bits[0], block.output);
    TileFacts facts = facts_of_tile(first, rule_of(first.bit, true), tile);
    const uint32_t row = threadIdx.x / (S::N / 4), column = threadIdx.x % (S::N / 4) * 4;
    NormFour norm = {four_at(first.norm_gain, column), four_at(first.norm_bias, column)};
    const float4 shift = four_at(layer.shifts[0], column);
    greet_cluster();

    wait_for_kernels_before(a.n_tokens);
    if (threadIdx.x == 0) {
        const uint4 *from = a.context + piece_place(token, 0, S::PIECES);
        uint32_t n_planes = a.context_nonzero != NULL ? 2 : 1;
        expect_bytes(&m->copies, n_planes * SET_BYTES + CLUSTER_ROWS * ROW_BYTES);
        for (uint32_t p = 0; p < n_planes; p++)
            copy_bulk(m->context[p], from + p * a.plane_stride, SET_BYTES, &m->copies);
        for (uint32_t r = 0; r < CLUSTER_ROWS; r++)
            copy_bulk(rows->residual[r], a.residual + (size_t)(own_token + r) * S::N, ROW_BYTES,
                      &m->copies);
    }
    bool dense = true;
    if (threadIdx.x < CLUSTER_TOKENS) {
        m->code_sums[threadIdx.x] = a.context_sum[token + threadIdx.x];
        if (a.context_nonzero != NULL) dense = a.context_nonzero[token + threadIdx.x] == S::N;
    }
    dense = __syncthreads_and(dense) != 0;
    wait_for_phase(&m->copies, 0);

    int32_t acc[4];
    LayerInputs inputs = {tile_descriptor(m->context[0], S::PIECES),
                          dense ? 0 : tile_descriptor(m->context[1], S::PIECES)};
    const SumRule rule = rule_of(first.bit, dense);
    multiply<S>(of_first, inputs, rule, false, acc);
    wait_for_cluster(); /* all blocks have begun */
    send_results<S::N>(acc, rule, first.step, facts, m->code_sums, tile, rows->results,
                       &m->results_sent[0]);
    facts = facts_of_tile(last, inner_rule, tile);
    wait_for_phase(&m->results_sent[0], 0);
    float values[4];
    if (threadIdx.x < CLUSTER_ROWS * LANES) find_moments<S::N>(a.eps, rows);
    __syncthreads();
    normalize_four<S::N>(*rows, norm, row, column, values);
    *(float4 *)(rows->residual[row] + column) =
        make_float4(values[0], values[1], values[2], values[3]);
    send_signs<S>(values, shift, rank * CLUSTER_ROWS + row, column, m->signs, &m->signs_sent);
    norm = NormFour{four_at(last.norm_gain, column), four_at(last.norm_bias, column)};
    wait_for_phase(&m->signs_sent, 0);
    publish_tiles();
    dense = sum_cluster_signs<S>(m->signs, m->sign_sums);

    inputs = LayerInputs{tile_descriptor(m->signs[0], S::PIECES),
                         dense ? 0 : tile_descriptor(m->signs[1], S::PIECES)};
    uint32_t bytes[1] = {0};
    multiply_to_bits<S>(&weights, layer, block, none, &limits, inputs,
                        (const uint32_t *)m->sign_sums, bytes);
    store_bytes<S>(bytes, ~layer.inverts, m->part_of_inner, group * 2, S::PIECES);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < S::SET * CLUSTER_BLOCKS; i += S::THREADS) {
        uint32_t to = i / S::SET, piece = i % S::SET;
        send_to_block(place_in_block(m->inner + rank * S::SET + piece, to),
                      place_in_block(&m->inner_sent, to), m->part_of_inner[piece]);
    }
    wait_for_phase(&m->inner_sent, 0);
    publish_tiles();
    sum_cluster_codes<S>(last, m->inner, m->code_sums);

    const uint64_t inner = tile_descriptor(m->inner, S::INNER_PIECES);
#pragma unroll
    for (int b = 0; b < LAYER_SLOTS; b++)
        multiply<S>(weights.batches[b], LayerInputs{inner + b * S::PIECES * TILE_ROWS, 0},
                    inner_rule, b > 0, acc);
    /* The results before have been read: signs of them have come from all blocks. */
    send_results<S::N>(acc, inner_rule, last.step, facts, m->code_sums, tile, rows->results,
                       &m->results_sent[1]);
    float4 shifts[LAYER_OPERANDS];
#pragma unroll
    for (uint32_t k = 0; k < LAYER_OPERANDS; k++)
        shifts[k] = four_at(k < a.signs.n ? a.signs.encodings[k].shift : NULL, column);
    wait_for_phase(&m->results_sent[1], 0);
    if (threadIdx.x < CLUSTER_ROWS * LANES) find_moments<S::N>(a.eps, rows);
    __syncthreads();
    normalize_four<S::N>(*rows, norm, row, column, values);
    *(float4 *)(a.results + (size_t)(own_token + row) * S::N + column) =
        make_float4(values[0], values[1], values[2], values[3]);
#pragma unroll
    for (uint32_t k = 0; k < LAYER_OPERANDS; k++)
        if (k < a.signs.n)
            encode_four(a.signs.encodings[k], own_token + row, column, values, shifts[k], 0.0F,
                        rows->n_bits[k][row]);
    __syncthreads();
    if (column != 0) return;
    for (uint32_t k = 0; k < a.signs.n; k++)
        store_row_facts(a.signs.encodings[k], own_token + row, 0.0F, rows->n_bits[k][row]);
    if (a.signs.later.counts) begin_token(a.signs.later, own_token + row);
#else
    (void)a;
#endif
}

} // namespace bitm

#endif
