/* Layers of signs: what of them one kernel computes. */
#include "forward.cuh"
#include "layer_signs.cuh"

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

static LayerLinear linear_of(const Linear &linear, int32_t bit)
{
    const Branch &branch = linear.branches[0];
    return LayerLinear{branch.row_ones,      branch.row_scale,      branch.bias,
                       branch.packed_limits, branch.quantizer.step, bit};
}

/* Few tokens are spread over more multiprocessors by other kernels. */
enum { LEAST_TOKENS = 512 };

/* Whether the kernel takes a layer, as soon as attention writes bits for it; what bits of the
 * inputs of its linears with norms count. */
static bool takes_layer(const Work &w, const Layer &layer, int32_t *of_context, int32_t *of_inner)
{
    return layer.ordered_weights != NULL && w.n_tokens >= LEAST_TOKENS &&
           takes_one_plane(w, layer.attention_output, of_context) &&
           takes_signs(w, layer.intermediate) && takes_one_plane(w, layer.output, of_inner) &&
           knows_bits(layer.intermediate);
}

/* Fills what the kernel is given of the layer itself; false where it cannot run. */
static bool plan_layer(const Work &w, const Layer &layer, const Inputs &context, bool has_rows,
                       LayerSigns *a)
{
    const Buffers &b = w.session->buffers;
    int32_t of_context = 0, of_inner = 0;
    if (context.made_for != &layer.attention_output.branches[0] ||
        !takes_layer(w, layer, &of_context, &of_inner))
        return false;
    a->weights = layer.ordered_weights;
    uint32_t n = layer.attention_output.rows;
    a->residual = has_rows ? b.intermediate : b.hidden;
    a->residual_row = has_rows ? n + ROW_PADDING : n;
    a->context = context.place->planes;
    a->context_stride = context.plane_stride;
    a->context_sum = context.facts.code_sum;
    a->context_nonzero = of_context == 0 ? context.place->n_nonzero : NULL;
    LayerHalf *first = &a->halves[0], *last = &a->halves[1];
    first->to_rows = linear_of(layer.attention_output, of_context);
    first->gain = layer.attention_norm.gain;
    first->bias = layer.attention_norm.bias;
    first->signs.n = 1;
    first->to_bits[0] = linear_of(layer.intermediate, 0);
    last->to_rows = linear_of(layer.output, of_inner);
    last->gain = layer.output_norm.gain;
    last->bias = layer.output_norm.bias;
    a->eps = w.session->model->network.config->layer_norm_eps;
    a->n_tokens = w.n_tokens;
    a->inverts = of_inner < 0 ? ~0u : 0;
    Inputs inner;
    plan_inputs(w, &layer.intermediate.branches[0], NULL, layer.intermediate.columns, &b.encoded[0],
                &inner, &first->signs.encodings[0]);
    return true;
}

/* The signs that the layer after takes, and its query, key and value where these become signs too.
 * Inputs of other kinds are left to be made. */
static void plan_layer_after(const Work &w, const Layer *after, const Next &next, LayerSigns *a)
{
    const Buffers &b = w.session->buffers;
    uint32_t n = w.session->model->network.config->hidden_size;
    LayerHalf *last = &a->halves[1];
    last->signs = plan_followers(w, n, next);
    a->results = b.hidden;
    a->results_row = n;
    Encoding encodings[LAYER_OPERANDS];
    bool known =
        after != NULL && after->has_ordered_operands && plan_sign_operands(w, *after, encodings);
    bool are_signs = true;
    for (uint32_t i = 0; i < next.n; i++) {
        are_signs = are_signs && takes_signs(w, *next.linears[i]);
        known = known && knows_bits(*next.linears[i]);
    }
    if (!are_signs) {
        last->signs.n = 0;
        for (uint32_t i = 0; i < next.n; i++) {
            next.inputs[i] = Inputs();
            next.inputs[i].place = &b.encoded[i];
        }
    }
    if (!known || !are_signs) return;
    a->n_operands = LAYER_OPERANDS;
    for (uint32_t i = 0; i < LAYER_OPERANDS; i++) {
        last->to_bits[i] = linear_of(*next.linears[i], 0);
        a->planes[i] = encodings[i].planes;
        for (uint32_t k = 0; k < last->signs.n; k++)
            if (last->signs.encodings[k].planes == next.inputs[i].place->planes) a->sets[i] = k;
    }
    int32_t of_context, of_inner;
    if (!takes_layer(w, *after, &of_context, &of_inner) ||
        counted_after_attention(w, *after) == NULL)
        return;
    a->results = b.intermediate;
    a->results_row = n + ROW_PADDING;
}

template <int H256, int TOKENS> static void launch_layer(const Work &w, const LayerSigns &a)
{
    launch_early(w, layer_signs_kernel<H256, TOKENS>, w.n_tokens / TOKENS, LAYER_THREADS,
                 LayerShape<H256, TOKENS>::SHARED_BYTES, 1, a);
}

bool run_layer_signs(const Work &w, const Layer &layer, const Inputs &context, const Next &next,
                     const Layer *after, Ahead *ahead)
{
    LayerSigns a = {};
    const Ahead before = *ahead;
    *ahead = Ahead();
    if (!plan_layer(w, layer, context, before.has_rows, &a)) return false;
    plan_layer_after(w, after, next, &a);
    ahead->has_operands = a.n_operands > 0;
    ahead->has_rows = a.results == w.session->buffers.intermediate;
    uint32_t n = w.session->model->network.config->hidden_size;
    bool many = w.n_tokens > w.session->model->n_multiprocessors * 32;
    if (n == 512)
        many ? launch_layer<2, 64>(w, a) : launch_layer<2, 32>(w, a);
    else if (n == 768)
        many ? launch_layer<3, 64>(w, a) : launch_layer<3, 32>(w, a);
    else
        launch_layer<4, 32>(w, a);
    return true;
}

bitm_status prepare_layers(const bitm_device_model *model, bitm_error *err)
{
    BITM_TRY_STATUS(allow_shared(layer_signs_kernel<2, 64>, model, err));
    BITM_TRY_STATUS(allow_shared(layer_signs_kernel<2, 32>, model, err));
    BITM_TRY_STATUS(allow_shared(layer_signs_kernel<3, 64>, model, err));
    BITM_TRY_STATUS(allow_shared(layer_signs_kernel<3, 32>, model, err));
    return allow_shared(layer_signs_kernel<4, 32>, model, err);
}

/* ---- Weights ---- */

static bool is_one_plane(const Linear &linear)
{
    const Branch &branch = linear.branches[0];
    return linear.n_branches == 1 && branch.n_planes == 1 && branch.row_offset == NULL &&
           branch.row_base == NULL && has_thresholds(branch.quantizer);
}

static void order_weights(const Linear &linear, uint32_t h256, LayerPart part, uint32_t operand,
                          uint4 *to)
{
    const Branch &branch = linear.branches[0];
    uint32_t n_groups = part == PART_OPERAND ? 1 : LAYER_WARPGROUPS;
    WeightOrder o = {branch.planes, branch.n_pieces, h256, (uint32_t)part, operand, n_groups, to};
    uint32_t n_threads = n_groups * batches_of_part(h256, part) * h256 * GROUP_THREADS;
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

void bind_ordered_weights(const bitm_device_model *model, bitm_arena *arena, Layer *layer,
                          Layer *after)
{
    uint32_t n = layer->attention_output.rows, h256 = n / 256;
    if (model->has_wgmma == 0 || !is_in_registers(n) || layer->attention_output.columns != n ||
        layer->intermediate.rows != n * 4 || !is_one_plane(layer->attention_output) ||
        !is_one_plane(layer->intermediate) || !is_one_plane(layer->output))
        return;
    uint4 *to = (uint4 *)bitm_arena_take(
        arena, (size_t)group_weight_pieces(h256) * LAYER_WARPGROUPS, sizeof(uint4));
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
        order_weights(*operands[i], h256, PART_OPERAND, i, to);
}

} // namespace bitm
