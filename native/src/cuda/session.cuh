/* A session on the device, between session.cu (its memory) and forward.cu (what it computes). */
#ifndef BITM_CUDA_SESSION_CUH
#define BITM_CUDA_SESSION_CUH

#include "head.cuh"
#include "host.h"

namespace bitm {

enum { QUERY, KEY, VALUE, N_OPERANDS };
enum { LOW_RANK_TERMS = 4 };
enum { MAX_TOP_K = 1024, MAX_TARGETS = 1 << 20 };

/* Inputs of a linear, made: see Encoding. */
struct Encoded {
    uint4 *planes;
    float *step, *sum, *base; /* [T] */
    int32_t *code_sum;        /* [T] */
    uint32_t *n_nonzero;      /* [T] */
};

/* A norm makes the inputs of up to three linears; a product and attention those of the next while
 * they read their own. */
enum { LATER = 3, N_ENCODED };

/* Arrays on the device.  T tokens, H hidden, A attention, I intermediate size. */
struct Buffers {
    uint8_t *input;
    float *hidden;                        /* [T, H] */
    float *query, *key, *value, *context; /* [T, A] */
    float *intermediate;                  /* [T, I] */
    float *output;                        /* [T, H] */
    float *head_input, *head_output;      /* [rows, H] */
    float *logits;                        /* [rows, V or C] */
    Prediction *best;                     /* [rows, MAX_TOP_K] */
    Encoded encoded[N_ENCODED];
    float *floats;                  /* inputs of the linear at work, where these are floats */
    float *ones;                    /* [T] */
    float *extremes;                /* [T, 2] */
    uint4 *key_codes, *value_codes; /* attention of bytes: [T, heads, pieces of a head] */
    float *key_step;                /* [T, heads] */
    int16_t *codes[N_OPERANDS];     /* [T, A] */
    float *operand_step[N_OPERANDS], *operand_base[N_OPERANDS]; /* [T] */
    float *low_rank[LOW_RANK_TERMS];                            /* [T, R] */
    float *value_term;                                          /* [T] */
    float *probability_extremes;                                /* [T, heads, 2] */
};

/* The packed tokens of a run, on the device, padded with tokens of no sequence and with empty
 * sequences. */
struct Batch {
    uint32_t n_tokens, n_sequences, max_length;
    bool is_in_blocks; /* no sequence has tokens of two blocks of TOKEN_BLOCK */
    const int32_t *ids, *types, *positions;
    const uint32_t *sequence_of; /* [n_tokens] */
    const uint32_t *first;       /* [n_sequences + 2] */
};

/* Rows that a head is asked for. */
struct Rows {
    uint32_t n, n_padded;
    const uint32_t *tokens;
    const int32_t *targets;
    uint32_t n_candidates, top_k;
};

/* A recorded encoder, and the shape that it is for. */
struct GraphKey {
    uint32_t n_tokens, n_sequences, max_length, is_in_blocks, n_layers;
};

struct Graph {
    GraphKey key;
    uint64_t n_uses, last_use;
    cudaGraphExec_t exec; /* NULL: not recorded yet */
};

enum { N_GRAPHS = 32 };

/* How attention is cut into blocks. */
struct AttentionShape {
    uint32_t n_queries, n_keys;
    size_t shared_bytes;
};

bitm_attention_form attention_form(const bitm_device_model *model, const Layer &layer,
                                   uint32_t activations);
bool is_masked_lm(const bitm_device_model *model);

/* False where a block cannot hold what attention over so many tokens needs.  n_blocks: of 64
 * queries, that there are; with few of them blocks are made smaller. */
bool attention_shape(const bitm_device_model *model, uint32_t max_length, uint32_t n_blocks,
                     AttentionShape *shape);

/* Words of the arrays of an input, in the block that carries it. */
size_t token_words(const bitm_device_limits &limits);

/* Bytes of the block that carries an input, and of the one that carries results. */
size_t input_bytes(const bitm_device_limits &limits);
size_t result_bytes(const bitm_device_model *model, const bitm_device_limits &limits);

} // namespace bitm

struct bitm_device_session {
    const bitm_device_model *model;
    bitm_device_limits limits;
    uint8_t *memory;
    bitm::Buffers buffers;
    uint8_t *host_input, *host_results; /* page-locked */
    size_t host_input_bytes, host_result_bytes;
    cudaStream_t stream;
    bitm::Batch batch; /* the last one encoded */
    bitm::Graph graphs[bitm::N_GRAPHS];
    uint64_t n_runs;
};

namespace bitm {

bitm_status prepare_forward(bitm_device_session *session, bitm_error *err);

/* Enqueues the encoder over session->batch. */
bitm_status forward(bitm_device_session *session, uint32_t n_layers, bitm_error *err);

/* Enqueues a head; *made [n_bytes] on the device. */
bitm_status run_head(bitm_device_session *session, bitm_device_task task, const Rows &rows,
                     const void **made, size_t *n_bytes, bitm_error *err);

} // namespace bitm

#endif
