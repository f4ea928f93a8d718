/* Norms, activation functions, softmax and attention, against the same in double. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "check_kernels.h"
#include "file.h"

enum { MEASURED_SIZE = 768 };

/* The relative error of a sum of n in 16 lanes. */
static double sum_error(uint32_t n)
{
    return ROUNDING * (n / 16 + 6);
}

/* ---- Norms ---- */

/* The norm of z in double; tolerances follow how errors of z, mean and variance spread. */
static void expect_norm(trial *t, const double *z, const float *gain, const float *bias, float eps,
                        uint32_t n, const float *y)
{
    double mean = 0, size = 0, variance = 0, spread = 0;
    for (uint32_t i = 0; i < n; i++) {
        mean += z[i] / n;
        size = fmax(size, fabs(z[i]));
    }
    for (uint32_t i = 0; i < n; i++) {
        variance += (z[i] - mean) * (z[i] - mean) / n;
        spread += fabs(z[i] - mean) / n;
    }
    double z_error = sum_error(n) * size + 2 * SMALLEST;
    double variance_error =
        2 * z_error * spread + z_error * z_error + sum_error(n) * variance + n * SMALLEST;
    double sigma = sqrt(variance + eps);
    double factor_error = variance_error / (2 * sigma * sigma) + 4 * ROUNDING;
    for (uint32_t i = 0; i < n; i++) {
        double exact = (z[i] - mean) / sigma;
        double error = z_error / sigma + fabs(exact) * factor_error;
        expect_near(t, i, y[i], exact * gain[i] + bias[i],
                    2 * error * fabs(gain[i]) + 2 * ROUNDING * fabs(exact * gain[i] + bias[i]) +
                        2 * SMALLEST);
    }
}

/* y apart, in the place of x, and in the place of the residual. */
enum { Y_APART, Y_IS_X, Y_IS_RESIDUAL, N_PLACES };

static float *call_add_norm(trial *t, any_fn *kernel, int place, const float *x,
                            const float *residual, const float *gain, const float *bias, float eps,
                            uint32_t n)
{
    float *x_copy = new_copy(t, x, n * sizeof *x);
    float *residual_copy = residual != NULL ? new_copy(t, residual, n * sizeof *x) : NULL;
    float *y = place == Y_IS_X          ? x_copy
               : place == Y_IS_RESIDUAL ? residual_copy
                                        : new_randoms(t, n);
    ((bitm_add_norm_fn *)kernel)(x_copy, residual_copy, gain, bias, eps, n, y);
    return y;
}

void check_add_norm(trial *t, any_fn *kernel, any_fn *scalar)
{
    static const float epsilons[] = {1e-12F, 1e-5F, 1e-3F};
    double z[2053];
    for (int i = 0; i < N_AWKWARD_SIZES * N_PLACES; i++) {
        uint32_t n = awkward_sizes[i / N_PLACES];
        int place = i % N_PLACES;
        bool adds = place == Y_IS_RESIDUAL || random_below(&t->random, 2) == 0;
        float eps = epsilons[random_below(&t->random, 3)];
        at_work(t, "pattern %d, %u elements, place %d", t->pattern, n, place);
        float *x = new_floats(t, n), *residual = adds ? new_floats(t, n) : NULL;
        float *gain = new_randoms(t, n), *bias = new_randoms(t, n);
        guard_seal(&t->arrays);
        float *expected = call_add_norm(t, scalar, place, x, residual, gain, bias, eps, n);
        float *found = call_add_norm(t, kernel, place, x, residual, gain, bias, eps, n);
        expect_same(t, found, expected, n * sizeof *found, "y");
        for (uint32_t k = 0; k < n; k++)
            z[k] = adds ? (double)x[k] + residual[k] : x[k];
        expect_norm(t, z, gain, bias, eps, n, expected);
        guard_release(&t->arrays);
    }
}

void check_rms_norm(trial *t, any_fn *kernel, any_fn *scalar)
{
    for (int i = 0; i < N_AWKWARD_SIZES; i++) {
        uint32_t n = awkward_sizes[i];
        float eps = 1e-5F;
        at_work(t, "pattern %d, %u elements", t->pattern, n);
        float *x = new_floats(t, n), *gain = new_randoms(t, n);
        guard_seal(&t->arrays);
        float *found = new_randoms(t, n), *expected = new_randoms(t, n);
        ((bitm_rms_norm_fn *)scalar)(x, gain, eps, n, expected);
        ((bitm_rms_norm_fn *)kernel)(x, gain, eps, n, found);
        expect_same(t, found, expected, n * sizeof *found, "y");
        double square = 0;
        for (uint32_t k = 0; k < n; k++)
            square += (double)x[k] * x[k] / n;
        for (uint32_t k = 0; k < n; k++) {
            double exact = x[k] / sqrt(square + eps) * gain[k];
            expect_near(t, k, expected[k], exact,
                        (sum_error(n) + 8 * ROUNDING) * fabs(exact) + 2 * SMALLEST);
        }
        guard_release(&t->arrays);
    }
}

typedef struct norm_call {
    any_fn *kernel;
    const float *x, *gain, *bias;
    float *y;
} norm_call;

static void call_add_norm_again(void *context)
{
    norm_call *call = context;
    ((bitm_add_norm_fn *)call->kernel)(call->x, call->bias, call->gain, call->bias, 1e-5F,
                                       MEASURED_SIZE, call->y);
}

static void call_rms_norm_again(void *context)
{
    norm_call *call = context;
    ((bitm_rms_norm_fn *)call->kernel)(call->x, call->gain, 1e-5F, MEASURED_SIZE, call->y);
}

static speed measure_norm(trial *t, any_fn *kernel, void (*call_kernel)(void *))
{
    norm_call call = {kernel, new_floats(t, MEASURED_SIZE), new_floats(t, MEASURED_SIZE),
                      new_floats(t, MEASURED_SIZE), new_floats(t, MEASURED_SIZE)};
    speed found = {MEASURED_SIZE, "element", time_calls(call_kernel, &call)};
    guard_release(&t->arrays);
    return found;
}

speed measure_add_norm(trial *t, any_fn *kernel)
{
    return measure_norm(t, kernel, call_add_norm_again);
}

speed measure_rms_norm(trial *t, any_fn *kernel)
{
    return measure_norm(t, kernel, call_rms_norm_again);
}

/* ---- Activation functions ---- */

double activation_of(uint32_t activation, double x)
{
    switch (activation) {
    case BITM_ACTIVATION_NONE:
        return x;
    case BITM_ACTIVATION_GELU:
        return 0.5 * x * erfc(-x / sqrt(2));
    case BITM_ACTIVATION_GELU_TANH:
        return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
    case BITM_ACTIVATION_RELU:
        return x > 0 ? x : 0;
    case BITM_ACTIVATION_SWISH:
        return x / (1 + exp(-x));
    default:
        return x * tanh(log1p(exp(x)));
    }
}

/* 1 + erf and 1 + tanh cancel: their error is one of x.  The others are exact but for roundings. */
double activation_tolerance(uint32_t activation, double x, double exact)
{
    if (activation == BITM_ACTIVATION_RELU || activation == BITM_ACTIVATION_NONE) return 0;
    bool cancels = activation == BITM_ACTIVATION_GELU || activation == BITM_ACTIVATION_GELU_TANH;
    double error = 8 * ROUNDING * fabs(exact) + 2 * SMALLEST;
    return error + (cancels ? 3 * ROUNDING : 1e-37) * fabs(x);
}

void check_activate(trial *t, any_fn *kernel, any_fn *scalar)
{
    for (uint32_t f = BITM_ACTIVATION_NONE; f <= BITM_ACTIVATION_MISH; f++) {
        for (int i = 0; i < N_AWKWARD_SIZES; i++) {
            uint32_t n = awkward_sizes[i];
            at_work(t, "pattern %d, activation %u, %u elements", t->pattern, f, n);
            float *x = new_floats(t, n);
            for (uint32_t k = 0; k < n && t->pattern == PATTERN_RANDOM; k++)
                x[k] *= ldexpf(1, (int)(k % 9) - 1); /* 0.5 to 128 */
            guard_seal(&t->arrays);
            float *found = new_copy(t, x, n * sizeof *x), *expected = new_copy(t, x, n * sizeof *x);
            ((bitm_activate_fn *)scalar)(f, expected, n);
            ((bitm_activate_fn *)kernel)(f, found, n);
            expect_same(t, found, expected, n * sizeof *x, "x");
            for (uint32_t k = 0; k < n; k++) {
                double exact = activation_of(f, x[k]);
                expect_near(t, k, expected[k], exact, activation_tolerance(f, x[k], exact));
                if (f == BITM_ACTIVATION_GELU && x[k] < -5.55F)
                    expect(t, expected[k] == 0, "GELU of %g is not 0 as in PyTorch", x[k]);
            }
            guard_release(&t->arrays);
        }
    }
}

void check_exp_sum(trial *t, any_fn *kernel, any_fn *scalar)
{
    for (int i = 0; i < N_AWKWARD_SIZES; i++) {
        uint32_t n = awkward_sizes[i];
        at_work(t, "pattern %d, %u elements", t->pattern, n);
        float *x = new_floats(t, n);
        for (uint32_t k = 0; k < n && t->pattern == PATTERN_RANDOM; k++)
            x[k] *= 50; /* some are so small beside the greatest that they become 0 */
        guard_seal(&t->arrays);
        float *found = new_copy(t, x, n * sizeof *x), *expected = new_copy(t, x, n * sizeof *x);
        float sum = ((bitm_exp_sum_fn *)scalar)(expected, n);
        float found_sum = ((bitm_exp_sum_fn *)kernel)(found, n);
        expect_same(t, found, expected, n * sizeof *x, "x");
        expect_same(t, &found_sum, &sum, sizeof sum, "sum");
        float greatest = x[0];
        double exact_sum = 0;
        for (uint32_t k = 1; k < n; k++)
            greatest = fmaxf(greatest, x[k]);
        for (uint32_t k = 0; k < n; k++) {
            double exact = exp((double)(x[k] - greatest));
            if (exact < exp(-87)) exact = 0;
            expect_near(t, k, expected[k], exact, 2.3 * ROUNDING * exact);
            exact_sum += exact;
        }
        expect_near(t, n, sum, exact_sum, (sum_error(n) + 3 * ROUNDING) * exact_sum);
        guard_release(&t->arrays);
    }
}

typedef struct vector_call {
    any_fn *kernel;
    const float *x;
    float *y;
    volatile float sum; /* so that the call is not left out */
} vector_call;

static void call_activate(void *context)
{
    vector_call *call = context;
    memcpy(call->y, call->x, MEASURED_SIZE * sizeof *call->y);
    ((bitm_activate_fn *)call->kernel)(BITM_ACTIVATION_GELU, call->y, MEASURED_SIZE);
}

static void call_exp_sum(void *context)
{
    vector_call *call = context;
    memcpy(call->y, call->x, MEASURED_SIZE * sizeof *call->y);
    call->sum = ((bitm_exp_sum_fn *)call->kernel)(call->y, MEASURED_SIZE);
}

static speed measure_vector(trial *t, any_fn *kernel, void (*call_kernel)(void *))
{
    vector_call call = {
        .kernel = kernel, .x = new_floats(t, MEASURED_SIZE), .y = new_floats(t, MEASURED_SIZE)};
    speed found = {MEASURED_SIZE, "element", time_calls(call_kernel, &call)};
    guard_release(&t->arrays);
    return found;
}

speed measure_activate(trial *t, any_fn *kernel)
{
    return measure_vector(t, kernel, call_activate);
}

speed measure_exp_sum(trial *t, any_fn *kernel)
{
    return measure_vector(t, kernel, call_exp_sum);
}

/* ---- Attention ---- */

/* Room for a head of n_tokens in an array whose rows are `stride` apart. */
static size_t room(uint32_t n_tokens, size_t stride, uint32_t head_size)
{
    return (n_tokens - 1) * stride + head_size;
}

static bitm_attention new_attention(trial *t, uint32_t n_tokens, uint32_t head_size, size_t stride)
{
    size_t n = room(n_tokens, stride, head_size);
    return (bitm_attention){.query = new_floats(t, n),
                            .key = new_floats(t, n),
                            .value = new_floats(t, n),
                            .stride = stride,
                            .context_stride = head_size + random_below(&t->random, 20),
                            .n_tokens = n_tokens,
                            .head_size = head_size,
                            .score_scale = 1.0F / sqrtf((float)head_size)};
}

/* The greatest size of a token's components, or of a component over tokens, and so how far codes of
 * 8 bits may be from values: half a step, and rounding.  Of values too small for a step codes are
 * 0. */
static double code_error(const float *x, size_t n, size_t stride)
{
    double greatest = 0;
    for (size_t k = 0; k < n; k++) /* by fmax, gcc 12 for ARM would fail at it */
        if (fabs(x[k * stride]) > greatest) greatest = fabs(x[k * stride]);
    return 127 / greatest > FLT_MAX ? greatest : greatest * (1 + 100 * ROUNDING) / 254;
}

/* Softmax attention of token i in double.  An error d of the scores changes a weight by exp(d);
 * codes of 8 bits change scores, weights (by half of 1 / 255 of the greatest) and values. */
static void expect_context(trial *t, const bitm_attention *a, bool of_codes, size_t i,
                           const float *context)
{
    double scores[257], greatest = -INFINITY, error = 0, sum = 0;
    const float *query = a->query + i * a->stride;
    const double query_error = of_codes ? code_error(query, a->head_size, 1) : 0;
    for (size_t j = 0; j < a->n_tokens; j++) {
        const float *key = a->key + j * a->stride;
        const double key_error = of_codes ? code_error(key, a->head_size, 1) : 0;
        double dot = 0, size = 0, moved = a->head_size * query_error * key_error;
        for (uint32_t d = 0; d < a->head_size; d++) {
            double term = (double)query[d] * key[d];
            dot += term;
            size += fabs(term);
            moved += fabs(query[d]) * key_error + fabs(key[d]) * query_error;
        }
        scores[j] = dot * a->score_scale;
        greatest = fmax(greatest, scores[j]);
        error =
            fmax(error, ((sum_error(a->head_size) + 4 * ROUNDING) * size + moved) * a->score_scale);
    }
    for (size_t j = 0; j < a->n_tokens; j++)
        sum += scores[j] = exp(scores[j] - greatest);
    double spread = expm1(fmin(4 * error, 1)) + (a->n_tokens + 250) * ROUNDING;
    if (of_codes) spread += 2 * (0.53 / 255) * a->n_tokens / sum;
    for (uint32_t d = 0; d < a->head_size; d++) {
        double exact = 0, largest = 0;
        for (size_t j = 0; j < a->n_tokens; j++) {
            double value = a->value[j * a->stride + d];
            exact += scores[j] / sum * value;
            largest = fmax(largest, fabs(value));
        }
        const double value_error = of_codes ? code_error(a->value + d, a->n_tokens, a->stride) : 0;
        /* Scores too uncertain to order (huge inputs): an average of the values all the same. */
        if (error > 0.25)
            expect(t, fabs(context[d]) <= 1.001 * largest, "component %u: %g", d, context[d]);
        else
            expect_near(t, d, context[d], exact, spread * largest + value_error + 2 * SMALLEST);
    }
}

static size_t attention_room(bool of_codes, uint32_t n_tokens, uint32_t head_size)
{
    return of_codes ? bitm_attention_i8_room(n_tokens, head_size)
                    : bitm_attention_room(n_tokens, head_size);
}

static void check_form(trial *t, bool of_codes, any_fn *kernel, any_fn *scalar)
{
    static const uint32_t head_sizes[] = {1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 128};
    for (size_t i = 0; i < sizeof head_sizes / sizeof head_sizes[0]; i++) {
        uint32_t n_tokens = 1 + random_below(&t->random, i % 4 == 0 ? 257 : 40);
        bitm_attention a =
            new_attention(t, n_tokens, head_sizes[i], head_sizes[i] + random_below(&t->random, 20));
        uint32_t first = random_below(&t->random, n_tokens);
        uint32_t n = 1 + random_below(&t->random, n_tokens - first);
        if (n > 20) n = 20;
        at_work(t, "pattern %d, head size %u, tokens %u + %u of %u", t->pattern, a.head_size, first,
                n, n_tokens);
        guard_seal(&t->arrays);
        size_t n_context = room(n_tokens, a.context_stride, a.head_size);
        float *before = new_randoms(t, n_context);
        float *found = new_copy(t, before, n_context * sizeof *found);
        float *expected = new_copy(t, before, n_context * sizeof *expected);
        a.scores = new_randoms(t, attention_room(of_codes, n_tokens, a.head_size));
        a.context = expected;
        ((bitm_attention_fn *)scalar)(&a, first, n);
        a.context = found;
        ((bitm_attention_fn *)kernel)(&a, first, n);
        expect_same(t, found, expected, n_context * sizeof *found, "context");
        for (size_t k = 0; k < n_context; k++) {
            size_t row = k / a.context_stride, column = k % a.context_stride;
            bool inside = row >= first && row < first + n && column < a.head_size;
            if (inside && column == 0) expect_context(t, &a, of_codes, row, expected + k);
            if (!inside)
                expect(t, memcmp(&expected[k], &before[k], sizeof before[k]) == 0,
                       "element %zu outside of the block has changed", k);
        }
        guard_release(&t->arrays);
    }
}

void check_attention(trial *t, any_fn *kernel, any_fn *scalar)
{
    check_form(t, false, kernel, scalar);
}

void check_attention_i8(trial *t, any_fn *kernel, any_fn *scalar)
{
    check_form(t, true, kernel, scalar);
}

typedef struct attention_call {
    bitm_attention attention;
    bitm_attention_fn *kernel;
} attention_call;

static void call_attention(void *context)
{
    attention_call *call = context;
    call->kernel(&call->attention, 0, call->attention.n_tokens);
}

/* One head of BERT-base on a text of 128 tokens. */
static speed measure_form(trial *t, bool of_codes, any_fn *kernel)
{
    enum { N_TOKENS = 128, HEAD_SIZE = 64, N_HEADS = 12 };
    attention_call call = {.attention =
                               new_attention(t, N_TOKENS, HEAD_SIZE, (size_t)N_HEADS * HEAD_SIZE),
                           .kernel = (bitm_attention_fn *)kernel};
    call.attention.context =
        new_floats(t, room(N_TOKENS, call.attention.context_stride, HEAD_SIZE));
    call.attention.scores = new_floats(t, attention_room(of_codes, N_TOKENS, HEAD_SIZE));
    speed found = {(double)(2 * N_TOKENS * N_TOKENS * HEAD_SIZE), "MAC",
                   time_calls(call_attention, &call)};
    guard_release(&t->arrays);
    return found;
}

speed measure_attention(trial *t, any_fn *kernel)
{
    return measure_form(t, false, kernel);
}

speed measure_attention_i8(trial *t, any_fn *kernel)
{
    return measure_form(t, true, kernel);
}
