/* Embeddings of the common kind, with their norm and the inputs of the first layer in one kernel.
 */
#ifndef BITM_CUDA_EMBED_CUH
#define BITM_CUDA_EMBED_CUH

#include "tokens.cuh"

namespace bitm {

enum { DTYPE_SINGLE = 1, DTYPE_HALF = 2 };

/* Tables of float16 or float32 without scales, whose rows are added up in this order. */
struct EmbeddingSum {
    Matrix tables[4];
    const int32_t *rows[4]; /* [n_tokens] */
    uint32_t n_tables;
    Norm norm; /* x, residual: not used */
    Followers followers;
};

static __device__ inline float float_of_half(uint16_t half)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 530
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
    return x;
#else
    return bitm_f16_to_f32(half);
#endif
}

/* As embed_kernel, a token's values in registers, N16 = n / 16: all of a row are read at once. */
template <int N16>
static __global__ void __launch_bounds__(TOKEN_THREADS) embed_registers_kernel(EmbeddingSum e)
{
    uint32_t token = blockIdx.x * TOKENS_A_BLOCK + threadIdx.x / LANES, l = threadIdx.x % LANES;
    if (token >= e.norm.n_tokens) return;
    float value[N16];
#pragma unroll 1
    for (uint32_t k = 0; k < e.n_tables; k++) {
        size_t first = (size_t)e.rows[k][token] * (N16 * LANES) + l;
        const float *singles = (const float *)e.tables[k].data + first;
        const uint16_t *halves = (const uint16_t *)e.tables[k].data + first;
        bool is_single = e.tables[k].dtype == DTYPE_SINGLE;
#pragma unroll
        for (int i = 0; i < N16; i++) {
            float x = is_single ? singles[i * LANES] : float_of_half(halves[i * LANES]);
            value[i] = k == 0 ? x : value[i] + x;
        }
    }
    const NormPlaces places = {e.norm.gain, e.norm.bias, e.norm.y + (size_t)token * e.norm.n};
    finish_norm<N16>(e.norm, places, l, value);
    encode_followers<N16>(e.followers, token, l, value);
}

} // namespace bitm

#endif
