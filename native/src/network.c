#include "network.h"

#include <stdio.h>
#include <string.h>

#include "kernels/canonical.h"

enum { MAX_ENTRIES = 1 << 16 }; /* tensors or quantizers, SPEC.md section 6 */

/* What binding needs at hand; marks tell at the end which entries of the file nobody asked for. */
typedef struct binder {
    const bitm_file *file;
    const bitm_file_config *config;
    bitm_arena *arena;
    bitm_error *err;
    bitm_network *network;
    uint8_t tensor_used[MAX_ENTRIES / 8];
    uint8_t quantizer_used[MAX_ENTRIES / 8];
} binder;

typedef char slot_name[BITM_FILE_NAME_BYTES];

static const char *const dtype_names[] = {"none", "f32", "f16", "i8", "bit1", "tern"};

/* Names come from fixed lists and are far shorter than their room. */
static void join(slot_name name, const char *prefix, const char *suffix)
{
    size_t n = 0;
    for (; *prefix != '\0' && n + 1 < sizeof(slot_name); prefix++)
        name[n++] = *prefix;
    for (; *suffix != '\0' && n + 1 < sizeof(slot_name); suffix++)
        name[n++] = *suffix;
    name[n] = '\0';
}

/* ---- Entries of the file ---- */

/* NULL where the file has no tensor `prefix` + `suffix`. */
static const bitm_file_tensor *find(binder *b, const char *prefix, const char *suffix,
                                    slot_name name)
{
    join(name, prefix, suffix);
    const bitm_file_tensor *tensor = bitm_file_find_tensor(b->file, name);
    if (tensor != NULL) {
        size_t number = (size_t)(tensor - b->file->tensors);
        b->tensor_used[number / 8] |= (uint8_t)(1U << number % 8);
    }
    return tensor;
}

static bitm_status check_shape(binder *b, const bitm_file_tensor *tensor, uint32_t rank,
                               uint32_t rows, uint32_t columns)
{
    BITM_CHECK(tensor->rank == rank && tensor->rows == rows && tensor->columns == columns,
               BITM_FILE_TENSOR_SHAPE, b->err,
               "tensor %s: expected rank %u, shape [%u, %u], found rank %u, shape [%u, %u]",
               tensor->name, rank, rows, columns, tensor->rank, tensor->rows, tensor->columns);
    return BITM_OK;
}

static bitm_status bind_vector(binder *b, const char *prefix, const char *suffix, uint32_t n,
                               bool required, const float **vector)
{
    slot_name name;
    const bitm_file_tensor *tensor = find(b, prefix, suffix, name);
    *vector = NULL;
    BITM_CHECK(tensor != NULL || !required, BITM_FILE_TENSOR_MISSING, b->err,
               "tensor %s is missing, expected shape [%u]", name, n);
    if (tensor == NULL) return BITM_OK;
    BITM_TRY(check_shape(b, tensor, 1, n, 1));
    BITM_CHECK(tensor->dtype == BITM_DTYPE_F32, BITM_FILE_TENSOR_DTYPE, b->err,
               "tensor %s: expected f32, found %s", name, dtype_names[tensor->dtype]);
    *vector = bitm_file_tensor_data(b->file, tensor);
    return BITM_OK;
}

static bitm_status check_no_columns(binder *b, const bitm_file_tensor *tensor, const char *place)
{
    BITM_CHECK(
        tensor->scale_layout != BITM_LAYOUT_COLUMN && tensor->offset_layout != BITM_LAYOUT_COLUMN,
        BITM_FILE_TENSOR_LAYOUT, b->err,
        "tensor %s: layout column is not allowed where quantizer %s is", tensor->name, place);
    return BITM_OK;
}

/* A matrix without its scales and offsets. */
static bitm_status find_matrix(binder *b, const char *prefix, const char *suffix, uint32_t rows,
                               uint32_t columns, bool required, slot_name name, bitm_matrix *matrix)
{
    const bitm_file_tensor *tensor = find(b, prefix, suffix, name);
    *matrix = (bitm_matrix){.tensor = tensor};
    BITM_CHECK(tensor != NULL || !required, BITM_FILE_TENSOR_MISSING, b->err,
               "tensor %s is missing, expected shape [%u, %u]", name, rows, columns);
    if (tensor == NULL) return BITM_OK;
    BITM_TRY(check_shape(b, tensor, 2, rows, columns));
    matrix->data = bitm_file_tensor_data(b->file, tensor);
    return BITM_OK;
}

/* A matrix with its scales and offsets.  quantizer: the place whose quantizer forbids columns. */
static bitm_status bind_matrix(binder *b, const char *prefix, const char *suffix, uint32_t rows,
                               uint32_t columns, bool required,
                               const bitm_file_quantizer *quantizer, bitm_matrix *matrix)
{
    slot_name name;
    BITM_TRY(find_matrix(b, prefix, suffix, rows, columns, required, name, matrix));
    const bitm_file_tensor *tensor = matrix->tensor;
    if (tensor == NULL) return BITM_OK;
    if (quantizer != NULL) BITM_TRY(check_no_columns(b, tensor, quantizer->name));
    if (tensor->n_scales > 0)
        BITM_TRY(bind_vector(b, name, ".scale", tensor->n_scales, true, &matrix->scales));
    if (tensor->n_offsets > 0)
        BITM_TRY(bind_vector(b, name, ".offset", tensor->n_offsets, true, &matrix->offsets));
    return BITM_OK;
}

static const bitm_file_quantizer *find_quantizer(binder *b, const char *prefix, const char *suffix)
{
    slot_name name;
    join(name, prefix, suffix);
    return bitm_file_find_quantizer(b->file, name);
}

/* Marks a quantizer as one of this network's; checks that its kind is allowed there later, in the
 * order of the file's table (check_quantizers). */
static void use_quantizer(binder *b, const bitm_file_quantizer *quantizer, bool allowed)
{
    if (quantizer == NULL || !allowed) return;
    size_t number = (size_t)(quantizer - b->file->quantizers);
    b->quantizer_used[number / 8] |= (uint8_t)(1U << number % 8);
}

/* ---- Elements ---- */

static float code_of(const bitm_matrix *matrix, size_t row, size_t column)
{
    const bitm_file_tensor *tensor = matrix->tensor;
    size_t n_words = ((size_t)tensor->columns + 63) / 64;
    const uint64_t *words = matrix->data;
    size_t word = row * n_words + column / 64;
    switch (tensor->dtype) {
    case BITM_DTYPE_F32:
        return ((const float *)matrix->data)[row * tensor->columns + column];
    case BITM_DTYPE_F16:
        return bitm_f16_to_f32(((const uint16_t *)matrix->data)[row * tensor->columns + column]);
    case BITM_DTYPE_I8:
        return (float)((const int8_t *)matrix->data)[row * tensor->columns + column];
    case BITM_DTYPE_BIT1:
        return words[word] >> column % 64 & 1 ? 1.0F : -1.0F;
    default: /* tern */
        if (!(words[word] >> column % 64 & 1)) return 0.0F;
        return words[tensor->rows * n_words + word] >> column % 64 & 1 ? 1.0F : -1.0F;
    }
}

/* ---- Parts of the network ---- */

/* One value for each row, whatever the layout; by column it is `otherwise`, as without any. */
static const float *per_row(binder *b, const float *values, uint32_t layout, uint32_t n_values,
                            uint32_t rows, const float *otherwise)
{
    if (layout == BITM_LAYOUT_NONE || layout == BITM_LAYOUT_COLUMN) return otherwise;
    if (layout == BITM_LAYOUT_ROW) return values;
    float *expanded = bitm_arena_take(b->arena, rows, sizeof *expanded);
    for (uint32_t r = 0; expanded != NULL && r < rows; r++)
        expanded[r] = values[r / (rows / n_values)];
    return expanded;
}

/* What a branch has beside its matrix. */
static bitm_status bind_branch_vectors(binder *b, const char *name, uint32_t rows, uint32_t columns,
                                       bool rms_allowed, bitm_branch *branch)
{
    BITM_TRY(bind_vector(b, name, ".bias", rows, false, &branch->bias));
    BITM_TRY(bind_vector(b, name, ".shift", columns, false, &branch->shift));
    BITM_CHECK(branch->shift == NULL || branch->quantizer != NULL, BITM_FILE_QUANTIZER, b->err,
               "tensor %s.shift: it needs the quantizer %s, which is missing", name, name);
    if (rms_allowed) BITM_TRY(bind_vector(b, name, ".rms.gain", columns, false, &branch->rms_gain));
    BITM_CHECK(branch->rms_gain == NULL || b->config->rms_norm_eps > 0, BITM_FILE_CONFIG, b->err,
               "tensor %s.rms.gain: it needs rms_norm_eps above 0", name);
    use_quantizer(b, branch->quantizer,
                  branch->quantizer != NULL && branch->quantizer->kind != BITM_QUANTIZER_BOOL);
    return BITM_OK;
}

bool bitm_quantizer_has_base(const bitm_file_quantizer *quantizer)
{
    return quantizer->kind == BITM_QUANTIZER_INT_MIN || quantizer->kind == BITM_QUANTIZER_DYN_ASYM;
}

/* What a base of the inputs adds to each row: row_scale * sum of the row's codes, of bits or
 * ternary. */
static const float *base_of_rows(binder *b, const bitm_branch *branch)
{
    uint32_t dtype = branch->weight.tensor->dtype, rows = branch->weight.tensor->rows;
    if (branch->quantizer == NULL || !bitm_quantizer_has_base(branch->quantizer)) return NULL;
    if (dtype != BITM_DTYPE_BIT1 && dtype != BITM_DTYPE_TERN) return NULL;
    float *base = bitm_arena_take(b->arena, rows, sizeof *base);
    for (size_t r = 0; base != NULL && r < rows; r++) {
        int32_t sum = 0;
        for (size_t c = 0; c < branch->weight.tensor->columns; c++)
            sum += (int32_t)code_of(&branch->weight, r, c);
        base[r] = branch->row_scale[r] * (float)sum;
    }
    return base;
}

/* What the kernels want beside the file's own arrays. */
static void prepare_branch(binder *b, bitm_branch *branch)
{
    const bitm_matrix *weight = &branch->weight;
    const bitm_file_tensor *tensor = weight->tensor;
    if (branch->bias == NULL) branch->bias = b->network->zeros;
    branch->row_scale = per_row(b, weight->scales, tensor->scale_layout, tensor->n_scales,
                                tensor->rows, b->network->ones);
    branch->row_offset =
        per_row(b, weight->offsets, tensor->offset_layout, tensor->n_offsets, tensor->rows, NULL);
    if (tensor->scale_layout == BITM_LAYOUT_COLUMN) branch->column_scale = weight->scales;
    if (tensor->offset_layout == BITM_LAYOUT_COLUMN) {
        branch->column_offset = weight->offsets;
        branch->row_offset = b->network->ones;
    }
    branch->row_base = base_of_rows(b, branch);
}

static bitm_status bind_linear(binder *b, const char *prefix, const char *suffix, uint32_t rows,
                               uint32_t columns, bitm_linear *linear)
{
    slot_name name, second;
    join(name, prefix, suffix);
    join(second, name, ".second");
    *linear = (bitm_linear){.rows = rows, .columns = columns, .n_branches = 1};

    bitm_branch *branch = &linear->branches[0];
    branch->quantizer = find_quantizer(b, name, "");
    BITM_TRY(
        bind_matrix(b, name, ".weight", rows, columns, true, branch->quantizer, &branch->weight));
    BITM_TRY(bind_branch_vectors(b, name, rows, columns, true, branch));
    prepare_branch(b, branch);

    branch = &linear->branches[1];
    branch->quantizer = find_quantizer(b, second, "");
    BITM_TRY(bind_matrix(b, second, ".weight", rows, columns, false, branch->quantizer,
                         &branch->weight));
    if (branch->weight.tensor == NULL) return BITM_OK;
    linear->n_branches = 2;
    BITM_TRY(bind_branch_vectors(b, second, rows, columns, false, branch));
    prepare_branch(b, branch);
    return BITM_OK;
}

/* A linear of floats without anything else: the low-rank and value terms. */
static bitm_status bind_float_linear(binder *b, const char *prefix, const char *suffix,
                                     uint32_t rows, uint32_t columns, bitm_linear *linear)
{
    slot_name name, weight;
    join(name, prefix, suffix);
    *linear = (bitm_linear){.rows = rows, .columns = columns, .n_branches = 1};
    bitm_branch *branch = &linear->branches[0];
    BITM_TRY(find_matrix(b, name, ".weight", rows, columns, true, weight, &branch->weight));
    const bitm_file_tensor *tensor = branch->weight.tensor;
    BITM_CHECK(tensor->dtype == BITM_DTYPE_F32 || tensor->dtype == BITM_DTYPE_F16,
               BITM_FILE_TENSOR_DTYPE, b->err, "tensor %s: expected f32 or f16, found %s",
               tensor->name, dtype_names[tensor->dtype]);
    BITM_TRY(bind_vector(b, name, ".bias", rows, false, &branch->bias));
    prepare_branch(b, branch);
    return BITM_OK;
}

/* The decoder: a matrix of its own, or the word embeddings and their second part. */
static bitm_status bind_decoder(binder *b, bitm_network *network)
{
    uint32_t rows = b->config->vocab_size, columns = b->config->hidden_size;
    bitm_linear *decoder = &network->mlm_decoder;
    *decoder = (bitm_linear){.rows = rows, .columns = columns, .n_branches = 1};
    bitm_branch *branch = &decoder->branches[0];
    branch->quantizer = find_quantizer(b, "mlm.decoder", "");
    BITM_TRY(bind_matrix(b, "mlm.decoder", ".weight", rows, columns, false, branch->quantizer,
                         &branch->weight));
    bool tied = branch->weight.tensor == NULL;
    if (tied) {
        branch->weight = network->word;
        if (network->word_second.tensor != NULL) {
            decoder->n_branches = 2;
            decoder->branches[1] = *branch;
            decoder->branches[1].weight = network->word_second;
        }
        for (uint32_t i = 0; branch->quantizer != NULL && i < decoder->n_branches; i++)
            BITM_TRY(check_no_columns(b, decoder->branches[i].weight.tensor, "mlm.decoder"));
    }
    BITM_TRY(bind_branch_vectors(b, "mlm.decoder", rows, columns, true, branch));
    prepare_branch(b, branch);
    if (decoder->n_branches == 2) {
        bitm_branch *second = &decoder->branches[1];
        second->shift = branch->shift;
        second->rms_gain = branch->rms_gain;
        prepare_branch(b, second);
    }
    return BITM_OK;
}

static bitm_status bind_norm(binder *b, const char *prefix, const char *suffix, uint32_t n,
                             bitm_norm *norm)
{
    slot_name name;
    join(name, prefix, suffix);
    BITM_TRY(bind_vector(b, name, ".gain", n, true, &norm->gain));
    return bind_vector(b, name, ".bias", n, true, &norm->bias);
}

/* A quantizer of attention.  with_minimum: whether the kinds with a least value are allowed. */
static const bitm_file_quantizer *bind_quantizer(binder *b, const char *layer, const char *suffix,
                                                 bool with_minimum, bool with_bool)
{
    const bitm_file_quantizer *quantizer = find_quantizer(b, layer, suffix);
    if (quantizer == NULL) return NULL;
    bool has_minimum =
        quantizer->kind == BITM_QUANTIZER_INT_MIN || quantizer->kind == BITM_QUANTIZER_DYN_ASYM;
    use_quantizer(b, quantizer,
                  (with_minimum || !has_minimum) &&
                      (with_bool || quantizer->kind != BITM_QUANTIZER_BOOL));
    return quantizer;
}

static bitm_status bind_layer(binder *b, uint32_t number, uint32_t attention_size,
                              bitm_layer *layer)
{
    const bitm_file_config *config = b->config;
    uint32_t hidden = config->hidden_size, rank = config->score_rank;
    slot_name name;
    (void)snprintf(name, sizeof name, "layers.%u", number);

    BITM_TRY(bind_linear(b, name, ".query", attention_size, hidden, &layer->query));
    BITM_TRY(bind_linear(b, name, ".key", attention_size, hidden, &layer->key));
    BITM_TRY(bind_linear(b, name, ".value", attention_size, hidden, &layer->value));
    if (rank > 0) {
        BITM_TRY(bind_float_linear(b, name, ".low_rank.query_p", rank, hidden, &layer->query_p));
        BITM_TRY(bind_float_linear(b, name, ".low_rank.query_m", rank, hidden, &layer->query_m));
        BITM_TRY(bind_float_linear(b, name, ".low_rank.key_p", rank, hidden, &layer->key_p));
        BITM_TRY(bind_float_linear(b, name, ".low_rank.key_m", rank, hidden, &layer->key_m));
    }
    if (config->value_term)
        BITM_TRY(bind_float_linear(b, name, ".value_term", 1, hidden, &layer->value_term));
    layer->quantize_query = bind_quantizer(b, name, ".attention.query", false, false);
    layer->quantize_key = bind_quantizer(b, name, ".attention.key", false, false);
    layer->quantize_value = bind_quantizer(b, name, ".attention.value", true, false);
    layer->quantize_probabilities =
        bind_quantizer(b, name, ".attention.probabilities", true,
                       config->attention_normalizer == BITM_NORMALIZER_NONE);

    BITM_TRY(bind_linear(b, name, ".attention_output", hidden, attention_size,
                         &layer->attention_output));
    BITM_TRY(bind_norm(b, name, ".attention_norm", hidden, &layer->attention_norm));
    BITM_TRY(bind_linear(b, name, ".intermediate", config->intermediate_size, hidden,
                         &layer->intermediate));
    BITM_TRY(bind_linear(b, name, ".output", hidden, config->intermediate_size, &layer->output));
    return bind_norm(b, name, ".output_norm", hidden, &layer->output_norm);
}

static bitm_status bind_heads(binder *b, bitm_network *network)
{
    const bitm_file_config *config = b->config;
    uint32_t hidden = config->hidden_size, head = config->head;
    if (config->pooler != BITM_POOLER_NONE)
        BITM_TRY(bind_linear(b, "pooler", "", hidden, hidden, &network->pooler));
    if (config->pooler == BITM_POOLER_NORM_SKIP)
        BITM_TRY(bind_norm(b, "pooler.norm", "", hidden, &network->pooler_norm));
    if (head == BITM_HEAD_MASKED_LM || head == BITM_HEAD_MASKED_LM_NEXT_SENTENCE) {
        BITM_TRY(bind_linear(b, "mlm.transform", "", hidden, hidden, &network->mlm_transform));
        BITM_TRY(bind_norm(b, "mlm.norm", "", hidden, &network->mlm_norm));
        BITM_TRY(bind_decoder(b, network));
    }
    if (head == BITM_HEAD_MASKED_LM_NEXT_SENTENCE)
        BITM_TRY(bind_linear(b, "next_sentence", "", 2, hidden, &network->next_sentence));
    if (head == BITM_HEAD_CLASSIFIER || head == BITM_HEAD_TOKEN_CLASSIFIER ||
        head == BITM_HEAD_QUESTION_ANSWERING)
        BITM_TRY(bind_linear(b, "classifier", "", config->n_labels, hidden, &network->classifier));
    return BITM_OK;
}

/* ---- The whole ---- */

static bitm_status check_whole(binder *b)
{
    const bitm_file *file = b->file;
    for (size_t i = 0; i < file->header->n_tensors; i++)
        BITM_CHECK(b->tensor_used[i / 8] >> i % 8 & 1, BITM_FILE_TENSOR_UNKNOWN, b->err,
                   "tensor %s: the network has no such tensor", file->tensors[i].name);
    for (size_t i = 0; i < file->header->n_quantizers; i++)
        BITM_CHECK(b->quantizer_used[i / 8] >> i % 8 & 1, BITM_FILE_QUANTIZER, b->err,
                   "quantizer %s: the network has no such place, or kind %u is not allowed there",
                   file->quantizers[i].name, file->quantizers[i].kind);
    if (b->config->attention_normalizer != BITM_NORMALIZER_NONE) return BITM_OK;
    for (uint32_t n = 0; n < b->config->n_layers; n++) {
        slot_name name;
        (void)snprintf(name, sizeof name, "layers.%u.attention.probabilities", n);
        BITM_CHECK(bitm_file_find_quantizer(file, name) != NULL, BITM_FILE_QUANTIZER, b->err,
                   "quantizer %s is missing, but attention_normalizer is 0", name);
    }
    return BITM_OK;
}

static uint32_t larger(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* The arrays that stand in for scales and biases which the file leaves out. */
static void take_constants(binder *b)
{
    const bitm_file_config *config = b->config;
    uint32_t n = larger(config->hidden_size, config->intermediate_size);
    n = larger(n, b->network->attention_size);
    n = larger(larger(n, config->n_labels), larger(config->score_rank, 2));
    if (config->head == BITM_HEAD_MASKED_LM || config->head == BITM_HEAD_MASKED_LM_NEXT_SENTENCE)
        n = larger(n, config->vocab_size);
    float *zeros = bitm_arena_take(b->arena, n, sizeof *zeros);
    float *ones = bitm_arena_take(b->arena, n, sizeof *ones);
    for (uint32_t i = 0; ones != NULL && i < n; i++) {
        zeros[i] = 0.0F;
        ones[i] = 1.0F;
    }
    b->network->zeros = zeros;
    b->network->ones = ones;
}

bitm_status bitm_network_bind(bitm_network *network, const bitm_file *file, bitm_arena *arena,
                              bitm_error *err)
{
    const bitm_file_config *config = file->config;
    binder b = {.file = file, .config = config, .arena = arena, .err = err, .network = network};
    uint32_t hidden = config->hidden_size;
    *network =
        (bitm_network){.config = config, .attention_size = config->n_heads * config->head_size};
    take_constants(&b);
    network->layers = bitm_arena_take(arena, config->n_layers, sizeof *network->layers);

    BITM_TRY(bind_matrix(&b, "embeddings.word", ".weight", config->vocab_size, hidden, true, NULL,
                         &network->word));
    BITM_TRY(bind_matrix(&b, "embeddings.word.second", ".weight", config->vocab_size, hidden, false,
                         NULL, &network->word_second));
    BITM_TRY(bind_matrix(&b, "embeddings.position", ".weight", config->max_positions, hidden, true,
                         NULL, &network->position));
    BITM_TRY(bind_matrix(&b, "embeddings.token_type", ".weight", config->n_token_types, hidden,
                         true, NULL, &network->token_type));
    BITM_TRY(bind_norm(&b, "embeddings.norm", "", hidden, &network->embedding_norm));

    for (uint32_t n = 0; n < config->n_layers; n++) {
        bitm_layer measured = {0};
        bitm_layer *layer = network->layers != NULL ? &network->layers[n] : &measured;
        *layer = measured;
        BITM_TRY(bind_layer(&b, n, network->attention_size, layer));
    }
    BITM_TRY(bind_heads(&b, network));
    return check_whole(&b);
}

const bitm_linear *bitm_network_linear(const bitm_network *network, uint32_t i)
{
    enum { N_LAYER = 11, N_HEADS = 5 };
    uint32_t n_layers = network->config->n_layers;
    if (i < n_layers * N_LAYER) {
        const bitm_layer *l = &network->layers[i / N_LAYER];
        const bitm_linear *const of_layer[N_LAYER] = {
            &l->query,        &l->key,    &l->value,     &l->attention_output,
            &l->intermediate, &l->output, &l->query_p,   &l->query_m,
            &l->key_p,        &l->key_m,  &l->value_term};
        return of_layer[i % N_LAYER];
    }
    const bitm_linear *const of_heads[N_HEADS] = {&network->pooler, &network->mlm_transform,
                                                  &network->mlm_decoder, &network->next_sentence,
                                                  &network->classifier};
    i -= n_layers * N_LAYER;
    return i < N_HEADS ? of_heads[i] : NULL;
}

/* ---- Rows ---- */

static size_t place_of(uint32_t layout, uint32_t n_values, uint32_t rows, size_t row, size_t column)
{
    switch (layout) {
    case BITM_LAYOUT_ROW_GROUP:
        return row / (rows / n_values);
    case BITM_LAYOUT_ROW:
        return row;
    case BITM_LAYOUT_COLUMN:
        return column;
    default:
        return 0;
    }
}

void bitm_matrix_row(const bitm_matrix *matrix, size_t row, float *values)
{
    const bitm_file_tensor *t = matrix->tensor;
    if (t->dtype == BITM_DTYPE_F16) { /* as a rule; compilers make vectors of this loop */
        const uint16_t *halves = (const uint16_t *)matrix->data + row * t->columns;
        for (size_t c = 0; c < t->columns; c++)
            values[c] = bitm_f16_to_f32(halves[c]);
    } else {
        for (size_t c = 0; c < t->columns; c++)
            values[c] = code_of(matrix, row, c);
    }
    for (size_t c = 0; matrix->scales != NULL && c < t->columns; c++)
        values[c] *= matrix->scales[place_of(t->scale_layout, t->n_scales, t->rows, row, c)];
    for (size_t c = 0; matrix->offsets != NULL && c < t->columns; c++)
        values[c] += matrix->offsets[place_of(t->offset_layout, t->n_offsets, t->rows, row, c)];
}
