/* Attention: softmax attention in one kernel (attention.c), of floats or, with int8 activations, of
 * codes; and the general form with quantizers and further terms (attention_general.c). */
#ifndef BITM_ATTENTION_H
#define BITM_ATTENTION_H

#include "backend.h"
#include "quantizer.h"

/* Takes attention's buffers from the arena (measuring, or placing). */
void bitm_attention_layout(bitm_backend *backend, bitm_arena *arena);

/* The ops of a layer's attention: bit i for bitm_op i. */
uint64_t bitm_attention_ops(const bitm_network *network, const bitm_layer *layer,
                            bitm_activations activations);

/* The same of the general form; of its buffers, what it needs besides. */
void bitm_general_attention_layout(bitm_backend *backend, bitm_arena *arena);
uint64_t bitm_general_attention_ops(const bitm_network *network, const bitm_layer *layer);

/* bitm_backend_attention, of all tokens. */
void bitm_general_attention(bitm_backend *backend, const bitm_layer *layer, const bitm_spans *spans,
                            const float *x, float *query, float *key, float *value, float *context);

#endif
