/* AVX-512 products of one-bit and ternary weights with int8 and int16 codes, by looking up sums
 * made in advance.
 *
 * Six weight bits choose which of six input codes are summed: one of 64 sums of 16 bits, which are
 * two registers.  One operation finds those of 32 outputs.  Tables of 240 inputs of four tokens
 * stay in the first cache and serve all outputs.  An int16 code is two rows of bytes, of which the
 * low one is unsigned; an int11 code is one, whose sums become 32 bits after 48 inputs.
 *
 * With bits b and codes x, weights -1 and 1 give 2 (sum of b x) - (sum of x); ternary ones, with
 * bits p where they are positive and n where they are not 0, 2 (sum of p x) - (sum of n x).
 *
 *   vpermt2w   finds 32 of 64 words, 192 multiply-adds  1 a cycle on Zen 4, every other on Intel
 *   vpaddw     their sum                                2 a cycle
 *   vmovdqa64  the table, which vpermt2w destroys       renaming alone
 *
 * Why this one: both together fill the four pipes of Zen 4, 0.95 times a cycle as measured, if two
 * of a kind follow each other (0.76 if they take turns): 182 multiply-adds, where vpdpbusd does 64.
 * On Intel's Sapphire Rapids x86_vnni.c is as fast, but for one or two tokens.
 * Sums of 32 tokens at once, as x86_avx2_sums.c has them of 16, would be 192 a load, but their
 * tables and sums leave the first cache: measured, they are as fast as with AVX2. */
#include "x86_avx512.h"

#include <string.h>

enum {
    GROUP = 6, /* inputs that one sum is of */
    N_SUMS = 1 << GROUP,
    PAIR = 2 * GROUP, /* inputs of a word of places */
    ROUND = 20,       /* pairs whose sums fit into 16 bits, 21 would, and are whole bytes of bits */
    ROUND_INPUTS = ROUND * PAIR,
    WIDE_PAIRS = 4, /* the same of int11 codes */
    ROWS = 4,       /* of codes at work */
    VECTORS = 4,    /* of 32 outputs at work: with four rows, 16 registers of sums */
    WIDTH = 32 * VECTORS,
    PAIR_BYTES = 2 * WIDTH,               /* of a panel's words for a pair */
    MARGIN = 64,                          /* bytes after the last words, of which one is read */
    AHEAD_BYTES = 2 * ROUND * PAIR_BYTES, /* from reading words to asking for others */
    BLOCK = 3072,                         /* outputs at work, a multiple of WIDTH */
};

/* ---- The packing: [round, panel of 128 outputs, pair of the round, 128 words] of places ----
 *
 * A word has the place in the table of the pair's first group in its bits 0 to 5, and that of the
 * second in bits 8 to 13.  In each vector of 32 words, word 2 i is of output i, word 2 i + 1 of
 * output 16 + i, so that sums of 16 bits become two vectors of 32 bits without crossing lanes. */

static size_t pairs_of(uint32_t n_inputs)
{
    return ((size_t)n_inputs + PAIR - 1) / PAIR;
}

static size_t words_bytes(uint32_t n_planes, uint32_t n_rows, uint32_t n_inputs)
{
    return n_planes * (((size_t)n_rows + WIDTH - 1) / WIDTH) * pairs_of(n_inputs) * PAIR_BYTES +
           MARGIN;
}

/* 8 bytes of 8 rows from `byte` on; zeros past a row's end and in rows that are not there. */
INLINE __m512i eight_rows(const uint8_t *rows, size_t row_bytes, uint32_t n_rows, size_t byte)
{
    uint64_t words[8] = {0};
    size_t n = byte < row_bytes ? row_bytes - byte : 0;
    for (uint32_t i = 0; i < smaller(n_rows, 8); i++) {
        if (n >= sizeof words[i])
            memcpy(&words[i], rows + i * row_bytes + byte, sizeof words[i]);
        else
            memcpy(&words[i], rows + i * row_bytes + byte, n);
    }
    return _mm512_loadu_si512(words);
}

/* Words of pairs [pair, pair + n_pairs), where pair is even, of 32 rows, of which n_rows exist. */
static void make_words(const uint8_t *rows, size_t row_bytes, uint32_t n_rows, size_t pair,
                       size_t n_pairs, uint8_t *words)
{
    const __m512i bits_i64x8 = _mm512_set1_epi64((1 << PAIR) - 1);
    const __m512i first_i64x8 = _mm512_set1_epi32(0x003F003F);
    const __m512i second_i64x8 = _mm512_set1_epi32(0x3F003F00);
    for (size_t p = 0; p < n_pairs; p += 4) { /* 48 bits of the 64 */
        __m512i rows_i64x8[4];
        for (uint32_t i = 0; i < 4; i++)
            rows_i64x8[i] = eight_rows(rows + 8 * i * row_bytes, row_bytes,
                                       n_rows > 8 * i ? n_rows - 8 * i : 0, (pair + p) * PAIR / 8);
        for (size_t k = p; k < p + 4 && k < n_pairs; k++) {
            for (uint32_t i = 0; i < 2; i++) { /* rows 8 i to 8 i + 7, and those 16 later */
                __m512i low = _mm512_and_si512(rows_i64x8[i], bits_i64x8);
                __m512i high = _mm512_and_si512(rows_i64x8[i + 2], bits_i64x8);
                __m512i both = _mm512_or_si512(low, _mm512_slli_epi64(high, 16));
                __m512i places = _mm512_or_si512(
                    _mm512_and_si512(both, first_i64x8),
                    _mm512_and_si512(_mm512_slli_epi64(both, 8 - GROUP), second_i64x8));
                _mm256_storeu_si256((__m256i *)(void *)(words + k * PAIR_BYTES + 32 * i),
                                    _mm512_cvtepi64_epi32(places));
                rows_i64x8[i] = _mm512_srli_epi64(rows_i64x8[i], PAIR);
                rows_i64x8[i + 2] = _mm512_srli_epi64(rows_i64x8[i + 2], PAIR);
            }
        }
    }
}

/* The same of a panel. */
static void make_panel(const uint8_t *rows, size_t row_bytes, uint32_t n_rows, size_t pair,
                       size_t n_pairs, uint8_t *words)
{
    for (uint32_t i = 0; i < WIDTH; i += 32)
        make_words(rows + i * row_bytes, row_bytes, n_rows > i ? n_rows - i : 0, pair, n_pairs,
                   words + 2 * i);
}

static void pack_words(const void *weights, uint32_t n_planes, uint32_t n_rows, uint32_t n_inputs,
                       void *packed)
{
    size_t row_bytes = ((size_t)n_inputs + 63) / 64 * 8, n_pairs = pairs_of(n_inputs);
    const uint8_t *rows = weights;
    uint8_t *words = packed;
    for (uint32_t plane = 0; plane < n_planes; plane++, rows += n_rows * row_bytes)
        for (size_t pair = 0; pair < n_pairs; pair += ROUND) {
            size_t n = n_pairs - pair < ROUND ? n_pairs - pair : ROUND;
            for (uint32_t row = 0; row < n_rows; row += WIDTH, words += n * PAIR_BYTES)
                make_panel(rows + row * row_bytes, row_bytes, n_rows - row, pair, n, words);
        }
}

/* Tables are made of four tokens for all outputs. */
const bitm_packing bitm_packing__places128 = {words_bytes, pack_words, ROWS};

/* ---- Tables ---- */

/* A product at work on one tile of tokens and one block of outputs. */
typedef struct work {
    _Alignas(64) int16_t tables[2 * ROUND][ROWS][N_SUMS]; /* entry i: of the codes of i's bits */
    _Alignas(64) int32_t dots[BLOCK / WIDTH][ROWS][WIDTH];
    _Alignas(64) uint8_t words[ROUND * PAIR_BYTES + MARGIN]; /* where weights are not packed */
    _Alignas(64) uint8_t codes[ROWS][(ROUND_INPUTS + 63) / 64 * 64];      /* 0 past the last */
    _Alignas(64) int16_t wide_codes[ROWS][(ROUND_INPUTS + 31) / 32 * 32]; /* of int11 codes */
    int32_t code_sum[ROWS];                                               /* of a token's */
    const bitm_gemm *gemm;
    uint32_t token, n_tokens, n_rows; /* n_rows: one for a token, or two of int16 codes */
    uint32_t first_panel, n_panels;   /* of the block */
} work;

const size_t bitm_scratch__places128 = sizeof(work);

/* Of two codes, those added whose bytes in a word of `bits` are 1; for 32 words. */
INLINE __m512i add_two(const uint8_t *codes, const bool is_unsigned, __m512i bits)
{
    int16_t two;
    memcpy(&two, codes, sizeof two);
    __m512i both = _mm512_set1_epi16(two);
    return is_unsigned ? _mm512_maddubs_epi16(both, bits) : _mm512_maddubs_epi16(bits, both);
}

/* Bits `first` and first + 1 of places 0 to 31, a byte each. */
INLINE __m512i two_bits(const int16_t first)
{
    const __m512i words =
        _mm512_set_epi16(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13,
                         12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i one = _mm512_set1_epi16(1);
    __m512i shifted = _mm512_srlv_epi16(words, _mm512_set1_epi16(first));
    __m512i bit = _mm512_and_si512(shifted, one);
    __m512i next = _mm512_and_si512(_mm512_srli_epi16(shifted, 1), one);
    return _mm512_or_si512(bit, _mm512_slli_epi16(next, 8));
}

/* Makes the tables of n_groups of a row's codes. */
INLINE void make_tables(work *w, uint32_t row, const bool is_unsigned, uint32_t n_groups)
{
    const __m512i bits_0_1 = two_bits(0), bits_2_3 = two_bits(2), bits_4_5 = two_bits(4);
    const __m512i bits_4_5_later = _mm512_or_si512(bits_4_5, _mm512_set1_epi16(1 << 8));
    const uint8_t *codes = w->codes[row];
    for (uint32_t g = 0; g < n_groups; g++, codes += GROUP) {
        __m512i four = _mm512_add_epi16(add_two(codes, is_unsigned, bits_0_1),
                                        add_two(codes + 2, is_unsigned, bits_2_3));
        int16_t *table = w->tables[g][row];
        _mm512_store_si512(table,
                           _mm512_add_epi16(four, add_two(codes + 4, is_unsigned, bits_4_5)));
        _mm512_store_si512(table + N_SUMS / 2,
                           _mm512_add_epi16(four, add_two(codes + 4, is_unsigned, bits_4_5_later)));
    }
}

/* Makes the tables of n_groups of a row's int11 codes: each of the first five is added to the half
 * of a table's entries that have its bit, the last one to all. */
INLINE void make_wide_tables(work *w, uint32_t row, uint32_t n_groups)
{
    const int16_t *codes = w->wide_codes[row];
    for (uint32_t g = 0; g < n_groups; g++, codes += GROUP) {
        __m512i low = _mm512_maskz_set1_epi16(0xAAAAAAAA, codes[0]);
        low = _mm512_mask_add_epi16(low, 0xCCCCCCCC, low, _mm512_set1_epi16(codes[1]));
        low = _mm512_mask_add_epi16(low, 0xF0F0F0F0, low, _mm512_set1_epi16(codes[2]));
        low = _mm512_mask_add_epi16(low, 0xFF00FF00, low, _mm512_set1_epi16(codes[3]));
        low = _mm512_mask_add_epi16(low, 0xFFFF0000, low, _mm512_set1_epi16(codes[4]));
        int16_t *table = w->tables[g][row];
        _mm512_store_si512(table, low);
        _mm512_store_si512(table + N_SUMS / 2, _mm512_add_epi16(low, _mm512_set1_epi16(codes[5])));
    }
}

/* Copies n int11 codes of a token, zeros up to n_padded; returns their sum. */
INLINE int32_t copy_wide_codes(const int16_t *codes, uint32_t n, uint32_t n_padded, int16_t *copy)
{
    __m512i sum = _mm512_setzero_si512();
    for (uint32_t i = 0; i < n_padded; i += 32) {
        __mmask32 exist = (__mmask32)first_bytes(n > i ? n - i : 0);
        __m512i some = _mm512_maskz_loadu_epi16(exist, codes + i);
        _mm512_store_si512(copy + i, some);
        sum = _mm512_dpwssd_epi32(sum, some, _mm512_set1_epi16(1));
    }
    return _mm512_reduce_add_epi32(sum);
}

/* Makes the tables of inputs [first, first + n). */
INLINE void prepare_round(work *w, code_kind kind, uint32_t first, uint32_t n)
{
    const uint32_t rows_of_token = kind == CODES_I16 ? 2 : 1;
    const uint32_t n_groups = (n + PAIR - 1) / PAIR * 2;
    for (uint32_t t = 0; t < w->n_tokens; t++) {
        const uint32_t row = t * rows_of_token;
        size_t place = (size_t)(w->token + t) * w->gemm->n_inputs + first;
        if (kind == CODES_I11) {
            w->code_sum[t] += copy_wide_codes((const int16_t *)w->gemm->inputs + place, n,
                                              n_groups * GROUP, w->wide_codes[row]);
            make_wide_tables(w, row, n_groups);
            continue;
        }
        const int8_t *codes = (const int8_t *)w->gemm->inputs + place * rows_of_token;
        uint8_t *low = w->codes[row], *high = w->codes[row + rows_of_token - 1];
        for (uint32_t i = 0; i < n_groups * GROUP; i += 64)
            w->code_sum[t] +=
                copy_codes(kind, codes + i * rows_of_token, n > i ? n - i : 0, low + i, high + i);
        make_tables(w, row, kind == CODES_I16, n_groups);
        if (kind == CODES_I16) make_tables(w, row + 1, false, n_groups);
    }
}

/* ---- Sums ---- */

/* Adds factor * a round's sums of 16 bits of 32 outputs to dots. */
INLINE void add_sums(const bool is_unsigned, const int16_t factor, bool is_first, __m512i sums,
                     int32_t *dots)
{
    __m512i low = _mm512_setzero_si512(), high = low;
    if (!is_first) {
        low = _mm512_load_si512(dots);
        high = _mm512_load_si512(dots + 16);
    }
    if (is_unsigned) {
        const __m512i factors = _mm512_set1_epi32(factor);
        __m512i even = _mm512_and_si512(sums, _mm512_set1_epi32(0xFFFF));
        low = _mm512_add_epi32(low, _mm512_mullo_epi32(even, factors));
        high = _mm512_add_epi32(high, _mm512_mullo_epi32(_mm512_srli_epi32(sums, 16), factors));
    } else {
        low = _mm512_dpwssd_epi32(low, sums, _mm512_set1_epi32((uint16_t)factor));
        high = _mm512_dpwssd_epi32(high, sums, _mm512_set1_epi32(factor * 65536));
    }
    _mm512_store_si512(dots, low);
    _mm512_store_si512(dots + 16, high);
}

/* A round of some rows and a panel of a plane of weights, times factor. */
INLINE void add_pairs(const work *w, code_kind kind, const uint8_t *words, uint32_t pair,
                      uint32_t n_pairs, const uint32_t n_rows, const int16_t factor, bool is_first,
                      int32_t dots[ROWS][WIDTH])
{
    __m512i sums[ROWS][VECTORS];
#pragma GCC unroll 4
    for (uint32_t r = 0; r < n_rows; r++)
#pragma GCC unroll 4
        for (uint32_t i = 0; i < VECTORS; i++)
            sums[r][i] = _mm512_setzero_si512();
    const int16_t *table = w->tables[(size_t)2 * pair][0];
    for (uint32_t p = 0; p < n_pairs; p++, words += PAIR_BYTES) {
        for (size_t i = 0; i < PAIR_BYTES; i += 64)
            ask_for(words + i, AHEAD_BYTES);
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++, table += ROWS * N_SUMS) {
            __m512i places[VECTORS];
#pragma GCC unroll 4
            for (uint32_t i = 0; i < VECTORS; i++) {
                /* Upper bits do not count, so a byte later are the places of the second groups. */
                places[i] = _mm512_loadu_si512(words + i * sizeof places[i] + half);
                __asm__("" : "+v"(places[i]));
            }
#pragma GCC unroll 4
            for (uint32_t r = 0; r < n_rows; r++) {
                const int16_t *entries = table + r * N_SUMS;
                __m512i low = _mm512_load_si512(entries);
                __m512i high = _mm512_load_si512(entries + N_SUMS / 2);
                __asm__("" : "+v"(high));
                __m512i found[VECTORS]; /* all before they are added: see above */
#pragma GCC unroll 4
                for (uint32_t i = 0; i < VECTORS; i++) {
                    found[i] = _mm512_permutex2var_epi16(low, places[i], high);
                    __asm__ volatile("" : "+v"(found[i]));
                }
#pragma GCC unroll 4
                for (uint32_t i = 0; i < VECTORS; i++) {
                    sums[r][i] = _mm512_add_epi16(sums[r][i], found[i]);
                    __asm__ volatile("" : "+v"(sums[r][i]));
                }
            }
        }
    }
#pragma GCC unroll 4
    for (uint32_t r = 0; r < n_rows; r++)
#pragma GCC unroll 4
        for (uint32_t i = 0; i < VECTORS; i++)
            add_sums(kind == CODES_I16 && r % 2 == 0, factor, is_first, sums[r][i],
                     dots[r] + i * 32);
}

/* Inputs from pair `pair` on of the panels of a block; of one plane of weights, times factor. */
INLINE void add_plane(work *w, code_kind kind, uint32_t plane, const int16_t factor, uint32_t pair,
                      uint32_t n_pairs, bool is_first)
{
    const bitm_gemm *gemm = w->gemm;
    const size_t row_bytes = ((size_t)gemm->n_inputs + 63) / 64 * 8;
    const size_t n_panels = ((size_t)gemm->n_rows + WIDTH - 1) / WIDTH;
    const size_t first = n_panels * (plane * pairs_of(gemm->n_inputs) + pair) +
                         (size_t)w->first_panel * n_pairs; /* packed pair */
    const uint32_t most = kind == CODES_I11 ? WIDE_PAIRS : ROUND;
    for (uint32_t panel = 0; panel < w->n_panels; panel++) {
        const uint32_t row = (w->first_panel + panel) * WIDTH;
        const uint8_t *words = w->words;
        if (gemm->packed != NULL)
            words = (const uint8_t *)gemm->packed + (first + (size_t)panel * n_pairs) * PAIR_BYTES;
        else
            make_panel((const uint8_t *)gemm->weights +
                           ((size_t)plane * gemm->n_rows + row) * row_bytes,
                       row_bytes, gemm->n_rows - row, pair, n_pairs, w->words);
        switch (w->n_rows) {
#define CASE(n)                                                                                    \
    case n:                                                                                        \
        for (uint32_t p = 0; p < n_pairs; p += most)                                               \
            add_pairs(w, kind, words + (size_t)p * PAIR_BYTES, p, smaller(most, n_pairs - p), n,   \
                      factor, is_first && p == 0, w->dots[panel]);                                 \
        break
            CASE(1);
            CASE(2);
            CASE(3);
            CASE(4);
#undef CASE
        default:
            break;
        }
    }
}

/* ---- The product ---- */

/* The block's outputs, so far as they lie in [output, end). */
INLINE void store_block(const work *w, bitm_dtype weights, code_kind kind, uint32_t output,
                        uint32_t end, const bool plain, const uint32_t activation)
{
    /* Stores of outputs do not change it, which the compiler knows of a copy alone. */
    const bitm_gemm gemm = *w->gemm;
    for (uint32_t i = 0; i < w->n_panels * WIDTH; i += 16) {
        uint32_t first = w->first_panel * WIDTH + i;
        __mmask16 lanes = outputs_between(first, output, end);
        if (lanes == 0) continue;
        epilogue e = begin_epilogue(&gemm, first, lanes);
        const int32_t (*dots)[WIDTH] = w->dots[i / WIDTH];
        for (uint32_t t = 0; t < w->n_tokens; t++) {
            const uint32_t row = kind == CODES_I16 ? 2 * t : t;
            __m512i dot = _mm512_load_si512(dots[row] + i % WIDTH);
            if (kind == CODES_I16) {
                __m512i high = _mm512_load_si512(dots[row + 1] + i % WIDTH);
                dot = _mm512_add_epi32(dot, _mm512_slli_epi32(high, 8));
            }
            if (weights == BITM_DTYPE_BIT1)
                dot = _mm512_sub_epi32(dot, _mm512_set1_epi32(w->code_sum[t]));
            finish_outputs(&gemm, &e, w->token + t, _mm512_cvtepi32_ps(dot), plain, activation);
        }
    }
}

INLINE void multiply(const bitm_gemm *gemm, bitm_dtype weights, code_kind kind, uint32_t token,
                     uint32_t n_tokens, uint32_t output, uint32_t n_outputs)
{
    const uint32_t tile = kind == CODES_I16 ? ROWS / 2 : ROWS, n_inputs = gemm->n_inputs;
    const uint32_t end_token = token + n_tokens, end_output = output + n_outputs;
    work *w = gemm->scratch;
    w->gemm = gemm;
    for (; token < end_token; token += w->n_tokens) {
        w->token = token;
        w->n_tokens = smaller(tile, end_token - token);
        w->n_rows = kind == CODES_I16 ? 2 * w->n_tokens : w->n_tokens;
        for (uint32_t o = output, end; o < end_output; o = end) {
            w->first_panel = o / WIDTH;
            end = smaller(w->first_panel * WIDTH + BLOCK, end_output);
            w->n_panels = (end + WIDTH - 1) / WIDTH - w->first_panel;
            memset(w->code_sum, 0, sizeof w->code_sum);
            for (uint32_t first = 0; first < n_inputs; first += ROUND_INPUTS) {
                uint32_t n = smaller(ROUND_INPUTS, n_inputs - first);
                uint32_t pair = first / PAIR, n_pairs = (n + PAIR - 1) / PAIR;
                prepare_round(w, kind, first, n);
                add_plane(w, kind, weights == BITM_DTYPE_TERN, 2, pair, n_pairs, first == 0);
                if (weights == BITM_DTYPE_TERN) add_plane(w, kind, 0, -1, pair, n_pairs, false);
            }
            if (is_plain(gemm) && gemm->activation == BITM_ACTIVATION_NONE)
                store_block(w, weights, kind, o, end, true, BITM_ACTIVATION_NONE);
            else if (is_plain(gemm) && gemm->activation == BITM_ACTIVATION_GELU)
                store_block(w, weights, kind, o, end, true, BITM_ACTIVATION_GELU);
            else
                store_block(w, weights, kind, o, end, false, gemm->activation);
        }
    }
}

void bitm_gemm_w1a8__permute(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                             uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, BITM_DTYPE_BIT1, CODES_I8, token, n_tokens, output, n_outputs);
}

/* The codes of a wide product are of one of two kinds. */
INLINE void multiply_wide(const bitm_gemm *gemm, bitm_dtype weights, uint32_t token,
                          uint32_t n_tokens, uint32_t output, uint32_t n_outputs)
{
    if (gemm->are_int11)
        multiply(gemm, weights, CODES_I11, token, n_tokens, output, n_outputs);
    else
        multiply(gemm, weights, CODES_I16, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w1a16__permute(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                              uint32_t output, uint32_t n_outputs)
{
    multiply_wide(gemm, BITM_DTYPE_BIT1, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2a8__permute(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                             uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, BITM_DTYPE_TERN, CODES_I8, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2a16__permute(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                              uint32_t output, uint32_t n_outputs)
{
    multiply_wide(gemm, BITM_DTYPE_TERN, token, n_tokens, output, n_outputs);
}
