#include "session.h"

#include <string.h>

#include "bert.h"
#include "head.h"

/* A batch is run in parts of at most this many tokens (or one sequence), so that a part's
 * activations stay near the CPU and the memory of a session does not grow with the batch. */
enum { PART_TOKENS = 256 };

/* A device wants more at once to be busy, and less of the logits, which are large. */
enum { DEVICE_PART_TOKENS = 16384, DEVICE_ROWS = 1024 };

/* ---- Creation ---- */

typedef struct limits {
    uint32_t max_batch, max_length, max_tokens, max_rows, n_threads;
    bitm_activations activations;
    uint64_t device_bytes;
} limits;

static bool is_masked_lm(const bitm_model *model)
{
    uint32_t head = model->network.config->head;
    return head == BITM_HEAD_MASKED_LM || head == BITM_HEAD_MASKED_LM_NEXT_SENTENCE;
}

/* What the model's device has room for. */
static bitm_status plan_device(const bitm_model *model, limits *l, bitm_error *err)
{
    uint64_t most = (uint64_t)l->max_batch * l->max_length;
    uint32_t part = l->max_length > DEVICE_PART_TOKENS ? l->max_length : DEVICE_PART_TOKENS;
    bitm_device_limits wanted = {.max_tokens = most < part ? (uint32_t)most : part,
                                 .max_length = l->max_length,
                                 .max_rows = DEVICE_ROWS,
                                 .activations = l->activations};
    BITM_TRY(model->device->session_plan(model->device_model, &wanted, &l->device_bytes, err));
    l->max_tokens = wanted.max_tokens;
    l->max_rows = wanted.max_rows;
    l->n_threads = 1;
    return BITM_OK;
}

static bitm_status read_limits(const bitm_model *model, const bitm_session_options *given,
                               bitm_session_options *options, limits *l, bitm_error *err)
{
    BITM_CHECK(model != NULL, BITM_ARGUMENT, err, "model must be given");
    *options = (bitm_session_options){.struct_size = sizeof *options};
    BITM_TRY(bitm_read_options(options, sizeof *options, given, "bitm_session_options", err));
    BITM_CHECK(options->reserved == 0, BITM_UNSUPPORTED, err,
               "bitm_session_options: reserved is %u, expected 0", options->reserved);
    uint32_t max_positions = model->network.config->max_positions;
    l->max_batch = options->max_batch > 0 ? options->max_batch : 1;
    l->max_length = options->max_length > 0 ? options->max_length : max_positions;
    BITM_CHECK(l->max_length <= max_positions, BITM_TOO_LONG, err,
               "a session for sequences of %u tokens, but the model has %u positions",
               l->max_length, max_positions);
    uint64_t most = (uint64_t)l->max_batch * l->max_length;
    uint32_t part = l->max_length > PART_TOKENS ? l->max_length : PART_TOKENS;
    l->max_tokens = most < part ? (uint32_t)most : part;
    l->max_rows = l->max_tokens;
    l->device_bytes = 0;
    l->n_threads = options->n_threads > 0 ? options->n_threads : bitm_os_cpu_count();
    BITM_CHECK(l->n_threads <= 1024, BITM_ARGUMENT, err, "%u threads, expected at most 1024",
               l->n_threads);
    BITM_CHECK(options->activations <= BITM_ACTIVATIONS_INT11, BITM_ARGUMENT, err,
               "activations is %u, expected a bitm_activations", options->activations);
    l->activations = options->activations == BITM_ACTIVATIONS_AUTO
                         ? BITM_ACTIVATIONS_INT11
                         : (bitm_activations)options->activations;
    return model->device != NULL ? plan_device(model, l, err) : BITM_OK;
}

/* Working memory of a forward pass on the CPU. */
static void lay_out_floats(bitm_session *s, bitm_arena *arena)
{
    const bitm_network *network = &s->model->network;
    const bitm_file_config *config = network->config;
    uint64_t n = s->max_tokens;
    size_t hidden_bytes = config->hidden_size * sizeof(float);
    size_t attention_bytes = network->attention_size * sizeof(float);
    s->hidden = bitm_arena_take(arena, n, hidden_bytes);
    s->query = bitm_arena_take(arena, n, attention_bytes);
    s->key = bitm_arena_take(arena, n, attention_bytes);
    s->value = bitm_arena_take(arena, n, attention_bytes);
    s->context = bitm_arena_take(arena, n, attention_bytes);
    uint32_t slice_room = bitm_backend_slice_room(&s->backend);
    s->intermediate = bitm_arena_take(arena, slice_room, config->intermediate_size * sizeof(float));
    s->output = bitm_arena_take(arena, n, hidden_bytes);
    s->head_input = bitm_arena_take(arena, n, hidden_bytes);
    s->head_output = bitm_arena_take(arena, n, hidden_bytes);
    if (is_masked_lm(s->model))
        s->logits =
            bitm_arena_take(arena, (uint64_t)BITM_TOP_K_ROWS * config->vocab_size, sizeof(float));
}

/* Places a session and all it works with; over a measuring arena it returns NULL. */
static bitm_session *lay_out(const bitm_model *model, const limits *l, bitm_arena *arena)
{
    bitm_session measured = {0};
    bitm_session *placed = bitm_arena_take(arena, 1, sizeof *placed);
    bitm_session *s = placed != NULL ? placed : &measured;
    *s = measured;
    uint64_t n = l->max_tokens, rows = n > l->max_rows ? n : l->max_rows;
    s->model = model;
    s->max_batch = l->max_batch;
    s->max_length = l->max_length;
    s->max_tokens = l->max_tokens;
    s->max_rows = l->max_rows;
    s->backend.pool = &s->pool;
    s->backend.network = &model->network;
    s->backend.kernels = &model->kernels;
    s->backend.activations = l->activations;
    if (model->device == NULL)
        bitm_backend_layout(&s->backend, arena, l->max_tokens, l->max_length, l->n_threads);
    else
        bitm_pool_layout(&s->pool, arena, l->n_threads);

    s->packed.sequences = bitm_arena_take(arena, n, sizeof(uint32_t));
    s->packed.first = bitm_arena_take(arena, n + 1, sizeof(uint32_t));
    s->packed.ids = bitm_arena_take(arena, n, sizeof(int32_t));
    s->packed.types = bitm_arena_take(arena, n, sizeof(int32_t));
    s->packed.positions = bitm_arena_take(arena, n, sizeof(int32_t));
    s->chosen.first = bitm_arena_take(arena, n + 1, sizeof(uint32_t));
    s->chosen.tokens = bitm_arena_take(arena, n, sizeof(uint32_t));
    s->rows = bitm_arena_take(arena, rows, sizeof(bitm_row));
    s->text_ids = bitm_arena_take(arena, l->max_length, sizeof(int32_t));
    s->text_masks = bitm_arena_take(arena, l->max_length, sizeof(int32_t));

    if (model->device == NULL)
        lay_out_floats(s, arena);
    else
        s->row_tokens = bitm_arena_take(arena, rows, sizeof(uint32_t));
    return placed;
}

static bitm_status measure(const bitm_model *model, const limits *l, size_t *n_bytes,
                           bitm_error *err)
{
    bitm_arena arena = {0};
    (void)lay_out(model, l, &arena);
    BITM_CHECK(!arena.overflow, BITM_NO_MEMORY, err,
               "such a session needs more memory than this machine can address");
    *n_bytes = arena.n_used;
    return BITM_OK;
}

bitm_status bitm_session_bytes(const bitm_model *model, const bitm_session_options *options,
                               size_t *n_bytes, bitm_error *err)
{
    bitm_session_options known;
    limits l;
    BITM_CHECK(n_bytes != NULL, BITM_ARGUMENT, err, "n_bytes must be given");
    BITM_TRY(read_limits(model, options, &known, &l, err));
    return measure(model, &l, n_bytes, err);
}

bitm_status bitm_memory_measure(const char *path, const bitm_model_options *model_options,
                                const bitm_session_options *session_options,
                                bitm_model_properties *properties, bitm_memory *memory,
                                bitm_error *err)
{
    bitm_session_options options;
    limits l;
    bitm_model *model;
    size_t n_bytes = 0;
    BITM_CHECK(memory != NULL, BITM_ARGUMENT, err, "memory must be given");
    uint32_t size = memory->struct_size;
    BITM_TRY(bitm_check_struct_size(size, sizeof *memory, "bitm_memory", err));
    BITM_TRY(bitm_model_open_to_measure(path, model_options, &model, err));
    bitm_status status = read_limits(model, session_options, &options, &l, err);
    if (status == BITM_OK) status = measure(model, &l, &n_bytes, err);
    if (status == BITM_OK && properties != NULL) status = bitm_model_info(model, properties, err);
    if (status == BITM_OK) {
        bitm_memory known = {
            .struct_size = size,
            .n_threads = l.n_threads,
            .file_bytes = model->file.header->file_bytes,
            .model_bytes = model->allocation_bytes + model->packed_bytes,
            .session_bytes = n_bytes,
            .stack_bytes = (uint64_t)(l.n_threads - 1) * BITM_OS_STACK_BYTES,
        };
        memset(memory, 0, size);
        memcpy(memory, &known, size < sizeof known ? size : sizeof known);
    }
    bitm_model_close(model);
    return status;
}

bitm_status bitm_session_create(const bitm_model *model, const bitm_session_options *options,
                                bitm_session **session, bitm_error *err)
{
    BITM_CHECK(session != NULL, BITM_ARGUMENT, err, "session must be given");
    *session = NULL;
    bitm_session_options known;
    limits l;
    size_t n_bytes = 0;
    BITM_TRY(read_limits(model, options, &known, &l, err));
    BITM_TRY(measure(model, &l, &n_bytes, err));
    bitm_arena arena = {.base = known.arena};
    void *allocation = NULL;
    if (known.arena != NULL) {
        BITM_CHECK((uintptr_t)known.arena % BITM_ARENA_ALIGNMENT == 0, BITM_ARGUMENT, err,
                   "the arena must be aligned to %d bytes", BITM_ARENA_ALIGNMENT);
        BITM_CHECK(known.arena_bytes >= n_bytes, BITM_NO_MEMORY, err,
                   "the session needs %zu bytes, the arena has %zu", n_bytes, known.arena_bytes);
    } else {
        BITM_TRY(bitm_allocate_arena(&model->allocator, n_bytes, &arena, &allocation, err));
    }
    bitm_session *created = lay_out(model, &l, &arena);
    created->allocator = model->allocator;
    created->allocation = allocation;
    atomic_flag_clear(&created->busy);
    bitm_status status = bitm_pool_start(&created->pool, err);
    if (status == BITM_OK && model->device != NULL) {
        bitm_device_limits wanted = {l.max_tokens, l.max_length, l.max_rows, l.activations};
        status = model->device->session_create(model->device_model, &wanted, &created->device, err);
    }
    if (status != BITM_OK) {
        if (allocation != NULL) model->allocator.release(model->allocator.context, allocation);
        return status;
    }
    *session = created;
    return BITM_OK;
}

void bitm_session_free(bitm_session *session)
{
    if (session == NULL) return;
    bitm_pool_stop(&session->pool);
    if (session->device != NULL) session->model->device->session_free(session->device);
    bitm_allocator allocator = session->allocator;
    if (session->allocation != NULL) allocator.release(allocator.context, session->allocation);
}

uint32_t bitm_session_threads(const bitm_session *session)
{
    return session != NULL ? session->pool.n_threads : 0;
}

/* ---- What is asked for ---- */

typedef enum task_kind {
    TASK_HIDDEN,
    TASK_MASKED_LM,
    TASK_TOP_K,
    TASK_CLASSIFY,
    TASK_TOKENS
} task_kind;

/* One call of the public functions, checked. */
typedef struct job {
    task_kind kind;
    const bitm_batch *batch;
    uint32_t n_layers; /* to run */
    size_t width;      /* floats, or predictions, of a row of output */
    float *output;
    bitm_candidates candidates; /* TASK_TOP_K */
    bitm_prediction *predictions;
} job;

static bool is_real(const bitm_batch *batch, size_t place)
{
    return batch->attention_mask == NULL || batch->attention_mask[place] != 0;
}

static bitm_status check_tokens(const bitm_file_config *config, const bitm_batch *batch,
                                bitm_error *err)
{
    size_t n = (size_t)batch->n_sequences * batch->length;
    for (size_t i = 0; i < n; i++) {
        if (!is_real(batch, i)) continue;
        int32_t id = batch->input_ids[i];
        int32_t type = batch->token_type_ids != NULL ? batch->token_type_ids[i] : 0;
        BITM_CHECK(id >= 0 && (uint32_t)id < config->vocab_size, BITM_TOKEN, err,
                   "sequence %zu, position %zu: token id %d, expected 0 to %u", i / batch->length,
                   i % batch->length, id, config->vocab_size - 1);
        BITM_CHECK(type >= 0 && (uint32_t)type < config->n_token_types, BITM_TOKEN, err,
                   "sequence %zu, position %zu: token type %d, expected 0 to %u", i / batch->length,
                   i % batch->length, type, config->n_token_types - 1);
    }
    return BITM_OK;
}

static bitm_status check_positions(const bitm_batch *batch, bitm_error *err)
{
    size_t n = (size_t)batch->n_sequences * batch->n_positions;
    for (size_t i = 0; batch->positions != NULL && i < n; i++) {
        int32_t position = batch->positions[i];
        size_t sequence = i / batch->n_positions;
        BITM_CHECK(position >= -1 && position < (int32_t)batch->length, BITM_POSITION, err,
                   "sequence %zu: position %d, expected -1 to %u", sequence, position,
                   batch->length - 1);
        BITM_CHECK(position == -1 || is_real(batch, sequence * batch->length + (size_t)position),
                   BITM_POSITION, err, "sequence %zu: position %d is padding", sequence, position);
    }
    return BITM_OK;
}

static bitm_status check_batch(const bitm_session *session, const bitm_batch *given,
                               bitm_batch *batch, bitm_error *err)
{
    *batch = (bitm_batch){.layer = -1};
    BITM_CHECK(given != NULL, BITM_ARGUMENT, err, "batch must be given");
    BITM_TRY(bitm_read_options(batch, sizeof *batch, given, "bitm_batch", err));
    BITM_CHECK(batch->input_ids != NULL && batch->n_sequences > 0 && batch->length > 0,
               BITM_ARGUMENT, err, "batch: expected input_ids of at least one token");
    BITM_CHECK(batch->n_sequences <= session->max_batch, BITM_ARGUMENT, err,
               "batch: %u sequences, the session was made for %u", batch->n_sequences,
               session->max_batch);
    BITM_CHECK(batch->length <= session->max_length, BITM_TOO_LONG, err,
               "batch: sequences of %u tokens, expected at most %u", batch->length,
               session->max_length);
    BITM_CHECK(batch->positions == NULL || batch->n_positions > 0, BITM_ARGUMENT, err,
               "batch: positions are given, but n_positions is 0");
    BITM_TRY(check_tokens(session->model->network.config, batch, err));
    return check_positions(batch, err);
}

/* Rows of output that the batch makes: one for each token, requested position, or sequence. */
static size_t n_rows_of(const job *j)
{
    const bitm_batch *batch = j->batch;
    if (j->kind == TASK_CLASSIFY) return batch->n_sequences;
    bool positions = batch->positions != NULL && j->kind != TASK_HIDDEN && j->kind != TASK_TOKENS;
    return (size_t)batch->n_sequences * (positions ? batch->n_positions : batch->length);
}

static bitm_status plan_hidden(const bitm_file_config *config, job *j, bitm_error *err)
{
    int32_t layer = j->batch->layer;
    BITM_CHECK(layer >= -1 && layer <= (int32_t)config->n_layers, BITM_ARGUMENT, err,
               "layer %d, expected -1 (the last) to %u", layer, config->n_layers);
    j->kind = TASK_HIDDEN;
    j->n_layers = layer == -1 ? config->n_layers : (uint32_t)layer;
    j->width = config->hidden_size;
    return BITM_OK;
}

static bitm_status plan_logits(const bitm_file_config *config, job *j, bitm_error *err)
{
    j->n_layers = config->n_layers;
    j->width = config->n_labels;
    switch (config->head) {
    case BITM_HEAD_MASKED_LM:
    case BITM_HEAD_MASKED_LM_NEXT_SENTENCE:
        j->kind = TASK_MASKED_LM;
        j->width = config->vocab_size;
        return BITM_OK;
    case BITM_HEAD_CLASSIFIER:
        j->kind = TASK_CLASSIFY;
        return BITM_OK;
    case BITM_HEAD_TOKEN_CLASSIFIER:
    case BITM_HEAD_QUESTION_ANSWERING:
        j->kind = TASK_TOKENS;
        return BITM_OK;
    default:
        return bitm_fail(err, BITM_NO_HEAD, "the model has no head, so it has no logits");
    }
}

/* ---- The run ---- */

/* Packs sequences of the batch from number `sequence` on, as many as fit; returns the next. */
static uint32_t pack(bitm_session *session, const bitm_batch *batch, uint32_t sequence)
{
    bitm_packed *p = &session->packed;
    p->n_sequences = p->n_tokens = 0;
    for (; sequence < batch->n_sequences; sequence++) {
        uint32_t first = p->n_tokens;
        for (uint32_t i = 0; i < batch->length; i++) {
            size_t place = (size_t)sequence * batch->length + i;
            if (!is_real(batch, place)) continue;
            if (p->n_tokens == session->max_tokens) {
                p->n_tokens = first; /* it does not fit: it opens the next part */
                p->first[p->n_sequences] = first;
                return sequence;
            }
            p->ids[p->n_tokens] = batch->input_ids[place];
            p->types[p->n_tokens] =
                batch->token_type_ids != NULL ? batch->token_type_ids[place] : 0;
            p->positions[p->n_tokens++] = (int32_t)i;
        }
        if (p->n_tokens == first) continue;
        p->sequences[p->n_sequences] = sequence;
        p->first[p->n_sequences++] = first;
    }
    p->first[p->n_sequences] = p->n_tokens;
    return sequence;
}

/* The rows from the device, to their places in the output. */
static bitm_status flush_device_rows(bitm_session *session, const job *j, uint32_t n_rows,
                                     bitm_error *err)
{
    static const bitm_device_task tasks[] = {[TASK_HIDDEN] = BITM_DEVICE_HIDDEN,
                                             [TASK_MASKED_LM] = BITM_DEVICE_MASKED_LM,
                                             [TASK_TOP_K] = BITM_DEVICE_TOP_K,
                                             [TASK_CLASSIFY] = BITM_DEVICE_CLASSIFY,
                                             [TASK_TOKENS] = BITM_DEVICE_TOKENS};
    const bitm_row *rows = session->rows;
    for (uint32_t i = 0; i < n_rows; i++)
        session->row_tokens[i] = rows[i].token;
    bitm_device_request request = {.task = tasks[j->kind],
                                   .tokens = session->row_tokens,
                                   .n_rows = n_rows,
                                   .targets = j->candidates.targets,
                                   .n_candidates = (uint32_t)j->candidates.n,
                                   .top_k = j->candidates.top_k};
    const void *results;
    BITM_TRY(session->model->device->finish(session->device, &request, &results, err));
    size_t n_bytes = j->width * (j->kind == TASK_TOP_K ? sizeof(bitm_prediction) : sizeof(float));
    uint8_t *output = j->kind == TASK_TOP_K ? (uint8_t *)j->predictions : (uint8_t *)j->output;
    for (size_t i = 0; i < n_rows; i++)
        memcpy(output + rows[i].output * n_bytes, (const uint8_t *)results + i * n_bytes, n_bytes);
    return BITM_OK;
}

/* Runs the head at the rows that wait. */
static bitm_status flush_rows(bitm_session *session, const job *j, bitm_error *err)
{
    uint32_t n_rows = session->n_rows;
    session->n_rows = 0;
    if (n_rows == 0) return BITM_OK;
    if (session->device != NULL) return flush_device_rows(session, j, n_rows, err);
    const bitm_row *rows = session->rows;
    if (j->kind == TASK_MASKED_LM)
        bitm_head_masked_lm(session, rows, n_rows, j->output);
    else if (j->kind == TASK_TOP_K)
        bitm_head_top_k(session, rows, n_rows, &j->candidates, j->predictions);
    else if (j->kind == TASK_TOKENS)
        bitm_head_tokens(session, rows, n_rows, j->output);
    else
        for (uint32_t i = 0; i < n_rows; i++)
            memcpy(j->output + rows[i].output * j->width,
                   session->hidden + rows[i].token * j->width, j->width * sizeof *j->output);
    return BITM_OK;
}

/* The packed token at a position of packed sequence number i: positions ascend, so halve. */
static uint32_t find_token(const bitm_packed *p, uint32_t i, int32_t position)
{
    uint32_t low = p->first[i], high = p->first[i + 1];
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (p->positions[middle] <= position)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* The requested positions of the packed sequences, each once; their first tokens for a pooler. */
static void choose(bitm_session *session, const job *j)
{
    const bitm_packed *p = &session->packed;
    const int32_t *positions = j->batch->positions;
    uint32_t *first = session->chosen.first, *mark = session->chosen.tokens, n = 0;
    bool lm = j->kind == TASK_MASKED_LM || j->kind == TASK_TOP_K;
    session->chosen.all = lm ? positions == NULL : j->kind != TASK_CLASSIFY;
    for (uint32_t i = 0; i < p->n_sequences && !session->chosen.all; i++) {
        size_t row = (size_t)p->sequences[i] * j->batch->n_positions;
        memset(mark + p->first[i], 0, (p->first[i + 1] - p->first[i]) * sizeof *mark);
        if (!lm) mark[p->first[i]] = 1;
        for (uint32_t k = 0; lm && k < j->batch->n_positions; k++)
            if (positions[row + k] != -1) mark[find_token(p, i, positions[row + k])] = 1;
        first[i] = n;
        for (uint32_t t = p->first[i]; t < p->first[i + 1]; t++)
            if (mark[t] != 0) mark[n++] = t; /* marks become their numbers, which are fewer */
        first[i + 1] = n;
    }
    session->chosen.all = session->chosen.all || n == 0;
}

/* The head of this process reads its weights, 47 MB of BERT-base, once for all rows that it is
 * given: rows wait for those of further parts, with their hidden states in session->head_input. */
static bool rows_wait(const bitm_session *session, const job *j)
{
    return session->device == NULL && j->kind != TASK_HIDDEN;
}

static bitm_status add_row(bitm_session *session, const job *j, bitm_row row, bitm_error *err)
{
    size_t hidden_size = session->model->network.config->hidden_size;
    uint32_t most = j->kind == TASK_HIDDEN ? session->max_tokens : session->max_rows;
    if (rows_wait(session, j))
        memcpy(session->head_input + session->n_rows * hidden_size,
               session->hidden + row.token * hidden_size, hidden_size * sizeof(float));
    session->rows[session->n_rows++] = row;
    return session->n_rows == most ? flush_rows(session, j, err) : BITM_OK;
}

/* Asks the head for every token, or for the requested positions, of the packed sequences. */
static bitm_status run_rows(bitm_session *session, const job *j, bitm_error *err)
{
    const bitm_packed *p = &session->packed;
    const bitm_batch *batch = j->batch;
    bool chosen = batch->positions != NULL && j->kind != TASK_HIDDEN && j->kind != TASK_TOKENS;
    for (uint32_t i = 0; i < p->n_sequences; i++) {
        size_t sequence = p->sequences[i];
        uint32_t n = chosen ? batch->n_positions : p->first[i + 1] - p->first[i];
        for (uint32_t k = 0; k < n; k++) {
            bitm_row row = {.token = p->first[i] + k, .output = sequence * batch->length};
            if (chosen) {
                row.output = sequence * batch->n_positions + k;
                if (batch->positions[row.output] == -1) continue;
                row.token = find_token(p, i, batch->positions[row.output]);
            } else {
                row.output += (size_t)p->positions[row.token];
            }
            BITM_TRY(add_row(session, j, row, err));
        }
    }
    return rows_wait(session, j) ? BITM_OK : flush_rows(session, j, err);
}

/* The logits of the packed sequences, on the device. */
static bitm_status classify_on_device(bitm_session *session, const job *j, bitm_error *err)
{
    const bitm_packed *p = &session->packed;
    for (uint32_t i = 0; i < p->n_sequences; i++) {
        bitm_row row = {.token = p->first[i], .output = p->sequences[i]};
        BITM_TRY(add_row(session, j, row, err));
    }
    return flush_rows(session, j, err);
}

static bitm_status encode_on_device(bitm_session *session, const job *j, bitm_error *err)
{
    const bitm_packed *p = &session->packed;
    bitm_device_input input = {.n_sequences = p->n_sequences,
                               .n_tokens = p->n_tokens,
                               .first = p->first,
                               .ids = p->ids,
                               .types = p->types,
                               .positions = p->positions};
    return session->model->device->encode(session->device, &input, j->n_layers, err);
}

/* Rows that nothing is computed for: padding, and position -1. */
static void clear_output(const job *j)
{
    size_t n = n_rows_of(j) * j->width;
    if (j->kind == TASK_TOP_K) {
        for (size_t i = 0; i < n; i++)
            j->predictions[i] = (bitm_prediction){.token = -1};
    } else if (j->batch->attention_mask != NULL || j->batch->positions != NULL) {
        memset(j->output, 0, n * sizeof *j->output);
    }
}

static bitm_status run_job(bitm_session *session, const job *j, bitm_error *err)
{
    BITM_TRY(bitm_pool_revive(&session->pool, err));
    clear_output(j);
    session->n_rows = 0;
    for (uint32_t sequence = 0; sequence < j->batch->n_sequences;) {
        sequence = pack(session, j->batch, sequence);
        if (session->packed.n_sequences == 0) continue;
        if (session->device != NULL) {
            BITM_TRY(encode_on_device(session, j, err));
        } else {
            choose(session, j);
            bitm_bert_encode(session, j->n_layers);
        }
        if (j->kind != TASK_CLASSIFY)
            BITM_TRY(run_rows(session, j, err));
        else if (session->device != NULL)
            BITM_TRY(classify_on_device(session, j, err));
        else
            bitm_head_classify(session, j->output);
    }
    return flush_rows(session, j, err);
}

static bitm_status enter(bitm_session *session, bitm_error *err)
{
    BITM_CHECK(session != NULL, BITM_ARGUMENT, err, "session must be given");
    BITM_CHECK(!atomic_flag_test_and_set(&session->busy), BITM_BUSY, err,
               "the session is in use by another thread");
    return BITM_OK;
}

static bitm_status run(bitm_session *session, const bitm_batch *given, float *output,
                       size_t n_output, bitm_error *err)
{
    const bitm_file_config *config = session->model->network.config;
    bitm_batch batch;
    BITM_TRY(check_batch(session, given, &batch, err));
    job j = {.batch = &batch, .output = output};
    BITM_CHECK(batch.output <= BITM_OUTPUT_HIDDEN_STATES, BITM_ARGUMENT, err,
               "batch: output is %u, expected a bitm_output", batch.output);
    if (batch.output == BITM_OUTPUT_HIDDEN_STATES)
        BITM_TRY(plan_hidden(config, &j, err));
    else
        BITM_TRY(plan_logits(config, &j, err));
    size_t n_rows = n_rows_of(&j);
    BITM_CHECK(output != NULL && n_output / j.width == n_rows && n_output % j.width == 0,
               BITM_ARGUMENT, err, "output has room for %zu floats, expected %zu times %zu",
               n_output, n_rows, j.width);
    return run_job(session, &j, err);
}

bitm_status bitm_run(bitm_session *session, const bitm_batch *batch, float *output, size_t n_output,
                     bitm_error *err)
{
    BITM_TRY(enter(session, err));
    bitm_status status = run(session, batch, output, n_output, err);
    atomic_flag_clear(&session->busy);
    return status;
}

/* ---- The best tokens ---- */

static bitm_status run_top_k(bitm_session *session, const bitm_batch *given, uint32_t top_k,
                             const int32_t *targets, size_t n_targets, bitm_prediction *predictions,
                             size_t n_predictions, bitm_error *err)
{
    const bitm_file_config *config = session->model->network.config;
    bitm_batch batch;
    BITM_CHECK(is_masked_lm(session->model), BITM_NO_HEAD, err,
               "the model has no masked-LM head, so it cannot fill masks");
    BITM_TRY(check_batch(session, given, &batch, err));
    size_t n = targets != NULL ? n_targets : config->vocab_size;
    BITM_CHECK(top_k > 0 && top_k <= n, BITM_ARGUMENT, err, "top_k is %u, expected 1 to %zu", top_k,
               n);
    for (size_t i = 0; targets != NULL && i < n; i++)
        BITM_CHECK(targets[i] >= 0 && (uint32_t)targets[i] < config->vocab_size, BITM_TOKEN, err,
                   "target %zu: token id %d, expected 0 to %u", i, targets[i],
                   config->vocab_size - 1);
    job j = {.kind = TASK_TOP_K,
             .batch = &batch,
             .n_layers = config->n_layers,
             .width = top_k,
             .candidates = {.targets = targets, .n = n, .top_k = top_k},
             .predictions = predictions};
    size_t n_rows = n_rows_of(&j);
    BITM_CHECK(predictions != NULL && n_predictions / top_k == n_rows && n_predictions % top_k == 0,
               BITM_ARGUMENT, err, "room for %zu predictions, expected %zu times %u", n_predictions,
               n_rows, top_k);
    return run_job(session, &j, err);
}

bitm_status bitm_run_top_k(bitm_session *session, const bitm_batch *batch, uint32_t top_k,
                           const int32_t *targets, size_t n_targets, bitm_prediction *predictions,
                           size_t n_predictions, bitm_error *err)
{
    BITM_TRY(enter(session, err));
    bitm_status status =
        run_top_k(session, batch, top_k, targets, n_targets, predictions, n_predictions, err);
    atomic_flag_clear(&session->busy);
    return status;
}

static bitm_status fill_mask(bitm_session *session, const char *text, size_t n_bytes,
                             uint32_t top_k, bitm_prediction *predictions, size_t capacity,
                             size_t *n_masks, bitm_error *err)
{
    const bitm_model *model = session->model;
    int32_t mask_id = model->file.config->mask_id;
    BITM_CHECK((text != NULL || n_bytes == 0) && n_masks != NULL, BITM_ARGUMENT, err,
               "text and n_masks must be given");
    BITM_TRY(bitm_model_needs_vocabulary(model, err));
    size_t n_ids;
    BITM_TRY(bitm_tokenizer_encode(&model->tokenizer, text, n_bytes, true, session->text_ids, NULL,
                                   session->max_length, &n_ids, err));
    BITM_CHECK(n_ids <= session->max_length, BITM_TOO_LONG, err,
               "the text has %zu tokens, expected at most %u", n_ids, session->max_length);
    size_t n = 0;
    for (size_t i = 0; i < n_ids; i++)
        if (session->text_ids[i] == mask_id) session->text_masks[n++] = (int32_t)i;
    *n_masks = n;
    BITM_CHECK(n > 0, BITM_NO_MASK, err, "the text has no mask token");
    BITM_CHECK(capacity / n >= top_k, BITM_ARGUMENT, err,
               "room for %zu predictions, expected %u for each of %zu masks", capacity, top_k, n);
    bitm_batch batch = {.struct_size = sizeof batch,
                        .n_sequences = 1,
                        .length = (uint32_t)n_ids,
                        .n_positions = (uint32_t)n,
                        .input_ids = session->text_ids,
                        .positions = session->text_masks};
    return run_top_k(session, &batch, top_k, NULL, 0, predictions, n * top_k, err);
}

bitm_status bitm_fill_mask(bitm_session *session, const char *text, size_t n_bytes, uint32_t top_k,
                           bitm_prediction *predictions, size_t capacity, size_t *n_masks,
                           bitm_error *err)
{
    BITM_TRY(enter(session, err));
    bitm_status status =
        fill_mask(session, text, n_bytes, top_k, predictions, capacity, n_masks, err);
    atomic_flag_clear(&session->busy);
    return status;
}
