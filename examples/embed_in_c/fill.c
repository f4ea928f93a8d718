/* bitm inside of a program without threads and without malloc: all memory is two arrays.
 *
 * The model file is read into an array here; firmware would have it in flash, aligned to 64 bytes.
 * Usage: fill model.bitm "a text with a [MASK]" */
#include <stdio.h>
#include <string.h>

#include "bitm.h"

static _Alignas(64) unsigned char flash[24 << 20]; /* the file */
static _Alignas(64) unsigned char ram[8 << 20];    /* the model's tables, then the session */
static size_t n_ram_used;

/* Hands out ram from front to back; nothing is ever given back. */
static void *take(void *context, size_t n_bytes)
{
    (void)context;
    size_t n = (n_bytes + 63) / 64 * 64;
    if (n > sizeof ram - n_ram_used) return NULL;
    n_ram_used += n;
    return ram + n_ram_used - n;
}

static void release(void *context, void *memory)
{
    (void)context;
    (void)memory;
}

static size_t read_flash(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) return 0;
    size_t n = fread(flash, 1, sizeof flash, file);
    (void)fclose(file);
    return n;
}

static bitm_status fill(const char *path, const char *text, bitm_error *err)
{
    bitm_model_options model_options = {
        .struct_size = sizeof model_options, .allocate = take, .release = release};
    bitm_session_options session_options = {
        .struct_size = sizeof session_options, .max_length = 32, .n_threads = 1};
    bitm_model *model;
    bitm_session *session;
    bitm_prediction best;
    size_t n_bytes, n_masks;
    char word[64];

    bitm_status status =
        bitm_model_open_memory(flash, read_flash(path), &model_options, &model, err);
    if (status != BITM_OK) return status;
    session_options.arena = ram + n_ram_used; /* the rest */
    session_options.arena_bytes = sizeof ram - n_ram_used;
    status = bitm_session_create(model, &session_options, &session, err);
    if (status != BITM_OK) return status;
    status = bitm_fill_mask(session, text, strlen(text), 1, &best, 1, &n_masks, err);
    if (status != BITM_OK) return status;
    status = bitm_decode(model, &best.token, 1, 0, word, sizeof word, &n_bytes, err);
    if (status != BITM_OK) return status;
    status = bitm_session_bytes(model, &session_options, &n_bytes, err);
    printf("%s %.6f\n", word, best.score);
    fprintf(stderr, "%zu bytes of tables, %zu of session\n", n_ram_used, n_bytes);
    bitm_session_free(session);
    bitm_model_close(model);
    return status;
}

int main(int n_words, char **words)
{
    bitm_error error = {0};
    if (n_words == 3 && fill(words[1], words[2], &error) == BITM_OK) return 0;
    fprintf(stderr, "%s\n", n_words == 3 ? error.message : "usage: fill model.bitm text");
    return 1;
}
