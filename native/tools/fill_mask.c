#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tool.h"

/* One command, and what it has taken. */
typedef struct filler {
    const bitm_arguments *arguments;
    bitm_writer *w;
    bitm_model *model;
    bitm_model_properties properties;
    bitm_session *session;
    int32_t *targets; /* owned; NULL: the whole vocabulary */
    size_t n_targets;
} filler;

/* A text with the memory that it takes. */
typedef struct filling {
    int32_t *ids;
    size_t n_ids;
    int32_t *masks; /* where mask tokens are */
    size_t n_masks;
    bitm_prediction *predictions; /* [n_masks, top_k] */
    uint32_t top_k;
    int32_t *filled; /* ids with a prediction, without padding */
    char *text;      /* decoded */
    size_t n_bytes, capacity;
} filling;

static bitm_status allocate_ids(int32_t **ids, size_t n, bitm_error *err)
{
    void *memory;
    bitm_status status = bitm_tool_allocate(&memory, n, sizeof **ids, err);
    *ids = memory;
    return status;
}

/* Reads ids to text->text; the memory grows as needed. */
static bitm_status decode(const bitm_model *model, const int32_t *ids, size_t n_ids, bool skip,
                          filling *text, bitm_error *err)
{
    BITM_TOOL_TRY(
        bitm_decode(model, ids, n_ids, skip, text->text, text->capacity, &text->n_bytes, err));
    if (text->n_bytes < text->capacity) return BITM_OK;
    char *larger = realloc(text->text, 2 * text->n_bytes + 1);
    if (larger == NULL) return bitm_tool_fail(err, BITM_NO_MEMORY, "no memory for a decoded text");
    text->text = larger;
    text->capacity = 2 * text->n_bytes + 1;
    return bitm_decode(model, ids, n_ids, skip, text->text, text->capacity, &text->n_bytes, err);
}

/* ---- Targets ---- */

static int compare_ids(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* The id that a target word counts by: its own, or that of its first piece; -1 without any. */
static bitm_status find_target(const bitm_model *model, const bitm_model_properties *properties,
                               const char *word, size_t n_bytes, int32_t *id, bitm_error *err)
{
    filling piece = {0};
    size_t first = properties->cls_id >= 0, n_special = first + (properties->sep_id >= 0);
    *id = bitm_token_id(model, word, n_bytes);
    if (*id >= 0) return BITM_OK;
    bitm_status status = allocate_ids(&piece.ids, n_bytes + 2, err);
    if (status == BITM_OK)
        status =
            bitm_tokenize(model, word, n_bytes, piece.ids, NULL, n_bytes + 2, &piece.n_ids, err);
    char warning[256];
    if (status == BITM_OK && piece.n_ids > n_special) {
        *id = piece.ids[first];
        status = decode(model, id, 1, false, &piece, err);
        (void)snprintf(warning, sizeof warning, "target '%.*s' is no token: '%s' is used",
                       (int)n_bytes, word, piece.text != NULL ? piece.text : "");
    } else {
        (void)snprintf(warning, sizeof warning, "target '%.*s' has no token: left out",
                       (int)n_bytes, word);
    }
    if (status == BITM_OK) bitm_complain(": warning: ", warning);
    free(piece.ids);
    free(piece.text);
    return status;
}

/* Reads "word,word" to sorted ids without repetition. */
static bitm_status read_targets(filler *f, bitm_error *err)
{
    const char *words = f->arguments->targets;
    if (words == NULL) return BITM_OK;
    BITM_TOOL_TRY(allocate_ids(&f->targets, strlen(words) + 1, err));
    size_t n_found = 0;
    for (bool more = true; more;) {
        size_t n_bytes = strcspn(words, ",");
        int32_t id;
        BITM_TOOL_TRY(find_target(f->model, &f->properties, words, n_bytes, &id, err));
        if (id >= 0) f->targets[n_found++] = id;
        more = words[n_bytes] == ',';
        words += n_bytes + more;
    }
    if (n_found == 0)
        return bitm_tool_fail(err, BITM_ARGUMENT, "targets: none of them has a token");
    qsort(f->targets, n_found, sizeof *f->targets, compare_ids);
    for (size_t i = 0; i < n_found; i++)
        if (i == 0 || f->targets[i] != f->targets[i - 1])
            f->targets[f->n_targets++] = f->targets[i];
    return BITM_OK;
}

/* ---- Predictions ---- */

static bitm_status predict(filler *f, const char *text, size_t n_bytes, filling *t, bitm_error *err)
{
    const bitm_model_properties *p = &f->properties;
    BITM_TOOL_TRY(allocate_ids(&t->ids, n_bytes + 2, err)); /* a token takes a byte or more */
    BITM_TOOL_TRY(allocate_ids(&t->masks, n_bytes + 2, err));
    BITM_TOOL_TRY(allocate_ids(&t->filled, n_bytes + 2, err));
    BITM_TOOL_TRY(
        bitm_tokenize(f->model, text, n_bytes, t->ids, NULL, n_bytes + 2, &t->n_ids, err));
    for (size_t i = 0; i < t->n_ids; i++)
        if (t->ids[i] == p->mask_id) t->masks[t->n_masks++] = (int32_t)i;
    if (t->n_masks == 0) return bitm_tool_fail(err, BITM_NO_MASK, "the text has no mask token");
    if (t->n_ids > p->max_positions)
        return bitm_tool_fail(err, BITM_TOO_LONG,
                              "sequences of %zu tokens, but the model has %u positions", t->n_ids,
                              p->max_positions);
    size_t most = f->targets != NULL ? f->n_targets : p->vocab_size;
    t->top_k = f->arguments->top_k < most ? f->arguments->top_k : (uint32_t)most;
    size_t n_predictions = t->n_masks * t->top_k;
    void *predictions;
    BITM_TOOL_TRY(bitm_tool_allocate(&predictions, n_predictions, sizeof *t->predictions, err));
    t->predictions = predictions;
    bitm_batch batch = {.struct_size = sizeof batch,
                        .n_sequences = 1,
                        .length = (uint32_t)t->n_ids,
                        .n_positions = (uint32_t)t->n_masks,
                        .input_ids = t->ids,
                        .positions = t->masks};
    return bitm_run_top_k(f->session, &batch, t->top_k, f->targets, f->n_targets, t->predictions,
                          n_predictions, err);
}

/* Decodes the whole text with a token in the place of one mask. */
static bitm_status decode_filled(const filler *f, filling *t, size_t mask, int32_t token,
                                 bitm_error *err)
{
    size_t n = 0;
    for (size_t i = 0; i < t->n_ids; i++) {
        int32_t id = i == (size_t)t->masks[mask] ? token : t->ids[i];
        if (id != f->properties.pad_id) t->filled[n++] = id;
    }
    return decode(f->model, t->filled, n, t->n_masks == 1, t, err);
}

static bitm_status write_prediction(const filler *f, filling *t, size_t mask,
                                    const bitm_prediction *prediction, bitm_error *err)
{
    bitm_writer *w = f->w;
    bool json = f->arguments->json;
    BITM_TOOL_TRY(decode(f->model, &prediction->token, 1, false, t, err));
    if (json) {
        bitm_json_open(w, '{');
        bitm_json_key(w, "score");
        bitm_json_float(w, (double)prediction->score);
        bitm_json_key(w, "token");
        bitm_json_integer(w, prediction->token);
        bitm_json_key(w, "token_str");
        bitm_json_text(w, t->text, t->n_bytes);
        bitm_json_key(w, "sequence");
    } else {
        bitm_write(w, "%.4f  ", (double)prediction->score);
        bitm_write_text(w, t->text, t->n_bytes, SIZE_MAX, 16);
        bitm_write(w, "  ");
    }
    BITM_TOOL_TRY(decode_filled(f, t, mask, prediction->token, err));
    if (json) {
        bitm_json_text(w, t->text, t->n_bytes);
        bitm_json_close(w, '}');
    } else {
        bitm_write_text(w, t->text, t->n_bytes, SIZE_MAX, 0);
        bitm_write(w, "\n");
    }
    return BITM_OK;
}

static bitm_status write_predictions(const filler *f, filling *t, bitm_error *err)
{
    for (size_t mask = 0; mask < t->n_masks; mask++) {
        if (f->arguments->json)
            bitm_json_open(f->w, '[');
        else if (t->n_masks > 1)
            bitm_write(f->w, "mask %zu of %zu:\n", mask + 1, t->n_masks);
        for (size_t k = 0; k < t->top_k; k++)
            BITM_TOOL_TRY(write_prediction(f, t, mask, &t->predictions[mask * t->top_k + k], err));
        if (f->arguments->json) bitm_json_close(f->w, ']');
    }
    return BITM_OK;
}

/* ---- Texts ---- */

static bitm_status fill_text(void *context, const char *text, size_t n_bytes, bitm_error *err)
{
    filler *f = context;
    filling t = {0};
    bitm_status status = predict(f, text, n_bytes, &t, err);
    if (status == BITM_OK) {
        if (f->arguments->json) {
            bitm_json_key(f->w, "masks");
            bitm_json_open(f->w, '[');
        }
        status = write_predictions(f, &t, err);
        if (f->arguments->json) bitm_json_close(f->w, ']');
    }
    free(t.ids);
    free(t.masks);
    free(t.filled);
    free(t.predictions);
    free(t.text);
    return status;
}

static bitm_status run_fill_mask(const bitm_arguments *arguments, bitm_writer *w, bitm_error *err)
{
    filler f = {.arguments = arguments, .w = w};
    bitm_session_options options = bitm_tool_session_options(arguments, 1, 0);
    bitm_status status = bitm_tool_open(arguments, &f.model, &f.properties, err);
    if (status == BITM_OK) status = read_targets(&f, err);
    if (status == BITM_OK) status = bitm_session_create(f.model, &options, &f.session, err);
    if (status == BITM_OK) status = bitm_tool_run_texts(arguments, w, true, fill_text, &f, err);
    free(f.targets);
    bitm_session_free(f.session);
    bitm_model_close(f.model);
    return status;
}

const bitm_command bitm_command_fill_mask = {
    .name = "fill-mask",
    .options = OPTIONS_TO_RUN | OPTION_TOP_K | OPTION_TARGETS,
    .needs_model = true,
    .takes_texts = true,
    .help = "usage: bitm fill-mask [model.bitm] [text ...] [options]\n"
            "\n"
            "Fills the mask tokens of texts: prints score, token and the filled text of the best\n"
            "predictions. Without a text it reads texts from standard input, one a line.\n"
            "\n"
            "The first word is a model if it ends in .bitm or is the path of something that "
            "exists. If\n"
            "it is not, all words are texts, for the demo model of the Python package; the "
            "program in C\n"
            "has no demo model.\n"
            "\n"
            "options:\n"
            "  --top-k N             predictions of each mask (default: 5)\n"
            "  --targets WORD,...    words to choose from (default: the whole "
            "vocabulary)\n" BITM_HELP_OPTIONS_TO_RUN "\n"
            "example:\n"
            "  bitm fill-mask model.bitm \"Paris is the [MASK] of France.\" --top-k 3\n"
            "  bitm fill-mask \"The capital of France is [MASK].\"\n",
    .need = bitm_tool_need_of_text,
    .run = run_fill_mask,
};
