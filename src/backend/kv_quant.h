// The quantised form of one token's key or value vector, as every backend stores it (LServe and
// QServe's KV8/KV4: per token and head, asymmetric, dynamic). Scalar and normative: SIMD and device
// code must give the same codes and the same dequantised bf16 values, bit for bit.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

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

}  // namespace lserve
