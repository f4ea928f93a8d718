/* What the files of the AVX2 tier share: AVX2, FMA, F16C and POPCNT, Intel since Haswell (2013),
 * AMD since Excavator and Zen.  Included by x86_avx2_*.c alone. */
#ifndef BITM_X86_AVX2_H
#define BITM_X86_AVX2_H

#include <immintrin.h>

#include "../file.h"
#include "canonical.h"
#include "kernels.h"

/* A helper of an inner loop: its constant arguments must be seen by the compiler. */
#define INLINE static inline __attribute__((always_inline))

INLINE uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

INLINE __m256 all(float x)
{
    return _mm256_set1_ps(x);
}

INLINE int32_t sum_lanes(__m256i x)
{
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_srli_epi64(two, 32)));
}

/* The first n of 8 lanes. */
INLINE __m256i first_lanes(uint32_t n)
{
    const __m256i lane_i32x8 = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)smaller(n, 8)), lane_i32x8);
}

/* The first n of 8 floats, where n may be more; 0 in the lanes past them.  By way of a copy: masked
 * stores are slow on Zen, and qemu 7.2 faults at masked loads that processors allow. */
INLINE __m256 load_floats(const float *x, uint32_t n)
{
    if (n >= 8) return _mm256_loadu_ps(x);
    float room[8] = {0};
    for (uint32_t i = 0; i < n; i++)
        room[i] = x[i];
    return _mm256_loadu_ps(room);
}

INLINE void store_floats(float *x, uint32_t n, __m256 values)
{
    if (n >= 8) {
        _mm256_storeu_ps(x, values);
        return;
    }
    float room[8];
    _mm256_storeu_ps(room, values);
    for (uint32_t i = 0; i < n; i++)
        x[i] = room[i];
}

/* columns[i] becomes row i of the 8 x 8 matrix whose rows were given. */
INLINE void transpose_floats(__m256 v[8])
{
    __m256 two[8], four[8];
    for (int i = 0; i < 8; i += 2) {
        two[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
        two[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        four[i] = _mm256_shuffle_ps(two[i], two[i + 2], _MM_SHUFFLE(1, 0, 1, 0));
        four[i + 1] = _mm256_shuffle_ps(two[i], two[i + 2], _MM_SHUFFLE(3, 2, 3, 2));
        four[i + 2] = _mm256_shuffle_ps(two[i + 1], two[i + 3], _MM_SHUFFLE(1, 0, 1, 0));
        four[i + 3] = _mm256_shuffle_ps(two[i + 1], two[i + 3], _MM_SHUFFLE(3, 2, 3, 2));
    }
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_permute2f128_ps(four[i], four[i + 4], 0x20);
        v[i + 4] = _mm256_permute2f128_ps(four[i], four[i + 4], 0x31);
    }
}

/* max(a, b) is a > b ? a : b. */
INLINE float greatest_lane(__m256 x)
{
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

/* The 16 canonical lanes of a sum: 0 to 7, 8 to 15. */
typedef struct lanes {
    __m256 low, high;
} lanes;

/* Of n elements from lane 0 on, those from lane 8 on. */
INLINE uint32_t less_8(uint32_t n)
{
    return n > 8 ? n - 8 : 0;
}

INLINE float fold(lanes sum)
{
    __m256 eight = _mm256_add_ps(sum.low, sum.high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* The epilogue of a product (see bitm_gemm) for a row of outputs.  A copy of what the struct says:
 * stores of outputs could change that for all that the compiler knows. */
typedef struct epilogue {
    const float *row_scale, *bias, *row_offset, *row_base; /* of the row's first output */
    float *y;
    float step, token_sum, token_base;
    bool accumulate;
} epilogue;

INLINE epilogue open_epilogue(const bitm_gemm *gemm, size_t token, size_t output)
{
    epilogue e = {.row_scale = gemm->row_scale + output,
                  .bias = gemm->bias + output,
                  .y = gemm->outputs + token * gemm->output_stride + output,
                  .step = gemm->token_step[token],
                  .accumulate = gemm->accumulate};
    if (gemm->row_offset != NULL) {
        e.row_offset = gemm->row_offset + output;
        e.token_sum = gemm->token_sum[token];
    }
    if (gemm->row_base != NULL) {
        e.row_base = gemm->row_base + output;
        e.token_base = gemm->token_base[token];
    }
    return e;
}

/* The first n of 8 outputs from place i of the row on. */
INLINE void store_outputs(const epilogue *e, uint32_t i, const uint32_t n, __m256 dot)
{
    __m256 scale = _mm256_mul_ps(load_floats(e->row_scale + i, n), _mm256_set1_ps(e->step));
    __m256 value = _mm256_fmadd_ps(dot, scale, load_floats(e->bias + i, n));
    if (e->row_offset != NULL)
        value =
            _mm256_fmadd_ps(load_floats(e->row_offset + i, n), _mm256_set1_ps(e->token_sum), value);
    if (e->row_base != NULL)
        value =
            _mm256_fmadd_ps(load_floats(e->row_base + i, n), _mm256_set1_ps(e->token_base), value);
    if (e->accumulate) value = _mm256_add_ps(load_floats(e->y + i, n), value);
    store_floats(e->y + i, n, value);
}

/* A float in a register: emulators (qemu 7.2) read beyond one that is the memory operand of a fused
 * multiply-add. */
INLINE float load_float(const float *x)
{
    float loaded = *x;
    __asm__("" : "+x"(loaded));
    return loaded;
}

/* The epilogue for one output. */
INLINE void store_output(const bitm_gemm *gemm, size_t token, size_t output, float dot)
{
    float *y = gemm->outputs + token * gemm->output_stride + output;
    float scale = load_float(gemm->row_scale + output) * load_float(gemm->token_step + token);
    float value = fmaf(dot, scale, load_float(gemm->bias + output));
    if (gemm->row_offset != NULL)
        value =
            fmaf(load_float(gemm->row_offset + output), load_float(gemm->token_sum + token), value);
    if (gemm->row_base != NULL)
        value =
            fmaf(load_float(gemm->row_base + output), load_float(gemm->token_base + token), value);
    *y = gemm->accumulate ? *y + value : value;
}

/* The activation function, of a block of outputs that are complete and still near. */
INLINE void activate_block(const bitm_gemm *gemm, size_t token, uint32_t n_tokens, size_t output,
                           uint32_t n_outputs)
{
    if (gemm->activation == BITM_ACTIVATION_NONE) return;
    for (size_t t = token; t < token + n_tokens; t++)
        bitm_activate__avx2(gemm->activation, gemm->outputs + t * gemm->output_stride + output,
                            n_outputs);
}

/* The products of these names for few tokens, which read weights as they are in the file. */
bitm_gemm_fn bitm_gemm_w1a8_few, bitm_gemm_w1a16_few;

#endif
