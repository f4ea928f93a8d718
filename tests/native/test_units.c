/* Unit tests of what stands alone: arena, statuses, thread pool, thresholds of quantizers. */
#include <math.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "arena.h"
#include "check.h"
#include "kernels/canonical.h"
#include "pool.h"
#include "quantizer.h"
#include "random.h"
#include "status.h"

/* ---- Arena ---- */

enum { N_PIECES = 50, MAX_PIECE_BYTES = 1000 };

static void test_arena_pieces(checks *c)
{
    static _Alignas(64) uint8_t memory[N_PIECES * (MAX_PIECE_BYTES + 64)];
    size_t sizes[N_PIECES];
    uint8_t *pieces[N_PIECES];
    random_state random = {1};
    bitm_arena measure = {0}, arena = {.base = memory};
    for (int i = 0; i < N_PIECES; i++) {
        sizes[i] = random_below(&random, MAX_PIECE_BYTES);
        CHECK(c, bitm_arena_take(&measure, sizes[i], 1) == NULL);
        pieces[i] = bitm_arena_take(&arena, sizes[i], 1);
        CHECK(c, pieces[i] != NULL && (uintptr_t)pieces[i] % BITM_ARENA_ALIGNMENT == 0);
        CHECK(c, arena.n_used == measure.n_used && arena.n_used <= sizeof memory);
        memset(pieces[i], i, sizes[i]);
    }
    CHECK(c, !arena.overflow && !measure.overflow);
    for (int i = 0; i < N_PIECES; i++) {
        size_t n_kept = 0;
        while (n_kept < sizes[i] && pieces[i][n_kept] == i)
            n_kept++;
        CHECK(c, n_kept == sizes[i]); /* no later piece has overwritten it */
    }
}

static void test_arena_sizes(checks *c)
{
    bitm_arena arena = {0};
    (void)bitm_arena_take(&arena, 3, 100);
    CHECK(c, arena.n_used == 320);
    (void)bitm_arena_take(&arena, 0, 8);
    (void)bitm_arena_take(&arena, 8, 0);
    CHECK(c, arena.n_used == 320 && !arena.overflow);
}

static void test_arena_overflow(checks *c)
{
    static const struct {
        size_t n_used;
        uint64_t count;
        size_t element_bytes;
    } too_large[] = {
        {0, SIZE_MAX, 1},      {0, SIZE_MAX / 2, 3},    {0, UINT64_MAX, 8},
        {0, SIZE_MAX - 63, 1}, {64, SIZE_MAX - 127, 1}, {SIZE_MAX / 64 * 64 - 128, 128, 1},
    };
    for (size_t i = 0; i < sizeof too_large / sizeof too_large[0]; i++) {
        bitm_arena arena = {.n_used = too_large[i].n_used};
        void *piece = bitm_arena_take(&arena, too_large[i].count, too_large[i].element_bytes);
        CHECK(c, piece == NULL && arena.overflow);
        (void)bitm_arena_take(&arena, 1, 1);
        CHECK(c, arena.overflow); /* once is for ever */
    }
    bitm_arena arena = {0};
    (void)bitm_arena_take(&arena, SIZE_MAX / 4, 2);
    CHECK(c, !arena.overflow);
}

/* ---- Statuses ---- */

static void test_status_names(checks *c)
{
    const char *names[256];
    size_t n_known = 0;
    for (int number = 0; number < 256; number++) {
        const char *name = bitm_status_name((bitm_status)number);
        CHECK(c, name != NULL);
        if (strcmp(name, "UNKNOWN") == 0) continue;
        for (size_t i = 0; i < n_known; i++)
            CHECK(c, strcmp(names[i], name) != 0);
        names[n_known++] = name;
    }
    CHECK(c, n_known >= 40);
    CHECK(c, strcmp(bitm_status_name(BITM_OK), "OK") == 0);
    CHECK(c, strcmp(bitm_status_name(BITM_FILE_MAGIC), "FILE_MAGIC") == 0);
    CHECK(c, strcmp(bitm_status_name((bitm_status)8), "UNKNOWN") == 0);
    CHECK(c, strcmp(bitm_status_name((bitm_status)10000), "UNKNOWN") == 0);
}

static void test_errors(checks *c)
{
    bitm_error error = {0};
    CHECK(c, bitm_fail(&error, BITM_IO, "%s: %d", "path", 7) == BITM_IO);
    CHECK(c, error.status == BITM_IO && strcmp(error.message, "path: 7") == 0);
    CHECK(c, bitm_fail(NULL, BITM_BUSY, "nobody reads this") == BITM_BUSY);
    (void)bitm_fail(&error, BITM_TEXT, "%1000d", 1);
    CHECK(c, strlen(error.message) == sizeof error.message - 1);
}

/* ---- Pool ---- */

enum { MAX_TASKS = 300, MAX_THREADS = 8, N_GENERATIONS = 200 };

typedef struct tally {
    uint32_t n_threads;
    atomic_uint n_runs[MAX_TASKS];
    atomic_bool worker_is_wrong;
    atomic_uint inside[MAX_THREADS]; /* tasks that a worker runs at once */
} tally;

static void count_task(void *context, uint32_t task, uint32_t worker)
{
    tally *t = context;
    if (worker >= t->n_threads || atomic_fetch_add(&t->inside[worker], 1) != 0)
        atomic_store(&t->worker_is_wrong, true);
    atomic_fetch_add(&t->n_runs[task], 1);
    if (worker < t->n_threads) atomic_fetch_sub(&t->inside[worker], 1);
}

/* Runs n_tasks tasks; whether each ran exactly once, and no worker two of them at a time. */
static bool each_once(bitm_pool *pool, uint32_t n_tasks)
{
    static tally t;
    memset(&t, 0, sizeof t);
    t.n_threads = pool->n_threads;
    bitm_pool_run(pool, n_tasks, count_task, &t);
    bool right = !atomic_load(&t.worker_is_wrong);
    for (uint32_t i = 0; i < MAX_TASKS; i++)
        right = right && atomic_load(&t.n_runs[i]) == (i < n_tasks);
    return right;
}

static bool many_generations(bitm_pool *pool)
{
    static const uint32_t counts[] = {0, 1, 2, 3, 7, 8, 9, 64, MAX_TASKS};
    bool right = true;
    for (uint32_t i = 0; i < N_GENERATIONS; i++)
        right = each_once(pool, counts[i % (sizeof counts / sizeof counts[0])]) && right;
    return right;
}

/* A pool of n_threads in `memory`, started. */
static bool start_pool(checks *c, bitm_pool *pool, uint32_t n_threads)
{
    static _Alignas(64) uint8_t memory[4096];
    bitm_arena measure = {0}, arena = {.base = memory};
    bitm_error error = {0};
    *pool = (bitm_pool){0};
    bitm_pool_layout(pool, &measure, n_threads);
    if (!CHECK(c, measure.n_used <= sizeof memory)) return false;
    bitm_pool_layout(pool, &arena, n_threads);
    return CHECK_STATUS(c, BITM_OK, &error, bitm_pool_start(pool, &error));
}

static void test_pool(checks *c)
{
    for (uint32_t n_threads = 1; n_threads <= MAX_THREADS; n_threads++) {
        bitm_pool pool;
        if (!start_pool(c, &pool, n_threads)) continue;
        CHECK(c, many_generations(&pool));
        bitm_pool_stop(&pool);
        CHECK_STATUS(c, BITM_OK, NULL, bitm_pool_start(&pool, NULL)); /* and again */
        CHECK(c, many_generations(&pool));
        bitm_pool_stop(&pool);
    }
}

/* A child process has none of the threads: revive() starts them, stop() of a pool that was not
 * revived waits for nobody. */
static void test_pool_after_fork(checks *c)
{
    for (uint32_t n_threads = 1; n_threads <= MAX_THREADS; n_threads += 3) {
        bitm_pool pool;
        if (!start_pool(c, &pool, n_threads)) continue;
        CHECK(c, each_once(&pool, MAX_TASKS));
        for (int revives = 0; revives < 2; revives++) {
            (void)fflush(stdout);
            pid_t child = fork();
            if (child == 0) {
                bool right = true;
                if (revives)
                    right = bitm_pool_revive(&pool, NULL) == BITM_OK && many_generations(&pool);
                bitm_pool_stop(&pool);
                _exit(right ? 0 : 1);
            }
            int status = -1;
            CHECK(c, child > 0 && waitpid(child, &status, 0) == child);
            CHECK(c, WIFEXITED(status) && WEXITSTATUS(status) == 0);
        }
        CHECK_STATUS(c, BITM_OK, NULL, bitm_pool_revive(&pool, NULL)); /* nothing to do here */
        CHECK(c, many_generations(&pool));
        bitm_pool_stop(&pool);
    }
}

/* ---- Thresholds between two codes ---- */

/* Any bits: numbers of all sizes, denormals, infinities, NaNs; some near a value. */
static float any_float(random_state *random, float near)
{
    uint32_t bits = (uint32_t)(random_u64(random) >> 32);
    float x;
    memcpy(&x, random_below(random, 4) == 0 ? (const void *)&near : &bits, sizeof x);
    for (uint32_t i = random_below(random, 4); i > 0; i--)
        x = nextafterf(x, random_below(random, 2) == 0 ? INFINITY : -INFINITY);
    return x;
}

/* Ordinary ones, and extreme ones. */
static bitm_quantization two_codes(random_state *random)
{
    float sizes[] = {1.0F, 1e-30F, 1e30F, 1e-44F, 3e38F};
    float lo = (float)random_below(random, 5) - 3.0F;
    bitm_quantization q = {.lo = lo, .hi = lo + 1.0F, .factor = 1.0F};
    q.divisor = (fabsf(random_float(random)) + 0.01F) * sizes[random_below(random, 5)];
    if (random_below(random, 3) == 0) q.factor = fabsf(random_float(random)) * 1000.0F;
    if (random_below(random, 2) == 0)
        q.base = -fabsf(random_float(random)) * (random_below(random, 2) == 0 ? 1.0F : q.divisor);
    return q;
}

static void test_thresholds(checks *c)
{
    const float special[] = {0.0F, -0.0F, 1e-45F, -1e-45F, INFINITY, -INFINITY, NAN};
    random_state random = {1};
    uint32_t n_split = 0, n_wrong = 0;
    for (int i = 0; i < 20000; i++) {
        bitm_quantization q = two_codes(&random), divided;
        bitm_quantization_split(&q);
        n_split += q.two_codes;
        float sum = 1.0F + 100.0F * fabsf(random_float(&random));
        divided = q;
        CHECK(c, bitm_quantization_divide(&divided, sum) == q.two_codes);
        for (size_t k = 0; q.two_codes && k < 40; k++) {
            float z = k < 7 ? special[k] : any_float(&random, q.threshold);
            float x = k < 7 ? special[k] : any_float(&random, divided.threshold);
            float code = bitm_code(z, q.base, q.divisor, q.factor, q.lo, q.hi);
            float quotient = bitm_code(x / sum, q.base, q.divisor, q.factor, q.lo, q.hi);
            n_wrong += (z >= q.threshold ? q.hi : q.lo) != code;
            n_wrong += (x >= divided.threshold ? q.hi : q.lo) != quotient;
        }
    }
    CHECK(c, n_wrong == 0);
    CHECK(c, n_split > 19000);
    bitm_quantization q = {.divisor = 1.0F, .factor = 1.0F, .hi = 2.0F}; /* three codes */
    bitm_quantization_split(&q);
    CHECK(c, !q.two_codes && !bitm_quantization_divide(&q, 2.0F));
}

int main(void)
{
    checks c = {0};
    test_thresholds(&c);
    test_arena_pieces(&c);
    test_arena_sizes(&c);
    test_arena_overflow(&c);
    test_status_names(&c);
    test_errors(&c);
    test_pool(&c);
    test_pool_after_fork(&c);
    return check_report(&c);
}
