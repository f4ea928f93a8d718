/* Any bytes as text: ids lie in the vocabulary, spans in the text, decoding accepts them all. */
#include <stdlib.h>

#include "fuzz.h"
#include "make_file.h"

enum { CAPACITY = 64, MAX_TEXT = 1 << 12 };

static const bitm_model *fixed_model(void)
{
    static bitm_model *model;
    if (model != NULL) return model;
    size_t n_bytes;
    bitm_error err;
    void *bytes = make_file(&small_shape, 1, &n_bytes);
    if (bytes == NULL || bitm_model_open_memory(bytes, n_bytes, NULL, &model, &err) != BITM_OK)
        abort();
    return model;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const bitm_model *model = fixed_model();
    char *text = malloc(size + 1), decoded[MAX_TEXT];
    if (text == NULL) return 0;
    for (size_t i = 0; i < size; i++)
        text[i] = (char)data[i];
    int32_t ids[CAPACITY];
    bitm_span spans[CAPACITY];
    size_t n_ids, n_bytes;
    bitm_error err;
    bitm_status status = bitm_tokenize(model, text, size, ids, spans, CAPACITY, &n_ids, &err);
    if (status != BITM_OK && status != BITM_TEXT) abort();
    size_t n = status == BITM_OK ? (n_ids < CAPACITY ? n_ids : CAPACITY) : 0;
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= (int32_t)small_shape.vocab_size ||
            spans[i].begin > spans[i].end || spans[i].end > size)
            abort();
    if (n > 0 && bitm_decode(model, ids, n, 0, decoded, sizeof decoded, &n_bytes, &err) != BITM_OK)
        abort();
    (void)bitm_token_id(model, text, size);
    free(text);
    return 0;
}
