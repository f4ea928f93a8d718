/* What the parts of the command line `bitm` share.  It stands on bitm.h and the C library alone, as
 * any other user of libbitm; runtime/bitm/cli/ is the same program in Python and prints the same
 * bytes.
 */
#ifndef BITM_TOOL_H
#define BITM_TOOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bitm.h"

#if defined(__GNUC__)
#define BITM_TOOL_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define BITM_TOOL_PRINTF(text, first)
#endif

/* Forwards a failure to the caller. */
#define BITM_TOOL_TRY(expression)                                                                  \
    do {                                                                                           \
        bitm_status try_status_ = (expression);                                                    \
        if (try_status_ != BITM_OK) return try_status_;                                            \
    } while (0)

/* Fills *err with status and the formatted message; returns status. */
bitm_status bitm_tool_fail(bitm_error *err, bitm_status status, const char *format, ...)
    BITM_TOOL_PRINTF(3, 4);

/* Memory for n elements, to be freed; *memory is NULL on failure. */
bitm_status bitm_tool_allocate(void **memory, size_t n, size_t element_bytes, bitm_error *err);

/* ---- Writing (writer.c) ---- */

/* What is to be printed, collected in memory: a command that fails half-way prints no half of a
 * JSON document.  Begins as all zeros. */
typedef struct bitm_writer {
    char *bytes; /* owned */
    size_t n_bytes;
    size_t capacity;
    bool failed;    /* memory was refused: the text is incomplete */
    uint32_t depth; /* open JSON arrays and objects */
    bool is_empty;  /* the innermost of them has no element yet */
    bool after_key;
} bitm_writer;

/* Adds formatted text as it is. */
void bitm_write(bitm_writer *w, const char *format, ...) BITM_TOOL_PRINTF(2, 3);

/* Adds text for a terminal: control characters, and bytes that are no UTF-8, are escaped.  It is
 * cut after `most` characters, with "...", and filled up with spaces to `width`. */
void bitm_write_text(bitm_writer *w, const char *text, size_t n_bytes, size_t most, size_t width);

/* Adds "640 bytes", "38.1 kB" or "20.8 MB". */
void bitm_write_size(bitm_writer *w, uint64_t n_bytes);

/* Prints what was collected to standard output and forgets it. */
bitm_status bitm_writer_flush(bitm_writer *w, bitm_error *err);

void bitm_writer_free(bitm_writer *w);

/* JSON as Python's json.dumps(document, indent=2) lays it out: ASCII alone, a byte b that is no
 * UTF-8 as the lone surrogate U+DC00 + b.  bracket is '{' or '[', or the closing '}' or ']'. */
void bitm_json_open(bitm_writer *w, char bracket);
void bitm_json_close(bitm_writer *w, char bracket);
void bitm_json_key(bitm_writer *w, const char *key);
void bitm_json_text(bitm_writer *w, const char *text, size_t n_bytes);
void bitm_json_string(bitm_writer *w, const char *string);
void bitm_json_integer(bitm_writer *w, int64_t number);
void bitm_json_float(bitm_writer *w, double number);
void bitm_json_bool(bitm_writer *w, bool truth);

/* ---- Arguments (arguments.c) ---- */

typedef enum bitm_tool_option {
    OPTION_THREADS = 1 << 0,
    OPTION_ACTIVATIONS = 1 << 1,
    OPTION_KERNELS = 1 << 2,
    OPTION_JSON = 1 << 3,
    OPTION_TOP_K = 1 << 4,
    OPTION_TARGETS = 1 << 5,
    OPTION_BATCH = 1 << 6,
    OPTION_LENGTH = 1 << 7,
    OPTION_REPEAT = 1 << 8,
    OPTION_WARMUP = 1 << 9,
    OPTION_POSITIONS = 1 << 10,
    OPTION_POOLING = 1 << 11,
    OPTION_MEMORY = 1 << 12,
    OPTION_DEVICE = 1 << 13
} bitm_tool_option;

/* The options of a command that runs a model. */
enum {
    OPTIONS_TO_RUN = OPTION_DEVICE | OPTION_THREADS | OPTION_ACTIVATIONS | OPTION_KERNELS |
    OPTION_MEMORY | OPTION_JSON
};

typedef enum bitm_tool_positions {
    POSITIONS_ONE,
    POSITIONS_ALL,
    POSITIONS_NONE
} bitm_tool_positions;

typedef enum bitm_tool_pooling { POOLING_MEAN, POOLING_CLS, POOLING_MAX } bitm_tool_pooling;

typedef struct bitm_arguments {
    const char *model; /* NULL where the command can do without */
    char *const *texts;
    size_t n_texts;
    const char *kernels; /* NULL: not given, as the following */
    const char *targets;
    const char *device;
    uint32_t activations; /* bitm_activations */
    uint32_t threads;     /* 0: not given */
    uint32_t top_k;
    uint32_t batch;
    uint32_t length; /* 0: not given */
    uint32_t repeat;
    uint32_t warmup;
    uint32_t positions; /* bitm_tool_positions */
    uint32_t pooling;   /* bitm_tool_pooling */
    bool memory;        /* tell the memory that it would take, instead of running */
    bool json;
} bitm_arguments;

/* What a command will ask of a session, and what it will hold of results. */
typedef struct bitm_tool_need {
    uint32_t max_batch, max_length;
    bool every_mode; /* one session after another for all arithmetics of activations */
    uint64_t result_bytes;
} bitm_tool_need;

typedef struct bitm_command {
    const char *name;
    uint32_t options; /* bitm_tool_option */
    bool needs_model;
    bool takes_texts;
    const char *help;
    /* With OPTION_MEMORY; reads the arguments and the model's properties, and runs nothing. */
    bitm_tool_need (*need)(const bitm_arguments *arguments,
                           const bitm_model_properties *properties);
    bitm_status (*run)(const bitm_arguments *arguments, bitm_writer *w, bitm_error *err);
} bitm_command;

/* Reads the words after a command's name, and moves those that are no options to the front. Returns
 * false after it has told on standard error what is wrong. */
bool bitm_arguments_parse(const bitm_command *command, int n_words, char **words,
                          bitm_arguments *arguments);

/* Whether one of the words up to "--" is this option. */
bool bitm_arguments_have(int n_words, char *const *words, const char *option);

/* Tells on standard error: "bitm info: <message> (see 'bitm info --help')"; name may be NULL. */
void bitm_usage_error(const char *name, const char *format, ...) BITM_TOOL_PRINTF(2, 3);

/* Tells on standard error: "bitm: <kind>: <text>", control characters escaped. */
void bitm_complain(const char *kind, const char *text);

/* ---- Models (bitm.c) ---- */

/* Opens the model of the arguments, on their device with their kernels, and tells its properties.
 */
bitm_status bitm_tool_open(const bitm_arguments *arguments, bitm_model **model,
                           bitm_model_properties *properties, bitm_error *err);

/* Options of a session for the arguments' threads and activations. */
bitm_session_options bitm_tool_session_options(const bitm_arguments *arguments, uint32_t max_batch,
                                               uint32_t max_length);

/* The threads that a session of the arguments computes with. */
bitm_status bitm_tool_threads(const bitm_model *model, const bitm_arguments *arguments,
                              uint32_t *n_threads, bitm_error *err);

bool bitm_tool_is_masked_lm(const bitm_model_properties *properties);

/* Fills ids [n] with the input that `verify` and `bench` run. */
void bitm_tool_fill_ids(int32_t *ids, size_t n, uint32_t vocab_size);

/* The library's kernels, to be freed, as a model uses them; NULL: as it would by default. */
bitm_status bitm_tool_list_kernels(const bitm_model *model, bitm_kernel **kernels, size_t *n,
                                   bitm_error *err);

/* The arithmetic of activations that the arguments ask for: never BITM_ACTIVATIONS_AUTO. */
uint32_t bitm_tool_mode(const bitm_arguments *arguments);

/* "int8" for BITM_ACTIVATIONS_INT8. */
const char *bitm_tool_mode_name(uint32_t mode);

/* Adds the kernels that the model runs, as --kernels takes them ("-": none, a GPU runs it) or as a
 * JSON object. */
bitm_status bitm_tool_write_kernels(bitm_writer *w, const bitm_model *model,
                                    const bitm_arguments *arguments, bitm_error *err);

/* ---- Memory (memory.c) ---- */

/* Prints the memory that a command will need, before anything of it is taken. */
bitm_status bitm_tool_write_memory(const bitm_command *command, const bitm_arguments *arguments,
                                   bitm_writer *w, bitm_error *err);

/* The need of commands on texts: one text of any length that the model takes. */
bitm_tool_need bitm_tool_need_of_text(const bitm_arguments *arguments,
                                      const bitm_model_properties *properties);

/* ---- Texts (texts.c) ---- */

/* Prints what a command makes of a text, or adds it to the JSON object of the text. */
typedef bitm_status bitm_text_fn(void *context, const char *text, size_t n_bytes, bitm_error *err);

/* Runs a command on the texts of its arguments; without any, on the lines of standard input that
 * are not empty.  With has_headers each text is repeated above what is printed of it, unless the
 * arguments have it alone; the JSON document is {"results": [{"text": ..., ...}, ...]}. */
bitm_status bitm_tool_run_texts(const bitm_arguments *arguments, bitm_writer *w, bool has_headers,
                                bitm_text_fn *run, void *context, bitm_error *err);

/* Runs the model on a text: logits [C] of a classifier or hidden states [*n_tokens, H], to be
 * freed; *results is NULL when there is nothing to free. */
bitm_status bitm_tool_run_text(bitm_session *session, const bitm_model *model, bitm_output output,
                               const char *text, size_t n_bytes, float **results, size_t *n_tokens,
                               bitm_error *err);

/* ---- Commands ---- */

extern const bitm_command bitm_command_info;
extern const bitm_command bitm_command_verify;
extern const bitm_command bitm_command_fill_mask;
extern const bitm_command bitm_command_classify;
extern const bitm_command bitm_command_embed;
extern const bitm_command bitm_command_bench;
extern const bitm_command bitm_command_kernels;

/* What the help of commands that run a model ends with. */
#define BITM_HELP_OPTIONS_TO_RUN                                                                   \
    "  --device WHICH        cpu, cuda, cuda:N (GPU number N), or auto: a GPU where one can be\n"  \
    "                        used, otherwise the CPU (default: auto)\n"                            \
    "  --threads N           threads of a run (default: the CPUs that this process may use)\n"     \
    "  --activations MODE    auto, int8, int16, float32 or int11 (default: auto, which is "        \
    "int11)\n"                                                                                     \
    "  --kernels OP=VARIANT,...\n"                                                                 \
    "                        forces kernels, for measurements; see 'bitm "                         \
    "kernels'\n"                                                                                   \
    "  --memory              tell the memory that this would take on the CPU, and do nothing\n"    \
    "                        else\n" BITM_HELP_OPTIONS
#define BITM_HELP_OPTIONS                                                                          \
    "  --json                print one JSON document\n"                                            \
    "  --help                print this text\n"                                                    \
    "  --version             print the version of bitm\n"

#endif
