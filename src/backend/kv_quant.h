// The quantised form of one token's key or value vector, as every backend stores it, per token and
// head: integers between its least and largest element (LServe and QServe's KV8/KV4: asymmetric,
// dynamic), or fp8 codes and a power of two. Scalar and normative: SIMD and device code must give
// the same codes and the same dequantised bf16 values, bit for bit.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "base/e4m3.h"
#include "base/half.h"
#include "tensor/dtype.h"

namespace lserve {

// Largest code: 255 for kInt8, 15 for kInt4.
constexpr int QuantLevels(DType dtype) {
  return dtype == DType::kInt8 ? 255 : 15;
}

// x ~ bf16(min + code * scale). `min` is rounded down and `scale` up, so that the codes span every
// value and the error before the rounding to bf16 is at most scale / 2.
struct QuantScale {
  F16 scale;
  F16 min;
};

// What is stored instead of a value that no code can stand for: 0 for NaN, the end of F16's range
// beyond it.
inline float ClampForQuant(float x) {
  return std::isnan(x) ? 0.0f : std::clamp(x, -65504.0f, 65504.0f);
}

inline QuantScale ChooseQuantScale(const float* x, int count, int levels) {
  float low = ClampForQuant(x[0]), high = low;
  for (int i = 1; i < count; ++i) {
    const float value = ClampForQuant(x[i]);
    low = std::min(low, value);
    high = std::max(high, value);
  }
  const F16 min = ToF16Down(low);
  return {.scale = ToF16Up((high - ToFloat(min)) / static_cast<float>(levels)), .min = min};
}

inline uint8_t QuantCode(float x, QuantScale q, int levels) {
  const float scale = ToFloat(q.scale);
  if (scale == 0.0f) return 0;
  const float code = std::nearbyint((ClampForQuant(x) - ToFloat(q.min)) / scale);
  return static_cast<uint8_t>(std::clamp(code, 0.0f, static_cast<float>(levels)));
}

// The product of an 8-bit code and an 11-bit scale is exact in float, so a fused multiply-add and
// the two operations apart agree.
inline Bf16 Dequantize(uint8_t code, QuantScale q) {
  return ToBf16(ToFloat(q.min) + static_cast<float>(code) * ToFloat(q.scale));
}

// kFp8: x ~ e4m3(code) * 2^k, which is a bf16 as it stands (ADR 0033). 2^k is stored as the
// exponent field of its float, k + 127, the E8M0 of the OCP Microscaling formats. It brings the
// largest element into [128, 256): nothing saturates, and down to 2^-13 of the largest an element
// is off by at most 2^-4 of itself; below, by 2^-17 of the largest.
//
// The least k keeps all numbers here normal, so that it does not matter what a processor does with
// others.
inline constexpr int kLeastFp8Exponent = -100 + 127;

inline uint8_t ChooseFp8Exponent(const float* x, int count) {
  float largest = 0;
  for (int i = 0; i < count; ++i) largest = std::max(largest, std::abs(ClampForQuant(x[i])));
  const int field = static_cast<int>(std::bit_cast<uint32_t>(largest) >> 23);
  return static_cast<uint8_t>(std::max(field - 7, kLeastFp8Exponent));
}

// The power of two with this exponent field.
inline float Fp8Scale(int exponent) {
  return std::bit_cast<float>(static_cast<uint32_t>(exponent) << 23);
}

inline uint8_t Fp8Code(float x, uint8_t exponent) {
  return ToE4m3(ClampForQuant(x) * Fp8Scale(2 * 127 - exponent)).bits;
}

inline Bf16 DequantizeFp8(uint8_t code, uint8_t exponent) {
  return ToBf16(ToFloat(E4m3{code}) * Fp8Scale(exponent));
}

}  // namespace lserve
