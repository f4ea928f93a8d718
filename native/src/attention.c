#include "attention.h"

#include <math.h>
#include <string.h>

#include "inputs.h"

enum { QUERY, KEY, VALUE, N_OPERANDS };

/* ---- Memory ---- */

static bool is_plain(const bitm_network *network, const bitm_layer *layer)
{
    return layer->quantize_query == NULL && layer->quantize_key == NULL &&
           layer->quantize_value == NULL && layer->quantize_probabilities == NULL &&
           network->config->score_rank == 0 && network->config->value_term == 0;
}

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

uint64_t bitm_attention_ops(const bitm_network *network, const bitm_layer *layer)
{
    if (is_plain(network, layer)) return OP(attention);
    const bitm_file_quantizer *quantizers[] = {layer->quantize_query, layer->quantize_key,
                                               layer->quantize_value,
                                               layer->quantize_probabilities};
    uint64_t ops = has_integer_scores(layer) ? OP(dot_planes) | OP(pack_planes) : OP(gemm_f32);
    if (has_integer_context(layer)) ops |= OP(dot_planes) | OP(pack_planes);
    if (network->config->attention_normalizer == BITM_NORMALIZER_SOFTMAX) ops |= OP(exp_sum);
    for (size_t i = 0; i < sizeof quantizers / sizeof quantizers[0]; i++) {
        if (quantizers[i] == NULL) continue;
        ops |= OP(quantize);
        if (quantizers[i]->scope != BITM_SCOPE_STATIC) ops |= OP(extremes);
    }
    return ops;
}

static uint32_t n_planes(const bitm_file_quantizer *quantizer)
{
    const int32_t *weights;
    return quantizer != NULL ? bitm_quantizer_planes(quantizer, &weights) : 0;
}

/* One thread's room for one head of one sequence, in 64-bit words from the start of its part. */
typedef struct head_room {
    size_t keys;          /* [max_length, planes, words of a head] */
    size_t values;        /* [head_size, planes, words of a sequence] */
    size_t queries;       /* as keys */
    size_t probabilities; /* [planes, words of a sequence] */
    size_t codes;         /* [max_length] int16: probabilities of one row */
    size_t ones;          /* [words of a head, or of a sequence] */
    size_t query_sums;    /* [max_length] int32: sums of the codes */
    size_t key_sums;
    size_t value_sums; /* [head_size] */
    size_t dots;       /* [max_length] or [head_size] int32: of one row with keys, with values */
    size_t end;
} head_room;

static size_t larger_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

static head_room room_of(const bitm_network *network, uint32_t max_length)
{
    const bitm_file_config *config = network->config;
    size_t head_words = ((size_t)config->head_size + 63) / 64;
    size_t row_words = ((size_t)max_length + 63) / 64;
    size_t keys = 0, values = 0, queries = 0, probabilities = 0;
    for (uint32_t n = 0; n < config->n_layers; n++) {
        const bitm_layer *layer = &network->layers[n];
        keys = larger_size(keys, n_planes(layer->quantize_key));
        values = larger_size(values, n_planes(layer->quantize_value));
        queries = larger_size(queries, n_planes(layer->quantize_query));
        probabilities = larger_size(probabilities, n_planes(layer->quantize_probabilities));
    }
    head_room room = {0};
    room.values = room.keys + keys * head_words * max_length;
    room.queries = room.values + values * row_words * config->head_size;
    room.probabilities = room.queries + queries * head_words * max_length;
    room.codes = room.probabilities + probabilities * row_words;
    room.ones = room.codes + ((size_t)max_length + 3) / 4;
    room.query_sums = room.ones + larger_size(head_words, row_words);
    room.key_sums = room.query_sums + ((size_t)max_length + 1) / 2;
    room.value_sums = room.key_sums + ((size_t)max_length + 1) / 2;
    room.dots = room.value_sums + ((size_t)config->head_size + 1) / 2;
    room.end = room.dots + (larger_size(max_length, config->head_size) + 1) / 2;
    return room;
}

void bitm_attention_layout(bitm_backend *backend, bitm_arena *arena)
{
    const bitm_network *network = backend->network;
    const bitm_file_config *config = network->config;
    bitm_attention_buffers *buffers = &backend->attention;
    uint64_t n_tokens = backend->max_tokens, n_threads = backend->pool.n_threads;
    buffers->n_scores = bitm_attention_room(backend->max_length, config->head_size);
    buffers->scores = bitm_arena_take(arena, n_threads * buffers->n_scores, sizeof(float));
    bool plain = true;
    for (uint32_t n = 0; n < config->n_layers; n++)
        plain = plain && is_plain(network, &network->layers[n]);
    if (plain) return;
    for (int i = 0; i < N_OPERANDS; i++) {
        buffers->codes[i] =
            bitm_arena_take(arena, n_tokens, network->attention_size * sizeof(int16_t));
        buffers->step[i] = bitm_arena_take(arena, n_tokens, sizeof(float));
        buffers->base[i] = bitm_arena_take(arena, n_tokens, sizeof(float));
    }
    for (int i = 0; i < 4; i++)
        buffers->low_rank[i] = bitm_arena_take(arena, n_tokens, config->score_rank * sizeof(float));
    buffers->value_term = bitm_arena_take(arena, n_tokens, sizeof(float));
    buffers->extremes = bitm_arena_take(arena, n_tokens * config->n_heads, 2 * sizeof(float));
    buffers->plane_words = room_of(network, backend->max_length).end;
    buffers->planes = bitm_arena_take(arena, n_threads * buffers->plane_words, sizeof(uint64_t));
}

/* ---- One head of one sequence ---- */

/* The work of a layer. */
typedef struct work {
    bitm_backend *backend;
    const bitm_layer *layer;
    const bitm_spans *spans;
    const bitm_spans *queries;
    const float *operands[N_OPERANDS]; /* [n_queries or n_tokens, A], as quantized */
    bool integer_scores;               /* query and key are codes */
    bool integer_context;              /* so are probabilities and value, in one step a sequence */
    float *context;                    /* [n_queries, A] */
} work;

/* Rows of codes in planes: code = offset + (sum of weights[p] * bit p).  Signs of which none is 0,
 * as they nearly all are, take one plane: 1 - 2 * (bit of a negative one). */
typedef struct packed {
    bitm_planes planes;
    int32_t offset;
    uint64_t *bits;
    int32_t *sums; /* of each row's codes; of keys, times the offset of queries */
} packed;

/* One task of it. */
typedef struct head {
    const work *w;
    uint32_t sequence, number;
    uint32_t first;    /* token */
    uint32_t n_tokens; /* S */
    size_t place;      /* of the head's first component in a row of A */
    float *scores;     /* [S] */
    /* Quantized operands, in this thread's planes. */
    packed queries, keys, values;
    uint64_t *probabilities;
    const uint64_t *ones;
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
    h.scores = backend->attention.scores + worker * backend->attention.n_scores;
    return h;
}

static void place_rows(packed *rows, uint64_t *room, size_t bits, size_t sums)
{
    rows->bits = room + bits;
    rows->sums = (int32_t *)(void *)(room + sums);
}

/* Gives the head its room for quantized operands. */
static void open_room(head *h, uint32_t worker)
{
    const bitm_backend *backend = h->w->backend;
    const bitm_attention_buffers *buffers = &backend->attention;
    head_room room = room_of(backend->network, backend->max_length);
    uint64_t *words = buffers->planes + worker * buffers->plane_words;
    memset(words + room.ones, 0xFF, (room.query_sums - room.ones) * sizeof *words);
    h->ones = words + room.ones;
    place_rows(&h->queries, words, room.queries, room.query_sums);
    place_rows(&h->keys, words, room.keys, room.key_sums);
    place_rows(&h->values, words, room.values, room.value_sums);
    h->probabilities = words + room.probabilities;
    h->codes = (int16_t *)(void *)(words + room.codes);
    h->dots = (int32_t *)(void *)(words + room.dots);
}

/* Softmax attention of floats. */
static void plain_task(void *context, uint32_t task, uint32_t worker)
{
    const work *w = context;
    const bitm_network *network = w->backend->network;
    head h = open_head(w, task, worker);
    size_t stride = network->attention_size, place = h.first * stride + h.place;
    uint32_t first = w->queries->first[h.sequence];
    uint32_t n_queries = w->queries->first[h.sequence + 1] - first;
    if (n_queries == 0) return;
    bitm_attention attention = {
        .query = w->operands[QUERY] + first * stride + h.place,
        .key = w->operands[KEY] + place,
        .value = w->operands[VALUE] + place,
        .stride = stride,
        .context = w->context + first * stride + h.place,
        .context_stride = stride,
        .n_tokens = h.n_tokens,
        .head_size = network->config->head_size,
        .score_scale = network->config->score_scale,
        .scores = h.scores,
    };
    w->backend->kernels->attention(&attention, 0, n_queries);
}

/* ---- Scores ---- */

static bitm_planes planes_of(const bitm_file_quantizer *quantizer, const uint64_t *bits)
{
    bitm_planes planes = {.bits = bits};
    planes.n_planes = bitm_quantizer_planes(quantizer, &planes.weights);
    return planes;
}

/* The codes of an operand's token, of this head. */
static const int16_t *codes_of(const head *h, int operand, size_t token)
{
    const bitm_backend *backend = h->w->backend;
    return backend->attention.codes[operand] +
           (h->first + token) * backend->network->attention_size + h->place;
}

/* Whether all of n codes of a plane are 1. */
static bool is_full(const uint64_t *plane, uint32_t n)
{
    for (; n >= 64; n -= 64, plane++)
        if (*plane != UINT64_MAX) return false;
    return n == 0 || *plane == (UINT64_C(1) << n) - 1;
}

/* Packs n_rows rows of n codes, and sums them: their products with ones.  Codes of a row are
 * `stride` apart, of rows `row_stride`. */
static void pack_rows(const head *h, const bitm_file_quantizer *quantizer, const int16_t *codes,
                      size_t row_stride, size_t stride, uint32_t n_rows, uint32_t n, packed *rows)
{
    static const int32_t one = 1, of_negative = -2;
    const bitm_kernel_table *kernels = h->w->backend->kernels;
    const bitm_planes ones = {.bits = h->ones, .n_planes = 1, .weights = &one};
    uint32_t words = (n + 63) / 64;
    bool has_zeros = quantizer->kind != BITM_QUANTIZER_SIGN;
    rows->offset = 0;
    rows->planes = planes_of(quantizer, rows->bits);
    size_t row_words = (size_t)rows->planes.n_planes * words;
    for (size_t j = 0; j < n_rows; j++, codes += row_stride) {
        uint64_t *row = rows->bits + j * row_words;
        kernels->pack_planes(codes, stride, n, rows->planes.n_planes, row);
        has_zeros = has_zeros || !is_full(row, n);
    }
    kernels->dot_planes(&ones, &rows->planes, words, n_rows, rows->sums);
    if (has_zeros) return;
    /* Of the two planes of a sign's bits, 1 where it is not 0 and where it is negative. */
    for (size_t j = 0; j < n_rows; j++)
        for (size_t i = 0; i < words; i++)
            rows->bits[j * words + i] = rows->bits[(2 * j + 1) * words + i];
    rows->offset = 1;
    rows->planes.n_planes = 1;
    rows->planes.weights = &of_negative;
}

static void pack_queries_and_keys(head *h)
{
    const bitm_network *network = h->w->backend->network;
    uint32_t head_size = network->config->head_size;
    size_t stride = network->attention_size;
    pack_rows(h, h->w->layer->quantize_query, codes_of(h, QUERY, 0), stride, 1, h->n_tokens,
              head_size, &h->queries);
    pack_rows(h, h->w->layer->quantize_key, codes_of(h, KEY, 0), stride, 1, h->n_tokens, head_size,
              &h->keys);
    for (size_t j = 0; j < h->n_tokens; j++)
        h->keys.sums[j] *= h->queries.offset;
}

/* q_i . k_j of integers, times their steps, times scale. */
static void integer_products(const head *h, size_t i, float scale)
{
    const bitm_backend *backend = h->w->backend;
    const bitm_attention_buffers *buffers = &backend->attention;
    uint32_t head_size = backend->network->config->head_size, words = (head_size + 63) / 64;
    bitm_planes query = h->queries.planes;
    query.bits += i * query.n_planes * words;
    backend->kernels->dot_planes(&query, &h->keys.planes, words, h->n_tokens, h->dots);
    /* With q = a + x and k = b + y: q . k = x . y + a (sum of k) + b (sum of q) - a b n. */
    int32_t a = h->queries.offset, b = h->keys.offset;
    int32_t of_query = b * (h->queries.sums[i] - a * (int32_t)head_size);
    float step = buffers->step[QUERY][h->first + i];
    const float *key_step = buffers->step[KEY] + h->first;
    const int32_t *dots = h->dots, *of_keys = h->keys.sums;
    float *scores = h->scores;
    for (size_t j = 0; j < h->n_tokens; j++)
        scores[j] = (float)(dots[j] + of_keys[j] + of_query) * (step * key_step[j]) * scale;
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
static void add_low_rank(const head *h, size_t i)
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
            h->scores[j] = fmaf(query_m[r], key_p[r], h->scores[j]);
            h->scores[j] = fmaf(query_p[r], key_m[r], h->scores[j]);
            h->scores[j] = fmaf(query_p[r], key_p[r], h->scores[j]);
        }
    }
}

/* scores [S] = probabilities of row i before their quantizer, times the number returned. */
static float find_weights(const head *h, size_t i)
{
    const work *w = h->w;
    const bitm_backend *backend = w->backend;
    const bitm_file_config *config = backend->network->config;
    size_t stride = backend->network->attention_size, place = h->first * stride + h->place;
    const bool scales_last = !w->integer_scores || config->score_rank > 0;
    if (w->integer_scores)
        integer_products(h, i, scales_last ? 1.0F : config->score_scale);
    else
        float_products(backend, w->operands[QUERY] + place + i * stride, w->operands[KEY] + place,
                       stride, h->n_tokens, config->head_size, h->scores);
    if (config->score_rank > 0) add_low_rank(h, i);
    for (size_t j = 0; scales_last && j < h->n_tokens; j++)
        h->scores[j] *= config->score_scale;
    if (config->attention_normalizer != BITM_NORMALIZER_SOFTMAX) return 1.0F;
    return backend->kernels->exp_sum(h->scores, h->n_tokens);
}

static void divide_scores(const head *h, float sum)
{
    for (size_t j = 0; sum != 1.0F && j < h->n_tokens; j++)
        h->scores[j] /= sum;
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
    open_room(&h, worker);
    const bitm_file_config *config = w->backend->network->config;
    bitm_quantization quantization = bitm_quantizer_begin(w->layer->quantize_probabilities, NULL);
    float *extremes = extremes_of(w->backend, h.sequence, h.number);
    if (w->integer_scores) pack_queries_and_keys(&h);
    for (size_t i = 0; i < h.n_tokens; i++) {
        float row[2];
        divide_scores(&h, find_weights(&h, i));
        w->backend->kernels->extremes(&quantization, h.scores, h.n_tokens, row);
        extremes[0] = i == 0 || row[0] < extremes[0] ? row[0] : extremes[0];
        extremes[1] = i == 0 || row[1] > extremes[1] ? row[1] : extremes[1];
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

/* The values' codes of every component, over the sequence. */
static void pack_values(head *h)
{
    const bitm_network *network = h->w->backend->network;
    pack_rows(h, h->w->layer->quantize_value, codes_of(h, VALUE, 0), 1, network->attention_size,
              network->config->head_size, h->n_tokens, &h->values);
}

/* With p = step_p * code_p + base_p and v = step_v * code_v + base_v:
 * sum of p v = step_p step_v (code_p . code_v) + base_p step_v (sum of code_v) + base_v (sum of p).
 */
static void integer_context(const head *h, float step, float base, int32_t code_sum, float *context)
{
    const work *w = h->w;
    const bitm_backend *backend = w->backend;
    const bitm_attention_buffers *buffers = &backend->attention;
    uint32_t head_size = backend->network->config->head_size, words = (h->n_tokens + 63) / 64;
    bitm_planes p = planes_of(w->layer->quantize_probabilities, h->probabilities);
    backend->kernels->pack_planes(h->codes, 1, h->n_tokens, p.n_planes, h->probabilities);
    float value_step = buffers->step[VALUE][h->first], value_base = buffers->base[VALUE][h->first];
    backend->kernels->dot_planes(&p, &h->values.planes, words, head_size, h->dots);
    int32_t offset = h->values.offset * code_sum;
    for (size_t d = 0; d < head_size; d++)
        context[d] = (float)(h->dots[d] + offset) * (step * value_step);
    /* Products of 0 would change nothing, not even the sign of a 0. */
    if (base == 0.0F && value_base == 0.0F && step * value_step > 0.0F) return;
    float sum = step * (float)code_sum + base * (float)h->n_tokens;
    for (size_t d = 0; d < head_size; d++) {
        float c = fmaf(base * value_step, (float)h->values.sums[d], context[d]);
        context[d] = fmaf(value_base, sum, c);
    }
}

static void float_context(const head *h, float *context)
{
    const bitm_backend *backend = h->w->backend;
    size_t stride = backend->network->attention_size, n = backend->network->config->head_size;
    const float *value = h->w->operands[VALUE] + h->first * stride + h->place;
    memset(context, 0, n * sizeof *context);
    for (size_t j = 0; j < h->n_tokens; j++, value += stride)
        for (size_t d = 0; d < n; d++)
            context[d] = fmaf(h->scores[j], value[d], context[d]);
}

/* Adds to every component the sum over j of p_j * value_term_j. */
static void add_value_term(const head *h, float *context)
{
    const bitm_backend *backend = h->w->backend;
    const float *term = backend->attention.value_term + h->first;
    float sum = 0.0F;
    for (size_t j = 0; j < h->n_tokens; j++)
        sum = fmaf(h->scores[j], term[j], sum);
    for (size_t d = 0; d < backend->network->config->head_size; d++)
        context[d] += sum;
}

/* The codes of the probabilities of row i; returns their sum.  A threshold of weights is found
 * sooner than all of them are divided. */
static int32_t quantize_probabilities(const head *h, size_t i, bitm_quantization quantization)
{
    float sum = find_weights(h, i);
    if (!bitm_quantization_divide(&quantization, sum)) divide_scores(h, sum);
    return h->w->backend->kernels->quantize(&quantization, h->scores, h->n_tokens, h->codes);
}

static void general_task(void *argument, uint32_t task, uint32_t worker)
{
    const work *w = argument;
    const bitm_network *network = w->backend->network;
    const bitm_file_quantizer *quantizer = w->layer->quantize_probabilities;
    bitm_quantization quantization = {0};
    float step = 1.0F, base = 0.0F; /* of probabilities, as quantization for all rows of the head */
    head h = open_head(w, task, worker);
    open_room(&h, worker);
    if (quantizer != NULL) {
        quantization = bitm_quantizer_begin(quantizer, NULL);
        bitm_quantizer_finish(quantizer, extremes_of(w->backend, h.sequence, h.number),
                              &quantization, &step, &base);
    }
    if (w->integer_scores) pack_queries_and_keys(&h);
    if (w->integer_context) pack_values(&h);
    for (size_t i = 0; i < h.n_tokens; i++) {
        float *context = w->context + (h.first + i) * network->attention_size + h.place;
        if (quantizer == NULL) {
            divide_scores(&h, find_weights(&h, i));
            float_context(&h, context);
        } else {
            int32_t code_sum = quantize_probabilities(&h, i, quantization);
            bool uses_values = !w->integer_context || network->config->value_term;
            for (size_t j = 0; uses_values && j < h.n_tokens; j++)
                h.scores[j] = fmaf(step, (float)h.codes[j], base);
            if (w->integer_context)
                integer_context(&h, step, base, code_sum, context);
            else
                float_context(&h, context);
        }
        if (network->config->value_term) add_value_term(&h, context);
    }
}

/* ---- A layer ---- */

/* Quantizes an operand: codes for integer products, or otherwise the values that they stand for. */
static void quantize_operand(const work *w, int operand, const bitm_file_quantizer *quantizer,
                             bool is_integer, float *x)
{
    bitm_backend *backend = w->backend;
    const bitm_attention_buffers *buffers = &backend->attention;
    uint32_t n_tokens = w->spans->first[w->spans->n], n = backend->network->attention_size;
    if (quantizer == NULL) return;
    bitm_quantize_tokens(backend, quantizer, x, n_tokens, n, w->spans, buffers->codes[operand],
                         buffers->step[operand], buffers->base[operand]);
    for (size_t t = 0; !is_integer && t < n_tokens; t++)
        for (size_t i = 0; i < n; i++)
            x[t * n + i] =
                fmaf(buffers->step[operand][t], (float)buffers->codes[operand][t * n + i],
                     buffers->base[operand][t]);
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
    const bitm_file_quantizer *of_value = layer->quantize_value;
    const bitm_file_quantizer *of_probabilities = layer->quantize_probabilities;
    uint32_t n_tasks = spans->n * backend->network->config->n_heads;
    work w = {.backend = backend,
              .layer = layer,
              .spans = spans,
              .queries = queries,
              .operands = {query, key, value},
              .integer_scores = has_integer_scores(layer),
              .integer_context = has_integer_context(layer),
              .context = context};
    if (is_plain(backend->network, layer)) {
        bitm_pool_run(&backend->pool, n_tasks, plain_task, &w);
        return;
    }
    quantize_operand(&w, QUERY, layer->quantize_query, w.integer_scores, query);
    quantize_operand(&w, KEY, layer->quantize_key, w.integer_scores, key);
    quantize_operand(&w, VALUE, of_value, w.integer_context, value);
    find_float_terms(&w, x);
    if (of_probabilities != NULL && of_probabilities->scope != BITM_SCOPE_STATIC) {
        bitm_pool_run(&backend->pool, n_tasks, extremes_task, &w);
        if (of_probabilities->scope == BITM_SCOPE_SEQUENCE) join_heads(&w);
    }
    bitm_pool_run(&backend->pool, n_tasks, general_task, &w);
}
