/* Attention: softmax attention of floats in one kernel, and the general form with quantizers. */
#ifndef BITM_ATTENTION_H
#define BITM_ATTENTION_H

#include "backend.h"

/* Takes attention's buffers from the arena (measuring, or placing). */
void bitm_attention_layout(bitm_backend *backend, bitm_arena *arena);

#endif
