/* Quantization: codes within half a step of the value, sums and planes exact. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "check_kernels.h"
#include "quantizer.h"

/* ---- Symmetric quantization of a token ---- */

/* Codes of either width behind one interface: the kernel's, as plain numbers. */
typedef struct quantized {
    void *codes;
    float *step, *sum;
} quantized;

static quantized new_quantized(trial *t, uint32_t n, size_t code_bytes)
{
    return (quantized){.codes = guard_array(&t->arrays, n, code_bytes),
                       .step = new_randoms(t, 1),
                       .sum = new_randoms(t, 1)};
}

static void call_quantize(any_fn *kernel, int16_t max_code, const float *x, uint32_t n,
                          quantized *q)
{
    if (max_code > INT8_MAX)
        ((bitm_quantize_i16_fn *)kernel)(x, n, max_code, q->codes, q->step, q->sum);
    else
        ((bitm_quantize_i8_fn *)kernel)(x, n, q->codes, q->step, q->sum);
}

static void expect_quantized(trial *t, const float *x, uint32_t n, int16_t max_code,
                             const quantized *q)
{
    double greatest = 0, sum = 0, step = *q->step;
    for (uint32_t i = 0; i < n; i++) {
        double size = fabs((double)x[i]);
        greatest = size > greatest ? size : greatest; /* fmax makes gcc 12 for aarch64 crash */
    }
    bool is_zero = max_code / greatest > FLT_MAX; /* also where greatest is 0 */
    expect_near(t, n, step, is_zero ? 0 : greatest / max_code, ROUNDING * step + SMALLEST);
    for (uint32_t i = 0; i < n; i++) {
        double code =
            max_code > INT8_MAX ? ((const int16_t *)q->codes)[i] : ((const int8_t *)q->codes)[i];
        double exact = is_zero ? 0 : x[i] * max_code / greatest;
        expect_near(t, i, code, exact, is_zero ? 0 : 0.5 + 4 * ROUNDING * max_code);
        expect(t, fabs(code) <= max_code, "element %u: code %g", i, code);
        sum += code;
    }
    expect_near(t, n, *q->sum, sum * step, 2 * ROUNDING * fabs(sum * step) + SMALLEST);
}

static void check_symmetric(trial *t, bool wide, any_fn *kernel, any_fn *scalar)
{
    for (int i = 0; i < N_AWKWARD_SIZES; i++) {
        uint32_t n = awkward_sizes[i];
        size_t code_bytes = wide ? sizeof(int16_t) : sizeof(int8_t);
        int16_t max_code = INT8_MAX;
        if (wide) max_code = i % 2 == 0 ? BITM_INT16_MAX_CODE : BITM_INT11_MAX_CODE;
        at_work(t, "pattern %d, %u elements", t->pattern, n);
        float *x = new_floats(t, n);
        guard_seal(&t->arrays);
        quantized found = new_quantized(t, n, code_bytes);
        quantized expected = new_quantized(t, n, code_bytes);
        call_quantize(scalar, max_code, x, n, &expected);
        call_quantize(kernel, max_code, x, n, &found);
        expect_same(t, found.codes, expected.codes, n * code_bytes, "codes");
        expect_same(t, found.step, expected.step, sizeof *found.step, "step");
        expect_same(t, found.sum, expected.sum, sizeof *found.sum, "sum");
        expect_quantized(t, x, n, max_code, &expected);
        guard_release(&t->arrays);
    }
}

enum { MEASURED_ELEMENTS = 3072 };

typedef struct symmetric_call {
    any_fn *kernel;
    bool wide;
    const float *x;
    quantized q;
} symmetric_call;

static void call_symmetric(void *context)
{
    symmetric_call *call = context;
    call_quantize(call->kernel, call->wide ? BITM_INT16_MAX_CODE : INT8_MAX, call->x,
                  MEASURED_ELEMENTS, &call->q);
}

static speed measure_symmetric(trial *t, bool wide, any_fn *kernel)
{
    symmetric_call call = {.kernel = kernel,
                           .wide = wide,
                           .x = new_floats(t, MEASURED_ELEMENTS),
                           .q = new_quantized(t, MEASURED_ELEMENTS, sizeof(int16_t))};
    speed found = {MEASURED_ELEMENTS, "element", time_calls(call_symmetric, &call)};
    guard_release(&t->arrays);
    return found;
}

void check_quantize_i8(trial *t, any_fn *kernel, any_fn *scalar)
{
    check_symmetric(t, false, kernel, scalar);
}

speed measure_quantize_i8(trial *t, any_fn *kernel)
{
    return measure_symmetric(t, false, kernel);
}

void check_quantize_i16(trial *t, any_fn *kernel, any_fn *scalar)
{
    check_symmetric(t, true, kernel, scalar);
}

speed measure_quantize_i16(trial *t, any_fn *kernel)
{
    return measure_symmetric(t, true, kernel);
}

/* ---- The model's quantizers ---- */

/* One of many: static and dynamic, with and without shift, clip and base. */
static bitm_quantization new_quantization(trial *t, uint32_t n)
{
    static const float highest[] = {1, 3, 7, 127, 255, 32767};
    random_state *random = &t->random;
    float hi = highest[random_below(random, sizeof highest / sizeof highest[0])];
    float unit = t->pattern == PATTERN_EXTREMES ? 1e17F : 1.0F;
    bitm_quantization q = {.sign = random_below(random, 4) == 0,
                           .clips = random_below(random, 2) == 0,
                           .clip_lo = -0.75F * unit,
                           .clip_hi = 0.5F * unit,
                           .divisor = unit * (0.25F + fabsf(random_float(random))),
                           .factor = random_below(random, 2) == 0 ? 1.0F : hi,
                           .lo = -hi - 1,
                           .hi = hi};
    if (random_below(random, 2) == 0) q.shift = new_floats(t, n);
    if (random_below(random, 2) == 0) {
        q.base = -unit * fabsf(random_float(random));
        q.lo = 0;
    } else if (random_below(random, 4) == 0) {
        q.hi = q.lo + 1.0F; /* two codes, of which none is above 0 */
    }
    return q;
}

/* z of SPEC.md 3.4 with the rounding of its one addition. */
static double shifted(const bitm_quantization *q, const float *x, uint32_t i)
{
    double z = q->shift != NULL ? (float)((double)x[i] + q->shift[i]) : x[i];
    return q->clips ? fmin(fmax(z, q->clip_lo), q->clip_hi) : z;
}

static void expect_code(trial *t, const bitm_quantization *q, const float *x, uint32_t i,
                        double code)
{
    double z = shifted(q, x, i);
    if (q->sign) { /* with lo = 0, of kind bool: whether z is above 0 */
        expect_near(t, i, code, z > 0 ? 1 : z < 0 && q->lo < 0 ? -1 : 0, 0);
        return;
    }
    double exact = (z - q->base) / q->divisor * q->factor;
    double clamped = fmin(fmax(exact, q->lo), q->hi);
    /* Three roundings before the last, which is to an integer. */
    expect_near(t, i, code, clamped, 0.5 + 4 * ROUNDING * (fabs(clamped) + q->factor));
}

/* Values whose codes are a half or next to it before they are rounded, where one rounding more or
 * less shows. */
static void put_on_ties(trial *t, const bitm_quantization *q, float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        float code = (float)random_below(&t->random, (uint32_t)(q->hi - q->lo)) + q->lo + 0.5F;
        float tie = code / q->factor * q->divisor + q->base;
        uint32_t side = random_below(&t->random, 3);
        x[i] = side == 0 ? tie : nextafterf(tie, side == 1 ? INFINITY : -INFINITY);
    }
}

void check_quantize(trial *t, any_fn *kernel, any_fn *scalar)
{
    for (int i = 0; i < N_AWKWARD_SIZES; i++) {
        uint32_t n = awkward_sizes[i];
        at_work(t, "pattern %d, %u elements", t->pattern, n);
        float *x = new_floats(t, n);
        bitm_quantization q = new_quantization(t, n);
        if (t->pattern == PATTERN_RANDOM && i % 2 == 0) put_on_ties(t, &q, x, n);
        guard_seal(&t->arrays);
        int16_t *found = guard_array(&t->arrays, n, sizeof *found);
        int16_t *expected = guard_array(&t->arrays, n, sizeof *expected);
        int32_t sum = ((bitm_quantize_fn *)scalar)(&q, x, n, expected);
        if (i % 3 != 0) bitm_quantization_split(&q); /* the same codes by a threshold */
        expect(t, ((bitm_quantize_fn *)kernel)(&q, x, n, found) == sum, "the sum differs");
        expect_same(t, found, expected, n * sizeof *found, "codes");
        int32_t exact_sum = 0;
        for (uint32_t k = 0; k < n; k++) {
            expect_code(t, &q, x, k, expected[k]);
            exact_sum += expected[k];
        }
        expect(t, sum == exact_sum, "sum %d, expected %d", sum, exact_sum);
        guard_release(&t->arrays);
    }
}

/* The bit of a code in a plane: nonzero and positive, or the two's complement bits. */
static bool bit_of(int16_t code, bool are_signs, uint32_t plane)
{
    if (are_signs) return plane == 0 ? code != 0 : code > 0;
    return (uint16_t)code >> plane & 1;
}

void check_quantize_planes(trial *t, any_fn *kernel, any_fn *scalar)
{
    for (int i = 0; i < N_AWKWARD_SIZES; i++) {
        uint32_t n = awkward_sizes[i], n_words = (n + 63) / 64;
        float *x = new_floats(t, n);
        bitm_quantization q = new_quantization(t, n);
        if (i % 4 == 1) { /* codes 0 and 1 */
            q.lo = 0;
            q.hi = 1;
        }
        if (t->pattern == PATTERN_RANDOM && i % 2 == 0) put_on_ties(t, &q, x, n);
        bool are_signs = q.sign && q.lo < 0.0F;
        uint32_t n_planes = are_signs ? 2 : 1 + random_below(&t->random, BITM_MAX_PLANES);
        size_t n_bytes = (size_t)n_planes * n_words * 8;
        at_work(t, "pattern %d, %u elements, %u planes", t->pattern, n, n_planes);
        int16_t *codes = guard_array(&t->arrays, n, sizeof *codes);
        int32_t sum = bitm_quantize__scalar(&q, x, n, codes);
        guard_seal(&t->arrays);
        uint64_t *found = guard_array(&t->arrays, (size_t)n_planes * n_words, sizeof *found);
        uint64_t *expected = guard_array(&t->arrays, (size_t)n_planes * n_words, sizeof *expected);
        memset(found, 0xA5, n_bytes);
        memset(expected, 0x5A, n_bytes);
        bitm_quantize_planes_fn *of_scalar = (bitm_quantize_planes_fn *)scalar;
        expect(t, of_scalar(&q, x, n, n_planes, expected) == sum, "the scalar sum differs");
        if (i % 3 != 0) bitm_quantization_split(&q); /* the same codes by a threshold */
        bitm_quantize_planes_fn *of_kernel = (bitm_quantize_planes_fn *)kernel;
        expect(t, of_kernel(&q, x, n, n_planes, found) == sum, "the sum differs");
        expect_same(t, found, expected, n_bytes, "planes");
        bool right = true;
        for (uint32_t p = 0; p < n_planes; p++)
            for (uint32_t k = 0; k < n_words * 64; k++)
                right = right && (expected[p * n_words + k / 64] >> k % 64 & 1) ==
                                     (k < n && bit_of(codes[k], are_signs, p));
        expect(t, right, "the planes are not the codes' bits");
        guard_release(&t->arrays);
    }
}

/* Values around limits: within the band, at its ends and a float or two beside them. */
static void put_on_limits(trial *t, const float *limits, float *x, uint32_t n)
{
    static const float moves[] = {0.0F, 1e-6F, 1e-4F, 0.5F * BITM_GELU_BAND, BITM_GELU_BAND, 0.01F};
    for (uint32_t i = 0; i < n; i++) {
        float move = moves[random_below(&t->random, sizeof moves / sizeof moves[0])];
        float near = limits[i] + (random_below(&t->random, 2) == 0 ? move : -move);
        uint32_t side = random_below(&t->random, 3);
        x[i] = side == 0 ? near : nextafterf(near, side == 1 ? INFINITY : -INFINITY);
    }
}

void check_gelu_bits(trial *t, any_fn *kernel, any_fn *scalar)
{
    for (int i = 0; i < N_AWKWARD_SIZES; i++) {
        uint32_t n = awkward_sizes[i], n_words = (n + 63) / 64;
        at_work(t, "pattern %d, %u elements", t->pattern, n);
        float *x = new_floats(t, n), *limits = new_randoms(t, n);
        bitm_quantization q = {.factor = 1, .hi = 1, .divisor = 0.1F + random_float(&t->random)};
        if (i % 2 == 0) q.shift = new_floats(t, n);
        bitm_quantization_split(&q);
        if (q.two_codes) {
            bitm_gelu_limits(&q, bitm_activate__scalar, n, limits);
        } else { /* limits that tell nothing */
            q.threshold = 0.25F;
            for (uint32_t k = 0; k < n; k++)
                limits[k] = NAN;
        }
        if (t->pattern == PATTERN_RANDOM && i % 3 != 0) put_on_limits(t, limits, x, n);
        guard_seal(&t->arrays);
        uint64_t *found = guard_array(&t->arrays, n_words, sizeof *found);
        uint64_t *expected = guard_array(&t->arrays, n_words, sizeof *expected);
        memset(found, 0xA5, n_words * sizeof *found);
        memset(expected, 0x5A, n_words * sizeof *expected);
        const bitm_gelu_codes codes = {limits, q.shift, q.threshold};
        int32_t sum = ((bitm_gelu_bits_fn *)scalar)(&codes, x, n, expected);
        expect(t, ((bitm_gelu_bits_fn *)kernel)(&codes, x, n, found) == sum, "the sum differs");
        expect_same(t, found, expected, n_words * sizeof *found, "bits");
        bool right = true;
        int32_t exact_sum = 0;
        for (uint32_t k = 0; k < n_words * 64; k++) {
            bool is_set = false;
            if (k < n) {
                float z = x[k];
                bitm_activate__scalar(BITM_ACTIVATION_GELU, &z, 1);
                is_set = (q.shift != NULL ? z + q.shift[k] : z) >= q.threshold;
            }
            right = right && (expected[k / 64] >> k % 64 & 1) == is_set;
            exact_sum += is_set;
        }
        expect(t, right && sum == exact_sum, "bits are not those of the GELU");
        guard_release(&t->arrays);
    }
}

void check_extremes(trial *t, any_fn *kernel, any_fn *scalar)
{
    for (int i = 0; i < N_AWKWARD_SIZES; i++) {
        uint32_t n = awkward_sizes[i];
        at_work(t, "pattern %d, %u elements", t->pattern, n);
        float *x = new_floats(t, n);
        bitm_quantization q = new_quantization(t, n);
        guard_seal(&t->arrays);
        float *found = new_randoms(t, 2), *expected = new_randoms(t, 2);
        ((bitm_extremes_fn *)scalar)(&q, x, n, expected);
        ((bitm_extremes_fn *)kernel)(&q, x, n, found);
        double least = INFINITY, greatest = -INFINITY;
        for (uint32_t k = 0; k < n; k++) {
            double z = shifted(&q, x, k);
            least = z < least ? z : least;
            greatest = z > greatest ? z : greatest;
        }
        expect_near(t, 0, expected[0], least, 0);
        expect_near(t, 1, expected[1], greatest, 0);
        /* A zero may have either sign: nothing that follows sees it. */
        expect_near(t, 0, found[0], least, 0);
        expect_near(t, 1, found[1], greatest, 0);
        guard_release(&t->arrays);
    }
}

typedef struct quantize_call {
    any_fn *kernel;
    bitm_quantization q;
    const float *x;
    int16_t *codes;
    uint64_t *planes;
    float extremes[2];
} quantize_call;

static void call_model_quantize(void *context)
{
    quantize_call *call = context;
    (void)((bitm_quantize_fn *)call->kernel)(&call->q, call->x, MEASURED_ELEMENTS, call->codes);
}

static void call_quantize_planes(void *context)
{
    quantize_call *call = context;
    (void)((bitm_quantize_planes_fn *)call->kernel)(&call->q, call->x, MEASURED_ELEMENTS, 2,
                                                    call->planes);
}

static void call_extremes(void *context)
{
    quantize_call *call = context;
    ((bitm_extremes_fn *)call->kernel)(&call->q, call->x, MEASURED_ELEMENTS, call->extremes);
}

static speed measure_model_quantizer(trial *t, any_fn *kernel, void (*call_kernel)(void *))
{
    quantize_call call = {.kernel = kernel,
                          .q = {.divisor = 0.25F, .factor = 1, .lo = -8, .hi = 7},
                          .x = new_floats(t, MEASURED_ELEMENTS),
                          .codes = guard_array(&t->arrays, MEASURED_ELEMENTS, sizeof(int16_t)),
                          .planes = guard_array(&t->arrays, 2 * MEASURED_ELEMENTS / 64, 8)};
    speed found = {MEASURED_ELEMENTS, "element", time_calls(call_kernel, &call)};
    guard_release(&t->arrays);
    return found;
}

speed measure_quantize(trial *t, any_fn *kernel)
{
    return measure_model_quantizer(t, kernel, call_model_quantize);
}

speed measure_quantize_planes(trial *t, any_fn *kernel)
{
    return measure_model_quantizer(t, kernel, call_quantize_planes);
}

typedef struct gelu_call {
    any_fn *kernel;
    bitm_gelu_codes codes;
    const float *x;
    uint64_t *bits;
} gelu_call;

static void call_gelu_bits(void *context)
{
    gelu_call *call = context;
    (void)((bitm_gelu_bits_fn *)call->kernel)(&call->codes, call->x, MEASURED_ELEMENTS, call->bits);
}

speed measure_gelu_bits(trial *t, any_fn *kernel)
{
    gelu_call call = {.kernel = kernel,
                      .codes = {.limits = new_randoms(t, MEASURED_ELEMENTS),
                                .shift = new_randoms(t, MEASURED_ELEMENTS),
                                .threshold = 0.25F},
                      .x = new_randoms(t, MEASURED_ELEMENTS),
                      .bits = guard_array(&t->arrays, MEASURED_ELEMENTS / 64, 8)};
    speed found = {MEASURED_ELEMENTS, "element", time_calls(call_gelu_bits, &call)};
    guard_release(&t->arrays);
    return found;
}

speed measure_extremes(trial *t, any_fn *kernel)
{
    return measure_model_quantizer(t, kernel, call_extremes);
}
