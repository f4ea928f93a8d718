/* NEON attention of codes of 8 bits.
 *
 * Two products of bytes fit into 16 bits: -128 * -127 twice is 32512.
 *
 *   smull, smlal  8 products each; 1 a cycle on Cortex-A53 and A72
 *   sadalp        1 a cycle, on A72 beside a product: 16 multiply-adds in 2 cycles, on A53 in 3
 */
#include "arm_attention_i8.h"

INLINE int32x4_t add_products(int32x4_t sums, int8x16_t a, int8x16_t b)
{
    int16x8_t pairs = vmull_s8(vget_low_s8(a), vget_low_s8(b));
#if defined(__aarch64__)
    pairs = vmlal_high_s8(pairs, a, b);
#else
    pairs = vmlal_s8(pairs, vget_high_s8(a), vget_high_s8(b));
#endif
    return vpadalq_s16(sums, pairs);
}

void bitm_attention_i8__neon(const bitm_attention *attention, uint32_t token, uint32_t n_tokens)
{
    const uint32_t end = token + n_tokens, first_left = attend_all(attention, token, end);
#if BITM_HAVE_VFPV4
    if (first_left < end) bitm_attention_i8__vfpv4(attention, first_left, end - first_left);
#else
    (void)first_left;
#endif
}
