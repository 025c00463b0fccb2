// One head's part of a page on the device, and the quantised form of backend/kv_quant.h, bit for
// bit.
//
//   bf16:  K [64 tokens][D]      V^T [D][64 tokens]
//   int8:  K codes [64][D]       V^T codes [D][64]      scales: K [64], V [64] of (scale, min) f16
//   int4:  K codes [64][D / 2]   V^T codes [D][64 / 2]  as int8; two neighbours per byte, low first
//   fp8:   K codes [64][D]       V^T codes [D][64]      exponents: K [64], V [64], a byte each
//
// V is transposed: the product of weights and values sums over tokens, so tokens are the contiguous
// axis of both operands of that product, as D is for queries and keys. Statistics: [4 logical
// pages][min, max][D] bf16.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "backend/cuda/kernels/numbers.cuh"
#include "kv/page.h"

namespace lserve {

enum class KvType { kBf16, kInt8, kInt4, kFp8 };

// Of K alone or of V alone, without scales.
template <KvType T>
__host__ __device__ constexpr size_t HalfBytes(int head_dim) {
  const size_t elements = size_t{kPageTokens} * static_cast<size_t>(head_dim);
  return T == KvType::kBf16 ? elements * 2 : T == KvType::kInt4 ? elements / 2 : elements;
}

template <KvType T>
inline constexpr int kLevels = T == KvType::kInt8 ? 255 : 15;

// What is stored beside a token's codes: (scale, min), or an exponent.
template <KvType T>
using ScaleType = std::conditional_t<T == KvType::kFp8, uint8_t, __half2>;

// Token t's scale is K's [t] and V's [64 + t].
template <KvType T>
__device__ inline const ScaleType<T>* Scales(const std::byte* kv, int head_dim) {
  return reinterpret_cast<const ScaleType<T>*>(kv + 2 * HalfBytes<T>(head_dim));
}
template <KvType T>
__device__ inline ScaleType<T>* Scales(std::byte* kv, int head_dim) {
  return reinterpret_cast<ScaleType<T>*>(kv + 2 * HalfBytes<T>(head_dim));
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

// The exponent for values up to `largest`.
__device__ inline uint8_t Fp8ExponentOf(float largest) {
  constexpr int kLeast = -100 + 127;  // kLeastFp8Exponent of backend/kv_quant.h
  return static_cast<uint8_t>(max(static_cast<int>(__float_as_uint(largest) >> 23) - 7, kLeast));
}

// Finite whatever memory held before its token was written: a weight of 0 times it is 0.
__device__ inline float Fp8Scale(uint32_t exponent) {
  return __uint_as_float(min(exponent, 254u) << 23);
}

__device__ inline uint32_t Fp8Code(float x, uint8_t exponent) {
  const float scaled = ClampForQuant(x) * Fp8Scale(2 * 127 - exponent);
  return __nv_cvt_float_to_fp8(scaled, __NV_SATFINITE, __NV_E4M3);
}

// The product is exact in float, so that a fused multiply-add gives the same.
__device__ inline __nv_bfloat16 Dequantize(uint32_t code, float scale, float min) {
  return __float2bfloat16_rn(fmaf(static_cast<float>(code), scale, min));
}

// Two neighbouring codes with their own scales, as a pair of bf16.
__device__ inline uint32_t DequantizePair(uint32_t a, float2 qa, uint32_t b, float2 qb) {
  return PackBf16(fmaf(static_cast<float>(a), qa.x, qa.y), fmaf(static_cast<float>(b), qb.x, qb.y));
}

__device__ inline uint32_t MultiplyBf16(uint32_t a, uint32_t b) {
  const __nv_bfloat162 product = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&a),
                                         *reinterpret_cast<const __nv_bfloat162*>(&b));
  return *reinterpret_cast<const uint32_t*>(&product);
}

// Codes 2 kPair and 2 kPair + 1 of four as a pair of bf16, without their scale. Each is widened by
// its sign, and exponent and mantissa move to where bf16 has the lowest bits of its exponent and
// the highest of its mantissa. There they stand for 2^-120 of the value, subnormals too: these are
// bf16's subnormals then. The product is exact. A code of NaN, which nothing stores, gives 480.
template <int kPair>
__device__ inline uint32_t WidenFp8Pair(uint32_t codes) {
  constexpr uint32_t kBytes = kPair == 0 ? 0x9180 : 0xb3a2;  // 8 + i: the sign of byte i, 8 times
  constexpr uint32_t kTwoTo120 = 0x7b807b80;
  uint32_t wide;
  asm("prmt.b32 %0, %1, 0, %2;" : "=r"(wide) : "r"(codes), "n"(kBytes));
  return MultiplyBf16(wide << 4 & 0x87f087f0u, kTwoTo120);
}

__device__ inline uint4 WidenFp8(uint2 codes) {
  return {WidenFp8Pair<0>(codes.x), WidenFp8Pair<1>(codes.x), WidenFp8Pair<0>(codes.y),
          WidenFp8Pair<1>(codes.y)};
}

// A token's (scale, min) as floats; an exponent's minimum is 0.
__device__ inline float2 Affine(__half2 q) {
  return __half22float2(q);
}
__device__ inline float2 Affine(uint8_t exponent) {
  return {Fp8Scale(exponent), 0.0f};
}

// The code of an element, and what it stands for.
template <KvType T>
__device__ inline uint32_t CodeOf(float x, ScaleType<T> scale) {
  if constexpr (T == KvType::kFp8) {
    return Fp8Code(x, scale);
  } else {
    return QuantCode(x, scale, kLevels<T>);
  }
}
template <KvType T>
__device__ inline __nv_bfloat16 StoredOf(uint32_t code, ScaleType<T> scale) {
  if constexpr (T == KvType::kFp8) {
    const uint32_t pair = MultiplyBf16(WidenFp8Pair<0>(code), PackBf16(Fp8Scale(scale), 0.0f));
    return __ushort_as_bfloat16(static_cast<uint16_t>(pair));
  } else {
    return Dequantize(code, __low2float(scale), __high2float(scale));
  }
}

// Eight neighbouring elements of a row as they are stored.
template <KvType T>
using RawEight = std::conditional_t<T == KvType::kBf16,
                                    uint4,
                                    std::conditional_t<T == KvType::kInt4, uint32_t, uint2>>;

template <KvType T>
__device__ inline RawEight<T> LoadRaw(const std::byte* row, int first) {
  constexpr int kBytesOfEight = static_cast<int>(sizeof(RawEight<T>));
  return *reinterpret_cast<const RawEight<T>*>(row + first / 8 * kBytesOfEight);
}

// The same as 4 registers of bf16 pairs. `scale(i)` is the Affine() of the i-th element: one
// and the same along a key, a token's own along a row of V^T.
template <KvType T, class ScaleOf>
__device__ inline uint4 Expand(const RawEight<T>& raw, ScaleOf scale) {
  if constexpr (T == KvType::kBf16) {
    return raw;
  } else if constexpr (T == KvType::kFp8) {
    const uint4 codes = WidenFp8(raw);
    const auto pair = [&](uint32_t two, int i) {
      return MultiplyBf16(two, PackBf16(scale(i).x, scale(i + 1).x));
    };
    return {pair(codes.x, 0), pair(codes.y, 2), pair(codes.z, 4), pair(codes.w, 6)};
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
  if constexpr (T != KvType::kBf16) scale = Affine(Scales<T>(kv, head_dim)[token]);
  return LoadEight<T>(kv + token * KeyRowBytes<T>(head_dim), d, [&](int) { return scale; });
}

}  // namespace lserve
