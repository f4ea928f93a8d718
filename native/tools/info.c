#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tool.h"

/* How much of a file's own texts is shown to people; --json gives them whole. */
enum { TEXT_MOST = 200, LABELS_MOST = 16 };

/* ---- Numbers to words (formats/SPEC.md 3.2) ---- */

static const char *head_name(uint32_t head)
{
    static const char *const names[] = {"none",
                                        "masked LM",
                                        "masked LM and next sentence",
                                        "sequence classifier",
                                        "token classifier",
                                        "question answering"};
    return head < sizeof names / sizeof names[0] ? names[head] : "unknown";
}

static const char *problem_name(uint32_t problem)
{
    static const char *const names[] = {"", ", regression", ", one label", ", several labels",
                                        ", one logit"};
    return problem < sizeof names / sizeof names[0] ? names[problem] : ", unknown";
}

/* ---- What is asked for ---- */

/* A model with the answers that properties do not hold. */
typedef struct facts {
    const bitm_arguments *arguments;
    bitm_model *model;
    bitm_model_properties properties;
    uint32_t session_length;
    size_t session_bytes;
    uint32_t n_threads;
} facts;

/* The length of the session whose memory is told. */
static uint32_t shown_length(const bitm_model_properties *properties)
{
    return properties->max_positions < 128 ? properties->max_positions : 128;
}

static bitm_status gather(facts *f, bitm_error *err)
{
    const bitm_arguments *arguments = f->arguments;
    BITM_TOOL_TRY(bitm_tool_open(arguments, &f->model, &f->properties, err));
    f->session_length = shown_length(&f->properties);
    bitm_session_options options = bitm_tool_session_options(arguments, 1, f->session_length);
    BITM_TOOL_TRY(bitm_session_bytes(f->model, &options, &f->session_bytes, err));
    BITM_TOOL_TRY(bitm_tool_threads(f->model, arguments, &f->n_threads, err));
    return BITM_OK;
}

/* ---- As text ---- */

static void write_row(bitm_writer *w, const char *name)
{
    bitm_write(w, "%-16s ", name);
}

static void write_encoder(bitm_writer *w, const bitm_model_properties *p)
{
    write_row(w, "encoder");
    bitm_write(w, "%.1f M weights in ", (double)p->encoder_weights / 1e6);
    bitm_write_size(w, p->encoder_bytes);
    if (p->encoder_weights > 0)
        bitm_write(w, " (%.2f bits each)",
                   (double)p->encoder_bytes * 8 / (double)p->encoder_weights);
    bitm_write(w, ": %u one-bit, %u ternary, %u float matrices\n", p->one_bit_matrices,
               p->ternary_matrices, p->float_matrices);
}

static void write_tokenizer(bitm_writer *w, const bitm_model_properties *p)
{
    write_row(w, "tokenizer");
    if (p->n_tokens == 0) {
        bitm_write(w, "none: the model takes token ids\n");
        return;
    }
    bitm_write(w, "WordPiece, %u tokens: unknown %d", p->n_tokens, p->unk_id);
    const struct {
        const char *name;
        int32_t id;
    } special[] = {
        {"CLS", p->cls_id}, {"SEP", p->sep_id}, {"PAD", p->pad_id}, {"MASK", p->mask_id}};
    for (size_t i = 0; i < sizeof special / sizeof special[0]; i++)
        if (special[i].id >= 0) bitm_write(w, ", %s %d", special[i].name, special[i].id);
    bitm_write(w, "\n");
}

/* Labels without a name are called as transformers calls them. */
static void write_labels(bitm_writer *w, const facts *f)
{
    uint32_t n = f->properties.n_labels;
    if (n == 0) return;
    write_row(w, "labels");
    bitm_write(w, "%u: ", n);
    for (uint32_t i = 0; i < n && i < LABELS_MOST; i++) {
        char key[32], standard[32];
        size_t n_bytes = 0;
        (void)snprintf(key, sizeof key, "label.%u", i);
        (void)snprintf(standard, sizeof standard, "LABEL_%u", i);
        const char *name = bitm_model_metadata(f->model, key, &n_bytes);
        if (i > 0) bitm_write(w, ", ");
        if (name != NULL)
            bitm_write_text(w, name, n_bytes, TEXT_MOST, 0);
        else
            bitm_write(w, "%s", standard);
    }
    bitm_write(w, n > LABELS_MOST ? ", ...\n" : "\n");
}

static void write_metadata(bitm_writer *w, const bitm_model *model)
{
    bitm_metadata entry = {0};
    while (bitm_model_next_metadata(model, &entry)) {
        if (entry.n_key_bytes >= 6 && memcmp(entry.key, "label.", 6) == 0) continue;
        bitm_write_text(w, entry.key, entry.n_key_bytes, TEXT_MOST, 16);
        bitm_write(w, " ");
        bitm_write_text(w, entry.value, entry.n_value_bytes, TEXT_MOST, 0);
        bitm_write(w, "\n");
    }
}

static bitm_status write_runtime(bitm_writer *w, const facts *f, bitm_error *err)
{
    write_row(w, "activations");
    bitm_write(w, "%s%s\n", bitm_tool_mode_name(bitm_tool_mode(f->arguments)),
               f->properties.quantizes_activations != 0 ? " where the file defines none" : "");
    write_row(w, "device");
    bitm_write(w, "%s\n", bitm_model_device(f->model));
    write_row(w, "threads");
    bitm_write(w, "%u\n", f->n_threads);
    write_row(w, "memory");
    bitm_write_size(w, f->properties.model_bytes);
    bitm_write(w, " beside the file\n");
    write_row(w, "session memory");
    bitm_write_size(w, f->session_bytes);
    bitm_write(w, " for 1 x %u tokens\n", f->session_length);
    write_row(w, "kernels");
    BITM_TOOL_TRY(bitm_tool_write_kernels(w, f->model, f->arguments, err));
    bitm_write(w, "\n");
    write_row(w, "bitm");
    bitm_write(w, "%s\n", bitm_version());
    return BITM_OK;
}

static bitm_status write_text(bitm_writer *w, const facts *f, bitm_error *err)
{
    const char *path = f->arguments->model;
    const bitm_model_properties *p = &f->properties;
    write_row(w, "file");
    bitm_write_text(w, path, strlen(path), SIZE_MAX, 0);
    bitm_write(w, ", ");
    bitm_write_size(w, p->file_bytes);
    bitm_write(w, "\n");
    write_row(w, "network");
    bitm_write(w, "%u layers, hidden size %u, %u heads of %u, intermediate size %u\n", p->n_layers,
               p->hidden_size, p->n_heads, p->head_size, p->intermediate_size);
    write_row(w, "input");
    bitm_write(w, "at most %u tokens, ids below %u, %u token types\n", p->max_positions,
               p->vocab_size, p->n_token_types);
    write_row(w, "head");
    bitm_write(w, "%s%s\n", head_name(p->head), problem_name(p->problem));
    write_labels(w, f);
    write_encoder(w, p);
    write_row(w, "embeddings");
    bitm_write_size(w, p->embedding_bytes);
    bitm_write(w, "\n");
    write_tokenizer(w, p);
    write_metadata(w, f->model);
    bitm_write(w, "\n");
    return write_runtime(w, f, err);
}

/* ---- As JSON: what Python's Model.info has ---- */

static void write_json_properties(bitm_writer *w, const bitm_model_properties *p)
{
    const struct {
        const char *key;
        int64_t value;
    } fields[] = {
#define FIELD(name) {#name, (int64_t)p->name}
        FIELD(vocab_size),
        FIELD(hidden_size),
        FIELD(n_layers),
        FIELD(n_heads),
        FIELD(head_size),
        FIELD(intermediate_size),
        FIELD(max_positions),
        FIELD(n_token_types),
        FIELD(head),
        FIELD(n_labels),
        FIELD(problem),
        FIELD(n_tokens),
        FIELD(unk_id),
        FIELD(cls_id),
        FIELD(sep_id),
        FIELD(pad_id),
        FIELD(mask_id),
        FIELD(file_bytes),
        FIELD(encoder_weights),
        FIELD(encoder_bytes),
        FIELD(embedding_bytes),
        FIELD(model_bytes),
        FIELD(one_bit_matrices),
        FIELD(ternary_matrices),
        FIELD(float_matrices),
        FIELD(quantizes_activations)
#undef FIELD
    };
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        bitm_json_key(w, fields[i].key);
        bitm_json_integer(w, fields[i].value);
    }
}

static bitm_status write_json(bitm_writer *w, const facts *f, bitm_error *err)
{
    bitm_metadata entry = {0};
    bitm_json_open(w, '{');
    bitm_json_key(w, "path");
    bitm_json_string(w, f->arguments->model);
    write_json_properties(w, &f->properties);
    bitm_json_key(w, "session_bytes_1x128");
    bitm_json_integer(w, (int64_t)f->session_bytes);
    bitm_json_key(w, "activations");
    bitm_json_string(w, bitm_tool_mode_name(bitm_tool_mode(f->arguments)));
    bitm_json_key(w, "device");
    bitm_json_string(w, bitm_model_device(f->model));
    bitm_json_key(w, "threads");
    bitm_json_integer(w, f->n_threads);
    bitm_json_key(w, "kernels");
    BITM_TOOL_TRY(bitm_tool_write_kernels(w, f->model, f->arguments, err));
    bitm_json_key(w, "metadata");
    bitm_json_open(w, '{');
    while (bitm_model_next_metadata(f->model, &entry)) {
        char key[256];
        memcpy(key, entry.key, entry.n_key_bytes); /* at most 255 */
        key[entry.n_key_bytes] = '\0';
        bitm_json_key(w, key);
        bitm_json_text(w, entry.value, entry.n_value_bytes);
    }
    bitm_json_close(w, '}');
    bitm_json_key(w, "version");
    bitm_json_string(w, bitm_version());
    bitm_json_close(w, '}');
    return BITM_OK;
}

static bitm_tool_need need_of_info(const bitm_arguments *arguments,
                                   const bitm_model_properties *properties)
{
    (void)arguments;
    return (bitm_tool_need){.max_batch = 1, .max_length = shown_length(properties)};
}

static bitm_status run_info(const bitm_arguments *arguments, bitm_writer *w, bitm_error *err)
{
    facts f = {.arguments = arguments};
    bitm_status status = gather(&f, err);
    if (status == BITM_OK)
        status = arguments->json ? write_json(w, &f, err) : write_text(w, &f, err);
    bitm_model_close(f.model);
    return status;
}

const bitm_command bitm_command_info = {
    .name = "info",
    .options = OPTIONS_TO_RUN,
    .needs_model = true,
    .help =
        "usage: bitm info model.bitm [options]\n"
        "\n"
        "Tells what is in a model file, and what runs it here: arithmetic, threads, memory and\n"
        "kernels.\n"
        "\n"
        "options:\n" BITM_HELP_OPTIONS_TO_RUN "\n"
        "example:\n"
        "  bitm info model.bitm\n",
    .need = need_of_info,
    .run = run_info,
};

/* ---- kernels ---- */

/* The arithmetics of activations with which the model runs the kernel. */
static void write_modes(bitm_writer *w, const bitm_kernel *kernel, bool json)
{
    const char *comma = "";
    for (uint32_t mode = BITM_ACTIVATIONS_INT8; mode <= BITM_ACTIVATIONS_INT11; mode++) {
        if ((kernel->modes >> mode & 1) == 0) continue;
        if (json)
            bitm_json_string(w, bitm_tool_mode_name(mode));
        else
            bitm_write(w, "%s%s", comma, bitm_tool_mode_name(mode));
        comma = ",";
    }
    if (!json && kernel->modes == 0) bitm_write(w, "-");
}

static void write_kernel(bitm_writer *w, const bitm_kernel *kernel, bool json)
{
    if (!json) {
        bitm_write(w, "%-16s %-16s %-10s %-7s ", kernel->op, kernel->variant,
                   kernel->available != 0 ? "yes" : "no", kernel->chosen != 0 ? "yes" : "no");
        write_modes(w, kernel, json);
        bitm_write(w, "\n");
        return;
    }
    bitm_json_open(w, '{');
    bitm_json_key(w, "op");
    bitm_json_string(w, kernel->op);
    bitm_json_key(w, "variant");
    bitm_json_string(w, kernel->variant);
    bitm_json_key(w, "available");
    bitm_json_bool(w, kernel->available != 0);
    bitm_json_key(w, "chosen");
    bitm_json_bool(w, kernel->chosen != 0);
    bitm_json_key(w, "modes");
    bitm_json_open(w, '[');
    write_modes(w, kernel, json);
    bitm_json_close(w, ']');
    bitm_json_close(w, '}');
}

static void write_kernel_list(bitm_writer *w, const bitm_kernel *kernels, size_t n, bool json)
{
    if (json) {
        bitm_json_open(w, '{');
        bitm_json_key(w, "kernels");
        bitm_json_open(w, '[');
    } else {
        bitm_write(w, "%-16s %-16s %-10s %-7s %s\n", "op", "variant", "available", "chosen",
                   "runs with activations");
    }
    for (size_t i = 0; i < n; i++)
        write_kernel(w, &kernels[i], json);
    if (json) {
        bitm_json_close(w, ']');
        bitm_json_close(w, '}');
    }
}

/* A GPU runs none of them: one line tells what it has instead. */
static void write_device(bitm_writer *w, const char *device, bool json)
{
    if (json) {
        bitm_json_open(w, '{');
        bitm_json_key(w, "device");
        bitm_json_string(w, device);
        bitm_json_close(w, '}');
    } else {
        write_row(w, "device");
        bitm_write(w, "%s\n", device);
    }
}

static bitm_status list_kernels(const bitm_model *model, bitm_writer *w, bool json, bitm_error *err)
{
    bitm_kernel *kernels;
    size_t n;
    BITM_TOOL_TRY(bitm_tool_list_kernels(model, &kernels, &n, err));
    write_kernel_list(w, kernels, n, json);
    free(kernels);
    return BITM_OK;
}

/* Those of the CPU unless --device asks for others. */
static bitm_status run_kernels(const bitm_arguments *arguments, bitm_writer *w, bitm_error *err)
{
    bitm_model *model = NULL;
    bitm_model_properties properties;
    bitm_error probed = {0};
    bitm_arguments chosen = *arguments;
    if (chosen.device == NULL) chosen.device = "cpu";
    const char *device = "cpu";
    if (chosen.model != NULL) {
        BITM_TOOL_TRY(bitm_tool_open(&chosen, &model, &properties, err));
        device = bitm_model_device(model);
    } else if (bitm_device_probe(chosen.device, &probed) == BITM_OK) {
        device = probed.message;
    } else if (strcmp(chosen.device, "auto") != 0) {
        *err = probed;
        return probed.status;
    }
    bitm_status status = BITM_OK;
    if (strcmp(device, "cpu") != 0)
        write_device(w, device, arguments->json);
    else
        status = list_kernels(model, w, arguments->json, err);
    bitm_model_close(model);
    return status;
}

const bitm_command bitm_command_kernels = {
    .name = "kernels",
    .options = OPTION_DEVICE | OPTION_KERNELS | OPTION_JSON,
    .help =
        "usage: bitm kernels [model.bitm] [options]\n"
        "\n"
        "Lists the kernels, best first within an operation: whether this machine can run them,\n"
        "whether they are chosen for their operation, and with which arithmetic of activations\n"
        "the model runs them. With --device cuda it tells what a GPU multiplies with instead, or\n"
        "why none can be used.\n"
        "\n"
        "options:\n"
        "  --device WHICH        cpu, cuda, cuda:N (GPU number N), or auto: a GPU where one can "
        "be\n"
        "                        used, otherwise the CPU (default: cpu)\n"
        "  --kernels OP=VARIANT,...\n"
        "                        forces kernels of the model\n" BITM_HELP_OPTIONS "\n"
        "example:\n"
        "  bitm kernels model.bitm --kernels gemm_w1a8=scalar\n",
    .run = run_kernels,
};
