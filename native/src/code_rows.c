#include "code_rows.h"

#include <string.h>

#include "quantizer.h"

bool bitm_is_sign(const bitm_file_quantizer *quantizer)
{
    return quantizer->kind == BITM_QUANTIZER_SIGN;
}

bitm_planes bitm_planes_of(const bitm_file_quantizer *quantizer, const uint64_t *bits)
{
    static const int32_t of_signs[] = {-1, 2}; /* nonzero, positive */
    bitm_planes planes = {.bits = bits, .n_planes = 2, .weights = of_signs};
    if (!bitm_is_sign(quantizer))
        planes.n_planes = bitm_quantizer_planes(quantizer, &planes.weights);
    return planes;
}

uint32_t bitm_n_planes(const bitm_file_quantizer *quantizer)
{
    return quantizer != NULL ? bitm_planes_of(quantizer, NULL).n_planes : 0;
}

static size_t words_of(uint32_t n)
{
    return ((size_t)n + 63) / 64;
}

static void open_rows(bitm_code_rows *rows, const bitm_file_quantizer *quantizer, uint32_t n_rows,
                      uint32_t n)
{
    rows->planes = bitm_planes_of(quantizer, rows->bits);
    rows->n_rows = n_rows;
    rows->n = n;
    rows->are_weights = false;
    rows->packed = NULL;
}

void bitm_code_rows_copy(bitm_code_rows *rows, const bitm_file_quantizer *quantizer,
                         const uint64_t *planes, size_t stride, uint32_t n_rows, uint32_t n)
{
    open_rows(rows, quantizer, n_rows, n);
    const size_t row_words = rows->planes.n_planes * words_of(n);
    for (size_t i = 0; i < n_rows; i++)
        memcpy(rows->bits + i * row_words, planes + i * stride, row_words * sizeof *planes);
}

/* Bit j of word i <-> bit i of word j: squares of 32, then 16, ... bits change places. */
static void transpose(uint64_t words[64])
{
    uint64_t low = UINT64_MAX >> 32;
    for (int n = 32; n > 0; n /= 2, low ^= low << n)
        for (int i = 0; i < 64; i = (i + n + 1) & ~n) {
            uint64_t moved = (words[i] >> n ^ words[i + n]) & low;
            words[i] ^= moved << n;
            words[i + n] ^= moved;
        }
}

/* The first n of 64 bits; n is at least 1. */
static uint64_t first_bits(size_t n)
{
    return n < 64 ? (UINT64_C(1) << n) - 1 : UINT64_MAX;
}

/* Transposes n words of n_bits.  All ones, as of signs that are nowhere 0, are soon transposed. */
static void transpose_part(uint64_t square[64], size_t n, size_t n_bits)
{
    uint64_t all = first_bits(n_bits);
    for (size_t i = 0; i < n; i++)
        all &= square[i];
    if (all != first_bits(n_bits)) {
        transpose(square);
        return;
    }
    for (size_t i = 0; i < n_bits; i++)
        square[i] = first_bits(n);
}

static size_t smaller_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

void bitm_code_rows_transpose(bitm_code_rows *rows, const bitm_file_quantizer *quantizer,
                              const uint64_t *planes, size_t stride, uint32_t n_rows, uint32_t n)
{
    open_rows(rows, quantizer, n_rows, n);
    const size_t n_planes = rows->planes.n_planes, n_words = words_of(n);
    for (size_t p = 0; p < n_planes; p++)
        for (size_t column = 0; column < words_of(n_rows); column++)
            for (size_t word = 0; word < n_words; word++) {
                uint64_t square[64] = {0};
                const uint64_t *from = planes + p * words_of(n_rows) + column + 64 * word * stride;
                const size_t n_down = smaller_size(64, n - 64 * word);
                const size_t n_across = smaller_size(64, n_rows - 64 * column);
                for (size_t i = 0; i < n_down; i++)
                    square[i] = from[i * stride];
                transpose_part(square, n_down, n_across);
                uint64_t *to = rows->bits + (64 * column * n_planes + p) * n_words + word;
                for (size_t i = 0; i < n_across; i++)
                    to[i * n_planes * n_words] = square[i];
            }
}

/* Whether all of n codes of a plane are 1. */
static bool is_full(const uint64_t *plane, uint32_t n)
{
    for (; n >= 64; n -= 64, plane++)
        if (*plane != UINT64_MAX) return false;
    return n == 0 || *plane == first_bits(n);
}

void bitm_code_rows_weigh(bitm_code_rows *rows, const bitm_file_quantizer *quantizer,
                          const bitm_packing *packing)
{
    static const int32_t of_positive[] = {2};
    const size_t n_words = words_of(rows->n);
    if (!bitm_is_sign(quantizer)) return;
    for (size_t i = 0; i < rows->n_rows; i++)
        if (!is_full(rows->bits + 2 * i * n_words, rows->n)) return;
    for (size_t i = 0; i < rows->n_rows; i++)
        memcpy(rows->bits + i * n_words, rows->bits + (2 * i + 1) * n_words,
               n_words * sizeof *rows->bits);
    rows->are_weights = true;
    rows->planes.n_planes = 1;
    rows->planes.weights = of_positive;
    if (packing == NULL) return;
    packing->pack(rows->bits, 1, rows->n_rows, rows->n, rows->room);
    rows->packed = rows->room;
}

void bitm_code_rows_sum(const bitm_code_rows *rows, int32_t *sums)
{
    const uint64_t *word = rows->planes.bits;
    for (size_t i = 0; i < rows->n_rows; i++) {
        sums[i] = rows->are_weights ? -(int32_t)rows->n : 0;
        for (size_t p = 0; p < rows->planes.n_planes; p++)
            for (size_t k = 0; k < words_of(rows->n); k++)
                sums[i] += rows->planes.weights[p] * __builtin_popcountll(*word++);
    }
}
