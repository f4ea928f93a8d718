/* One head of one sequence, at work in the general form of attention: its codes and buffers, and
 * its scores (attention_scores.c); what follows from them is in attention_general.c. */
#ifndef BITM_ATTENTION_HEAD_H
#define BITM_ATTENTION_HEAD_H

#include "backend.h"
#include "code_rows.h"

enum {
    BITM_QUERY,
    BITM_KEY,
    BITM_VALUE,
    BITM_N_OPERANDS,
    BITM_PROBABILITIES = BITM_N_OPERANDS,
    BITM_N_QUANTIZERS
};

enum { BITM_HEAD_ROWS = 32 }; /* queries at work */

/* What is looked up by the distances of a query from its keys: a table for each distance of the
 * nearest one, made when it is met. */
typedef struct bitm_distance_tables {
    float exponentials[BITM_DISTANCES + 1][BITM_DISTANCES];
    uint8_t state[BITM_DISTANCES + 1];
} bitm_distance_tables;

/* One thread's room for one head of one sequence, in 64-bit words from the start of its part. */
typedef struct bitm_head_room {
    size_t packed_keys; /* as the kernel of their product wants them */
    size_t packed_values;
    size_t keys;          /* [max_length, planes, words of a head] */
    size_t values;        /* [head_size, planes, words of a sequence] */
    size_t queries;       /* as keys */
    size_t probabilities; /* [BITM_HEAD_ROWS, planes, words of a sequence] */
    size_t codes;         /* [max_length] int16: probabilities of one row */
    size_t scores;        /* [BITM_HEAD_ROWS, max_length] float */
    size_t query_sums;    /* [max_length] int32: sums of a row's codes */
    size_t value_sums;    /* [head_size] */
    size_t dots;          /* [max_length] or [head_size] int32: of one row with keys, with values */
    size_t distances;     /* [max_length] uint8: of one query from the keys */
    size_t tables;        /* bitm_distance_tables */
    size_t end;           /* a multiple of the alignment */
} bitm_head_room;

/* The work of a layer. */
typedef struct bitm_head_work {
    bitm_backend *backend;
    const bitm_layer *layer;
    const bitm_spans *spans;
    const float *operands[BITM_N_OPERANDS]; /* [n_tokens, A], as quantized */
    bool integer_scores;                    /* query and key are codes */
    bool can_look_up;                       /* probabilities by distances of signs */
    bool integer_context; /* so are probabilities and value, in one step a sequence */
    bitm_head_room room;
    float *context; /* [n_tokens, A] */
} bitm_head_work;

/* One task of it. */
typedef struct bitm_head {
    const bitm_head_work *w;
    uint32_t sequence, number;
    uint32_t first;    /* token */
    uint32_t n_tokens; /* S */
    size_t place;      /* of the head's first component in a row of A */
    float *scores;     /* [BITM_HEAD_ROWS, S] */
    uint8_t *scratch;  /* of a product */
    /* Quantized operands. */
    bitm_code_rows queries, keys, values;
    bool scales_steps; /* scores are scaled by the queries' steps */
    bool looks_up;     /* probabilities by distances of signs */
    int32_t *query_sums, *value_sums;
    uint64_t *probabilities; /* [BITM_HEAD_ROWS, planes, words] */
    int16_t *codes;
    int32_t *dots;
    uint8_t *distances;
    bitm_distance_tables *tables;
} bitm_head;

/* The planes of an operand's token, of this head; *stride words before those of the next. */
const uint64_t *bitm_head_planes(const bitm_head *h, int operand,
                                 const bitm_file_quantizer *quantizer, size_t *stride);

/* outputs [n_rows, stride] = products of rows of codes with all weights, times row_scale and
 * token_step.  Rows are [planes, words] each. */
void bitm_head_multiply(const bitm_head *h, bitm_op op, const bitm_code_rows *weights,
                        const bitm_planes *rows, const int32_t *code_sum, uint32_t n_rows,
                        const float *row_scale, const float *token_step, float *outputs,
                        size_t stride);

/* The product of queries with keys that are signs. */
bitm_op bitm_head_score_product(const bitm_layer *layer);

/* Opens queries and keys for products. */
void bitm_head_open_scores(bitm_head *h);

/* scores [n, S] = probabilities of rows i to i + n before their quantizer, times sums [n]. */
void bitm_head_find_weights(const bitm_head *h, size_t i, uint32_t n, float sums[BITM_HEAD_ROWS]);

/* Opens queries and keys for distances, where that is possible and faster: no sign is 0. */
bool bitm_head_open_signs(bitm_head *h);

/* The bits of the probabilities of row i, and how many are 1, by the distances of its query from
 * the keys; false where these do not tell. */
bool bitm_head_look_up(bitm_head *h, uint32_t i, const bitm_quantization *quantization,
                       uint64_t *bits, int32_t *sum);

/* What bitm_head_find_weights does for one row, to scores [S], from the distances that
 * bitm_head_look_up left; returns the sum. */
float bitm_head_weights_of_distances(const bitm_head *h, float *scores);

#endif
