#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tool.h"

/* The texts of a command, and what it does with them. */
typedef struct text_loop {
    const bitm_arguments *arguments;
    bitm_writer *w;
    bool has_headers; /* each text is repeated above its result */
    bitm_text_fn *run;
    void *context;
    size_t n_texts; /* done */
} text_loop;

static bitm_status run_text(text_loop *loop, const char *text, size_t n_bytes, bitm_error *err)
{
    bitm_writer *w = loop->w;
    bool json = loop->arguments->json;
    bitm_error reason = {0};
    if (json) {
        bitm_json_open(w, '{');
        bitm_json_key(w, "text");
        bitm_json_text(w, text, n_bytes);
    } else if (loop->has_headers && loop->arguments->n_texts != 1) {
        bitm_write(w, loop->n_texts > 0 ? "\n" : "");
        bitm_write_text(w, text, n_bytes, SIZE_MAX, 0);
        bitm_write(w, "\n");
    }
    loop->n_texts++;
    bitm_status status = loop->run(loop->context, text, n_bytes, &reason);
    if (status != BITM_OK && loop->arguments->n_texts != 1)
        return bitm_tool_fail(err, status, "text %zu: %s", loop->n_texts, reason.message);
    if (status != BITM_OK) {
        *err = reason;
        return status;
    }
    if (!json) return bitm_writer_flush(w, err);
    bitm_json_close(w, '}');
    return BITM_OK;
}

/* Reads a line of any length without its end to *line, which grows; *has_line is false at the end
 * of the input. */
static bitm_status read_line(char **line, size_t *capacity, size_t *n_bytes, bool *has_line,
                             bitm_error *err)
{
    int c;
    *n_bytes = 0;
    *has_line = false;
    while ((c = getc(stdin)) != EOF) {
        *has_line = true;
        if (c == '\n') break;
        if (*n_bytes == *capacity) {
            size_t larger = *capacity * 2 + 256;
            char *moved = larger > *capacity ? realloc(*line, larger) : NULL;
            if (moved == NULL) return bitm_tool_fail(err, BITM_NO_MEMORY, "no memory for a line");
            *line = moved;
            *capacity = larger;
        }
        (*line)[(*n_bytes)++] = (char)c;
    }
    if (ferror(stdin)) return bitm_tool_fail(err, BITM_IO, "cannot read standard input");
    if (*n_bytes > 0 && (*line)[*n_bytes - 1] == '\r') --*n_bytes;
    return BITM_OK;
}

static bitm_status run_lines(text_loop *loop, bitm_error *err)
{
    char *line = NULL;
    size_t capacity = 0, n_bytes = 0;
    bool has_line = true;
    bitm_status status = BITM_OK;
    while (status == BITM_OK && has_line) {
        status = read_line(&line, &capacity, &n_bytes, &has_line, err);
        if (status == BITM_OK && n_bytes > 0) status = run_text(loop, line, n_bytes, err);
    }
    free(line);
    return status;
}

bitm_status bitm_tool_run_texts(const bitm_arguments *arguments, bitm_writer *w, bool has_headers,
                                bitm_text_fn *run, void *context, bitm_error *err)
{
    text_loop loop = {
        .arguments = arguments, .w = w, .has_headers = has_headers, .run = run, .context = context};
    if (arguments->json) {
        bitm_json_open(w, '{');
        bitm_json_key(w, "results");
        bitm_json_open(w, '[');
    }
    for (size_t i = 0; i < arguments->n_texts; i++)
        BITM_TOOL_TRY(run_text(&loop, arguments->texts[i], strlen(arguments->texts[i]), err));
    if (arguments->n_texts == 0) BITM_TOOL_TRY(run_lines(&loop, err));
    if (arguments->json) {
        bitm_json_close(w, ']');
        bitm_json_close(w, '}');
    }
    return BITM_OK;
}

bitm_status bitm_tool_run_text(bitm_session *session, const bitm_model *model, bitm_output output,
                               const char *text, size_t n_bytes, float **results, size_t *n_tokens,
                               bitm_error *err)
{
    bitm_model_properties p = {.struct_size = sizeof p};
    size_t capacity = n_bytes + 2; /* a token takes a byte or more */
    void *memory;
    *results = NULL;
    BITM_TOOL_TRY(bitm_model_info(model, &p, err));
    BITM_TOOL_TRY(bitm_tool_allocate(&memory, capacity, sizeof(int32_t), err));
    int32_t *ids = memory;
    bitm_status status = bitm_tokenize(model, text, n_bytes, ids, NULL, capacity, n_tokens, err);
    if (status == BITM_OK && *n_tokens > p.max_positions)
        status = bitm_tool_fail(err, BITM_TOO_LONG,
                                "the text has %zu tokens, but the model has %u positions",
                                *n_tokens, p.max_positions);
    size_t n = output == BITM_OUTPUT_LOGITS ? p.n_labels : *n_tokens * p.hidden_size;
    if (status == BITM_OK) status = bitm_tool_allocate(&memory, n, sizeof(float), err);
    if (status == BITM_OK) {
        *results = memory;
        bitm_batch batch = {.struct_size = sizeof batch,
                            .n_sequences = 1,
                            .length = (uint32_t)*n_tokens,
                            .input_ids = ids,
                            .output = (uint32_t)output,
                            .layer = -1};
        status = bitm_run(session, &batch, *results, n, err);
    }
    free(ids);
    return status;
}
