/* Attention of codes of 8 bits by ARMv8.2's dot products of bytes.
 *
 *   sdot  16 multiply-adds; 2 a cycle on Cortex-A76
 */
#include "arm_attention_i8.h"

INLINE int32x4_t add_products(int32x4_t sums, int8x16_t a, int8x16_t b)
{
    return vdotq_s32(sums, a, b);
}

void bitm_attention_i8__dotprod(const bitm_attention *attention, uint32_t token, uint32_t n_tokens)
{
    (void)attend_all(attention, token, token + n_tokens); /* all of them: see there */
}
