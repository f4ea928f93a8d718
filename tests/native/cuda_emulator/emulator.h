/* A GPU without one: what kernels compiled as C++ run on.
 *
 * Every thread of a kernel is a fiber of one thread of the system; the blocks of a cluster are
 * alive together, clusters run one after another.  A fiber runs until it waits for others: that is
 * where the emulator is as unkind as CUDA allows.  Copies that do not wait, and products of a
 * warpgroup, happen when they are waited for, blocks of a cluster begin when no thread of those
 * before can go on, and memory that nobody has written has all bits set, which are NaNs.  With
 * BITM_EMULATED_SEED=n threads and blocks take turns at random instead, and each copy and each
 * product happens at once or as late as can be.
 *
 * What kernels do wrong, as far as it is seen, ends a launch with an error that tells the kernel,
 * the block and the thread. */
#ifndef BITM_CUDA_EMULATOR_H
#define BITM_CUDA_EMULATOR_H

#include <functional>
#include <memory>
#include <stddef.h>
#include <stdint.h>
#include <string>
#include <vector>

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_)
    {
    }
    unsigned n() const
    {
        return x * y * z;
    }
};

/* Of the launch at work. */
extern dim3 gridDim, blockDim;

namespace cuda_emulator {

enum : uint32_t {
    WARP_THREADS = 32,
    WARPGROUP_THREADS = 128,
    MAX_BLOCK_THREADS = 1024,
    SHARED_BYTES = 227 * 1024,      /* that a block may have */
    PLAIN_SHARED_BYTES = 48 * 1024, /* that it may have without being allowed more */
    POISON = 0xFF,                  /* bytes that nobody has written */
};

/* ---- Launches ---- */

struct Launch {
    std::string name; /* empty: not known yet */
    dim3 grid, block;
    unsigned cluster_blocks;
    size_t shared_bytes;
    bool is_early; /* may begin before the kernel before it ends */
    std::function<void()> kernel;
};

/* Runs a launch.  `next`: a kernel that follows and may begin early, or NULL; its first cluster
 * begins before this launch does.  False: the kernel has failed. */
bool run(const std::shared_ptr<Launch> &launch, const std::shared_ptr<Launch> &next);

/* What the last failure was. */
const std::string &failure();

/* Whether there is a seed; a number below n of its sequence, 0 without one. */
bool has_seed();
uint32_t chance(uint32_t n);
bool common_chance(uint64_t a, uint64_t b); /* the same whenever it is asked for a and b */

/* ---- Threads ---- */

struct Block;
struct Cluster;
struct Thread;

/* Threads that meet: all of them that have not ended have to arrive at the same operation, then
 * `finish` computes what each gets. */
struct Gathering {
    Block *block;
    uint32_t first, n, n_alive, n_arrived; /* threads of the block, by number */
    const char *what;
    void (*finish)(Gathering &);
};

/* A copy to shared memory that is under way, of 16 bytes or by a barrier. */
struct Copy {
    void *to;
    const void *from; /* NULL: the words */
    uint32_t n_bytes;
    uint64_t *barrier;
    uint32_t words[4];
};

/* A product of a warpgroup [64, n], d += a x b, that is under way; `a` by its descriptor or, where
 * the factors are rows of bits, bytes or turned, in registers. */
enum class Factors {
    BITS,
    ROWS_OF_BITS,
    CODES,
    UNSIGNED_BYTES,
    SIGNED_BYTES,
    HALVES,
    TURNED_HALVES,
};

struct Product {
    Factors factors;
    uint32_t n;
    bool adds; /* otherwise d = a x b */
    void *d;
    uint64_t a, b;
    uint32_t registers[4];
};

/* What a thread has started; groups end where the list ended when they were committed. */
template <typename T> struct Started {
    std::vector<T> list;
    std::vector<size_t> groups;

    void commit()
    {
        groups.push_back(list.size());
    }

    /* How many of the list are waited for if at most n groups may stay under way. */
    size_t waited(size_t n) const
    {
        return groups.size() > n ? groups[groups.size() - n - 1] : 0;
    }

    /* Forgets the first n, which are done. */
    void forget(size_t n)
    {
        list.erase(list.begin(), list.begin() + (ptrdiff_t)n);
        size_t done = 0;
        while (done < groups.size() && groups[done] <= n)
            done++;
        groups.erase(groups.begin(), groups.begin() + (ptrdiff_t)done);
        for (size_t &end : groups)
            end -= n;
    }

    void clear()
    {
        list.clear();
        groups.clear();
    }
};

struct alignas(64) Thread {
    uint3 index;
    uint32_t number; /* in the block */
    Block *block;
    void *stack_pointer;
    const char *waits_for;    /* NULL: it can run */
    uint64_t given[2], taken; /* at a gathering */
    char *stack;
    bool has_ended, has_waited_for_kernels;
    const uint64_t *barrier; /* that it waits for, and the parity of the phase */
    uint32_t phase;
    bool has_arrived_at_cluster;
    uint64_t cluster_phase;
    Started<Copy> copies, stores;
    Started<Product> products;
    uint32_t n_commits;
    bool is_fenced; /* products may begin */
};

struct Block {
    uint3 index;
    uint32_t rank; /* in the cluster */
    Cluster *cluster;
    uint8_t *window, *shared; /* the place for shared memory, and where it begins */
    uint32_t n_threads, n_alive;
    bool has_begun;
    std::vector<Thread> threads;
    Gathering all;
    std::vector<Gathering> warps;
};

/* Blocks that are alive together: one, where the launch has no clusters. */
struct Cluster {
    std::shared_ptr<Launch> launch;
    bool kernels_before_have_ended;
    std::vector<std::unique_ptr<Block>> blocks;
    uint32_t n_blocks, n_begun, n_alive;
    std::vector<Thread *> ready; /* from `next` on */
    size_t next;
    std::vector<Copy> copies; /* by barriers */
    uint64_t phase;           /* of the barrier of its blocks */
    uint32_t n_arrived;
};

extern Thread *current;

/* What threads wait for, and are woken by. */
extern const char *const CLUSTER_BARRIER;
extern const char *const KERNELS_BEFORE;

/* Calls f for all threads that have begun. */
template <typename F> void for_each_thread(Cluster &cluster, F f)
{
    for (uint32_t b = 0; b < cluster.n_begun; b++)
        for (uint32_t i = 0; i < cluster.blocks[b]->n_threads; i++)
            f(cluster.blocks[b]->threads[i]);
}

/* Ends the launch of the current thread. */
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Lets others run until somebody wakes this thread. */
void wait_for(const char *what);
void wake(Thread *thread);

/* Meets the others of a gathering. */
void meet(Gathering &gathering, const char *what, void (*finish)(Gathering &));

static inline Gathering &warp_of(const Thread *thread)
{
    return thread->block->warps[thread->number / WARP_THREADS];
}

/* ---- What kernels ask for: warps.cpp ---- */

enum class Exchange { XOR, INDEX };
enum class Vote { NONE, AND, OR };

uint64_t exchange(Exchange how, unsigned mask, uint64_t value, uint32_t argument);
unsigned ballot(const char *what, unsigned mask, bool predicate);
unsigned reduce_max(unsigned mask, unsigned value);
void meet_warp(unsigned mask);
void store_tiles(void *row, const uint32_t tiles[4]);
int meet_block(Vote vote, bool predicate);

/* ---- hopper.cpp ---- */

/* Shared memory whose size the launch gives; kernel: its name, for messages. */
unsigned char *dynamic_shared(const char *kernel);

/* Its address for instructions; and the way back, where a block has so many bytes. */
uint32_t shared_address(const void *place);
uint8_t *shared_place(const Block &block, uint32_t address, uint32_t n_bytes);

/* Fail unless these are whole 16 bytes of the block's memory, or of the device's. */
void check_shared_bytes(const void *place, uint32_t n_bytes);
void check_device_bytes(const void *place, uint32_t n_bytes);

void start_copy(void *to, const void *from);
void commit_copies();
void wait_for_copies(size_t n_groups);

void init_barrier(uint64_t *barrier);
void expect_bytes(uint64_t *barrier, uint32_t n_bytes);
void wait_for_phase(uint64_t *barrier, uint32_t phase);
void start_bulk_copy(void *to, const void *from, uint32_t n_bytes, uint64_t *barrier);
void start_bulk_store(void *to, const void *from, uint32_t n_bytes);
void commit_bulk_stores();
void wait_for_bulk_stores(size_t n_groups);

/* Of the scheduler: ends a bulk copy; false where none is under way.  Poisons what a thread that
 * has ended has not waited for. */
bool finish_bulk_copy(Cluster &cluster);
void lose_bulk_stores(Thread &thread);

void arrive_at_cluster();
void wait_for_cluster();
void finish_cluster_phase(Cluster &cluster); /* where all have arrived */
uint32_t place_in_block(const void *place, uint32_t rank);
void store_in_block(uint32_t address, float x);
void send_to_block(uint32_t address, uint32_t barrier, const uint32_t *words, uint32_t n_words);

void wait_for_kernels_before();

/* ---- products.cpp ---- */

void fence_products();
void start_product(const Product &product);
void commit_products();
void wait_for_products(size_t n_groups);

/* ---- runtime.cpp ---- */

bool is_device_memory(const void *place, size_t n_bytes);

} // namespace cuda_emulator

#endif
