/* The canonical arithmetic on the device: the functions of kernels/canonical.h, and sums whose 16
 * lanes are held by 16 neighbouring threads.
 *
 * Device code is compiled with -fmad=false: as on the CPU, only a written fmaf is fused.  Divisions
 * and square roots are correctly rounded by default. */
#ifndef BITM_CUDA_ARITHMETIC_CUH
#define BITM_CUDA_ARITHMETIC_CUH

#if defined(__CUDACC_RTC__)
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <cuda_runtime.h>

#include <stdint.h>
#endif

#define BITM_INLINE static __host__ __device__ inline
#include "../kernels/canonical.h"

namespace bitm {

enum { WARP = 32, LANES = 16 };

constexpr unsigned ALL_THREADS = 0xFFFFFFFFu;

static __host__ __device__ inline uint32_t ceil_div(uint32_t n, uint32_t by)
{
    return (n + by - 1) / by;
}

/* The fold of a canonical sum: thread l of every 16 holds lane l, all of them get the sum. */
static __device__ inline float fold_lanes(float lane)
{
    for (int step = 8; step > 0; step /= 2)
        lane = lane + __shfl_xor_sync(ALL_THREADS, lane, step);
    return lane;
}

static __device__ inline float warp_min(float x)
{
    for (int step = WARP / 2; step > 0; step /= 2) {
        float other = __shfl_xor_sync(ALL_THREADS, x, step);
        x = other < x ? other : x;
    }
    return x;
}

/* Of a warp, or of each half of one: THREADS neighbours, as in warp_sum. */
template <int THREADS = WARP> static __device__ inline float warp_max(float x)
{
    for (int step = THREADS / 2; step > 0; step /= 2) {
        float other = __shfl_xor_sync(ALL_THREADS, x, step);
        x = other > x ? other : x;
    }
    return x;
}

template <int THREADS = WARP> static __device__ inline int32_t warp_sum(int32_t x)
{
    for (int step = THREADS / 2; step > 0; step /= 2)
        x += __shfl_xor_sync(ALL_THREADS, x, step);
    return x;
}

/* An activation function of SPEC.md 3.2; 0: none.  Not inlined: kernels that call it for many values
 * would not fit in the instruction cache. */
static __device__ __noinline__ float activate(uint32_t activation, float x)
{
    switch (activation) {
    case 1:
        return bitm_gelu(x);
    case 2:
        return bitm_gelu_tanh(x);
    case 3:
        return x > 0.0F ? x : 0.0F;
    case 4:
        return bitm_swish(x);
    case 5:
        return bitm_mish(x);
    default:
        return x;
    }
}

} // namespace bitm

#endif
