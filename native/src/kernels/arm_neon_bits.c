/* NEON products of bits with bits: XOR or AND, and a count.
 *
 * Counts of the bits of bytes add up in bytes, 31 rounds of 128 bits, which is a row of BERT's
 * widest linear, before they are widened.  A tile of tokens and outputs keeps its sums in
 * registers and uses each loaded vector several times.
 *
 * The limit: 128 multiply-adds are three operations (eor or and, cnt, add), on two pipes of
 * Cortex-A72 and A76 1.5 cycles, on Cortex-A53 with one pipe of 128 bits 3.
 *
 *   eor, and, cnt, add  2 a cycle
 *   uaddlp, addp        1 a cycle: once in 31 rounds
 */
#include "arm_neon.h"

enum {
#if defined(__aarch64__)
    TILE_ROWS = 4, /* with TILE_OUTPUTS: 16 of 32 registers are sums */
#else
    TILE_ROWS = 2, /* 8 of 16 */
#endif
    TILE_OUTPUTS = 4,
    ROUND_WORDS = 2 * 31, /* a byte counts 8 bits of each vector */
    BLOCK_TOKENS = 16,    /* whose bits stay in the first cache: 6 KiB of 3,072 inputs */
    BLOCK_OUTPUTS = 64,
};

/* What is counted of the bits x and w. */
typedef enum counted {
    COUNT_AND,             /* x & w */
    COUNT_XOR,             /* x ^ w */
    COUNT_XOR_OF_INPUTS,   /* (x ^ w) where x has a mask */
    COUNT_XOR_OF_NONZEROS, /* (x ^ w) where both have */
} counted;

/* Rows of bits, with the rows of their masks, or themselves where none are needed. */
typedef struct rows {
    const uint64_t *bits, *mask;
    size_t stride; /* in words */
} rows;

/* Where the rows of a tile start. */
typedef struct tile_rows {
    const uint64_t *bits[TILE_OUTPUTS], *mask[TILE_OUTPUTS];
} tile_rows;

/* Rows [row, row + n_rows), of which those past `last` are it again. */
INLINE tile_rows take_rows(const rows *all, size_t row, size_t last, const uint32_t n_rows)
{
    tile_rows taken;
    for (uint32_t r = 0; r < TILE_OUTPUTS; r++) {
        size_t number = r < n_rows && row + r < last ? row + r : last;
        taken.bits[r] = all->bits + number * all->stride;
        taken.mask[r] = all->mask + number * all->stride;
    }
    return taken;
}

/* Counts the words i and i + 1, or i alone, of the rows, into sums or as the first of them. */
INLINE void count_vector(counted kind, bool is_first, const tile_rows *x, const uint32_t n_rows,
                         const tile_rows *w, size_t i, size_t n_words,
                         uint8x16_t sums[TILE_ROWS][TILE_OUTPUTS])
{
    bool has_mask = kind == COUNT_XOR_OF_INPUTS || kind == COUNT_XOR_OF_NONZEROS;
    uint8x16_t weights[TILE_OUTPUTS], weight_masks[TILE_OUTPUTS];
    for (uint32_t o = 0; o < TILE_OUTPUTS; o++) {
        weights[o] = weight_masks[o] = load_words(w->bits[o] + i, n_words);
        if (kind == COUNT_XOR_OF_NONZEROS) weight_masks[o] = load_words(w->mask[o] + i, n_words);
    }
    for (uint32_t r = 0; r < n_rows; r++) {
        uint8x16_t inputs = load_words(x->bits[r] + i, n_words);
        uint8x16_t mask = has_mask ? load_words(x->mask[r] + i, n_words) : inputs;
        for (uint32_t o = 0; o < TILE_OUTPUTS; o++) {
            uint8x16_t bits =
                kind == COUNT_AND ? vandq_u8(inputs, weights[o]) : veorq_u8(inputs, weights[o]);
            if (has_mask) bits = vandq_u8(bits, mask);
            if (kind == COUNT_XOR_OF_NONZEROS) bits = vandq_u8(bits, weight_masks[o]);
            uint8x16_t count = vcntq_u8(bits);
            sums[r][o] = is_first ? count : vaddq_u8(sums[r][o], count);
        }
    }
}

/* The sums of 4 vectors of bytes, at most 248 each. */
INLINE int32x4_t sums_of(const uint8x16_t bytes[TILE_OUTPUTS])
{
    uint16x8_t low = add_pairs_u16(vpaddlq_u8(bytes[0]), vpaddlq_u8(bytes[1]));
    uint16x8_t high = add_pairs_u16(vpaddlq_u8(bytes[2]), vpaddlq_u8(bytes[3]));
    return vreinterpretq_s32_u32(vpaddlq_u16(add_pairs_u16(low, high)));
}

/* Adds factor * count to dots [n_rows][BLOCK_OUTPUTS], for rows x and TILE_OUTPUTS rows w. */
INLINE void count_tile(counted kind, const tile_rows *x, const uint32_t n_rows, const tile_rows *w,
                       uint32_t n_words, int32_t factor, int32_t *dots)
{
    for (size_t first = 0; first < n_words; first += ROUND_WORDS) {
        size_t i = first, n = smaller(ROUND_WORDS, n_words - (uint32_t)first), end = first + n;
        uint8x16_t sums[TILE_ROWS][TILE_OUTPUTS];
        if (n == 1) {
            count_vector(kind, true, x, n_rows, w, i++, 1, sums);
        } else {
            count_vector(kind, true, x, n_rows, w, i, 2, sums);
            for (i += 2; i + 2 <= end; i += 2)
                count_vector(kind, false, x, n_rows, w, i, 2, sums);
            if (i < end) count_vector(kind, false, x, n_rows, w, i, 1, sums);
        }
        for (uint32_t r = 0; r < n_rows; r++) {
            int32_t *place = dots + (size_t)r * BLOCK_OUTPUTS;
            vst1q_s32(place, vmlaq_n_s32(vld1q_s32(place), sums_of(sums[r]), factor));
        }
    }
}

INLINE void count_rows(counted kind, const rows *x, size_t row, uint32_t n_rows, const rows *w,
                       size_t output, uint32_t n_outputs, uint32_t n_words, int32_t factor,
                       int32_t *dots)
{
    for (uint32_t o = 0; o < n_outputs; o += TILE_OUTPUTS) {
        const tile_rows weights = take_rows(w, output + o, output + n_outputs - 1, TILE_OUTPUTS);
        size_t last = row + n_rows - 1;
        uint32_t r = 0;
        for (; r + TILE_ROWS <= n_rows; r += TILE_ROWS) {
            const tile_rows inputs = take_rows(x, row + r, last, TILE_ROWS);
            count_tile(kind, &inputs, TILE_ROWS, &weights, n_words, factor,
                       dots + r * BLOCK_OUTPUTS + o);
        }
        for (; r < n_rows; r++) {
            const tile_rows inputs = take_rows(x, row + r, last, 1);
            count_tile(kind, &inputs, 1, &weights, n_words, factor, dots + r * BLOCK_OUTPUTS + o);
        }
    }
}

static int32_t count_bits(const uint64_t *words, size_t n_words)
{
    uint32x4_t sum = vdupq_n_u32(0);
    size_t i = 0;
    for (; i + 2 <= n_words; i += 2)
        sum = vpadalq_u16(sum, vpaddlq_u8(vcntq_u8(load_words(words + i, 2))));
    if (i < n_words) sum = vpadalq_u16(sum, vpaddlq_u8(vcntq_u8(load_words(words + i, 1))));
    return sum_of_i32(vreinterpretq_s32_u32(sum));
}

static void start_dots(int32_t *dots, int32_t value, uint32_t n_outputs)
{
    for (uint32_t o = 0; o < n_outputs; o += TILE_OUTPUTS)
        vst1q_s32(dots + o, vdupq_n_s32(value));
}

/* ---- Signs: dot = (how many are nonzero on both sides) - 2 (how many of them differ) ---- */

/* A block of tokens and outputs. */
INLINE void multiply_signs(const bitm_gemm *gemm, bool ternary, uint32_t token, uint32_t n_tokens,
                           uint32_t output, uint32_t n_outputs, int32_t *dots)
{
    uint32_t n_words = (uint32_t)words_of(gemm);
    const uint64_t *inputs = gemm->inputs, *weights = gemm->weights;
    const rows nonzero_x = {inputs, inputs, 2 * n_words};
    const rows x = {inputs + n_words, inputs, 2 * n_words};
    const rows nonzero_w = {weights, weights, n_words};
    const rows w = {ternary ? weights + (size_t)gemm->n_rows * n_words : weights, weights, n_words};
    bool has_zeros = false;
    for (uint32_t t = 0; t < n_tokens; t++) {
        int32_t n_nonzero = count_bits(inputs + (size_t)(token + t) * x.stride, n_words);
        has_zeros = has_zeros || n_nonzero < (int32_t)gemm->n_inputs;
        start_dots(dots + t * BLOCK_OUTPUTS, ternary ? 0 : n_nonzero, n_outputs);
    }
    if (ternary) {
        count_rows(COUNT_AND, &nonzero_x, token, n_tokens, &nonzero_w, output, n_outputs, n_words,
                   1, dots);
        count_rows(COUNT_XOR_OF_NONZEROS, &x, token, n_tokens, &w, output, n_outputs, n_words, -2,
                   dots);
    } else if (has_zeros) {
        count_rows(COUNT_XOR_OF_INPUTS, &x, token, n_tokens, &w, output, n_outputs, n_words, -2,
                   dots);
    } else {
        count_rows(COUNT_XOR, &x, token, n_tokens, &w, output, n_outputs, n_words, -2, dots);
    }
}

/* ---- Planes: dot = sum of plane_weight * (2 count of positive - count of nonzero) ---- */

INLINE void multiply_planes(const bitm_gemm *gemm, bool ternary, uint32_t token, uint32_t n_tokens,
                            uint32_t output, uint32_t n_outputs, int32_t *dots)
{
    uint32_t n_words = (uint32_t)words_of(gemm);
    const uint64_t *inputs = gemm->inputs, *weights = gemm->weights;
    const rows nonzero = {weights, weights, n_words};
    const uint64_t *second = weights + (ternary ? (size_t)gemm->n_rows * n_words : 0);
    const rows positive = {second, second, n_words};
    for (uint32_t t = 0; t < n_tokens; t++)
        start_dots(dots + t * BLOCK_OUTPUTS, ternary ? 0 : -gemm->code_sum[token + t], n_outputs);
    for (uint32_t p = 0; p < gemm->n_planes; p++) {
        const uint64_t *plane = inputs + (size_t)p * n_words;
        const rows x = {plane, plane, (size_t)gemm->n_planes * n_words};
        count_rows(COUNT_AND, &x, token, n_tokens, &positive, output, n_outputs, n_words,
                   2 * gemm->plane_weights[p], dots);
        if (ternary)
            count_rows(COUNT_AND, &x, token, n_tokens, &nonzero, output, n_outputs, n_words,
                       -gemm->plane_weights[p], dots);
    }
}

/* ---- The kernels ---- */

typedef void block_fn(const bitm_gemm *gemm, bool ternary, uint32_t token, uint32_t n_tokens,
                      uint32_t output, uint32_t n_outputs, int32_t *dots);

INLINE void multiply(const bitm_gemm *gemm, block_fn *multiply_block, bool ternary, uint32_t token,
                     uint32_t n_tokens, uint32_t output, uint32_t n_outputs)
{
    int32_t dots[BLOCK_TOKENS * BLOCK_OUTPUTS];
    for (uint32_t t = 0; t < n_tokens; t += BLOCK_TOKENS) {
        uint32_t n_block = smaller(BLOCK_TOKENS, n_tokens - t);
        for (uint32_t o = 0; o < n_outputs; o += BLOCK_OUTPUTS) {
            uint32_t n = smaller(BLOCK_OUTPUTS, n_outputs - o);
            multiply_block(gemm, ternary, token + t, n_block, output + o, n, dots);
            for (uint32_t i = 0; i < n_block; i++)
                store_dots(gemm, token + t + i, output + o, n, dots + i * BLOCK_OUTPUTS);
        }
    }
}

void bitm_gemm_w1sign__neon(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                            uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, multiply_signs, false, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2sign__neon(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                            uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, multiply_signs, true, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w1planes__neon(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                              uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, multiply_planes, false, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2planes__neon(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                              uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, multiply_planes, true, token, n_tokens, output, n_outputs);
}

/* The bits that two rows share, counted in 4 lanes. */
INLINE int32x4_t count_shared(const uint64_t *a, const uint64_t *b, size_t n_words)
{
    uint16x8_t count = vdupq_n_u16(0); /* at most 16 a vector: room for 524,000 bits */
    for (size_t i = 0; i < n_words; i += 2) {
        uint8x16_t both = vandq_u8(load_words(a + i, n_words - i), load_words(b + i, n_words - i));
        count = vpadalq_u8(count, vcntq_u8(both));
    }
    return vreinterpretq_s32_u32(vpaddlq_u16(count));
}

/* Counts are weighted before their lanes meet, so that a pair of planes costs no sum across
 * lanes. */
INLINE int32_t dot_planes(const bitm_planes *a, const bitm_planes *b, const size_t n_words)
{
    int32x4_t sum = vdupq_n_s32(0);
    for (uint32_t p = 0; p < a->n_planes; p++) {
        int32x4_t part = vdupq_n_s32(0);
        for (uint32_t q = 0; q < b->n_planes; q++)
            part = vmlaq_n_s32(part,
                               count_shared(a->bits + p * n_words, b->bits + q * n_words, n_words),
                               b->weights[q]);
        sum = vmlaq_n_s32(sum, part, a->weights[p]);
    }
    return sum_of_i32(sum);
}

/* Heads of 64 and 128 components, and short sequences, have no loop over words. */
int32_t bitm_dot_planes__neon(const bitm_planes *a, const bitm_planes *b, uint32_t n_words)
{
    if (n_words == 1) return dot_planes(a, b, 1);
    if (n_words == 2) return dot_planes(a, b, 2);
    return dot_planes(a, b, n_words);
}
