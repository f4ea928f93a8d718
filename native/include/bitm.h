/* bitm: a runtime for 1-bit BERT encoders.  This header is the whole public API of libbitm.
 *
 * Rules.  A model is immutable after it is opened and may be shared by any number of threads.  A
 * session holds the working memory and the threads of one caller: two sessions run in parallel,
 * one session used by two threads at a time answers BITM_BUSY.  Nothing is allocated while a
 * session runs, nothing is printed, no environment variable is read, the process is never aborted.
 * A model must outlive its sessions.  Option structs begin with struct_size = sizeof the struct.
 *
 * Text is UTF-8 with an explicit length in bytes.  Arrays are row-major; shapes are given as [B,
 * S]: B sequences of S tokens, H hidden size, V vocabulary size, C labels.
 */
#ifndef BITM_H
#define BITM_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#if defined(BITM_BUILD)
#define BITM_API __declspec(dllexport)
#else
#define BITM_API
#endif
#elif defined(__GNUC__)
#define BITM_API __attribute__((visibility("default")))
#else
#define BITM_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* cffi: begin (runtime/bitm/_cdef.py is made from here to the end mark) */

/* Values never change and are never used again for something else; gaps are for growth. */
typedef enum bitm_status {
    BITM_OK = 0,
    BITM_ARGUMENT = 1,    /* an argument is impossible (NULL, zero, out of range) */
    BITM_NO_MEMORY = 2,   /* the system refused memory, or the caller's arena is too small */
    BITM_IO = 3,          /* the operating system could not open, read or write a file */
    BITM_UNSUPPORTED = 4, /* a legal request that this build or this machine cannot serve */
    BITM_BUSY = 5,        /* the session is in use by another thread */
    BITM_INTERNAL = 6,    /* a mistake of bitm itself: please report it */
    BITM_DEVICE = 7,      /* a device (a GPU) is not there, or its driver reports a failure */

    /* What can be wrong with a .bitm file; formats/SPEC.md says which rule gives which status. */
    BITM_FILE_MAGIC = 20,
    BITM_FILE_VERSION = 21,
    BITM_FILE_FEATURE = 22,
    BITM_FILE_TRUNCATED = 23,
    BITM_FILE_TRAILING = 24,
    BITM_FILE_HEADER = 25,
    BITM_FILE_HEADER_CHECKSUM = 26,
    BITM_FILE_TABLES_CHECKSUM = 27,
    BITM_FILE_LIMIT = 28,
    BITM_FILE_SECTION = 29,
    BITM_FILE_CONFIG = 30,
    BITM_FILE_NAME = 31,
    BITM_FILE_TENSOR_ORDER = 32,
    BITM_FILE_TENSOR_DTYPE = 33,
    BITM_FILE_TENSOR_SHAPE = 34,
    BITM_FILE_TENSOR_PLACE = 35,
    BITM_FILE_TENSOR_MISSING = 36,
    BITM_FILE_TENSOR_UNKNOWN = 37,
    BITM_FILE_QUANTIZER = 38,
    BITM_FILE_VOCABULARY = 39,
    BITM_FILE_METADATA = 40,
    BITM_FILE_TENSOR_CHECKSUM = 41,
    BITM_FILE_PADDING = 42,
    BITM_FILE_VALUE = 43,
    BITM_FILE_RESERVED = 44,
    BITM_FILE_TENSOR_LAYOUT = 45,

    /* What can be wrong with the input of a run. */
    BITM_TOO_LONG = 60, /* more tokens than the model has positions, or than the session holds */
    BITM_NO_MASK = 61,  /* the text has no mask token */
    BITM_TOKEN = 62,    /* a token id or token type is outside of the model's table */
    BITM_POSITION = 63, /* a requested position is outside of the sequence, or is padding */
    BITM_TEXT = 64,     /* the text is not valid UTF-8 */
    BITM_NO_HEAD = 65,  /* the model has no head for this request */
    BITM_NO_VOCABULARY = 66 /* the file carries no vocabulary, and the request needs one */
} bitm_status;

/* Filled when a function fails; the caller owns it.  Every function accepts NULL for it. */
typedef struct bitm_error {
    bitm_status status;
    char message[508]; /* one line of UTF-8, terminated */
} bitm_error;

/* "FILE_MAGIC" for BITM_FILE_MAGIC; "UNKNOWN" for a number that is no status. Never NULL. */
BITM_API const char *bitm_status_name(bitm_status status);

/* "0.1.0" */
BITM_API const char *bitm_version(void);

/* ---- Model ---- */

typedef struct bitm_model bitm_model;

typedef struct bitm_model_options {
    uint32_t struct_size;
    uint32_t reserved; /* 0 */
    /* "op=variant,..." forces kernels, for instance "gemm_w1a8=scalar"; NULL: the best of this CPU.
     * A GPU has one choice, "attention=tensor": attention on its tensor cores, faster, with a bound
     * on its error instead of the CPU's bits (docs/cuda.md); BITM_UNSUPPORTED elsewhere. */
    const char *kernels;
    /* Where the model's own memory comes from; all three NULL: the C library. */
    void *(*allocate)(void *context, size_t n_bytes);
    void (*release)(void *context, void *memory);
    void *allocator_context;
    /* What runs the model: "cpu", "cuda", "cuda:N" for device number N, or "auto": the first GPU
     * that can, otherwise the CPU; NULL: "cpu".  A GPU needs libbitm_cuda beside this library, or
     * beside the program that this library is linked into. */
    const char *device;
} bitm_model_options;

/* Opens a .bitm file and maps it.  options may be NULL.  On failure *model is NULL. */
BITM_API bitm_status bitm_model_open(const char *path, const bitm_model_options *options,
                                     bitm_model **model, bitm_error *err);

/* Opens a .bitm file that lies in memory, aligned to 64 bytes; the memory must outlive the model.
 */
BITM_API bitm_status bitm_model_open_memory(const void *bytes, size_t n_bytes,
                                            const bitm_model_options *options, bitm_model **model,
                                            bitm_error *err);

/* Accepts NULL. */
BITM_API void bitm_model_close(bitm_model *model);

/* Reads all data: checksums, padding, finite values (formats/SPEC.md section 5, step 13). */
BITM_API bitm_status bitm_model_verify(const bitm_model *model, bitm_error *err);

typedef struct bitm_model_properties {
    uint32_t struct_size;
    uint32_t vocab_size;
    uint32_t hidden_size;
    uint32_t n_layers;
    uint32_t n_heads;
    uint32_t head_size;
    uint32_t intermediate_size;
    uint32_t max_positions;
    uint32_t n_token_types;
    uint32_t head; /* formats/SPEC.md 3.2: 0 none, 1 masked LM, ... */
    uint32_t n_labels;
    uint32_t problem;
    uint32_t n_tokens; /* of the vocabulary */
    int32_t unk_id;
    int32_t cls_id;
    int32_t sep_id;
    int32_t pad_id;
    int32_t mask_id;
    uint64_t file_bytes;
    uint64_t encoder_weights;  /* elements of the matrices of the layers */
    uint64_t encoder_bytes;    /* bytes of their codes, without scales and biases */
    uint64_t embedding_bytes;  /* bytes of the codes of embedding tables */
    uint64_t model_bytes;      /* memory that the open model took beside the file */
    uint32_t one_bit_matrices; /* matrices of the layers stored as bits, two bits, */
    uint32_t ternary_matrices;
    uint32_t float_matrices;        /* and as floats or bytes */
    uint32_t quantizes_activations; /* 1 when the file defines its own activation quantizers */
} bitm_model_properties;

/* Fills properties (whose struct_size the caller has set). */
BITM_API bitm_status bitm_model_info(const bitm_model *model, bitm_model_properties *properties,
                                     bitm_error *err);

/* What runs the model, in one line: "cpu", or "cuda:0: ", the device's name and its products. Owned
 * by the model; NULL where model is. */
BITM_API const char *bitm_model_device(const bitm_model *model);

/* What a device, named as in bitm_model_options (NULL or "auto": the first GPU), is, or why it
 * cannot be used: err->message is filled either way, with one line. */
BITM_API bitm_status bitm_device_probe(const char *device, bitm_error *err);

/* The value of a metadata key (not terminated, owned by the model), or NULL; n_bytes may be NULL.
 */
BITM_API const char *bitm_model_metadata(const bitm_model *model, const char *key, size_t *n_bytes);

/* An entry of the metadata, owned by the model; neither text is terminated. */
typedef struct bitm_metadata {
    const char *key;
    const char *value;
    size_t n_key_bytes;
    size_t n_value_bytes;
} bitm_metadata;

/* Moves entry on to the model's next, from all zeros to the first; returns 0 after the last. */
BITM_API uint32_t bitm_model_next_metadata(const bitm_model *model, bitm_metadata *entry);

typedef struct bitm_kernel {
    const char *op;      /* "gemm_w1a8" */
    const char *variant; /* "scalar" */
    uint32_t available;  /* 1 when this CPU and operating system can run it */
    uint32_t chosen;     /* 1 when a model takes it for its op */
    uint32_t modes;      /* bit (1 << bitm_activations) for each mode in which the model runs it */
} bitm_kernel;

/* Lists every kernel of the library, best first within an op, and returns how many there are;
 * writes at most `capacity`.  model may be NULL: then `chosen` is what a model would take by
 * default. */
BITM_API size_t bitm_kernels(const bitm_model *model, bitm_kernel *kernels, size_t capacity);

/* ---- Text ---- */

/* The bytes [begin, end) of a text. */
typedef struct bitm_span {
    size_t begin;
    size_t end;
} bitm_span;

/* Text -> [CLS] pieces [SEP].  Writes at most `capacity` ids; *n_ids is how many there are.  spans,
 * which may be NULL, has room for as many, and says where in the text each id comes from; [0, 0)
 * for the [CLS] and [SEP] that are added. */
BITM_API bitm_status bitm_tokenize(const bitm_model *model, const char *text, size_t n_bytes,
                                   int32_t *ids, bitm_span *spans, size_t capacity, size_t *n_ids,
                                   bitm_error *err);

/* Ids -> text as transformers' decode() gives.  Writes at most `capacity` bytes, the last of them
 * 0; *n_bytes is the length without it. */
BITM_API bitm_status bitm_decode(const bitm_model *model, const int32_t *ids, size_t n_ids,
                                 uint32_t skip_special_tokens, char *text, size_t capacity,
                                 size_t *n_bytes, bitm_error *err);

/* The same for rows of ids that lie one behind the other, of which row r ends before
 * ids[id_ends[r]].  So do their texts, with nothing between: text r ends before text[text_ends[r]],
 * also where that is beyond `capacity`. */
BITM_API bitm_status bitm_decode_rows(const bitm_model *model, const int32_t *ids,
                                      const size_t *id_ends, size_t n_rows,
                                      uint32_t skip_special_tokens, char *text, size_t capacity,
                                      size_t *text_ends, bitm_error *err);

/* The id of a token, -1 where the vocabulary has none of that spelling. */
BITM_API int32_t bitm_token_id(const bitm_model *model, const char *token, size_t n_bytes);

/* ---- Session ---- */

typedef struct bitm_session bitm_session;

/* Arithmetic of activations where the file leaves it open (weights-only models). */
typedef enum bitm_activations {
    BITM_ACTIVATIONS_AUTO = 0,  /* the fastest that keeps the model's answers: int11 */
    BITM_ACTIVATIONS_INT8 = 1,  /* attention included */
    BITM_ACTIVATIONS_INT16 = 2, /* of the inputs of linears */
    BITM_ACTIVATIONS_FLOAT32 = 3,
    BITM_ACTIVATIONS_INT11 = 4 /* as int16, of 1,365 codes */
} bitm_activations;

typedef struct bitm_session_options {
    uint32_t struct_size;
    uint32_t max_batch;   /* sequences of one run; 0: 1 */
    uint32_t max_length;  /* tokens of one sequence; 0: as many as the model has positions */
    uint32_t n_threads;   /* 0: the CPUs that this process may use; 1: no thread is started */
    uint32_t activations; /* bitm_activations */
    uint32_t reserved;    /* 0 */
    void *arena; /* the caller's memory, aligned to 64 bytes; NULL: the model's allocator */
    size_t arena_bytes;
} bitm_session_options;

/* The bytes that bitm_session_create would take for these options; options may be NULL. */
BITM_API bitm_status bitm_session_bytes(const bitm_model *model,
                                        const bitm_session_options *options, size_t *n_bytes,
                                        bitm_error *err);

/* What a model and a session take together. */
typedef struct bitm_memory {
    uint32_t struct_size;
    uint32_t n_threads;     /* that the session computes with, the caller's included */
    uint64_t file_bytes;    /* mapped: the system reads what is used, and may take it back */
    uint64_t model_bytes;   /* that bitm_model_open takes beside the file */
    uint64_t session_bytes; /* that bitm_session_create takes */
    uint64_t stack_bytes;   /* of the session's threads, without the caller's */
} bitm_memory;

/* Tells the memory that a model file and a session of it will need, before it is taken: only the
 * tables of the model, less than model_bytes, are made for a moment.  Options may be NULL;
 * properties, which may be NULL, is filled too (the caller has set struct_size of both). */
BITM_API bitm_status bitm_memory_measure(const char *path, const bitm_model_options *model_options,
                                         const bitm_session_options *session_options,
                                         bitm_model_properties *properties, bitm_memory *memory,
                                         bitm_error *err);

/* On failure *session is NULL. */
BITM_API bitm_status bitm_session_create(const bitm_model *model,
                                         const bitm_session_options *options,
                                         bitm_session **session, bitm_error *err);

/* Accepts NULL.  Must not be called while the session runs. */
BITM_API void bitm_session_free(bitm_session *session);

/* The number of threads that the session computes with, the caller's included. */
BITM_API uint32_t bitm_session_threads(const bitm_session *session);

/* ---- Running ---- */

typedef enum bitm_output {
    BITM_OUTPUT_LOGITS = 0,        /* masked LM [B, S, V], or [B, P, V] with positions */
    BITM_OUTPUT_HIDDEN_STATES = 1, /* [B, S, H] after layer `layer` */
} bitm_output;

typedef struct bitm_batch {
    uint32_t struct_size;
    uint32_t n_sequences;          /* B */
    uint32_t length;               /* S, padding included */
    uint32_t n_positions;          /* P */
    const int32_t *input_ids;      /* [B, S] */
    const int32_t *attention_mask; /* [B, S], 0 where padding; NULL: no padding */
    const int32_t *token_type_ids; /* [B, S]; NULL: all 0 */
    const int32_t *positions;      /* [B, P]: logits at these tokens alone, -1: none; NULL: all */
    uint32_t output;               /* bitm_output */
    int32_t layer;                 /* hidden states: 0 embeddings ... n_layers; -1: the last */
} bitm_batch;

/* Runs a batch.  output holds n_output floats, exactly as many as bitm_output says; rows of padding
 * and of position -1 become 0.  The result does not depend on batch, padding or threads. */
BITM_API bitm_status bitm_run(bitm_session *session, const bitm_batch *batch, float *output,
                              size_t n_output, bitm_error *err);

typedef struct bitm_prediction {
    float score; /* softmax over the vocabulary, or over the targets' logits' vocabulary */
    int32_t token;
} bitm_prediction;

/* The top_k best tokens at each position of a batch: predictions [B, P, top_k], best first, equal
 * scores by lower id; token -1 and score 0 at position -1.  With targets, only those ids take part.
 */
BITM_API bitm_status bitm_run_top_k(bitm_session *session, const bitm_batch *batch, uint32_t top_k,
                                    const int32_t *targets, size_t n_targets,
                                    bitm_prediction *predictions, size_t n_predictions,
                                    bitm_error *err);

/* Fills the mask tokens of a text: predictions [n_masks, top_k], where the array has room for
 * `capacity` predictions.  *n_masks is the number of masks; BITM_NO_MASK without any. */
BITM_API bitm_status bitm_fill_mask(bitm_session *session, const char *text, size_t n_bytes,
                                    uint32_t top_k, bitm_prediction *predictions, size_t capacity,
                                    size_t *n_masks, bitm_error *err);

/* Softmax of each row of x [n_rows, n_columns], in place: a classifier's scores from its logits. */
BITM_API bitm_status bitm_softmax(float *x, size_t n_rows, size_t n_columns, bitm_error *err);

/* 1 / (1 + e^-x) of each of n elements, in place: scores of labels that exclude no other. */
BITM_API bitm_status bitm_sigmoid(float *x, size_t n, bitm_error *err);

/* cffi: end */

#ifdef __cplusplus
}
#endif

#endif
