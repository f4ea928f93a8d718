/* Bytes by the runtime's own quantizer, for rows that fit in a warp's registers: each is read once.
 */
#ifndef BITM_CUDA_ENCODE_ROWS_CUH
#define BITM_CUDA_ENCODE_ROWS_CUH

#include "quantize.cuh"

namespace bitm {

/* Of a row of 128 * N columns; as encode_kernel, one warp a token. */
template <int N>
static __global__ void __launch_bounds__(QUANTIZE_THREADS) encode_rows_kernel(Encoding e)
{
    size_t token = blockIdx.x * WARPS_A_BLOCK + threadIdx.x / WARP;
    uint32_t lane = threadIdx.x % WARP;
    if (token >= e.n_tokens) return;
    const float4 *x = (const float4 *)(e.x + token * (N * 128)) + lane;
    float4 values[N];
#pragma unroll
    for (int k = 0; k < N; k++)
        values[k] = x[k * WARP];
    float greatest = 0.0F, max_code = e.form == FORM_I8 ? 127.0F : 32767.0F, step;
#pragma unroll
    for (int k = 0; k < N; k++) {
        greatest = greater_abs(greater_abs(greatest, values[k].x), values[k].y);
        greatest = greater_abs(greater_abs(greatest, values[k].z), values[k].w);
    }
    float factor = free_factor(warp_max(greatest), max_code, &step);
    uint32_t *low = (uint32_t *)(e.planes + piece_place(token, lane / 4, e.n_pieces)) + lane % 4;
    uint32_t *high = low + e.plane_stride * 4;
    int32_t sum = 0;
#pragma unroll
    for (int k = 0; k < N; k++) {
        int32_t c0 = free_code(values[k].x, factor, max_code);
        int32_t c1 = free_code(values[k].y, factor, max_code);
        int32_t c2 = free_code(values[k].z, factor, max_code);
        int32_t c3 = free_code(values[k].w, factor, max_code);
        sum += c0 + c1 + c2 + c3;
        size_t place = (size_t)k * (WARP / 4) * TILE_ROWS * 4;
        low[place] = four_bytes(c0, c1, c2, c3);
        if (e.form == FORM_I16) high[place] = four_bytes(c0 >> 8, c1 >> 8, c2 >> 8, c3 >> 8);
    }
    sum = warp_sum(sum);
    if (lane != 0) return;
    e.step[token] = step;
    e.base[token] = 0.0F;
    e.code_sum[token] = sum;
    if (e.sum != NULL) e.sum[token] = step * (float)sum;
}

} // namespace bitm

#endif
