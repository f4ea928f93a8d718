/* Where results need not be computed: a static quantizer of two levels, behind a product of
 * integers, asks for no more than how their sum compares with one or two others. */
#ifndef BITM_CUDA_SUM_LIMITS_CUH
#define BITM_CUDA_SUM_LIMITS_CUH

#include "quantize.cuh"

namespace bitm {

enum {
    LIMITS_THREADS = 256,
    LIMITED_PIECES = 8, /* of a row of inputs, at most: what gemm_bits_kernel takes */
};

/* What becomes of the sums of a linear: fmaf(sum, row_scale * step, bias), GELU, shift, code. */
struct SumLimitsOf {
    const float *row_scale, *bias; /* NULL: 1, 0 */
    const float *shift;            /* NULL: none */
    float step;                    /* of the linear's inputs */
    float threshold;               /* the least float that has the greater code */
    uint32_t has_gelu, is_sign;
    int32_t most; /* no sum is beyond, on either side of 0 */
};

/* limits [gridDim.x], a block each, found by trying every sum.  *n_unknown counts outputs whose
 * sums they do not tell: because GELU's float32 form steps back by a little, or because zeros
 * have a code of their own. */
static __global__ void __launch_bounds__(LIMITS_THREADS)
    sum_limits_kernel(SumLimitsOf a, SumLimits *limits, uint32_t *n_unknown)
{
    __shared__ int32_t least, greatest, n_lower; /* sums with the lower code */
    uint32_t o = blockIdx.x;
    if (threadIdx.x == 0) {
        least = NO_LIMIT;
        greatest = -NO_LIMIT;
        n_lower = 0;
    }
    __syncthreads();
    float scale = a.row_scale != NULL ? a.row_scale[o] * a.step : a.step;
    float bias = a.bias != NULL ? a.bias[o] : 0.0F;
    float shift = a.shift != NULL ? a.shift[o] : 0.0F;
    bool knows = true;
    for (int32_t sum = -a.most + (int32_t)threadIdx.x; sum <= a.most; sum += LIMITS_THREADS) {
        float x = fmaf((float)sum, scale, bias);
        float z = (a.has_gelu ? bitm_gelu(x) : x) + shift;
        if (a.is_sign && !(fabsf(z) > 0.0F)) knows = false;
        if (z >= a.threshold) continue;
        atomicMin(&least, sum);
        atomicMax(&greatest, sum);
        atomicAdd(&n_lower, 1);
    }
    knows = __syncthreads_and(knows) != 0;
    if (threadIdx.x != 0) return;
    bool rises = n_lower == 0 || greatest < a.most, falls = n_lower > 0 && least > -a.most;
    limits[o].left = falls ? least - 1 : -NO_LIMIT;
    limits[o].right = rises ? greatest + 1 : NO_LIMIT;
    if (!knows || (n_lower > 0 && n_lower != greatest - least + 1)) atomicAdd(n_unknown, 1u);
}

} // namespace bitm

#endif
