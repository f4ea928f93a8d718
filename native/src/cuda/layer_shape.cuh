/* What the kernel of a layer of signs (layer_signs.cuh) is given, how its shared memory is cut, and
 * the order in which it wants the model's weights and limits. */
#ifndef BITM_CUDA_LAYER_SHAPE_CUH
#define BITM_CUDA_LAYER_SHAPE_CUH

#include "hopper.cuh"
#include "sign_exponentials.cuh"
#include "tokens.cuh"

namespace bitm {

/* A linear with a norm, whose inputs are signs or one plane of bits. */
struct LayerHalf {
    const uint32_t *row_ones;
    const float *row_scale, *bias;
    float step;  /* of the inputs */
    int32_t bit; /* what one of the inputs counts; 0: they are signs */
    const float *norm_gain, *norm_bias;
};

/* A linear whose inputs are signs and whose results become bits. */
struct BitsLinear {
    const uint32_t *limits; /* see pack_limits_kernel */
    const uint32_t *row_ones;
};

enum { LAYER_OPERANDS = 3, LAYER_WARPGROUPS = 4, GROUP_THREADS = 128 };
enum { LAYER_THREADS = LAYER_WARPGROUPS * GROUP_THREADS };
enum { ROW_PADDING = 4 }; /* floats: the rows of a warp fall into different banks */

/* Attention of signs, none of them 0, whose probabilities become 0 or 1. */
struct LayerAttention {
    const float *exponentials;      /* see sign_exponentials_kernel */
    const uint32_t *context_limits; /* see pack_context_limits_kernel */
    float threshold;                /* the least probability whose code is 1 */
    uint32_t inverts;               /* the context's bits: all, where the lower code has the bit */
};

/* A layer: its attention, if it is the kernel's; attention_output and intermediate; output, and
 * query, key and value of the layer after. */
struct LayerSigns {
    LayerAttention attention;
    const uint4 *weights; /* see order_weights_kernel */
    LayerHalf halves[2];  /* attention_output, output */
    /* Intermediate, query, key and value; what is added before signs are taken for the first, and
     * for up to three kinds of signs that the others take.  NULL: nothing. */
    BitsLinear to_bits[1 + LAYER_OPERANDS];
    const float *shifts[1 + LAYER_OPERANDS];
    uint32_t inverts; /* intermediate's results */
    uint8_t n_kinds, kinds[LAYER_OPERANDS];
};

/* As many as fit in the 4 KB that a kernel is given. */
enum { MOST_LAYERS = 12 };

/* One layer, or several of them one after another, where attention is the kernel's. */
struct SignLayers {
    /* [n_tokens, N], and the last layer's results, likewise.  Between kernels of layers rows may be
     * as they are in shared memory, so that a block's are copied at once. */
    const float *residual;
    float *results;
    uint32_t residual_row, results_row; /* floats from row to row: N, or N + ROW_PADDING */
    /* What comes first: planes of attention_output's inputs, or without a context those of query,
     * key and value. */
    const uint4 *context; /* NULL: attention is the kernel's */
    size_t plane_stride;
    const int32_t *context_sum;      /* of codes */
    const uint32_t *context_nonzero; /* NULL: the inputs are no signs */
    const uint32_t *first, *sequence_of;
    uint4 *operands[LAYER_OPERANDS];
    uint32_t leaves_operands; /* of the layer after the last; otherwise the signs that they take */
    Followers signs;
    uint4 *nonzero[LAYER_OPERANDS]; /* planes for signs with zeros, by kind */
    float eps;
    uint32_t n_tokens, n_layers;
    LayerSigns layers[MOST_LAYERS];
};
static_assert(sizeof(SignLayers) <= 4096, "");

/* Tokens of a block, from which a query has its keys. */
enum { BLOCK_KEYS = TOKEN_BLOCK };

/* Some of them: the first, and past the last. */
struct KeyRange {
    uint8_t begin, end;
};

/* What lies in shared memory before the rows. */
template <int TOKENS> struct alignas(16) LayerFacts {
    uint64_t residual, exponentials; /* barriers of their copies */
    float2 centres[TOKENS];          /* of rows: the mean, and what the norm multiplies by */
    int32_t code_sums[TOKENS];       /* of the inputs of a linear whose results are floats */
    /* Of signs, up to three kinds; N more than the sums of codes, tokens side by side. */
    uint16_t sign_sums[LAYER_OPERANDS][TOKENS];
    int32_t n_zeros[LAYER_OPERANDS][TOKENS];
    uint32_t parts_with_zeros[LAYER_OPERANDS][2]; /* a bit for each part of normalize_rows */
    KeyRange keys[TOKENS];                        /* of queries */
};

/* Sets of a block's bits in shared memory, one after another.  Signs of up to three kinds are the
 * last of them; where there are three, value's results take the place of query's inputs.
 * Intermediate's results take all sets from SET_INNER on. */
enum LayerSet {
    SET_QUERY,
    SET_CONTEXT = SET_QUERY, /* and what intermediate takes */
    SET_KEY,
    SET_INNER = SET_KEY,
    SET_VALUE,
    SET_EXPONENTIALS, /* while there is attention, with the counts of keys: see layer_attention.cuh
                       */
    LAYER_SETS = 5,
};

/* A block's sizes.  H256_: 256s of the hidden size, which is a quarter of the intermediate size. */
template <int H256_, int TOKENS_> struct LayerShape {
    enum : uint32_t {
        H256 = H256_,
        TOKENS = TOKENS_,
        N = H256 * 256,
        ROW = N + ROW_PADDING, /* floats from row to row */
        PIECES = H256 * 2,     /* of a token's bits */
        INNER_PIECES = PIECES * 4,
        SET = TOKENS * PIECES,  /* pieces of all tokens' bits */
        SET_ROWS = TOKENS / 32, /* rows whose place may be lent to one */
        HEADS = N / SIGNS_HEAD,
        EXPONENTIAL_BYTES = SIGN_EXPONENTIALS * 4,
        /* What attention has in SET_EXPONENTIALS, and past the last set. */
        ATTENTION_BYTES = EXPONENTIAL_BYTES + HEADS * TOKENS * 4,
        LAST_BYTES = (LAYER_SETS - SET_EXPONENTIALS) * SET * PIECE_BYTES,
        MORE_BYTES = TOKENS == SIGNS_HEAD && ATTENTION_BYTES > LAST_BYTES
            ? ATTENTION_BYTES - LAST_BYTES
            : 0,
        SHARED_BYTES = sizeof(LayerFacts<TOKENS>) + TOKENS * ROW * 4 +
            SET * PIECE_BYTES * LAYER_SETS + MORE_BYTES,
    };
    static_assert(SET * PIECE_BYTES <= SET_ROWS * ROW * 4 && SHARED_BYTES <= 227 * 1024 &&
                      sizeof(LayerFacts<TOKENS>) % 16 == 0 && EXPONENTIAL_BYTES % 16 == 0,
                  "");
};

/* Where a word of a row of a set lies. */
template <typename S>
static __device__ inline uint32_t *word_of_set(uint4 *set, size_t row, uint32_t word)
{
    return (uint32_t *)(set + piece_place(row, word / 4, S::PIECES)) + word % 4;
}

/* ---- Weights in the order of threads ---- */

/* Warpgroup by warpgroup lie its batches in the order in which it multiplies them: 4 of
 * attention_output, those past H256 not used, 4 * H256 of intermediate, as many of output, and then
 * those of query, key and value: of the 256s of their outputs each warpgroup has one in four.  A
 * batch is 64 outputs by N columns: of each 256 columns the left operand of wgmma, 16 bytes a
 * thread. */
enum LayerPart { PART_ATTENTION_OUTPUT, PART_INTERMEDIATE, PART_OUTPUT, PART_OPERANDS };

/* Places of a thread's batches, so that loops of four know them, and how many of them are on their
 * way: more would not leave registers for the rest. */
enum { LAYER_SLOTS = 4, LAYER_AHEAD = 2 };

struct WeightOrder {
    const uint4 *planes; /* of the linear, in tiles */
    uint32_t n_pieces;   /* of a row */
    uint32_t h256, part, operand;
    uint4 *to;
};

/* How many 256s of the outputs of query, key and value a warpgroup has, at most. */
static __host__ __device__ constexpr uint32_t operand_rounds(uint32_t h256)
{
    return (LAYER_OPERANDS * h256 + LAYER_WARPGROUPS - 1) / LAYER_WARPGROUPS;
}

static __host__ __device__ constexpr uint32_t batches_of_part(uint32_t h256, uint32_t part)
{
    return part == PART_ATTENTION_OUTPUT ? h256 : h256 * 4;
}

static __host__ __device__ constexpr uint32_t batches_before_part(uint32_t h256, uint32_t part)
{
    return part == PART_ATTENTION_OUTPUT ? 0 : 4 + (part - 1) * h256 * 4;
}

/* Pieces of a warpgroup's weights. */
static __host__ __device__ constexpr uint32_t group_weight_pieces(uint32_t h256)
{
    return (batches_before_part(h256, PART_OPERANDS) + operand_rounds(h256) * 4) * h256 *
           GROUP_THREADS;
}

/* A batch of a linear: the linear's outputs in it, whose batch it is, and its number in the part.
 */
struct WeightBatch {
    uint32_t output, group, number;
};

/* Number i of a linear's 4 * batches_of_part, by warpgroups, or of query, key and value those of
 * theirs; the first of the two outputs of a thread, or the second (half): neighbours, whose results
 * a thread adds to rows together.  Where results become bits four batches make a byte of a token,
 * the lowest bit first. */
static __device__ inline WeightBatch weight_batch(const WeightOrder &o, uint32_t i, uint32_t thread,
                                                  uint32_t half)
{
    uint32_t row = thread / WARP * 8 + thread % WARP / 4;
    if (o.part == PART_OPERANDS) {
        uint32_t block = o.operand * o.h256 + i / 4;
        return WeightBatch{i / 4 * 256 + row * 8 + i % 4 * 2 + half, block % LAYER_WARPGROUPS,
                           block / LAYER_WARPGROUPS * 4 + i % 4};
    }
    uint32_t n = batches_of_part(o.h256, o.part), group = i / n, b = i % n;
    if (o.part == PART_INTERMEDIATE)
        return WeightBatch{i / 4 * 256 + row * 8 + b % 4 * 2 + half, group, b};
    uint32_t tile = group * o.h256 + (o.part == PART_OUTPUT ? b / 4 : b);
    return WeightBatch{tile * 64 + row * 2 + half, group, b};
}

static __host__ __device__ constexpr uint32_t batches_of_linear(uint32_t h256, uint32_t part)
{
    return batches_of_part(h256, part) * (part == PART_OPERANDS ? 1 : LAYER_WARPGROUPS);
}

static __global__ void order_weights_kernel(WeightOrder o)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t thread = i % GROUP_THREADS, k = i / GROUP_THREADS % o.h256;
    i = i / GROUP_THREADS / o.h256;
    if (i >= batches_of_linear(o.h256, o.part)) return;
    WeightBatch batch = {};
    uint32_t words[4];
    for (uint32_t half = 0; half < 2; half++) {
        batch = weight_batch(o, i, thread, half);
        uint32_t column = (o.part == PART_OUTPUT ? batch.number % 4 * o.h256 + k : k) * 256;
        for (uint32_t n = 0; n < 2; n++) {
            uint32_t c = column + thread % 4 * 32 + n * PIECE_BITS;
            const uint4 *piece = o.planes + piece_place(batch.output, c / PIECE_BITS, o.n_pieces);
            words[n * 2 + half] = ((const uint32_t *)piece)[c % PIECE_BITS / 32];
        }
    }
    uint4 *to = o.to + batch.group * group_weight_pieces(o.h256);
    uint32_t number = batches_before_part(o.h256, o.part) + batch.number;
    to[(number * o.h256 + k) * GROUP_THREADS + thread] =
        make_uint4(words[0], words[1], words[2], words[3]);
}

/* ---- Limits ---- */

/* An int16 in both halves of a word. */
static __device__ inline uint32_t twice(int32_t x)
{
    return (uint32_t)x * 0x10001u;
}

/* Differences of int16s in the halves of a word are made positive by 2^15: it is there where they
 * were. */
enum : uint32_t { HALF_SIGNS = 0x80008000u };

/* From this, less two sums: 2^15 where they are below the limit. */
static __device__ inline uint32_t limit_on_right(int32_t limit)
{
    return twice(limit - 1) + HALF_SIGNS;
}

/* The same with the sums added: where they are above it. */
static __device__ inline uint32_t limit_on_left(int32_t limit)
{
    return twice(-limit - 1) + HALF_SIGNS;
}

/* Sums of at most 1,024 inputs, before or after positive weights are counted, and differences of
 * two of them are within an int16; and so are limits that no sum reaches. */
enum { FAR_LIMIT = 12000 };

/* The limits of sums as two int16s, the left one below; of signs without zeros, before the positive
 * weights are counted (SumRule). */
static __device__ inline uint32_t packed_limits(SumLimits limits, int32_t ones)
{
    int32_t left = max(min(limits.left + ones, (int32_t)FAR_LIMIT), -(int32_t)FAR_LIMIT);
    int32_t right = max(min(limits.right + ones, (int32_t)FAR_LIMIT), -(int32_t)FAR_LIMIT);
    return ((uint32_t)left & 0xFFFF) | (uint32_t)right << 16;
}

static __device__ inline SumLimits unpacked_limits(uint32_t word)
{
    return SumLimits{(int32_t)(word << 16) >> 16, (int32_t)word >> 16};
}

static __global__ void pack_limits_kernel(const SumLimits *limits, const uint32_t *row_ones,
                                          bool is_sign, uint32_t n, uint32_t *packed)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) packed[i] = packed_limits(limits[i], is_sign ? 2 * (int32_t)row_ones[i] : 0);
}

/* Limits of the context: the products of probabilities and values from which on a component has
 * the greater code (right), in both halves of a word: see limit_on_right. */
static __global__ void pack_context_limits_kernel(const SumLimits *limits, uint32_t n,
                                                  uint32_t *packed)
{
    const int32_t most = SIGNS_HEAD + 1;
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) packed[i] = limit_on_right(max(min(limits[i].right, most), -most));
}

} // namespace bitm

#endif
