#include "attention.h"
#include "inputs.h"

enum {
    TASK_OUTPUTS = 64,          /* outputs of a product that one task computes at least */
    TASKS_A_THREAD = 2,         /* of outputs, so that threads end together */
    TOKEN_TASKS_A_THREAD = 8,   /* these cost nothing more, and neighbours slow one thread down */
    PREPARED_OUTPUTS = 200,     /* that take as long as preparing a block of tokens */
    TASK_TOKENS = 8,            /* tokens that one task of the other operations treats */
    SLICE_TOKENS = 16,          /* of a slice: their floats leave room in a second cache */
    PREPARED_SLICE_TOKENS = 32, /* where weights are what a product prepares, for so many */
};

static uint32_t n_blocks(uint32_t n, uint32_t block)
{
    return (n + block - 1) / block;
}

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t larger(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* ---- Memory ---- */

static size_t form_bytes(bitm_input_form form, const bitm_branch *branch, size_t columns)
{
    const int32_t *weights;
    size_t word_bytes = (columns + 63) / 64 * sizeof(uint64_t);
    switch (form) {
    case BITM_INPUT_I8:
        return columns;
    case BITM_INPUT_I16:
        return columns * sizeof(int16_t);
    case BITM_INPUT_SIGN:
        return 2 * word_bytes;
    case BITM_INPUT_PLANES:
        return bitm_quantizer_planes(branch->quantizer, &weights) * word_bytes;
    case BITM_INPUT_FLOAT:
        break;
    }
    return 0;
}

/* What the inputs of the network's linears need at most, for one token. */
typedef struct needs {
    size_t code_bytes; /* a multiple of 8 */
    uint32_t floats;
    uint32_t widest;
} needs;

static needs needs_of(const bitm_network *network, bitm_activations activations)
{
    needs n = {0};
    const bitm_linear *linear;
    for (uint32_t i = 0; (linear = bitm_network_linear(network, i)) != NULL; i++) {
        for (uint32_t k = 0; k < linear->n_branches; k++) {
            const bitm_branch *branch = &linear->branches[k];
            bitm_input_form form = bitm_inputs_form(activations, branch);
            size_t bytes = (form_bytes(form, branch, linear->columns) + 7) / 8 * 8;
            n.code_bytes = bytes > n.code_bytes ? bytes : n.code_bytes;
            n.widest = larger(n.widest, linear->columns);
            if (branch->rms_gain != NULL || branch->column_scale != NULL ||
                (branch->quantizer != NULL && form == BITM_INPUT_FLOAT))
                n.floats = larger(n.floats, linear->columns);
        }
    }
    return n;
}

/* What a product at work needs at most, a multiple of 64. */
static size_t scratch_bytes(const bitm_backend *backend)
{
    uint64_t ops = bitm_backend_ops(backend->network, backend->activations);
    size_t most = 0;
    for (int op = 0; op < BITM_N_OPS; op++)
        if ((ops >> op & 1) != 0 && backend->kernels->scratch_bytes[op] > most)
            most = backend->kernels->scratch_bytes[op];
    return (most + BITM_ARENA_ALIGNMENT - 1) / BITM_ARENA_ALIGNMENT * BITM_ARENA_ALIGNMENT;
}

static uint32_t slice_tokens(const bitm_backend *backend)
{
    uint64_t ops = bitm_backend_ops(backend->network, backend->activations);
    for (int op = 0; op < BITM_N_OPS; op++) {
        const bitm_packing *packing = backend->kernels->packing[op];
        if ((ops >> op & 1) != 0 && packing != NULL && packing->token_block == 0)
            return PREPARED_SLICE_TOKENS;
    }
    return SLICE_TOKENS;
}

void bitm_backend_layout(bitm_backend *backend, bitm_arena *arena, uint32_t max_tokens,
                         uint32_t max_length, uint32_t n_threads)
{
    bitm_input_buffers *inputs = &backend->inputs;
    needs n = needs_of(backend->network, backend->activations);
    backend->max_tokens = max_tokens;
    backend->max_length = max_length;
    bitm_pool_layout(backend->pool, arena, n_threads);
    inputs->code_bytes = n.code_bytes;
    inputs->n_floats = n.floats;
    inputs->n_scratch = n.widest;
    inputs->codes = bitm_arena_take(arena, max_tokens, n.code_bytes);
    inputs->floats = bitm_arena_take(arena, max_tokens, n.floats * sizeof(float));
    inputs->scratch = bitm_arena_take(arena, n_threads, n.widest * sizeof(int16_t));
    inputs->token_step = bitm_arena_take(arena, max_tokens, sizeof(float));
    inputs->token_sum = bitm_arena_take(arena, max_tokens, sizeof(float));
    inputs->token_base = bitm_arena_take(arena, max_tokens, sizeof(float));
    inputs->code_sum = bitm_arena_take(arena, max_tokens, sizeof(int32_t));
    inputs->ones = bitm_arena_take(arena, max_tokens, sizeof(float));
    inputs->extremes = bitm_arena_take(arena, max_tokens, 2 * sizeof(float));
    backend->slice_tokens = slice_tokens(backend);
    backend->scratch_bytes = scratch_bytes(backend);
    backend->scratch = bitm_arena_take(arena, n_threads, backend->scratch_bytes);
    bitm_attention_layout(backend, arena);
    for (uint32_t t = 0; inputs->ones != NULL && t < max_tokens; t++)
        inputs->ones[t] = 1.0F;
}

/* ---- Slices ---- */

bool bitm_backend_can_slice(const bitm_layer *layer)
{
    return !bitm_is_of_sequences(&layer->attention_output) &&
           !bitm_is_of_sequences(&layer->intermediate) && !bitm_is_of_sequences(&layer->output);
}

static bool takes_floats(const bitm_backend *backend, const bitm_linear *linear)
{
    for (uint32_t k = 0; k < linear->n_branches; k++)
        if (bitm_inputs_form(backend->activations, &linear->branches[k]) == BITM_INPUT_FLOAT)
            return true;
    return false;
}

/* Products of floats expand weights once for all tokens. */
static bool is_worth_slicing(const bitm_backend *backend, const bitm_layer *layer)
{
    return bitm_backend_can_slice(layer) && !takes_floats(backend, &layer->attention_output) &&
           !takes_floats(backend, &layer->intermediate) && !takes_floats(backend, &layer->output);
}

uint32_t bitm_backend_slice(const bitm_backend *backend, const bitm_layer *layer, uint32_t n_tokens)
{
    const uint32_t n_threads = backend->pool->n_threads, most = backend->slice_tokens;
    if (!is_worth_slicing(backend, layer) || n_tokens <= n_threads * most) return n_tokens;
    if (n_threads == 1) return most;
    /* As many for each thread, so that they end together. */
    uint32_t n_each = n_blocks(n_tokens, n_threads * most);
    return n_blocks(n_blocks(n_tokens, n_each * n_threads), TASK_TOKENS) * TASK_TOKENS;
}

uint32_t bitm_backend_slice_room(const bitm_backend *backend)
{
    const bitm_network *network = backend->network;
    for (uint32_t i = 0; i < network->config->n_layers; i++)
        if (!is_worth_slicing(backend, &network->layers[i])) return backend->max_tokens;
    return smaller(backend->max_tokens, backend->pool->n_threads * backend->slice_tokens);
}

bitm_backend bitm_backend_of_worker(const bitm_backend *backend, uint32_t worker, uint32_t n_tokens)
{
    static bitm_pool alone = {.n_threads = 1};
    const size_t first = (size_t)worker * n_tokens;
    bitm_backend one = *backend;
    bitm_input_buffers *inputs = &one.inputs;
    one.pool = &alone;
    inputs->codes += first * inputs->code_bytes;
    inputs->floats += first * inputs->n_floats;
    inputs->scratch += worker * inputs->n_scratch;
    inputs->token_step += first;
    inputs->token_sum += first;
    inputs->token_base += first;
    inputs->code_sum += first;
    inputs->ones += first;
    inputs->extremes += 2 * first;
    one.scratch += worker * one.scratch_bytes;
    return one;
}

/* ---- Linears ---- */

/* A product with the kernel that runs it, cut into tasks of blocks of tokens and outputs. */
typedef struct product {
    bitm_gemm gemm;
    bitm_gemm_fn *run;
    uint32_t n_tokens, task_tokens;
    uint32_t n_outputs, task_outputs;
    uint32_t n_tasks;
} product;

enum { MAX_PRODUCTS = 4 };

/* Products of the same inputs, whose tasks are shared out together. */
typedef struct product_list {
    product each[MAX_PRODUCTS];
    uint32_t n;
    uint8_t *scratch; /* of each thread, so many bytes */
    size_t scratch_bytes;
} product_list;

static void product_task(void *context, uint32_t task, uint32_t worker)
{
    const product_list *products = context;
    const product *p = products->each;
    for (; task >= p->n_tasks; p++)
        task -= p->n_tasks;
    uint32_t n_across = n_blocks(p->n_outputs, p->task_outputs);
    uint32_t token = task / n_across * p->task_tokens, output = task % n_across * p->task_outputs;
    bitm_gemm gemm = p->gemm;
    gemm.scratch = products->scratch + worker * products->scratch_bytes;
    p->run(&gemm, token, smaller(p->task_tokens, p->n_tokens - token), output,
           smaller(p->task_outputs, p->n_outputs - output));
}

/* How many parts of the outputs let so many tasks of tokens end first. */
static uint32_t parts_across(uint32_t n_threads, uint32_t n_token_tasks, uint32_t n_outputs)
{
    uint32_t best = 1;
    uint32_t most = smaller(n_threads * TASKS_A_THREAD, n_blocks(n_outputs, TASK_OUTPUTS));
    uint64_t least = UINT64_MAX;
    for (uint32_t parts = 1; parts <= most; parts++) {
        uint64_t n_turns = n_blocks(n_token_tasks * parts, n_threads);
        uint64_t time = n_turns * (n_blocks(n_outputs, parts) + PREPARED_OUTPUTS);
        if (time < least) {
            best = parts;
            least = time;
        }
    }
    return best;
}

/* Shares out outputs where weights are what the kernel prepares; otherwise tokens, and outputs only
 * where there are too few of them for all threads: there every task prepares its tokens anew. */
static void cut_product(uint32_t n_threads, const bitm_packing *packing, product *p)
{
    uint32_t block = packing != NULL ? packing->token_block : 0;
    uint32_t n_across = n_threads > 1 ? n_threads * TASKS_A_THREAD : 1;
    p->task_tokens = p->n_tokens;
    p->task_outputs = TASK_OUTPUTS;
    if (block > 0) {
        uint32_t n_wanted = n_threads > 1 ? n_threads * TOKEN_TASKS_A_THREAD : 1;
        p->task_tokens = n_blocks(n_blocks(p->n_tokens, n_wanted), block) * block;
        n_across = parts_across(n_threads, n_blocks(p->n_tokens, p->task_tokens), p->n_outputs);
    }
    if (packing != NULL)
        p->task_outputs =
            larger(1, n_blocks(n_blocks(p->n_outputs, n_across), TASK_OUTPUTS)) * TASK_OUTPUTS;
    p->n_tasks = n_blocks(p->n_tokens, p->task_tokens) * n_blocks(p->n_outputs, p->task_outputs);
}

static void run_products(bitm_pool *pool, product_list *products)
{
    uint32_t n_tasks = 0;
    for (uint32_t i = 0; i < products->n; i++)
        n_tasks += products->each[i].n_tasks;
    bitm_pool_run(pool, n_tasks, product_task, products);
    products->n = 0;
}

/* The op of a branch's product, by the dtype of its weights and the form of its inputs. */
static bitm_op product_op(uint32_t dtype, bitm_input_form form)
{
    static const bitm_op one_bit[] = {BITM_OP_gemm_w1f32, BITM_OP_gemm_w1a8, BITM_OP_gemm_w1a16,
                                      BITM_OP_gemm_w1sign, BITM_OP_gemm_w1planes};
    static const bitm_op ternary[] = {BITM_OP_gemm_w2f32, BITM_OP_gemm_w2a8, BITM_OP_gemm_w2a16,
                                      BITM_OP_gemm_w2sign, BITM_OP_gemm_w2planes};
    switch (dtype) {
    case BITM_DTYPE_F32:
        return BITM_OP_gemm_f32;
    case BITM_DTYPE_F16:
        return BITM_OP_gemm_f16;
    case BITM_DTYPE_I8:
        return BITM_OP_gemm_i8;
    case BITM_DTYPE_BIT1:
        return one_bit[form];
    default:
        return ternary[form];
    }
}

static bitm_gemm_fn *product_kernel(const bitm_kernel_table *kernels, bitm_op op)
{
    switch (op) {
#define PRODUCT(op)                                                                                \
    case BITM_OP_##op:                                                                             \
        return kernels->op
        PRODUCT(gemm_w1a8);
        PRODUCT(gemm_w1a16);
        PRODUCT(gemm_w1f32);
        PRODUCT(gemm_w1sign);
        PRODUCT(gemm_w1planes);
        PRODUCT(gemm_w2a8);
        PRODUCT(gemm_w2a16);
        PRODUCT(gemm_w2f32);
        PRODUCT(gemm_w2sign);
        PRODUCT(gemm_w2planes);
        PRODUCT(gemm_f16);
        PRODUCT(gemm_i8);
#undef PRODUCT
    default:
        return kernels->gemm_f32;
    }
}

#define OP(op) (UINT64_C(1) << BITM_OP_##op)

/* The ops that make the inputs of a branch, and its product. */
static uint64_t branch_ops(const bitm_branch *branch, bitm_activations activations)
{
    bitm_input_form form = bitm_inputs_form(activations, branch);
    uint64_t ops = UINT64_C(1) << product_op(branch->weight.tensor->dtype, form);
    if (branch->rms_gain != NULL) ops |= OP(rms_norm);
    if (branch->quantizer == NULL)
        return ops | (form == BITM_INPUT_I8 ? OP(quantize_i8) : 0) |
               (form == BITM_INPUT_I16 ? OP(quantize_i16) : 0);
    if (branch->quantizer->scope != BITM_SCOPE_STATIC) ops |= OP(extremes);
    bool in_planes = form == BITM_INPUT_SIGN || form == BITM_INPUT_PLANES;
    return ops | (in_planes ? OP(quantize_planes) : OP(quantize));
}

/* Whether the inputs of a layer's last linear are codes of a GELU's values that are told without
 * it.
 */
static bool takes_gelu_bits(const bitm_network *network, const bitm_layer *layer,
                            bitm_quantization *quantization)
{
    const bitm_branch *branch = &layer->output.branches[0];
    if (network->config->hidden_activation != BITM_ACTIVATION_GELU ||
        layer->output.n_branches != 1 || branch->quantizer == NULL || branch->rms_gain != NULL ||
        branch->column_scale != NULL || branch->quantizer->scope != BITM_SCOPE_STATIC ||
        bitm_inputs_form(BITM_ACTIVATIONS_FLOAT32, branch) != BITM_INPUT_PLANES)
        return false;
    *quantization = bitm_quantizer_begin(branch->quantizer, branch->shift);
    return quantization->two_codes && quantization->lo == 0.0F && !quantization->clips;
}

uint64_t bitm_backend_ops(const bitm_network *network, bitm_activations activations)
{
    const bitm_file_config *config = network->config;
    uint64_t ops = OP(add_norm);
    const bitm_linear *linear;
    for (uint32_t i = 0; (linear = bitm_network_linear(network, i)) != NULL; i++)
        for (uint32_t k = 0; k < linear->n_branches; k++)
            ops |= branch_ops(&linear->branches[k], activations);
    for (uint32_t n = 0; n < config->n_layers; n++) {
        bitm_quantization unused;
        ops |= bitm_attention_ops(network, &network->layers[n], activations);
        if (takes_gelu_bits(network, &network->layers[n], &unused)) ops |= OP(gelu_bits);
    }
    if (config->head == BITM_HEAD_MASKED_LM || config->head == BITM_HEAD_MASKED_LM_NEXT_SENTENCE)
        ops |= OP(exp_sum);
    return ops;
}

/* Modes of one packing, as a rule 8 and 16 bits, share what is packed. */
static void pack_branch(bitm_branch *branch, const bitm_linear *linear,
                        const bitm_kernel_table *kernels, bitm_arena *arena)
{
    const bitm_packing *packings[BITM_N_INPUT_FORMS] = {NULL};
    uint32_t dtype = branch->weight.tensor->dtype, n_planes = dtype == BITM_DTYPE_TERN ? 2 : 1;
    for (int mode = BITM_ACTIVATIONS_INT8; mode <= BITM_ACTIVATIONS_INT11; mode++) {
        bitm_input_form form = bitm_inputs_form((bitm_activations)mode, branch);
        const bitm_packing *packing = kernels->packing[product_op(dtype, form)];
        if (packing == NULL || packings[form] != NULL) continue;
        uint32_t same = 0;
        while (same < BITM_N_INPUT_FORMS && packings[same] != packing)
            same++;
        packings[form] = packing;
        if (same < BITM_N_INPUT_FORMS) {
            branch->packed[form] = branch->packed[same];
            continue;
        }
        void *room =
            bitm_arena_take(arena, packing->n_bytes(n_planes, linear->rows, linear->columns), 1);
        if (room != NULL)
            packing->pack(branch->weight.data, n_planes, linear->rows, linear->columns, room);
        branch->packed[form] = room;
    }
}

static void find_gelu_limits(const bitm_network *network, bitm_layer *layer,
                             const bitm_kernel_table *kernels, bitm_arena *arena)
{
    bitm_quantization quantization;
    if (!takes_gelu_bits(network, layer, &quantization)) return;
    const uint32_t n = layer->output.columns;
    float *limits = bitm_arena_take(arena, n, sizeof *limits);
    if (limits != NULL) bitm_gelu_limits(&quantization, kernels->activate, n, limits);
    layer->output.branches[0].gelu_limits = limits;
}

void bitm_backend_pack(bitm_network *network, const bitm_kernel_table *kernels, bitm_arena *arena)
{
    bitm_linear *linear;
    /* Not const: the network is the caller's to change. */
    for (uint32_t i = 0; (linear = (bitm_linear *)bitm_network_linear(network, i)) != NULL; i++)
        for (uint32_t k = 0; k < linear->n_branches; k++)
            pack_branch(&linear->branches[k], linear, kernels, arena);
    for (uint32_t n = 0; n < network->config->n_layers; n++)
        find_gelu_limits(network, &network->layers[n], kernels, arena);
}

static void add_product(const bitm_backend *backend, const bitm_linear *linear, uint32_t k,
                        uint32_t activation, const bitm_inputs *inputs, uint32_t n_tokens,
                        float *outputs, product_list *products)
{
    const bitm_branch *branch = &linear->branches[k];
    bitm_op op = product_op(branch->weight.tensor->dtype, inputs->form);
    product *p = &products->each[products->n++];
    bool is_last = k + 1 == linear->n_branches;
    *p = (product){.gemm = {.weights = branch->weight.data,
                            .packed = branch->packed[inputs->form],
                            .n_rows = linear->rows,
                            .n_inputs = linear->columns,
                            .row_scale = branch->row_scale,
                            .row_offset = branch->row_offset,
                            .row_base = branch->row_base,
                            .bias = branch->bias,
                            .inputs = inputs->data,
                            .are_int11 = branch->quantizer == NULL &&
                                         backend->activations == BITM_ACTIVATIONS_INT11,
                            .n_planes = inputs->n_planes,
                            .plane_weights = inputs->plane_weights,
                            .code_sum = inputs->code_sum,
                            .token_step = inputs->token_step,
                            .token_sum = inputs->token_sum,
                            .token_base = inputs->token_base,
                            .outputs = outputs,
                            .output_stride = linear->rows,
                            .accumulate = k > 0,
                            .activation = is_last ? activation : BITM_ACTIVATION_NONE},
                   .run = product_kernel(backend->kernels, op),
                   .n_tokens = n_tokens,
                   .n_outputs = linear->rows};
    cut_product(backend->pool->n_threads, backend->kernels->packing[op], p);
}

/* Products wait for each other where the second changes inputs or adds to outputs of the first. */
static void run_linears(bitm_backend *backend, uint32_t n_linears,
                        const bitm_linear *const linears[], uint32_t activation, const float *x,
                        uint32_t n_tokens, const bitm_spans *spans, float *const outputs[])
{
    bitm_inputs inputs = {0};
    const bitm_branch *last = NULL;
    product_list waiting = {.scratch = backend->scratch, .scratch_bytes = backend->scratch_bytes};
    for (uint32_t i = 0; i < n_linears; i++) {
        const bitm_linear *linear = linears[i];
        for (uint32_t k = 0; k < BITM_MAX_BRANCHES && k < linear->n_branches; k++) {
            const bitm_branch *branch = &linear->branches[k];
            bool serve = bitm_inputs_serve(backend, &inputs, last, branch);
            if (!serve || k > 0 || waiting.n == MAX_PRODUCTS) run_products(backend->pool, &waiting);
            if (!serve)
                bitm_inputs_make(backend, branch, x, n_tokens, linear->columns, spans, &inputs);
            last = branch;
            add_product(backend, linear, k, activation, &inputs, n_tokens, outputs[i], &waiting);
        }
    }
    run_products(backend->pool, &waiting);
}

void bitm_backend_linears(bitm_backend *backend, uint32_t n_linears,
                          const bitm_linear *const linears[], const float *x, uint32_t n_tokens,
                          const bitm_spans *spans, float *const outputs[])
{
    run_linears(backend, n_linears, linears, BITM_ACTIVATION_NONE, x, n_tokens, spans, outputs);
}

void bitm_backend_linear(bitm_backend *backend, const bitm_linear *linear, uint32_t activation,
                         const float *x, uint32_t n_tokens, const bitm_spans *spans, float *outputs)
{
    run_linears(backend, 1, &linear, activation, x, n_tokens, spans, &outputs);
}

/* ---- Token by token ---- */

typedef struct token_work {
    const bitm_backend *backend;
    const float *x, *residual;
    const bitm_norm *norm;
    float eps;
    uint32_t n_tokens, n;
    float *y;
} token_work;

static void add_norm_task(void *context, uint32_t task, uint32_t worker)
{
    const token_work *w = context;
    (void)worker;
    size_t end = smaller((task + 1) * TASK_TOKENS, w->n_tokens);
    for (size_t t = (size_t)task * TASK_TOKENS; t < end; t++)
        w->backend->kernels->add_norm(w->x + t * w->n,
                                      w->residual != NULL ? w->residual + t * w->n : NULL,
                                      w->norm->gain, w->norm->bias, w->eps, w->n, w->y + t * w->n);
}

void bitm_backend_add_norm(bitm_backend *backend, const float *x, const float *residual,
                           const bitm_norm *norm, float eps, uint32_t n_tokens, uint32_t n,
                           float *y)
{
    token_work work = {.backend = backend,
                       .x = x,
                       .residual = residual,
                       .norm = norm,
                       .eps = eps,
                       .n_tokens = n_tokens,
                       .n = n,
                       .y = y};
    bitm_pool_run(backend->pool, n_blocks(n_tokens, TASK_TOKENS), add_norm_task, &work);
}
