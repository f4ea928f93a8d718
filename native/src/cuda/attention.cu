/* Attention: of floats, of quantized operands, and with query, key and value in the same kernel. */
#include <string.h>

#include "attend_wgmma.cuh"
#include "attention_bytes.cuh"
#include "attention_general.cuh"
#include "attention_signs.cuh"
#include "forward.cuh"

namespace bitm {

bitm_attention_form attention_form(const bitm_device_model *model, const Layer &layer,
                                   uint32_t activations)
{
    return bitm_attention_form_of(&model->network, &model->network.layers[&layer - model->layers],
                                  (bitm_activations)activations);
}

static bitm_attention_form form_of(const Work &w, const Layer &layer)
{
    return attention_form(w.session->model, layer, w.session->limits.activations);
}

static size_t general_shared_bytes(uint32_t max_length)
{
    return 4 * sizeof(float) + (size_t)max_length * (sizeof(float) + sizeof(int16_t));
}

bool attention_shape(const bitm_device_model *model, uint32_t max_length, uint32_t n_blocks,
                     AttentionShape *shape)
{
    static const AttentionShape shapes[] = {
        {64, 64, 0}, {32, 64, 0}, {16, 64, 0}, {16, 16, 0}, {4, 16, 0}};
    enum { FEW_BLOCKS = 256 };
    uint32_t head_size = model->network.config->head_size;
    bool found = false;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        AttentionShape s = shapes[i];
        s.shared_bytes = attention_shared_bytes(head_size, s.n_queries, s.n_keys, max_length);
        if (s.shared_bytes > model->shared_bytes) continue;
        *shape = s;
        found = true;
        /* Smaller blocks where there would be too few of them. */
        if (n_blocks == 0 || n_blocks * 64 / s.n_queries >= FEW_BLOCKS || s.n_queries <= 16) break;
    }
    return found && general_shared_bytes(max_length) <= model->shared_bytes;
}

/* encoding: what the context becomes in the place of floats; NULL: floats. */
static Attention attention_of(const Work &w, const Encoding *encoding)
{
    const bitm_device_model *model = w.session->model;
    const Buffers &b = w.session->buffers;
    Attention a = {};
    a.query = b.query;
    a.key = b.key;
    a.value = b.value;
    a.context = b.context;
    a.stride = model->network.attention_size;
    a.head_size = model->network.config->head_size;
    a.score_scale = model->network.config->score_scale;
    a.first = w.batch->first;
    a.encodes = encoding != NULL;
    if (encoding != NULL) a.encoding = *encoding;
    return a;
}

static void plain_attention(const Work &w, const Encoding *encoding)
{
    const bitm_device_model *model = w.session->model;
    const bitm_file_config *config = model->network.config;
    const Batch &batch = *w.batch;
    Attention a = attention_of(w, encoding);
    uint32_t n_blocks = ceil_div(batch.max_length, BLOCK_64) * config->n_heads * batch.n_sequences;
    size_t shared = attention64_shared_bytes(batch.max_length);
    dim3 grid(ceil_div(batch.max_length, BLOCK_64), config->n_heads, batch.n_sequences);
    if (config->head_size == HEAD_64 && model->tensor_attention) {
        BITM_LAUNCH(attention_tensor_kernel, grid, THREADS_64, attention_tensor_shared_bytes(),
                    w.session->stream, a);
        return;
    }
    if (config->head_size == HEAD_64 && shared <= model->shared_bytes) {
        BITM_LAUNCH(attention64_kernel, grid, THREADS_64, shared, w.session->stream, a);
        return;
    }
    AttentionShape shape = {};
    (void)attention_shape(model, batch.max_length, n_blocks, &shape);
    a.n_queries = shape.n_queries;
    a.n_keys = shape.n_keys;
    a.score_stride = score_stride(batch.max_length, shape.n_keys);
    grid.x = ceil_div(batch.max_length, shape.n_queries);
    if (ceil_div(config->head_size, LANES) == 4)
        BITM_LAUNCH(attention_kernel<4>, grid, ATTENTION_THREADS, shape.shared_bytes,
                    w.session->stream, a);
    else
        BITM_LAUNCH(attention_kernel<0>, grid, ATTENTION_THREADS, shape.shared_bytes,
                    w.session->stream, a);
}

static void byte_attention(const Work &w)
{
    enum { ENOUGH_BLOCKS = 256 };
    const bitm_device_model *model = w.session->model;
    const Batch &batch = *w.batch;
    const Buffers &b = w.session->buffers;
    cudaStream_t stream = w.session->stream;
    uint32_t n_heads = model->network.config->n_heads;
    size_t shared = attention_bytes64_shared(batch.max_length);
    if (model->network.config->head_size == HEAD_64 && model->has_tensor_cores &&
        shared <= model->shared_bytes) {
        uint32_t n = ceil_div(batch.max_length, BLOCK_64);
        uint32_t parts = ceil_div(ENOUGH_BLOCKS, n_heads * batch.n_sequences);
        dim3 blocks(parts < n ? parts : n, n_heads, batch.n_sequences);
        BITM_LAUNCH(attention_bytes64_kernel, blocks, THREADS_64, shared, stream,
                    attention_of(w, NULL));
        return;
    }
    ByteAttention a = {};
    a.attention = attention_of(w, NULL);
    a.keys = b.key_codes;
    a.values = b.value_codes;
    a.key_step = b.key_step;
    a.value_step = b.value;
    a.n_heads = n_heads;
    a.n_pieces = pieces_of_bytes(a.attention.head_size);
    dim3 heads(a.n_heads, batch.n_sequences);
    dim3 grid(ceil_div(batch.max_length, BYTES_BLOCK), a.n_heads, batch.n_sequences);
    BITM_LAUNCH(attention_codes_kernel, heads, BYTES_THREADS, 0, stream, a);
    BITM_LAUNCH(attention_bytes_kernel, grid, BYTES_THREADS, attention_bytes_shared(a.n_pieces),
                stream, a);
}

/* How query, key or value is encoded, but for what it becomes. */
static Encoding operand_encoding(const Work &w, const Quantizer &quantizer, int operand,
                                 const float *x)
{
    const Buffers &b = w.session->buffers;
    Encoding e = {};
    e.x = x;
    e.n_tokens = w.n_tokens;
    e.n = w.session->model->network.attention_size;
    e.quantizer = quantizer;
    e.step = b.operand_step[operand];
    e.base = b.operand_base[operand];
    return e;
}

static void quantize_operand(const Work &w, const Quantizer &quantizer, int operand, float *x)
{
    if (quantizer.kind == KIND_NONE) return;
    Encoding e = operand_encoding(w, quantizer, operand, x);
    find_extremes(w, &e);
    BITM_LAUNCH(encode_operand_kernel, ceil_div(w.n_tokens, WARPS_A_BLOCK), QUANTIZE_THREADS, 0,
                w.session->stream, e, w.session->buffers.codes[operand], x);
}

static void float_terms(const Work &w, const Layer &layer, const float *x)
{
    const Buffers &b = w.session->buffers;
    if (w.session->model->network.config->score_rank > 0) {
        linear(w, layer.query_p, x, 0, b.low_rank[0]);
        linear(w, layer.query_m, x, 0, b.low_rank[1]);
        linear(w, layer.key_p, x, 0, b.low_rank[2]);
        linear(w, layer.key_m, x, 0, b.low_rank[3]);
    }
    if (w.session->model->network.config->value_term)
        linear(w, layer.value_term, x, 0, b.value_term);
}

static void general_attention(const Work &w, const Layer &layer, const float *x)
{
    const bitm_device_model *model = w.session->model;
    const bitm_file_config *config = model->network.config;
    const Buffers &b = w.session->buffers;
    const Batch &batch = *w.batch;
    cudaStream_t stream = w.session->stream;
    quantize_operand(w, layer.quantize_query, QUERY, b.query);
    quantize_operand(w, layer.quantize_key, KEY, b.key);
    quantize_operand(w, layer.quantize_value, VALUE, b.value);
    float_terms(w, layer, x);
    GeneralAttention a = {};
    a.query = b.query;
    a.key = b.key;
    a.value = b.value;
    a.query_codes = b.codes[QUERY];
    a.key_codes = b.codes[KEY];
    a.value_codes = b.codes[VALUE];
    a.query_step = b.operand_step[QUERY];
    a.key_step = b.operand_step[KEY];
    a.value_step = b.operand_step[VALUE];
    a.value_base = b.operand_base[VALUE];
    for (int i = 0; i < LOW_RANK_TERMS; i++)
        a.low_rank[i] = b.low_rank[i];
    a.value_term = config->value_term ? b.value_term : NULL;
    a.context = b.context;
    a.stride = model->network.attention_size;
    a.n_heads = config->n_heads;
    a.head_size = config->head_size;
    a.rank = config->score_rank;
    a.score_scale = config->score_scale;
    a.softmax = config->attention_normalizer == BITM_NORMALIZER_SOFTMAX;
    a.integer_scores =
        layer.quantize_query.kind != KIND_NONE && layer.quantize_key.kind != KIND_NONE;
    a.integer_context = layer.quantize_probabilities.kind != KIND_NONE &&
                        layer.quantize_value.kind != KIND_NONE &&
                        layer.quantize_value.scope != SCOPE_TOKEN;
    a.probabilities = layer.quantize_probabilities;
    a.minimum_counts_zero = config->flags & BITM_FLAG_PROBABILITY_MIN_ZERO;
    a.first = batch.first;
    a.sequence_of = batch.sequence_of;
    a.extremes = b.probability_extremes;
    dim3 grid(batch.n_tokens, config->n_heads);
    size_t shared = general_shared_bytes(batch.max_length);
    if (a.probabilities.kind != KIND_NONE && a.probabilities.scope != SCOPE_STATIC) {
        BITM_LAUNCH(probability_extremes_kernel, grid, GENERAL_THREADS, shared, stream, a);
        BITM_LAUNCH(join_probability_extremes_kernel, batch.n_sequences, WARP, 0, stream, a);
    }
    BITM_LAUNCH(general_attention_kernel, grid, GENERAL_THREADS, shared, stream, a);
}

/* Whether attention_signs_kernel computes a layer's attention.  Quantizers of these kinds are
 * static, do not clip, and have steps above 0 (SPEC.md 3.4). */
static bool can_attend_signs(const Work &w, const Layer &layer)
{
    const bitm_device_model *model = w.session->model;
    const bitm_file_config *config = model->network.config;
    const Quantizer &p = layer.quantize_probabilities;
    return layer.quantize_query.kind == KIND_SIGN && layer.quantize_key.kind == KIND_SIGN &&
           layer.quantize_value.kind == KIND_SIGN && p.kind == KIND_INT && p.lo == 0.0F &&
           p.hi == 1.0F && config->score_rank == 0 && !config->value_term &&
           config->attention_normalizer == BITM_NORMALIZER_SOFTMAX &&
           config->head_size == SIGNS_HEAD &&
           signs_shared_bytes(w.batch->max_length) <= model->shared_bytes;
}

/* Whether attention can write its context as the bits of attention_output's inputs. */
static bool can_encode_context(const Work &w, const Layer &layer)
{
    const bitm_device_model *model = w.session->model;
    const Linear &next = layer.attention_output;
    return (form_of(w, layer) == BITM_ATTENTION_FLOAT || can_attend_signs(w, layer)) &&
           model->network.config->head_size == VALUE_COLUMNS && next.n_branches == 1 &&
           pieces_of_bits(next.columns) * PIECE_BITS == next.columns &&
           can_follow_in_parts(w, next);
}

const Linear *counted_after_attention(const Work &w, const Layer &layer)
{
    bool counts = can_encode_context(w, layer) && can_count(w, layer.attention_output);
    return counts ? &layer.attention_output : NULL;
}

void run_attention(const Work &w, const Layer &layer, const float *x, Inputs *context)
{
    bitm_attention_form form = form_of(w, layer);
    *context = Inputs();
    if (form == BITM_ATTENTION_GENERAL) {
        general_attention(w, layer, x);
    } else if (form == BITM_ATTENTION_I8) {
        byte_attention(w);
    } else if (!can_encode_context(w, layer)) {
        plain_attention(w, NULL);
    } else {
        Encoding encoding;
        plan_in_parts(w, layer.attention_output, context, &encoding);
        plain_attention(w, &encoding);
        sum_planes(w, encoding);
    }
}

/* Fills what attend_kernel is given but for attention; false where it cannot run. */
static bool plan_attend(const Work &w, const Layer &layer, const float *x, Inputs inputs[3],
                        Attend *a)
{
    const Linear *const linears[] = {&layer.query, &layer.key, &layer.value};
    const bitm_device_model *model = w.session->model;
    uint32_t n_groups =
        w.batch->max_length > BLOCK_64 ? ceil_div(w.batch->max_length, BLOCK_64) : 1;
    bitm_attention_form form = form_of(w, layer);
    bool any_order = form == BITM_ATTENTION_I8 || model->tensor_attention;
    if (model->has_wgmma == 0 || n_groups > (any_order ? 2u : 1u) ||
        form == BITM_ATTENTION_GENERAL || model->network.config->head_size != HEAD_64)
        return false;
    for (int i = 0; i < 3; i++)
        if (!is_plain_product(w, *linears[i])) return false;
    *a = Attend();
    a->n_groups = n_groups;
    for (int i = 0; i < 3; i++) {
        const Branch *branch = &linears[i]->branches[0];
        Product p = product_of_operand(w, *linears[i], x, inputs, i);
        if (i == 0) a->product = p;
        if (inputs[i].form != inputs[0].form || p.n_terms != a->product.n_terms ||
            memcmp(p.terms, a->product.terms, p.n_terms * sizeof p.terms[0]) != 0)
            return false;
        uint32_t set = a->n_sets;
        for (uint32_t k = 0; k < a->n_sets; k++)
            if (a->inputs[k] == p.inputs) set = k;
        if (set == a->n_sets) a->inputs[a->n_sets++] = p.inputs;
        a->linears[i] = HeadLinear{p.weights,
                                   set,
                                   p.n_nonzero,
                                   inputs[i].facts.step,
                                   inputs[i].facts.code_sum,
                                   branch->row_scale,
                                   branch->bias,
                                   branch->row_ones};
    }
    const Product &p = a->product;
    if (are_bytes(inputs[0].form) && p.n_input_pieces != p.n_weight_pieces * BYTES_PIECES)
        return false;
    a->n_weight_planes = layer.query.branches[0].n_planes;
    for (uint32_t t = 0; t < p.n_terms; t++)
        if (p.terms[t].input_plane >= a->n_input_planes)
            a->n_input_planes = p.terms[t].input_plane + 1;
    return attend_shared_bytes(*a) <= model->shared_bytes;
}

/* Few enough heads of sequences for four blocks each. */
enum { FEW_HEADS = 64, FEW_QUERIES = 16 };

template <bool BYTES> static void launch_attend(const Work &w, const Attend &a)
{
    dim3 grid(w.session->model->network.config->n_heads, w.batch->n_sequences);
    dim3 block(THREADS_64, a.n_groups), parts(grid.x, grid.y, BLOCK_64 / FEW_QUERIES);
    size_t shared = attend_shared_bytes(a);
    if (a.n_groups > 1)
        launch_early(w, attend_kernel<BYTES, ATTEND_TENSOR, 2, BLOCK_64>, grid, block, shared, 1,
                     a);
    else if (w.session->model->tensor_attention)
        launch_early(w, attend_kernel<BYTES, ATTEND_TENSOR, 1, BLOCK_64>, grid, block, shared, 1,
                     a);
    else if (grid.x * grid.y <= FEW_HEADS)
        launch_early(w, attend_kernel<BYTES, ATTEND_FLOATS, 1, FEW_QUERIES>, parts, block, shared,
                     1, a);
    else
        launch_early(w, attend_kernel<BYTES, ATTEND_FLOATS, 1, BLOCK_64>, grid, block, shared, 1,
                     a);
}

static void launch_attend_codes(const Work &w, const Attend &a)
{
    dim3 grid(w.session->model->network.config->n_heads, w.batch->n_sequences);
    dim3 block(THREADS_64, a.n_groups);
    size_t shared = attend_shared_bytes(a);
    if (a.n_groups > 1)
        launch_early(w, attend_kernel<true, ATTEND_CODES, 2, BLOCK_64>, grid, block, shared, 1, a);
    else
        launch_early(w, attend_kernel<true, ATTEND_CODES, 1, BLOCK_64>, grid, block, shared, 1, a);
}

bool attend(const Work &w, const Layer &layer, const float *x, Inputs inputs[3], Inputs *context)
{
    Attend a;
    if (!plan_attend(w, layer, x, inputs, &a)) return false;
    Encoding encoding;
    bool encodes = can_encode_context(w, layer);
    *context = Inputs();
    if (encodes) plan_in_parts(w, layer.attention_output, context, &encoding);
    a.attention = attention_of(w, encodes ? &encoding : NULL);
    if (form_of(w, layer) == BITM_ATTENTION_I8)
        launch_attend_codes(w, a);
    else if (are_bytes(inputs[0].form))
        launch_attend<true>(w, a);
    else
        launch_attend<false>(w, a);
    if (encodes) sum_planes(w, encoding);
    return true;
}

/* As planes of signs, in the place of codes. */
static Encoding plan_signs(const Work &w, const Quantizer &quantizer, int operand, const float *x)
{
    const Buffers &b = w.session->buffers;
    Encoding e = operand_encoding(w, quantizer, operand, x);
    e.form = FORM_SIGN;
    e.n_pieces = pieces_of_bits(e.n);
    e.plane_stride = (size_t)e.n_tokens * e.n_pieces;
    e.planes = (uint4 *)b.codes[operand];
    e.code_sum = b.encoded[0].code_sum; /* not wanted, and free once products have run */
    e.n_nonzero = b.encoded[0].n_nonzero;
    return e;
}

bool plan_sign_operands(const Work &w, const Layer &layer, Encoding encodings[3])
{
    if (!can_attend_signs(w, layer)) return false;
    const Buffers &b = w.session->buffers;
    const Quantizer *const quantizers[] = {&layer.quantize_query, &layer.quantize_key,
                                           &layer.quantize_value};
    float *const floats[] = {b.query, b.key, b.value};
    for (int i = 0; i < 3; i++)
        encodings[i] = plan_signs(w, *quantizers[i], QUERY + i, floats[i]);
    return true;
}

void run_sign_operands(const Work &w, const Layer &layer, const float *x, Inputs inputs[3],
                       const Encoding encodings[3])
{
    const Linear *const linears[] = {&layer.query, &layer.key, &layer.value};
    bool write_planes = true;
    for (int i = 0; i < 3; i++)
        write_planes = write_planes && can_write_planes(w, *linears[i], 0);
    if (write_planes) {
        run_three_to_planes(w, linears, x, encodings, inputs);
        return;
    }
    run_query_key_value(w, layer, x, inputs);
    for (int i = 0; i < 3; i++)
        encode(w, encodings[i]);
}

/* Starts attention_signs_kernel: as many blocks as run at once, unless there are fewer heads of
 * sequences; of fewer queries where those would leave multiprocessors idle. */
static void launch_sign_attention(const Work &w, SignAttention *a)
{
    const bitm_device_model *model = w.session->model;
    const Batch &batch = *w.batch;
    uint32_t n_heads = model->network.config->n_heads, length = batch.max_length;
    uint32_t n = SIGNS_QUERIES;
    while (n > FEW_QUERIES &&
           n_heads * batch.n_sequences * ceil_div(length, n) < model->n_multiprocessors)
        n /= 2;
    a->n_queries = n;
    uint32_t parts = ceil_div(length, n);
    bool is_long = length > CHUNK;
    uint32_t blocks = is_long ? LONG_SIGNS_BLOCKS : SIGNS_BLOCKS;
    uint32_t most = model->n_multiprocessors * blocks / (n_heads * parts);
    if (most == 0) most = 1;
    dim3 grid(n_heads, parts, batch.n_sequences < most ? batch.n_sequences : most);
    size_t shared = signs_shared_bytes(length);
    if (is_long)
        launch_early(w, attention_signs_kernel<LONG_SIGNS_BLOCKS>, grid, SIGNS_THREADS, shared, 1,
                     *a);
    else
        launch_early(w, attention_signs_kernel<SIGNS_BLOCKS>, grid, SIGNS_THREADS, shared, 1, *a);
}

bool attend_signs(const Work &w, const Layer &layer, const float *x, bool has_operands,
                  Inputs inputs[3], Inputs *context)
{
    Encoding operands[3];
    if (!plan_sign_operands(w, layer, operands)) return false;
    const bitm_file_config *config = w.session->model->network.config;
    const Quantizer &of_probabilities = layer.quantize_probabilities;
    if (!has_operands) run_sign_operands(w, layer, x, inputs, operands);
    SignAttention a = {};
    a.query = operands[0].planes;
    a.key = operands[1].planes;
    a.value = operands[2].planes;
    a.n_pieces = operands[0].n_pieces;
    a.plane_stride = operands[0].plane_stride;
    a.first = w.batch->first;
    a.n_tokens = w.n_tokens;
    a.n_sequences = w.batch->n_sequences;
    a.score_step = layer.quantize_query.step * layer.quantize_key.step;
    a.score_scale = config->score_scale;
    a.exponentials = layer.sign_exponentials;
    a.threshold = threshold_of(of_probabilities, 1);
    a.context_step = of_probabilities.step * layer.quantize_value.step;
    a.context = w.session->buffers.context;
    a.stride = w.session->model->network.attention_size;
    *context = Inputs();
    a.encodes = can_encode_context(w, layer);
    if (a.encodes) plan_in_parts(w, layer.attention_output, context, &a.encoding);
    launch_sign_attention(w, &a);
    if (a.encodes) sum_planes(w, a.encoding);
    return true;
}

template <bool BYTES>
static bitm_status allow_attend(const bitm_device_model *model, bitm_error *err)
{
    BITM_TRY_STATUS(allow_shared(attend_kernel<BYTES, ATTEND_FLOATS, 1, BLOCK_64>, model, err));
    BITM_TRY_STATUS(allow_shared(attend_kernel<BYTES, ATTEND_FLOATS, 1, FEW_QUERIES>, model, err));
    BITM_TRY_STATUS(allow_shared(attend_kernel<BYTES, ATTEND_TENSOR, 1, BLOCK_64>, model, err));
    return allow_shared(attend_kernel<BYTES, ATTEND_TENSOR, 2, BLOCK_64>, model, err);
}

bitm_status prepare_attention(const bitm_device_model *model, bitm_error *err)
{
    BITM_TRY_STATUS(allow_shared(attention64_kernel, model, err));
    BITM_TRY_STATUS(allow_shared(attention_tensor_kernel, model, err));
    BITM_TRY_STATUS(allow_attend<true>(model, err));
    BITM_TRY_STATUS(allow_attend<false>(model, err));
    BITM_TRY_STATUS(allow_shared(attend_kernel<true, ATTEND_CODES, 1, BLOCK_64>, model, err));
    BITM_TRY_STATUS(allow_shared(attend_kernel<true, ATTEND_CODES, 2, BLOCK_64>, model, err));
    BITM_TRY_STATUS(allow_shared(attention_bytes64_kernel, model, err));
    BITM_TRY_STATUS(allow_shared(attention_bytes_kernel, model, err));
    BITM_TRY_STATUS(allow_shared(attention_kernel<4>, model, err));
    BITM_TRY_STATUS(allow_shared(attention_kernel<0>, model, err));
    BITM_TRY_STATUS(allow_shared(attention_signs_kernel<SIGNS_BLOCKS>, model, err));
    BITM_TRY_STATUS(allow_shared(attention_signs_kernel<LONG_SIGNS_BLOCKS>, model, err));
    BITM_TRY_STATUS(allow_shared(general_attention_kernel, model, err));
    return allow_shared(probability_extremes_kernel, model, err);
}

} // namespace bitm
