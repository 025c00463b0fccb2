// The norm of a row before a product, with one order of sums whether the product's kernel computes
// it (linear_sm90.cu) or a kernel of its own (elementwise.cu): a batch decides which of them runs,
// and must not decide about a bit. The order is that of 512 threads that take four neighbours each.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace lserve {

inline constexpr int kNormRowThreads = 512;

// Products and sums are written out so that no compiler contracts them differently. Vectors go by
// value: through a reference to global memory they are loaded one element at a time.
__device__ inline float AddSquares(float sum, float4 v) {
  return sum + fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, v.x * v.x)));
}

// What the elements of a row are multiplied by before their weight; `squares` is the thread's share
// of the row's sum, `shared` has a float per warp, and `sync()` waits for all 512 threads.
template <class Sync>
__device__ inline float NormScale(float squares, int n, float eps, float* shared, Sync sync) {
  constexpr int kWarpThreads = 32;
  for (int offset = kWarpThreads / 2; offset > 0; offset /= 2) {
    squares += __shfl_xor_sync(0xffffffffu, squares, offset);
  }
  sync();  // the last sum has been read
  if (threadIdx.x % kWarpThreads == 0) shared[threadIdx.x / kWarpThreads] = squares;
  sync();
  float sum = 0;
#pragma unroll
  for (int warp = 0; warp < kNormRowThreads / kWarpThreads; ++warp) sum += shared[warp];
  return 1.0f / sqrtf(sum / static_cast<float>(n) + eps);
}

// Four normalised elements as bf16.
__device__ inline uint2 NormalisedBf16(float4 v, float scale, float4 weight) {
  const __nv_bfloat162 low = __floats2bfloat162_rn(v.x * scale * weight.x, v.y * scale * weight.y);
  const __nv_bfloat162 high = __floats2bfloat162_rn(v.z * scale * weight.z, v.w * scale * weight.w);
  return {reinterpret_cast<const uint32_t&>(low), reinterpret_cast<const uint32_t&>(high)};
}

}  // namespace lserve
