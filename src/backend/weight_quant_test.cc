// The error bounds that weight_quant.h states, on groups of every kind; no formula is shared.
#include "backend/weight_quant.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "base/rng.h"

namespace lserve {
namespace {

// Group sizes at their edges, values of very different magnitudes, both signs or one.
std::vector<std::vector<float>> Groups() {
  Rng rng(5);
  std::vector<std::vector<float>> groups;
  for (const int count : {1, 2, 15, 16, 17, 127, 128}) {
    for (const float magnitude : {1e-30f, 3e-4f, 1.0f, 7e20f}) {
      for (const float center : {0.0f, 2.0f, -1.5f}) {
        std::vector<float> w;
        for (int i = 0; i < count; ++i) w.push_back(magnitude * (rng.NextFloat() + center));
        groups.push_back(w);
      }
    }
    groups.emplace_back(count, 0.0f);
    groups.emplace_back(count, 0.1f);
    groups.emplace_back(count, -0.1f);
  }
  return groups;
}

class WeightQuant : public testing::TestWithParam<WeightFormat> {};

TEST_P(WeightQuant, EveryWeightIsWithinHalfAStep) {
  for (const std::vector<float>& w : Groups()) {
    const int count = static_cast<int>(w.size());
    std::vector<uint8_t> codes(w.size() + 1, 0xee);
    WeightScale scale;
    ASSERT_TRUE(QuantizeWeightGroup(GetParam(), w.data(), count, &scale, codes.data()));
    EXPECT_EQ(codes.back(), 0xee) << "wrote behind the group";
    const double step = ToFloat(scale.scale), min = ToFloat(scale.min);
    double largest = 0, low = w[0], high = w[0];
    for (size_t i = 0; i < w.size(); ++i) {
      const int code = GetParam() == WeightFormat::kInt8 ? static_cast<int8_t>(codes[i]) : codes[i];
      EXPECT_LE(std::abs(code), GetParam() == WeightFormat::kInt8 ? 127 : 15);
      EXPECT_LE(std::abs(min + step * code - double{w[i]}), step * (0.5 + 0x1p-15) + 127 * 0x1p-120)
          << w[i] << " became " << code;
      largest = std::max(largest, std::abs(double{w[i]}));
      low = std::min(low, double{w[i]});
      high = std::max(high, double{w[i]});
    }
    // The grid is hardly wider than it must be: the rounding of bf16 is 2^-7 at most.
    if (GetParam() == WeightFormat::kInt8) {
      EXPECT_LE(step * 127, largest * (1 + 0x1p-6) + 127 * 0x1p-120);
      EXPECT_EQ(min, 0);
    } else {
      EXPECT_LE(min, low);
      EXPECT_LE(step * 15, (high - low + largest * 0x1p-7) * (1 + 0x1p-6));
    }
  }
}

TEST_P(WeightQuant, RefusesWhatIsNotFinite) {
  for (const float bad :
       {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
        std::numeric_limits<float>::quiet_NaN()}) {
    for (const size_t at : {size_t{0}, size_t{40}, size_t{99}}) {
      std::vector<float> w(100, 0.5f);
      w[at] = bad;
      std::vector<uint8_t> codes(w.size());
      WeightScale scale;
      EXPECT_FALSE(QuantizeWeightGroup(GetParam(), w.data(), 100, &scale, codes.data()));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats,
                         WeightQuant,
                         testing::Values(WeightFormat::kInt8, WeightFormat::kInt4),
                         [](const auto& test) {
                           return test.param == WeightFormat::kInt8 ? "int8" : "int4";
                         });

TEST(WeightQuantCases, WhatIsOnTheGridStaysAsItIs) {
  // 127 steps of 2^-6, and 15 steps of 0.5 from -3 on.
  const std::vector<float> int8 = {127 * 0x1p-6f, -0x1p-6f, 0, -127 * 0x1p-6f, 64 * 0x1p-6f};
  const std::vector<float> int4 = {-3, -2.5f, 4.5f, 0};
  WeightScale scale;
  uint8_t codes[kWeightGroup];
  ASSERT_TRUE(QuantizeWeightGroup(WeightFormat::kInt8, int8.data(), 5, &scale, codes));
  EXPECT_EQ(ToFloat(scale.scale), 0x1p-6f);
  EXPECT_EQ(std::vector<int>({127, 255, 0, 129, 64}), std::vector<int>(codes, codes + 5));
  ASSERT_TRUE(QuantizeWeightGroup(WeightFormat::kInt4, int4.data(), 4, &scale, codes));
  EXPECT_EQ(ToFloat(scale.scale), 0.5f);
  EXPECT_EQ(ToFloat(scale.min), -3.0f);
  EXPECT_EQ(std::vector<int>({0, 1, 15, 6}), std::vector<int>(codes, codes + 4));
}

TEST(WeightQuantCases, WidensEveryStoredType) {
  const float f32[] = {1.5f, -2, 0.25f};
  uint16_t bf16[3], f16[3];
  for (int i = 0; i < 3; ++i) bf16[i] = ToBf16(f32[i]).bits, f16[i] = ToF16(f32[i]).bits;
  for (const auto& [data, dtype] : {std::pair<const void*, DType>{f32, DType::kF32},
                                    {bf16, DType::kBf16},
                                    {f16, DType::kF16}}) {
    float out[2] = {};
    WidenWeights(data, dtype, 1, 2, out);
    EXPECT_EQ(out[0], -2.0f) << Name(dtype);
    EXPECT_EQ(out[1], 0.25f) << Name(dtype);
  }
}

}  // namespace
}  // namespace lserve
