# The kernel files of instruction sets, one tier each, and their flags. Never -march=native: the library runs
# wherever its baseline does and chooses kernels when a model opens. Scalar kernels are written for the compiler
# to vectorize.
include(CheckCSourceCompiles)

# Asked of the compiler, not of CMAKE_SYSTEM_PROCESSOR: cross-compilers often leave that unset.
check_c_source_compiles(
  "#if !defined(__x86_64__) || !defined(__GNUC__)
   #error other
   #endif
   int main(void) { return 0; }"
  BITM_IS_X86_64)

function(bitm_check_flags flags variable)
  string(REPLACE ";" " " CMAKE_REQUIRED_FLAGS "${flags}")
  check_c_source_compiles("int main(void) { return 0; }" ${variable})
endfunction()

set(BITM_ISA_DEFINITIONS)
if(BITM_IS_X86_64)
  set(BITM_AVX2_SOURCES
      src/kernels/x86_avx2_attention.c
      src/kernels/x86_avx2_attention_i8.c
      src/kernels/x86_avx2_bits.c
      src/kernels/x86_avx2_floats.c
      src/kernels/x86_avx2_quantize.c
      src/kernels/x86_avx2_signs.c
      src/kernels/x86_avx2_sums.c
      src/kernels/x86_avx2_tokens.c)
  list(APPEND BITM_ISA_DEFINITIONS BITM_HAVE_AVX2=1)
  # Compilers older than gcc 8 and 11 know no VPOPCNTDQ and no AMX. Builds with sanitizers do without AVX-512: clang
  # 14 takes minutes for each such file.
  set(BITM_AVX2_FLAGS -mavx2 -mfma -mf16c -mpopcnt)
  set(BITM_AVX512_FLAGS ${BITM_AVX2_FLAGS} -mavx512f -mavx512bw -mavx512dq -mavx512vl)
  set(BITM_VNNI_FLAGS ${BITM_AVX512_FLAGS} -mavx512vnni)
  set(BITM_PERMUTE_FLAGS ${BITM_VNNI_FLAGS})
  set(BITM_VPOPCNT_FLAGS ${BITM_AVX512_FLAGS} -mavx512vpopcntdq)
  set(BITM_AMX_FLAGS ${BITM_AVX512_FLAGS} -mamx-tile -mamx-int8)
  bitm_check_flags("${BITM_VNNI_FLAGS};${BITM_VPOPCNT_FLAGS}" BITM_COMPILES_AVX512)
  bitm_check_flags("${BITM_AMX_FLAGS}" BITM_COMPILES_AMX)
  if(BITM_COMPILES_AVX512)
    set(BITM_AVX512_SOURCES
        src/kernels/x86_avx512_attention.c
        src/kernels/x86_avx512_floats.c
        src/kernels/x86_avx512_quantize.c
        src/kernels/x86_avx512_tokens.c)
    set(BITM_PERMUTE_SOURCES src/kernels/x86_permute.c)
    set(BITM_VNNI_SOURCES src/kernels/x86_vnni.c src/kernels/x86_vnni_attention.c)
    set(BITM_VPOPCNT_SOURCES src/kernels/x86_vpopcnt.c src/kernels/x86_vpopcnt_signs.c)
    list(APPEND BITM_ISA_DEFINITIONS BITM_HAVE_AVX512=1)
  endif()
  if(BITM_COMPILES_AVX512 AND BITM_COMPILES_AMX)
    set(BITM_AMX_SOURCES src/kernels/x86_amx.c)
    list(APPEND BITM_ISA_DEFINITIONS BITM_HAVE_AMX=1)
  endif()
endif()

# ARM: a tier is built where the compiler knows its instructions, so that gcc 7 builds all it can.
set(BITM_DOTPROD_FLAGS -march=armv8.2-a+dotprod)
set(BITM_I8MM_FLAGS -march=armv8.2-a+dotprod+i8mm)

function(bitm_check_arm name flags condition)
  set(CMAKE_REQUIRED_FLAGS "${flags}")
  check_c_source_compiles(
    "#if !(${condition})
     #error other
     #endif
     #include <arm_neon.h>
     int main(void) { return (int)vgetq_lane_f32(vfmaq_f32(vdupq_n_f32(0), vdupq_n_f32(1), vdupq_n_f32(2)), 0); }"
    ${name})
endfunction()

bitm_check_arm(BITM_IS_AARCH64 "" "defined(__aarch64__)")
if(BITM_IS_AARCH64)
  # gcc's order of instructions for this core suits the others too: 24 cycles for 26 of a bit product.
  set(BITM_NEON_FLAGS)
  if(CMAKE_C_COMPILER_ID STREQUAL "GNU")
    set(BITM_NEON_FLAGS -mtune=cortex-a72)
  endif()
  bitm_check_arm(BITM_KNOWS_DOTPROD "${BITM_DOTPROD_FLAGS}" "defined(__ARM_FEATURE_DOTPROD)")
  bitm_check_arm(BITM_KNOWS_I8MM "${BITM_I8MM_FLAGS}" "defined(__ARM_FEATURE_MATMUL_INT8)")
else()
  # Compilers must not vectorize floats on their own here: NEON of ARMv7 has no denormals.
  set(BITM_NEON_FLAGS -mfpu=neon-vfpv4 -fno-tree-vectorize -fno-tree-slp-vectorize)
  bitm_check_arm(BITM_IS_ARMV7 "-mfpu=neon-vfpv4" "defined(__arm__)")
endif()
if(BITM_IS_AARCH64 OR BITM_IS_ARMV7)
  set(BITM_NEON_SOURCES
      src/kernels/arm_neon_attention_i8.c
      src/kernels/arm_neon_bits.c
      src/kernels/arm_neon_codes.c
      src/kernels/arm_neon_floats.c
      src/kernels/arm_neon_quantize.c
      src/kernels/arm_neon_signs.c
      src/kernels/arm_neon_tokens.c)
  list(APPEND BITM_ISA_DEFINITIONS BITM_HAVE_NEON=1)
endif()
if(BITM_IS_ARMV7)
  list(APPEND BITM_NEON_SOURCES src/kernels/arm_vfpv4.c)
  list(APPEND BITM_ISA_DEFINITIONS BITM_HAVE_VFPV4=1)
endif()
if(BITM_KNOWS_DOTPROD)
  set(BITM_DOTPROD_SOURCES src/kernels/arm_dotprod.c src/kernels/arm_dotprod_attention_i8.c)
  list(APPEND BITM_ISA_DEFINITIONS BITM_HAVE_DOTPROD=1)
endif()
if(BITM_KNOWS_I8MM)
  set(BITM_I8MM_SOURCES src/kernels/arm_i8mm.c)
  list(APPEND BITM_ISA_DEFINITIONS BITM_HAVE_I8MM=1)
endif()

set(BITM_TIERS AVX2 AVX512 VNNI PERMUTE VPOPCNT AMX NEON DOTPROD I8MM)
set(BITM_ISA_SOURCES)
foreach(tier ${BITM_TIERS})
  list(APPEND BITM_ISA_SOURCES ${BITM_${tier}_SOURCES})
endforeach()

function(bitm_set_source_flags target)
  cmake_parse_arguments(FLAGS "" "" "SOURCES;OPTIONS" ${ARGN})
  foreach(source ${FLAGS_SOURCES})
    set_property(
      SOURCE ${source}
      TARGET_DIRECTORY ${target}
      APPEND
      PROPERTY COMPILE_OPTIONS ${FLAGS_OPTIONS})
  endforeach()
endfunction()

function(bitm_set_isa_flags target)
  if(CMAKE_C_COMPILER_ID MATCHES "GNU|Clang")
    bitm_set_source_flags(${target} SOURCES src/kernels/scalar.c OPTIONS -O3 ${BITM_KERNEL_FRAME})
    foreach(tier ${BITM_TIERS})
      bitm_set_source_flags(
        ${target}
        SOURCES
        ${BITM_${tier}_SOURCES}
        OPTIONS
        -O3
        ${BITM_KERNEL_FRAME}
        ${BITM_${tier}_FLAGS})
    endforeach()
  endif()
endfunction()
