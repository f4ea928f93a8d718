/* Softmax attention of floats on tensor cores, for heads of 64 components: the kernels of the mode
 * "attention=tensor", which nothing but its name turns on, since it does not add in the canonical
 * order.
 *
 * A block of 128 threads computes 64 queries, a warp 16 of them, over stages of 64 keys.  Every
 * operand x of a product is scaled by a power of 2 and cut into two float16s, x = h + l, and
 * x * y = h * h + h * l + l * h, which tensor cores add up in float32.  Greatest and sum of the
 * exponentials are kept from stage to stage, and rescaled where a stage has a greater score.
 *
 * The bound.  With B the greatest of score_scale * (|q_1 k_1| + ... + |q_64 k_64|) over the keys of
 * a query, and V the greatest |value| of its sequence and head:
 *
 *     |context - exact context| <= 2^-14 (1 + B) V
 *
 * - The greatest of a block's scaled numbers is at least 2^14, so l misses at most 2^-22 |x|, or
 *   2^-39 of the greatest; as much is l * l: a product of sums is wrong by 2^-20 of its size.
 * - How tensor cores add is not documented.  If they cut every addend to the 24 bits below the
 *   greatest of an instruction's 17 addends (measurements say that they keep more), the 12
 *   instructions of a sum are wrong by 12 * 17 * 2^-23 < 2^-15.3 of the sum of absolute values.
 * - So scores are wrong by less than 2^-15.2 B.  An exponential is wrong by as much, by 2^-21 for
 *   its argument's rounding (arguments are at most 7, so that l of the exponentials has bits left)
 *   and 2^-22 of ex2.approx, relatively; the weights of a query, numerator and sum, by twice that.
 * - The products with values are again wrong by 2^-15.2 V; sums, rescaling and division by 2^-19 V.
 *
 * Results of a sequence do not depend on what else is in the batch: scales are those of 64 tokens
 * from a multiple of 64 of the sequence on, the rest zeros, whichever kernel runs. */
#ifndef BITM_CUDA_ATTENTION_TENSOR_CUH
#define BITM_CUDA_ATTENTION_TENSOR_CUH

#include "attention64.cuh"
#include "hopper.cuh"

namespace bitm {

#if BITM_HAS_WGMMA || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800)
#define BITM_HAS_MMA_HALVES 1
#else
#define BITM_HAS_MMA_HALVES 0
#endif

enum {
    WARPS_64 = THREADS_64 / WARP,
    QUERIES_A_WARP = BLOCK_64 / WARPS_64,
    HALF_PIECES = HEAD_64 * 2 / PIECE_BYTES, /* of a row of float16s */
    PART_64 = BLOCK_64 * HALF_PIECES, /* pieces of 64 rows; an operand has two parts, h and l */
    OPERAND_64 = 2 * PART_64,
};

/* Queries, a stage of keys, one of values, and the greatest absolute value of each warp's part. */
static __host__ __device__ constexpr size_t attention_tensor_shared_bytes()
{
    return 3 * (OPERAND_64 * PIECE_BYTES + WARPS_64 * sizeof(uint32_t));
}

#if BITM_HAS_MMA_HALVES

/* ---- Operands ---- */

/* Tells the block the greatest absolute value of a warp's part of an operand: the bits of floats
 * that are not negative are ordered as they are. */
static __device__ inline void tell_greatest(const float x[32], uint32_t greatest[WARPS_64])
{
    float mine = 0.0F;
#pragma unroll
    for (int i = 0; i < 32; i++)
        mine = greater_abs(mine, x[i]);
    greatest[threadIdx.x / WARP] = __reduce_max_sync(ALL_THREADS, __float_as_uint(mine));
}

/* Powers of 2: a block's numbers times `to` are below 2^15, the greatest at least 2^14, and times
 * `from` again what they were. */
struct HalfScale {
    float to, from;
};

static __device__ inline HalfScale half_scale(const uint32_t greatest[WARPS_64])
{
    uint4 of = *(const uint4 *)greatest;
    uint32_t exponent = max(max(of.x, of.y), max(of.z, of.w)) >> 23;
    exponent = max(exponent, 15u); /* normal numbers both */
    HalfScale scale = {__uint_as_float((268 - exponent) << 23),
                       __uint_as_float((exponent - 14) << 23)};
    return scale;
}

#if !defined(BITM_EMULATED_HOPPER)

/* Two float16s as a word, x in its lower half. */
static __device__ inline uint32_t halves_of(float x, float y)
{
    uint32_t word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(y), "f"(x));
    return word;
}

static __device__ inline void floats_of(uint32_t word, float *x, float *y)
{
    asm("{.reg .b16 x, y; mov.b32 {x, y}, %2; cvt.f32.f16 %0, x; cvt.f32.f16 %1, y;}"
        : "=f"(*x), "=f"(*y)
        : "r"(word));
}

/* 2^x */
static __device__ inline float exp2_approx(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif

/* The parts h and l of two floats. */
static __device__ inline void split_pair(float x, float y, uint32_t *high, uint32_t *low)
{
    float high_x, high_y;
    *high = halves_of(x, y);
    floats_of(*high, &high_x, &high_y);
    *low = halves_of(x - high_x, y - high_y);
}

/* ---- Products ---- */

enum { NEXT_PIECE = TILE_ROWS, NEXT_TILES = HALF_PIECES * TILE_ROWS };

#if !BITM_HAS_WGMMA

/* Four tiles; a thread has the address of a row of one.  TURNED: rows become columns. */
template <bool TURNED> static __device__ inline void load_tiles(const uint4 *row, uint32_t tiles[4])
{
    uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
    if (TURNED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
                     : "r"(address));
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
                     : "r"(address));
}

/* c [16 rows, 8 columns] += a [16, 16] x b [16, 8] */
static __device__ inline void mma_halves(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* acc [16 rows, 64 columns] += a [16, 16] x b [16, 64], of both parts.  b: this thread's row of the
 * first tiles; the next 16 columns are `next` pieces on. */
template <bool TURNED>
static __device__ inline void multiply_split(const uint32_t a[2][4], const uint4 *b, uint32_t next,
                                             float acc[32])
{
#pragma unroll
    for (uint32_t n = 0; n < 4; n++) {
        uint32_t high[4], low[4];
        load_tiles<TURNED>(b + n * next, high);
        load_tiles<TURNED>(b + n * next + PART_64, low);
        float *first = acc + n * 8, *second = first + 4;
        mma_halves(first, a[1], high);
        mma_halves(second, a[1], high + 2);
        mma_halves(first, a[0], low);
        mma_halves(second, a[0], low + 2);
        mma_halves(first, a[0], high);
        mma_halves(second, a[0], high + 2);
    }
}

#endif

/* The place of a thread's row of four tiles: 0 and 1 are `one` pieces apart, 0 and 2 `two`. */
static __device__ inline uint32_t row_of_tiles(uint32_t one, uint32_t two)
{
    uint32_t lane = threadIdx.x % WARP;
    return lane / 8 % 2 * one + lane / 16 * two + lane % 8;
}

/* scores = the products of a warp's queries and 64 keys.  A thread holds, as mma has it, rows
 * lane / 4 and 8 below, of every 8 columns number lane % 4 * 2 and the next. */
static __device__ inline void find_scores_tensor(const uint4 *queries, const uint4 *keys,
                                                 float scores[32])
{
#pragma unroll
    for (int i = 0; i < 32; i++)
        scores[i] = 0.0F;
#if BITM_HAS_WGMMA
    /* Descriptors count pieces. */
    uint64_t a = tile_descriptor(queries, HALF_PIECES), b = tile_descriptor(keys, HALF_PIECES);
    wgmma_fence();
#pragma unroll
    for (uint32_t term = 0; term < 3; term++)
#pragma unroll
        for (uint32_t piece = 0; piece < HALF_PIECES; piece += 2)
            wgmma_halves(scores, a + (term == 0) * PART_64 + piece * NEXT_PIECE,
                         b + (term == 1) * PART_64 + piece * NEXT_PIECE);
    wgmma_commit();
    wgmma_wait<0>();
#else
    queries += threadIdx.x / WARP * 2 * NEXT_TILES + row_of_tiles(NEXT_TILES, NEXT_PIECE);
    keys += row_of_tiles(NEXT_PIECE, NEXT_TILES);
#pragma unroll
    for (uint32_t piece = 0; piece < HALF_PIECES; piece += 2) {
        uint32_t a[2][4];
        load_tiles<false>(queries + piece * NEXT_PIECE, a[0]);
        load_tiles<false>(queries + piece * NEXT_PIECE + PART_64, a[1]);
        multiply_split<false>(a, keys + piece * NEXT_PIECE, 2 * NEXT_TILES, scores);
    }
#endif
}

/* sums = the products of a warp's exponentials and 64 values: what mma leaves is what it takes. */
static __device__ inline void add_values_tensor(const float exponentials[32], const uint4 *values,
                                                float sums[32])
{
    enum { STEPS = BLOCK_64 / 16 };
    uint32_t a[STEPS][2][4];
#pragma unroll
    for (uint32_t step = 0; step < STEPS; step++)
#pragma unroll
        for (uint32_t r = 0; r < 4; r++) {
            const float *pair = exponentials + step * 8 + r / 2 * 4 + r % 2 * 2;
            split_pair(pair[0], pair[1], &a[step][0][r], &a[step][1][r]);
        }
#pragma unroll
    for (int i = 0; i < 32; i++)
        sums[i] = 0.0F;
#if BITM_HAS_WGMMA
    uint64_t b = matrix_descriptor(values, NEXT_TILES * PIECE_BYTES, NEXT_PIECE * PIECE_BYTES);
    wgmma_fence();
#pragma unroll
    for (uint32_t term = 0; term < 3; term++)
#pragma unroll
        for (uint32_t step = 0; step < STEPS; step++)
            wgmma_halves_turned(sums, a[step][term == 0],
                                b + (term == 1) * PART_64 + step * 2 * NEXT_TILES);
    wgmma_commit();
    wgmma_wait<0>();
#else
    values += row_of_tiles(NEXT_TILES, NEXT_PIECE);
#pragma unroll
    for (uint32_t step = 0; step < STEPS; step++)
        multiply_split<true>(a[step], values + step * 2 * NEXT_TILES, 2 * NEXT_PIECE, sums);
#endif
}

/* After operands have been stored, before they are multiplied. */
static __device__ inline void wait_for_operands()
{
#if BITM_HAS_WGMMA
    publish_tiles();
#endif
    __syncthreads();
}

/* ---- Softmax ---- */

/* Exponentials are at most 2^7: see the bound. */
#define BITM_GREATEST_EXPONENT 7.0F

/* A thread's two queries: after the last keys the context is to be divided by the sum.  Scores are
 * exponents of 2. */
struct QueryState {
    float greatest[2], sum[2], context[32];
};

static __device__ inline void begin_queries(QueryState *state)
{
    for (int half = 0; half < 2; half++) {
        state->greatest[half] = BITM_NO_SCORE;
        state->sum[half] = 0.0F;
    }
    for (int i = 0; i < 32; i++)
        state->context[i] = 0.0F;
}

/* scores of a query become exponentials; returns what the state before is to be multiplied by. */
static __device__ inline float find_exponentials(float factor, int half, float scores[32],
                                                 QueryState *state)
{
    float greatest = scores[half * 2], sum = 0.0F;
#pragma unroll
    for (int i = 0; i < 16; i++)
        greatest = fmaxf(greatest, scores[i / 2 * 4 + half * 2 + i % 2]);
    greatest = fmaxf(greatest, __shfl_xor_sync(ALL_THREADS, greatest, 1));
    greatest = fmaxf(greatest, __shfl_xor_sync(ALL_THREADS, greatest, 2));
    greatest = fmaxf(state->greatest[half], greatest * factor);
    float offset = BITM_GREATEST_EXPONENT - greatest;
#pragma unroll
    for (int i = 0; i < 16; i++) {
        float *score = scores + i / 2 * 4 + half * 2 + i % 2;
        *score = exp2_approx(fmaf(*score, factor, offset));
        sum += *score;
    }
    sum += __shfl_xor_sync(ALL_THREADS, sum, 1);
    sum += __shfl_xor_sync(ALL_THREADS, sum, 2);
    float rescale = exp2_approx(state->greatest[half] - greatest);
    state->sum[half] = fmaf(state->sum[half], rescale, sum);
    state->greatest[half] = greatest;
    return rescale;
}

/* Adds up to 64 keys and values; factor: from products to exponents; value_scale: from the sums to
 * the context. */
static __device__ inline void add_keys(const uint4 *queries, const uint4 *keys, const uint4 *values,
                                       uint32_t n_keys, float factor, float value_scale,
                                       QueryState *state)
{
    float scores[32], sums[32], rescale[2];
    find_scores_tensor(queries, keys, scores);
    if (n_keys < BLOCK_64) {
#pragma unroll
        for (uint32_t i = 0; i < 32; i++)
            if (i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2 >= n_keys) scores[i] = BITM_NO_SCORE;
    }
#pragma unroll
    for (int half = 0; half < 2; half++)
        rescale[half] = find_exponentials(factor, half, scores, state);
    add_values_tensor(scores, values, sums);
#pragma unroll
    for (int i = 0; i < 32; i++)
        state->context[i] = fmaf(sums[i], value_scale, state->context[i] * rescale[i / 2 % 2]);
}

static __device__ inline float exponent_factor(const Attention &a, const HalfScale &query,
                                               const HalfScale &key)
{
    return a.score_scale * BITM_LOG2_E * query.from * key.from;
}

/* ---- Results ---- */

/* Writes the context of a warp's 16 queries as bits.  Four neighbouring threads have the two words
 * of two rows; transposed, each has a word. */
template <int RULE>
static __device__ inline void store_tensor_bits(const Encoding &e, size_t token, uint32_t n_rows,
                                                uint32_t column, const float context[32],
                                                const float factors[2])
{
    uint32_t planes[2] = {0, 0};
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) {
        uint32_t place = column + i * 8 + threadIdx.x % 4 * 2;
        float2 shift = make_float2(0.0F, 0.0F);
        if (e.shift != NULL) shift = *(const float2 *)(e.shift + place);
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            const float *pair = context + i * 4 + half * 2;
            uint32_t bit = half * 16 + i * 2;
            add_bits<RULE>(e, pair[0] * factors[half] + shift.x, bit, planes);
            add_bits<RULE>(e, pair[1] * factors[half] + shift.y, bit + 1, planes);
        }
    }
    finish_bits<RULE>(e, planes);
#pragma unroll
    for (uint32_t p = 0; p < 2; p++)
        if (p < n_planes_of(e)) planes[p] = transpose_pairs_4(planes[p]);
    uint32_t row = threadIdx.x % WARP / 4 + threadIdx.x % 4 / 2 * 8;
    store_word(e, token + row, row < n_rows, column + threadIdx.x % 2 * 32, planes);
}

/* The context of a warp's 16 queries, the first n_rows of which are, as floats. */
static __device__ inline void store_context_floats(const Attention &a, size_t token,
                                                   uint32_t n_rows, uint32_t column,
                                                   const float context[32])
{
    column += threadIdx.x % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t row = threadIdx.x % WARP / 4 + half * 8;
        if (row >= n_rows) continue;
        float *to = a.context + (token + row) * a.stride + column;
#pragma unroll
        for (int i = 0; i < 8; i++)
            *(float2 *)(to + i * 8) =
                make_float2(context[i * 4 + half * 2], context[i * 4 + half * 2 + 1]);
    }
}

/* The same as floats or as bits, to be divided by the sums. */
static __device__ inline void store_context_tensor(const Attention &a, size_t token,
                                                   uint32_t n_rows, uint32_t column,
                                                   const QueryState &state)
{
    const float factors[2] = {1.0F / state.sum[0], 1.0F / state.sum[1]};
    if (a.encodes) {
        BitsRule rule = bits_rule(a.encoding);
        if (rule == RULE_SIGNS)
            store_tensor_bits<RULE_SIGNS>(a.encoding, token, n_rows, column, state.context,
                                          factors);
        else if (rule == RULE_TWO_LEVELS)
            store_tensor_bits<RULE_TWO_LEVELS>(a.encoding, token, n_rows, column, state.context,
                                               factors);
        else
            store_tensor_bits<RULE_LEVELS>(a.encoding, token, n_rows, column, state.context,
                                           factors);
        return;
    }
    float context[32];
#pragma unroll
    for (int i = 0; i < 32; i++)
        context[i] = state.context[i] * factors[i / 2 % 2];
    store_context_floats(a, token, n_rows, column, context);
}

/* ---- Operands from memory ---- */

/* A thread's four pieces of 64 rows of a head, 8 floats each; rows past n_rows are zeros. */
static __device__ inline void read_rows(const float *from, size_t stride, uint32_t n_rows,
                                        float x[32])
{
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) {
        uint32_t piece = i / 2 * THREADS_64 + threadIdx.x; /* as tiles have them */
        uint32_t row = piece / NEXT_TILES * TILE_ROWS + piece % TILE_ROWS;
        float4 four = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
        if (row < n_rows)
            four = *(const float4 *)(from + row * stride + piece / NEXT_PIECE % HALF_PIECES * 8 +
                                     i % 2 * 4);
        x[i * 4] = four.x, x[i * 4 + 1] = four.y, x[i * 4 + 2] = four.z, x[i * 4 + 3] = four.w;
    }
}

static __device__ inline void store_pieces(const float x[32], float scale, uint4 *to)
{
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t high[4], low[4];
#pragma unroll
        for (uint32_t k = 0; k < 4; k++)
            split_pair(x[i * 8 + k * 2] * scale, x[i * 8 + k * 2 + 1] * scale, &high[k], &low[k]);
        uint32_t place = i * THREADS_64 + threadIdx.x;
        to[place] = make_uint4(high[0], high[1], high[2], high[3]);
        to[PART_64 + place] = make_uint4(low[0], low[1], low[2], low[3]);
    }
}

#endif

static __global__ void __launch_bounds__(THREADS_64, 4) attention_tensor_kernel(Attention a)
{
#if BITM_HAS_MMA_HALVES
    BITM_DYNAMIC_SHARED(shared);
    uint32_t begin = a.first[blockIdx.z], n_tokens = a.first[blockIdx.z + 1] - begin;
    uint32_t first_query = blockIdx.x * BLOCK_64, column = blockIdx.y * HEAD_64;
    if (first_query >= n_tokens) return;
    size_t place = (size_t)begin * a.stride + column;
    uint4 *queries = (uint4 *)shared, *keys = queries + OPERAND_64, *values = keys + OPERAND_64;
    uint32_t *greatest = (uint32_t *)(values + OPERAND_64);
    uint32_t *of_keys = greatest + WARPS_64, *of_values = of_keys + WARPS_64;

    float x[32], y[32];
    read_rows(a.query + place + (size_t)first_query * a.stride, a.stride, n_tokens - first_query,
              x);
    tell_greatest(x, greatest);
    __syncthreads();
    HalfScale query_scale = half_scale(greatest);
    store_pieces(x, query_scale.to, queries);
    QueryState state;
    begin_queries(&state);
    for (uint32_t first = 0; first < n_tokens; first += BLOCK_64) {
        size_t from = place + (size_t)first * a.stride;
        read_rows(a.key + from, a.stride, n_tokens - first, x);
        read_rows(a.value + from, a.stride, n_tokens - first, y);
        tell_greatest(x, of_keys);
        tell_greatest(y, of_values);
        __syncthreads(); /* the keys and values before are done with */
        HalfScale key_scale = half_scale(of_keys), value_scale = half_scale(of_values);
        store_pieces(x, key_scale.to, keys);
        store_pieces(y, value_scale.to, values);
        wait_for_operands();
        add_keys(queries, keys, values, n_tokens - first,
                 exponent_factor(a, query_scale, key_scale), value_scale.from, &state);
    }
    uint32_t row = first_query + threadIdx.x / WARP * QUERIES_A_WARP;
    store_context_tensor(a, begin + row, row < n_tokens ? n_tokens - row : 0, column, state);
#else
    (void)a;
#endif
}

} // namespace bitm

#endif
