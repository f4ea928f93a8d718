/* The scalar kernels: plain C that defines every op's result, for any machine.
 *
 * Products expand a stretch of one weight row once and use it for a tile of tokens, so that the
 * cost of unpacking bits is shared; the plain loops over bytes are what compilers vectorize on
 * their own. */
#include "../file.h"
#include "canonical.h"
#include "kernels.h"

enum {
    TILE_TOKENS = 16,
    STRETCH = 1024, /* columns expanded at a time; a multiple of 64 and of BITM_LANES */
};

static inline uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static inline void store(const bitm_gemm *gemm, size_t token, size_t output, float dot)
{
    float *y = gemm->outputs + token * gemm->output_stride + output;
    float value = fmaf(dot, gemm->row_scale[output] * gemm->token_step[token], gemm->bias[output]);
    if (gemm->row_offset != NULL)
        value = fmaf(gemm->row_offset[output], gemm->token_sum[token], value);
    *y = gemm->accumulate ? *y + value : value;
}

static inline const uint64_t *bit_row(const bitm_gemm *gemm, size_t output)
{
    size_t n_words = ((size_t)gemm->n_inputs + 63) / 64;
    return (const uint64_t *)gemm->weights + output * n_words;
}

/* ---- Integer products ---- */

static void expand_signs(const uint64_t *words, uint32_t first, uint32_t n, int8_t *signs)
{
    for (uint32_t i = 0; i < n; i++)
        signs[i] = (int8_t)(2 * (int)(words[(first + i) / 64] >> (first + i) % 64 & 1) - 1);
}

static inline int32_t dot_i8(const int8_t *signs, const int8_t *codes, uint32_t n)
{
    int32_t sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += (int16_t)(signs[i] * codes[i]);
    return sum;
}

static inline int32_t dot_i16(const int8_t *signs, const int16_t *codes, uint32_t n)
{
    int32_t sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += signs[i] * codes[i];
    return sum;
}

static inline void gemm_w1_integer(const bitm_gemm *gemm, bool wide, uint32_t token,
                                   uint32_t n_tokens, uint32_t output, uint32_t n_outputs)
{
    size_t n_inputs = gemm->n_inputs;
    for (uint32_t tile = 0; tile < n_tokens; tile += TILE_TOKENS) {
        uint32_t n_tile = smaller(TILE_TOKENS, n_tokens - tile);
        size_t first_token = (size_t)token + tile;
        for (uint32_t o = output; o < output + n_outputs; o++) {
            int32_t dots[TILE_TOKENS] = {0};
            for (uint32_t c = 0; c < gemm->n_inputs; c += STRETCH) {
                int8_t signs[STRETCH];
                uint32_t n = smaller(STRETCH, gemm->n_inputs - c);
                expand_signs(bit_row(gemm, o), c, n, signs);
                for (uint32_t t = 0; t < n_tile; t++) {
                    size_t place = (first_token + t) * n_inputs + c;
                    dots[t] += wide ? dot_i16(signs, (const int16_t *)gemm->inputs + place, n)
                                    : dot_i8(signs, (const int8_t *)gemm->inputs + place, n);
                }
            }
            for (uint32_t t = 0; t < n_tile; t++)
                store(gemm, first_token + t, o, (float)dots[t]);
        }
    }
}

void bitm_gemm_w1a8__scalar(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                            uint32_t output, uint32_t n_outputs)
{
    gemm_w1_integer(gemm, false, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w1a16__scalar(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                             uint32_t output, uint32_t n_outputs)
{
    gemm_w1_integer(gemm, true, token, n_tokens, output, n_outputs);
}

/* ---- Float products ---- */

static inline void expand_floats(const bitm_gemm *gemm, bitm_dtype dtype, size_t output,
                                 uint32_t first, uint32_t n, float *weights)
{
    size_t place = output * gemm->n_inputs + first;
    if (dtype == BITM_DTYPE_F32) {
        memcpy(weights, (const float *)gemm->weights + place, n * sizeof *weights);
    } else if (dtype == BITM_DTYPE_F16) {
        for (uint32_t i = 0; i < n; i++)
            weights[i] = bitm_f16_to_f32(((const uint16_t *)gemm->weights)[place + i]);
    } else {
        const uint64_t *words = bit_row(gemm, output);
        for (uint32_t i = 0; i < n; i++)
            weights[i] = words[(first + i) / 64] >> (first + i) % 64 & 1 ? 1.0F : -1.0F;
    }
}

/* Adds the products of a stretch to the 16 lanes.  Products with a sign are exact: adding them is
 * what a fused multiply-add would do. */
static inline void add_products(float lanes[BITM_LANES], const float *weights, const float *x,
                                uint32_t n, bool signs)
{
    uint32_t i = 0;
    for (; i + BITM_LANES <= n; i += BITM_LANES)
        for (uint32_t l = 0; l < BITM_LANES; l++)
            lanes[l] = signs ? lanes[l] + weights[i + l] * x[i + l]
                             : fmaf(weights[i + l], x[i + l], lanes[l]);
    for (uint32_t l = 0; i + l < n; l++)
        lanes[l] = fmaf(weights[i + l], x[i + l], lanes[l]);
}

static inline void gemm_float(const bitm_gemm *gemm, bitm_dtype dtype, uint32_t token,
                              uint32_t n_tokens, uint32_t output, uint32_t n_outputs)
{
    size_t n_inputs = gemm->n_inputs;
    for (uint32_t tile = 0; tile < n_tokens; tile += TILE_TOKENS) {
        uint32_t n_tile = smaller(TILE_TOKENS, n_tokens - tile);
        size_t first_token = (size_t)token + tile;
        const float *inputs = (const float *)gemm->inputs + first_token * n_inputs;
        for (uint32_t o = output; o < output + n_outputs; o++) {
            float lanes[TILE_TOKENS][BITM_LANES] = {{0}};
            for (uint32_t c = 0; c < gemm->n_inputs; c += STRETCH) {
                float weights[STRETCH];
                uint32_t n = smaller(STRETCH, gemm->n_inputs - c);
                expand_floats(gemm, dtype, o, c, n, weights);
                for (uint32_t t = 0; t < n_tile; t++)
                    add_products(lanes[t], weights, inputs + t * n_inputs + c, n,
                                 dtype == BITM_DTYPE_BIT1);
            }
            for (uint32_t t = 0; t < n_tile; t++)
                store(gemm, first_token + t, o, bitm_fold(lanes[t]));
        }
    }
}

void bitm_gemm_w1f32__scalar(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                             uint32_t output, uint32_t n_outputs)
{
    gemm_float(gemm, BITM_DTYPE_BIT1, token, n_tokens, output, n_outputs);
}

void bitm_gemm_f16__scalar(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                           uint32_t output, uint32_t n_outputs)
{
    gemm_float(gemm, BITM_DTYPE_F16, token, n_tokens, output, n_outputs);
}

void bitm_gemm_f32__scalar(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                           uint32_t output, uint32_t n_outputs)
{
    gemm_float(gemm, BITM_DTYPE_F32, token, n_tokens, output, n_outputs);
}

/* ---- Activations ---- */

static float max_abs(const float *x, uint32_t n)
{
    float greatest = 0.0F;
    for (uint32_t i = 0; i < n; i++)
        greatest = fabsf(x[i]) > greatest ? fabsf(x[i]) : greatest;
    return greatest;
}

/* The factor from values to codes, and *step back; both 0 where a token has no value but zeros (or
 * so small ones that the factor would not be finite). */
static float code_factor(float greatest, float max_code, float *step)
{
    float factor = max_code / greatest;
    if (!(greatest > 0.0F) || !(factor <= 3.402823466e38F)) {
        *step = 0.0F;
        return 0.0F;
    }
    *step = greatest / max_code;
    return factor;
}

/* The code of a value.  Selected so that a NaN, which only a damaged model makes, stays in range.
 */
static inline float code_of(float x, float factor, float max_code)
{
    float code = bitm_round(x * factor);
    code = code > -max_code ? code : -max_code;
    return code < max_code ? code : max_code;
}

void bitm_quantize_i8__scalar(const float *x, uint32_t n, int8_t *codes, float *step, float *sum)
{
    float factor = code_factor(max_abs(x, n), 127.0F, step);
    int32_t total = 0;
    for (uint32_t i = 0; i < n; i++) {
        codes[i] = (int8_t)code_of(x[i], factor, 127.0F);
        total += codes[i];
    }
    *sum = *step * (float)total;
}

void bitm_quantize_i16__scalar(const float *x, uint32_t n, int16_t *codes, float *step, float *sum)
{
    float factor = code_factor(max_abs(x, n), 32767.0F, step);
    int32_t total = 0;
    for (uint32_t i = 0; i < n; i++) {
        codes[i] = (int16_t)code_of(x[i], factor, 32767.0F);
        total += codes[i];
    }
    *sum = *step * (float)total;
}

void bitm_add_norm__scalar(const float *x, const float *residual, const float *gain,
                           const float *bias, float eps, uint32_t n, float *y)
{
    float lanes[BITM_LANES] = {0};
    for (uint32_t i = 0; i < n; i++) {
        y[i] = residual != NULL ? x[i] + residual[i] : x[i];
        lanes[i % BITM_LANES] += y[i];
    }
    float mean = bitm_fold(lanes) / (float)n;

    memset(lanes, 0, sizeof lanes);
    for (uint32_t i = 0; i < n; i++) {
        y[i] -= mean;
        lanes[i % BITM_LANES] = fmaf(y[i], y[i], lanes[i % BITM_LANES]);
    }
    float variance = bitm_fold(lanes) / (float)n;
    float factor = 1.0F / sqrtf(variance + eps);
    for (uint32_t i = 0; i < n; i++)
        y[i] = fmaf(y[i] * factor, gain[i], bias[i]);
}

void bitm_activate__scalar(uint32_t activation, float *x, uint32_t n)
{
    switch (activation) {
    case BITM_ACTIVATION_GELU:
        for (uint32_t i = 0; i < n; i++)
            x[i] = bitm_gelu(x[i]);
        break;
    case BITM_ACTIVATION_GELU_TANH:
        for (uint32_t i = 0; i < n; i++)
            x[i] = bitm_gelu_tanh(x[i]);
        break;
    case BITM_ACTIVATION_RELU:
        for (uint32_t i = 0; i < n; i++)
            x[i] = x[i] > 0.0F ? x[i] : 0.0F;
        break;
    case BITM_ACTIVATION_SWISH:
        for (uint32_t i = 0; i < n; i++)
            x[i] = bitm_swish(x[i]);
        break;
    case BITM_ACTIVATION_MISH:
        for (uint32_t i = 0; i < n; i++)
            x[i] = bitm_mish(x[i]);
        break;
    default:
        break;
    }
}

float bitm_exp_sum__scalar(float *x, uint32_t n)
{
    float greatest = x[0];
    for (uint32_t i = 1; i < n; i++)
        greatest = x[i] > greatest ? x[i] : greatest;
    float lanes[BITM_LANES] = {0};
    for (uint32_t i = 0; i < n; i++) {
        x[i] = bitm_exp(x[i] - greatest);
        lanes[i % BITM_LANES] += x[i];
    }
    return bitm_fold(lanes);
}

/* ---- Attention ---- */

void bitm_attention__scalar(const bitm_attention *attention, uint32_t token, uint32_t n_tokens)
{
    uint32_t head_size = attention->head_size;
    for (size_t i = token; i < (size_t)token + n_tokens; i++) {
        const float *query = attention->query + i * attention->stride;
        for (size_t j = 0; j < attention->n_tokens; j++) {
            float lanes[BITM_LANES] = {0};
            add_products(lanes, query, attention->key + j * attention->stride, head_size, false);
            attention->scores[j] = attention->score_scale * bitm_fold(lanes);
        }
        float factor = 1.0F / bitm_exp_sum__scalar(attention->scores, attention->n_tokens);

        float *context = attention->context + i * attention->context_stride;
        memset(context, 0, head_size * sizeof *context);
        for (size_t j = 0; j < attention->n_tokens; j++) {
            const float *value = attention->value + j * attention->stride;
            for (uint32_t d = 0; d < head_size; d++)
                context[d] = fmaf(attention->scores[j], value[d], context[d]);
        }
        for (uint32_t d = 0; d < head_size; d++)
            context[d] *= factor;
    }
}
