/* Attention: softmax attention of floats in one kernel, and the general form with quantizers. */
#ifndef BITM_ATTENTION_H
#define BITM_ATTENTION_H

#include "backend.h"

/* Takes attention's buffers from the arena (measuring, or placing). */
void bitm_attention_layout(bitm_backend *backend, bitm_arena *arena);

/* The ops of a layer's attention: bit i for bitm_op i. */
uint64_t bitm_attention_ops(const bitm_network *network, const bitm_layer *layer);

#endif
