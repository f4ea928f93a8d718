/* The network of a file: SPEC.md section 4 as structs that the forward pass reads.
 *
 * Everything points into the file, or into the model's arena; nothing here changes after binding.
 */
#ifndef BITM_NETWORK_H
#define BITM_NETWORK_H

#include "arena.h"
#include "file.h"

typedef struct bitm_matrix {
    const bitm_file_tensor *tensor; /* shape, dtype, layouts */
    const void *data;               /* [rows, columns] as in the file */
    const float *scales, *offsets;  /* by the layouts; NULL: none */
} bitm_matrix;

/* The forms in which a linear takes its inputs. */
typedef enum bitm_input_form {
    BITM_INPUT_FLOAT,
    BITM_INPUT_I8,
    BITM_INPUT_I16,
    BITM_INPUT_SIGN,  /* two planes of bits: nonzero, positive */
    BITM_INPUT_PLANES /* the planes of two's complement codes of few bits */
} bitm_input_form;

enum { BITM_N_INPUT_FORMS = BITM_INPUT_PLANES + 1 };

/* One of the up to two summands of a linear: W Q(x) + bias. */
typedef struct bitm_branch {
    bitm_matrix weight;
    const void *packed[BITM_N_INPUT_FORMS]; /* the weight as the kernel of a form packs it; NULL:
                                               it reads the file's; bitm_backend_pack sets them */
    const bitm_file_quantizer *quantizer;   /* NULL: the runtime chooses */
    const float *shift;                     /* [columns], NULL: none */
    const float *rms_gain;                  /* [columns], NULL: no RMS norm */
    const float *bias;                      /* [rows], zeros where the file has none */
    const float *row_scale;     /* [rows], whatever the layout; ones with layout column */
    const float *row_offset;    /* [rows]; NULL: no offsets; ones with layout column */
    const float *row_base;      /* [rows], row_scale * sum of the row's codes, where the
                                   quantizer's values have a base; otherwise NULL */
    const float *column_scale;  /* [columns]; NULL: none */
    const float *column_offset; /* [columns]; NULL: none */
    const float *gelu_limits;   /* [columns], where the inputs lack a GELU that their codes are told
                                   without (bitm_gelu_codes); NULL: nowhere; bitm_backend_pack sets
                                   them */
} bitm_branch;

enum { BITM_MAX_BRANCHES = 2 };

typedef struct bitm_linear {
    uint32_t rows, columns;
    uint32_t n_branches;
    bitm_branch branches[BITM_MAX_BRANCHES];
} bitm_linear;

typedef struct bitm_norm {
    const float *gain, *bias; /* [n] */
} bitm_norm;

typedef struct bitm_layer {
    bitm_linear query, key, value;              /* [A, H] */
    bitm_linear query_p, query_m, key_p, key_m; /* [R, H], when score_rank > 0 */
    bitm_linear value_term;                     /* [1, H], when value_term is 1 */
    const bitm_file_quantizer *quantize_query;  /* NULL: none, as the following */
    const bitm_file_quantizer *quantize_key;
    const bitm_file_quantizer *quantize_value;
    const bitm_file_quantizer *quantize_probabilities;
    bitm_linear attention_output; /* [H, A] */
    bitm_norm attention_norm;     /* [H] */
    bitm_linear intermediate;     /* [I, H] */
    bitm_linear output;           /* [H, I] */
    bitm_norm output_norm;        /* [H] */
} bitm_layer;

typedef struct bitm_network {
    const bitm_file_config *config;
    const float *zeros, *ones;     /* as long as the longest row or column of a linear */
    uint32_t attention_size;       /* A = n_heads * head_size */
    bitm_matrix word, word_second; /* [V, H]; word_second.data NULL: none */
    bitm_matrix position;          /* [P, H] */
    bitm_matrix token_type;        /* [T, H] */
    bitm_norm embedding_norm;      /* [H] */
    bitm_layer *layers;            /* [n_layers] */
    bitm_linear pooler;            /* [H, H], when config->pooler is not 0 */
    bitm_norm pooler_norm;         /* [H], when it is 2 */
    bitm_linear mlm_transform;     /* [H, H], heads 1 and 2, as the following */
    bitm_norm mlm_norm;            /* [H] */
    bitm_linear mlm_decoder;       /* [V, H] */
    bitm_linear next_sentence;     /* [2, H], head 2 */
    bitm_linear classifier;        /* [C, H], heads 3, 4, 5 */
} bitm_network;

/* Checks step 12 of SPEC.md section 5 and binds the network to the file.  The arena measures first
 * and places in a second call, with equal results; *network is complete only after the second. */
bitm_status bitm_network_bind(bitm_network *network, const bitm_file *file, bitm_arena *arena,
                              bitm_error *err);

/* Linear number i of the network, those of the layers first; one that is absent has no branches.
 * NULL past the last. */
const bitm_linear *bitm_network_linear(const bitm_network *network, uint32_t i);

/* Whether values of this quantizer are step * code + a base that is not 0. */
bool bitm_quantizer_has_base(const bitm_file_quantizer *quantizer);

/* Writes row `row` of a matrix as floats: w = scale * code + offset, [columns]. */
void bitm_matrix_row(const bitm_matrix *matrix, size_t row, float *values);

#endif
