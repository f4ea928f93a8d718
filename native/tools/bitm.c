#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tool.h"

enum { EXIT_USAGE = 2, EXIT_INTERRUPTED = 130 };

static const bitm_command *const commands[] = {
    &bitm_command_info,  &bitm_command_verify, &bitm_command_fill_mask, &bitm_command_classify,
    &bitm_command_embed, &bitm_command_bench,  &bitm_command_kernels};

static const char help[] =
    "usage: bitm COMMAND [model.bitm] [options]\n"
    "\n"
    "Runs 1-bit BERT models.\n"
    "\n"
    "commands:\n"
    "  info        what is in a model file, and what runs it\n"
    "  verify      checks a model file; prints the hashes by which machines are compared\n"
    "  fill-mask   fills the mask tokens of texts\n"
    "  classify    labels texts\n"
    "  embed       turns texts into vectors\n"
    "  bench       times a model on this machine\n"
    "  eval        measures what a model gets right on a text (in the Python package alone)\n"
    "  kernels     lists the kernels: which this machine can run, which are chosen\n"
    "\n"
    "'bitm COMMAND --help' tells the options of a command. All of them take --json.\n"
    "Exit status: 0 done, 1 failed, 2 wrong usage.\n"
    "\n"
    "example:\n"
    "  bitm fill-mask model.bitm \"Paris is the [MASK] of France.\"\n";

/* ---- What commands share ---- */

bitm_status bitm_tool_fail(bitm_error *err, bitm_status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    err->status = status;
    (void)vsnprintf(err->message, sizeof err->message, format, arguments);
    va_end(arguments);
    return status;
}

bitm_status bitm_tool_allocate(void **memory, size_t n, size_t element_bytes, bitm_error *err)
{
    *memory = calloc(n > 0 ? n : 1, element_bytes); /* which checks the product */
    if (*memory == NULL)
        return bitm_tool_fail(err, BITM_NO_MEMORY, "the system refuses memory for %zu x %zu bytes",
                              n, element_bytes);
    return BITM_OK;
}

bitm_status bitm_tool_open(const bitm_arguments *arguments, bitm_model **model,
                           bitm_model_properties *properties, bitm_error *err)
{
    bitm_model_options options = {.struct_size = sizeof options,
                                  .kernels = arguments->kernels,
                                  .device = arguments->device != NULL ? arguments->device : "auto"};
    *properties = (bitm_model_properties){.struct_size = sizeof *properties};
    BITM_TOOL_TRY(bitm_model_open(arguments->model, &options, model, err));
    return bitm_model_info(*model, properties, err);
}

bitm_session_options bitm_tool_session_options(const bitm_arguments *arguments, uint32_t max_batch,
                                               uint32_t max_length)
{
    return (bitm_session_options){.struct_size = sizeof(bitm_session_options),
                                  .max_batch = max_batch,
                                  .max_length = max_length,
                                  .n_threads = arguments->threads,
                                  .activations = arguments->activations};
}

bitm_status bitm_tool_threads(const bitm_model *model, const bitm_arguments *arguments,
                              uint32_t *n_threads, bitm_error *err)
{
    bitm_session_options options = bitm_tool_session_options(arguments, 1, 1);
    bitm_session *session = NULL;
    BITM_TOOL_TRY(bitm_session_create(model, &options, &session, err));
    *n_threads = bitm_session_threads(session);
    bitm_session_free(session);
    return BITM_OK;
}

uint32_t bitm_tool_mode(const bitm_arguments *arguments)
{
    bool is_auto = arguments->activations == BITM_ACTIVATIONS_AUTO;
    return is_auto ? BITM_ACTIVATIONS_INT11 : arguments->activations;
}

const char *bitm_tool_mode_name(uint32_t mode)
{
    static const char *const names[] = {"auto", "int8", "int16", "float32", "int11"};
    return names[mode];
}

bool bitm_tool_is_masked_lm(const bitm_model_properties *properties)
{
    return properties->head == 1 || properties->head == 2;
}

void bitm_tool_fill_ids(int32_t *ids, size_t n, uint32_t vocab_size)
{
    for (size_t i = 0; i < n; i++)
        ids[i] = (int32_t)(((uint64_t)i * 7919 + 13) % vocab_size);
}

bitm_status bitm_tool_list_kernels(const bitm_model *model, bitm_kernel **kernels, size_t *n,
                                   bitm_error *err)
{
    void *memory;
    *n = bitm_kernels(model, NULL, 0);
    *kernels = NULL;
    BITM_TOOL_TRY(bitm_tool_allocate(&memory, *n, sizeof **kernels, err));
    *kernels = memory;
    (void)bitm_kernels(model, *kernels, *n);
    return BITM_OK;
}

bitm_status bitm_tool_write_kernels(bitm_writer *w, const bitm_model *model,
                                    const bitm_arguments *arguments, bitm_error *err)
{
    bool json = arguments->json;
    uint32_t mode = bitm_tool_mode(arguments);
    bitm_kernel *kernels;
    size_t n;
    const char *comma = "";
    BITM_TOOL_TRY(bitm_tool_list_kernels(model, &kernels, &n, err));
    if (json) bitm_json_open(w, '{');
    for (size_t i = 0; i < n; i++) {
        if ((kernels[i].modes >> mode & 1) == 0) continue;
        if (json) {
            bitm_json_key(w, kernels[i].op);
            bitm_json_string(w, kernels[i].variant);
        } else {
            bitm_write(w, "%s%s=%s", comma, kernels[i].op, kernels[i].variant);
            comma = ",";
        }
    }
    if (json)
        bitm_json_close(w, '}');
    else if (comma[0] == '\0')
        bitm_write(w, "-");
    free(kernels);
    return BITM_OK;
}

/* ---- The program ---- */

static void interrupted(int number)
{
    (void)number;
    _Exit(EXIT_INTERRUPTED);
}

static const bitm_command *find_command(const char *name)
{
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        if (strcmp(commands[i]->name, name) == 0) return commands[i];
    return NULL;
}

/* Prints what the writer holds unless the work failed; returns the exit status. */
static int finish(bitm_writer *w, bitm_status status, bitm_error *err)
{
    if (status == BITM_OK) status = bitm_writer_flush(w, err);
    bitm_writer_free(w);
    if (status == BITM_OK) return EXIT_SUCCESS;
    char kind[64];
    (void)snprintf(kind, sizeof kind, ": error: %s: ", bitm_status_name(status));
    bitm_complain(kind, err->message);
    return EXIT_FAILURE;
}

int main(int n_words, char **words)
{
    bitm_writer w = {0};
    bitm_error err = {0};
    /* Whoever started it in the background may have it ignore interrupts. */
    if (signal(SIGINT, SIG_IGN) != SIG_IGN) (void)signal(SIGINT, interrupted);
    if (n_words < 2) {
        bitm_usage_error(NULL, "a command is missing");
        return EXIT_USAGE;
    }
    if (strcmp(words[1], "eval") == 0) {
        bitm_complain(": error: UNSUPPORTED: ", "eval is in the Python package: pip install bitm");
        return EXIT_FAILURE;
    }
    const bitm_command *command = find_command(words[1]);
    if (command == NULL && words[1][0] != '-') {
        bitm_usage_error(NULL, "there is no command '%s'", words[1]);
        return EXIT_USAGE;
    }
    words += command != NULL ? 2 : 1;
    n_words -= command != NULL ? 2 : 1;
    if (bitm_arguments_have(n_words, words, "--help") ||
        bitm_arguments_have(n_words, words, "-h")) {
        bitm_write(&w, "%s", command != NULL ? command->help : help);
        return finish(&w, BITM_OK, &err);
    }
    if (bitm_arguments_have(n_words, words, "--version")) {
        bitm_write(&w, "bitm %s\n", bitm_version());
        return finish(&w, BITM_OK, &err);
    }
    if (command == NULL) {
        bitm_usage_error(NULL, "unrecognized arguments: %s", words[0]);
        return EXIT_USAGE;
    }
    bitm_arguments arguments;
    if (!bitm_arguments_parse(command, n_words, words, &arguments)) return EXIT_USAGE;
    bitm_status status = arguments.memory ? bitm_tool_write_memory(command, &arguments, &w, &err)
                                          : command->run(&arguments, &w, &err);
    return finish(&w, status, &err);
}
