#include "base/half.h"

#include <cmath>

namespace lserve {

float ToFloat(F16 x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16;
  const uint32_t exponent = (x.bits >> 10) & 0x1fu;
  const uint32_t mantissa = x.bits & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  // Zero and subnormals: mantissa * 2^-24 is exact in float.
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
}

F16 ToF16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return F16{static_cast<uint16_t>(sign | 0x7e00u)};
  // 65520 is half way between the largest F16 and 2^16: it and everything above rounds to infinity.
  if (magnitude >= 0x477ff000u) return F16{static_cast<uint16_t>(sign | 0x7c00u)};
  if (magnitude < 0x38800000u) {
    // Below 2^-14 the spacing is 2^-24; nearbyint rounds ties to even in the default mode.
    const float units = std::nearbyint(std::bit_cast<float>(magnitude) * 0x1p24f);
    return F16{static_cast<uint16_t>(sign | static_cast<uint16_t>(units))};
  }
  const uint32_t rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u);
  return F16{static_cast<uint16_t>(sign | (rounded >> 13))};
}

namespace {
constexpr float kF16Max = 65504.0f;

// The neighbour of a finite `x` towards +infinity (up) or -infinity.
F16 Neighbour(F16 x, bool up) {
  if ((x.bits & 0x7fffu) == 0) return F16{static_cast<uint16_t>(up ? 0x0001u : 0x8001u)};
  const bool negative = (x.bits & 0x8000u) != 0;
  return F16{static_cast<uint16_t>(negative != up ? x.bits + 1 : x.bits - 1)};
}
}  // namespace

F16 ToF16Down(float x) {
  if (x >= kF16Max) return ToF16(kF16Max);
  if (x <= -kF16Max) return ToF16(-kF16Max);
  const F16 nearest = ToF16(x);
  return ToFloat(nearest) <= x ? nearest : Neighbour(nearest, /*up=*/false);
}

F16 ToF16Up(float x) {
  if (x >= kF16Max) return ToF16(kF16Max);
  if (x <= -kF16Max) return ToF16(-kF16Max);
  const F16 nearest = ToF16(x);
  return ToFloat(nearest) >= x ? nearest : Neighbour(nearest, /*up=*/true);
}

}  // namespace lserve
