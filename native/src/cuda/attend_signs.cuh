/* Query, key, value and attention of signs in one kernel, on Hopper, for few tokens: a block has a
 * head of 64 tokens, of whole sequences, as layer_attention.cuh computes it.
 *
 * A warpgroup has one of the three products, whose results become signs by their limits
 * (sum_limits.cuh). */
#ifndef BITM_CUDA_ATTEND_SIGNS_CUH
#define BITM_CUDA_ATTEND_SIGNS_CUH

#include "layer_attention.cuh"

namespace bitm {

enum { HEAD_OPERANDS = 3, ATTEND_SIGNS_THREADS = HEAD_OPERANDS * GROUP_THREADS };

/* Query, key or value. */
struct SignOperand {
    const uint4 *weights; /* in tiles */
    const SumLimits *limits;
    const uint32_t *row_ones;
    const uint4 *inputs; /* planes of signs: positive, nonzero */
    const int32_t *code_sum;
    const uint32_t *n_nonzero;
};

struct AttendSigns {
    SignOperand operands[HEAD_OPERANDS];
    size_t plane_stride;
    LayerAttention attention;
    const uint32_t *first, *sequence_of;
    uint32_t n_tokens;
    Encoding context;
};

/* A block's shared memory.  Signs of a head lie in the first half of the first of a row's two
 * pieces. */
template <int H256> struct alignas(16) SignHeadMemory {
    enum : uint32_t { PIECES = H256 * 2, SET = SIGNS_HEAD * PIECES };
    uint4 weights[HEAD_OPERANDS][SET], inputs[HEAD_OPERANDS][SET], nonzero[HEAD_OPERANDS][SET];
    uint4 signs[HEAD_OPERANDS][SIGNS_HEAD * 2];
    float exponentials[SIGN_EXPONENTIALS];
    int32_t counts[BLOCK_KEYS];
    KeyRange keys[BLOCK_KEYS];
    uint64_t from_model, from_before; /* barriers of copies */
};

#if BITM_HAS_WGMMA

/* The limits of a thread's 16 outputs of a head, as pack_limits_kernel has them: output b is
 * component b / 2 * 8 + 2 * t + b % 2. */
struct HeadLimits {
    uint32_t limits[16], ones[16];
};

static __device__ inline HeadLimits limits_of_head(const SignOperand &a, uint32_t head)
{
    HeadLimits l;
#pragma unroll
    for (uint32_t j = 0; j < 8; j++) {
        uint32_t output = head * SIGNS_HEAD + j * 8 + threadIdx.x % 4 * 2;
        int4 two = *(const int4 *)(a.limits + output);
        uint2 ones = *(const uint2 *)(a.row_ones + output);
        l.limits[j * 2] = packed_limits(SumLimits{two.x, two.y}, 0);
        l.limits[j * 2 + 1] = packed_limits(SumLimits{two.z, two.w}, 0);
        l.ones[j * 2] = ones.x;
        l.ones[j * 2 + 1] = ones.y;
    }
    return l;
}

/* Word word_of_head of the signs of a query, the same one whose context a thread gets from
 * attend_head.  acc: the sums of the outputs of a thread's two queries, but for what is the
 * output's or the token's. */
static __device__ inline uint32_t signs_of_sums(const int32_t acc[32], const HeadLimits &l,
                                                bool dense, const int32_t code_sums[2])
{
    uint32_t bits[2] = {0, 0};
#pragma unroll
    for (int b = 0; b < 16; b++) {
        SumLimits limits = unpacked_limits(l.limits[b]);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int32_t both = acc[b / 2 * 4 + i * 2 + b % 2];
            int32_t x = (dense ? 4 * both - 2 * (int32_t)l.ones[b] : -2 * both) - code_sums[i];
            if (x <= limits.left || x >= limits.right) bits[i] |= 1u << b;
        }
    }
    return transpose_pairs_4(bits[0] | bits[1] << 16);
}

#endif

template <int H256>
static __global__ void __launch_bounds__(ATTEND_SIGNS_THREADS) attend_signs_kernel(AttendSigns a)
{
#if BITM_HAS_WGMMA
    typedef SignHeadMemory<H256> Memory;
    enum : uint32_t { SET_BYTES = Memory::SET * PIECE_BYTES };
    BITM_DYNAMIC_SHARED(shared);
    Memory *m = (Memory *)shared;
    const uint32_t head = blockIdx.x, token = blockIdx.y * BLOCK_KEYS;
    const uint32_t group = threadIdx.x / GROUP_THREADS, query = query_of_thread();
    const SignOperand &operand = a.operands[group];
    if (threadIdx.x == 0) {
        init_barrier(&m->from_model);
        init_barrier(&m->from_before);
        expect_bytes(&m->from_model, HEAD_OPERANDS * SET_BYTES + sizeof m->exponentials);
        for (uint32_t k = 0; k < HEAD_OPERANDS; k++)
            copy_bulk(m->weights[k],
                      a.operands[k].weights + piece_place(head * SIGNS_HEAD, 0, Memory::PIECES),
                      SET_BYTES, &m->from_model);
        copy_bulk(m->exponentials, a.attention.exponentials, sizeof m->exponentials,
                  &m->from_model);
    }
    const HeadLimits limits = limits_of_head(operand, head);
    wait_for_kernels_before(a.n_tokens);
    const size_t first_piece = piece_place(token, 0, Memory::PIECES);
    if (threadIdx.x == 0) {
        expect_bytes(&m->from_before, HEAD_OPERANDS * SET_BYTES);
        for (uint32_t k = 0; k < HEAD_OPERANDS; k++)
            copy_bulk(m->inputs[k], a.operands[k].inputs + first_piece, SET_BYTES, &m->from_before);
    }
    const int32_t code_sums[2] = {operand.code_sum[token + query],
                                  operand.code_sum[token + query + 8]};
    bool whole = find_keys(a.first, a.sequence_of, token, m->keys);
    bool dense = operand.n_nonzero[token + query] == Memory::PIECES * PIECE_BITS &&
                 operand.n_nonzero[token + query + 8] == Memory::PIECES * PIECE_BITS;
    whole = __syncthreads_and(whole) != 0;
    dense = __syncthreads_and(dense) != 0;
    if (!dense) {
        for (uint32_t i = threadIdx.x % GROUP_THREADS; i < Memory::SET; i += GROUP_THREADS)
            m->nonzero[group][i] = operand.inputs[a.plane_stride + first_piece + i];
        publish_tiles();
        __syncthreads();
    }

    wait_for_phase(&m->from_model, 0);
    wait_for_phase(&m->from_before, 0);
    const uint64_t weights = tile_descriptor(m->weights[group], Memory::PIECES);
    int32_t acc[32] = {};
    for (int plane = 0; plane < 2; plane++) {
        if (plane == 1) {
            if (dense) break;
#pragma unroll
            for (int i = 0; i < 32; i++)
                acc[i] *= -2; /* see SumRule */
        }
        const uint64_t inputs =
            tile_descriptor(plane == 0 ? m->inputs[group] : m->nonzero[group], Memory::PIECES);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < H256; k++)
            wgmma_bits_64(acc, inputs + k * 2 * TILE_ROWS, weights + k * 2 * TILE_ROWS);
        wgmma_commit();
        wgmma_wait<0>();
    }
    const uint32_t row = query + threadIdx.x % 4 / 2 * 8, word = word_of_head();
    ((uint32_t *)&m->signs[group][piece_place(row, 0, 2)])[word] =
        signs_of_sums(acc, limits, dense, code_sums);
    publish_tiles();
    __syncthreads();

    uint4 *keys = m->signs[1], *values = m->signs[2];
    count_keys(keys, 2, 1, m->counts);
    turn_values(values, 2, 1);
    __syncthreads();
    if (group > 0) return;
    const HeadPlaces places = {tile_descriptor(keys, 2),
                               tile_descriptor(values, 2),
                               0,
                               m->counts,
                               m->exponentials,
                               a.attention.context_limits + head * SIGNS_HEAD};
    uint32_t words[2] = {0, 0};
    if (has_word(0)) {
        words[0] = ((const uint32_t *)&m->signs[0][piece_place(query, 0, 2)])[word];
        words[1] = ((const uint32_t *)&m->signs[0][piece_place(query + 8, 0, 2)])[word];
    }
    const uint32_t bits =
        attend_head(a.attention, places, words, whole, m->keys, &m->from_model, 0);
    uint32_t *to = word_at(a.context, token + row, head * SIGNS_HEAD + word * 32);
    to[0] = bits;
    const bool is_sign = a.context.form == FORM_SIGN;
    if (is_sign) to[a.context.plane_stride * 4] = ~0u;
    if (!a.context.counts) return;
    int32_t n_bits = __popc(bits);
    n_bits += __shfl_xor_sync(ALL_THREADS, n_bits, 1);
    if (word == 0) count_bits(a.context, token + row, n_bits, is_sign ? SIGNS_HEAD : 0);
#else
    (void)a;
#endif
}

} // namespace bitm

#endif
