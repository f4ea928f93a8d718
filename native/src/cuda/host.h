/* The C side of bitm, as the CUDA sources see it; errors of the driver as statuses. */
#ifndef BITM_CUDA_HOST_H
#define BITM_CUDA_HOST_H

#include <cuda_runtime.h>

#include <stddef.h>
#include <stdint.h>

#define _Static_assert static_assert
extern "C" {
#include "../arena.h"
#include "../device.h"
#include "../quantizer.h"
}

#include "quantize.cuh"

#if !defined(BITM_LAUNCH)
#define BITM_LAUNCH(kernel, grid, block, shared, stream, ...)                                      \
    kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)
#endif

namespace bitm {

/* The status of a failure, with what was tried and the driver's words. */
bitm_status fail(cudaError_t error, const char *what, bitm_error *err);

#define BITM_CUDA_TRY(call, what, err)                                                             \
    do {                                                                                           \
        cudaError_t try_error_ = (call);                                                           \
        if (try_error_ != cudaSuccess) return ::bitm::fail(try_error_, what, err);                 \
    } while (0)

static inline bool are_bytes(bitm_input_form form)
{
    return form == BITM_INPUT_I8 || form == BITM_INPUT_I16;
}

/* A branch of a linear: pointers into the device's memory. */
struct Branch {
    const bitm_branch *host;
    Matrix weight;
    const uint4 *planes; /* of bits, in tiles; NULL: weights are no bits */
    uint32_t n_planes, n_pieces;
    const uint32_t *row_ones; /* of bit1: how many positive weights each row has */
    const float *shift, *rms_gain, *bias, *row_scale, *row_offset, *row_base;
    const float *column_scale, *column_offset;
    Quantizer quantizer;
    const SumLimits *sum_limits;   /* of sums that tell the codes of what follows; NULL: none */
    const uint32_t *packed_limits; /* the same for run_layer_signs; NULL: it does not want them */
};

struct Linear {
    uint32_t rows, columns, n_branches;
    Branch branches[BITM_MAX_BRANCHES];
};

struct NormWeights {
    const float *gain, *bias;
};

struct Layer {
    Linear query, key, value, query_p, query_m, key_p, key_m, value_term;
    Linear attention_output, intermediate, output;
    Quantizer quantize_query, quantize_key, quantize_value, quantize_probabilities;
    const float *sign_exponentials; /* of scores of signs; NULL: query or key have others */
    NormWeights attention_norm, output_norm;
    /* For run_layer_signs; NULL: it does not take the layer.  They may have query, key and value of
     * the layer after, too. */
    const uint4 *ordered_weights;
    bool has_ordered_operands;
    const uint32_t
        *context_limits; /* of attention of signs, likewise; NULL: they do not tell all */
};

/* Of a layer: query, key, value, intermediate and the context, which may become codes of two
 * levels.
 */
enum { LIMITED_QUERY, LIMITED_KEY, LIMITED_VALUE, LIMITED_INNER, LIMITED_CONTEXT, N_LIMITED };

Quantizer quantizer_of(const bitm_file_quantizer *quantizer);

/* Whether kernels can encode what they compute by thresholds: signs, or at most MAX_THRESHOLDS + 1
 * levels. */
bool has_thresholds(const Quantizer &quantizer);

/* Whether a layer's queries and keys are signs, in heads of SIGNS_HEAD. */
bool has_sign_scores(const bitm_file_config &config, const Layer &layer);

/* Takes the weights of layer n, if it is one of signs, whose bits are packed, in the order of its
 * kernel. */
void bind_ordered_weights(const bitm_device_model *model, bitm_arena *arena, uint32_t n);

/* The least float whose code is at least `code`; a NaN where there is none. */
float threshold_of(const Quantizer &quantizer, int32_t code);

} // namespace bitm

/* Memory on the device that a model or a session owns. */
struct bitm_device_model {
    int device;
    size_t shared_bytes; /* most that a block may have */
    uint32_t n_multiprocessors;
    uint32_t has_wgmma;
    bool has_tensor_cores, tensor_attention;
    bitm_network network; /* host pointers */
    bitm_device_memory memory[2];
    uint8_t *copies[2]; /* of the memory */
    uint8_t *packed;    /* weights in tiles */
    uint64_t n_bytes;
    bitm::Layer *layers;
    uint32_t *unknown_limits; /* [n_layers, N_LIMITED] on the device, while the model is bound */
    bitm::Linear pooler, mlm_transform, mlm_decoder, classifier;
    bitm::NormWeights embedding_norm, pooler_norm, mlm_norm;
    bitm::Matrix word, word_second, position, token_type;
    const float *ones; /* as long as the longest row */
    char description[320];
};

namespace bitm {

/* Pointers of the network, on the device; NULL stays NULL. */
template <typename T> const T *on_device(const bitm_device_model *model, const T *pointer)
{
    for (int i = 0; i < 2 && pointer != NULL; i++) {
        size_t offset = (size_t)((uintptr_t)pointer - (uintptr_t)model->memory[i].base);
        if (offset < model->memory[i].n_bytes) return (const T *)(model->copies[i] + offset);
    }
    return NULL;
}

bitm_status describe(uint32_t device, char *text, size_t n_bytes, bitm_error *err);
bitm_status model_create(uint32_t device, const bitm_network *network,
                         const bitm_device_memory memory[2], bool tensor_attention,
                         bitm_device_model **model, bitm_error *err);
void model_free(bitm_device_model *model);

bitm_status session_plan(const bitm_device_model *model, bitm_device_limits *limits,
                         uint64_t *n_bytes, bitm_error *err);
bitm_status session_create(const bitm_device_model *model, const bitm_device_limits *limits,
                           bitm_device_session **session, bitm_error *err);
void session_free(bitm_device_session *session);
bitm_status session_encode(bitm_device_session *session, const bitm_device_input *input,
                           uint32_t n_layers, bitm_error *err);
bitm_status session_finish(bitm_device_session *session, const bitm_device_request *request,
                           const void **results, bitm_error *err);

} // namespace bitm

#endif
