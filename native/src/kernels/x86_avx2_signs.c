/* AVX2 attention of signs: distances of a query from keys, and what is looked up by them.
 *
 *   vpshufb      counts of the bits of half bytes, 1 or 2 a cycle; vpsadbw adds up those of a key
 *   vgatherdps   8 floats of a table in the first cache, about as long as 8 exponentials
 *   vpcmpgtb     32 distances become 32 bits */
#include "x86_avx2.h"

enum { KEYS = 32 }; /* of which distances are bytes of one vector */

/* The bits that are set in each 64. */
INLINE __m256i count_bits(__m256i words)
{
    const __m256i counts = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1,
                                            2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i low_half = _mm256_set1_epi8(15);
    __m256i low = _mm256_shuffle_epi8(counts, _mm256_and_si256(words, low_half));
    __m256i high =
        _mm256_shuffle_epi8(counts, _mm256_and_si256(_mm256_srli_epi64(words, 4), low_half));
    return _mm256_sad_epu8(_mm256_add_epi8(low, high), _mm256_setzero_si256());
}

/* Counts of eight vectors in order.  Packing three times works by 128 bits, so that word v of half
 * m has keys 4 v + 2 m and 4 v + 2 m + 1. */
INLINE __m256i in_order(const __m256i counts[8])
{
    __m256i words[2];
    for (int i = 0; i < 2; i++)
        words[i] = _mm256_packus_epi32(_mm256_packus_epi32(counts[4 * i], counts[4 * i + 1]),
                                       _mm256_packus_epi32(counts[4 * i + 2], counts[4 * i + 3]));
    __m256i bytes = _mm256_packus_epi16(words[0], words[1]);
    __m128i even = _mm256_castsi256_si128(bytes), odd = _mm256_extracti128_si256(bytes, 1);
    return _mm256_set_m128i(_mm_unpackhi_epi16(even, odd), _mm_unpacklo_epi16(even, odd));
}

INLINE uint8_t least_byte(__m256i x)
{
    __m128i half = _mm_min_epu8(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    /* Words have an instruction: the lesser byte of each two, in the lower one's place. */
    half = _mm_min_epu8(half, _mm_srli_epi16(half, 8));
    half = _mm_minpos_epu16(_mm_and_si128(half, _mm_set1_epi16(UINT8_MAX)));
    return (uint8_t)_mm_extract_epi16(half, 0);
}

uint8_t bitm_sign_distances__avx2(uint64_t query, const uint64_t *keys, uint32_t n,
                                  uint8_t *distances)
{
    const __m256i q = _mm256_set1_epi64x((long long)query);
    __m256i least = _mm256_set1_epi8(-1);
    uint64_t last[KEYS];
    for (uint32_t j = 0; j < n; j += KEYS, keys += KEYS) {
        if (n - j < KEYS) keys = bitm_last_keys(keys, n - j, KEYS, last);
        __m256i counts[8];
#pragma GCC unroll 8
        for (uint32_t v = 0; v < 8; v++)
            counts[v] = count_bits(
                _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(keys + 4 * v)), q));
        __m256i bytes = in_order(counts);
        _mm256_storeu_si256((__m256i *)(distances + j), bytes);
        least = _mm256_min_epu8(least, bytes);
    }
    return least_byte(least);
}

float bitm_table_sum__avx2(const float table[BITM_DISTANCES], const uint8_t *distances, uint32_t n)
{
    const __m256i last = _mm256_set1_epi32(BITM_DISTANCES - 1);
    lanes sum = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (uint32_t j = 0; j < n; j += BITM_LANES) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(distances + j));
        for (uint32_t half = 0; half < 2 && n - j > 8 * half; half++) {
            __m256i at = _mm256_and_si256(_mm256_cvtepu8_epi32(bytes), last);
            __m256 found = _mm256_and_ps(_mm256_i32gather_ps(table, at, sizeof *table),
                                         _mm256_castsi256_ps(first_lanes(n - j - 8 * half)));
            if (half == 0)
                sum.low = _mm256_add_ps(sum.low, found);
            else
                sum.high = _mm256_add_ps(sum.high, found);
            bytes = _mm_srli_si128(bytes, 8);
        }
    }
    return fold(sum);
}

int32_t bitm_near_bits__avx2(const uint8_t *distances, uint32_t n, uint8_t end, uint64_t *bits)
{
    const __m256i ends = _mm256_set1_epi8((char)end);
    int32_t sum = 0;
    for (uint32_t j = 0; j < n; j += 64) {
        uint64_t near = 0;
        for (uint32_t i = 0; i < 2; i++) {
            __m256i some = _mm256_loadu_si256((const __m256i *)(distances + j) + i);
            near |= (uint64_t)(uint32_t)_mm256_movemask_epi8(_mm256_cmpgt_epi8(ends, some))
                    << 32 * i;
        }
        if (n - j < 64) near &= (UINT64_C(1) << (n - j)) - 1;
        bits[j / 64] = near;
        sum += __builtin_popcountll(near);
    }
    return sum;
}
