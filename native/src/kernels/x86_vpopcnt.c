/* AVX-512 VPOPCNTDQ products of bits: sign activations, codes in bit planes.
 *
 * A vector holds 32 bits of 16 outputs and meets the same bits of a token, broadcast, so that lanes
 * are outputs and nothing is summed across them.
 *
 *   vpopcntd      counts, 1 a cycle (port 5 of Intel)
 *   vpternlogd    all that comes before the count, in one operation, 2 a cycle with vpaddd
 *   vpbroadcastd  a token's bits: a load alone
 *
 * Three operations on two ports for 16 outputs, 32 inputs and a token: 512 multiply-adds in 1.5
 * cycles, 341 a cycle. */
#include "x86_avx512.h"

#include <string.h>

enum {
    VECTORS = 2,
    OUTPUTS = 16 * VECTORS, /* of a panel */
    TOKENS = 8,             /* with VECTORS: 16 of the 32 registers are sums */
    BLOCK = 48,             /* words of a row brought in order at a time, if they are not packed */
    SPAN = 128,             /* tokens whose constant parts are found at a time */
    UNEQUAL = -2,           /* what a bit that differs adds to a sum of signs */
};

/* ---- The packing: [plane, panel, word, output], words of 32 inputs ---- */

/* Words of a row: those of 64 inputs in a file, cut in two. */
static size_t words_of(uint32_t n_inputs)
{
    return ((size_t)n_inputs + 63) / 64 * 2;
}

static size_t words_bytes(uint32_t n_planes, uint32_t n_rows, uint32_t n_inputs)
{
    size_t n_panels = ((size_t)n_rows + OUTPUTS - 1) / OUTPUTS;
    return n_planes * n_panels * words_of(n_inputs) * OUTPUTS * sizeof(uint32_t);
}

INLINE uint32_t load_word(const uint8_t *bits, size_t word)
{
    uint32_t value;
    memcpy(&value, bits + word * sizeof value, sizeof value);
    return value;
}

/* panel [n_words, OUTPUTS] of rows [n_rows], `stride` bytes from one to the next; rows that are not
 * there get zeros. */
static void make_panel(const uint8_t *rows, size_t stride, uint32_t n_rows, size_t n_words,
                       uint32_t *panel)
{
    for (size_t word = 0; word < n_words; word++)
        for (size_t o = 0; o < OUTPUTS; o++)
            *panel++ = o < n_rows ? load_word(rows + o * stride, word) : 0;
}

static void pack_words(const void *weights, uint32_t n_planes, uint32_t n_rows, uint32_t n_inputs,
                       void *packed)
{
    const uint8_t *rows = weights;
    uint32_t *panel = packed;
    size_t n_words = words_of(n_inputs), stride = n_words * sizeof *panel;
    for (uint32_t plane = 0; plane < n_planes; plane++, rows += n_rows * stride)
        for (uint32_t row = 0; row < n_rows; row += OUTPUTS, panel += n_words * OUTPUTS)
            make_panel(rows + row * stride, stride, n_rows - row, n_words, panel);
}

const bitm_packing bitm_packing__words32 = {words_bytes, pack_words, TOKENS};

/* ---- Counts ---- */

/* A product at work on one tile of tokens. */
typedef struct work {
    const bitm_gemm *gemm;
    code_kind kind;
    bool ternary;
    uint32_t n_words;      /* of a row */
    const uint8_t *planes; /* of the tile's first token */
    size_t stride;         /* bytes from token to token */
    _Alignas(64) int32_t dots[TOKENS][OUTPUTS];
} work;

/* Sums of a tile, so far. */
typedef struct counts {
    __m512i v[TOKENS][VECTORS];
} counts;

INLINE void clear(counts *sums, const uint32_t n_tokens)
{
#pragma GCC unroll 8
    for (uint32_t t = 0; t < n_tokens; t++)
#pragma GCC unroll 2
        for (uint32_t k = 0; k < VECTORS; k++)
            sums->v[t][k] = _mm512_setzero_si512();
}

/* Adds factor * sums to the tile's dots. */
INLINE void add_counts(work *w, const counts *sums, int32_t factor, const uint32_t n_tokens,
                       bool is_first)
{
#pragma GCC unroll 8
    for (uint32_t t = 0; t < n_tokens; t++)
#pragma GCC unroll 2
        for (uint32_t k = 0; k < VECTORS; k++) {
            int32_t *dots = w->dots[t] + 16 * k;
            __m512i sum = _mm512_mullo_epi32(sums->v[t][k], _mm512_set1_epi32(factor));
            if (!is_first) sum = _mm512_add_epi32(sum, _mm512_load_si512(dots));
            _mm512_store_si512(dots, sum);
        }
}

/* popcount(weights AND plane); planes of tokens are `stride` bytes apart. */
INLINE void count_common(const uint32_t *panel, const uint8_t *planes, size_t stride,
                         uint32_t n_words, const uint32_t n_tokens, counts *sums)
{
    clear(sums, n_tokens);
    for (size_t word = 0; word < n_words; word++, panel += OUTPUTS) {
#pragma GCC unroll 8
        for (uint32_t t = 0; t < n_tokens; t++) {
            __m512i x = _mm512_set1_epi32((int32_t)load_word(planes + t * stride, word));
#pragma GCC unroll 2
            for (uint32_t k = 0; k < VECTORS; k++) {
                __m512i common = _mm512_and_si512(x, _mm512_loadu_si512(panel + 16 * k));
                sums->v[t][k] = _mm512_add_epi32(sums->v[t][k], _mm512_popcnt_epi32(common));
            }
        }
    }
}

/* popcount((weights XOR sign) AND nonzero). */
INLINE void count_unequal(const uint32_t *panel, const uint8_t *nonzero, const uint8_t *sign,
                          size_t stride, uint32_t n_words, const uint32_t n_tokens, counts *sums)
{
    enum { FIRST_XOR_SECOND_AND_THIRD = 0x28 };
    clear(sums, n_tokens);
    for (size_t word = 0; word < n_words; word++, panel += OUTPUTS) {
#pragma GCC unroll 8
        for (uint32_t t = 0; t < n_tokens; t++) {
            __m512i s = _mm512_set1_epi32((int32_t)load_word(sign + t * stride, word));
            __m512i n = _mm512_set1_epi32((int32_t)load_word(nonzero + t * stride, word));
#pragma GCC unroll 2
            for (uint32_t k = 0; k < VECTORS; k++) {
                __m512i unequal = _mm512_ternarylogic_epi32(_mm512_loadu_si512(panel + 16 * k), s,
                                                            n, FIRST_XOR_SECOND_AND_THIRD);
                sums->v[t][k] = _mm512_add_epi32(sums->v[t][k], _mm512_popcnt_epi32(unequal));
            }
        }
    }
}

/* ---- The product ---- */

/* Adds factor * the common bits to the tile's dots. */
INLINE void add_common(work *w, const uint32_t *panel, const uint8_t *planes, size_t stride,
                       uint32_t n_words, int32_t factor, const uint32_t n_tokens, bool is_first)
{
    counts sums;
    count_common(panel, planes, stride, n_words, n_tokens, &sums);
    add_counts(w, &sums, factor, n_tokens, is_first);
}

/* A ternary product with signs adds up where both are positive or both negative. */
INLINE void add_ternary_signs(work *w, const uint32_t *nonzero, const uint32_t *positive,
                              const uint8_t *planes, uint32_t n_words, const uint32_t n_tokens,
                              bool is_first)
{
    uint32_t plus[TOKENS][BLOCK], minus[TOKENS][BLOCK];
    const uint8_t *of_plus = (const uint8_t *)plus, *of_minus = (const uint8_t *)minus;
    for (uint32_t t = 0; t < n_tokens; t++, planes += w->stride)
        for (uint32_t i = 0; i < n_words; i++) {
            uint32_t exists = load_word(planes, i), sign = load_word(planes, w->n_words + i);
            plus[t][i] = exists & sign;
            minus[t][i] = exists & ~sign;
        }
    add_common(w, positive, of_plus, sizeof *plus, n_words, 2, n_tokens, is_first);
    add_common(w, nonzero, of_plus, sizeof *plus, n_words, -1, n_tokens, false);
    add_common(w, positive, of_minus, sizeof *minus, n_words, -2, n_tokens, false);
    add_common(w, nonzero, of_minus, sizeof *minus, n_words, 1, n_tokens, false);
}

/* Adds the products with words [word, word + n_words) of a panel. */
INLINE void add_block(work *w, const uint32_t *nonzero, const uint32_t *positive, size_t word,
                      uint32_t n_words, const uint32_t n_tokens, bool is_first)
{
    const size_t plane_bytes = w->n_words * sizeof *positive;
    const uint8_t *planes = w->planes + word * sizeof *positive;
    if (w->kind == CODES_SIGN && w->ternary) {
        add_ternary_signs(w, nonzero, positive, planes, n_words, n_tokens, is_first);
    } else if (w->kind == CODES_SIGN) {
        counts sums;
        count_unequal(positive, planes, planes + plane_bytes, w->stride, n_words, n_tokens, &sums);
        add_counts(w, &sums, UNEQUAL, n_tokens, is_first);
    } else {
        for (uint32_t p = 0; p < w->gemm->n_planes; p++, planes += plane_bytes) {
            int32_t weight = w->gemm->plane_weights[p];
            add_common(w, positive, planes, w->stride, n_words, 2 * weight, n_tokens, is_first);
            is_first = false;
            if (w->ternary)
                add_common(w, nonzero, planes, w->stride, n_words, -weight, n_tokens, false);
        }
    }
}

/* Words [word, word + n_words) of the panel that starts with output `output`: where they are
 * packed, or brought in order in `room`. */
static const uint32_t *find_panel(const work *w, uint32_t plane, uint32_t output, size_t word,
                                  uint32_t n_words, uint32_t *room)
{
    const bitm_gemm *gemm = w->gemm;
    if (gemm->packed != NULL) {
        size_t n_panels = ((size_t)gemm->n_rows + OUTPUTS - 1) / OUTPUTS;
        size_t panel = plane * n_panels + output / OUTPUTS;
        return (const uint32_t *)gemm->packed + (panel * w->n_words + word) * OUTPUTS;
    }
    const size_t row_bytes = w->n_words * sizeof *room;
    const uint8_t *rows = (const uint8_t *)gemm->weights +
                          ((size_t)plane * gemm->n_rows + output) * row_bytes + word * sizeof *room;
    make_panel(rows, row_bytes, gemm->n_rows - output, n_words, room);
    return room;
}

/* What a token's sum has besides the counts: bits that are not 0, or less the sum of codes, which
 * weights of -1 and 1 count with 1 where bits of weights count 2. */
static int32_t constant_part(const work *w, size_t token)
{
    if (w->ternary) return 0;
    if (w->kind == CODES_PLANES) return -w->gemm->code_sum[token];
    const uint8_t *nonzero = (const uint8_t *)w->gemm->inputs + token * w->stride;
    int32_t count = 0;
    for (size_t i = 0; i < w->n_words; i++)
        count += __builtin_popcount(load_word(nonzero, i));
    return count;
}

/* 16 outputs of the tile's tokens, the first of which is `token`. */
INLINE void store_tile(const work *w, uint32_t token, uint32_t n_tokens, const int32_t *parts,
                       uint32_t output, __mmask16 lanes, const bool plain,
                       const uint32_t activation)
{
    /* Stores of outputs do not change it, which the compiler knows of a copy alone. */
    const bitm_gemm gemm = *w->gemm;
    const epilogue e = begin_epilogue(&gemm, output, lanes);
    for (uint32_t t = 0; t < n_tokens; t++) {
        __m512i dot = _mm512_load_si512(w->dots[t] + output % OUTPUTS);
        dot = _mm512_add_epi32(dot, _mm512_set1_epi32(parts[t]));
        finish_outputs(&gemm, &e, token + t, _mm512_cvtepi32_ps(dot), plain, activation);
    }
}

/* Whether a panel's sums are counts of one plane, and its outputs are those numbers scaled. */
INLINE bool is_simple(const work *w)
{
    const bitm_gemm *gemm = w->gemm;
    return !w->ternary && (w->kind == CODES_SIGN || gemm->n_planes == 1) && gemm->packed != NULL &&
           is_plain(gemm) && gemm->activation == BITM_ACTIVATION_NONE;
}

/* As multiply_tile, of what is simple: counts become outputs in registers. */
INLINE void multiply_simple_tile(const work *w, uint32_t token, const int32_t *parts,
                                 uint32_t first, uint32_t output, uint32_t end,
                                 const uint32_t n_tokens)
{
    const bitm_gemm gemm = *w->gemm;
    const uint8_t *planes = w->planes;
    const uint32_t *panel = find_panel(w, 0, first, 0, w->n_words, NULL);
    int32_t factor = UNEQUAL;
    counts sums;
    if (w->kind == CODES_SIGN) {
        count_unequal(panel, planes, planes + w->n_words * sizeof *panel, w->stride, w->n_words,
                      n_tokens, &sums);
    } else {
        count_common(panel, planes, w->stride, w->n_words, n_tokens, &sums);
        factor = 2 * gemm.plane_weights[0];
    }
#pragma GCC unroll 2
    for (uint32_t k = 0; k < VECTORS; k++) {
        const __mmask16 lanes = outputs_between(first + 16 * k, output, end);
        if (lanes == 0) continue;
        const epilogue e = begin_epilogue(&gemm, first + 16 * k, lanes);
#pragma GCC unroll 8
        for (uint32_t t = 0; t < n_tokens; t++) {
            __m512i dot = _mm512_mullo_epi32(sums.v[t][k], _mm512_set1_epi32(factor));
            dot = _mm512_add_epi32(dot, _mm512_set1_epi32(parts[t]));
            finish_outputs(&gemm, &e, token + t, _mm512_cvtepi32_ps(dot), true,
                           BITM_ACTIVATION_NONE);
        }
    }
}

/* Tokens of the tile and the panel that starts with output `first`, of [output, end). */
INLINE void multiply_tile(work *w, uint32_t token, const int32_t *parts, uint32_t first,
                          uint32_t output, uint32_t end, const uint32_t n_tokens)
{
    const bitm_gemm *gemm = w->gemm;
    _Alignas(64) uint32_t room[2][BLOCK * OUTPUTS];
    w->planes = (const uint8_t *)gemm->inputs + token * w->stride;
    if (is_simple(w)) {
        multiply_simple_tile(w, token, parts, first, output, end, n_tokens);
        return;
    }
    for (uint32_t word = 0; word < w->n_words; word += BLOCK) {
        uint32_t n_words = smaller(BLOCK, w->n_words - word);
        const uint32_t *nonzero = find_panel(w, 0, first, word, n_words, room[0]);
        const uint32_t *positive =
            w->ternary ? find_panel(w, 1, first, word, n_words, room[1]) : nonzero;
        add_block(w, nonzero, positive, word, n_words, n_tokens, word == 0);
    }
    for (uint32_t o = first; o < first + OUTPUTS; o += 16) {
        __mmask16 lanes = outputs_between(o, output, end);
        if (lanes == 0) continue;
        if (is_plain(gemm) && gemm->activation == BITM_ACTIVATION_NONE)
            store_tile(w, token, n_tokens, parts, o, lanes, true, BITM_ACTIVATION_NONE);
        else if (is_plain(gemm) && gemm->activation == BITM_ACTIVATION_GELU)
            store_tile(w, token, n_tokens, parts, o, lanes, true, BITM_ACTIVATION_GELU);
        else
            store_tile(w, token, n_tokens, parts, o, lanes, false, gemm->activation);
    }
}

INLINE void multiply(const bitm_gemm *gemm, code_kind kind, bool ternary, uint32_t token,
                     uint32_t n_tokens, uint32_t output, uint32_t n_outputs)
{
    work w = {.gemm = gemm, .kind = kind, .ternary = ternary};
    const uint32_t end_token = token + n_tokens, end = output + n_outputs;
    w.n_words = (uint32_t)words_of(gemm->n_inputs);
    w.stride = (kind == CODES_SIGN ? 2 : gemm->n_planes) * w.n_words * sizeof(uint32_t);
    for (uint32_t begin = token; begin < end_token; begin += SPAN) {
        const uint32_t n = smaller(SPAN, end_token - begin);
        int32_t parts[SPAN];
        for (uint32_t t = 0; t < n; t++)
            parts[t] = constant_part(&w, begin + t);
        for (uint32_t o = output / OUTPUTS * OUTPUTS; o < end; o += OUTPUTS) {
            uint32_t t = 0;
            for (; t + TOKENS <= n; t += TOKENS)
                multiply_tile(&w, begin + t, parts + t, o, output, end, TOKENS);
            if (t + TOKENS / 2 <= n) {
                multiply_tile(&w, begin + t, parts + t, o, output, end, TOKENS / 2);
                t += TOKENS / 2;
            }
            for (; t < n; t++)
                multiply_tile(&w, begin + t, parts + t, o, output, end, 1);
        }
    }
}

void bitm_gemm_w1sign__vpopcnt(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                               uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, CODES_SIGN, false, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2sign__vpopcnt(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                               uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, CODES_SIGN, true, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w1planes__vpopcnt(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                                 uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, CODES_PLANES, false, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2planes__vpopcnt(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                                 uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, CODES_PLANES, true, token, n_tokens, output, n_outputs);
}

/* ---- Products of planes: a row in each 64-bit lane of a result ---- */

/* A word of each of 8 rows, which are `stride` words apart; of fewer, the last one again. */
INLINE __m512i word_of_rows(const uint64_t *words, size_t stride, uint32_t n_rows)
{
    uint64_t w[8];
    if (stride == 1) return _mm512_maskz_loadu_epi64((__mmask8)first_lanes(n_rows), words);
    for (uint32_t r = 0; r < 8; r++)
        w[r] = words[smaller(r, n_rows - 1) * stride];
    return _mm512_set_epi64((int64_t)w[7], (int64_t)w[6], (int64_t)w[5], (int64_t)w[4],
                            (int64_t)w[3], (int64_t)w[2], (int64_t)w[1], (int64_t)w[0]);
}

/* The sum of each of 8 vectors: three times, halves of two are added side by side. */
INLINE __m512i sums_of(__m512i v[8])
{
    for (int i = 0; i < 4; i++)
        v[i] = _mm512_add_epi64(_mm512_unpacklo_epi64(v[2 * i], v[2 * i + 1]),
                                _mm512_unpackhi_epi64(v[2 * i], v[2 * i + 1]));
    for (int n = 2; n > 0; n /= 2)
        for (int i = 0; i < n; i++)
            v[i] = _mm512_add_epi64(_mm512_shuffle_i64x2(v[2 * i], v[2 * i + 1], 0x88),
                                    _mm512_shuffle_i64x2(v[2 * i], v[2 * i + 1], 0xDD));
    return v[0];
}

/* Bits that x [n_words] shares with each of 8 rows. */
INLINE __m512i shared_bits(const uint64_t *x, const uint64_t *rows, size_t stride, uint32_t n_words,
                           uint32_t n_rows)
{
    __m512i of_row[8];
    if (n_words == 1)
        return _mm512_popcnt_epi64(
            _mm512_and_si512(_mm512_set1_epi64((int64_t)x[0]), word_of_rows(rows, stride, n_rows)));
    for (uint32_t r = 0; r < 8; r++)
        of_row[r] = _mm512_setzero_si512();
    for (uint32_t word = 0; word < n_words; word += 8) {
        __mmask8 exist = (__mmask8)first_lanes(smaller(8, n_words - word));
        __m512i x_words = _mm512_maskz_loadu_epi64(exist, x + word);
        for (uint32_t r = 0; r < 8; r++) {
            const uint64_t *row = rows + smaller(r, n_rows - 1) * stride + word;
            __m512i both = _mm512_and_si512(x_words, _mm512_maskz_loadu_epi64(exist, row));
            of_row[r] = _mm512_add_epi64(of_row[r], _mm512_popcnt_epi64(both));
        }
    }
    return sums_of(of_row);
}

void bitm_dot_planes__vpopcnt(const bitm_planes *a, const bitm_planes *b, uint32_t n_words,
                              uint32_t n_rows, int32_t *dots)
{
    size_t stride = (size_t)b->n_planes * n_words;
    for (uint32_t j = 0; j < n_rows; j += 8) {
        uint32_t n = smaller(8, n_rows - j);
        __m512i sum = _mm512_setzero_si512();
        for (uint32_t q = 0; q < b->n_planes; q++) {
            const uint64_t *rows = b->bits + j * stride + q * (size_t)n_words;
            __m512i part = _mm512_setzero_si512();
            for (uint32_t p = 0; p < a->n_planes; p++) {
                const uint64_t *x = a->bits + p * (size_t)n_words;
                __m512i count = shared_bits(x, rows, stride, n_words, n);
                __m512i weight = _mm512_set1_epi64(a->weights[p]);
                part = _mm512_add_epi64(part, _mm512_mul_epi32(count, weight));
            }
            /* Low halves alone count, as far as 32 bits go. */
            sum = _mm512_add_epi64(sum, _mm512_mul_epi32(part, _mm512_set1_epi64(b->weights[q])));
        }
        _mm512_mask_cvtepi64_storeu_epi32(dots + j, (__mmask8)first_lanes(n), sum);
    }
}
