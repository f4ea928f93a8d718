/* Quantization: from floats to the planes that products take.  One warp a token. */
#ifndef BITM_CUDA_QUANTIZE_CUH
#define BITM_CUDA_QUANTIZE_CUH

#include "operands.cuh"

namespace bitm {

enum { QUANTIZE_THREADS = 128, WARPS_A_BLOCK = QUANTIZE_THREADS / WARP };

enum QuantizerKind {
    KIND_NONE = 0, /* the runtime's own: symmetric, by token */
    KIND_SIGN = 1,
    KIND_INT = 2,
    KIND_INT_MIN = 3,
    KIND_DYN_SYM = 4,
    KIND_DYN_ASYM = 5,
    KIND_BOOL = 6,
};

enum Scope { SCOPE_STATIC = 0, SCOPE_TOKEN = 1, SCOPE_SEQUENCE = 2 };

enum Form { FORM_FLOAT = 0, FORM_I8, FORM_I16, FORM_SIGN, FORM_PLANES };

struct Quantizer {
    uint32_t kind, scope;
    float lo, hi, step, eps;
    uint32_t clips;
    float clip_lo, clip_hi;
};

/* A quantizer with its statistics known: code = round(clamp((z - base) / divisor * factor)). */
struct Quantization {
    Quantizer of;
    float divisor, factor;
    float step, base; /* the value of a code: step * code + base */
};

static __host__ __device__ inline float clipped(const Quantizer &q, float z)
{
    if (!q.clips) return z;
    z = z > q.clip_lo ? z : q.clip_lo;
    return z < q.clip_hi ? z : q.clip_hi;
}

/* See bitm_quantizer_finish; extremes are used by the kinds that have statistics. */
static __device__ inline Quantization quantization_of(const Quantizer &q, float least,
                                                      float greatest)
{
    Quantization known = {q, q.step, 1.0F, q.step, 0.0F};
    if (q.kind == KIND_INT_MIN) known.base = least;
    if (q.kind == KIND_DYN_SYM) {
        float most = greatest > -least ? greatest : -least;
        most = most > q.eps ? most : q.eps;
        known.factor = q.hi / most;
        if (!(known.factor <= 3.402823466e38F)) known.factor = 0.0F;
        known.step = known.factor > 0.0F ? 1.0F / known.factor : 0.0F;
    }
    if (q.kind == KIND_DYN_ASYM) {
        known.base = least;
        known.divisor = greatest - least + q.eps;
        known.factor = q.hi;
        known.step = known.divisor / q.hi;
    }
    return known;
}

/* See bitm_quantize__scalar; z is shifted and clipped. */
static __host__ __device__ inline int32_t code_of(const Quantization &q, float z)
{
    if (q.of.kind == KIND_SIGN || q.of.kind == KIND_BOOL)
        return (z > 0.0F) - (z < 0.0F && q.of.lo < 0.0F);
    float code = (z - q.base) / q.divisor * q.factor;
    code = code > q.of.lo ? code : q.of.lo;
    return (int32_t)bitm_round(code < q.of.hi ? code : q.of.hi);
}

/* See code_factor of kernels/scalar.c. */
static __device__ inline float free_factor(float greatest, float max_code, float *step)
{
    float factor = max_code / greatest;
    if (!(greatest > 0.0F) || !(factor <= 3.402823466e38F)) {
        *step = 0.0F;
        return 0.0F;
    }
    *step = greatest / max_code;
    return factor;
}

static __device__ inline int32_t free_code(float x, float factor, float max_code)
{
    return (int32_t)fminf(fmaxf(bitm_round(x * factor), -max_code), max_code); /* NaN: -max_code */
}

enum { MAX_THRESHOLDS = 3 };

/* A code is the greater of two for the sums that are at most `left` or at least `right`. */
struct alignas(8) SumLimits {
    int32_t left, right;
};

enum { NO_LIMIT = 1 << 30 }; /* beyond all sums, on either side of 0 */

/* The inputs of one branch of a linear, to be made. */
struct Encoding {
    const float *x;        /* [n_tokens, n] */
    const float *shift;    /* [n], NULL: none */
    const float *extremes; /* [n_tokens, 2] of the scope sequence */
    uint32_t n_tokens, n;
    Quantizer quantizer;
    uint32_t form;
    float max_code;      /* of the runtime's own quantizer */
    uint32_t n_planes;   /* FORM_PLANES */
    uint32_t n_pieces;   /* of a row of a plane */
    size_t plane_stride; /* pieces */
    uint4
        *planes; /* sign: positive, nonzero; int16: low, high byte; planes: bits from the lowest */
    float *floats; /* FORM_FLOAT: the values that the codes stand for [n_tokens, n] */
    float *step, *base;
    float *sum; /* NULL: not wanted */
    int32_t *code_sum;
    uint32_t *n_nonzero; /* sign: codes that are not 0 */
    /* Kernels that write parts of rows add to code_sum and n_nonzero, which begin_token has
     * cleared. */
    uint32_t counts;
    /* A static quantizer of few levels, for kernels that encode what they compute: a code is `lo`
     * and one more for every threshold that is reached.  Signs below zero have codes of their own:
     * see BitsRule. */
    uint32_t n_thresholds;
    float thresholds[MAX_THRESHOLDS];
};

/* Planes of bits, of a form that has them. */
static __device__ inline uint32_t n_planes_of(const Encoding &e)
{
    return e.form == FORM_SIGN ? 2 : e.n_planes;
}

/* The word of a row's first plane that begins at a column. */
static __device__ inline uint32_t *word_at(const Encoding &e, size_t token, uint32_t column)
{
    return (uint32_t *)(e.planes + piece_place(token, column / PIECE_BITS, e.n_pieces)) +
           column % PIECE_BITS / 32;
}

static __device__ inline float shifted(const Encoding &e, const float *x, uint32_t i)
{
    return clipped(e.quantizer, e.shift != NULL ? x[i] + e.shift[i] : x[i]);
}

static __device__ inline void token_extremes(const Encoding &e, const float *x, uint32_t lane,
                                             float *least, float *greatest)
{
    *least = *greatest = shifted(e, x, lane < e.n ? lane : 0);
    for (uint32_t i = lane; i < e.n; i += WARP) {
        float z = shifted(e, x, i);
        *least = z < *least ? z : *least;
        *greatest = z > *greatest ? z : *greatest;
    }
    *least = warp_min(*least);
    *greatest = warp_max(*greatest);
}

/* extremes [n_tokens, 2] of every token, to be joined over sequences. */
static __global__ void extremes_kernel(Encoding e, float *extremes)
{
    size_t token = blockIdx.x * WARPS_A_BLOCK + threadIdx.x / WARP;
    uint32_t lane = threadIdx.x % WARP;
    if (token >= e.n_tokens) return;
    float least, greatest;
    token_extremes(e, e.x + token * e.n, lane, &least, &greatest);
    if (lane == 0) {
        extremes[token * 2] = least;
        extremes[token * 2 + 1] = greatest;
    }
}

/* Every token gets the extremes of all tokens of its sequence.  One warp a sequence. */
static __global__ void join_extremes_kernel(const uint32_t *first, float *extremes)
{
    uint32_t begin = first[blockIdx.x], end = first[blockIdx.x + 1], lane = threadIdx.x;
    if (begin == end) return;
    float least = extremes[(size_t)begin * 2], greatest = extremes[(size_t)begin * 2 + 1];
    for (size_t t = begin + lane; t < end; t += WARP) {
        least = extremes[t * 2] < least ? extremes[t * 2] : least;
        greatest = extremes[t * 2 + 1] > greatest ? extremes[t * 2 + 1] : greatest;
    }
    least = warp_min(least);
    greatest = warp_max(greatest);
    for (size_t t = begin + lane; t < end; t += WARP) {
        extremes[t * 2] = least;
        extremes[t * 2 + 1] = greatest;
    }
}

/* Four neighbouring values from column i on; zeros past the last. */
static __device__ inline float4 four_values(const float *x, uint32_t n, uint32_t i)
{
    if (n % 4 == 0 && i < n) return *(const float4 *)(x + i);
    return make_float4(i < n ? x[i] : 0.0F, i + 1 < n ? x[i + 1] : 0.0F,
                       i + 2 < n ? x[i + 2] : 0.0F, i + 3 < n ? x[i + 3] : 0.0F);
}

static __device__ inline float greater_abs(float greatest, float x)
{
    return fmaxf(greatest, fabsf(x));
}

/* The greatest absolute value of a token; a NaN, which only a damaged model makes, counts as
 * nothing. */
static __device__ inline float token_max_abs(const float *x, uint32_t n, uint32_t lane)
{
    float greatest = 0.0F;
#pragma unroll 4
    for (uint32_t i = lane * 4; i < n; i += WARP * 4) {
        float4 v = four_values(x, n, i);
        greatest = greater_abs(greater_abs(greatest, v.x), v.y);
        greatest = greater_abs(greater_abs(greatest, v.z), v.w);
    }
    return warp_max(greatest);
}

/* The code of the value x of column i, 0 in the padding. */
static __device__ inline int32_t code_at(const Encoding &e, const Quantization &q, float factor,
                                         float max_code, float x, uint32_t i)
{
    if (i >= e.n) return 0;
    if (e.quantizer.kind == KIND_NONE) return free_code(x, factor, max_code);
    return code_of(q, clipped(e.quantizer, e.shift != NULL ? x + e.shift[i] : x));
}

static __device__ inline uint32_t four_bytes(int32_t a, int32_t b, int32_t c, int32_t d)
{
    return ((uint32_t)a & 255) | ((uint32_t)b & 255) << 8 | ((uint32_t)c & 255) << 16 |
           (uint32_t)d << 24;
}

static __global__ void __launch_bounds__(QUANTIZE_THREADS) encode_kernel(Encoding e)
{
    size_t token = blockIdx.x * WARPS_A_BLOCK + threadIdx.x / WARP;
    uint32_t lane = threadIdx.x % WARP;
    if (token >= e.n_tokens) return;
    const float *x = e.x + token * e.n;
    float step, base = 0.0F, factor = 0.0F;
    float max_code = e.max_code;
    Quantization q = {};
    if (e.quantizer.kind == KIND_NONE) {
        factor = free_factor(token_max_abs(x, e.n, lane), max_code, &step);
    } else {
        float least = 0.0F, greatest = 0.0F;
        if (e.quantizer.scope == SCOPE_TOKEN) token_extremes(e, x, lane, &least, &greatest);
        if (e.quantizer.scope == SCOPE_SEQUENCE) {
            least = e.extremes[token * 2];
            greatest = e.extremes[token * 2 + 1];
        }
        q = quantization_of(e.quantizer, least, greatest);
        step = q.step;
        base = q.base;
    }

    int32_t sum = 0;
    uint32_t n_nonzero = 0;
    if (e.form == FORM_I8 || e.form == FORM_I16) {
        /* Two planes where codes are wide: low bytes, high bytes. */
        uint32_t *low = (uint32_t *)(e.planes + piece_place(token, 0, e.n_pieces));
        uint32_t *high = low + e.plane_stride * 4;
#pragma unroll 2
        for (uint32_t i = lane * 4; i < e.n_pieces * PIECE_BYTES; i += WARP * 4) {
            float4 v = four_values(x, e.n, i);
            int32_t c0 = code_at(e, q, factor, max_code, v.x, i);
            int32_t c1 = code_at(e, q, factor, max_code, v.y, i + 1);
            int32_t c2 = code_at(e, q, factor, max_code, v.z, i + 2);
            int32_t c3 = code_at(e, q, factor, max_code, v.w, i + 3);
            sum += c0 + c1 + c2 + c3;
            size_t place = (size_t)(i / PIECE_BYTES) * TILE_ROWS * 4 + i % PIECE_BYTES / 4;
            low[place] = four_bytes(c0, c1, c2, c3);
            if (e.form == FORM_I16) high[place] = four_bytes(c0 >> 8, c1 >> 8, c2 >> 8, c3 >> 8);
        }
    } else if (e.form == FORM_FLOAT) {
        for (uint32_t i = lane; i < e.n; i += WARP)
            e.floats[token * e.n + i] = fmaf(step, (float)code_of(q, shifted(e, x, i)), base);
    } else {
        uint32_t *row = (uint32_t *)(e.planes + piece_place(token, 0, e.n_pieces));
        uint32_t n_planes = n_planes_of(e);
        for (uint32_t word = 0; word < e.n_pieces * 4; word++) {
            uint32_t i = word * WARP + lane;
            int32_t code = code_at(e, q, 0.0F, 0.0F, i < e.n ? x[i] : 0.0F, i);
            sum += code;
            size_t place = (size_t)(word / 4) * TILE_ROWS * 4 + word % 4;
            for (uint32_t p = 0; p < n_planes; p++) {
                bool bit =
                    e.form == FORM_PLANES ? (code >> p & 1) != 0 : (p == 0 ? code > 0 : code != 0);
                uint32_t bits = __ballot_sync(ALL_THREADS, bit);
                if (p == 1) n_nonzero += (uint32_t)__popc(bits);
                if (lane == p) row[p * e.plane_stride * 4 + place] = bits;
            }
        }
    }
    sum = warp_sum(sum);
    if (lane != 0) return;
    e.step[token] = step;
    e.base[token] = base;
    e.code_sum[token] = sum;
    if (e.form == FORM_SIGN) e.n_nonzero[token] = n_nonzero;
    if (e.sum == NULL) return;
    e.sum[token] =
        e.quantizer.kind == KIND_NONE ? step * (float)sum : step * (float)sum + base * (float)e.n;
}

/* ---- Inputs made by the kernel that computes them ---- */

/* How kernels that encode what they compute find bits.  Divisions, as of code_of, would be too much
 * code where many values are held in registers, and so would a choice for each of them. */
enum BitsRule {
    RULE_SIGNS,      /* codes -1, 0, 1 in planes of positive and nonzero */
    RULE_TWO_LEVELS, /* one threshold */
    RULE_LEVELS,     /* three, of which those past the last level are NaN */
};

static __device__ inline BitsRule bits_rule(const Encoding &e)
{
    if (e.form == FORM_SIGN) return RULE_SIGNS;
    return e.n_thresholds == 1 ? RULE_TWO_LEVELS : RULE_LEVELS;
}

static __device__ inline float shift_of(const Encoding &e, uint32_t i)
{
    return e.shift != NULL ? e.shift[i] : 0.0F; /* a zero of either sign compares alike */
}

/* Adds bit i of the first two planes of a value, shifted; finish_bits is to follow. */
template <int RULE>
static __device__ inline void add_bits(const Encoding &e, float z, uint32_t i, uint32_t planes[2])
{
    if (RULE == RULE_LEVELS) {
        uint32_t code = (uint32_t)(int32_t)e.quantizer.lo + (z >= e.thresholds[0]) +
                        (z >= e.thresholds[1]) + (z >= e.thresholds[2]);
        planes[0] |= (code & 1) << i;
        planes[1] |= (code >> 1 & 1) << i;
        return;
    }
    bool first = RULE == RULE_SIGNS ? z > 0.0F : z >= e.thresholds[0];
    if (first) planes[0] |= 1u << i;
    if (RULE == RULE_SIGNS && fabsf(z) > 0.0F) planes[1] |= 1u << i; /* no NaN */
}

/* The lower and the greater of two codes, as bits of planes. */
static __device__ inline uint2 codes_of_two(const Encoding &e)
{
    uint32_t lower = (uint32_t)(int32_t)e.quantizer.lo;
    if (e.form != FORM_SIGN) return make_uint2(lower, lower + 1);
    return make_uint2(2, 3); /* positive and nonzero: -1 and 1 */
}

/* The same as masks, by planes. */
struct CodeMasks {
    uint32_t lower[2], greater[2];
};

static __device__ inline CodeMasks masks_of_two(const Encoding &e)
{
    const uint2 codes = codes_of_two(e);
    CodeMasks masks;
#pragma unroll
    for (uint32_t p = 0; p < 2; p++) {
        masks.lower[p] = 0u - (codes.x >> p & 1);
        masks.greater[p] = 0u - (codes.y >> p & 1);
    }
    return masks;
}

/* A plane, from bits of the values that have the greater of two codes. */
static __device__ inline uint32_t plane_of_greater(const CodeMasks &masks, uint32_t p,
                                                   uint32_t bits)
{
    return (bits & masks.greater[p]) | (~bits & masks.lower[p]);
}

template <int RULE> static __device__ inline void finish_bits(const Encoding &e, uint32_t planes[2])
{
    if (RULE != RULE_TWO_LEVELS) return;
    uint32_t bits = planes[0];
    CodeMasks masks = masks_of_two(e);
    planes[0] = plane_of_greater(masks, 0, bits);
    planes[1] = plane_of_greater(masks, 1, bits);
}

/* As bytes by the runtime's own quantizer; returns the sum of this thread's codes. */
template <int N16>
static __device__ inline int32_t encode_bytes(const Encoding &e, size_t token, uint32_t l,
                                              const float values[N16], float *step)
{
    float greatest = 0.0F, max_code = e.max_code;
#pragma unroll
    for (int i = 0; i < N16; i++)
        greatest = greater_abs(greatest, values[i]);
    float factor = free_factor(warp_max<LANES>(greatest), max_code, step);
    uint32_t *low = (uint32_t *)(e.planes + piece_place(token, l % 4, e.n_pieces)) + l / 4;
    uint32_t *high = low + e.plane_stride * 4;
    int32_t sum = 0;
#pragma unroll
    for (int i = 0; i < N16; i += 4) { /* four pieces, of each of which a thread gets a word */
        int32_t c[4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            c[k] = free_code(values[i + k], factor, max_code);
            sum += c[k];
        }
        size_t place = (size_t)i * TILE_ROWS * 4;
        low[place] = transpose_bytes_4(four_bytes(c[0], c[1], c[2], c[3]));
        if (e.form == FORM_I16)
            high[place] = transpose_bytes_4(four_bytes(c[0] >> 8, c[1] >> 8, c[2] >> 8, c[3] >> 8));
    }
    return sum;
}

/* As at most two planes of bits; n_bits: how many this thread has stored of each.  A thread has a
 * bit of every unit of 16 columns; transposed, it has whole units. */
template <int N16, int RULE>
static __device__ inline void encode_bits(const Encoding &e, size_t token, uint32_t l,
                                          const float values[N16], int32_t n_bits[2])
{
    enum { WORDS = (N16 + 31) / 32 };
    uint16_t *row = (uint16_t *)(e.planes + piece_place(token, 0, e.n_pieces));
    uint32_t n_planes = n_planes_of(e), planes[WORDS][2] = {};
    const float *shift = e.shift + l;
    if (e.shift == NULL) {
#pragma unroll
        for (int i = 0; i < N16; i++)
            add_bits<RULE>(e, values[i], i % 32, planes[i / 32]);
    } else {
        float shifted[N16]; /* all are read before the first is used */
#pragma unroll
        for (int i = 0; i < N16; i++)
            shifted[i] = values[i] + shift[i * LANES];
#pragma unroll
        for (int i = 0; i < N16; i++)
            add_bits<RULE>(e, shifted[i], i % 32, planes[i / 32]);
    }
#pragma unroll
    for (int word = 0; word < WORDS; word++) {
        finish_bits<RULE>(e, planes[word]);
#pragma unroll
        for (uint32_t p = 0; p < 2; p++) {
            if (p >= n_planes) continue;
            uint32_t units = transpose_bits_16(planes[word][p]);
#pragma unroll
            for (int i = word * 32; i < word * 32 + 32 && i < N16; i += LANES) {
                uint32_t unit = i + l, bits = units >> i % 32 & 0xFFFFu;
                row[p * e.plane_stride * 8 + (size_t)(unit / 8) * TILE_ROWS * 8 + unit % 8] =
                    (uint16_t)bits;
                n_bits[p] += __popc(bits);
            }
        }
    }
}

/* The sum of codes whose first two planes have so many bits. */
static __device__ inline int32_t sum_of_planes(const Encoding &e, int32_t first, int32_t second)
{
    if (e.form == FORM_SIGN) return 2 * first - second; /* positive, nonzero */
    if (e.n_planes == 1) return e.quantizer.lo < 0.0F ? -first : first;
    return first + (e.quantizer.lo < 0.0F ? -2 : 2) * second;
}

/* What is known of a token whose codes, by a quantizer without a base, have such a sum. */
static __device__ inline void store_token_facts(const Encoding &e, size_t token, float step,
                                                int32_t sum, uint32_t n_nonzero)
{
    e.step[token] = step;
    e.base[token] = 0.0F;
    e.code_sum[token] = sum;
    if (e.form == FORM_SIGN) e.n_nonzero[token] = n_nonzero;
    e.sum[token] = step * (float)sum;
}

/* Encodes a token whose 16 threads hold its values, thread l those of columns l, l + 16, ...: as
 * encode_kernel does, for rows without padding (16 * N16 is a multiple of 256). */
template <int N16>
static __device__ inline void encode_values(const Encoding &e, size_t token, uint32_t l,
                                            const float values[N16])
{
    float step = e.quantizer.step;
    int32_t sum, n_bits[2] = {0, 0};
    if (e.quantizer.kind == KIND_NONE) {
        sum = warp_sum<LANES>(encode_bytes<N16>(e, token, l, values, &step));
    } else {
        BitsRule rule = bits_rule(e);
        if (rule == RULE_SIGNS)
            encode_bits<N16, RULE_SIGNS>(e, token, l, values, n_bits);
        else if (rule == RULE_TWO_LEVELS)
            encode_bits<N16, RULE_TWO_LEVELS>(e, token, l, values, n_bits);
        else
            encode_bits<N16, RULE_LEVELS>(e, token, l, values, n_bits);
        n_bits[1] = warp_sum<LANES>(n_bits[1]);
        sum = sum_of_planes(e, warp_sum<LANES>(n_bits[0]), n_bits[1]);
    }
    if (l == 0) store_token_facts(e, token, step, sum, (uint32_t)n_bits[1]);
}

/* What is known of a token before its codes, by a static quantizer. */
static __device__ inline void begin_token(const Encoding &e, size_t token)
{
    e.step[token] = e.quantizer.step;
    e.base[token] = 0.0F;
    e.code_sum[token] = 0;
    e.n_nonzero[token] = 0;
}

static __global__ void begin_tokens_kernel(Encoding e)
{
    size_t token = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (token < e.n_tokens) begin_token(e, token);
}

/* Counts the bits of a part of a token's row.  Integers: the order of the parts does not matter. */
static __device__ inline void count_bits(const Encoding &e, size_t token, int32_t first,
                                         int32_t second)
{
    atomicAdd(e.code_sum + token, sum_of_planes(e, first, second));
    if (e.form == FORM_SIGN) atomicAdd(e.n_nonzero + token, (uint32_t)second);
}

/* What encode_kernel knows of a token besides its planes, from planes that other kernels have
 * written by static quantizers.  One warp a token. */
static __global__ void plane_sums_kernel(Encoding e)
{
    size_t token = blockIdx.x * WARPS_A_BLOCK + threadIdx.x / WARP;
    uint32_t lane = threadIdx.x % WARP;
    if (token >= e.n_tokens) return;
    int32_t n[2] = {0, 0};
    uint32_t n_planes = n_planes_of(e);
    for (uint32_t p = 0; p < n_planes; p++)
        for (uint32_t piece = lane; piece < e.n_pieces; piece += WARP)
            n[p] +=
                popc_piece(e.planes[p * e.plane_stride + piece_place(token, piece, e.n_pieces)]);
    int32_t first = warp_sum(n[0]), second = warp_sum(n[1]);
    if (lane != 0) return;
    int32_t sum = sum_of_planes(e, first, second);
    e.step[token] = e.quantizer.step;
    e.base[token] = 0.0F;
    e.code_sum[token] = sum;
    e.sum[token] = e.quantizer.step * (float)sum + 0.0F * (float)e.n;
    if (e.form == FORM_SIGN) e.n_nonzero[token] = (uint32_t)second;
}

/* Codes [n_tokens, n] of attention's operands, and x as the values that they stand for. */
static __global__ void encode_operand_kernel(Encoding e, int16_t *codes, float *values)
{
    size_t token = blockIdx.x * WARPS_A_BLOCK + threadIdx.x / WARP;
    uint32_t lane = threadIdx.x % WARP;
    if (token >= e.n_tokens) return;
    const float *x = e.x + token * e.n;
    float least = 0.0F, greatest = 0.0F;
    if (e.quantizer.scope == SCOPE_TOKEN) token_extremes(e, x, lane, &least, &greatest);
    if (e.quantizer.scope == SCOPE_SEQUENCE) {
        least = e.extremes[token * 2];
        greatest = e.extremes[token * 2 + 1];
    }
    Quantization q = quantization_of(e.quantizer, least, greatest);
    for (uint32_t i = lane; i < e.n; i += WARP) {
        int32_t code = code_of(q, shifted(e, x, i));
        codes[token * e.n + i] = (int16_t)code;
        values[token * e.n + i] = fmaf(q.step, (float)code, q.base);
    }
    if (lane == 0) {
        e.step[token] = q.step;
        e.base[token] = q.base;
    }
}

} // namespace bitm

#endif
