/* A session: the working memory and threads of one caller, and one run's packed tokens. */
#ifndef BITM_SESSION_H
#define BITM_SESSION_H

#include "backend.h"
#include "model.h"

/* The real tokens of some sequences of a batch, one after another, without padding. */
typedef struct bitm_packed {
    uint32_t n_sequences;
    uint32_t n_tokens;
    uint32_t *sequences; /* [n_sequences] numbers in the batch */
    uint32_t *first;     /* [n_sequences + 1] first token of each, and the end */
    int32_t *ids;        /* [n_tokens], as the following */
    int32_t *types;
    int32_t *positions; /* 0 ... S - 1, ascending within a sequence */
} bitm_packed;

/* The packed tokens whose hidden states a run is for; ascending. */
typedef struct bitm_chosen {
    bool all;         /* then the rest is not set */
    uint32_t *first;  /* [n_sequences + 1] of packed sequence s: tokens from first[s] on */
    uint32_t *tokens; /* [first[n_sequences]] */
} bitm_chosen;

/* A row of results: from a packed token to a place in the output. */
typedef struct bitm_row {
    uint32_t token; /* packed */
    size_t output;  /* row of the caller's array */
} bitm_row;

struct bitm_session {
    const bitm_model *model;
    bitm_allocator allocator;
    void *allocation; /* NULL: the caller's arena */
    atomic_flag busy;
    uint32_t max_batch, max_length;
    uint32_t max_tokens; /* packed at once: a batch of more is run in parts */
    uint32_t max_rows;   /* that a head treats at once */
    bitm_pool pool;
    bitm_backend backend;
    bitm_device_session *device; /* runs the forward pass; NULL: the backend does */
    bitm_packed packed;
    bitm_chosen chosen;
    bitm_row *rows; /* [max_rows], of which n_rows wait for the head */
    uint32_t n_rows;
    uint32_t *row_tokens; /* [max_rows], for the device */
    int32_t *text_ids;    /* [max_length], of bitm_fill_mask, as the following */
    int32_t *text_masks;  /* [max_length] */
    /* Floats of the forward pass (H hidden, A attention, I intermediate size). */
    float *hidden;                        /* [max_tokens, H] */
    float *query, *key, *value, *context; /* [max_tokens, A] */
    float *intermediate;                  /* [bitm_backend_slice_room, I] */
    float *output;                        /* [max_tokens, H] */
    float *head_input;                    /* [max_tokens, H] */
    float *head_output;                   /* [max_tokens, H] */
    float *logits;                        /* [BITM_TOP_K_ROWS, V], masked LM */
};

/* Logits of this many positions are held at once when only the best are wanted. */
enum { BITM_TOP_K_ROWS = 8 };

#endif
