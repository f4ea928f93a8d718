/* Products of a warpgroup: 64 rows of the left operand, of which warps have 16 each. */
#include "emulator.h"

#include <cstring>

namespace cuda_emulator {

enum { ROWS = 64, MOST_COLUMNS = 128, ROW_BYTES = 32, PIECE_BYTES = 16 };

/* Rows of operands: 32 bytes of what is summed over. */
struct Operands {
    alignas(32) uint8_t a[ROWS][ROW_BYTES], b[MOST_COLUMNS][ROW_BYTES];
};

/* ---- Operands ---- */

/* Where a descriptor's tile is that is so many further, along the summed dimension and the other. */
static const uint8_t *tile_of(const Block &block, uint64_t descriptor, uint32_t along,
                              uint32_t across)
{
    uint32_t address = (uint32_t)(descriptor & 0x3FFF) * 16;
    uint32_t leading = (uint32_t)(descriptor >> 16 & 0x3FFF) * 16;
    uint32_t stride = (uint32_t)(descriptor >> 32 & 0x3FFF) * 16;
    return shared_place(block, address + along * leading + across * stride, 128);
}

/* Rows of 32 bytes, which are two pieces of tiles. */
static void read_rows(const Block &block, uint64_t descriptor, uint32_t n, uint8_t rows[][ROW_BYTES])
{
    for (uint32_t r = 0; r < n; r += 8)
        for (uint32_t piece = 0; piece < 2; piece++) {
            const uint8_t *tile = tile_of(block, descriptor, piece, r / 8);
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

/* The row and the first byte of what a thread holds in a register of the left operand. */
static void read_registers(const Gathering &group, size_t number, uint8_t rows[][ROW_BYTES])
{
    for (uint32_t t = 0; t < group.n; t++) {
        const Product &product = group.block->threads[group.first + t].products.list[number];
        for (uint32_t r = 0; r < 4; r++) {
            uint32_t row = t / 32 * 16 + t % 32 / 4 + r % 2 * 8, byte = t % 4 * 4 + r / 2 * 16;
            memcpy(rows[row] + byte, &product.registers[r], 4);
        }
    }
}

/* ---- Sums ---- */

static void multiply_bits(const Operands &x, uint32_t n, int32_t *sums)
{
    for (uint32_t i = 0; i < ROWS; i++)
        for (uint32_t j = 0; j < n; j++) {
            const uint64_t *a = (const uint64_t *)x.a[i], *b = (const uint64_t *)x.b[j];
            sums[i * n + j] =
                __builtin_popcountll(a[0] & b[0]) + __builtin_popcountll(a[1] & b[1]) +
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

/* The order in which float16s are added is not a GPU's: sums are of float64. */
static void multiply_halves(const Operands &x, uint32_t n, float *sums)
{
    for (uint32_t i = 0; i < ROWS; i++)
        for (uint32_t j = 0; j < n; j++) {
            const _Float16 *a = (const _Float16 *)x.a[i], *b = (const _Float16 *)x.b[j];
            double sum = 0;
            for (uint32_t k = 0; k < 16; k++)
                sum += (double)a[k] * (double)b[k];
            sums[i * n + j] = (float)sum;
        }
}

/* ---- Products ---- */

/* A thread holds two neighbouring columns of every 8, of two rows. */
template <typename T>
static void add_sums(const Gathering &group, size_t number, const T *sums)
{
    for (uint32_t t = 0; t < group.n; t++) {
        const Product &product = group.block->threads[group.first + t].products.list[number];
        T *d = (T *)product.d;
        for (uint32_t i = 0; i < product.n / 2; i++) {
            uint32_t row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8;
            uint32_t column = i / 4 * 8 + t % 4 * 2 + i % 2;
            T sum = sums[row * product.n + column];
            d[i] = product.adds ? d[i] + sum : sum;
        }
    }
}

static bool is_same(const Product &a, const Product &b, bool in_registers)
{
    return a.factors == b.factors && a.n == b.n && a.adds == b.adds && a.b == b.b &&
           (in_registers || a.a == b.a);
}

static void multiply(const Gathering &group, size_t number)
{
    const Block &block = *group.block;
    const Product &product = block.threads[group.first].products.list[number];
    bool in_registers = product.factors == Factors::UNSIGNED_BYTES ||
                        product.factors == Factors::SIGNED_BYTES ||
                        product.factors == Factors::TURNED_HALVES;
    for (uint32_t t = 1; t < group.n; t++) {
        const Thread &thread = block.threads[group.first + t];
        if (thread.products.list.size() <= number ||
            !is_same(product, thread.products.list[number], in_registers))
            fail("waits for a product that threads of its warpgroup do not agree about");
    }
    Operands x;
    if (in_registers)
        read_registers(group, number, x.a);
    else
        read_rows(block, product.a, ROWS, x.a);
    if (product.factors == Factors::TURNED_HALVES)
        read_turned_rows(block, product.b, product.n, x.b);
    else
        read_rows(block, product.b, product.n, x.b);
    int32_t sums[ROWS * MOST_COLUMNS];
    float float_sums[ROWS * MOST_COLUMNS];
    switch (product.factors) {
    case Factors::BITS:
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
        add_sums(group, number, float_sums);
        return;
    }
    add_sums(group, number, sums);
}

/* All that the first of a warpgroup's threads waits for. */
static void finish_products(Gathering &group)
{
    if (group.n != WARPGROUP_THREADS || group.n_alive != group.n)
        fail("waits for products without all of its warpgroup");
    size_t n = (size_t)group.block->threads[group.first].given[0];
    for (uint32_t t = 1; t < group.n; t++)
        if (group.block->threads[group.first + t].given[0] != n)
            fail("waits for other products than threads of its warpgroup");
    for (size_t number = 0; number < n; number++)
        multiply(group, number);
    for (uint32_t t = 0; t < group.n; t++)
        group.block->threads[group.first + t].products.forget(n);
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
    Gathering &group = warpgroup_of(current);
    current->products.commit();
    uint64_t of_block = (uint64_t)current->block->index.y << 32 | current->block->index.x;
    if (!common_chance(of_block, (uint64_t)group.first << 32 | current->n_commits++)) return;
    current->given[0] = current->products.list.size();
    meet(group, "wgmma.commit_group", finish_products);
}

void wait_for_products(size_t n_groups)
{
    current->given[0] = current->products.waited(n_groups);
    meet(warpgroup_of(current), "wgmma.wait_group", finish_products);
    current->is_fenced = false;
}

} // namespace cuda_emulator
