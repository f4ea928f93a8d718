/* Query, key, value and attention of short sequences in one kernel, on Hopper.
 *
 * A block has one head of one sequence, and a group of threads, a warpgroup, for every 64 tokens:
 * one, or where attention runs on tensor cores, in any order or of codes, at most two.  The three
 * products of a group, of 64 outputs x 64 tokens, are so small that all their operands lie in
 * shared memory at once.  When they are done their results become floats in the operands' place, or
 * pairs of float16s, or codes, where the steps of attention64.cuh, attention_tensor.cuh or
 * attention_bytes64.cuh take them: none of the three float arrays goes through memory, nor does the
 * context where it leaves as bits. */
#ifndef BITM_CUDA_ATTEND_WGMMA_CUH
#define BITM_CUDA_ATTEND_WGMMA_CUH

#include "attention_bytes64.cuh"
#include "gemm_wgmma_bytes.cuh"

namespace bitm {

enum { ATTEND_FLOATS, ATTEND_TENSOR, ATTEND_CODES };

/* What differs between query, key and value: inputs too, as shifts before a quantizer may. */
struct HeadLinear {
    const uint4 *weights;      /* planes of tiles */
    uint32_t set;              /* of inputs */
    const uint32_t *n_nonzero; /* of the inputs; NULL: see Product */
    const float *step;
    const int32_t *code_sum;
    const float *row_scale, *bias;
    const uint32_t *row_ones;
};

struct Attend {
    HeadLinear linears[3];
    const uint4 *inputs[3]; /* sets of planes of tiles; linears may share one */
    Product product;        /* what they share: sizes and terms */
    uint32_t n_sets, n_input_planes, n_weight_planes;
    uint32_t n_groups; /* of 64 tokens */
    Attention attention;
};

/* Of a group's three linears: steps and sums of codes of its tokens, and the greatest absolute
 * values of attention_tensor.cuh. */
struct alignas(16) GroupFacts {
    float steps[3][BLOCK_64];
    int32_t code_sums[3][BLOCK_64];
    uint32_t greatest[3][WARPS_64];
    uint64_t barrier; /* the first group's: of the block's operands */
};

/* What attention of codes keeps in the operands' place, for a group. */
struct GroupCodes {
    ByteStage stage;
    uint4 queries[CODES_64];
    float factors[2][BLOCK_64], query_steps[BLOCK_64];    /* factors: of queries and keys */
    float greatest[2][WARPS_64][BLOCK_64];                /* of their tokens */
    float value_greatest[BLOCK_64], value_steps[HEAD_64]; /* of components */
};

/* Pieces of a group's inputs: planes of sets. */
static __host__ __device__ inline uint32_t group_pieces(const Attend &a)
{
    return BLOCK_64 * a.n_sets * a.n_input_planes * a.product.n_input_pieces;
}

/* The facts of groups; then query, key, value, and two sums, or for each group pairs of float16s;
 * the operands before them, inputs of groups and then weights, and the scores after. */
static __host__ __device__ inline size_t attend_shared_bytes(const Attend &a)
{
    size_t pieces = (size_t)a.n_groups * group_pieces(a) +
                    (size_t)BLOCK_64 * 3 * a.n_weight_planes * a.product.n_weight_pieces;
    size_t floats = sizeof(float) * (3 * STRIDE_64 * BLOCK_64 + 2 * BLOCK_64);
    size_t halves = (size_t)a.n_groups * 3 * OPERAND_64 * PIECE_BYTES;
    size_t most = floats > halves ? floats : halves;
    size_t codes = a.n_groups * sizeof(GroupCodes);
    most = most > codes ? most : codes;
    most = most > pieces * PIECE_BYTES ? most : pieces * PIECE_BYTES;
    return a.n_groups * sizeof(GroupFacts) + most;
}

#if BITM_HAS_WGMMA

/* The first token of a group; one without tokens reads another's. */
static __device__ inline uint32_t group_token(uint32_t begin, uint32_t n_tokens, uint32_t group)
{
    return begin + (group * BLOCK_64 < n_tokens ? group * BLOCK_64 : 0);
}

/* Starts to copy the weights of a head: one thread for all. */
static __device__ inline void fetch_weights(const Attend &a, size_t output, uint4 *to,
                                            uint64_t *barrier)
{
    const Product &p = a.product;
    uint32_t n = BLOCK_64 * p.n_weight_pieces;
    output = piece_place(output, 0, p.n_weight_pieces);
#pragma unroll 1 /* little code, which one thread runs */
    for (uint32_t k = 0; k < 3; k++)
#pragma unroll 1
        for (uint32_t plane = 0; plane < a.n_weight_planes; plane++, to += n)
            copy_bulk(to, a.linears[k].weights + plane * p.weight_stride + output, n * PIECE_BYTES,
                      barrier);
}

/* Copies planes [first, last) of the inputs: complete after the block's barrier and a phase of the
 * other one, of which n_bytes are under way.  Where rows begin a tile one thread copies for all,
 * otherwise each half a row of its group. */
template <int GROUPS>
static __device__ inline void fetch_inputs(const Attend &a, uint32_t begin, uint32_t n_tokens,
                                           uint32_t first, uint32_t last, uint32_t n_bytes,
                                           uint4 *to, uint64_t *barrier)
{
    const Product &p = a.product;
    uint32_t n = BLOCK_64 * p.n_input_pieces, group = GROUPS > 1 ? threadIdx.y : 0;
    bool whole = begin % TILE_ROWS == 0, leads = threadIdx.x == 0 && group == 0;
    if (whole && leads) {
        for (uint32_t g = 0; g < GROUPS; g++) {
            size_t row = piece_place(group_token(begin, n_tokens, g), 0, p.n_input_pieces);
            uint4 *set = to + g * group_pieces(a);
#pragma unroll 1
            for (uint32_t s = 0; s < a.n_sets; s++, set += a.n_input_planes * n)
#pragma unroll 1
                for (uint32_t plane = first; plane < last; plane++, n_bytes += n * PIECE_BYTES)
                    copy_bulk(set + plane * n, a.inputs[s] + plane * p.input_stride + row,
                              n * PIECE_BYTES, barrier);
        }
    }
    if (leads) expect_bytes(barrier, n_bytes);
    if (whole) return;
    uint32_t row = threadIdx.x % BLOCK_64, half = threadIdx.x / BLOCK_64;
    size_t from_row =
        piece_place(group_token(begin, n_tokens, group) + row, half, p.n_input_pieces);
    uint4 *set = to + group * group_pieces(a) + piece_place(row, half, p.n_input_pieces);
#pragma unroll 1
    for (uint32_t s = 0; s < a.n_sets; s++, set += a.n_input_planes * n)
#pragma unroll 1
        for (uint32_t plane = first; plane < last; plane++) {
            const uint4 *from = a.inputs[s] + plane * p.input_stride + from_row;
#pragma unroll 3 /* 768 bits are 6 pieces */
            for (uint32_t piece = 0; piece < p.n_input_pieces; piece += THREADS_64 / BLOCK_64)
                copy_async(set + plane * n + piece * TILE_ROWS, from + piece * TILE_ROWS);
        }
    copy_commit();
    copy_wait<0>();
}

/* acc += the products of a term of the three linears. */
template <bool BYTES, bool SIGNED>
static __device__ inline void multiply_term(const Attend &a, const Term &term, const uint4 *inputs,
                                            const uint4 *weights, int32_t acc[3][32])
{
    const Product &p = a.product;
    uint32_t input_pieces = BLOCK_64 * p.n_input_pieces;
    uint32_t weight_pieces = BLOCK_64 * p.n_weight_pieces;
#pragma unroll
    for (uint32_t k = 0; k < 3; k++)
        multiply_rows<BYTES, SIGNED, BLOCK_64>(
            p, inputs + (a.linears[k].set * a.n_input_planes + term.input_plane) * input_pieces,
            weights + (k * a.n_weight_planes + term.weight_plane) * weight_pieces, acc[k]);
    wgmma_wait<0>();
}

/* acc = the sums over n_terms of the three linears, the last not multiplied by its multiplier. */
template <bool BYTES>
static __device__ inline void multiply_heads(const Attend &a, uint32_t n_terms, const uint4 *inputs,
                                             const uint4 *weights, int32_t acc[3][32])
{
    for (uint32_t t = 0;;) {
        const Term &term = a.product.terms[t];
        if (BYTES && term.is_signed)
            multiply_term<BYTES, true>(a, term, inputs, weights, acc);
        else
            multiply_term<BYTES, false>(a, term, inputs, weights, acc);
        if (++t == n_terms) break;
#pragma unroll
        for (uint32_t k = 0; k < 3; k++)
#pragma unroll
            for (int i = 0; i < 32; i++)
                acc[k][i] = (int32_t)((uint32_t)acc[k][i] * (uint32_t)term.multiplier);
    }
}

/* What makes floats of the results of a head's linear. */
struct HeadFacts {
    float scale[2], bias[2];       /* of a thread's two components */
    int32_t multiplier, offset[2]; /* of sums */
    const float *step;             /* of the block's tokens */
    const int32_t *code_sum;
};

/* dense: the last term is not multiplied, but known. */
static __device__ inline HeadFacts head_facts(const Attend &a, uint32_t k, size_t output,
                                              bool dense, const GroupFacts &group)
{
    const HeadLinear &linear = a.linears[k];
    const Term *last = &a.product.terms[a.product.n_terms - 1];
    uint32_t first = threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4;
    HeadFacts facts;
    facts.multiplier = dense ? last[-1].multiplier * last->multiplier : last->multiplier;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        facts.scale[half] = linear.row_scale[output + first + half * 8];
        facts.bias[half] = linear.bias[output + first + half * 8];
        int32_t ones = dense ? (int32_t)linear.row_ones[output + first + half * 8] : 0;
        facts.offset[half] = ones * last->multiplier;
    }
    facts.step = group.steps[k];
    facts.code_sum = group.code_sums[k];
    return facts;
}

/* Pair number i of a thread's results: two neighbouring tokens, as acc has them. */
static __device__ inline float2 finished_pair(const HeadFacts &f, int i, const int32_t acc[32])
{
    uint32_t t = i / 2 * 8 + threadIdx.x % 4 * 2;
    float2 steps = *(const float2 *)(f.step + t);
    int2 code_sums = *(const int2 *)(f.code_sum + t);
    int32_t x = acc[i * 2] * f.multiplier + (f.offset[i % 2] - code_sums.x);
    int32_t y = acc[i * 2 + 1] * f.multiplier + (f.offset[i % 2] - code_sums.y);
    return make_float2(fmaf((float)x, f.scale[i % 2] * steps.x, f.bias[i % 2]),
                       fmaf((float)y, f.scale[i % 2] * steps.y, f.bias[i % 2]));
}

/* The results of a head's linear as floats: [component][token] if turned, else [token][component].
 */
static __device__ inline void finish_head(const HeadFacts &facts, bool turned,
                                          const int32_t acc[32], float *to)
{
    uint32_t first = threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4, two = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 16; i++) {
        uint32_t d = first + i % 2 * 8, t = i / 2 * 8 + two;
        float *place = to + (turned ? d * STRIDE_64 + t : t * STRIDE_64 + d);
        float2 pair = finished_pair(facts, i, acc);
        if (turned) {
            *(float2 *)place = pair;
        } else {
            place[0] = pair.x;
            place[STRIDE_64] = pair.y;
        }
    }
}

/* An operand of attention_tensor.cuh: a thread's two components of 8 tokens are those of two tiles
 * of each part, turned. */
static __device__ inline void store_head_halves(const float values[32], float scale, uint4 *to)
{
    to += threadIdx.x / WARP * 2 * NEXT_PIECE + row_of_tiles(NEXT_PIECE, PART_64);
#pragma unroll
    for (int tile = 0; tile < BLOCK_64 / TILE_ROWS; tile++) {
        uint32_t tiles[4];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float *pair = values + tile * 4 + half * 2;
            split_pair(pair[0] * scale, pair[1] * scale, &tiles[half], &tiles[2 + half]);
        }
        store_tiles_turned(to + tile * NEXT_TILES, tiles);
    }
}

/* The same, left in registers. */
static __device__ inline void finish_values(const HeadFacts &facts, const int32_t acc[32],
                                            float values[32])
{
#pragma unroll
    for (int i = 0; i < 16; i++) {
        float2 pair = finished_pair(facts, i, acc);
        values[i * 2] = pair.x;
        values[i * 2 + 1] = pair.y;
    }
}

/* Results of tokens that are not, as of the first n are, become zeros. */
static __device__ inline void clear_rest(uint32_t n, float values[32])
{
    if (n >= BLOCK_64) return;
#pragma unroll
    for (uint32_t i = 0; i < 32; i++)
        if (i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2 >= n) values[i] = 0.0F;
}

/* Attention on tensor cores, from the results of a group's three linears; the group has the
 * sequence's tokens from `first` on. */
template <int GROUPS>
static __device__ inline void
attend_tensor(const Attend &a, uint32_t begin, uint32_t n_tokens, uint32_t first, size_t output,
              bool dense, const int32_t acc[3][32], GroupFacts *groups, uint4 *operands)
{
    uint32_t group = first / BLOCK_64, n = first < n_tokens ? n_tokens - first : 0;
    uint4 *mine = operands + group * 3 * OPERAND_64;
    float values[3][32];
#pragma unroll
    for (uint32_t k = 0; k < 3; k++) {
        finish_values(head_facts(a, k, output, dense, groups[group]), acc[k], values[k]);
        clear_rest(n, values[k]);
        tell_greatest(values[k], groups[group].greatest[k]);
    }
    __syncthreads(); /* operands of the linears are done with */
#pragma unroll
    for (uint32_t k = 0; k < 3; k++)
        store_head_halves(values[k], half_scale(groups[group].greatest[k]).to,
                          mine + k * OPERAND_64);
    wait_for_operands();
    if (n == 0) return;
    QueryState state;
    begin_queries(&state);
    HalfScale query_scale = half_scale(groups[group].greatest[0]);
    uint32_t stage = 0;
    do {
        const uint4 *keys = operands + (stage * 3 + 1) * OPERAND_64;
        add_keys(mine, keys, keys + OPERAND_64, n_tokens - stage * BLOCK_64,
                 exponent_factor(a.attention, query_scale, half_scale(groups[stage].greatest[1])),
                 half_scale(groups[stage].greatest[2]).from, &state);
    } while (++stage < GROUPS && stage * BLOCK_64 < n_tokens);
    uint32_t row = threadIdx.x / WARP * QUERIES_A_WARP;
    store_context_tensor(a.attention, begin + first + row, row < n ? n - row : 0, (uint32_t)output,
                         state);
}

/* Of two threads each keeps half of its 2 N numbers, the greater ones of both. */
template <int N> static __device__ inline void keep_half(bool upper, float most[16])
{
#pragma unroll
    for (int i = 0; i < N; i++) {
        float other = __shfl_xor_sync(ALL_THREADS, upper ? most[i] : most[i + N], N * 2);
        most[i] = fmaxf(upper ? most[i + N] : most[i], other);
    }
}

/* Tells the group the greatest absolute value of each token among a warp's 16 components, of which
 * 8 threads have two each. */
static __device__ inline void tell_token_greatest(const float values[32], float greatest[BLOCK_64])
{
    float most[16];
#pragma unroll
    for (int i = 0; i < 16; i++) {
        const float *first = values + i / 2 * 4 + i % 2;
        most[i] = greater_abs(fabsf(first[0]), first[2]);
    }
    keep_half<8>((threadIdx.x & 16) != 0, most);
    keep_half<4>((threadIdx.x & 8) != 0, most);
    keep_half<2>((threadIdx.x & 4) != 0, most);
    uint32_t token = threadIdx.x % 4 * 2 + threadIdx.x / 4 % 2 * 8 + threadIdx.x / 8 % 2 * 16 +
                     threadIdx.x / 16 % 2 * 32;
    *(float2 *)(greatest + token) = make_float2(most[0], most[1]);
}

/* The greatest absolute values of a thread's two components among the group's tokens. */
static __device__ inline float2 component_greatest(const float values[32])
{
    float most[2] = {0.0F, 0.0F};
#pragma unroll
    for (int i = 0; i < 32; i++)
        most[i / 2 % 2] = greater_abs(most[i / 2 % 2], values[i]);
    return make_float2(warp_max<4>(most[0]), warp_max<4>(most[1]));
}

/* Codes of queries or keys; a tile has 16 components of a warp, in an order of its own. */
static __device__ inline void store_token_codes(const float values[32], const float *factors,
                                                uint4 *to)
{
    uint32_t lane = threadIdx.x % WARP;
    to += (lane / TILE_ROWS * CODE_PIECES + threadIdx.x / WARP) * TILE_ROWS + lane % TILE_ROWS;
#pragma unroll
    for (int four = 0; four < 2; four++) {
        uint32_t tiles[4];
#pragma unroll
        for (int tile = 0; tile < 4; tile++) {
            int t = four * 4 + tile;
            float2 factor = *(const float2 *)(factors + t * TILE_ROWS + lane % 4 * 2);
            const float *x = values + t * 4;
            tiles[tile] = join_bytes(byte_code(x[0], factor.x), byte_code(x[2], factor.x),
                                     byte_code(x[1], factor.y), byte_code(x[3], factor.y));
        }
        store_tiles_turned(to + four * 4 * CODE_PIECES * TILE_ROWS, tiles);
    }
}

/* Codes of values; factors: of a thread's two components. */
static __device__ inline void store_value_codes(const float values[32], const float factors[2],
                                                uint4 *to)
{
    uint32_t *words = (uint32_t *)to + threadIdx.x % WARP +
                      threadIdx.x / WARP * 2 * CODE_PIECES * CODE_TILE_WORDS;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int piece = 0; piece < CODE_PIECES; piece++) {
            const float *x = values + piece * 8 + half * 2;
            words[(half * CODE_PIECES + piece) * CODE_TILE_WORDS] =
                join_bytes(byte_code(x[0], factors[half]), byte_code(x[1], factors[half]),
                           byte_code(x[4], factors[half]), byte_code(x[5], factors[half]));
        }
}

/* Attention of codes, likewise. */
template <int GROUPS>
static __device__ inline void
attend_codes(const Attend &a, uint32_t begin, uint32_t n_tokens, uint32_t first, size_t output,
             bool dense, const int32_t acc[3][32], const GroupFacts *groups, GroupCodes *codes)
{
    uint32_t group = first / BLOCK_64, n = first < n_tokens ? n_tokens - first : 0;
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    GroupCodes *mine = codes + group;
    float values[3][32];
#pragma unroll
    for (uint32_t k = 0; k < 3; k++)
        finish_values(head_facts(a, k, output, dense, groups[group]), acc[k], values[k]);
    clear_rest(n, values[2]);
    __syncthreads(); /* operands of the linears are done with */
    tell_token_greatest(values[0], mine->greatest[0][warp]);
    tell_token_greatest(values[1], mine->greatest[1][warp]);
    float2 most = component_greatest(values[2]);
    uint32_t component = warp * 16 + lane / 4;
    if (lane % 4 == 0) {
        mine->value_greatest[component] = most.x;
        mine->value_greatest[component + 8] = most.y;
    }
    __syncthreads();
    uint32_t k = threadIdx.x / BLOCK_64, token = threadIdx.x % BLOCK_64;
    float greatest = 0.0F, step, value_factors[2];
#pragma unroll
    for (int w = 0; w < WARPS_64; w++)
        greatest = fmaxf(greatest, mine->greatest[k][w][token]);
    mine->factors[k][token] = free_factor(greatest, MAX_BYTE, &step);
    (k == 0 ? mine->query_steps : mine->stage.key_steps)[token] = step;
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        greatest = 0.0F;
#pragma unroll
        for (int g = 0; g < GROUPS; g++)
            greatest = fmaxf(greatest, codes[g].value_greatest[component + half * 8]);
        value_factors[half] = free_factor(greatest, MAX_BYTE, &step);
        if (lane % 4 == 0) mine->value_steps[component + half * 8] = step;
    }
    __syncthreads();
    store_token_codes(values[0], mine->factors[0], mine->queries);
    store_token_codes(values[1], mine->factors[1], mine->stage.keys);
    store_value_codes(values[2], value_factors, mine->stage.values);
    wait_for_operands();
    if (n == 0) return;
    ByteQueries queries;
    begin_byte_queries(mine->query_steps, a.attention.score_scale, &queries);
    float scores[GROUPS][32];
#pragma unroll
    for (uint32_t g = 0; g < GROUPS; g++)
        if (g * BLOCK_64 < n_tokens) {
            find_byte_scores(mine->queries, codes[g].stage, n_tokens - g * BLOCK_64, queries.steps,
                             scores[g]);
            take_greatest(scores[g], queries.greatest);
        }
    join_greatest(&queries);
#pragma unroll
    for (uint32_t g = 0; g < GROUPS; g++)
        if (g * BLOCK_64 < n_tokens) add_byte_stage(scores[g], codes[g].stage, &queries);
    uint32_t row = warp * QUERIES_A_WARP;
    store_byte_context(a.attention, begin + first + row, row < n ? n - row : 0, (uint32_t)output,
                       mine->value_steps, queries);
}

#endif

/* A block has THREADS_64 x GROUPS threads.  ATTENTION: of floats in the canonical order, with one
 * group, where the block's attention is that of QUERIES of its tokens, 64, or 16 where there are so
 * few heads that several blocks can have the same; of floats as attention_tensor.cuh has it; or of
 * codes. */
template <bool BYTES, int ATTENTION, int GROUPS, int QUERIES>
static __global__ void __launch_bounds__(THREADS_64 *GROUPS, (BYTES ? 3 : 4) / GROUPS)
    attend_kernel(Attend a)
{
#if BITM_HAS_WGMMA
    BITM_DYNAMIC_SHARED(shared);
    const Product &p = a.product;
    uint32_t begin = a.attention.first[blockIdx.y], end = a.attention.first[blockIdx.y + 1];
    size_t output = (size_t)blockIdx.x * HEAD_64;
    uint32_t group = GROUPS > 1 ? threadIdx.y : 0, first = group * BLOCK_64;
    GroupFacts *groups = (GroupFacts *)shared, *mine = groups + group;
    uint4 *operands = (uint4 *)(groups + GROUPS), *inputs = operands + group * group_pieces(a);
    uint4 *weights = operands + GROUPS * group_pieces(a);
    float *queries = (float *)operands, *keys = queries + BLOCK_64 * STRIDE_64;
    float *values = keys + BLOCK_64 * STRIDE_64, *sums = values + BLOCK_64 * STRIDE_64;
    float *scores = queries; /* in their place */
    uint32_t query = blockIdx.z * QUERIES;
    if (begin + query >= end) { /* known since the first kernel */
        wait_for_kernels_before(p.n_tokens);
        return;
    }
    uint32_t n_tokens = end - begin;
    if (threadIdx.x == 0 && group == 0) {
        init_barrier(&groups->barrier);
        fetch_weights(a, output, weights, &groups->barrier);
    }
    wait_for_kernels_before(p.n_tokens);

    /* As in gemm_wgmma.cuh: the last plane of signs is that of the last term, which is known where
     * no sign is 0. */
    bool has_last = a.linears[0].n_nonzero == NULL, full = true;
    uint32_t n_planes = a.n_input_planes, n_first = has_last ? n_planes : n_planes - 1;
    /* Read at once and used later, so that nothing waits for one after the other: half of the
     * threads have steps, half sums of codes. */
    uint32_t token = group_token(begin, n_tokens, group), t = threadIdx.x % BLOCK_64;
    uint32_t facts[3], counts[3];
#pragma unroll
    for (uint32_t k = 0; k < 3; k++) {
        const HeadLinear &linear = a.linears[k];
        const void *from = threadIdx.x < BLOCK_64 ? (const void *)linear.step : linear.code_sum;
        facts[k] = ((const uint32_t *)from)[token + t];
        counts[k] = has_last ? 0 : linear.n_nonzero[token + t];
    }
    uint32_t weight_bytes = BLOCK_64 * 3 * a.n_weight_planes * p.n_weight_pieces * PIECE_BYTES;
    fetch_inputs<GROUPS>(a, begin, n_tokens, 0, n_first, weight_bytes, operands, &groups->barrier);
#pragma unroll
    for (uint32_t k = 0; k < 3; k++) {
        if (threadIdx.x < BLOCK_64)
            mine->steps[k][t] = __uint_as_float(facts[k]);
        else
            mine->code_sums[k][t] = p.subtract_code_sum ? (int32_t)facts[k] : 0;
        full &= (first + t >= n_tokens) | (counts[k] == p.n_columns);
    }
    bool dense = __syncthreads_and(full) != 0 && !has_last;
    wait_for_phase(&groups->barrier, 0);
    if (!dense && !has_last) {
        __syncthreads(); /* nobody waits for the first phase any more */
        fetch_inputs<GROUPS>(a, begin, n_tokens, n_first, n_planes, 0, operands, &groups->barrier);
        __syncthreads();
        wait_for_phase(&groups->barrier, 1);
    }
    int32_t acc[3][32];
#pragma unroll
    for (int k = 0; k < 3; k++)
#pragma unroll
        for (int i = 0; i < 32; i++)
            acc[k][i] = 0;
    multiply_heads<BYTES>(a, dense ? p.n_terms - 1 : p.n_terms, inputs, weights, acc);
    if (ATTENTION == ATTEND_CODES) {
        attend_codes<GROUPS>(a, begin, n_tokens, first, output, dense, acc, groups,
                             (GroupCodes *)operands);
        return;
    }
    if (ATTENTION == ATTEND_TENSOR) {
        attend_tensor<GROUPS>(a, begin, n_tokens, first, output, dense, acc, groups, operands);
        return;
    }
    __syncthreads(); /* operands are done with */
#pragma unroll
    for (uint32_t k = 0; k < 3; k++)
        finish_head(head_facts(a, k, output, dense, *mine), k < 2, acc[k],
                    queries + k * BLOCK_64 * STRIDE_64);
    __syncthreads();

    const int ROWS = QUERIES / (THREADS_64 / 16), AT_ONCE = ROWS < 4 ? ROWS : 4;
    uint32_t i = threadIdx.x / 16 * ROWS, j = threadIdx.x % 16 * KEYS_64;
    float products[ROWS][KEYS_64];
#pragma unroll
    for (int row = 0; row < ROWS; row += AT_ONCE)
        find_products_64<AT_ONCE>(queries + query + i + row, keys + j, products + row);
    __syncthreads(); /* queries and keys are done with */
    store_scores_64<ROWS>(products, a.attention.score_scale, scores + j * STRIDE_64 + i);
    __syncthreads();
    if (QUERIES == BLOCK_64)
        exponentials_64(scores, n_tokens, sums);
    else
        exponentials_16(scores, n_tokens, sums);
    __syncthreads();
    float context[ROWS][KEYS_64] = {};
#pragma unroll 4
    for (uint32_t k = 0; k < n_tokens; k++)
        multiply_add_64<ROWS>(scores + k * STRIDE_64 + i, values + k * STRIDE_64 + j, context);
    store_context_64<ROWS>(a.attention, begin, query + i, n_tokens, (uint32_t)output + j, sums + i,
                           context);
#else
    (void)a;
#endif
}

} // namespace bitm

#endif
