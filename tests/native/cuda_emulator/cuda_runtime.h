/* The part of CUDA's runtime that bitm uses, for kernels that are compiled as C++: see emulator.h.
 */
#ifndef BITM_CUDA_RUNTIME_H
#define BITM_CUDA_RUNTIME_H

#include <functional>
#include <math.h>
#include <memory>
#include <new>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <string>
#include <tuple>
#include <utility>

#include "emulator.h"

/* ---- Words ---- */

#define CUDART_VERSION 12000

#define __device__
#define __host__
#define __global__
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("emulated_shared")))
#define __noinline__ __attribute__((noinline))

#define threadIdx (::cuda_emulator::current->index)
#define blockIdx (::cuda_emulator::current->block->index)

#define BITM_DYNAMIC_SHARED(name)                                                                  \
    unsigned char *const name = ::cuda_emulator::dynamic_shared(__PRETTY_FUNCTION__)
#define BITM_LAUNCH(kernel, grid, block, shared, stream, ...)                                      \
    ::cuda_emulator::launch(#kernel, kernel, grid, block, shared, stream, 1, false, __VA_ARGS__)

/* ---- Vectors ---- */

#define BITM_VECTORS(name, element)                                                                \
    struct alignas(2 * sizeof(element)) name##2                                                    \
    {                                                                                              \
        element x, y;                                                                              \
    };                                                                                             \
    struct alignas(4 * sizeof(element)) name##4                                                    \
    {                                                                                              \
        element x, y, z, w;                                                                        \
    };                                                                                             \
    static inline name##2 make_##name##2(element x, element y)                                     \
    {                                                                                              \
        return name##2 {x, y};                                                                     \
    }                                                                                              \
    static inline name##4 make_##name##4(element x, element y, element z, element w)               \
    {                                                                                              \
        return name##4 {x, y, z, w};                                                               \
    }

BITM_VECTORS(int, int)
BITM_VECTORS(uint, unsigned)
BITM_VECTORS(float, float)

/* ---- Functions of one thread ---- */

template <typename To, typename From> static inline To bits_as(From from)
{
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

static inline int __float_as_int(float x)
{
    return bits_as<int>(x);
}

static inline unsigned __float_as_uint(float x)
{
    return bits_as<unsigned>(x);
}

static inline float __int_as_float(int x)
{
    return bits_as<float>(x);
}

static inline float __uint_as_float(unsigned x)
{
    return bits_as<float>(x);
}

static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}

static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}

template <typename T> static inline T __ldcg(const T *p)
{
    return *p;
}

static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift)
{
    return (unsigned)(((uint64_t)high << 32 | low) << (shift & 31) >> 32);
}

static inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector)
{
    uint64_t bytes = (uint64_t)high << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; i++)
        result |= (unsigned)(bytes >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
    return result;
}

static inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum)
{
    for (int i = 0; i < 32; i += 8)
        sum += (a >> i & 255) * (b >> i & 255);
    return sum;
}

static inline int __dp4a(int a, int b, int sum)
{
    for (int i = 0; i < 32; i += 8)
        sum += (int8_t)(a >> i) * (int8_t)(b >> i);
    return sum;
}

static inline unsigned max(unsigned a, unsigned b)
{
    return a > b ? a : b;
}

static inline unsigned min(unsigned a, unsigned b)
{
    return a < b ? a : b;
}

static inline int max(int a, int b)
{
    return a > b ? a : b;
}

static inline int min(int a, int b)
{
    return a < b ? a : b;
}

/* ---- Atomic operations: nobody is interrupted ---- */

template <typename T> static inline T atomicAdd(T *place, T x)
{
    T before = *place;
    *place = before + x;
    return before;
}

template <typename T> static inline T atomicOr(T *place, T x)
{
    T before = *place;
    *place = before | x;
    return before;
}

template <typename T> static inline T atomicSub(T *place, T x)
{
    T before = *place;
    *place = before - x;
    return before;
}

template <typename T> static inline T atomicMin(T *place, T x)
{
    T before = *place;
    if (x < before) *place = x;
    return before;
}

template <typename T> static inline T atomicMax(T *place, T x)
{
    T before = *place;
    if (x > before) *place = x;
    return before;
}

/* ---- Warps and blocks ---- */

template <typename T>
static inline T exchange_as(cuda_emulator::Exchange how, unsigned mask, T value, int argument)
{
    static_assert(sizeof(T) <= sizeof(uint64_t), "");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = cuda_emulator::exchange(how, mask, bits, (uint32_t)argument);
    memcpy(&value, &bits, sizeof value);
    return value;
}

template <typename T> static inline T __shfl_xor_sync(unsigned mask, T value, int lanes)
{
    return exchange_as(cuda_emulator::Exchange::XOR, mask, value, lanes);
}

template <typename T> static inline T __shfl_sync(unsigned mask, T value, int lane)
{
    return exchange_as(cuda_emulator::Exchange::INDEX, mask, value, lane);
}

static inline unsigned __ballot_sync(unsigned mask, int predicate)
{
    return cuda_emulator::ballot("__ballot_sync", mask, predicate != 0);
}

static inline int __any_sync(unsigned mask, int predicate)
{
    return cuda_emulator::ballot("__any_sync", mask, predicate != 0) != 0;
}

static inline unsigned __reduce_max_sync(unsigned mask, unsigned value)
{
    return cuda_emulator::reduce_max(mask, value);
}

static inline void __syncwarp(unsigned mask = 0xFFFFFFFFu)
{
    cuda_emulator::meet_warp(mask);
}

static inline void __syncthreads()
{
    (void)cuda_emulator::meet_block(cuda_emulator::Vote::NONE, false);
}

static inline int __syncthreads_and(int predicate)
{
    return cuda_emulator::meet_block(cuda_emulator::Vote::AND, predicate != 0);
}

static inline int __syncthreads_or(int predicate)
{
    return cuda_emulator::meet_block(cuda_emulator::Vote::OR, predicate != 0);
}

static inline size_t __cvta_generic_to_shared(const void *place)
{
    return cuda_emulator::shared_address(place);
}

/* ---- The host's side ---- */

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidDevice = 101,
    cudaErrorLaunchFailure = 719,
};

enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
enum { cudaStreamNonBlocking = 1 };

struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount;
    size_t sharedMemPerBlock, sharedMemPerBlockOptin;
};

struct cudaFuncAttributes {
    int binaryVersion;
};

typedef struct emulated_stream *cudaStream_t;
typedef struct emulated_graph *cudaGraph_t;
typedef struct emulated_graph_exec *cudaGraphExec_t;

cudaError_t cudaGetLastError();
const char *cudaGetErrorName(cudaError_t error);
const char *cudaGetErrorString(cudaError_t error);

cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device);
cudaError_t cudaDeviceSynchronize();

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes);
cudaError_t cudaMalloc(void **place, size_t n_bytes);
cudaError_t cudaFree(void *place);
cudaError_t cudaMallocHost(void **place, size_t n_bytes);
cudaError_t cudaFreeHost(void *place);
cudaError_t cudaMemcpy(void *to, const void *from, size_t n_bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n_bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void *to, int value, size_t n_bytes, cudaStream_t stream = NULL);

template <typename T> static inline cudaError_t cudaMalloc(T **place, size_t n_bytes)
{
    return cudaMalloc((void **)place, n_bytes);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph,
                                          unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value);
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *kernel);

enum cudaLaunchAttributeID {
    cudaLaunchAttributeClusterDimension = 4,
    cudaLaunchAttributeProgrammaticStreamSerialization = 6,
};

struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    struct {
        struct {
            unsigned x, y, z;
        } clusterDim;
        int programmaticStreamSerializationAllowed;
    } val;
};

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute *attrs;
    unsigned numAttrs;
};

namespace cuda_emulator {

/* Puts a launch in a stream's queue, if it is a sound one. */
cudaError_t enqueue(const void *kernel, Launch &&launch, cudaStream_t stream);

template <typename... Parameters, typename... Arguments>
static inline cudaError_t
launch(const char *name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
       cudaStream_t stream, unsigned cluster_blocks, bool is_early, const Arguments &...arguments)
{
    std::tuple<Parameters...> copies(arguments...);
    std::function<void()> run = [kernel, copies] { std::apply(kernel, copies); };
    return enqueue((const void *)kernel,
                   Launch{name, grid, block, cluster_blocks, shared_bytes, is_early, run}, stream);
}

} // namespace cuda_emulator

template <typename... Parameters, typename... Arguments>
static inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config,
                                             void (*kernel)(Parameters...),
                                             const Arguments &...arguments)
{
    unsigned cluster_blocks = 1;
    bool is_early = false;
    for (unsigned i = 0; i < config->numAttrs; i++) {
        const cudaLaunchAttribute &attribute = config->attrs[i];
        if (attribute.id == cudaLaunchAttributeClusterDimension)
            cluster_blocks = attribute.val.clusterDim.x;
        else
            is_early = attribute.val.programmaticStreamSerializationAllowed != 0;
    }
    return cuda_emulator::launch("", kernel, config->gridDim, config->blockDim,
                                 config->dynamicSmemBytes, config->stream, cluster_blocks, is_early,
                                 arguments...);
}

#if defined(BITM_EMULATED_HOPPER)
#include "emulated_hopper.h"
#endif

#endif
