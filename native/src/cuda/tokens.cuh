/* Token by token: embeddings, norms, copies.  16 threads a token, one for each lane of its sums. */
#ifndef BITM_CUDA_TOKENS_CUH
#define BITM_CUDA_TOKENS_CUH

#include "quantize.cuh"

namespace bitm {

enum { TOKEN_THREADS = 128, TOKENS_A_BLOCK = TOKEN_THREADS / LANES };

struct Embedding {
    Matrix word, second, token_type, position; /* second.data NULL: none */
    const int32_t *ids, *types, *positions;    /* [n_tokens] */
    const float *gain, *bias;
    float eps;
    uint32_t n_tokens, n;
    float *y;
};

struct Norm {
    const float *x, *residual; /* residual NULL: none */
    const float *gain, *bias;
    float eps;
    uint32_t n_tokens, n;
    float *y;
};

/* y = gain * (y - mean) / sqrt(variance + eps) + bias of one token, whose sum's lane this thread
 * holds; see bitm_add_norm__scalar. */
static __device__ inline void normalize(float *y, float lane, const float *gain, const float *bias,
                                        float eps, uint32_t n, uint32_t l)
{
    float mean = fold_lanes(lane) / (float)n;
    lane = 0.0F;
    for (uint32_t i = l; i < n; i += LANES) {
        float centred = y[i] - mean;
        lane = fmaf(centred, centred, lane);
    }
    float variance = fold_lanes(lane) / (float)n;
    float factor = 1.0F / sqrtf(variance + eps);
    for (uint32_t i = l; i < n; i += LANES)
        y[i] = fmaf((y[i] - mean) * factor, gain[i], bias[i]);
}

/* n_tokens is a multiple of TOKEN_BLOCK everywhere: all threads of a warp leave together. */
static __global__ void embed_kernel(Embedding e)
{
    uint32_t token = blockIdx.x * TOKENS_A_BLOCK + threadIdx.x / LANES, l = threadIdx.x % LANES;
    if (token >= e.n_tokens) return;
    float *y = e.y + (size_t)token * e.n;
    size_t id = (size_t)e.ids[token], type = (size_t)e.types[token];
    size_t position = (size_t)e.positions[token];
    float lane = 0.0F;
    for (uint32_t i = l; i < e.n; i += LANES) {
        float value = matrix_element(e.word, id, i);
        if (e.second.data != NULL) value += matrix_element(e.second, id, i);
        value += matrix_element(e.token_type, type, i);
        value += matrix_element(e.position, position, i);
        y[i] = value;
        lane += value;
    }
    normalize(y, lane, e.gain, e.bias, e.eps, e.n, l);
}

static __global__ void add_norm_kernel(Norm a)
{
    uint32_t token = blockIdx.x * TOKENS_A_BLOCK + threadIdx.x / LANES, l = threadIdx.x % LANES;
    if (token >= a.n_tokens) return;
    const float *x = a.x + (size_t)token * a.n;
    float *y = a.y + (size_t)token * a.n;
    float lane = 0.0F;
    if (a.residual != NULL) {
        const float *residual = a.residual + (size_t)token * a.n;
        for (uint32_t i = l; i < a.n; i += LANES) {
            float value = x[i] + residual[i];
            y[i] = value;
            lane += value;
        }
    } else {
        for (uint32_t i = l; i < a.n; i += LANES) {
            y[i] = x[i];
            lane += x[i];
        }
    }
    normalize(y, lane, a.gain, a.bias, a.eps, a.n, l);
}

/* Inputs of the linears that follow a norm, and of a later one whose bits are counted by the kernel
 * in between (if `later.counts`). */
struct Followers {
    Encoding encodings[3];
    uint32_t n;
    Encoding later;
};

/* Where a token's norm finds its weights and leaves its results: in either kind of memory. */
struct NormPlaces {
    const float *gain, *bias;
    float *y; /* of the token */
};

/* Takes the mean from a token's values, which 16 threads hold as finish_norm has them; returns what
 * the norm multiplies them by. */
template <int N16> static __device__ inline float centre(float eps, float value[N16], float *mean)
{
    const float n = (float)(N16 * LANES);
    float lane = 0.0F;
#pragma unroll
    for (int i = 0; i < N16; i++)
        lane += value[i];
    *mean = fold_lanes(lane) / n;
    lane = 0.0F;
#pragma unroll
    for (int i = 0; i < N16; i++) {
        value[i] -= *mean;
        lane = fmaf(value[i], value[i], lane);
    }
    float variance = fold_lanes(lane) / n;
    return 1.0F / sqrtf(variance + eps);
}

/* The norm of a token, thread l of 16 holding the values of columns l, l + 16, ..., N16 of them. */
template <int N16>
static __device__ inline void finish_norm(const Norm &a, const NormPlaces &places, uint32_t l,
                                          float value[N16])
{
    float mean, factor = centre<N16>(a.eps, value, &mean);
#pragma unroll
    for (int i = 0; i < N16; i++)
        value[i] =
            fmaf(value[i] * factor, places.gain[l + i * LANES], places.bias[l + i * LANES]);
#pragma unroll
    for (int i = 0; i < N16; i++) /* apart: no load waits for a store */
        places.y[l + i * LANES] = value[i];
}

/* The inputs of what follows, of a token whose values are held likewise. */
template <int N16>
static __device__ inline void encode_followers(const Followers &followers, size_t token, uint32_t l,
                                               const float value[N16])
{
#pragma unroll 1
    for (uint32_t k = 0; k < followers.n; k++)
        encode_values<N16>(followers.encodings[k], token, l, value);
    if (followers.later.counts && l == 0) begin_token(followers.later, token);
}

/* As add_norm_kernel, a token's values in registers, N16 = n / 16, and encoded for what follows. */
template <int N16>
static __global__ void __launch_bounds__(TOKEN_THREADS)
    add_norm_registers_kernel(Norm a, Followers followers)
{
    uint32_t token = blockIdx.x * TOKENS_A_BLOCK + threadIdx.x / LANES, l = threadIdx.x % LANES;
    if (token >= a.n_tokens) return;
    const float *x = a.x + (size_t)token * a.n;
    float value[N16];
#pragma unroll
    for (int i = 0; i < N16; i++)
        value[i] = x[l + i * LANES];
    if (a.residual != NULL) {
        const float *residual = a.residual + (size_t)token * a.n;
#pragma unroll
        for (int i = 0; i < N16; i++)
            value[i] += residual[l + i * LANES];
    }
    finish_norm<N16>(a, NormPlaces{a.gain, a.bias, a.y + (size_t)token * a.n}, l, value);
    encode_followers<N16>(followers, token, l, value);
}

struct RmsNorm {
    const float *x, *gain;
    float eps;
    uint32_t n_tokens, n;
    float *y;
};

static __global__ void rms_norm_kernel(RmsNorm a)
{
    uint32_t token = blockIdx.x * TOKENS_A_BLOCK + threadIdx.x / LANES, l = threadIdx.x % LANES;
    if (token >= a.n_tokens) return;
    const float *x = a.x + (size_t)token * a.n;
    float lane = 0.0F;
    for (uint32_t i = l; i < a.n; i += LANES)
        lane = fmaf(x[i], x[i], lane);
    float factor = 1.0F / sqrtf(fold_lanes(lane) / (float)a.n + a.eps);
    for (uint32_t i = l; i < a.n; i += LANES)
        a.y[(size_t)token * a.n + i] = (x[i] * factor) * a.gain[i];
}

/* y [n_tokens, n] = x * scale by columns. */
static __global__ void scale_columns_kernel(const float *x, const float *scale, uint32_t n_tokens,
                                            uint32_t n, float *y)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < (size_t)n_tokens * n) y[i] = x[i] * scale[i % n];
}

/* sum [n_tokens] = weights [n] . x as float products add. */
static __global__ void weighted_sum_kernel(const float *x, const float *weights, uint32_t n_tokens,
                                           uint32_t n, float *sum)
{
    uint32_t token = blockIdx.x * TOKENS_A_BLOCK + threadIdx.x / LANES, l = threadIdx.x % LANES;
    if (token >= n_tokens) return;
    float lane = 0.0F;
    for (uint32_t i = l; i < n; i += LANES)
        lane = fmaf(weights[i], x[(size_t)token * n + i], lane);
    float total = fold_lanes(lane);
    if (l == 0) sum[token] = total;
}

/* y [n_rows, n] = rows of x; of rows past n_rows, which pad a block, the first. */
static __global__ void gather_kernel(const float *x, const uint32_t *rows, uint32_t n_padded,
                                     uint32_t n, float *y)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < (size_t)n_padded * n) y[i] = x[(size_t)rows[i / n] * n + i % n];
}

/* x [n] = tanh(x + skip); skip NULL: none */
static __global__ void tanh_kernel(float *x, const float *skip, size_t n)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = bitm_tanh(x[i] + (skip != NULL ? skip[i] : 0.0F));
}

} // namespace bitm

#endif
