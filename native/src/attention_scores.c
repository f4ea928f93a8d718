/* The scores of the general form of attention, from products of codes or of floats, or looked up by
 * distances of signs: SPEC.md 4. */
#include "attention_head.h"

#include <math.h>
#include <string.h>

#include "quantizer.h"

enum {
    LOOKS_UP_FROM = 128
}; /* tokens, as measured: with fewer, tables are not worth their making */

/* ---- Queries and keys ---- */

bitm_op bitm_head_score_product(const bitm_layer *layer)
{
    return bitm_is_sign(layer->quantize_query) ? BITM_OP_gemm_w1sign : BITM_OP_gemm_w1planes;
}

const uint64_t *bitm_head_planes(const bitm_head *h, int operand,
                                 const bitm_file_quantizer *quantizer, size_t *stride)
{
    const bitm_backend *backend = h->w->backend;
    const bitm_file_config *config = backend->network->config;
    const size_t words = bitm_n_planes(quantizer) * (((size_t)config->head_size + 63) / 64);
    *stride = config->n_heads * words;
    return backend->attention.planes[operand] + h->first * *stride + h->number * words;
}

static bool are_ordinary(const float *steps, uint32_t n)
{
    bool are = true;
    for (uint32_t i = 0; i < n; i++)
        are = are && steps[i] > 0x1p-50F && steps[i] < 0x1p50F;
    return are;
}

/* Whether it changes no bit of scores to scale the queries' steps in their place: by a power of 2,
 * where no product of steps and integers leaves the normal floats. */
static bool can_scale_steps(const bitm_head *h)
{
    const bitm_attention_buffers *buffers = &h->w->backend->attention;
    int exponent;
    return frexpf(h->w->backend->network->config->score_scale, &exponent) == 0.5F &&
           exponent > -20 && exponent <= 1 &&
           are_ordinary(buffers->step[BITM_QUERY] + h->first, h->n_tokens) &&
           are_ordinary(buffers->step[BITM_KEY] + h->first, h->n_tokens);
}

static void copy_queries_and_keys(bitm_head *h)
{
    const bitm_layer *layer = h->w->layer;
    const uint32_t head_size = h->w->backend->network->config->head_size;
    size_t stride;
    const uint64_t *planes = bitm_head_planes(h, BITM_QUERY, layer->quantize_query, &stride);
    bitm_code_rows_copy(&h->queries, layer->quantize_query, planes, stride, h->n_tokens, head_size);
    planes = bitm_head_planes(h, BITM_KEY, layer->quantize_key, &stride);
    bitm_code_rows_copy(&h->keys, layer->quantize_key, planes, stride, h->n_tokens, head_size);
}

void bitm_head_open_scores(bitm_head *h)
{
    const bitm_layer *layer = h->w->layer;
    copy_queries_and_keys(h);
    bitm_code_rows_weigh(&h->keys, layer->quantize_key,
                         h->w->backend->kernels->packing[bitm_head_score_product(layer)]);
    if (h->keys.are_weights && !bitm_is_sign(layer->quantize_query))
        bitm_code_rows_sum(&h->queries, h->query_sums);
    h->scales_steps = h->keys.are_weights && can_scale_steps(h);
}

bool bitm_head_open_signs(bitm_head *h)
{
    const bitm_layer *layer = h->w->layer;
    if (h->n_tokens < LOOKS_UP_FROM || !h->w->can_look_up) return false;
    copy_queries_and_keys(h);
    bitm_code_rows_weigh(&h->queries, layer->quantize_query, NULL);
    bitm_code_rows_weigh(&h->keys, layer->quantize_key, NULL);
    memset(h->tables->state, 0, sizeof h->tables->state);
    return h->queries.are_weights && h->keys.are_weights;
}

void bitm_head_multiply(const bitm_head *h, bitm_op op, const bitm_code_rows *weights,
                        const bitm_planes *rows, const int32_t *code_sum, uint32_t n_rows,
                        const float *row_scale, const float *token_step, float *outputs,
                        size_t stride)
{
    const bitm_backend *backend = h->w->backend;
    const bitm_gemm gemm = {.weights = weights->bits,
                            .packed = weights->packed,
                            .n_rows = weights->n_rows,
                            .n_inputs = weights->n,
                            .row_scale = row_scale,
                            .bias = backend->attention.minus_zeros,
                            .inputs = rows->bits,
                            .n_planes = rows->n_planes,
                            .plane_weights = rows->weights,
                            .code_sum = code_sum,
                            .token_step = token_step,
                            .outputs = outputs,
                            .output_stride = stride,
                            .scratch = h->scratch};
    bitm_gemm_fn *run =
        op == BITM_OP_gemm_w1sign ? backend->kernels->gemm_w1sign : backend->kernels->gemm_w1planes;
    run(&gemm, 0, n_rows, 0, weights->n_rows);
}

/* ---- Scores ---- */

/* Of rows i to i + n: q_i . k_j of integers, times their steps, times scale. */
static void integer_products(const bitm_head *h, size_t i, uint32_t n, float scale)
{
    const bitm_backend *backend = h->w->backend;
    const uint32_t head_size = backend->network->config->head_size, words = (head_size + 63) / 64;
    const float *query_step = backend->attention.step[BITM_QUERY] + h->first + i;
    const float *key_step = backend->attention.step[BITM_KEY] + h->first;
    const size_t n_tokens = h->n_tokens;
    bitm_planes query = h->queries.planes;
    query.bits += i * query.n_planes * words;
    if (h->keys.are_weights) {
        float steps[BITM_HEAD_ROWS];
        for (uint32_t r = 0; r < n; r++)
            steps[r] = h->scales_steps ? query_step[r] * scale : query_step[r];
        bitm_head_multiply(h, bitm_head_score_product(h->w->layer), &h->keys, &query,
                           h->query_sums + i, n, key_step, steps, h->scores, n_tokens);
        for (size_t j = 0; !h->scales_steps && scale != 1.0F && j < n * n_tokens; j++)
            h->scores[j] *= scale;
        return;
    }
    for (size_t r = 0; r < n; r++, query.bits += (size_t)query.n_planes * words) {
        backend->kernels->dot_planes(&query, &h->keys.planes, words, h->n_tokens, h->dots);
        const float step = query_step[r];
        const int32_t *dots = h->dots;
        float *scores = h->scores + r * n_tokens;
        for (size_t j = 0; j < n_tokens; j++)
            scores[j] = (float)dots[j] * (step * key_step[j]) * scale;
    }
}

/* out[j] = a [n] . b_j [n] for rows b_j, as the float products add. */
static void float_products(const bitm_backend *backend, const float *a, const float *b,
                           size_t stride, uint32_t n_rows, uint32_t n, float *out)
{
    const bitm_network *network = backend->network;
    float step = 1.0F;
    bitm_gemm dot = {.n_inputs = n,
                     .row_scale = network->ones,
                     .bias = network->zeros,
                     .inputs = a,
                     .token_step = &step,
                     .output_stride = 1};
    for (size_t j = 0; j < n_rows; j++) {
        dot.weights = b + j * stride;
        dot.outputs = out + j;
        backend->kernels->gemm_f32(&dot, 0, 1, 0, 1);
    }
}

/* Adds query_m . key_p + query_p . key_m + query_p . key_p (BiPFT), in this order, over the rank.
 */
static void add_low_rank(const bitm_head *h, size_t i, float *scores)
{
    const bitm_backend *backend = h->w->backend;
    size_t rank = backend->network->config->score_rank;
    enum { QUERY_P, QUERY_M, KEY_P, KEY_M };
    float *const *terms = backend->attention.low_rank;
    const float *query_p = terms[QUERY_P] + (h->first + i) * rank;
    const float *query_m = terms[QUERY_M] + (h->first + i) * rank;
    for (size_t j = 0; j < h->n_tokens; j++) {
        const float *key_p = terms[KEY_P] + (h->first + j) * rank;
        const float *key_m = terms[KEY_M] + (h->first + j) * rank;
        for (size_t r = 0; r < rank; r++) {
            scores[j] = fmaf(query_m[r], key_p[r], scores[j]);
            scores[j] = fmaf(query_p[r], key_m[r], scores[j]);
            scores[j] = fmaf(query_p[r], key_p[r], scores[j]);
        }
    }
}

void bitm_head_find_weights(const bitm_head *h, size_t i, uint32_t n, float sums[BITM_HEAD_ROWS])
{
    const bitm_head_work *w = h->w;
    const bitm_backend *backend = w->backend;
    const bitm_file_config *config = backend->network->config;
    const size_t stride = backend->network->attention_size, n_tokens = h->n_tokens;
    const size_t place = h->first * stride + h->place;
    const bool scales_last = !w->integer_scores || config->score_rank > 0;
    if (w->integer_scores) integer_products(h, i, n, scales_last ? 1.0F : config->score_scale);
    for (size_t r = 0; r < n; r++) {
        float *scores = h->scores + r * n_tokens;
        if (!w->integer_scores)
            float_products(backend, w->operands[BITM_QUERY] + place + (i + r) * stride,
                           w->operands[BITM_KEY] + place, stride, h->n_tokens, config->head_size,
                           scores);
        if (config->score_rank > 0) add_low_rank(h, i + r, scores);
        for (size_t j = 0; scales_last && j < n_tokens; j++)
            scores[j] *= config->score_scale;
        sums[r] = config->attention_normalizer == BITM_NORMALIZER_SOFTMAX
                      ? backend->kernels->exp_sum(scores, h->n_tokens)
                      : 1.0F;
    }
}

/* ---- By distances ---- */

/* The score of a query and a key that are signs: steps of signs are the file's. */
static float score_of(const bitm_head *h, uint32_t distance)
{
    const bitm_layer *layer = h->w->layer;
    const bitm_file_config *config = h->w->backend->network->config;
    const int32_t product = (int32_t)config->head_size - 2 * (int32_t)distance;
    return (float)product * (layer->quantize_query->step * layer->quantize_key->step) *
           config->score_scale;
}

/* Exponentials of a query's scores by the distance of the key, from that of the nearest one on, in
 * the places of distances modulo BITM_DISTANCES; NULL where rounding made one greater than that of
 * a nearer key, so that no distance would part probabilities of 0 and 1. */
static const float *table_of(bitm_head *h, uint32_t nearest)
{
    enum { UNKNOWN, FALLS, RISES }; /* of a table's state */
    uint8_t *state = &h->tables->state[nearest];
    float *table = h->tables->exponentials[nearest];
    if (*state == UNKNOWN) {
        for (uint32_t d = nearest; d < nearest + BITM_DISTANCES; d++)
            table[d % BITM_DISTANCES] = score_of(h, d);
        (void)h->w->backend->kernels->exp_sum(table, BITM_DISTANCES);
        *state = FALLS;
        for (uint32_t d = nearest + 1; d < nearest + BITM_DISTANCES; d++)
            if (table[d % BITM_DISTANCES] > table[(d - 1) % BITM_DISTANCES]) *state = RISES;
    }
    return *state == FALLS ? table : NULL;
}

bool bitm_head_look_up(bitm_head *h, uint32_t i, const bitm_quantization *quantization,
                       uint64_t *bits, int32_t *sum)
{
    const bitm_kernel_table *kernels = h->w->backend->kernels;
    const uint32_t n = h->n_tokens, head_size = h->w->backend->network->config->head_size;
    const uint32_t nearest =
        kernels->sign_distances(h->queries.bits[i], h->keys.bits, n, h->distances);
    /* From 0 there may be more distances than a table has. */
    const float *table = nearest > 0 ? table_of(h, nearest) : NULL;
    bitm_quantization undivided = *quantization;
    if (table == NULL ||
        !bitm_quantization_divide(&undivided, kernels->table_sum(table, h->distances, n)))
        return false;
    uint32_t end = nearest;
    while (end <= head_size && table[end % BITM_DISTANCES] >= undivided.threshold)
        end++;
    *sum = kernels->near_bits(h->distances, n, (uint8_t)end, bits);
    return true;
}

float bitm_head_weights_of_distances(const bitm_head *h, float *scores)
{
    for (uint32_t j = 0; j < h->n_tokens; j++)
        scores[j] = score_of(h, h->distances[j]);
    return h->w->backend->kernels->exp_sum(scores, h->n_tokens);
}
