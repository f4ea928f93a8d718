#include <string.h>

#include "backend.h"

enum {
    TASK_OUTPUTS = 64, /* outputs of a product that one task computes, for all tokens */
    TASK_TOKENS = 8,   /* tokens that one task of the other operations treats */
};

static uint32_t n_blocks(uint32_t n, uint32_t block)
{
    return (n + block - 1) / block;
}

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t larger(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* ---- What is supported ---- */

static bitm_status supports_linear(const bitm_linear *linear, bitm_error *err)
{
    for (uint32_t i = 0; i < linear->n_branches; i++) {
        const bitm_branch *branch = &linear->branches[i];
        const bitm_file_tensor *tensor = branch->weight.tensor;
        BITM_CHECK(tensor->dtype != BITM_DTYPE_TERN && tensor->dtype != BITM_DTYPE_I8,
                   BITM_UNSUPPORTED, err,
                   "tensor %s: this version does not multiply by ternary or int8 matrices",
                   tensor->name);
        BITM_CHECK(branch->quantizer == NULL, BITM_UNSUPPORTED, err,
                   "tensor %s: this version does not run activation quantizers of the model",
                   tensor->name);
        BITM_CHECK(branch->rms_gain == NULL, BITM_UNSUPPORTED, err,
                   "tensor %s: this version does not run RMS norms before linears", tensor->name);
    }
    return BITM_OK;
}

static bitm_status supports_layer(const bitm_layer *layer, uint32_t number, bitm_error *err)
{
    const bitm_linear *linears[] = {&layer->query,        &layer->key,
                                    &layer->value,        &layer->attention_output,
                                    &layer->intermediate, &layer->output};
    for (size_t i = 0; i < sizeof linears / sizeof linears[0]; i++)
        BITM_TRY(supports_linear(linears[i], err));
    BITM_CHECK(layer->quantize_query == NULL && layer->quantize_key == NULL &&
                   layer->quantize_value == NULL && layer->quantize_probabilities == NULL,
               BITM_UNSUPPORTED, err, "layer %u: this version does not run quantized attention",
               number);
    return BITM_OK;
}

bitm_status bitm_backend_supports(const bitm_network *network, bitm_error *err)
{
    const bitm_file_config *config = network->config;
    BITM_CHECK(config->score_rank == 0 && config->value_term == 0, BITM_UNSUPPORTED, err,
               "this version does not run the low-rank and value terms of attention");
    for (uint32_t n = 0; n < config->n_layers; n++)
        BITM_TRY(supports_layer(&network->layers[n], n, err));
    const bitm_linear *linears[] = {&network->pooler, &network->mlm_transform,
                                    &network->mlm_decoder, &network->next_sentence,
                                    &network->classifier};
    for (size_t i = 0; i < sizeof linears / sizeof linears[0]; i++)
        BITM_TRY(supports_linear(linears[i], err));
    return BITM_OK;
}

/* ---- Memory ---- */

void bitm_backend_layout(bitm_backend *backend, bitm_arena *arena, uint32_t max_tokens,
                         uint32_t max_length, uint32_t n_threads)
{
    const bitm_network *network = backend->network;
    const bitm_file_config *config = network->config;
    uint64_t widest =
        larger(larger(config->hidden_size, network->attention_size), config->intermediate_size);
    size_t code_bytes = backend->activations == BITM_ACTIVATIONS_INT16 ? 2 : 1;
    if (backend->activations == BITM_ACTIVATIONS_FLOAT32) code_bytes = 0;
    backend->max_tokens = max_tokens;
    backend->max_length = max_length;
    bitm_pool_layout(&backend->pool, arena, n_threads);
    backend->codes = bitm_arena_take(arena, max_tokens * widest, code_bytes);
    backend->scaled =
        bitm_arena_take(arena, network->has_column_scales ? max_tokens * widest : 0, sizeof(float));
    backend->token_step = bitm_arena_take(arena, max_tokens, sizeof(float));
    backend->token_sum = bitm_arena_take(arena, max_tokens, sizeof(float));
    backend->ones = bitm_arena_take(arena, max_tokens, sizeof(float));
    backend->scores = bitm_arena_take(arena, (uint64_t)n_threads * max_length, sizeof(float));
    for (uint32_t t = 0; backend->ones != NULL && t < max_tokens; t++)
        backend->ones[t] = 1.0F;
}

/* ---- Linears ---- */

/* A product with the kernel that runs it. */
typedef struct product {
    bitm_gemm gemm;
    bitm_gemm_fn *run;
    uint32_t n_tokens;
    uint32_t n_outputs;
} product;

static void product_task(void *context, uint32_t task, uint32_t worker)
{
    const product *p = context;
    uint32_t output = task * TASK_OUTPUTS;
    (void)worker;
    p->run(&p->gemm, 0, p->n_tokens, output, smaller(TASK_OUTPUTS, p->n_outputs - output));
}

static void run_product(bitm_backend *backend, product *p)
{
    bitm_pool_run(&backend->pool, n_blocks(p->n_outputs, TASK_OUTPUTS), product_task, p);
}

/* The arithmetic of one branch's inputs. */
typedef enum input_form { INPUT_FLOAT, INPUT_I8, INPUT_I16 } input_form;

static input_form form_of(const bitm_backend *backend, const bitm_branch *branch)
{
    if (branch->weight.tensor->dtype != BITM_DTYPE_BIT1) return INPUT_FLOAT;
    if (backend->activations == BITM_ACTIVATIONS_INT8) return INPUT_I8;
    if (backend->activations == BITM_ACTIVATIONS_INT16) return INPUT_I16;
    return INPUT_FLOAT;
}

typedef struct preparation {
    bitm_backend *backend;
    const float *inputs; /* [n_tokens, n] */
    const float *column_scale;
    input_form form;
    uint32_t n_tokens, n;
} preparation;

static void prepare_task(void *context, uint32_t task, uint32_t worker)
{
    const preparation *p = context;
    bitm_backend *backend = p->backend;
    (void)worker;
    uint32_t end = smaller((task + 1) * TASK_TOKENS, p->n_tokens);
    for (size_t t = (size_t)task * TASK_TOKENS; t < end; t++) {
        const float *x = p->inputs + t * p->n;
        if (p->column_scale != NULL) {
            float *scaled = backend->scaled + t * p->n;
            for (size_t i = 0; i < p->n; i++)
                scaled[i] = x[i] * p->column_scale[i];
            x = scaled;
        }
        float *step = &backend->token_step[t], *sum = &backend->token_sum[t];
        if (p->form == INPUT_I8)
            backend->kernels->quantize_i8(x, p->n, (int8_t *)backend->codes + t * p->n, step, sum);
        if (p->form == INPUT_I16)
            backend->kernels->quantize_i16(x, p->n, (int16_t *)backend->codes + t * p->n, step,
                                           sum);
    }
}

/* token_sum[t] = sum over i of factors[i] * inputs[t, i], in float. */
static void sum_inputs(const preparation *p, const float *factors, const bitm_network *network)
{
    product sums = {.gemm = {.weights = factors,
                             .row_scale = network->ones,
                             .bias = network->zeros,
                             .n_inputs = p->n,
                             .inputs = p->inputs,
                             .token_step = p->backend->ones,
                             .outputs = p->backend->token_sum,
                             .output_stride = 1},
                    .run = p->backend->kernels->gemm_f32,
                    .n_tokens = p->n_tokens,
                    .n_outputs = 1};
    run_product(p->backend, &sums);
}

/* Makes the inputs of a branch, unless the last one made the same. */
static void prepare(bitm_backend *backend, const bitm_branch *branch, preparation *last,
                    const float *inputs, uint32_t n_tokens, uint32_t n)
{
    preparation wanted = {.backend = backend,
                          .inputs = inputs,
                          .column_scale = branch->column_scale,
                          .form = form_of(backend, branch),
                          .n_tokens = n_tokens,
                          .n = n};
    bool same = last->inputs == inputs && last->column_scale == wanted.column_scale &&
                last->form == wanted.form;
    *last = wanted;
    bool passes_through = wanted.form == INPUT_FLOAT && wanted.column_scale == NULL;
    if (!same && !passes_through)
        bitm_pool_run(&backend->pool, n_blocks(n_tokens, TASK_TOKENS), prepare_task, &wanted);
    /* The quantized inputs' own sum serves offsets by row; the rest sums the inputs as they came.
     */
    bool has_sum = wanted.form != INPUT_FLOAT && wanted.column_scale == NULL;
    if (branch->column_offset != NULL)
        sum_inputs(&wanted, branch->column_offset, backend->network);
    else if (branch->row_offset != NULL && !has_sum)
        sum_inputs(&wanted, backend->network->ones, backend->network);
    if (branch->column_offset != NULL) last->inputs = NULL; /* its sum serves nobody else */
}

static bitm_gemm_fn *kernel_of(const bitm_backend *backend, const bitm_branch *branch)
{
    const bitm_kernel_table *kernels = backend->kernels;
    switch (branch->weight.tensor->dtype) {
    case BITM_DTYPE_F32:
        return kernels->gemm_f32;
    case BITM_DTYPE_F16:
        return kernels->gemm_f16;
    default:
        break;
    }
    switch (form_of(backend, branch)) {
    case INPUT_I8:
        return kernels->gemm_w1a8;
    case INPUT_I16:
        return kernels->gemm_w1a16;
    default:
        return kernels->gemm_w1f32;
    }
}

void bitm_backend_linears(bitm_backend *backend, uint32_t n_linears,
                          const bitm_linear *const linears[], const float *inputs,
                          uint32_t n_tokens, float *const outputs[], const size_t strides[])
{
    preparation last = {0};
    for (uint32_t i = 0; i < n_linears; i++) {
        const bitm_linear *linear = linears[i];
        for (uint32_t k = 0; k < linear->n_branches; k++) {
            const bitm_branch *branch = &linear->branches[k];
            prepare(backend, branch, &last, inputs, n_tokens, linear->columns);
            bool is_float = last.form == INPUT_FLOAT;
            const float *floats = branch->column_scale != NULL ? backend->scaled : inputs;
            product p = {.gemm = {.weights = branch->weight.data,
                                  .row_scale = branch->row_scale,
                                  .row_offset = branch->row_offset,
                                  .bias = branch->bias,
                                  .n_inputs = linear->columns,
                                  .inputs = is_float ? floats : backend->codes,
                                  .token_step = is_float ? backend->ones : backend->token_step,
                                  .token_sum = backend->token_sum,
                                  .outputs = outputs[i],
                                  .output_stride = strides[i],
                                  .accumulate = k > 0},
                         .run = kernel_of(backend, branch),
                         .n_tokens = n_tokens,
                         .n_outputs = linear->rows};
            run_product(backend, &p);
        }
    }
}

void bitm_backend_linear(bitm_backend *backend, const bitm_linear *linear, const float *inputs,
                         uint32_t n_tokens, float *outputs)
{
    size_t stride = linear->rows;
    bitm_backend_linears(backend, 1, &linear, inputs, n_tokens, &outputs, &stride);
}

/* ---- Attention ---- */

typedef struct attention_work {
    bitm_backend *backend;
    const uint32_t *first;
    const float *query, *key, *value;
    float *context;
} attention_work;

/* One head of one sequence. */
static void attention_task(void *context, uint32_t task, uint32_t worker)
{
    const attention_work *work = context;
    const bitm_file_config *config = work->backend->network->config;
    uint32_t sequence = task / config->n_heads, head = task % config->n_heads;
    size_t stride = work->backend->network->attention_size;
    size_t place = work->first[sequence] * stride + (size_t)head * config->head_size;
    bitm_attention attention = {
        .query = work->query + place,
        .key = work->key + place,
        .value = work->value + place,
        .stride = stride,
        .context = work->context + place,
        .context_stride = stride,
        .n_tokens = work->first[sequence + 1] - work->first[sequence],
        .head_size = config->head_size,
        .score_scale = config->score_scale,
        .scores = work->backend->scores + (size_t)worker * work->backend->max_length,
    };
    work->backend->kernels->attention(&attention, 0, attention.n_tokens);
}

void bitm_backend_attention(bitm_backend *backend, const uint32_t *first, uint32_t n_sequences,
                            const float *query, const float *key, const float *value,
                            float *context)
{
    attention_work work = {backend, first, query, key, value, context};
    bitm_pool_run(&backend->pool, n_sequences * backend->network->config->n_heads, attention_task,
                  &work);
}

/* ---- Token by token
 */

typedef struct token_work {
    const bitm_backend *backend;
    const float *x, *residual;
    const bitm_norm *norm;
    float eps;
    uint32_t activation;
    uint32_t n_tokens, n;
    float *y;
} token_work;

static void add_norm_task(void *context, uint32_t task, uint32_t worker)
{
    const token_work *w = context;
    (void)worker;
    size_t end = smaller((task + 1) * TASK_TOKENS, w->n_tokens);
    for (size_t t = (size_t)task * TASK_TOKENS; t < end; t++)
        w->backend->kernels->add_norm(w->x + t * w->n,
                                      w->residual != NULL ? w->residual + t * w->n : NULL,
                                      w->norm->gain, w->norm->bias, w->eps, w->n, w->y + t * w->n);
}

void bitm_backend_add_norm(bitm_backend *backend, const float *x, const float *residual,
                           const bitm_norm *norm, float eps, uint32_t n_tokens, uint32_t n,
                           float *y)
{
    token_work work = {.backend = backend,
                       .x = x,
                       .residual = residual,
                       .norm = norm,
                       .eps = eps,
                       .n_tokens = n_tokens,
                       .n = n,
                       .y = y};
    bitm_pool_run(&backend->pool, n_blocks(n_tokens, TASK_TOKENS), add_norm_task, &work);
}

static void activate_task(void *context, uint32_t task, uint32_t worker)
{
    const token_work *w = context;
    (void)worker;
    size_t end = smaller((task + 1) * TASK_TOKENS, w->n_tokens);
    for (size_t t = (size_t)task * TASK_TOKENS; t < end; t++)
        w->backend->kernels->activate(w->activation, w->y + t * w->n, w->n);
}

void bitm_backend_activate(bitm_backend *backend, uint32_t activation, uint32_t n_tokens,
                           uint32_t n, float *x)
{
    token_work work = {
        .backend = backend, .activation = activation, .n_tokens = n_tokens, .n = n, .y = x};
    bitm_pool_run(&backend->pool, n_blocks(n_tokens, TASK_TOKENS), activate_task, &work);
}
