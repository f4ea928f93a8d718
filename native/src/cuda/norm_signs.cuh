/* Norms of rows that lie in shared memory, and their signs for what follows, on Hopper.
 *
 * A thread takes 32 columns of a row, and makes whole words of signs: no bits are exchanged.  Rows
 * of N + 4 floats begin in other banks. */
#ifndef BITM_CUDA_NORM_SIGNS_CUH
#define BITM_CUDA_NORM_SIGNS_CUH

#include "hopper.cuh"
#include "tokens.cuh"

namespace bitm {

/* What it takes besides the rows: of a row its mean and what the norm multiplies by, what is added
 * before a sign is taken, and counts of signs, positive and nonzero. */
template <int N, int TOKENS> struct SignFacts {
    float mean[TOKENS], factor[TOKENS];
    float shift[3][N];
    int32_t n_signs[3][TOKENS][2];
};

#if BITM_HAS_WGMMA

/* Whether all that follows takes signs. */
static __device__ inline bool take_signs(const Followers &followers)
{
    for (uint32_t k = 0; k < followers.n; k++)
        if (followers.encodings[k].quantizer.kind != KIND_SIGN) return false;
    return true;
}

/* Starts to copy what is added; the block's barrier is to follow. */
template <int N, int TOKENS, int THREADS>
static __device__ inline void begin_signs(const Followers &followers, SignFacts<N, TOKENS> *facts)
{
    for (uint32_t k = 0; k < followers.n; k++) {
        const float *shift = followers.encodings[k].shift;
        for (uint32_t i = threadIdx.x * 4; i < N; i += THREADS * 4) {
            float *to = facts->shift[k] + i;
            if (shift != NULL)
                copy_async(to, shift + i);
            else
                *(float4 *)to = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
        }
        for (uint32_t i = threadIdx.x; i < TOKENS * 2; i += THREADS)
            facts->n_signs[k][i / 2][i % 2] = i % 2 == 0 ? 0 : N;
    }
}

/* Normalizes 32 columns of a row; they stay in registers, too. */
static __device__ inline void normalize_columns(float *row, float mean, float factor,
                                                const float *gain, const float *bias, float x[32])
{
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float4 v = ((const float4 *)row)[i];
        float4 g = ((const float4 *)gain)[i], b = ((const float4 *)bias)[i];
        x[i * 4] = fmaf((v.x - mean) * factor, g.x, b.x);
        x[i * 4 + 1] = fmaf((v.y - mean) * factor, g.y, b.y);
        x[i * 4 + 2] = fmaf((v.z - mean) * factor, g.z, b.z);
        x[i * 4 + 3] = fmaf((v.w - mean) * factor, g.w, b.w);
        ((float4 *)row)[i] = make_float4(x[i * 4], x[i * 4 + 1], x[i * 4 + 2], x[i * 4 + 3]);
    }
}

/* A warp stores 32 columns of its 32 rows: whole lines of memory. */
template <int N> static __device__ inline void store_columns(const float *rows, float *y)
{
    uint32_t lane = threadIdx.x % WARP;
    const float *from = rows + lane / 8 * (N + 4) + lane % 8 * 4;
    float *to = y + lane / 8 * N + lane % 8 * 4;
#pragma unroll
    for (int i = 0; i < 8; i++)
        *(float4 *)(to + i * 4 * N) = *(const float4 *)(from + i * 4 * (N + 4));
}

/* Words of 32 columns of which some shifted value is 0 or a NaN. */
static __device__ inline uint2 find_zero_signs(const Encoding &e, const float *values,
                                               const float *shift)
{
    uint32_t planes[2] = {0, 0};
#pragma unroll 1
    for (uint32_t i = 0; i < 32; i++)
        add_bits<RULE_SIGNS>(e, values[i] + shift[i], i, planes);
    return make_uint2(planes[0], planes[1]);
}

/* The signs of 32 columns, positive and nonzero: x, which `values` has, too. */
static __device__ inline uint2 signs_of_columns(const Encoding &e, const float x[32],
                                                const float *values, const float *shift)
{
    uint2 word = make_uint2(0, 0xFFFFFFFFu);
    bool any_zero = false;
#pragma unroll
    for (int i = 28; i >= 0; i -= 4) {
        float4 s = *(const float4 *)(shift + i);
        const float turned[4] = {-x[i + 3] - s.w, -x[i + 2] - s.z, -x[i + 1] - s.y, -x[i] - s.x};
#pragma unroll
        for (int c = 0; c < 4; c++) { /* the last columns first */
            word.x = __funnelshift_l(__float_as_uint(turned[c]), word.x, 1);
            any_zero |= !(fabsf(turned[c]) > 0.0F);
        }
    }
    return any_zero ? find_zero_signs(e, values, shift) : word;
}

/* y, of rows [TOKENS][N + 4] whose means and factors are known, and their signs: those of the
 * tokens from `token` on. */
template <int N, int TOKENS, int THREADS>
static __device__ inline void
normalize_to_signs(const Norm &norm, const Followers &followers, uint32_t token, const float *gain,
                   const float *bias, float *rows, SignFacts<N, TOKENS> *facts)
{
    enum : uint32_t { WORDS = N / 32, PARTS = WORDS * (TOKENS / WARP) };
#pragma unroll 1
    for (uint32_t part = threadIdx.x / WARP; part < PARTS; part += THREADS / WARP) {
        uint32_t word = part % WORDS, first = part / WORDS * WARP;
        uint32_t row = first + threadIdx.x % WARP;
        float *values = rows + row * (N + 4) + word * 32, x[32];
        normalize_columns(values, facts->mean[row], facts->factor[row], gain + word * 32,
                          bias + word * 32, x);
        __syncwarp();
        store_columns<N>(rows + first * (N + 4) + word * 32,
                         norm.y + (size_t)(token + first) * N + word * 32);
#pragma unroll 1
        for (uint32_t k = 0; k < followers.n; k++) {
            const Encoding &e = followers.encodings[k];
            uint2 signs = signs_of_columns(e, x, values, facts->shift[k] + word * 32);
            uint32_t *to = word_at(e, token + row, word * 32);
            to[0] = signs.x;
            to[e.plane_stride * 4] = signs.y;
            int32_t *n_signs = facts->n_signs[k][row];
            atomicAdd(n_signs, __popc(signs.x));
            if (signs.y != 0xFFFFFFFFu) atomicSub(n_signs + 1, __popc(~signs.y));
        }
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < TOKENS * followers.n; i += THREADS) {
        const Encoding &e = followers.encodings[i / TOKENS];
        const int32_t *n = facts->n_signs[i / TOKENS][i % TOKENS];
        store_token_facts(e, token + i % TOKENS, e.quantizer.step, sum_of_planes(e, n[0], n[1]),
                          (uint32_t)n[1]);
    }
}

#endif

} // namespace bitm

#endif
