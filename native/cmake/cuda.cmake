# libbitm_cuda: the device backend for NVIDIA GPUs, opened by libbitm when it is asked for.
enable_language(CUDA)

# Every architecture that this toolkit can make code for; the newest as PTX too, for GPUs to come.
if(NOT BITM_CUDA_ARCHITECTURES)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 13.0)
    list(APPEND BITM_CUDA_ARCHITECTURES 53 62 72)
  endif()
  list(APPEND BITM_CUDA_ARCHITECTURES 75)
  if(NOT CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 11.4)
    list(APPEND BITM_CUDA_ARCHITECTURES 80 86 87)
  endif()
  if(NOT CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0)
    list(APPEND BITM_CUDA_ARCHITECTURES 89 90a)
  endif()
  if(NOT CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
    list(APPEND BITM_CUDA_ARCHITECTURES 100 120)
  endif()
endif()

# Written out, so that CMake of before 3.18, which knows no CUDA_ARCHITECTURES, does the same.
set(CMAKE_CUDA_ARCHITECTURES OFF)
foreach(architecture ${BITM_CUDA_ARCHITECTURES})
  set(CMAKE_CUDA_FLAGS
      "${CMAKE_CUDA_FLAGS} -gencode arch=compute_${architecture},code=sm_${architecture}")
endforeach()
list(GET BITM_CUDA_ARCHITECTURES -1 newest)
set(CMAKE_CUDA_FLAGS
    "${CMAKE_CUDA_FLAGS} -gencode arch=compute_${newest},code=compute_${newest}")
set(CMAKE_CUDA_STANDARD 14)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)

add_library(
  bitm_cuda SHARED
  src/arena.c
  src/quantizer.c
  src/status.c
  src/cuda/attention.cu
  src/cuda/forward.cu
  src/cuda/inputs.cu
  src/cuda/layer_signs.cu
  src/cuda/library.cu
  src/cuda/model.cu
  src/cuda/norms.cu
  src/cuda/products.cu
  src/cuda/session.cu)
set_target_properties(bitm_cuda PROPERTIES C_VISIBILITY_PRESET hidden CUDA_VISIBILITY_PRESET hidden)
target_include_directories(bitm_cuda PRIVATE include)
# -fmad=false is part of the arithmetic: see src/kernels/canonical.h.
target_compile_options(
  bitm_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false -diag-suppress=128>
                    $<$<COMPILE_LANGUAGE:C>:-ffp-contract=off>)
if(BITM_WERROR)
  target_compile_options(bitm_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)
endif()
set(BITM_CUDA_TARGET bitm_cuda)

if(BITM_TESTS)
  add_executable(check_gemm ../tests/native/check_gemm.cu)
  target_include_directories(check_gemm PRIVATE src/cuda)
  target_compile_options(check_gemm PRIVATE -fmad=false -diag-suppress=128)
endif()
