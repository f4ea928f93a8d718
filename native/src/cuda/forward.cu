/* The forward pass of SPEC.md section 4 as launches on a session's stream; bert.c and head.c are
 * the same on the CPU. */
#include "embed.cuh"
#include "forward.cuh"

namespace bitm {

/* ---- Shapes ---- */

bool is_masked_lm(const bitm_device_model *model)
{
    uint32_t head = model->network.config->head;
    return head == BITM_HEAD_MASKED_LM || head == BITM_HEAD_MASKED_LM_NEXT_SENTENCE;
}

/* Four arrays of tokens, and where sequences begin: padded, as many as tokens at most and an eighth
 * more. */
size_t token_words(const bitm_device_limits &limits)
{
    size_t tokens = (size_t)ceil_div(limits.max_tokens, TOKEN_BLOCK) * TOKEN_BLOCK;
    return tokens * 4 + tokens + tokens / 8 + TOKEN_BLOCK;
}

size_t input_bytes(const bitm_device_limits &limits)
{
    uint32_t rows = limits.max_rows > limits.max_tokens ? limits.max_rows : limits.max_tokens;
    return (token_words(limits) + rows + TOKEN_BLOCK + MAX_TARGETS) * sizeof(uint32_t);
}

size_t result_bytes(const bitm_device_model *model, const bitm_device_limits &limits)
{
    const bitm_file_config *config = model->network.config;
    size_t hidden = (size_t)limits.max_tokens * config->hidden_size * sizeof(float);
    size_t wide = is_masked_lm(model) ? config->vocab_size : config->n_labels;
    size_t logits = limits.max_rows * wide * sizeof(float);
    size_t best = limits.max_rows * (size_t)MAX_TOP_K * sizeof(Prediction);
    size_t most = hidden > logits ? hidden : logits;
    return is_masked_lm(model) && best > most ? best : most;
}

static __global__ void fill_kernel(float *x, float value, size_t n)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = value;
}

bitm_status prepare_forward(bitm_device_session *session, bitm_error *err)
{
    const bitm_device_model *model = session->model;
    BITM_TRY_STATUS(prepare_products(model, err));
    BITM_TRY_STATUS(prepare_norms(model, err));
    BITM_TRY_STATUS(prepare_attention(model, err));
    BITM_TRY_STATUS(prepare_layers(model, err));
    uint32_t n = ceil_div(session->limits.max_tokens, TOKEN_BLOCK) * TOKEN_BLOCK;
    uint32_t rows = ceil_div(session->limits.max_rows, TOKEN_BLOCK) * TOKEN_BLOCK;
    n = n > rows ? n : rows;
    BITM_LAUNCH(fill_kernel, ceil_div(n, 256), 256, 0, session->stream, session->buffers.ones, 1.0F,
                n);
    BITM_CUDA_TRY(cudaGetLastError(), "preparing a session", err);
    return BITM_OK;
}

/* ---- The encoder ---- */

/* Adds a table to the sum; false where the kernel does not take it. */
static bool add_table(EmbeddingSum *e, const Matrix &table, const int32_t *rows)
{
    if ((table.dtype != DTYPE_SINGLE && table.dtype != DTYPE_HALF) || table.scales != NULL ||
        table.offsets != NULL)
        return false;
    e->tables[e->n_tables] = table;
    e->rows[e->n_tables++] = rows;
    return true;
}

template <int N16> static void launch_embed(const Work &w, const EmbeddingSum &e)
{
    BITM_LAUNCH(embed_registers_kernel<N16>, token_blocks(w.n_tokens), TOKEN_THREADS, 0,
                w.session->stream, e);
}

/* Embeddings and the inputs of what follows in one kernel; false where it cannot run. */
static bool embed_in_registers(const Work &w, const Norm &norm, const Next &next)
{
    const bitm_device_model *model = w.session->model;
    const Batch &batch = *w.batch;
    EmbeddingSum e = {};
    if (!is_in_registers(norm.n) || !add_table(&e, model->word, batch.ids) ||
        (model->word_second.data != NULL && !add_table(&e, model->word_second, batch.ids)) ||
        !add_table(&e, model->token_type, batch.types) ||
        !add_table(&e, model->position, batch.positions))
        return false;
    e.norm = norm;
    e.followers = plan_followers(w, norm.n, next);
    if (norm.n == 512)
        launch_embed<32>(w, e);
    else if (norm.n == 768)
        launch_embed<48>(w, e);
    else
        launch_embed<64>(w, e);
    return true;
}

static void embed(const Work &w, const Next &next)
{
    const bitm_device_model *model = w.session->model;
    const Batch &batch = *w.batch;
    const NormWeights &weights = model->embedding_norm;
    const bitm_file_config *config = model->network.config;
    Norm norm = {NULL,
                 NULL,
                 weights.gain,
                 weights.bias,
                 config->layer_norm_eps,
                 w.n_tokens,
                 config->hidden_size,
                 w.session->buffers.hidden};
    if (embed_in_registers(w, norm, next)) return;
    Embedding e = {};
    e.word = model->word;
    e.second = model->word_second;
    e.token_type = model->token_type;
    e.position = model->position;
    e.ids = batch.ids;
    e.types = batch.types;
    e.positions = batch.positions;
    e.gain = norm.gain;
    e.bias = norm.bias;
    e.eps = norm.eps;
    e.n_tokens = norm.n_tokens;
    e.n = norm.n;
    e.y = norm.y;
    BITM_LAUNCH(embed_kernel, token_blocks(w.n_tokens), TOKEN_THREADS, 0, w.session->stream, e);
    leave_inputs(w, next);
    if (next.counted != NULL) /* as norms do for the layers after */
        BITM_LAUNCH(begin_tokens_kernel, ceil_div(w.n_tokens, QUANTIZE_THREADS), QUANTIZE_THREADS,
                    0, w.session->stream, counted_encoding(w, *next.counted));
}

/* What takes the results of embeddings or of the layer before. */
static Next next_of(const Work &w, const Layer *layer, Inputs inputs[3])
{
    if (layer == NULL) return Next();
    return Next{
        {&layer->query, &layer->key, &layer->value}, 3, inputs, counted_after_attention(w, *layer)};
}

/* inputs: those of query, key and value, and then those of the layer after; so is what is made
 * ahead of this one. */
static void run_layer(const Work &w, const Layer &layer, const Layer *after, Inputs inputs[3],
                      Ahead *ahead)
{
    const bitm_file_config *config = w.session->model->network.config;
    const Buffers &b = w.session->buffers;
    const float *x = b.hidden;
    Inputs context;
    if (!attend(w, layer, x, inputs, &context) &&
        !attend_few_signs(w, layer, x, inputs, &context) &&
        !attend_signs(w, layer, x, ahead->has_operands, inputs, &context)) {
        run_query_key_value(w, layer, x, inputs);
        run_attention(w, layer, x, &context);
    }
    if (run_layer_signs(w, layer, context, next_of(w, after, inputs), after, ahead)) return;

    Inputs of_inner, of_output = {};
    bool writes_bits =
        can_write_bits(w, layer.intermediate, config->hidden_activation, layer.output);
    Next inner = {{&layer.intermediate},
                  1,
                  &of_inner,
                  writes_bits && can_count(w, layer.output) ? &layer.output : NULL};
    run_linear_norm(w, layer.attention_output, b.context, &context, layer.attention_norm, inner);
    if (writes_bits)
        run_linear_to_bits(w, layer.intermediate, x, config->hidden_activation, layer.output,
                           &of_inner, &of_output);
    else if (can_encode_in_parts(w, layer.intermediate, layer.output))
        run_linear_encoded(w, layer.intermediate, x, config->hidden_activation, layer.output,
                           &of_inner, &of_output);
    else
        run_linear(w, layer.intermediate, x, config->hidden_activation, b.intermediate, &of_inner);
    run_linear_norm(w, layer.output, b.intermediate, &of_output, layer.output_norm,
                    next_of(w, after, inputs));
}

bitm_status forward(bitm_device_session *session, uint32_t n_layers, bitm_error *err)
{
    Work w = {session, session->batch.n_tokens, &session->batch};
    const Layer *layers = session->model->layers;
    Inputs inputs[3];
    Ahead ahead = {};
    embed(w, next_of(w, n_layers > 0 ? layers : NULL, inputs));
    for (uint32_t n = run_layers_of_signs(w, n_layers, inputs); n < n_layers; n++)
        run_layer(w, layers[n], n + 1 < n_layers ? &layers[n + 1] : NULL, inputs, &ahead);
    BITM_CUDA_TRY(cudaGetLastError(), "starting the encoder on the device", err);
    return BITM_OK;
}

/* ---- Heads ---- */

static void gather(const Work &w, const Rows &rows, float *y)
{
    uint32_t n = w.session->model->network.config->hidden_size;
    BITM_LAUNCH(gather_kernel, (uint32_t)(((size_t)rows.n_padded * n + 255) / 256), 256, 0,
                w.session->stream, w.session->buffers.hidden, rows.tokens, rows.n_padded, n, y);
}

/* logits = decoder(norm(activation(transform(x)))) */
static void masked_lm(const Work &w, const Rows &rows)
{
    const bitm_device_model *model = w.session->model;
    const bitm_file_config *config = model->network.config;
    const Buffers &b = w.session->buffers;
    gather(w, rows, b.head_input);
    linear(w, model->mlm_transform, b.head_input, config->head_activation, b.head_output);
    add_norm(w, b.head_output, NULL, model->mlm_norm, config->head_norm_eps, config->hidden_size,
             b.head_input, Next());
    linear(w, model->mlm_decoder, b.head_input, 0, b.logits);
}

static void classify(const Work &w, const Rows &rows)
{
    const bitm_device_model *model = w.session->model;
    const bitm_file_config *config = model->network.config;
    const Buffers &b = w.session->buffers;
    bool skips = config->pooler == BITM_POOLER_NORM_SKIP;
    size_t n = (size_t)w.n_tokens * config->hidden_size;
    gather(w, rows, b.head_input);
    linear(w, model->pooler, b.head_input, 0, b.head_output);
    if (skips)
        add_norm(w, b.head_output, NULL, model->pooler_norm, config->pooler_norm_eps,
                 config->hidden_size, b.head_output, Next());
    BITM_LAUNCH(tanh_kernel, (uint32_t)((n + 255) / 256), 256, 0, w.session->stream, b.head_output,
                skips ? b.head_input : NULL, n);
    linear(w, model->classifier, b.head_output, 0, b.logits);
}

bitm_status run_head(bitm_device_session *session, bitm_device_task task, const Rows &rows,
                     const void **made, size_t *n_bytes, bitm_error *err)
{
    const bitm_file_config *config = session->model->network.config;
    const Buffers &b = session->buffers;
    Work w = {session, rows.n_padded, NULL};
    *made = b.logits;
    *n_bytes = (size_t)rows.n * config->n_labels * sizeof(float);
    switch (task) {
    case BITM_DEVICE_HIDDEN:
        gather(w, rows, b.output);
        *made = b.output;
        *n_bytes = (size_t)rows.n * config->hidden_size * sizeof(float);
        break;
    case BITM_DEVICE_MASKED_LM:
        masked_lm(w, rows);
        *n_bytes = (size_t)rows.n * config->vocab_size * sizeof(float);
        break;
    case BITM_DEVICE_TOP_K: {
        masked_lm(w, rows);
        TopK k = {b.logits,          config->vocab_size, rows.targets,
                  rows.n_candidates, rows.top_k,         b.best};
        BITM_LAUNCH(top_k_kernel, rows.n, TOP_K_THREADS, 0, session->stream, k);
        *made = b.best;
        *n_bytes = (size_t)rows.n * rows.top_k * sizeof(Prediction);
        break;
    }
    case BITM_DEVICE_CLASSIFY:
        classify(w, rows);
        break;
    case BITM_DEVICE_TOKENS:
        gather(w, rows, b.head_input);
        linear(w, session->model->classifier, b.head_input, 0, b.logits);
        break;
    }
    BITM_CUDA_TRY(cudaGetLastError(), "starting a head on the device", err);
    return BITM_OK;
}

} // namespace bitm
