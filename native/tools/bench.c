#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tool.h"

/* One kind of run, and what it took. */
typedef struct subject {
    const char *what;
    bitm_batch batch;
    size_t n_output; /* floats */
    double median_ms, min_ms, max_ms;
} subject;

enum { N_SUBJECTS_MOST = 2 };

/* A benchmark with what it works on. */
typedef struct bench {
    const bitm_arguments *arguments;
    bitm_model *model;
    bitm_model_properties properties;
    bitm_session *session;
    uint32_t length;
    int32_t *ids;       /* [B, S] */
    int32_t *positions; /* [B, 1] */
    float *output;      /* of the subject with most */
    double *times;      /* ms of each run */
    subject subjects[N_SUBJECTS_MOST];
    size_t n_subjects;
} bench;

/* ---- Preparation ---- */

static void add_head(bench *b)
{
    const bitm_model_properties *p = &b->properties;
    uint32_t positions = b->arguments->positions;
    if (p->head == 0 || positions == POSITIONS_NONE) return;
    subject *s = &b->subjects[b->n_subjects++];
    *s = b->subjects[0];
    s->batch.output = BITM_OUTPUT_LOGITS;
    uint64_t rows = (uint64_t)s->batch.n_sequences * b->length;
    if (!bitm_tool_is_masked_lm(p)) {
        s->what = "encoder and head";
        s->n_output = (size_t)(p->head == 3 ? s->batch.n_sequences : rows) * p->n_labels;
        return;
    }
    s->what = "encoder and masked LM at all positions";
    if (positions == POSITIONS_ONE) {
        s->what = "encoder and masked LM at one position";
        s->batch.positions = b->positions;
        s->batch.n_positions = 1;
        rows = s->batch.n_sequences;
    }
    /* Where it does not fit in a size, what is asked for is refused by any system. */
    uint64_t n = rows * p->vocab_size;
    s->n_output = n < SIZE_MAX ? (size_t)n : SIZE_MAX;
}

static void add_subjects(bench *b)
{
    uint32_t n_sequences = b->arguments->batch;
    b->subjects[b->n_subjects++] = (subject){
        .what = "encoder",
        .batch = {.struct_size = sizeof(bitm_batch),
                  .n_sequences = n_sequences,
                  .length = b->length,
                  .input_ids = b->ids,
                  .output = BITM_OUTPUT_HIDDEN_STATES,
                  .layer = -1},
        .n_output = (size_t)n_sequences * b->length * b->properties.hidden_size,
    };
    add_head(b);
}

static uint32_t length_of(const bitm_arguments *arguments, const bitm_model_properties *properties)
{
    uint32_t standard = properties->max_positions < 64 ? properties->max_positions : 64;
    return arguments->length > 0 ? arguments->length : standard;
}

static size_t most_output(const bench *b)
{
    size_t most = 0;
    for (size_t i = 0; i < b->n_subjects; i++)
        most = b->subjects[i].n_output > most ? b->subjects[i].n_output : most;
    return most;
}

static bitm_tool_need need_of_bench(const bitm_arguments *arguments,
                                    const bitm_model_properties *properties)
{
    bench b = {.arguments = arguments,
               .properties = *properties,
               .length = length_of(arguments, properties)};
    add_subjects(&b);
    uint64_t n_ids = (uint64_t)arguments->batch * (b.length + 1);
    return (bitm_tool_need){.max_batch = arguments->batch,
                            .max_length = b.length,
                            .result_bytes = (uint64_t)most_output(&b) * sizeof(float) +
                                            n_ids * sizeof(int32_t) +
                                            arguments->repeat * sizeof(double)};
}

static bitm_status prepare(bench *b, bitm_error *err)
{
    const bitm_arguments *arguments = b->arguments;
    BITM_TOOL_TRY(bitm_tool_open(arguments, &b->model, &b->properties, err));
    b->length = length_of(arguments, &b->properties);
    bitm_session_options options =
        bitm_tool_session_options(arguments, arguments->batch, b->length);
    BITM_TOOL_TRY(bitm_session_create(b->model, &options, &b->session, err));

    void *memory;
    size_t n_ids = (size_t)arguments->batch * b->length;
    BITM_TOOL_TRY(bitm_tool_allocate(&memory, n_ids, sizeof *b->ids, err));
    b->ids = memory;
    bitm_tool_fill_ids(b->ids, n_ids, b->properties.vocab_size);
    BITM_TOOL_TRY(bitm_tool_allocate(&memory, arguments->batch, sizeof *b->positions, err));
    b->positions = memory;
    for (uint32_t i = 0; i < arguments->batch; i++)
        b->positions[i] = (int32_t)(b->length / 2);
    add_subjects(b);
    BITM_TOOL_TRY(bitm_tool_allocate(&memory, most_output(b), sizeof *b->output, err));
    b->output = memory;
    BITM_TOOL_TRY(bitm_tool_allocate(&memory, arguments->repeat, sizeof *b->times, err));
    b->times = memory;
    return BITM_OK;
}

/* ---- Timing ---- */

static double now_ms(void)
{
    struct timespec now = {0};
    (void)timespec_get(&now, TIME_UTC);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static int compare_times(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static bitm_status time_subject(bench *b, subject *s, bitm_error *err)
{
    uint32_t n = b->arguments->repeat;
    for (uint32_t i = 0; i < b->arguments->warmup; i++)
        BITM_TOOL_TRY(bitm_run(b->session, &s->batch, b->output, s->n_output, err));
    for (uint32_t i = 0; i < n; i++) {
        double start = now_ms();
        BITM_TOOL_TRY(bitm_run(b->session, &s->batch, b->output, s->n_output, err));
        b->times[i] = now_ms() - start;
    }
    qsort(b->times, n, sizeof *b->times, compare_times);
    s->median_ms = (b->times[(n - 1) / 2] + b->times[n / 2]) / 2;
    s->min_ms = b->times[0];
    s->max_ms = b->times[n - 1];
    return BITM_OK;
}

/* ---- Results ---- */

static double tokens_per_second(const bench *b, const subject *s)
{
    double n_tokens = (double)b->arguments->batch * b->length;
    return s->median_ms > 0 ? n_tokens / s->median_ms * 1e3 : 0;
}

static bitm_status write_text(bitm_writer *w, const bench *b, bitm_error *err)
{
    const bitm_arguments *arguments = b->arguments;
    bitm_write(w, "%-12s ", "file");
    bitm_write_text(w, arguments->model, strlen(arguments->model), SIZE_MAX, 0);
    bitm_write(w, "\n%-12s %u x %u tokens, %u runs\n", "input", arguments->batch, b->length,
               arguments->repeat);
    bitm_write(w, "%-12s %s\n", "activations", bitm_tool_mode_name(bitm_tool_mode(arguments)));
    bitm_write(w, "%-12s %s\n", "device", bitm_model_device(b->model));
    bitm_write(w, "%-12s %u\n", "threads", bitm_session_threads(b->session));
    bitm_write(w, "%-12s ", "kernels");
    BITM_TOOL_TRY(bitm_tool_write_kernels(w, b->model, arguments, err));
    bitm_write(w, "\n\n%-40s %10s %10s %10s %10s\n", "", "median ms", "min ms", "max ms",
               "tokens/s");
    for (size_t i = 0; i < b->n_subjects; i++) {
        const subject *s = &b->subjects[i];
        bitm_write(w, "%-40s %10.3f %10.3f %10.3f %10.0f\n", s->what, s->median_ms, s->min_ms,
                   s->max_ms, tokens_per_second(b, s));
    }
    return BITM_OK;
}

static void write_json_subject(bitm_writer *w, const bench *b, const subject *s)
{
    bitm_json_open(w, '{');
    bitm_json_key(w, "what");
    bitm_json_string(w, s->what);
    bitm_json_key(w, "median_ms");
    bitm_json_float(w, s->median_ms);
    bitm_json_key(w, "min_ms");
    bitm_json_float(w, s->min_ms);
    bitm_json_key(w, "max_ms");
    bitm_json_float(w, s->max_ms);
    bitm_json_key(w, "tokens_per_second");
    bitm_json_float(w, tokens_per_second(b, s));
    bitm_json_close(w, '}');
}

static bitm_status write_json(bitm_writer *w, const bench *b, bitm_error *err)
{
    const bitm_arguments *arguments = b->arguments;
    const struct {
        const char *key;
        uint32_t value;
    } numbers[] = {{"batch", arguments->batch},
                   {"length", b->length},
                   {"warmup", arguments->warmup},
                   {"repeat", arguments->repeat},
                   {"threads", bitm_session_threads(b->session)}};
    bitm_json_open(w, '{');
    bitm_json_key(w, "path");
    bitm_json_string(w, arguments->model);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        bitm_json_key(w, numbers[i].key);
        bitm_json_integer(w, numbers[i].value);
    }
    bitm_json_key(w, "activations");
    bitm_json_string(w, bitm_tool_mode_name(bitm_tool_mode(arguments)));
    bitm_json_key(w, "device");
    bitm_json_string(w, bitm_model_device(b->model));
    bitm_json_key(w, "kernels");
    BITM_TOOL_TRY(bitm_tool_write_kernels(w, b->model, arguments, err));
    bitm_json_key(w, "runs");
    bitm_json_open(w, '[');
    for (size_t i = 0; i < b->n_subjects; i++)
        write_json_subject(w, b, &b->subjects[i]);
    bitm_json_close(w, ']');
    bitm_json_key(w, "version");
    bitm_json_string(w, bitm_version());
    bitm_json_close(w, '}');
    return BITM_OK;
}

static bitm_status run_bench(const bitm_arguments *arguments, bitm_writer *w, bitm_error *err)
{
    bench b = {.arguments = arguments};
    bitm_status status = prepare(&b, err);
    for (size_t i = 0; status == BITM_OK && i < b.n_subjects; i++)
        status = time_subject(&b, &b.subjects[i], err);
    if (status == BITM_OK)
        status = arguments->json ? write_json(w, &b, err) : write_text(w, &b, err);
    free(b.ids);
    free(b.positions);
    free(b.output);
    free(b.times);
    bitm_session_free(b.session);
    bitm_model_close(b.model);
    return status;
}

const bitm_command bitm_command_bench = {
    .name = "bench",
    .options = OPTIONS_TO_RUN | OPTION_BATCH | OPTION_LENGTH | OPTION_REPEAT | OPTION_WARMUP |
               OPTION_POSITIONS,
    .needs_model = true,
    .help = "usage: bitm bench model.bitm [options]\n"
            "\n"
            "Times runs of a fixed input on this machine: the encoder alone, and with the head.\n"
            "\n"
            "options:\n"
            "  --batch N             sequences of a run (default: 1)\n"
            "  --length N            tokens of a sequence (default: 64, or what the model takes)\n"
            "  --repeat N            timed runs (default: 20)\n"
            "  --warmup N            runs before them (default: 3)\n"
            "  --positions WHICH     masked-LM logits at one position of each sequence, at all of\n"
            "                        them, or none: the encoder alone (default: "
            "one)\n" BITM_HELP_OPTIONS_TO_RUN "\n"
            "example:\n"
            "  bitm bench model.bitm --length 128 --threads 1\n",
    .need = need_of_bench,
    .run = run_bench,
};
