/* Softmax attention of codes of 8 bits on tensor cores, for heads of 64 components: sums of
 * integers have no order, so these are the bits of attention_bytes.cuh.
 *
 * A warp has 16 queries.  Keys and values come in stages of 64 tokens, whose codes lie in shared
 * memory as tiles.  The components of queries and keys are in any order, the same for both.  A row
 * of values is a component; its tokens are in the order in which threads have scores: word w of a
 * piece of 16 tokens has numbers 2 w, 2 w + 1, 2 w + 8 and 2 w + 9. */
#ifndef BITM_CUDA_ATTENTION_BYTES64_CUH
#define BITM_CUDA_ATTENTION_BYTES64_CUH

#include "attention_bytes.cuh"
#include "attention_tensor.cuh"

namespace bitm {

enum {
    CODE_PIECES = HEAD_64 / PIECE_BYTES, /* of a row of codes */
    CODES_64 = BLOCK_64 * CODE_PIECES,   /* pieces of 64 rows */
    CODE_TILE_WORDS = TILE_ROWS * PIECE_BYTES / 4,
};

/* A stage of keys and values. */
struct alignas(16) ByteStage {
    uint4 keys[CODES_64], values[CODES_64];
    float key_steps[BLOCK_64];
};

/* What a block keeps besides its stages. */
struct alignas(16) ByteBlock {
    uint4 queries[CODES_64];
    float query_steps[BLOCK_64];
    float value_factors[HEAD_64], value_steps[HEAD_64];
    uint32_t value_greatest[HEAD_64]; /* bits of floats */
};

static __host__ __device__ inline size_t attention_bytes64_shared(uint32_t max_length)
{
    return sizeof(ByteBlock) + ceil_div(max_length, BLOCK_64) * sizeof(ByteStage);
}

#if BITM_HAS_MMA_HALVES

/* ---- Codes ---- */

/* Rounded floats and integers are made of each other by an addition: conversions take four times
 * as long. */

/* A word whose lowest byte is the code of x, see free_code: the clamp comes first, which changes
 * nothing, as its limits are integers. */
static __device__ inline uint32_t byte_code(float x, float factor)
{
    return __float_as_uint(fminf(fmaxf(x * factor, -MAX_BYTE), MAX_BYTE) + BITM_ROUND_MAGIC);
}

/* The same of bitm_probability_code. */
static __device__ inline uint32_t probability_byte(float x)
{
    return __float_as_uint(bitm_probability(x) + BITM_ROUND_MAGIC);
}

/* An integer below 2^22, as products of 64 codes are, as a float. */
static __device__ inline float float_of_dot(int32_t dot)
{
    return __int_as_float(dot + __float_as_int(BITM_ROUND_MAGIC)) - BITM_ROUND_MAGIC;
}

/* The lowest bytes of four words. */
static __device__ inline uint32_t join_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

/* ---- Products ---- */

#if !BITM_HAS_WGMMA

/* c [16 rows, 8 columns] += a [16, 32] x b [32, 8]; a is signed or not. */
template <bool SIGNED>
static __device__ inline void mma_codes(int32_t c[4], const uint32_t a[4], const uint32_t b[2])
{
    if (SIGNED)
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* c [16 rows, 64 columns] += a [16, 32] x the columns' pieces `piece` and the next. */
template <bool SIGNED>
static __device__ inline void multiply_codes(const uint32_t a[4], const uint4 *columns,
                                             uint32_t piece, int32_t c[32])
{
    const uint32_t *words =
        (const uint32_t *)columns + piece * CODE_TILE_WORDS + threadIdx.x % WARP;
#pragma unroll
    for (uint32_t n = 0; n < BLOCK_64 / TILE_ROWS; n++) {
        const uint32_t *tile = words + n * CODE_PIECES * CODE_TILE_WORDS;
        const uint32_t b[2] = {tile[0], tile[CODE_TILE_WORDS]};
        mma_codes<SIGNED>(c + n * 4, a, b);
    }
}

#endif

/* dots = the products of a warp's queries and 64 keys; a thread has what mma leaves, as
 * find_scores_tensor says. */
static __device__ inline void find_dots(const uint4 *queries, const uint4 *keys, int32_t dots[32])
{
#pragma unroll
    for (int i = 0; i < 32; i++)
        dots[i] = 0;
#if BITM_HAS_WGMMA
    uint64_t a = tile_descriptor(queries, CODE_PIECES), b = tile_descriptor(keys, CODE_PIECES);
    wgmma_fence();
#pragma unroll
    for (uint32_t piece = 0; piece < CODE_PIECES; piece += 2)
        wgmma_codes_64(dots, a + piece * NEXT_PIECE, b + piece * NEXT_PIECE);
    wgmma_commit();
    wgmma_wait<0>();
#else
    const uint32_t *rows = (const uint32_t *)queries + threadIdx.x % WARP +
                           threadIdx.x / WARP * 2 * CODE_PIECES * CODE_TILE_WORDS;
#pragma unroll
    for (uint32_t piece = 0; piece < CODE_PIECES; piece += 2) {
        uint32_t a[4];
#pragma unroll
        for (uint32_t r = 0; r < 4; r++)
            a[r] = rows[(r % 2 * CODE_PIECES + piece + r / 2) * CODE_TILE_WORDS];
        multiply_codes<true>(a, keys, piece, dots);
    }
#endif
}

/* context += the products of a warp's probabilities, as find_dots leaves them, and 64 values. */
static __device__ inline void add_products(const uint32_t codes[2][4], const uint4 *values,
                                           int32_t context[32])
{
#if BITM_HAS_WGMMA
    uint64_t b = tile_descriptor(values, CODE_PIECES);
    wgmma_fence();
#pragma unroll
    for (uint32_t step = 0; step < 2; step++)
        wgmma_bytes_64<true>(context, codes[step], b + step * 2 * NEXT_PIECE);
    wgmma_commit();
    wgmma_wait<0>();
#else
#pragma unroll
    for (uint32_t step = 0; step < 2; step++)
        multiply_codes<false>(codes[step], values, step * 2, context);
#endif
}

/* ---- Softmax ---- */

/* A thread's two queries. */
struct ByteQueries {
    float steps[2], greatest[2];
    int32_t sums[2], context[32];
};

/* query_steps: of a block's 64 queries. */
static __device__ inline void begin_byte_queries(const float *query_steps, float score_scale,
                                                 ByteQueries *q)
{
    uint32_t row = threadIdx.x / WARP * QUERIES_A_WARP + threadIdx.x % WARP / 4;
    for (int half = 0; half < 2; half++) {
        q->steps[half] = score_step(query_steps[row + half * 8], score_scale);
        q->greatest[half] = BITM_NO_SCORE;
        q->sums[half] = 0;
    }
    for (int i = 0; i < 32; i++)
        q->context[i] = 0;
}

/* Scores of a stage's keys, of which the first n_keys are. */
static __device__ inline void find_byte_scores(const uint4 *queries, const ByteStage &stage,
                                               uint32_t n_keys, const float query_steps[2],
                                               float scores[32])
{
    int32_t dots[32];
    find_dots(queries, stage.keys, dots);
#pragma unroll
    for (uint32_t i = 0; i < 32; i += 4) {
        uint32_t key = i * 2 + threadIdx.x % 4 * 2;
        float2 steps = *(const float2 *)(stage.key_steps + key);
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            float *two = scores + i + half * 2;
            two[0] = float_of_dot(dots[i + half * 2]) * (query_steps[half] * steps.x);
            two[1] = float_of_dot(dots[i + half * 2 + 1]) * (query_steps[half] * steps.y);
            if (key >= n_keys) two[0] = BITM_NO_SCORE;
            if (key + 1 >= n_keys) two[1] = BITM_NO_SCORE;
        }
    }
}

static __device__ inline void take_greatest(const float scores[32], float greatest[2])
{
#pragma unroll
    for (int i = 0; i < 32; i++)
        greatest[i / 2 % 2] = fmaxf(greatest[i / 2 % 2], scores[i]);
}

/* After the scores of all keys: four neighbouring threads have a query's. */
static __device__ inline void join_greatest(ByteQueries *q)
{
#pragma unroll
    for (int half = 0; half < 2; half++)
        q->greatest[half] = warp_max<4>(q->greatest[half]);
}

/* Scores become codes, and the context what they are with a stage's values. */
static __device__ inline void add_byte_stage(const float scores[32], const ByteStage &stage,
                                             ByteQueries *q)
{
    uint32_t codes[2][4];
#pragma unroll
    for (uint32_t word = 0; word < 8; word++) {
        uint32_t half = word % 2, bytes[4];
#pragma unroll
        for (uint32_t k = 0; k < 4; k++) {
            float score = scores[word / 2 * 8 + k / 2 * 4 + half * 2 + k % 2];
            bytes[k] = probability_byte(score - q->greatest[half]);
        }
        uint32_t joined = join_bytes(bytes[0], bytes[1], bytes[2], bytes[3]);
        codes[word / 4][word % 4] = joined;
        q->sums[half] = (int32_t)__dp4a(joined, 0x01010101u, (uint32_t)q->sums[half]);
    }
    add_products(codes, stage.values, q->context);
}

/* The context of a warp's queries, the first n_rows of which are; value_steps: of the head. */
static __device__ inline void store_byte_context(const Attention &a, size_t token, uint32_t n_rows,
                                                 uint32_t column, const float *value_steps,
                                                 const ByteQueries &q)
{
    float factors[2], context[32];
#pragma unroll
    for (int half = 0; half < 2; half++)
        factors[half] = 1.0F / (float)warp_sum<4>(q.sums[half]);
#pragma unroll
    for (uint32_t i = 0; i < 32; i += 4) {
        float2 steps = *(const float2 *)(value_steps + i * 2 + threadIdx.x % 4 * 2);
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            context[i + half * 2] = (float)q.context[i + half * 2] * (steps.x * factors[half]);
            context[i + half * 2 + 1] =
                (float)q.context[i + half * 2 + 1] * (steps.y * factors[half]);
        }
    }
    store_context_floats(a, token, n_rows, column, context);
}

/* ---- Operands from memory ---- */

/* Codes of 64 tokens' queries or keys, and their steps; tokens past n_rows are zeros. */
static __device__ inline void encode_tokens(const float *from, size_t stride, uint32_t n_rows,
                                            uint4 *to, float *steps)
{
    uint32_t part = threadIdx.x % 16; /* a word of a token's codes */
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) {
        uint32_t row = threadIdx.x / 16 + i * 8;
        float4 x = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
        if (row < n_rows) x = *(const float4 *)(from + row * stride + part * 4);
        float greatest = greater_abs(greater_abs(fabsf(x.x), x.y), fmaxf(fabsf(x.z), fabsf(x.w)));
        float step, factor = free_factor(warp_max<16>(greatest), MAX_BYTE, &step);
        uint32_t *tile = (uint32_t *)to + (i * CODE_PIECES + part / 4) * CODE_TILE_WORDS;
        tile[row % 8 * 4 + part % 4] = join_bytes(byte_code(x.x, factor), byte_code(x.y, factor),
                                                  byte_code(x.z, factor), byte_code(x.w, factor));
        if (part == 0) steps[row] = step;
    }
}

/* The greatest absolute value of each component of a head. */
static __device__ inline void find_value_greatest(const float *from, size_t stride,
                                                  uint32_t n_tokens, uint32_t greatest[HEAD_64])
{
    uint32_t component = threadIdx.x % 16 * 4;
    float4 most = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
#pragma unroll 4
    for (uint32_t row = threadIdx.x / 16; row < n_tokens; row += THREADS_64 / 16) {
        float4 x = *(const float4 *)(from + row * stride + component);
        most = make_float4(greater_abs(most.x, x.x), greater_abs(most.y, x.y),
                           greater_abs(most.z, x.z), greater_abs(most.w, x.w));
    }
    atomicMax(greatest + component, __float_as_uint(most.x));
    atomicMax(greatest + component + 1, __float_as_uint(most.y));
    atomicMax(greatest + component + 2, __float_as_uint(most.z));
    atomicMax(greatest + component + 3, __float_as_uint(most.w));
}

/* Codes of 64 tokens' values; tokens past n_rows are zeros. */
static __device__ inline void encode_values(const float *from, size_t stride, uint32_t n_rows,
                                            const float factors[HEAD_64], uint4 *to)
{
    uint32_t d = threadIdx.x % HEAD_64;
    float factor = factors[d];
#pragma unroll 2
    for (uint32_t i = threadIdx.x / HEAD_64; i < CODE_PIECES * 4; i += THREADS_64 / HEAD_64) {
        uint32_t piece = i / 4, word = i % 4, codes[4];
#pragma unroll
        for (uint32_t k = 0; k < 4; k++) {
            uint32_t row = piece * PIECE_BYTES + word * 2 + k / 2 * 8 + k % 2;
            codes[k] = byte_code(row < n_rows ? from[row * stride + d] : 0.0F, factor);
        }
        uint32_t *tile = (uint32_t *)to + (d / 8 * CODE_PIECES + piece) * CODE_TILE_WORDS;
        tile[d % 8 * 4 + word] = join_bytes(codes[0], codes[1], codes[2], codes[3]);
    }
}

#endif

/* A block has every gridDim.x-th 64 queries of a head of a sequence; it makes the codes of all keys
 * and values before. */
static __global__ void __launch_bounds__(THREADS_64, 4) attention_bytes64_kernel(Attention a)
{
#if BITM_HAS_MMA_HALVES
    BITM_DYNAMIC_SHARED(shared);
    uint32_t begin = a.first[blockIdx.z], n_tokens = a.first[blockIdx.z + 1] - begin;
    uint32_t column = blockIdx.y * HEAD_64, first = blockIdx.x * BLOCK_64;
    if (first >= n_tokens) return;
    size_t place = (size_t)begin * a.stride + column;
    ByteBlock *block = (ByteBlock *)shared;
    ByteStage *stages = (ByteStage *)(block + 1);
    uint32_t n_stages = ceil_div(n_tokens, BLOCK_64);
    if (threadIdx.x < HEAD_64) block->value_greatest[threadIdx.x] = 0;
    __syncthreads();
    find_value_greatest(a.value + place, a.stride, n_tokens, block->value_greatest);
    for (uint32_t s = 0; s < n_stages; s++)
        encode_tokens(a.key + place + (size_t)s * BLOCK_64 * a.stride, a.stride,
                      n_tokens - s * BLOCK_64, stages[s].keys, stages[s].key_steps);
    __syncthreads();
    if (threadIdx.x < HEAD_64)
        block->value_factors[threadIdx.x] =
            free_factor(__uint_as_float(block->value_greatest[threadIdx.x]), MAX_BYTE,
                        &block->value_steps[threadIdx.x]);
    __syncthreads();
    for (uint32_t s = 0; s < n_stages; s++)
        encode_values(a.value + place + (size_t)s * BLOCK_64 * a.stride, a.stride,
                      n_tokens - s * BLOCK_64, block->value_factors, stages[s].values);
    for (; first < n_tokens; first += gridDim.x * BLOCK_64) {
        __syncthreads(); /* the queries before are done with */
        encode_tokens(a.query + place + (size_t)first * a.stride, a.stride, n_tokens - first,
                      block->queries, block->query_steps);
        wait_for_operands();
        ByteQueries queries;
        float scores[32];
        begin_byte_queries(block->query_steps, a.score_scale, &queries);
        for (uint32_t s = 0; s < n_stages; s++) {
            find_byte_scores(block->queries, stages[s], n_tokens - s * BLOCK_64, queries.steps,
                             scores);
            take_greatest(scores, queries.greatest);
        }
        join_greatest(&queries);
        for (uint32_t s = 0; s < n_stages; s++) {
            find_byte_scores(block->queries, stages[s], n_tokens - s * BLOCK_64, queries.steps,
                             scores);
            add_byte_stage(scores, stages[s], &queries);
        }
        uint32_t row = first + threadIdx.x / WARP * QUERIES_A_WARP;
        store_byte_context(a, begin + row, row < n_tokens ? n_tokens - row : 0, column,
                           block->value_steps, queries);
    }
#else
    (void)a;
#endif
}

} // namespace bitm

#endif
