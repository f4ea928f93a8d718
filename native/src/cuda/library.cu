/* What libbitm_cuda exports: see device.h. */
#include "host.h"

namespace bitm {

static bitm_status count(uint32_t *n, bitm_error *err)
{
    int found = 0;
    cudaError_t error = cudaGetDeviceCount(&found);
    if (error != cudaSuccess || found <= 0) {
        (void)cudaGetLastError();
        return bitm_fail(err, BITM_DEVICE, "no GPU can be used: %s",
                         error != cudaSuccess ? cudaGetErrorString(error) : "there is none");
    }
    *n = (uint32_t)found;
    return BITM_OK;
}

static const char *model_description(const bitm_device_model *model)
{
    return model->description;
}

static uint64_t model_bytes(const bitm_device_model *model)
{
    return model->n_bytes;
}

static const bitm_device_api api = {
    BITM_DEVICE_VERSION, sizeof api,   count,          describe,     model_create,
    model_free,          model_description, model_bytes, session_plan, session_create,
    session_free,        session_encode,    session_finish,
};

} // namespace bitm

#if defined(_WIN32)
#define BITM_CUDA_EXPORT __declspec(dllexport)
#else
#define BITM_CUDA_EXPORT __attribute__((visibility("default")))
#endif

extern "C" BITM_CUDA_EXPORT const bitm_device_api *bitm_device_cuda(void)
{
    return &bitm::api;
}
