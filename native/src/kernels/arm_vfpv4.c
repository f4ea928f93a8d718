/* The scalar kernels once more, compiled for ARMv7 processors that have fused multiply-adds as an
 * instruction: the architecture's first ones do not, and call a function of the C library for each.
 *
 * The scalar unit keeps numbers below 2^-126, which NEON of ARMv7 takes for zeros: these kernels
 * are also where the NEON ones turn when such numbers may arise. */
#define bitm_gemm_w1a8__scalar bitm_gemm_w1a8__vfpv4
#define bitm_gemm_w1a16__scalar bitm_gemm_w1a16__vfpv4
#define bitm_gemm_w1f32__scalar bitm_gemm_w1f32__vfpv4
#define bitm_gemm_w1sign__scalar bitm_gemm_w1sign__vfpv4
#define bitm_gemm_w1planes__scalar bitm_gemm_w1planes__vfpv4
#define bitm_gemm_w2a8__scalar bitm_gemm_w2a8__vfpv4
#define bitm_gemm_w2a16__scalar bitm_gemm_w2a16__vfpv4
#define bitm_gemm_w2f32__scalar bitm_gemm_w2f32__vfpv4
#define bitm_gemm_w2sign__scalar bitm_gemm_w2sign__vfpv4
#define bitm_gemm_w2planes__scalar bitm_gemm_w2planes__vfpv4
#define bitm_gemm_f16__scalar bitm_gemm_f16__vfpv4
#define bitm_gemm_f32__scalar bitm_gemm_f32__vfpv4
#define bitm_gemm_i8__scalar bitm_gemm_i8__vfpv4
#define bitm_dot_planes__scalar bitm_dot_planes__vfpv4
#define bitm_quantize_i8__scalar bitm_quantize_i8__vfpv4
#define bitm_quantize_i16__scalar bitm_quantize_i16__vfpv4
#define bitm_quantize__scalar bitm_quantize__vfpv4
#define bitm_quantize_planes__scalar bitm_quantize_planes__vfpv4
#define bitm_gelu_bits__scalar bitm_gelu_bits__vfpv4
#define bitm_extremes__scalar bitm_extremes__vfpv4
#define bitm_attention__scalar bitm_attention__vfpv4
#define bitm_attention_i8__scalar bitm_attention_i8__vfpv4
#define bitm_sign_distances__scalar bitm_sign_distances__vfpv4
#define bitm_table_sum__scalar bitm_table_sum__vfpv4
#define bitm_near_bits__scalar bitm_near_bits__vfpv4
#define bitm_add_norm__scalar bitm_add_norm__vfpv4
#define bitm_rms_norm__scalar bitm_rms_norm__vfpv4
#define bitm_activate__scalar bitm_activate__vfpv4
#define bitm_exp_sum__scalar bitm_exp_sum__vfpv4

#include "scalar.c"
