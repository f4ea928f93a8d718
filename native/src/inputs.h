/* The inputs of linears: from floats to what the kernels multiply. */
#ifndef BITM_INPUTS_H
#define BITM_INPUTS_H

#include "backend.h"
#include "quantizer.h"

/* The inputs of one branch, made: pointers into the backend's buffers, or to the floats given. */
typedef struct bitm_inputs {
    bitm_input_form form;
    const void *data;
    const float *token_step, *token_sum, *token_base;
    const int32_t *code_sum;
    uint32_t n_planes;
    const int32_t *plane_weights;
} bitm_inputs;

/* The quantization of a quantizer from the extremes of its scope (unused where it is static), and
 * the value of a code: *step * code + *base. */
bitm_quantization bitm_quantizer_begin(const bitm_file_quantizer *quantizer, const float *shift);
void bitm_quantizer_finish(const bitm_file_quantizer *quantizer, const float extremes[2],
                           bitm_quantization *quantization, float *step, float *base);

/* Quantizes x [n_tokens, n] of attention: planes [n_tokens, n_heads, planes, words] of its codes;
 * or where planes is NULL, x becomes the values that they stand for.  step and base [n_tokens]. */
void bitm_quantize_heads(bitm_backend *backend, const bitm_file_quantizer *quantizer, float *x,
                         uint32_t n_tokens, uint32_t n_heads, uint32_t n, const bitm_spans *spans,
                         uint64_t *planes, float *step, float *base);

/* Whether inputs made for the branch `last` (NULL: none are made) are those of another branch of
 * the same x. */
bool bitm_inputs_serve(const bitm_backend *backend, const bitm_inputs *inputs,
                       const bitm_branch *last, const bitm_branch *branch);

/* Makes the inputs x [n_tokens, n] of a branch.  Others that were made are no more. */
void bitm_inputs_make(bitm_backend *backend, const bitm_branch *branch, const float *x,
                      uint32_t n_tokens, uint32_t n, const bitm_spans *spans, bitm_inputs *inputs);

#endif
