/* The forward pass of SPEC.md section 4, on packed tokens.  T tokens, H hidden, A attention, I
 * intermediate size; every array is row-major. */
#include "bert.h"

#include <string.h>

/* ---- Embeddings ---- */

enum { TASK_TOKENS = 8 };

static void add_row(const bitm_matrix *table, int32_t row, float *scratch, uint32_t n, float *sum)
{
    bitm_matrix_row(table, (size_t)row, scratch);
    for (uint32_t i = 0; i < n; i++)
        sum[i] += scratch[i];
}

/* Sums in the order of the published code: word, token type, position. */
static void embed_task(void *context, uint32_t task, uint32_t worker)
{
    bitm_session *session = context;
    const bitm_packed *packed = &session->packed;
    const bitm_network *network = &session->model->network;
    uint32_t n = network->config->hidden_size;
    (void)worker;
    for (uint32_t t = task * TASK_TOKENS; t < (task + 1) * TASK_TOKENS && t < packed->n_tokens;
         t++) {
        float *x = session->hidden + (size_t)t * n;       /* [H] */
        float *scratch = session->output + (size_t)t * n; /* [H] */
        bitm_matrix_row(&network->word, (size_t)packed->ids[t], x);
        if (network->word_second.data != NULL)
            add_row(&network->word_second, packed->ids[t], scratch, n, x);
        add_row(&network->token_type, packed->types[t], scratch, n, x);
        add_row(&network->position, packed->positions[t], scratch, n, x);
    }
}

static void embed(bitm_session *session)
{
    const bitm_network *network = &session->model->network;
    uint32_t n_tokens = session->packed.n_tokens;
    bitm_pool_run(&session->backend.pool, (n_tokens + TASK_TOKENS - 1) / TASK_TOKENS, embed_task,
                  session);
    bitm_backend_add_norm(&session->backend, session->hidden, NULL, &network->embedding_norm,
                          network->config->layer_norm_eps, n_tokens, network->config->hidden_size,
                          session->hidden);
}

/* ---- One layer ---- */

static void run_layer(bitm_session *session, const bitm_layer *layer)
{
    bitm_backend *backend = &session->backend;
    const bitm_network *network = &session->model->network;
    const bitm_file_config *config = network->config;
    const bitm_packed *packed = &session->packed;
    uint32_t n_tokens = packed->n_tokens;
    float *x = session->hidden;                  /* [T, H] */
    float *intermediate = session->intermediate; /* [T, I] */
    float *output = session->output;             /* [T, H] */

    const bitm_linear *linears[] = {&layer->query, &layer->key, &layer->value};
    float *outputs[] = {session->query, session->key, session->value}; /* [T, A] each */
    const bitm_spans spans = {packed->n_sequences, packed->first};
    bitm_backend_linears(backend, 3, linears, x, n_tokens, &spans, outputs);
    bitm_backend_attention(backend, layer, &spans, x, session->query, session->key, session->value,
                           session->context); /* [T, A] */
    bitm_backend_linear(backend, &layer->attention_output, BITM_ACTIVATION_NONE, session->context,
                        n_tokens, &spans, output);
    bitm_backend_add_norm(backend, output, x, &layer->attention_norm, config->layer_norm_eps,
                          n_tokens, config->hidden_size, x);

    bitm_backend_linear(backend, &layer->intermediate, config->hidden_activation, x, n_tokens,
                        &spans, intermediate);
    bitm_backend_linear(backend, &layer->output, BITM_ACTIVATION_NONE, intermediate, n_tokens,
                        &spans, output);
    bitm_backend_add_norm(backend, output, x, &layer->output_norm, config->layer_norm_eps, n_tokens,
                          config->hidden_size, x);
}

void bitm_bert_encode(bitm_session *session, uint32_t n_layers)
{
    embed(session);
    for (uint32_t n = 0; n < n_layers; n++)
        run_layer(session, &session->model->network.layers[n]);
}
