#include <math.h>
#include <stdlib.h>

#include "tool.h"

typedef struct embedder {
    const bitm_arguments *arguments;
    bitm_writer *w;
    bitm_model *model;
    bitm_model_properties properties;
    bitm_session *session;
} embedder;

/* Pools hidden states [n_tokens, n] to a vector of length 1 in the first row.  Sums are of double
 * in the order of the elements, as in runtime/bitm/tasks.py. */
static bitm_status pool(float *states, size_t n_tokens, size_t n, uint32_t pooling, bitm_error *err)
{
    void *memory;
    BITM_TOOL_TRY(bitm_tool_allocate(&memory, n, sizeof(double), err));
    double *vector = memory;
    size_t n_rows = pooling == POOLING_CLS ? 1 : n_tokens;
    double squares = 0;
    for (size_t i = 0; i < n; i++) {
        vector[i] = (double)states[i];
        for (size_t row = 1; row < n_rows; row++) {
            double x = (double)states[row * n + i];
            if (pooling == POOLING_MEAN)
                vector[i] += x;
            else if (x > vector[i])
                vector[i] = x;
        }
        if (pooling == POOLING_MEAN) vector[i] /= (double)n_tokens;
        squares += vector[i] * vector[i];
    }
    double norm = sqrt(squares);
    for (size_t i = 0; i < n; i++)
        states[i] = (float)(vector[i] / (norm > 1e-12 ? norm : 1e-12));
    free(vector);
    return BITM_OK;
}

static void write_vector(const embedder *e, const float *vector, size_t n)
{
    bitm_writer *w = e->w;
    if (!e->arguments->json) {
        for (size_t i = 0; i < n; i++)
            bitm_write(w, "%s%.9g", i > 0 ? " " : "", (double)vector[i]);
        bitm_write(w, "\n");
        return;
    }
    bitm_json_key(w, "vector");
    bitm_json_open(w, '[');
    for (size_t i = 0; i < n; i++)
        bitm_json_float(w, (double)vector[i]);
    bitm_json_close(w, ']');
}

static bitm_status embed_text(void *context, const char *text, size_t n_bytes, bitm_error *err)
{
    const embedder *e = context;
    size_t n = e->properties.hidden_size, n_tokens;
    float *states;
    bitm_status status = bitm_tool_run_text(e->session, e->model, BITM_OUTPUT_HIDDEN_STATES, text,
                                            n_bytes, &states, &n_tokens, err);
    if (status == BITM_OK) status = pool(states, n_tokens, n, e->arguments->pooling, err);
    if (status == BITM_OK) write_vector(e, states, n);
    free(states);
    return status;
}

static bitm_status run_embed(const bitm_arguments *arguments, bitm_writer *w, bitm_error *err)
{
    embedder e = {.arguments = arguments, .w = w};
    bitm_session_options options = bitm_tool_session_options(arguments, 1, 0);
    bitm_status status = bitm_tool_open(arguments, &e.model, &e.properties, err);
    if (status == BITM_OK) status = bitm_session_create(e.model, &options, &e.session, err);
    if (status == BITM_OK) status = bitm_tool_run_texts(arguments, w, false, embed_text, &e, err);
    bitm_session_free(e.session);
    bitm_model_close(e.model);
    return status;
}

const bitm_command bitm_command_embed = {
    .name = "embed",
    .options = OPTIONS_TO_RUN | OPTION_POOLING,
    .needs_model = true,
    .takes_texts = true,
    .help =
        "usage: bitm embed model.bitm [text ...] [options]\n"
        "\n"
        "Turns texts into vectors of length 1, one a line. Without a text it reads texts from\n"
        "standard input, one a line.\n"
        "\n"
        "options:\n"
        "  --pooling WHICH       mean of the last hidden states over all tokens, their max, or\n"
        "                        cls: that of the first token (default: "
        "mean)\n" BITM_HELP_OPTIONS_TO_RUN "\n"
        "example:\n"
        "  bitm embed model.bitm \"Paris is the capital of France.\"\n",
    .need = bitm_tool_need_of_text,
    .run = run_embed,
};
