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
    bitm_pool_run(session->backend.pool, (n_tokens + TASK_TOKENS - 1) / TASK_TOKENS, embed_task,
                  session);
    bitm_backend_add_norm(&session->backend, session->hidden, NULL, &network->embedding_norm,
                          network->config->layer_norm_eps, n_tokens, network->config->hidden_size,
                          session->hidden);
}

/* ---- One layer ---- */

/* The tokens of a layer's outputs: all of them, or those that are chosen. */
typedef struct outputs {
    bitm_spans spans; /* of them, in each sequence */
    uint32_t n;       /* R */
    float *x;         /* [R, H] the layer's inputs there; then its outputs */
} outputs;

/* Some tokens on their way from attention to the layer's outputs. */
typedef struct tokens {
    uint32_t n;
    const bitm_spans *spans; /* the sequences that they are of; NULL: not needed */
    const float *context;    /* [n, A] */
    float *intermediate;     /* [n, I], working memory as the next */
    float *output;           /* [n, H] */
    float *x;                /* [n, H] */
} tokens;

/* x = the sum of attention and x, normalized; then that of the feed-forward part and it. */
static void finish_tokens(bitm_backend *backend, const bitm_layer *layer, const tokens *t)
{
    const bitm_file_config *config = backend->network->config;
    const uint32_t activation = layer->output.branches[0].gelu_limits != NULL
                                    ? BITM_ACTIVATION_NONE
                                    : config->hidden_activation;
    bitm_backend_linear(backend, &layer->attention_output, BITM_ACTIVATION_NONE, t->context, t->n,
                        t->spans, t->output);
    bitm_backend_add_norm(backend, t->output, t->x, &layer->attention_norm, config->layer_norm_eps,
                          t->n, config->hidden_size, t->x);

    bitm_backend_linear(backend, &layer->intermediate, activation, t->x, t->n, t->spans,
                        t->intermediate);
    bitm_backend_linear(backend, &layer->output, BITM_ACTIVATION_NONE, t->intermediate, t->n,
                        t->spans, t->output);
    bitm_backend_add_norm(backend, t->output, t->x, &layer->output_norm, config->layer_norm_eps,
                          t->n, config->hidden_size, t->x);
}

/* The slices of a layer's outputs. */
typedef struct slices {
    bitm_session *session;
    const bitm_layer *layer;
    const outputs *rows;
    uint32_t n; /* tokens in each, but the last */
} slices;

static void slice_task(void *context, uint32_t task, uint32_t worker)
{
    const slices *s = context;
    const bitm_session *session = s->session;
    const bitm_network *network = &session->model->network;
    const bitm_file_config *config = network->config;
    const size_t first = (size_t)task * s->n, room = (size_t)worker * s->n;
    const uint32_t n_left = s->rows->n - (uint32_t)first;
    bitm_backend backend = bitm_backend_of_worker(&session->backend, worker, s->n);
    finish_tokens(
        &backend, s->layer,
        &(tokens){.n = n_left < s->n ? n_left : s->n,
                  .context = session->context + first * network->attention_size,
                  .intermediate = session->intermediate + room * config->intermediate_size,
                  .output = session->output + room * config->hidden_size,
                  .x = s->rows->x + first * config->hidden_size});
}

/* From session->context to rows->x. */
static void finish_layer(bitm_session *session, const bitm_layer *layer, const outputs *rows)
{
    slices s = {session, layer, rows, bitm_backend_slice(&session->backend, layer, rows->n)};
    if (s.n < rows->n)
        bitm_pool_run(session->backend.pool, (rows->n + s.n - 1) / s.n, slice_task, &s);
    else
        finish_tokens(&session->backend, layer,
                      &(tokens){.n = rows->n,
                                .spans = &rows->spans,
                                .context = session->context,
                                .intermediate = session->intermediate,
                                .output = session->output,
                                .x = rows->x});
}

static void run_layer(bitm_session *session, const bitm_layer *layer)
{
    const bitm_packed *packed = &session->packed;
    const bitm_spans spans = {packed->n_sequences, packed->first};
    const outputs rows = {spans, packed->n_tokens, session->hidden};
    const bitm_linear *linears[] = {&layer->query, &layer->key, &layer->value};
    float *products[] = {session->query, session->key, session->value}; /* [T, A] each */
    bitm_backend_linears(&session->backend, 3, linears, rows.x, rows.n, &spans, products);
    bitm_backend_attention(&session->backend, layer, &spans, &spans, rows.x, session->query,
                           session->key, session->value, session->context); /* [T, A] */
    finish_layer(session, layer, &rows);
}

/* The last layer, whose outputs nobody reads but those of the chosen tokens: all have keys and
 * values, but the chosen alone a query and what follows.  session->head_output keeps their states,
 * for no head is at work. */
static void run_last_layer(bitm_session *session, const bitm_layer *layer)
{
    const bitm_packed *packed = &session->packed;
    const bitm_chosen *chosen = &session->chosen;
    const bitm_spans spans = {packed->n_sequences, packed->first};
    const outputs rows = {
        {packed->n_sequences, chosen->first}, chosen->first[spans.n], session->head_output};
    size_t n = session->model->network.config->hidden_size;
    for (size_t i = 0; i < rows.n; i++)
        memcpy(rows.x + i * n, session->hidden + chosen->tokens[i] * n, n * sizeof *rows.x);

    const bitm_linear *linears[] = {&layer->key, &layer->value};
    float *products[] = {session->key, session->value}; /* [T, A] each */
    bitm_backend_linears(&session->backend, 2, linears, session->hidden, packed->n_tokens, &spans,
                         products);
    bitm_backend_linear(&session->backend, &layer->query, BITM_ACTIVATION_NONE, rows.x, rows.n,
                        &rows.spans, session->query); /* [R, A] */
    bitm_backend_attention(&session->backend, layer, &spans, &rows.spans, session->hidden,
                           session->query, session->key, session->value,
                           session->context); /* [R, A] */
    finish_layer(session, layer, &rows);
    for (size_t i = 0; i < rows.n; i++)
        memcpy(session->hidden + chosen->tokens[i] * n, rows.x + i * n, n * sizeof *rows.x);
}

void bitm_bert_encode(bitm_session *session, uint32_t n_layers)
{
    const bitm_network *network = &session->model->network;
    embed(session);
    for (uint32_t n = 0; n < n_layers; n++) {
        const bitm_layer *layer = &network->layers[n];
        if (n + 1 < n_layers || session->chosen.all || !bitm_backend_can_choose(network, layer))
            run_layer(session, layer);
        else
            run_last_layer(session, layer);
    }
}
