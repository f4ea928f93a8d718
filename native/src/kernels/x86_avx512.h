/* What the files of the AVX-512 tiers share.  AVX-512 F, BW, DQ and VL: Intel servers since
 * Skylake (2017), AMD since Zen 4.  One vector of 32-bit elements is exactly the 16 canonical lanes
 * of a sum, and masks end rows without a copy.  Included by
 * x86_{avx512_*,permute,vnni*,vpopcnt,amx}.c. */
#ifndef BITM_X86_AVX512_H
#define BITM_X86_AVX512_H

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

/* The first n of 16 lanes, where n may be more. */
INLINE __mmask16 first_lanes(uint32_t n)
{
    return (__mmask16)((1U << smaller(n, 16)) - 1);
}

/* The first n of 64 bytes, where n may be more. */
INLINE __mmask64 first_bytes(uint32_t n)
{
    return n >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << n) - 1;
}

INLINE __m512 all(float x)
{
    return _mm512_set1_ps(x);
}

INLINE float fold(__m512 sum)
{
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* To the nearest integers, ties to even. */
INLINE __m512i to_integers(__m512 x)
{
    return _mm512_cvt_roundps_epi32(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* Four codes of a byte. */
INLINE int32_t four_codes(const void *codes)
{
    int32_t four;
    memcpy(&four, codes, sizeof four);
    return four;
}

/* Rows become columns: interleaving lanes of rows 8 apart, four times. */
INLINE void transpose_lanes(__m512i v[16])
{
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high =
        _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#pragma GCC unroll 4
    for (int pass = 0; pass < 4; pass++) {
        __m512i w[16];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            w[2 * i] = _mm512_permutex2var_epi32(v[i], low, v[i + 8]);
            w[2 * i + 1] = _mm512_permutex2var_epi32(v[i], high, v[i + 8]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            v[i] = w[i];
    }
}

/* max(a, b) is a > b ? a : b. */
INLINE float greatest_lane(__m512 x)
{
    __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

/* ---- Functions ---- */

/* x 2^n, where the low bits of `shifted` hold n: added to the exponent, since the result is
 * normal. */
INLINE __m512 times_power_of_2(__m512 x, __m512 shifted)
{
    __m512i n = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), n));
}

/* exp(x) for x up to BITM_EXP_HIGHEST. */
INLINE __m512 exponential_below(__m512 x)
{
    __m512 clamped = _mm512_max_ps(all(BITM_EXP_LOWEST), x);
    __m512 shifted = _mm512_fmadd_ps(clamped, all(BITM_LOG2_E), all(BITM_ROUND_MAGIC));
    __m512 n = _mm512_sub_ps(shifted, all(BITM_ROUND_MAGIC));
    __m512 r = _mm512_fmadd_ps(n, all(-BITM_LN2_HIGH), clamped);
    r = _mm512_fmadd_ps(n, all(-BITM_LN2_LOW), r);
    __m512 p = all(BITM_EXP_4);
    p = _mm512_fmadd_ps(p, r, all(BITM_EXP_3));
    p = _mm512_fmadd_ps(p, r, all(BITM_EXP_2));
    p = _mm512_fmadd_ps(p, r, all(BITM_EXP_1));
    p = _mm512_fmadd_ps(p, r, all(BITM_EXP_0));
    p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), all(1.0F));
    __mmask16 stays = _mm512_cmp_ps_mask(x, all(BITM_EXP_LOWEST), _CMP_NLT_UQ);
    return _mm512_maskz_mov_ps(stays, times_power_of_2(p, shifted));
}

/* 21 operations on two ports for 16 values. */
INLINE __m512 gelu(__m512 x)
{
    __m512 a = _mm512_abs_ps(x);
    __m512 p = all(BITM_GELU_6);
    p = _mm512_fmadd_ps(p, a, all(BITM_GELU_5));
    p = _mm512_fmadd_ps(p, a, all(BITM_GELU_4));
    p = _mm512_fmadd_ps(p, a, all(BITM_GELU_3));
    p = _mm512_fmadd_ps(p, a, all(BITM_GELU_2));
    p = _mm512_fmadd_ps(p, a, all(BITM_GELU_1));
    p = _mm512_fmadd_ps(p, a, all(BITM_GELU_0));
    __m512 exponent = _mm512_mul_ps(a, p);
    __m512 shifted = _mm512_add_ps(exponent, all(BITM_ROUND_MAGIC));
    __m512 r = _mm512_sub_ps(exponent, _mm512_sub_ps(shifted, all(BITM_ROUND_MAGIC)));
    __m512 q = all(BITM_HALF_EXP2_5);
    q = _mm512_fmadd_ps(q, r, all(BITM_HALF_EXP2_4));
    q = _mm512_fmadd_ps(q, r, all(BITM_HALF_EXP2_3));
    q = _mm512_fmadd_ps(q, r, all(BITM_HALF_EXP2_2));
    q = _mm512_fmadd_ps(q, r, all(BITM_HALF_EXP2_1));
    q = _mm512_fmadd_ps(q, r, all(BITM_HALF_EXP2_0));
    __mmask16 stays = _mm512_cmp_ps_mask(a, all(BITM_GELU_END), _CMP_LT_OQ);
    __m512 tail = _mm512_maskz_mov_ps(stays, times_power_of_2(q, shifted));
    return _mm512_fnmadd_ps(a, tail, _mm512_max_ps(x, all(0.0F)));
}

/* ---- The epilogue of a product: see bitm_gemm ---- */

/* GELU in place, which nearly all models have; others by a call. */
INLINE __m512 activated(uint32_t activation, __m512 x)
{
    if (activation == BITM_ACTIVATION_NONE) return x;
    if (activation == BITM_ACTIVATION_GELU) return gelu(x);
    float room[BITM_LANES];
    _mm512_storeu_ps(room, x);
    bitm_activate__avx512(activation, room, BITM_LANES);
    return _mm512_loadu_ps(room);
}

/* What 16 outputs have in common for all tokens; lanes that are not stored are 0. */
typedef struct epilogue {
    __mmask16 lanes; /* to store */
    size_t output;
    __m512 row_scale, bias, row_offset, row_base;
} epilogue;

INLINE epilogue begin_epilogue(const bitm_gemm *gemm, size_t output, __mmask16 lanes)
{
    epilogue e = {.lanes = lanes,
                  .output = output,
                  .row_scale = _mm512_maskz_loadu_ps(lanes, gemm->row_scale + output),
                  .bias = _mm512_maskz_loadu_ps(lanes, gemm->bias + output),
                  .row_offset = _mm512_setzero_ps(),
                  .row_base = _mm512_setzero_ps()};
    if (gemm->row_offset != NULL)
        e.row_offset = _mm512_maskz_loadu_ps(lanes, gemm->row_offset + output);
    if (gemm->row_base != NULL) e.row_base = _mm512_maskz_loadu_ps(lanes, gemm->row_base + output);
    return e;
}

/* Whether outputs are neither shifted nor added to others: those of nearly all models. */
INLINE bool is_plain(const bitm_gemm *gemm)
{
    return gemm->row_offset == NULL && gemm->row_base == NULL && !gemm->accumulate;
}

/* Whether they are plain, and the activation, are constants where speed counts. */
INLINE void finish_outputs(const bitm_gemm *gemm, const epilogue *e, size_t token, __m512 dot,
                           const bool plain, const uint32_t activation)
{
    float *y = gemm->outputs + token * gemm->output_stride + e->output;
    __m512 scale = _mm512_mul_ps(e->row_scale, _mm512_set1_ps(gemm->token_step[token]));
    __m512 value = _mm512_fmadd_ps(dot, scale, e->bias);
    if (!plain && gemm->row_offset != NULL)
        value = _mm512_fmadd_ps(e->row_offset, _mm512_set1_ps(gemm->token_sum[token]), value);
    if (!plain && gemm->row_base != NULL)
        value = _mm512_fmadd_ps(e->row_base, _mm512_set1_ps(gemm->token_base[token]), value);
    if (!plain && gemm->accumulate)
        value = _mm512_add_ps(_mm512_maskz_loadu_ps(e->lanes, y), value);
    _mm512_mask_storeu_ps(y, e->lanes, activated(activation, value));
}

INLINE void store_outputs(const bitm_gemm *gemm, const epilogue *e, size_t token, __m512 dot)
{
    finish_outputs(gemm, e, token, dot, false, gemm->activation);
}

/* ---- Panels of bits, for products of bytes ----
 *
 * A panel has 32 outputs, a step of it 64 inputs: 32 masks of 64 bits.  A mask is what one vector
 * of weights as bytes is made from: of 16 outputs, four inputs each.  Of every two fours of inputs
 * come first the masks of outputs 0 to 15, then those of 16 to 31. */
enum { PANEL = 32, STEP = 64, STEP_MASKS = 32 };

/* One step of rows [n_rows] of bits, `stride` words from one to the next; rows that are not there
 * get zeros.  In each half, 16 rows of 8 bytes become columns, interleaving halves four times;
 * then low and high nibbles of a column become a mask each. */
INLINE void make_masks(const uint64_t *rows, size_t stride, uint32_t n_rows,
                       uint64_t masks[STEP_MASKS])
{
    const __m256i nibble_u8x32 = _mm256_set1_epi8(15);
    const __m256i factors_i8x32 = _mm256_set1_epi16(1 | 16 << 8);
    int64_t words[PANEL];
    __m256i v[8];
    for (uint32_t i = 0; i < PANEL; i++)
        words[i] = i < n_rows ? (int64_t)rows[i * stride] : 0;
    for (int i = 0; i < 8; i++)
        v[i] =
            _mm256_set_epi64x(words[17 + 2 * i], words[16 + 2 * i], words[1 + 2 * i], words[2 * i]);
    for (int pass = 0; pass < 4; pass++) {
        __m256i w[8];
        for (int i = 0; i < 4; i++) {
            w[2 * i] = _mm256_unpacklo_epi8(v[i], v[i + 4]);
            w[2 * i + 1] = _mm256_unpackhi_epi8(v[i], v[i + 4]);
        }
        for (int i = 0; i < 8; i++)
            v[i] = w[i];
    }
    for (int i = 0; i < 8; i++) {
        __m256i low = _mm256_and_si256(v[i], nibble_u8x32);
        __m256i high = _mm256_and_si256(_mm256_srli_epi16(v[i], 4), nibble_u8x32);
        __m256i packed = _mm256_packus_epi16(_mm256_maddubs_epi16(low, factors_i8x32),
                                             _mm256_maddubs_epi16(high, factors_i8x32));
        _mm256_storeu_si256((__m256i *)(masks + 4 * i), packed);
    }
}

/* A panel's places in the layout that bitm_packing__masks32 makes: [plane, panel, step, masks]. */
INLINE size_t panel_masks(const bitm_gemm *gemm, uint32_t plane, uint32_t output)
{
    size_t n_steps = ((size_t)gemm->n_inputs + STEP - 1) / STEP;
    size_t n_panels = ((size_t)gemm->n_rows + PANEL - 1) / PANEL;
    return (plane * n_panels + output / PANEL) * n_steps * STEP_MASKS;
}

/* The outputs from `output` on that lie before `end` and not before `begin`. */
INLINE __mmask16 outputs_between(uint32_t output, uint32_t begin, uint32_t end)
{
    __mmask16 lanes = first_lanes(end > output ? end - output : 0);
    return begin > output ? (__mmask16)(lanes & ~first_lanes(begin - output)) : lanes;
}

/* ---- Operands of products ---- */

typedef enum code_kind { CODES_I8, CODES_I11, CODES_I16, CODES_SIGN, CODES_PLANES } code_kind;

/* Asks the second cache for weights that come later: the processor's own prefetcher stops at ends
 * of pages and rows.  Asking the first cache for rows takes Zen 4 twice the time.  An address need
 * not exist. */
INLINE void ask_for(const void *weights, size_t ahead_bytes)
{
    _mm_prefetch((const char *)((uintptr_t)weights + ahead_bytes), _MM_HINT_T1);
}

#ifdef __AVX512VNNI__
/* Copies 64 codes of a token, of which the first n exist, to their rows; returns their sum. */
INLINE int32_t copy_codes(code_kind kind, const void *codes, uint32_t n, uint8_t *low,
                          uint8_t *high)
{
    const __m512i one_i8x64 = _mm512_set1_epi8(1);
    const __m512i zero = _mm512_setzero_si512();
    if (kind == CODES_I8) {
        __m512i all = _mm512_maskz_loadu_epi8(first_bytes(n), codes);
        _mm512_store_si512(low, all);
        return _mm512_reduce_add_epi32(_mm512_dpbusd_epi32(zero, one_i8x64, all));
    }
    const int16_t *words = codes;
    __m512i first = _mm512_maskz_loadu_epi16((__mmask32)first_bytes(smaller(n, 32)), words);
    __m512i second =
        n > 32 ? _mm512_maskz_loadu_epi16((__mmask32)first_bytes(smaller(n - 32, 32)), words + 32)
               : zero;
    __m512i low_u8x64 = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi16_epi8(first)),
                                           _mm512_cvtepi16_epi8(second), 1);
    __m512i high_i8x64 = _mm512_inserti64x4(
        _mm512_castsi256_si512(_mm512_cvtepi16_epi8(_mm512_srai_epi16(first, 8))),
        _mm512_cvtepi16_epi8(_mm512_srai_epi16(second, 8)), 1);
    _mm512_store_si512(low, low_u8x64);
    _mm512_store_si512(high, high_i8x64);
    return _mm512_reduce_add_epi32(_mm512_dpbusd_epi32(zero, low_u8x64, one_i8x64)) +
           256 * _mm512_reduce_add_epi32(_mm512_dpbusd_epi32(zero, one_i8x64, high_i8x64));
}

#endif

#endif
