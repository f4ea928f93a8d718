#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tool.h"

/* Numbers of formats/SPEC.md 3.2. */
enum { HEAD_CLASSIFIER = 3, PROBLEM_REGRESSION = 1, PROBLEM_SEVERAL = 3, PROBLEM_ONE_LOGIT = 4 };

typedef struct classifier {
    const bitm_arguments *arguments;
    bitm_writer *w;
    bitm_model *model;
    bitm_model_properties properties;
    bitm_session *session;
} classifier;

typedef struct label {
    float score;
    uint32_t number;
} label;

static int compare_labels(const void *a, const void *b)
{
    const label *x = a, *y = b;
    if (x->score != y->score) return x->score < y->score ? 1 : -1;
    return (x->number > y->number) - (x->number < y->number);
}

/* One logit decides between two labels: label 1's against 0. */
static bitm_status score_one_logit(float logit, label labels[2], bitm_error *err)
{
    float scores[2] = {0.0F, logit};
    uint32_t best = logit >= 0.0F;
    BITM_TOOL_TRY(bitm_softmax(scores, 1, 2, err));
    labels[0] = (label){scores[best], best};
    labels[1] = (label){scores[1 - best], 1 - best};
    return BITM_OK;
}

/* Makes scores of logits [n] in place, and of these labels [n], best first. */
static bitm_status score(uint32_t problem, float *logits, size_t n, label *labels, bitm_error *err)
{
    if (problem == PROBLEM_SEVERAL)
        BITM_TOOL_TRY(bitm_sigmoid(logits, n, err));
    else if (problem != PROBLEM_REGRESSION)
        BITM_TOOL_TRY(bitm_softmax(logits, 1, n, err));
    for (uint32_t i = 0; i < n; i++)
        labels[i] = (label){logits[i], i};
    qsort(labels, n, sizeof *labels, compare_labels);
    return BITM_OK;
}

static void write_label(const classifier *c, const label *l)
{
    bitm_writer *w = c->w;
    char key[32], unnamed[32];
    size_t n_bytes = 0;
    (void)snprintf(key, sizeof key, "label.%u", l->number);
    (void)snprintf(unnamed, sizeof unnamed, "LABEL_%u", l->number);
    const char *name = bitm_model_metadata(c->model, key, &n_bytes);
    if (name == NULL) {
        name = unnamed;
        n_bytes = strlen(unnamed);
    }
    if (!c->arguments->json) {
        bitm_write(w, "%.4f  ", (double)l->score);
        bitm_write_text(w, name, n_bytes, SIZE_MAX, 0);
        bitm_write(w, "\n");
        return;
    }
    bitm_json_open(w, '{');
    bitm_json_key(w, "label");
    bitm_json_text(w, name, n_bytes);
    bitm_json_key(w, "score");
    bitm_json_float(w, (double)l->score);
    bitm_json_close(w, '}');
}

static void write_labels(const classifier *c, const label *labels, size_t n)
{
    if (c->arguments->json) {
        bitm_json_key(c->w, "labels");
        bitm_json_open(c->w, '[');
    }
    for (size_t i = 0; i < n && i < c->arguments->top_k; i++)
        write_label(c, &labels[i]);
    if (c->arguments->json) bitm_json_close(c->w, ']');
}

static bitm_status classify_text(void *context, const char *text, size_t n_bytes, bitm_error *err)
{
    const classifier *c = context;
    const bitm_model_properties *p = &c->properties;
    bool one_logit = p->problem == PROBLEM_ONE_LOGIT;
    size_t n = one_logit ? 2 : p->n_labels, n_tokens;
    if (p->head != HEAD_CLASSIFIER)
        return bitm_tool_fail(err, BITM_NO_HEAD,
                              "the model has no sequence classifier, so it cannot classify");
    void *labels = NULL;
    float *logits;
    bitm_status status = bitm_tool_run_text(c->session, c->model, BITM_OUTPUT_LOGITS, text, n_bytes,
                                            &logits, &n_tokens, err);
    if (status == BITM_OK) status = bitm_tool_allocate(&labels, n, sizeof(label), err);
    if (status == BITM_OK)
        status = one_logit ? score_one_logit(logits[0], labels, err)
                           : score(p->problem, logits, n, labels, err);
    if (status == BITM_OK) write_labels(c, labels, n);
    free(logits);
    free(labels);
    return status;
}

static bitm_status run_classify(const bitm_arguments *arguments, bitm_writer *w, bitm_error *err)
{
    classifier c = {.arguments = arguments, .w = w};
    bitm_session_options options = bitm_tool_session_options(arguments, 1, 0);
    bitm_status status = bitm_tool_open(arguments, &c.model, &c.properties, err);
    if (status == BITM_OK) status = bitm_session_create(c.model, &options, &c.session, err);
    if (status == BITM_OK) status = bitm_tool_run_texts(arguments, w, true, classify_text, &c, err);
    bitm_session_free(c.session);
    bitm_model_close(c.model);
    return status;
}

const bitm_command bitm_command_classify = {
    .name = "classify",
    .options = OPTIONS_TO_RUN | OPTION_TOP_K,
    .needs_model = true,
    .takes_texts = true,
    .help =
        "usage: bitm classify model.bitm [text ...] [options]\n"
        "\n"
        "Labels texts: prints score and name of the best labels. Without a text it reads texts\n"
        "from standard input, one a line.\n"
        "\n"
        "options:\n"
        "  --top-k N             labels of each text (default: 5)\n" BITM_HELP_OPTIONS_TO_RUN "\n"
        "example:\n"
        "  bitm classify model.bitm \"What a wonderful film.\" --top-k 2\n",
    .need = bitm_tool_need_of_text,
    .run = run_classify,
};
