/* AVX2 products of one-bit and ternary weights with integer codes, by looking sums up.
 *
 * Four weight bits choose which of four input codes are summed: one of 16 sums, which a table of
 * 16 bytes holds and one vpshufb looks up for the same four inputs of 32 outputs.  Weights lie in
 * panels of 32 outputs, byte by byte; tables are made for a few tokens and a stretch of inputs,
 * and used for all outputs.  The sum of four int8 codes takes 10 bits: a table of its 5 low and
 * one of its 5 high bits, so that 8 groups add up in a byte before they must be widened.  Codes
 * of few bits need one table.
 *
 * With bits b and codes x, weights -1 and 1 give 2 (sum of b x) - (sum of x), ternary weights with
 * planes nonzero and positive 2 (sum of positive x) - (sum of nonzero x).
 *
 * Why this one: a group of 4 inputs, 32 outputs and a token costs 2 vpshufb, 2 vpaddb and 3/4 for
 * widening, 27 multiply-adds an operation, where expanding bits for vpmaddubsw and vpaddw gives
 * 16 and popcounts of bit planes 4.
 *
 *   vpshufb         the look-up             2 a cycle on Zen 2 and Ice Lake, 1 on Skylake
 *   vpaddb, vpaddw  sums                    3 or 4 a cycle
 *   vbroadcasti128  a table into both lanes a load alone
 */
#include "x86_avx2.h"

#include <string.h>

enum {
    PANEL = 32,    /* outputs side by side */
    STRETCH = 768, /* inputs that have tables at a time: 24 KiB, in the first cache */
    STRETCH_WORDS = STRETCH / 64,
    STRETCH_BYTES = STRETCH / 8,
    BLOCK = 1024,  /* outputs whose dots are at work */
    WIDE_ROWS = 4, /* rows of codes at work together, limited by registers */
    NARROW_ROWS = 8,
    WIDE_BYTES = 4, /* byte columns that two tables can add up in bytes: 8 groups * 31 */
    WIDE_SHIFT = 5,
    WIDE_OFFSET = 512, /* makes sums of four int8 codes, at least -512, unsigned */
};

/* ---- Panels ---- */

/* The output that byte `place` of a panel's column is of.  The order is such that widening bytes
 * to 32 bits in the lanes of AVX2 ends in outputs in their order. */
INLINE uint32_t panel_row(uint32_t place)
{
    return (place & 1) * 16 + (place >> 3 & 1) * 8 + (place >> 4) * 4 + (place >> 1 & 3);
}

/* 16 rows of 16 bytes in each half become columns: four times, halves interleave. */
INLINE void transpose(__m256i v[16])
{
    for (int pass = 0; pass < 4; pass++) {
        __m256i w[16];
        for (int i = 0; i < 8; i++) {
            w[2 * i] = _mm256_unpacklo_epi8(v[i], v[i + 8]);
            w[2 * i + 1] = _mm256_unpackhi_epi8(v[i], v[i + 8]);
        }
        for (int i = 0; i < 16; i++)
            v[i] = w[i];
    }
}

INLINE __m128i load_bytes(const uint64_t *words, size_t n_words)
{
    return n_words > 1 ? _mm_loadu_si128((const __m128i *)words)
                       : _mm_loadl_epi64((const __m128i *)words);
}

/* panel [n_words * 8, PANEL] of rows [n_rows] of bits, `stride` words from one to the next; rows
 * that are not there get zeros. */
static void make_panel(const uint64_t *rows, size_t stride, uint32_t n_rows, size_t n_words,
                       uint8_t *panel)
{
    for (size_t word = 0; word < n_words; word += 2) {
        __m256i v[16];
        for (uint32_t i = 0; i < 16; i++) {
            __m128i half[2];
            for (uint32_t k = 0; k < 2; k++) {
                uint32_t row = panel_row(i + 16 * k);
                half[k] = row < n_rows ? load_bytes(rows + row * stride + word, n_words - word)
                                       : _mm_setzero_si128();
            }
            v[i] = _mm256_set_m128i(half[1], half[0]);
        }
        transpose(v);
        for (uint32_t i = 0; i < (n_words - word > 1 ? 16 : 8); i++, panel += PANEL)
            _mm256_storeu_si256((__m256i *)panel, v[i]);
    }
}

static size_t panel_bytes(uint32_t n_planes, uint32_t n_rows, uint32_t n_inputs)
{
    size_t n_words = ((size_t)n_inputs + 63) / 64, n_panels = (n_rows + PANEL - 1) / PANEL;
    return n_planes * n_panels * n_words * 8 * PANEL;
}

static void pack_panels(const void *weights, uint32_t n_planes, uint32_t n_rows, uint32_t n_inputs,
                        void *packed)
{
    const uint64_t *rows = weights;
    uint8_t *panel = packed;
    size_t n_words = ((size_t)n_inputs + 63) / 64;
    for (uint32_t plane = 0; plane < n_planes; plane++, rows += n_rows * n_words)
        for (uint32_t row = 0; row < n_rows; row += PANEL, panel += n_words * 8 * PANEL)
            make_panel(rows + row * n_words, n_words, n_rows - row, n_words, panel);
}

const bitm_packing bitm_packing__panels32 = {panel_bytes, pack_panels, NARROW_ROWS};

/* ---- Tables ----
 *
 * Of each byte column and row of codes: the table of the low nibble's inputs, that of the high
 * nibble's; where a sum takes two tables, first those of low bits, then those of high bits. */

typedef struct tables {
    _Alignas(64) uint8_t bytes[STRETCH_BYTES * WIDE_ROWS * 64];
} tables;

/* Entry i sums the codes whose bits i has.  One vector has entries 0 to 7 of both nibbles' inputs,
 * entries 8 to 15 are the fourth code more. */
INLINE void wide_tables(const uint8_t codes[8], bool is_signed, uint8_t *place)
{
/* Bits 0 and 1 of i in the bytes of a word; bit 2. */
#define PAIR(i) (((i) & 1) | ((i) >> 1 & 1) << 8)
#define THIRD(i) ((i) >> 2 & 1)
    const __m256i pair_u8x32 =
        _mm256_setr_epi16(PAIR(0), PAIR(1), PAIR(2), PAIR(3), PAIR(4), PAIR(5), PAIR(6), PAIR(7),
                          PAIR(0), PAIR(1), PAIR(2), PAIR(3), PAIR(4), PAIR(5), PAIR(6), PAIR(7));
    const __m256i third_u8x32 = _mm256_setr_epi16(
        THIRD(0), THIRD(1), THIRD(2), THIRD(3), THIRD(4), THIRD(5), THIRD(6), THIRD(7), THIRD(0),
        THIRD(1), THIRD(2), THIRD(3), THIRD(4), THIRD(5), THIRD(6), THIRD(7));
#undef PAIR
#undef THIRD
    const __m256i fourth_u8x32 = _mm256_set1_epi16(1 << 8);
    const __m256i low_bits_u16x16 = _mm256_set1_epi16((1 << WIDE_SHIFT) - 1);
    int64_t eight;
    memcpy(&eight, codes, sizeof eight);
    __m256i all_i8x32 = _mm256_set1_epi64x(eight);
    __m256i ab = _mm256_shuffle_epi8(
        all_i8x32, _mm256_set_m128i(_mm_set1_epi16(0x0504), _mm_set1_epi16(0x0100)));
    __m256i cd = _mm256_shuffle_epi8(
        all_i8x32, _mm256_set_m128i(_mm_set1_epi16(0x0706), _mm_set1_epi16(0x0302)));
/* vpmaddubsw multiplies unsigned by signed bytes: bits can be either. */
#define MULTIPLY(bits, x)                                                                          \
    (is_signed ? _mm256_maddubs_epi16(bits, x) : _mm256_maddubs_epi16(x, bits))
    __m256i first = _mm256_add_epi16(MULTIPLY(pair_u8x32, ab), MULTIPLY(third_u8x32, cd));
    if (is_signed) first = _mm256_add_epi16(first, _mm256_set1_epi16(WIDE_OFFSET));
    __m256i second = _mm256_add_epi16(first, MULTIPLY(fourth_u8x32, cd));
#undef MULTIPLY
    __m256i low = _mm256_packus_epi16(_mm256_and_si256(first, low_bits_u16x16),
                                      _mm256_and_si256(second, low_bits_u16x16));
    __m256i high = _mm256_packus_epi16(_mm256_srli_epi16(first, WIDE_SHIFT),
                                       _mm256_srli_epi16(second, WIDE_SHIFT));
    _mm256_store_si256((__m256i *)place, low);
    _mm256_store_si256((__m256i *)(place + 32), high);
}

INLINE void make_wide(const uint8_t *codes, uint32_t n_bytes, bool is_signed, uint32_t row,
                      uint32_t n_rows, tables *t)
{
    for (uint32_t byte = 0; byte < n_bytes; byte++)
        wide_tables(codes + byte * 8, is_signed, t->bytes + (byte * n_rows + row) * 64);
}

/* Entry [j][i]: how many bits i and j share, times the weight of a plane. */
typedef struct shared_bits {
    _Alignas(16) int8_t count[16][16];
} shared_bits;

/* Entry i of a table is the sum over planes of count[plane nibble][i], plus an offset. */
INLINE void make_narrow(const uint64_t *const planes[], const shared_bits counts[],
                        const uint32_t n_planes, int offset, uint32_t n_words, uint32_t row,
                        uint32_t n_rows, tables *t)
{
    const __m128i offsets_i8x16 = _mm_set1_epi8((char)offset);
    for (uint32_t word = 0; word < n_words; word++) {
        __m128i *place = (__m128i *)t->bytes + (word * 8 * n_rows + row) * 2;
        for (uint32_t byte = 0; byte < 8; byte++, place += (size_t)n_rows * 2)
            for (uint32_t half = 0; half < 2; half++) {
                __m128i sum = offsets_i8x16;
                for (uint32_t p = 0; p < n_planes; p++) {
                    uint64_t nibble = planes[p][word] >> (byte * 8 + half * 4) & 15;
                    const int8_t *count = counts[p].count[nibble];
                    sum = _mm_add_epi8(sum, _mm_load_si128((const __m128i *)count));
                }
                _mm_store_si128(place + half, sum);
            }
    }
}

/* ---- Look-ups ---- */

INLINE void add_looked_up(__m256i *sum_u8x32, const uint8_t *table, __m256i index)
{
    __m256i entries = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)table));
    *sum_u8x32 = _mm256_add_epi8(*sum_u8x32, _mm256_shuffle_epi8(entries, index));
    /* Compilers would add addends to each other first, and run out of registers for them. */
    __asm__("" : "+x"(*sum_u8x32));
}

/* Sums of looked-up values, 16 bits in 32 places: two's complement of what exceeds them cancels. */
typedef struct wide_sums {
    __m256i low, low_odd, high, high_odd; /* those without _odd: even + 256 * odd places */
} wide_sums;

INLINE void look_up_wide(const uint8_t *table, const uint8_t *panel, uint32_t n_bytes,
                         const uint32_t n_rows, wide_sums sums[])
{
    const __m256i nibble_u8x32 = _mm256_set1_epi8(15);
    for (uint32_t r = 0; r < n_rows; r++)
        sums[r].low = sums[r].low_odd = sums[r].high = sums[r].high_odd = _mm256_setzero_si256();
    for (uint32_t byte = 0; byte < n_bytes; byte += WIDE_BYTES) {
        __m256i low_u8x32[WIDE_ROWS], high_u8x32[WIDE_ROWS];
        for (uint32_t r = 0; r < n_rows; r++)
            low_u8x32[r] = high_u8x32[r] = _mm256_setzero_si256();
#pragma GCC unroll 4
        for (int i = 0; i < WIDE_BYTES; i++, panel += PANEL, table += n_rows * 64) {
            __m256i bits = _mm256_loadu_si256((const __m256i *)panel);
            __m256i index = _mm256_and_si256(bits, nibble_u8x32);
            for (uint32_t half = 0; half < 2; half++) {
                for (uint32_t r = 0; r < n_rows; r++) {
                    const uint8_t *low = table + r * 64 + half * 16;
                    add_looked_up(&low_u8x32[r], low, index);
                    add_looked_up(&high_u8x32[r], low + 32, index);
                }
                index = _mm256_and_si256(_mm256_srli_epi16(bits, 4), nibble_u8x32);
            }
        }
        for (uint32_t r = 0; r < n_rows; r++) {
            wide_sums *s = &sums[r];
            s->low = _mm256_add_epi16(s->low, low_u8x32[r]);
            s->low_odd = _mm256_add_epi16(s->low_odd, _mm256_srli_epi16(low_u8x32[r], 8));
            s->high = _mm256_add_epi16(s->high, high_u8x32[r]);
            s->high_odd = _mm256_add_epi16(s->high_odd, _mm256_srli_epi16(high_u8x32[r], 8));
        }
    }
}

typedef struct narrow_sums {
    __m256i all, odd; /* all: even + 256 * odd places */
} narrow_sums;

/* round: byte columns that add up in bytes. */
INLINE void look_up_narrow(const uint8_t *table, const uint8_t *panel, uint32_t n_bytes,
                           uint32_t round, const uint32_t n_rows, narrow_sums sums[])
{
    const __m256i nibble_u8x32 = _mm256_set1_epi8(15);
    for (uint32_t r = 0; r < n_rows; r++)
        sums[r].all = sums[r].odd = _mm256_setzero_si256();
    for (uint32_t byte = 0; byte < n_bytes; byte += round) {
        __m256i sum_u8x32[NARROW_ROWS];
        for (uint32_t r = 0; r < n_rows; r++)
            sum_u8x32[r] = _mm256_setzero_si256();
        uint32_t end = smaller(byte + round, n_bytes);
        for (uint32_t i = byte; i < end; i++, panel += PANEL, table += n_rows * 32) {
            __m256i bits = _mm256_loadu_si256((const __m256i *)panel);
            __m256i index = _mm256_and_si256(bits, nibble_u8x32);
            for (uint32_t half = 0; half < 2; half++) {
                for (uint32_t r = 0; r < n_rows; r++) {
                    add_looked_up(&sum_u8x32[r], table + r * 32 + half * 16, index);
                }
                index = _mm256_and_si256(_mm256_srli_epi16(bits, 4), nibble_u8x32);
            }
        }
        for (uint32_t r = 0; r < n_rows; r++) {
            sums[r].all = _mm256_add_epi16(sums[r].all, sum_u8x32[r]);
            sums[r].odd = _mm256_add_epi16(sums[r].odd, _mm256_srli_epi16(sum_u8x32[r], 8));
        }
    }
}

/* ---- From sums to dots ---- */

/* Adds 32 sums, each of two of 16 bits and weights [2] of theirs, to dots [PANEL]. */
INLINE void add_dots(const __m256i pairs_i16x16[4], __m256i weights_i16x16, int32_t *dots)
{
    for (int i = 0; i < 4; i++) {
        __m256i *place = (__m256i *)(dots + i * 8);
        __m256i sums_i32x8 = _mm256_madd_epi16(pairs_i16x16[i], weights_i16x16);
        _mm256_store_si256(place, _mm256_add_epi32(_mm256_load_si256(place), sums_i32x8));
    }
}

INLINE __m256i even_places(__m256i all_u16x16, __m256i odd_u16x16)
{
    return _mm256_sub_epi16(all_u16x16, _mm256_slli_epi16(odd_u16x16, 8));
}

/* Adds factor * sums to dots; sums of a stretch stay below 2^15, a factor below 2^10. */
INLINE void add_wide(const wide_sums *s, int32_t factor, int32_t *dots)
{
    const __m256i weights = _mm256_set1_epi32(factor * (1 << (WIDE_SHIFT + 16)) + (factor & 65535));
    __m256i low = even_places(s->low, s->low_odd), high = even_places(s->high, s->high_odd);
    const __m256i pairs[4] = {_mm256_unpacklo_epi16(low, high), _mm256_unpackhi_epi16(low, high),
                              _mm256_unpacklo_epi16(s->low_odd, s->high_odd),
                              _mm256_unpackhi_epi16(s->low_odd, s->high_odd)};
    add_dots(pairs, weights, dots);
}

INLINE void add_narrow(const narrow_sums *s, int32_t factor, int32_t *dots)
{
    const __m256i zero = _mm256_setzero_si256();
    __m256i even = even_places(s->all, s->odd);
    const __m256i pairs[4] = {_mm256_unpacklo_epi16(even, zero), _mm256_unpackhi_epi16(even, zero),
                              _mm256_unpacklo_epi16(s->odd, zero),
                              _mm256_unpackhi_epi16(s->odd, zero)};
    add_dots(pairs, _mm256_set1_epi32(factor & 65535), dots);
}

/* ---- The product ---- */

typedef enum code_kind { CODES_I8, CODES_I16, CODES_SIGN, CODES_PLANES } code_kind;

/* A product at work on one tile of tokens. */
typedef struct work {
    const bitm_gemm *gemm;
    code_kind kind;
    bool ternary;
    size_t n_words; /* of a row of weights */
    uint32_t token; /* the tile's first */
    uint32_t n_tokens;
    uint32_t n_rows; /* of tables: two for a token of int16 codes, of high and low bytes */
    uint32_t round;  /* of narrow tables */
    int32_t offset;  /* of one group's sum */
    shared_bits counts[BITM_MAX_PLANES]; /* of narrow tables */
    tables tables;
    int32_t code_sum[NARROW_ROWS];
    _Alignas(32) int32_t dots[NARROW_ROWS][BLOCK + 8]; /* + 8: for unaligned loads */
} work;

const size_t bitm_scratch__panels32 = sizeof(work);

/* n bytes of codes [n_bytes * 8], followed by zeros where they end. */
INLINE const uint8_t *padded(const uint8_t *codes, uint32_t n, uint32_t n_bytes, uint8_t *room)
{
    if (n == n_bytes * 8) return codes;
    memset(room, 0, n_bytes * 8);
    memcpy(room, codes, n);
    return room;
}

static int32_t sum_i8(const int8_t *codes, uint32_t n)
{
    int32_t sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += codes[i];
    return sum;
}

/* Makes the tables of `n_words` words of inputs from word `word` on, and adds up code_sum. */
static void make_tables_i8(work *w, size_t word, uint32_t n_words)
{
    const bitm_gemm *gemm = w->gemm;
    uint32_t first = (uint32_t)word * 64, n = smaller(n_words * 64, gemm->n_inputs - first);
    for (uint32_t t = 0; t < w->n_tokens; t++) {
        const int8_t *codes =
            (const int8_t *)gemm->inputs + (size_t)(w->token + t) * gemm->n_inputs + first;
        uint8_t room[STRETCH];
        make_wide(padded((const uint8_t *)codes, n, n_words * 8, room), n_words * 8, true, t,
                  w->n_rows, &w->tables);
        w->code_sum[t] += sum_i8(codes, n);
    }
}

static void make_tables_i16(work *w, size_t word, uint32_t n_words)
{
    const bitm_gemm *gemm = w->gemm;
    uint32_t first = (uint32_t)word * 64, n = smaller(n_words * 64, gemm->n_inputs - first);
    for (uint32_t t = 0; t < w->n_tokens; t++) {
        const int16_t *codes =
            (const int16_t *)gemm->inputs + (size_t)(w->token + t) * gemm->n_inputs + first;
        uint8_t low[STRETCH] = {0}, high[STRETCH] = {0};
        for (uint32_t i = 0; i < n; i++) {
            low[i] = (uint8_t)((uint16_t)codes[i] & 255);
            high[i] = (uint8_t)((uint16_t)codes[i] >> 8);
            w->code_sum[t] += codes[i];
        }
        make_wide(low, n_words * 8, false, 2 * t, w->n_rows, &w->tables);
        make_wide(high, n_words * 8, true, 2 * t + 1, w->n_rows, &w->tables);
    }
}

static int32_t count_bits(const uint64_t *words, uint32_t n_words)
{
    int32_t count = 0;
    for (uint32_t i = 0; i < n_words; i++)
        count += __builtin_popcountll(words[i]);
    return count;
}

static void make_tables_sign(work *w, size_t word, uint32_t n_words)
{
    for (uint32_t t = 0; t < w->n_tokens; t++) {
        const uint64_t *nonzero =
            (const uint64_t *)w->gemm->inputs + (w->token + t) * 2 * w->n_words + word;
        const uint64_t *positive = nonzero + w->n_words;
        uint64_t plus[STRETCH_WORDS], minus[STRETCH_WORDS];
        for (uint32_t i = 0; i < n_words; i++) {
            plus[i] = nonzero[i] & positive[i];
            minus[i] = nonzero[i] & ~positive[i];
        }
        const uint64_t *const planes[] = {plus, minus};
        make_narrow(planes, w->counts, 2, w->offset, n_words, t, w->n_rows, &w->tables);
        w->code_sum[t] += count_bits(plus, n_words) - count_bits(minus, n_words);
    }
}

static void make_tables_planes(work *w, size_t word, uint32_t n_words)
{
    const bitm_gemm *gemm = w->gemm;
    for (uint32_t t = 0; t < w->n_tokens; t++) {
        const uint64_t *planes[BITM_MAX_PLANES];
        for (uint32_t p = 0; p < gemm->n_planes; p++)
            planes[p] = (const uint64_t *)gemm->inputs +
                        ((w->token + t) * gemm->n_planes + p) * w->n_words + word;
        if (gemm->n_planes == 1)
            make_narrow(planes, w->counts, 1, w->offset, n_words, t, w->n_rows, &w->tables);
        else
            make_narrow(planes, w->counts, gemm->n_planes, w->offset, n_words, t, w->n_rows,
                        &w->tables);
    }
}

static void make_tables(work *w, size_t word, uint32_t n_words)
{
    switch (w->kind) {
    case CODES_I8:
        make_tables_i8(w, word, n_words);
        break;
    case CODES_I16:
        make_tables_i16(w, word, n_words);
        break;
    case CODES_SIGN:
        make_tables_sign(w, word, n_words);
        break;
    case CODES_PLANES:
        make_tables_planes(w, word, n_words);
        break;
    }
}

/* Adds factor * (sum of the codes that the panel's bits choose) to dots. */
static void add_panel(work *w, const uint8_t *panel, uint32_t n_bytes, int32_t factor,
                      uint32_t place)
{
    wide_sums wide[WIDE_ROWS];
    narrow_sums narrow[NARROW_ROWS];
    const uint8_t *table = w->tables.bytes;
    bool is_wide = w->kind == CODES_I8 || w->kind == CODES_I16;
    switch (w->n_rows + (is_wide ? 0 : WIDE_ROWS)) {
#define WIDE(n)                                                                                    \
    case n:                                                                                        \
        look_up_wide(table, panel, n_bytes, n, wide);                                              \
        break
#define NARROW(n)                                                                                  \
    case WIDE_ROWS + (n):                                                                          \
        look_up_narrow(table, panel, n_bytes, w->round, n, narrow);                                \
        break
        WIDE(1);
        WIDE(2);
        WIDE(3);
        WIDE(4);
        NARROW(1);
        NARROW(2);
        NARROW(3);
        NARROW(4);
        NARROW(5);
        NARROW(6);
        NARROW(7);
        NARROW(8);
#undef WIDE
#undef NARROW
    default:
        return;
    }
    for (uint32_t r = 0; r < w->n_rows; r++) {
        if (w->kind == CODES_I16)
            add_wide(&wide[r], r % 2 == 0 ? factor : factor * 256, w->dots[r / 2] + place);
        else if (is_wide)
            add_wide(&wide[r], factor, w->dots[r] + place);
        else
            add_narrow(&narrow[r], factor, w->dots[r] + place);
    }
}

/* One plane of weights of the panel that starts with output `output`. */
static void add_plane(work *w, uint32_t plane, uint32_t output, size_t word, uint32_t n_words,
                      int32_t factor, uint32_t place)
{
    const bitm_gemm *gemm = w->gemm;
    uint32_t n_panels = (gemm->n_rows + PANEL - 1) / PANEL;
    if (gemm->packed != NULL) {
        size_t number = (size_t)plane * n_panels + output / PANEL;
        const uint8_t *panel =
            (const uint8_t *)gemm->packed + (number * w->n_words + word) * 8 * PANEL;
        add_panel(w, panel, n_words * 8, factor, place);
        return;
    }
    _Alignas(32) uint8_t panel[STRETCH_BYTES * PANEL];
    const uint64_t *rows = (const uint64_t *)gemm->weights +
                           ((size_t)plane * gemm->n_rows + output) * w->n_words + word;
    make_panel(rows, w->n_words, gemm->n_rows - output, n_words, panel);
    add_panel(w, panel, n_words * 8, factor, place);
}

INLINE __m256 dots_as_floats(const int32_t *dots, uint32_t excess)
{
    __m256i dots_i32x8 = _mm256_loadu_si256((const __m256i *)dots);
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(dots_i32x8, _mm256_set1_epi32((int)excess)));
}

/* Outputs [output, end) of the tile's token t from dots that start with output `begin`. */
static void store_block(const work *w, uint32_t t, uint32_t output, uint32_t end, uint32_t begin)
{
    size_t token = w->token + t;
    /* Offsets count with weight 2, less 1 of the nonzero plane.  Unsigned, so that it may wrap. */
    uint32_t excess = (uint32_t)w->n_words * 16 * (uint32_t)w->offset * (w->ternary ? 1 : 2);
    if (!w->ternary)
        excess += (uint32_t)(w->kind == CODES_PLANES ? w->gemm->code_sum[token] : w->code_sum[t]);
    const int32_t *dots = w->dots[t] + (output - begin);
    epilogue e = open_epilogue(w->gemm, token, output);
    uint32_t n = end - output, i = 0;
    for (; i + 8 <= n; i += 8)
        store_outputs(&e, i, 8, dots_as_floats(dots + i, excess));
    if (i < n) store_outputs(&e, i, n - i, dots_as_floats(dots + i, excess));
    activate_block(w->gemm, token, 1, output, end - output);
}

/* Outputs [output, output + n_outputs) of the tile, at most BLOCK from a panel's first.  Tables of
 * all inputs, where they fit, are made for the first block and stay for the others. */
static void multiply_block(work *w, uint32_t output, uint32_t n_outputs, bool is_first)
{
    uint32_t begin = output / PANEL * PANEL, end = output + n_outputs;
    uint32_t n_panels = (end - begin + PANEL - 1) / PANEL;
    for (uint32_t t = 0; t < w->n_tokens; t++)
        memset(w->dots[t], 0, n_panels * PANEL * sizeof(int32_t));
    bool has_tables = w->n_words <= STRETCH_WORDS && !is_first;
    if (!has_tables) memset(w->code_sum, 0, sizeof w->code_sum);
    for (size_t word = 0; word < w->n_words; word += STRETCH_WORDS) {
        uint32_t n_words = smaller(STRETCH_WORDS, (uint32_t)(w->n_words - word));
        if (!has_tables) make_tables(w, word, n_words);
        for (uint32_t panel = 0; panel < n_panels; panel++) {
            uint32_t place = panel * PANEL;
            if (w->ternary) add_plane(w, 0, begin + place, word, n_words, -1, place);
            add_plane(w, w->ternary, begin + place, word, n_words, 2, place);
        }
    }
    for (uint32_t t = 0; t < w->n_tokens; t++)
        store_block(w, t, output, end, begin);
}

/* The tables' kind of narrow rows: counts scaled by the planes' weights, where their sums leave
 * room for two groups in a byte. */
static bool scale_counts(work *w, const int32_t *weights, uint32_t n_planes)
{
    uint32_t range = 0;
    w->offset = 0;
    for (uint32_t p = 0; p < n_planes; p++) {
        if (weights[p] < -31 || weights[p] > 31) return false;
        range += 4 * (uint32_t)(weights[p] < 0 ? -weights[p] : weights[p]);
        if (weights[p] < 0) w->offset -= 4 * weights[p];
        for (int i = 0; i < 16 * 16; i++)
            w->counts[p].count[i / 16][i % 16] =
                (int8_t)(weights[p] * __builtin_popcount((unsigned)(i / 16 & i % 16)));
    }
    w->round = 255 / 2 / (range > 0 ? range : 1);
    return w->round > 0;
}

/* The fields that the kind of the codes defines; false where they do not fit into tables. */
static bool prepare(work *w)
{
    static const int32_t sign_weights[] = {1, -1};
    switch (w->kind) {
    case CODES_I8:
        w->offset = WIDE_OFFSET;
        return true;
    case CODES_I16:
        w->offset = WIDE_OFFSET * 256;
        return true;
    case CODES_SIGN:
        return scale_counts(w, sign_weights, 2);
    case CODES_PLANES:
        break;
    }
    return scale_counts(w, w->gemm->plane_weights, w->gemm->n_planes);
}

static bool multiply(const bitm_gemm *gemm, code_kind kind, bool ternary, uint32_t token,
                     uint32_t n_tokens, uint32_t output, uint32_t n_outputs)
{
    work *w = gemm->scratch;
    w->gemm = gemm;
    w->kind = kind;
    w->ternary = ternary;
    w->n_words = ((size_t)gemm->n_inputs + 63) / 64;
    if (!prepare(w)) return false;
    uint32_t rows_per_token = kind == CODES_I16 ? 2 : 1;
    uint32_t tile =
        (kind == CODES_I8 || kind == CODES_I16 ? WIDE_ROWS : NARROW_ROWS) / rows_per_token;
    for (uint32_t t = 0; t < n_tokens; t += tile) {
        w->token = token + t;
        w->n_tokens = smaller(tile, n_tokens - t);
        w->n_rows = w->n_tokens * rows_per_token;
        for (uint32_t o = output, end; o < output + n_outputs; o = end) {
            end = smaller(o / PANEL * PANEL + BLOCK, output + n_outputs);
            multiply_block(w, o, end - o, o == output);
        }
    }
    return true;
}

void bitm_gemm_w1a8_few(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens, uint32_t output,
                        uint32_t n_outputs)
{
    (void)multiply(gemm, CODES_I8, false, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2a8__avx2(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens, uint32_t output,
                          uint32_t n_outputs)
{
    (void)multiply(gemm, CODES_I8, true, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w1a16_few(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens, uint32_t output,
                         uint32_t n_outputs)
{
    (void)multiply(gemm, CODES_I16, false, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2a16__avx2(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                           uint32_t output, uint32_t n_outputs)
{
    (void)multiply(gemm, CODES_I16, true, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w1sign__avx2(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                            uint32_t output, uint32_t n_outputs)
{
    (void)multiply(gemm, CODES_SIGN, false, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2sign__avx2(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                            uint32_t output, uint32_t n_outputs)
{
    (void)multiply(gemm, CODES_SIGN, true, token, n_tokens, output, n_outputs);
}

/* Codes of 5 and more bits, whose sums do not fit into one table; the models' own quantizers hand
 * them over as bytes. */
static void multiply_many_planes(const bitm_gemm *gemm, bool ternary, uint32_t token,
                                 uint32_t n_tokens, uint32_t output, uint32_t n_outputs)
{
    uint32_t n_words = (gemm->n_inputs + 63) / 64;
    for (size_t o = output; o < (size_t)output + n_outputs; o++) {
        const uint64_t *nonzero = (const uint64_t *)gemm->weights + o * n_words;
        const uint64_t *positive = nonzero + (ternary ? (size_t)gemm->n_rows * n_words : 0);
        for (size_t t = token; t < (size_t)token + n_tokens; t++) {
            const uint64_t *plane = (const uint64_t *)gemm->inputs + t * gemm->n_planes * n_words;
            int32_t dot = ternary ? 0 : -gemm->code_sum[t];
            for (uint32_t p = 0; p < gemm->n_planes; p++, plane += n_words) {
                int32_t count = 0;
                for (uint32_t i = 0; i < n_words; i++) {
                    count += 2 * (int32_t)__builtin_popcountll(positive[i] & plane[i]);
                    if (ternary) count -= (int32_t)__builtin_popcountll(nonzero[i] & plane[i]);
                }
                dot += gemm->plane_weights[p] * count;
            }
            store_output(gemm, t, o, (float)dot);
        }
    }
    activate_block(gemm, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w1planes__avx2(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                              uint32_t output, uint32_t n_outputs)
{
    if (!multiply(gemm, CODES_PLANES, false, token, n_tokens, output, n_outputs))
        multiply_many_planes(gemm, false, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2planes__avx2(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                              uint32_t output, uint32_t n_outputs)
{
    if (!multiply(gemm, CODES_PLANES, true, token, n_tokens, output, n_outputs))
        multiply_many_planes(gemm, true, token, n_tokens, output, n_outputs);
}
