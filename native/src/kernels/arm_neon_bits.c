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

#include <string.h>

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

/* Rows of a tile: their bits, and those of their masks where there are any. */
typedef struct tile_rows {
    const uint64_t *bits[TILE_OUTPUTS], *mask[TILE_OUTPUTS];
} tile_rows;

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

/* The sums of 4 vectors of bytes, which are at most 8 * n_rounds. */
INLINE int32x4_t sums_of(const uint8x16_t bytes[4], uint32_t n_rounds)
{
    if (n_rounds <= 255 / (4 * 8)) { /* the sum of 4 of them fits into a byte */
        uint8x16_t fours =
            add_pairs_u8(add_pairs_u8(bytes[0], bytes[1]), add_pairs_u8(bytes[2], bytes[3]));
        return vreinterpretq_s32_u32(vpaddlq_u16(vpaddlq_u8(fours)));
    }
    uint16x8_t low = add_pairs_u16(vpaddlq_u8(bytes[0]), vpaddlq_u8(bytes[1]));
    uint16x8_t high = add_pairs_u16(vpaddlq_u8(bytes[2]), vpaddlq_u8(bytes[3]));
    return vreinterpretq_s32_u32(vpaddlq_u16(add_pairs_u16(low, high)));
}

/* dots = starts + factor * (what n_rows rows x count with TILE_OUTPUTS rows w, in n words from
 * `first` on, at most ROUND_WORDS).  They are in memory, for the loop takes all registers. */
INLINE void count_round(counted kind, const tile_rows *x, const uint32_t n_rows, const tile_rows *w,
                        size_t first, uint32_t n, int32_t factor,
                        const int32_t starts[][TILE_OUTPUTS], int32_t dots[][TILE_OUTPUTS])
{
    size_t i = first, end = first + n;
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
        int32x4_t count = sums_of(sums[r], (n + 1) / 2);
        vst1q_s32(dots[r], vmlaq_n_s32(vld1q_s32(starts[r]), count, factor));
    }
}

/* The same of all words, of which most rows have no more than a round. */
INLINE void count_tile(counted kind, const tile_rows *x, const uint32_t n_rows, const tile_rows *w,
                       uint32_t n_words, int32_t factor, const int32_t starts[][TILE_OUTPUTS],
                       int32_t dots[][TILE_OUTPUTS])
{
    count_round(kind, x, n_rows, w, 0, smaller(ROUND_WORDS, n_words), factor, starts, dots);
    for (uint32_t first = ROUND_WORDS; first < n_words; first += ROUND_WORDS)
        count_round(kind, x, n_rows, w, first, smaller(ROUND_WORDS, n_words - first), factor, dots,
                    dots);
}

static int32_t count_bits(const uint64_t *words, size_t n_words)
{
    uint32x4_t sum = vdupq_n_u32(0);
    for (size_t first = 0; first < n_words; first += ROUND_WORDS) {
        size_t i = first, end = first + smaller(ROUND_WORDS, (uint32_t)(n_words - first));
        uint8x16_t bytes = vdupq_n_u8(0);
        for (; i + 2 <= end; i += 2)
            bytes = vaddq_u8(bytes, vcntq_u8(load_words(words + i, 2)));
        if (i < end) bytes = vaddq_u8(bytes, vcntq_u8(load_words(words + i, 1)));
        sum = vpadalq_u16(sum, vpaddlq_u8(bytes));
    }
    return sum_of_i32(vreinterpretq_s32_u32(sum));
}

/* ---- Tiles ---- */

/* Of a block of tokens with the outputs of a tile. */
typedef struct block_dots {
    int32_t of[BLOCK_TOKENS][TILE_OUTPUTS];
} block_dots;

/* What is multiplied: the codes of the inputs and whether weights may be 0. */
typedef enum product {
    SIGNS,           /* (how many are nonzero on both sides) - 2 (how many of them differ) */
    SIGNS_AND_ZEROS, /* signs of which some are 0 */
    TERNARY_SIGNS,
    PLANES, /* the sum of plane_weight * (2 count of positive - count of nonzero) */
    TERNARY_PLANES,
} product;

/* The rows of outputs [output, output + TILE_OUTPUTS), of which those past `last` are it again. */
INLINE tile_rows weights_of(const bitm_gemm *gemm, const product kind, size_t output, size_t last)
{
    size_t n_words = words_of(gemm);
    const uint64_t *nonzero = gemm->weights, *positive = nonzero;
    if (kind == TERNARY_SIGNS || kind == TERNARY_PLANES) positive += gemm->n_rows * n_words;
    tile_rows taken;
    for (size_t o = 0; o < TILE_OUTPUTS; o++) {
        size_t row = output + o < last ? output + o : last;
        taken.bits[o] = positive + row * n_words;
        taken.mask[o] = nonzero + row * n_words;
    }
    return taken;
}

/* What is read of the inputs: one plane, and another as its mask. */
typedef struct input_planes {
    uint32_t n_planes, bits, mask;
} input_planes;

/* The rows of n_rows tokens. */
INLINE tile_rows inputs_of(const bitm_gemm *gemm, input_planes planes, size_t token,
                           const uint32_t n_rows)
{
    size_t n_words = words_of(gemm);
    const uint64_t *first = (const uint64_t *)gemm->inputs + token * planes.n_planes * n_words;
    tile_rows taken;
    for (size_t r = 0; r < n_rows; r++) {
        taken.bits[r] = first + (r * planes.n_planes + planes.bits) * n_words;
        taken.mask[r] = first + (r * planes.n_planes + planes.mask) * n_words;
    }
    return taken;
}

/* dots [n_tokens] = starts + factor * counts. */
INLINE void count_tokens(const bitm_gemm *gemm, counted kind, input_planes planes, uint32_t token,
                         uint32_t n_tokens, const tile_rows *w, int32_t factor,
                         const int32_t starts[][TILE_OUTPUTS], int32_t dots[][TILE_OUTPUTS])
{
    uint32_t n_words = (uint32_t)words_of(gemm), t = 0;
    for (; t + TILE_ROWS <= n_tokens; t += TILE_ROWS) {
        const tile_rows x = inputs_of(gemm, planes, token + t, TILE_ROWS);
        count_tile(kind, &x, TILE_ROWS, w, n_words, factor, starts + t, dots + t);
    }
    for (; t < n_tokens; t++) {
        const tile_rows x = inputs_of(gemm, planes, token + t, 1);
        count_tile(kind, &x, 1, w, n_words, factor, starts + t, dots + t);
    }
}

/* dots [n_tokens] = starts + products of tokens with TILE_OUTPUTS rows of weights. */
INLINE void find_dots(const bitm_gemm *gemm, const product kind, uint32_t token, uint32_t n_tokens,
                      const tile_rows *w, const int32_t starts[][TILE_OUTPUTS],
                      int32_t dots[][TILE_OUTPUTS])
{
    const input_planes signs = {2, 1, 0}, nonzero_signs = {2, 0, 0};
    tile_rows nonzero = *w;
    for (uint32_t o = 0; o < TILE_OUTPUTS; o++)
        nonzero.bits[o] = w->mask[o];
    for (uint32_t p = 0; (kind == PLANES || kind == TERNARY_PLANES) && p < gemm->n_planes; p++) {
        const input_planes plane = {gemm->n_planes, p, p};
        int32_t weight = gemm->plane_weights[p];
        count_tokens(gemm, COUNT_AND, plane, token, n_tokens, w, 2 * weight, starts, dots);
        starts = dots;
        if (kind == TERNARY_PLANES)
            count_tokens(gemm, COUNT_AND, plane, token, n_tokens, &nonzero, -weight, dots, dots);
    }
    if (kind == SIGNS) count_tokens(gemm, COUNT_XOR, signs, token, n_tokens, w, -2, starts, dots);
    if (kind == SIGNS_AND_ZEROS)
        count_tokens(gemm, COUNT_XOR_OF_INPUTS, signs, token, n_tokens, w, -2, starts, dots);
    if (kind == TERNARY_SIGNS) {
        count_tokens(gemm, COUNT_AND, nonzero_signs, token, n_tokens, &nonzero, 1, starts, dots);
        count_tokens(gemm, COUNT_XOR_OF_NONZEROS, signs, token, n_tokens, w, -2, dots, dots);
    }
}

/* Results of a whole tile of a plain gemm. */
INLINE void store_tile(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens, uint32_t output,
                       const int32_t dots[][TILE_OUTPUTS])
{
#if defined(__aarch64__)
    const float32x4_t scale = vld1q_f32(gemm->row_scale + output);
    const float32x4_t bias = vld1q_f32(gemm->bias + output);
    float *y = gemm->outputs + (size_t)token * gemm->output_stride + output;
    for (uint32_t t = 0; t < n_tokens; t++, y += gemm->output_stride) {
        float32x4_t dot = vcvtq_f32_s32(vld1q_s32(dots[t]));
        vst1q_f32(y, vfmaq_f32(bias, dot, vmulq_n_f32(scale, gemm->token_step[token + t])));
    }
#else
    for (uint32_t t = 0; t < n_tokens; t++)
        store_outputs(gemm, true, token + t, output, TILE_OUTPUTS,
                      vcvtq_f32_s32(vld1q_s32(dots[t])));
#endif
}

/* Outputs [output, output + n) of a tile, of tokens; dots begin at starts. */
INLINE void multiply_tile(const bitm_gemm *gemm, const product kind, uint32_t token,
                          uint32_t n_tokens, const block_dots *starts, uint32_t output, uint32_t n,
                          const tile_rows *w)
{
    block_dots dots;
    find_dots(gemm, kind, token, n_tokens, w, starts->of, dots.of);
    if (n >= TILE_OUTPUTS && is_plain_gemm(gemm)) {
        store_tile(gemm, token, n_tokens, output, dots.of);
        return;
    }
    for (uint32_t t = 0; t < n_tokens; t++)
        store_outputs(gemm, false, token + t, output, n, vcvtq_f32_s32(vld1q_s32(dots.of[t])));
}

/* A block of tokens, and outputs. */
INLINE void multiply_block(const bitm_gemm *gemm, const product kind, uint32_t token,
                           uint32_t n_tokens, const block_dots *starts, uint32_t output,
                           uint32_t n_outputs)
{
    const bitm_gemm g = *gemm; /* a copy that no store of results can change */
    for (uint32_t o = 0; o < n_outputs; o += TILE_OUTPUTS) {
        const tile_rows w = weights_of(&g, kind, output + o, output + n_outputs - 1);
        multiply_tile(&g, kind, token, n_tokens, starts, output + o, n_outputs - o, &w);
    }
    if (g.activation == BITM_ACTIVATION_NONE) return;
    for (uint32_t t = token; t < token + n_tokens; t++)
        bitm_activate__neon(g.activation, g.outputs + t * g.output_stride + output, n_outputs);
}

/* Apart, so that its masks take no registers from products without zeros. */
static __attribute__((noinline)) void multiply_signs_and_zeros(const bitm_gemm *gemm,
                                                               uint32_t token, uint32_t n_tokens,
                                                               const block_dots *starts,
                                                               uint32_t output, uint32_t n_outputs)
{
    multiply_block(gemm, SIGNS_AND_ZEROS, token, n_tokens, starts, output, n_outputs);
}

/* The bits of a row's first plane, which nearly always are all n: that is told sooner. */
static int32_t count_nonzeros(const uint64_t *words, uint32_t n)
{
    uint64_t common = UINT64_MAX, last = n % 64 > 0 ? ~words[n / 64] << (64 - n % 64) : 0;
    for (size_t i = 0; i < n / 64; i++)
        common &= words[i];
    return common == UINT64_MAX && last == 0 ? (int32_t)n
                                             : count_bits(words, ((size_t)n + 63) / 64);
}

/* What dots of a block of tokens begin at; returns whether some codes are 0, which signs tell. */
static bool find_starts(const bitm_gemm *gemm, bool is_sign, bool ternary, uint32_t token,
                        uint32_t n_tokens, block_dots *starts)
{
    bool has_zeros = false;
    size_t n_words = words_of(gemm);
    memset(starts, 0, sizeof *starts);
    for (uint32_t t = 0; !ternary && t < n_tokens; t++) {
        const uint64_t *nonzero = (const uint64_t *)gemm->inputs + (token + t) * 2 * n_words;
        int32_t start =
            is_sign ? count_nonzeros(nonzero, gemm->n_inputs) : -gemm->code_sum[token + t];
        vst1q_s32(starts->of[t], vdupq_n_s32(start));
        has_zeros = has_zeros || (is_sign && start < (int32_t)gemm->n_inputs);
    }
    return has_zeros;
}

/* ---- The kernels ---- */

/* Outputs go in blocks whose results are still near when they are activated. */
INLINE void multiply(const bitm_gemm *gemm, bool is_sign, bool ternary, uint32_t token,
                     uint32_t n_tokens, uint32_t output, uint32_t n_outputs)
{
    block_dots starts;
    uint32_t end = token + n_tokens;
    for (; token < end; token += BLOCK_TOKENS) {
        uint32_t n = smaller(BLOCK_TOKENS, end - token);
        bool has_zeros = find_starts(gemm, is_sign, ternary, token, n, &starts);
        for (uint32_t i = 0; i < n_outputs; i += BLOCK_OUTPUTS) {
            uint32_t o = output + i, n_block = smaller(BLOCK_OUTPUTS, n_outputs - i);
            if (!is_sign && ternary)
                multiply_block(gemm, TERNARY_PLANES, token, n, &starts, o, n_block);
            else if (!is_sign)
                multiply_block(gemm, PLANES, token, n, &starts, o, n_block);
            else if (ternary)
                multiply_block(gemm, TERNARY_SIGNS, token, n, &starts, o, n_block);
            else if (has_zeros)
                multiply_signs_and_zeros(gemm, token, n, &starts, o, n_block);
            else
                multiply_block(gemm, SIGNS, token, n, &starts, o, n_block);
        }
    }
}

void bitm_gemm_w1sign__neon(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                            uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, true, false, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2sign__neon(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                            uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, true, true, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w1planes__neon(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                              uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, false, false, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2planes__neon(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                              uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, false, true, token, n_tokens, output, n_outputs);
}

/* ---- Products of planes ---- */

/* Adds, byte by byte, the bits that one or two words share with those of 4 rows. */
INLINE void add_shared(const uint64_t *a, const uint64_t *b, size_t stride, size_t n_words,
                       uint8x16_t counts[4])
{
    uint8x16_t x = load_words(a, n_words);
    for (uint32_t r = 0; r < 4; r++)
        counts[r] = vaddq_u8(counts[r], vcntq_u8(vandq_u8(x, load_words(b + r * stride, n_words))));
}

/* The bits that the row a shares with each of 4 rows, counted in a lane each. */
INLINE int32x4_t count_shared(const uint64_t *a, const uint64_t *b, size_t stride,
                              const uint32_t n_words)
{
    if (n_words == 1) { /* two rows a vector */
        uint8x16_t x = vreinterpretq_u8_u64(vdupq_n_u64(a[0])), counts[2];
        for (uint32_t r = 0; r < 2; r++, b += 2 * stride) {
            uint64x2_t pair =
                stride == 1 ? vld1q_u64(b) : vcombine_u64(vld1_u64(b), vld1_u64(b + stride));
            counts[r] = vcntq_u8(vandq_u8(x, vreinterpretq_u8_u64(pair)));
        }
        uint8x16_t fours = add_pairs_u8(counts[0], counts[1]);
        return vreinterpretq_s32_u32(vpaddlq_u16(vpaddlq_u8(fours)));
    }
    int32x4_t sum = vdupq_n_s32(0);
    for (uint32_t first = 0; first < n_words; first += ROUND_WORDS) {
        uint32_t i = first, end = first + smaller(ROUND_WORDS, n_words - first);
        uint8x16_t counts[4];
        for (uint32_t r = 0; r < 4; r++)
            counts[r] = vdupq_n_u8(0);
        for (; i + 2 <= end; i += 2)
            add_shared(a + i, b + i, stride, 2, counts);
        if (i < end) add_shared(a + i, b + i, stride, 1, counts);
        sum = vaddq_s32(sum, sums_of(counts, (end - first + 1) / 2));
    }
    return sum;
}

/* The products of a vector with 4 rows. */
INLINE int32x4_t dots_of_rows(const bitm_planes *a, const bitm_planes *b, const uint64_t *row,
                              size_t stride, const uint32_t n_words)
{
    int32x4_t sum = vdupq_n_s32(0);
    for (uint32_t q = 0; q < b->n_planes; q++, row += n_words) {
        const uint64_t *plane = a->bits;
        int32x4_t part = vdupq_n_s32(0);
        for (uint32_t p = 0; p < a->n_planes; p++, plane += n_words)
            part = vmlaq_n_s32(part, count_shared(plane, row, stride, n_words), a->weights[p]);
        sum = vmlaq_n_s32(sum, part, b->weights[q]);
    }
    return sum;
}

INLINE void dot_planes(const bitm_planes *a, const bitm_planes *b, const uint32_t n_words,
                       const bool is_one_plane, uint32_t n_rows, int32_t *dots)
{
    bitm_planes x = *a, y = *b; /* copies that no store of results can change */
    if (is_one_plane) x.n_planes = y.n_planes = 1;
    const uint64_t *row = y.bits;
    size_t stride = (size_t)y.n_planes * n_words;
    uint32_t j = 0;
    for (; j + 4 <= n_rows; j += 4, row += 4 * stride)
        vst1q_s32(dots + j, dots_of_rows(&x, &y, row, stride, n_words));
    for (; j < n_rows; j++, row += stride) /* four times the same row */
        dots[j] = vgetq_lane_s32(dots_of_rows(&x, &y, row, 0, n_words), 0);
}

/* Heads of 64 and 128 components, and short sequences, have no loop over words, and single bits
 * none over planes. */
void bitm_dot_planes__neon(const bitm_planes *a, const bitm_planes *b, uint32_t n_words,
                           uint32_t n_rows, int32_t *dots)
{
    bool is_one_plane = a->n_planes == 1 && b->n_planes == 1;
    if (n_words == 1 && is_one_plane)
        dot_planes(a, b, 1, true, n_rows, dots);
    else if (n_words == 1)
        dot_planes(a, b, 1, false, n_rows, dots);
    else if (n_words == 2 && is_one_plane)
        dot_planes(a, b, 2, true, n_rows, dots);
    else if (n_words == 2)
        dot_planes(a, b, 2, false, n_rows, dots);
    else
        dot_planes(a, b, n_words, false, n_rows, dots);
}
