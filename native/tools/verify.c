#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tool.h"

/* The input, and the tokens whose masked-LM logits are hashed: part of what is compared. */
enum { N_TOKENS_MOST = 24, POSITION_STEP = 6, N_POSITIONS_MOST = N_TOKENS_MOST / POSITION_STEP };

/* CRC-32 of ISO 3309, as zlib has it. */
static uint32_t crc32_more(uint32_t crc, uint32_t byte)
{
    crc ^= byte;
    for (int i = 0; i < 8; i++)
        crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320U : 0);
    return crc;
}

/* CRC-32 of floats as little-endian bytes. */
static uint32_t hash_floats(const float *floats, size_t n)
{
    uint32_t crc = 0xFFFFFFFFU;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &floats[i], sizeof bits);
        for (int shift = 0; shift < 32; shift += 8)
            crc = crc32_more(crc, bits >> shift & 0xFF);
    }
    return ~crc;
}

/* What is run, and what is hashed of it. */
typedef struct probe {
    int32_t ids[N_TOKENS_MOST];
    int32_t positions[N_POSITIONS_MOST];
    bitm_batch batch;
    size_t n_output;
    const char *what;
} probe;

static void prepare(probe *p, const bitm_model_properties *properties)
{
    uint32_t n =
        properties->max_positions < N_TOKENS_MOST ? properties->max_positions : N_TOKENS_MOST;
    bitm_tool_fill_ids(p->ids, n, properties->vocab_size);
    p->batch = (bitm_batch){.struct_size = sizeof p->batch,
                            .n_sequences = 1,
                            .length = n,
                            .input_ids = p->ids,
                            .output = BITM_OUTPUT_LOGITS,
                            .layer = -1};
    if (properties->head == 0) {
        p->what = "hidden states";
        p->batch.output = BITM_OUTPUT_HIDDEN_STATES;
        p->n_output = (size_t)n * properties->hidden_size;
    } else if (bitm_tool_is_masked_lm(properties)) {
        p->what = "logits of every 6th token";
        for (uint32_t i = 0; i < n; i += POSITION_STEP)
            p->positions[p->batch.n_positions++] = (int32_t)i;
        p->batch.positions = p->positions;
        p->n_output = (size_t)p->batch.n_positions * properties->vocab_size;
    } else {
        p->what = "logits";
        p->n_output = (size_t)(properties->head == 3 ? 1 : n) * properties->n_labels;
    }
}

static bitm_status run_mode(const bitm_model *model, const bitm_arguments *arguments,
                            uint32_t activations, const probe *p, float *output, bitm_error *err)
{
    bitm_session *session = NULL;
    bitm_session_options options = bitm_tool_session_options(arguments, 1, p->batch.length);
    options.activations = activations;
    BITM_TOOL_TRY(bitm_session_create(model, &options, &session, err));
    bitm_status status = bitm_run(session, &p->batch, output, p->n_output, err);
    bitm_session_free(session);
    return status;
}

/* What the arguments ask for: one mode, or all of them. */
static bool is_wanted(const bitm_arguments *arguments, uint32_t mode)
{
    return arguments->activations == BITM_ACTIVATIONS_AUTO || arguments->activations == mode;
}

static void write_json(bitm_writer *w, const bitm_arguments *arguments,
                       const bitm_model_properties *properties, const probe *p,
                       const uint32_t *hashes)
{
    bitm_json_open(w, '{');
    bitm_json_key(w, "path");
    bitm_json_string(w, arguments->model);
    bitm_json_key(w, "file_bytes");
    bitm_json_integer(w, (int64_t)properties->file_bytes);
    bitm_json_key(w, "n_tokens");
    bitm_json_integer(w, p->batch.length);
    bitm_json_key(w, "output");
    bitm_json_string(w, p->what);
    bitm_json_key(w, "crc32");
    bitm_json_open(w, '{');
    for (uint32_t mode = BITM_ACTIVATIONS_INT8; mode <= BITM_ACTIVATIONS_INT11; mode++) {
        char hash[9];
        if (!is_wanted(arguments, mode)) continue;
        (void)snprintf(hash, sizeof hash, "%08x", (unsigned)hashes[mode]);
        bitm_json_key(w, bitm_tool_mode_name(mode));
        bitm_json_string(w, hash);
    }
    bitm_json_close(w, '}');
    bitm_json_key(w, "version");
    bitm_json_string(w, bitm_version());
    bitm_json_close(w, '}');
}

static void write_text(bitm_writer *w, const bitm_arguments *arguments,
                       const bitm_model_properties *properties, const probe *p,
                       const uint32_t *hashes)
{
    bitm_write(w, "%-16s ", "file");
    bitm_write_text(w, arguments->model, strlen(arguments->model), SIZE_MAX, 0);
    bitm_write(w, ", ");
    bitm_write_size(w, properties->file_bytes);
    bitm_write(w, ": sound\n");
    bitm_write(w, "%-16s %s, from %u tokens\n", "hashed", p->what, p->batch.length);
    for (uint32_t mode = BITM_ACTIVATIONS_INT8; mode <= BITM_ACTIVATIONS_INT11; mode++)
        if (is_wanted(arguments, mode))
            bitm_write(w, "%-16s %08x\n", bitm_tool_mode_name(mode), (unsigned)hashes[mode]);
}

static bitm_status verify(const bitm_model *model, const bitm_model_properties *properties,
                          const bitm_arguments *arguments, bitm_writer *w, bitm_error *err)
{
    probe p = {.n_output = 0};
    void *output;
    uint32_t hashes[BITM_ACTIVATIONS_INT11 + 1] = {0};
    BITM_TOOL_TRY(bitm_model_verify(model, err));
    prepare(&p, properties);
    BITM_TOOL_TRY(bitm_tool_allocate(&output, p.n_output, sizeof(float), err));
    bitm_status status = BITM_OK;
    for (uint32_t mode = BITM_ACTIVATIONS_INT8; mode <= BITM_ACTIVATIONS_INT11; mode++) {
        if (!is_wanted(arguments, mode)) continue;
        if (status == BITM_OK) status = run_mode(model, arguments, mode, &p, output, err);
        hashes[mode] = hash_floats(output, p.n_output);
    }
    free(output);
    BITM_TOOL_TRY(status);
    if (arguments->json)
        write_json(w, arguments, properties, &p, hashes);
    else
        write_text(w, arguments, properties, &p, hashes);
    return BITM_OK;
}

static bitm_tool_need need_of_verify(const bitm_arguments *arguments,
                                     const bitm_model_properties *properties)
{
    (void)arguments;
    probe p = {.n_output = 0};
    prepare(&p, properties);
    return (bitm_tool_need){.max_batch = 1,
                            .max_length = p.batch.length,
                            .every_mode = true,
                            .result_bytes = (uint64_t)p.n_output * sizeof(float)};
}

static bitm_status run_verify(const bitm_arguments *arguments, bitm_writer *w, bitm_error *err)
{
    bitm_model *model = NULL;
    bitm_model_properties properties;
    bitm_status status = bitm_tool_open(arguments, &model, &properties, err);
    if (status == BITM_OK) status = verify(model, &properties, arguments, w, err);
    bitm_model_close(model);
    return status;
}

const bitm_command bitm_command_verify = {
    .name = "verify",
    .options = OPTIONS_TO_RUN,
    .needs_model = true,
    .help =
        "usage: bitm verify model.bitm [options]\n"
        "\n"
        "Reads the whole file and checks it: checksums, padding, finite values. Then runs a fixed\n"
        "input in every arithmetic of activations (with --activations: in that one) and prints\n"
        "the CRC-32 of each result. Two machines that print the same compute the same.\n"
        "\n"
        "options:\n" BITM_HELP_OPTIONS_TO_RUN "\n"
        "example:\n"
        "  bitm verify model.bitm\n",
    .need = need_of_verify,
    .run = run_verify,
};
