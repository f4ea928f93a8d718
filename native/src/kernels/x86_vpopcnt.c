/* AVX-512 VPOPCNTDQ products of bits: sign activations, codes in bit planes.
 *
 * A vector holds one 64-bit word of 8 outputs and meets the same word of a token, broadcast, so
 * that lanes are outputs and nothing is summed across them.
 *
 *   vpopcntq      counts, 1 a cycle (port 5 of Intel)
 *   vpternlogq    all that comes before the count, in one operation, 2 a cycle with vpaddq
 *   vpbroadcastq  a token's word: a load alone
 *
 * Three operations on two ports for 8 outputs, 64 inputs and a token: 512 multiply-adds in 1.5
 * cycles, 341 a cycle. */
#include "x86_avx512.h"

#include <string.h>

enum {
    OUTPUTS = 32, /* of a panel: 4 vectors of words */
    VECTORS = 4,
    TOKENS = 4, /* with VECTORS: 16 of the 32 registers are sums */
    BLOCK = 48, /* words of a row brought in order at a time, where weights are not packed */
};

/* ---- The packing: [plane, panel, word, output] ---- */

static size_t words_bytes(uint32_t n_planes, uint32_t n_rows, uint32_t n_inputs)
{
    size_t n_words = ((size_t)n_inputs + 63) / 64, n_panels = (n_rows + OUTPUTS - 1) / OUTPUTS;
    return n_planes * n_panels * n_words * OUTPUTS * sizeof(uint64_t);
}

/* panel [n_words, OUTPUTS] of rows [n_rows], `stride` words from one to the next; rows that are not
 * there get zeros. */
static void make_panel(const uint64_t *rows, size_t stride, uint32_t n_rows, size_t n_words,
                       uint64_t *panel)
{
    for (size_t word = 0; word < n_words; word++)
        for (size_t o = 0; o < OUTPUTS; o++)
            *panel++ = o < n_rows ? rows[o * stride + word] : 0;
}

static void pack_words(const void *weights, uint32_t n_planes, uint32_t n_rows, uint32_t n_inputs,
                       void *packed)
{
    const uint64_t *rows = weights;
    uint64_t *panel = packed;
    size_t n_words = ((size_t)n_inputs + 63) / 64;
    for (uint32_t plane = 0; plane < n_planes; plane++, rows += n_rows * n_words)
        for (uint32_t row = 0; row < n_rows; row += OUTPUTS, panel += n_words * OUTPUTS)
            make_panel(rows + row * n_words, n_words, n_rows - row, n_words, panel);
}

const bitm_packing bitm_packing__words32 = {words_bytes, pack_words, 0};

/* ---- Counts ---- */

/* Counts of a tile: 64 bits in VECTORS vectors for each token. */
typedef struct counts {
    __m512i v[TOKENS][VECTORS];
} counts;

INLINE void clear(counts *c, const uint32_t n_tokens)
{
#pragma GCC unroll 4
    for (uint32_t t = 0; t < n_tokens; t++)
#pragma GCC unroll 4
        for (uint32_t k = 0; k < VECTORS; k++)
            c->v[t][k] = _mm512_setzero_si512();
}

/* Adds factor * counts to dots. */
INLINE void add_counts(counts *dots, const counts *more, int32_t factor, const uint32_t n_tokens)
{
#pragma GCC unroll 4
    for (uint32_t t = 0; t < n_tokens; t++)
#pragma GCC unroll 4
        for (uint32_t k = 0; k < VECTORS; k++)
            dots->v[t][k] = _mm512_add_epi64(
                dots->v[t][k], _mm512_mul_epi32(more->v[t][k], _mm512_set1_epi64(factor)));
}

/* Adds factor * popcount(weights AND plane); planes of tokens are `stride` words apart. */
INLINE void count_common(const uint64_t *panel, const uint64_t *planes, size_t stride,
                         uint32_t n_words, int32_t factor, const uint32_t n_tokens, counts *dots)
{
    counts sums;
    clear(&sums, n_tokens);
    for (size_t word = 0; word < n_words; word++, panel += OUTPUTS) {
#pragma GCC unroll 4
        for (uint32_t t = 0; t < n_tokens; t++) {
            __m512i x = _mm512_set1_epi64((long long)planes[t * stride + word]);
#pragma GCC unroll 4
            for (uint32_t k = 0; k < VECTORS; k++) {
                __m512i common = _mm512_and_si512(x, _mm512_loadu_si512(panel + 8 * k));
                sums.v[t][k] = _mm512_add_epi64(sums.v[t][k], _mm512_popcnt_epi64(common));
            }
        }
    }
    add_counts(dots, &sums, factor, n_tokens);
}

/* Adds factor * popcount((weights XOR sign) AND nonzero). */
INLINE void count_unequal(const uint64_t *panel, const uint64_t *nonzero, const uint64_t *sign,
                          size_t stride, uint32_t n_words, int32_t factor, const uint32_t n_tokens,
                          counts *dots)
{
    enum { FIRST_XOR_SECOND_AND_THIRD = 0x28 };
    counts sums;
    clear(&sums, n_tokens);
    for (size_t word = 0; word < n_words; word++, panel += OUTPUTS) {
#pragma GCC unroll 4
        for (uint32_t t = 0; t < n_tokens; t++) {
            __m512i s = _mm512_set1_epi64((long long)sign[t * stride + word]);
            __m512i n = _mm512_set1_epi64((long long)nonzero[t * stride + word]);
#pragma GCC unroll 4
            for (uint32_t k = 0; k < VECTORS; k++) {
                __m512i unequal = _mm512_ternarylogic_epi64(_mm512_loadu_si512(panel + 8 * k), s, n,
                                                            FIRST_XOR_SECOND_AND_THIRD);
                sums.v[t][k] = _mm512_add_epi64(sums.v[t][k], _mm512_popcnt_epi64(unequal));
            }
        }
    }
    add_counts(dots, &sums, factor, n_tokens);
}

/* ---- The product ---- */

/* A product at work on one tile of tokens. */
typedef struct work {
    const bitm_gemm *gemm;
    code_kind kind;
    bool ternary;
    size_t n_words;         /* of a row */
    const uint64_t *planes; /* of the tile's first token */
    size_t stride;          /* words from token to token */
} work;

/* A ternary product with signs adds up where both are positive or both negative. */
INLINE void add_ternary_signs(const uint64_t *nonzero, const uint64_t *positive,
                              const uint64_t *planes, size_t n_all_words, size_t stride,
                              uint32_t n_words, const uint32_t n_tokens, counts *dots)
{
    uint64_t plus[TOKENS][BLOCK], minus[TOKENS][BLOCK];
    for (uint32_t t = 0; t < n_tokens; t++, planes += stride)
        for (uint32_t i = 0; i < n_words; i++) {
            plus[t][i] = planes[i] & planes[n_all_words + i];
            minus[t][i] = planes[i] & ~planes[n_all_words + i];
        }
    count_common(positive, plus[0], BLOCK, n_words, 2, n_tokens, dots);
    count_common(nonzero, plus[0], BLOCK, n_words, -1, n_tokens, dots);
    count_common(positive, minus[0], BLOCK, n_words, -2, n_tokens, dots);
    count_common(nonzero, minus[0], BLOCK, n_words, 1, n_tokens, dots);
}

/* Adds the products with words [word, word + n_words) of a panel. */
INLINE void add_block(const work *w, const uint64_t *nonzero, const uint64_t *positive, size_t word,
                      uint32_t n_words, const uint32_t n_tokens, counts *dots)
{
    const uint64_t *planes = w->planes + word;
    if (w->kind == CODES_SIGN && w->ternary) {
        add_ternary_signs(nonzero, positive, planes, w->n_words, w->stride, n_words, n_tokens,
                          dots);
    } else if (w->kind == CODES_SIGN) {
        count_unequal(positive, planes, planes + w->n_words, w->stride, n_words, -2, n_tokens,
                      dots);
    } else {
        for (uint32_t p = 0; p < w->gemm->n_planes; p++, planes += w->n_words) {
            int32_t weight = w->gemm->plane_weights[p];
            count_common(positive, planes, w->stride, n_words, 2 * weight, n_tokens, dots);
            if (w->ternary)
                count_common(nonzero, planes, w->stride, n_words, -weight, n_tokens, dots);
        }
    }
}

/* Words [word, word + n_words) of the panel that starts with output `output`: where they are
 * packed, or brought in order in `room`. */
static const uint64_t *find_panel(const work *w, uint32_t plane, uint32_t output, size_t word,
                                  uint32_t n_words, uint64_t *room)
{
    const bitm_gemm *gemm = w->gemm;
    if (gemm->packed != NULL) {
        size_t n_panels = ((size_t)gemm->n_rows + OUTPUTS - 1) / OUTPUTS;
        size_t panel = plane * n_panels + output / OUTPUTS;
        return (const uint64_t *)gemm->packed + (panel * w->n_words + word) * OUTPUTS;
    }
    const uint64_t *rows = (const uint64_t *)gemm->weights +
                           ((size_t)plane * gemm->n_rows + output) * w->n_words + word;
    make_panel(rows, w->n_words, gemm->n_rows - output, n_words, room);
    return room;
}

/* What a token's sum has besides the counts: bits that are not 0, or less the sum of codes, which
 * weights of -1 and 1 count with 1 where bits of weights count 2. */
static int32_t constant_part(const work *w, size_t token)
{
    if (w->ternary) return 0;
    if (w->kind == CODES_PLANES) return -w->gemm->code_sum[token];
    const uint64_t *nonzero = (const uint64_t *)w->gemm->inputs + token * w->stride;
    int64_t count = 0;
    for (size_t i = 0; i < w->n_words; i++)
        count += __builtin_popcountll(nonzero[i]);
    return (int32_t)count;
}

INLINE void multiply_tile(const work *w, uint32_t token, uint32_t first, __mmask16 low,
                          __mmask16 high, const uint32_t n_tokens)
{
    _Alignas(64) uint64_t room[2][BLOCK * OUTPUTS];
    counts dots;
    clear(&dots, n_tokens);
    for (size_t word = 0; word < w->n_words; word += BLOCK) {
        uint32_t n_words = smaller(BLOCK, (uint32_t)(w->n_words - word));
        const uint64_t *nonzero = find_panel(w, 0, first, word, n_words, room[0]);
        const uint64_t *positive =
            w->ternary ? find_panel(w, 1, first, word, n_words, room[1]) : nonzero;
        add_block(w, nonzero, positive, word, n_words, n_tokens, &dots);
    }
    epilogue e[2] = {begin_epilogue(w->gemm, first, low),
                     begin_epilogue(w->gemm, first + 16, high)};
#pragma GCC unroll 4
    for (uint32_t t = 0; t < n_tokens; t++) {
        __m512i part = _mm512_set1_epi32(constant_part(w, token + t));
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            __m256i eight = _mm512_cvtepi64_epi32(dots.v[t][2 * half]);
            __m256i next = _mm512_cvtepi64_epi32(dots.v[t][2 * half + 1]);
            __m512i dot = _mm512_inserti64x4(_mm512_castsi256_si512(eight), next, 1);
            store_outputs(w->gemm, &e[half], token + t,
                          _mm512_cvtepi32_ps(_mm512_add_epi32(dot, part)));
        }
    }
}

INLINE void multiply(const bitm_gemm *gemm, code_kind kind, bool ternary, uint32_t token,
                     uint32_t n_tokens, uint32_t output, uint32_t n_outputs)
{
    work w = {.gemm = gemm, .kind = kind, .ternary = ternary};
    uint32_t end = output + n_outputs;
    w.n_words = ((size_t)gemm->n_inputs + 63) / 64;
    w.stride = (kind == CODES_SIGN ? 2 : gemm->n_planes) * w.n_words;
    for (uint32_t o = output / OUTPUTS * OUTPUTS; o < end; o += OUTPUTS) {
        __mmask16 low = outputs_between(o, output, end);
        __mmask16 high = outputs_between(o + 16, output, end);
        uint32_t t = token;
        for (; t + TOKENS <= token + n_tokens; t += TOKENS) {
            w.planes = (const uint64_t *)gemm->inputs + t * w.stride;
            multiply_tile(&w, t, o, low, high, TOKENS);
        }
        for (; t < token + n_tokens; t++) {
            w.planes = (const uint64_t *)gemm->inputs + t * w.stride;
            multiply_tile(&w, t, o, low, high, 1);
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
