/* What linears take: inputs made by kernels of their own, or planned for the kernel before to make;
 * as inputs.c on the CPU. */
#include "encode_rows.cuh"
#include "forward.cuh"

namespace bitm {

bool is_same(const Branch *a, const Branch *b)
{
    return a->host->quantizer == b->host->quantizer && a->shift == b->shift &&
           a->rms_gain == b->rms_gain && a->column_scale == b->column_scale &&
           a->column_offset == b->column_offset &&
           (a->row_offset != NULL) == (b->row_offset != NULL);
}

static void weighted_sum(const Work &w, const Branch *branch, const float *x, uint32_t n,
                         float *sum)
{
    const float *weights =
        branch->column_offset != NULL ? branch->column_offset : w.session->model->ones;
    BITM_LAUNCH(weighted_sum_kernel, token_blocks(w.n_tokens), TOKEN_THREADS, 0, w.session->stream,
                x, weights, w.n_tokens, n, sum);
}

void find_extremes(const Work &w, Encoding *e)
{
    if (e->quantizer.scope != SCOPE_SEQUENCE) return;
    if (w.batch == NULL) {
        e->quantizer.scope = SCOPE_TOKEN;
        return;
    }
    float *extremes = w.session->buffers.extremes;
    BITM_LAUNCH(extremes_kernel, ceil_div(w.n_tokens, WARPS_A_BLOCK), QUANTIZE_THREADS, 0,
                w.session->stream, *e, extremes);
    BITM_LAUNCH(join_extremes_kernel, w.batch->n_sequences, WARP, 0, w.session->stream,
                w.batch->first, extremes);
    e->extremes = extremes;
}

bool has_thresholds(const Quantizer &q)
{
    if (q.scope != SCOPE_STATIC) return false;
    if (q.kind == KIND_SIGN || q.kind == KIND_BOOL) return !q.clips;
    return q.kind == KIND_INT && q.hi > q.lo && q.hi - q.lo <= MAX_THRESHOLDS;
}

struct SoughtCode {
    const Quantizer *quantizer;
    int32_t code;
};

static bool reaches_code(const void *context, float x)
{
    const SoughtCode &sought = *(const SoughtCode *)context;
    const Quantizer &q = *sought.quantizer;
    Quantization known = {q, q.step, 1.0F, q.step, 0.0F};
    return code_of(known, clipped(q, x)) >= sought.code;
}

float threshold_of(const Quantizer &q, int32_t code)
{
    SoughtCode sought = {&q, code};
    return bitm_least_float(reaches_code, &sought, ((float)code - 0.5F) * q.step);
}

void plan_inputs(const Work &w, const Branch *branch, const float *x, uint32_t n,
                 const Encoded *place, Inputs *inputs, Encoding *e)
{
    bitm_input_form form = form_of(w, *branch);
    bool quantized = branch->host->quantizer != NULL;
    *inputs = Inputs();
    inputs->made_for = branch;
    inputs->form = form;
    inputs->place = place;
    inputs->facts.step = place->step;
    inputs->facts.sum = place->sum;
    inputs->facts.base = place->base;
    inputs->facts.code_sum = place->code_sum;
    inputs->n_pieces = are_bytes(form) ? pieces_of_bytes(n) : pieces_of_bits(n);
    inputs->plane_stride = (size_t)w.n_tokens * inputs->n_pieces;
    *e = Encoding();
    e->x = x;
    e->shift = branch->shift;
    e->n_tokens = w.n_tokens;
    e->n = n;
    e->quantizer = branch->quantizer;
    e->form = (uint32_t)form;
    e->max_code = form == BITM_INPUT_I8
                      ? 127.0F
                      : bitm_max_code((bitm_activations)w.session->limits.activations);
    const int32_t *weights;
    if (quantized) e->n_planes = bitm_quantizer_planes(branch->host->quantizer, &weights);
    e->n_pieces = inputs->n_pieces;
    e->plane_stride = inputs->plane_stride;
    e->planes = place->planes;
    e->floats = w.session->buffers.floats;
    e->step = place->step;
    e->base = place->base;
    e->sum = place->sum;
    e->code_sum = place->code_sum;
    e->n_nonzero = place->n_nonzero;
    if (!has_thresholds(e->quantizer)) return;
    bool is_int = e->quantizer.kind == KIND_INT;
    int32_t lo = is_int ? (int32_t)e->quantizer.lo : 0, hi = is_int ? (int32_t)e->quantizer.hi : 1;
    e->n_thresholds = (uint32_t)(hi - lo);
    for (int32_t i = 0; i < MAX_THRESHOLDS; i++)
        e->thresholds[i] = threshold_of(e->quantizer, lo + 1 + i); /* past hi: NaN */
}

template <int N> static void launch_encode_rows(const Work &w, const Encoding &e)
{
    launch_early(w, encode_rows_kernel<N>, e.n_tokens / ROWS_A_BLOCK, QUANTIZE_THREADS, 0, 1, e);
}

void encode(const Work &w, const Encoding &e)
{
    bool in_rows = e.quantizer.kind == KIND_NONE && are_bytes((bitm_input_form)e.form);
    uint32_t n = in_rows ? e.n : 0;
    if (n == 512)
        launch_encode_rows<2>(w, e);
    else if (n == 768)
        launch_encode_rows<3>(w, e);
    else if (n == 1024)
        launch_encode_rows<4>(w, e);
    else if (n == 2048)
        launch_encode_rows<8>(w, e);
    else if (n == 3072)
        launch_encode_rows<12>(w, e);
    else
        BITM_LAUNCH(encode_kernel, ceil_div(e.n_tokens, WARPS_A_BLOCK), QUANTIZE_THREADS, 0,
                    w.session->stream, e);
}

void make_inputs(const Work &w, const Branch *branch, const float *x, uint32_t n, Inputs *inputs)
{
    const Buffers &b = w.session->buffers;
    cudaStream_t stream = w.session->stream;
    bitm_input_form form = form_of(w, *branch);
    if (inputs->made_for != NULL && inputs->form == form && is_same(inputs->made_for, branch))
        return;
    const Encoded *place = inputs->place != NULL ? inputs->place : &b.encoded[0];
    bool quantized = branch->host->quantizer != NULL;
    if (branch->rms_gain != NULL) {
        RmsNorm norm = {
            x, branch->rms_gain, w.session->model->network.config->rms_norm_eps, w.n_tokens,
            n, b.floats};
        BITM_LAUNCH(rms_norm_kernel, token_blocks(w.n_tokens), TOKEN_THREADS, 0, stream, norm);
        x = b.floats;
    }
    bool by_columns = branch->column_scale != NULL || branch->column_offset != NULL;
    bool sums_floats = branch->row_offset != NULL && (form == BITM_INPUT_FLOAT || by_columns);
    if (sums_floats && !quantized) weighted_sum(w, branch, x, n, place->sum);
    if (branch->column_scale != NULL) {
        BITM_LAUNCH(scale_columns_kernel, (uint32_t)(((size_t)w.n_tokens * n + 255) / 256), 256, 0,
                    stream, x, branch->column_scale, w.n_tokens, n, b.floats);
        x = b.floats;
    }
    Encoding e;
    plan_inputs(w, branch, x, n, place, inputs, &e);
    if (!quantized && by_columns) e.sum = NULL;
    if (quantized || form != BITM_INPUT_FLOAT) {
        find_extremes(w, &e);
        encode(w, e);
    }
    if (form != BITM_INPUT_FLOAT) return;
    if (quantized) x = b.floats;
    if (sums_floats && quantized) weighted_sum(w, branch, x, n, place->sum);
    inputs->floats = x;
    inputs->facts.step = b.ones;
}

/* Whether a kernel that computes x can encode it for this linear: what is encoded is x itself. */
static bool takes_x(const Branch &branch)
{
    return branch.rms_gain == NULL && branch.column_scale == NULL && branch.column_offset == NULL;
}

bool takes_free_codes(const Work &w, const Linear &linear)
{
    const Branch &branch = linear.branches[0];
    return branch.quantizer.kind == KIND_NONE && takes_x(branch) && are_bytes(form_of(w, branch));
}

bool can_follow_in_parts(const Work &w, const Linear &linear)
{
    const Branch &branch = linear.branches[0];
    bitm_input_form form = form_of(w, branch);
    if (!takes_x(branch) || !has_thresholds(branch.quantizer)) return false;
    const int32_t *weights;
    return form == BITM_INPUT_SIGN ||
           (form == BITM_INPUT_PLANES &&
            bitm_quantizer_planes(branch.host->quantizer, &weights) <= 2);
}

/* The same of a kernel that has whole rows: bytes too, by the runtime's own quantizer. */
static bool can_follow(const Work &w, const Linear &linear)
{
    return takes_free_codes(w, linear) || can_follow_in_parts(w, linear);
}

bool is_in_registers(uint32_t n)
{
    return n == 512 || n == 768 || n == 1024;
}

bool can_count(const Work &w, const Linear &linear)
{
    const Branch &branch = linear.branches[0];
    return is_in_registers(w.session->model->network.config->hidden_size) &&
           branch.row_offset == NULL && branch.row_base == NULL;
}

void plan_in_parts(const Work &w, const Linear &linear, Inputs *inputs, Encoding *e)
{
    plan_inputs(w, &linear.branches[0], NULL, linear.columns, &w.session->buffers.encoded[LATER],
                inputs, e);
    e->counts = can_count(w, linear);
}

void sum_planes(const Work &w, const Encoding &e)
{
    if (e.counts) return;
    BITM_LAUNCH(plane_sums_kernel, ceil_div(w.n_tokens, WARPS_A_BLOCK), QUANTIZE_THREADS, 0,
                w.session->stream, e);
}

Encoding counted_encoding(const Work &w, const Linear &linear)
{
    Inputs inputs;
    Encoding e;
    plan_in_parts(w, linear, &inputs, &e);
    return e;
}

void leave_inputs(const Work &w, const Next &next)
{
    for (uint32_t i = 0; i < next.n; i++) {
        next.inputs[i] = Inputs();
        next.inputs[i].place = &w.session->buffers.encoded[i];
    }
}

Followers plan_followers(const Work &w, uint32_t n, const Next &next)
{
    Followers followers = {};
    if (next.counted != NULL) followers.later = counted_encoding(w, *next.counted);
    leave_inputs(w, next);
    for (uint32_t i = 0; i < next.n; i++) {
        const Linear &linear = *next.linears[i];
        Inputs *inputs = next.inputs;
        if (!is_in_registers(n) || !can_follow(w, linear)) continue;
        const Branch *branch = &linear.branches[0];
        bool known = false;
        for (uint32_t k = 0; k < i && !known; k++) {
            known = inputs[k].made_for != NULL && is_same(inputs[k].made_for, branch) &&
                    inputs[k].form == form_of(w, *branch);
            if (known) inputs[i] = inputs[k];
        }
        if (known) continue;
        plan_inputs(w, branch, NULL, n, &w.session->buffers.encoded[i], &inputs[i],
                    &followers.encodings[followers.n++]);
    }
    return followers;
}

} // namespace bitm
