/* Bytes by the runtime's own quantizer, for rows that fit in the registers of two warps: each is
 * read once. */
#ifndef BITM_CUDA_ENCODE_ROWS_CUH
#define BITM_CUDA_ENCODE_ROWS_CUH

#include "hopper.cuh"
#include "quantize.cuh"

namespace bitm {

enum { ROW_THREADS = 2 * WARP, ROWS_A_BLOCK = QUANTIZE_THREADS / ROW_THREADS };

/* Of rows of 256 * N columns, as many as ROWS_A_BLOCK divides; as encode_kernel. */
template <int N>
static __global__ void __launch_bounds__(QUANTIZE_THREADS) encode_rows_kernel(Encoding e)
{
    __shared__ float greatest[WARPS_A_BLOCK];
    __shared__ int32_t sums[WARPS_A_BLOCK];
    size_t token = blockIdx.x * ROWS_A_BLOCK + threadIdx.x / ROW_THREADS;
    uint32_t i = threadIdx.x % ROW_THREADS, warp = threadIdx.x / WARP;
    const float4 *x = (const float4 *)(e.x + token * (N * 256)) + i;
    float4 values[N];
    wait_for_kernels_before(e.n_tokens);
#pragma unroll
    for (int k = 0; k < N; k++)
        values[k] = x[k * ROW_THREADS];
    float most = 0.0F, max_code = e.max_code, step;
#pragma unroll
    for (int k = 0; k < N; k++) {
        most = greater_abs(greater_abs(most, values[k].x), values[k].y);
        most = greater_abs(greater_abs(most, values[k].z), values[k].w);
    }
    most = warp_max(most);
    if (i % WARP == 0) greatest[warp] = most;
    __syncthreads();
    float factor = free_factor(fmaxf(most, greatest[warp ^ 1]), max_code, &step);
    uint32_t *low = (uint32_t *)(e.planes + piece_place(token, i / 4, e.n_pieces)) + i % 4;
    uint32_t *high = low + e.plane_stride * 4;
    int32_t sum = 0;
#pragma unroll
    for (int k = 0; k < N; k++) {
        int32_t c0 = free_code(values[k].x, factor, max_code);
        int32_t c1 = free_code(values[k].y, factor, max_code);
        int32_t c2 = free_code(values[k].z, factor, max_code);
        int32_t c3 = free_code(values[k].w, factor, max_code);
        sum += c0 + c1 + c2 + c3;
        size_t place = (size_t)k * (ROW_THREADS / 4) * TILE_ROWS * 4;
        low[place] = four_bytes(c0, c1, c2, c3);
        if (e.form == FORM_I16) high[place] = four_bytes(c0 >> 8, c1 >> 8, c2 >> 8, c3 >> 8);
    }
    sum = warp_sum(sum);
    if (i % WARP == 0) sums[warp] = sum;
    __syncthreads();
    if (i != 0) return;
    sum += sums[warp + 1];
    e.step[token] = step;
    e.base[token] = 0.0F;
    e.code_sum[token] = sum;
    if (e.sum != NULL) e.sum[token] = step * (float)sum;
}

} // namespace bitm

#endif
