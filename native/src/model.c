#include "model.h"

#include <string.h>

#include "backend.h"

#define STRINGIZED(x) #x
#define STRING_OF(x) STRINGIZED(x)

const char *bitm_version(void)
{
    return STRING_OF(BITM_VERSION);
}

bitm_status bitm_check_struct_size(uint32_t given, size_t known, const char *what, bitm_error *err)
{
    BITM_CHECK(given >= sizeof given && given <= 4096, BITM_ARGUMENT, err,
               "%s: struct_size is %u, expected %zu", what, given, known);
    return BITM_OK;
}

bitm_status bitm_read_options(void *options, size_t size, const void *given, const char *what,
                              bitm_error *err)
{
    if (given == NULL) return BITM_OK;
    uint32_t given_size;
    memcpy(&given_size, given, sizeof given_size);
    BITM_TRY(bitm_check_struct_size(given_size, size, what, err));
    /* Fields that a newer caller has appended must be 0: this library does not know them. */
    for (size_t i = size; i < given_size; i++)
        BITM_CHECK(((const uint8_t *)given)[i] == 0, BITM_UNSUPPORTED, err,
                   "%s: it sets a field that this library does not know", what);
    memcpy(options, given, given_size < size ? given_size : size);
    return BITM_OK;
}

bitm_status bitm_allocate_arena(const bitm_allocator *allocator, size_t n_bytes, bitm_arena *arena,
                                void **allocation, bitm_error *err)
{
    size_t mask = BITM_ARENA_ALIGNMENT - 1;
    *allocation =
        n_bytes <= SIZE_MAX - mask ? allocator->allocate(allocator->context, n_bytes + mask) : NULL;
    if (*allocation == NULL)
        return bitm_fail(err, BITM_NO_MEMORY, "the system refuses %zu bytes", n_bytes);
    *arena = (bitm_arena){.base = (uint8_t *)*allocation + (-(uintptr_t)*allocation & mask)};
    return BITM_OK;
}

static bitm_vocabulary vocabulary_of(const bitm_file *file)
{
    const bitm_file_config *config = file->config;
    return (bitm_vocabulary){
        .bytes = file->token_bytes,
        .offsets = file->token_offsets,
        .n_tokens = file->header->n_tokens,
        .lowercase = (config->tokenizer_flags & BITM_TOKENIZER_LOWERCASE) != 0,
        .strip_accents = (config->tokenizer_flags & BITM_TOKENIZER_STRIP_ACCENTS) != 0,
        .split_cjk = (config->tokenizer_flags & BITM_TOKENIZER_SPLIT_CJK) != 0,
        .max_word_chars = config->max_word_chars,
        .unk_id = config->unk_id,
        .cls_id = config->cls_id,
        .sep_id = config->sep_id,
        .pad_id = config->pad_id,
        .mask_id = config->mask_id,
    };
}

/* Everything of a model that takes memory, over a measuring or a placing arena. */
static bitm_status lay_out(const bitm_file *file, bitm_arena *arena, bitm_model **model,
                           bitm_error *err)
{
    *model = bitm_arena_take(arena, 1, sizeof **model);
    bitm_network network;
    BITM_TRY(bitm_network_bind(&network, file, arena, err));
    bitm_vocabulary vocabulary = vocabulary_of(file);
    void *index = NULL;
    if (vocabulary.n_tokens > 0)
        index = bitm_arena_take(arena, bitm_tokenizer_bytes(&vocabulary), 1);
    if (*model == NULL) return BITM_OK;
    (*model)->file = *file;
    (*model)->network = network;
    if (index == NULL) return BITM_OK;
    return bitm_tokenizer_init(&(*model)->tokenizer, &vocabulary, index, err);
}

/* How much memory weights as the kernels want them take: of a model laid out, whose kernels are
 * chosen. */
static bitm_status measure_packed(bitm_model *model, bitm_error *err)
{
    bitm_arena measure = {0};
    bitm_backend_pack(&model->network, &model->kernels, &measure);
    BITM_CHECK(!measure.overflow, BITM_NO_MEMORY, err,
               "the packed weights need more memory than this machine can address");
    model->packed_bytes = measure.n_used;
    return BITM_OK;
}

static bitm_status pack_weights(bitm_model *model, bitm_error *err)
{
    if (model->packed_bytes == 0) return BITM_OK;
    bitm_arena arena;
    BITM_TRY(bitm_allocate_arena(&model->allocator, model->packed_bytes, &arena,
                                 &model->packed_allocation, err));
    if (model->allocator.allocate == bitm_os_allocate)
        bitm_os_expect_use(model->packed_allocation, model->packed_bytes);
    bitm_backend_pack(&model->network, &model->kernels, &arena);
    return BITM_OK;
}

/* ---- Devices ---- */

static bitm_status find_devices(const bitm_device_api **api, uint32_t *n, bitm_error *err)
{
    void *symbol = NULL;
    bitm_error reason = {0};
    bitm_status status = bitm_os_library_symbol("bitm_cuda", BITM_DEVICE_SYMBOL, &symbol, &reason);
    BITM_CHECK(status == BITM_OK, BITM_DEVICE, err, "no GPU can be used: %s", reason.message);
    bitm_device_entry *entry;
    memcpy((void *)&entry, (const void *)&symbol, sizeof entry);
    *api = entry();
    BITM_CHECK((*api)->version == BITM_DEVICE_VERSION && (*api)->struct_size >= sizeof **api,
               BITM_DEVICE, err, "libbitm_cuda is of another version than this library");
    return (*api)->count(n, err);
}

/* "cuda" or "cuda:N" with N below 1000. */
static bitm_status read_device(const char *name, uint32_t *number, bitm_error *err)
{
    const char *digits = "";
    *number = 0;
    bool sound = strncmp(name, "cuda", 4) == 0 && (name[4] == '\0' || name[4] == ':');
    if (sound && name[4] == ':') {
        digits = name + 5;
        sound = digits[0] != '\0' && strlen(digits) <= 3;
    }
    for (; sound && *digits != '\0'; digits++) {
        sound = *digits >= '0' && *digits <= '9';
        *number = *number * 10 + (uint32_t)(*digits - '0');
    }
    BITM_CHECK(sound, BITM_ARGUMENT, err, "device is \"%.40s\", expected auto, cpu, cuda or cuda:N",
               name);
    return BITM_OK;
}

/* The device of this name, "auto" being the first. */
static bitm_status find_device(const char *name, const bitm_device_api **api, uint32_t *number,
                               bitm_error *err)
{
    uint32_t n_devices = 0;
    *number = 0;
    if (strcmp(name, "auto") != 0) BITM_TRY(read_device(name, number, err));
    BITM_TRY(find_devices(api, &n_devices, err));
    BITM_CHECK(*number < n_devices, BITM_DEVICE, err, "there is no cuda:%u: %u device%s", *number,
               n_devices, n_devices == 1 ? "" : "s");
    return BITM_OK;
}

bitm_status bitm_device_probe(const char *device, bitm_error *err)
{
    const bitm_device_api *api = NULL;
    uint32_t number = 0;
    char line[256] = "cpu";
    if (device == NULL || strcmp(device, "cpu") != 0) {
        BITM_TRY(find_device(device != NULL ? device : "auto", &api, &number, err));
        BITM_TRY(api->describe(number, line, sizeof line, err));
    }
    return bitm_fail(err, BITM_OK, "%s", line);
}

/* Puts the opened model on the device of this name; without one, or with "auto" where none can run
 * it, it stays on the CPU. */
static bitm_status use_device(bitm_model *model, const char *name, bitm_error *err)
{
    uint32_t number = 0;
    if (name == NULL || strcmp(name, "cpu") == 0) return BITM_OK;
    bool any = strcmp(name, "auto") == 0;
    const bitm_device_api *api = NULL;
    bitm_status status = find_device(name, &api, &number, any ? NULL : err);
    if (any && status != BITM_OK) return BITM_OK;
    BITM_TRY(status);
    const bitm_device_memory memory[2] = {
        {model->file.bytes, (size_t)model->file.header->file_bytes},
        {model->arena_base, model->allocation_bytes}};
    status = api->model_create(number, &model->network, memory, model->kernels.tensor_attention,
                               &model->device_model, any ? NULL : err);
    if (any && status != BITM_OK) return BITM_OK;
    if (status == BITM_OK) model->device = api;
    return status;
}

const char *bitm_model_device(const bitm_model *model)
{
    if (model == NULL) return NULL;
    return model->device != NULL ? model->device->model_description(model->device_model) : "cpu";
}

/* ---- Opening ---- */

/* A model whose weights are measured, but packed only if `pack` is set. */
static bitm_status open_bytes(const void *bytes, uint64_t n_bytes,
                              const bitm_model_options *options, bool pack, bitm_model **model,
                              bitm_error *err)
{
    bitm_file file;
    BITM_TRY(bitm_file_parse(&file, bytes, n_bytes, err));
    bitm_arena measure = {0}, arena;
    bitm_model *opened;
    BITM_TRY(lay_out(&file, &measure, &opened, err));
    BITM_CHECK(!measure.overflow, BITM_NO_MEMORY, err,
               "the model needs more memory than this machine can address");
    bitm_kernel_table kernels;
    BITM_TRY(bitm_kernels_select(&kernels, options->kernels, err));

    bitm_allocator allocator = {options->allocate, options->release, options->allocator_context};
    void *allocation;
    BITM_TRY(bitm_allocate_arena(&allocator, measure.n_used, &arena, &allocation, err));
    bitm_status status = lay_out(&file, &arena, &opened, err);
    if (status == BITM_OK) {
        opened->allocator = allocator;
        opened->allocation = allocation;
        opened->allocation_bytes = measure.n_used;
        opened->mapping = (bitm_mapping){0};
        opened->packed_allocation = NULL;
        opened->kernels = kernels;
        opened->arena_base = arena.base;
        opened->device = NULL;
        opened->device_model = NULL;
        opened->packed_bytes = 0;
        if (pack) status = use_device(opened, options->device, err);
        if (status == BITM_OK && opened->device == NULL && kernels.tensor_attention)
            status =
                bitm_fail(err, BITM_UNSUPPORTED,
                          "kernels: attention=tensor needs a GPU, and the CPU runs this model");
        if (status == BITM_OK && opened->device == NULL) status = measure_packed(opened, err);
    }
    if (status == BITM_OK && pack && opened->device == NULL) status = pack_weights(opened, err);
    if (status != BITM_OK) {
        allocator.release(allocator.context, allocation);
        return status;
    }
    *model = opened;
    return BITM_OK;
}

static bitm_status read_model_options(bitm_model_options *options, const bitm_model_options *given,
                                      bitm_error *err)
{
    *options = (bitm_model_options){.struct_size = sizeof *options};
    BITM_TRY(bitm_read_options(options, sizeof *options, given, "bitm_model_options", err));
    BITM_CHECK(options->reserved == 0, BITM_UNSUPPORTED, err,
               "bitm_model_options: reserved is %u, expected 0", options->reserved);
    BITM_CHECK((options->allocate == NULL) == (options->release == NULL), BITM_ARGUMENT, err,
               "bitm_model_options: allocate and release must be given together");
    if (options->allocate == NULL) {
        options->allocate = bitm_os_allocate;
        options->release = bitm_os_release;
    }
    return BITM_OK;
}

static bitm_status open_file(const char *path, const bitm_model_options *options, bool pack,
                             bitm_model **model, bitm_error *err)
{
    BITM_CHECK(path != NULL && model != NULL, BITM_ARGUMENT, err, "path and model must be given");
    *model = NULL;
    bitm_model_options known;
    BITM_TRY(read_model_options(&known, options, err));
    bitm_mapping mapping;
    BITM_TRY(bitm_os_map_file(&mapping, path, err));
    bitm_error reason = {0};
    bitm_status status = open_bytes(mapping.bytes, mapping.n_bytes, &known, pack, model, &reason);
    if (status != BITM_OK) {
        bitm_os_unmap_file(&mapping);
        return bitm_fail(err, status, "%s: %s", path, reason.message);
    }
    (*model)->mapping = mapping;
    return BITM_OK;
}

bitm_status bitm_model_open(const char *path, const bitm_model_options *options, bitm_model **model,
                            bitm_error *err)
{
    return open_file(path, options, true, model, err);
}

bitm_status bitm_model_open_to_measure(const char *path, const bitm_model_options *options,
                                       bitm_model **model, bitm_error *err)
{
    return open_file(path, options, false, model, err);
}

bitm_status bitm_model_open_memory(const void *bytes, size_t n_bytes,
                                   const bitm_model_options *options, bitm_model **model,
                                   bitm_error *err)
{
    BITM_CHECK(bytes != NULL && model != NULL, BITM_ARGUMENT, err, "bytes and model must be given");
    *model = NULL;
    BITM_CHECK((uintptr_t)bytes % BITM_FILE_ALIGNMENT == 0, BITM_ARGUMENT, err,
               "the file's memory must be aligned to %d bytes", BITM_FILE_ALIGNMENT);
    bitm_model_options known;
    BITM_TRY(read_model_options(&known, options, err));
    return open_bytes(bytes, n_bytes, &known, true, model, err);
}

void bitm_model_close(bitm_model *model)
{
    if (model == NULL) return;
    bitm_allocator allocator = model->allocator;
    if (model->device != NULL) model->device->model_free(model->device_model);
    bitm_os_unmap_file(&model->mapping);
    if (model->packed_allocation != NULL)
        allocator.release(allocator.context, model->packed_allocation);
    allocator.release(allocator.context, model->allocation);
}

bitm_status bitm_model_verify(const bitm_model *model, bitm_error *err)
{
    BITM_CHECK(model != NULL, BITM_ARGUMENT, err, "model must be given");
    return bitm_file_verify(&model->file, err);
}

/* ---- What is in it ---- */

/* Adds up the encoder's matrices and the embedding tables by their names' beginnings. */
static void count_tensors(const bitm_file *file, bitm_model_properties *properties)
{
    for (uint32_t i = 0; i < file->header->n_tensors; i++) {
        const bitm_file_tensor *tensor = &file->tensors[i];
        if (tensor->rank != 2) continue;
        if (strncmp(tensor->name, "embeddings.", 11) == 0)
            properties->embedding_bytes += tensor->data_bytes;
        if (strncmp(tensor->name, "layers.", 7) != 0) continue;
        properties->encoder_weights += (uint64_t)tensor->rows * tensor->columns;
        properties->encoder_bytes += tensor->data_bytes;
        if (tensor->dtype == BITM_DTYPE_BIT1)
            properties->one_bit_matrices++;
        else if (tensor->dtype == BITM_DTYPE_TERN)
            properties->ternary_matrices++;
        else
            properties->float_matrices++;
    }
}

bitm_status bitm_model_info(const bitm_model *model, bitm_model_properties *properties,
                            bitm_error *err)
{
    BITM_CHECK(model != NULL && properties != NULL, BITM_ARGUMENT, err,
               "model and properties must be given");
    uint32_t size = properties->struct_size;
    BITM_TRY(bitm_check_struct_size(size, sizeof *properties, "bitm_model_properties", err));
    const bitm_file_header *header = model->file.header;
    const bitm_file_config *config = model->file.config;
    bitm_model_properties known = {
        .struct_size = size,
        .vocab_size = config->vocab_size,
        .hidden_size = config->hidden_size,
        .n_layers = config->n_layers,
        .n_heads = config->n_heads,
        .head_size = config->head_size,
        .intermediate_size = config->intermediate_size,
        .max_positions = config->max_positions,
        .n_token_types = config->n_token_types,
        .head = config->head,
        .n_labels = config->n_labels,
        .problem = config->problem,
        .n_tokens = header->n_tokens,
        .unk_id = config->unk_id,
        .cls_id = config->cls_id,
        .sep_id = config->sep_id,
        .pad_id = config->pad_id,
        .mask_id = config->mask_id,
        .file_bytes = header->file_bytes,
        .model_bytes = model->allocation_bytes + model->packed_bytes,
        .quantizes_activations = header->n_quantizers > 0,
    };
    count_tensors(&model->file, &known);
    memset(properties, 0, size);
    memcpy(properties, &known, size < sizeof known ? size : sizeof known);
    return BITM_OK;
}

const char *bitm_model_metadata(const bitm_model *model, const char *key, size_t *n_bytes)
{
    if (model == NULL || key == NULL) return NULL;
    bitm_file_metadata entry = {0};
    while (bitm_file_next_metadata(&model->file, &entry)) {
        if (entry.n_key_bytes != strlen(key) || memcmp(entry.key, key, entry.n_key_bytes) != 0)
            continue;
        if (n_bytes != NULL) *n_bytes = entry.n_value_bytes;
        return entry.value;
    }
    return NULL;
}

uint32_t bitm_model_next_metadata(const bitm_model *model, bitm_metadata *entry)
{
    if (model == NULL || entry == NULL) return 0;
    bitm_file_metadata next = {.key = entry->key,
                               .value = entry->value,
                               .n_key_bytes = (uint32_t)entry->n_key_bytes,
                               .n_value_bytes = (uint32_t)entry->n_value_bytes};
    if (!bitm_file_next_metadata(&model->file, &next)) return 0;
    *entry = (bitm_metadata){next.key, next.value, next.n_key_bytes, next.n_value_bytes};
    return 1;
}

size_t bitm_kernels(const bitm_model *model, bitm_kernel *kernels, size_t capacity)
{
    bitm_kernel_table table;
    if (model == NULL) {
        (void)bitm_kernels_select(&table, NULL, NULL); /* nothing forced: cannot fail */
        return bitm_kernels_list(&table, NULL, kernels, capacity);
    }
    uint64_t ops[BITM_ACTIVATIONS_INT11 + 1] = {0};
    for (int mode = BITM_ACTIVATIONS_INT8; mode <= BITM_ACTIVATIONS_INT11 && model->device == NULL;
         mode++)
        ops[mode] = bitm_backend_ops(&model->network, (bitm_activations)mode);
    return bitm_kernels_list(&model->kernels, ops, kernels, capacity);
}

/* ---- Text ---- */

bitm_status bitm_model_needs_vocabulary(const bitm_model *model, bitm_error *err)
{
    BITM_CHECK(model->file.header->n_tokens > 0, BITM_NO_VOCABULARY, err,
               "the model file carries no vocabulary, so it takes token ids, not text");
    return BITM_OK;
}

bitm_status bitm_tokenize(const bitm_model *model, const char *text, size_t n_bytes, int32_t *ids,
                          bitm_span *spans, size_t capacity, size_t *n_ids, bitm_error *err)
{
    BITM_CHECK(model != NULL && (text != NULL || n_bytes == 0) && n_ids != NULL &&
                   (ids != NULL || capacity == 0),
               BITM_ARGUMENT, err, "model, text, ids and n_ids must be given");
    BITM_TRY(bitm_model_needs_vocabulary(model, err));
    return bitm_tokenizer_encode(&model->tokenizer, text, n_bytes, true, ids, spans, capacity,
                                 n_ids, err);
}

/* Of ids[begin] to ids[end]. */
static bitm_status decode(const bitm_model *model, const int32_t *ids, size_t begin, size_t end,
                          uint32_t skip_special_tokens, char *text, size_t capacity,
                          size_t *n_bytes, bitm_error *err)
{
    BITM_CHECK(model != NULL && (ids != NULL || begin == end) && n_bytes != NULL &&
                   (text != NULL || capacity == 0),
               BITM_ARGUMENT, err, "model, ids, text and n_bytes must be given");
    BITM_TRY(bitm_model_needs_vocabulary(model, err));
    return bitm_tokenizer_decode(&model->tokenizer, ids, begin, end, skip_special_tokens != 0, text,
                                 capacity, n_bytes, err);
}

bitm_status bitm_decode(const bitm_model *model, const int32_t *ids, size_t n_ids,
                        uint32_t skip_special_tokens, char *text, size_t capacity, size_t *n_bytes,
                        bitm_error *err)
{
    return decode(model, ids, 0, n_ids, skip_special_tokens, text, capacity, n_bytes, err);
}

bitm_status bitm_decode_rows(const bitm_model *model, const int32_t *ids, const size_t *id_ends,
                             size_t n_rows, uint32_t skip_special_tokens, char *text,
                             size_t capacity, size_t *text_ends, bitm_error *err)
{
    BITM_CHECK(n_rows == 0 || (id_ends != NULL && text_ends != NULL), BITM_ARGUMENT, err,
               "id_ends and text_ends must be given");
    size_t id_begin = 0, n_written = 0;
    for (size_t r = 0; r < n_rows; r++) {
        BITM_CHECK(id_ends[r] >= id_begin, BITM_ARGUMENT, err,
                   "row %zu ends before ids[%zu], and begins at %zu", r, id_ends[r], id_begin);
        size_t n_kept = n_written < capacity ? n_written : capacity, n_bytes;
        BITM_TRY(decode(model, ids, id_begin, id_ends[r], skip_special_tokens,
                        text == NULL ? NULL : text + n_kept, capacity - n_kept, &n_bytes, err));
        id_begin = id_ends[r];
        text_ends[r] = n_written += n_bytes;
    }
    return BITM_OK;
}

int32_t bitm_token_id(const bitm_model *model, const char *token, size_t n_bytes)
{
    if (model == NULL || token == NULL || model->file.header->n_tokens == 0) return -1;
    return bitm_tokenizer_find(&model->tokenizer, token, n_bytes);
}
