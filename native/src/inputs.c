#include "inputs.h"

#include <math.h>

enum {
    TASK_TOKENS = 8, /* tokens of one task */
};

/* ---- Quantizers (SPEC.md 3.4) ---- */

static bool is_dynamic(const bitm_file_quantizer *quantizer)
{
    return quantizer->scope != BITM_SCOPE_STATIC;
}

bitm_quantization bitm_quantizer_begin(const bitm_file_quantizer *quantizer, const float *shift)
{
    bitm_quantization quantization = {.shift = shift,
                                      .sign = quantizer->kind == BITM_QUANTIZER_SIGN ||
                                              quantizer->kind == BITM_QUANTIZER_BOOL,
                                      .clips = (quantizer->flags & BITM_QUANTIZER_CLIP) != 0,
                                      .clip_lo = quantizer->clip_lo,
                                      .clip_hi = quantizer->clip_hi,
                                      .divisor = quantizer->step,
                                      .factor = 1.0F,
                                      .lo = (float)quantizer->lo,
                                      .hi = (float)quantizer->hi};
    if (!is_dynamic(quantizer)) bitm_quantization_split(&quantization);
    return quantization;
}

void bitm_quantizer_finish(const bitm_file_quantizer *quantizer, const float extremes[2],
                           bitm_quantization *quantization, float *step, float *base)
{
    float hi = (float)quantizer->hi;
    *step = quantizer->step;
    *base = 0.0F;
    switch (quantizer->kind) {
    case BITM_QUANTIZER_INT_MIN:
        *base = extremes[0];
        break;
    case BITM_QUANTIZER_DYN_SYM: {
        float greatest = extremes[1] > -extremes[0] ? extremes[1] : -extremes[0];
        greatest = greatest > quantizer->eps ? greatest : quantizer->eps;
        quantization->factor = hi / greatest;
        /* All values 0 (or so small that the factor is not finite): all codes are 0. */
        if (!(quantization->factor <= 3.402823466e38F)) quantization->factor = 0.0F;
        *step = quantization->factor > 0.0F ? 1.0F / quantization->factor : 0.0F;
        break;
    }
    case BITM_QUANTIZER_DYN_ASYM:
        *base = extremes[0];
        quantization->divisor = extremes[1] - extremes[0] + quantizer->eps;
        quantization->factor = hi;
        *step = quantization->divisor / hi;
        break;
    default:
        break;
    }
    quantization->base = *base;
    if (is_dynamic(quantizer)) bitm_quantization_split(quantization);
}

/* ---- Work on tokens, in parallel ---- */

typedef struct work {
    bitm_backend *backend;
    const bitm_branch *branch;            /* NULL: for attention */
    const bitm_file_quantizer *quantizer; /* NULL: the runtime's own quantization, or none */
    bitm_quantization quantization;       /* statistics still to come */
    bitm_input_form form;
    uint32_t n_planes;
    const float *x; /* [n_tokens, n] */
    uint32_t n_tokens, n;
    uint32_t n_heads;   /* of attention, of n / n_heads elements each */
    uint64_t *planes;   /* [n_tokens, n_heads, n_planes, words], for attention */
    float *values;      /* x, to be changed, for attention that wants no codes */
    float *step, *base; /* [n_tokens] */
} work;

typedef void token_fn(const work *w, size_t token, uint32_t worker);

typedef struct pass {
    const work *w;
    token_fn *run;
} pass;

static void pass_task(void *context, uint32_t task, uint32_t worker)
{
    const pass *p = context;
    uint32_t n_tokens = p->w->n_tokens;
    for (uint32_t t = task * TASK_TOKENS; t < (task + 1) * TASK_TOKENS && t < n_tokens; t++)
        p->run(p->w, t, worker);
}

static void run_pass(const work *w, token_fn *run)
{
    pass p = {w, run};
    bitm_pool_run(w->backend->pool, (w->n_tokens + TASK_TOKENS - 1) / TASK_TOKENS, pass_task, &p);
}

static void find_extremes(const work *w, size_t token, uint32_t worker)
{
    (void)worker;
    w->backend->kernels->extremes(&w->quantization, w->x + token * w->n, w->n,
                                  w->backend->inputs.extremes + token * 2);
}

/* The scope is the sequence: every token gets the extremes of all of its tokens. */
static void join_extremes(const work *w, const bitm_spans *spans)
{
    float *extremes = w->backend->inputs.extremes;
    for (uint32_t s = 0; s < spans->n; s++) {
        uint32_t first = spans->first[s], end = spans->first[s + 1];
        float least = extremes[(size_t)first * 2], greatest = extremes[(size_t)first * 2 + 1];
        for (size_t t = first; t < end; t++) {
            least = extremes[t * 2] < least ? extremes[t * 2] : least;
            greatest = extremes[t * 2 + 1] > greatest ? extremes[t * 2 + 1] : greatest;
        }
        for (size_t t = first; t < end; t++) {
            extremes[t * 2] = least;
            extremes[t * 2 + 1] = greatest;
        }
    }
}

static void find_statistics(const work *w, const bitm_spans *spans)
{
    if (!is_dynamic(w->quantizer)) return;
    run_pass(w, find_extremes);
    if (w->quantizer->scope == BITM_SCOPE_SEQUENCE && spans != NULL) join_extremes(w, spans);
}

/* The quantization of one token, whose step and base it notes. */
static bitm_quantization quantization_of(const work *w, size_t token)
{
    bitm_quantization quantization = w->quantization;
    bitm_quantizer_finish(w->quantizer, w->backend->inputs.extremes + token * 2, &quantization,
                          &w->step[token], &w->base[token]);
    return quantization;
}

/* ---- Attention's operands ---- */

static void encode_heads(const work *w, size_t token, uint32_t worker)
{
    const uint32_t head_size = w->n / w->n_heads;
    const size_t row_words = (size_t)w->n_planes * ((head_size + 63) / 64);
    const bitm_quantization quantization = quantization_of(w, token);
    (void)worker;
    for (size_t h = 0; h < w->n_heads; h++)
        (void)w->backend->kernels->quantize_planes(
            &quantization, w->x + token * w->n + h * head_size, head_size, w->n_planes,
            w->planes + (token * w->n_heads + h) * row_words);
}

/* Codes and back. */
static void round_values(const work *w, size_t token, uint32_t worker)
{
    const bitm_quantization quantization = quantization_of(w, token);
    const size_t n = w->n;
    int16_t *codes = w->backend->inputs.scratch + worker * n;
    float *values = w->values + token * n;
    (void)w->backend->kernels->quantize(&quantization, values, w->n, codes);
    for (size_t i = 0; i < n; i++)
        values[i] = fmaf(w->step[token], (float)codes[i], w->base[token]);
}

void bitm_quantize_heads(bitm_backend *backend, const bitm_file_quantizer *quantizer, float *x,
                         uint32_t n_tokens, uint32_t n_heads, uint32_t n, const bitm_spans *spans,
                         uint64_t *planes, float *step, float *base)
{
    const int32_t *weights;
    work w = {.backend = backend,
              .quantizer = quantizer,
              .quantization = bitm_quantizer_begin(quantizer, NULL),
              .n_planes = bitm_quantizer_planes(quantizer, &weights),
              .x = x,
              .n_tokens = n_tokens,
              .n = n,
              .n_heads = n_heads,
              .planes = planes,
              .values = x,
              .step = step,
              .base = base};
    find_statistics(&w, spans);
    run_pass(&w, planes != NULL ? encode_heads : round_values);
}

/* ---- The inputs of a linear ---- */

static void rms_norm(const work *w, size_t token, uint32_t worker)
{
    bitm_backend *backend = w->backend;
    (void)worker;
    backend->kernels->rms_norm(w->x + token * w->n, w->branch->rms_gain,
                               backend->network->config->rms_norm_eps, w->n,
                               backend->inputs.floats + token * w->n);
}

static void scale_columns(const work *w, size_t token, uint32_t worker)
{
    const float *x = w->x + token * w->n;
    float *scaled = w->backend->inputs.floats + token * w->n;
    (void)worker;
    for (size_t i = 0; i < w->n; i++)
        scaled[i] = x[i] * w->branch->column_scale[i];
}

/* token_sum = dot(column_offset, x), or the sum of x, as the float products add. */
static void sum_floats(const work *w, size_t token, uint32_t worker)
{
    bitm_backend *backend = w->backend;
    const bitm_network *network = backend->network;
    (void)worker;
    bitm_gemm dot = {.weights = w->branch->column_offset != NULL ? w->branch->column_offset
                                                                 : network->ones,
                     .n_inputs = w->n,
                     .row_scale = network->ones,
                     .bias = network->zeros,
                     .inputs = w->x,
                     .token_step = backend->inputs.ones,
                     .outputs = backend->inputs.token_sum,
                     .output_stride = 1};
    backend->kernels->gemm_f32(&dot, (uint32_t)token, 1, 0, 1);
}

/* The runtime's own quantization of a weights-only model. */
static void encode_freely(const work *w, size_t token, uint32_t worker)
{
    bitm_backend *backend = w->backend;
    bitm_input_buffers *b = &backend->inputs;
    const float *x = w->x + token * w->n;
    float sum;
    (void)worker;
    if (w->form == BITM_INPUT_I8)
        backend->kernels->quantize_i8(x, w->n, (int8_t *)b->codes + token * w->n,
                                      &b->token_step[token], &sum);
    else
        backend->kernels->quantize_i16(x, w->n, bitm_max_code(backend->activations),
                                       (int16_t *)b->codes + token * w->n, &b->token_step[token],
                                       &sum);
    bool by_columns = w->branch->column_scale != NULL || w->branch->column_offset != NULL;
    if (!by_columns) b->token_sum[token] = sum;
}

/* The model's own quantization. */
static void encode(const work *w, size_t token, uint32_t worker)
{
    bitm_backend *backend = w->backend;
    bitm_input_buffers *b = &backend->inputs;
    const size_t n = w->n, row_words = (size_t)w->n_planes * ((n + 63) / 64);
    const float *x = w->x + token * n;
    const bitm_quantization quantization = quantization_of(w, token);
    const float step = w->step[token], base = w->base[token];
    int16_t *codes =
        w->form == BITM_INPUT_I16 ? (int16_t *)b->codes + token * n : b->scratch + worker * n;
    int32_t sum;
    if (w->branch->gelu_limits != NULL)
        sum = backend->kernels->gelu_bits(
            &(bitm_gelu_codes){w->branch->gelu_limits, quantization.shift, quantization.threshold},
            x, w->n, (uint64_t *)b->codes + token * row_words);
    else if (w->form == BITM_INPUT_SIGN || w->form == BITM_INPUT_PLANES)
        sum = backend->kernels->quantize_planes(&quantization, x, w->n, w->n_planes,
                                                (uint64_t *)b->codes + token * row_words);
    else
        sum = backend->kernels->quantize(&quantization, x, w->n, codes);
    b->code_sum[token] = sum;
    b->token_sum[token] = step * (float)sum + base * (float)n;
    if (w->form == BITM_INPUT_FLOAT)
        for (size_t i = 0; i < n; i++)
            b->floats[token * n + i] = fmaf(step, (float)codes[i], base);
    if (w->form == BITM_INPUT_I8)
        for (size_t i = 0; i < n; i++)
            ((int8_t *)b->codes)[token * n + i] = (int8_t)codes[i];
}

static bool is_same(const bitm_branch *a, const bitm_branch *b)
{
    return a->quantizer == b->quantizer && a->shift == b->shift && a->rms_gain == b->rms_gain &&
           a->column_scale == b->column_scale && a->column_offset == b->column_offset &&
           (a->row_offset != NULL) == (b->row_offset != NULL);
}

bool bitm_inputs_serve(const bitm_backend *backend, const bitm_inputs *inputs,
                       const bitm_branch *last, const bitm_branch *branch)
{
    return last != NULL && inputs->form == bitm_inputs_form(backend->activations, branch) &&
           is_same(last, branch);
}

void bitm_inputs_make(bitm_backend *backend, const bitm_branch *branch, const float *x,
                      uint32_t n_tokens, uint32_t n, const bitm_spans *spans, bitm_inputs *inputs)
{
    bitm_input_buffers *b = &backend->inputs;
    bitm_input_form form = bitm_inputs_form(backend->activations, branch);
    const bitm_file_quantizer *quantizer = branch->quantizer;
    work w = {.backend = backend,
              .branch = branch,
              .quantizer = quantizer,
              .form = form,
              .x = x,
              .n_tokens = n_tokens,
              .n = n,
              .step = b->token_step,
              .base = b->token_base};
    *inputs = (bitm_inputs){.form = form,
                            .data = b->codes,
                            .token_step = b->token_step,
                            .token_sum = b->token_sum,
                            .token_base = b->token_base,
                            .code_sum = b->code_sum};
    if (branch->rms_gain != NULL) {
        run_pass(&w, rms_norm);
        w.x = b->floats;
    }
    bool by_columns = branch->column_scale != NULL || branch->column_offset != NULL;
    bool sums_floats = branch->row_offset != NULL && (form == BITM_INPUT_FLOAT || by_columns);
    if (sums_floats && quantizer == NULL) run_pass(&w, sum_floats);
    if (branch->column_scale != NULL) {
        run_pass(&w, scale_columns);
        w.x = b->floats;
    }
    if (quantizer != NULL) {
        w.quantization = bitm_quantizer_begin(quantizer, branch->shift);
        inputs->n_planes = w.n_planes = bitm_quantizer_planes(quantizer, &inputs->plane_weights);
        find_statistics(&w, spans);
        run_pass(&w, encode);
    } else if (form != BITM_INPUT_FLOAT) {
        run_pass(&w, encode_freely);
    }
    if (form == BITM_INPUT_FLOAT) {
        if (quantizer != NULL) w.x = b->floats;
        if (sums_floats && quantizer != NULL) run_pass(&w, sum_floats);
        inputs->data = w.x;
        inputs->token_step = b->ones;
    }
}
