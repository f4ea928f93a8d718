/* The operations of the forward pass on packed tokens, spread over the threads of a pool.
 *
 * Tokens are packed: the real tokens of several sequences in a row, without padding.  bert.c and
 * head.c say what is computed; here is how, with which kernels and in which arithmetic. */
#ifndef BITM_BACKEND_H
#define BITM_BACKEND_H

#include "kernels/kernels.h"
#include "network.h"
#include "pool.h"

typedef struct bitm_backend {
    const bitm_network *network;
    const bitm_kernel_table *kernels;
    bitm_activations activations; /* never AUTO */
    bitm_pool pool;
    uint32_t max_tokens; /* packed at once */
    /* The inputs of the linear at work, as its kernel wants them. */
    void *codes;       /* [max_tokens, widest input] of int8 or int16 */
    float *scaled;     /* [max_tokens, widest input], when a matrix has column scales */
    float *token_step; /* [max_tokens] */
    float *token_sum;  /* [max_tokens] */
    float *ones;       /* [max_tokens], for inputs that are floats */
    float *scores;     /* [n_threads, max_length] */
    uint32_t max_length;
} bitm_backend;

/* Fails with BITM_UNSUPPORTED where the network asks for what this backend does not run. */
bitm_status bitm_backend_supports(const bitm_network *network, bitm_error *err);

/* Takes the backend's buffers from the arena (measuring, or placing); network, kernels and
 * activations are set. */
void bitm_backend_layout(bitm_backend *backend, bitm_arena *arena, uint32_t max_tokens,
                         uint32_t max_length, uint32_t n_threads);

/* outputs[i] [n_tokens, linears[i]->rows] = linears[i](inputs), for linears that share their inputs
 * [n_tokens, columns].  Row t of output i begins at outputs[i] + t * strides[i]. */
void bitm_backend_linears(bitm_backend *backend, uint32_t n_linears,
                          const bitm_linear *const linears[], const float *inputs,
                          uint32_t n_tokens, float *const outputs[], const size_t strides[]);

/* One linear, outputs without gaps. */
void bitm_backend_linear(bitm_backend *backend, const bitm_linear *linear, const float *inputs,
                         uint32_t n_tokens, float *outputs);

/* context [n_tokens, A] of softmax attention within each sequence; query, key and value are
 * [n_tokens, A]. Sequence s has the tokens from first[s] to first[s + 1]. */
void bitm_backend_attention(bitm_backend *backend, const uint32_t *first, uint32_t n_sequences,
                            const float *query, const float *key, const float *value,
                            float *context);

/* y [n_tokens, n] = norm(x + residual), residual may be NULL, y may be x. */
void bitm_backend_add_norm(bitm_backend *backend, const float *x, const float *residual,
                           const bitm_norm *norm, float eps, uint32_t n_tokens, uint32_t n,
                           float *y);

/* x [n_tokens, n] = activation(x) */
void bitm_backend_activate(bitm_backend *backend, uint32_t activation, uint32_t n_tokens,
                           uint32_t n, float *x);

#endif
