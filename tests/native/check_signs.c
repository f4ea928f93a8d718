/* Attention of signs. */
#include "check_kernels.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* Room that distances have. */
static size_t room_of(uint32_t n)
{
    return ((size_t)n + 63) / 64 * 64;
}

static uint64_t random_word(trial *t)
{
    return (uint64_t)random_below(&t->random, UINT32_MAX) << 32 |
           random_below(&t->random, UINT32_MAX);
}

static int32_t distance(uint64_t a, uint64_t b)
{
    int32_t n = 0;
    for (uint64_t differ = a ^ b; differ != 0; differ &= differ - 1)
        n++;
    return n;
}

/* Distances from least on, fewer than a table has. */
static uint8_t *new_distances(trial *t, uint32_t n)
{
    uint8_t *distances = guard_array(&t->arrays, room_of(n), 1);
    uint32_t least = random_below(&t->random, 65), n_values = 65 - least;
    if (n_values > BITM_DISTANCES) n_values = BITM_DISTANCES;
    for (size_t j = 0; j < room_of(n); j++)
        distances[j] = (uint8_t)(j < n ? least + random_below(&t->random, n_values)
                                       : random_below(&t->random, 256));
    return distances;
}

void check_sign_distances(trial *t, any_fn *kernel, any_fn *scalar)
{
    for (int i = 0; i < N_AWKWARD_SIZES; i++) {
        uint32_t n = awkward_sizes[i];
        at_work(t, "pattern %d, %u keys", t->pattern, n);
        uint64_t *keys = guard_array(&t->arrays, n, sizeof *keys);
        for (uint32_t j = 0; j < n; j++)
            keys[j] = random_word(t);
        uint64_t query = random_word(t);
        keys[random_below(&t->random, n)] = i % 3 == 0 ? query : ~query;
        guard_seal(&t->arrays);
        uint8_t *found = guard_array(&t->arrays, room_of(n), 1);
        uint8_t *expected = guard_array(&t->arrays, room_of(n), 1);
        uint8_t least = UINT8_MAX;
        uint8_t nearest = ((bitm_sign_distances_fn *)scalar)(query, keys, n, expected);
        uint8_t found_nearest = ((bitm_sign_distances_fn *)kernel)(query, keys, n, found);
        expect_same(t, found, expected, n, "distances");
        expect(t, found_nearest == nearest, "the least is %u, expected %u", found_nearest, nearest);
        for (uint32_t j = 0; j < n; j++) {
            expect_near(t, j, expected[j], distance(query, keys[j]), 0);
            least = expected[j] < least ? expected[j] : least;
        }
        expect(t, nearest == least, "the least is %u, exactly %u", nearest, least);
        guard_release(&t->arrays);
    }
}

static float *new_table(trial *t)
{
    float *table = new_floats(t, BITM_DISTANCES);
    for (int d = 0; d < BITM_DISTANCES; d++)
        table[d] = fabsf(table[d]) < FLT_MIN ? 0.0F : fabsf(table[d]);
    return table;
}

void check_table_sum(trial *t, any_fn *kernel, any_fn *scalar)
{
    for (int i = 0; i < N_AWKWARD_SIZES; i++) {
        uint32_t n = awkward_sizes[i];
        at_work(t, "pattern %d, %u distances", t->pattern, n);
        const float *table = new_table(t);
        const uint8_t *distances = new_distances(t, n);
        guard_seal(&t->arrays);
        float expected = ((bitm_table_sum_fn *)scalar)(table, distances, n);
        float found = ((bitm_table_sum_fn *)kernel)(table, distances, n);
        double exact = 0;
        for (uint32_t j = 0; j < n; j++)
            exact += table[distances[j] % BITM_DISTANCES];
        expect_same(t, &found, &expected, sizeof found, "sum");
        expect_near(t, 0, expected, exact, (n + 8) * ROUNDING * exact);
        guard_release(&t->arrays);
    }
}

void check_near_bits(trial *t, any_fn *kernel, any_fn *scalar)
{
    for (int i = 0; i < N_AWKWARD_SIZES; i++) {
        uint32_t n = awkward_sizes[i], n_words = (n + 63) / 64;
        uint8_t end = (uint8_t)(i == 0 ? 127 : random_below(&t->random, 67));
        at_work(t, "pattern %d, %u distances, end %u", t->pattern, n, end);
        const uint8_t *distances = new_distances(t, n);
        guard_seal(&t->arrays);
        uint64_t *found = guard_array(&t->arrays, n_words, sizeof *found);
        uint64_t *expected = guard_array(&t->arrays, n_words, sizeof *expected);
        int32_t sum = ((bitm_near_bits_fn *)scalar)(distances, n, end, expected);
        int32_t found_sum = ((bitm_near_bits_fn *)kernel)(distances, n, end, found);
        expect_same(t, found, expected, n_words * sizeof *found, "bits");
        expect(t, found_sum == sum, "%d bits, expected %d", found_sum, sum);
        int32_t exact = 0;
        for (uint32_t j = 0; j < n_words * 64; j++) {
            bool is_near = j < n && distances[j] < end;
            expect_near(t, j, (double)(expected[j / 64] >> j % 64 & 1), is_near, 0);
            exact += is_near;
        }
        expect(t, sum == exact, "%d bits, exactly %d", sum, exact);
        guard_release(&t->arrays);
    }
}

/* ---- Speed: one query of 512 keys ---- */

enum { MEASURED_KEYS = 512 };

typedef struct signs_call {
    any_fn *kernel;
    const uint64_t *keys;
    const float *table;
    uint8_t *distances;
    uint64_t *bits;
    volatile float sum; /* so that the call is not left out */
} signs_call;

static void call_sign_distances(void *context)
{
    signs_call *call = context;
    (void)((bitm_sign_distances_fn *)call->kernel)(UINT64_C(0x123456789ABCDEF), call->keys,
                                                   MEASURED_KEYS, call->distances);
}

static void call_table_sum(void *context)
{
    signs_call *call = context;
    call->sum = ((bitm_table_sum_fn *)call->kernel)(call->table, call->distances, MEASURED_KEYS);
}

static void call_near_bits(void *context)
{
    signs_call *call = context;
    (void)((bitm_near_bits_fn *)call->kernel)(call->distances, MEASURED_KEYS, 30, call->bits);
}

static speed measure_signs(trial *t, any_fn *kernel, void (*call_kernel)(void *))
{
    uint64_t *keys = guard_array(&t->arrays, MEASURED_KEYS, sizeof *keys);
    for (uint32_t j = 0; j < MEASURED_KEYS; j++)
        keys[j] = random_word(t);
    signs_call call = {.kernel = kernel,
                       .keys = keys,
                       .table = new_table(t),
                       .distances = new_distances(t, MEASURED_KEYS),
                       .bits = guard_array(&t->arrays, MEASURED_KEYS / 64, sizeof(uint64_t))};
    speed found = {MEASURED_KEYS, "element", time_calls(call_kernel, &call)};
    guard_release(&t->arrays);
    return found;
}

speed measure_sign_distances(trial *t, any_fn *kernel)
{
    return measure_signs(t, kernel, call_sign_distances);
}

speed measure_table_sum(trial *t, any_fn *kernel)
{
    return measure_signs(t, kernel, call_table_sum);
}

speed measure_near_bits(trial *t, any_fn *kernel)
{
    return measure_signs(t, kernel, call_near_bits);
}
