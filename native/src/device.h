/* A device that runs forward passes: what its library, opened on demand, offers libbitm.
 *
 * The library exports one function, of the name and type below.  It gets a bound network and its
 * memory, keeps its own copy of both on the device, and computes the same bits as the CPU, unless
 * it is asked for tensor_attention.  It
 * allocates when models and sessions are made, never while they run.  All failures are statuses
 * with the driver's text: BITM_NO_MEMORY, or BITM_DEVICE. */
#ifndef BITM_DEVICE_H
#define BITM_DEVICE_H

#include "network.h"

enum { BITM_DEVICE_VERSION = 3 };

/* Where the network's pointers lead: the file, and what was made when it was bound. */
typedef struct bitm_device_memory {
    const void *base;
    size_t n_bytes;
} bitm_device_memory;

typedef enum bitm_device_task {
    BITM_DEVICE_HIDDEN,    /* hidden states [H] */
    BITM_DEVICE_MASKED_LM, /* logits [V] */
    BITM_DEVICE_TOP_K,     /* bitm_prediction [top_k] */
    BITM_DEVICE_CLASSIFY,  /* logits [C] of a sequence by its first token */
    BITM_DEVICE_TOKENS,    /* logits [C] of a token */
} bitm_device_task;

/* Real tokens of some sequences, packed as bitm_packed has them. */
typedef struct bitm_device_input {
    uint32_t n_sequences, n_tokens;
    const uint32_t *first;                  /* [n_sequences + 1] */
    const int32_t *ids, *types, *positions; /* [n_tokens] */
} bitm_device_input;

/* What is wanted of some tokens of the last input. */
typedef struct bitm_device_request {
    bitm_device_task task;
    const uint32_t *tokens; /* [n_rows] */
    uint32_t n_rows;
    const int32_t *targets; /* BITM_DEVICE_TOP_K: [n_candidates], NULL: the whole vocabulary */
    uint32_t n_candidates, top_k;
} bitm_device_request;

/* The most that a session takes at once: asked for, and lowered to what the device has room for. */
typedef struct bitm_device_limits {
    uint32_t max_tokens;
    uint32_t max_length;  /* of a sequence; never lowered */
    uint32_t max_rows;    /* of a request for logits; one for hidden states takes max_tokens */
    uint32_t activations; /* bitm_activations, never AUTO */
} bitm_device_limits;

typedef struct bitm_device_model bitm_device_model;
typedef struct bitm_device_session bitm_device_session;

typedef struct bitm_device_api {
    uint32_t version;     /* BITM_DEVICE_VERSION */
    uint32_t struct_size; /* of this struct */

    /* The number of devices; BITM_DEVICE, and why, where there is none. */
    bitm_status (*count)(uint32_t *n, bitm_error *err);
    /* One line: the device, and the products that run there. */
    bitm_status (*describe)(uint32_t device, char *text, size_t n_bytes, bitm_error *err);

    /* Uploads a network.  The model keeps pointers to its configuration and quantizers, which must
     * outlive it.  tensor_attention: the products of float attention run on tensor cores, not in
     * the CPU's order; BITM_UNSUPPORTED where the device has none for them. */
    bitm_status (*model_create)(uint32_t device, const bitm_network *network,
                                const bitm_device_memory memory[2], bool tensor_attention,
                                bitm_device_model **model, bitm_error *err);
    void (*model_free)(bitm_device_model *model);
    /* The line of its device.  Owned by the model. */
    const char *(*model_description)(const bitm_device_model *model);
    uint64_t (*model_bytes)(const bitm_device_model *model);

    /* Lowers the limits to what a session will have; *n_bytes of the device's memory. */
    bitm_status (*session_plan)(const bitm_device_model *model, bitm_device_limits *limits,
                                uint64_t *n_bytes, bitm_error *err);
    bitm_status (*session_create)(const bitm_device_model *model, const bitm_device_limits *limits,
                                  bitm_device_session **session, bitm_error *err);
    void (*session_free)(bitm_device_session *session);

    /* Hidden states of the input after n_layers layers, left on the device.  Returns before they
     * are there. */
    bitm_status (*encode)(bitm_device_session *session, const bitm_device_input *input,
                          uint32_t n_layers, bitm_error *err);
    /* *results: rows in the order of the request, valid until the session's next call. */
    bitm_status (*finish)(bitm_device_session *session, const bitm_device_request *request,
                          const void **results, bitm_error *err);
} bitm_device_api;

#define BITM_DEVICE_SYMBOL "bitm_device_cuda"
typedef const bitm_device_api *bitm_device_entry(void);

#endif
