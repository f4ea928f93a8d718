/* Fibers, and whose turn it is. */
#if !defined(__x86_64__) || !defined(__linux__)
#error "the fibers are those of x86-64 Linux"
#endif

#include "emulator.h"

#include <algorithm>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

/* Static shared variables lie in a section of their own, whose ends the linker knows. */
extern "C" __attribute__((visibility("hidden"))) uint8_t __start_emulated_shared[];
extern "C" __attribute__((visibility("hidden"))) uint8_t __stop_emulated_shared[];

/* Saves what a function call keeps, and goes on where another stack was left. */
extern "C" void cuda_emulator_switch(void **from, void *to);
asm(R"(
.text
.hidden cuda_emulator_switch
.type cuda_emulator_switch, @function
cuda_emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size cuda_emulator_switch, . - cuda_emulator_switch
)");

dim3 gridDim, blockDim;

namespace cuda_emulator {

enum { STACK_BYTES = 128 * 1024, PAGE_BYTES = 4096 };

Thread *current;

static void *scheduler_stack;
static bool has_failed;
static std::string last_failure;
static pthread_t emulating_thread;

/* ---- Chance ---- */

static uint64_t read_seed()
{
    const char *text = getenv("BITM_EMULATED_SEED");
    return text != NULL ? strtoull(text, NULL, 10) : 0;
}

static const uint64_t seed = read_seed();

bool has_seed()
{
    return seed != 0;
}

uint32_t chance(uint32_t n)
{
    static uint64_t state = seed;
    if (!has_seed()) return 0;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((state >> 33) % n);
}

bool common_chance(uint64_t a, uint64_t b)
{
    uint64_t x = (a * 0x9E3779B97F4A7C15u ^ b) * 0xBF58476D1CE4E5B9u + seed;
    return has_seed() && ((x ^ x >> 29) * 0x94D049BB133111EBu >> 63) != 0;
}

/* ---- Failures ---- */

const std::string &failure()
{
    return last_failure;
}

/* The kernel's name, the block and the thread. */
static std::string place_of(const Thread &thread)
{
    char text[200];
    const uint3 &block = thread.block->index;
    const std::string &name = thread.block->cluster->launch->name;
    (void)snprintf(text, sizeof text, ", block (%u, %u, %u), thread (%u, %u, %u)", block.x, block.y,
                   block.z, thread.index.x, thread.index.y, thread.index.z);
    return (name.empty() ? "a kernel" : name) + text;
}

static void note_failure(const std::string &text)
{
    has_failed = true;
    last_failure = text;
    (void)fprintf(stderr, "emulated GPU: %s\n", text.c_str());
}

void fail(const char *format, ...)
{
    char text[400];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    note_failure(place_of(*current) + ": " + text);
    void *left;
    cuda_emulator_switch(&left, scheduler_stack); /* for good */
    abort();
}

/* A fiber that reads or writes where there is nothing. */
static void take_signal(int number, siginfo_t *info, void *)
{
    if (current == NULL || !pthread_equal(pthread_self(), emulating_thread)) {
        (void)signal(number, SIG_DFL); /* it happens again */
        return;
    }
    fail("reads or writes %p, where it may not", info->si_addr);
}

/* While it lives, such signals end a launch and not the process. */
struct Signals {
    struct sigaction before[2];
    Signals()
    {
        struct sigaction action = {};
        action.sa_sigaction = take_signal;
        action.sa_flags = SA_SIGINFO | SA_NODEFER;
        (void)sigaction(SIGSEGV, &action, &before[0]);
        (void)sigaction(SIGBUS, &action, &before[1]);
    }
    ~Signals()
    {
        (void)sigaction(SIGSEGV, &before[0], NULL);
        (void)sigaction(SIGBUS, &before[1], NULL);
    }
};

/* ---- Turns ---- */

static Thread *take_ready(Cluster &cluster)
{
    if (cluster.next == cluster.ready.size()) {
        cluster.ready.clear();
        cluster.next = 0;
        return NULL;
    }
    /* The first or the last, by chance. */
    if (has_seed() && chance(2) == 1) std::swap(cluster.ready[cluster.next], cluster.ready.back());
    return cluster.ready[cluster.next++];
}

/* Goes on with whoever is next, from a stack that is left. */
static void switch_from(Thread &thread)
{
    Thread *next = take_ready(*thread.block->cluster);
    if (next == &thread) return;
    current = next;
    cuda_emulator_switch(&thread.stack_pointer,
                         next != NULL ? next->stack_pointer : scheduler_stack);
}

void wait_for(const char *what)
{
    Thread *self = current;
    self->waits_for = what;
    switch_from(*self);
}

void wake(Thread *thread)
{
    if (thread->waits_for == NULL) return;
    thread->waits_for = NULL;
    thread->block->cluster->ready.push_back(thread);
}

static void finish_meeting(Gathering &g)
{
    if (g.finish != NULL) g.finish(g);
    g.n_arrived = 0;
    for (uint32_t i = g.first; i < g.first + g.n; i++)
        if (g.block->threads[i].waits_for == g.what) wake(&g.block->threads[i]);
}

void meet(Gathering &g, const char *what, void (*finish)(Gathering &))
{
    if (g.n_arrived > 0 && g.what != what)
        fail("is at %s, where others of the same %u threads are at %s", what, g.n, g.what);
    g.what = what;
    g.finish = finish;
    if (++g.n_arrived == g.n_alive)
        finish_meeting(g);
    else
        wait_for(what);
}

/* ---- The life of a thread ---- */

static void leave(Gathering &g)
{
    g.n_alive--;
    if (g.n_arrived > 0 && g.n_arrived == g.n_alive) finish_meeting(g);
}

static void end_thread()
{
    Thread &self = *current;
    Cluster &cluster = *self.block->cluster;
    if (self.has_arrived_at_cluster) cluster.n_arrived--; /* there are fewer to arrive */
    if (cluster.launch->is_early && !self.has_waited_for_kernels)
        fail("has ended without a wait for the kernels before");
    if (!self.products.list.empty()) fail("has ended with products under way");
    self.has_ended = true;
    self.block->n_alive--;
    cluster.n_alive--;
    leave(warp_of(&self));
    leave(self.block->all);
    finish_cluster_phase(cluster);
}

static void run_thread()
{
    current->block->cluster->launch->kernel();
    end_thread();
    switch_from(*current);
    abort();
}

static char *new_stack()
{
    void *place = mmap(NULL, STACK_BYTES + PAGE_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (place == MAP_FAILED) abort();
    (void)mprotect(place, PAGE_BYTES, PROT_NONE);
    return (char *)place + PAGE_BYTES;
}

static void prepare_thread(Thread &thread, Block &block, uint32_t number, const dim3 &shape)
{
    thread.index = {number % shape.x, number / shape.x % shape.y, number / shape.x / shape.y};
    thread.block = &block;
    thread.number = number;
    if (thread.stack == NULL) thread.stack = new_stack();
    /* Stacks begin at other places of their pages, so that caches hold all of them. */
    void **top = (void **)(thread.stack + STACK_BYTES - number % 64 * 64);
    *--top = NULL; /* where run_thread would return to */
    *--top = (void *)run_thread;
    top -= 6; /* registers */
    thread.stack_pointer = top;
    thread.waits_for = NULL;
    thread.has_ended = thread.has_waited_for_kernels = false;
    thread.has_arrived_at_cluster = thread.is_fenced = false;
    thread.n_commits = 0;
    thread.barrier = NULL;
    thread.copies.clear();
    thread.stores.clear();
    thread.products.clear();
}

/* ---- Blocks and clusters ---- */

static void gather_warps(Block &block)
{
    block.warps.clear();
    for (uint32_t first = 0; first < block.n_threads; first += WARP_THREADS) {
        uint32_t n = std::min<uint32_t>(WARP_THREADS, block.n_threads - first);
        block.warps.push_back({&block, first, n, n, 0, NULL, NULL});
    }
}

/* The window of a block's shared memory ends before a page that nobody may touch. */
static uint8_t *new_window()
{
    void *place = mmap(NULL, SHARED_BYTES + PAGE_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (place == MAP_FAILED) abort();
    (void)mprotect((uint8_t *)place + SHARED_BYTES, PAGE_BYTES, PROT_NONE);
    return (uint8_t *)place;
}

static void prepare_block(Block &block, Cluster &cluster, uint32_t number)
{
    const Launch &launch = *cluster.launch;
    block.index = {number % launch.grid.x, number / launch.grid.x % launch.grid.y,
                   number / launch.grid.x / launch.grid.y};
    block.rank = number % launch.cluster_blocks;
    block.cluster = &cluster;
    if (block.window == NULL) block.window = new_window();
    block.shared = block.window + SHARED_BYTES - (launch.shared_bytes + 15) / 16 * 16;
    block.n_threads = block.n_alive = launch.block.n();
    block.has_begun = false;
    if (block.threads.size() < block.n_threads) block.threads.resize(block.n_threads);
    for (uint32_t i = 0; i < block.n_threads; i++)
        prepare_thread(block.threads[i], block, i, launch.block);
    block.all = {&block, 0, block.n_threads, block.n_threads, 0, NULL, NULL};
    gather_warps(block);
}

static void prepare_cluster(Cluster &cluster, const std::shared_ptr<Launch> &launch,
                            uint32_t number)
{
    cluster.launch = launch;
    cluster.n_blocks = launch->cluster_blocks;
    cluster.n_begun = cluster.n_arrived = 0;
    cluster.phase = 0;
    cluster.n_alive = cluster.n_blocks * launch->block.n();
    cluster.ready.clear();
    cluster.next = 0;
    cluster.copies.clear();
    while (cluster.blocks.size() < cluster.n_blocks)
        cluster.blocks.emplace_back(new Block());
    for (uint32_t i = 0; i < cluster.n_blocks; i++)
        prepare_block(*cluster.blocks[i], cluster, number * cluster.n_blocks + i);
}

/* Nobody has written the memory of a block that begins. */
static bool begin_block(Cluster &cluster)
{
    if (cluster.n_begun == cluster.n_blocks) return false;
    Block &block = *cluster.blocks[cluster.n_begun++];
    memset(block.window, POISON, SHARED_BYTES);
    std::fill(__start_emulated_shared, __stop_emulated_shared, (uint8_t)POISON);
    block.has_begun = true;
    for (uint32_t i = 0; i < block.n_threads; i++)
        cluster.ready.push_back(&block.threads[i]);
    return true;
}

static void tell_deadlock(Cluster &cluster)
{
    std::map<std::string, uint32_t> waiting;
    const Thread *first = NULL;
    for_each_thread(cluster, [&](const Thread &thread) {
        if (thread.has_ended) return;
        if (first == NULL) first = &thread;
        waiting[thread.waits_for]++;
    });
    std::string text = place_of(*first) + " and others wait for what never comes:";
    for (const auto &entry : waiting)
        text += " " + std::to_string(entry.second) + " at " + entry.first + ";";
    text.pop_back();
    note_failure(text);
}

static void end_kernels_before(Cluster &cluster)
{
    cluster.kernels_before_have_ended = true;
    for_each_thread(cluster, [](Thread &thread) {
        if (thread.waits_for == KERNELS_BEFORE) wake(&thread);
    });
}

/* Lets threads run until all have ended, or have to wait for the kernels before. */
static void run_turns(Cluster &cluster)
{
    gridDim = cluster.launch->grid;
    blockDim = cluster.launch->block;
    while (!has_failed) {
        current = take_ready(cluster);
        if (current != NULL) {
            cuda_emulator_switch(&scheduler_stack, current->stack_pointer);
            current = NULL;
            continue;
        }
        if (begin_block(cluster)) continue;
        if (cluster.n_alive == 0 || !cluster.kernels_before_have_ended) break;
        if (!finish_bulk_copy(cluster)) tell_deadlock(cluster);
    }
}

static void finish_cluster(Cluster &cluster)
{
    end_kernels_before(cluster);
    run_turns(cluster);
    if (has_failed) return;
    if (!cluster.copies.empty())
        note_failure(place_of(cluster.blocks[0]->threads[0]) +
                     " and others have ended with bulk copies under way");
    for_each_thread(cluster, lose_bulk_stores);
}

/* ---- Launches ---- */

/* Two clusters that have begun early, of a launch and of the next one, and one at work. */
static Cluster pool[3];

static struct {
    Cluster *cluster; /* NULL: none has begun early */
    std::vector<uint8_t> static_shared;
} early;

static Cluster *unused_cluster()
{
    Cluster *cluster = pool;
    while (cluster->launch != NULL)
        cluster++;
    return cluster;
}

/* Begins the first cluster of a launch before the kernel before it. */
static void begin_early(const std::shared_ptr<Launch> &launch)
{
    early.cluster = unused_cluster();
    prepare_cluster(*early.cluster, launch, 0);
    early.cluster->kernels_before_have_ended = false;
    run_turns(*early.cluster);
    early.static_shared.assign(__start_emulated_shared, __stop_emulated_shared);
}

static void run_clusters(const std::shared_ptr<Launch> &launch, uint32_t first)
{
    uint32_t n = launch->grid.n() / launch->cluster_blocks;
    std::vector<uint32_t> order;
    for (uint32_t i = first; i < n; i++)
        order.push_back(i);
    if (has_seed())
        for (size_t i = order.size(); i > 1; i--)
            std::swap(order[i - 1], order[chance((uint32_t)i)]);
    Cluster *cluster = unused_cluster();
    for (size_t i = 0; i < order.size() && !has_failed; i++) {
        prepare_cluster(*cluster, launch, order[i]);
        finish_cluster(*cluster);
    }
    cluster->launch = NULL;
}

bool run(const std::shared_ptr<Launch> &launch, const std::shared_ptr<Launch> &next)
{
    Signals signals;
    emulating_thread = pthread_self();
    has_failed = false;
    Cluster *begun = early.cluster;
    std::vector<uint8_t> static_shared = std::move(early.static_shared);
    early.cluster = NULL;
    if (next != NULL) begin_early(next);
    if (begun != NULL && !has_failed) {
        std::copy(static_shared.begin(), static_shared.end(), __start_emulated_shared);
        finish_cluster(*begun);
        begun->launch = NULL;
    }
    if (!has_failed) run_clusters(launch, begun != NULL ? 1 : 0);
    if (has_failed) {
        early.cluster = NULL;
        for (Cluster &cluster : pool)
            cluster.launch = NULL;
    }
    return !has_failed;
}

} // namespace cuda_emulator
