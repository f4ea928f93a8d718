/* What native/src/cuda/hopper.cuh leaves to an emulated GPU: the functions of its own PTX. */
#ifndef BITM_EMULATED_HOPPER_H
#define BITM_EMULATED_HOPPER_H

#include "emulator.h"

namespace bitm {

using cuda_emulator::arrive_at_cluster;
using cuda_emulator::expect_bytes;
using cuda_emulator::init_barrier;
using cuda_emulator::place_in_block;
using cuda_emulator::store_in_block;
using cuda_emulator::wait_for_cluster;
using cuda_emulator::wait_for_phase;

static inline void wait_for_all_before()
{
    cuda_emulator::wait_for_kernels_before();
}

/* Nothing: kernels begin as early as they may whether or not the one before says so. */
static inline void let_next_begin()
{
}

/* ---- Copies ---- */

static inline void copy_async(void *to, const void *from)
{
    cuda_emulator::start_copy(to, from);
}

static inline void copy_commit()
{
    cuda_emulator::commit_copies();
}

/* Fences are not emulated: what has been written is seen by everybody. */
static inline void publish_tiles()
{
}

template <int N> static inline void copy_wait()
{
    cuda_emulator::wait_for_copies(N);
}

static inline void copy_bulk(void *to, const void *from, uint32_t n_bytes, uint64_t *barrier)
{
    cuda_emulator::start_bulk_copy(to, from, n_bytes, barrier);
}

static inline void store_bulk(void *to, const void *from, uint32_t n_bytes)
{
    cuda_emulator::start_bulk_store(to, from, n_bytes);
}

/* Policies of the second cache are not emulated. */
static inline void copy_bulk_once(void *to, const void *from, uint32_t n_bytes, uint64_t *barrier)
{
    copy_bulk(to, from, n_bytes, barrier);
}

static inline void store_bulk_kept(void *to, const void *from, uint32_t n_bytes)
{
    store_bulk(to, from, n_bytes);
}

static inline void store_commit()
{
    cuda_emulator::commit_bulk_stores();
}

template <int N> static inline void wait_for_stores()
{
    cuda_emulator::wait_for_bulk_stores(N);
}

static inline void store_tiles_turned(void *row, const uint32_t tiles[4])
{
    cuda_emulator::store_tiles(row, tiles);
}

static inline void greet_cluster()
{
    cuda_emulator::arrive_at_cluster();
}

static inline void send_to_block(uint32_t address, uint32_t barrier, uint32_t x)
{
    cuda_emulator::send_to_block(address, barrier, &x, 1);
}

static inline void send_to_block(uint32_t address, uint32_t barrier, uint2 x)
{
    cuda_emulator::send_to_block(address, barrier, &x.x, 2);
}

static inline void send_to_block(uint32_t address, uint32_t barrier, uint4 x)
{
    cuda_emulator::send_to_block(address, barrier, &x.x, 4);
}

/* ---- Products ---- */

static inline void wgmma_fence()
{
    cuda_emulator::fence_products();
}

static inline void wgmma_commit()
{
    cuda_emulator::commit_products();
}

template <int N> static inline void wgmma_wait()
{
    cuda_emulator::wait_for_products(N);
}

/* Of two operands in shared memory, or with the left one in registers. */
template <typename T>
static inline void start_product(cuda_emulator::Factors factors, uint32_t n, T *d, uint64_t a,
                                 uint64_t b, bool adds = true)
{
    cuda_emulator::start_product({factors, n, adds, d, a, b, {}});
}

template <typename T>
static inline void start_product(cuda_emulator::Factors factors, uint32_t n, T *d,
                                 const uint32_t a[4], uint64_t b, bool adds = true)
{
    cuda_emulator::start_product({factors, n, adds, d, 0, b, {a[0], a[1], a[2], a[3]}});
}

static inline void wgmma_bits(int32_t d[64], uint64_t a, uint64_t b)
{
    start_product(cuda_emulator::Factors::BITS, 128, d, a, b);
}

static inline void wgmma_bits_onto(bool wanted, int32_t d[64], uint64_t a, uint64_t b)
{
    start_product(cuda_emulator::Factors::BITS, 128, d, a, b, wanted);
}

static inline void wgmma_bits_64(int32_t d[32], uint64_t a, uint64_t b)
{
    start_product(cuda_emulator::Factors::BITS, 64, d, a, b);
}

static inline void wgmma_bits_32(int32_t d[16], uint64_t a, uint64_t b)
{
    start_product(cuda_emulator::Factors::BITS, 32, d, a, b);
}

static inline void wgmma_bits_8(int32_t d[4], uint64_t a, uint64_t b)
{
    start_product(cuda_emulator::Factors::BITS, 8, d, a, b);
}

static inline void wgmma_rows_64(bool onto, int32_t d[32], const uint4 &a, uint64_t b)
{
    start_product(cuda_emulator::Factors::ROWS_OF_BITS, 64, d, &a.x, b, onto);
}

static inline void wgmma_rows_32(bool onto, int32_t d[16], const uint4 &a, uint64_t b)
{
    start_product(cuda_emulator::Factors::ROWS_OF_BITS, 32, d, &a.x, b, onto);
}

static inline void wgmma_rows_8(bool onto, int32_t d[4], const uint4 &a, uint64_t b)
{
    start_product(cuda_emulator::Factors::ROWS_OF_BITS, 8, d, &a.x, b, onto);
}

static inline void wgmma_codes_64(int32_t d[32], uint64_t a, uint64_t b)
{
    start_product(cuda_emulator::Factors::CODES, 64, d, a, b);
}

template <bool SIGNED>
static inline void start_bytes(uint32_t n, int32_t *d, const uint32_t a[4], uint64_t b)
{
    start_product(SIGNED ? cuda_emulator::Factors::SIGNED_BYTES
                         : cuda_emulator::Factors::UNSIGNED_BYTES,
                  n, d, a, b);
}

template <bool SIGNED>
static inline void wgmma_bytes(int32_t d[64], const uint32_t a[4], uint64_t b)
{
    start_bytes<SIGNED>(128, d, a, b);
}

template <bool SIGNED>
static inline void wgmma_bytes_64(int32_t d[32], const uint32_t a[4], uint64_t b)
{
    start_bytes<SIGNED>(64, d, a, b);
}

template <bool SIGNED>
static inline void wgmma_bytes_32(int32_t d[16], const uint32_t a[4], uint64_t b)
{
    start_bytes<SIGNED>(32, d, a, b);
}

template <bool SIGNED>
static inline void wgmma_bytes_8(int32_t d[4], const uint32_t a[4], uint64_t b)
{
    start_bytes<SIGNED>(8, d, a, b);
}

/* ---- float16s ---- */

static inline void wgmma_halves(float d[32], uint64_t a, uint64_t b)
{
    start_product(cuda_emulator::Factors::HALVES, 64, d, a, b);
}

static inline void wgmma_halves_turned(float d[32], const uint32_t a[4], uint64_t b)
{
    start_product(cuda_emulator::Factors::TURNED_HALVES, 64, d, a, b);
}

static inline uint32_t halves_of(float x, float y)
{
    const _Float16 halves[2] = {(_Float16)x, (_Float16)y};
    uint32_t word;
    memcpy(&word, halves, sizeof word);
    return word;
}

static inline void floats_of(uint32_t word, float *x, float *y)
{
    _Float16 halves[2];
    memcpy(halves, &word, sizeof word);
    *x = (float)halves[0];
    *y = (float)halves[1];
}

static inline float exp2_approx(float x)
{
    return exp2f(x);
}

} // namespace bitm

#endif
