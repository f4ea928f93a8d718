/* A model on the device: a copy of the file and of what was bound to it, and the bits of its
 * matrices once more in tiles. */
#include <new>
#include <stdio.h>
#include <string.h>

#include "gemm_wgmma.cuh"
#include "host.h"
#include "sign_exponentials.cuh"
#include "sum_limits.cuh"

namespace bitm {

bitm_status fail(cudaError_t error, const char *what, bitm_error *err)
{
    (void)cudaGetLastError(); /* a failure that can be survived is over now */
    bitm_status status = error == cudaErrorMemoryAllocation ? BITM_NO_MEMORY : BITM_DEVICE;
    return bitm_fail(err, status, "%s: %s (%s)", what, cudaGetErrorString(error),
                     cudaGetErrorName(error));
}

Quantizer quantizer_of(const bitm_file_quantizer *quantizer)
{
    Quantizer q = {};
    if (quantizer == NULL) return q;
    q.kind = quantizer->kind;
    q.scope = quantizer->scope;
    q.lo = (float)quantizer->lo;
    q.hi = (float)quantizer->hi;
    q.step = quantizer->step;
    q.eps = quantizer->eps;
    q.clips = quantizer->flags & BITM_QUANTIZER_CLIP;
    q.clip_lo = quantizer->clip_lo;
    q.clip_hi = quantizer->clip_hi;
    return q;
}

static Matrix matrix_of(const bitm_device_model *model, const bitm_matrix &matrix)
{
    Matrix m = {};
    const bitm_file_tensor *tensor = matrix.tensor;
    if (tensor == NULL) return m;
    m.data = on_device(model, (const uint8_t *)matrix.data);
    m.scales = on_device(model, matrix.scales);
    m.offsets = on_device(model, matrix.offsets);
    m.dtype = tensor->dtype;
    m.rows = tensor->rows;
    m.columns = tensor->columns;
    m.scale_layout = tensor->scale_layout;
    m.scale_group = tensor->n_scales > 0 ? tensor->rows / tensor->n_scales : 1;
    m.offset_layout = tensor->offset_layout;
    m.offset_group = tensor->n_offsets > 0 ? tensor->rows / tensor->n_offsets : 1;
    if (m.scale_group == 0) m.scale_group = 1;
    if (m.offset_group == 0) m.offset_group = 1;
    return m;
}

/* Planes [n_planes, rows, words] of the file to tiles [n_planes, padded rows, n_pieces]; bit1 has
 * the plane of positive weights; tern positive, then nonzero, where the file has nonzero first. */
static __global__ void pack_kernel(const uint64_t *from, uint32_t n_planes, uint32_t rows,
                                   uint32_t n_words, uint32_t padded_rows, uint32_t n_pieces,
                                   bool for_bytes, uint4 *to)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t piece = (uint32_t)(i % n_pieces), row = (uint32_t)(i / n_pieces % padded_rows);
    uint32_t plane = (uint32_t)(i / n_pieces / padded_rows);
    if (plane >= n_planes) return;
    uint32_t words[4] = {0, 0, 0, 0};
    const uint64_t *source = from + ((size_t)(n_planes - 1 - plane) * rows + row) * n_words;
    for (uint32_t w = 0; w < 2; w++) {
        if (row >= rows || piece * 2 + w >= n_words) continue;
        words[w * 2] = (uint32_t)source[piece * 2 + w];
        words[w * 2 + 1] = (uint32_t)(source[piece * 2 + w] >> 32);
    }
    if (for_bytes) order_for_bytes(words);
    to[(size_t)plane * padded_rows * n_pieces + piece_place(row, piece, n_pieces)] =
        make_uint4(words[0], words[1], words[2], words[3]);
}

/* ones [rows] of a plane of tiles */
static __global__ void count_ones_kernel(const uint4 *plane, uint32_t rows, uint32_t n_pieces,
                                         uint32_t *ones)
{
    uint32_t row = blockIdx.x * blockDim.x + threadIdx.x, n = 0;
    if (row >= rows) return;
    for (uint32_t piece = 0; piece < n_pieces; piece++)
        n += (uint32_t)popc_piece(plane[piece_place(row, piece, n_pieces)]);
    ones[row] = n;
}

static uint32_t padded_rows(uint32_t rows)
{
    return ceil_div(rows, ROW_BLOCK) * ROW_BLOCK;
}

/* Binds a linear, and packs its bits from the arena, which measures first. */
static void bind_linear(bitm_device_model *model, const bitm_linear &host, bitm_arena *arena,
                        Linear *linear)
{
    *linear = Linear();
    linear->rows = host.rows;
    linear->columns = host.columns;
    linear->n_branches = host.n_branches;
    for (uint32_t i = 0; i < host.n_branches; i++) {
        const bitm_branch &from = host.branches[i];
        Branch &to = linear->branches[i];
        to.host = &from;
        to.weight = matrix_of(model, from.weight);
        to.shift = on_device(model, from.shift);
        to.rms_gain = on_device(model, from.rms_gain);
        to.bias = on_device(model, from.bias);
        to.row_scale = on_device(model, from.row_scale);
        to.row_offset = on_device(model, from.row_offset);
        to.row_base = on_device(model, from.row_base);
        to.column_scale = on_device(model, from.column_scale);
        to.column_offset = on_device(model, from.column_offset);
        to.quantizer = quantizer_of(from.quantizer);
        uint32_t dtype = to.weight.dtype;
        if (dtype != BITM_DTYPE_BIT1 && dtype != BITM_DTYPE_TERN) continue;
        to.n_planes = dtype == BITM_DTYPE_TERN ? 2 : 1;
        to.n_pieces = pieces_of_bits(host.columns);
        size_t n = (size_t)to.n_planes * padded_rows(host.rows) * to.n_pieces;
        uint4 *planes = (uint4 *)bitm_arena_take(arena, n, sizeof(uint4));
        uint32_t *ones =
            (uint32_t *)bitm_arena_take(arena, padded_rows(host.rows), sizeof(uint32_t));
        if (planes == NULL) continue;
        to.planes = planes;
        BITM_LAUNCH(pack_kernel, (uint32_t)((n + 255) / 256), 256, 0, 0,
                    (const uint64_t *)to.weight.data, to.n_planes, host.rows,
                    (host.columns + 63) / 64, padded_rows(host.rows), to.n_pieces,
                    are_bytes(bitm_inputs_form(BITM_ACTIVATIONS_INT8, &from)), planes);
        to.row_ones = ones;
        BITM_LAUNCH(count_ones_kernel, ceil_div(host.rows, 256), 256, 0, 0, planes, host.rows,
                    to.n_pieces, ones);
    }
}

/* Takes the limits of a linear's sums for the quantizer of two levels that follows, if there is
 * one; shift: of that.  Only where gemm_bits_kernel takes the linear's inputs. */
static void bind_sum_limits(const bitm_device_model *model, bitm_arena *arena, uint32_t number,
                            Linear *linear, bool has_gelu, const Quantizer &next,
                            const float *shift)
{
    Branch &branch = linear->branches[0];
    const Quantizer &of_inputs = branch.quantizer;
    bool is_int = next.kind == KIND_INT;
    if (model->has_wgmma == 0 || linear->n_branches != 1 || branch.n_planes == 0 ||
        branch.n_pieces > LIMITED_PIECES || branch.row_offset != NULL || branch.row_base != NULL)
        return;
    if (!has_thresholds(next) || (is_int && next.hi - next.lo != 1.0F)) return;
    bitm_input_form form = bitm_inputs_form(BITM_ACTIVATIONS_INT8, branch.host);
    if (!has_thresholds(of_inputs) || (form != BITM_INPUT_SIGN && form != BITM_INPUT_PLANES))
        return;
    SumLimits *limits = (SumLimits *)bitm_arena_take(arena, linear->rows, sizeof(SumLimits));
    if (limits == NULL) return;
    float most = 1.0F; /* of a code */
    if (of_inputs.kind == KIND_INT)
        most = of_inputs.hi > -of_inputs.lo ? of_inputs.hi : -of_inputs.lo;
    SumLimitsOf of = {};
    of.row_scale = branch.row_scale;
    of.bias = branch.bias;
    of.shift = shift;
    of.step = of_inputs.step;
    of.threshold = threshold_of(next, is_int ? (int32_t)next.hi : 1);
    of.has_gelu = has_gelu;
    of.is_sign = next.kind == KIND_SIGN;
    of.most = (int32_t)most * (int32_t)linear->columns;
    BITM_LAUNCH(sum_limits_kernel, linear->rows, LIMITS_THREADS, 0, 0, of, limits,
                model->unknown_limits + number);
    branch.sum_limits = limits;
}

static void bind_limits(const bitm_device_model *model, bitm_arena *arena, uint32_t n, Layer *layer)
{
    const Branch &output = layer->output.branches[0];
    uint32_t number = n * N_LIMITED;
    if (model->network.config->hidden_activation == BITM_ACTIVATION_GELU)
        bind_sum_limits(model, arena, number + LIMITED_INNER, &layer->intermediate, true,
                        output.quantizer, output.shift);
    bind_sum_limits(model, arena, number + LIMITED_QUERY, &layer->query, false,
                    layer->quantize_query, NULL);
    bind_sum_limits(model, arena, number + LIMITED_KEY, &layer->key, false, layer->quantize_key,
                    NULL);
    bind_sum_limits(model, arena, number + LIMITED_VALUE, &layer->value, false,
                    layer->quantize_value, NULL);
}

/* Leaves out limits that do not tell all codes of a linear. */
static bitm_status forget_unknown_limits(bitm_device_model *model, bitm_error *err)
{
    for (uint32_t n = 0; n < model->network.config->n_layers; n++) {
        Layer &layer = model->layers[n];
        Linear *const linears[] = {&layer.query, &layer.key, &layer.value, &layer.intermediate};
        uint32_t n_unknown[N_LIMITED];
        BITM_CUDA_TRY(cudaMemcpy(n_unknown, model->unknown_limits + n * N_LIMITED, sizeof n_unknown,
                                 cudaMemcpyDeviceToHost),
                      "comparing sums in advance", err);
        for (int i = 0; i < LIMITED_CONTEXT; i++)
            if (n_unknown[i] > 0) linears[i]->branches[0].sum_limits = NULL;
        if (n_unknown[LIMITED_CONTEXT] > 0) layer.context_limits = NULL;
    }
    return BITM_OK;
}

bool has_sign_scores(const bitm_file_config &config, const Layer &layer)
{
    return layer.quantize_query.kind == KIND_SIGN && layer.quantize_key.kind == KIND_SIGN &&
           config.head_size == SIGNS_HEAD;
}

/* Takes the table of exponentials for a layer that has_sign_scores. */
static void bind_sign_exponentials(const bitm_file_config &config, bitm_arena *arena, Layer *layer)
{
    if (!has_sign_scores(config, *layer)) return;
    float *table = (float *)bitm_arena_take(arena, SIGN_EXPONENTIALS, sizeof(float));
    if (table == NULL) return;
    BITM_LAUNCH(sign_exponentials_kernel, SIGNS_HEAD + 1, 96, 0, 0,
                layer->quantize_query.step * layer->quantize_key.step, config.score_scale, table);
    layer->sign_exponentials = table;
}

static NormWeights norm_of(const bitm_device_model *model, const bitm_norm &norm)
{
    NormWeights weights = {on_device(model, norm.gain), on_device(model, norm.bias)};
    return weights;
}

static void bind_layer(bitm_device_model *model, uint32_t n, bitm_arena *arena, Layer *layer)
{
    const bitm_layer &host = model->network.layers[n];
    bind_linear(model, host.query, arena, &layer->query);
    bind_linear(model, host.key, arena, &layer->key);
    bind_linear(model, host.value, arena, &layer->value);
    bind_linear(model, host.query_p, arena, &layer->query_p);
    bind_linear(model, host.query_m, arena, &layer->query_m);
    bind_linear(model, host.key_p, arena, &layer->key_p);
    bind_linear(model, host.key_m, arena, &layer->key_m);
    bind_linear(model, host.value_term, arena, &layer->value_term);
    bind_linear(model, host.attention_output, arena, &layer->attention_output);
    bind_linear(model, host.intermediate, arena, &layer->intermediate);
    bind_linear(model, host.output, arena, &layer->output);
    layer->quantize_query = quantizer_of(host.quantize_query);
    layer->quantize_key = quantizer_of(host.quantize_key);
    layer->quantize_value = quantizer_of(host.quantize_value);
    layer->quantize_probabilities = quantizer_of(host.quantize_probabilities);
    bind_sign_exponentials(*model->network.config, arena, layer);
    layer->attention_norm = norm_of(model, host.attention_norm);
    layer->output_norm = norm_of(model, host.output_norm);
    bind_limits(model, arena, n, layer);
}

static void bind(bitm_device_model *model, bitm_arena *arena)
{
    const bitm_network &network = model->network;
    uint32_t n_layers = network.config->n_layers;
    model->unknown_limits =
        (uint32_t *)bitm_arena_take(arena, (size_t)n_layers * N_LIMITED, sizeof(uint32_t));
    if (model->unknown_limits != NULL) /* upload asks for the last error */
        (void)cudaMemsetAsync(model->unknown_limits, 0,
                              (size_t)n_layers * N_LIMITED * sizeof(uint32_t));
    for (uint32_t n = 0; n < n_layers; n++)
        bind_layer(model, n, arena, &model->layers[n]);
    for (uint32_t n = 0; n < n_layers; n++)
        bind_ordered_weights(model, arena, n);
    bind_linear(model, network.pooler, arena, &model->pooler);
    bind_linear(model, network.mlm_transform, arena, &model->mlm_transform);
    bind_linear(model, network.mlm_decoder, arena, &model->mlm_decoder);
    bind_linear(model, network.classifier, arena, &model->classifier);
    model->embedding_norm = norm_of(model, network.embedding_norm);
    model->pooler_norm = norm_of(model, network.pooler_norm);
    model->mlm_norm = norm_of(model, network.mlm_norm);
    model->word = matrix_of(model, network.word);
    model->word_second = matrix_of(model, network.word_second);
    model->position = matrix_of(model, network.position);
    model->token_type = matrix_of(model, network.token_type);
    model->ones = on_device(model, network.ones);
}

static bitm_status upload(bitm_device_model *model, bitm_error *err)
{
    for (int i = 0; i < 2; i++) {
        const bitm_device_memory &memory = model->memory[i];
        BITM_CUDA_TRY(cudaMalloc((void **)&model->copies[i], memory.n_bytes),
                      "memory of the model on the device", err);
        BITM_CUDA_TRY(
            cudaMemcpy(model->copies[i], memory.base, memory.n_bytes, cudaMemcpyHostToDevice),
            "copying the model to the device", err);
        model->n_bytes += memory.n_bytes;
    }
    bitm_arena arena = {};
    bind(model, &arena);
    if (arena.overflow)
        return bitm_fail(err, BITM_NO_MEMORY,
                         "the model needs more memory than there are addresses");
    if (arena.n_used == 0) return BITM_OK;
    BITM_CUDA_TRY(cudaMalloc((void **)&model->packed, arena.n_used),
                  "memory of the model's bits on the device", err);
    model->n_bytes += arena.n_used;
    bitm_arena placing = {};
    placing.base = model->packed;
    bind(model, &placing);
    BITM_CUDA_TRY(cudaGetLastError(), "packing the model's bits", err);
    BITM_CUDA_TRY(cudaDeviceSynchronize(), "packing the model's bits", err);
    return forget_unknown_limits(model, err);
}

/* Whether the code that this device runs has the products of Hopper: the device tells. */
static bitm_status find_wgmma(uint32_t *found, bitm_error *err)
{
    uint32_t *has;
    BITM_CUDA_TRY(cudaMalloc((void **)&has, sizeof *has), "memory on the device", err);
    BITM_LAUNCH(has_wgmma_kernel, 1, 1, 0, 0, has);
    cudaError_t error = cudaMemcpy(found, has, sizeof *has, cudaMemcpyDeviceToHost);
    (void)cudaFree(has);
    BITM_CUDA_TRY(error, "running on the device", err);
    return BITM_OK;
}

/* The conditions are those of gemm.cuh, in terms of the code that was chosen for the device: 80 for
 * sm_80. */
static const char *products_of_bits(int code, bool wgmma)
{
    return wgmma ? "wgmma b1" : code >= 80 && code <= 90 ? "mma b1" : "popc";
}

static const char *products_of_bytes(int code, bool wgmma)
{
    if (wgmma) return "wgmma s8";
    return code >= 80 ? "mma s8" : code >= 61 && code != 62 ? "dp4a" : "imad";
}

static bitm_status find_code(int *code, bitm_error *err)
{
    cudaFuncAttributes attributes;
    BITM_CUDA_TRY(cudaFuncGetAttributes(&attributes, (const void *)has_wgmma_kernel),
                  "asking for the device's code", err);
    *code = attributes.binaryVersion;
    return BITM_OK;
}

bitm_status describe(uint32_t device, char *text, size_t n_bytes, bitm_error *err)
{
    cudaDeviceProp properties;
    int code = 0;
    uint32_t has_wgmma = 0;
    BITM_CUDA_TRY(cudaSetDevice((int)device), "choosing the device", err);
    BITM_CUDA_TRY(cudaGetDeviceProperties(&properties, (int)device), "asking for the device", err);
    bitm_status status = find_code(&code, err);
    if (status == BITM_OK) status = find_wgmma(&has_wgmma, err);
    if (status != BITM_OK) return status;
    bool wgmma = has_wgmma != 0;
    (void)snprintf(
        text, n_bytes,
        "cuda:%u: %.128s, compute capability %d.%d, %d multiprocessors; bits by %s, bytes "
        "by %s",
        device, properties.name, properties.major, properties.minor, properties.multiProcessorCount,
        products_of_bits(code, wgmma), products_of_bytes(code, wgmma));
    return BITM_OK;
}

static bitm_status ask_device(bitm_device_model *model, bitm_error *err)
{
    cudaDeviceProp properties;
    BITM_CUDA_TRY(cudaGetDeviceProperties(&properties, model->device), "asking for the device",
                  err);
    model->shared_bytes = properties.sharedMemPerBlockOptin > 0 ? properties.sharedMemPerBlockOptin
                                                                : properties.sharedMemPerBlock;
    model->n_multiprocessors = (uint32_t)properties.multiProcessorCount;
    int code = 0;
    bitm_status status = find_wgmma(&model->has_wgmma, err);
    if (status == BITM_OK) status = find_code(&code, err);
    if (status != BITM_OK) return status;
    model->has_tensor_cores = code >= 80; /* the condition of attention_tensor.cuh */
    return describe((uint32_t)model->device, model->description, sizeof model->description, err);
}

static bitm_status use_tensor_attention(bitm_device_model *model, bitm_error *err)
{
    if (!model->has_tensor_cores)
        return bitm_fail(
            err, BITM_UNSUPPORTED,
            "kernels: attention=tensor needs a GPU of compute capability 8.0 or above");
    model->tensor_attention = true;
    size_t n = strlen(model->description);
    (void)snprintf(model->description + n, sizeof model->description - n, "; attention=tensor");
    return BITM_OK;
}

bitm_status model_create(uint32_t device, const bitm_network *network,
                         const bitm_device_memory memory[2], bool tensor_attention,
                         bitm_device_model **model, bitm_error *err)
{
    BITM_CUDA_TRY(cudaSetDevice((int)device), "choosing the device", err);
    bitm_device_model *created = new (std::nothrow) bitm_device_model();
    uint32_t n_layers = network->config->n_layers;
    if (created != NULL) created->layers = new (std::nothrow) Layer[n_layers + 1]();
    if (created == NULL || created->layers == NULL) {
        delete created;
        return bitm_fail(err, BITM_NO_MEMORY, "the system refuses memory for %u layers", n_layers);
    }
    created->device = (int)device;
    created->network = *network;
    created->memory[0] = memory[0];
    created->memory[1] = memory[1];
    bitm_status status = ask_device(created, err);
    if (status == BITM_OK && tensor_attention) status = use_tensor_attention(created, err);
    if (status == BITM_OK) status = upload(created, err);
    if (status != BITM_OK) {
        model_free(created);
        return status;
    }
    *model = created;
    return BITM_OK;
}

void model_free(bitm_device_model *model)
{
    if (model == NULL) return;
    (void)cudaSetDevice(model->device);
    (void)cudaFree(model->packed);
    (void)cudaFree(model->copies[0]);
    (void)cudaFree(model->copies[1]);
    delete[] model->layers;
    delete model;
}

} // namespace bitm
