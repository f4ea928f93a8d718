/* What gemm_norm_wgmma.cuh computes, where there are few tokens: its blocks, each with all outputs,
 * would be so few that reading the weights and the norm's long rows take most of the time.
 *
 * Here a cluster of four blocks has 8 tokens, and each block a quarter of the outputs.  All that it
 * reads is asked for at once.  The blocks hand out their results through each other's shared
 * memory, so that each gets whole rows of two tokens; a thread has four neighbouring columns of
 * one of them. */
#ifndef BITM_CUDA_GEMM_NORM_CLUSTER_CUH
#define BITM_CUDA_GEMM_NORM_CLUSTER_CUH

#include "gemm_norm_wgmma.cuh"

namespace bitm {

enum {
    CLUSTER_BLOCKS = 4,
    CLUSTER_TOKENS = TILE_ROWS,
    CLUSTER_ROWS = CLUSTER_TOKENS / CLUSTER_BLOCKS, /* of a block */
};

template <int N_> struct ClusterShape {
    enum : uint32_t {
        N = N_,
        OUTPUTS = N / CLUSTER_BLOCKS, /* of a block: 64 for each warpgroup */
        ROW_THREADS = N / 4,
        THREADS = CLUSTER_ROWS * ROW_THREADS,
        ROW = N + LANES, /* floats: 16 threads of either row read from different banks */
    };
};

struct ClusterNorm {
    ProductNorm of;
    uint32_t n_input_planes, n_weight_planes; /* that its terms name */
};

/* In a block's shared memory, before weights and inputs. */
template <int N> struct alignas(16) ClusterRows {
    float results[CLUSTER_ROWS][ClusterShape<N>::ROW], residual[CLUSTER_ROWS][ClusterShape<N>::ROW];
    float mean[CLUSTER_ROWS], factor[CLUSTER_ROWS];
    uint32_t greatest[CLUSTER_ROWS];    /* absolute value, as bits */
    int32_t n_bits[3][CLUSTER_ROWS][2]; /* of each plane that followers get; or the sum of codes */
    uint64_t operands_barrier, residual_barrier;
};

template <int N> static __host__ __device__ inline size_t cluster_shared_bytes(const ClusterNorm &a)
{
    size_t weights =
        (size_t)ClusterShape<N>::OUTPUTS * a.n_weight_planes * a.of.product.n_weight_pieces;
    size_t inputs = (size_t)CLUSTER_TOKENS * a.n_input_planes * a.of.product.n_input_pieces;
    return sizeof(ClusterRows<N>) + (weights + inputs) * PIECE_BYTES;
}

#if BITM_HAS_WGMMA

/* Starts to copy n_rows of each plane; returns how many bytes that are.  One thread does it. */
static __device__ inline uint32_t copy_planes(const uint4 *from, size_t stride, uint32_t n_planes,
                                              uint32_t row, uint32_t n_rows, uint32_t n_pieces,
                                              uint4 *to, uint64_t *barrier)
{
    uint32_t n = n_rows * n_pieces;
    from += piece_place(row, 0, n_pieces);
    for (uint32_t plane = 0; plane < n_planes; plane++)
        copy_bulk(to + plane * n, from + plane * stride, n * PIECE_BYTES, barrier);
    return n_planes * n * PIECE_BYTES;
}

/* acc = the sum over n_terms of a warpgroup's 64 outputs and the cluster's tokens. */
template <int N, bool BYTES>
static __device__ inline void multiply_cluster_terms(const Product &p, uint32_t n_terms,
                                                     const uint4 *weights, const uint4 *inputs,
                                                     int32_t acc[4])
{
    weights += threadIdx.x / 128 * 64 * p.n_weight_pieces;
    for (uint32_t t = 0; t < n_terms; t++) {
        const Term &term = p.terms[t];
        const uint4 *of_weights =
            weights + term.weight_plane * ClusterShape<N>::OUTPUTS * p.n_weight_pieces;
        const uint4 *of_inputs = inputs + term.input_plane * CLUSTER_TOKENS * p.n_input_pieces;
        if (BYTES && term.is_signed)
            multiply_rows<BYTES, true, CLUSTER_TOKENS>(p, of_inputs, of_weights, acc);
        else
            multiply_rows<BYTES, false, CLUSTER_TOKENS>(p, of_inputs, of_weights, acc);
        wgmma_wait<0>();
#pragma unroll
        for (int i = 0; i < 4; i++)
            acc[i] = (int32_t)((uint32_t)acc[i] * (uint32_t)term.multiplier);
    }
}

/* Mean and factor of a block's rows, 16 threads of the first warp each. */
template <int N> static __device__ inline void find_moments(float eps, ClusterRows<N> *rows)
{
    uint32_t row = threadIdx.x / LANES, l = threadIdx.x % LANES;
    float value[N / LANES], mean;
#pragma unroll
    for (int i = 0; i < N / LANES; i++)
        value[i] = rows->results[row][l + i * LANES] + rows->residual[row][l + i * LANES];
    float factor = centre<N / LANES>(eps, value, &mean);
    if (l == 0) {
        rows->mean[row] = mean;
        rows->factor[row] = factor;
    }
}

/* Four columns of a norm. */
struct NormFour {
    float4 gain, bias;
};

static __device__ inline float4 four_at(const float *x, uint32_t column)
{
    return x != NULL ? *(const float4 *)(x + column) : make_float4(0.0F, 0.0F, 0.0F, 0.0F);
}

/* values: a thread's four columns of a row, normalized. */
template <int N>
static __device__ inline void normalize_four(const ClusterRows<N> &rows, const NormFour &norm,
                                             uint32_t row, uint32_t column, float values[4])
{
    float4 x = *(const float4 *)(rows.results[row] + column);
    float4 residual = *(const float4 *)(rows.residual[row] + column);
    float mean = rows.mean[row], factor = rows.factor[row];
    values[0] = fmaf((x.x + residual.x - mean) * factor, norm.gain.x, norm.bias.x);
    values[1] = fmaf((x.y + residual.y - mean) * factor, norm.gain.y, norm.bias.y);
    values[2] = fmaf((x.z + residual.z - mean) * factor, norm.gain.z, norm.bias.z);
    values[3] = fmaf((x.w + residual.w - mean) * factor, norm.gain.w, norm.bias.w);
}

/* The codes of a thread's four columns as bytes; returns their sum. */
static __device__ inline int32_t encode_four_bytes(const Encoding &e, size_t token, uint32_t column,
                                                   const float values[4], float factor,
                                                   float max_code)
{
    uint32_t *low = (uint32_t *)(e.planes + piece_place(token, column / PIECE_BYTES, e.n_pieces)) +
                    column % PIECE_BYTES / 4;
    int32_t c[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        c[i] = free_code(values[i], factor, max_code);
    *low = four_bytes(c[0], c[1], c[2], c[3]);
    if (e.form == FORM_I16)
        low[e.plane_stride * 4] = four_bytes(c[0] >> 8, c[1] >> 8, c[2] >> 8, c[3] >> 8);
    return c[0] + c[1] + c[2] + c[3];
}

/* The bits of a thread's four columns: 8 neighbouring threads have a word.  n_bits: as of
 * encode_bits. */
template <int RULE>
static __device__ inline void encode_four_bits(const Encoding &e, size_t token, uint32_t column,
                                               const float values[4], const float4 &shift,
                                               int32_t n_bits[2])
{
    uint32_t planes[2] = {0, 0}, unit = threadIdx.x % 8;
    add_bits<RULE>(e, values[0] + shift.x, 0, planes);
    add_bits<RULE>(e, values[1] + shift.y, 1, planes);
    add_bits<RULE>(e, values[2] + shift.z, 2, planes);
    add_bits<RULE>(e, values[3] + shift.w, 3, planes);
    finish_bits<RULE>(e, planes);
    uint32_t *word = word_at(e, token, column);
#pragma unroll
    for (uint32_t p = 0; p < 2; p++) {
        if (p >= n_planes_of(e)) continue;
        uint32_t bits = (planes[p] & 15) << unit * 4;
        n_bits[p] = __popc(bits);
        for (int step = 1; step < 8; step *= 2)
            bits |= __shfl_xor_sync(ALL_THREADS, bits, step);
        if (unit == 0) word[p * e.plane_stride * 4] = bits;
    }
}

/* Encodes a block's rows, of which a thread has four columns, for a follower; what all of a row
 * amount to is added up in n_bits [2]. */
static __device__ inline void encode_four(const Encoding &e, size_t token, uint32_t column,
                                          const float values[4], const float4 &shift,
                                          float greatest, int32_t *n_bits)
{
    int32_t n[2] = {0, 0};
    if (e.quantizer.kind == KIND_NONE) {
        float max_code = e.max_code, step;
        float factor = free_factor(greatest, max_code, &step);
        n[0] = encode_four_bytes(e, token, column, values, factor, max_code);
    } else {
        BitsRule rule = bits_rule(e);
        if (rule == RULE_SIGNS)
            encode_four_bits<RULE_SIGNS>(e, token, column, values, shift, n);
        else if (rule == RULE_TWO_LEVELS)
            encode_four_bits<RULE_TWO_LEVELS>(e, token, column, values, shift, n);
        else
            encode_four_bits<RULE_LEVELS>(e, token, column, values, shift, n);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        n[i] = warp_sum(n[i]);
        if (threadIdx.x % WARP == 0) atomicAdd(n_bits + i, n[i]);
    }
}

/* What is known of a row that has been encoded. */
static __device__ inline void store_row_facts(const Encoding &e, size_t token, float greatest,
                                              const int32_t n_bits[2])
{
    float step = e.quantizer.step;
    int32_t sum = n_bits[0];
    if (e.quantizer.kind == KIND_NONE)
        (void)free_factor(greatest, e.max_code, &step);
    else
        sum = sum_of_planes(e, n_bits[0], n_bits[1]);
    store_token_facts(e, token, step, sum, (uint32_t)n_bits[1]);
}

#endif

/* Blocks follow each other in clusters. */
template <int N, bool BYTES>
static __global__ void __launch_bounds__(ClusterShape<N>::THREADS)
    gemm_norm_cluster_kernel(ClusterNorm a)
{
#if BITM_HAS_WGMMA
    typedef ClusterShape<N> S;
    BITM_DYNAMIC_SHARED(shared);
    const Product &p = a.of.product;
    const Norm &norm = a.of.norm;
    const Followers &followers = a.of.followers;
    ClusterRows<N> *rows = (ClusterRows<N> *)shared;
    uint4 *weights = (uint4 *)(rows + 1);
    uint4 *inputs = weights + S::OUTPUTS * a.n_weight_planes * p.n_weight_pieces;
    uint32_t rank = blockIdx.x % CLUSTER_BLOCKS;
    uint32_t token = blockIdx.x / CLUSTER_BLOCKS * CLUSTER_TOKENS, output = rank * S::OUTPUTS;
    uint32_t n_bytes = 0;
    if (threadIdx.x == 0) {
        init_barrier(&rows->operands_barrier);
        init_barrier(&rows->residual_barrier);
        n_bytes = copy_planes(p.weights, p.weight_stride, a.n_weight_planes, output, S::OUTPUTS,
                              p.n_weight_pieces, weights, &rows->operands_barrier);
    }
    if (threadIdx.x < CLUSTER_ROWS) rows->greatest[threadIdx.x] = 0;
    if (threadIdx.x < 3 * CLUSTER_ROWS * 2) (&rows->n_bits[0][0][0])[threadIdx.x] = 0;
    /* Of the model: a thread's two outputs, and its four columns of the norm. */
    uint32_t place = threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4;
    float scale[2], bias[2];
    int32_t ones[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        scale[i] = p.epilogue.row_scale[output + place + i * 8];
        bias[i] = p.epilogue.bias[output + place + i * 8];
        if (p.n_nonzero != NULL) ones[i] = (int32_t)p.row_ones[output + place + i * 8];
    }
    uint32_t row = threadIdx.x / S::ROW_THREADS, column = threadIdx.x % S::ROW_THREADS * 4;
    const NormFour of_norm = {four_at(norm.gain, column), four_at(norm.bias, column)};
    float4 shifts[3];
#pragma unroll
    for (uint32_t k = 0; k < 3; k++)
        shifts[k] = four_at(k < followers.n ? followers.encodings[k].shift : NULL, column);
    greet_cluster();

    wait_for_kernels_before(p.n_tokens);
    if (threadIdx.x == 0) {
        n_bytes += copy_planes(p.inputs, p.input_stride, a.n_input_planes, token, CLUSTER_TOKENS,
                               p.n_input_pieces, inputs, &rows->operands_barrier);
        expect_bytes(&rows->operands_barrier, n_bytes);
        for (uint32_t r = 0; r < CLUSTER_ROWS; r++)
            copy_bulk(rows->residual[r],
                      norm.residual + (size_t)(token + rank * CLUSTER_ROWS + r) * N,
                      N * sizeof(float), &rows->residual_barrier);
        expect_bytes(&rows->residual_barrier, CLUSTER_ROWS * N * sizeof(float));
    }
    uint32_t two = threadIdx.x % 4 * 2; /* tokens */
    float2 step = *(const float2 *)(p.epilogue.tokens.step + token + two);
    int2 code_sum = make_int2(0, 0);
    if (p.subtract_code_sum) code_sum = *(const int2 *)(p.epilogue.tokens.code_sum + token + two);
    bool full = p.n_nonzero != NULL &&
                (threadIdx.x >= CLUSTER_TOKENS || p.n_nonzero[token + threadIdx.x] == p.n_columns);
    bool dense = __syncthreads_and(full) != 0; /* as in gemm_wgmma.cuh */
    wait_for_phase(&rows->operands_barrier, 0);
    int32_t acc[4] = {0, 0, 0, 0};
    multiply_cluster_terms<N, BYTES>(p, dense ? p.n_terms - 1 : p.n_terms, weights, inputs, acc);

    /* A thread's two tokens are the rows of one block. */
    wait_for_cluster(); /* all blocks have begun */
    uint32_t to = place_in_block(&rows->results[0][output + place], two / CLUSTER_ROWS);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int32_t x = acc[i * 2], y = acc[i * 2 + 1];
        if (dense) {
            x = (x + ones[i]) * p.terms[1].multiplier;
            y = (y + ones[i]) * p.terms[1].multiplier;
        }
        store_in_block(to + i * 8 * sizeof(float),
                       fmaf((float)(x - code_sum.x), scale[i] * step.x, bias[i]));
        store_in_block(to + (S::ROW + i * 8) * sizeof(float),
                       fmaf((float)(y - code_sum.y), scale[i] * step.y, bias[i]));
    }
    arrive_at_cluster();
    wait_for_cluster();

    wait_for_phase(&rows->residual_barrier, 0);
    if (threadIdx.x < CLUSTER_ROWS * LANES) find_moments<N>(norm.eps, rows);
    __syncthreads();
    size_t t = token + rank * CLUSTER_ROWS + row;
    float values[4];
    normalize_four<N>(*rows, of_norm, row, column, values);
    *(float4 *)(norm.y + t * N + column) = make_float4(values[0], values[1], values[2], values[3]);
    float greatest = 0.0F;
#pragma unroll
    for (int i = 0; i < 4; i++)
        greatest = greater_abs(greatest, values[i]);
    greatest = warp_max(greatest);
    if (threadIdx.x % WARP == 0) atomicMax(&rows->greatest[row], __float_as_uint(greatest));
    __syncthreads();
    greatest = __uint_as_float(rows->greatest[row]);
#pragma unroll
    for (uint32_t k = 0; k < 3; k++)
        if (k < followers.n)
            encode_four(followers.encodings[k], t, column, values, shifts[k], greatest,
                        rows->n_bits[k][row]);
    __syncthreads();
    if (column != 0) return;
    for (uint32_t k = 0; k < followers.n; k++)
        store_row_facts(followers.encodings[k], t, greatest, rows->n_bits[k][row]);
    if (followers.later.counts) begin_token(followers.later, t);
#else
    (void)a;
#endif
}

} // namespace bitm

#endif
