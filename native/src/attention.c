#include "attention.h"

static bool is_plain(const bitm_network *network, const bitm_layer *layer)
{
    return layer->quantize_query == NULL && layer->quantize_key == NULL &&
           layer->quantize_value == NULL && layer->quantize_probabilities == NULL &&
           network->config->score_rank == 0 && network->config->value_term == 0;
}

uint64_t bitm_attention_ops(const bitm_network *network, const bitm_layer *layer)
{
    if (is_plain(network, layer)) return UINT64_C(1) << BITM_OP_attention;
    return bitm_general_attention_ops(network, layer);
}

void bitm_attention_layout(bitm_backend *backend, bitm_arena *arena)
{
    const bitm_network *network = backend->network;
    bitm_attention_buffers *buffers = &backend->attention;
    uint64_t n_threads = backend->pool.n_threads;
    uint32_t n_plain = 0;
    for (uint32_t n = 0; n < network->config->n_layers; n++)
        n_plain += is_plain(network, &network->layers[n]);
    buffers->n_scores =
        n_plain > 0 ? bitm_attention_room(backend->max_length, network->config->head_size) : 0;
    buffers->scores = bitm_arena_take(arena, n_threads * buffers->n_scores, sizeof(float));
    if (n_plain < network->config->n_layers) bitm_general_attention_layout(backend, arena);
}

/* The work of a layer. */
typedef struct work {
    const bitm_backend *backend;
    const bitm_spans *spans, *queries;
    const float *query, *key, *value; /* [n_queries or n_tokens, A] */
    float *context;                   /* [n_queries, A] */
} work;

/* Softmax attention of floats: one head of one sequence. */
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
    w->backend->kernels->attention(&attention, 0, n_queries);
}

static bool is_of_sequences(const bitm_linear *linear)
{
    for (uint32_t k = 0; k < linear->n_branches; k++) {
        const bitm_file_quantizer *quantizer = linear->branches[k].quantizer;
        if (quantizer != NULL && quantizer->scope == BITM_SCOPE_SEQUENCE) return true;
    }
    return false;
}

bool bitm_backend_can_choose(const bitm_network *network, const bitm_layer *layer)
{
    return is_plain(network, layer) && !is_of_sequences(&layer->query) &&
           !is_of_sequences(&layer->attention_output) && !is_of_sequences(&layer->intermediate) &&
           !is_of_sequences(&layer->output);
}

void bitm_backend_attention(bitm_backend *backend, const bitm_layer *layer, const bitm_spans *spans,
                            const bitm_spans *queries, const float *x, float *query, float *key,
                            float *value, float *context)
{
    work w = {backend, spans, queries, query, key, value, context};
    if (is_plain(backend->network, layer))
        bitm_pool_run(&backend->pool, spans->n * backend->network->config->n_heads, plain_task, &w);
    else
        bitm_general_attention(backend, layer, spans, x, query, key, value, context);
}
