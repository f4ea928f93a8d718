/* Attention with quantizers, further terms of scores and values, or without softmax: SPEC.md 4. */
#include "attention.h"

#include <math.h>
#include <string.h>

#include "attention_head.h"
#include "inputs.h"

/* ---- Operands ---- */

static bool has_integer_scores(const bitm_layer *layer)
{
    return layer->quantize_query != NULL && layer->quantize_key != NULL;
}

/* Values of one step for each sequence, so that the step can be taken out of the sum. */
static bool has_integer_context(const bitm_layer *layer)
{
    return layer->quantize_probabilities != NULL && layer->quantize_value != NULL &&
           layer->quantize_value->scope != BITM_SCOPE_TOKEN;
}

/* Whether distances of signs tell probabilities of two codes: nothing but query and key is in
 * scores, and nothing but context is made of probabilities. */
static bool can_look_up(const bitm_network *network, const bitm_layer *layer)
{
    const bitm_file_config *config = network->config;
    return has_integer_scores(layer) && has_integer_context(layer) &&
           bitm_is_sign(layer->quantize_query) && bitm_is_sign(layer->quantize_key) &&
           layer->quantize_probabilities->lo == 0 && layer->quantize_probabilities->hi == 1 &&
           config->head_size <= 64 && config->score_rank == 0 && !config->value_term &&
           config->attention_normalizer == BITM_NORMALIZER_SOFTMAX;
}

#define OP(op) (UINT64_C(1) << BITM_OP_##op)

/* Of a layer's attention, by operand; NULL: none. */
static void list_quantizers(const bitm_layer *layer,
                            const bitm_file_quantizer *list[BITM_N_QUANTIZERS])
{
    list[BITM_QUERY] = layer->quantize_query;
    list[BITM_KEY] = layer->quantize_key;
    list[BITM_VALUE] = layer->quantize_value;
    list[BITM_PROBABILITIES] = layer->quantize_probabilities;
}

uint64_t bitm_general_attention_ops(const bitm_network *network, const bitm_layer *layer)
{
    const bool integer_scores = has_integer_scores(layer);
    const bool integer_context = has_integer_context(layer);
    const bitm_file_quantizer *quantizers[BITM_N_QUANTIZERS];
    list_quantizers(layer, quantizers);
    uint64_t ops = integer_scores ? 0 : OP(gemm_f32);
    if (integer_scores || integer_context) ops |= OP(dot_planes) | OP(quantize_planes);
    if (integer_scores && bitm_is_sign(layer->quantize_key))
        ops |= UINT64_C(1) << bitm_head_score_product(layer);
    if (integer_context && bitm_is_sign(layer->quantize_value)) ops |= OP(gemm_w1planes);
    if (can_look_up(network, layer)) ops |= OP(sign_distances) | OP(table_sum) | OP(near_bits);
    if (network->config->attention_normalizer == BITM_NORMALIZER_SOFTMAX) ops |= OP(exp_sum);
    for (int i = 0; i < BITM_N_QUANTIZERS; i++) {
        if (quantizers[i] == NULL) continue;
        bool is_integer = i == BITM_QUERY || i == BITM_KEY ? integer_scores : integer_context;
        if (!is_integer || network->config->value_term) ops |= OP(quantize);
        if (quantizers[i]->scope != BITM_SCOPE_STATIC) ops |= OP(extremes);
    }
    return ops;
}

/* ---- Memory ---- */

static size_t larger_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Words of n elements, up to whole lines of BITM_ARENA_ALIGNMENT bytes. */
static size_t room_for(size_t n, size_t element_bytes)
{
    size_t n_lines = (n * element_bytes + BITM_ARENA_ALIGNMENT - 1) / BITM_ARENA_ALIGNMENT;
    return n_lines * (BITM_ARENA_ALIGNMENT / sizeof(uint64_t));
}

/* Of signs that are packed for the product `op`. */
static size_t packed_bytes(const bitm_backend *backend, bitm_op op, uint32_t n_rows,
                           uint32_t n_inputs)
{
    const bitm_packing *packing = backend->kernels->packing[op];
    return packing != NULL ? packing->n_bytes(1, n_rows, n_inputs) : 0;
}

/* The most planes that any layer has, by operand. */
static void count_planes(const bitm_network *network, size_t most[BITM_N_QUANTIZERS])
{
    memset(most, 0, BITM_N_QUANTIZERS * sizeof *most);
    for (uint32_t n = 0; n < network->config->n_layers; n++) {
        const bitm_file_quantizer *quantizers[BITM_N_QUANTIZERS];
        list_quantizers(&network->layers[n], quantizers);
        for (int i = 0; i < BITM_N_QUANTIZERS; i++)
            most[i] = larger_size(most[i], bitm_n_planes(quantizers[i]));
    }
}

static bitm_head_room room_of(const bitm_backend *backend)
{
    const bitm_network *network = backend->network;
    const uint32_t head_size = network->config->head_size, max_length = backend->max_length;
    const size_t head_words = ((size_t)head_size + 63) / 64;
    const size_t row_words = ((size_t)max_length + 63) / 64;
    size_t planes[BITM_N_QUANTIZERS], packed_keys = 0, packed_values = 0;
    count_planes(network, planes);
    for (uint32_t n = 0; n < network->config->n_layers; n++) {
        const bitm_layer *layer = &network->layers[n];
        if (has_integer_scores(layer) && bitm_is_sign(layer->quantize_key))
            packed_keys =
                larger_size(packed_keys, packed_bytes(backend, bitm_head_score_product(layer),
                                                      max_length, head_size));
        if (has_integer_context(layer) && bitm_is_sign(layer->quantize_value))
            packed_values = larger_size(
                packed_values, packed_bytes(backend, BITM_OP_gemm_w1planes, head_size, max_length));
    }
    bitm_head_room room = {0};
    room.packed_values = room.packed_keys + room_for(packed_keys, 1);
    room.keys = room.packed_values + room_for(packed_values, 1);
    room.values =
        room.keys + room_for(planes[BITM_KEY] * head_words * max_length, sizeof(uint64_t));
    room.queries =
        room.values + room_for(planes[BITM_VALUE] * row_words * head_size, sizeof(uint64_t));
    room.probabilities =
        room.queries + room_for(planes[BITM_QUERY] * head_words * max_length, sizeof(uint64_t));
    room.codes =
        room.probabilities +
        room_for(BITM_HEAD_ROWS * planes[BITM_PROBABILITIES] * row_words, sizeof(uint64_t));
    room.scores = room.codes + room_for(max_length, sizeof(int16_t));
    room.query_sums = room.scores + room_for((size_t)BITM_HEAD_ROWS * max_length, sizeof(float));
    room.value_sums = room.query_sums + room_for(max_length, sizeof(int32_t));
    room.dots = room.value_sums + room_for(head_size, sizeof(int32_t));
    room.distances = room.dots + room_for(larger_size(max_length, head_size), sizeof(int32_t));
    room.tables = room.distances + room_for(max_length, 1);
    room.end = room.tables + room_for(1, sizeof(bitm_distance_tables));
    return room;
}

void bitm_general_attention_layout(bitm_backend *backend, bitm_arena *arena)
{
    const bitm_network *network = backend->network;
    const bitm_file_config *config = network->config;
    bitm_attention_buffers *buffers = &backend->attention;
    uint64_t n_tokens = backend->max_tokens, n_threads = backend->pool->n_threads;
    size_t planes[BITM_N_QUANTIZERS];
    count_planes(network, planes);
    for (int i = 0; i < BITM_N_OPERANDS; i++) {
        size_t words = planes[i] * config->n_heads * (((size_t)config->head_size + 63) / 64);
        buffers->planes[i] = bitm_arena_take(arena, n_tokens, words * sizeof(uint64_t));
        buffers->step[i] = bitm_arena_take(arena, n_tokens, sizeof(float));
        buffers->base[i] = bitm_arena_take(arena, n_tokens, sizeof(float));
    }
    for (int i = 0; i < 4; i++)
        buffers->low_rank[i] = bitm_arena_take(arena, n_tokens, config->score_rank * sizeof(float));
    buffers->value_term = bitm_arena_take(arena, n_tokens, sizeof(float));
    buffers->extremes = bitm_arena_take(arena, n_tokens * config->n_heads, 2 * sizeof(float));
    buffers->head_words = room_of(backend).end;
    buffers->heads = bitm_arena_take(arena, n_threads * buffers->head_words, sizeof(uint64_t));
    size_t n_minus_zeros = larger_size(backend->max_length, config->head_size);
    float *minus_zeros = bitm_arena_take(arena, n_minus_zeros, sizeof *minus_zeros);
    for (size_t i = 0; minus_zeros != NULL && i < n_minus_zeros; i++)
        minus_zeros[i] = -0.0F;
    buffers->minus_zeros = minus_zeros;
}

/* ---- One head of one sequence ---- */

static bitm_head open_head(const bitm_head_work *w, uint32_t task, uint32_t worker)
{
    const bitm_backend *backend = w->backend;
    const bitm_file_config *config = backend->network->config;
    bitm_head h = {.w = w, .sequence = task / config->n_heads, .number = task % config->n_heads};
    h.first = w->spans->first[h.sequence];
    h.n_tokens = w->spans->first[h.sequence + 1] - h.first;
    h.place = (size_t)h.number * config->head_size;
    const bitm_head_room room = w->room;
    uint64_t *words = backend->attention.heads + worker * backend->attention.head_words;
    h.queries.bits = words + room.queries;
    h.keys.bits = words + room.keys;
    h.keys.room = words + room.packed_keys;
    h.values.bits = words + room.values;
    h.values.room = words + room.packed_values;
    h.query_sums = (int32_t *)(void *)(words + room.query_sums);
    h.value_sums = (int32_t *)(void *)(words + room.value_sums);
    h.probabilities = words + room.probabilities;
    h.codes = (int16_t *)(void *)(words + room.codes);
    h.scores = (float *)(void *)(words + room.scores);
    h.dots = (int32_t *)(void *)(words + room.dots);
    h.distances = (uint8_t *)(words + room.distances);
    h.tables = (bitm_distance_tables *)(void *)(words + room.tables);
    h.scratch = backend->scratch + worker * backend->scratch_bytes;
    return h;
}

/* ---- Codes ---- */

/* With bases: sums of values are wanted, too. */
static void open_values(bitm_head *h, bool with_bases)
{
    const bitm_file_quantizer *of_value = h->w->layer->quantize_value;
    const uint32_t head_size = h->w->backend->network->config->head_size;
    size_t stride;
    const uint64_t *planes = bitm_head_planes(h, BITM_VALUE, of_value, &stride);
    bitm_code_rows_transpose(&h->values, of_value, planes, stride, head_size, h->n_tokens);
    bitm_code_rows_weigh(&h->values, of_value,
                         h->w->backend->kernels->packing[BITM_OP_gemm_w1planes]);
    if (with_bases) bitm_code_rows_sum(&h->values, h->value_sums);
}

/* ---- Statistics of probabilities ---- */

static void divide_scores(float *scores, size_t n_tokens, float sum)
{
    for (size_t j = 0; sum != 1.0F && j < n_tokens; j++)
        scores[j] /= sum;
}

static float *extremes_of(const bitm_backend *backend, size_t sequence, size_t number)
{
    return backend->attention.extremes +
           (sequence * backend->network->config->n_heads + number) * 2;
}

/* The extremes of one head's probabilities. */
static void extremes_task(void *context, uint32_t task, uint32_t worker)
{
    const bitm_head_work *w = context;
    bitm_head h = open_head(w, task, worker);
    const bitm_file_config *config = w->backend->network->config;
    bitm_quantization quantization = bitm_quantizer_begin(w->layer->quantize_probabilities, NULL);
    float *extremes = extremes_of(w->backend, h.sequence, h.number);
    if (w->integer_scores) bitm_head_open_scores(&h);
    for (uint32_t i = 0; i < h.n_tokens; i += BITM_HEAD_ROWS) {
        const uint32_t n = h.n_tokens - i < BITM_HEAD_ROWS ? h.n_tokens - i : BITM_HEAD_ROWS;
        float sums[BITM_HEAD_ROWS];
        bitm_head_find_weights(&h, i, n, sums);
        for (size_t r = 0; r < n; r++) {
            float row[2], *scores = h.scores + r * h.n_tokens;
            divide_scores(scores, h.n_tokens, sums[r]);
            w->backend->kernels->extremes(&quantization, scores, h.n_tokens, row);
            extremes[0] = i + r == 0 || row[0] < extremes[0] ? row[0] : extremes[0];
            extremes[1] = i + r == 0 || row[1] > extremes[1] ? row[1] : extremes[1];
        }
    }
    if ((config->flags & BITM_FLAG_PROBABILITY_MIN_ZERO) != 0 && extremes[0] > 0.0F)
        extremes[0] = 0.0F;
}

/* The scope is the sequence: every head gets the extremes of all heads. */
static void join_heads(const bitm_head_work *w)
{
    uint32_t n_heads = w->backend->network->config->n_heads;
    for (size_t s = 0; s < w->spans->n; s++) {
        float *all = extremes_of(w->backend, s, 0);
        float least = all[0], greatest = all[1];
        for (size_t i = 0; i < n_heads; i++) {
            least = all[i * 2] < least ? all[i * 2] : least;
            greatest = all[i * 2 + 1] > greatest ? all[i * 2 + 1] : greatest;
        }
        for (size_t i = 0; i < n_heads; i++) {
            all[i * 2] = least;
            all[i * 2 + 1] = greatest;
        }
    }
}

/* ---- Context ---- */

/* Whether bases of probabilities or values add to the context: products of 0 would change nothing,
 * not even the sign of a 0. */
static bool has_bases(const bitm_head *h, float step, float base)
{
    const bitm_attention_buffers *buffers = &h->w->backend->attention;
    return base != 0.0F || buffers->base[BITM_VALUE][h->first] != 0.0F ||
           !(step * buffers->step[BITM_VALUE][h->first] > 0.0F);
}

/* With p = step_p * code_p + base_p and v = step_v * code_v + base_v:
 * sum of p v = step_p step_v (code_p . code_v) + base_p step_v (sum of code_v) + base_v (sum of p).
 * Of n rows of probabilities, whose codes have the sums code_sum: context [n, A]. */
static void integer_context(const bitm_head *h, float step, float base, bool with_bases,
                            const int32_t *code_sum, uint32_t n, float *context)
{
    const bitm_head_work *w = h->w;
    const bitm_backend *backend = w->backend;
    const bitm_attention_buffers *buffers = &backend->attention;
    const size_t stride = backend->network->attention_size;
    const uint32_t head_size = backend->network->config->head_size;
    const uint32_t words = (h->n_tokens + 63) / 64;
    const float value_step = buffers->step[BITM_VALUE][h->first];
    const float value_base = buffers->base[BITM_VALUE][h->first];
    bitm_planes p = bitm_planes_of(w->layer->quantize_probabilities, h->probabilities);
    if (h->values.are_weights) {
        float steps[BITM_HEAD_ROWS];
        for (uint32_t r = 0; r < n; r++)
            steps[r] = step * value_step;
        bitm_head_multiply(h, BITM_OP_gemm_w1planes, &h->values, &p, code_sum, n,
                           backend->network->ones, steps, context, stride);
    }
    for (size_t r = 0; r < n; r++, context += stride, p.bits += (size_t)p.n_planes * words) {
        if (!h->values.are_weights) {
            backend->kernels->dot_planes(&p, &h->values.planes, words, head_size, h->dots);
            for (size_t d = 0; d < head_size; d++)
                context[d] = (float)h->dots[d] * (step * value_step);
        }
        if (!with_bases) continue;
        float sum = step * (float)code_sum[r] + base * (float)h->n_tokens;
        for (size_t d = 0; d < head_size; d++) {
            float c = fmaf(base * value_step, (float)h->value_sums[d], context[d]);
            context[d] = fmaf(value_base, sum, c);
        }
    }
}

static void float_context(const bitm_head *h, const float *weights, float *context)
{
    const bitm_backend *backend = h->w->backend;
    size_t stride = backend->network->attention_size, n = backend->network->config->head_size;
    const float *value = h->w->operands[BITM_VALUE] + h->first * stride + h->place;
    memset(context, 0, n * sizeof *context);
    for (size_t j = 0; j < h->n_tokens; j++, value += stride)
        for (size_t d = 0; d < n; d++)
            context[d] = fmaf(weights[j], value[d], context[d]);
}

/* Adds to every component the sum over j of p_j * value_term_j. */
static void add_value_term(const bitm_head *h, const float *weights, float *context)
{
    const bitm_backend *backend = h->w->backend;
    const float *term = backend->attention.value_term + h->first;
    float sum = 0.0F;
    for (size_t j = 0; j < h->n_tokens; j++)
        sum = fmaf(weights[j], term[j], sum);
    for (size_t d = 0; d < backend->network->config->head_size; d++)
        context[d] += sum;
}

/* The planes of the probabilities of a row, where products want them, and the values that they
 * stand for in their place, where sums do; returns the sum of the codes.  A threshold of weights is
 * found sooner than all of them are divided. */
static int32_t quantize_probabilities(const bitm_head *h, float *scores, float sum,
                                      bitm_quantization quantization, float step, float base,
                                      uint64_t *planes)
{
    const bitm_head_work *w = h->w;
    const bitm_kernel_table *kernels = w->backend->kernels;
    const uint32_t n = h->n_tokens;
    int32_t code_sum = 0;
    if (!bitm_quantization_divide(&quantization, sum)) divide_scores(scores, n, sum);
    if (w->integer_context)
        code_sum = kernels->quantize_planes(
            &quantization, scores, n, bitm_n_planes(w->layer->quantize_probabilities), planes);
    if (w->integer_context && !w->backend->network->config->value_term) return code_sum;
    (void)kernels->quantize(&quantization, scores, n, h->codes);
    for (size_t j = 0; j < n; j++)
        scores[j] = fmaf(step, (float)h->codes[j], base);
    return code_sum;
}

static void general_task(void *argument, uint32_t task, uint32_t worker)
{
    const bitm_head_work *w = argument;
    const bitm_network *network = w->backend->network;
    const bitm_file_quantizer *quantizer = w->layer->quantize_probabilities;
    const size_t stride = network->attention_size;
    bitm_quantization quantization = {0};
    float step = 1.0F, base = 0.0F; /* of probabilities, as quantization for all rows of the head */
    bitm_head h = open_head(w, task, worker);
    const size_t row_words = bitm_n_planes(quantizer) * (((size_t)h.n_tokens + 63) / 64);
    const bool uses_values = !w->integer_context || network->config->value_term;
    if (quantizer != NULL) {
        quantization = bitm_quantizer_begin(quantizer, NULL);
        bitm_quantizer_finish(quantizer, extremes_of(w->backend, h.sequence, h.number),
                              &quantization, &step, &base);
    }
    const bool with_bases = w->integer_context && has_bases(&h, step, base);
    h.looks_up = bitm_head_open_signs(&h);
    if (w->integer_scores && !h.looks_up) bitm_head_open_scores(&h);
    if (w->integer_context) open_values(&h, with_bases);
    for (uint32_t i = 0; i < h.n_tokens; i += BITM_HEAD_ROWS) {
        const uint32_t n = h.n_tokens - i < BITM_HEAD_ROWS ? h.n_tokens - i : BITM_HEAD_ROWS;
        float sums[BITM_HEAD_ROWS] = {0}, *context = w->context + (h.first + i) * stride + h.place;
        int32_t code_sum[BITM_HEAD_ROWS] = {0};
        if (!h.looks_up) bitm_head_find_weights(&h, i, n, sums);
        for (uint32_t r = 0; r < n; r++) {
            float *scores = h.scores + (size_t)r * h.n_tokens;
            uint64_t *planes = h.probabilities + r * row_words;
            if (h.looks_up) {
                if (bitm_head_look_up(&h, i + r, &quantization, planes, &code_sum[r])) continue;
                sums[r] = bitm_head_weights_of_distances(&h, scores);
            }
            if (quantizer == NULL) {
                divide_scores(scores, h.n_tokens, sums[r]);
                continue;
            }
            code_sum[r] =
                quantize_probabilities(&h, scores, sums[r], quantization, step, base, planes);
        }
        if (w->integer_context) integer_context(&h, step, base, with_bases, code_sum, n, context);
        for (size_t r = 0; uses_values && r < n; r++) {
            const float *weights = h.scores + r * h.n_tokens;
            if (!w->integer_context) float_context(&h, weights, context + r * stride);
            if (network->config->value_term) add_value_term(&h, weights, context + r * stride);
        }
    }
}

/* ---- A layer ---- */

/* Quantizes an operand: to codes for integer products, or else to the values that they stand for.
 */
static void quantize_operand(const bitm_head_work *w, int operand,
                             const bitm_file_quantizer *quantizer, bool is_integer, float *x)
{
    bitm_backend *backend = w->backend;
    const bitm_attention_buffers *buffers = &backend->attention;
    if (quantizer == NULL) return;
    bitm_quantize_heads(backend, quantizer, x, w->spans->first[w->spans->n],
                        backend->network->config->n_heads, backend->network->attention_size,
                        w->spans, is_integer ? buffers->planes[operand] : NULL,
                        buffers->step[operand], buffers->base[operand]);
}

static void find_float_terms(const bitm_head_work *w, const float *x)
{
    bitm_backend *backend = w->backend;
    const bitm_file_config *config = backend->network->config;
    const bitm_layer *layer = w->layer;
    uint32_t n_tokens = w->spans->first[w->spans->n];
    if (config->score_rank > 0) {
        const bitm_linear *linears[] = {&layer->query_p, &layer->query_m, &layer->key_p,
                                        &layer->key_m};
        bitm_backend_linears(backend, 4, linears, x, n_tokens, w->spans,
                             backend->attention.low_rank);
    }
    if (config->value_term)
        bitm_backend_linear(backend, &layer->value_term, BITM_ACTIVATION_NONE, x, n_tokens,
                            w->spans, backend->attention.value_term);
}

void bitm_general_attention(bitm_backend *backend, const bitm_layer *layer, const bitm_spans *spans,
                            const float *x, float *query, float *key, float *value, float *context)
{
    const bitm_file_quantizer *of_value = layer->quantize_value;
    const bitm_file_quantizer *of_probabilities = layer->quantize_probabilities;
    uint32_t n_tasks = spans->n * backend->network->config->n_heads;
    bitm_head_work w = {.backend = backend,
                        .layer = layer,
                        .spans = spans,
                        .operands = {query, key, value},
                        .integer_scores = has_integer_scores(layer),
                        .integer_context = has_integer_context(layer),
                        .can_look_up = can_look_up(backend->network, layer),
                        .room = room_of(backend),
                        .context = context};
    quantize_operand(&w, BITM_QUERY, layer->quantize_query, w.integer_scores, query);
    quantize_operand(&w, BITM_KEY, layer->quantize_key, w.integer_scores, key);
    quantize_operand(&w, BITM_VALUE, of_value, w.integer_context, value);
    find_float_terms(&w, x);
    if (of_probabilities != NULL && of_probabilities->scope != BITM_SCOPE_STATIC) {
        bitm_pool_run(backend->pool, n_tasks, extremes_task, &w);
        if (of_probabilities->scope == BITM_SCOPE_SEQUENCE) join_heads(&w);
    }
    bitm_pool_run(backend->pool, n_tasks, general_task, &w);
}
