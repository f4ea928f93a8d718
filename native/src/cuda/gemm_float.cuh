/* Products of floats in the canonical order: 16 threads, one for each lane, share a tile of outputs,
 * whose lanes they fold at the end.  Neighbouring threads read neighbouring columns. */
#ifndef BITM_CUDA_GEMM_FLOAT_CUH
#define BITM_CUDA_GEMM_FLOAT_CUH

#include "operands.cuh"

namespace bitm {

enum {
    FLOAT_THREADS = 256,
    FLOAT_TILE = 8,     /* tokens x outputs of 16 threads */
    FLOAT_TOKENS = 32,  /* of a block: 4 tiles, */
    FLOAT_OUTPUTS = 32, /* times 4 */
    FLOAT_COLUMNS = 64, /* staged at once */
};

struct FloatProduct {
    Matrix weights; /* codes are used, without scales and offsets */
    const float *inputs; /* [n_tokens, columns] */
    uint32_t n_tokens;
    Epilogue epilogue;
};

static __global__ void __launch_bounds__(FLOAT_THREADS) gemm_float_kernel(FloatProduct p)
{
    __shared__ float inputs[FLOAT_TOKENS][FLOAT_COLUMNS];
    __shared__ float weights[FLOAT_OUTPUTS][FLOAT_COLUMNS];
    uint32_t token = blockIdx.y * FLOAT_TOKENS, output = blockIdx.x * FLOAT_OUTPUTS;
    uint32_t l = threadIdx.x % LANES, tile = threadIdx.x / LANES;
    uint32_t my_token = tile / 4 * FLOAT_TILE, my_output = tile % 4 * FLOAT_TILE;
    uint32_t n = p.weights.columns;
    float lanes[FLOAT_TILE][FLOAT_TILE] = {};
    for (uint32_t first = 0; first < n; first += FLOAT_COLUMNS) {
        for (uint32_t i = threadIdx.x; i < FLOAT_TOKENS * FLOAT_COLUMNS; i += FLOAT_THREADS) {
            uint32_t row = i / FLOAT_COLUMNS, column = first + i % FLOAT_COLUMNS;
            bool inside = column < n && token + row < p.n_tokens;
            inputs[row][i % FLOAT_COLUMNS] =
                inside ? p.inputs[(size_t)(token + row) * n + column] : 0.0F;
        }
        for (uint32_t i = threadIdx.x; i < FLOAT_OUTPUTS * FLOAT_COLUMNS; i += FLOAT_THREADS) {
            uint32_t row = i / FLOAT_COLUMNS, column = first + i % FLOAT_COLUMNS;
            bool inside = column < n && output + row < p.weights.rows;
            weights[row][i % FLOAT_COLUMNS] =
                inside ? matrix_code(p.weights, output + row, column) : 0.0F;
        }
        __syncthreads();
        for (uint32_t c = l; c < FLOAT_COLUMNS; c += LANES) {
            float x[FLOAT_TILE], w[FLOAT_TILE];
#pragma unroll
            for (int i = 0; i < FLOAT_TILE; i++)
                x[i] = inputs[my_token + i][c];
#pragma unroll
            for (int j = 0; j < FLOAT_TILE; j++)
                w[j] = weights[my_output + j][c];
#pragma unroll
            for (int i = 0; i < FLOAT_TILE; i++)
#pragma unroll
                for (int j = 0; j < FLOAT_TILE; j++)
                    lanes[i][j] = fmaf(w[j], x[i], lanes[i][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < FLOAT_TILE; i++)
#pragma unroll
        for (int j = 0; j < FLOAT_TILE; j++) {
            float dot = fold_lanes(lanes[i][j]);
            uint32_t t = token + my_token + i, o = output + my_output + j;
            if ((i * FLOAT_TILE + j) % LANES == l && t < p.n_tokens && o < p.weights.rows)
                store<EPILOGUE_ANY>(p.epilogue, t, o, dot);
        }
}

} // namespace bitm

#endif
