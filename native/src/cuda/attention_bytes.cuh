/* Softmax attention of codes of 8 bits (bitm_attention_i8_fn of kernels/kernels.h), on any GPU, for
 * heads of any size and sequences of any length.
 *
 * Sums of products of codes are integers, the same in any order: so scores need not be kept.  They
 * are computed twice, once for the greatest and once for the codes of the probabilities.  Codes of
 * keys and values are made by a kernel before, those of a query by the warp that has it. */
#ifndef BITM_CUDA_ATTENTION_BYTES_CUH
#define BITM_CUDA_ATTENTION_BYTES_CUH

#include "attention.cuh"

namespace bitm {

enum {
    BYTES_THREADS = 128,
    BYTES_WARPS = BYTES_THREADS / WARP,
    BYTES_QUERIES = 4, /* of a warp */
    BYTES_BLOCK = BYTES_WARPS * BYTES_QUERIES,
    BYTES_COLUMNS = 2 * WARP,        /* of the context at once */
    BYTES_KEYS = 4,                  /* whose codes are a word */
    BYTES_WORDS = WARP / BYTES_KEYS, /* of a query's codes */
};

constexpr float MAX_BYTE = 127.0F;

struct ByteAttention {
    Attention attention;  /* its values are lost: see attention_codes_kernel */
    uint4 *keys, *values; /* [n_tokens, n_heads, n_pieces]: codes, 0 past the head's last */
    float *key_step;      /* [n_tokens, n_heads] */
    float *value_step;    /* [n_tokens, stride]: those of a sequence where its first token is */
    uint32_t n_heads, n_pieces;
};

/* Codes of the warps' queries, and of their probabilities. */
static __host__ __device__ inline size_t attention_bytes_shared(uint32_t n_pieces)
{
    return (size_t)BYTES_BLOCK * (n_pieces * PIECE_BYTES + WARP);
}

/* What a query's scores are multiplied by, but for the key's step. */
static __device__ inline float score_step(float query_step, float score_scale)
{
    return query_step * (score_scale * BITM_LOG2_E);
}

/* sum + the products of four codes, the first signed or not, and four signed ones */
template <bool SIGNED>
static __device__ inline int32_t dot_codes(uint32_t a, uint32_t b, int32_t sum)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 610 && __CUDA_ARCH__ != 620
    if (SIGNED)
        asm("dp4a.s32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(a), "r"(b));
    else
        asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(a), "r"(b));
#else
    for (int i = 0; i < 4; i++) {
        int32_t code = (int32_t)(a >> 8 * i & 255);
        if (SIGNED) code = (int8_t)code;
        sum += code * (int8_t)(b >> 8 * i & 255);
    }
#endif
    return sum;
}

/* A warp makes the codes of a token's head [head_size]; returns their step. */
static __device__ inline float encode_head(const float *x, uint32_t head_size, uint32_t n_pieces,
                                           uint4 *codes)
{
    uint32_t lane = threadIdx.x % WARP;
    float greatest = 0.0F, step;
    for (uint32_t d = lane; d < head_size; d += WARP)
        greatest = greater_abs(greatest, x[d]);
    float factor = free_factor(warp_max(greatest), MAX_BYTE, &step);
    for (uint32_t d = lane; d < n_pieces * PIECE_BYTES; d += WARP)
        ((int8_t *)codes)[d] = (int8_t)(d < head_size ? free_code(x[d], factor, MAX_BYTE) : 0);
    return step;
}

/* Codes of the keys and values of one head of one sequence, a block.  The steps of the values may
 * take the place of the first token's: a block has read all it needs of them by then. */
static __global__ void __launch_bounds__(BYTES_THREADS) attention_codes_kernel(ByteAttention a)
{
    __shared__ float greatest[BYTES_WARPS][WARP];
    uint32_t begin = a.attention.first[blockIdx.y], head_size = a.attention.head_size;
    uint32_t end = a.attention.first[blockIdx.y + 1], stride = a.attention.stride;
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, column = blockIdx.x * head_size;
    for (size_t token = begin + warp; token < end; token += BYTES_WARPS) {
        size_t place = token * a.n_heads + blockIdx.x;
        float step = encode_head(a.attention.key + token * stride + column, head_size, a.n_pieces,
                                 a.keys + place * a.n_pieces);
        if (lane == 0) a.key_step[place] = step;
    }
    for (uint32_t d = lane; d - lane < a.n_pieces * PIECE_BYTES; d += WARP) {
        const float *values = a.attention.value + column + d;
        bool is_component = d < head_size;
        float most = 0.0F;
#pragma unroll 4
        for (size_t token = begin + warp; token < end; token += BYTES_WARPS)
            most = greater_abs(most, is_component ? values[token * stride] : 0.0F);
        greatest[warp][lane] = most;
        __syncthreads();
        for (uint32_t w = 0; w < BYTES_WARPS; w++)
            most = greater_abs(most, greatest[w][lane]);
        float step, factor = free_factor(most, MAX_BYTE, &step);
#pragma unroll 4
        for (size_t token = begin + warp; token < end; token += BYTES_WARPS) {
            int8_t *codes = (int8_t *)(a.values + (token * a.n_heads + blockIdx.x) * a.n_pieces);
            float x = is_component ? values[token * stride] : 0.0F;
            if (d < a.n_pieces * PIECE_BYTES) codes[d] = (int8_t)free_code(x, factor, MAX_BYTE);
        }
        __syncthreads(); /* the values have been read, and the greatest of them */
        if (warp == 0 && is_component && begin < end)
            a.value_step[(size_t)begin * stride + column + d] = step;
    }
}

/* Scores of a warp's queries and one key. */
static __device__ inline void byte_scores(const uint4 *queries, const uint4 *key, uint32_t n_pieces,
                                          const float steps[BYTES_QUERIES], float key_step,
                                          float scores[BYTES_QUERIES])
{
    int32_t dots[BYTES_QUERIES] = {};
    for (uint32_t piece = 0; piece < n_pieces; piece++) {
        uint4 k = key[piece];
#pragma unroll
        for (uint32_t r = 0; r < BYTES_QUERIES; r++) {
            uint4 q = queries[r * n_pieces + piece];
            dots[r] = dot_codes<true>(q.x, k.x, dots[r]);
            dots[r] = dot_codes<true>(q.y, k.y, dots[r]);
            dots[r] = dot_codes<true>(q.z, k.z, dots[r]);
            dots[r] = dot_codes<true>(q.w, k.w, dots[r]);
        }
    }
#pragma unroll
    for (uint32_t r = 0; r < BYTES_QUERIES; r++)
        scores[r] = (float)dots[r] * (steps[r] * key_step);
}

/* context += the products of a word of probabilities of each query and a thread's two components
 * of their values, number `column` and the next; values: of the first key, the others `next` on. */
static __device__ inline void add_byte_values(const uint32_t *codes, const int8_t *values,
                                              size_t next, uint32_t n_keys,
                                              int32_t context[BYTES_QUERIES][2])
{
    uint32_t pairs[BYTES_KEYS]; /* of keys past the last, whose codes are 0, the last one's */
#pragma unroll
    for (uint32_t k = 0; k < BYTES_KEYS; k++)
        pairs[k] = *(const uint16_t *)(values + (k < n_keys ? k : n_keys - 1) * next);
    pairs[0] |= pairs[1] << 16;
    pairs[2] |= pairs[3] << 16;
    uint32_t first = __byte_perm(pairs[0], pairs[2], 0x6420);
    uint32_t second = __byte_perm(pairs[0], pairs[2], 0x7531);
#pragma unroll
    for (uint32_t r = 0; r < BYTES_QUERIES; r++) {
        context[r][0] = dot_codes<false>(codes[r * BYTES_WORDS], first, context[r][0]);
        context[r][1] = dot_codes<false>(codes[r * BYTES_WORDS], second, context[r][1]);
    }
}

static __global__ void __launch_bounds__(BYTES_THREADS) attention_bytes_kernel(ByteAttention a)
{
    BITM_DYNAMIC_SHARED(shared);
    const Attention &of = a.attention;
    uint32_t begin = of.first[blockIdx.z], n_tokens = of.first[blockIdx.z + 1] - begin;
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    uint32_t first_query = blockIdx.x * BYTES_BLOCK + warp * BYTES_QUERIES;
    if (first_query >= n_tokens) return;
    uint32_t column = blockIdx.y * of.head_size, key_stride = a.n_heads * a.n_pieces;
    size_t head = (size_t)begin * a.n_heads + blockIdx.y;
    const uint4 *keys = a.keys + head * a.n_pieces;
    const float *key_step = a.key_step + head;
    size_t next = (size_t)key_stride * PIECE_BYTES; /* from a key's values to those of the next */
    uint4 *queries = (uint4 *)shared + warp * BYTES_QUERIES * a.n_pieces;
    uint32_t *codes = (uint32_t *)((uint4 *)shared + BYTES_BLOCK * a.n_pieces) +
                      warp * BYTES_QUERIES * BYTES_WORDS;
    uint8_t *my_codes = (uint8_t *)codes + lane;
    float steps[BYTES_QUERIES], scores[BYTES_QUERIES], greatest[BYTES_QUERIES];
#pragma unroll
    for (uint32_t r = 0; r < BYTES_QUERIES; r++) {
        uint32_t query = first_query + r < n_tokens ? first_query + r : first_query;
        float step = encode_head(of.query + (size_t)(begin + query) * of.stride + column,
                                 of.head_size, a.n_pieces, queries + r * a.n_pieces);
        steps[r] = score_step(step, of.score_scale);
        greatest[r] = BITM_NO_SCORE;
    }
    __syncwarp();
    for (uint32_t j = lane; j < n_tokens; j += WARP) {
        byte_scores(queries, keys + (size_t)j * key_stride, a.n_pieces, steps,
                    key_step[(size_t)j * a.n_heads], scores);
#pragma unroll
        for (uint32_t r = 0; r < BYTES_QUERIES; r++)
            greatest[r] = fmaxf(greatest[r], scores[r]);
    }
#pragma unroll
    for (uint32_t r = 0; r < BYTES_QUERIES; r++)
        greatest[r] = warp_max(greatest[r]);

    for (uint32_t d = lane * 2; d - lane * 2 < of.head_size; d += BYTES_COLUMNS) {
        const int8_t *values = (const int8_t *)(a.values + head * a.n_pieces) + d;
        int32_t context[BYTES_QUERIES][2] = {}, sums[BYTES_QUERIES] = {};
        for (uint32_t first = 0; first < n_tokens; first += WARP) {
            uint32_t j = first + lane, n = n_tokens - first < WARP ? n_tokens - first : WARP;
            if (j < n_tokens)
                byte_scores(queries, keys + (size_t)j * key_stride, a.n_pieces, steps,
                            key_step[(size_t)j * a.n_heads], scores);
            __syncwarp(); /* the codes before are done with */
#pragma unroll
            for (uint32_t r = 0; r < BYTES_QUERIES; r++) {
                int32_t code = j < n_tokens ? bitm_probability_code(scores[r] - greatest[r]) : 0;
                my_codes[r * WARP] = (uint8_t)code;
                sums[r] += code;
            }
            __syncwarp();
            if (d < of.head_size)
                for (uint32_t k = 0; k < n; k += BYTES_KEYS)
                    add_byte_values(codes + k / BYTES_KEYS, values + (first + k) * next, next,
                                    n - k, context);
        }
#pragma unroll
        for (uint32_t r = 0; r < BYTES_QUERIES; r++) {
            float factor = 1.0F / (float)warp_sum(sums[r]);
            size_t row = begin + first_query + r;
#pragma unroll
            for (uint32_t c = 0; c < 2; c++)
                if (first_query + r < n_tokens && d + c < of.head_size)
                    of.context[row * of.stride + column + d + c] =
                        (float)context[r][c] *
                        (a.value_step[(size_t)begin * of.stride + column + d + c] * factor);
        }
    }
}

} // namespace bitm

#endif
