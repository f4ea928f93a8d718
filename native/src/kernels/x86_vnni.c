/* AVX-512 VNNI products of one-bit and ternary weights with bytes.
 *
 * Weights become bytes in registers, one more than they are (0 to 2), since vpdpbusd multiplies
 * unsigned by signed bytes: dot = sum of (w + 1) x - sum of x.  A vector holds four inputs of 16
 * outputs, and meets four codes of a token, broadcast.  int16 codes are two rows of bytes: the low
 * ones, unsigned, take the unsigned operand and leave the signed one to the weights.
 *
 *   vpdpbusd      64 multiply-adds, 2 a cycle (ports 0 and 5 of Intel servers)
 *   vpbroadcastd  four codes in all lanes: a load alone
 *   vpblendmb     a mask of 64 bits becomes 64 bytes; with the load of the mask, which takes
 *                 port 5, two operations that a tile of 12 rows shares
 *
 * Why this one: 4 inputs, 32 outputs and 12 rows cost 24 vpdpbusd and 4 to expand weights, 1,536
 * multiply-adds in 14 cycles, 110 a cycle.  Looking sums up in tables as with AVX2, 64 outputs
 * wide, takes 4.75 operations for 256: 108 a cycle before tables are made. */
#include "x86_avx512.h"

#include <string.h>

enum {
    ROWS = 12,      /* of codes at work together: 24 of the 32 registers are sums */
    STRETCH = 1024, /* inputs of a row copied at a time; a multiple of STEP */
    GROUP = 8,      /* panels of outputs that one copy serves */
};

/* ---- The packing ---- */

static size_t masks_bytes(uint32_t n_planes, uint32_t n_rows, uint32_t n_inputs)
{
    size_t n_steps = ((size_t)n_inputs + STEP - 1) / STEP;
    size_t n_panels = ((size_t)n_rows + PANEL - 1) / PANEL;
    return n_planes * n_panels * n_steps * STEP_MASKS * sizeof(uint64_t);
}

static void pack_masks(const void *weights, uint32_t n_planes, uint32_t n_rows, uint32_t n_inputs,
                       void *packed)
{
    const uint64_t *rows = weights;
    uint64_t *masks = packed;
    size_t n_words = ((size_t)n_inputs + 63) / 64;
    for (uint32_t plane = 0; plane < n_planes; plane++, rows += n_rows * n_words)
        for (uint32_t row = 0; row < n_rows; row += PANEL)
            for (size_t word = 0; word < n_words; word++, masks += STEP_MASKS)
                make_masks(rows + row * n_words + word, n_words, n_rows - row, masks);
}

const bitm_packing bitm_packing__masks32 = {masks_bytes, pack_masks, 0};

/* ---- Sums of a tile ---- */

/* Rows of codes at work, and their sums of (w + 1) x with the outputs of a group of panels. */
typedef struct work {
    const bitm_gemm *gemm;
    uint32_t n_tokens, n_rows; /* n_rows: one for a token, or two of int16 codes, low and high */
    int32_t code_sum[ROWS];    /* of a token's codes */
    _Alignas(64) uint8_t codes[ROWS][STRETCH + STEP]; /* + STEP: rows in different cache sets */
    _Alignas(64) int32_t sums[GROUP][ROWS][PANEL];
} work;

/* The weights of a mask, plus 1; tern: of the masks of nonzero and positive. */
INLINE __m512i expand(bitm_dtype kind, uint64_t nonzero, uint64_t positive)
{
    const __m512i one_u8x64 = _mm512_set1_epi8(1), two_u8x64 = _mm512_set1_epi8(2);
    if (kind == BITM_DTYPE_BIT1) return _mm512_maskz_mov_epi8((__mmask64)positive, two_u8x64);
    __m512i weights = _mm512_mask_sub_epi8(one_u8x64, (__mmask64)nonzero, one_u8x64, one_u8x64);
    return _mm512_mask_add_epi8(weights, (__mmask64)positive, weights, two_u8x64);
}

/* Sums are variables, not an array, and changed in a way that compilers do not see through: gcc
 * would store them in every step. */
#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define LOAD(r)                                                                                    \
    __m512i low##r = _mm512_load_si512(sums[r]), high##r = _mm512_load_si512(sums[r] + 16);
#define MULTIPLY(r)                                                                                \
    if ((r) < n_rows) {                                                                            \
        __m512i x_x64 = _mm512_set1_epi32(four_codes(x + (r) * sizeof w->codes[0]));               \
        if (codes == CODES_I16 && (r) % 2 == 0) {                                                  \
            low##r = _mm512_dpbusd_epi32(low##r, x_x64, low_u8x64);                                \
            high##r = _mm512_dpbusd_epi32(high##r, x_x64, high_u8x64);                             \
        } else {                                                                                   \
            low##r = _mm512_dpbusd_epi32(low##r, low_u8x64, x_x64);                                \
            high##r = _mm512_dpbusd_epi32(high##r, high_u8x64, x_x64);                             \
        }                                                                                          \
    }
#define STAY(r)                                                                                    \
    if ((r) < n_rows) __asm__("" : "+v"(low##r), "+v"(high##r));
#define STORE(r)                                                                                   \
    if ((r) < n_rows) {                                                                            \
        _mm512_store_si512(sums[r], low##r);                                                       \
        _mm512_store_si512(sums[r] + 16, high##r);                                                 \
    }

/* Adds n_steps steps of a panel, whose masks are at hand, to sums of n_rows rows: low of outputs 0
 * to 15, high of the others. */
INLINE void add_steps(const work *w, bitm_dtype weights, code_kind codes, const uint64_t *nonzero,
                      const uint64_t *positive, uint32_t first_step, uint32_t n_steps,
                      const uint32_t n_rows, int32_t sums[ROWS][PANEL])
{
    const uint8_t *x = w->codes[0] + first_step * STEP, *end = x + n_steps * STEP;
    EACH_ROW(LOAD)
    for (; x < end; nonzero += 2, positive += 2) {
        for (int i = 0; i < 2; i++, x += 4, nonzero++, positive++) {
            __m512i low_u8x64 = expand(weights, nonzero[0], positive[0]);
            __m512i high_u8x64 = expand(weights, nonzero[2], positive[2]);
            EACH_ROW(MULTIPLY)
            EACH_ROW(STAY)
        }
    }
    EACH_ROW(STORE)
}
#undef LOAD
#undef MULTIPLY
#undef STAY
#undef STORE
#undef EACH_ROW

/* The same for any number of rows; those added to an odd one are zeros. */
INLINE void add_rows(work *w, bitm_dtype weights, code_kind codes, const uint64_t *nonzero,
                     const uint64_t *positive, uint32_t first_step, uint32_t n_steps,
                     int32_t sums[ROWS][PANEL])
{
    switch ((w->n_rows + 1) / 2 * 2) {
#define CASE(n)                                                                                    \
    case n:                                                                                        \
        add_steps(w, weights, codes, nonzero, positive, first_step, n_steps, n, sums);             \
        break
        CASE(2);
        CASE(4);
        CASE(6);
        CASE(8);
        CASE(10);
        CASE(12);
#undef CASE
    default:
        break;
    }
}

/* Inputs from `first` on of the panel that starts with output `output`. */
INLINE void add_panel(work *w, bitm_dtype weights, code_kind codes, uint32_t output, uint32_t first,
                      uint32_t n_steps, int32_t sums[ROWS][PANEL])
{
    const bitm_gemm *gemm = w->gemm;
    const uint32_t positive_plane = weights == BITM_DTYPE_TERN;
    size_t step = first / STEP;
    if (gemm->packed != NULL) {
        const uint64_t *masks = (const uint64_t *)gemm->packed + step * STEP_MASKS;
        add_rows(w, weights, codes, masks + panel_masks(gemm, 0, output),
                 masks + panel_masks(gemm, positive_plane, output), 0, n_steps, sums);
        return;
    }
    size_t n_words = ((size_t)gemm->n_inputs + 63) / 64;
    const uint64_t *rows = (const uint64_t *)gemm->weights + output * n_words + step;
    for (uint32_t s = 0; s < n_steps; s++) {
        uint64_t nonzero[STEP_MASKS], positive[STEP_MASKS];
        make_masks(rows + s, n_words, gemm->n_rows - output, nonzero);
        make_masks(rows + positive_plane * gemm->n_rows * n_words + s, n_words,
                   gemm->n_rows - output, positive);
        add_rows(w, weights, codes, nonzero, positive, s, 1, sums);
    }
}

/* ---- Codes ---- */

/* Copies inputs [first, first + n) of tokens from `token` on to rows, zeros after them, and adds
 * to code_sum. */
INLINE void copy_stretch(work *w, code_kind kind, uint32_t token, uint32_t first, uint32_t n)
{
    const uint32_t rows_of_token = kind == CODES_I16 ? 2 : 1;
    for (uint32_t t = 0; t < w->n_tokens; t++) {
        size_t place = (size_t)(token + t) * w->gemm->n_inputs + first;
        const int8_t *codes = (const int8_t *)w->gemm->inputs + place * rows_of_token;
        uint8_t *low = w->codes[t * rows_of_token], *high = w->codes[t * rows_of_token + 1];
        for (uint32_t i = 0; i < n; i += STEP, codes += STEP * rows_of_token)
            w->code_sum[t] += copy_codes(kind, codes, n - i, low + i, high + i);
    }
    if (w->n_rows % 2 == 1) memset(w->codes[w->n_rows], 0, (n + STEP - 1) / STEP * STEP);
}

/* ---- The product ---- */

/* Outputs of the panel that starts with `first`, so far as they lie in [output, end). */
INLINE void store_panel(const work *w, code_kind kind, uint32_t token, uint32_t first,
                        uint32_t output, uint32_t end, int32_t sums[ROWS][PANEL])
{
    for (uint32_t half = 0; half < PANEL; half += 16) {
        __mmask16 lanes = outputs_between(first + half, output, end);
        if (lanes == 0) continue;
        epilogue e = begin_epilogue(w->gemm, first + half, lanes);
        for (uint32_t t = 0; t < w->n_tokens; t++) {
            const uint32_t row = kind == CODES_I16 ? 2 * t : t;
            __m512i dot = _mm512_load_si512(sums[row] + half);
            if (kind == CODES_I16)
                dot = _mm512_add_epi32(
                    dot, _mm512_slli_epi32(_mm512_load_si512(sums[row + 1] + half), 8));
            dot = _mm512_sub_epi32(dot, _mm512_set1_epi32(w->code_sum[t]));
            store_outputs(w->gemm, &e, token + t, _mm512_cvtepi32_ps(dot));
        }
    }
}

/* Tokens of a tile and outputs [output, end) of a group of panels. */
INLINE void multiply_group(work *w, bitm_dtype weights, code_kind codes, uint32_t token,
                           uint32_t output, uint32_t end)
{
    uint32_t first_panel = output / PANEL * PANEL, n_inputs = w->gemm->n_inputs;
    memset(w->sums, 0, sizeof w->sums);
    memset(w->code_sum, 0, sizeof w->code_sum);
    for (uint32_t first = 0; first < n_inputs; first += STRETCH) {
        uint32_t n = smaller(STRETCH, n_inputs - first), n_steps = (n + STEP - 1) / STEP;
        copy_stretch(w, codes, token, first, n);
        for (uint32_t o = first_panel, g = 0; o < end; o += PANEL, g++)
            add_panel(w, weights, codes, o, first, n_steps, w->sums[g]);
    }
    for (uint32_t o = first_panel, g = 0; o < end; o += PANEL, g++)
        store_panel(w, codes, token, o, output, end, w->sums[g]);
}

INLINE void multiply(const bitm_gemm *gemm, bitm_dtype weights, code_kind codes, uint32_t token,
                     uint32_t n_tokens, uint32_t output, uint32_t n_outputs)
{
    const uint32_t rows_of_token = codes == CODES_I16 ? 2 : 1;
    const uint32_t most = ROWS / rows_of_token; /* tokens of a tile; tiles are of one size */
    uint32_t n_tiles = (n_tokens + most - 1) / most, tile = (n_tokens + n_tiles - 1) / n_tiles;
    work w; /* large: its arrays stay as they are until their use */
    w.gemm = gemm;
    for (uint32_t t = 0; t < n_tokens; t += tile) {
        w.n_tokens = smaller(tile, n_tokens - t);
        w.n_rows = w.n_tokens * rows_of_token;
        for (uint32_t o = output, end; o < output + n_outputs; o = end) {
            end = smaller(o / PANEL * PANEL + GROUP * PANEL, output + n_outputs);
            multiply_group(&w, weights, codes, token + t, o, end);
        }
    }
}

void bitm_gemm_w1a8__vnni(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens, uint32_t output,
                          uint32_t n_outputs)
{
    multiply(gemm, BITM_DTYPE_BIT1, CODES_I8, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2a8__vnni(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens, uint32_t output,
                          uint32_t n_outputs)
{
    multiply(gemm, BITM_DTYPE_TERN, CODES_I8, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w1a16__vnni(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                           uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, BITM_DTYPE_BIT1, CODES_I16, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2a16__vnni(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                           uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, BITM_DTYPE_TERN, CODES_I16, token, n_tokens, output, n_outputs);
}
