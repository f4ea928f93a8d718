/* The runtime's API: memory, streams and graphs.  Nothing that is put in a stream runs before
 * somebody waits for it. */
#include "cuda_runtime.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <sys/mman.h>
#include <vector>

using cuda_emulator::Launch;

/* What a stream does: a launch, or what else is called. */
struct Item {
    std::shared_ptr<Launch> launch;
    std::function<void()> call;
};

struct emulated_stream {
    std::vector<Item> items;
    bool is_recorded;
};

struct emulated_graph {
    std::vector<Item> items;
};

struct emulated_graph_exec {
    std::vector<Item> items;
};

/* The device, and all that is asked of it one after another. */
static struct {
    std::recursive_mutex mutex;
    cudaError_t last_error;
    std::map<const uint8_t *, size_t> memory; /* places and their bytes */
    size_t n_used;
    std::map<const void *, size_t> allowed_shared; /* bytes, of kernels */
    emulated_stream first;                         /* the stream NULL */
    std::vector<emulated_stream *> streams;
} device;

enum : size_t { MEMORY_BYTES = (size_t)2 << 30, PAGE_BYTES = 4096, PIECE = 256 };

typedef std::lock_guard<std::recursive_mutex> Lock;

static cudaError_t tell(cudaError_t error)
{
    if (error != cudaSuccess) device.last_error = error;
    return error;
}

/* ---- Errors ---- */

cudaError_t cudaGetLastError()
{
    Lock lock(device.mutex);
    cudaError_t error = device.last_error;
    device.last_error = cudaSuccess;
    return error;
}

const char *cudaGetErrorName(cudaError_t error)
{
    switch (error) {
    case cudaSuccess:
        return "cudaSuccess";
    case cudaErrorMemoryAllocation:
        return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
        return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
        return "cudaErrorInvalidDevice";
    case cudaErrorLaunchFailure:
        return "cudaErrorLaunchFailure";
    default:
        return "cudaErrorInvalidValue";
    }
}

const char *cudaGetErrorString(cudaError_t error)
{
    if (error == cudaErrorLaunchFailure) return cuda_emulator::failure().c_str();
    return error == cudaErrorMemoryAllocation ? "out of memory" : "not as CUDA takes it";
}

/* ---- The device ---- */

static int number_from_environment(const char *name, int otherwise)
{
    const char *text = getenv(name);
    return text != NULL ? atoi(text) : otherwise;
}

cudaError_t cudaGetDeviceCount(int *n)
{
    *n = 1;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int number)
{
    return tell(number == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int number)
{
    if (number != 0) return tell(cudaErrorInvalidDevice);
    *properties = cudaDeviceProp();
    (void)snprintf(properties->name, sizeof properties->name, "emulated GPU");
    properties->major = BITM_EMULATED_CODE / 10;
    properties->minor = BITM_EMULATED_CODE % 10;
    properties->multiProcessorCount = number_from_environment("BITM_EMULATED_MULTIPROCESSORS", 132);
    properties->sharedMemPerBlock = cuda_emulator::PLAIN_SHARED_BYTES;
    properties->sharedMemPerBlockOptin =
        BITM_EMULATED_CODE < 90 ? 0 : (size_t)cuda_emulator::SHARED_BYTES;
    return cudaSuccess;
}

/* ---- Memory: it ends before a page that nobody may touch ---- */

static size_t mapped_bytes(size_t n_bytes)
{
    return (n_bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES + PAGE_BYTES;
}

/* All bits set, which kernels find where nothing has been written. */
static void *map_poisoned(size_t n_bytes)
{
    size_t n_mapped = mapped_bytes(n_bytes);
    void *base = mmap(NULL, n_mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) return NULL;
    uint8_t *end = (uint8_t *)base + n_mapped - PAGE_BYTES;
    (void)mprotect(end, PAGE_BYTES, PROT_NONE);
    memset(base, cuda_emulator::POISON, n_mapped - PAGE_BYTES);
    return end - (n_bytes + PIECE - 1) / PIECE * PIECE;
}

static void unmap(void *place, size_t n_bytes)
{
    uintptr_t base = (uintptr_t)place / PAGE_BYTES * PAGE_BYTES;
    (void)munmap((void *)base, mapped_bytes(n_bytes));
}

namespace cuda_emulator {

bool is_device_memory(const void *place, size_t n_bytes)
{
    auto after = device.memory.upper_bound((const uint8_t *)place);
    if (after == device.memory.begin()) return false;
    --after;
    size_t offset = (size_t)((const uint8_t *)place - after->first);
    return offset <= after->second && n_bytes <= after->second - offset;
}

} // namespace cuda_emulator

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    Lock lock(device.mutex);
    *free_bytes = MEMORY_BYTES - device.n_used;
    *total_bytes = MEMORY_BYTES;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **place, size_t n_bytes)
{
    Lock lock(device.mutex);
    *place = NULL;
    if (n_bytes > MEMORY_BYTES - device.n_used) return tell(cudaErrorMemoryAllocation);
    *place = map_poisoned(n_bytes);
    if (*place == NULL) return tell(cudaErrorMemoryAllocation);
    device.memory[(const uint8_t *)*place] = n_bytes;
    device.n_used += n_bytes;
    return cudaSuccess;
}

cudaError_t cudaFree(void *place)
{
    Lock lock(device.mutex);
    if (place == NULL) return cudaSuccess;
    cudaError_t error = cudaDeviceSynchronize();
    auto found = device.memory.find((const uint8_t *)place);
    if (found == device.memory.end()) return tell(cudaErrorInvalidValue);
    unmap(place, found->second);
    device.n_used -= found->second;
    device.memory.erase(found);
    return error;
}

cudaError_t cudaMallocHost(void **place, size_t n_bytes)
{
    *place = malloc(n_bytes + 1);
    if (*place == NULL) return tell(cudaErrorMemoryAllocation);
    memset(*place, cuda_emulator::POISON, n_bytes);
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *place)
{
    free(place);
    return cudaSuccess;
}

/* ---- Streams ---- */

static cudaError_t put(cudaStream_t stream, const Item &item)
{
    Lock lock(device.mutex);
    (stream != NULL ? stream : &device.first)->items.push_back(item);
    return cudaSuccess;
}

static cudaError_t run_items(emulated_stream *stream)
{
    std::vector<Item> items = std::move(stream->items);
    stream->items.clear();
    for (size_t i = 0; i < items.size(); i++) {
        if (items[i].launch == NULL) {
            items[i].call();
            continue;
        }
        std::shared_ptr<Launch> next;
        if (i + 1 < items.size()) next = items[i + 1].launch;
        if (next != NULL && !next->is_early) next = NULL;
        if (!cuda_emulator::run(items[i].launch, next)) return tell(cudaErrorLaunchFailure);
    }
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    Lock lock(device.mutex);
    return run_items(stream != NULL ? stream : &device.first);
}

cudaError_t cudaDeviceSynchronize()
{
    Lock lock(device.mutex);
    cudaError_t error = run_items(&device.first);
    for (emulated_stream *stream : device.streams)
        if (error == cudaSuccess && !stream->is_recorded) error = run_items(stream);
    return error;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned)
{
    Lock lock(device.mutex);
    *stream = new emulated_stream();
    device.streams.push_back(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    Lock lock(device.mutex);
    cudaError_t error = run_items(stream);
    device.streams.erase(std::find(device.streams.begin(), device.streams.end(), stream));
    delete stream;
    return error;
}

/* The host's memory is read, or written, when the copy has its turn. */
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n_bytes, cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    const void *on_device = kind == cudaMemcpyHostToDevice ? to : from;
    Lock lock(device.mutex);
    if (!cuda_emulator::is_device_memory(on_device, n_bytes)) return tell(cudaErrorInvalidValue);
    return put(stream, {NULL, [=] { memcpy(to, from, n_bytes); }});
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t n_bytes, cudaMemcpyKind kind)
{
    Lock lock(device.mutex);
    cudaError_t error = cudaMemcpyAsync(to, from, n_bytes, kind, NULL);
    return error != cudaSuccess ? error : cudaStreamSynchronize(NULL);
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t n_bytes, cudaStream_t stream)
{
    Lock lock(device.mutex);
    if (!cuda_emulator::is_device_memory(to, n_bytes)) return tell(cudaErrorInvalidValue);
    return put(stream, {NULL, [=] { memset(to, value, n_bytes); }});
}

/* ---- Graphs ---- */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode)
{
    Lock lock(device.mutex);
    cudaError_t error = run_items(stream);
    stream->is_recorded = true;
    return error;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    Lock lock(device.mutex);
    *graph = new emulated_graph{std::move(stream->items)};
    stream->items.clear();
    stream->is_recorded = false;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph,
                                          unsigned long long)
{
    *exec = new emulated_graph_exec{graph->items};
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    Lock lock(device.mutex);
    stream->items.insert(stream->items.end(), exec->items.begin(), exec->items.end());
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete exec;
    return cudaSuccess;
}

/* ---- Kernels ---- */

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute, int value)
{
    Lock lock(device.mutex);
    if (value < 0 || (size_t)value > cuda_emulator::SHARED_BYTES)
        return tell(cudaErrorInvalidValue);
    device.allowed_shared[kernel] = (size_t)value;
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *)
{
    attributes->binaryVersion = BITM_EMULATED_CODE;
    return cudaSuccess;
}

cudaError_t cuda_emulator::enqueue(const void *kernel, Launch &&launch, cudaStream_t stream)
{
    Lock lock(device.mutex);
    auto allowed = device.allowed_shared.find(kernel);
    size_t most = PLAIN_SHARED_BYTES;
    if (allowed != device.allowed_shared.end()) most = std::max(most, allowed->second);
    uint64_t n_blocks = (uint64_t)launch.grid.x * launch.grid.y * launch.grid.z;
    bool is_sound = n_blocks > 0 && launch.grid.y < 65536 && launch.grid.z < 65536 &&
                    launch.grid.x % launch.cluster_blocks == 0 && launch.cluster_blocks <= 8 &&
                    launch.block.n() > 0 && launch.block.n() <= MAX_BLOCK_THREADS &&
                    launch.shared_bytes <= most;
    if (!is_sound) return tell(cudaErrorInvalidConfiguration);
    return put(stream, {std::make_shared<Launch>(std::move(launch)), NULL});
}
