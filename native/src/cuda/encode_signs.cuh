/* Signs of rows that lie in shared memory, for what follows a norm.
 *
 * A thread makes whole words: no bits are exchanged.  Columns come by fours; rows of N + 4 floats
 * begin in other banks. */
#ifndef BITM_CUDA_ENCODE_SIGNS_CUH
#define BITM_CUDA_ENCODE_SIGNS_CUH

#include "tokens.cuh"

namespace bitm {

/* What it takes besides the rows: what is added before the sign is taken, and counts of signs,
 * positive and nonzero. */
template <int N, int TOKENS> struct SignFacts {
    float shift[3][N];
    int32_t n_signs[3][TOKENS][2];
};

/* Whether all that follows takes signs. */
static __device__ inline bool take_signs(const Followers &followers)
{
    for (uint32_t k = 0; k < followers.n; k++)
        if (followers.encodings[k].quantizer.kind != KIND_SIGN) return false;
    return true;
}

/* To be called by all threads of a block; the block's barrier is to follow. */
template <int N, int TOKENS, int THREADS>
static __device__ inline void begin_signs(const Followers &followers, SignFacts<N, TOKENS> *facts)
{
    for (uint32_t k = 0; k < followers.n; k++) {
        const Encoding &e = followers.encodings[k];
        for (uint32_t i = threadIdx.x; i < N; i += THREADS)
            facts->shift[k][i] = shift_of(e, i);
        for (uint32_t i = threadIdx.x; i < TOKENS * 2; i += THREADS)
            facts->n_signs[k][i / 2][i % 2] = i % 2 == 0 ? 0 : N;
    }
}

/* Words of 32 columns of which some shifted value is 0 or a NaN. */
static __device__ inline uint2 find_zero_signs(const float *values, const float *shift)
{
    uint2 word = make_uint2(0, 0);
#pragma unroll 1
    for (uint32_t i = 0; i < 32; i++) {
        float z = values[i] + shift[i];
        word.x |= (uint32_t)(z > 0.0F) << i;
        word.y |= (uint32_t)(fabsf(z) > 0.0F) << i;
    }
    return word;
}

/* The signs of 32 columns: positive, nonzero. */
static __device__ inline uint2 signs_of_columns(const float *values, const float *shift)
{
    uint2 word = make_uint2(0, 0xFFFFFFFFu);
    bool any_zero = false;
#pragma unroll
    for (int i = 7; i >= 0; i--) {
        float4 x = ((const float4 *)values)[i], s = ((const float4 *)shift)[i];
        const float turned[4] = {-x.w - s.w, -x.z - s.z, -x.y - s.y, -x.x - s.x};
#pragma unroll
        for (int c = 0; c < 4; c++) { /* the last columns first */
            word.x = __funnelshift_l(__float_as_uint(turned[c]), word.x, 1);
            any_zero |= !(fabsf(turned[c]) > 0.0F);
        }
    }
    return any_zero ? find_zero_signs(values, shift) : word;
}

/* rows [TOKENS][N + 4]: those of the tokens from `token` on. */
template <int N, int TOKENS, int THREADS>
static __device__ inline void encode_signs(const Followers &followers, uint32_t token,
                                           const float *rows, SignFacts<N, TOKENS> *facts)
{
    enum : uint32_t { WORDS = N / 32, PARTS = WORDS * (TOKENS / WARP) };
#pragma unroll 1
    for (uint32_t part = threadIdx.x / WARP; part < PARTS; part += THREADS / WARP) {
        uint32_t word = part % WORDS, row = part / WORDS * WARP + threadIdx.x % WARP;
        const float *values = rows + row * (N + 4) + word * 32;
#pragma unroll 1
        for (uint32_t k = 0; k < followers.n; k++) {
            const Encoding &e = followers.encodings[k];
            uint2 signs = signs_of_columns(values, facts->shift[k] + word * 32);
            uint32_t *to =
                (uint32_t *)(e.planes + piece_place(token + row, word / 4, e.n_pieces)) + word % 4;
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

} // namespace bitm

#endif
