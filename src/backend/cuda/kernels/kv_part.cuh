// One head's part of a page on the device, and the quantised form of backend/kv_quant.h, bit for
// bit.
//
//   bf16:  K [64 tokens][D]      V^T [D][64 tokens]
//   int8:  K codes [64][D]       V^T codes [D][64]      scales: K [64], V [64] of (scale, min) f16
//   int4:  K codes [64][D / 2]   V^T codes [D][64 / 2]  as int8; two neighbours per byte, low first
//
// V is transposed: the product of weights and values sums over tokens, so tokens are the contiguous
// axis of both operands of that product, as D is for queries and keys. Statistics: [4 logical
// pages][min, max][D] bf16.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "backend/cuda/kernels/numbers.cuh"
#include "kv/page.h"

namespace lserve {

enum class KvType { kBf16, kInt8, kInt4 };

// Of K alone or of V alone, without scales.
template <KvType T>
__host__ __device__ constexpr size_t HalfBytes(int head_dim) {
  const size_t elements = size_t{kPageTokens} * static_cast<size_t>(head_dim);
  return T == KvType::kBf16 ? elements * 2 : T == KvType::kInt8 ? elements : elements / 2;
}

template <KvType T>
inline constexpr int kLevels = T == KvType::kInt8 ? 255 : 15;

// Token t's scale is K's [t] and V's [64 + t].
template <KvType T>
__device__ inline const __half2* Scales(const std::byte* kv, int head_dim) {
  return reinterpret_cast<const __half2*>(kv + 2 * HalfBytes<T>(head_dim));
}
template <KvType T>
__device__ inline __half2* Scales(std::byte* kv, int head_dim) {
  return reinterpret_cast<__half2*>(kv + 2 * HalfBytes<T>(head_dim));
}

__device__ inline float ClampForQuant(float x) {
  return isnan(x) ? 0.0f : fminf(fmaxf(x, -65504.0f), 65504.0f);
}

// (scale, min) of values between `low` and `high`.
__device__ inline __half2 QuantScaleOf(float low, float high, int levels) {
  const __half min = __float2half_rd(low);
  const float step = __fdiv_rn(__fsub_rn(high, __half2float(min)), static_cast<float>(levels));
  return __halves2half2(__float2half_ru(step), min);
}

__device__ inline uint32_t QuantCode(float x, __half2 q, int levels) {
  const float scale = __low2float(q);
  if (scale == 0.0f) return 0;
  const float code = rintf(__fdiv_rn(__fsub_rn(ClampForQuant(x), __high2float(q)), scale));
  return static_cast<uint32_t>(fminf(fmaxf(code, 0.0f), static_cast<float>(levels)));
}

// The product is exact in float, so that a fused multiply-add gives the same.
__device__ inline __nv_bfloat16 Dequantize(uint32_t code, float scale, float min) {
  return __float2bfloat16_rn(fmaf(static_cast<float>(code), scale, min));
}

// Two neighbouring codes with their own scales, as a pair of bf16.
__device__ inline uint32_t DequantizePair(uint32_t a, float2 qa, uint32_t b, float2 qb) {
  return PackBf16(fmaf(static_cast<float>(a), qa.x, qa.y), fmaf(static_cast<float>(b), qb.x, qb.y));
}

// Eight neighbouring elements of a row as they are stored.
template <KvType T>
using RawEight = std::conditional_t<T == KvType::kBf16,
                                    uint4,
                                    std::conditional_t<T == KvType::kInt8, uint2, uint32_t>>;

template <KvType T>
__device__ inline RawEight<T> LoadRaw(const std::byte* row, int first) {
  constexpr int kBytesOfEight = static_cast<int>(sizeof(RawEight<T>));
  return *reinterpret_cast<const RawEight<T>*>(row + first / 8 * kBytesOfEight);
}

// The same as 4 registers of bf16 pairs. `scale(i)` is the (scale, min) of the i-th element: one
// and the same along a key, a token's own along a row of V^T.
template <KvType T, class ScaleOf>
__device__ inline uint4 Expand(const RawEight<T>& raw, ScaleOf scale) {
  if constexpr (T == KvType::kBf16) {
    return raw;
  } else if constexpr (T == KvType::kInt8) {
    const auto pair = [&](uint32_t word, int shift, int i) {
      return DequantizePair(word >> shift & 0xff, scale(i), word >> (shift + 8) & 0xff,
                            scale(i + 1));
    };
    return {pair(raw.x, 0, 0), pair(raw.x, 16, 2), pair(raw.y, 0, 4), pair(raw.y, 16, 6)};
  } else {
    const auto pair = [&](int shift, int i) {
      return DequantizePair(raw >> shift & 0xf, scale(i), raw >> (shift + 4) & 0xf, scale(i + 1));
    };
    return {pair(0, 0), pair(8, 2), pair(16, 4), pair(24, 6)};
  }
}

template <KvType T, class ScaleOf>
__device__ inline uint4 LoadEight(const std::byte* row, int first, ScaleOf scale) {
  return Expand<T>(LoadRaw<T>(row, first), scale);
}

template <KvType T>
__device__ constexpr size_t KeyRowBytes(int head_dim) {
  return HalfBytes<T>(head_dim) / kPageTokens;
}
template <KvType T>
__device__ constexpr size_t ValueRowBytes() {  // of one row of V^T
  return HalfBytes<T>(1);
}

// Elements d .. d + 7 of the key of `token`.
template <KvType T>
__device__ inline uint4 LoadKey(const std::byte* kv, int head_dim, int token, int d) {
  float2 scale = {};
  if constexpr (T != KvType::kBf16) scale = __half22float2(Scales<T>(kv, head_dim)[token]);
  return LoadEight<T>(kv + token * KeyRowBytes<T>(head_dim), d, [&](int) { return scale; });
}

}  // namespace lserve
