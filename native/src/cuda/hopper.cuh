/* Hopper's own instructions, one function each: products of a warpgroup, copies that do not wait,
 * blocks that share memory, kernels that begin early.
 *
 * A warpgroup's operands in shared memory are tiles as operands.cuh has them.  A build without a
 * GPU that defines BITM_EMULATED_HOPPER brings functions of its own. */
#ifndef BITM_CUDA_HOPPER_CUH
#define BITM_CUDA_HOPPER_CUH

#include "operands.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define BITM_HAS_WGMMA 1
#else
#define BITM_HAS_WGMMA 0
#endif

namespace bitm {

enum { EARLY_TOKENS = 256 };

#if !defined(BITM_EMULATED_HOPPER)

/* Waits until all kernels before have ended.  In a kernel that may begin early every thread calls
 * it; before, nothing is read that a kernel of the stream writes, nor anything written. */
static __device__ inline void wait_for_all_before()
{
#if BITM_HAS_WGMMA /* otherwise no kernel begins early */
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* Lets the next kernel begin, once all blocks of this one are here. */
static __device__ inline void let_next_begin()
{
#if BITM_HAS_WGMMA
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#endif

/* Both, where few tokens leave multiprocessors free; otherwise blocks of the next kernel would take
 * places from this one's, and it begins when they end. */
static __device__ inline void wait_for_kernels_before(uint32_t n_tokens)
{
    wait_for_all_before();
    if (n_tokens <= EARLY_TOKENS) let_next_begin();
}

#if BITM_HAS_WGMMA

/* The shared memory matrix descriptor of tiles, 128 bytes each, whose neighbours along the summed
 * dimension are `leading` bytes on, along the other `stride` bytes. */
static __device__ inline uint64_t matrix_descriptor(const void *tiles, uint64_t leading,
                                                    uint64_t stride)
{
    uint32_t address = (uint32_t)__cvta_generic_to_shared(tiles);
    return (uint64_t)((address & 0x3FFFF) >> 4) | leading / 16 << 16 | stride / 16 << 32;
}

/* That of tiles whose rows are summed over: a row goes on in the next tile, the next 8 rows are a
 * stage's pieces of them on. */
static __device__ inline uint64_t tile_descriptor(const void *tiles, uint32_t pieces)
{
    return matrix_descriptor(tiles, 128, pieces * 128);
}

#if !defined(BITM_EMULATED_HOPPER)

static __device__ inline void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ inline void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int N> static __device__ inline void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

#define BITM_D8_AS(type, i)                                                                        \
    type(d[i]), type(d[i + 1]), type(d[i + 2]), type(d[i + 3]), type(d[i + 4]), type(d[i + 5]),    \
        type(d[i + 6]), type(d[i + 7])
#define BITM_D8(i) BITM_D8_AS("+r", i)
#define BITM_D4 "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
#define BITM_FLOATS_D32                                                                            \
    BITM_D8_AS("+f", 0), BITM_D8_AS("+f", 8), BITM_D8_AS("+f", 16), BITM_D8_AS("+f", 24)

/* The registers of a result [64, N], half as many as N in a thread, and their places in the text.
 */
#define BITM_D16 BITM_D8(0), BITM_D8(8)
#define BITM_D32 BITM_D16, BITM_D8(16), BITM_D8(24)
#define BITM_D64 BITM_D32, BITM_D8(32), BITM_D8(40), BITM_D8(48), BITM_D8(56)
#define BITM_PLACES4 "%0,%1,%2,%3"
#define BITM_PLACES16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define BITM_PLACES32                                                                              \
    BITM_PLACES16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define BITM_PLACES64                                                                              \
    BITM_PLACES32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"              \
                  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

/* operands: the places of a and b. */
#define BITM_WGMMA_BITS(n, places, operands, ...)                                                  \
    asm volatile("{wgmma.mma_async.sync.aligned.m64n" n "k256.s32.b1.b1.and.popc "                 \
                 "{" places "}, " operands ", 1;}"                                                 \
                 : __VA_ARGS__                                                                     \
                 : "l"(a), "l"(b))

/* d [64 tokens, 128 outputs] += a AND b over 256 columns. */
static __device__ inline void wgmma_bits(int32_t d[64], uint64_t a, uint64_t b)
{
    BITM_WGMMA_BITS("128", BITM_PLACES64, "%64, %65", BITM_D64);
}

/* The same, or d = a AND b where d is not wanted. */
static __device__ inline void wgmma_bits_onto(bool wanted, int32_t d[64], uint64_t a, uint64_t b)
{
    asm volatile("{.reg .pred wanted;\n"
                 "setp.ne.b32 wanted, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k256.s32.b1.b1.and.popc {" BITM_PLACES64
                 "}, %64, %65, wanted;}"
                 : BITM_D64
                 : "l"(a), "l"(b), "r"((uint32_t)wanted));
}

/* d [64 tokens, 64 outputs] += a AND b over 256 columns. */
static __device__ inline void wgmma_bits_64(int32_t d[32], uint64_t a, uint64_t b)
{
    BITM_WGMMA_BITS("64", BITM_PLACES32, "%32, %33", BITM_D32);
}

/* d [64 outputs, 32 tokens] += a AND b over 256 columns. */
static __device__ inline void wgmma_bits_32(int32_t d[16], uint64_t a, uint64_t b)
{
    BITM_WGMMA_BITS("32", BITM_PLACES16, "%16, %17", BITM_D16);
}

/* d [64 outputs, 8 tokens] += a AND b over 256 columns. */
static __device__ inline void wgmma_bits_8(int32_t d[4], uint64_t a, uint64_t b)
{
    BITM_WGMMA_BITS("8", BITM_PLACES4, "%4, %5", BITM_D4);
}

/* The same with weights in registers: d [64 outputs, 64 tokens] += or = a AND b. */
static __device__ inline void wgmma_rows_64(bool onto, int32_t d[32], const uint4 &a, uint64_t b)
{
    asm volatile("{.reg .pred onto;\n"
                 "setp.ne.b32 onto, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k256.s32.b1.b1.and.popc {" BITM_PLACES32
                 "}, {%32, %33, %34, %35}, %36, onto;}"
                 : BITM_D32
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b), "r"((uint32_t)onto));
}

/* d [64 outputs, 32 tokens] */
static __device__ inline void wgmma_rows_32(bool onto, int32_t d[16], const uint4 &a, uint64_t b)
{
    asm volatile("{.reg .pred onto;\n"
                 "setp.ne.b32 onto, %21, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n32k256.s32.b1.b1.and.popc {" BITM_PLACES16
                 "}, {%16, %17, %18, %19}, %20, onto;}"
                 : BITM_D16
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b), "r"((uint32_t)onto));
}

/* d [64 outputs, 8 tokens] */
static __device__ inline void wgmma_rows_8(bool onto, int32_t d[4], const uint4 &a, uint64_t b)
{
    asm volatile("{.reg .pred onto;\n"
                 "setp.ne.b32 onto, %9, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n8k256.s32.b1.b1.and.popc {" BITM_PLACES4
                 "}, {%4, %5, %6, %7}, %8, onto;}"
                 : BITM_D4
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b), "r"((uint32_t)onto));
}

static __device__ inline void copy_async(void *to, const void *from)
{
    asm volatile(
        "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(to)),
        "l"(from)
        : "memory");
}

/* A barrier in shared memory that bulk copies arrive at; it can be waited for in the order of its
 * phases, once the block has met another barrier after this. */
static __device__ inline void init_barrier(uint64_t *barrier)
{
    asm volatile(
        "mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"((uint32_t)__cvta_generic_to_shared(barrier))
        : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/* Ends a phase as soon as so many bytes have come, of copies already started or not. */
static __device__ inline void expect_bytes(uint64_t *barrier, uint32_t n_bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     (uint32_t)__cvta_generic_to_shared(barrier)),
                 "r"(n_bytes)
                 : "memory");
}

/* Starts to copy a multiple of 16 bytes; one thread does it for all. */
static __device__ inline void copy_bulk(void *to, const void *from, uint32_t n_bytes,
                                        uint64_t *barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"((uint32_t)__cvta_generic_to_shared(to)),
                 "l"(from), "r"(n_bytes), "r"((uint32_t)__cvta_generic_to_shared(barrier))
                 : "memory");
}

/* The same of what nobody reads again: it need not stay in the second cache. */
static __device__ inline void copy_bulk_once(void *to, const void *from, uint32_t n_bytes,
                                             uint64_t *barrier)
{
    asm volatile("{.reg .b64 policy;\n"
                 "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
                 "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1], %2, [%3], policy;}" ::"r"(
                     (uint32_t)__cvta_generic_to_shared(to)),
                 "l"(from), "r"(n_bytes), "r"((uint32_t)__cvta_generic_to_shared(barrier))
                 : "memory");
}

/* The other way: from shared memory, of which publish_tiles has told; wait_for_stores before it is
 * used again, or the block ends. */
static __device__ inline void store_bulk(void *to, const void *from, uint32_t n_bytes)
{
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
                 "r"((uint32_t)__cvta_generic_to_shared(from)), "r"(n_bytes)
                 : "memory");
}

/* The same of what is read soon: it is to stay in the second cache. */
static __device__ inline void store_bulk_kept(void *to, const void *from, uint32_t n_bytes)
{
    asm volatile("{.reg .b64 policy;\n"
                 "createpolicy.fractional.L2::evict_last.b64 policy, 1.0;\n"
                 "cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint "
                 "[%0], [%1], %2, policy;}" ::"l"(to),
                 "r"((uint32_t)__cvta_generic_to_shared(from)), "r"(n_bytes)
                 : "memory");
}

/* Ends a group of this thread's bulk stores. */
static __device__ inline void store_commit()
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/* Waits until at most N groups of them have not been read. */
template <int N> static __device__ inline void wait_for_stores()
{
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}

static __device__ inline void wait_for_phase(uint64_t *barrier, uint32_t phase)
{
    asm volatile("{.reg .pred done;\n"
                 "wait: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra wait;}" ::"r"((uint32_t)__cvta_generic_to_shared(barrier)),
                 "r"(phase)
                 : "memory");
}

/* Ends a group of copies. */
static __device__ inline void copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* What this thread has stored in shared memory becomes visible to products and bulk copies; a
 * barrier is to follow. */
static __device__ inline void publish_tiles()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* Waits until at most N groups of this thread's copies are under way, and makes what has come
 * visible to products; the block's barrier is to follow. */
template <int N> static __device__ inline void copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
    publish_tiles();
}

/* d [64 rows, 64 columns] += a x b over 16 float16s.  Turned: b's tiles have its columns as rows,
 * and a is in registers. */
static __device__ inline void wgmma_halves(float d[32], uint64_t a, uint64_t b)
{
    asm volatile("{wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" BITM_PLACES32
                 "}, %32, %33, 1, 1, 1, 0, 0;}"
                 : BITM_FLOATS_D32
                 : "l"(a), "l"(b));
}

static __device__ inline void wgmma_halves_turned(float d[32], const uint32_t a[4], uint64_t b)
{
    asm volatile("{wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" BITM_PLACES32
                 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;}"
                 : BITM_FLOATS_D32
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

/* Four tiles, of whose rows and columns threads have what mma leaves: columns become rows.  A
 * thread has the address of a row of one. */
static __device__ inline void store_tiles_turned(void *row, const uint32_t tiles[4])
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(
                     (uint32_t)__cvta_generic_to_shared(row)),
                 "r"(tiles[0]), "r"(tiles[1]), "r"(tiles[2]), "r"(tiles[3])
                 : "memory");
}

#define BITM_WGMMA_BYTES(n, types, places, operands, ...)                                          \
    asm volatile("{wgmma.mma_async.sync.aligned.m64n" n "k32.s32." types " "                       \
                 "{" places "}, " operands ", 1;}"                                                 \
                 : __VA_ARGS__                                                                     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

/* d [64 outputs, n tokens] += weights of 0 and 1 x codes over 32 columns. */
#define BITM_WGMMA_CODES(n, places, operands, ...)                                                 \
    do {                                                                                           \
        if (SIGNED)                                                                                \
            BITM_WGMMA_BYTES(n, "u8.s8", places, operands, __VA_ARGS__);                           \
        else                                                                                       \
            BITM_WGMMA_BYTES(n, "u8.u8", places, operands, __VA_ARGS__);                           \
    } while (0)

template <bool SIGNED>
static __device__ inline void wgmma_bytes(int32_t d[64], const uint32_t a[4], uint64_t b)
{
    BITM_WGMMA_CODES("128", BITM_PLACES64, "{%64, %65, %66, %67}, %68", BITM_D64);
}

template <bool SIGNED>
static __device__ inline void wgmma_bytes_64(int32_t d[32], const uint32_t a[4], uint64_t b)
{
    BITM_WGMMA_CODES("64", BITM_PLACES32, "{%32, %33, %34, %35}, %36", BITM_D32);
}

/* d [64 rows, 64 rows] += a x b of signed codes over 32 columns. */
static __device__ inline void wgmma_codes_64(int32_t d[32], uint64_t a, uint64_t b)
{
    asm volatile("{wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 {" BITM_PLACES32
                 "}, %32, %33, 1;}"
                 : BITM_D32
                 : "l"(a), "l"(b));
}

template <bool SIGNED>
static __device__ inline void wgmma_bytes_32(int32_t d[16], const uint32_t a[4], uint64_t b)
{
    BITM_WGMMA_CODES("32", BITM_PLACES16, "{%16, %17, %18, %19}, %20", BITM_D16);
}

template <bool SIGNED>
static __device__ inline void wgmma_bytes_8(int32_t d[4], const uint32_t a[4], uint64_t b)
{
    BITM_WGMMA_CODES("8", BITM_PLACES4, "{%4, %5, %6, %7}, %8", BITM_D4);
}

/* Tells the blocks of a cluster that this one has begun: before that, its memory is not theirs. */
static __device__ inline void greet_cluster()
{
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

/* The two halves of a barrier of a cluster's blocks: what is written before the first, in any
 * block's memory, is seen after the second. */
static __device__ inline void arrive_at_cluster()
{
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

static __device__ inline void wait_for_cluster()
{
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* The address of a place in this block's shared memory, in that of another block of the cluster. */
static __device__ inline uint32_t place_in_block(const void *place, uint32_t block)
{
    uint32_t address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(address)
        : "r"((uint32_t)__cvta_generic_to_shared(place)), "r"(block));
    return address;
}

static __device__ inline void store_in_block(uint32_t address, float x)
{
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address), "f"(x) : "memory");
}

/* Sends 4, 8 or 16 bytes to such a place, without waiting; they count for a barrier of that block,
 * whose address is of the same kind. */
static __device__ inline void send_to_block(uint32_t address, uint32_t barrier, uint32_t x)
{
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
            address),
        "r"(x), "r"(barrier)
        : "memory");
}

static __device__ inline void send_to_block(uint32_t address, uint32_t barrier, uint2 x)
{
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 "
                 "[%0], {%1, %2}, [%3];" ::"r"(address),
                 "r"(x.x), "r"(x.y), "r"(barrier)
                 : "memory");
}

static __device__ inline void send_to_block(uint32_t address, uint32_t barrier, uint4 x)
{
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 "
                 "[%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
                 "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w), "r"(barrier)
                 : "memory");
}

#endif

/* d [64 outputs, N tokens] += or = a AND b over 256 columns, weights in registers. */
template <int N>
static __device__ inline void wgmma_rows_of(bool onto, int32_t *d, const uint4 &a, uint64_t b)
{
    if (N == 64)
        wgmma_rows_64(onto, d, a, b);
    else if (N == 32)
        wgmma_rows_32(onto, d, a, b);
    else
        wgmma_rows_8(onto, d, a, b);
}

/* d [64 rows, N rows] += a AND b over 256 columns. */
template <int N> static __device__ inline void wgmma_bits_of(int32_t *d, uint64_t a, uint64_t b)
{
    if (N == 64)
        wgmma_bits_64(d, a, b);
    else if (N == 32)
        wgmma_bits_32(d, a, b);
    else
        wgmma_bits_8(d, a, b);
}

/* d [64 outputs, N tokens] += weights of 0 and 1 x codes over 32 columns. */
template <bool SIGNED, int N>
static __device__ inline void wgmma_bytes_of(int32_t *d, const uint32_t a[4], uint64_t b)
{
    if (N == 128)
        wgmma_bytes<SIGNED>(d, a, b);
    else if (N == 64)
        wgmma_bytes_64<SIGNED>(d, a, b);
    else if (N == 32)
        wgmma_bytes_32<SIGNED>(d, a, b);
    else
        wgmma_bytes_8<SIGNED>(d, a, b);
}

#endif

} // namespace bitm

#endif
