/* Query, key, value and attention of short sequences in one kernel, on Hopper.
 *
 * A block has one head of one sequence of at most 64 tokens.  The three products, of 64 outputs x
 * 64 tokens, are so small that all their operands lie in shared memory at once.  When they are done
 * their results become floats in the operands' place, where attention64.cuh's steps take them: none
 * of the three float arrays goes through memory, nor does the context where it leaves as bits. */
#ifndef BITM_CUDA_ATTEND_WGMMA_CUH
#define BITM_CUDA_ATTEND_WGMMA_CUH

#include "attention64.cuh"
#include "gemm_wgmma_bytes.cuh"

namespace bitm {

/* What differs between query, key and value: inputs too, as shifts before a quantizer may. */
struct HeadLinear {
    const uint4 *inputs, *weights; /* planes of tiles */
    uint32_t set;                  /* of inputs: those of query, key and value may be the same */
    const uint32_t *n_nonzero;     /* of the inputs; NULL: see Product */
    const float *step;
    const int32_t *code_sum;
    const float *row_scale, *bias;
    const uint32_t *row_ones;
};

struct Attend {
    HeadLinear linears[3];
    Product product; /* what they share: sizes and terms */
    uint32_t n_sets, n_input_planes, n_weight_planes;
    Attention attention;
};

/* Steps and sums of codes of the tokens of three linears, then query, key, value, and two sums; the
 * operands before them, sets of inputs and then weights, and the scores after. */
static __host__ __device__ inline size_t attend_shared_bytes(const Attend &a)
{
    const Product &p = a.product;
    size_t operands = (size_t)BLOCK_64 * PIECE_BYTES *
                      (a.n_sets * a.n_input_planes * p.n_input_pieces +
                       3 * a.n_weight_planes * p.n_weight_pieces);
    size_t floats = sizeof(float) * (3 * STRIDE_64 * BLOCK_64 + 2 * BLOCK_64);
    size_t facts = 3 * BLOCK_64 * (sizeof(float) + sizeof(int32_t));
    return facts + (operands > floats ? operands : floats);
}

#if BITM_HAS_WGMMA

/* Starts to copy 64 rows of tiles from row number `row`, which need not begin a tile. */
static __device__ inline void copy_rows_64(const uint4 *from, size_t row, uint32_t n_pieces,
                                           uint4 *to)
{
    uint32_t r = threadIdx.x % BLOCK_64,
             place = r / TILE_ROWS * n_pieces * TILE_ROWS + r % TILE_ROWS;
    uint32_t first = threadIdx.x / BLOCK_64 * TILE_ROWS, n = n_pieces * TILE_ROWS;
    from += piece_place(row + r, 0, n_pieces);
    to += place;
#pragma unroll 1 /* little code, which runs once */
    for (uint32_t i = first; i < n; i += THREADS_64 / BLOCK_64 * TILE_ROWS)
        copy_async(to + i, from + i);
}

/* Starts to copy the operands. */
static __device__ inline void fetch_operands(const Attend &a, size_t token, size_t output,
                                             uint4 *to)
{
    const Product &p = a.product;
    uint32_t n_sets = 0;
    for (uint32_t k = 0; k < 3; k++) {
        if (a.linears[k].set < n_sets) continue;
        n_sets++;
        for (uint32_t plane = 0; plane < a.n_input_planes; plane++) {
            copy_rows_64(a.linears[k].inputs + plane * p.input_stride, token, p.n_input_pieces, to);
            to += BLOCK_64 * p.n_input_pieces;
        }
    }
    for (uint32_t k = 0; k < 3; k++)
        for (uint32_t plane = 0; plane < a.n_weight_planes; plane++) {
            copy_rows_64(a.linears[k].weights + plane * p.weight_stride, output, p.n_weight_pieces,
                         to);
            to += BLOCK_64 * p.n_weight_pieces;
        }
}

/* acc += the product [64 outputs, 64 tokens] of a term. */
template <bool BYTES, bool SIGNED>
static __device__ inline void multiply_head(const Product &p, const uint4 *inputs,
                                            const uint4 *weights, int32_t acc[32])
{
    uint32_t n = p.n_weight_pieces;
    if (!BYTES) {
        wgmma_fence();
        for (uint32_t piece = 0; piece < n; piece += 2)
            wgmma_bits_64(acc, tile_descriptor(weights + piece * TILE_ROWS, n),
                          tile_descriptor(inputs + piece * TILE_ROWS, n));
        wgmma_commit();
        return;
    }
    weights += threadIdx.x / WARP * 2 * n * TILE_ROWS;
    for (uint32_t first = 0; first < n; first += 2) {
#pragma unroll
        for (uint32_t i = 0; i < 2; i++)
            multiply_piece<SIGNED, BLOCK_64>(weights + (first + i) * TILE_ROWS, n * TILE_ROWS,
                                             inputs + (first + i) * BYTES_PIECES * TILE_ROWS,
                                             p.n_input_pieces, i != 0, acc);
        wgmma_wait<0>(); /* none is under way at a loop's end: see multiply_piece */
    }
}

/* acc += the products of a term of the three linears. */
template <bool BYTES, bool SIGNED>
static __device__ inline void multiply_term(const Attend &a, const Term &term,
                                            const uint4 *operands, int32_t acc[3][32])
{
    const Product &p = a.product;
    uint32_t input_pieces = BLOCK_64 * p.n_input_pieces;
    uint32_t weight_pieces = BLOCK_64 * p.n_weight_pieces;
    const uint4 *weights = operands + a.n_sets * a.n_input_planes * input_pieces;
#pragma unroll
    for (uint32_t k = 0; k < 3; k++)
        multiply_head<BYTES, SIGNED>(
            p, operands + (a.linears[k].set * a.n_input_planes + term.input_plane) * input_pieces,
            weights + (k * a.n_weight_planes + term.weight_plane) * weight_pieces, acc[k]);
    wgmma_wait<0>();
}

/* acc = the sums over n_terms of the three linears. */
template <bool BYTES>
static __device__ inline void multiply_heads(const Attend &a, uint32_t n_terms,
                                             const uint4 *operands, int32_t acc[3][32])
{
    for (uint32_t t = 0; t < n_terms; t++) {
        const Term &term = a.product.terms[t];
        if (BYTES && term.is_signed)
            multiply_term<BYTES, true>(a, term, operands, acc);
        else
            multiply_term<BYTES, false>(a, term, operands, acc);
#pragma unroll
        for (uint32_t k = 0; k < 3; k++)
#pragma unroll
            for (int i = 0; i < 32; i++)
                acc[k][i] = (int32_t)((uint32_t)acc[k][i] * (uint32_t)term.multiplier);
    }
}

/* The results of a head's linear as floats: [component][token] if turned, else [token][component].
 * step, code_sum: those of the block's tokens. */
static __device__ inline void finish_head(const Attend &a, const HeadLinear &linear, size_t output,
                                          bool dense, bool turned, const float *step,
                                          const int32_t *code_sum, const int32_t acc[32], float *to)
{
    const Product &p = a.product;
    int32_t multiplier = p.terms[1].multiplier;
    uint32_t first = threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4, two = threadIdx.x % 4 * 2;
    float scale[2], bias[2];
    int32_t ones[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        scale[half] = linear.row_scale[output + first + half * 8];
        bias[half] = linear.bias[output + first + half * 8];
        ones[half] = dense ? (int32_t)linear.row_ones[output + first + half * 8] : 0;
    }
    if (!dense) multiplier = 1;
#pragma unroll
    for (int i = 0; i < 16; i++) {
        uint32_t d = first + i % 2 * 8, t = i / 2 * 8 + two;
        float2 steps = *(const float2 *)(step + t);
        int2 code_sums = *(const int2 *)(code_sum + t);
        int32_t x = (acc[i * 2] + ones[i % 2]) * multiplier - code_sums.x;
        int32_t y = (acc[i * 2 + 1] + ones[i % 2]) * multiplier - code_sums.y;
        float *place = to + (turned ? d * STRIDE_64 + t : t * STRIDE_64 + d);
        float first_token = fmaf((float)x, scale[i % 2] * steps.x, bias[i % 2]);
        float second = fmaf((float)y, scale[i % 2] * steps.y, bias[i % 2]);
        if (turned) {
            *(float2 *)place = make_float2(first_token, second);
        } else {
            place[0] = first_token;
            place[STRIDE_64] = second;
        }
    }
}

#endif

template <bool BYTES>
static __global__ void __launch_bounds__(THREADS_64, BYTES ? 3 : 4) attend_kernel(Attend a)
{
#if BITM_HAS_WGMMA
    BITM_DYNAMIC_SHARED(shared);
    const Product &p = a.product;
    uint32_t begin = a.attention.first[blockIdx.y];
    uint32_t n_tokens = a.attention.first[blockIdx.y + 1] - begin;
    if (n_tokens == 0) return;
    size_t output = (size_t)blockIdx.x * HEAD_64;
    float *steps = (float *)shared;
    int32_t *code_sums = (int32_t *)(steps + 3 * BLOCK_64);
    uint4 *operands = (uint4 *)(code_sums + 3 * BLOCK_64);
    float *queries = (float *)operands, *keys = queries + BLOCK_64 * STRIDE_64;
    float *values = keys + BLOCK_64 * STRIDE_64, *sums = values + BLOCK_64 * STRIDE_64;
    float *scores = queries; /* in their place */

    fetch_operands(a, begin, output, operands);
    copy_commit();
    bool full = true; /* as in gemm_wgmma.cuh */
    if (threadIdx.x < BLOCK_64) {
        uint32_t t = begin + threadIdx.x;
#pragma unroll
        for (uint32_t k = 0; k < 3; k++) {
            const HeadLinear &linear = a.linears[k];
            steps[k * BLOCK_64 + threadIdx.x] = linear.step[t];
            code_sums[k * BLOCK_64 + threadIdx.x] = p.subtract_code_sum ? linear.code_sum[t] : 0;
            full = full && (linear.n_nonzero == NULL || threadIdx.x >= n_tokens ||
                            linear.n_nonzero[t] == p.n_columns);
        }
    }
    copy_wait<0>();
    bool dense = __syncthreads_and(full) != 0 && a.linears[0].n_nonzero != NULL;
    int32_t acc[3][32];
#pragma unroll
    for (int k = 0; k < 3; k++)
#pragma unroll
        for (int i = 0; i < 32; i++)
            acc[k][i] = 0;
    multiply_heads<BYTES>(a, dense ? p.n_terms - 1 : p.n_terms, operands, acc);
    __syncthreads(); /* operands are done with */
#pragma unroll
    for (uint32_t k = 0; k < 3; k++)
        finish_head(a, a.linears[k], output, dense, k < 2, steps + k * BLOCK_64,
                    code_sums + k * BLOCK_64, acc[k], queries + k * BLOCK_64 * STRIDE_64);
    __syncthreads();

    uint32_t i = threadIdx.x / 16 * QUERIES_64, j = threadIdx.x % 16 * KEYS_64;
    float products[QUERIES_64][KEYS_64];
#pragma unroll
    for (int half = 0; half < QUERIES_64; half += QUERIES_64 / 2)
        find_products_64<QUERIES_64 / 2>(queries + i + half, keys + j, products + half);
    __syncthreads(); /* queries and keys are done with */
    store_scores_64(products, a.attention.score_scale, scores + j * STRIDE_64 + i);
    __syncthreads();
    exponentials_64(scores, n_tokens, sums);
    __syncthreads();
    float context[QUERIES_64][KEYS_64] = {};
#pragma unroll 4
    for (uint32_t k = 0; k < n_tokens; k++)
        multiply_add_64<QUERIES_64>(scores + k * STRIDE_64 + i, values + k * STRIDE_64 + j,
                                    context);
    store_context_64(a.attention, begin, i, n_tokens, (uint32_t)output + j, sums + i, context);
#else
    (void)a;
#endif
}

} // namespace bitm

#endif
