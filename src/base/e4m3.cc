#include "base/e4m3.h"

#include <bit>
#include <cmath>
#include <limits>

namespace lserve {
namespace {

constexpr uint32_t kBiasDifference = 127 - 7;  // between a float's exponent field and ours
constexpr float kStep = 0x1p-9f;               // of subnormals
constexpr float kLeastNormal = 0x1p-6f;

}  // namespace

float ToFloat(E4m3 x) {
  const uint32_t sign = uint32_t{x.bits & 0x80u} << 24;
  const uint32_t magnitude = x.bits & 0x7fu;
  if (magnitude == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  const float value = magnitude < 8
                          ? static_cast<float>(magnitude) * kStep
                          : std::bit_cast<float>((magnitude << 20) + (kBiasDifference << 23));
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

E4m3 ToE4m3(float x) {
  if (std::isnan(x)) return E4m3{0x7f};
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = bits >> 24 & 0x80u, magnitude = bits & 0x7fffffffu;
  const float size = std::bit_cast<float>(magnitude);
  uint32_t code = 0;
  if (size >= kE4m3Max) {
    code = 0x7e;
  } else if (size < kLeastNormal) {
    // nearbyint rounds ties to even in the default mode; 8 steps are the least normal's code.
    code = static_cast<uint32_t>(std::nearbyint(size / kStep));
  } else {
    code = (magnitude - (kBiasDifference << 23) + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20;
  }
  return E4m3{static_cast<uint8_t>(sign | code)};
}

}  // namespace lserve
