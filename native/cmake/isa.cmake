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

set(BITM_ISA_DEFINITIONS)
if(BITM_IS_X86_64)
  set(BITM_AVX2_SOURCES
      src/kernels/x86_avx2_bits.c
      src/kernels/x86_avx2_floats.c
      src/kernels/x86_avx2_quantize.c
      src/kernels/x86_avx2_tokens.c)
  list(APPEND BITM_ISA_DEFINITIONS BITM_HAVE_AVX2=1)
endif()
set(BITM_ISA_SOURCES ${BITM_AVX2_SOURCES})

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
    bitm_set_source_flags(${target} SOURCES src/kernels/scalar.c OPTIONS -O3)
    bitm_set_source_flags(
      ${target}
      SOURCES
      ${BITM_AVX2_SOURCES}
      OPTIONS
      -O3
      -mavx2
      -mfma
      -mf16c
      -mpopcnt)
  endif()
endfunction()
