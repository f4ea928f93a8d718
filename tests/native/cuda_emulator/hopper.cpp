/* What Hopper has of its own: copies that do not wait, barriers in memory, clusters. */
#include "emulator.h"

#include <algorithm>
#include <cstring>

namespace cuda_emulator {

const char *const CLUSTER_BARRIER = "the cluster's barrier";
const char *const KERNELS_BEFORE = "the kernels before";

/* ---- Shared memory ---- */

unsigned char *dynamic_shared(const char *kernel)
{
    Launch &launch = *current->block->cluster->launch;
    if (launch.name.empty()) launch.name = kernel;
    return current->block->shared;
}

uint32_t shared_address(const void *place)
{
    const Block &block = *current->block;
    ptrdiff_t offset = (const uint8_t *)place - block.window;
    if (offset < 0 || offset >= SHARED_BYTES) fail("%p is not in its shared memory", place);
    return (uint32_t)offset;
}

uint8_t *shared_place(const Block &block, uint32_t address, uint32_t n_bytes)
{
    uint8_t *place = block.window + address;
    if (place < block.shared || address + n_bytes > SHARED_BYTES)
        fail("%u bytes from %u on are not in shared memory", n_bytes, address);
    return place;
}

static void check_pieces(const void *place, uint32_t n_bytes)
{
    if ((uintptr_t)place % 16 != 0 || n_bytes % 16 != 0)
        fail("copies %u bytes at %p, which are not whole 16 bytes", n_bytes, place);
}

void check_shared_bytes(const void *place, uint32_t n_bytes)
{
    check_pieces(place, n_bytes);
    (void)shared_place(*current->block, shared_address(place), n_bytes);
}

void check_device_bytes(const void *place, uint32_t n_bytes)
{
    check_pieces(place, n_bytes);
    if (!is_device_memory(place, n_bytes))
        fail("%u bytes at %p are not the device's memory", n_bytes, place);
}

/* ---- Copies of a thread ---- */

void start_copy(void *to, const void *from)
{
    check_shared_bytes(to, 16);
    check_device_bytes(from, 16);
    if (chance(2) == 1)
        memcpy(to, from, 16);
    else
        current->copies.list.push_back({to, from, 16, NULL, {}});
}

void commit_copies()
{
    current->copies.commit();
}

void wait_for_copies(size_t n_groups)
{
    Started<Copy> &copies = current->copies;
    size_t n = copies.waited(n_groups);
    for (size_t i = 0; i < n; i++)
        memcpy(copies.list[i].to, copies.list[i].from, copies.list[i].n_bytes);
    copies.forget(n);
}

/* ---- Barriers in shared memory ---- */

/* As the emulator has one: what makes it sound, its phase, and what the phase still waits for. */
struct BarrierWord {
    int32_t n_bytes;
    uint8_t n_missing, phase;
    uint16_t magic;
};

enum { BARRIER_MAGIC = 0xBA55 };

static BarrierWord *word_of(uint64_t *barrier)
{
    BarrierWord *word = (BarrierWord *)barrier;
    if ((uintptr_t)barrier % 8 != 0 || word->magic != BARRIER_MAGIC)
        fail("uses a barrier that has not been initialized");
    return word;
}

static void end_phase_if_complete(Cluster &cluster, uint64_t *barrier, BarrierWord *word)
{
    if (word->n_missing > 0 || word->n_bytes != 0) return;
    word->n_missing = 1;
    word->phase ^= 1;
    for_each_thread(cluster, [barrier](Thread &thread) {
        if (thread.barrier == barrier) wake(&thread);
    });
}

void init_barrier(uint64_t *barrier)
{
    (void)shared_address(barrier);
    BarrierWord word = {0, 1, 0, BARRIER_MAGIC};
    memcpy(barrier, &word, sizeof word);
}

void expect_bytes(uint64_t *barrier, uint32_t n_bytes)
{
    BarrierWord *word = word_of(barrier);
    if (word->n_missing == 0) fail("arrives once more at a barrier's phase");
    word->n_bytes += (int32_t)n_bytes;
    word->n_missing--;
    end_phase_if_complete(*current->block->cluster, barrier, word);
}

void wait_for_phase(uint64_t *barrier, uint32_t phase)
{
    BarrierWord *word = word_of(barrier);
    current->barrier = barrier;
    while (word->phase == (phase & 1))
        wait_for("a barrier of bulk copies");
    current->barrier = NULL;
}

/* ---- Bulk copies ---- */

static void finish_copy(Cluster &cluster, const Copy &copy)
{
    memcpy(copy.to, copy.from != NULL ? copy.from : copy.words, copy.n_bytes);
    BarrierWord *word = (BarrierWord *)copy.barrier;
    word->n_bytes -= (int32_t)copy.n_bytes;
    end_phase_if_complete(cluster, copy.barrier, word);
}

static void begin_copy(const Copy &copy)
{
    if (chance(2) == 1)
        finish_copy(*current->block->cluster, copy);
    else
        current->block->cluster->copies.push_back(copy);
}

void start_bulk_copy(void *to, const void *from, uint32_t n_bytes, uint64_t *barrier)
{
    check_shared_bytes(to, n_bytes);
    check_device_bytes(from, n_bytes);
    (void)word_of(barrier);
    begin_copy({to, from, n_bytes, barrier, {}});
}

bool finish_bulk_copy(Cluster &cluster)
{
    if (cluster.copies.empty()) return false;
    size_t i = chance((uint32_t)cluster.copies.size());
    Copy copy = cluster.copies[i];
    cluster.copies.erase(cluster.copies.begin() + (ptrdiff_t)i);
    finish_copy(cluster, copy);
    return true;
}

void start_bulk_store(void *to, const void *from, uint32_t n_bytes)
{
    check_device_bytes(to, n_bytes);
    check_shared_bytes(from, n_bytes);
    current->stores.list.push_back({to, from, n_bytes, NULL, {}});
}

void commit_bulk_stores()
{
    current->stores.commit();
}

void wait_for_bulk_stores(size_t n_groups)
{
    size_t n = current->stores.waited(n_groups);
    for (size_t i = 0; i < n; i++) {
        const Copy &store = current->stores.list[i];
        memcpy(store.to, store.from, store.n_bytes);
    }
    current->stores.forget(n);
}

void lose_bulk_stores(Thread &thread)
{
    for (const Copy &store : thread.stores.list)
        memset(store.to, POISON, store.n_bytes);
    thread.stores.clear();
}

/* ---- Clusters ---- */

void finish_cluster_phase(Cluster &cluster)
{
    if (cluster.n_arrived == 0 || cluster.n_arrived < cluster.n_alive) return;
    cluster.n_arrived = 0;
    cluster.phase++;
    for_each_thread(cluster, [](Thread &thread) {
        if (thread.waits_for == CLUSTER_BARRIER) wake(&thread);
    });
}

void arrive_at_cluster()
{
    if (current->has_arrived_at_cluster) fail("arrives twice at its cluster's barrier");
    current->has_arrived_at_cluster = true;
    current->cluster_phase = current->block->cluster->phase;
    current->block->cluster->n_arrived++;
    finish_cluster_phase(*current->block->cluster);
}

void wait_for_cluster()
{
    if (!current->has_arrived_at_cluster) fail("waits for its cluster before it has arrived");
    while (current->block->cluster->phase == current->cluster_phase)
        wait_for(CLUSTER_BARRIER);
    current->has_arrived_at_cluster = false;
}

uint32_t place_in_block(const void *place, uint32_t rank)
{
    if (rank >= current->block->cluster->n_blocks) fail("has no block %u in its cluster", rank);
    return rank << 24 | shared_address(place);
}

/* A place in a block of the cluster, to be written. */
static uint8_t *place_to_write(uint32_t address, uint32_t n_bytes)
{
    const Block &block = *current->block->cluster->blocks[address >> 24];
    if (!block.has_begun) fail("writes into a block that has not begun");
    if (block.n_alive == 0) fail("writes into a block that has ended");
    return shared_place(block, address & 0xFFFFFF, n_bytes);
}

void store_in_block(uint32_t address, float x)
{
    memcpy(place_to_write(address, sizeof x), &x, sizeof x);
}

void send_to_block(uint32_t address, uint32_t barrier, const uint32_t *words, uint32_t n_words)
{
    uint32_t n_bytes = n_words * 4;
    if (address >> 24 != barrier >> 24) fail("sends to one block, with a barrier of another");
    if (address % n_bytes != 0) fail("sends %u bytes to %u, unaligned", n_bytes, address);
    uint64_t *at = (uint64_t *)place_to_write(barrier, sizeof *at);
    (void)word_of(at);
    Copy copy = {place_to_write(address, n_bytes), NULL, n_bytes, at, {}};
    memcpy(copy.words, words, n_bytes);
    begin_copy(copy);
}

/* ---- Kernels before ---- */

void wait_for_kernels_before()
{
    current->has_waited_for_kernels = true;
    if (!current->block->cluster->kernels_before_have_ended) wait_for(KERNELS_BEFORE);
}

} // namespace cuda_emulator
