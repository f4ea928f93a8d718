/* Products of 1-bit weights and integer codes: one kernel, three ways to multiply.
 *
 * A block computes 64 tokens x 64 outputs; it stages 1 Kbit of each row in shared memory and
 * multiplies with what the architecture has:
 *   bits   sm_80 to sm_90: mma m16n8k256 and.popc; others: popcount of the AND, on CUDA cores
 *   bytes  sm_80 and up: mma m16n8k32 of int8, bits expanded to bytes 0 and 1 in registers;
 *          sm_61 and up: dp4a; before: plain multiplications
 * A block's 128 threads are 4 warps; each computes 32 tokens x 32 outputs. */
#ifndef BITM_CUDA_GEMM_CUH
#define BITM_CUDA_GEMM_CUH

#include "operands.cuh"

namespace bitm {

enum {
    GEMM_THREADS = 128,
    GEMM_TOKENS = 64,
    GEMM_OUTPUTS = 64,
    GEMM_PIECES = 8, /* staged at once, of the inputs */
    GEMM_WARP_TOKENS = 32,
    GEMM_WARP_OUTPUTS = 32,
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define BITM_HAS_MMA_BYTES 1
#else
#define BITM_HAS_MMA_BYTES 0
#endif
/* Newer ones emulate products of bits on the int8 units, which is slower than popcounts. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800 && __CUDA_ARCH__ <= 900
#define BITM_HAS_MMA_BITS 1
#else
#define BITM_HAS_MMA_BITS 0
#endif

/* Pieces [first, first + n) of 64 rows from tiles in memory to shared memory, tiles again; pieces
 * past the row's end and rows past the last are zeros. */
static __device__ inline void stage(const uint4 *from, uint32_t row, uint32_t n_rows,
                                    uint32_t n_pieces, uint32_t first, uint32_t n, uint4 *to)
{
    for (uint32_t i = threadIdx.x; i < 64 * n; i += GEMM_THREADS) {
        uint32_t r = i % TILE_ROWS, piece = i / TILE_ROWS % n, tile = i / TILE_ROWS / n;
        uint4 value = make_uint4(0, 0, 0, 0);
        if (first + piece < n_pieces && row + tile * TILE_ROWS < n_rows)
            value = from[piece_place(row + tile * TILE_ROWS + r, first + piece, n_pieces)];
        to[i] = value;
    }
}

#if BITM_HAS_MMA_BITS
static __device__ inline void mma_bits(int32_t c[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

#if BITM_HAS_MMA_BYTES
static __device__ inline void mma_bytes(int32_t c[4], const uint32_t a[4], const uint32_t b[2],
                                        bool is_signed)
{
    if (is_signed)
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 "
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 "
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

/* The 32 x 32 results of a warp: 2 x 4 tiles of 16 x 8, of which a thread holds, as mma has it,
 * rows lane / 4 and lane / 4 + 8, columns lane % 4 * 2 and the next. */
struct Accumulators {
    int32_t c[2][4][4];
};

/* A word (4 bytes) of a row of 32 staged rows. */
static __device__ inline uint32_t staged_word(const uint4 *tiles, uint32_t n_pieces, uint32_t row,
                                              uint32_t piece, uint32_t word)
{
    const uint32_t *words = (const uint32_t *)(tiles + piece_place(row, piece, n_pieces));
    return words[word];
}

/* A thread's part of the left operand of mma: two tiles of 16 rows x 2 pieces. */
static __device__ inline void gather_inputs(const uint4 *inputs, uint32_t piece, uint32_t a[2][4])
{
    uint32_t group = threadIdx.x % WARP / 4, word = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int r = 0; r < 4; r++)
            a[i][r] =
                staged_word(inputs, GEMM_PIECES, i * 16 + r % 2 * 8 + group, piece + r / 2, word);
}

static __device__ inline int32_t dot4(uint32_t codes, uint32_t weights, bool is_signed, int32_t sum)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 610 && __CUDA_ARCH__ != 620
    return is_signed ? __dp4a((int)codes, (int)weights, sum)
                     : (int32_t)__dp4a(codes, weights, (uint32_t)sum);
#else
    for (int i = 0; i < 4; i++) {
        int32_t code = (int32_t)(codes >> 8 * i & 255);
        if (is_signed) code = (int8_t)code;
        sum += code * (int32_t)(weights >> 8 * i & 255);
    }
    return sum;
#endif
}

/* inputs: GEMM_PIECES pieces of a warp's 32 tokens, weights: as many of its 32 outputs. */
static __device__ inline void multiply_bits(Accumulators &acc, const uint4 *inputs,
                                            const uint4 *weights, uint32_t n)
{
    uint32_t group = threadIdx.x % WARP / 4, word = threadIdx.x % 4;
    for (uint32_t piece = 0; piece < n; piece += 2) {
#if BITM_HAS_MMA_BITS
        uint32_t a[2][4], b[4][2];
        gather_inputs(inputs, piece, a);
        for (int j = 0; j < 4; j++)
            for (int r = 0; r < 2; r++)
                b[j][r] = staged_word(weights, GEMM_PIECES, j * 8 + group, piece + r, word);
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 4; j++)
                mma_bits(acc.c[i][j], a[i], b[j]);
#else
        for (uint32_t k = 0; k < 8; k++)
            for (int i = 0; i < 2; i++)
                for (int half = 0; half < 2; half++) {
                    uint32_t x = staged_word(inputs, GEMM_PIECES, i * 16 + half * 8 + group,
                                             piece + k / 4, k % 4);
                    for (int j = 0; j < 4; j++)
                        for (int c = 0; c < 2; c++)
                            acc.c[i][j][half * 2 + c] +=
                                __popc(x & staged_word(weights, GEMM_PIECES, j * 8 + word * 2 + c,
                                                       piece + k / 4, k % 4));
                }
#endif
    }
}

/* The same for bytes: one piece of weights for the GEMM_PIECES of inputs. */
static __device__ inline void multiply_bytes(Accumulators &acc, const uint4 *inputs,
                                             const uint4 *weights, uint32_t n, bool is_signed)
{
    uint32_t group = threadIdx.x % WARP / 4, word = threadIdx.x % 4;
    for (uint32_t piece = 0; piece < n; piece += 2) {
#if BITM_HAS_MMA_BYTES
        uint32_t a[2][4], b[4][2];
        gather_inputs(inputs, piece, a);
        for (int j = 0; j < 4; j++) {
            uint32_t bits = staged_word(weights, 1, j * 8 + group, 0, word);
            b[j][0] = bytes_of_weights(bits, piece);
            b[j][1] = bytes_of_weights(bits, piece + 1);
        }
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 4; j++)
                mma_bytes(acc.c[i][j], a[i], b[j], is_signed);
#else
        for (uint32_t k = 0; k < 8; k++) {
            uint32_t b[4][2];
            for (int j = 0; j < 4; j++)
                for (int c = 0; c < 2; c++)
                    b[j][c] = bytes_of_weights(
                        staged_word(weights, 1, j * 8 + word * 2 + c, 0, k % 4), piece + k / 4);
            for (int i = 0; i < 2; i++)
                for (int half = 0; half < 2; half++) {
                    uint32_t x = staged_word(inputs, GEMM_PIECES, i * 16 + half * 8 + group,
                                             piece + k / 4, k % 4);
                    for (int j = 0; j < 4; j++)
                        for (int c = 0; c < 2; c++)
                            acc.c[i][j][half * 2 + c] =
                                dot4(x, b[j][c], is_signed, acc.c[i][j][half * 2 + c]);
                }
        }
#endif
    }
}

template <bool BYTES, int KIND>
static __global__ void __launch_bounds__(GEMM_THREADS) gemm_kernel(Product p)
{
    __shared__ uint4 inputs[GEMM_TOKENS * GEMM_PIECES];
    __shared__ uint4 weights[GEMM_OUTPUTS * (BYTES ? 1 : GEMM_PIECES)];
    uint32_t token = blockIdx.y * GEMM_TOKENS, output = blockIdx.x * GEMM_OUTPUTS;
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    uint32_t warp_token = warp / 2 * GEMM_WARP_TOKENS, warp_output = warp % 2 * GEMM_WARP_OUTPUTS;
    const uint4 *my_inputs = inputs + warp_token * GEMM_PIECES;
    const uint4 *my_weights = weights + warp_output * (BYTES ? 1 : GEMM_PIECES);
    Accumulators acc = {};
    for (uint32_t t = 0; t < p.n_terms; t++) {
        const Term &term = p.terms[t];
        for (uint32_t first = 0; first < p.n_input_pieces; first += GEMM_PIECES) {
            stage(p.inputs + term.input_plane * p.input_stride, token, p.n_tokens, p.n_input_pieces,
                  first, GEMM_PIECES, inputs);
            if (BYTES)
                stage(p.weights + term.weight_plane * p.weight_stride, output, p.n_outputs,
                      p.n_weight_pieces, first / GEMM_PIECES, 1, weights);
            else
                stage(p.weights + term.weight_plane * p.weight_stride, output, p.n_outputs,
                      p.n_weight_pieces, first, GEMM_PIECES, weights);
            __syncthreads();
            uint32_t n = p.n_input_pieces - first;
            n = n < GEMM_PIECES ? n : GEMM_PIECES;
            if (BYTES)
                multiply_bytes(acc, my_inputs, my_weights, n, term.is_signed != 0);
            else
                multiply_bits(acc, my_inputs, my_weights, n);
            __syncthreads();
        }
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 4; j++)
                for (int r = 0; r < 4; r++)
                    acc.c[i][j][r] =
                        (int32_t)((uint32_t)acc.c[i][j][r] * (uint32_t)term.multiplier);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t t = token + warp_token + i * 8 + lane / 4;
        float step = p.epilogue.tokens.step[t];
        int32_t code_sum = p.subtract_code_sum ? p.epilogue.tokens.code_sum[t] : 0;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            size_t o = output + warp_output + j * 8 + lane % 4 * 2;
            store_pair<KIND>(p, t, o, acc.c[i / 2][j][i % 2 * 2] - code_sum,
                             acc.c[i / 2][j][i % 2 * 2 + 1] - code_sum,
                             pair_of(p.epilogue.row_scale, o, p.n_outputs),
                             pair_of(p.epilogue.bias, o, p.n_outputs), step);
        }
    }
}

} // namespace bitm

#endif
