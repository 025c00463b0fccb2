// E4M3, the 8-bit floating-point format for values of "FP8 Formats for Deep Learning" (arXiv
// 2209.05433, table 1): a sign, 4 bits of exponent with bias 7, 3 of mantissa; steps of 2^-9 below
// 2^-6, no infinities, 448 the largest. Conversions as in half.h; the KV cache stores it
// (backend/kv_quant.h).
#pragma once

#include <cstdint>

namespace lserve {

struct E4m3 {
  uint8_t bits = 0;
  bool operator==(const E4m3&) const = default;
};

inline constexpr float kE4m3Max = 448.0f;

float ToFloat(E4m3 x);  // 0x7f and 0xff are NaN
// To nearest, ties to even; beyond kE4m3Max, infinities included: +-kE4m3Max. NaN becomes 0x7f.
E4m3 ToE4m3(float x);

}  // namespace lserve
