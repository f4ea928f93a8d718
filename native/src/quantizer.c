#include "quantizer.h"

#include "kernels/canonical.h"

/* Codes of up to so many bits are multiplied as planes, others as bytes. */
enum { MAX_FEW_PLANES = 4 };

/* Weights of planes: of two's complement codes the highest counts negative. */
static const int32_t unsigned_weights[BITM_MAX_PLANES] = {
    1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
static const int32_t signed_weights[BITM_MAX_PLANES][BITM_MAX_PLANES] = {
    {-1},
    {1, -2},
    {1, 2, -4},
    {1, 2, 4, -8},
    {1, 2, 4, 8, -16},
    {1, 2, 4, 8, 16, -32},
    {1, 2, 4, 8, 16, 32, -64},
    {1, 2, 4, 8, 16, 32, 64, -128},
    {1, 2, 4, 8, 16, 32, 64, 128, -256},
    {1, 2, 4, 8, 16, 32, 64, 128, 256, -512},
    {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, -1024},
    {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, -2048},
    {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, -4096},
    {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, -8192},
    {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, -16384},
    {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768},
};

uint32_t bitm_quantizer_planes(const bitm_file_quantizer *quantizer, const int32_t **weights)
{
    uint32_t n = 1;
    if (quantizer->lo >= 0) {
        while (quantizer->hi >> n > 0)
            n++;
        *weights = unsigned_weights;
    } else {
        while (quantizer->hi >> (n - 1) > 0 || quantizer->lo + (1 << (n - 1)) < 0)
            n++;
        *weights = signed_weights[n - 1];
    }
    return n;
}

/* ---- Thresholds ----
 *
 * A difference, a quotient by a positive number, a product with one, a clamp and a rounding never
 * fall as their operand grows, and rounded results keep that order.  So a code of two is the
 * greater one from some float on, and the least such float is found by asking the formula itself.
 * A NaN is not above it, as it has the lesser code by the formula. */

/* Floats in their order as integers in theirs; both zeros are 0. */
static int64_t place_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    int64_t size = bits & 0x7FFFFFFFU;
    return bits >> 31 != 0 ? -size : size;
}

static float float_at(int64_t place)
{
    uint32_t bits = place < 0 ? 0x80000000U | (uint32_t)-place : (uint32_t)place;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Steps of twice the length from the guess, which is seldom off by more than a few floats, then
 * halves. */
float bitm_least_float(bitm_float_predicate *holds, const void *context, float guess)
{
    int64_t above = place_of(INFINITY) + 1, below = -above, probe = place_of(guess), stride = 1;
    while (above - below > 1) {
        if (probe <= below || probe >= above) probe = below + (above - below) / 2;
        if (holds(context, float_at(probe))) {
            above = probe;
            probe -= stride;
        } else {
            below = probe;
            probe += stride;
        }
        if (stride < INT32_MAX) stride *= 2; /* no float is further */
    }
    return float_at(above);
}

static bool has_greater_code(const void *quantization, float z)
{
    const bitm_quantization *q = quantization;
    return bitm_code(z, q->base, q->divisor, q->factor, q->lo, q->hi) >= q->hi;
}

typedef struct quotient {
    float divisor, least;
} quotient;

static bool has_quotient_above(const void *context, float x)
{
    const quotient *q = context;
    return x / q->divisor >= q->least;
}

static bool is_positive(float x)
{
    return x > 0.0F && x < INFINITY;
}

void bitm_quantization_split(bitm_quantization *q)
{
    q->two_codes = !q->sign && q->hi - q->lo == 1.0F && is_positive(q->divisor) &&
                   is_positive(q->factor) && fabsf(q->base) < INFINITY;
    if (!q->two_codes) return;
    float guess = q->base + (q->lo + 0.5F) * (q->divisor / q->factor);
    q->threshold = bitm_least_float(has_greater_code, q, guess);
}

bool bitm_quantization_divide(bitm_quantization *q, float divisor)
{
    if (!q->two_codes || q->shift != NULL || q->clips || !is_positive(divisor)) return false;
    const quotient sought = {divisor, q->threshold};
    q->threshold = bitm_least_float(has_quotient_above, &sought, q->threshold * divisor);
    return true;
}

/* ---- Limits before a GELU ---- */

enum { CHUNK = 256 };

/* y = gelu(x + move), all [n]. */
static void gelu_beside(bitm_activate_fn *activate, const float *x, float move, uint32_t n,
                        float *y)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] = x[i] + move;
    activate(BITM_ACTIVATION_GELU, y, n);
}

/* Solves gelu(x) = threshold - shift for x above 0, where the slope of GELU is between 0.5
 * and 1.13, so that steps of what is missing halve the error or better.  What they find is a limit
 * if GELU is far enough from what is wanted a band to either side: its float32 form steps back by
 * less than 1e-7 (found by trying every float up to 64), and adding the shift rounds; ten times
 * that is asked for. */
static void find_limits(const bitm_quantization *q, const float *shift, bitm_activate_fn *activate,
                        uint32_t n, float *x)
{
    enum { STEPS = 10 };
    const float greatest = 16.0F, margin = 1e-6F;
    float wanted[CHUNK], y[CHUNK], above[CHUNK];
    for (uint32_t i = 0; i < n; i++)
        x[i] = wanted[i] = q->threshold - (shift != NULL ? shift[i] : 0.0F);
    for (int step = 0; step < STEPS; step++) {
        gelu_beside(activate, x, 0.0F, n, y);
        for (uint32_t i = 0; i < n; i++)
            x[i] += wanted[i] - y[i];
    }
    gelu_beside(activate, x, -BITM_GELU_BAND, n, y);
    gelu_beside(activate, x, BITM_GELU_BAND, n, above);
    for (uint32_t i = 0; i < n; i++) {
        float m = margin * (2.0F + fabsf(wanted[i]) + fabsf(q->threshold - wanted[i]));
        bool is_limit =
            wanted[i] > m && x[i] < greatest && y[i] < wanted[i] - m && above[i] > wanted[i] + m;
        if (!is_limit) x[i] = NAN;
    }
}

void bitm_gelu_limits(const bitm_quantization *quantization, bitm_activate_fn *activate, uint32_t n,
                      float *limits)
{
    for (uint32_t i = 0; i < n; i += CHUNK)
        find_limits(quantization, quantization->shift != NULL ? quantization->shift + i : NULL,
                    activate, n - i < CHUNK ? n - i : CHUNK, limits + i);
}

/* ---- What quantizers make ---- */

bitm_input_form bitm_inputs_form(bitm_activations activations, const bitm_branch *branch)
{
    uint32_t dtype = branch->weight.tensor->dtype;
    if (dtype != BITM_DTYPE_BIT1 && dtype != BITM_DTYPE_TERN) return BITM_INPUT_FLOAT;
    const bitm_file_quantizer *quantizer = branch->quantizer;
    if (quantizer == NULL) {
        if (activations == BITM_ACTIVATIONS_FLOAT32) return BITM_INPUT_FLOAT;
        return activations == BITM_ACTIVATIONS_INT8 ? BITM_INPUT_I8 : BITM_INPUT_I16;
    }
    const int32_t *weights;
    if (quantizer->kind == BITM_QUANTIZER_SIGN) return BITM_INPUT_SIGN;
    if (bitm_quantizer_planes(quantizer, &weights) <= MAX_FEW_PLANES) return BITM_INPUT_PLANES;
    return quantizer->lo >= -128 && quantizer->hi <= 127 ? BITM_INPUT_I8 : BITM_INPUT_I16;
}

int16_t bitm_max_code(bitm_activations activations)
{
    return activations == BITM_ACTIVATIONS_INT11 ? BITM_INT11_MAX_CODE : BITM_INT16_MAX_CODE;
}

bool bitm_is_of_sequences(const bitm_linear *linear)
{
    for (uint32_t k = 0; k < linear->n_branches; k++) {
        const bitm_file_quantizer *quantizer = linear->branches[k].quantizer;
        if (quantizer != NULL && quantizer->scope == BITM_SCOPE_SEQUENCE) return true;
    }
    return false;
}

/* Whether the runtime's codes of 8 bits are all that a linear takes. */
static bool takes_bytes(const bitm_linear *linear, bitm_activations activations)
{
    for (uint32_t k = 0; k < linear->n_branches; k++)
        if (linear->branches[k].quantizer != NULL ||
            bitm_inputs_form(activations, &linear->branches[k]) != BITM_INPUT_I8)
            return false;
    return true;
}

bitm_attention_form bitm_attention_form_of(const bitm_network *network, const bitm_layer *layer,
                                           bitm_activations activations)
{
    if (layer->quantize_query != NULL || layer->quantize_key != NULL ||
        layer->quantize_value != NULL || layer->quantize_probabilities != NULL ||
        network->config->score_rank > 0 || network->config->value_term != 0)
        return BITM_ATTENTION_GENERAL;
    return takes_bytes(&layer->query, activations) && takes_bytes(&layer->key, activations) &&
                   takes_bytes(&layer->value, activations)
               ? BITM_ATTENTION_I8
               : BITM_ATTENTION_FLOAT;
}
