/* Quantizers of activations (SPEC.md 3.4): their numbers, on the CPU and on a device. */
#ifndef BITM_QUANTIZER_H
#define BITM_QUANTIZER_H

#include "kernels/kernels.h"
#include "network.h"

/* The form that the inputs of a branch take. */
bitm_input_form bitm_inputs_form(bitm_activations activations, const bitm_branch *branch);

/* The greatest code of BITM_INPUT_I16 that the runtime itself makes. */
int16_t bitm_max_code(bitm_activations activations);

/* Whether a quantizer of a linear's inputs looks at all tokens of a sequence. */
bool bitm_is_of_sequences(const bitm_linear *linear);

/* What a layer's attention multiplies. */
typedef enum bitm_attention_form {
    BITM_ATTENTION_FLOAT,  /* softmax attention of floats */
    BITM_ATTENTION_I8,     /* the same of codes of 8 bits: where query, key and value take them */
    BITM_ATTENTION_GENERAL /* quantizers of the file, further terms, or no softmax */
} bitm_attention_form;

bitm_attention_form bitm_attention_form_of(const bitm_network *network, const bitm_layer *layer,
                                           bitm_activations activations);

/* Planes of a quantizer's codes, and the weight of each: code = sum of weights[p] * bit p. */
uint32_t bitm_quantizer_planes(const bitm_file_quantizer *quantizer, const int32_t **weights);

/* The least float of which a predicate of (context, float) holds, that holds of all floats above as
 * well; a NaN where it holds of none.  guess: sooner found from near it. */
typedef bool bitm_float_predicate(const void *context, float x);
float bitm_least_float(bitm_float_predicate *holds, const void *context, float guess);

/* Finds the threshold between two codes, where there are no more and the numbers are ordinary. */
void bitm_quantization_split(bitm_quantization *quantization);

/* limits [n] of a quantization with a threshold, codes 0 and 1 and no clip: see bitm_gelu_codes. */
void bitm_gelu_limits(const bitm_quantization *quantization, bitm_activate_fn *activate, uint32_t n,
                      float *limits);

/* Makes z of one with a threshold, and without shift or clip, x / divisor in place of x; returns
 * whether it could. */
bool bitm_quantization_divide(bitm_quantization *quantization, float divisor);

#endif
