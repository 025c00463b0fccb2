// Conversions and functions of single numbers that several kernels need.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace lserve {

__device__ inline float ToFloat(float x) {
  return x;
}
__device__ inline float ToFloat(__half x) {
  return __half2float(x);
}
__device__ inline float ToFloat(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

// Two neighbours, each rounded to nearest even, the first in the lower half.
__device__ inline uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ inline float Silu(float x) {
  return x / (1.0f + expf(-x));
}

}  // namespace lserve
