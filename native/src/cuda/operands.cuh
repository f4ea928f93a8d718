/* What kernels are given: matrices of the model, inputs of products, and their places in memory.
 *
 * Operands of products lie in tiles of 8 rows by 16 bytes (128 bits, or 16 int8 codes), 128
 * consecutive bytes each: a tile is what ldmatrix, mma and wgmma read at once, free of bank
 * conflicts and without a swizzle, and 16-byte pieces are what every other kernel wants too.  Tiles
 * of the same 8 rows are neighbours.  Columns are padded with zeros to a whole number of pairs of
 * tiles.
 *
 * Weights that are multiplied with bytes have their bits in another order, so that few instructions
 * make bytes of 0 and 1 where products want them: see bytes_of_weights. */
#ifndef BITM_CUDA_OPERANDS_CUH
#define BITM_CUDA_OPERANDS_CUH

#include "arithmetic.cuh"

/* A block's shared memory whose size the launch gives. */
#if !defined(BITM_DYNAMIC_SHARED)
#define BITM_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace bitm {

enum {
    TILE_ROWS = 8,
    PIECE_BYTES = 16,
    PIECE_BITS = 128,
    TOKEN_BLOCK = 64, /* tokens of a run are padded to a multiple, */
    ROW_BLOCK = 128,  /* and so are the rows of weights */
    MAX_TERMS = 8,
    MAX_PLANES = 4,
};

/* Pieces of a row of n columns. */
static __host__ __device__ inline uint32_t pieces_of_bits(uint32_t n)
{
    return ceil_div(n, 2 * PIECE_BITS) * 2;
}

static __host__ __device__ inline uint32_t pieces_of_bytes(uint32_t n)
{
    return ceil_div(n, 2 * PIECE_BYTES) * 2;
}

/* The place, in pieces, of one of a row's n_pieces. */
static __host__ __device__ inline size_t piece_place(size_t row, uint32_t piece, uint32_t n_pieces)
{
    return (row / TILE_ROWS * n_pieces + piece) * TILE_ROWS + row % TILE_ROWS;
}

/* Weights of 4 of the 16 columns from 16 * unit on, as bytes; the piece's word number `word` has
 * those from 4 * word on, of every unit. */
static __device__ inline uint32_t bytes_of_weights(uint32_t word, uint32_t unit)
{
    return word >> unit & 0x01010101u;
}

/* A piece of weights in that order: words [4], in the order of columns before. */
static __device__ inline void order_for_bytes(uint32_t words[4])
{
    uint32_t ordered[4] = {0, 0, 0, 0};
    for (uint32_t word = 0; word < 4; word++)
        for (uint32_t unit = 0; unit < 8; unit++) {
            uint32_t bits = words[unit / 2] >> (unit % 2 * 16 + word * 4) & 15;
            ordered[word] |= (bits * 0x00204081u & 0x01010101u) << unit;
        }
    for (uint32_t word = 0; word < 4; word++)
        words[word] = ordered[word];
}

/* A table or a matrix as it lies in the file, for single elements. */
struct Matrix {
    const void *data;
    const float *scales, *offsets;
    uint32_t dtype, rows, columns;
    uint32_t scale_layout, scale_group; /* group: rows of one scale */
    uint32_t offset_layout, offset_group;
};

/* Per token, what a product needs to know of its inputs. */
struct TokenFacts {
    const float *step;       /* value of one input code; 1 for floats */
    const float *sum;        /* of the inputs' values */
    const float *base;       /* value of code 0 */
    const int32_t *code_sum; /* of the codes */
};

/* What follows a product: see bitm_gemm of kernels/kernels.h, and `store` below. */
struct Epilogue {
    const float *row_scale;
    const float *row_offset; /* NULL: none */
    const float *row_base;   /* NULL: none */
    const float *bias;
    TokenFacts tokens;
    float *outputs; /* [n_tokens, stride] */
    size_t stride;
    uint32_t accumulate;
    uint32_t activation; /* 0: none */
};

/* A product of integers: the sum over terms of weight plane x input plane.  Planes of weights hold 0
 * and 1: of bit1 the positive ones, weight 2 * P - 1; of tern the nonzero N and the positive P,
 * weight 2 * P - N.  Before the next term what has been summed is multiplied, by Horner's rule, so
 * one accumulator serves all terms:  total = ((t0 * multiplier0 + t1) * multiplier1 + ...). */
struct Term {
    uint32_t weight_plane, input_plane;
    int32_t multiplier; /* after the term */
    uint32_t is_signed; /* bytes: the input's codes are signed */
};

struct Product {
    const uint4 *weights; /* planes of tiles of bits */
    size_t weight_stride; /* pieces from plane to plane */
    const uint4 *inputs;  /* planes of tiles */
    size_t input_stride;
    uint32_t n_tokens;                      /* a multiple of TOKEN_BLOCK */
    uint32_t n_outputs;                     /* rows of weights that are */
    uint32_t n_weight_pieces, n_input_pieces; /* of a row */
    uint32_t n_terms;
    Term terms[MAX_TERMS];
    uint32_t subtract_code_sum; /* bit1: the -1 of 2 * P - 1 */
    /* Of bit1 weights and signs, whose last term counts nonzero inputs: how many there are of each
     * token; NULL otherwise.  row_ones: the positive weights of each output. */
    const uint32_t *n_nonzero;
    const uint32_t *row_ones;
    uint32_t n_columns;
    Epilogue epilogue;
};

/* What a kernel does after its product: the common cases are compiled for themselves. */
enum EpilogueKind {
    EPILOGUE_PLAIN, /* neither offsets nor base, not accumulated, no activation */
    EPILOGUE_GELU,  /* the same, then GELU */
    EPILOGUE_ANY,
    EPILOGUE_BITS,      /* as plain, then encoded in bits by a static quantizer */
    EPILOGUE_GELU_BITS, /* as GELU, likewise */
};

/* y = dot * (row_scale * token_step) + bias and so on, in the order of kernels.h.  `scale` and
 * `bias`: those of the output; `step`: that of the token. */
template <int KIND>
static __device__ inline float finished(const Epilogue &e, size_t token, size_t output, float dot,
                                        float scale, float bias, float step)
{
    float value = fmaf(dot, scale * step, bias);
    if (KIND == EPILOGUE_GELU || KIND == EPILOGUE_GELU_BITS) return bitm_gelu(value);
    if (KIND == EPILOGUE_PLAIN || KIND == EPILOGUE_BITS) return value;
    if (e.row_offset != NULL) value = fmaf(e.row_offset[output], e.tokens.sum[token], value);
    if (e.row_base != NULL) value = fmaf(e.row_base[output], e.tokens.base[token], value);
    if (e.accumulate) value = e.outputs[token * e.stride + output] + value;
    return activate(e.activation, value);
}

template <int KIND>
static __device__ inline void store(const Epilogue &e, size_t token, size_t output, float dot)
{
    e.outputs[token * e.stride + output] = finished<KIND>(
        e, token, output, dot, e.row_scale[output], e.bias[output], e.tokens.step[token]);
}

/* Two neighbouring floats of n, the first of them even. */
static __device__ inline float2 pair_of(const float *x, size_t i, uint32_t n)
{
    if (i + 1 < n) return *(const float2 *)(x + i);
    return make_float2(i < n ? x[i] : 0.0F, 0.0F);
}

/* Two neighbouring outputs of a token, the first of them even, from their sums; those past the last
 * are left out. */
template <int KIND>
static __device__ inline void store_pair(const Product &p, size_t token, size_t output,
                                         int32_t first, int32_t second, float2 scale, float2 bias,
                                         float step)
{
    const Epilogue &e = p.epilogue;
    float *y = e.outputs + token * e.stride + output;
    bool both = output + 1 < p.n_outputs;
    float2 pair = make_float2(0.0F, 0.0F);
    if (output < p.n_outputs)
        pair.x = finished<KIND>(e, token, output, (float)first, scale.x, bias.x, step);
    if (both) pair.y = finished<KIND>(e, token, output + 1, (float)second, scale.y, bias.y, step);
    if (both && e.stride % 2 == 0) {
        *(float2 *)y = pair;
        return;
    }
    if (output < p.n_outputs) y[0] = pair.x;
    if (both) y[1] = pair.y;
}

/* Element of a matrix: scale * code + offset. */
static __device__ inline uint32_t layout_place(uint32_t layout, uint32_t group, size_t row,
                                               size_t column)
{
    switch (layout) {
    case 2:
        return (uint32_t)(row / group);
    case 3:
        return (uint32_t)row;
    case 4:
        return (uint32_t)column;
    default:
        return 0;
    }
}

static __device__ inline float matrix_code(const Matrix &m, size_t row, size_t column)
{
    size_t n_words = ((size_t)m.columns + 63) / 64, word = row * n_words + column / 64;
    const uint64_t *words = (const uint64_t *)m.data;
    switch (m.dtype) {
    case 1:
        return ((const float *)m.data)[row * m.columns + column];
    case 2:
        return bitm_f16_to_f32(((const uint16_t *)m.data)[row * m.columns + column]);
    case 3:
        return (float)((const int8_t *)m.data)[row * m.columns + column];
    case 4:
        return (words[word] >> column % 64 & 1) != 0 ? 1.0F : -1.0F;
    default:
        if ((words[word] >> column % 64 & 1) == 0) return 0.0F;
        return (words[m.rows * n_words + word] >> column % 64 & 1) != 0 ? 1.0F : -1.0F;
    }
}

static __device__ inline float matrix_element(const Matrix &m, size_t row, size_t column)
{
    float value = matrix_code(m, row, column);
    if (m.scales != NULL)
        value *= m.scales[layout_place(m.scale_layout, m.scale_group, row, column)];
    if (m.offsets != NULL)
        value += m.offsets[layout_place(m.offset_layout, m.offset_group, row, column)];
    return value;
}

} // namespace bitm

#endif
