#include "base/e4m3.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace lserve {
namespace {

// The format's definition, from the bits.
double Value(uint8_t bits) {
  const int exponent = bits >> 3 & 0xf, mantissa = bits & 7;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 7 - 3);
  return bits & 0x80 ? -magnitude : magnitude;
}

bool IsNan(uint8_t bits) {
  return (bits & 0x7f) == 0x7f;
}

TEST(E4m3, EveryCodeIsItsValueAndComesBack) {
  for (int i = 0; i < 256; ++i) {
    const uint8_t bits = static_cast<uint8_t>(i);
    const float value = ToFloat(E4m3{bits});
    if (IsNan(bits)) {
      EXPECT_TRUE(std::isnan(value)) << i;
      continue;
    }
    EXPECT_EQ(double{value}, Value(bits)) << i;
    EXPECT_EQ(std::signbit(value), i >= 128) << i;
    EXPECT_EQ(ToE4m3(value).bits, bits) << i;
  }
  EXPECT_EQ(ToFloat(E4m3{0x7e}), kE4m3Max);
}

// Between any two neighbours, of both signs: the half way goes to the even code, and the next float
// on either side of it to the nearer one.
TEST(E4m3, RoundsToNearestAndTiesToEven) {
  for (int i = 0; i < 0x7e; ++i) {
    const uint8_t low = static_cast<uint8_t>(i), high = static_cast<uint8_t>(i + 1);
    const float tie = static_cast<float>((Value(low) + Value(high)) / 2);
    for (const uint8_t sign : {0x00, 0x80}) {
      const float s = sign ? -1.0f : 1.0f;
      EXPECT_EQ(ToE4m3(s * tie).bits, (i % 2 == 0 ? low : high) | sign) << tie;
      EXPECT_EQ(ToE4m3(s * std::nextafter(tie, 0.0f)).bits, low | sign) << tie;
      EXPECT_EQ(ToE4m3(s * std::nextafter(tie, 1e9f)).bits, high | sign) << tie;
    }
  }
}

TEST(E4m3, SaturatesAndKeepsNan) {
  const float infinity = std::numeric_limits<float>::infinity();
  // 464 is where the next code would begin if there were one.
  for (const float x : {448.0f, 450.0f, 464.0f, 480.0f, 1e30f, infinity}) {
    EXPECT_EQ(ToE4m3(x).bits, 0x7e) << x;
    EXPECT_EQ(ToE4m3(-x).bits, 0xfe) << x;
  }
  EXPECT_EQ(ToE4m3(std::nanf("")).bits, 0x7f);
  EXPECT_EQ(ToE4m3(-std::nanf("")).bits, 0x7f);
}

TEST(E4m3, WhatIsTooSmallIsAZeroOfItsSign) {
  for (const float x : {0.0f, std::numeric_limits<float>::denorm_min(), 1e-30f, 0x1p-10f}) {
    EXPECT_EQ(ToE4m3(x).bits, 0x00) << x;  // 2^-10 is a tie
    EXPECT_EQ(ToE4m3(-x).bits, 0x80) << x;
  }
  EXPECT_EQ(ToE4m3(std::nextafter(0x1p-10f, 1.0f)).bits, 0x01);
}

}  // namespace
}  // namespace lserve
