#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "tool.h"

/* ---- Complaints ---- */

void bitm_complain(const char *kind, const char *text)
{
    bitm_writer line = {0};
    bitm_write(&line, "bitm%s", kind);
    bitm_write_text(&line, text, strlen(text), SIZE_MAX, 0);
    bitm_write(&line, "\n");
    if (!line.failed) (void)fwrite(line.bytes, 1, line.n_bytes, stderr);
    bitm_writer_free(&line);
}

void bitm_usage_error(const char *name, const char *format, ...)
{
    char kind[64], message[1024], line[1280];
    const char *space = name != NULL ? " " : "";
    name = name != NULL ? name : "";
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    (void)snprintf(kind, sizeof kind, "%s%s: ", space, name);
    (void)snprintf(line, sizeof line, "%s (see 'bitm%s%s --help')", message, space, name);
    bitm_complain(kind, line);
}

/* ---- Values ---- */

static bool read_number(const char *text, uint32_t least, uint32_t most, uint32_t *number)
{
    uint32_t value = 0;
    size_t n = strspn(text, "0123456789");
    if (n == 0 || n > 9 || text[n] != '\0') return false;
    for (size_t i = 0; i < n; i++)
        value = value * 10 + (uint32_t)(text[i] - '0');
    *number = value;
    return value >= least && value <= most;
}

/* The place of text among the n words, or n. */
static uint32_t find_word(const char *text, const char *const *words, uint32_t n)
{
    uint32_t i = 0;
    while (i < n && strcmp(text, words[i]) != 0)
        i++;
    return i;
}

/* Whether text is the name of a device: cuda:N has one to three digits. */
static bool is_device(const char *text)
{
    if (strcmp(text, "auto") == 0 || strcmp(text, "cpu") == 0 || strcmp(text, "cuda") == 0)
        return true;
    uint32_t number;
    return strncmp(text, "cuda:", 5) == 0 && strlen(text) <= 8 &&
           read_number(text + 5, 0, 999, &number);
}

/* ---- Options ---- */

typedef enum value_kind {
    VALUE_NONE,
    VALUE_TEXT,
    VALUE_DEVICE,
    VALUE_NUMBER,
    VALUE_WORD
} value_kind;

static const struct option {
    const char *name;
    bitm_tool_option bit;
    value_kind kind;
    size_t place;         /* of the value in bitm_arguments */
    uint32_t least, most; /* of a number; a word's most is how many there are */
    const char *expected;
    const char *words[5];
} options[] = {
#define PLACE(field) offsetof(bitm_arguments, field)
    {.name = "--json", .bit = OPTION_JSON, .place = PLACE(json)},
    {.name = "--memory", .bit = OPTION_MEMORY, .place = PLACE(memory)},
    {"--threads", OPTION_THREADS, VALUE_NUMBER, PLACE(threads), 1, 1024, "1 to 1024", {0}},
    {"--top-k", OPTION_TOP_K, VALUE_NUMBER, PLACE(top_k), 1, 1000000, "1 to 1000000", {0}},
    {"--batch", OPTION_BATCH, VALUE_NUMBER, PLACE(batch), 1, 65536, "1 to 65536", {0}},
    {"--length", OPTION_LENGTH, VALUE_NUMBER, PLACE(length), 1, 65536, "1 to 65536", {0}},
    {"--repeat", OPTION_REPEAT, VALUE_NUMBER, PLACE(repeat), 1, 1000000, "1 to 1000000", {0}},
    {"--warmup", OPTION_WARMUP, VALUE_NUMBER, PLACE(warmup), 0, 1000000, "0 to 1000000", {0}},
    {"--kernels", OPTION_KERNELS, VALUE_TEXT, PLACE(kernels), 0, 0, "", {0}},
    {"--device",
     OPTION_DEVICE,
     VALUE_DEVICE,
     PLACE(device),
     0,
     0,
     "auto, cpu, cuda or cuda:N",
     {0}},
    {"--targets", OPTION_TARGETS, VALUE_TEXT, PLACE(targets), 0, 0, "", {0}},
    {"--activations",
     OPTION_ACTIVATIONS,
     VALUE_WORD,
     PLACE(activations),
     0,
     5,
     "auto, int8, int16, float32 or int11",
     {"auto", "int8", "int16", "float32", "int11"}}, /* in the order of bitm_activations */
    {"--positions",
     OPTION_POSITIONS,
     VALUE_WORD,
     PLACE(positions),
     0,
     3,
     "one, all or none",
     {"one", "all", "none"}}, /* in the order of bitm_tool_positions */
    {"--pooling",
     OPTION_POOLING,
     VALUE_WORD,
     PLACE(pooling),
     0,
     3,
     "mean, cls or max",
     {"mean", "cls", "max"}}, /* in the order of bitm_tool_pooling */
#undef PLACE
};

enum { N_OPTIONS = sizeof options / sizeof options[0] };

/* The option of the command that the word names, as "--name" or "--name=value"; or NULL. */
static const struct option *find_option(const bitm_command *command, const char *word)
{
    for (size_t i = 0; i < N_OPTIONS; i++)
        if ((command->options & options[i].bit) != 0 &&
            strcspn(word, "=") == strlen(options[i].name) &&
            strncmp(word, options[i].name, strlen(options[i].name)) == 0)
            return &options[i];
    return NULL;
}

/* A word with a space, or a dash alone, is meant as text. */
static bool looks_like_option(const char *word)
{
    return word[0] == '-' && word[1] != '\0' && strchr(word, ' ') == NULL;
}

static bool read_value(const struct option *option, const char *value, bitm_arguments *arguments)
{
    void *place = (char *)arguments + option->place;
    if (option->kind == VALUE_TEXT || option->kind == VALUE_DEVICE) {
        *(const char **)place = value;
        return option->kind == VALUE_TEXT || is_device(value);
    }
    uint32_t number = 0;
    bool good;
    if (option->kind == VALUE_NUMBER) {
        good = read_number(value, option->least, option->most, &number);
    } else {
        number = find_word(value, option->words, option->most);
        good = number < option->most;
    }
    *(uint32_t *)place = number;
    return good;
}

/* Reads the option at word number *i of the command, and its value; *i becomes its last word. */
static bool parse_option(const bitm_command *command, const struct option *option, int n_words,
                         char **words, int *i, bitm_arguments *arguments)
{
    const char *sign = strchr(words[*i], '=');
    const char *value = sign != NULL ? sign + 1 : NULL;
    if (option->kind == VALUE_NONE) {
        if (value != NULL)
            bitm_usage_error(command->name, "argument %s: takes no value", option->name);
        *(bool *)((char *)arguments + option->place) = true;
        return value == NULL;
    }
    if (value == NULL && *i + 1 < n_words && !looks_like_option(words[*i + 1])) value = words[++*i];
    if (value == NULL) {
        bitm_usage_error(command->name, "argument %s: expected one argument", option->name);
        return false;
    }
    if (read_value(option, value, arguments)) return true;
    bitm_usage_error(command->name, "argument %s: expected %s, found '%s'", option->name,
                     option->expected, value);
    return false;
}

/* ---- The words of a command ---- */

/* What the words without options are: the model, then texts. */
static bool take_positionals(const bitm_command *command, size_t n, char **words,
                             bitm_arguments *arguments)
{
    size_t n_models = n > 0 ? 1 : 0;
    if (n_models == 0 && command->needs_model) {
        bitm_usage_error(command->name, "the following arguments are required: model");
        return false;
    }
    if (n > n_models && !command->takes_texts) {
        bitm_usage_error(command->name, "unrecognized arguments: %s", words[n_models]);
        return false;
    }
    if (n_models == 0 && arguments->kernels != NULL) {
        bitm_usage_error(command->name, "argument --kernels: needs a model");
        return false;
    }
    if (arguments->memory && arguments->device != NULL &&
        strncmp(arguments->device, "cuda", 4) == 0) {
        bitm_usage_error(command->name, "argument --memory: tells of the CPU alone");
        return false;
    }
    arguments->model = n > 0 ? words[0] : NULL;
    arguments->texts = words + n_models;
    arguments->n_texts = n - n_models;
    return true;
}

bool bitm_arguments_parse(const bitm_command *command, int n_words, char **words,
                          bitm_arguments *arguments)
{
    *arguments = (bitm_arguments){.top_k = 5, .batch = 1, .repeat = 20, .warmup = 3};
    size_t n_positionals = 0;
    bool only_positionals = false;
    for (int i = 0; i < n_words; i++) {
        const struct option *option = only_positionals ? NULL : find_option(command, words[i]);
        if (option != NULL) {
            if (!parse_option(command, option, n_words, words, &i, arguments)) return false;
        } else if (!only_positionals && strcmp(words[i], "--") == 0) {
            only_positionals = true;
        } else if (!only_positionals && looks_like_option(words[i])) {
            bitm_usage_error(command->name, "unrecognized arguments: %s", words[i]);
            return false;
        } else {
            words[n_positionals++] = words[i];
        }
    }
    return take_positionals(command, n_positionals, words, arguments);
}

bool bitm_arguments_have(int n_words, char *const *words, const char *option)
{
    for (int i = 0; i < n_words && strcmp(words[i], "--") != 0; i++)
        if (strcmp(words[i], option) == 0) return true;
    return false;
}
