/* The forward pass, between the files that it is cut into: inputs.cu (what linears take),
 * products.cu (linears), norms.cu, attention.cu, layer_signs.cu, and forward.cu (layers and heads).
 */
#ifndef BITM_CUDA_FORWARD_CUH
#define BITM_CUDA_FORWARD_CUH

#include "session.cuh"
#include "tokens.cuh"

namespace bitm {

#define BITM_TRY_STATUS(call)                                                                      \
    do {                                                                                           \
        bitm_status try_status_ = (call);                                                          \
        if (try_status_ != BITM_OK) return try_status_;                                            \
    } while (0)

/* Lets a kernel have as much shared memory as there is. */
template <typename Kernel>
static bitm_status allow_shared(Kernel kernel, const bitm_device_model *model, bitm_error *err)
{
    BITM_CUDA_TRY(cudaFuncSetAttribute((const void *)kernel,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       (int)model->shared_bytes),
                  "preparing a kernel", err);
    return BITM_OK;
}

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
struct Work {
    bitm_device_session *session;
    uint32_t n_tokens;  /* a multiple of TOKEN_BLOCK */
    const Batch *batch; /* NULL: every token alone */
};

/* Starts a kernel that calls wait_for_kernels_before, and on Hopper may so begin before the one
 * before it has ended; cluster: how many neighbouring blocks share memory. */
template <typename... Parameters, typename... Arguments>
static void launch_early(const Work &w, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                         size_t shared, uint32_t cluster, const Arguments &...arguments)
{
    cudaStream_t stream = w.session->stream;
    if (w.session->model->has_wgmma == 0) {
        BITM_LAUNCH(kernel, grid, block, shared, stream, arguments...);
        return;
    }
#if CUDART_VERSION >= 12000 /* those before make no code for Hopper */
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = cluster;
    attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = cluster > 1 ? 2 : 1;
    (void)cudaLaunchKernelEx(&config, kernel, arguments...); /* forward asks for the last error */
#else
    (void)cluster;
#endif
}

static inline uint32_t token_blocks(uint32_t n_tokens)
{
    return ceil_div(n_tokens, TOKENS_A_BLOCK);
}

/* ---- inputs.cu ---- */

/* The statistics that a quantizer of whole sequences needs. */
void find_extremes(const Work &w, Encoding *e);

/* The form of a branch's inputs. */
static inline bitm_input_form form_of(const Work &w, const Branch &branch)
{
    return bitm_inputs_form((bitm_activations)w.session->limits.activations, branch.host);
}

/* The inputs of a branch in a place, and how to encode x for them. */
void plan_inputs(const Work &w, const Branch *branch, const float *x, uint32_t n,
                 const Encoded *place, Inputs *inputs, Encoding *e);

void encode(const Work &w, const Encoding &e);

/* Whether what is encoded for a linear is x itself, as bytes by the runtime's own quantizer. */
bool takes_free_codes(const Work &w, const Linear &linear);

/* See bitm_inputs_make of inputs.c. */
void make_inputs(const Work &w, const Branch *branch, const float *x, uint32_t n, Inputs *inputs);

/* Whether the inputs of two branches are the same. */
bool is_same(const Branch *a, const Branch *b);

/* Whether a kernel that computes parts of the rows of x can encode them for this linear, as at most
 * two planes of bits. */
bool can_follow_in_parts(const Work &w, const Linear &linear);

/* Whether rows of so many columns fit in the registers of the norm's kernels. */
bool is_in_registers(uint32_t n);

/* Whether kernels that write parts of the rows of this linear's inputs count bits meanwhile: the
 * norm before has cleared the counts, and no float sum of the inputs is wanted. */
bool can_count(const Work &w, const Linear &linear);

/* The inputs of a linear that a kernel writes in parts, in the place after products and attention,
 * and how to encode them. */
void plan_in_parts(const Work &w, const Linear &linear, Inputs *inputs, Encoding *e);

/* What is known of tokens whose planes have been written in parts, unless it has been counted. */
void sum_planes(const Work &w, const Encoding &e);

/* How the inputs of a linear are going to be written, and counted, in parts. */
Encoding counted_encoding(const Work &w, const Linear &linear);

/* What follows a norm: the linears that take its results, whose inputs are made in places of their
 * own, and one whose inputs are counted later, or NULL. */
struct Next {
    const Linear *linears[3];
    uint32_t n;
    Inputs *inputs;
    const Linear *counted;
};

/* Leaves all of them to be made. */
void leave_inputs(const Work &w, const Next &next);

/* Plans the inputs that a norm of n columns makes; those it cannot make are left to be made. */
Followers plan_followers(const Work &w, uint32_t n, const Next &next);

/* ---- products.cu ---- */

/* Whether a linear is one product of integers with the plain epilogue. */
bool is_plain_product(const Work &w, const Linear &linear);

/* The product of a branch, but for what follows it. */
Product product_of(const Work &w, const Branch *branch, const Inputs &inputs, uint32_t columns);

/* The product of number i of query, key and value, whose inputs may be those of the one before. */
Product product_of_operand(const Work &w, const Linear &linear, const float *x, Inputs inputs[3],
                           int i);

/* What follows the product of a branch, which is not accumulated. */
Epilogue epilogue_of(const Branch *branch, const Inputs &inputs, uint32_t activation,
                     float *outputs);

/* outputs = activation(linear(x)); *inputs may be those of a linear of the same x. */
void run_linear(const Work &w, const Linear &linear, const float *x, uint32_t activation,
                float *outputs, Inputs *inputs);

/* Query, key and value in the session's buffers. */
void run_query_key_value(const Work &w, const Layer &layer, const float *x, Inputs inputs[3]);

/* The same of one linear, its inputs made anew. */
void linear(const Work &w, const Linear &linear, const float *x, uint32_t activation,
            float *outputs);

/* Whether the results of a linear can be encoded for the next one some tokens at a time. */
bool can_encode_in_parts(const Work &w, const Linear &linear, const Linear &next);

/* next's inputs = activation(linear(x)), where can_encode_in_parts: of as many tokens at a time as
 * keep the floats between the two in the GPU's cache. */
void run_linear_encoded(const Work &w, const Linear &linear, const float *x, uint32_t activation,
                        const Linear &next, Inputs *inputs, Inputs *next_inputs);

/* Whether a product can write its outputs as planes of bits. */
bool can_write_planes(const Work &w, const Linear &linear, uint32_t activation);

/* Planes of three linears of x by encodings of their own, where each can_write_planes; in one
 * kernel where sums tell them. */
void run_three_to_planes(const Work &w, const Linear *const linears[3], const float *x,
                         const Encoding encodings[3], Inputs inputs[3]);

/* Whether a product can write its outputs as the inputs of the next linear, in bits alone. */
bool can_write_bits(const Work &w, const Linear &linear, uint32_t activation, const Linear &next);

/* next's inputs = activation(linear(x)), where can_write_bits. */
void run_linear_to_bits(const Work &w, const Linear &linear, const float *x, uint32_t activation,
                        const Linear &next, Inputs *inputs, Inputs *next_inputs);

bitm_status prepare_products(const bitm_device_model *model, bitm_error *err);

/* ---- norms.cu ---- */

/* x = norm(linear(inputs) + x), and the inputs of what follows, in one kernel where it can run;
 * inputs in the place after products or attention, which what follows does not use. */
void run_linear_norm(const Work &w, const Linear &linear, const float *from, Inputs *inputs,
                     const NormWeights &norm, const Next &next);

/* y = norm(x + residual), and the inputs of what follows. */
void add_norm(const Work &w, const float *x, const float *residual, const NormWeights &norm,
              float eps, uint32_t n, float *y, const Next &next);

bitm_status prepare_norms(const bitm_device_model *model, bitm_error *err);

/* ---- attention.cu ---- */

/* attention_output, where the bits of its inputs are counted while attention writes them, or NULL.
 */
const Linear *counted_after_attention(const Work &w, const Layer &layer);

/* The context, or in its place the inputs of attention_output. */
void run_attention(const Work &w, const Layer &layer, const float *x, Inputs *context);

/* Query, key, value and attention in one kernel, where it can run; inputs: those of the three, made
 * where they are not yet; *context: as of run_attention. */
bool attend(const Work &w, const Layer &layer, const float *x, Inputs inputs[3], Inputs *context);

/* How query, key and value become planes of signs, where attention is of signs whose probabilities
 * become 0 or 1; false where it is not. */
bool plan_sign_operands(const Work &w, const Layer &layer, Encoding encodings[3]);

/* Planes of signs of query, key and value, by their products or after them. */
void run_sign_operands(const Work &w, const Layer &layer, const float *x, Inputs inputs[3],
                       const Encoding encodings[3]);

/* The same as attend of signs; has_operands: query, key and value are in their planes. */
bool attend_signs(const Work &w, const Layer &layer, const float *x, bool has_operands,
                  Inputs inputs[3], Inputs *context);

bitm_status prepare_attention(const bitm_device_model *model, bitm_error *err);

/* ---- layer_signs.cu ---- */

/* What run_layer_signs has made ahead of the next layer: planes of its query, key and value, and
 * its residual, which is then in the place of intermediate's results, for run_layer_signs alone. */
struct Ahead {
    bool has_operands, has_rows;
};

/* All of a layer after attention in one kernel, where it can run: x, the inputs of what follows,
 * and what is made ahead of the layer after; *ahead: what there is of this one. */
bool run_layer_signs(const Work &w, const Layer &layer, const Inputs &context, const Next &next,
                     const Layer *after, Ahead *ahead);

/* Query, key, value and attention of few signs in one kernel, where it can run: as of attend. */
bool attend_few_signs(const Work &w, const Layer &layer, const float *x, Inputs inputs[3],
                      Inputs *context);

/* All layers in one kernel, or a few, where sequences lie within blocks: the first is given the
 * embeddings and their inputs.  Returns how many have been run: all, or none. */
uint32_t run_layers_of_signs(const Work &w, uint32_t n_layers, Inputs inputs[3]);

bitm_status prepare_layers(const bitm_device_model *model, bitm_error *err);

} // namespace bitm

#endif
