#include "fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "file.h"

enum { ALIGNMENT = 64 };

uint8_t *aligned_copy(const uint8_t *data, size_t size)
{
    /* posix_memalign rather than aligned_alloc: the size need not be a multiple, so the bytes
     * behind it are out of bounds for the sanitizer. */
    void *copy;
    if (posix_memalign(&copy, ALIGNMENT, size > 0 ? size : 1) != 0) abort();
    if (size > 0) memcpy(copy, data, size);
    return copy;
}

void repair_checksums(uint8_t *data, size_t size)
{
    bitm_file_header header;
    if (size < sizeof header) return;
    memcpy(&header, data, sizeof header);
    if (header.data_offset >= sizeof header && header.data_offset <= size) {
        uint32_t tables =
            bitm_crc32c(0, data + sizeof header, (size_t)header.data_offset - sizeof header);
        memcpy(data + offsetof(bitm_file_header, tables_crc32c), &tables, sizeof tables);
    }
    uint32_t crc = bitm_crc32c(0, data, offsetof(bitm_file_header, header_crc32c));
    memcpy(data + offsetof(bitm_file_header, header_crc32c), &crc, sizeof crc);
}

/* ---- Memory ---- */

static void *allocate(void *context, size_t n_bytes)
{
    /* Widest: a bit row of one word for each unpacked float, and a vocabulary's hash table. */
    const size_t *file_bytes = context;
    size_t most = ((size_t)1 << 20) + 128 * *file_bytes;
    if (n_bytes > most) {
        (void)fprintf(stderr, "a request of %zu bytes for a file of %zu\n", n_bytes, *file_bytes);
        abort();
    }
    return malloc(n_bytes);
}

static void release(void *context, void *memory)
{
    (void)context;
    free(memory);
}

bitm_model_options limited_options(const size_t *file_bytes)
{
    return (bitm_model_options){.struct_size = sizeof(bitm_model_options),
                                .allocate = allocate,
                                .release = release,
                                .allocator_context = (void *)(uintptr_t)file_bytes};
}

/* ---- Running ---- */

enum { MAX_TOKENS = 12, TOP_K = 3, MAX_OUTPUTS = 1 << 20 };

static void run_batch(bitm_session *session, const bitm_model_properties *p, bitm_output kind)
{
    uint32_t length = p->max_positions < MAX_TOKENS ? p->max_positions : MAX_TOKENS;
    int32_t ids[2 * MAX_TOKENS], mask[2 * MAX_TOKENS];
    for (uint32_t i = 0; i < 2 * length; i++) {
        ids[i] = (int32_t)(i * 7 % p->vocab_size);
        mask[i] = i < length || i % length < length / 2 + 1;
    }
    bitm_batch batch = {.struct_size = sizeof batch,
                        .n_sequences = 2,
                        .length = length,
                        .input_ids = ids,
                        .attention_mask = mask,
                        .output = kind,
                        .layer = -1};
    size_t tokens = (size_t)2 * length, labels = p->n_labels;
    size_t n = tokens * (kind == BITM_OUTPUT_HIDDEN_STATES ? p->hidden_size
                         : p->head <= 2                    ? p->vocab_size
                                                           : labels);
    if (kind == BITM_OUTPUT_LOGITS && p->head == BITM_HEAD_CLASSIFIER) n = 2 * labels;
    if (n == 0 || n > MAX_OUTPUTS) return;
    float *output = malloc(n * sizeof *output);
    if (output == NULL) return;
    bitm_error err;
    (void)bitm_run(session, &batch, output, n, &err);
    free(output);
}

static void run_text(bitm_session *session)
{
    static const char text[] = "[MASK] a \xC3\xA9 [MASK]";
    bitm_prediction predictions[2 * TOP_K];
    size_t n_masks;
    bitm_error err;
    (void)bitm_fill_mask(session, text, sizeof text - 1, TOP_K, predictions, 2 * TOP_K, &n_masks,
                         &err);
}

void run_model(const bitm_model *model)
{
    bitm_error err;
    bitm_model_properties p = {.struct_size = sizeof p};
    if (bitm_model_info(model, &p, &err) != BITM_OK) abort();
    for (uint32_t mode = BITM_ACTIVATIONS_AUTO; mode <= BITM_ACTIVATIONS_FLOAT32; mode++) {
        bitm_session_options options = {
            .struct_size = sizeof options, .max_batch = 2, .n_threads = 1, .activations = mode};
        if (p.max_positions > MAX_TOKENS) options.max_length = MAX_TOKENS;
        bitm_session *session;
        if (bitm_session_create(model, &options, &session, &err) != BITM_OK) continue;
        run_batch(session, &p, BITM_OUTPUT_LOGITS);
        run_batch(session, &p, BITM_OUTPUT_HIDDEN_STATES);
        run_text(session);
        bitm_session_free(session);
    }
}

/* ---- Mutation ---- */

static const uint32_t telling_numbers[] = {0,          1,
                                           2,          3,
                                           4,          5,
                                           6,          7,
                                           8,          15,
                                           16,         63,
                                           64,         65,
                                           127,        128,
                                           255,        256,
                                           1000,       4096,
                                           1u << 16,   (1u << 16) + 1,
                                           1u << 24,   0x7F800000,
                                           0x7FC00000, 0x7FFFFFFF,
                                           0x80000000, 0xFFFFFFFF};

/* A place before the data, which decides what is read, or in the data, which is run. */
static size_t pick_place(const uint8_t *data, size_t size, random_state *random)
{
    bitm_file_header header = {0};
    if (size >= sizeof header) memcpy(&header, data, sizeof header);
    size_t end = size;
    if (header.data_offset > 0 && header.data_offset < size && random_below(random, 100) < 50)
        end = (size_t)header.data_offset;
    return random_below(random, (uint32_t)end);
}

static void put(uint8_t *data, size_t size, size_t place, const void *bytes, size_t n)
{
    if (place + n <= size) memcpy(data + place, bytes, n);
}

static size_t change(uint8_t *data, size_t size, size_t max_size, random_state *random)
{
    size_t place = pick_place(data, size, random), from, n;
    uint32_t number = telling_numbers[random_below(
        random, (uint32_t)(sizeof telling_numbers / sizeof *telling_numbers))];
    uint32_t way = random_below(random, 100);
    if (way < 25) {
        data[place] ^= (uint8_t)(1u << random_below(random, 8));
    } else if (way < 40) {
        data[place] = (uint8_t)random_below(random, 256);
    } else if (way < 70) {
        put(data, size, place & ~(size_t)3, &number, sizeof number);
    } else if (way < 85) { /* a field of another entry, an entry over another, a name cut short */
        from = pick_place(data, size, random) & ~(size_t)3;
        n = (size_t)4 << random_below(random, 6);
        if (from + n <= size && (place & ~(size_t)3) + n <= size)
            memmove(data + (place & ~(size_t)3), data + from, n);
    } else if (way < 93) {
        n = 1 + random_below(random, 200);
        if (size + n > max_size) return size;
        memmove(data + place + n, data + place, size - place);
        memset(data + place, 0, n);
        size += n;
    } else {
        n = 1 + random_below(random, 200);
        if (place + n >= size) return place > 0 ? place : size;
        memmove(data + place, data + place + n, size - place - n);
        size -= n;
    }
    return size;
}

size_t mutate(uint8_t *data, size_t size, size_t max_size, random_state *random)
{
    for (uint32_t i = 0, n = 1 + random_below(random, 3); i < n && size > 0; i++)
        size = change(data, size, max_size, random);
    repair_checksums(data, size);
    return size;
}
