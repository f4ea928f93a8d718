/* The kernels: inner loops with several variants each, chosen when a model opens.
 *
 * Rules.  A kernel never fails, allocates, or reads or writes outside of the arrays it is given.
 * Every variant of an op gives the bits of the scalar one; canonical.h says how floats are added.
 * Arrays need no alignment beyond their element's, but for bit rows, which are aligned to 8 bytes.
 */
#ifndef BITM_KERNELS_H
#define BITM_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../cpu.h"

/* ---- Products: outputs = inputs x weights^T ----
 *
 * y[t, o] = dot(t, o) * (row_scale[o] * token_step[t]) + bias[o]   one fused multiply-add
 *         + row_offset[o] * token_sum[t]   one more, where there are offsets
 *         + row_base[o] * token_base[t]    one more, where inputs have a base
 * then, when `accumulate`, + the y[t, o] that was there (a linear's second branch); last of all the
 * activation function.  dot is the exact integer sum of code x code, converted to float; for float
 * inputs the canonical sum.
 *
 * An input's value is token_step * code + token_base; see bitm_quantize_fn for its code. */
typedef struct bitm_gemm {
    const void *weights;     /* [n_outputs, n_inputs] as in the file (SPEC.md 3.3) */
    const void *packed;      /* the same as the kernel's packing laid them out; NULL: not packed */
    uint32_t n_rows;         /* rows of the whole matrix: ternary weights keep two planes of them */
    uint32_t n_inputs;       /* at most 65,536, so that 16-bit codes cannot overflow the sum */
    const float *row_scale;  /* [n_outputs] */
    const float *row_offset; /* [n_outputs], NULL: none */
    const float *row_base;   /* [n_outputs], NULL: none; row_scale x the sum of the row's codes */
    const float *bias;       /* [n_outputs] */
    const void *inputs;      /* [n_tokens, n_inputs] of int8, int16 or float, or bits, by the op */
    bool are_int11;          /* int16 inputs are at most BITM_INT11_MAX_CODE in size */
    uint32_t n_planes;       /* of inputs in bit planes; at most BITM_MAX_PLANES */
    const int32_t *plane_weights; /* [n_planes]: code = sum of plane_weights[p] * bit p */
    const int32_t *code_sum;      /* [n_tokens]: sum of a token's codes, of inputs in bit planes */
    const float *token_step;      /* [n_tokens]: value of one input code; 1 for float inputs */
    const float *token_sum;  /* [n_tokens]: sum of the inputs' values; used with row_offset alone */
    const float *token_base; /* [n_tokens]; used with row_base alone */
    float *outputs;          /* [n_tokens, output_stride] */
    size_t output_stride;    /* in elements */
    bool accumulate;
    uint32_t activation; /* a bitm_activation of SPEC.md 3.2; 0: none */
    void *scratch; /* of this call alone, aligned to 64: so many bytes as the kernel asks for in
                    * kernels.def.  Stacks are small, 128 KiB of a thread with musl. */
} bitm_gemm;

enum { BITM_MAX_PLANES = 16 };

/* Computes the block of tokens [token, token + n_tokens) and outputs [output, output + n_outputs).
 * Weights: w1 bit1, w2 tern, f16, f32, i8 as named.  Inputs: a8 int8, a16 int16, f32 float; sign:
 * two planes a token, [n_tokens, 2, words]: nonzero, sign (1: positive); planes: [n_tokens,
 * n_planes, words]. */
typedef void bitm_gemm_fn(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens, uint32_t output,
                          uint32_t n_outputs);
/* The layout of weights that a product would rather read than the file's, made when a model opens.
 * Kernels that have one work from the file's layout as well. */
typedef struct bitm_packing {
    /* n_planes of bits: 1 of bit1, 2 of tern. */
    size_t (*n_bytes)(uint32_t n_planes, uint32_t n_rows, uint32_t n_inputs);
    /* Packs weights as bitm_gemm has them into n_bytes, aligned to 64. */
    void (*pack)(const void *weights, uint32_t n_planes, uint32_t n_rows, uint32_t n_inputs,
                 void *packed);
    /* The kernel prepares blocks of so many tokens for all outputs, so threads share out tokens; 0:
     * they share out outputs. */
    uint32_t token_block;
} bitm_packing;

typedef bitm_gemm_fn bitm_gemm_w1a8_fn;
typedef bitm_gemm_fn bitm_gemm_w1a16_fn;
typedef bitm_gemm_fn bitm_gemm_w1f32_fn;
typedef bitm_gemm_fn bitm_gemm_w1sign_fn;
typedef bitm_gemm_fn bitm_gemm_w1planes_fn;
typedef bitm_gemm_fn bitm_gemm_w2a8_fn;
typedef bitm_gemm_fn bitm_gemm_w2a16_fn;
typedef bitm_gemm_fn bitm_gemm_w2f32_fn;
typedef bitm_gemm_fn bitm_gemm_w2sign_fn;
typedef bitm_gemm_fn bitm_gemm_w2planes_fn;
typedef bitm_gemm_fn bitm_gemm_f16_fn; /* float inputs, as the following */
typedef bitm_gemm_fn bitm_gemm_f32_fn;
typedef bitm_gemm_fn bitm_gemm_i8_fn;

/* Vectors of codes in bit planes, [n_planes, n_words] each: code = sum of weights[p] * bit p. */
typedef struct bitm_planes {
    const uint64_t *bits;
    const int32_t *weights; /* [n_planes] */
    uint32_t n_planes;
} bitm_planes;
/* dots [n_rows]: the products of the vector a with each vector of b [n_rows, n_planes, n_words],
 * the sum over p, q of a weight p * b weight q * popcount(a plane p AND b plane q). */
typedef void bitm_dot_planes_fn(const bitm_planes *a, const bitm_planes *b, uint32_t n_words,
                                uint32_t n_rows, int32_t *dots);

/* ---- Quantization ---- */

/* Symmetric quantization of one token, x [n]: codes = round(x * (max_code / M)), M = max abs(x),
 * *step = M / max_code, *sum = *step * (sum of codes); all zero where M is.  max_code is 127 of
 * quantize_i8. */
typedef void bitm_quantize_i8_fn(const float *x, uint32_t n, int8_t *codes, float *step,
                                 float *sum);
typedef void bitm_quantize_i16_fn(const float *x, uint32_t n, int16_t max_code, int16_t *codes,
                                  float *step, float *sum);

/* The greatest codes of int16, and of int11: sums of 48 of these fit into 16 bits. */
enum { BITM_INT16_MAX_CODE = 32767, BITM_INT11_MAX_CODE = 682 };

/* A quantizer of the model (SPEC.md 3.4), its statistics known: with z = x + shift, clamped to
 * [clip_lo, clip_hi], code = round(clamp((z - base) / divisor * factor, lo, hi)), which is
 * bitm_code of canonical.h; of `sign`, the sign of z.  Of `two_codes` hi is lo + 1, and a
 * comparison tells codes without a division: hi where z >= threshold, otherwise lo (quantizer.h
 * finds it). */
typedef struct bitm_quantization {
    const float *shift; /* [n], NULL: none */
    bool sign;
    bool clips;
    float clip_lo, clip_hi;
    float base, divisor, factor;
    float lo, hi;
    bool two_codes;
    float threshold;
} bitm_quantization;

/* codes [n] of x [n]; returns their sum. */
typedef int32_t bitm_quantize_fn(const bitm_quantization *quantization, const float *x, uint32_t n,
                                 int16_t *codes);

/* The same codes as planes [n_planes, words] of bits, padded with 0; returns their sum.  Of signs
 * that may be -1 the planes are two, nonzero and positive, as gemm_w1sign takes them; of others
 * those of two's complement, from the lowest on. */
typedef int32_t bitm_quantize_planes_fn(const bitm_quantization *quantization, const float *x,
                                        uint32_t n, uint32_t n_planes, uint64_t *planes);

/* A quantizer of two codes, 0 and 1, of the values of a GELU: 1 where gelu(x) + shift reaches the
 * threshold.  Those of an x further than BITM_GELU_BAND from its limit are told without a GELU: 1
 * above the limit, 0 below (quantizer.h finds limits). */
typedef struct bitm_gelu_codes {
    const float *limits; /* [n], NaN: none */
    const float *shift;  /* [n], NULL: none */
    float threshold;
} bitm_gelu_codes;

#define BITM_GELU_BAND 0x1p-10F

/* bits [words] = the codes of x [n], padded with 0; returns their sum. */
typedef int32_t bitm_gelu_bits_fn(const bitm_gelu_codes *codes, const float *x, uint32_t n,
                                  uint64_t *bits);

/* The least and the greatest z of x [n], as the quantization shifts and clips it: extremes[0], [1].
 */
typedef void bitm_extremes_fn(const bitm_quantization *quantization, const float *x, uint32_t n,
                              float extremes[2]);

/* ---- Token by token ---- */

/* y = gain * (z - mean) / sqrt(variance + eps) + bias with z = x + residual (residual may be NULL),
 * of one token, all [n]; y may be x or residual.  Layer normalization, Ba et al. 2016. */
typedef void bitm_add_norm_fn(const float *x, const float *residual, const float *gain,
                              const float *bias, float eps, uint32_t n, float *y);

/* y = gain * x / sqrt(mean of x^2 + eps), all [n].  RMS normalization, Zhang and Sennrich 2019. */
typedef void bitm_rms_norm_fn(const float *x, const float *gain, float eps, uint32_t n, float *y);

/* x [n] = f(x); activation is a bitm_activation of SPEC.md 3.2, 0 leaves x.  Products apply that of
 * their own variant to what they have just stored; it is an op to be checked and measured alone. */
typedef void bitm_activate_fn(uint32_t activation, float *x, uint32_t n);

/* What it does where vectors are at hand: a tier's apply(function, x, n), with its function. */
#define BITM_ACTIVATE(activation, x, n)                                                            \
    switch (activation) {                                                                          \
    case BITM_ACTIVATION_GELU:                                                                     \
        apply(gelu, x, n);                                                                         \
        break;                                                                                     \
    case BITM_ACTIVATION_GELU_TANH:                                                                \
        apply(gelu_tanh, x, n);                                                                    \
        break;                                                                                     \
    case BITM_ACTIVATION_RELU:                                                                     \
        apply(relu, x, n);                                                                         \
        break;                                                                                     \
    case BITM_ACTIVATION_SWISH:                                                                    \
        apply(swish, x, n);                                                                        \
        break;                                                                                     \
    case BITM_ACTIVATION_MISH:                                                                     \
        apply(mish, x, n);                                                                         \
        break;                                                                                     \
    default:                                                                                       \
        break;                                                                                     \
    }

/* x [n] = exp(x - max(x)); returns the sum of them. */
typedef float bitm_exp_sum_fn(float *x, uint32_t n);

/* ---- Attention ----
 *
 * Softmax attention of one head of one sequence, Vaswani et al. 2017:
 *   s_j = score_scale * (q_i . k_j), e = exp(s - max s), context_i = (sum over j of e_j v_j) / (sum
 * of e) where e_j v_j are added in the order of j by fused multiply-adds, and the quotient is a
 * multiplication by 1 / (sum of e). */
typedef struct bitm_attention {
    const float *query, *key, *value; /* first token, first component of the head */
    size_t stride;                    /* elements from token to token of the three */
    float *context;
    size_t context_stride;
    uint32_t n_tokens; /* that have keys and values */
    uint32_t head_size;
    float score_scale;
    float *scores; /* bitm_attention_room (of codes bitm_attention_i8_room) floats, for scores and
                    * whatever else a kernel keeps */
} bitm_attention;

enum { BITM_ATTENTION_QUERIES = 12 }; /* whose scores a kernel may keep at a time */

/* Room for scores of some queries, and for a copy of keys and of values, each for the
 * tokens rounded up to a multiple of 16. */
static inline size_t bitm_attention_room(size_t n_tokens, size_t head_size)
{
    return (n_tokens + 15) / 16 * 16 * (BITM_ATTENTION_QUERIES + 2 * head_size);
}

/* Asks the second cache for up to n rows of a head from row `first` on, of `end`: no prefetcher
 * follows pieces that are a stride apart. */
static inline void bitm_attention_ask(const bitm_attention *a, const float *rows, size_t first,
                                      size_t n, size_t end)
{
    for (size_t j = first; j < first + n && j < end; j++)
        for (uint32_t d = 0; d < a->head_size; d += 16)
            __builtin_prefetch(rows + j * a->stride + d, 0, 2);
}

enum { BITM_ATTENTION_CHUNK = 16 }; /* keys side by side: as many as a sum has lanes */

/* How kernels that lay keys and values out anew use that room. */
typedef struct bitm_attention_head {
    const bitm_attention *attention;
    size_t n_padded; /* tokens, rounded up to whole chunks */
    float *keys;     /* [n_padded / chunk, head_size, chunk]; 0 past the last key */
    float *values;   /* [n_tokens, head_size] */
    float *scores;   /* [BITM_ATTENTION_QUERIES, n_padded] */
} bitm_attention_head;

/* Copies the values too; keys are for the kernel to lay out. */
static inline bitm_attention_head bitm_attention_open(const bitm_attention *a)
{
    const size_t chunk = BITM_ATTENTION_CHUNK;
    bitm_attention_head h = {.attention = a, .scores = a->scores};
    h.n_padded = (a->n_tokens + chunk - 1) / chunk * chunk;
    h.keys = h.scores + BITM_ATTENTION_QUERIES * h.n_padded;
    h.values = h.keys + h.n_padded * a->head_size;
    for (size_t j = 0; j < a->n_tokens; j++) {
        bitm_attention_ask(a, a->value, j + chunk, 1, a->n_tokens);
        bitm_attention_ask(a, a->key, j, 1, a->n_tokens);
        memcpy(h.values + j * a->head_size, a->value + j * a->stride,
               a->head_size * sizeof *h.values);
    }
    return h;
}

/* Computes the context of queries [token, token + n_tokens): rows of query and context alone, which
 * need not be those of the tokens that have keys. */
typedef void bitm_attention_fn(const bitm_attention *attention, uint32_t token, uint32_t n_tokens);

/* The same of codes of 8 bits, whose products may be added in any order.  Queries and keys are
 * quantized token by token as by quantize_i8, values as by it too, but each component over all
 * tokens (at most 65,536, so that sums of products fit).  In base 2, of the sums' floats:
 *   s_j = (q_i . k_j) * ((query_step_i * (score_scale * log2 e)) * key_step_j)
 *   p_j = bitm_probability_code(s_j - max s), 0 to 255
 *   context_i = (sum over j of p_j v_j) * (value_step * (1 / (sum of p))) */
typedef bitm_attention_fn bitm_attention_i8_fn;

/* How its kernels use `scores`; elements of any layout, as wide as int16 at most. */
typedef struct bitm_attention_codes {
    size_t n_padded;   /* tokens, rounded up to whole chunks */
    size_t n_columns;  /* components, rounded up to 16 */
    float *scores;     /* [BITM_ATTENTION_QUERIES, n_padded] */
    float *key_step;   /* [n_padded] */
    float *value_step; /* [n_columns] */
    float *sums;       /* [n_columns] of whatever else belongs to a component */
    void *keys;        /* n_padded * n_columns elements */
    void *values;      /* as many */
    void *queries;     /* BITM_ATTENTION_QUERIES * n_columns elements */
    void *codes;       /* of probabilities: BITM_ATTENTION_QUERIES * n_padded elements */
} bitm_attention_codes;

static inline bitm_attention_codes bitm_attention_codes_open(const bitm_attention *a)
{
    const size_t chunk = BITM_ATTENTION_CHUNK, n_queries = BITM_ATTENTION_QUERIES;
    const size_t n_padded = (a->n_tokens + chunk - 1) / chunk * chunk;
    const size_t n_columns = ((size_t)a->head_size + 15) / 16 * 16;
    bitm_attention_codes c = {.n_padded = n_padded, .n_columns = n_columns, .scores = a->scores};
    c.key_step = c.scores + n_queries * n_padded;
    c.value_step = c.key_step + n_padded;
    c.sums = c.value_step + n_columns;
    /* Two elements take a float's room. */
    float *keys = c.sums + n_columns, *values = keys + n_padded * n_columns / 2;
    float *queries = values + n_padded * n_columns / 2;
    c.keys = keys;
    c.values = values;
    c.queries = queries;
    c.codes = queries + n_queries * n_columns / 2;
    return c;
}

/* The room that it takes, in floats. */
static inline size_t bitm_attention_i8_room(size_t n_tokens, size_t head_size)
{
    const size_t n_padded = (n_tokens + 15) / 16 * 16, n_columns = (head_size + 15) / 16 * 16;
    const size_t n_queries = BITM_ATTENTION_QUERIES;
    return n_padded * (n_queries + 1 + n_columns + n_queries / 2) + n_columns * (2 + n_queries / 2);
}

/* ---- Attention of signs ----
 *
 * A query and a key of at most 64 signs are a word each, the bits of positive ones, and their
 * product is the number of signs less twice the distance.  So a query's scores are 65 values, and
 * what follows from a score is found once for each and looked up.  Distances have room up to a
 * multiple of 64. */

/* distances [n] = the number of bits in which keys[j] differs from query; returns the least. */
typedef uint8_t bitm_sign_distances_fn(uint64_t query, const uint64_t *keys, uint32_t n,
                                       uint8_t *distances);

/* The last n keys, fewer than n_places, for kernels that read so many: the first of them fills the
 * rest, which makes none nearer. */
static inline const uint64_t *bitm_last_keys(const uint64_t *keys, uint32_t n, uint32_t n_places,
                                             uint64_t *places)
{
    for (uint32_t i = 0; i < n_places; i++)
        places[i] = keys[i < n ? i : 0];
    return places;
}

enum { BITM_DISTANCES = 64 }; /* of a table, a power of 2 */

/* The sum of table[distances[j] % BITM_DISTANCES], which are normal and positive or 0. */
typedef float bitm_table_sum_fn(const float table[BITM_DISTANCES], const uint8_t *distances,
                                uint32_t n);

/* bits [words]: which distances are below `end`, of at most 127, padded with 0; returns how many.
 */
typedef int32_t bitm_near_bits_fn(const uint8_t *distances, uint32_t n, uint8_t end,
                                  uint64_t *bits);

/* ---- The list ---- */

#define BITM_OPS(OP)                                                                               \
    OP(gemm_w1a8)                                                                                  \
    OP(gemm_w1a16)                                                                                 \
    OP(gemm_w1f32)                                                                                 \
    OP(gemm_w1sign)                                                                                \
    OP(gemm_w1planes)                                                                              \
    OP(gemm_w2a8)                                                                                  \
    OP(gemm_w2a16)                                                                                 \
    OP(gemm_w2f32)                                                                                 \
    OP(gemm_w2sign)                                                                                \
    OP(gemm_w2planes)                                                                              \
    OP(gemm_f16)                                                                                   \
    OP(gemm_f32)                                                                                   \
    OP(gemm_i8)                                                                                    \
    OP(dot_planes)                                                                                 \
    OP(quantize_i8)                                                                                \
    OP(quantize_i16)                                                                               \
    OP(quantize)                                                                                   \
    OP(quantize_planes)                                                                            \
    OP(gelu_bits)                                                                                  \
    OP(extremes)                                                                                   \
    OP(attention)                                                                                  \
    OP(attention_i8)                                                                               \
    OP(sign_distances)                                                                             \
    OP(table_sum)                                                                                  \
    OP(near_bits)                                                                                  \
    OP(add_norm)                                                                                   \
    OP(rms_norm)                                                                                   \
    OP(activate)                                                                                   \
    OP(exp_sum)

typedef enum bitm_op {
#define BITM_OP(op) BITM_OP_##op,
    BITM_OPS(BITM_OP)
#undef BITM_OP
        BITM_N_OPS
} bitm_op;

#define BITM_KERNEL(op, variant, tier) bitm_##op##_fn bitm_##op##__##variant;
#define BITM_PACKING(op, variant, packing) extern const bitm_packing bitm_packing__##packing;
#define BITM_SCRATCH(op, variant, scratch) extern const size_t bitm_scratch__##scratch;
#include "kernels.def"
#undef BITM_KERNEL

/* One kernel for each op. */
typedef struct bitm_kernel_table {
#define BITM_OP(op) bitm_##op##_fn *op;
    BITM_OPS(BITM_OP)
#undef BITM_OP
    const bitm_packing *packing[BITM_N_OPS]; /* of the kernel; NULL: none */
    size_t scratch_bytes[BITM_N_OPS];        /* of the kernel */
    bool tensor_attention; /* of a device: attention need not have the canonical order */
} bitm_kernel_table;

#endif
