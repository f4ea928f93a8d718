/* AVX2 products of one-bit weights with int8 and int16 codes, by adding up sums made in advance.
 *
 * Six weight bits choose which of six input codes are summed: one of 64 sums.  For 16 tokens at a
 * time all 64 are made, each a vector of 16 sums of 16 bits, and serve every output: its weights
 * are the places of the vectors to add.  Tables of 72 inputs fill three quarters of the first
 * cache; they are used for all outputs, then made for the next inputs.  An int16 code takes two
 * lanes, its low byte in the lower half of the vector and its high byte in the upper one; an int11
 * code one, whose sums become 32 bits after 48 inputs at most.
 *
 * With bits b and codes x, weights -1 and 1 give 2 (sum of b x) - (sum of x).  The latter is a sum
 * whose six bits are all ones.
 *
 * Why this one: a vpaddw from memory and the 1.5 operations that find its address do 96
 * multiply-adds.  Looking bytes up in a table for one token, by vpshufb, costs 7 operations for
 * 128, and expanding bits for vpmaddubsw and vpaddw 2 for 32.
 *
 *   vpaddw  sums from the first cache  2 a cycle on Haswell to Ice Lake and Zen 2 to 4
 */
#include "x86_avx2.h"

#include <string.h>

enum {
    LANES = 16,
    GROUP = 6, /* inputs that one sum is of */
    N_SUMS = 1 << GROUP,
    PLACE_SHIFT = 2, /* a place is stored as a byte, in units of 8 bytes */
    WORD_GROUPS = 4, /* places read together */
    CHUNK_WORDS = 3, /* of an output, for the inputs that have tables at a time */
    CHUNK_GROUPS = CHUNK_WORDS * WORD_GROUPS,
    CHUNK_INPUTS = CHUNK_GROUPS * GROUP,
    CHUNK_BYTES = CHUNK_INPUTS / 8, /* of a row of weights as in the file */
    WIDE_WORDS = 2,                 /* of int11 codes, whose sums fit into 16 bits */
    ROUND = 3,    /* chunks whose sums fit into 16 bits: 216 codes of -128 to 127, or 0 to 255 */
    BLOCK = 1024, /* outputs at work */
    FEW = 4,      /* tokens for which tables of one token each are faster */
    TOKEN_BLOCK = 16,
};

/* ---- The packing: [chunk, output, group of the chunk] of places ---- */

/* Groups of a row, with more whose codes are 0 up to a whole word. */
static size_t groups_of(uint32_t n_inputs)
{
    size_t word_inputs = WORD_GROUPS * GROUP;
    return (n_inputs + word_inputs - 1) / word_inputs * WORD_GROUPS;
}

static size_t places_bytes(uint32_t n_planes, uint32_t n_rows, uint32_t n_inputs)
{
    return n_planes * n_rows * groups_of(n_inputs);
}

/* The places of the 12 groups that 9 bytes of bits are. */
INLINE __m128i make_places(const uint8_t *bytes, size_t n_bytes)
{
    const __m128i threes = _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, -1, -1, -1, -1);
    __m128i bits;
    if (n_bytes >= sizeof bits) {
        bits = _mm_loadu_si128((const __m128i *)bytes);
    } else {
        uint8_t room[sizeof bits] = {0};
        memcpy(room, bytes, n_bytes);
        bits = _mm_loadu_si128((const __m128i *)room);
    }
    /* Group k of 24 bits is bits 6 k to 6 k + 5; it goes to bits 8 k + 2 to 8 k + 7. */
    __m128i word = _mm_shuffle_epi8(bits, threes);
#define GROUP_PLACES(k)                                                                            \
    _mm_and_si128(_mm_slli_epi32(word, 2 * (k) + PLACE_SHIFT),                                     \
                  _mm_set1_epi32((int)(0xFCU << 8 * (k))))
    return _mm_or_si128(_mm_or_si128(GROUP_PLACES(0), GROUP_PLACES(1)),
                        _mm_or_si128(GROUP_PLACES(2), GROUP_PLACES(3)));
#undef GROUP_PLACES
}

static void pack_places(const void *weights, uint32_t n_planes, uint32_t n_rows, uint32_t n_inputs,
                        void *packed)
{
    size_t row_bytes = ((size_t)n_inputs + 63) / 64 * 8, n_groups = groups_of(n_inputs);
    uint8_t *places = packed;
    for (size_t group = 0; group < n_groups; group += CHUNK_GROUPS) {
        size_t n = n_groups - group < CHUNK_GROUPS ? n_groups - group : CHUNK_GROUPS;
        size_t first = group / CHUNK_GROUPS * CHUNK_BYTES;
        const uint8_t *row = weights;
        for (size_t r = 0; r < (size_t)n_planes * n_rows; r++, row += row_bytes, places += n) {
            uint8_t room[16];
            _mm_storeu_si128((__m128i *)room, make_places(row + first, row_bytes - first));
            memcpy(places, room, n);
        }
    }
}

const bitm_packing bitm_packing__places = {places_bytes, pack_places, TOKEN_BLOCK};

/* ---- Tables ---- */

typedef enum code_kind { CODES_I8, CODES_I11, CODES_I16 } code_kind;

/* All sums of a group's inputs: entry i is that of the codes whose bits i has. */
typedef int16_t group_table[N_SUMS][LANES];

/* A product at work on one tile of tokens. */
typedef struct work {
    _Alignas(64) group_table tables[CHUNK_GROUPS];
    _Alignas(64) int16_t codes[CHUNK_INPUTS][LANES];
    _Alignas(64) int16_t sums[BLOCK][LANES]; /* of a round; 0 between rounds */
    _Alignas(64) int32_t dots[BLOCK][LANES]; /* 0 between blocks */
    int16_t all_sums[LANES];                 /* both of weights that are all ones */
    int32_t all_dots[LANES];
    const bitm_gemm *gemm;
    size_t token; /* the tile's first */
    uint32_t n_tokens;
} work;

const size_t bitm_scratch__places = sizeof(work);

/* The first n of 8 bytes. */
INLINE __m128i load_8(const void *bytes, size_t n)
{
    if (n >= 8) return _mm_loadl_epi64(bytes);
    uint8_t room[8] = {0};
    memcpy(room, bytes, n);
    return _mm_loadl_epi64((const __m128i *)room);
}

/* The first n of 8 words. */
INLINE __m128i load_words(const int16_t *words, size_t n)
{
    return _mm_unpacklo_epi64(load_8(words, (n < 4 ? n : 4) * 2),
                              load_8(words + 4, n > 4 ? (n - 4) * 2 : 0));
}

/* Rows of 4 words become columns. */
INLINE void transpose_i32x4(__m128i rows[4])
{
    __m128i low = _mm_unpacklo_epi32(rows[0], rows[1]);
    __m128i low_more = _mm_unpacklo_epi32(rows[2], rows[3]);
    __m128i high = _mm_unpackhi_epi32(rows[0], rows[1]);
    __m128i high_more = _mm_unpackhi_epi32(rows[2], rows[3]);
    rows[0] = _mm_unpacklo_epi64(low, low_more);
    rows[1] = _mm_unpackhi_epi64(low, low_more);
    rows[2] = _mm_unpacklo_epi64(high, high_more);
    rows[3] = _mm_unpackhi_epi64(high, high_more);
}

INLINE void store_codes(int16_t *place, __m256i codes_i16x16)
{
    _mm256_store_si256((__m256i *)place, codes_i16x16);
}

/* Codes of 8 inputs from `input` on, of which n exist, one vector of tokens each. */
INLINE void make_codes_i8(work *w, size_t input, size_t n, int16_t codes[8][LANES])
{
    const int8_t *row = (const int8_t *)w->gemm->inputs + w->token * w->gemm->n_inputs + input;
    __m128i v[16], u[16];
    for (size_t t = 0; t < 16; t++, row += w->gemm->n_inputs)
        v[t] = t < w->n_tokens ? load_8(row, n) : _mm_setzero_si128();
    for (int i = 0; i < 8; i++)
        u[i] = _mm_unpacklo_epi8(v[2 * i], v[2 * i + 1]);
    for (int i = 0; i < 4; i++) {
        v[i] = _mm_unpacklo_epi16(u[2 * i], u[2 * i + 1]);
        v[i + 4] = _mm_unpackhi_epi16(u[2 * i], u[2 * i + 1]);
    }
    /* v[i]: inputs 0 to 3 of tokens 4 i to 4 i + 3, v[i + 4]: inputs 4 to 7. */
    for (int half = 0; half < 2; half++) {
        transpose_i32x4(v + 4 * half);
        for (int i = 4 * half; i < 4 * half + 4; i++)
            store_codes(codes[i], _mm256_cvtepi8_epi16(v[i]));
    }
}

/* As make_codes_i8, of int11 codes: 8 inputs of 16 tokens, transposed in two halves. */
INLINE void make_codes_i11(work *w, size_t input, size_t n, int16_t codes[8][LANES])
{
    const int16_t *row = (const int16_t *)w->gemm->inputs + w->token * w->gemm->n_inputs + input;
    for (uint32_t half = 0; half < 2; half++) {
        __m128i v[8], u[8];
        for (uint32_t t = 0; t < 8; t++, row += w->gemm->n_inputs)
            v[t] = 8 * half + t < w->n_tokens ? load_words(row, n) : _mm_setzero_si128();
        for (int i = 0; i < 4; i++) {
            u[i] = _mm_unpacklo_epi16(v[2 * i], v[2 * i + 1]);
            u[i + 4] = _mm_unpackhi_epi16(v[2 * i], v[2 * i + 1]);
        }
        transpose_i32x4(u);
        transpose_i32x4(u + 4);
        for (int i = 0; i < 8; i++)
            _mm_store_si128((__m128i *)(void *)(codes[i] + 8 * half), u[i]);
    }
}

INLINE void store_bytes_of(int16_t *place, __m128i codes_i16x8)
{
    __m128i low = _mm_and_si128(codes_i16x8, _mm_set1_epi16(255));
    store_codes(place, _mm256_set_m128i(_mm_srai_epi16(codes_i16x8, 8), low));
}

INLINE void make_codes_i16(work *w, size_t input, size_t n, int16_t codes[8][LANES])
{
    const int16_t *row = (const int16_t *)w->gemm->inputs + w->token * w->gemm->n_inputs + input;
    __m128i v[8], u[8];
    for (size_t t = 0; t < 8; t++, row += w->gemm->n_inputs)
        v[t] = t < w->n_tokens ? load_words(row, n) : _mm_setzero_si128();
    for (int i = 0; i < 4; i++) {
        u[i] = _mm_unpacklo_epi16(v[2 * i], v[2 * i + 1]);
        u[i + 4] = _mm_unpackhi_epi16(v[2 * i], v[2 * i + 1]);
    }
    for (int half = 0; half < 2; half++) {
        transpose_i32x4(u + 4 * half);
        for (int i = 4 * half; i < 4 * half + 4; i++)
            store_bytes_of(codes[i], u[i]);
    }
}

/* Codes of a chunk whose first input is `input`, as far as n_groups go; 0 past the last input. */
INLINE void make_codes(work *w, code_kind kind, size_t input, uint32_t n_groups)
{
    for (size_t i = 0; i < (size_t)n_groups * GROUP; i += 8) {
        size_t n = w->gemm->n_inputs > input + i ? w->gemm->n_inputs - (input + i) : 0;
        if (n == 0)
            memset(w->codes[i], 0, 8 * sizeof w->codes[i]);
        else if (kind == CODES_I8)
            make_codes_i8(w, input + i, n, w->codes + i);
        else if (kind == CODES_I11)
            make_codes_i11(w, input + i, n, w->codes + i);
        else
            make_codes_i16(w, input + i, n, w->codes + i);
    }
}

static void make_tables(work *w, uint32_t n_groups)
{
    for (uint32_t g = 0; g < n_groups; g++) {
        const __m256i *codes = (const __m256i *)w->codes[g * GROUP];
        __m256i *table = (__m256i *)w->tables[g];
        __m256i low[8], high = _mm256_setzero_si256(); /* sums of the first and last three codes */
        low[0] = high;
        for (int k = 0; k < 3; k++)
            for (int i = 0; i < 1 << k; i++)
                low[i | 1 << k] = _mm256_add_epi16(low[i], codes[k]);
        for (int j = 0; j < 8; j++) {
            if (j > 0) /* the highest of its bits, and an entry before */
                high = _mm256_add_epi16(codes[j >= 4   ? 5
                                              : j >= 2 ? 4
                                                       : 3],
                                        table[8 * (j >= 4   ? j - 4
                                                   : j >= 2 ? j - 2
                                                            : 0)]);
            for (int i = 0; i < 8; i++)
                _mm256_store_si256(table + 8 * j + i, _mm256_add_epi16(high, low[i]));
        }
    }
}

/* ---- Sums ---- */

/* tables: of the chunk. */
INLINE void add_place(const uint8_t *tables, uint32_t group, size_t place, __m256i *sum_i16x16)
{
    __asm__("" : "+r"(place)); /* nor add to places what addresses hold for nothing */
    const uint8_t *entry = tables + group * sizeof(group_table) + place * 8;
    *sum_i16x16 =
        _mm256_add_epi16(*sum_i16x16, _mm256_load_si256((const __m256i *)(const void *)entry));
    /* Compilers would add sums from memory to each other first, for which they load them. */
    __asm__("" : "+x"(*sum_i16x16));
}

/* Adds the sums of an output's places in a chunk. */
INLINE void add_places(const uint8_t *tables, const uint8_t *places, const uint32_t n_words,
                       __m256i *sum)
{
    /* They would keep the address of every table, too many for the registers. */
    __asm__("" : "+r"(tables));
#pragma GCC unroll 3
    for (uint32_t i = 0; i < n_words; i++) {
        uint32_t four_places, group = i * WORD_GROUPS;
        memcpy(&four_places, places + i * sizeof four_places, sizeof four_places);
        uint64_t word = four_places; /* of 32 bits, the second byte would be widened twice */
        add_place(tables, group, word & 255, sum);
        add_place(tables, group + 1, word >> 8 & 255, sum);
        word >>= 16;
        add_place(tables, group + 2, word & 255, sum);
        add_place(tables, group + 3, word >> 8, sum);
    }
}

/* Adds a round's sums to dots. */
INLINE void add_round(code_kind kind, __m256i sum_i16x16, int32_t *dots)
{
    __m256i *place = (__m256i *)(void *)dots;
    __m128i low = _mm256_castsi256_si128(sum_i16x16),
            high = _mm256_extracti128_si256(sum_i16x16, 1);
    if (kind != CODES_I16) {
        __m256i first = _mm256_cvtepi16_epi32(low), last = _mm256_cvtepi16_epi32(high);
        _mm256_storeu_si256(place, _mm256_add_epi32(_mm256_loadu_si256(place), first));
        _mm256_storeu_si256(place + 1, _mm256_add_epi32(_mm256_loadu_si256(place + 1), last));
    } else {
        __m256i sum = _mm256_add_epi32(_mm256_cvtepu16_epi32(low),
                                       _mm256_slli_epi32(_mm256_cvtepi16_epi32(high), 8));
        _mm256_storeu_si256(place, _mm256_add_epi32(_mm256_loadu_si256(place), sum));
    }
}

/* Adds a chunk of n_words to the dots of the outputs: of int11 codes, two words at a time. */
INLINE void add_wide_chunk(work *w, const uint8_t *places, uint32_t n_outputs,
                           const uint32_t n_words)
{
    const uint8_t *tables = (const uint8_t *)w->tables;
    const uint32_t n_first = n_words < WIDE_WORDS ? n_words : WIDE_WORDS;
    for (uint32_t o = 0; o < n_outputs; o++, places += n_words * WORD_GROUPS) {
        __m256i sum = _mm256_setzero_si256(), rest = sum;
        add_places(tables, places, n_first, &sum);
        if (n_words > n_first)
            add_places(tables + sizeof(group_table) * WIDE_WORDS * WORD_GROUPS,
                       places + WIDE_WORDS * WORD_GROUPS, n_words - n_first, &rest);
        __m256i low = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(sum));
        __m256i high = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(sum, 1));
        if (n_words > n_first) {
            low = _mm256_add_epi32(low, _mm256_cvtepi16_epi32(_mm256_castsi256_si128(rest)));
            high = _mm256_add_epi32(high, _mm256_cvtepi16_epi32(_mm256_extracti128_si256(rest, 1)));
        }
        __m256i *place = (__m256i *)w->dots[o];
        _mm256_store_si256(place, _mm256_add_epi32(_mm256_load_si256(place), low));
        _mm256_store_si256(place + 1, _mm256_add_epi32(_mm256_load_si256(place + 1), high));
    }
}

/* Adds a chunk of n_words to the sums of the outputs; at the end of a round, those to the dots. */
INLINE void add_chunk(work *w, code_kind kind, const uint8_t *places, uint32_t n_outputs,
                      const uint32_t n_words, const bool ends_round)
{
    const uint8_t *tables = (const uint8_t *)w->tables;
    if (kind == CODES_I11) {
        add_wide_chunk(w, places, n_outputs, n_words);
        return;
    }
    for (uint32_t o = 0; o < n_outputs; o++, places += n_words * WORD_GROUPS) {
        __m256i *place = (__m256i *)w->sums[o];
        __m256i sum = _mm256_load_si256(place);
        add_places(tables, places, n_words, &sum);
        if (ends_round) {
            add_round(kind, sum, w->dots[o]);
            sum = _mm256_setzero_si256();
        }
        _mm256_store_si256(place, sum);
    }
}

/* The same for weights that are all ones. */
INLINE void add_all(work *w, code_kind kind, uint32_t n_groups, bool ends_round)
{
    __m256i *place = (__m256i *)(void *)w->all_sums;
    __m256i sum = _mm256_loadu_si256(place);
    for (uint32_t g = 0; g < n_groups; g++) {
        add_place((const uint8_t *)w->tables, g, (N_SUMS - 1) << PLACE_SHIFT, &sum);
        if (kind != CODES_I11 || (g + 1) % (WIDE_WORDS * WORD_GROUPS) != 0) continue;
        add_round(kind, sum, w->all_dots);
        sum = _mm256_setzero_si256();
    }
    if (ends_round || kind == CODES_I11) {
        add_round(kind, sum, w->all_dots);
        sum = _mm256_setzero_si256();
    }
    _mm256_storeu_si256(place, sum);
}

/* ---- The product ---- */

/* The dots of 8 outputs from place `o` of the block on with 8 tokens from the tile's token `first`
 * on, and zeros for the next block. */
INLINE void take_dots(work *w, uint32_t o, uint32_t first, __m256 dots[8])
{
    __m256i all = _mm256_loadu_si256((const __m256i *)(const void *)(w->all_dots + first));
    for (uint32_t i = 0; i < 8; i++) {
        __m256i *place = (__m256i *)(void *)(w->dots[o + i] + first);
        __m256i dot = _mm256_load_si256(place);
        _mm256_store_si256(place, _mm256_setzero_si256());
        dots[i] = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_add_epi32(dot, dot), all));
    }
    transpose_floats(dots);
}

/* Outputs [output, output + n) of 8 tokens from the tile's token `first` on. */
INLINE void store_tokens(work *w, uint32_t output, uint32_t n, uint32_t first)
{
    const bitm_gemm *gemm = w->gemm;
    const uint32_t n_tokens = smaller(8, w->n_tokens - first);
    const bool is_plain = gemm->row_offset == NULL && gemm->row_base == NULL && !gemm->accumulate;
    epilogue e[8];
    for (uint32_t t = 0; t < n_tokens; t++)
        e[t] = open_epilogue(gemm, w->token + first + t, output);
    for (uint32_t o = 0; o < n; o += 8) {
        __m256 dots[8];
        take_dots(w, o, first, dots);
        if (n - o < 8) {
            for (uint32_t t = 0; t < n_tokens; t++)
                store_outputs(&e[t], o, n - o, dots[t]);
        } else if (!is_plain) {
            for (uint32_t t = 0; t < n_tokens; t++)
                store_outputs(&e[t], o, 8, dots[t]);
        } else { /* the same, without what there is not */
            __m256 scale = _mm256_loadu_ps(e[0].row_scale + o);
            __m256 bias = _mm256_loadu_ps(e[0].bias + o);
            for (uint32_t t = 0; t < n_tokens; t++) {
                __m256 factor = _mm256_mul_ps(scale, _mm256_set1_ps(e[t].step));
                _mm256_storeu_ps(e[t].y + o, _mm256_fmadd_ps(dots[t], factor, bias));
            }
        }
    }
}

/* Outputs [output, output + n_outputs) of the tile, at most BLOCK. */
INLINE void multiply_block(work *w, code_kind kind, uint32_t output, uint32_t n_outputs)
{
    const bitm_gemm *gemm = w->gemm;
    uint32_t n_groups = (uint32_t)groups_of(gemm->n_inputs), round = 0;
    memset(w->all_dots, 0, sizeof w->all_dots);
    for (uint32_t group = 0; group < n_groups; group += CHUNK_GROUPS) {
        uint32_t n = smaller(CHUNK_GROUPS, n_groups - group);
        const uint8_t *places =
            (const uint8_t *)gemm->packed + (size_t)group * gemm->n_rows + (size_t)output * n;
        bool ends_round = ++round == ROUND || group + n == n_groups;
        if (ends_round) round = 0;
        make_codes(w, kind, (size_t)group * GROUP, n);
        make_tables(w, n);
        add_all(w, kind, n, ends_round);
        switch (n / WORD_GROUPS * 2 + ends_round) {
#define CHUNK(words)                                                                               \
    case (words) * 2:                                                                              \
        add_chunk(w, kind, places, n_outputs, words, false);                                       \
        break;                                                                                     \
    case (words) * 2 + 1:                                                                          \
        add_chunk(w, kind, places, n_outputs, words, true);                                        \
        break;
            CHUNK(1)
            CHUNK(2)
            CHUNK(3)
#undef CHUNK
        default:
            break;
        }
    }
    for (uint32_t t = 0; t < w->n_tokens; t += 8)
        store_tokens(w, output, n_outputs, t);
    activate_block(gemm, w->token, w->n_tokens, output, n_outputs);
}

/* For the tokens that are left, tables of one token each, from the file's layout of weights. */
typedef void few_fn(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens, uint32_t output,
                    uint32_t n_outputs);

INLINE void multiply(const bitm_gemm *gemm, code_kind kind, few_fn *few, uint32_t token,
                     uint32_t n_tokens, uint32_t output, uint32_t n_outputs)
{
    const uint32_t tile = kind == CODES_I16 ? LANES / 2 : LANES, end = token + n_tokens;
    const uint32_t n_few = gemm->packed == NULL ? n_tokens : FEW * tile / LANES;
    const uint32_t n_block = (smaller(BLOCK, n_outputs) + 7) / 8 * 8;
    work *w = gemm->scratch;
    if (n_tokens > n_few) {
        memset(w->sums, 0, n_block * sizeof w->sums[0]);
        memset(w->dots, 0, n_block * sizeof w->dots[0]);
        memset(w->all_sums, 0, sizeof w->all_sums);
    }
    for (; end - token > n_few; token += w->n_tokens) {
        w->gemm = gemm;
        w->token = token;
        w->n_tokens = smaller(tile, end - token);
        for (uint32_t o = 0; o < n_outputs; o += BLOCK)
            multiply_block(w, kind, output + o, smaller(BLOCK, n_outputs - o));
    }
    if (token < end) {
        bitm_gemm left = *gemm;
        left.packed = NULL;
        few(&left, token, end - token, output, n_outputs);
    }
}

void bitm_gemm_w1a8__avx2(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens, uint32_t output,
                          uint32_t n_outputs)
{
    multiply(gemm, CODES_I8, bitm_gemm_w1a8_few, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w1a16__avx2(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                           uint32_t output, uint32_t n_outputs)
{
    if (gemm->are_int11)
        multiply(gemm, CODES_I11, bitm_gemm_w1a16_few, token, n_tokens, output, n_outputs);
    else
        multiply(gemm, CODES_I16, bitm_gemm_w1a16_few, token, n_tokens, output, n_outputs);
}
