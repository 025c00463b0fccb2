# Decides whether CUDA code is built and sets LSERVE_HAS_CUDA. AUTO asks for a GPU as well as nvcc,
# so that the first build on a CPU machine with a toolkit stays short; CI and the cuda preset say ON.
set(LSERVE_HAS_CUDA OFF)

find_program(LSERVE_NVCC nvcc HINTS ${CMAKE_CUDA_COMPILER} PATHS /usr/local/cuda/bin /opt/cuda/bin)
if(NOT LSERVE_NVCC AND DEFINED ENV{CUDACXX})
  set(LSERVE_NVCC "$ENV{CUDACXX}")
endif()

if(LSERVE_CUDA STREQUAL "AUTO")
  if(LSERVE_NVCC AND EXISTS /dev/nvidiactl)
    set(LSERVE_HAS_CUDA ON)
  endif()
elseif(LSERVE_CUDA STREQUAL "ON")
  if(NOT LSERVE_NVCC)
    message(FATAL_ERROR "LSERVE_CUDA=ON: no nvcc in PATH or /usr/local/cuda/bin; "
                        "install the CUDA toolkit, or configure with -DLSERVE_CUDA=OFF")
  endif()
  set(LSERVE_HAS_CUDA ON)
elseif(NOT LSERVE_CUDA STREQUAL "OFF")
  message(FATAL_ERROR "LSERVE_CUDA=${LSERVE_CUDA}: expected AUTO, ON or OFF")
endif()

if(LSERVE_HAS_CUDA)
  set(CMAKE_CUDA_COMPILER "${LSERVE_NVCC}")
  set(LSERVE_CUDA_ARCHITECTURES "80-real;89-real;90a-real" CACHE STRING
      "GPUs to compile for; one alone builds faster")
  set(CMAKE_CUDA_ARCHITECTURES "${LSERVE_CUDA_ARCHITECTURES}")
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)
  set(CMAKE_CUDA_STANDARD_REQUIRED OFF)
  # CMake 3.25 knows no flag for CUDA_STANDARD 20 with nvcc: not REQUIRED, it passes none, and ours
  # below holds. -Xcompiler warnings are fewer than for host
  # code: nvcc's generated files do not pass -Wconversion.
  add_compile_options("$<$<COMPILE_LANGUAGE:CUDA>:-std=c++20;-Werror=all-warnings;-Xcompiler=-Wall,-Wextra,-Werror>")
endif()
message(STATUS "CUDA: ${LSERVE_HAS_CUDA} (LSERVE_CUDA=${LSERVE_CUDA}, nvcc: ${LSERVE_NVCC})")
