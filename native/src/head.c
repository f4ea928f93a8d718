#include "head.h"

#include <string.h>

#include "kernels/canonical.h"

/* Copies the hidden states of rows into session->head_input [n_rows, H]. */
static void gather(bitm_session *session, const bitm_row *rows, uint32_t n_rows)
{
    size_t n = session->model->network.config->hidden_size;
    for (size_t i = 0; i < n_rows; i++)
        memcpy(session->head_input + i * n, session->hidden + rows[i].token * n,
               n * sizeof *session->hidden);
}

/* Applies a linear to inputs [n_rows, H] and scatters the results [rows] to their places, as few
 * products as there are runs of neighbouring places. */
static void scatter_linear(bitm_session *session, const bitm_linear *linear, const float *inputs,
                           const bitm_row *rows, uint32_t n_rows, float *output)
{
    for (uint32_t i = 0, end; i < n_rows; i = end) {
        for (end = i + 1; end < n_rows && rows[end].output == rows[end - 1].output + 1;)
            end++;
        bitm_backend_linear(&session->backend, linear, BITM_ACTIVATION_NONE,
                            inputs + (size_t)i * linear->columns, end - i, NULL,
                            output + rows[i].output * linear->rows);
    }
}

/* ---- Masked LM ---- */

/* session->head_input [n_rows, H] = norm(activation(transform(head_input))) */
static void transform(bitm_session *session, uint32_t n_rows)
{
    const bitm_network *network = &session->model->network;
    const bitm_file_config *config = network->config;
    bitm_backend *backend = &session->backend;
    bitm_backend_linear(backend, &network->mlm_transform, config->head_activation,
                        session->head_input, n_rows, NULL, session->head_output);
    bitm_backend_add_norm(backend, session->head_output, NULL, &network->mlm_norm,
                          config->head_norm_eps, n_rows, config->hidden_size, session->head_input);
}

void bitm_head_masked_lm(bitm_session *session, const bitm_row *rows, uint32_t n_rows,
                         float *output)
{
    transform(session, n_rows);
    scatter_linear(session, &session->model->network.mlm_decoder, session->head_input, rows, n_rows,
                   output);
}

/* ---- The best tokens ---- */

/* a is a worse prediction than b; scores are logits here. */
static bool worse(const bitm_prediction *a, const bitm_prediction *b)
{
    return a->score < b->score || (a->score == b->score && a->token > b->token);
}

/* Moves heap[i] down until no child is worse: the worst of the heap stands first. */
static void sift_down(bitm_prediction *heap, size_t n, size_t i)
{
    bitm_prediction moving = heap[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && worse(&heap[child + 1], &heap[child])) child++;
        if (!worse(&heap[child], &moving)) break;
        heap[i] = heap[child];
    }
    heap[i] = moving;
}

/* The best candidates by logit, best first.  A heap holds the best so far: most candidates cost one
 * comparison with its worst. */
static void select_best(const float *logits, const bitm_candidates *candidates,
                        bitm_prediction *best)
{
    size_t k = candidates->top_k;
    for (size_t i = 0; i < candidates->n; i++) {
        int32_t token = candidates->targets != NULL ? candidates->targets[i] : (int32_t)i;
        bitm_prediction candidate = {.score = logits[token], .token = token};
        if (i < k) {
            best[i] = candidate;
            if (i + 1 == k)
                for (size_t j = k / 2; j-- > 0;)
                    sift_down(best, k, j);
        } else if (worse(&best[0], &candidate)) {
            best[0] = candidate;
            sift_down(best, k, 0);
        }
    }
    for (size_t n = k; n-- > 1;) { /* the worst moves to the end, again and again */
        bitm_prediction last = best[0];
        best[0] = best[n];
        best[n] = last;
        sift_down(best, n, 0);
    }
}

typedef struct top_k_work {
    bitm_session *session;
    const bitm_row *rows;
    const bitm_candidates *candidates;
    bitm_prediction *predictions;
} top_k_work;

/* One row of session->logits: the best, with softmax scores over the whole vocabulary. */
static void top_k_task(void *context, uint32_t task, uint32_t worker)
{
    const top_k_work *work = context;
    const bitm_session *session = work->session;
    uint32_t n = session->model->network.config->vocab_size, k = work->candidates->top_k;
    float *logits = session->logits + (size_t)task * n; /* [V] */
    bitm_prediction *best = work->predictions + work->rows[task].output * k;
    (void)worker;
    select_best(logits, work->candidates, best);
    float greatest = best[0].score; /* of the candidates: often all */
    for (uint32_t i = 0; i < n && work->candidates->targets != NULL; i++)
        greatest = logits[i] > greatest ? logits[i] : greatest;
    float sum = session->backend.kernels->exp_sum(logits, n);
    for (uint32_t i = 0; i < k; i++)
        best[i].score = bitm_exp(best[i].score - greatest) / sum;
}

void bitm_head_top_k(bitm_session *session, const bitm_row *rows, uint32_t n_rows,
                     const bitm_candidates *candidates, bitm_prediction *predictions)
{
    const bitm_network *network = &session->model->network;
    size_t hidden_size = network->config->hidden_size;
    transform(session, n_rows);
    for (uint32_t i = 0; i < n_rows; i += BITM_TOP_K_ROWS) {
        uint32_t n = n_rows - i < BITM_TOP_K_ROWS ? n_rows - i : BITM_TOP_K_ROWS;
        bitm_backend_linear(&session->backend, &network->mlm_decoder, BITM_ACTIVATION_NONE,
                            session->head_input + i * hidden_size, n, NULL, session->logits);
        top_k_work work = {session, rows + i, candidates, predictions};
        bitm_pool_run(session->backend.pool, n, top_k_task, &work);
    }
}

/* ---- Classifiers ---- */

/* session->head_output [n_sequences, H] = the pooler's output, session->head_input its input. */
static void pool(bitm_session *session)
{
    const bitm_network *network = &session->model->network;
    const bitm_file_config *config = network->config;
    const bitm_packed *packed = &session->packed;
    uint32_t n = packed->n_sequences, hidden_size = config->hidden_size;
    for (uint32_t i = 0; i < n; i++)
        session->rows[i] = (bitm_row){.token = packed->first[i]};
    gather(session, session->rows, n);
    bitm_backend_linear(&session->backend, &network->pooler, BITM_ACTIVATION_NONE,
                        session->head_input, n, NULL, session->head_output);
    bool skips = config->pooler == BITM_POOLER_NORM_SKIP;
    if (skips)
        bitm_backend_add_norm(&session->backend, session->head_output, NULL, &network->pooler_norm,
                              config->pooler_norm_eps, n, hidden_size, session->head_output);
    for (size_t i = 0; i < (size_t)n * hidden_size; i++)
        session->head_output[i] =
            bitm_tanh(session->head_output[i] + (skips ? session->head_input[i] : 0.0F));
}

void bitm_head_classify(bitm_session *session, float *output)
{
    const bitm_packed *packed = &session->packed;
    pool(session);
    for (uint32_t i = 0; i < packed->n_sequences; i++)
        session->rows[i].output = packed->sequences[i];
    scatter_linear(session, &session->model->network.classifier, session->head_output,
                   session->rows, packed->n_sequences, output);
}

void bitm_head_tokens(bitm_session *session, const bitm_row *rows, uint32_t n_rows, float *output)
{
    scatter_linear(session, &session->model->network.classifier, session->head_input, rows, n_rows,
                   output);
}

/* ---- Scores ---- */

bitm_status bitm_softmax(float *x, size_t n_rows, size_t n_columns, bitm_error *err)
{
    BITM_CHECK(x != NULL && n_rows > 0 && n_columns > 0 && n_columns <= UINT32_MAX, BITM_ARGUMENT,
               err, "softmax: expected rows of 1 to 2^32 - 1 columns");
    for (size_t row = 0; row < n_rows; row++, x += n_columns) {
        /* Every kernel of this operation gives the same bits, so no model is needed. */
        float sum = bitm_exp_sum__scalar(x, (uint32_t)n_columns);
        for (size_t i = 0; i < n_columns; i++)
            x[i] /= sum;
    }
    return BITM_OK;
}

/* By e^-abs(x), which cannot overflow. */
bitm_status bitm_sigmoid(float *x, size_t n, bitm_error *err)
{
    BITM_CHECK(x != NULL && n > 0, BITM_ARGUMENT, err, "sigmoid: expected at least one element");
    for (size_t i = 0; i < n; i++) {
        float t = bitm_exp(-fabsf(x[i]));
        x[i] = (x[i] >= 0.0F ? 1.0F : t) / (1.0F + t);
    }
    return BITM_OK;
}
