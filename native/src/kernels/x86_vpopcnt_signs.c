/* AVX-512 VPOPCNTDQ attention of signs: distances of a query from keys, and what is looked up by
 * them.
 *
 *   vpopcntq     a key's distance each, 1 a cycle; 64 of them become bytes in 8 operations
 *   vpermt2ps    finds 16 of 32 floats, 1 a cycle: two and a selection for 16 of 64
 *   vpcmpub      64 distances become 64 bits
 *
 * Measured on Zen 4, a key takes 0.2 ns in all three; its product, its exponential and their
 * quantizer took about 0.95.
 */
#include "x86_avx512.h"

enum { KEYS = 64 }; /* of which distances are bytes of one vector */

/* Counts of eight vectors in order.  Packing twice two halves works by 128 bits, so that word 8 m +
 * v has keys 8 v + 2 m and 8 v + 2 m + 1. */
INLINE __m512i in_order(const __m512i counts[8])
{
    const __m512i places =
        _mm512_set_epi16(31, 23, 15, 7, 30, 22, 14, 6, 29, 21, 13, 5, 28, 20, 12, 4, 27, 19, 11, 3,
                         26, 18, 10, 2, 25, 17, 9, 1, 24, 16, 8, 0);
    __m512i words[2];
    for (int i = 0; i < 2; i++)
        words[i] = _mm512_packus_epi32(_mm512_packus_epi32(counts[4 * i], counts[4 * i + 1]),
                                       _mm512_packus_epi32(counts[4 * i + 2], counts[4 * i + 3]));
    return _mm512_permutexvar_epi16(places, _mm512_packus_epi16(words[0], words[1]));
}

INLINE uint8_t least_byte(__m512i x)
{
    __m256i half = _mm256_min_epu8(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    __m128i bytes = _mm_min_epu8(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    /* Words have an instruction: the lesser byte of each two, in the lower one's place. */
    bytes = _mm_min_epu8(bytes, _mm_srli_epi16(bytes, 8));
    bytes = _mm_minpos_epu16(_mm_and_si128(bytes, _mm_set1_epi16(UINT8_MAX)));
    return (uint8_t)_mm_extract_epi16(bytes, 0);
}

uint8_t bitm_sign_distances__vpopcnt(uint64_t query, const uint64_t *keys, uint32_t n,
                                     uint8_t *distances)
{
    const __m512i q = _mm512_set1_epi64((long long)query);
    __m512i least = _mm512_set1_epi8(-1);
    for (uint32_t j = 0; j < n; j += KEYS) {
        __m512i counts[8];
#pragma GCC unroll 8
        for (uint32_t v = 0; v < 8; v++) {
            const uint32_t i = j + 8 * v;
            __mmask8 exist = (__mmask8)first_bytes(smaller(n > i ? n - i : 0, 8));
            __m512i eight = n - j >= KEYS ? _mm512_loadu_si512(keys + i)
                                          : _mm512_maskz_loadu_epi64(exist, keys + i);
            counts[v] = _mm512_popcnt_epi64(_mm512_xor_si512(eight, q));
        }
        __m512i bytes = in_order(counts);
        _mm512_storeu_si512(distances + j, bytes);
        least = _mm512_mask_min_epu8(least, first_bytes(n - j), least, bytes);
    }
    return least_byte(least);
}

float bitm_table_sum__vpopcnt(const float table[BITM_DISTANCES], const uint8_t *distances,
                              uint32_t n)
{
    __m512 entries[4], sum = _mm512_setzero_ps();
    for (int i = 0; i < 4; i++)
        entries[i] = _mm512_loadu_ps(table + 16 * i);
    for (uint32_t j = 0; j < n; j += BITM_LANES) {
        __m512i at = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(distances + j)));
        /* The permutations look at five bits, the sixth chooses between them. */
        __m512 low = _mm512_permutex2var_ps(entries[0], at, entries[1]);
        __m512 high = _mm512_permutex2var_ps(entries[2], at, entries[3]);
        __mmask16 is_high = _mm512_test_epi32_mask(at, _mm512_set1_epi32(32));
        sum = _mm512_mask_add_ps(sum, first_lanes(n - j), sum,
                                 _mm512_mask_blend_ps(is_high, low, high));
    }
    return fold(sum);
}

int32_t bitm_near_bits__vpopcnt(const uint8_t *distances, uint32_t n, uint8_t end, uint64_t *bits)
{
    const __m512i ends = _mm512_set1_epi8((char)end);
    int32_t sum = 0;
    for (uint32_t j = 0; j < n; j += 64) {
        __mmask64 near = _mm512_mask_cmplt_epu8_mask(first_bytes(n - j),
                                                     _mm512_loadu_si512(distances + j), ends);
        bits[j / 64] = near;
        sum += __builtin_popcountll(near);
    }
    return sum;
}
