// The 16-bit floating-point formats as scalars: conversions from and to float with a stated
// rounding. SIMD code has its own conversions; these are what it is tested against.
#pragma once

#include <bit>
#include <cstdint>

namespace lserve {

// bfloat16: the upper half of a float. Storage only; arithmetic is done in float.
struct Bf16 {
  uint16_t bits = 0;
  bool operator==(const Bf16&) const = default;
};

// IEEE 754 binary16. Storage only.
struct F16 {
  uint16_t bits = 0;
  bool operator==(const F16&) const = default;
};

inline float ToFloat(Bf16 x) {
  return std::bit_cast<float>(uint32_t{x.bits} << 16);
}

// Rounds to nearest, ties to even. NaN stays NaN (quiet); infinities are kept.
inline Bf16 ToBf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return Bf16{static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return Bf16{static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

float ToFloat(F16 x);
F16 ToF16(float x);      // to nearest, ties to even; beyond 65504: infinity
F16 ToF16Down(float x);  // the largest F16 <= x; clamps to +-65504
F16 ToF16Up(float x);    // the smallest F16 >= x; clamps to +-65504

}  // namespace lserve
