// Quantised weights on the device: what backend/weight_quant.h makes of a group, with the same
// float operations in the same order, so that codes and scales are those of every other backend;
// and back to bf16 for products of many rows.
//
//   Codes are rows of WeightRowBytes(). kInt8: a byte each. kInt4: words of 8 elements, element 2 i
//   in nibble i and 2 i + 1 in nibble i + 4, so that a mask takes two neighbours, 16 bits apart.
//   Scales are [group, out feature]: bf16, for kInt4 beside the minimum in the upper half of 32
//   bits. A warp per group, 4 elements a lane. Bound: memory, once per weight when a model is
//   loaded.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/kernels/numbers.cuh"

namespace lserve {
namespace {

constexpr int kWarp = 32;
constexpr int kWarpsPerBlock = 8;
constexpr int kThreads = kWarp * kWarpsPerBlock;
constexpr int kPerLane = kQuantGroup / kWarp;
constexpr float kSmallestScale = 0x1p-120f;
constexpr float kRound = 0x1.8p23f;  // leaves the nearest integer in the low bits of a sum

// The nearest bf16 that is not on the other side of x: away from zero, or towards it.
__device__ uint32_t AwayFromZero(float x) {
  const uint32_t bits = __float_as_uint(x);
  return (bits >> 16) + ((bits & 0xffffu) != 0 ? 1 : 0);
}
__device__ uint32_t Down(float x) {
  return x < 0 ? AwayFromZero(x) : __float_as_uint(x) >> 16;
}
__device__ float FromBits(uint32_t bf16) {
  return __uint_as_float(bf16 << 16);
}

template <class W, bool kInt4>
__global__ void __launch_bounds__(kThreads) QuantizeKernel(const W* weights, QuantizedRows to) {
  const int64_t groups = (to.in_features + kQuantGroup - 1) / kQuantGroup;
  const int64_t item = int64_t{blockIdx.x} * kWarpsPerBlock + threadIdx.x / kWarp;
  if (item >= to.rows * groups) return;
  const int64_t row = item / groups, group = item % groups;
  const int lane = threadIdx.x % kWarp;
  const int64_t first = group * kQuantGroup + lane * kPerLane;
  const W* from = weights + row * to.in_features;
  float values[kPerLane];
  float low = INFINITY, high = -INFINITY;
  bool finite = true;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const bool there = first + i < to.in_features;
    values[i] = there ? ToFloat(from[first + i]) : 0.0f;
    if (!there) continue;
    finite = finite && isfinite(values[i]);
    low = fminf(low, values[i]);
    high = fmaxf(high, values[i]);
  }
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    low = fminf(low, __shfl_xor_sync(0xffffffffu, low, offset));
    high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, offset));
  }
  finite = __all_sync(0xffffffffu, finite);
  float step = 0, min = 0;
  uint32_t min_bits = 0;
  if (kInt4) {
    min_bits = Down(low);
    min = FromBits(min_bits);
    step = __fdiv_rn(__fsub_rn(high, min), 15.0f);
  } else {
    step = __fdiv_rn(fmaxf(-low, high), 127.0f);
  }
  if (step < kSmallestScale) step = 0;
  const uint32_t scale_bits = AwayFromZero(step);
  step = FromBits(scale_bits);
  if (!finite || !isfinite(step) || !isfinite(min)) {
    if (lane == 0) {
      atomicMin(to.not_finite,
                static_cast<unsigned long long>((to.first_row + row) * groups + group));
    }
    return;
  }
  const float inverse = step == 0 ? 0.0f : __fdiv_rn(1.0f, step);
  uint32_t codes[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const float scaled = __fmul_rn(__fsub_rn(values[i], min), inverse);
    codes[i] = first + i < to.in_features ? __float_as_uint(__fadd_rn(scaled, kRound)) & 0xffu : 0;
  }
  const int64_t out = to.first_row + row, row_bytes = WeightRowBytes(kInt4, to.in_features);
  std::byte* row_codes = to.codes + out * row_bytes;
  if (kInt4) {
    // Even lanes hold elements 0 to 3 of a word, odd ones 4 to 7.
    const uint32_t mine = (codes[0] | codes[2] << 4 | codes[1] << 16 | codes[3] << 20)
                          << (lane % 2 * 8);
    const uint32_t word = mine | __shfl_xor_sync(0xffffffffu, mine, 1);
    const int64_t at = first / 2;
    if (lane % 2 == 0 && at < row_bytes) *reinterpret_cast<uint32_t*>(row_codes + at) = word;
    if (lane == 0) {
      static_cast<uint32_t*>(to.scales)[group * to.out_features + out] = scale_bits | min_bits
                                                                                          << 16;
    }
  } else {
    if (first < row_bytes) {
      *reinterpret_cast<uint32_t*>(row_codes + first) =
          codes[0] | codes[1] << 8 | codes[2] << 16 | codes[3] << 24;
    }
    if (lane == 0) {
      static_cast<uint16_t*>(to.scales)[group * to.out_features + out] =
          static_cast<uint16_t>(scale_bits);
    }
  }
}

template <bool kInt4>
__global__ void __launch_bounds__(kThreads)
    DequantizeKernel(QuantizedRows from, __nv_bfloat16* to) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= from.rows * from.in_features) return;
  const int64_t out = from.first_row + i / from.in_features, column = i % from.in_features;
  const std::byte* codes = from.codes + out * WeightRowBytes(kInt4, from.in_features);
  const int64_t at = column / kQuantGroup * from.out_features + out;
  float value = 0;
  if (kInt4) {
    const uint32_t word = reinterpret_cast<const uint32_t*>(codes)[column / 8];
    const int element = static_cast<int>(column % 8);
    const uint32_t code = word >> (4 * (element / 2 + element % 2 * 4)) & 0xfu;
    const uint32_t scale = static_cast<const uint32_t*>(from.scales)[at];
    value = fmaf(FromBits(scale & 0xffffu), static_cast<float>(code), FromBits(scale >> 16));
  } else {
    const int code = static_cast<signed char>(codes[column]);
    value = FromBits(static_cast<const uint16_t*>(from.scales)[at]) * static_cast<float>(code);
  }
  to[i] = __float2bfloat16_rn(value);
}

template <class W>
cudaError_t LaunchQuantize(const void* weights,
                           bool int4,
                           const QuantizedRows& to,
                           cudaStream_t stream) {
  const int64_t groups = (to.in_features + kQuantGroup - 1) / kQuantGroup;
  const int64_t items = to.rows * groups;
  const auto blocks = static_cast<unsigned>((items + kWarpsPerBlock - 1) / kWarpsPerBlock);
  const W* typed = static_cast<const W*>(weights);
  if (int4) {
    QuantizeKernel<W, true><<<blocks, kThreads, 0, stream>>>(typed, to);
  } else {
    QuantizeKernel<W, false><<<blocks, kThreads, 0, stream>>>(typed, to);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchQuantizeRows(
    const void* weights, DType dtype, bool int4, const QuantizedRows& to, cudaStream_t stream) {
  if (to.rows == 0) return cudaSuccess;
  switch (dtype) {
    case DType::kBf16:
      return LaunchQuantize<__nv_bfloat16>(weights, int4, to, stream);
    case DType::kF16:
      return LaunchQuantize<__half>(weights, int4, to, stream);
    case DType::kF32:
      return LaunchQuantize<float>(weights, int4, to, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t LaunchDequantizeRows(const QuantizedRows& from,
                                 bool int4,
                                 uint16_t* to,
                                 cudaStream_t stream) {
  const int64_t count = from.rows * from.in_features;
  if (count == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  __nv_bfloat16* typed = reinterpret_cast<__nv_bfloat16*>(to);
  if (int4) {
    DequantizeKernel<true><<<blocks, kThreads, 0, stream>>>(from, typed);
  } else {
    DequantizeKernel<false><<<blocks, kThreads, 0, stream>>>(from, typed);
  }
  return cudaGetLastError();
}

}  // namespace lserve
