#include "make_file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "file.h"
#include "random.h"

const file_shape small_shape = {
    .vocab_size = 101,
    .hidden_size = 70,
    .n_layers = 2,
    .n_heads = 3,
    .head_size = 17,
    .intermediate_size = 75,
    .max_positions = 40,
};

enum { MAX_TENSORS = 128 };

typedef struct plan {
    const file_shape *shape;
    bitm_file_tensor tensors[MAX_TENSORS];
    uint32_t n_tensors;
} plan;

/* ---- What is in the file ---- */

/* Adds the tensor whose name is layer, name and suffix in a row. */
static bitm_file_tensor *add(plan *p, const char *layer, const char *name, const char *suffix,
                             bitm_dtype dtype, uint32_t rows, uint32_t columns)
{
    bitm_file_tensor *tensor = &p->tensors[p->n_tensors++];
    uint64_t n_words = (columns + 63) / 64;
    uint64_t n_row_bytes = dtype == BITM_DTYPE_BIT1  ? 8 * n_words
                           : dtype == BITM_DTYPE_F16 ? (uint64_t)2 * columns
                                                     : (uint64_t)4 * columns;
    (void)snprintf(tensor->name, sizeof tensor->name, "%s%s%s", layer, name, suffix);
    tensor->dtype = dtype;
    tensor->rank = columns > 1 ? 2 : 1;
    tensor->rows = rows;
    tensor->columns = columns;
    tensor->data_bytes = rows * n_row_bytes;
    return tensor;
}

static void add_linear(plan *p, const char *layer, const char *name, uint32_t rows,
                       uint32_t columns)
{
    bitm_file_tensor *weight = add(p, layer, name, ".weight", BITM_DTYPE_BIT1, rows, columns);
    weight->scale_layout = BITM_LAYOUT_ROW;
    weight->n_scales = rows;
    add(p, layer, name, ".weight.scale", BITM_DTYPE_F32, rows, 1);
    add(p, layer, name, ".bias", BITM_DTYPE_F32, rows, 1);
}

static void add_norm(plan *p, const char *layer, const char *name)
{
    add(p, layer, name, ".gain", BITM_DTYPE_F32, p->shape->hidden_size, 1);
    add(p, layer, name, ".bias", BITM_DTYPE_F32, p->shape->hidden_size, 1);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const bitm_file_tensor *)a)->name, ((const bitm_file_tensor *)b)->name);
}

static void add_tensors(plan *p)
{
    const file_shape *shape = p->shape;
    uint32_t hidden = shape->hidden_size, attention = shape->n_heads * shape->head_size;
    add(p, "embeddings", ".word", ".weight", BITM_DTYPE_F16, shape->vocab_size, hidden);
    add(p, "embeddings", ".position", ".weight", BITM_DTYPE_F16, shape->max_positions, hidden);
    add(p, "embeddings", ".token_type", ".weight", BITM_DTYPE_F16, 2, hidden);
    add_norm(p, "embeddings", ".norm");
    for (uint32_t n = 0; n < shape->n_layers; n++) {
        char layer[24];
        (void)snprintf(layer, sizeof layer, "layers.%u", n);
        add_linear(p, layer, ".query", attention, hidden);
        add_linear(p, layer, ".key", attention, hidden);
        add_linear(p, layer, ".value", attention, hidden);
        add_linear(p, layer, ".attention_output", hidden, attention);
        add_norm(p, layer, ".attention_norm");
        add_linear(p, layer, ".intermediate", shape->intermediate_size, hidden);
        add_linear(p, layer, ".output", hidden, shape->intermediate_size);
        add_norm(p, layer, ".output_norm");
    }
    add_linear(p, "mlm", ".transform", hidden, hidden);
    add_norm(p, "mlm", ".norm");
    add(p, "mlm", ".decoder", ".bias", BITM_DTYPE_F32, shape->vocab_size, 1);
    qsort(p->tensors, p->n_tensors, sizeof p->tensors[0], by_name);
}

static bitm_file_config config_of(const file_shape *shape)
{
    return (bitm_file_config){
        .architecture = 1,
        .vocab_size = shape->vocab_size,
        .hidden_size = shape->hidden_size,
        .n_layers = shape->n_layers,
        .n_heads = shape->n_heads,
        .head_size = shape->head_size,
        .intermediate_size = shape->intermediate_size,
        .max_positions = shape->max_positions,
        .n_token_types = 2,
        .hidden_activation = BITM_ACTIVATION_GELU,
        .layer_norm_eps = 1e-3F,
        .attention_normalizer = BITM_NORMALIZER_SOFTMAX,
        .score_scale = 1.0F / sqrtf((float)shape->head_size),
        .head = BITM_HEAD_MASKED_LM,
        .head_activation = BITM_ACTIVATION_GELU,
        .head_norm_eps = 1e-3F,
        .tokenizer = 1,
        .tokenizer_flags =
            BITM_TOKENIZER_LOWERCASE | BITM_TOKENIZER_STRIP_ACCENTS | BITM_TOKENIZER_SPLIT_CJK,
        .max_word_chars = 100,
        .unk_id = FILE_UNK,
        .cls_id = FILE_CLS,
        .sep_id = FILE_SEP,
        .pad_id = FILE_PAD,
        .mask_id = FILE_MASK,
    };
}

/* Writes the offsets and the bytes of the tokens to a place that has room; returns the length. */
static size_t write_vocabulary(uint8_t *place)
{
    static const char *const special[] = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"};
    uint32_t offsets[FILE_TOKENS + 1] = {0};
    char *bytes = (char *)place + sizeof offsets;
    for (uint32_t i = 0; i < FILE_TOKENS; i++) {
        char letter[2] = {(char)('a' + (int)i - FILE_LETTER_A), 0};
        const char *token = i < FILE_LETTER_A ? special[i] : letter;
        offsets[i + 1] = offsets[i] + (uint32_t)strlen(token);
        memcpy(bytes + offsets[i], token, strlen(token));
    }
    memcpy(place, offsets, sizeof offsets);
    return sizeof offsets + offsets[FILE_TOKENS];
}

/* ---- The bytes ---- */

static void write_tensor(const bitm_file_tensor *tensor, random_state *random, uint8_t *place)
{
    size_t n = (size_t)tensor->rows * tensor->columns, n_words = (tensor->columns + 63) / 64;
    if (tensor->dtype == BITM_DTYPE_F32) {
        for (size_t i = 0; i < n; i++)
            ((float *)(void *)place)[i] = random_float(random);
    } else if (tensor->dtype == BITM_DTYPE_F16) {
        /* A random sign and fraction; exponents from 2^-4 to 2^-1. */
        for (size_t i = 0; i < n; i++)
            ((uint16_t *)(void *)place)[i] =
                (uint16_t)((random_u64(random) & 0x83FF) | ((11 + random_below(random, 4)) << 10));
    } else {
        for (size_t i = 0; i < tensor->rows * n_words; i++) {
            size_t n_bits = tensor->columns - i % n_words * 64;
            uint64_t mask = n_bits < 64 ? ((uint64_t)1 << n_bits) - 1 : ~(uint64_t)0;
            ((uint64_t *)(void *)place)[i] = random_u64(random) & mask;
        }
    }
}

static uint64_t aligned(uint64_t n)
{
    return (n + 63) & ~(uint64_t)63;
}

void *make_file(const file_shape *shape, uint64_t seed, size_t *n_bytes)
{
    plan p = {.shape = shape};
    add_tensors(&p);
    uint8_t vocabulary[512] = {0};
    size_t n_vocabulary = write_vocabulary(vocabulary);
    bitm_file_header header = {.magic = {0x89, 'B', 'I', 'T', '\r', '\n', 0x1A, '\n'},
                               .version = 1,
                               .header_bytes = sizeof header,
                               .n_tensors = p.n_tensors,
                               .n_tokens = FILE_TOKENS,
                               .vocabulary_bytes = n_vocabulary};
    bitm_file_config config = config_of(shape);
    size_t table_bytes = p.n_tensors * sizeof p.tensors[0];
    size_t vocabulary_at = sizeof header + sizeof config + table_bytes;
    header.data_offset = vocabulary_at + aligned(n_vocabulary);
    header.file_bytes = header.data_offset;
    for (uint32_t i = 0; i < p.n_tensors; i++) {
        p.tensors[i].data_offset = header.file_bytes;
        header.file_bytes += aligned(p.tensors[i].data_bytes);
    }

    size_t file_bytes = (size_t)header.file_bytes;
    uint8_t *file = aligned_alloc(64, file_bytes);
    if (file == NULL) return NULL;
    memset(file, 0, file_bytes);
    random_state random = {seed};
    for (uint32_t i = 0; i < p.n_tensors; i++) {
        uint8_t *data = file + p.tensors[i].data_offset;
        write_tensor(&p.tensors[i], &random, data);
        p.tensors[i].crc32c = bitm_crc32c(0, data, (size_t)p.tensors[i].data_bytes);
    }
    memcpy(file + sizeof header, &config, sizeof config);
    memcpy(file + sizeof header + sizeof config, p.tensors, table_bytes);
    memcpy(file + vocabulary_at, vocabulary, n_vocabulary);
    header.tables_crc32c =
        bitm_crc32c(0, file + sizeof header, (size_t)header.data_offset - sizeof header);
    header.header_crc32c = bitm_crc32c(0, &header, offsetof(bitm_file_header, header_crc32c));
    memcpy(file, &header, sizeof header);
    *n_bytes = file_bytes;
    return file;
}
