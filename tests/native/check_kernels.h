/* checkkernels: every line of kernels.def against the scalar kernel, bit for bit, and the scalar
 * kernel against plain arithmetic in double, within the rounding that its order allows.
 *
 * Each op has two functions here, found by their names: check_<op> and measure_<op>. */
#ifndef CHECK_KERNELS_H
#define CHECK_KERNELS_H

#include "guard.h"
#include "kernels/kernels.h"
#include "random.h"

typedef void any_fn(void); /* a kernel of any op */

/* What arrays are filled with. */
typedef enum pattern {
    PATTERN_ZEROS,
    PATTERN_ONES,
    PATTERN_RANDOM,
    PATTERN_SIGNED_ZEROS, /* +0, -0 and now and then a value */
    PATTERN_DENORMALS,
    PATTERN_EXTREMES, /* as large as they may be without an infinite result */
    N_PATTERNS
} pattern;

/* What the child process that checks a kernel tells its parent; shared memory. */
typedef struct report {
    unsigned n_passed, n_failed;
    char work[160]; /* what was at work: the last word when the process dies */
} report;

typedef struct trial {
    const char *kernel;          /* op=variant */
    const bitm_packing *packing; /* of its weights, NULL: none */
    size_t scratch_bytes;        /* that it asks for */
    uint32_t shape[3];           /* tokens, outputs and inputs of a product that is measured */
    random_state random;
    pattern pattern;
    guards arrays;
    report *report;
} trial;

/* A measured speed: units of work in a call, and how long a call takes. */
typedef struct speed {
    double n_units;
    const char *unit; /* "MAC" or "element" */
    double seconds;
} speed;

#define BITM_OP(op)                                                                                \
    void check_##op(trial *t, any_fn *kernel, any_fn *scalar);                                     \
    speed measure_##op(trial *t, any_fn *kernel);
BITM_OPS(BITM_OP)
#undef BITM_OP

/* Half of the distance from 1 to the next float: the relative error of one rounding. */
#define ROUNDING 0x1p-24
#define SMALLEST 0x1p-149 /* the least float above 0 */

/* Says what is at work, for the report. */
void at_work(trial *t, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Counts an expectation about the work; a failed one is printed. */
void expect(trial *t, bool condition, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Expects the same bits in both arrays of n_bytes, whatever lies in them. */
void expect_same(trial *t, const void *found, const void *expected, size_t n_bytes,
                 const char *what);

/* Expects found[i] within tolerance of expected. */
void expect_near(trial *t, size_t i, double found, double expected, double tolerance);

/* A bitm_activation in double, and how far from it one in float may be. */
double activation_of(uint32_t activation, double x);
double activation_tolerance(uint32_t activation, double x, double exact);

/* Guarded arrays: floats of the pattern; random ones, also for places that must not change; copies.
 */
float *new_floats(trial *t, size_t n);
float *new_randoms(trial *t, size_t n);
void *new_copy(trial *t, const void *array, size_t n_bytes);

/* One value of the pattern. */
float float_of(trial *t);

/* An integer code of the pattern, from lo to hi. */
int32_t code_of(trial *t, int32_t lo, int32_t hi);

/* Calls again and again for a while; the least time of a call. */
double time_calls(void (*call)(void *context), void *context);

/* The multiply-adds in a second that one core can do at most with the instructions that the tier's
 * kernels of an op lean on; 0: not known. */
double measure_peak(const char *op, bitm_tier tier);

/* Sizes at which things go wrong: prime, odd, and next to multiples of lanes and words. */
extern const uint32_t awkward_sizes[];
enum { N_AWKWARD_SIZES = 22 };

#endif
