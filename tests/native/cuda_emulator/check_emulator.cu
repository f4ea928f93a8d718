/* What the emulator is for: kernels that are right give what they should, and those that leave out
 * something do not, or are told so. */
#include "hopper.cuh"

#include <stdio.h>
#include <string.h>

namespace bitm {

enum { THREADS = 128, PIECE = 16, WORDS = PIECE / 4 };

/* What a kernel leaves out. */
enum Omission { NOTHING, BARRIER, WAIT, SECOND };

struct Job {
    int omission;
    const uint32_t *from; /* [THREADS * WORDS] */
    uint32_t *to;         /* likewise */
};

/* ---- Kernels: each exchanges neighbouring pieces ---- */

static __global__ void through_shared_memory(Job job)
{
    __shared__ uint4 pieces[THREADS];
    pieces[threadIdx.x] = ((const uint4 *)job.from)[threadIdx.x];
    if (job.omission != BARRIER) __syncthreads();
    ((uint4 *)job.to)[threadIdx.x] = pieces[threadIdx.x ^ 1];
}

static __global__ void by_copies_that_do_not_wait(Job job)
{
    BITM_DYNAMIC_SHARED(shared);
    uint4 *pieces = (uint4 *)shared;
    copy_async(pieces + threadIdx.x, (const uint4 *)job.from + threadIdx.x);
    copy_commit();
    if (job.omission != WAIT) copy_wait<0>();
    if (job.omission != BARRIER) __syncthreads();
    ((uint4 *)job.to)[threadIdx.x] = pieces[threadIdx.x ^ 1];
}

/* SECOND: the barrier expects a copy that nobody has started. */
static __global__ void by_a_bulk_copy(Job job)
{
    BITM_DYNAMIC_SHARED(shared);
    uint64_t *barrier = (uint64_t *)shared;
    uint4 *pieces = (uint4 *)(shared + PIECE);
    uint32_t n_bytes = THREADS * PIECE;
    if (threadIdx.x == 0) {
        if (job.omission != BARRIER) init_barrier(barrier);
        copy_bulk(pieces, job.from, n_bytes, barrier);
        expect_bytes(barrier, job.omission == SECOND ? n_bytes * 2 : n_bytes);
    }
    __syncthreads();
    if (job.omission != WAIT) wait_for_phase(barrier, 0);
    ((uint4 *)job.to)[threadIdx.x] = pieces[threadIdx.x ^ 1];
}

static __global__ void by_a_bulk_store(Job job)
{
    BITM_DYNAMIC_SHARED(shared);
    uint4 *piece = (uint4 *)shared + threadIdx.x;
    *piece = ((const uint4 *)job.from)[threadIdx.x ^ 1];
    store_bulk((uint4 *)job.to + threadIdx.x, piece, PIECE);
    store_commit();
    if (job.omission != WAIT) wait_for_stores<0>();
}

/* Adds sums, and takes away what they are to be. */
static __global__ void by_a_product(Job job)
{
    BITM_DYNAMIC_SHARED(shared);
    uint4 *rows = (uint4 *)shared; /* [64 rows and 8 columns] of two pieces */
    uint4 *columns = rows + 64 * 2;
    rows[threadIdx.x] = make_uint4(0xFFFFFFFFu, 0, 0, 0);
    if (threadIdx.x < 16) columns[threadIdx.x] = make_uint4(0xFFFF, 0, 0, 0);
    publish_tiles();
    __syncthreads();
    int32_t sums[4] = {0, 0, 0, 0};
    if (job.omission != BARRIER) wgmma_fence();
    wgmma_bits_8(sums, tile_descriptor(rows, 2), tile_descriptor(columns, 2));
    wgmma_commit();
    if (job.omission != WAIT) wgmma_wait<0>();
    for (uint32_t i = 0; i < WORDS; i++) {
        uint32_t word = threadIdx.x * WORDS + i;
        job.to[word] = job.from[word ^ WORDS] + (uint32_t)(sums[i] - 32);
    }
}

static __global__ void after_the_kernel_before(Job job)
{
    if (job.omission != WAIT) wait_for_kernels_before(0);
    uint4 piece = ((const uint4 *)job.from)[threadIdx.x ^ 1];
    if (job.omission == WAIT) wait_for_kernels_before(0);
    ((uint4 *)job.to)[threadIdx.x] = piece;
}

/* Two blocks, each of which brings half of the words to the other one's memory.  SECOND: before
 * that has begun. */
static __global__ void through_a_cluster(Job job)
{
    BITM_DYNAMIC_SHARED(shared);
    float *words = (float *)shared;
    if (job.omission != SECOND) {
        greet_cluster();
        wait_for_cluster();
    }
    const uint32_t HALF = THREADS * WORDS / 2;
    uint32_t first = blockIdx.x * HALF, other = HALF - first;
    for (uint32_t i = threadIdx.x; i < HALF; i += THREADS)
        store_in_block(place_in_block(words + i, 1 - blockIdx.x),
                       __uint_as_float(job.from[first + i]));
    arrive_at_cluster();
    if (job.omission != WAIT) wait_for_cluster();
    for (uint32_t i = threadIdx.x; i < HALF; i += THREADS)
        job.to[other + (i ^ WORDS)] = __float_as_uint(words[i]);
}

/* The same by messages, which count for the other block's barrier.  BARRIER: that is not ready. */
static __global__ void by_messages(Job job)
{
    BITM_DYNAMIC_SHARED(shared);
    uint64_t *barrier = (uint64_t *)shared;
    uint4 *pieces = (uint4 *)(shared + PIECE);
    const uint32_t HALF = THREADS / 2, first = blockIdx.x * HALF, other = HALF - first;
    if (threadIdx.x == 0 && job.omission != BARRIER) {
        init_barrier(barrier);
        expect_bytes(barrier, HALF * PIECE);
    }
    greet_cluster();
    wait_for_cluster();
    if (threadIdx.x < HALF)
        send_to_block(place_in_block(pieces + threadIdx.x, 1 - blockIdx.x),
                      place_in_block(barrier, 1 - blockIdx.x),
                      ((const uint4 *)job.from)[first + threadIdx.x]);
    if (job.omission != WAIT) wait_for_phase(barrier, 0);
    if (threadIdx.x < HALF) ((uint4 *)job.to)[other + (threadIdx.x ^ 1)] = pieces[threadIdx.x];
}

/* SECOND: reads past the end of memory. */
static __global__ void by_one_thread_each(Job job)
{
    uint32_t from = threadIdx.x ^ 1;
    if (job.omission == SECOND) from += 4096 / PIECE;
    if (job.omission == WAIT && threadIdx.x % 2 == 0)
        __syncthreads();
    else if (job.omission == WAIT)
        __syncwarp();
    ((uint4 *)job.to)[threadIdx.x] = ((const uint4 *)job.from)[from];
}

/* ---- What becomes of them ---- */

struct Case {
    const char *name;
    void (*kernel)(Job);
    int omission;
    const char *failure; /* words of it; NULL: none, but results are wrong */
    unsigned n_blocks;
};

static const Case cases[] = {
    {"shared memory", through_shared_memory, BARRIER, NULL, 1},
    {"copies", by_copies_that_do_not_wait, WAIT, NULL, 1},
    {"copies", by_copies_that_do_not_wait, BARRIER, NULL, 1},
    {"a bulk copy", by_a_bulk_copy, BARRIER, "has not been initialized", 1},
    {"a bulk copy", by_a_bulk_copy, WAIT, "with bulk copies under way", 1},
    {"a bulk copy", by_a_bulk_copy, SECOND, "128 at a barrier of bulk copies", 1},
    {"a bulk store", by_a_bulk_store, WAIT, NULL, 1},
    {"a product", by_a_product, BARRIER, "without a fence", 1},
    {"a product", by_a_product, WAIT, "with products under way", 1},
    {"the kernel before", after_the_kernel_before, WAIT, NULL, 1},
    {"a cluster", through_a_cluster, WAIT, "has ended", 2},
    {"a cluster", through_a_cluster, SECOND, "has not begun", 2},
    {"messages", by_messages, BARRIER, "has not been initialized", 2},
    {"messages", by_messages, WAIT, "ended", 2},
    {"threads", by_one_thread_each, WAIT, "64 at __syncthreads; 64 at __syncwarp", 1},
    {"threads", by_one_thread_each, SECOND, "where it may not", 1},
};

static cudaError_t start(void (*kernel)(Job), const Job &job, unsigned n_blocks, bool is_early)
{
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = is_early;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = n_blocks;
    cudaLaunchConfig_t config = {n_blocks, THREADS, 4096, NULL, attributes, 2};
    return cudaLaunchKernelEx(&config, kernel, job);
}

/* Words go to the middle by a kernel that is right, and on by the one that is tried. */
static cudaError_t run(const Case &c, int omission, const uint32_t *words, uint32_t *results)
{
    enum { N_BYTES = THREADS * PIECE };
    bool is_early = c.kernel == after_the_kernel_before;
    uint32_t *memory[3];
    for (int i = 0; i < 3; i++)
        if (cudaMalloc(&memory[i], N_BYTES) != cudaSuccess) return cudaErrorMemoryAllocation;
    (void)cudaMemcpy(memory[0], words, N_BYTES, cudaMemcpyHostToDevice);
    (void)start(by_one_thread_each, Job{NOTHING, memory[0], memory[1]}, 1, false);
    (void)start(c.kernel, Job{omission, memory[1], memory[2]}, c.n_blocks, is_early);
    cudaError_t error = cudaDeviceSynchronize();
    (void)cudaMemcpy(results, memory[2], N_BYTES, cudaMemcpyDeviceToHost);
    for (int i = 0; i < 3; i++)
        (void)cudaFree(memory[i]);
    return error;
}

/* Two exchanges leave all as it was. */
static bool behaves(const Case &c, int omission)
{
    uint32_t words[THREADS * WORDS], results[THREADS * WORDS];
    for (uint32_t i = 0; i < THREADS * WORDS; i++)
        words[i] = i * 2654435761u;
    cudaError_t error = run(c, omission, words, results);
    bool is_right = error == cudaSuccess && memcmp(words, results, sizeof words) == 0;
    if (omission == NOTHING) return is_right;
    if (c.failure == NULL) return error == cudaSuccess && !is_right;
    return error == cudaErrorLaunchFailure && strstr(cudaGetErrorString(error), c.failure) != NULL;
}

} // namespace bitm

/* What is wrong is seen for sure only where copies are as late as can be. */
int main()
{
    int n_failed = 0, n = 0;
    for (const bitm::Case &c : bitm::cases)
        for (int omission : {(int)bitm::NOTHING, c.omission}) {
            if (cuda_emulator::has_seed() && omission != bitm::NOTHING) continue;
            bool passed = bitm::behaves(c, omission);
            n_failed += !passed;
            n++;
            if (!passed) printf("by %s without %d: not as it should be\n", c.name, omission);
        }
    printf("%d checks, %d failed\n", n, n_failed);
    return n_failed != 0;
}
