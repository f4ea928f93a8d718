/* What threads of a warp and of a block do together. */
#include "emulator.h"

#include <algorithm>
#include <cstring>

namespace cuda_emulator {

/* ---- Warps ---- */

/* Nothing here asks for a part of a warp. */
static void check_mask(unsigned mask)
{
    if (mask != 0xFFFFFFFFu) fail("names lanes %08x, not the whole warp", mask);
}

static Thread &lane_of(Gathering &g, uint32_t lane)
{
    return g.block->threads[g.first + lane];
}

static void finish_exchange(Gathering &g)
{
    for (uint32_t lane = 0; lane < g.n; lane++) {
        Thread &thread = lane_of(g, lane);
        uint32_t from = (uint32_t)thread.given[1];
        thread.taken = ~0ull; /* that of a lane that has ended */
        if (from < g.n && !lane_of(g, from).has_ended) thread.taken = lane_of(g, from).given[0];
    }
}

uint64_t exchange(Exchange how, unsigned mask, uint64_t value, uint32_t argument)
{
    check_mask(mask);
    uint32_t lane = current->number % WARP_THREADS;
    current->given[0] = value;
    current->given[1] = (how == Exchange::XOR ? lane ^ argument : argument) % WARP_THREADS;
    meet(warp_of(current), how == Exchange::XOR ? "__shfl_xor_sync" : "__shfl_sync",
         finish_exchange);
    return current->taken;
}

static void finish_ballot(Gathering &g)
{
    uint64_t bits = 0;
    for (uint32_t lane = 0; lane < g.n; lane++)
        if (!lane_of(g, lane).has_ended) bits |= lane_of(g, lane).given[0] << lane;
    for (uint32_t lane = 0; lane < g.n; lane++)
        lane_of(g, lane).taken = bits;
}

unsigned ballot(const char *what, unsigned mask, bool predicate)
{
    check_mask(mask);
    current->given[0] = predicate;
    meet(warp_of(current), what, finish_ballot);
    return (unsigned)current->taken;
}

static void finish_max(Gathering &g)
{
    uint64_t most = 0;
    for (uint32_t lane = 0; lane < g.n; lane++)
        if (!lane_of(g, lane).has_ended) most = std::max(most, lane_of(g, lane).given[0]);
    for (uint32_t lane = 0; lane < g.n; lane++)
        lane_of(g, lane).taken = most;
}

unsigned reduce_max(unsigned mask, unsigned value)
{
    check_mask(mask);
    current->given[0] = value;
    meet(warp_of(current), "__reduce_max_sync", finish_max);
    return (unsigned)current->taken;
}

void meet_warp(unsigned mask)
{
    check_mask(mask);
    meet(warp_of(current), "__syncwarp", NULL);
}

/* Number m of four matrices [8, 8] of 16 bits goes to the addresses that lanes 8 m to 8 m + 7 have,
 * a column of what lanes hold to each: lane l holds two neighbours of row l / 4. */
static void finish_tiles(Gathering &g)
{
    for (uint32_t lane = 0; lane < g.n; lane++) {
        uint16_t *row = (uint16_t *)lane_of(g, lane).given[0];
        for (uint32_t i = 0; i < 8; i++) {
            const Thread &holder = lane_of(g, i * 4 + lane % 8 / 2);
            const uint32_t *tiles = (const uint32_t *)holder.given[1];
            row[i] = (uint16_t)(tiles[lane / 8] >> lane % 2 * 16);
        }
    }
}

void store_tiles(void *row, const uint32_t tiles[4])
{
    check_shared_bytes(row, 16);
    current->given[0] = (uint64_t)row;
    current->given[1] = (uint64_t)tiles;
    Gathering &warp = warp_of(current);
    if (warp.n_alive != WARP_THREADS) fail("stores tiles without all of its warp");
    meet(warp, "stmatrix", finish_tiles);
}

/* ---- Blocks ---- */

static void finish_vote(Gathering &g)
{
    bool any = false, all = true;
    for (uint32_t i = 0; i < g.n; i++) {
        Thread &thread = g.block->threads[i];
        if (thread.has_ended) continue;
        any |= thread.given[0] != 0;
        all &= thread.given[0] != 0;
    }
    for (uint32_t i = 0; i < g.n; i++)
        g.block->threads[i].taken = (uint64_t)any | (uint64_t)all << 1;
}

int meet_block(Vote vote, bool predicate)
{
    static const char *const names[] = {"__syncthreads", "__syncthreads_and", "__syncthreads_or"};
    current->given[0] = predicate;
    meet(current->block->all, names[(int)vote], vote == Vote::NONE ? NULL : finish_vote);
    return (int)(vote == Vote::AND ? current->taken >> 1 & 1 : current->taken & 1);
}

} // namespace cuda_emulator
