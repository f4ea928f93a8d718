#include "quantizer.h"

#include "kernels/kernels.h"

/* Codes of up to so many bits are multiplied as planes, others as bytes. */
enum { MAX_FEW_PLANES = 4 };

/* Weights of planes: of two's complement codes the highest counts negative. */
static const int32_t unsigned_weights[BITM_MAX_PLANES] = {
    1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
static const int32_t signed_weights[BITM_MAX_PLANES][BITM_MAX_PLANES] = {
    {-1},
    {1, -2},
    {1, 2, -4},
    {1, 2, 4, -8},
    {1, 2, 4, 8, -16},
    {1, 2, 4, 8, 16, -32},
    {1, 2, 4, 8, 16, 32, -64},
    {1, 2, 4, 8, 16, 32, 64, -128},
    {1, 2, 4, 8, 16, 32, 64, 128, -256},
    {1, 2, 4, 8, 16, 32, 64, 128, 256, -512},
    {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, -1024},
    {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, -2048},
    {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, -4096},
    {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, -8192},
    {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, -16384},
    {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768},
};

uint32_t bitm_quantizer_planes(const bitm_file_quantizer *quantizer, const int32_t **weights)
{
    uint32_t n = 1;
    if (quantizer->lo >= 0) {
        while (quantizer->hi >> n > 0)
            n++;
        *weights = unsigned_weights;
    } else {
        while (quantizer->hi >> (n - 1) > 0 || quantizer->lo + (1 << (n - 1)) < 0)
            n++;
        *weights = signed_weights[n - 1];
    }
    return n;
}

bitm_input_form bitm_inputs_form(bitm_activations activations, const bitm_branch *branch)
{
    uint32_t dtype = branch->weight.tensor->dtype;
    if (dtype != BITM_DTYPE_BIT1 && dtype != BITM_DTYPE_TERN) return BITM_INPUT_FLOAT;
    const bitm_file_quantizer *quantizer = branch->quantizer;
    if (quantizer == NULL) {
        if (activations == BITM_ACTIVATIONS_FLOAT32) return BITM_INPUT_FLOAT;
        return activations == BITM_ACTIVATIONS_INT16 ? BITM_INPUT_I16 : BITM_INPUT_I8;
    }
    const int32_t *weights;
    if (quantizer->kind == BITM_QUANTIZER_SIGN) return BITM_INPUT_SIGN;
    if (bitm_quantizer_planes(quantizer, &weights) <= MAX_FEW_PLANES) return BITM_INPUT_PLANES;
    return quantizer->lo >= -128 && quantizer->hi <= 127 ? BITM_INPUT_I8 : BITM_INPUT_I16;
}
