/* Where GELU need not be computed: a quantizer of two levels after it asks for no more than whether
 * gelu(x) + shift reaches its threshold. */
#ifndef BITM_CUDA_GELU_LIMITS_CUH
#define BITM_CUDA_GELU_LIMITS_CUH

#include "quantize.cuh"

namespace bitm {

/* Bisects between `no` and `yes`: the last of each side for which gelu(x) >= wanted is so. */
static __device__ inline void bisect_gelu(float wanted, float *no, float *yes)
{
    for (int i = 0; i < 64; i++) {
        float middle = 0.5F * (*no + *yes);
        *(bitm_gelu(middle) >= wanted ? yes : no) = middle;
    }
}

/* GELU falls until about -0.7518 and rises from there.  Its float32 form steps back by less than
 * 1e-7 (found by trying every float from -40 to 64), and adding the shift rounds: limits keep a
 * margin ten times as wide, and what lies between them is computed.
 * limits [n]; shift NULL: none. */
static __global__ void gelu_limits_kernel(const float *shift, float threshold, uint32_t n,
                                          GeluLimits *limits)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float infinity = 3.402823466e38F, lowest = -0.7518F, left = -20.0F;
    float s = shift != NULL ? shift[i] : 0.0F, wanted = threshold - s;
    float margin = 1e-6F * (1.0F + fabsf(wanted) + fabsf(s));
    float above = wanted + margin, below = wanted - margin, right = 20.0F + 2.0F * fabsf(above);
    GeluLimits found = {-infinity, infinity, -infinity, infinity};
    float no, yes;
    if (bitm_gelu(lowest) >= above) {
        found.left_outer = found.right_outer = lowest;
    } else {
        no = lowest, yes = right;
        bisect_gelu(above, &no, &yes);
        found.right_outer = yes;
        if (above <= 0.0F) {
            no = lowest, yes = left;
            bisect_gelu(above, &no, &yes);
            found.left_outer = yes;
        }
    }
    if (bitm_gelu(lowest) < below) {
        no = lowest, yes = right;
        bisect_gelu(below, &no, &yes);
        found.right_inner = no;
        no = lowest, yes = left;
        if (below <= 0.0F) bisect_gelu(below, &no, &yes);
        found.left_inner = below <= 0.0F ? no : -infinity;
    }
    limits[i] = found;
}

} // namespace bitm

#endif
