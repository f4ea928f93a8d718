/* Layers of signs: what of them one kernel computes. */
#include "attend_signs.cuh"
#include "forward.cuh"
#include "layer_cluster.cuh"
#include "layer_signs.cuh"
#include "sum_limits.cuh"

namespace bitm {

/* What the inputs of a linear are to the kernel. */
static bool takes_one_plane(const Work &w, const Linear &linear, int32_t *bit)
{
    const Branch &branch = linear.branches[0];
    bitm_input_form form = form_of(w, branch);
    if (!can_follow_in_parts(w, linear)) return false;
    if (form == BITM_INPUT_SIGN) {
        *bit = 0;
        return true;
    }
    const int32_t *weights;
    if (bitm_quantizer_planes(branch.host->quantizer, &weights) != 1) return false;
    *bit = weights[0];
    return true;
}

static bool takes_signs(const Work &w, const Linear &linear)
{
    int32_t bit;
    return takes_one_plane(w, linear, &bit) && bit == 0;
}

/* Whether sums tell the bits that become of the linear's results. */
static bool knows_bits(const Linear &linear)
{
    return linear.branches[0].sum_limits != NULL && linear.branches[0].packed_limits != NULL;
}

static BitsLinear bits_of(const Linear &linear)
{
    return BitsLinear{linear.branches[0].packed_limits, linear.branches[0].row_ones};
}

static LayerHalf half_of(const Linear &linear, int32_t bit, const NormWeights &norm)
{
    const Branch &branch = linear.branches[0];
    return LayerHalf{branch.row_ones, branch.row_scale, branch.bias, branch.quantizer.step, bit,
                     norm.gain,       norm.bias};
}

/* Fewer tokens are spread over more multiprocessors, by kernels of their own. */
enum { LEAST_TOKENS = 512 };

/* Fills what the kernel is given of a layer itself; false where it does not take it. */
static bool plan_layer(const Work &w, const Layer &layer, LayerSigns *a)
{
    int32_t of_context, of_inner;
    if (layer.ordered_weights == NULL || !takes_one_plane(w, layer.attention_output, &of_context) ||
        !takes_signs(w, layer.intermediate) || !takes_one_plane(w, layer.output, &of_inner) ||
        !knows_bits(layer.intermediate))
        return false;
    a->weights = layer.ordered_weights;
    a->halves[0] = half_of(layer.attention_output, of_context, layer.attention_norm);
    a->halves[1] = half_of(layer.output, of_inner, layer.output_norm);
    a->to_bits[0] = bits_of(layer.intermediate);
    a->shifts[0] = layer.intermediate.branches[0].shift;
    a->inverts = of_inner < 0 ? ~0u : 0;
    return true;
}

/* Fills what it is given of the signs that follow the layer. */
static void plan_signs_after(const Followers &signs, const Next &next, LayerSigns *a)
{
    a->n_kinds = (uint8_t)signs.n;
    for (uint32_t k = 0; k < signs.n; k++) {
        a->shifts[1 + k] = signs.encodings[k].shift;
        for (uint32_t i = 0; i < next.n; i++)
            if (signs.encodings[k].planes == next.inputs[i].place->planes) a->kinds[i] = (uint8_t)k;
    }
}

/* Fills what it is given of query, key and value of the layer after; false where these do not
 * become signs by sums. */
static bool plan_operands_after(const Work &w, const Layer &layer, const Layer &after,
                                Encoding encodings[LAYER_OPERANDS], LayerSigns *a)
{
    const Linear *const linears[] = {&after.query, &after.key, &after.value};
    if (!layer.has_ordered_operands || !plan_sign_operands(w, after, encodings)) return false;
    for (uint32_t i = 0; i < LAYER_OPERANDS; i++) {
        if (!takes_signs(w, *linears[i]) || !knows_bits(*linears[i])) return false;
        a->to_bits[1 + i] = bits_of(*linears[i]);
    }
    return true;
}

/* What is the same in all layers; zeros' planes are those of followers, or nobody else's. */
static SignLayers begin_layers(const Work &w, const Followers &signs)
{
    const Buffers &b = w.session->buffers;
    const bitm_file_config &config = *w.session->model->network.config;
    SignLayers a = {};
    a.residual = a.results = b.hidden;
    a.residual_row = a.results_row = config.hidden_size;
    a.plane_stride = (size_t)w.n_tokens * pieces_of_bits(config.hidden_size);
    a.first = w.batch->first;
    a.sequence_of = w.batch->sequence_of;
    a.signs = signs;
    for (uint32_t k = 0; k < LAYER_OPERANDS; k++)
        a.nonzero[k] =
            (k < signs.n ? signs.encodings[k].planes : b.encoded[k].planes) + a.plane_stride;
    a.eps = config.layer_norm_eps;
    a.n_tokens = w.n_tokens;
    return a;
}

static void leave_operands(const Encoding encodings[LAYER_OPERANDS], SignLayers *a)
{
    a->leaves_operands = 1;
    for (uint32_t i = 0; i < LAYER_OPERANDS; i++)
        a->operands[i] = encodings[i].planes;
}

/* Blocks of 64 tokens. */
static bool are_many(const Work &w)
{
    return w.n_tokens > w.session->model->n_multiprocessors * 32;
}

template <int H256> static void launch_cluster(const Work &w, const SignLayers &a)
{
    launch_early(w, layer_cluster_kernel<H256>, w.n_tokens / CLUSTER_ROWS,
                 LayerClusterShape<H256>::THREADS, sizeof(LayerClusterMemory<H256>), CLUSTER_BLOCKS,
                 a);
}

template <int H256, int TOKENS, bool ATTENDS>
static void launch_layers(const Work &w, const SignLayers &a)
{
    launch_early(w, layer_signs_kernel<H256, TOKENS, ATTENDS>, w.n_tokens / TOKENS, LAYER_THREADS,
                 LayerShape<H256, TOKENS>::SHARED_BYTES, 1, a);
}

bool run_layer_signs(const Work &w, const Layer &layer, const Inputs &context, const Next &next,
                     const Layer *after, Ahead *ahead)
{
    const Buffers &b = w.session->buffers;
    const Ahead before = *ahead;
    LayerSigns only = {};
    *ahead = Ahead();
    if (context.made_for != &layer.attention_output.branches[0] || !plan_layer(w, layer, &only))
        return false;
    Next taken = next;
    for (uint32_t i = 0; i < next.n; i++)
        if (!takes_signs(w, *next.linears[i])) taken.n = 0;
    leave_inputs(w, next);
    uint32_t n = layer.attention_output.rows;
    const Followers signs = plan_followers(w, n, taken);
    plan_signs_after(signs, taken, &only);
    SignLayers a = begin_layers(w, signs);
    a.n_layers = 1;
    a.context = context.place->planes;
    a.context_sum = context.facts.code_sum;
    a.context_nonzero = only.halves[0].bit == 0 ? context.place->n_nonzero : NULL;
    if (w.n_tokens < LEAST_TOKENS) {
        a.layers[0] = only;
        n == 512   ? launch_cluster<2>(w, a)
        : n == 768 ? launch_cluster<3>(w, a)
                   : launch_cluster<4>(w, a);
        return true;
    }
    Encoding encodings[LAYER_OPERANDS];
    ahead->has_operands = after != NULL && plan_operands_after(w, layer, *after, encodings, &only);
    if (ahead->has_operands) leave_operands(encodings, &a);
    LayerSigns of_after;
    ahead->has_rows = ahead->has_operands && plan_layer(w, *after, &of_after) &&
                      counted_after_attention(w, *after) != NULL;
    if (before.has_rows) {
        a.residual = b.intermediate;
        a.residual_row = n + ROW_PADDING;
    }
    if (ahead->has_rows) {
        a.results = b.intermediate;
        a.results_row = n + ROW_PADDING;
    }
    a.layers[0] = only;
    if (n == 512)
        are_many(w) ? launch_layers<2, 64, false>(w, a) : launch_layers<2, 32, false>(w, a);
    else if (n == 768)
        are_many(w) ? launch_layers<3, 64, false>(w, a) : launch_layers<3, 32, false>(w, a);
    else
        launch_layers<4, 32, false>(w, a);
    return true;
}

/* Fills what kernels are given of a layer's attention of signs; false where they do not take it. */
static bool plan_attention(const Work &w, const Layer &layer, LayerAttention *a)
{
    Encoding operands[LAYER_OPERANDS];
    int32_t of_context;
    if (layer.context_limits == NULL || !takes_one_plane(w, layer.attention_output, &of_context) ||
        !plan_sign_operands(w, layer, operands))
        return false;
    a->exponentials = layer.sign_exponentials;
    a->context_limits = layer.context_limits;
    a->threshold = threshold_of(layer.quantize_probabilities, 1);
    a->inverts = of_context < 0 ? ~0u : 0;
    return true;
}

/* Fills a run of layers; false where the kernel does not take one of them. */
static bool plan_layers(const Work &w, uint32_t first, SignLayers *a)
{
    const Layer *layers = w.session->model->layers + first;
    for (uint32_t n = 0; n < a->n_layers; n++) {
        LayerSigns *to = &a->layers[n];
        *to = LayerSigns();
        if (!plan_layer(w, layers[n], to) || !plan_attention(w, layers[n], &to->attention))
            return false;
        if (n + 1 == a->n_layers && !a->leaves_operands) break;
        const Layer &after = layers[n + 1];
        Encoding encodings[LAYER_OPERANDS];
        Inputs inputs[LAYER_OPERANDS];
        const Next next = {{&after.query, &after.key, &after.value}, LAYER_OPERANDS, inputs, NULL};
        if (!plan_operands_after(w, layers[n], after, encodings, to)) return false;
        plan_signs_after(plan_followers(w, layers[n].output.rows, next), next, to);
    }
    return true;
}

uint32_t run_layers_of_signs(const Work &w, uint32_t n_layers, Inputs inputs[3])
{
    const Layer *layers = w.session->model->layers;
    uint32_t hidden = w.session->model->network.config->hidden_size;
    Encoding operands[LAYER_OPERANDS];
    if (n_layers == 0 || !w.batch->is_in_blocks || !are_many(w) ||
        (hidden != 512 && hidden != 768) || !plan_sign_operands(w, layers[0], operands))
        return 0;
    const Linear *const first[] = {&layers[0].query, &layers[0].key, &layers[0].value};
    for (uint32_t i = 0; i < LAYER_OPERANDS; i++)
        if (first[i]->branches[0].sum_limits == NULL) return 0;
    SignLayers a = begin_layers(w, Followers());
    leave_operands(operands, &a);
    for (bool runs : {false, true}) { /* all are tried before one runs */
        if (runs) run_sign_operands(w, layers[0], w.session->buffers.hidden, inputs, operands);
        for (uint32_t n = 0; n < n_layers; n += a.n_layers) {
            a.n_layers = n_layers - n < MOST_LAYERS ? n_layers - n : MOST_LAYERS;
            a.leaves_operands = n + a.n_layers < n_layers;
            if (!plan_layers(w, n, &a)) return 0;
            if (!runs) continue;
            if (hidden == 512)
                launch_layers<2, 64, true>(w, a);
            else
                launch_layers<3, 64, true>(w, a);
        }
    }
    return n_layers;
}

static bool is_one_plane(const Linear &linear)
{
    const Branch &branch = linear.branches[0];
    return linear.n_branches == 1 && branch.n_planes == 1 && branch.row_offset == NULL &&
           branch.row_base == NULL && has_thresholds(branch.quantizer);
}

template <int H256> static void launch_attend_signs(const Work &w, const AttendSigns &a)
{
    launch_early(w, attend_signs_kernel<H256>,
                 dim3(w.session->model->network.config->n_heads, w.n_tokens / BLOCK_KEYS),
                 ATTEND_SIGNS_THREADS, sizeof(SignHeadMemory<H256>), 1, a);
}

bool attend_few_signs(const Work &w, const Layer &layer, const float *x, Inputs inputs[3],
                      Inputs *context)
{
    const Linear *const linears[] = {&layer.query, &layer.key, &layer.value};
    AttendSigns a = {};
    if (w.n_tokens >= LEAST_TOKENS || !w.batch->is_in_blocks ||
        !plan_attention(w, layer, &a.attention))
        return false;
    uint32_t n = layer.attention_output.columns;
    for (int i = 0; i < HEAD_OPERANDS; i++)
        if (!is_one_plane(*linears[i]) || !takes_signs(w, *linears[i]) ||
            linears[i]->branches[0].sum_limits == NULL || linears[i]->columns != n)
            return false;
    for (int i = 0; i < HEAD_OPERANDS; i++) {
        const Product p = product_of_operand(w, *linears[i], x, inputs, i);
        a.operands[i] =
            SignOperand{p.weights, linears[i]->branches[0].sum_limits, p.row_ones,
                        p.inputs,  inputs[i].facts.code_sum,           inputs[i].place->n_nonzero};
        a.plane_stride = p.input_stride;
    }
    a.first = w.batch->first;
    a.sequence_of = w.batch->sequence_of;
    a.n_tokens = w.n_tokens;
    plan_in_parts(w, layer.attention_output, context, &a.context);
    if (n == 512)
        launch_attend_signs<2>(w, a);
    else if (n == 768)
        launch_attend_signs<3>(w, a);
    else
        launch_attend_signs<4>(w, a);
    sum_planes(w, a.context);
    return true;
}

bitm_status prepare_layers(const bitm_device_model *model, bitm_error *err)
{
    BITM_TRY_STATUS(allow_shared(layer_cluster_kernel<2>, model, err));
    BITM_TRY_STATUS(allow_shared(layer_cluster_kernel<3>, model, err));
    BITM_TRY_STATUS(allow_shared(layer_cluster_kernel<4>, model, err));
    BITM_TRY_STATUS(allow_shared(attend_signs_kernel<2>, model, err));
    BITM_TRY_STATUS(allow_shared(attend_signs_kernel<3>, model, err));
    BITM_TRY_STATUS(allow_shared(attend_signs_kernel<4>, model, err));
    BITM_TRY_STATUS(allow_shared(layer_signs_kernel<2, 64, true>, model, err));
    BITM_TRY_STATUS(allow_shared(layer_signs_kernel<3, 64, true>, model, err));
    BITM_TRY_STATUS(allow_shared(layer_signs_kernel<2, 64, false>, model, err));
    BITM_TRY_STATUS(allow_shared(layer_signs_kernel<2, 32, false>, model, err));
    BITM_TRY_STATUS(allow_shared(layer_signs_kernel<3, 64, false>, model, err));
    BITM_TRY_STATUS(allow_shared(layer_signs_kernel<3, 32, false>, model, err));
    return allow_shared(layer_signs_kernel<4, 32, false>, model, err);
}

/* ---- Weights ---- */

static void order_weights(const Linear &linear, uint32_t h256, LayerPart part, uint32_t operand,
                          uint4 *to)
{
    const Branch &branch = linear.branches[0];
    WeightOrder o = {branch.planes, branch.n_pieces, h256, (uint32_t)part, operand, to};
    uint32_t n_threads = batches_of_linear(h256, part) * h256 * GROUP_THREADS;
    BITM_LAUNCH(order_weights_kernel, n_threads / 256, 256, 0, 0, o);
}

/* Takes the limits of a linear's sums in the form that the kernel wants. */
static void pack_limits(bitm_arena *arena, Linear *linear)
{
    Branch &branch = linear->branches[0];
    bool is_sign = bitm_inputs_form(BITM_ACTIVATIONS_INT8, branch.host) == BITM_INPUT_SIGN;
    uint32_t *packed = (uint32_t *)bitm_arena_take(arena, linear->rows, sizeof(uint32_t));
    if (packed == NULL || branch.sum_limits == NULL) return;
    BITM_LAUNCH(pack_limits_kernel, ceil_div(linear->rows, 256), 256, 0, 0, branch.sum_limits,
                branch.row_ones, is_sign, linear->rows, packed);
    branch.packed_limits = packed;
}

/* Takes the limits of the context's components, where attention is of signs: of the products of
 * probabilities, 0 and 1, and values. */
static void bind_context_limits(const bitm_device_model *model, bitm_arena *arena, uint32_t number)
{
    Layer *layer = &model->layers[number];
    const Branch &branch = layer->attention_output.branches[0];
    const Quantizer &next = branch.quantizer;
    uint32_t n = layer->attention_output.columns;
    if (model->has_wgmma == 0 || !has_sign_scores(*model->network.config, *layer) ||
        layer->quantize_value.kind != KIND_SIGN || !has_thresholds(next) || !is_in_registers(n) ||
        n != model->network.config->n_heads * SIGNS_HEAD)
        return;
    SumLimits *limits = (SumLimits *)bitm_arena_take(arena, n, sizeof(SumLimits));
    uint32_t *packed = (uint32_t *)bitm_arena_take(arena, n, sizeof(uint32_t));
    if (limits == NULL || packed == NULL) return;
    SumLimitsOf of = {};
    of.shift = branch.shift;
    of.step = layer->quantize_probabilities.step * layer->quantize_value.step;
    of.threshold = threshold_of(next, next.kind == KIND_INT ? (int32_t)next.hi : 1);
    of.is_sign = next.kind == KIND_SIGN;
    of.most = SIGNS_HEAD;
    BITM_LAUNCH(sum_limits_kernel, n, LIMITS_THREADS, 0, 0, of, limits,
                model->unknown_limits + number * N_LIMITED + LIMITED_CONTEXT);
    BITM_LAUNCH(pack_context_limits_kernel, ceil_div(n, 256), 256, 0, 0, limits, n, packed);
    layer->context_limits = packed;
}

void bind_ordered_weights(const bitm_device_model *model, bitm_arena *arena, uint32_t number)
{
    Layer *layer = &model->layers[number];
    Layer *after = number + 1 < model->network.config->n_layers ? layer + 1 : NULL;
    uint32_t n = layer->attention_output.rows, h256 = n / 256;
    bind_context_limits(model, arena, number);
    if (model->has_wgmma == 0 || !is_in_registers(n) || layer->attention_output.columns != n ||
        layer->intermediate.rows != n * 4 || !is_one_plane(layer->attention_output) ||
        !is_one_plane(layer->intermediate) || !is_one_plane(layer->output))
        return;
    size_t n_read_ahead = (size_t)LAYER_AHEAD * h256 * GROUP_THREADS;
    uint4 *to = (uint4 *)bitm_arena_take(
        arena, (size_t)group_weight_pieces(h256) * LAYER_WARPGROUPS + n_read_ahead, sizeof(uint4));
    layer->has_ordered_operands = after != NULL && is_one_plane(after->query) &&
                                  is_one_plane(after->key) && is_one_plane(after->value) &&
                                  after->query.rows == n;
    pack_limits(arena, &layer->intermediate);
    if (layer->has_ordered_operands) {
        pack_limits(arena, &after->query);
        pack_limits(arena, &after->key);
        pack_limits(arena, &after->value);
    }
    if (to == NULL) return;
    layer->ordered_weights = to;
    order_weights(layer->attention_output, h256, PART_ATTENTION_OUTPUT, 0, to);
    order_weights(layer->intermediate, h256, PART_INTERMEDIATE, 0, to);
    order_weights(layer->output, h256, PART_OUTPUT, 0, to);
    if (!layer->has_ordered_operands) return;
    const Linear *const operands[] = {&after->query, &after->key, &after->value};
    for (uint32_t i = 0; i < LAYER_OPERANDS; i++)
        order_weights(*operands[i], h256, PART_OPERANDS, i, to);
}

} // namespace bitm
