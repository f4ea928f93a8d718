#include "attention.h"

static bitm_attention_form form_of(const bitm_backend *backend, const bitm_layer *layer)
{
    return bitm_attention_form_of(backend->network, layer, backend->activations);
}

uint64_t bitm_attention_ops(const bitm_network *network, const bitm_layer *layer,
                            bitm_activations activations)
{
    switch (bitm_attention_form_of(network, layer, activations)) {
    case BITM_ATTENTION_FLOAT:
        return UINT64_C(1) << BITM_OP_attention;
    case BITM_ATTENTION_I8:
        return UINT64_C(1) << BITM_OP_attention_i8;
    default:
        return bitm_general_attention_ops(network, layer);
    }
}

static size_t larger_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

void bitm_attention_layout(bitm_backend *backend, bitm_arena *arena)
{
    const bitm_network *network = backend->network;
    const uint32_t head_size = network->config->head_size;
    bitm_attention_buffers *buffers = &backend->attention;
    bool is_general = false;
    buffers->n_scores = 0;
    for (uint32_t n = 0; n < network->config->n_layers; n++) {
        bitm_attention_form form = form_of(backend, &network->layers[n]);
        is_general |= form == BITM_ATTENTION_GENERAL;
        if (form == BITM_ATTENTION_FLOAT)
            buffers->n_scores =
                larger_size(buffers->n_scores, bitm_attention_room(backend->max_length, head_size));
        if (form == BITM_ATTENTION_I8)
            buffers->n_scores = larger_size(buffers->n_scores,
                                            bitm_attention_i8_room(backend->max_length, head_size));
    }
    buffers->scores =
        bitm_arena_take(arena, backend->pool->n_threads * buffers->n_scores, sizeof(float));
    if (is_general) bitm_general_attention_layout(backend, arena);
}

/* The work of a layer. */
typedef struct work {
    const bitm_backend *backend;
    const bitm_spans *spans, *queries;
    const float *query, *key, *value; /* [n_queries or n_tokens, A] */
    float *context;                   /* [n_queries, A] */
    bitm_attention_fn *kernel;
} work;

/* Softmax attention: one head of one sequence. */
static void plain_task(void *argument, uint32_t task, uint32_t worker)
{
    const work *w = argument;
    const bitm_network *network = w->backend->network;
    const bitm_attention_buffers *buffers = &w->backend->attention;
    const uint32_t n_heads = network->config->n_heads, sequence = task / n_heads;
    const size_t stride = network->attention_size;
    const size_t place = (size_t)(task % n_heads) * network->config->head_size;
    const uint32_t token = w->spans->first[sequence], query = w->queries->first[sequence];
    const uint32_t n_queries = w->queries->first[sequence + 1] - query;
    if (n_queries == 0) return;
    const bitm_attention attention = {
        .query = w->query + query * stride + place,
        .key = w->key + token * stride + place,
        .value = w->value + token * stride + place,
        .stride = stride,
        .context = w->context + query * stride + place,
        .context_stride = stride,
        .n_tokens = w->spans->first[sequence + 1] - token,
        .head_size = network->config->head_size,
        .score_scale = network->config->score_scale,
        .scores = buffers->scores + worker * buffers->n_scores,
    };
    w->kernel(&attention, 0, n_queries);
}

bool bitm_backend_can_choose(const bitm_network *network, const bitm_layer *layer)
{
    return bitm_attention_form_of(network, layer, BITM_ACTIVATIONS_FLOAT32) !=
               BITM_ATTENTION_GENERAL &&
           !bitm_is_of_sequences(&layer->query) && bitm_backend_can_slice(layer);
}

void bitm_backend_attention(bitm_backend *backend, const bitm_layer *layer, const bitm_spans *spans,
                            const bitm_spans *queries, const float *x, float *query, float *key,
                            float *value, float *context)
{
    const bitm_attention_form form = form_of(backend, layer);
    if (form == BITM_ATTENTION_GENERAL) {
        bitm_general_attention(backend, layer, spans, x, query, key, value, context);
        return;
    }
    const bitm_kernel_table *kernels = backend->kernels;
    work w = {.backend = backend,
              .spans = spans,
              .queries = queries,
              .query = query,
              .key = key,
              .value = value,
              .context = context,
              .kernel = form == BITM_ATTENTION_I8 ? kernels->attention_i8 : kernels->attention};
    bitm_pool_run(backend->pool, spans->n * backend->network->config->n_heads, plain_task, &w);
}
