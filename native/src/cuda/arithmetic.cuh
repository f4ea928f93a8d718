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

/* The ones of a piece of bits. */
static __device__ inline int32_t popc_piece(const uint4 &bits)
{
    return __popc(bits.x) + __popc(bits.y) + __popc(bits.z) + __popc(bits.w);
}

/* A step of a transposition of groups of bits between threads: of two whose numbers differ by
 * `step`, one gets the `low` groups of both, the other those `shift` bits above. */
static __device__ inline uint32_t exchange_bits(uint32_t x, uint32_t step, uint32_t shift,
                                                uint32_t low)
{
    uint32_t other = __shfl_xor_sync(ALL_THREADS, x, (int)step);
    bool upper = (threadIdx.x & step) != 0;
    return upper ? (x & ~low) | (other >> shift & low) : (x & low) | (other << shift & ~low);
}

/* Of 16 neighbouring threads, thread l gets bit l of each, and bit 16 + l of each above them. */
static __device__ inline uint32_t transpose_bits_16(uint32_t x)
{
    x = exchange_bits(x, 8, 8, 0x00FF00FFu);
    x = exchange_bits(x, 4, 4, 0x0F0F0F0Fu);
    x = exchange_bits(x, 2, 2, 0x33333333u);
    return exchange_bits(x, 1, 1, 0x55555555u);
}

/* Of a warp, thread l gets bit l of each. */
static __device__ inline uint32_t transpose_bits_32(uint32_t x)
{
    return transpose_bits_16(exchange_bits(x, 16, 16, 0x0000FFFFu));
}

/* Of 8 neighbouring threads, thread t gets group t of 4 bits of each. */
static __device__ inline uint32_t transpose_nibbles_8(uint32_t x)
{
    x = exchange_bits(x, 4, 16, 0x0000FFFFu);
    x = exchange_bits(x, 2, 8, 0x00FF00FFu);
    return exchange_bits(x, 1, 4, 0x0F0F0F0Fu);
}

/* Of 4 neighbouring threads, thread t gets byte t of each. */
static __device__ inline uint32_t transpose_bytes_4(uint32_t x)
{
    x = exchange_bits(x, 2, 16, 0x0000FFFFu);
    return exchange_bits(x, 1, 8, 0x00FF00FFu);
}

/* Of 4 neighbouring threads, thread t gets byte t of each, of whose four pairs of bits the word
 * then has the first ones in its lowest byte, and so on. */
static __device__ inline uint32_t transpose_pairs_4(uint32_t x)
{
    x = transpose_bytes_4(x);
    uint32_t odd = (x ^ x >> 6) & 0x00CC00CCu;
    x ^= odd ^ odd << 6;
    uint32_t upper = (x ^ x >> 12) & 0x0000F0F0u;
    return x ^ upper ^ upper << 12;
}

/* An activation function of SPEC.md 3.2; 0: none.  Not inlined: kernels that call it for many
 * values would not fit in the instruction cache. */
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
