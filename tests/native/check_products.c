/* The products of weights and inputs: integers are exact, sums of floats as near as their order. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check_kernels.h"
#include "file.h"

#define STEEPEST 1.13 /* the greatest slope of an activation function, that of GELU */

typedef enum weight_kind {
    WEIGHT_BIT1,
    WEIGHT_TERN,
    WEIGHT_I8,
    WEIGHT_F16,
    WEIGHT_F32
} weight_kind;
typedef enum input_kind { INPUT_I8, INPUT_I16, INPUT_F32, INPUT_SIGN, INPUT_PLANES } input_kind;

/* A product with its operands as plain numbers beside. */
typedef struct product {
    weight_kind weight;
    input_kind input;
    uint32_t n_tokens, n_outputs;
    bitm_gemm gemm;
    double *weights; /* [n_outputs, n_inputs] */
    double *inputs;  /* [n_tokens, n_inputs] */
} product;

/* ---- Operands ---- */

static size_t words_of(uint32_t n)
{
    return ((size_t)n + 63) / 64;
}

static void set_bit(uint64_t *row, uint32_t column, bool value)
{
    row[column / 64] |= (uint64_t)value << column % 64;
}

/* binary16 by its definition, IEEE 754-2008 table 3.5; infinities and NaN aside. */
static double half_value(uint16_t half)
{
    int exponent = half >> 10 & 31, fraction = half & 1023;
    double magnitude = exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, exponent - 25);
    return half >> 15 ? -magnitude : magnitude;
}

static uint16_t half_of(trial *t)
{
    uint16_t random = (uint16_t)random_u64(&t->random), sign = random & 0x8000U;
    switch (t->pattern) {
    case PATTERN_ZEROS:
        return 0;
    case PATTERN_ONES:
        return 0x3C00;
    case PATTERN_SIGNED_ZEROS:
        return sign;
    case PATTERN_DENORMALS:
        return random & 0x83FFU;
    case PATTERN_EXTREMES:
        return sign | 0x7BFFU;
    default: /* any finite one */
        return (random & 0x7C00U) == 0x7C00U ? random & 0x83FFU : random;
    }
}

static void make_weights(trial *t, product *p)
{
    uint32_t n = p->gemm.n_inputs;
    size_t count = (size_t)p->n_outputs * n, plane = p->n_outputs * words_of(n);
    p->weights = malloc(count * sizeof *p->weights);
    uint64_t *words = NULL;
    int8_t *bytes = NULL;
    uint16_t *halves = NULL;
    float *floats = NULL;
    if (p->weight == WEIGHT_BIT1)
        p->gemm.weights = words = guard_array(&t->arrays, plane, sizeof *words);
    if (p->weight == WEIGHT_TERN)
        p->gemm.weights = words = guard_array(&t->arrays, 2 * plane, sizeof *words);
    if (p->weight == WEIGHT_I8)
        p->gemm.weights = bytes = guard_array(&t->arrays, count, sizeof *bytes);
    if (p->weight == WEIGHT_F16)
        p->gemm.weights = halves = guard_array(&t->arrays, count, sizeof *halves);
    if (p->weight == WEIGHT_F32) p->gemm.weights = floats = new_floats(t, count);
    for (size_t i = 0; i < count; i++) {
        uint64_t *row = words != NULL ? words + i / n * words_of(n) : NULL;
        uint32_t column = (uint32_t)(i % n);
        if (p->weight == WEIGHT_BIT1) {
            bool bit = code_of(t, -1, 1) > 0;
            set_bit(row, column, bit);
            p->weights[i] = bit ? 1 : -1;
        } else if (p->weight == WEIGHT_TERN) {
            int32_t code = code_of(t, -1, 1);
            set_bit(row, column, code != 0);
            set_bit(row + plane, column, code > 0);
            p->weights[i] = code;
        } else if (p->weight == WEIGHT_I8) {
            p->weights[i] = bytes[i] = (int8_t)code_of(t, -127, 127);
        } else if (p->weight == WEIGHT_F16) {
            halves[i] = half_of(t);
            p->weights[i] = half_value(halves[i]);
        } else {
            p->weights[i] = floats[i];
        }
    }
}

/* Codes in bit planes: two's complement of n_planes bits, or unsigned. */
static void make_planes(trial *t, product *p)
{
    uint32_t n = p->gemm.n_inputs, n_planes = 1 + random_below(&t->random, BITM_MAX_PLANES);
    bool has_sign = n_planes > 1 && random_below(&t->random, 2) == 0;
    int32_t *plane_weights = guard_array(&t->arrays, n_planes, sizeof *plane_weights);
    int32_t *code_sum = guard_array(&t->arrays, p->n_tokens, sizeof *code_sum);
    uint64_t *planes =
        guard_array(&t->arrays, p->n_tokens * n_planes * words_of(n), sizeof *planes);
    for (uint32_t i = 0; i < n_planes; i++)
        plane_weights[i] = has_sign && i + 1 == n_planes ? -(1 << i) : 1 << i;
    int32_t hi = (int32_t)((1U << (n_planes - has_sign)) - 1), lo = has_sign ? -hi - 1 : 0;
    for (size_t i = 0; i < (size_t)p->n_tokens * n; i++) {
        int32_t code = code_of(t, lo, hi);
        for (uint32_t k = 0; k < n_planes; k++)
            set_bit(planes + (i / n * n_planes + k) * words_of(n), (uint32_t)(i % n),
                    (uint32_t)code >> k & 1);
        code_sum[i / n] += code;
        p->inputs[i] = code;
    }
    p->gemm.inputs = planes;
    p->gemm.n_planes = n_planes;
    p->gemm.plane_weights = plane_weights;
    p->gemm.code_sum = code_sum;
}

static void make_inputs(trial *t, product *p)
{
    uint32_t n = p->gemm.n_inputs;
    size_t count = (size_t)p->n_tokens * n;
    p->inputs = malloc(count * sizeof *p->inputs);
    if (p->input == INPUT_PLANES) {
        make_planes(t, p);
    } else if (p->input == INPUT_SIGN) {
        uint64_t *planes = guard_array(&t->arrays, p->n_tokens * 2 * words_of(n), sizeof *planes);
        for (size_t i = 0; i < count; i++) {
            int32_t code = code_of(t, -1, 1);
            uint64_t *row = planes + i / n * 2 * words_of(n);
            set_bit(row, (uint32_t)(i % n), code != 0);
            set_bit(row + words_of(n), (uint32_t)(i % n), code > 0);
            p->inputs[i] = code;
        }
        p->gemm.inputs = planes;
    } else if (p->input == INPUT_I8) {
        int8_t *codes = guard_array(&t->arrays, count, sizeof *codes);
        for (size_t i = 0; i < count; i++)
            p->inputs[i] = codes[i] = (int8_t)code_of(t, -128, 127);
        p->gemm.inputs = codes;
    } else if (p->input == INPUT_I16) {
        int16_t *codes = guard_array(&t->arrays, count, sizeof *codes);
        p->gemm.are_int11 = random_below(&t->random, 2) == 0;
        const int32_t hi = p->gemm.are_int11 ? BITM_INT11_MAX_CODE : BITM_INT16_MAX_CODE;
        const int32_t lo = p->gemm.are_int11 ? -hi : -hi - 1;
        for (size_t i = 0; i < count; i++)
            p->inputs[i] = codes[i] = (int16_t)code_of(t, lo, hi);
        p->gemm.inputs = codes;
    } else {
        float *floats = new_floats(t, count);
        for (size_t i = 0; i < count; i++)
            p->inputs[i] = floats[i];
        p->gemm.inputs = floats;
    }
}

static void make_product(trial *t, product *p, uint32_t n_inputs)
{
    p->gemm.n_inputs = n_inputs;
    p->gemm.n_rows = p->n_outputs;
    make_weights(t, p);
    make_inputs(t, p);
    p->gemm.row_scale = new_randoms(t, p->n_outputs);
    p->gemm.bias = new_floats(t, p->n_outputs);
    if (random_below(&t->random, 2) == 0) p->gemm.row_offset = new_randoms(t, p->n_outputs);
    if (random_below(&t->random, 2) == 0) p->gemm.row_base = new_randoms(t, p->n_outputs);
    p->gemm.token_step = new_randoms(t, p->n_tokens);
    p->gemm.token_sum = new_floats(t, p->n_tokens);
    p->gemm.token_base = new_floats(t, p->n_tokens);
    p->gemm.output_stride = p->n_outputs + random_below(&t->random, 5);
    p->gemm.accumulate = random_below(&t->random, 2) == 0;
    if (random_below(&t->random, 2) == 0)
        p->gemm.activation = 1 + random_below(&t->random, BITM_ACTIVATION_MISH);
}

/* Scratch as nothing has prepared it, between guards that let it be aligned. */
static void *new_scratch(trial *t)
{
    size_t n_room = (t->scratch_bytes + 63) / 64 * 64;
    if (n_room == 0) return NULL;
    return memset(guard_array(&t->arrays, n_room, 1), 0xA5, n_room);
}

static void end_product(trial *t, product *p)
{
    free(p->weights);
    free(p->inputs);
    guard_release(&t->arrays);
}

/* The weights as the kernel's packing lays them out, between guards that let them be aligned. */
static const void *pack_weights(trial *t, const product *p)
{
    const bitm_gemm *g = &p->gemm;
    uint32_t n_planes = p->weight == WEIGHT_TERN ? 2 : 1;
    size_t n_bytes = t->packing->n_bytes(n_planes, g->n_rows, g->n_inputs);
    size_t n_room = (n_bytes + 63) / 64 * 64;
    uint8_t *packed = guard_array(&t->arrays, n_room, 1);
    memset(packed, 0xA5, n_room);
    t->packing->pack(g->weights, n_planes, g->n_rows, g->n_inputs, packed);
    for (size_t i = n_bytes; i < n_room; i++)
        expect(t, packed[i] == 0xA5, "packing has written byte %zu of %zu", i, n_bytes);
    return packed;
}

/* ---- The check ---- */

static void expect_element(trial *t, const product *p, size_t token, size_t output, float before,
                           float found)
{
    const bitm_gemm *g = &p->gemm;
    uint32_t n = g->n_inputs;
    double dot = 0, size = 0;
    for (uint32_t c = 0; c < n; c++) {
        double term = p->weights[output * n + c] * p->inputs[token * n + c];
        dot += term;
        size += fabs(term);
    }
    /* Integers are rounded once; a float passes n / 16 additions of its lane and 4 of the fold. */
    double error = p->input != INPUT_F32 ? ROUNDING * fabs(dot)
                                         : ROUNDING * (n / 16 + 6) * size + SMALLEST * n;
    double scale = (double)g->row_scale[output] * g->token_step[token];
    double terms[5] = {dot * scale, g->bias[output], 0, 0, g->accumulate ? before : 0};
    if (g->row_offset != NULL) terms[2] = (double)g->row_offset[output] * g->token_sum[token];
    if (g->row_base != NULL) terms[3] = (double)g->row_base[output] * g->token_base[token];
    double expected = 0, magnitude = 0;
    for (int i = 0; i < 5; i++) {
        expected += terms[i];
        magnitude += fabs(terms[i]);
    }
    double tolerance = fabs(scale) * error + 6 * ROUNDING * magnitude + SMALLEST * 4;
    double y = activation_of(g->activation, expected);
    expect_near(t, token * g->output_stride + output, found, y,
                STEEPEST * tolerance + activation_tolerance(g->activation, expected, y));
}

static void check_block(trial *t, product *p, bitm_gemm_fn *kernel, bitm_gemm_fn *scalar)
{
    bitm_gemm *g = &p->gemm;
    uint32_t token = random_below(&t->random, p->n_tokens);
    uint32_t output = random_below(&t->random, p->n_outputs);
    uint32_t n_tokens = 1 + random_below(&t->random, p->n_tokens - token);
    uint32_t n_outputs = 1 + random_below(&t->random, p->n_outputs - output);
    at_work(t, "pattern %d, %u inputs, tokens %u + %u of %u, outputs %u + %u of %u", t->pattern,
            g->n_inputs, token, n_tokens, p->n_tokens, output, n_outputs, p->n_outputs);
    guard_seal(&t->arrays);
    g->scratch = new_scratch(t);
    size_t n = (p->n_tokens - 1) * g->output_stride + p->n_outputs;
    float *before = new_randoms(t, n);
    float *found = new_copy(t, before, n * sizeof *found);
    float *expected = new_copy(t, before, n * sizeof *expected);
    g->outputs = expected;
    scalar(g, token, n_tokens, output, n_outputs);
    g->outputs = found;
    kernel(g, token, n_tokens, output, n_outputs);
    expect_same(t, found, expected, n * sizeof *found, "outputs");
    if (t->packing != NULL) {
        g->packed = pack_weights(t, p);
        g->outputs = memcpy(found, before, n * sizeof *found);
        kernel(g, token, n_tokens, output, n_outputs);
        expect_same(t, found, expected, n * sizeof *found, "outputs of packed weights");
    }
    for (size_t i = 0; i < n; i++) {
        size_t row = i / g->output_stride, column = i % g->output_stride;
        if (row >= token && row < token + n_tokens && column >= output &&
            column < output + n_outputs)
            expect_element(t, p, row, column, before[i], expected[i]);
        else
            expect(t, memcmp(&expected[i], &before[i], sizeof before[i]) == 0,
                   "element %zu outside of the block has changed", i);
    }
}

static void check_product(trial *t, weight_kind weight, input_kind input, bitm_gemm_fn *kernel,
                          bitm_gemm_fn *scalar)
{
    for (int i = 0; i < N_AWKWARD_SIZES; i++) {
        product p = {.weight = weight,
                     .input = input,
                     .n_tokens = 1 + random_below(&t->random, 35),
                     .n_outputs = 1 + random_below(&t->random, 70)};
        make_product(t, &p, awkward_sizes[i]);
        check_block(t, &p, kernel, scalar);
        end_product(t, &p);
    }
}

/* ---- The speed ---- */

typedef struct product_call {
    product p;
    bitm_gemm_fn *kernel;
} product_call;

static void call_product(void *context)
{
    product_call *call = context;
    call->kernel(&call->p.gemm, 0, call->p.n_tokens, 0, call->p.n_outputs);
}

/* A batch of tokens through a linear. */
static speed measure_product(trial *t, weight_kind weight, input_kind input, bitm_gemm_fn *kernel)
{
    uint32_t n_tokens = t->shape[0], n_outputs = t->shape[1], n_inputs = t->shape[2];
    product_call call = {
        .p = {.weight = weight, .input = input, .n_tokens = n_tokens, .n_outputs = n_outputs},
        .kernel = kernel};
    make_product(t, &call.p, n_inputs);
    call.p.gemm.accumulate = false;
    call.p.gemm.activation = BITM_ACTIVATION_NONE;
    call.p.gemm.scratch = new_scratch(t);
    if (t->packing != NULL) call.p.gemm.packed = pack_weights(t, &call.p);
    call.p.gemm.outputs = new_randoms(t, call.p.gemm.output_stride * n_tokens);
    speed found = {(double)n_inputs * n_outputs * n_tokens, "MAC", time_calls(call_product, &call)};
    end_product(t, &call.p);
    return found;
}

#define PRODUCT(op, weight, input)                                                                 \
    void check_##op(trial *t, any_fn *kernel, any_fn *scalar)                                      \
    {                                                                                              \
        check_product(t, weight, input, (bitm_gemm_fn *)kernel, (bitm_gemm_fn *)scalar);           \
    }                                                                                              \
    speed measure_##op(trial *t, any_fn *kernel)                                                   \
    {                                                                                              \
        return measure_product(t, weight, input, (bitm_gemm_fn *)kernel);                          \
    }

PRODUCT(gemm_w1a8, WEIGHT_BIT1, INPUT_I8)
PRODUCT(gemm_w1a16, WEIGHT_BIT1, INPUT_I16)
PRODUCT(gemm_w1f32, WEIGHT_BIT1, INPUT_F32)
PRODUCT(gemm_w1sign, WEIGHT_BIT1, INPUT_SIGN)
PRODUCT(gemm_w1planes, WEIGHT_BIT1, INPUT_PLANES)
PRODUCT(gemm_w2a8, WEIGHT_TERN, INPUT_I8)
PRODUCT(gemm_w2a16, WEIGHT_TERN, INPUT_I16)
PRODUCT(gemm_w2f32, WEIGHT_TERN, INPUT_F32)
PRODUCT(gemm_w2sign, WEIGHT_TERN, INPUT_SIGN)
PRODUCT(gemm_w2planes, WEIGHT_TERN, INPUT_PLANES)
PRODUCT(gemm_f16, WEIGHT_F16, INPUT_F32)
PRODUCT(gemm_f32, WEIGHT_F32, INPUT_F32)
PRODUCT(gemm_i8, WEIGHT_I8, INPUT_F32)

/* ---- Products of bit planes ---- */

static bitm_planes make_bits(trial *t, uint32_t n_planes, uint32_t n_words, uint32_t n_rows)
{
    size_t n = (size_t)n_rows * n_planes * n_words;
    uint64_t *bits = guard_array(&t->arrays, n, sizeof *bits);
    int32_t *weights = guard_array(&t->arrays, n_planes, sizeof *weights);
    for (size_t i = 0; i < n; i++) {
        bits[i] = random_u64(&t->random);
        if (t->pattern == PATTERN_ZEROS) bits[i] = 0;
        if (t->pattern == PATTERN_ONES || t->pattern == PATTERN_EXTREMES) bits[i] = UINT64_MAX;
    }
    for (uint32_t i = 0; i < n_planes; i++)
        weights[i] = random_below(&t->random, 2) == 0 ? 1 << i : -(1 << i);
    return (bitm_planes){.bits = bits, .weights = weights, .n_planes = n_planes};
}

/* The product of the vector a with row j of b, bit by bit. */
static int64_t dot_of_bits(const bitm_planes *a, const bitm_planes *b, size_t n_words, size_t j)
{
    int64_t sum = 0;
    const uint64_t *row = b->bits + j * b->n_planes * n_words;
    for (uint32_t p = 0; p < a->n_planes; p++)
        for (uint32_t q = 0; q < b->n_planes; q++)
            for (size_t i = 0; i < n_words * 64; i++) {
                size_t word = i / 64, bit = i % 64;
                if (a->bits[p * n_words + word] >> bit & row[q * n_words + word] >> bit & 1)
                    sum += (int64_t)a->weights[p] * b->weights[q];
            }
    return sum;
}

void check_dot_planes(trial *t, any_fn *kernel, any_fn *scalar)
{
    for (uint32_t n_words = 1; n_words <= 48; n_words++) {
        uint32_t n_rows = 1 + random_below(&t->random, 20);
        bitm_planes a = make_bits(t, 1 + random_below(&t->random, 8), n_words, 1);
        bitm_planes b = make_bits(t, 1 + random_below(&t->random, 8), n_words, n_rows);
        guard_seal(&t->arrays);
        int32_t *expected = guard_array(&t->arrays, n_rows, sizeof *expected);
        int32_t *found = guard_array(&t->arrays, n_rows, sizeof *found);
        at_work(t, "pattern %d, %u and %u planes of %u words, %u rows", t->pattern, a.n_planes,
                b.n_planes, n_words, n_rows);
        ((bitm_dot_planes_fn *)scalar)(&a, &b, n_words, n_rows, expected);
        ((bitm_dot_planes_fn *)kernel)(&a, &b, n_words, n_rows, found);
        for (size_t j = 0; j < n_rows; j++)
            expect(t, found[j] == expected[j], "row %zu: found %d, expected %d", j, found[j],
                   expected[j]);
        size_t j = random_below(&t->random, n_rows);
        expect_near(t, j, expected[j], (double)dot_of_bits(&a, &b, n_words, j), 0);
        guard_release(&t->arrays);
    }
}

typedef struct planes_call {
    bitm_planes a, b;
    uint32_t n_words, n_rows;
    int32_t *dots;
    bitm_dot_planes_fn *kernel;
} planes_call;

static void call_dot_planes(void *context)
{
    planes_call *call = context;
    call->kernel(&call->a, &call->b, call->n_words, call->n_rows, call->dots);
}

/* A query of a head of 64 components with 128 keys, all signs. */
speed measure_dot_planes(trial *t, any_fn *kernel)
{
    enum { N_PLANES = 2, N_WORDS = 1, N_ROWS = 128 };
    planes_call call = {.a = make_bits(t, N_PLANES, N_WORDS, 1),
                        .b = make_bits(t, N_PLANES, N_WORDS, N_ROWS),
                        .n_words = N_WORDS,
                        .n_rows = N_ROWS,
                        .dots = guard_array(&t->arrays, N_ROWS, sizeof *call.dots),
                        .kernel = (bitm_dot_planes_fn *)kernel};
    speed found = {64.0 * call.n_words * call.n_rows, "MAC", time_calls(call_dot_planes, &call)};
    guard_release(&t->arrays);
    return found;
}
