# Flags of the kernel files, one file a tier, never -march=native: the library runs wherever its baseline does
# and chooses kernels when a model opens. Scalar kernels are written for the compiler to vectorize.
function(bitm_set_isa_flags target)
  if(CMAKE_C_COMPILER_ID MATCHES "GNU|Clang")
    set_property(
      SOURCE src/kernels/scalar.c
      TARGET_DIRECTORY ${target}
      APPEND
      PROPERTY COMPILE_OPTIONS -O3)
  endif()
endfunction()
