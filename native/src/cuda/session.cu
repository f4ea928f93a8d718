/* A session on the device: its memory, its stream, and the way of inputs and results. */
#include <new>
#include <string.h>

#include "session.cuh"

namespace bitm {

static uint32_t padded(uint32_t n)
{
    return ceil_div(n, TOKEN_BLOCK) * TOKEN_BLOCK;
}

static uint32_t larger(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* ---- What the network's linears need at most, for one token ---- */

struct Needs {
    size_t pieces; /* of all planes of a row */
    uint32_t floats, rank;
    bool byte_attention, general_attention;
};

static void count_linear(const Linear &linear, bitm_activations activations, Needs *needs)
{
    for (uint32_t i = 0; i < linear.n_branches; i++) {
        const Branch &branch = linear.branches[i];
        bitm_input_form form = bitm_inputs_form(activations, branch.host);
        size_t pieces = 0;
        const int32_t *weights;
        if (form == BITM_INPUT_I8) pieces = pieces_of_bytes(linear.columns);
        if (form == BITM_INPUT_I16) pieces = 2 * pieces_of_bytes(linear.columns);
        if (form == BITM_INPUT_SIGN) pieces = 2 * pieces_of_bits(linear.columns);
        if (form == BITM_INPUT_PLANES)
            pieces = bitm_quantizer_planes(branch.host->quantizer, &weights) *
                     pieces_of_bits(linear.columns);
        if (pieces > needs->pieces) needs->pieces = pieces;
        if (branch.rms_gain != NULL || branch.column_scale != NULL ||
            (branch.host->quantizer != NULL && form == BITM_INPUT_FLOAT))
            needs->floats = larger(needs->floats, linear.columns);
    }
}

static Needs needs_of(const bitm_device_model *model, bitm_activations activations)
{
    Needs needs = {};
    const bitm_network &network = model->network;
    for (uint32_t n = 0; n < network.config->n_layers; n++) {
        const Layer &l = model->layers[n];
        const Linear *const linears[] = {&l.query,        &l.key,        &l.value,
                                         &l.query_p,      &l.query_m,    &l.key_p,
                                         &l.key_m,        &l.value_term, &l.attention_output,
                                         &l.intermediate, &l.output};
        for (size_t i = 0; i < sizeof linears / sizeof linears[0]; i++)
            count_linear(*linears[i], activations, &needs);
        bitm_attention_form form = attention_form(model, l, activations);
        needs.byte_attention |= form == BITM_ATTENTION_I8;
        needs.general_attention |= form == BITM_ATTENTION_GENERAL;
    }
    count_linear(model->pooler, activations, &needs);
    count_linear(model->mlm_transform, activations, &needs);
    count_linear(model->mlm_decoder, activations, &needs);
    count_linear(model->classifier, activations, &needs);
    needs.rank = network.config->score_rank;
    return needs;
}

/* ---- Memory ---- */

/* Arrays on the device; the arena measures, or places. */
static void lay_out(Buffers *b, const bitm_device_model *model, const bitm_device_limits &limits,
                    bitm_arena *arena)
{
    const bitm_file_config *config = model->network.config;
    Needs needs = needs_of(model, (bitm_activations)limits.activations);
    uint64_t n = padded(limits.max_tokens), rows = padded(limits.max_rows);
    uint64_t most = (n > rows ? n : rows) + TOKEN_BLOCK; /* whole blocks of every kernel */
    size_t hidden = config->hidden_size * sizeof(float);
    size_t attention = model->network.attention_size * sizeof(float);
    *b = Buffers();
    b->input = (uint8_t *)bitm_arena_take(arena, input_bytes(limits), 1);
    b->hidden = (float *)bitm_arena_take(arena, n, hidden);
    b->query = (float *)bitm_arena_take(arena, n, attention);
    b->key = (float *)bitm_arena_take(arena, n, attention);
    b->value = (float *)bitm_arena_take(arena, n, attention);
    b->context = (float *)bitm_arena_take(arena, n, attention);
    b->intermediate = (float *)bitm_arena_take(arena, n, config->intermediate_size * sizeof(float));
    b->output = (float *)bitm_arena_take(arena, most, hidden);
    b->head_input = (float *)bitm_arena_take(arena, rows, hidden);
    b->head_output = (float *)bitm_arena_take(arena, rows, hidden);
    if (is_masked_lm(model)) {
        b->logits = (float *)bitm_arena_take(arena, rows * config->vocab_size, sizeof(float));
        b->best = (Prediction *)bitm_arena_take(arena, rows * MAX_TOP_K, sizeof(Prediction));
    } else {
        b->logits =
            (float *)bitm_arena_take(arena, rows * larger(config->n_labels, 1), sizeof(float));
    }
    for (int i = 0; i < N_ENCODED; i++) {
        Encoded *e = &b->encoded[i];
        e->planes = (uint4 *)bitm_arena_take(arena, most * needs.pieces, sizeof(uint4));
        e->step = (float *)bitm_arena_take(arena, most, sizeof(float));
        e->sum = (float *)bitm_arena_take(arena, most, sizeof(float));
        e->base = (float *)bitm_arena_take(arena, most, sizeof(float));
        e->code_sum = (int32_t *)bitm_arena_take(arena, most, sizeof(int32_t));
        e->n_nonzero = (uint32_t *)bitm_arena_take(arena, most, sizeof(uint32_t));
    }
    b->floats = (float *)bitm_arena_take(arena, most, needs.floats * sizeof(float));
    b->ones = (float *)bitm_arena_take(arena, most, sizeof(float));
    b->extremes = (float *)bitm_arena_take(arena, most, 2 * sizeof(float));
    if (needs.byte_attention) {
        uint64_t heads = n * config->n_heads, pieces = heads * pieces_of_bytes(config->head_size);
        b->key_codes = (uint4 *)bitm_arena_take(arena, pieces, sizeof(uint4));
        b->value_codes = (uint4 *)bitm_arena_take(arena, pieces, sizeof(uint4));
        b->key_step = (float *)bitm_arena_take(arena, heads, sizeof(float));
    }
    if (!needs.general_attention) return;
    for (int i = 0; i < N_OPERANDS; i++) {
        b->codes[i] =
            (int16_t *)bitm_arena_take(arena, n, model->network.attention_size * sizeof(int16_t));
        b->operand_step[i] = (float *)bitm_arena_take(arena, n, sizeof(float));
        b->operand_base[i] = (float *)bitm_arena_take(arena, n, sizeof(float));
    }
    for (int i = 0; i < LOW_RANK_TERMS; i++)
        b->low_rank[i] = (float *)bitm_arena_take(arena, n, needs.rank * sizeof(float));
    b->value_term = (float *)bitm_arena_take(arena, n, sizeof(float));
    b->probability_extremes =
        (float *)bitm_arena_take(arena, n * config->n_heads, 2 * sizeof(float));
}

static bitm_status measure(const bitm_device_model *model, const bitm_device_limits &limits,
                           uint64_t *n_bytes, bitm_error *err)
{
    Buffers buffers;
    bitm_arena arena = {};
    lay_out(&buffers, model, limits, &arena);
    if (arena.overflow)
        return bitm_fail(err, BITM_NO_MEMORY,
                         "such a session needs more memory than there are addresses");
    *n_bytes = arena.n_used;
    return BITM_OK;
}

/* A session takes at most a quarter of the memory that is free, so that several have room. */
bitm_status session_plan(const bitm_device_model *model, bitm_device_limits *limits,
                         uint64_t *n_bytes, bitm_error *err)
{
    size_t free_bytes = 0, total_bytes = 0;
    BITM_CUDA_TRY(cudaSetDevice(model->device), "choosing the device", err);
    BITM_CUDA_TRY(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for the device's memory", err);
    AttentionShape shape;
    if (!attention_shape(model, padded(limits->max_length), 0, &shape))
        return bitm_fail(err, BITM_UNSUPPORTED,
                         "sequences of %u tokens are too long for this device's attention",
                         limits->max_length);
    for (;;) {
        bitm_status status = measure(model, *limits, n_bytes, err);
        if (status != BITM_OK) return status;
        if (*n_bytes <= total_bytes / 8) return BITM_OK;
        if (limits->max_tokens > limits->max_length && limits->max_tokens > TOKEN_BLOCK)
            limits->max_tokens = larger(limits->max_length, limits->max_tokens / 2);
        else if (limits->max_rows > TOKEN_BLOCK)
            limits->max_rows = limits->max_rows / 2;
        else
            return BITM_OK;
    }
}

static bitm_status start(bitm_device_session *session, bitm_error *err)
{
    uint64_t n_bytes = 0;
    bitm_status status = measure(session->model, session->limits, &n_bytes, err);
    if (status != BITM_OK) return status;
    BITM_CUDA_TRY(cudaMalloc((void **)&session->memory, n_bytes),
                  "memory of the session on the device", err);
    bitm_arena arena = {};
    arena.base = session->memory;
    lay_out(&session->buffers, session->model, session->limits, &arena);
    session->host_input_bytes = input_bytes(session->limits);
    session->host_result_bytes = result_bytes(session->model, session->limits);
    BITM_CUDA_TRY(cudaMallocHost((void **)&session->host_input, session->host_input_bytes),
                  "page-locked memory of the session", err);
    BITM_CUDA_TRY(cudaMallocHost((void **)&session->host_results, session->host_result_bytes),
                  "page-locked memory of the session", err);
    BITM_CUDA_TRY(cudaStreamCreateWithFlags(&session->stream, cudaStreamNonBlocking),
                  "making a stream", err);
    return prepare_forward(session, err);
}

bitm_status session_create(const bitm_device_model *model, const bitm_device_limits *limits,
                           bitm_device_session **session, bitm_error *err)
{
    BITM_CUDA_TRY(cudaSetDevice(model->device), "choosing the device", err);
    bitm_device_session *created = new (std::nothrow) bitm_device_session();
    if (created == NULL) return bitm_fail(err, BITM_NO_MEMORY, "the system refuses a session");
    created->model = model;
    created->limits = *limits;
    bitm_status status = start(created, err);
    if (status != BITM_OK) {
        session_free(created);
        return status;
    }
    *session = created;
    return BITM_OK;
}

/* ---- Graphs ---- */

/* The encoder's launches as one: the second time that a shape is met it is recorded, from then on
 * replayed.  The least recently used graph makes room. */
static Graph *find_graph(bitm_device_session *session, const GraphKey &key)
{
    Graph *oldest = &session->graphs[0];
    for (int i = 0; i < N_GRAPHS; i++) {
        Graph *graph = &session->graphs[i];
        if (graph->n_uses > 0 && memcmp(&graph->key, &key, sizeof key) == 0) return graph;
        if (graph->last_use < oldest->last_use) oldest = graph;
    }
    if (oldest->exec != NULL) (void)cudaGraphExecDestroy(oldest->exec);
    *oldest = Graph();
    oldest->key = key;
    return oldest;
}

static bitm_status record(bitm_device_session *session, uint32_t n_layers, Graph *graph,
                          bitm_error *err)
{
    cudaGraph_t recorded = NULL;
    BITM_CUDA_TRY(cudaStreamBeginCapture(session->stream, cudaStreamCaptureModeThreadLocal),
                  "recording the encoder", err);
    bitm_status status = forward(session, n_layers, err);
    cudaError_t error = cudaStreamEndCapture(session->stream, &recorded);
    if (status == BITM_OK && error == cudaSuccess)
        error = cudaGraphInstantiateWithFlags(&graph->exec, recorded, 0);
    if (recorded != NULL) (void)cudaGraphDestroy(recorded);
    if (status != BITM_OK) return status;
    BITM_CUDA_TRY(error, "recording the encoder", err);
    return BITM_OK;
}

static bitm_status run_encoder(bitm_device_session *session, uint32_t n_layers, bitm_error *err)
{
    const Batch &batch = session->batch;
    GraphKey key = {batch.n_tokens, batch.n_sequences, batch.max_length, batch.is_in_blocks,
                    n_layers};
    Graph *graph = find_graph(session, key);
    graph->last_use = ++session->n_runs;
    if (graph->n_uses++ == 0) return forward(session, n_layers, err);
    if (graph->exec == NULL) {
        bitm_status status = record(session, n_layers, graph, err);
        if (status != BITM_OK) return status;
    }
    BITM_CUDA_TRY(cudaGraphLaunch(graph->exec, session->stream),
                  "starting the encoder on the device", err);
    return BITM_OK;
}

void session_free(bitm_device_session *session)
{
    if (session == NULL) return;
    (void)cudaSetDevice(session->model->device);
    if (session->stream != NULL) (void)cudaStreamSynchronize(session->stream);
    for (int i = 0; i < N_GRAPHS; i++)
        if (session->graphs[i].exec != NULL) (void)cudaGraphExecDestroy(session->graphs[i].exec);
    if (session->stream != NULL) (void)cudaStreamDestroy(session->stream);
    (void)cudaFree(session->memory);
    (void)cudaFreeHost(session->host_input);
    (void)cudaFreeHost(session->host_results);
    delete session;
}

/* ---- Inputs and results ---- */

/* Rounds up to one of eight sizes between powers of two, so that few graphs serve all inputs. */
static uint32_t bucket(uint32_t n, uint32_t least)
{
    uint32_t step = least;
    while (step * 16 < n)
        step *= 2;
    return ceil_div(n, step) * step;
}

/* One block of page-locked memory and one copy carry all arrays of an input.  Tokens that pad are
 * zeros of no sequence; sequences that pad are empty. */
bitm_status session_encode(bitm_device_session *session, const bitm_device_input *input,
                           uint32_t n_layers, bitm_error *err)
{
    BITM_CUDA_TRY(cudaSetDevice(session->model->device), "choosing the device", err);
    Batch *batch = &session->batch;
    uint32_t n_tokens = bucket(input->n_tokens, TOKEN_BLOCK);
    uint32_t most = padded(session->limits.max_tokens);
    *batch = Batch();
    batch->n_tokens = n_tokens < most ? n_tokens : most;
    batch->n_sequences = bucket(input->n_sequences, 1);
    /* The copy of the input before may still be under way. */
    BITM_CUDA_TRY(cudaStreamSynchronize(session->stream), "waiting for the device", err);
    size_t word = sizeof(uint32_t), n_token_bytes = batch->n_tokens * word, n_bytes = 0;
    uint8_t *host = session->host_input;
    const uint8_t *device = session->buffers.input;
    const int32_t *arrays[] = {input->ids, input->types, input->positions};
    const int32_t **places[] = {&batch->ids, &batch->types, &batch->positions};
    for (int i = 0; i < 3; i++) {
        memset(host + n_bytes, 0, n_token_bytes);
        memcpy(host + n_bytes, arrays[i], input->n_tokens * word);
        *places[i] = (const int32_t *)(device + n_bytes);
        n_bytes += n_token_bytes;
    }
    uint32_t *sequence_of = (uint32_t *)(host + n_bytes);
    batch->sequence_of = (const uint32_t *)(device + n_bytes);
    n_bytes += n_token_bytes;
    uint32_t *first = (uint32_t *)(host + n_bytes);
    batch->first = (const uint32_t *)(device + n_bytes);
    n_bytes += (batch->n_sequences + 2) * word;
    memcpy(first, input->first, (input->n_sequences + 1) * word);
    for (uint32_t s = input->n_sequences + 1; s < batch->n_sequences + 2; s++)
        first[s] = input->n_tokens;
    uint32_t longest = 0;
    batch->is_in_blocks = true;
    for (uint32_t s = 0; s < input->n_sequences; s++) {
        longest = larger(longest, first[s + 1] - first[s]);
        if (first[s] % TOKEN_BLOCK + (first[s + 1] - first[s]) > TOKEN_BLOCK)
            batch->is_in_blocks = false;
        for (uint32_t t = first[s]; t < first[s + 1]; t++)
            sequence_of[t] = s;
    }
    for (uint32_t t = input->n_tokens; t < batch->n_tokens; t++)
        sequence_of[t] = batch->n_sequences;
    batch->max_length = padded(longest);
    BITM_CUDA_TRY(cudaMemcpyAsync(session->buffers.input, host, n_bytes, cudaMemcpyHostToDevice,
                                  session->stream),
                  "copying tokens to the device", err);
    return run_encoder(session, n_layers, err);
}

/* The rows and the targets of a request, behind the arrays of the input. */
static bitm_status send_rows(bitm_device_session *session, const bitm_device_request *request,
                             Rows *rows, bitm_error *err)
{
    size_t offset = token_words(session->limits), n_words = padded(request->n_rows);
    uint32_t *host = (uint32_t *)session->host_input + offset;
    uint32_t *device = (uint32_t *)session->buffers.input + offset;
    *rows = Rows();
    rows->n = request->n_rows;
    rows->n_padded = padded(request->n_rows);
    rows->tokens = device;
    for (uint32_t i = 0; i < rows->n_padded; i++)
        host[i] = request->tokens[i < rows->n ? i : 0];
    if (request->task == BITM_DEVICE_TOP_K) {
        if (request->top_k > MAX_TOP_K || request->n_candidates > MAX_TARGETS)
            return bitm_fail(
                err, BITM_UNSUPPORTED, "a GPU finds the best %d of at most %d tokens, not %u of %u",
                (int)MAX_TOP_K, (int)MAX_TARGETS, request->top_k, request->n_candidates);
        rows->top_k = request->top_k;
        rows->n_candidates = request->n_candidates;
        if (request->targets != NULL) {
            memcpy(host + n_words, request->targets, request->n_candidates * sizeof(int32_t));
            rows->targets = (const int32_t *)device + n_words;
            n_words += request->n_candidates;
        }
    }
    BITM_CUDA_TRY(cudaMemcpyAsync(device, host, n_words * sizeof(uint32_t), cudaMemcpyHostToDevice,
                                  session->stream),
                  "copying rows to the device", err);
    return BITM_OK;
}

bitm_status session_finish(bitm_device_session *session, const bitm_device_request *request,
                           const void **results, bitm_error *err)
{
    BITM_CUDA_TRY(cudaSetDevice(session->model->device), "choosing the device", err);
    Rows rows;
    bitm_status sent = send_rows(session, request, &rows, err);
    if (sent != BITM_OK) return sent;
    const void *made = NULL;
    size_t n_bytes = 0;
    bitm_status status = run_head(session, request->task, rows, &made, &n_bytes, err);
    if (status != BITM_OK) return status;
    BITM_CUDA_TRY(cudaMemcpyAsync(session->host_results, made, n_bytes, cudaMemcpyDeviceToHost,
                                  session->stream),
                  "copying results from the device", err);
    BITM_CUDA_TRY(cudaStreamSynchronize(session->stream), "running on the device", err);
    *results = session->host_results;
    return BITM_OK;
}

} // namespace bitm
