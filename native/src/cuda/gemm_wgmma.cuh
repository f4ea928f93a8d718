/* Products of bits on Hopper: wgmma m64n128k256 and.popc, 7.7e15 multiply-adds a second on an H100.
 *
 * A block of two warpgroups computes 128 tokens x 128 outputs.  Operands come through a ring of
 * stages of 256 to 768 columns, filled with cp.async: tiles as they lie in memory are what wgmma
 * reads (no swizzle: a tile of 8 rows x 16 bytes is 128 consecutive bytes).  Blocks are small
 * enough for two or three to share a multiprocessor, so that one's epilogue hides behind another's
 * products. */
#ifndef BITM_CUDA_GEMM_WGMMA_CUH
#define BITM_CUDA_GEMM_WGMMA_CUH

#include "hopper.cuh"
#include "quantize.cuh"

namespace bitm {

enum {
    WGMMA_THREADS = 256,
    WGMMA_TOKENS = 128,
    WGMMA_OUTPUTS = 128,
    WGMMA_STAGES = 4,
};

/* A stage of so many pieces of every row: 6, 4 or 2, the most that divides all. */
static __host__ __device__ constexpr uint32_t wgmma_stage_bytes(uint32_t pieces)
{
    return (WGMMA_TOKENS + WGMMA_OUTPUTS) * pieces * PIECE_BYTES;
}

static __host__ __device__ constexpr uint32_t wgmma_shared_bytes(uint32_t pieces)
{
    return WGMMA_STAGES * wgmma_stage_bytes(pieces);
}

static __host__ __device__ constexpr uint32_t wgmma_pieces(uint32_t n_pieces)
{
    return n_pieces % 6 == 0 ? 6 : n_pieces % 4 == 0 ? 4 : 2;
}

#if BITM_HAS_WGMMA

/* Starts to copy PIECES pieces, from number `first` on, of ROWS rows; the block has THREADS
 * threads. */
template <int ROWS, int PIECES, int THREADS>
static __device__ inline void copy_rows(const uint4 *from, uint32_t row, uint32_t n_pieces,
                                        uint32_t first, uint4 *to)
{
#pragma unroll
    for (uint32_t i = threadIdx.x; i < ROWS * PIECES; i += THREADS) {
        uint32_t r = i % TILE_ROWS, piece = i / TILE_ROWS % PIECES;
        uint32_t tile = i / TILE_ROWS / PIECES;
        copy_async(to + i, from + piece_place(row + tile * TILE_ROWS + r, first + piece, n_pieces));
    }
}

/* Starts to copy a stage; they count through all of a term, then those of the next. */
template <int PIECES>
static __device__ inline void fetch_stage(const Product &p, uint32_t number, uint32_t token,
                                          uint32_t output, uint4 *shared)
{
    uint32_t n_stages = p.n_input_pieces / PIECES, first = number % n_stages * PIECES;
    const Term &term = p.terms[number / n_stages];
    uint4 *to = shared + number % WGMMA_STAGES * (wgmma_stage_bytes(PIECES) / PIECE_BYTES);
    copy_rows<WGMMA_TOKENS, PIECES, WGMMA_THREADS>(p.inputs + term.input_plane * p.input_stride,
                                                   token, p.n_input_pieces, first, to);
    copy_rows<WGMMA_OUTPUTS, PIECES, WGMMA_THREADS>(p.weights + term.weight_plane * p.weight_stride,
                                                    output, p.n_weight_pieces, first,
                                                    to + WGMMA_TOKENS * PIECES);
}

/* acc = the sum over n_terms; this thread's part as wgmma has it. */
template <int PIECES>
static __device__ inline void multiply_stages(const Product &p, uint32_t n_terms, uint32_t token,
                                              uint32_t output, uint4 *shared, int32_t acc[64])
{
    uint32_t n_stages = p.n_input_pieces / PIECES, n_all = n_stages * n_terms, s = 0;
    for (; s < WGMMA_STAGES - 1; s++) {
        if (s < n_all) fetch_stage<PIECES>(p, s, token, output, shared);
        copy_commit();
    }
    s = 0;
    for (uint32_t term = 0; term < n_terms; term++) {
        for (uint32_t k = 0; k < n_stages; k++, s++) {
            copy_wait<WGMMA_STAGES - 2>();
            __syncthreads();
            const uint4 *inputs =
                shared + s % WGMMA_STAGES * (wgmma_stage_bytes(PIECES) / PIECE_BYTES);
            const uint4 *weights = inputs + WGMMA_TOKENS * PIECES;
            inputs += threadIdx.x / 128 * 64 * PIECES;
            wgmma_fence();
#pragma unroll
            for (int piece = 0; piece < PIECES; piece += 2)
                wgmma_bits(acc, tile_descriptor(inputs + piece * TILE_ROWS, PIECES),
                           tile_descriptor(weights + piece * TILE_ROWS, PIECES));
            wgmma_commit();
            if (s + WGMMA_STAGES - 1 < n_all)
                fetch_stage<PIECES>(p, s + WGMMA_STAGES - 1, token, output, shared);
            copy_commit();
            wgmma_wait<0>();
        }
        uint32_t multiplier = (uint32_t)p.terms[term].multiplier;
#pragma unroll
        for (int i = 0; i < 64; i++)
            acc[i] = (int32_t)((uint32_t)acc[i] * multiplier);
    }
}

#endif

/* What this machine's code has: 1 where gemm_wgmma_kernel is more than an empty one. */
static __global__ void has_wgmma_kernel(uint32_t *has)
{
    *has = BITM_HAS_WGMMA;
}

/* The value of an output as bits of its code. */
template <int KIND, int RULE>
static __device__ inline uint32_t output_bits(const Encoding &e, uint32_t output, int32_t dot,
                                              float scale, float bias, float step)
{
    float x = fmaf((float)dot, scale * step, bias);
    if (KIND == EPILOGUE_GELU_BITS) return static_bits_of_gelu<RULE>(e, x, output);
    return static_bits<RULE>(e, x + shift_of(e, output));
}

/* Stores the words of a row's planes that four neighbouring threads have the bits of between them,
 * and counts them. */
static __device__ inline void store_words(const Encoding &e, uint32_t token, uint32_t n_tokens,
                                          uint32_t output, uint32_t planes[2], int32_t n_bits[2])
{
    uint32_t n_planes = e.form == FORM_SIGN ? 2 : e.n_planes;
#pragma unroll
    for (uint32_t plane = 0; plane < 2; plane++) {
        planes[plane] |= __shfl_xor_sync(ALL_THREADS, planes[plane], 1);
        planes[plane] |= __shfl_xor_sync(ALL_THREADS, planes[plane], 2);
        if (plane < n_planes && threadIdx.x % 4 == plane && token < n_tokens) {
            uint32_t *row = (uint32_t *)(e.planes + plane * e.plane_stride +
                                         piece_place(token, output / PIECE_BITS, e.n_pieces));
            row[output % PIECE_BITS / 32] = planes[plane];
        }
        n_bits[plane] += plane < n_planes ? __popc(planes[plane]) : 0;
        planes[plane] = 0;
    }
}

/* The epilogue of kinds that write bits; rows [2]: the tokens of this thread. */
template <int KIND, int RULE>
static __device__ inline void store_product_bits(const Product &p, const Encoding &e, bool dense,
                                                 uint32_t column, const uint32_t rows[2],
                                                 const int32_t acc[64])
{
    const Epilogue &epilogue = p.epilogue;
    uint32_t planes[2][2] = {{0, 0}, {0, 0}};
    int32_t n_bits[2][2] = {{0, 0}, {0, 0}}, multiplier = dense ? p.terms[1].multiplier : 1;
    float steps[2];
    int32_t code_sums[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        steps[half] = epilogue.tokens.step[rows[half]];
        code_sums[half] = p.subtract_code_sum ? epilogue.tokens.code_sum[rows[half]] : 0;
    }
#pragma unroll
    for (int j = 0; j < 16; j++) {
        uint32_t o = column + j * 8, place = j % 4 * 8 + threadIdx.x % 4 * 2;
        float2 scale = *(const float2 *)(epilogue.row_scale + o);
        float2 bias = *(const float2 *)(epilogue.bias + o);
        uint2 ones = dense ? *(const uint2 *)(p.row_ones + o) : make_uint2(0, 0);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int32_t first = (acc[j * 4 + half * 2] + (int32_t)ones.x) * multiplier;
            int32_t second = (acc[j * 4 + half * 2 + 1] + (int32_t)ones.y) * multiplier;
            uint32_t a = output_bits<KIND, RULE>(e, o, first - code_sums[half], scale.x, bias.x,
                                                 steps[half]);
            uint32_t b = output_bits<KIND, RULE>(e, o + 1, second - code_sums[half], scale.y,
                                                 bias.y, steps[half]);
            planes[half][0] |= ((a & 1) | (b & 1) << 1) << place;
            planes[half][1] |= (a >> 1 | (b & 2)) << place;
            if (j % 4 == 3) store_words(e, rows[half], p.n_tokens, o, planes[half], n_bits[half]);
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++)
        if (e.counts && threadIdx.x % 4 == 0 && rows[half] < p.n_tokens)
            count_bits(e, rows[half], n_bits[half][0], n_bits[half][1]);
}

/* Memory holds whole blocks of tokens and outputs; what lies in those past the last is ignored. */
template <int PIECES, int KIND>
static __global__ void __launch_bounds__(WGMMA_THREADS, 2)
    gemm_wgmma_kernel(Product p, Encoding encoding)
{
#if BITM_HAS_WGMMA
    BITM_DYNAMIC_SHARED(shared);
    uint32_t token = blockIdx.y * WGMMA_TOKENS, output = blockIdx.x * WGMMA_OUTPUTS;
    int32_t acc[64];
#pragma unroll
    for (int i = 0; i < 64; i++)
        acc[i] = 0;
    /* The last term of signs counts nonzero inputs: with all of them nonzero that is the number of
     * positive weights of the output, known in advance. */
    uint32_t n_terms = p.n_terms;
    bool dense = false;
    if (p.n_nonzero != NULL) {
        uint32_t t = token + threadIdx.x;
        bool full = threadIdx.x >= WGMMA_TOKENS || t >= p.n_tokens || p.n_nonzero[t] == p.n_columns;
        dense = __syncthreads_and(full) != 0;
        if (dense) n_terms--;
    }
    multiply_stages<PIECES>(p, n_terms, token, output, (uint4 *)shared, acc);
    uint32_t column = output + threadIdx.x % 4 * 2;
    uint32_t row = token + threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4;
    const uint32_t rows[2] = {row, row + 8};
    if (KIND == EPILOGUE_BITS || KIND == EPILOGUE_GELU_BITS) {
        if (bits_rule(encoding) == RULE_SIGNS)
            store_product_bits<KIND, RULE_SIGNS>(p, encoding, dense, column, rows, acc);
        else
            store_product_bits<KIND, RULE_LEVELS>(p, encoding, dense, column, rows, acc);
        return;
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t t = rows[half];
        if (t >= p.n_tokens) continue;
        float step = p.epilogue.tokens.step[t];
        int32_t code_sum = p.subtract_code_sum ? p.epilogue.tokens.code_sum[t] : 0;
#pragma unroll
        for (int j = 0; j < 16; j++) {
            uint32_t o = column + j * 8;
            int32_t first = acc[j * 4 + half * 2], second = acc[j * 4 + half * 2 + 1];
            if (dense) { /* row_ones has room for whole blocks of outputs */
                int32_t multiplier = p.terms[1].multiplier;
                first = (first + (int32_t)p.row_ones[o]) * multiplier;
                second = (second + (int32_t)p.row_ones[o + 1]) * multiplier;
            }
            store_pair<KIND>(p, t, o, first, second, step, code_sum);
        }
    }
#else
    (void)p;
    (void)encoding;
#endif
}

} // namespace bitm

#endif
