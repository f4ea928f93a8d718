#include "check_kernels.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

const uint32_t awkward_sizes[N_AWKWARD_SIZES] = {1,   2,   3,    7,    15,   16,  17,  31,
                                                 33,  63,  64,   65,   127,  128, 129, 191,
                                                 257, 509, 1021, 1024, 1025, 2053};

/* ---- Expectations ---- */

void at_work(trial *t, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(t->report->work, sizeof t->report->work, format, arguments);
    va_end(arguments);
}

void expect(trial *t, bool condition, const char *format, ...)
{
    if (condition) {
        t->report->n_passed++;
        return;
    }
    if (t->report->n_failed++ >= 10) return; /* of one kernel, ten say enough */
    va_list arguments;
    va_start(arguments, format);
    (void)printf("    FAILED: %s: %s: ", t->kernel, t->report->work);
    (void)vprintf(format, arguments);
    (void)printf("\n");
    va_end(arguments);
}

void expect_same(trial *t, const void *found, const void *expected, size_t n_bytes,
                 const char *what)
{
    const uint8_t *a = found, *b = expected;
    size_t i = 0;
    while (i < n_bytes && a[i] == b[i])
        i++;
    expect(t, i == n_bytes, "%s: byte %zu of %zu is not the scalar kernel's", what, i, n_bytes);
}

void expect_near(trial *t, size_t i, double found, double expected, double tolerance)
{
    expect(t, fabs(found - expected) <= tolerance,
           "element %zu: found %.9g, expected %.9g, tolerance %.3g", i, found, expected, tolerance);
}

/* ---- Arrays ---- */

float float_of(trial *t)
{
    float x = random_float(&t->random);
    switch (t->pattern) {
    case PATTERN_ZEROS:
        return 0.0F;
    case PATTERN_ONES:
        return 1.0F;
    case PATTERN_SIGNED_ZEROS:
        return copysignf(random_below(&t->random, 8) == 0 ? x : 0.0F, x);
    case PATTERN_DENORMALS:
        return x * 0x1p-127F;
    case PATTERN_EXTREMES:
        return copysignf(1e17F, x);
    default:
        return x;
    }
}

int32_t code_of(trial *t, int32_t lo, int32_t hi)
{
    int32_t code = lo + (int32_t)random_below(&t->random, (uint32_t)(hi - lo) + 1);
    switch (t->pattern) {
    case PATTERN_ZEROS:
        return 0;
    case PATTERN_ONES:
        return hi;
    case PATTERN_EXTREMES:
        return random_below(&t->random, 2) == 0 ? lo : hi;
    default:
        return code;
    }
}

float *new_floats(trial *t, size_t n)
{
    float *array = guard_array(&t->arrays, n, sizeof *array);
    for (size_t i = 0; i < n; i++)
        array[i] = float_of(t);
    return array;
}

float *new_randoms(trial *t, size_t n)
{
    float *array = guard_array(&t->arrays, n, sizeof *array);
    for (size_t i = 0; i < n; i++)
        array[i] = random_float(&t->random);
    return array;
}

void *new_copy(trial *t, const void *array, size_t n_bytes)
{
    void *copy = guard_array(&t->arrays, n_bytes, 1);
    memcpy(copy, array, n_bytes);
    return copy;
}

/* ---- Time ---- */

static double now(void)
{
    struct timespec time;
    (void)clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

double time_calls(void (*call)(void *context), void *context)
{
    unsigned n_calls = 1;
    double best = INFINITY;
    for (double end = now() + 0.2; now() < end;) {
        double begin = now();
        for (unsigned i = 0; i < n_calls; i++)
            call(context);
        double seconds = now() - begin;
        if (seconds < 0.01)
            n_calls *= 2; /* too short to be measured */
        else
            best = fmin(best, seconds / n_calls);
    }
    return best;
}

/* ---- The kernels ---- */

typedef struct kernel {
    const char *op, *name; /* name: op=variant */
    bitm_tier tier;
    any_fn *function, *scalar;
    void (*check)(trial *t, any_fn *kernel, any_fn *scalar);
    speed (*measure)(trial *t, any_fn *kernel);
} kernel;

static const kernel kernels[] = {
#define BITM_KERNEL(op, variant, tier)                                                             \
    {#op,                                                                                          \
     #op "=" #variant,                                                                             \
     tier,                                                                                         \
     (any_fn *)bitm_##op##__##variant,                                                             \
     (any_fn *)bitm_##op##__scalar,                                                                \
     check_##op,                                                                                   \
     measure_##op},
#include "kernels/kernels.def"
#undef BITM_KERNEL
};

static const struct {
    const char *name; /* op=variant */
    const bitm_packing *packing;
} packings[] = {
#define BITM_KERNEL(op, variant, tier)
#define BITM_PACKING(op, variant, packing) {#op "=" #variant, &bitm_packing__##packing},
#include "kernels/kernels.def"
#undef BITM_KERNEL
    {NULL, NULL}, /* there may be none */
};

static const struct {
    const char *name; /* op=variant */
    const size_t *n_bytes;
} scratches[] = {
#define BITM_KERNEL(op, variant, tier)
#define BITM_SCRATCH(op, variant, scratch) {#op "=" #variant, &bitm_scratch__##scratch},
#include "kernels/kernels.def"
#undef BITM_KERNEL
    {NULL, NULL}, /* there may be none */
};
enum { N_KERNELS = sizeof kernels / sizeof kernels[0] };

static trial new_trial(const kernel *k, uint64_t seed, report *r)
{
    /* Tokens, and part of a linear of BERT-base. */
    trial t = {.kernel = k->name,
               .shape = {64, 256, 768},
               .random = {seed},
               .pattern = PATTERN_RANDOM,
               .report = r};
    for (size_t i = 0; packings[i].name != NULL; i++)
        if (strcmp(packings[i].name, k->name) == 0) t.packing = packings[i].packing;
    for (size_t i = 0; scratches[i].name != NULL; i++)
        if (strcmp(scratches[i].name, k->name) == 0 && *scratches[i].n_bytes > t.scratch_bytes)
            t.scratch_bytes = *scratches[i].n_bytes;
    return t;
}

/* All patterns, with arrays at both kinds of guards. */
static void check_kernel(const kernel *k, uint64_t seed, report *r)
{
    trial t = new_trial(k, seed, r);
    for (int i = 0; i < 2 * N_PATTERNS; i++) {
        t.pattern = (pattern)(i / 2);
        t.arrays.at_end = i % 2 == 0;
        k->check(&t, k->function, k->scalar);
    }
}

/* In a process of its own, so that a crash has a name; whether all is well. */
static bool check_apart(const kernel *k, uint64_t seed, report *total)
{
    report *r = mmap(NULL, sizeof *r, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (r == MAP_FAILED) return false;
    (void)fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        check_kernel(k, seed, r);
        (void)fflush(stdout);
        _exit(0);
    }
    int status = -1;
    pid_t ended = child < 0 ? child : waitpid(child, &status, 0);
    if (ended < 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        (void)printf("    FAILED: %s: died of %s %d: %s\n", k->name,
                     WIFSIGNALED(status) ? "signal" : "status",
                     WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), r->work);
        r->n_failed++;
    }
    total->n_passed += r->n_passed;
    total->n_failed += r->n_failed;
    bool is_well = r->n_failed == 0 && r->n_passed > 0;
    (void)printf("%-24s %8u passed, %u failed\n", k->name, r->n_passed, r->n_failed);
    (void)munmap(r, sizeof *r);
    return is_well;
}

/* The same arrays for each kernel of an op. */
static speed measure(const kernel *k, any_fn *function, const uint32_t shape[3])
{
    report ignored = {0};
    trial t = new_trial(k, 1, &ignored);
    if (shape[0] > 0) memcpy(t.shape, shape, sizeof t.shape);
    if (function == k->scalar) t.packing = NULL;
    return k->measure(&t, function);
}

static void print_speed(const kernel *k, const uint32_t shape[3])
{
    speed found = measure(k, k->function, shape), scalar = measure(k, k->scalar, shape);
    double rate = found.n_units / found.seconds, peak = measure_peak(k->op, k->tier);
    (void)printf("%-24s %9.4f ns/%-7s %8.2f G%s/s %8.2f x scalar", k->name, 1e9 / rate, found.unit,
                 rate * 1e-9, found.unit, scalar.seconds / found.seconds);
    if (peak > 0) (void)printf(" %5.1f %% of %.1f", 100 * rate / peak, peak * 1e-9);
    (void)printf("\n");
}

/* ---- The command ---- */

typedef struct command {
    bool measures;
    uint32_t shape[3]; /* of products to measure, zeros: as a rule */
    uint64_t seed;
    const char *wanted; /* "op", or "op=variant"; NULL: all */
} command;

static bool is_wanted(const kernel *k, const char *wanted)
{
    return wanted == NULL || strcmp(wanted, k->name) == 0 || strcmp(wanted, k->op) == 0;
}

/* TOKENSxOUTPUTSxINPUTS */
static bool read_shape(const char *text, uint32_t shape[3])
{
    for (int i = 0; i < 3; i++) {
        char *end;
        unsigned long value = strtoul(text, &end, 10);
        if (end == text || *end != (i < 2 ? 'x' : '\0') || value < 1 || value > 65536) return false;
        shape[i] = (uint32_t)value;
        text = end + 1;
    }
    return true;
}

static bool read_command(int n_arguments, char **arguments, command *c)
{
    *c = (command){.seed = (uint64_t)time(NULL)};
    for (int i = 1; i < n_arguments; i++) {
        char *end = arguments[i];
        if (strcmp(arguments[i], "--bench") == 0) {
            c->measures = true;
        } else if (strcmp(arguments[i], "--shape") == 0 && i + 1 < n_arguments) {
            if (!read_shape(arguments[++i], c->shape)) return false;
        } else if (strcmp(arguments[i], "--seed") == 0 && i + 1 < n_arguments) {
            errno = 0;
            c->seed = strtoull(arguments[++i], &end, 10);
            if (errno != 0 || end == arguments[i] || *end != '\0') return false;
        } else if (arguments[i][0] != '-' && c->wanted == NULL) {
            c->wanted = arguments[i];
        } else {
            return false;
        }
    }
    return true;
}

int main(int n_arguments, char **arguments)
{
    command c;
    if (!read_command(n_arguments, arguments, &c)) {
        (void)fprintf(
            stderr,
            "usage: %s [--bench [--shape TOKENSxOUTPUTSxINPUTS]] [--seed N] [OP | OP=VARIANT]\n",
            arguments[0]);
        return 2;
    }
    report total = {0};
    bool is_well = true;
    unsigned n_skipped = 0, n_wanted = 0;
    if (!c.measures) (void)printf("--seed %llu\n", (unsigned long long)c.seed);
    for (size_t i = 0; i < N_KERNELS; i++) {
        if (!is_wanted(&kernels[i], c.wanted)) continue;
        n_wanted++;
        if (!bitm_cpu_has(kernels[i].tier)) {
            (void)printf("%-24s skipped: this machine cannot run it\n", kernels[i].name);
            n_skipped++;
        } else if (c.measures) {
            print_speed(&kernels[i], c.shape);
        } else {
            is_well = check_apart(&kernels[i], c.seed, &total) && is_well;
        }
    }
    if (n_wanted == 0) (void)fprintf(stderr, "there is no kernel %s\n", c.wanted);
    if (!c.measures)
        (void)printf("%u passed, %u failed, %u skipped\n", total.n_passed, total.n_failed,
                     n_skipped);
    return is_well && n_wanted > 0 ? 0 : 1;
}
