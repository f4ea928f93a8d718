/* The norms of a layer of signs (layer_signs.cuh), and the signs of their results. */
#ifndef BITM_CUDA_LAYER_NORMS_CUH
#define BITM_CUDA_LAYER_NORMS_CUH

#include "layer_shape.cuh"

namespace bitm {

#if BITM_HAS_WGMMA

/* The means of rows and what they are multiplied by, as centre (tokens.cuh) finds them; 16 threads
 * a row, of which each takes one in every 32.  Values are read twice: registers are for weights. */
template <typename S>
static __device__ inline void centre_rows(float eps, const float *rows, float2 *centres)
{
    enum : int { ROWS = S::TOKENS / 32 };
    /* The two rows of a warp are 4 apart, in other banks. */
    uint32_t l = threadIdx.x % LANES, warp = threadIdx.x / WARP,
             row = warp / 4 * 8 + warp % 4 + threadIdx.x % WARP / LANES * 4;
    const float *values = rows + row * S::ROW + l;
    const float n = (float)S::N;
    float lane[ROWS] = {}, mean[ROWS];
#pragma unroll 16
    for (uint32_t i = 0; i < S::N; i += LANES)
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            lane[r] += values[r * 32 * S::ROW + i];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        mean[r] = fold_lanes(lane[r]) / n;
        lane[r] = 0.0F;
    }
#pragma unroll 16
    for (uint32_t i = 0; i < S::N; i += LANES)
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float centred = values[r * 32 * S::ROW + i] - mean[r];
            lane[r] = fmaf(centred, centred, lane[r]);
        }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float factor = 1.0F / sqrtf(fold_lanes(lane[r]) / n + eps);
        if (l == 0) centres[row + r * 32] = make_float2(mean[r], factor);
    }
}

/* The kinds of signs that a norm takes, by what is added before, and where they go. */
struct NormSigns {
    const float *const *shifts;
    uint32_t n;
    uint4 *sets;
};

/* What the model knows of a thread's column, loaded before it is wanted. */
struct NormColumn {
    float gain, bias, shift[LAYER_OPERANDS];
};

static __device__ inline NormColumn norm_column(const LayerHalf &half, const NormSigns &signs,
                                                uint32_t column)
{
    NormColumn c = {half.norm_gain[column], half.norm_bias[column], {0.0F, 0.0F, 0.0F}};
#pragma unroll
    for (uint32_t k = 0; k < LAYER_OPERANDS; k++)
        if (k < signs.n && signs.shifts[k] != NULL) c.shift[k] = signs.shifts[k][column];
    return c;
}

static __device__ inline bool is_nonzero(float x, float least)
{
    return x < least || x > least; /* no NaN */
}

/* The nonzero signs of 32 rows of a column of words, where one is 0: a thread returns its row's. */
template <typename S>
static __device__ inline uint32_t find_zero_signs(const float *values, float least,
                                                  int32_t *n_zeros)
{
    uint32_t lane = threadIdx.x % WARP, mine = 0;
#pragma unroll 1
    for (uint32_t row = 0; row < WARP; row++) {
        uint32_t word = __ballot_sync(ALL_THREADS, is_nonzero(values[row * S::ROW], least));
        if (lane == row) mine = word;
    }
    atomicAdd(n_zeros + lane, __popc(~mine));
    return mine;
}

/* Positive signs in sets become sums of codes. */
template <typename S>
static __device__ inline void sum_signs(uint32_t n, const uint4 *sets, LayerFacts<S::TOKENS> *facts)
{
    for (uint32_t i = threadIdx.x; i < n * S::TOKENS * 4; i += LAYER_THREADS) {
        uint32_t k = i / 4 / S::TOKENS, row = i / 4 % S::TOKENS;
        int32_t positive = 0;
        for (uint32_t piece = i % 4; piece < S::PIECES; piece += 4)
            positive += popc_piece(sets[k * S::SET + piece_place(row, piece, S::PIECES)]);
        positive = warp_sum<4>(positive);
        if (i % 4 == 0)
            facts->sign_sums[k][row] = (uint16_t)(2 * positive + facts->n_zeros[k][row]);
    }
}

/* Normalizes the rows in their place and takes signs of them, up to three kinds: the positive ones
 * into sets, words of nonzero ones that are not all ones into planes in memory, the codes' sums
 * into the facts.  A warp has a part, 32 columns of 32 rows, at a time.  Returns whether no sign is
 * 0; all threads have met. */
template <typename S>
static __device__ inline bool normalize_rows(const SignLayers &a, const LayerHalf &half,
                                             const NormSigns &signs, uint32_t token, float *rows,
                                             LayerFacts<S::TOKENS> *facts)
{
    enum : uint32_t { WORDS = S::N / 32, PARTS = WORDS * S::TOKENS / WARP, AT_ONCE = TILE_ROWS };
    const uint32_t n = signs.n, lane = threadIdx.x % WARP;
    uint32_t part = threadIdx.x / WARP;
    NormColumn next = norm_column(half, signs, part % WORDS * 32 + lane);
    for (uint32_t i = threadIdx.x; i < n * S::TOKENS; i += LAYER_THREADS)
        facts->n_zeros[i / S::TOKENS][i % S::TOKENS] = 0;
    if (threadIdx.x < LAYER_OPERANDS * 2)
        facts->parts_with_zeros[threadIdx.x / 2][threadIdx.x % 2] = 0;
    centre_rows<S>(a.eps, rows, facts->centres);
    __syncthreads();
    bool dense = true;
#pragma unroll 1
    while (part < PARTS) {
        uint32_t word = part % WORDS, first = part / WORDS * WARP;
        const NormColumn column = next;
        /* x + shift > 0 where x > -shift */
        const float least[LAYER_OPERANDS] = {-next.shift[0], -next.shift[1], -next.shift[2]};
        part += LAYER_THREADS / WARP;
        if (part < PARTS) next = norm_column(half, signs, part % WORDS * 32 + lane);
        float *values = rows + first * S::ROW + word * 32 + lane;
        uint32_t *words = word_of_set<S>(signs.sets, first, word);
        bool nonzero[LAYER_OPERANDS] = {true, true, true};
#pragma unroll 1
        for (uint32_t tile = 0; tile < WARP / AT_ONCE; tile++) {
            float x[AT_ONCE];
            float2 centres[AT_ONCE];
            float *to = values + tile * AT_ONCE * S::ROW;
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                x[i] = to[i * S::ROW];
                if (i % 2 != 0) continue;
                float4 two = *(const float4 *)(facts->centres + first + tile * AT_ONCE + i);
                centres[i] = make_float2(two.x, two.y);
                centres[i + 1] = make_float2(two.z, two.w);
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                x[i] = fmaf((x[i] - centres[i].x) * centres[i].y, column.gain, column.bias);
                to[i * S::ROW] = x[i];
            }
#pragma unroll
            for (uint32_t k = 0; k < LAYER_OPERANDS; k++) {
                if (k >= n) break;
#pragma unroll
                for (int i = 0; i < AT_ONCE; i++) {
                    uint32_t bits = __ballot_sync(ALL_THREADS, x[i] > least[k]);
                    nonzero[k] = nonzero[k] && is_nonzero(x[i], least[k]);
                    if (lane == 0)
                        words[(k * S::SET + tile * S::PIECES * TILE_ROWS + (uint32_t)i) * 4] = bits;
                }
            }
        }
        if (!__any_sync(ALL_THREADS, !(nonzero[0] && nonzero[1] && nonzero[2]))) continue;
        dense = false;
        for (uint32_t k = 0; k < n; k++) {
            float of_sign = k == 0 ? least[0] : k == 1 ? least[1] : least[2];
            *word_of_set<S>(a.nonzero[k], token + first + lane, word) =
                find_zero_signs<S>(values, of_sign, &facts->n_zeros[k][first]);
            if (lane == 0) atomicOr(&facts->parts_with_zeros[k][first / WARP], 1u << word);
        }
    }
    publish_tiles();
    dense = __syncthreads_and(dense) != 0;
    sum_signs<S>(n, signs.sets, facts);
    __syncthreads();
    return dense;
}

#endif

} // namespace bitm

#endif
