/* Attention with quantizers, further terms of scores and values, or without softmax: SPEC.md 4. */
#include "attention.h"

#include <math.h>
#include <string.h>

#include "code_rows.h"
#include "inputs.h"

enum { QUERY, KEY, VALUE, N_OPERANDS };

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

#define OP(op) (UINT64_C(1) << BITM_OP_##op)

/* The product of queries with keys that are signs. */
static bitm_op score_product(const bitm_layer *layer)
{
    return bitm_is_sign(layer->quantize_query) ? BITM_OP_gemm_w1sign : BITM_OP_gemm_w1planes;
}

enum { PROBABILITIES = N_OPERANDS, N_QUANTIZERS };

/* Of a layer's attention, by operand; NULL: none. */
static void list_quantizers(const bitm_layer *layer, const bitm_file_quantizer *list[N_QUANTIZERS])
{
    list[QUERY] = layer->quantize_query;
    list[KEY] = layer->quantize_key;
    list[VALUE] = layer->quantize_value;
    list[PROBABILITIES] = layer->quantize_probabilities;
}

uint64_t bitm_general_attention_ops(const bitm_network *network, const bitm_layer *layer)
{
    const bool integer_scores = has_integer_scores(layer);
    const bool integer_context = has_integer_context(layer);
    const bitm_file_quantizer *quantizers[N_QUANTIZERS];
    list_quantizers(layer, quantizers);
    uint64_t ops = integer_scores ? 0 : OP(gemm_f32);
    if (integer_scores || integer_context) ops |= OP(dot_planes) | OP(quantize_planes);
    if (integer_scores && bitm_is_sign(layer->quantize_key))
        ops |= UINT64_C(1) << score_product(layer);
    if (integer_context && bitm_is_sign(layer->quantize_value)) ops |= OP(gemm_w1planes);
    if (network->config->attention_normalizer == BITM_NORMALIZER_SOFTMAX) ops |= OP(exp_sum);
    for (int i = 0; i < N_QUANTIZERS; i++) {
        if (quantizers[i] == NULL) continue;
        bool is_integer = i == QUERY || i == KEY ? integer_scores : integer_context;
        if (!is_integer || network->config->value_term) ops |= OP(quantize);
        if (quantizers[i]->scope != BITM_SCOPE_STATIC) ops |= OP(extremes);
    }
    return ops;
}

static uint32_t n_planes(const bitm_file_quantizer *quantizer)
{
    return quantizer != NULL ? bitm_planes_of(quantizer, NULL).n_planes : 0;
}

/* ---- Memory ---- */

enum { ROWS = 32 }; /* queries at work */

/* One thread's room for one head of one sequence, in 64-bit words from the start of its part. */
typedef struct head_room {
    size_t packed_keys; /* as the kernel of their product wants them */
    size_t packed_values;
    size_t keys;          /* [max_length, planes, words of a head] */
    size_t values;        /* [head_size, planes, words of a sequence] */
    size_t queries;       /* as keys */
    size_t probabilities; /* [ROWS, planes, words of a sequence] */
    size_t codes;         /* [max_length] int16: probabilities of one row */
    size_t scores;        /* [ROWS, max_length] float */
    size_t query_sums;    /* [max_length] int32: sums of a row's codes */
    size_t value_sums;    /* [head_size] */
    size_t dots;          /* [max_length] or [head_size] int32: of one row with keys, with values */
    size_t end;           /* a multiple of the alignment */
} head_room;

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
static void count_planes(const bitm_network *network, size_t most[N_QUANTIZERS])
{
    memset(most, 0, N_QUANTIZERS * sizeof *most);
    for (uint32_t n = 0; n < network->config->n_layers; n++) {
        const bitm_file_quantizer *quantizers[N_QUANTIZERS];
        list_quantizers(&network->layers[n], quantizers);
        for (int i = 0; i < N_QUANTIZERS; i++)
            most[i] = larger_size(most[i], n_planes(quantizers[i]));
    }
}

static head_room room_of(const bitm_backend *backend)
{
    const bitm_network *network = backend->network;
    const uint32_t head_size = network->config->head_size, max_length = backend->max_length;
    const size_t head_words = ((size_t)head_size + 63) / 64;
    const size_t row_words = ((size_t)max_length + 63) / 64;
    size_t planes[N_QUANTIZERS], packed_keys = 0, packed_values = 0;
    count_planes(network, planes);
    for (uint32_t n = 0; n < network->config->n_layers; n++) {
        const bitm_layer *layer = &network->layers[n];
        if (has_integer_scores(layer) && bitm_is_sign(layer->quantize_key))
            packed_keys = larger_size(
                packed_keys, packed_bytes(backend, score_product(layer), max_length, head_size));
        if (has_integer_context(layer) && bitm_is_sign(layer->quantize_value))
            packed_values = larger_size(
                packed_values, packed_bytes(backend, BITM_OP_gemm_w1planes, head_size, max_length));
    }
    head_room room = {0};
    room.packed_values = room.packed_keys + room_for(packed_keys, 1);
    room.keys = room.packed_values + room_for(packed_values, 1);
    room.values = room.keys + room_for(planes[KEY] * head_words * max_length, sizeof(uint64_t));
    room.queries = room.values + room_for(planes[VALUE] * row_words * head_size, sizeof(uint64_t));
    room.probabilities =
        room.queries + room_for(planes[QUERY] * head_words * max_length, sizeof(uint64_t));
    room.codes =
        room.probabilities + room_for(ROWS * planes[PROBABILITIES] * row_words, sizeof(uint64_t));
    room.scores = room.codes + room_for(max_length, sizeof(int16_t));
    room.query_sums = room.scores + room_for((size_t)ROWS * max_length, sizeof(float));
    room.value_sums = room.query_sums + room_for(max_length, sizeof(int32_t));
    room.dots = room.value_sums + room_for(head_size, sizeof(int32_t));
    room.end = room.dots + room_for(larger_size(max_length, head_size), sizeof(int32_t));
    return room;
}

void bitm_general_attention_layout(bitm_backend *backend, bitm_arena *arena)
{
    const bitm_network *network = backend->network;
    const bitm_file_config *config = network->config;
    bitm_attention_buffers *buffers = &backend->attention;
    uint64_t n_tokens = backend->max_tokens, n_threads = backend->pool->n_threads;
    size_t planes[N_QUANTIZERS];
    count_planes(network, planes);
    for (int i = 0; i < N_OPERANDS; i++) {
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

/* The work of a layer. */
typedef struct work {
    bitm_backend *backend;
    const bitm_layer *layer;
    const bitm_spans *spans;
    const float *operands[N_OPERANDS]; /* [n_tokens, A], as quantized */
    bool integer_scores;               /* query and key are codes */
    bool integer_context;              /* so are probabilities and value, in one step a sequence */
    head_room room;
    float *context; /* [n_tokens, A] */
} work;

/* One task of it. */
typedef struct head {
    const work *w;
    uint32_t sequence, number;
    uint32_t first;    /* token */
    uint32_t n_tokens; /* S */
    size_t place;      /* of the head's first component in a row of A */
    float *scores;     /* [ROWS, S] */
    uint8_t *scratch;  /* of a product */
    /* Quantized operands. */
    bitm_code_rows queries, keys, values;
    bool scales_steps; /* scores are scaled by the queries' steps */
    int32_t *query_sums, *value_sums;
    uint64_t *probabilities; /* [ROWS, planes, words] */
    int16_t *codes;
    int32_t *dots;
} head;

static head open_head(const work *w, uint32_t task, uint32_t worker)
{
    const bitm_backend *backend = w->backend;
    const bitm_file_config *config = backend->network->config;
    head h = {.w = w, .sequence = task / config->n_heads, .number = task % config->n_heads};
    h.first = w->spans->first[h.sequence];
    h.n_tokens = w->spans->first[h.sequence + 1] - h.first;
    h.place = (size_t)h.number * config->head_size;
    const head_room room = w->room;
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
    h.scratch = backend->scratch + worker * backend->scratch_bytes;
    return h;
}

/* ---- Codes ---- */

/* The planes of an operand's token, of this head; *stride words before those of the next. */
static const uint64_t *planes_of_head(const head *h, int operand,
                                      const bitm_file_quantizer *quantizer, size_t *stride)
{
    const bitm_backend *backend = h->w->backend;
    const bitm_file_config *config = backend->network->config;
    const size_t words = n_planes(quantizer) * (((size_t)config->head_size + 63) / 64);
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
static bool can_scale_steps(const head *h)
{
    const bitm_attention_buffers *buffers = &h->w->backend->attention;
    int exponent;
    return frexpf(h->w->backend->network->config->score_scale, &exponent) == 0.5F &&
           exponent > -20 && exponent <= 1 &&
           are_ordinary(buffers->step[QUERY] + h->first, h->n_tokens) &&
           are_ordinary(buffers->step[KEY] + h->first, h->n_tokens);
}

static void open_queries_and_keys(head *h)
{
    const bitm_layer *layer = h->w->layer;
    const bitm_file_quantizer *of_query = layer->quantize_query, *of_key = layer->quantize_key;
    const uint32_t head_size = h->w->backend->network->config->head_size;
    size_t stride;
    const uint64_t *planes = planes_of_head(h, QUERY, of_query, &stride);
    bitm_code_rows_copy(&h->queries, of_query, planes, stride, h->n_tokens, head_size);
    planes = planes_of_head(h, KEY, of_key, &stride);
    bitm_code_rows_copy(&h->keys, of_key, planes, stride, h->n_tokens, head_size);
    bitm_code_rows_weigh(&h->keys, of_key, h->w->backend->kernels->packing[score_product(layer)]);
    if (h->keys.are_weights && !bitm_is_sign(of_query))
        bitm_code_rows_sum(&h->queries, h->query_sums);
    h->scales_steps = h->keys.are_weights && can_scale_steps(h);
}

/* With bases: sums of values are wanted, too. */
static void open_values(head *h, bool with_bases)
{
    const bitm_file_quantizer *of_value = h->w->layer->quantize_value;
    const uint32_t head_size = h->w->backend->network->config->head_size;
    size_t stride;
    const uint64_t *planes = planes_of_head(h, VALUE, of_value, &stride);
    bitm_code_rows_transpose(&h->values, of_value, planes, stride, head_size, h->n_tokens);
    bitm_code_rows_weigh(&h->values, of_value,
                         h->w->backend->kernels->packing[BITM_OP_gemm_w1planes]);
    if (with_bases) bitm_code_rows_sum(&h->values, h->value_sums);
}

/* outputs [n_rows, stride] = products of rows of codes with all weights, times row_scale and
 * token_step.  Rows are [planes, words] each. */
static void multiply_rows(const head *h, bitm_op op, const bitm_code_rows *weights,
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
static void integer_products(const head *h, size_t i, uint32_t n, float scale)
{
    const bitm_backend *backend = h->w->backend;
    const uint32_t head_size = backend->network->config->head_size, words = (head_size + 63) / 64;
    const float *query_step = backend->attention.step[QUERY] + h->first + i;
    const float *key_step = backend->attention.step[KEY] + h->first;
    const size_t n_tokens = h->n_tokens;
    bitm_planes query = h->queries.planes;
    query.bits += i * query.n_planes * words;
    if (h->keys.are_weights) {
        float steps[ROWS];
        for (uint32_t r = 0; r < n; r++)
            steps[r] = h->scales_steps ? query_step[r] * scale : query_step[r];
        multiply_rows(h, score_product(h->w->layer), &h->keys, &query, h->query_sums + i, n,
                      key_step, steps, h->scores, n_tokens);
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
static void add_low_rank(const head *h, size_t i, float *scores)
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

/* scores [n, S] = probabilities of rows i to i + n before their quantizer, times sums [n]. */
static void find_weights(const head *h, size_t i, uint32_t n, float sums[ROWS])
{
    const work *w = h->w;
    const bitm_backend *backend = w->backend;
    const bitm_file_config *config = backend->network->config;
    const size_t stride = backend->network->attention_size, n_tokens = h->n_tokens;
    const size_t place = h->first * stride + h->place;
    const bool scales_last = !w->integer_scores || config->score_rank > 0;
    if (w->integer_scores) integer_products(h, i, n, scales_last ? 1.0F : config->score_scale);
    for (size_t r = 0; r < n; r++) {
        float *scores = h->scores + r * n_tokens;
        if (!w->integer_scores)
            float_products(backend, w->operands[QUERY] + place + (i + r) * stride,
                           w->operands[KEY] + place, stride, h->n_tokens, config->head_size,
                           scores);
        if (config->score_rank > 0) add_low_rank(h, i + r, scores);
        for (size_t j = 0; scales_last && j < n_tokens; j++)
            scores[j] *= config->score_scale;
        sums[r] = config->attention_normalizer == BITM_NORMALIZER_SOFTMAX
                      ? backend->kernels->exp_sum(scores, h->n_tokens)
                      : 1.0F;
    }
}

static void divide_scores(float *scores, size_t n_tokens, float sum)
{
    for (size_t j = 0; sum != 1.0F && j < n_tokens; j++)
        scores[j] /= sum;
}

/* ---- Statistics of probabilities ---- */

static float *extremes_of(const bitm_backend *backend, size_t sequence, size_t number)
{
    return backend->attention.extremes +
           (sequence * backend->network->config->n_heads + number) * 2;
}

/* The extremes of one head's probabilities. */
static void extremes_task(void *context, uint32_t task, uint32_t worker)
{
    const work *w = context;
    head h = open_head(w, task, worker);
    const bitm_file_config *config = w->backend->network->config;
    bitm_quantization quantization = bitm_quantizer_begin(w->layer->quantize_probabilities, NULL);
    float *extremes = extremes_of(w->backend, h.sequence, h.number);
    if (w->integer_scores) open_queries_and_keys(&h);
    for (uint32_t i = 0; i < h.n_tokens; i += ROWS) {
        const uint32_t n = h.n_tokens - i < ROWS ? h.n_tokens - i : ROWS;
        float sums[ROWS];
        find_weights(&h, i, n, sums);
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
static void join_heads(const work *w)
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
static bool has_bases(const head *h, float step, float base)
{
    const bitm_attention_buffers *buffers = &h->w->backend->attention;
    return base != 0.0F || buffers->base[VALUE][h->first] != 0.0F ||
           !(step * buffers->step[VALUE][h->first] > 0.0F);
}

/* With p = step_p * code_p + base_p and v = step_v * code_v + base_v:
 * sum of p v = step_p step_v (code_p . code_v) + base_p step_v (sum of code_v) + base_v (sum of p).
 * Of n rows of probabilities, whose codes have the sums code_sum: context [n, A]. */
static void integer_context(const head *h, float step, float base, bool with_bases,
                            const int32_t *code_sum, uint32_t n, float *context)
{
    const work *w = h->w;
    const bitm_backend *backend = w->backend;
    const bitm_attention_buffers *buffers = &backend->attention;
    const size_t stride = backend->network->attention_size;
    const uint32_t head_size = backend->network->config->head_size;
    const uint32_t words = (h->n_tokens + 63) / 64;
    const float value_step = buffers->step[VALUE][h->first];
    const float value_base = buffers->base[VALUE][h->first];
    bitm_planes p = bitm_planes_of(w->layer->quantize_probabilities, h->probabilities);
    if (h->values.are_weights) {
        float steps[ROWS];
        for (uint32_t r = 0; r < n; r++)
            steps[r] = step * value_step;
        multiply_rows(h, BITM_OP_gemm_w1planes, &h->values, &p, code_sum, n, backend->network->ones,
                      steps, context, stride);
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

static void float_context(const head *h, const float *weights, float *context)
{
    const bitm_backend *backend = h->w->backend;
    size_t stride = backend->network->attention_size, n = backend->network->config->head_size;
    const float *value = h->w->operands[VALUE] + h->first * stride + h->place;
    memset(context, 0, n * sizeof *context);
    for (size_t j = 0; j < h->n_tokens; j++, value += stride)
        for (size_t d = 0; d < n; d++)
            context[d] = fmaf(weights[j], value[d], context[d]);
}

/* Adds to every component the sum over j of p_j * value_term_j. */
static void add_value_term(const head *h, const float *weights, float *context)
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
static int32_t quantize_probabilities(const head *h, float *scores, float sum,
                                      bitm_quantization quantization, float step, float base,
                                      uint64_t *planes)
{
    const work *w = h->w;
    const bitm_kernel_table *kernels = w->backend->kernels;
    const uint32_t n = h->n_tokens;
    int32_t code_sum = 0;
    if (!bitm_quantization_divide(&quantization, sum)) divide_scores(scores, n, sum);
    if (w->integer_context)
        code_sum = kernels->quantize_planes(&quantization, scores, n,
                                            n_planes(w->layer->quantize_probabilities), planes);
    if (w->integer_context && !w->backend->network->config->value_term) return code_sum;
    (void)kernels->quantize(&quantization, scores, n, h->codes);
    for (size_t j = 0; j < n; j++)
        scores[j] = fmaf(step, (float)h->codes[j], base);
    return code_sum;
}

static void general_task(void *argument, uint32_t task, uint32_t worker)
{
    const work *w = argument;
    const bitm_network *network = w->backend->network;
    const bitm_file_quantizer *quantizer = w->layer->quantize_probabilities;
    const size_t stride = network->attention_size;
    bitm_quantization quantization = {0};
    float step = 1.0F, base = 0.0F; /* of probabilities, as quantization for all rows of the head */
    head h = open_head(w, task, worker);
    const size_t row_words = n_planes(quantizer) * (((size_t)h.n_tokens + 63) / 64);
    const bool uses_values = !w->integer_context || network->config->value_term;
    if (quantizer != NULL) {
        quantization = bitm_quantizer_begin(quantizer, NULL);
        bitm_quantizer_finish(quantizer, extremes_of(w->backend, h.sequence, h.number),
                              &quantization, &step, &base);
    }
    const bool with_bases = w->integer_context && has_bases(&h, step, base);
    if (w->integer_scores) open_queries_and_keys(&h);
    if (w->integer_context) open_values(&h, with_bases);
    for (uint32_t i = 0; i < h.n_tokens; i += ROWS) {
        const uint32_t n = h.n_tokens - i < ROWS ? h.n_tokens - i : ROWS;
        float sums[ROWS], *context = w->context + (h.first + i) * stride + h.place;
        int32_t code_sum[ROWS] = {0};
        find_weights(&h, i, n, sums);
        for (size_t r = 0; r < n; r++) {
            float *scores = h.scores + r * h.n_tokens;
            if (quantizer == NULL) {
                divide_scores(scores, h.n_tokens, sums[r]);
                continue;
            }
            code_sum[r] = quantize_probabilities(&h, scores, sums[r], quantization, step, base,
                                                 h.probabilities + r * row_words);
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
static void quantize_operand(const work *w, int operand, const bitm_file_quantizer *quantizer,
                             bool is_integer, float *x)
{
    bitm_backend *backend = w->backend;
    const bitm_attention_buffers *buffers = &backend->attention;
    if (quantizer == NULL) return;
    bitm_quantize_heads(backend, quantizer, x, w->spans->first[w->spans->n],
                        backend->network->config->n_heads, backend->network->attention_size,
                        w->spans, is_integer ? buffers->planes[operand] : NULL,
                        buffers->step[operand], buffers->base[operand]);
}

static void find_float_terms(const work *w, const float *x)
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
    work w = {.backend = backend,
              .layer = layer,
              .spans = spans,
              .operands = {query, key, value},
              .integer_scores = has_integer_scores(layer),
              .integer_context = has_integer_context(layer),
              .room = room_of(backend),
              .context = context};
    quantize_operand(&w, QUERY, layer->quantize_query, w.integer_scores, query);
    quantize_operand(&w, KEY, layer->quantize_key, w.integer_scores, key);
    quantize_operand(&w, VALUE, of_value, w.integer_context, value);
    find_float_terms(&w, x);
    if (of_probabilities != NULL && of_probabilities->scope != BITM_SCOPE_STATIC) {
        bitm_pool_run(backend->pool, n_tasks, extremes_task, &w);
        if (of_probabilities->scope == BITM_SCOPE_SEQUENCE) join_heads(&w);
    }
    bitm_pool_run(backend->pool, n_tasks, general_task, &w);
}
