/* The forward pass of SPEC.md section 4 as launches on a session's stream; bert.c, head.c and inputs.c
 * are the same on the CPU. */
#include <string.h>

#include "attend_wgmma.cuh"
#include "attention_general.cuh"
#include "gemm.cuh"
#include "gemm_float.cuh"
#include "gemm_norm_wgmma.cuh"
#include "gemm_wgmma.cuh"
#include "gemm_wgmma_bytes.cuh"
#include "head.cuh"
#include "session.cuh"
#include "tokens.cuh"

namespace bitm {

/* ---- Shapes ---- */

bool is_plain(const bitm_device_model *model, const Layer &l)
{
    return l.quantize_query.kind == KIND_NONE && l.quantize_key.kind == KIND_NONE &&
           l.quantize_value.kind == KIND_NONE && l.quantize_probabilities.kind == KIND_NONE &&
           model->network.config->score_rank == 0 && model->network.config->value_term == 0;
}

bool is_masked_lm(const bitm_device_model *model)
{
    uint32_t head = model->network.config->head;
    return head == BITM_HEAD_MASKED_LM || head == BITM_HEAD_MASKED_LM_NEXT_SENTENCE;
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

/* Four arrays of tokens, and where sequences begin: padded, as many as tokens at most and an eighth
 * more. */
size_t token_words(const bitm_device_limits &limits)
{
    size_t tokens = (size_t)ceil_div(limits.max_tokens, TOKEN_BLOCK) * TOKEN_BLOCK;
    return tokens * 4 + tokens + tokens / 8 + TOKEN_BLOCK;
}

size_t input_bytes(const bitm_device_limits &limits)
{
    uint32_t rows = limits.max_rows > limits.max_tokens ? limits.max_rows : limits.max_tokens;
    return (token_words(limits) + rows + TOKEN_BLOCK + MAX_TARGETS) * sizeof(uint32_t);
}

size_t result_bytes(const bitm_device_model *model, const bitm_device_limits &limits)
{
    const bitm_file_config *config = model->network.config;
    size_t hidden = (size_t)limits.max_tokens * config->hidden_size * sizeof(float);
    size_t wide = is_masked_lm(model) ? config->vocab_size : config->n_labels;
    size_t logits = limits.max_rows * wide * sizeof(float);
    size_t best = limits.max_rows * (size_t)MAX_TOP_K * sizeof(Prediction);
    size_t most = hidden > logits ? hidden : logits;
    return is_masked_lm(model) && best > most ? best : most;
}

template <typename Kernel>
static bitm_status allow_shared(Kernel kernel, const bitm_device_model *model, bitm_error *err)
{
    BITM_CUDA_TRY(cudaFuncSetAttribute((const void *)kernel,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       (int)model->shared_bytes),
                  "preparing a kernel", err);
    return BITM_OK;
}

#define BITM_TRY_STATUS(call)                                                                      \
    do {                                                                                           \
        bitm_status try_status_ = (call);                                                          \
        if (try_status_ != BITM_OK) return try_status_;                                            \
    } while (0)

static __global__ void fill_kernel(float *x, float value, size_t n)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = value;
}

/* ---- Linears ---- */

/* The inputs that are in the buffers, and what they were made for. */
struct Inputs {
    const Branch *made_for; /* NULL: none */
    bitm_input_form form;
    const float *floats;
    const Encoded *place; /* where they are, or will be made */
    TokenFacts facts;
    uint32_t n_pieces;
    size_t plane_stride;
};

/* What runs on the tokens of a batch, or on the rows of a head, each alone. */
enum { MANY_TOKENS = 6144 }; /* enough of them for a block of 64 on most multiprocessors */

struct Work {
    bitm_device_session *session;
    uint32_t n_tokens; /* a multiple of TOKEN_BLOCK */
    const Batch *batch; /* NULL: every token alone */
};

static bool is_same(const Branch *a, const Branch *b)
{
    return a->host->quantizer == b->host->quantizer && a->shift == b->shift &&
           a->rms_gain == b->rms_gain && a->column_scale == b->column_scale &&
           a->column_offset == b->column_offset &&
           (a->row_offset != NULL) == (b->row_offset != NULL);
}

static uint32_t token_blocks(uint32_t n_tokens)
{
    return ceil_div(n_tokens, TOKENS_A_BLOCK);
}

static void weighted_sum(const Work &w, const Branch *branch, const float *x, uint32_t n,
                         float *sum)
{
    const float *weights =
        branch->column_offset != NULL ? branch->column_offset : w.session->model->ones;
    BITM_LAUNCH(weighted_sum_kernel, token_blocks(w.n_tokens), TOKEN_THREADS, 0, w.session->stream,
                x, weights, w.n_tokens, n, sum);
}

static void find_extremes(const Work &w, Encoding *e)
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

/* The inputs of a branch in a place, and how to encode x for them. */
static void plan_inputs(const Work &w, const Branch *branch, const float *x, uint32_t n,
                        const Encoded *place, Inputs *inputs, Encoding *e)
{
    bitm_input_form form =
        bitm_inputs_form((bitm_activations)w.session->limits.activations, branch->host);
    bool bytes = form == BITM_INPUT_I8 || form == BITM_INPUT_I16;
    bool quantized = branch->host->quantizer != NULL;
    *inputs = Inputs();
    inputs->made_for = branch;
    inputs->form = form;
    inputs->place = place;
    inputs->facts.step = place->step;
    inputs->facts.sum = place->sum;
    inputs->facts.base = place->base;
    inputs->facts.code_sum = place->code_sum;
    inputs->n_pieces = bytes ? pieces_of_bytes(n) : pieces_of_bits(n);
    inputs->plane_stride = (size_t)w.n_tokens * inputs->n_pieces;
    *e = Encoding();
    e->x = x;
    e->shift = branch->shift;
    e->n_tokens = w.n_tokens;
    e->n = n;
    e->quantizer = branch->quantizer;
    e->form = (uint32_t)form;
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
}

/* See bitm_inputs_make of inputs.c. */
static void make_inputs(const Work &w, const Branch *branch, const float *x, uint32_t n,
                        Inputs *inputs)
{
    const Buffers &b = w.session->buffers;
    cudaStream_t stream = w.session->stream;
    bitm_input_form form =
        bitm_inputs_form((bitm_activations)w.session->limits.activations, branch->host);
    if (inputs->made_for != NULL && inputs->form == form && is_same(inputs->made_for, branch))
        return;
    const Encoded *place = inputs->place != NULL ? inputs->place : &b.encoded[0];
    bool quantized = branch->host->quantizer != NULL;
    if (branch->rms_gain != NULL) {
        RmsNorm norm = {x, branch->rms_gain, w.session->model->network.config->rms_norm_eps,
                        w.n_tokens, n, b.floats};
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
        BITM_LAUNCH(encode_kernel, ceil_div(w.n_tokens, WARPS_A_BLOCK), QUANTIZE_THREADS, 0, stream,
                    e);
    }
    if (form != BITM_INPUT_FLOAT) return;
    if (quantized) x = b.floats;
    if (sums_floats && quantized) weighted_sum(w, branch, x, n, place->sum);
    inputs->floats = x;
    inputs->facts.step = b.ones;
}

/* Whether the kernel that computes x [n_tokens, n] can encode it for this linear: what is encoded is x
 * itself, and statistics are at most of one token. */
static bool can_follow(const Work &w, const Linear &linear)
{
    const Branch &branch = linear.branches[0];
    bitm_input_form form =
        bitm_inputs_form((bitm_activations)w.session->limits.activations, branch.host);
    return form != BITM_INPUT_FLOAT && branch.rms_gain == NULL && branch.column_scale == NULL &&
           branch.column_offset == NULL && branch.quantizer.scope != SCOPE_SEQUENCE;
}

/* The same of a kernel that sees parts of a row, and writes at most two planes of bits. */
static bool can_follow_in_parts(const Work &w, const Linear &linear)
{
    const Branch &branch = linear.branches[0];
    bitm_input_form form =
        bitm_inputs_form((bitm_activations)w.session->limits.activations, branch.host);
    const int32_t *weights;
    return can_follow(w, linear) && branch.quantizer.scope == SCOPE_STATIC &&
           (form == BITM_INPUT_SIGN ||
            (form == BITM_INPUT_PLANES &&
             bitm_quantizer_planes(branch.host->quantizer, &weights) <= 2));
}

static bool is_in_registers(uint32_t n)
{
    return n == 512 || n == 768 || n == 1024;
}

/* Whether kernels that write parts of the rows of this linear's inputs count bits meanwhile: the norm
 * before has cleared the counts, and no float sum of the inputs is wanted. */
static bool can_count(const Work &w, const Linear &linear)
{
    const Branch &branch = linear.branches[0];
    return is_in_registers(w.session->model->network.config->hidden_size) &&
           branch.row_offset == NULL && branch.row_base == NULL;
}

/* What is known of tokens whose planes have been written in parts, unless it has been counted. */
static void sum_planes(const Work &w, const Encoding &e)
{
    if (e.counts) return;
    BITM_LAUNCH(plane_sums_kernel, ceil_div(w.n_tokens, WARPS_A_BLOCK), QUANTIZE_THREADS, 0,
                w.session->stream, e);
}

/* Planes of an input form: which, and what a bit or a byte of it counts. */
struct InputPlane {
    uint32_t plane;
    int32_t weight;
    uint32_t is_signed;
};

static uint32_t input_planes(const Branch *branch, bitm_input_form form, InputPlane planes[])
{
    if (form == BITM_INPUT_I8) {
        planes[0] = InputPlane{0, 1, 1};
        return 1;
    }
    if (form == BITM_INPUT_I16) { /* plane 0: the low bytes */
        planes[0] = InputPlane{1, 256, 1};
        planes[1] = InputPlane{0, 1, 0};
        return 2;
    }
    if (form == BITM_INPUT_SIGN) { /* 2 * positive - nonzero */
        planes[0] = InputPlane{0, 2, 0};
        planes[1] = InputPlane{1, -1, 0};
        return 2;
    }
    const int32_t *weights;
    uint32_t n = bitm_quantizer_planes(branch->host->quantizer, &weights);
    for (uint32_t i = 0; i < n; i++)
        planes[i] = InputPlane{n - 1 - i, weights[n - 1 - i], 0};
    return n;
}

/* The terms of a product, highest first: weight planes times input planes.  Every ratio of two
 * neighbours is a whole number. */
static void set_terms(const Branch *branch, bitm_input_form form, Product *p)
{
    InputPlane planes[MAX_PLANES];
    uint32_t n = input_planes(branch, form, planes);
    int32_t values[MAX_TERMS + 1];
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t w = 0; w < branch->n_planes; w++) {
            values[p->n_terms] = planes[i].weight * (w == 0 ? 2 : -1);
            p->terms[p->n_terms++] = Term{w, planes[i].plane, 0, planes[i].is_signed};
        }
    }
    values[p->n_terms] = 1;
    for (uint32_t i = 0; i < p->n_terms; i++)
        p->terms[i].multiplier = values[i] / values[i + 1];
    p->subtract_code_sum = branch->n_planes == 1;
}

/* A product of bits by wgmma. */
template <int KIND>
static void launch_bits_product(const Product &p, const Encoding &e, cudaStream_t stream)
{
    dim3 grid(ceil_div(p.n_outputs, WGMMA_OUTPUTS), ceil_div(p.n_tokens, WGMMA_TOKENS));
    uint32_t pieces = wgmma_pieces(p.n_input_pieces), shared = wgmma_shared_bytes(pieces);
    if (pieces == 6)
        BITM_LAUNCH((gemm_wgmma_kernel<6, KIND>), grid, WGMMA_THREADS, shared, stream, p, e);
    else if (pieces == 4)
        BITM_LAUNCH((gemm_wgmma_kernel<4, KIND>), grid, WGMMA_THREADS, shared, stream, p, e);
    else
        BITM_LAUNCH((gemm_wgmma_kernel<2, KIND>), grid, WGMMA_THREADS, shared, stream, p, e);
}

/* The kernel of a product, by what the device has. */
template <int KIND>
static void launch_product(const Product &p, const Encoding &e, bool bytes, bool wgmma,
                           cudaStream_t stream)
{
    dim3 grid(ceil_div(p.n_outputs, GEMM_OUTPUTS), ceil_div(p.n_tokens, GEMM_TOKENS));
    dim3 wide(ceil_div(p.n_outputs, WGMMA_OUTPUTS), ceil_div(p.n_tokens, WGMMA_TOKENS));
    if (!wgmma && bytes)
        BITM_LAUNCH((gemm_kernel<true, KIND>), grid, GEMM_THREADS, 0, stream, p);
    else if (!wgmma)
        BITM_LAUNCH((gemm_kernel<false, KIND>), grid, GEMM_THREADS, 0, stream, p);
    else if (bytes)
        BITM_LAUNCH(gemm_wgmma_bytes_kernel<KIND>, wide, WGMMA_THREADS, BYTES_SHARED_BYTES, stream,
                    p);
    else
        launch_bits_product<KIND>(p, e, stream);
}

template <int KIND>
static bitm_status allow_bits_products(const bitm_device_model *model, bitm_error *err)
{
    BITM_TRY_STATUS(allow_shared(gemm_wgmma_kernel<6, KIND>, model, err));
    return allow_shared(gemm_wgmma_kernel<4, KIND>, model, err);
}

template <int KIND>
static bitm_status allow_products(const bitm_device_model *model, bitm_error *err)
{
    BITM_TRY_STATUS(allow_bits_products<KIND>(model, err));
    return allow_shared(gemm_wgmma_bytes_kernel<KIND>, model, err);
}

/* The product of a branch, but for what follows it. */
static Product product_of(const Work &w, const Branch *branch, const Inputs &inputs,
                          uint32_t columns)
{
    uint32_t rows = branch->weight.rows;
    Product p = {};
    p.weights = branch->planes;
    p.weight_stride = (size_t)ceil_div(rows, ROW_BLOCK) * ROW_BLOCK * branch->n_pieces;
    p.inputs = inputs.place->planes;
    p.input_stride = inputs.plane_stride;
    p.n_tokens = w.n_tokens;
    p.n_outputs = rows;
    p.n_weight_pieces = branch->n_pieces;
    p.n_input_pieces = inputs.n_pieces;
    set_terms(branch, inputs.form, &p);
    if (inputs.form == BITM_INPUT_SIGN && branch->n_planes == 1) {
        p.n_nonzero = inputs.place->n_nonzero;
        p.row_ones = branch->row_ones;
        p.n_columns = columns;
    }
    return p;
}

static void run_product(const Work &w, const Branch *branch, const Inputs &inputs, uint32_t columns,
                        const Epilogue &epilogue, const Encoding *encoding)
{
    cudaStream_t stream = w.session->stream;
    uint32_t rows = branch->weight.rows;
    if (inputs.form == BITM_INPUT_FLOAT) {
        FloatProduct p = {branch->weight, inputs.floats, w.n_tokens, epilogue};
        dim3 grid(ceil_div(rows, FLOAT_OUTPUTS), ceil_div(w.n_tokens, FLOAT_TOKENS));
        BITM_LAUNCH(gemm_float_kernel, grid, FLOAT_THREADS, 0, stream, p);
        return;
    }
    Product p = product_of(w, branch, inputs, columns);
    p.epilogue = epilogue;
    bool bytes = inputs.form == BITM_INPUT_I8 || inputs.form == BITM_INPUT_I16;
    bool wgmma = w.session->model->has_wgmma != 0;
    bool plain = epilogue.row_offset == NULL && epilogue.row_base == NULL && !epilogue.accumulate;
    Encoding none = {};
    if (encoding != NULL && epilogue.activation == 0)
        launch_bits_product<EPILOGUE_BITS>(p, *encoding, stream);
    else if (encoding != NULL)
        launch_bits_product<EPILOGUE_GELU_BITS>(p, *encoding, stream);
    else if (plain && epilogue.activation == 0)
        launch_product<EPILOGUE_PLAIN>(p, none, bytes, wgmma, stream);
    else if (plain && epilogue.activation == BITM_ACTIVATION_GELU)
        launch_product<EPILOGUE_GELU>(p, none, bytes, wgmma, stream);
    else
        launch_product<EPILOGUE_ANY>(p, none, bytes, wgmma, stream);
}

static Epilogue epilogue_of(const Branch *branch, const Inputs &inputs, uint32_t activation,
                            float *outputs)
{
    Epilogue e = {};
    e.row_scale = branch->row_scale;
    e.row_offset = branch->row_offset;
    /* A base only where codes are multiplied: floats have it in them. */
    e.row_base = inputs.form != BITM_INPUT_FLOAT ? branch->row_base : NULL;
    e.bias = branch->bias;
    e.tokens = inputs.facts;
    e.outputs = outputs;
    e.stride = branch->weight.rows;
    e.activation = activation;
    return e;
}

/* outputs = activation(linear(x)); *inputs may be those of a linear of the same x. */
static void run_linear(const Work &w, const Linear &linear, const float *x, uint32_t activation,
                       float *outputs, Inputs *inputs)
{
    for (uint32_t i = 0; i < linear.n_branches; i++) {
        const Branch *branch = &linear.branches[i];
        make_inputs(w, branch, x, linear.columns, inputs);
        bool last = i + 1 == linear.n_branches;
        Epilogue e = epilogue_of(branch, *inputs, last ? activation : 0, outputs);
        e.accumulate = i > 0;
        run_product(w, branch, *inputs, linear.columns, e, NULL);
    }
}

/* The inputs of a linear that are going to be written, and counted, in parts. */
static Encoding counted_encoding(const Work &w, const Linear &linear)
{
    Inputs inputs;
    Encoding e;
    plan_inputs(w, &linear.branches[0], NULL, linear.columns,
                &w.session->buffers.encoded[AFTER_PRODUCT], &inputs, &e);
    e.counts = 1;
    return e;
}

/* Whether a product can write its outputs as the inputs of the next linear, in bits alone. */
static bool can_write_bits(const Work &w, const Linear &linear, uint32_t activation,
                           const Linear &next)
{
    const Branch *branch = &linear.branches[0];
    bitm_input_form form =
        bitm_inputs_form((bitm_activations)w.session->limits.activations, branch->host);
    return w.session->model->has_wgmma != 0 && linear.n_branches == 1 && next.n_branches == 1 &&
           (form == BITM_INPUT_SIGN || form == BITM_INPUT_PLANES) &&
           (activation == 0 || activation == BITM_ACTIVATION_GELU) &&
           branch->row_offset == NULL && branch->row_base == NULL &&
           linear.rows % WGMMA_OUTPUTS == 0 && pieces_of_bits(linear.rows) * PIECE_BITS ==
           linear.rows && can_follow_in_parts(w, next);
}

/* next's inputs = activation(linear(x)), where can_write_bits. */
static void run_linear_to_bits(const Work &w, const Linear &linear, const float *x,
                               uint32_t activation, const Linear &next, Inputs *inputs,
                               Inputs *next_inputs)
{
    const Branch *branch = &linear.branches[0];
    Encoding encoding;
    make_inputs(w, branch, x, linear.columns, inputs);
    plan_inputs(w, &next.branches[0], NULL, linear.rows,
                &w.session->buffers.encoded[AFTER_PRODUCT], next_inputs, &encoding);
    encoding.counts = can_count(w, next);
    Epilogue e = epilogue_of(branch, *inputs, activation, NULL);
    run_product(w, branch, *inputs, linear.columns, e, &encoding);
    sum_planes(w, encoding);
}

static void linear(const Work &w, const Linear &linear, const float *x, uint32_t activation,
                   float *outputs)
{
    Inputs inputs = {};
    run_linear(w, linear, x, activation, outputs, &inputs);
}

template <int N16>
static void launch_norm(const Work &w, const Norm &a, const Followers &followers)
{
    BITM_LAUNCH(add_norm_registers_kernel<N16>, token_blocks(w.n_tokens), TOKEN_THREADS, 0,
                w.session->stream, a, followers);
}

/* What follows a norm: the linears that take its results, whose inputs are made in places of their own,
 * and one whose inputs are counted later, or NULL. */
struct Next {
    const Linear *linears[3];
    uint32_t n;
    Inputs *inputs;
    const Linear *counted;
};

/* Where the norm's kernel cannot make inputs, they are left to be made. */
static Followers plan_followers(const Work &w, uint32_t n, const Next &next)
{
    Followers followers = {};
    if (next.counted != NULL) followers.later = counted_encoding(w, *next.counted);
    for (uint32_t i = 0; i < next.n; i++) {
        const Linear &linear = *next.linears[i];
        Inputs *inputs = next.inputs;
        inputs[i] = Inputs();
        inputs[i].place = &w.session->buffers.encoded[i];
        if (!is_in_registers(n) || !can_follow(w, linear)) continue;
        const Branch *branch = &linear.branches[0];
        bool known = false;
        for (uint32_t k = 0; k < i && !known; k++) {
            known = inputs[k].made_for != NULL && is_same(inputs[k].made_for, branch) &&
                    inputs[k].form == bitm_inputs_form((bitm_activations)w.session->limits.activations,
                                                       branch->host);
            if (known) inputs[i] = inputs[k];
        }
        if (known) continue;
        plan_inputs(w, branch, NULL, n, &w.session->buffers.encoded[i], &inputs[i],
                    &followers.encodings[followers.n++]);
    }
    return followers;
}

/* y = norm(x + residual), and the inputs of what follows. */
static void add_norm(const Work &w, const float *x, const float *residual, const NormWeights &norm,
                     float eps, uint32_t n, float *y, const Next &next)
{
    Norm a = {x, residual, norm.gain, norm.bias, eps, w.n_tokens, n, y};
    Followers followers = plan_followers(w, n, next);
    if (n == 512)
        launch_norm<32>(w, a, followers);
    else if (n == 768)
        launch_norm<48>(w, a, followers);
    else if (n == 1024)
        launch_norm<64>(w, a, followers);
    else
        BITM_LAUNCH(add_norm_kernel, token_blocks(w.n_tokens), TOKEN_THREADS, 0, w.session->stream,
                    a);
}

/* Whether a linear's product is one of bits with the plain epilogue. */
static bool is_product_of_bits(const Work &w, const Linear &linear)
{
    const Branch &branch = linear.branches[0];
    bitm_input_form form =
        bitm_inputs_form((bitm_activations)w.session->limits.activations, branch.host);
    return linear.n_branches == 1 && (form == BITM_INPUT_SIGN || form == BITM_INPUT_PLANES) &&
           branch.row_offset == NULL && branch.row_base == NULL;
}

template <int N16, int TOKENS> static void launch_product_norm(const Work &w, const ProductNorm &a)
{
    BITM_LAUNCH((gemm_norm_kernel<N16, TOKENS>), w.n_tokens / TOKENS, norm_threads(TOKENS),
                gemm_norm_shared_bytes(N16 * LANES, TOKENS), w.session->stream, a);
}

/* x = norm(linear(inputs) + x), and the inputs of what follows, in one kernel where it can run; inputs in
 * the place after products or attention, which what follows does not use. */
static void run_linear_norm(const Work &w, const Linear &linear, const float *from, Inputs *inputs,
                            const NormWeights &norm, const Next &next)
{
    const bitm_device_model *model = w.session->model;
    const Buffers &b = w.session->buffers;
    uint32_t n = model->network.config->hidden_size;
    float eps = model->network.config->layer_norm_eps;
    if (inputs->place == NULL) inputs->place = &b.encoded[AFTER_PRODUCT];
    if (model->has_wgmma == 0 || !is_in_registers(n) || !is_product_of_bits(w, linear)) {
        run_linear(w, linear, from, 0, b.output, inputs);
        add_norm(w, b.output, b.hidden, norm, eps, n, b.hidden, next);
        return;
    }
    const Branch *branch = &linear.branches[0];
    make_inputs(w, branch, from, linear.columns, inputs);
    ProductNorm a;
    a.product = product_of(w, branch, *inputs, linear.columns);
    a.product.epilogue = epilogue_of(branch, *inputs, 0, NULL);
    a.norm = Norm{NULL, b.hidden, norm.gain, norm.bias, eps, w.n_tokens, n, b.hidden};
    a.followers = plan_followers(w, n, next);
    if (n == 512)
        launch_product_norm<32, 32>(w, a);
    else if (n == 1024)
        launch_product_norm<64, 32>(w, a);
    else if (w.n_tokens < MANY_TOKENS)
        launch_product_norm<48, 32>(w, a);
    else
        launch_product_norm<48, 64>(w, a);
}

/* ---- Attention ---- */

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
    if (config->head_size == HEAD_64 && shared <= model->shared_bytes) {
        dim3 grid(ceil_div(batch.max_length, BLOCK_64), config->n_heads, batch.n_sequences);
        BITM_LAUNCH(attention64_kernel, grid, THREADS_64, shared, w.session->stream, a);
        return;
    }
    AttentionShape shape = {};
    (void)attention_shape(model, batch.max_length, n_blocks, &shape);
    a.n_queries = shape.n_queries;
    a.n_keys = shape.n_keys;
    a.score_stride = score_stride(batch.max_length, shape.n_keys);
    dim3 grid(ceil_div(batch.max_length, shape.n_queries), config->n_heads, batch.n_sequences);
    if (ceil_div(config->head_size, LANES) == 4)
        BITM_LAUNCH(attention_kernel<4>, grid, ATTENTION_THREADS, shape.shared_bytes,
                    w.session->stream, a);
    else
        BITM_LAUNCH(attention_kernel<0>, grid, ATTENTION_THREADS, shape.shared_bytes,
                    w.session->stream, a);
}

static void quantize_operand(const Work &w, const Quantizer &quantizer, int operand, float *x)
{
    if (quantizer.kind == KIND_NONE) return;
    const Buffers &b = w.session->buffers;
    Encoding e = {};
    e.x = x;
    e.n_tokens = w.n_tokens;
    e.n = w.session->model->network.attention_size;
    e.quantizer = quantizer;
    e.step = b.operand_step[operand];
    e.base = b.operand_base[operand];
    find_extremes(w, &e);
    BITM_LAUNCH(encode_operand_kernel, ceil_div(w.n_tokens, WARPS_A_BLOCK), QUANTIZE_THREADS, 0,
                w.session->stream, e, b.codes[operand], x);
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
    if (w.session->model->network.config->value_term) linear(w, layer.value_term, x, 0, b.value_term);
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

bitm_status prepare_forward(bitm_device_session *session, bitm_error *err)
{
    const bitm_device_model *model = session->model;
    BITM_TRY_STATUS(allow_products<EPILOGUE_PLAIN>(model, err));
    BITM_TRY_STATUS(allow_products<EPILOGUE_GELU>(model, err));
    BITM_TRY_STATUS(allow_products<EPILOGUE_ANY>(model, err));
    BITM_TRY_STATUS(allow_bits_products<EPILOGUE_BITS>(model, err));
    BITM_TRY_STATUS(allow_bits_products<EPILOGUE_GELU_BITS>(model, err));
    BITM_TRY_STATUS(allow_shared(gemm_norm_kernel<32, 32>, model, err));
    BITM_TRY_STATUS(allow_shared(gemm_norm_kernel<48, 32>, model, err));
    BITM_TRY_STATUS(allow_shared(gemm_norm_kernel<48, 64>, model, err));
    BITM_TRY_STATUS(allow_shared(gemm_norm_kernel<64, 32>, model, err));
    BITM_TRY_STATUS(allow_shared(attention64_kernel, model, err));
    BITM_TRY_STATUS(allow_shared(attend_kernel, model, err));
    BITM_TRY_STATUS(allow_shared(attention_kernel<4>, model, err));
    BITM_TRY_STATUS(allow_shared(attention_kernel<0>, model, err));
    BITM_TRY_STATUS(allow_shared(general_attention_kernel, model, err));
    BITM_TRY_STATUS(allow_shared(probability_extremes_kernel, model, err));
    uint32_t n = ceil_div(session->limits.max_tokens, TOKEN_BLOCK) * TOKEN_BLOCK;
    uint32_t rows = ceil_div(session->limits.max_rows, TOKEN_BLOCK) * TOKEN_BLOCK;
    n = n > rows ? n : rows;
    BITM_LAUNCH(fill_kernel, ceil_div(n, 256), 256, 0, session->stream, session->buffers.ones, 1.0F,
                n);
    BITM_CUDA_TRY(cudaGetLastError(), "preparing a session", err);
    return BITM_OK;
}

/* ---- The encoder ---- */

/* Whether attention can write its context as the bits of attention_output's inputs. */
static bool can_encode_context(const Work &w, const Layer &layer)
{
    const bitm_device_model *model = w.session->model;
    const Linear &next = layer.attention_output;
    return is_plain(model, layer) && model->network.config->head_size == VALUE_COLUMNS &&
           next.n_branches == 1 && pieces_of_bits(next.columns) * PIECE_BITS == next.columns &&
           can_follow_in_parts(w, next);
}

/* attention_output, where the bits of its inputs are counted while attention writes them, or NULL. */
static const Linear *counted_after_attention(const Work &w, const Layer &layer)
{
    bool counts = can_encode_context(w, layer) && can_count(w, layer.attention_output);
    return counts ? &layer.attention_output : NULL;
}

/* The context, or in its place the inputs of attention_output. */
static void run_attention(const Work &w, const Layer &layer, const float *x, Inputs *context)
{
    const Linear &next = layer.attention_output;
    *context = Inputs();
    if (!is_plain(w.session->model, layer)) {
        general_attention(w, layer, x);
    } else if (!can_encode_context(w, layer)) {
        plain_attention(w, NULL);
    } else {
        Encoding encoding;
        plan_inputs(w, &next.branches[0], NULL, next.columns,
                    &w.session->buffers.encoded[AFTER_ATTENTION], context, &encoding);
        encoding.counts = can_count(w, next);
        plain_attention(w, &encoding);
        sum_planes(w, encoding);
    }
}

/* Fills what attend_kernel is given but for what it writes; false where it cannot run. */
static bool plan_attend(const Work &w, const Layer &layer, const float *x, Inputs inputs[3],
                        Attend *a)
{
    const Linear *const linears[] = {&layer.query, &layer.key, &layer.value};
    const bitm_device_model *model = w.session->model;
    if (model->has_wgmma == 0 || w.batch->max_length > BLOCK_64 || !can_encode_context(w, layer))
        return false;
    for (int i = 0; i < 3; i++)
        if (!is_product_of_bits(w, *linears[i])) return false;
    *a = Attend();
    for (int i = 0; i < 3; i++) {
        const Branch *branch = &linears[i]->branches[0];
        if (inputs[i].made_for == NULL && i > 0 &&
            is_same(inputs[i - 1].made_for, branch))
            inputs[i] = inputs[i - 1];
        make_inputs(w, branch, x, linears[i]->columns, &inputs[i]);
        Product p = product_of(w, branch, inputs[i], linears[i]->columns);
        if (i == 0) a->product = p;
        if (p.n_terms != a->product.n_terms ||
            memcmp(p.terms, a->product.terms, p.n_terms * sizeof p.terms[0]) != 0)
            return false;
        const TokenFacts &facts = inputs[i].facts;
        a->linears[i] = HeadLinear{p.inputs,        p.weights,         p.n_nonzero,  facts.step,
                                   facts.code_sum,  branch->row_scale, branch->bias, branch->row_ones};
    }
    a->n_weight_planes = layer.query.branches[0].n_planes;
    for (uint32_t t = 0; t < a->product.n_terms; t++)
        if (a->product.terms[t].input_plane >= a->n_input_planes)
            a->n_input_planes = a->product.terms[t].input_plane + 1;
    return attend_shared_bytes(*a) <= model->shared_bytes;
}

/* Query, key, value and attention in one kernel, where it can run; inputs: those of the three, made
 * where they are not yet; *context: as of run_attention. */
static bool attend(const Work &w, const Layer &layer, const float *x, Inputs inputs[3],
                   Inputs *context)
{
    const Linear &next = layer.attention_output;
    Attend a;
    if (!plan_attend(w, layer, x, inputs, &a)) return false;
    Encoding encoding;
    plan_inputs(w, &next.branches[0], NULL, next.columns,
                &w.session->buffers.encoded[AFTER_ATTENTION], context, &encoding);
    encoding.counts = can_count(w, next);
    a.attention = attention_of(w, &encoding);
    dim3 grid(w.session->model->network.config->n_heads, w.batch->n_sequences);
    BITM_LAUNCH(attend_kernel, grid, THREADS_64, attend_shared_bytes(a), w.session->stream, a);
    sum_planes(w, encoding);
    return true;
}

/* inputs: those of query, key and value, and then those of the layer after. */
static void run_layer(const Work &w, const Layer &layer, const Layer *after, Inputs inputs[3])
{
    const bitm_file_config *config = w.session->model->network.config;
    const Buffers &b = w.session->buffers;
    const float *x = b.hidden;
    Inputs context;
    if (!attend(w, layer, x, inputs, &context)) {
        run_linear(w, layer.query, x, 0, b.query, &inputs[0]);
        if (inputs[1].made_for == NULL) inputs[1] = inputs[0]; /* perhaps the same */
        run_linear(w, layer.key, x, 0, b.key, &inputs[1]);
        if (inputs[2].made_for == NULL) inputs[2] = inputs[1];
        run_linear(w, layer.value, x, 0, b.value, &inputs[2]);
        run_attention(w, layer, x, &context);
    }

    Inputs of_inner, of_output = {};
    bool writes_bits = can_write_bits(w, layer.intermediate, config->hidden_activation, layer.output);
    Next inner = {{&layer.intermediate}, 1, &of_inner,
                  writes_bits && can_count(w, layer.output) ? &layer.output : NULL};
    run_linear_norm(w, layer.attention_output, b.context, &context, layer.attention_norm, inner);
    if (writes_bits)
        run_linear_to_bits(w, layer.intermediate, x, config->hidden_activation, layer.output,
                           &of_inner, &of_output);
    else
        run_linear(w, layer.intermediate, x, config->hidden_activation, b.intermediate, &of_inner);
    Next last = {};
    if (after != NULL)
        last = Next{{&after->query, &after->key, &after->value}, 3, inputs,
                    counted_after_attention(w, *after)};
    run_linear_norm(w, layer.output, b.intermediate, &of_output, layer.output_norm, last);
}

bitm_status forward(bitm_device_session *session, uint32_t n_layers, bitm_error *err)
{
    const bitm_device_model *model = session->model;
    const Batch &batch = session->batch;
    Embedding e = {};
    e.word = model->word;
    e.second = model->word_second;
    e.token_type = model->token_type;
    e.position = model->position;
    e.ids = batch.ids;
    e.types = batch.types;
    e.positions = batch.positions;
    e.gain = model->embedding_norm.gain;
    e.bias = model->embedding_norm.bias;
    e.eps = model->network.config->layer_norm_eps;
    e.n_tokens = batch.n_tokens;
    e.n = model->network.config->hidden_size;
    e.y = session->buffers.hidden;
    BITM_LAUNCH(embed_kernel, token_blocks(batch.n_tokens), TOKEN_THREADS, 0, session->stream, e);
    Work w = {session, batch.n_tokens, &batch};
    Inputs inputs[3];
    for (int i = 0; i < 3; i++) {
        inputs[i] = Inputs();
        inputs[i].place = &session->buffers.encoded[i];
    }
    const Linear *counted = n_layers > 0 ? counted_after_attention(w, model->layers[0]) : NULL;
    if (counted != NULL) /* as norms do for the layers after */
        BITM_LAUNCH(begin_tokens_kernel, ceil_div(w.n_tokens, QUANTIZE_THREADS), QUANTIZE_THREADS, 0,
                    session->stream, counted_encoding(w, *counted));
    for (uint32_t n = 0; n < n_layers; n++)
        run_layer(w, model->layers[n], n + 1 < n_layers ? &model->layers[n + 1] : NULL, inputs);
    BITM_CUDA_TRY(cudaGetLastError(), "starting the encoder on the device", err);
    return BITM_OK;
}

/* ---- Heads ---- */

static void gather(const Work &w, const Rows &rows, float *y)
{
    uint32_t n = w.session->model->network.config->hidden_size;
    BITM_LAUNCH(gather_kernel, (uint32_t)(((size_t)rows.n_padded * n + 255) / 256), 256, 0,
                w.session->stream, w.session->buffers.hidden, rows.tokens, rows.n_padded, n, y);
}

/* logits = decoder(norm(activation(transform(x)))) */
static void masked_lm(const Work &w, const Rows &rows)
{
    const bitm_device_model *model = w.session->model;
    const bitm_file_config *config = model->network.config;
    const Buffers &b = w.session->buffers;
    gather(w, rows, b.head_input);
    linear(w, model->mlm_transform, b.head_input, config->head_activation, b.head_output);
    add_norm(w, b.head_output, NULL, model->mlm_norm, config->head_norm_eps, config->hidden_size,
             b.head_input, Next());
    linear(w, model->mlm_decoder, b.head_input, 0, b.logits);
}

static void classify(const Work &w, const Rows &rows)
{
    const bitm_device_model *model = w.session->model;
    const bitm_file_config *config = model->network.config;
    const Buffers &b = w.session->buffers;
    bool skips = config->pooler == BITM_POOLER_NORM_SKIP;
    size_t n = (size_t)w.n_tokens * config->hidden_size;
    gather(w, rows, b.head_input);
    linear(w, model->pooler, b.head_input, 0, b.head_output);
    if (skips)
        add_norm(w, b.head_output, NULL, model->pooler_norm, config->pooler_norm_eps,
                 config->hidden_size, b.head_output, Next());
    BITM_LAUNCH(tanh_kernel, (uint32_t)((n + 255) / 256), 256, 0, w.session->stream, b.head_output,
                skips ? b.head_input : NULL, n);
    linear(w, model->classifier, b.head_output, 0, b.logits);
}

bitm_status run_head(bitm_device_session *session, bitm_device_task task, const Rows &rows,
                     const void **made, size_t *n_bytes, bitm_error *err)
{
    const bitm_file_config *config = session->model->network.config;
    const Buffers &b = session->buffers;
    Work w = {session, rows.n_padded, NULL};
    *made = b.logits;
    *n_bytes = (size_t)rows.n * config->n_labels * sizeof(float);
    switch (task) {
    case BITM_DEVICE_HIDDEN:
        gather(w, rows, b.output);
        *made = b.output;
        *n_bytes = (size_t)rows.n * config->hidden_size * sizeof(float);
        break;
    case BITM_DEVICE_MASKED_LM:
        masked_lm(w, rows);
        *n_bytes = (size_t)rows.n * config->vocab_size * sizeof(float);
        break;
    case BITM_DEVICE_TOP_K: {
        masked_lm(w, rows);
        TopK k = {b.logits, config->vocab_size, rows.targets, rows.n_candidates, rows.top_k, b.best};
        BITM_LAUNCH(top_k_kernel, rows.n, TOP_K_THREADS, 0, session->stream, k);
        *made = b.best;
        *n_bytes = (size_t)rows.n * rows.top_k * sizeof(Prediction);
        break;
    }
    case BITM_DEVICE_CLASSIFY:
        classify(w, rows);
        break;
    case BITM_DEVICE_TOKENS:
        gather(w, rows, b.head_input);
        linear(w, session->model->classifier, b.head_input, 0, b.logits);
        break;
    }
    BITM_CUDA_TRY(cudaGetLastError(), "starting a head on the device", err);
    return BITM_OK;
}

} // namespace bitm
