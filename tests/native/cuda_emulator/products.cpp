/* Products of a warpgroup [64 rows, n columns].  Its warps have 16 rows each, and compute them when
 * they wait, whatever the others do. */
#include "emulator.h"

#include <cstring>
#include <immintrin.h>

namespace cuda_emulator {

enum { ROWS = 16, MOST_COLUMNS = 128, ROW_BYTES = 32, PIECE_BYTES = 16 };

/* A warp's rows of the left operand and all columns of the right one: 32 bytes of what is summed
 * over. */
struct Operands {
    alignas(32) uint8_t a[ROWS][ROW_BYTES], b[MOST_COLUMNS][ROW_BYTES];
};

/* ---- Operands ---- */

/* Where a descriptor's tile is that is so many further, along the summed dimension and the other.
 */
static const uint8_t *tile_of(const Block &block, uint64_t descriptor, uint32_t along,
                              uint32_t across)
{
    uint32_t address = (uint32_t)(descriptor & 0x3FFF) * 16;
    uint32_t leading = (uint32_t)(descriptor >> 16 & 0x3FFF) * 16;
    uint32_t stride = (uint32_t)(descriptor >> 32 & 0x3FFF) * 16;
    return shared_place(block, address + along * leading + across * stride, 128);
}

/* Rows of 32 bytes, which are two pieces of tiles. */
static void read_rows(const Block &block, uint64_t descriptor, uint32_t first, uint32_t n,
                      uint8_t rows[][ROW_BYTES])
{
    for (uint32_t r = 0; r < n; r += 8)
        for (uint32_t piece = 0; piece < 2; piece++) {
            const uint8_t *tile = tile_of(block, descriptor, piece, (first + r) / 8);
            for (uint32_t i = 0; i < 8; i++)
                memcpy(rows[r + i] + piece * PIECE_BYTES, tile + i * PIECE_BYTES, PIECE_BYTES);
        }
}

/* Rows of 16 float16s, which are columns of tiles. */
static void read_turned_rows(const Block &block, uint64_t descriptor, uint32_t n,
                             uint8_t rows[][ROW_BYTES])
{
    for (uint32_t r = 0; r < n; r++)
        for (uint32_t k = 0; k < 16; k++)
            memcpy(rows[r] + k * 2,
                   tile_of(block, descriptor, k / 8, r / 8) + k % 8 * PIECE_BYTES + r % 8 * 2, 2);
}

static const Product &product_of(const Gathering &warp, uint32_t lane, size_t number)
{
    return warp.block->threads[warp.first + lane].products.list[number];
}

/* What lanes hold in registers of the left operand. */
static void read_registers(const Gathering &warp, size_t number, uint8_t rows[][ROW_BYTES])
{
    for (uint32_t lane = 0; lane < warp.n; lane++)
        for (uint32_t r = 0; r < 4; r++)
            memcpy(rows[lane / 4 + r % 2 * 8] + lane % 4 * 4 + r / 2 * 16,
                   &product_of(warp, lane, number).registers[r], 4);
}

/* ---- Sums ---- */

static void multiply_bits(const Operands &x, uint32_t n, int32_t *sums)
{
    for (uint32_t i = 0; i < ROWS; i++)
        for (uint32_t j = 0; j < n; j++) {
            const uint64_t *a = (const uint64_t *)x.a[i], *b = (const uint64_t *)x.b[j];
            sums[i * n + j] = __builtin_popcountll(a[0] & b[0]) +
                              __builtin_popcountll(a[1] & b[1]) +
                              __builtin_popcountll(a[2] & b[2]) + __builtin_popcountll(a[3] & b[3]);
        }
}

/* A: uint8_t or int8_t, and so is B. */
template <typename A, typename B>
static void multiply_bytes(const Operands &x, uint32_t n, int32_t *sums)
{
    int16_t b[MOST_COLUMNS][ROW_BYTES];
    for (uint32_t j = 0; j < n; j++)
        for (uint32_t k = 0; k < ROW_BYTES; k++)
            b[j][k] = (B)x.b[j][k];
    for (uint32_t i = 0; i < ROWS; i++) {
        int16_t a[ROW_BYTES];
        for (uint32_t k = 0; k < ROW_BYTES; k++)
            a[k] = (A)x.a[i][k];
        for (uint32_t j = 0; j < n; j++) {
            int32_t sum = 0;
            for (uint32_t k = 0; k < ROW_BYTES; k++)
                sum += a[k] * b[j][k];
            sums[i * n + j] = sum;
        }
    }
}

/* A row of 16 float16s. */
static void floats_of_row(const uint8_t row[ROW_BYTES], float to[ROW_BYTES / 2])
{
    for (uint32_t i = 0; i < 2; i++)
        _mm256_storeu_ps(to + i * 8, _mm256_cvtph_ps(((const __m128i *)row)[i]));
}

/* The order in which float16s are added is not a GPU's: sums are of float64. */
static void multiply_halves(const Operands &x, uint32_t n, float *sums)
{
    enum { SUMMED = ROW_BYTES / 2 };
    float a[SUMMED], b[SUMMED], columns[SUMMED][MOST_COLUMNS];
    for (uint32_t j = 0; j < n; j++) {
        floats_of_row(x.b[j], b);
        for (uint32_t k = 0; k < SUMMED; k++)
            columns[k][j] = b[k];
    }
    for (uint32_t i = 0; i < ROWS; i++) {
        double row[MOST_COLUMNS] = {};
        floats_of_row(x.a[i], a);
        for (uint32_t k = 0; k < SUMMED; k++)
            for (uint32_t j = 0; j < n; j++)
                row[j] += (double)a[k] * (double)columns[k][j];
        for (uint32_t j = 0; j < n; j++)
            sums[i * n + j] = (float)row[j];
    }
}

/* ---- Products ---- */

/* A lane holds two neighbouring columns of every 8, of two rows. */
template <typename T> static void add_sums(const Gathering &warp, size_t number, const T *sums)
{
    for (uint32_t lane = 0; lane < warp.n; lane++) {
        const Product &product = product_of(warp, lane, number);
        T *d = (T *)product.d;
        uint32_t n = product.n;
        if (!product.adds) memset(d, 0, n / 2 * sizeof(T));
        for (uint32_t i = 0; i < n / 2; i++) {
            uint32_t row = lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
            d[i] += sums[row * n + column];
        }
    }
}

static bool is_same(const Product &x, const Product &y)
{
    return x.factors == y.factors && x.n == y.n && x.adds == y.adds && x.a == y.a && x.b == y.b;
}

static void multiply(const Gathering &warp, size_t number)
{
    const Block &block = *warp.block;
    const Product &product = product_of(warp, 0, number);
    for (uint32_t lane = 1; lane < warp.n; lane++)
        if (!is_same(product, product_of(warp, lane, number)))
            fail("waits for a product that its warp does not agree about");
    Operands x;
    if (product.factors == Factors::BITS || product.factors == Factors::CODES ||
        product.factors == Factors::HALVES)
        read_rows(block, product.a, warp.first % WARPGROUP_THREADS / WARP_THREADS * ROWS, ROWS,
                  x.a);
    else
        read_registers(warp, number, x.a);
    if (product.factors == Factors::TURNED_HALVES)
        read_turned_rows(block, product.b, product.n, x.b);
    else
        read_rows(block, product.b, 0, product.n, x.b);
    int32_t sums[ROWS * MOST_COLUMNS];
    float float_sums[ROWS * MOST_COLUMNS];
    switch (product.factors) {
    case Factors::BITS:
    case Factors::ROWS_OF_BITS:
        multiply_bits(x, product.n, sums);
        break;
    case Factors::CODES:
        multiply_bytes<int8_t, int8_t>(x, product.n, sums);
        break;
    case Factors::SIGNED_BYTES:
        multiply_bytes<uint8_t, int8_t>(x, product.n, sums);
        break;
    case Factors::UNSIGNED_BYTES:
        multiply_bytes<uint8_t, uint8_t>(x, product.n, sums);
        break;
    default:
        multiply_halves(x, product.n, float_sums);
        add_sums(warp, number, float_sums);
        return;
    }
    add_sums(warp, number, sums);
}

/* All that a warp waits for. */
static void finish_products(Gathering &warp)
{
    Thread *threads = &warp.block->threads[warp.first];
    size_t n = (size_t)threads[0].given[0];
    for (uint32_t lane = 0; lane < warp.n; lane++)
        if (threads[lane].has_ended || threads[lane].given[0] != n)
            fail("waits for other products than its warp");
    for (size_t number = 0; number < n; number++)
        multiply(warp, number);
    for (uint32_t lane = 0; lane < warp.n; lane++)
        threads[lane].products.forget(n);
}

void fence_products()
{
    current->is_fenced = true;
}

void start_product(const Product &product)
{
    if (!current->is_fenced) fail("starts a product without a fence before");
    current->products.list.push_back(product);
}

/* With a seed some products end here, the others when they are waited for. */
void commit_products()
{
    Gathering &warp = warp_of(current);
    current->products.commit();
    uint64_t of_block = (uint64_t)current->block->index.y << 32 | current->block->index.x;
    if (!common_chance(of_block, (uint64_t)warp.first << 32 | current->n_commits++)) return;
    current->given[0] = current->products.list.size();
    meet(warp, "wgmma.commit_group", finish_products);
}

void wait_for_products(size_t n_groups)
{
    current->given[0] = current->products.waited(n_groups);
    meet(warp_of(current), "wgmma.wait_group", finish_products);
    current->is_fenced = false;
}

} // namespace cuda_emulator
