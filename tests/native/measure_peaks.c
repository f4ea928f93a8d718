/* What this machine can do at most in one core, for the ratio that checkkernels --bench prints:
 * loops of the instructions that kernels lean on, with nothing else to do. */
#include <string.h>

#include "check_kernels.h"

#if BITM_HAVE_AVX2

enum { ROUNDS = 1000 };

/* 12 sums, which latencies of 4 and 5 cycles need at 2 instructions a cycle. */
#define SUMS(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define ALL_SUMS                                                                                   \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",       \
        "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

/* The instructions `body` over and over. */
#define REPEAT(body)                                                                               \
    do {                                                                                           \
        uint32_t n_left = ROUNDS;                                                                  \
        __asm__ volatile("1:\n" body "dec %0\n"                                                    \
                         "jnz 1b\n"                                                                \
                         "vzeroupper\n"                                                            \
                         : "+r"(n_left)                                                            \
                         :                                                                         \
                         : "cc", ALL_SUMS);                                                        \
    } while (0)

static void multiply_ymm(void *context)
{
    (void)context;
#define FMA(i) "vfmadd231ps %%ymm12, %%ymm13, %%ymm" #i "\n"
    REPEAT(SUMS(FMA));
#undef FMA
}

#if BITM_HAVE_AVX512
static void multiply_zmm(void *context)
{
    (void)context;
#define FMA(i) "vfmadd231ps %%zmm12, %%zmm13, %%zmm" #i "\n"
    REPEAT(SUMS(FMA));
#undef FMA
}

static void multiply_bytes(void *context)
{
    (void)context;
#define DOT(i) "vpdpbusd %%zmm12, %%zmm13, %%zmm" #i "\n"
    REPEAT(SUMS(DOT));
#undef DOT
}

/* Sums looked up in tables of two registers, and added: of two groups of six inputs, 32 outputs. */
static void look_up(void *context)
{
    (void)context;
#define FIND(found)                                                                                \
    "vmovdqa64 %%zmm13, %%zmm" #found "\n"                                                         \
    "vpermt2w %%zmm14, %%zmm15, %%zmm" #found "\n"
#define ADD(sum, found) "vpaddw %%zmm" #found ", %%zmm" #sum ", %%zmm" #sum "\n"
    REPEAT(FIND(8) FIND(9) ADD(0, 8) ADD(1, 9) FIND(10) FIND(11) ADD(2, 10) ADD(3, 11) FIND(8)
               FIND(9) ADD(4, 8) ADD(5, 9) FIND(10) FIND(11) ADD(6, 10) ADD(7, 11));
#undef FIND
#undef ADD
}

/* Five times what a word of 8 outputs takes: sums in 0 to 4. */
static void count_bits(void *context)
{
    (void)context;
#define COUNT(sum, operand, count)                                                                 \
    "vpternlogq $0x28, %%zmm15, %%zmm15, %%zmm" #operand "\n"                                      \
    "vpopcntq %%zmm" #operand ", %%zmm" #count "\n"                                                \
    "vpaddq %%zmm" #count ", %%zmm" #sum ", %%zmm" #sum "\n"
    REPEAT(COUNT(0, 5, 10) COUNT(1, 6, 11) COUNT(2, 7, 12) COUNT(3, 8, 13) COUNT(4, 9, 14));
#undef COUNT
}
#endif

#if BITM_HAVE_AMX
enum { TILE_STEPS = 4, TILE_BYTES = 1024 };

/* Two by two tiles of sums, and all operands loaded from the first cache. */
static void multiply_tiles(void *context)
{
    uint32_t n_left = ROUNDS;
#define STEP(first, second, third, fourth)                                                         \
    "tileloadd " #first "(%1, %2, 1), %%tmm6\n"                                                    \
    "tileloadd " #second "(%1, %2, 1), %%tmm4\n"                                                   \
    "tdpbssd %%tmm6, %%tmm4, %%tmm0\n"                                                             \
    "tileloadd " #third "(%1, %2, 1), %%tmm7\n"                                                    \
    "tdpbssd %%tmm7, %%tmm4, %%tmm1\n"                                                             \
    "tileloadd " #fourth "(%1, %2, 1), %%tmm5\n"                                                   \
    "tdpbssd %%tmm6, %%tmm5, %%tmm2\n"                                                             \
    "tdpbssd %%tmm7, %%tmm5, %%tmm3\n"
    __asm__ volatile("ldtilecfg (%3)\n"
                     "1:\n" STEP(0, 1024, 2048, 3072) STEP(4096, 5120, 6144, 7168)
                         STEP(8192, 9216, 10240, 11264)
                             STEP(12288, 13312, 14336, 15360) "dec %0\n"
                                                              "jnz 1b\n"
                                                              "tilerelease\n"
                     : "+r"(n_left)
                     : "r"((uint8_t *)context + 64), "r"((uint64_t)64), "r"(context)
                     : "cc", "memory");
#undef STEP
}

static double measure_tiles(void)
{
    /* The configuration of tiles (Intel SDM volume 1, 18.2), then operands. */
    static _Alignas(64) uint8_t room[64 + TILE_STEPS * 4 * TILE_BYTES];
    room[0] = 1;
    for (int i = 0; i < 8; i++) {
        room[16 + 2 * i] = 64;
        room[48 + i] = 16;
    }
    return ROUNDS * TILE_STEPS * 4 * 16384.0 / time_calls(multiply_tiles, room);
}
#endif

static bool is_of_floats(const char *op)
{
    return strstr(op, "f32") != NULL || strcmp(op, "gemm_f16") == 0 || strcmp(op, "gemm_i8") == 0 ||
           strcmp(op, "attention") == 0;
}
#endif

#if BITM_HAVE_AVX512
static bool is_of_bits(const char *op)
{
    return strncmp(op, "gemm_", 5) == 0 || strcmp(op, "dot_planes") == 0;
}
#endif

double measure_peak(const char *op, bitm_tier tier)
{
#if BITM_HAVE_AMX
    if (tier == BITM_TIER_AMX) return measure_tiles();
#endif
#if BITM_HAVE_AVX512
    if (tier == BITM_TIER_VNNI) return ROUNDS * 12 * 64.0 / time_calls(multiply_bytes, NULL);
    if (tier == BITM_TIER_PERMUTE) return ROUNDS * 8 * 192.0 / time_calls(look_up, NULL);
    if (tier == BITM_TIER_VPOPCNT && is_of_bits(op))
        return ROUNDS * 5 * 512.0 / time_calls(count_bits, NULL);
    if (tier == BITM_TIER_AVX512 && is_of_floats(op))
        return ROUNDS * 12 * 16.0 / time_calls(multiply_zmm, NULL);
#endif
#if BITM_HAVE_AVX2
    if (tier == BITM_TIER_AVX2 && is_of_floats(op))
        return ROUNDS * 12 * 8.0 / time_calls(multiply_ymm, NULL);
#endif
    (void)op;
    (void)tier;
    return 0;
}
