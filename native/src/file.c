#include "file.h"

#include <inttypes.h>
#include <string.h>

#include "file_rules.h"
#include "text.h"

enum {
    VERSION = 1,
    MAX_COUNT = 65536, /* entries of a table */
    MAX_TOKENS = 1 << 24,
    MAX_METADATA_BYTES = 1 << 24,
    MAX_VOCABULARY_BYTES = 1 << 28,
    MAX_ROWS = 1 << 24,
    MAX_COLUMNS = 65536,
    MAX_TOKEN_BYTES = 1024,
    MAX_KEY_BYTES = 255,
};
static const uint64_t MAX_FILE_BYTES = (uint64_t)1 << 40;

static uint64_t align64(uint64_t n)
{
    return (n + BITM_FILE_ALIGNMENT - 1) / BITM_FILE_ALIGNMENT * BITM_FILE_ALIGNMENT;
}

/* Steps 1 to 7: the header, the sizes of the parts. */

static bitm_status check_limits(const bitm_file_header *header, bitm_error *err)
{
    const struct {
        const char *name;
        uint64_t value, limit;
    } limits[] = {
        {"file_bytes", header->file_bytes, MAX_FILE_BYTES},
        {"n_tensors", header->n_tensors, MAX_COUNT},
        {"n_quantizers", header->n_quantizers, MAX_COUNT},
        {"n_tokens", header->n_tokens, MAX_TOKENS},
        {"n_metadata", header->n_metadata, MAX_COUNT},
        {"vocabulary_bytes", header->vocabulary_bytes, MAX_VOCABULARY_BYTES},
        {"metadata_bytes", header->metadata_bytes, MAX_METADATA_BYTES},
    };
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        BITM_CHECK(limits[i].value <= limits[i].limit, BITM_FILE_LIMIT, err,
                   "%s is %" PRIu64 ", at most %" PRIu64 " is allowed", limits[i].name,
                   limits[i].value, limits[i].limit);
    return BITM_OK;
}

/* Steps 1 to 5. */
static bitm_status check_header(const uint8_t *bytes, uint64_t n_bytes, bitm_error *err)
{
    static const uint8_t magic[8] = {0x89, 'B', 'I', 'T', '\r', '\n', 0x1A, '\n'};
    for (size_t i = 0; i < sizeof magic && i < n_bytes; i++)
        BITM_CHECK(bytes[i] == magic[i], BITM_FILE_MAGIC, err,
                   "not a .bitm file: byte %zu is 0x%02X, expected 0x%02X", i, bytes[i], magic[i]);
    BITM_CHECK(n_bytes >= sizeof(bitm_file_header), BITM_FILE_TRUNCATED, err,
               "the file has %" PRIu64 " bytes, its header alone %zu", n_bytes,
               sizeof(bitm_file_header));
    const bitm_file_header *header = (const void *)bytes;
    BITM_CHECK(header->version == VERSION, BITM_FILE_VERSION, err,
               "version is %" PRIu32 ", this reader knows %d", header->version, VERSION);
    uint32_t crc = bitm_crc32c(0, bytes, offsetof(bitm_file_header, header_crc32c));
    BITM_CHECK(crc == header->header_crc32c, BITM_FILE_HEADER_CHECKSUM, err,
               "the header's checksum is %08" PRIx32 ", expected %08" PRIx32, crc,
               header->header_crc32c);
    BITM_CHECK(header->header_bytes == sizeof *header, BITM_FILE_HEADER, err,
               "header_bytes is %" PRIu32 ", expected %zu", header->header_bytes, sizeof *header);
    BITM_CHECK(header->required_features == 0, BITM_FILE_FEATURE, err,
               "features 0x%" PRIx64 " are required, this reader knows none",
               header->required_features);
    BITM_CHECK(bitm_bytes_are_zero(header->reserved, sizeof header->reserved), BITM_FILE_RESERVED,
               err, "header: reserved bytes are not 0");
    return check_limits(header, err);
}

/* Step 6, and where the parts lie. */
static bitm_status place_parts(bitm_file *file, uint64_t n_bytes, bitm_error *err)
{
    const bitm_file_header *h = file->header;
    uint64_t least = h->n_tokens == 0 ? 0 : 4 * ((uint64_t)h->n_tokens + 1);
    BITM_CHECK(h->vocabulary_bytes >= least && (h->n_tokens > 0 || h->vocabulary_bytes == 0),
               BITM_FILE_SECTION, err,
               "vocabulary_bytes is %" PRIu64 ", which does not fit %" PRIu32 " tokens",
               h->vocabulary_bytes, h->n_tokens);
    least = 9 * (uint64_t)h->n_metadata;
    BITM_CHECK(h->metadata_bytes >= least && (h->n_metadata > 0 || h->metadata_bytes == 0),
               BITM_FILE_SECTION, err,
               "metadata_bytes is %" PRIu64 ", which does not fit %" PRIu32 " entries",
               h->metadata_bytes, h->n_metadata);

    uint64_t config = sizeof *h;
    uint64_t tensors = config + sizeof *file->config;
    uint64_t quantizers = tensors + h->n_tensors * (uint64_t)sizeof *file->tensors;
    uint64_t vocabulary = quantizers + h->n_quantizers * (uint64_t)sizeof *file->quantizers;
    uint64_t metadata = align64(vocabulary + h->vocabulary_bytes);
    uint64_t data = align64(metadata + h->metadata_bytes);
    BITM_CHECK(h->data_offset == data, BITM_FILE_SECTION, err,
               "data_offset is %" PRIu64 ", expected %" PRIu64, h->data_offset, data);
    BITM_CHECK(h->file_bytes >= data && h->file_bytes % BITM_FILE_ALIGNMENT == 0, BITM_FILE_SECTION,
               err, "file_bytes is %" PRIu64 ", expected a multiple of 64 from %" PRIu64,
               h->file_bytes, data);
    BITM_CHECK(n_bytes >= h->file_bytes, BITM_FILE_TRUNCATED, err,
               "the file has %" PRIu64 " bytes, expected %" PRIu64, n_bytes, h->file_bytes);
    BITM_CHECK(n_bytes <= h->file_bytes, BITM_FILE_TRAILING, err,
               "the file has %" PRIu64 " bytes, expected %" PRIu64, n_bytes, h->file_bytes);

    file->config = (const void *)(file->bytes + config);
    file->tensors = (const void *)(file->bytes + tensors);
    file->quantizers = (const void *)(file->bytes + quantizers);
    if (h->n_tokens > 0) {
        file->token_offsets = (const void *)(file->bytes + vocabulary);
        file->token_bytes = (const char *)(file->token_offsets + h->n_tokens + 1);
    }
    file->metadata = file->bytes + metadata;
    return BITM_OK;
}

/* Step 7. */
static bitm_status check_tables(const bitm_file *file, bitm_error *err)
{
    const bitm_file_header *h = file->header;
    const uint8_t *tables = file->bytes + sizeof *h;
    const uint8_t *data = file->bytes + h->data_offset;
    uint32_t crc = bitm_crc32c(0, tables, (size_t)(data - tables));
    BITM_CHECK(crc == h->tables_crc32c, BITM_FILE_TABLES_CHECKSUM, err,
               "the tables' checksum is %08" PRIx32 ", expected %08" PRIx32, crc, h->tables_crc32c);
    const uint8_t *end =
        (const uint8_t *)(file->quantizers + h->n_quantizers) + h->vocabulary_bytes;
    BITM_CHECK(bitm_bytes_are_zero(end, (uint64_t)(file->metadata - end)), BITM_FILE_PADDING, err,
               "bytes after the vocabulary are not 0");
    end = file->metadata + h->metadata_bytes;
    BITM_CHECK(bitm_bytes_are_zero(end, (uint64_t)(data - end)), BITM_FILE_PADDING, err,
               "bytes after the metadata are not 0");
    return BITM_OK;
}

/* Steps 9 and 10: the tables. */

static bitm_status check_name(const char *table, uint32_t number, const char *name, bitm_error *err)
{
    size_t length = 0;
    for (; length < BITM_FILE_NAME_BYTES && name[length] != '\0'; length++) {
        char c = name[length];
        BITM_CHECK((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '.',
                   BITM_FILE_NAME, err,
                   "%s %" PRIu32 ": character 0x%02X of its name is not of a-z 0-9 _ .", table,
                   number, (unsigned)(unsigned char)c);
    }
    BITM_CHECK(
        length > 0 && length < BITM_FILE_NAME_BYTES &&
            bitm_bytes_are_zero((const uint8_t *)name + length, BITM_FILE_NAME_BYTES - length),
        BITM_FILE_NAME, err, "%s %" PRIu32 ": its name is not 1 to 63 characters, then zeros",
        table, number);
    return BITM_OK;
}

/* `part` is "scale" or "offset"; a layout of scales is required for i8. */
static bitm_status check_layout(const bitm_file_tensor *t, const char *part, uint32_t layout,
                                uint32_t count, bool required, bitm_error *err)
{
    const uint32_t counts[] = {0, 1, count, t->rows, t->columns};
    bool counted = layout <= BITM_LAYOUT_COLUMN && count == counts[layout];
    if (layout == BITM_LAYOUT_ROW_GROUP)
        counted = count > 1 && count < t->rows && t->rows % count == 0;
    BITM_CHECK(counted, BITM_FILE_TENSOR_LAYOUT, err,
               "tensor %s: %" PRIu32 " %ss in layout %" PRIu32 " do not fit %" PRIu32
               " rows and %" PRIu32 " columns",
               t->name, count, part, layout, t->rows, t->columns);
    bool has_bits = t->dtype == BITM_DTYPE_BIT1 || t->dtype == BITM_DTYPE_TERN;
    bool allowed = required ? layout != BITM_LAYOUT_NONE : layout == BITM_LAYOUT_NONE || has_bits;
    BITM_CHECK(allowed, BITM_FILE_TENSOR_LAYOUT, err,
               "tensor %s: %s layout %" PRIu32 " is not allowed for dtype %" PRIu32, t->name, part,
               layout, t->dtype);
    return BITM_OK;
}

/* In 64-bit words. */
static uint64_t row_words(const bitm_file_tensor *tensor)
{
    return ((uint64_t)tensor->columns + 63) / 64;
}

static uint64_t data_bytes(const bitm_file_tensor *tensor)
{
    uint64_t rows = tensor->rows;
    switch (tensor->dtype) {
    case BITM_DTYPE_F32:
        return 4 * rows * tensor->columns;
    case BITM_DTYPE_F16:
        return 2 * rows * tensor->columns;
    case BITM_DTYPE_I8:
        return rows * tensor->columns;
    case BITM_DTYPE_BIT1:
        return 8 * rows * row_words(tensor);
    default: /* BITM_DTYPE_TERN */
        return 16 * rows * row_words(tensor);
    }
}

/* One entry of the tensor table; *place is where its data belong, and is moved behind them. */
static bitm_status check_tensor(const bitm_file_tensor *t, uint64_t file_bytes, uint64_t *place,
                                bitm_error *err)
{
    BITM_CHECK(t->dtype >= BITM_DTYPE_F32 && t->dtype <= BITM_DTYPE_TERN, BITM_FILE_TENSOR_DTYPE,
               err, "tensor %s: dtype %" PRIu32 " is unknown", t->name, t->dtype);
    uint32_t max_columns = t->rank == 2 ? MAX_COLUMNS : 1;
    BITM_CHECK((t->rank == 1 || t->rank == 2) && t->rows >= 1 && t->rows <= MAX_ROWS &&
                   t->columns >= 1 && t->columns <= max_columns,
               BITM_FILE_TENSOR_SHAPE, err,
               "tensor %s: rank %" PRIu32 ", %" PRIu32 " rows and %" PRIu32 " columns are no shape",
               t->name, t->rank, t->rows, t->columns);
    BITM_TRY(
        check_layout(t, "scale", t->scale_layout, t->n_scales, t->dtype == BITM_DTYPE_I8, err));
    BITM_TRY(check_layout(t, "offset", t->offset_layout, t->n_offsets, false, err));
    uint64_t n_bytes = data_bytes(t);
    BITM_CHECK(t->data_offset == *place && t->data_bytes == n_bytes, BITM_FILE_TENSOR_PLACE, err,
               "tensor %s: %" PRIu64 " bytes at %" PRIu64 ", expected %" PRIu64 " at %" PRIu64,
               t->name, t->data_bytes, t->data_offset, n_bytes, *place);
    BITM_CHECK(*place + n_bytes <= file_bytes, BITM_FILE_TENSOR_PLACE, err,
               "tensor %s: its data end at %" PRIu64 ", the file at %" PRIu64, t->name,
               *place + n_bytes, file_bytes);
    BITM_CHECK(bitm_bytes_are_zero(t->reserved, sizeof t->reserved), BITM_FILE_RESERVED, err,
               "tensor %s: reserved bytes are not 0", t->name);
    *place = align64(*place + n_bytes);
    return BITM_OK;
}

static bitm_status check_tensor_table(const bitm_file *file, bitm_error *err)
{
    const bitm_file_header *header = file->header;
    uint64_t place = header->data_offset;
    for (uint32_t i = 0; i < header->n_tensors; i++) {
        const bitm_file_tensor *tensor = &file->tensors[i];
        BITM_TRY(check_name("tensor", i, tensor->name, err));
        BITM_CHECK(i == 0 || strcmp(tensor->name, tensor[-1].name) > 0, BITM_FILE_TENSOR_ORDER, err,
                   "tensor table: %s comes after %s", tensor->name, tensor[-1].name);
        BITM_TRY(check_tensor(tensor, header->file_bytes, &place, err));
    }
    BITM_CHECK(place == header->file_bytes, BITM_FILE_TENSOR_PLACE, err,
               "the data end at %" PRIu64 ", the file at %" PRIu64, place, header->file_bytes);
    return BITM_OK;
}

static bitm_status check_quantizer_table(const bitm_file *file, bitm_error *err)
{
    for (uint32_t i = 0; i < file->header->n_quantizers; i++) {
        const bitm_file_quantizer *quantizer = &file->quantizers[i];
        BITM_TRY(check_name("quantizer", i, quantizer->name, err));
        BITM_CHECK(i == 0 || strcmp(quantizer->name, quantizer[-1].name) > 0, BITM_FILE_QUANTIZER,
                   err, "quantizer table: %s comes after %s", quantizer->name, quantizer[-1].name);
        BITM_TRY(bitm_file_check_quantizer(quantizer, err));
    }
    return BITM_OK;
}

/* Step 11: vocabulary and metadata. */

static bool is_utf8(const void *text, size_t n_bytes)
{
    uint32_t code_point;
    for (size_t position = 0; position < n_bytes;)
        if (!bitm_utf8_decode(text, n_bytes, &position, &code_point)) return false;
    return true;
}

static bitm_status check_vocabulary(const bitm_file *file, bitm_error *err)
{
    uint32_t n_tokens = file->header->n_tokens;
    if (n_tokens == 0) return BITM_OK;
    const uint32_t *offsets = file->token_offsets;
    uint64_t text_bytes = file->header->vocabulary_bytes - 4 * ((uint64_t)n_tokens + 1);
    BITM_CHECK(offsets[0] == 0, BITM_FILE_VOCABULARY, err,
               "vocabulary: the first offset is %" PRIu32 ", expected 0", offsets[0]);
    for (uint32_t i = 0; i < n_tokens; i++)
        BITM_CHECK(offsets[i] <= offsets[i + 1], BITM_FILE_VOCABULARY, err,
                   "vocabulary: offset %" PRIu32 " is followed by %" PRIu32 " at token %" PRIu32,
                   offsets[i], offsets[i + 1], i);
    BITM_CHECK(offsets[n_tokens] == text_bytes, BITM_FILE_VOCABULARY, err,
               "vocabulary: the last offset is %" PRIu32 ", expected %" PRIu64, offsets[n_tokens],
               text_bytes);
    for (uint32_t i = 0; i < n_tokens; i++) {
        uint32_t n_bytes = offsets[i + 1] - offsets[i];
        BITM_CHECK(n_bytes <= MAX_TOKEN_BYTES, BITM_FILE_VOCABULARY, err,
                   "vocabulary: token %" PRIu32 " has %" PRIu32 " bytes, at most %d are allowed", i,
                   n_bytes, MAX_TOKEN_BYTES);
        BITM_CHECK(is_utf8(file->token_bytes + offsets[i], n_bytes), BITM_FILE_VOCABULARY, err,
                   "vocabulary: token %" PRIu32 " is not UTF-8", i);
    }
    return BITM_OK;
}

/* What an entry of the metadata begins with; it is not aligned. */
typedef struct metadata_sizes {
    uint32_t key;
    uint32_t value;
} metadata_sizes;

static metadata_sizes metadata_sizes_at(const uint8_t *entry)
{
    metadata_sizes sizes;
    memcpy(&sizes, entry, sizeof sizes);
    return sizes;
}

static int compare_bytes(const void *a, size_t n_a, const void *b, size_t n_b)
{
    int order = memcmp(a, b, n_a < n_b ? n_a : n_b);
    return order != 0 ? order : (n_a > n_b) - (n_a < n_b);
}

static bitm_status check_metadata(const bitm_file *file, bitm_error *err)
{
    const uint8_t *entry = file->metadata;
    const uint8_t *end = entry + file->header->metadata_bytes;
    const uint8_t *previous_key = NULL;
    uint32_t previous_key_bytes = 0;
    for (uint32_t i = 0; i < file->header->n_metadata; i++) {
        uint64_t left = (uint64_t)(end - entry);
        BITM_CHECK(left >= sizeof(metadata_sizes), BITM_FILE_METADATA, err,
                   "metadata, entry %" PRIu32 ": it is past the section's end", i);
        metadata_sizes sizes = metadata_sizes_at(entry);
        BITM_CHECK(sizes.key >= 1 && sizes.key <= MAX_KEY_BYTES &&
                       (uint64_t)sizes.key + sizes.value <= left - sizeof sizes,
                   BITM_FILE_METADATA, err,
                   "metadata, entry %" PRIu32 ": a key of %" PRIu32 " and a value of %" PRIu32
                   " bytes do not fit",
                   i, sizes.key, sizes.value);
        const uint8_t *key = entry + sizeof sizes;
        const uint8_t *value = key + sizes.key;
        BITM_CHECK(i == 0 || compare_bytes(key, sizes.key, previous_key, previous_key_bytes) > 0,
                   BITM_FILE_METADATA, err,
                   "metadata, entry %" PRIu32 ": its key is not above the one before", i);
        BITM_CHECK(is_utf8(key, sizes.key) && is_utf8(value, sizes.value), BITM_FILE_METADATA, err,
                   "metadata, entry %" PRIu32 ": it is not UTF-8", i);
        previous_key = key;
        previous_key_bytes = sizes.key;
        entry = value + sizes.value;
    }
    BITM_CHECK(entry == end, BITM_FILE_METADATA, err,
               "metadata: %" PRIu64 " bytes follow the last entry", (uint64_t)(end - entry));
    return BITM_OK;
}

/* Opening, verifying, looking up. */

bitm_status bitm_file_parse(bitm_file *file, const void *bytes, uint64_t n_bytes, bitm_error *err)
{
    BITM_TRY(check_header(bytes, n_bytes, err));
    *file = (bitm_file){.bytes = bytes, .header = bytes};
    BITM_TRY(place_parts(file, n_bytes, err));
    BITM_TRY(check_tables(file, err));
    BITM_TRY(bitm_file_check_config(file->config, file->header->n_tokens, err));
    BITM_TRY(check_tensor_table(file, err));
    BITM_TRY(check_quantizer_table(file, err));
    BITM_TRY(check_vocabulary(file, err));
    return check_metadata(file, err);
}

/* Bits that must be 0: past the last column, and signs of zeros. */
static bitm_status verify_bits(const bitm_file_tensor *tensor, const uint64_t *words,
                               bitm_error *err)
{
    uint64_t n_words = row_words(tensor);
    uint64_t n_planes = tensor->dtype == BITM_DTYPE_TERN ? 2 : 1;
    uint32_t last_bit = (tensor->columns - 1) % 64;
    for (uint64_t row = 0; row < n_planes * tensor->rows; row++)
        BITM_CHECK(words[(row + 1) * n_words - 1] >> last_bit >> 1 == 0, BITM_FILE_PADDING, err,
                   "tensor %s: a bit past the last of %" PRIu32 " columns is 1", tensor->name,
                   tensor->columns);
    if (tensor->dtype != BITM_DTYPE_TERN) return BITM_OK;
    const uint64_t *signs = words + tensor->rows * n_words;
    for (uint64_t i = 0; i < tensor->rows * n_words; i++)
        BITM_CHECK((signs[i] & ~words[i]) == 0, BITM_FILE_PADDING, err,
                   "tensor %s: a sign bit is 1 where the nonzero bit is 0", tensor->name);
    return BITM_OK;
}

/* Whether no element is infinite or NaN: all ones in the exponent.  No early exit: vectorizable. */
static bool all_finite(const bitm_file_tensor *tensor, const void *data)
{
    uint64_t n = (uint64_t)tensor->rows * tensor->columns;
    const uint32_t *f32 = data;
    const uint16_t *f16 = data;
    unsigned found = 0;
    if (tensor->dtype == BITM_DTYPE_F32)
        for (uint64_t i = 0; i < n; i++)
            found |= (f32[i] & BITM_F32_INFINITY) == BITM_F32_INFINITY;
    else
        for (uint64_t i = 0; i < n; i++)
            found |= (f16[i] & 0x7C00U) == 0x7C00U;
    return found == 0;
}

static bitm_status verify_tensor(const bitm_file *file, const bitm_file_tensor *tensor,
                                 bitm_error *err)
{
    const uint8_t *data = bitm_file_tensor_data(file, tensor);
    uint32_t crc = bitm_crc32c(0, data, (size_t)tensor->data_bytes);
    BITM_CHECK(crc == tensor->crc32c, BITM_FILE_TENSOR_CHECKSUM, err,
               "tensor %s: the data's checksum is %08" PRIx32 ", expected %08" PRIx32, tensor->name,
               crc, tensor->crc32c);
    bool is_float = tensor->dtype == BITM_DTYPE_F32 || tensor->dtype == BITM_DTYPE_F16;
    if (tensor->dtype == BITM_DTYPE_BIT1 || tensor->dtype == BITM_DTYPE_TERN)
        BITM_TRY(verify_bits(tensor, (const void *)data, err));
    if (tensor->dtype == BITM_DTYPE_I8)
        BITM_CHECK(memchr(data, 0x80, (size_t)tensor->data_bytes) == NULL, BITM_FILE_PADDING, err,
                   "tensor %s: a code is -128, the least is -127", tensor->name);
    uint64_t end = tensor->data_offset + tensor->data_bytes;
    BITM_CHECK(bitm_bytes_are_zero(file->bytes + end, align64(end) - end), BITM_FILE_PADDING, err,
               "tensor %s: bytes after the data are not 0", tensor->name);
    BITM_CHECK(!is_float || all_finite(tensor, data), BITM_FILE_VALUE, err,
               "tensor %s: an element is infinite or not a number", tensor->name);
    return BITM_OK;
}

bitm_status bitm_file_verify(const bitm_file *file, bitm_error *err)
{
    for (uint32_t i = 0; i < file->header->n_tensors; i++)
        BITM_TRY(verify_tensor(file, &file->tensors[i], err));
    return BITM_OK;
}

/* The record whose name is `name` among n sorted ones that begin with their names. */
static const void *find_record(const void *records, uint32_t n, size_t record_bytes,
                               const char *name)
{
    uint32_t first = 0;
    while (n > 0) {
        uint32_t middle = n / 2;
        const char *record = (const char *)records + (first + middle) * record_bytes;
        int order = strcmp(name, record);
        if (order == 0) return record;
        if (order > 0) {
            first += middle + 1;
            n -= middle + 1;
        } else {
            n = middle;
        }
    }
    return NULL;
}

const bitm_file_tensor *bitm_file_find_tensor(const bitm_file *file, const char *name)
{
    return find_record(file->tensors, file->header->n_tensors, sizeof *file->tensors, name);
}

const bitm_file_quantizer *bitm_file_find_quantizer(const bitm_file *file, const char *name)
{
    return find_record(file->quantizers, file->header->n_quantizers, sizeof *file->quantizers,
                       name);
}

const void *bitm_file_tensor_data(const bitm_file *file, const bitm_file_tensor *tensor)
{
    return file->bytes + tensor->data_offset;
}

bool bitm_file_next_metadata(const bitm_file *file, bitm_file_metadata *entry)
{
    const uint8_t *record =
        entry->key == NULL ? file->metadata : (const uint8_t *)entry->value + entry->n_value_bytes;
    if (record == file->metadata + file->header->metadata_bytes) return false;
    metadata_sizes sizes = metadata_sizes_at(record);
    entry->key = (const char *)record + sizeof sizes;
    entry->n_key_bytes = sizes.key;
    entry->value = entry->key + sizes.key;
    entry->n_value_bytes = sizes.value;
    return true;
}
