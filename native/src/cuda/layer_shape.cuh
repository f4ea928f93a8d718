/* What the kernel of a layer of signs (layer_signs.cuh) is given, how its shared memory is cut, and
 * the order in which it wants the model's weights and limits. */
#ifndef BITM_CUDA_LAYER_SHAPE_CUH
#define BITM_CUDA_LAYER_SHAPE_CUH

#include "hopper.cuh"
#include "tokens.cuh"

namespace bitm {

/* A linear whose inputs are signs, or one plane of bits. */
struct LayerLinear {
    const uint32_t *row_ones;
    const float *row_scale, *bias;
    const uint32_t *limits; /* where results become bits: see pack_limits_kernel */
    float step;             /* of the inputs */
    int32_t bit;            /* what one of the inputs counts; 0: they are signs */
};

enum { LAYER_OPERANDS = 3, LAYER_WARPGROUPS = 4, GROUP_THREADS = 128 };
enum { LAYER_THREADS = LAYER_WARPGROUPS * GROUP_THREADS };
enum { ROW_PADDING = 4 }; /* floats: the rows of a warp fall into different banks */

/* A linear that ends in a norm, the signs taken of its results, and the linears that take these and
 * whose own results become bits. */
struct LayerHalf {
    LayerLinear to_rows;
    const float *gain, *bias; /* of the norm */
    Followers signs;
    LayerLinear to_bits[LAYER_OPERANDS];
};

struct LayerSigns {
    const uint4 *weights; /* see order_weights_kernel */
    /* [n_tokens, N], and the layer's results, likewise.  In between layers rows may be as they are
     * in shared memory, so that a block's are copied at once. */
    const float *residual;
    float *results;
    uint32_t residual_row, results_row; /* floats from row to row: N, or N + ROW_PADDING */
    const uint4 *context;               /* planes of attention_output's inputs */
    size_t context_stride;
    const int32_t *context_sum;      /* of codes */
    const uint32_t *context_nonzero; /* NULL: the inputs are no signs */
    /* attention_output and intermediate; output, and query, key and value of the layer after. */
    LayerHalf halves[2];
    float eps;
    uint32_t n_tokens;
    uint32_t inverts;    /* intermediate's results: all bits, where the lower code has the bit */
    uint32_t n_operands; /* LAYER_OPERANDS, or 0: query, key and value are not wanted */
    uint32_t sets[LAYER_OPERANDS]; /* the signs that each of them takes */
    uint4 *planes[LAYER_OPERANDS]; /* of their results: positive, nonzero */
};

/* What lies in shared memory before the rows. */
template <int TOKENS> struct alignas(16) LayerFacts {
    uint64_t residual[2];      /* a barrier of its copy, and no more */
    float2 centres[TOKENS];    /* of rows: the mean, and what the norm multiplies by */
    int32_t code_sums[TOKENS]; /* of the inputs of a linear whose results are floats */
    /* Of signs, up to three kinds; N more than the sums of codes, tokens side by side. */
    uint16_t sign_sums[LAYER_OPERANDS][TOKENS];
    int32_t n_zeros[LAYER_OPERANDS][TOKENS];
    uint32_t parts_with_zeros[LAYER_OPERANDS][2]; /* a bit for each part of normalize_rows */
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
        SET = TOKENS * PIECES, /* pieces of all tokens' bits */
        /* Rows whose place is lent for a while, to one set and to those of query, key and value. */
        SET_ROWS = TOKENS / 32,
        OPERAND_ROWS = SET_ROWS * LAYER_OPERANDS,
        SHARED_BYTES = sizeof(LayerFacts<TOKENS>) + TOKENS * ROW * 4 + SET * PIECE_BYTES * 5,
    };
    static_assert(SET * PIECE_BYTES <= SET_ROWS * ROW * 4 && SHARED_BYTES <= 227 * 1024 &&
                      sizeof(LayerFacts<TOKENS>) % 16 == 0,
                  "");
};

/* ---- Weights in the order of threads ---- */

/* Warpgroup by warpgroup lie its batches in the order in which it multiplies them: 4 of
 * attention_output, those past H256 not used, 4 * H256 of intermediate, as many of output, and as
 * many of query, key or value, of which each of the first three warpgroups has one.  A batch is 64
 * outputs by N columns: of each 256 columns the left operand of wgmma, 16 bytes a thread. */
enum LayerPart { PART_ATTENTION_OUTPUT, PART_INTERMEDIATE, PART_OUTPUT, PART_OPERAND };

struct WeightOrder {
    const uint4 *planes;                  /* of the linear, in tiles */
    uint32_t n_pieces;                    /* of a row */
    uint32_t h256, part, group, n_groups; /* the warpgroups that take part */
    uint4 *to;
};

static __host__ __device__ inline uint32_t batches_of_part(uint32_t h256, uint32_t part)
{
    return part == PART_ATTENTION_OUTPUT ? h256 : h256 * 4;
}

static __host__ __device__ inline uint32_t batches_before_part(uint32_t h256, uint32_t part)
{
    return part == PART_ATTENTION_OUTPUT ? 0 : 4 + (part - 1) * h256 * 4;
}

/* Pieces of a warpgroup's weights. */
static __host__ __device__ inline uint32_t group_weight_pieces(uint32_t h256)
{
    return batches_before_part(h256, PART_OPERAND + 1) * h256 * GROUP_THREADS;
}

/* The first of the two outputs of a thread of a warpgroup in batch b, or the second (half):
 * neighbours, whose results a thread adds to rows together.  Where results become bits four batches
 * make a byte of a token, the lowest bit first. */
static __device__ inline uint32_t output_in_batch(const WeightOrder &o, uint32_t group, uint32_t b,
                                                  uint32_t thread, uint32_t half)
{
    uint32_t row = thread / WARP * 8 + thread % WARP / 4;
    if (o.part == PART_INTERMEDIATE || o.part == PART_OPERAND) {
        uint32_t first = o.part == PART_INTERMEDIATE ? group * o.h256 * 256 : 0;
        return first + b / 4 * 256 + row * 8 + b % 4 * 2 + half;
    }
    uint32_t tile = group * o.h256 + (o.part == PART_OUTPUT ? b / 4 : b);
    return tile * 64 + row * 2 + half;
}

static __global__ void order_weights_kernel(WeightOrder o)
{
    uint32_t n_batches = batches_of_part(o.h256, o.part);
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t thread = i % GROUP_THREADS, k = i / GROUP_THREADS % o.h256;
    uint32_t b = i / GROUP_THREADS / o.h256 % n_batches;
    uint32_t group = i / GROUP_THREADS / o.h256 / n_batches;
    if (group >= o.n_groups) return;
    uint32_t column = (o.part == PART_OUTPUT ? b % 4 * o.h256 + k : k) * 256 + thread % 4 * 32;
    uint32_t words[4];
    group += o.group;
    for (uint32_t half = 0; half < 2; half++) {
        uint32_t output = output_in_batch(o, group, b, thread, half);
        for (uint32_t n = 0; n < 2; n++) {
            uint32_t c = column + n * PIECE_BITS;
            const uint4 *piece = o.planes + piece_place(output, c / PIECE_BITS, o.n_pieces);
            words[n * 2 + half] = ((const uint32_t *)piece)[c % PIECE_BITS / 32];
        }
    }
    uint4 *to = o.to + group * group_weight_pieces(o.h256);
    uint32_t batch = batches_before_part(o.h256, o.part) + b;
    to[(batch * o.h256 + k) * GROUP_THREADS + thread] =
        make_uint4(words[0], words[1], words[2], words[3]);
}

/* ---- Limits ---- */

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

} // namespace bitm

#endif
