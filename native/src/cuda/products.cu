/* Linears. */
#include "forward.cuh"
#include "gemm.cuh"
#include "gemm_bits_wgmma.cuh"
#include "gemm_float.cuh"
#include "gemm_wgmma.cuh"
#include "gemm_wgmma_bytes.cuh"

namespace bitm {

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
static void launch_bits_product(const Work &w, const Product &p, const Encoding &e)
{
    dim3 grid(ceil_div(p.n_outputs, WGMMA_OUTPUTS), ceil_div(p.n_tokens, WGMMA_TOKENS));
    uint32_t pieces = wgmma_pieces(p.n_input_pieces);
    uint32_t shared = wgmma_shared_bytes(pieces, p.n_input_pieces / pieces * p.n_terms);
    if (pieces == 6)
        launch_early(w, gemm_wgmma_kernel<6, KIND>, grid, WGMMA_THREADS, shared, 1, p, e);
    else if (pieces == 4)
        launch_early(w, gemm_wgmma_kernel<4, KIND>, grid, WGMMA_THREADS, shared, 1, p, e);
    else
        launch_early(w, gemm_wgmma_kernel<2, KIND>, grid, WGMMA_THREADS, shared, 1, p, e);
}

/* The kernel of a product, by what the device has. */
template <int KIND>
static void launch_product(const Work &w, const Product &p, const Encoding &e, bool bytes)
{
    cudaStream_t stream = w.session->stream;
    bool wgmma = w.session->model->has_wgmma != 0;
    dim3 grid(ceil_div(p.n_outputs, GEMM_OUTPUTS), ceil_div(p.n_tokens, GEMM_TOKENS));
    dim3 wide(ceil_div(p.n_outputs, WGMMA_OUTPUTS), ceil_div(p.n_tokens, WGMMA_TOKENS));
    if (!wgmma && bytes)
        BITM_LAUNCH((gemm_kernel<true, KIND>), grid, GEMM_THREADS, 0, stream, p);
    else if (!wgmma)
        BITM_LAUNCH((gemm_kernel<false, KIND>), grid, GEMM_THREADS, 0, stream, p);
    else if (bytes)
        launch_early(w, gemm_wgmma_bytes_kernel<KIND>, wide, WGMMA_THREADS, BYTES_SHARED_BYTES, 1,
                     p);
    else
        launch_bits_product<KIND>(w, p, e);
}

template <int KIND>
static bitm_status allow_bits_products(const bitm_device_model *model, bitm_error *err)
{
    BITM_TRY_STATUS(allow_shared(gemm_wgmma_kernel<6, KIND>, model, err));
    BITM_TRY_STATUS(allow_shared(gemm_wgmma_kernel<4, KIND>, model, err));
    return allow_shared(gemm_wgmma_kernel<2, KIND>, model, err);
}

template <int KIND>
static bitm_status allow_products(const bitm_device_model *model, bitm_error *err)
{
    BITM_TRY_STATUS(allow_bits_products<KIND>(model, err));
    return allow_shared(gemm_wgmma_bytes_kernel<KIND>, model, err);
}

bool is_plain_product(const Work &w, const Linear &linear)
{
    const Branch &branch = linear.branches[0];
    return linear.n_branches == 1 && form_of(w, branch) != BITM_INPUT_FLOAT &&
           branch.row_offset == NULL && branch.row_base == NULL;
}

Product product_of(const Work &w, const Branch *branch, const Inputs &inputs, uint32_t columns)
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

Product product_of_operand(const Work &w, const Linear &linear, const float *x, Inputs inputs[3],
                           int i)
{
    const Branch *branch = &linear.branches[0];
    if (inputs[i].made_for == NULL && i > 0 && is_same(inputs[i - 1].made_for, branch))
        inputs[i] = inputs[i - 1];
    make_inputs(w, branch, x, linear.columns, &inputs[i]);
    return product_of(w, branch, inputs[i], linear.columns);
}

/* A product of integers; its results leave by the encoding, unless that is NULL. */
static void launch_with_epilogue(const Work &w, const Product &p, bool bytes,
                                 const Encoding *encoding)
{
    const Epilogue &epilogue = p.epilogue;
    bool plain = epilogue.row_offset == NULL && epilogue.row_base == NULL && !epilogue.accumulate;
    Encoding none = {};
    if (encoding != NULL && epilogue.activation == 0)
        launch_bits_product<EPILOGUE_BITS>(w, p, *encoding);
    else if (encoding != NULL)
        launch_bits_product<EPILOGUE_GELU_BITS>(w, p, *encoding);
    else if (plain && epilogue.activation == 0)
        launch_product<EPILOGUE_PLAIN>(w, p, none, bytes);
    else if (plain && epilogue.activation == BITM_ACTIVATION_GELU)
        launch_product<EPILOGUE_GELU>(w, p, none, bytes);
    else
        launch_product<EPILOGUE_ANY>(w, p, none, bytes);
}

static void run_product(const Work &w, const Branch *branch, const Inputs &inputs, uint32_t columns,
                        const Epilogue &epilogue)
{
    uint32_t rows = branch->weight.rows;
    if (inputs.form == BITM_INPUT_FLOAT) {
        FloatProduct p = {branch->weight, inputs.floats, w.n_tokens, epilogue};
        dim3 grid(ceil_div(rows, FLOAT_OUTPUTS), ceil_div(w.n_tokens, FLOAT_TOKENS));
        BITM_LAUNCH(gemm_float_kernel, grid, FLOAT_THREADS, 0, w.session->stream, p);
        return;
    }
    Product p = product_of(w, branch, inputs, columns);
    p.epilogue = epilogue;
    launch_with_epilogue(w, p, are_bytes(inputs.form), NULL);
}

Epilogue epilogue_of(const Branch *branch, const Inputs &inputs, uint32_t activation,
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

void run_linear(const Work &w, const Linear &linear, const float *x, uint32_t activation,
                float *outputs, Inputs *inputs)
{
    for (uint32_t i = 0; i < linear.n_branches; i++) {
        const Branch *branch = &linear.branches[i];
        make_inputs(w, branch, x, linear.columns, inputs);
        bool last = i + 1 == linear.n_branches;
        Epilogue e = epilogue_of(branch, *inputs, last ? activation : 0, outputs);
        e.accumulate = i > 0;
        run_product(w, branch, *inputs, linear.columns, e);
    }
}

void run_query_key_value(const Work &w, const Layer &layer, const float *x, Inputs inputs[3])
{
    const Buffers &b = w.session->buffers;
    run_linear(w, layer.query, x, 0, b.query, &inputs[0]);
    if (inputs[1].made_for == NULL) inputs[1] = inputs[0]; /* perhaps the same */
    run_linear(w, layer.key, x, 0, b.key, &inputs[1]);
    if (inputs[2].made_for == NULL) inputs[2] = inputs[1];
    run_linear(w, layer.value, x, 0, b.value, &inputs[2]);
}

/* The part of a product and of the encoding of its results that n tokens from `first` on have. */
static void take_part(uint32_t first, uint32_t n, Product *p, Encoding *e)
{
    TokenFacts &facts = p->epilogue.tokens;
    p->inputs += piece_place(first, 0, p->n_input_pieces);
    p->n_tokens = e->n_tokens = n;
    if (p->n_nonzero != NULL) p->n_nonzero += first;
    facts.step += first;
    facts.sum += first;
    facts.base += first;
    facts.code_sum += first;
    e->planes += piece_place(first, 0, e->n_pieces);
    e->step += first;
    e->base += first;
    e->sum += first;
    e->code_sum += first;
    e->n_nonzero += first;
}

bool can_encode_in_parts(const Work &w, const Linear &linear, const Linear &next)
{
    return is_plain_product(w, linear) && next.n_branches == 1 && takes_free_codes(w, next);
}

/* Floats that stay in the second cache of a large GPU (50 MB) until they are encoded. */
enum { CACHED_BYTES = 36 << 20 };

void run_linear_encoded(const Work &w, const Linear &linear, const float *x, uint32_t activation,
                        const Linear &next, Inputs *inputs, Inputs *next_inputs)
{
    const Branch *branch = &linear.branches[0];
    float *outputs = w.session->buffers.intermediate;
    Encoding encoding;
    make_inputs(w, branch, x, linear.columns, inputs);
    plan_inputs(w, &next.branches[0], outputs, next.columns, &w.session->buffers.encoded[LATER],
                next_inputs, &encoding);
    Product product = product_of(w, branch, *inputs, linear.columns);
    product.epilogue = epilogue_of(branch, *inputs, activation, outputs);
    uint32_t most = CACHED_BYTES / (linear.rows * sizeof(float)) / TOKEN_BLOCK * TOKEN_BLOCK;
    uint32_t n_parts = ceil_div(w.n_tokens, most);
    uint32_t n = ceil_div(w.n_tokens / TOKEN_BLOCK, n_parts) * TOKEN_BLOCK;
    for (uint32_t first = 0; first < w.n_tokens; first += n) {
        Product p = product;
        Encoding e = encoding;
        take_part(first, w.n_tokens - first < n ? w.n_tokens - first : n, &p, &e);
        launch_with_epilogue(w, p, are_bytes(inputs->form), NULL);
        encode(w, e);
    }
}

bool can_write_planes(const Work &w, const Linear &linear, uint32_t activation)
{
    const Branch *branch = &linear.branches[0];
    bitm_input_form form = form_of(w, *branch);
    return w.session->model->has_wgmma != 0 && linear.n_branches == 1 &&
           (form == BITM_INPUT_SIGN || form == BITM_INPUT_PLANES) &&
           (activation == 0 || activation == BITM_ACTIVATION_GELU) && branch->row_offset == NULL &&
           branch->row_base == NULL && linear.rows % WGMMA_OUTPUTS == 0 &&
           pieces_of_bits(linear.rows) * PIECE_BITS == linear.rows;
}

/* Products of the same sizes whose results become planes: by comparing sums, where their limits are
 * known and operands fit; false otherwise. */
static bool compare_sums(const Work &w, const Branch *const branches[], const Product products[],
                         const Encoding encodings[], uint32_t n)
{
    enum { BLOCKS_OF_MULTIPROCESSOR = 2 };
    const Product &p = products[0];
    BitsProducts all = {};
    all.n_weight_planes = branches[0]->n_planes;
    all.n_blocks = p.n_outputs / WGMMA_OUTPUTS;
    for (uint32_t i = 0; i < n; i++) {
        if (branches[i]->sum_limits == NULL || branches[i]->n_planes != all.n_weight_planes ||
            products[i].n_terms != p.n_terms || products[i].n_outputs != p.n_outputs)
            return false;
        all.of[i] = BitsProduct{products[i], encodings[i], branches[i]->sum_limits};
    }
    uint32_t shared = bits_shared_bytes(p.n_input_pieces, all.n_weight_planes);
    if (shared > w.session->model->shared_bytes) return false;
    uint32_t n_tiles = ceil_div(p.n_tokens, WGMMA_TOKENS), n_blocks = all.n_blocks * n;
    uint32_t parts = w.session->model->n_multiprocessors * BLOCKS_OF_MULTIPROCESSOR / n_blocks;
    uint32_t rounds = ceil_div(n_tiles, parts > 0 ? parts : 1);
    dim3 grid(n_blocks, ceil_div(n_tiles, rounds));
    if (p.n_input_pieces == 2)
        launch_early(w, gemm_bits_kernel<2>, grid, WGMMA_THREADS, shared, 1, all);
    else if (p.n_input_pieces == 4)
        launch_early(w, gemm_bits_kernel<4>, grid, WGMMA_THREADS, shared, 1, all);
    else if (p.n_input_pieces == 6)
        launch_early(w, gemm_bits_kernel<6>, grid, WGMMA_THREADS, shared, 1, all);
    else
        launch_early(w, gemm_bits_kernel<8>, grid, WGMMA_THREADS, shared, 1, all);
    return true;
}

void run_three_to_planes(const Work &w, const Linear *const linears[3], const float *x,
                         const Encoding encodings[3], Inputs inputs[3])
{
    const Branch *branches[3];
    Product products[3];
    for (int i = 0; i < 3; i++) {
        branches[i] = &linears[i]->branches[0];
        products[i] = product_of_operand(w, *linears[i], x, inputs, i);
        products[i].epilogue = epilogue_of(branches[i], inputs[i], 0, NULL);
    }
    if (compare_sums(w, branches, products, encodings, 3)) return;
    for (int i = 0; i < 3; i++)
        launch_bits_product<EPILOGUE_BITS>(w, products[i], encodings[i]);
}

bool can_write_bits(const Work &w, const Linear &linear, uint32_t activation, const Linear &next)
{
    return can_write_planes(w, linear, activation) && next.n_branches == 1 &&
           can_follow_in_parts(w, next);
}

void run_linear_to_bits(const Work &w, const Linear &linear, const float *x, uint32_t activation,
                        const Linear &next, Inputs *inputs, Inputs *next_inputs)
{
    const Branch *branch = &linear.branches[0];
    Encoding encoding;
    make_inputs(w, branch, x, linear.columns, inputs);
    plan_in_parts(w, next, next_inputs, &encoding);
    Product p = product_of(w, branch, *inputs, linear.columns);
    p.epilogue = epilogue_of(branch, *inputs, activation, NULL);
    if (!compare_sums(w, &branch, &p, &encoding, 1)) launch_with_epilogue(w, p, false, &encoding);
    sum_planes(w, encoding);
}

void linear(const Work &w, const Linear &linear, const float *x, uint32_t activation,
            float *outputs)
{
    Inputs inputs = {};
    run_linear(w, linear, x, activation, outputs, &inputs);
}

bitm_status prepare_products(const bitm_device_model *model, bitm_error *err)
{
    BITM_TRY_STATUS(allow_products<EPILOGUE_PLAIN>(model, err));
    BITM_TRY_STATUS(allow_products<EPILOGUE_GELU>(model, err));
    BITM_TRY_STATUS(allow_products<EPILOGUE_ANY>(model, err));
    BITM_TRY_STATUS(allow_bits_products<EPILOGUE_BITS>(model, err));
    BITM_TRY_STATUS(allow_shared(gemm_bits_kernel<2>, model, err));
    BITM_TRY_STATUS(allow_shared(gemm_bits_kernel<4>, model, err));
    BITM_TRY_STATUS(allow_shared(gemm_bits_kernel<6>, model, err));
    BITM_TRY_STATUS(allow_shared(gemm_bits_kernel<8>, model, err));
    return allow_bits_products<EPILOGUE_GELU_BITS>(model, err);
}

} // namespace bitm
