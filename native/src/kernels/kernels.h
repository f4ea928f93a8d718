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

#include "../cpu.h"

/* ---- Products: outputs = inputs x weights^T ----
 *
 * y[t, o] = dot(t, o) * (row_scale[o] * token_step[t]) + bias[o]      one fused multiply-add
 *         + row_offset[o] * token_sum[t]                              one more, where there are
 * offsets then, when `accumulate`, + the y[t, o] that was there (a linear's second branch). dot is
 * the exact integer sum of code x code, converted to float; for float inputs the canonical sum. */
typedef struct bitm_gemm {
    const void *weights;     /* [n_outputs, n_inputs] as in the file (SPEC.md 3.3) */
    const float *row_scale;  /* [n_outputs] */
    const float *row_offset; /* [n_outputs], NULL: none */
    const float *bias;       /* [n_outputs] */
    uint32_t n_inputs;       /* at most 65,536, so that 16-bit codes cannot overflow the sum */
    const void *inputs;      /* [n_tokens, n_inputs]: int8, int16 or float by the op */
    const float *token_step; /* [n_tokens]: value of one input code; 1 for float inputs */
    const float *token_sum;  /* [n_tokens]: sum of the inputs' values; used with row_offset alone */
    float *outputs;          /* [n_tokens, output_stride] */
    size_t output_stride;    /* in elements */
    bool accumulate;
} bitm_gemm;

/* Computes the block of tokens [token, token + n_tokens) and outputs [output, output + n_outputs).
 */
typedef void bitm_gemm_fn(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens, uint32_t output,
                          uint32_t n_outputs);
typedef bitm_gemm_fn bitm_gemm_w1a8_fn;  /* bit1 weights, int8 inputs */
typedef bitm_gemm_fn bitm_gemm_w1a16_fn; /* bit1 weights, int16 inputs */
typedef bitm_gemm_fn bitm_gemm_w1f32_fn; /* bit1 weights, float inputs */
typedef bitm_gemm_fn bitm_gemm_f16_fn;   /* f16 weights, float inputs */
typedef bitm_gemm_fn bitm_gemm_f32_fn;   /* f32 weights, float inputs */

/* ---- Activations ---- */

/* Symmetric quantization of one token, x [n]: codes = round(x * (max_code / M)), M = max abs(x),
 * *step = M / max_code, *sum = *step * (sum of codes); all zero where M is.  max_code is 127 or
 * 32767.
 */
typedef void bitm_quantize_i8_fn(const float *x, uint32_t n, int8_t *codes, float *step,
                                 float *sum);
typedef void bitm_quantize_i16_fn(const float *x, uint32_t n, int16_t *codes, float *step,
                                  float *sum);

/* y = gain * (z - mean) / sqrt(variance + eps) + bias with z = x + residual (residual may be NULL),
 * of one token, all [n]; y may be x or residual.  Layer normalization, Ba et al. 2016. */
typedef void bitm_add_norm_fn(const float *x, const float *residual, const float *gain,
                              const float *bias, float eps, uint32_t n, float *y);

/* x [n] = f(x); activation is a bitm_activation of SPEC.md 3.2. */
typedef void bitm_activate_fn(uint32_t activation, float *x, uint32_t n);

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
    uint32_t n_tokens;
    uint32_t head_size;
    float score_scale;
    float *scores; /* room for n_tokens floats */
} bitm_attention;

/* Computes the context of tokens [token, token + n_tokens). */
typedef void bitm_attention_fn(const bitm_attention *attention, uint32_t token, uint32_t n_tokens);

/* ---- The list ---- */

#define BITM_OPS(OP)                                                                               \
    OP(gemm_w1a8)                                                                                  \
    OP(gemm_w1a16)                                                                                 \
    OP(gemm_w1f32)                                                                                 \
    OP(gemm_f16)                                                                                   \
    OP(gemm_f32)                                                                                   \
    OP(quantize_i8)                                                                                \
    OP(quantize_i16)                                                                               \
    OP(attention)                                                                                  \
    OP(add_norm)                                                                                   \
    OP(activate)                                                                                   \
    OP(exp_sum)

#define BITM_KERNEL(op, variant, tier) bitm_##op##_fn bitm_##op##__##variant;
#include "kernels.def"
#undef BITM_KERNEL

/* One kernel for each op. */
typedef struct bitm_kernel_table {
#define BITM_OP(op) bitm_##op##_fn *op;
    BITM_OPS(BITM_OP)
#undef BITM_OP
} bitm_kernel_table;

#endif
