/* The .bitm container (formats/SPEC.md): records as they lie in the file, parsing, verification.
 *
 * Knows nothing of networks or kernels.  A bitm_file is a view: it borrows the caller's bytes,
 * which must stay unchanged and alive, and owns nothing.
 */
#ifndef BITM_FILE_H
#define BITM_FILE_H

#include <stdbool.h>

#include "status.h"

enum {
    BITM_FILE_ALIGNMENT = 64,
    BITM_FILE_NAME_BYTES = 64, /* of a tensor or a quantizer, with the terminating zero */
};

typedef enum bitm_dtype {
    BITM_DTYPE_F32 = 1,
    BITM_DTYPE_F16 = 2,
    BITM_DTYPE_I8 = 3,
    BITM_DTYPE_BIT1 = 4,
    BITM_DTYPE_TERN = 5,
} bitm_dtype;

typedef enum bitm_layout {
    BITM_LAYOUT_NONE = 0,
    BITM_LAYOUT_TENSOR = 1,
    BITM_LAYOUT_ROW_GROUP = 2,
    BITM_LAYOUT_ROW = 3,
    BITM_LAYOUT_COLUMN = 4,
} bitm_layout;

typedef enum bitm_quantizer_kind {
    BITM_QUANTIZER_NONE = 0, /* not in files: a place without an entry */
    BITM_QUANTIZER_SIGN = 1,
    BITM_QUANTIZER_INT = 2,
    BITM_QUANTIZER_INT_MIN = 3,
    BITM_QUANTIZER_DYN_SYM = 4,
    BITM_QUANTIZER_DYN_ASYM = 5,
    BITM_QUANTIZER_BOOL = 6,
} bitm_quantizer_kind;

typedef enum bitm_scope {
    BITM_SCOPE_STATIC = 0,
    BITM_SCOPE_TOKEN = 1,
    BITM_SCOPE_SEQUENCE = 2,
} bitm_scope;

typedef enum bitm_activation {
    BITM_ACTIVATION_NONE = 0, /* where a file has no such function */
    BITM_ACTIVATION_GELU = 1,
    BITM_ACTIVATION_GELU_TANH = 2,
    BITM_ACTIVATION_RELU = 3,
    BITM_ACTIVATION_SWISH = 4,
    BITM_ACTIVATION_MISH = 5,
} bitm_activation;

enum { BITM_NORMALIZER_NONE = 0, BITM_NORMALIZER_SOFTMAX = 1 };
enum { BITM_POOLER_NONE = 0, BITM_POOLER_TANH = 1, BITM_POOLER_NORM_SKIP = 2 };
enum {
    BITM_HEAD_NONE = 0,
    BITM_HEAD_MASKED_LM = 1,
    BITM_HEAD_MASKED_LM_NEXT_SENTENCE = 2,
    BITM_HEAD_CLASSIFIER = 3,
    BITM_HEAD_TOKEN_CLASSIFIER = 4,
    BITM_HEAD_QUESTION_ANSWERING = 5,
};
enum { BITM_FLAG_PROBABILITY_MIN_ZERO = 1 };
enum {
    BITM_TOKENIZER_LOWERCASE = 1,
    BITM_TOKENIZER_STRIP_ACCENTS = 2,
    BITM_TOKENIZER_SPLIT_CJK = 4
};
enum { BITM_QUANTIZER_CLIP = 1 };

/* SPEC.md 3.1 */
typedef struct bitm_file_header {
    uint8_t magic[8];
    uint32_t version;
    uint32_t header_bytes;
    uint64_t file_bytes;
    uint64_t required_features;
    uint64_t optional_features;
    uint32_t n_tensors;
    uint32_t n_quantizers;
    uint32_t n_tokens;
    uint32_t n_metadata;
    uint64_t vocabulary_bytes;
    uint64_t metadata_bytes;
    uint64_t data_offset;
    uint8_t reserved[24];
    uint8_t ignored[16];
    uint32_t tables_crc32c;
    uint32_t header_crc32c;
} bitm_file_header;

/* SPEC.md 3.2 */
typedef struct bitm_file_config {
    uint32_t architecture;
    uint32_t vocab_size;
    uint32_t hidden_size;
    uint32_t n_layers;
    uint32_t n_heads;
    uint32_t head_size;
    uint32_t intermediate_size;
    uint32_t max_positions;
    uint32_t n_token_types;
    uint32_t hidden_activation;
    float layer_norm_eps;
    uint32_t attention_normalizer;
    float score_scale;
    uint32_t score_rank;
    uint32_t value_term;
    float rms_norm_eps;
    uint32_t pooler;
    float pooler_norm_eps;
    uint32_t head;
    uint32_t n_labels;
    uint32_t problem;
    uint32_t head_activation;
    float head_norm_eps;
    uint32_t flags;
    uint32_t tokenizer;
    uint32_t tokenizer_flags;
    uint32_t max_word_chars;
    int32_t unk_id;
    int32_t cls_id;
    int32_t sep_id;
    int32_t pad_id;
    int32_t mask_id;
    uint8_t reserved[64];
} bitm_file_config;

/* SPEC.md 3.3 */
typedef struct bitm_file_tensor {
    char name[BITM_FILE_NAME_BYTES];
    uint32_t dtype;
    uint32_t rank;
    uint32_t rows;
    uint32_t columns;
    uint32_t scale_layout;
    uint32_t n_scales;
    uint32_t offset_layout;
    uint32_t n_offsets;
    uint64_t data_offset;
    uint64_t data_bytes;
    uint32_t crc32c;
    uint8_t reserved[12];
} bitm_file_tensor;

/* SPEC.md 3.4 */
typedef struct bitm_file_quantizer {
    char name[BITM_FILE_NAME_BYTES];
    uint32_t kind;
    uint32_t scope;
    int32_t lo;
    int32_t hi;
    float step;
    float eps;
    uint32_t flags;
    float clip_lo;
    float clip_hi;
    uint8_t reserved[28];
} bitm_file_quantizer;

_Static_assert(sizeof(bitm_file_header) == 128, "SPEC.md 3.1");
_Static_assert(sizeof(bitm_file_config) == 192, "SPEC.md 3.2");
_Static_assert(sizeof(bitm_file_tensor) == 128, "SPEC.md 3.3");
_Static_assert(sizeof(bitm_file_quantizer) == 128, "SPEC.md 3.4");
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the records are used in place: bitm runs on little-endian machines"
#endif

typedef struct bitm_file {
    const uint8_t *bytes;
    const bitm_file_header *header;
    const bitm_file_config *config;
    const bitm_file_tensor *tensors;       /* [header->n_tensors] */
    const bitm_file_quantizer *quantizers; /* [header->n_quantizers] */
    const uint32_t *token_offsets;         /* [header->n_tokens + 1], NULL without vocabulary */
    const char *token_bytes;
    const uint8_t *metadata; /* header->metadata_bytes */
} bitm_file;

/* Checks steps 1 to 11 of SPEC.md section 5 on n_bytes at `bytes` (aligned to 64) and fills *file.
 */
bitm_status bitm_file_parse(bitm_file *file, const void *bytes, uint64_t n_bytes, bitm_error *err);

/* Checks step 13 on a parsed file: reads all data. */
bitm_status bitm_file_verify(const bitm_file *file, bitm_error *err);

/* NULL where there is no such entry. */
const bitm_file_tensor *bitm_file_find_tensor(const bitm_file *file, const char *name);
const bitm_file_quantizer *bitm_file_find_quantizer(const bitm_file *file, const char *name);

/* The data of a tensor of this file, aligned to 64 bytes. */
const void *bitm_file_tensor_data(const bitm_file *file, const bitm_file_tensor *tensor);

/* An entry of the metadata; neither text is terminated. */
typedef struct bitm_file_metadata {
    const char *key;
    const char *value;
    uint32_t n_key_bytes;
    uint32_t n_value_bytes;
} bitm_file_metadata;

/* Moves on to the next entry, from all zeros to the first; false after the last. */
bool bitm_file_next_metadata(const bitm_file *file, bitm_file_metadata *entry);

/* CRC-32C (RFC 3720) of more bytes; start with crc = 0. */
uint32_t bitm_crc32c(uint32_t crc, const void *bytes, size_t n_bytes);

#endif
