#include <string.h>

#include "tool.h"

/* This program with the C library, its stack, the texts at work and what is printed of them: more
 * than has been measured, and the same number in runtime/bitm/cli/measuring.py. */
enum { PROGRAM_BYTES = 5 << 20 };

/* Every part of the memory, and what it is for. */
typedef struct report {
    bitm_memory memory;
    bitm_tool_need need;
    uint64_t total_bytes;
} report;

bitm_tool_need bitm_tool_need_of_text(const bitm_arguments *arguments,
                                      const bitm_model_properties *properties)
{
    (void)arguments;
    /* Hidden states of a text, or logits of labels. */
    uint64_t n_results =
        (uint64_t)properties->max_positions * properties->hidden_size + properties->n_labels;
    return (bitm_tool_need){.max_batch = 1,
                            .max_length = properties->max_positions,
                            .result_bytes = n_results * sizeof(float)};
}

/* Measures the session of each arithmetic that is run, and keeps the largest. */
static bitm_status measure(const bitm_command *command, const bitm_arguments *arguments, report *r,
                           bitm_error *err)
{
    bitm_model_options model = {.struct_size = sizeof model, .kernels = arguments->kernels};
    bitm_session_options session = bitm_tool_session_options(arguments, 1, 1);
    bitm_model_properties properties = {.struct_size = sizeof properties};
    bitm_memory memory = {.struct_size = sizeof memory};
    BITM_TOOL_TRY(
        bitm_memory_measure(arguments->model, &model, &session, &properties, &memory, err));
    r->need = command->need(arguments, &properties);
    session.max_batch = r->need.max_batch;
    session.max_length = r->need.max_length;
    bool every = r->need.every_mode && arguments->activations == BITM_ACTIVATIONS_AUTO;
    uint32_t mode = every ? BITM_ACTIVATIONS_INT8 : bitm_tool_mode(arguments);
    uint32_t last = every ? BITM_ACTIVATIONS_INT11 : mode;
    r->memory = memory;
    for (; mode <= last; mode++) {
        session.activations = mode;
        BITM_TOOL_TRY(bitm_memory_measure(arguments->model, &model, &session, NULL, &memory, err));
        if (memory.session_bytes > r->memory.session_bytes) r->memory = memory;
    }
    r->total_bytes = memory.file_bytes + memory.model_bytes + r->memory.session_bytes +
                     memory.stack_bytes + r->need.result_bytes + PROGRAM_BYTES;
    return BITM_OK;
}

static void write_json(bitm_writer *w, const bitm_arguments *arguments, const report *r)
{
    const struct {
        const char *key;
        uint64_t value;
    } numbers[] = {
        {"batch", r->need.max_batch},           {"length", r->need.max_length},
        {"threads", r->memory.n_threads},       {"file_bytes", r->memory.file_bytes},
        {"model_bytes", r->memory.model_bytes}, {"session_bytes", r->memory.session_bytes},
        {"stack_bytes", r->memory.stack_bytes}, {"result_bytes", r->need.result_bytes},
        {"program_bytes", PROGRAM_BYTES},       {"total_bytes", r->total_bytes}};
    bitm_json_open(w, '{');
    bitm_json_key(w, "path");
    bitm_json_string(w, arguments->model);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        bitm_json_key(w, numbers[i].key);
        bitm_json_integer(w, (int64_t)numbers[i].value);
    }
    bitm_json_key(w, "version");
    bitm_json_string(w, bitm_version());
    bitm_json_close(w, '}');
}

static void write_row(bitm_writer *w, const char *name, uint64_t n_bytes, const char *what)
{
    bitm_write(w, "%-10s %14llu bytes  %s\n", name, (unsigned long long)n_bytes, what);
}

static void write_text(bitm_writer *w, const bitm_arguments *arguments, const report *r)
{
    bitm_write(w, "memory of ");
    bitm_write_text(w, arguments->model, strlen(arguments->model), SIZE_MAX, 0);
    bitm_write(w, " for %u x %u tokens, %u threads\n", r->need.max_batch, r->need.max_length,
               r->memory.n_threads);
    write_row(w, "file", r->memory.file_bytes, "mapped: the system reads what is used");
    write_row(w, "model", r->memory.model_bytes, "tables, and weights as the kernels want them");
    write_row(w, "session", r->memory.session_bytes, "all that a run works on");
    write_row(w, "stack", r->memory.stack_bytes, "of further threads");
    write_row(w, "result", r->need.result_bytes, "before they are printed");
    write_row(w, "program", PROGRAM_BYTES, "at most: the program in C itself, and texts");
    write_row(w, "total", r->total_bytes, "all of this");
}

bitm_status bitm_tool_write_memory(const bitm_command *command, const bitm_arguments *arguments,
                                   bitm_writer *w, bitm_error *err)
{
    report r;
    BITM_TOOL_TRY(measure(command, arguments, &r, err));
    if (arguments->json)
        write_json(w, arguments, &r);
    else
        write_text(w, arguments, &r);
    return BITM_OK;
}
