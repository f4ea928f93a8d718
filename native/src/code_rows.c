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

void bitm_code_rows_transpose(bitm_code_rows *rows, const bitm_file_quantizer *quantizer,
                              const uint64_t *planes, size_t stride, uint32_t n_rows, uint32_t n)
{
    open_rows(rows, quantizer, n_rows, n);
    const size_t n_planes = rows->planes.n_planes, n_words = words_of(n);
    for (size_t p = 0; p < n_planes; p++)
        for (size_t column = 0; column < words_of(n_rows); column++)
            for (size_t word = 0; word < n_words; word++) {
                uint64_t square[64] = {0};
                const uint64_t *from = planes + p * words_of(n_rows) + column;
                for (size_t i = 64 * word; i < n && i < 64 * (word + 1); i++)
                    square[i % 64] = from[i * stride];
                transpose(square);
                for (size_t i = 64 * column; i < n_rows && i < 64 * (column + 1); i++)
                    rows->bits[(i * n_planes + p) * n_words + word] = square[i % 64];
            }
}

/* Whether all of n codes of a plane are 1. */
static bool is_full(const uint64_t *plane, uint32_t n)
{
    for (; n >= 64; n -= 64, plane++)
        if (*plane != UINT64_MAX) return false;
    return n == 0 || *plane == (UINT64_C(1) << n) - 1;
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
