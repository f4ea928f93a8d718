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
    if (gemm->row_base != NULL)
        value = fmaf(gemm->row_base[output], gemm->token_base[token], value);
    *y = gemm->accumulate ? *y + value : value;
}

/* The activation function, of a block of outputs that are complete. */
static void activate_block(const bitm_gemm *gemm, size_t token, uint32_t n_tokens, uint32_t output,
                           uint32_t n_outputs)
{
    if (gemm->activation == BITM_ACTIVATION_NONE) return;
    for (size_t t = token; t < token + n_tokens; t++)
        bitm_activate__scalar(gemm->activation, gemm->outputs + t * gemm->output_stride + output,
                              n_outputs);
}

static inline size_t words_of(const bitm_gemm *gemm)
{
    return ((size_t)gemm->n_inputs + 63) / 64;
}

/* A row of bits; of ternary weights the first plane, nonzero. */
static inline const uint64_t *bit_row(const bitm_gemm *gemm, size_t output)
{
    return (const uint64_t *)gemm->weights + output * words_of(gemm);
}

/* A row of the second plane of ternary weights, positive. */
static inline const uint64_t *sign_row(const bitm_gemm *gemm, size_t output)
{
    return bit_row(gemm, gemm->n_rows + output);
}

static inline int bit_at(const uint64_t *words, size_t i)
{
    return (int)(words[i / 64] >> i % 64 & 1);
}

/* ---- Integer products of bytes and words ---- */

static inline void expand_codes(const bitm_gemm *gemm, bool ternary, size_t output, uint32_t first,
                                uint32_t n, int8_t *weights)
{
    const uint64_t *words = bit_row(gemm, output);
    for (uint32_t i = 0; i < n; i++)
        weights[i] =
            (int8_t)(ternary ? bit_at(words, first + i) : 2 * bit_at(words, first + i) - 1);
    if (!ternary) return;
    words = sign_row(gemm, output);
    for (uint32_t i = 0; i < n; i++) /* nonzero n, positive p: p - (n - p) */
        weights[i] = (int8_t)(2 * bit_at(words, first + i) - weights[i]);
}

static inline int32_t dot_i8(const int8_t *weights, const int8_t *codes, uint32_t n)
{
    int32_t sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += (int16_t)(weights[i] * codes[i]);
    return sum;
}

static inline int32_t dot_i16(const int8_t *weights, const int16_t *codes, uint32_t n)
{
    int32_t sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += weights[i] * codes[i];
    return sum;
}

static inline void gemm_integer(const bitm_gemm *gemm, bool ternary, bool wide, uint32_t token,
                                uint32_t n_tokens, uint32_t output, uint32_t n_outputs)
{
    size_t n_inputs = gemm->n_inputs;
    for (uint32_t tile = 0; tile < n_tokens; tile += TILE_TOKENS) {
        uint32_t n_tile = smaller(TILE_TOKENS, n_tokens - tile);
        size_t first_token = (size_t)token + tile;
        for (uint32_t o = output; o < output + n_outputs; o++) {
            int32_t dots[TILE_TOKENS] = {0};
            for (uint32_t c = 0; c < gemm->n_inputs; c += STRETCH) {
                int8_t weights[STRETCH];
                uint32_t n = smaller(STRETCH, gemm->n_inputs - c);
                expand_codes(gemm, ternary, o, c, n, weights);
                for (uint32_t t = 0; t < n_tile; t++) {
                    size_t place = (first_token + t) * n_inputs + c;
                    dots[t] += wide ? dot_i16(weights, (const int16_t *)gemm->inputs + place, n)
                                    : dot_i8(weights, (const int8_t *)gemm->inputs + place, n);
                }
            }
            for (uint32_t t = 0; t < n_tile; t++)
                store(gemm, first_token + t, o, (float)dots[t]);
        }
    }
    activate_block(gemm, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w1a8__scalar(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                            uint32_t output, uint32_t n_outputs)
{
    gemm_integer(gemm, false, false, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w1a16__scalar(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                             uint32_t output, uint32_t n_outputs)
{
    gemm_integer(gemm, false, true, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2a8__scalar(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                            uint32_t output, uint32_t n_outputs)
{
    gemm_integer(gemm, true, false, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2a16__scalar(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                             uint32_t output, uint32_t n_outputs)
{
    gemm_integer(gemm, true, true, token, n_tokens, output, n_outputs);
}

/* ---- Products of bits (CHECKPOINTS 9.7; XNOR-Net, Rastegari et al. 2016) ---- */

static inline int32_t popcount(uint64_t word)
{
#if defined(__GNUC__)
    return __builtin_popcountll(word);
#else
    word -= word >> 1 & 0x5555555555555555U;
    word = (word & 0x3333333333333333U) + (word >> 2 & 0x3333333333333333U);
    word = (word + (word >> 4)) & 0x0F0F0F0F0F0F0F0FU;
    return (int32_t)(word * 0x0101010101010101U >> 56);
#endif
}

/* Where both are nonzero: equal signs count +1, others -1. */
static inline void gemm_sign(const bitm_gemm *gemm, bool ternary, uint32_t token, uint32_t n_tokens,
                             uint32_t output, uint32_t n_outputs)
{
    size_t n_words = words_of(gemm);
    for (uint32_t o = output; o < output + n_outputs; o++) {
        const uint64_t *nonzero = bit_row(gemm, o);
        const uint64_t *positive = ternary ? sign_row(gemm, o) : nonzero;
        for (size_t t = token; t < (size_t)token + n_tokens; t++) {
            const uint64_t *inputs = (const uint64_t *)gemm->inputs + t * 2 * n_words;
            int32_t n_both = 0, n_unequal = 0;
            for (size_t w = 0; w < n_words; w++) {
                uint64_t both = ternary ? nonzero[w] & inputs[w] : inputs[w];
                n_both += popcount(both);
                n_unequal += popcount((positive[w] ^ inputs[n_words + w]) & both);
            }
            store(gemm, t, o, (float)(n_both - 2 * n_unequal));
        }
    }
    activate_block(gemm, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w1sign__scalar(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                              uint32_t output, uint32_t n_outputs)
{
    gemm_sign(gemm, false, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2sign__scalar(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                              uint32_t output, uint32_t n_outputs)
{
    gemm_sign(gemm, true, token, n_tokens, output, n_outputs);
}

/* A plane with weights -1 and +1 sums to 2 popcount(positive AND plane) - popcount(plane), the
 * latter over the nonzero weights alone; over all planes that is the token's code_sum where no
 * weight is 0. */
static inline void gemm_planes(const bitm_gemm *gemm, bool ternary, uint32_t token,
                               uint32_t n_tokens, uint32_t output, uint32_t n_outputs)
{
    size_t n_words = words_of(gemm);
    for (uint32_t o = output; o < output + n_outputs; o++) {
        const uint64_t *nonzero = bit_row(gemm, o);
        const uint64_t *positive = ternary ? sign_row(gemm, o) : nonzero;
        for (size_t t = token; t < (size_t)token + n_tokens; t++) {
            const uint64_t *plane = (const uint64_t *)gemm->inputs + t * gemm->n_planes * n_words;
            int32_t dot = ternary ? 0 : -gemm->code_sum[t];
            for (uint32_t p = 0; p < gemm->n_planes; p++, plane += n_words) {
                int32_t count = 0;
                for (size_t w = 0; w < n_words; w++) {
                    count += 2 * popcount(positive[w] & plane[w]);
                    if (ternary) count -= popcount(nonzero[w] & plane[w]);
                }
                dot += gemm->plane_weights[p] * count;
            }
            store(gemm, t, o, (float)dot);
        }
    }
    activate_block(gemm, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w1planes__scalar(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                                uint32_t output, uint32_t n_outputs)
{
    gemm_planes(gemm, false, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2planes__scalar(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                                uint32_t output, uint32_t n_outputs)
{
    gemm_planes(gemm, true, token, n_tokens, output, n_outputs);
}

void bitm_dot_planes__scalar(const bitm_planes *a, const bitm_planes *b, uint32_t n_words,
                             uint32_t n_rows, int32_t *dots)
{
    const uint64_t *row = b->bits;
    for (uint32_t j = 0; j < n_rows; j++) {
        dots[j] = 0;
        for (uint32_t q = 0; q < b->n_planes; q++, row += n_words) {
            for (uint32_t p = 0; p < a->n_planes; p++) {
                int32_t count = 0;
                for (size_t w = 0; w < n_words; w++)
                    count += popcount(a->bits[p * (size_t)n_words + w] & row[w]);
                dots[j] += a->weights[p] * b->weights[q] * count;
            }
        }
    }
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
    } else if (dtype == BITM_DTYPE_I8) {
        for (uint32_t i = 0; i < n; i++)
            weights[i] = (float)((const int8_t *)gemm->weights)[place + i];
    } else {
        int8_t codes[STRETCH];
        expand_codes(gemm, dtype == BITM_DTYPE_TERN, output, first, n, codes);
        for (uint32_t i = 0; i < n; i++)
            weights[i] = (float)codes[i];
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
                                 dtype == BITM_DTYPE_BIT1 || dtype == BITM_DTYPE_TERN);
            }
            for (uint32_t t = 0; t < n_tile; t++)
                store(gemm, first_token + t, o, bitm_fold(lanes[t]));
        }
    }
    activate_block(gemm, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w1f32__scalar(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                             uint32_t output, uint32_t n_outputs)
{
    gemm_float(gemm, BITM_DTYPE_BIT1, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2f32__scalar(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                             uint32_t output, uint32_t n_outputs)
{
    gemm_float(gemm, BITM_DTYPE_TERN, token, n_tokens, output, n_outputs);
}

void bitm_gemm_i8__scalar(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens, uint32_t output,
                          uint32_t n_outputs)
{
    gemm_float(gemm, BITM_DTYPE_I8, token, n_tokens, output, n_outputs);
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

/* ---- Quantization ---- */

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

void bitm_quantize_i16__scalar(const float *x, uint32_t n, int16_t max_code, int16_t *codes,
                               float *step, float *sum)
{
    float factor = code_factor(max_abs(x, n), (float)max_code, step);
    int32_t total = 0;
    for (uint32_t i = 0; i < n; i++) {
        codes[i] = (int16_t)code_of(x[i], factor, (float)max_code);
        total += codes[i];
    }
    *sum = *step * (float)total;
}

static inline float shifted(const bitm_quantization *q, const float *x, uint32_t i)
{
    float z = q->shift != NULL ? x[i] + q->shift[i] : x[i];
    if (!q->clips) return z;
    z = z > q->clip_lo ? z : q->clip_lo;
    return z < q->clip_hi ? z : q->clip_hi;
}

static inline int16_t quantized(const bitm_quantization *q, const float *x, uint32_t i)
{
    float z = shifted(q, x, i);
    if (q->sign) return (int16_t)((z > 0.0F) - (z < 0.0F && q->lo < 0.0F));
    if (q->two_codes) return (int16_t)(z >= q->threshold ? q->hi : q->lo);
    return (int16_t)bitm_code(z, q->base, q->divisor, q->factor, q->lo, q->hi);
}

int32_t bitm_quantize__scalar(const bitm_quantization *q, const float *x, uint32_t n,
                              int16_t *codes)
{
    int32_t sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        codes[i] = quantized(q, x, i);
        sum += codes[i];
    }
    return sum;
}

int32_t bitm_quantize_planes__scalar(const bitm_quantization *q, const float *x, uint32_t n,
                                     uint32_t n_planes, uint64_t *planes)
{
    const size_t n_words = ((size_t)n + 63) / 64;
    const bool are_signs = q->sign && q->lo < 0.0F;
    int32_t sum = 0;
    memset(planes, 0, n_planes * n_words * sizeof *planes);
    for (uint32_t i = 0; i < n; i++) {
        int16_t code = quantized(q, x, i);
        uint32_t bits =
            are_signs ? (uint32_t)(code != 0) | (uint32_t)(code > 0) << 1 : (uint16_t)code;
        for (uint32_t p = 0; p < n_planes; p++)
            planes[p * n_words + i / 64] |= (uint64_t)(bits >> p & 1) << i % 64;
        sum += code;
    }
    return sum;
}

int32_t bitm_gelu_bits__scalar(const bitm_gelu_codes *codes, const float *x, uint32_t n,
                               uint64_t *bits)
{
    int32_t sum = 0;
    memset(bits, 0, ((size_t)n + 63) / 64 * sizeof *bits);
    for (uint32_t i = 0; i < n; i++) {
        float above = x[i] - codes->limits[i];
        bool is_set = above > 0.0F;
        if (!(fabsf(above) >= BITM_GELU_BAND)) {
            float z = bitm_gelu(x[i]);
            is_set = (codes->shift != NULL ? z + codes->shift[i] : z) >= codes->threshold;
        }
        bits[i / 64] |= (uint64_t)is_set << i % 64;
        sum += is_set;
    }
    return sum;
}

void bitm_extremes__scalar(const bitm_quantization *q, const float *x, uint32_t n,
                           float extremes[2])
{
    float least = shifted(q, x, 0), greatest = least;
    for (uint32_t i = 1; i < n; i++) {
        float z = shifted(q, x, i);
        least = z < least ? z : least;
        greatest = z > greatest ? z : greatest;
    }
    extremes[0] = least;
    extremes[1] = greatest;
}

/* ---- Token by token ---- */

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

void bitm_rms_norm__scalar(const float *x, const float *gain, float eps, uint32_t n, float *y)
{
    float lanes[BITM_LANES] = {0};
    for (uint32_t i = 0; i < n; i++)
        lanes[i % BITM_LANES] = fmaf(x[i], x[i], lanes[i % BITM_LANES]);
    float factor = 1.0F / sqrtf(bitm_fold(lanes) / (float)n + eps);
    for (uint32_t i = 0; i < n; i++)
        y[i] = (x[i] * factor) * gain[i];
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

/* Codes [n_tokens, head_size] of values, and the step of each component. */
static void quantize_values(const bitm_attention *a, int8_t *codes, float *step)
{
    for (uint32_t d = 0; d < a->head_size; d++) {
        float greatest = 0.0F;
        for (size_t j = 0; j < a->n_tokens; j++) {
            float size = fabsf(a->value[j * a->stride + d]);
            greatest = size > greatest ? size : greatest;
        }
        float factor = code_factor(greatest, 127.0F, &step[d]);
        for (size_t j = 0; j < a->n_tokens; j++)
            codes[j * a->head_size + d] =
                (int8_t)code_of(a->value[j * a->stride + d], factor, 127.0F);
    }
}

/* Codes of scores [n] in base 2; returns their sum. */
static int32_t quantize_scores(const float *scores, uint32_t n, uint8_t *codes)
{
    int32_t sum = 0;
    float greatest = scores[0];
    for (uint32_t j = 1; j < n; j++)
        greatest = scores[j] > greatest ? scores[j] : greatest;
    for (uint32_t j = 0; j < n; j++) {
        codes[j] = (uint8_t)bitm_probability_code(scores[j] - greatest);
        sum += codes[j];
    }
    return sum;
}

void bitm_attention_i8__scalar(const bitm_attention *attention, uint32_t token, uint32_t n_tokens)
{
    const bitm_attention_codes c = bitm_attention_codes_open(attention);
    const uint32_t head_size = attention->head_size, n = attention->n_tokens;
    int8_t *keys = c.keys, *values = c.values, *query = c.queries;
    uint8_t *codes = c.codes;
    float unused_sum;
    for (size_t j = 0; j < n; j++)
        bitm_quantize_i8__scalar(attention->key + j * attention->stride, head_size,
                                 keys + j * head_size, &c.key_step[j], &unused_sum);
    quantize_values(attention, values, c.value_step);
    for (size_t i = token; i < (size_t)token + n_tokens; i++) {
        float step;
        bitm_quantize_i8__scalar(attention->query + i * attention->stride, head_size, query, &step,
                                 &unused_sum);
        step *= attention->score_scale * BITM_LOG2_E;
        for (size_t j = 0; j < n; j++) {
            int32_t dot = 0;
            for (uint32_t d = 0; d < head_size; d++)
                dot += query[d] * keys[j * head_size + d];
            c.scores[j] = (float)dot * (step * c.key_step[j]);
        }
        const float factor = 1.0F / (float)quantize_scores(c.scores, n, codes);
        for (uint32_t d = 0; d < head_size; d++) {
            int32_t dot = 0;
            for (size_t j = 0; j < n; j++)
                dot += codes[j] * values[j * head_size + d];
            attention->context[i * attention->context_stride + d] =
                (float)dot * (c.value_step[d] * factor);
        }
    }
}

/* ---- Attention of signs ---- */

uint8_t bitm_sign_distances__scalar(uint64_t query, const uint64_t *keys, uint32_t n,
                                    uint8_t *distances)
{
    uint8_t least = UINT8_MAX;
    for (uint32_t j = 0; j < n; j++) {
        distances[j] = (uint8_t)popcount(query ^ keys[j]);
        least = distances[j] < least ? distances[j] : least;
    }
    return least;
}

float bitm_table_sum__scalar(const float table[BITM_DISTANCES], const uint8_t *distances,
                             uint32_t n)
{
    float lanes[BITM_LANES] = {0};
    for (uint32_t j = 0; j < n; j++)
        lanes[j % BITM_LANES] += table[distances[j] % BITM_DISTANCES];
    return bitm_fold(lanes);
}

int32_t bitm_near_bits__scalar(const uint8_t *distances, uint32_t n, uint8_t end, uint64_t *bits)
{
    int32_t sum = 0;
    memset(bits, 0, ((size_t)n + 63) / 64 * sizeof *bits);
    for (uint32_t j = 0; j < n; j++) {
        bits[j / 64] |= (uint64_t)(distances[j] < end) << j % 64;
        sum += distances[j] < end;
    }
    return sum;
}
