/* The operations of the forward pass on packed tokens, spread over the threads of a pool.
 *
 * Tokens are packed: the real tokens of several sequences in a row, without padding.  bert.c and
 * head.c say what is computed; backend_cpu.c, inputs.c and attention*.c how, with which kernels and
 * in which arithmetic. */
#ifndef BITM_BACKEND_H
#define BITM_BACKEND_H

#include "kernels/kernels.h"
#include "network.h"
#include "pool.h"

/* Which tokens are of one sequence: sequence s has those from first[s] to first[s + 1]. */
typedef struct bitm_spans {
    uint32_t n;
    const uint32_t *first; /* [n + 1] */
} bitm_spans;

/* Buffers for the inputs of the linear at work, as its kernel wants them. */
typedef struct bitm_input_buffers {
    uint8_t *codes; /* [max_tokens, code_bytes] of int8 or int16, or planes of bits */
    size_t code_bytes;
    float *floats; /* [max_tokens, n_floats]: changed before quantization, or not quantized */
    size_t n_floats;
    int16_t *scratch; /* [n_threads, n_scratch] codes of one token */
    size_t n_scratch;
    float *token_step; /* [max_tokens], as the following */
    float *token_sum;
    float *token_base;
    int32_t *code_sum;
    float *ones;
    float *extremes; /* [max_tokens, 2] */
} bitm_input_buffers;

/* Buffers for attention; all but the first are for attention with quantizers or further terms. */
typedef struct bitm_attention_buffers {
    float *scores; /* [n_threads, n_scores], as bitm_attention has them */
    size_t n_scores;
    uint64_t *planes[3]; /* query, key, value: [max_tokens, n_heads, planes, words of a head] */
    float *step[3];      /* [max_tokens] */
    float *base[3];      /* [max_tokens] */
    float *low_rank[4];  /* query_p, query_m, key_p, key_m: [max_tokens, score_rank] */
    float *value_term;   /* [max_tokens] */
    float *extremes;     /* [max_tokens, n_heads, 2] of the probabilities of each head */
    uint64_t *heads;     /* [n_threads, head_words]: one head's operands and scores */
    size_t head_words;
    const float *minus_zeros; /* [max_length or head_size]: a bias that changes no bit */
} bitm_attention_buffers;

typedef struct bitm_backend {
    const bitm_network *network;
    const bitm_kernel_table *kernels;
    bitm_activations activations; /* never AUTO */
    bitm_pool *pool;
    uint32_t max_tokens;   /* packed at once */
    uint32_t max_length;   /* of a sequence */
    uint32_t slice_tokens; /* of a slice at most */
    bitm_input_buffers inputs;
    uint8_t *scratch; /* [n_threads, scratch_bytes] of the products at work */
    size_t scratch_bytes;
    bitm_attention_buffers attention;
} bitm_backend;

/* Takes the backend's buffers from the arena (measuring, or placing); network, kernels and
 * activations are set. */
void bitm_backend_layout(bitm_backend *backend, bitm_arena *arena, uint32_t max_tokens,
                         uint32_t max_length, uint32_t n_threads);

/* outputs[i] [n_tokens, linears[i]->rows] = linears[i](inputs), for linears that share their inputs
 * [n_tokens, columns].  spans: the sequences that the tokens are of; NULL: every token alone. */
void bitm_backend_linears(bitm_backend *backend, uint32_t n_linears,
                          const bitm_linear *const linears[], const float *inputs,
                          uint32_t n_tokens, const bitm_spans *spans, float *const outputs[]);

/* The same for one linear, followed by an activation function. */
void bitm_backend_linear(bitm_backend *backend, const bitm_linear *linear, uint32_t activation,
                         const float *inputs, uint32_t n_tokens, const bitm_spans *spans,
                         float *outputs);

/* Where what follows treats each token alone, tokens are cut into slices, of which one thread at a
 * time takes each through all of it: then what one operation writes is still in that thread's cache
 * when the next one reads it.
 *
 * bitm_backend_can_slice: whether what follows a layer's attention does so: no quantizer looks at
 * whole sequences.
 * bitm_backend_slice: tokens of a slice there; n_tokens, where they are too few for all threads,
 * cannot be cut, or need not be.
 * bitm_backend_slice_room: tokens of the slices of all threads, or in one that is not cut, at most.
 * bitm_backend_of_worker: the same backend on thread number `worker` alone, for slices of n_tokens.
 */
bool bitm_backend_can_slice(const bitm_layer *layer);
uint32_t bitm_backend_slice(const bitm_backend *backend, const bitm_layer *layer,
                            uint32_t n_tokens);
uint32_t bitm_backend_slice_room(const bitm_backend *backend);
bitm_backend bitm_backend_of_worker(const bitm_backend *backend, uint32_t worker,
                                    uint32_t n_tokens);

/* context [n_queries, A] = attention of a layer within each sequence; x [n_tokens, H] are the
 * layer's inputs, query [n_queries, A], key and value [n_tokens, A] their linears' outputs, which
 * may be overwritten.  Sequence s has the queries from queries->first[s] on; they are its tokens,
 * or where bitm_backend_can_choose, some of them. */
void bitm_backend_attention(bitm_backend *backend, const bitm_layer *layer, const bitm_spans *spans,
                            const bitm_spans *queries, const float *x, float *query, float *key,
                            float *value, float *context);

/* Whether a token's outputs of a layer are the same where some tokens alone are asked for: no
 * quantizer looks at the others. */
bool bitm_backend_can_choose(const bitm_network *network, const bitm_layer *layer);

/* y [n_tokens, n] = norm(x + residual), residual may be NULL, y may be x. */
void bitm_backend_add_norm(bitm_backend *backend, const float *x, const float *residual,
                           const bitm_norm *norm, float eps, uint32_t n_tokens, uint32_t n,
                           float *y);

/* The ops that a network runs with these activations: bit i for bitm_op i. */
uint64_t bitm_backend_ops(const bitm_network *network, bitm_activations activations);

/* Packs the weights of a bound network as its kernels want them, in every activation mode, and
 * finds limits where a GELU need not be computed.  The arena measures first and places in a second
 * call; a kernel that reads the file's layout takes nothing. */
void bitm_backend_pack(bitm_network *network, const bitm_kernel_table *kernels, bitm_arena *arena);

#endif
