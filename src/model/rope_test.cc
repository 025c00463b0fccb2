#include "model/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/mapped_file.h"

namespace lserve {
namespace {

constexpr int64_t kHeadDim = 64;

RopeConfig Config(RopeType type, double theta, double factor) {
  RopeConfig config;
  config.type = type;
  config.theta = theta;
  config.factor = factor;
  config.original_max_position_embeddings = 8192;
  return config;
}

TEST(RopeFrequencies, DefaultFollowsTheFormula) {
  const RopeConfig config = Config(RopeType::kDefault, 5e5, 1.0);
  const RopeFrequencies frequencies = MakeRopeFrequencies(config, kHeadDim, 8192, 8192);
  ASSERT_EQ(frequencies.inv_freq.size(), 32u);
  EXPECT_EQ(frequencies.inv_freq[0], 1.0);
  EXPECT_EQ(frequencies.attention_factor, 1.0);
  for (int i = 0; i < 32; ++i) {
    const long double exact = std::pow(5e5L, -2.0L * i / 64.0L);
    EXPECT_NEAR(frequencies.inv_freq[i] / static_cast<double>(exact), 1.0, 4e-16);
  }
}

TEST(RopeFrequencies, LinearDividesByTheFactor) {
  const RopeFrequencies plain =
      MakeRopeFrequencies(Config(RopeType::kDefault, 1e4, 1.0), kHeadDim, 4096, 4096);
  const RopeFrequencies linear =
      MakeRopeFrequencies(Config(RopeType::kLinear, 1e4, 4.0), kHeadDim, 4096, 4096);
  for (int i = 0; i < 32; ++i) EXPECT_EQ(linear.inv_freq[i], plain.inv_freq[i] / 4.0);
}

// The base that reaches over the maximum length, fixed at load; no change up to the trained length.
TEST(RopeFrequencies, DynamicIsFixedFromTheMaximumLength) {
  const RopeConfig config = Config(RopeType::kDynamic, 1e4, 2.0);
  const RopeFrequencies plain =
      MakeRopeFrequencies(Config(RopeType::kDefault, 1e4, 1.0), kHeadDim, 4096, 4096);
  const RopeFrequencies trained = MakeRopeFrequencies(config, kHeadDim, 4096, 1000);
  EXPECT_EQ(trained.inv_freq, plain.inv_freq);
  const RopeFrequencies longer = MakeRopeFrequencies(config, kHeadDim, 4096, 16384);
  const double base = 1e4 * std::pow(2.0 * 4.0 - 1.0, 64.0 / 62.0);
  for (int i = 0; i < 32; ++i) {
    EXPECT_NEAR(longer.inv_freq[i] * std::pow(base, 2.0 * i / 64.0), 1.0, 1e-14);
  }
}

TEST(RopeFrequencies, OnePairIsAlwaysOfFrequencyOne) {
  for (const RopeType type : {RopeType::kDefault, RopeType::kDynamic}) {
    const RopeFrequencies frequencies =
        MakeRopeFrequencies(Config(type, 1e4, 4.0), 2, 4096, 1 << 20);
    EXPECT_EQ(frequencies.inv_freq, std::vector<double>{1.0});
  }
}

TEST(RopeFrequencies, Llama3KeepsHighAndDividesLowFrequencies) {
  const RopeConfig config = Config(RopeType::kLlama3, 5e5, 8.0);
  const RopeFrequencies plain =
      MakeRopeFrequencies(Config(RopeType::kDefault, 5e5, 1.0), 128, 131072, 131072);
  const RopeFrequencies scaled = MakeRopeFrequencies(config, 128, 131072, 131072);
  int kept = 0;
  int divided = 0;
  for (int i = 0; i < 64; ++i) {
    const double wavelength = 2.0 * std::numbers::pi / plain.inv_freq[i];
    if (wavelength < 8192.0 / 4.0) {
      EXPECT_EQ(scaled.inv_freq[i], plain.inv_freq[i]);
      ++kept;
    } else if (wavelength > 8192.0) {
      EXPECT_DOUBLE_EQ(scaled.inv_freq[i], plain.inv_freq[i] / 8.0);
      ++divided;
    } else {
      EXPECT_LT(scaled.inv_freq[i], plain.inv_freq[i]);
      EXPECT_GT(scaled.inv_freq[i], plain.inv_freq[i] / 8.0);
    }
  }
  EXPECT_GT(kept, 0);
  EXPECT_GT(divided, 0);
  EXPECT_LT(kept + divided, 64);
}

TEST(RopeFrequencies, YarnAttentionFactor) {
  RopeConfig config = Config(RopeType::kYarn, 1e6, 4.0);
  const auto factor = [&] {
    return MakeRopeFrequencies(config, kHeadDim, 32768, 32768).attention_factor;
  };
  EXPECT_DOUBLE_EQ(factor(), 0.1 * std::log(4.0) + 1.0);
  config.mscale = 0.707;
  EXPECT_DOUBLE_EQ(factor(), 0.1 * std::log(4.0) + 1.0);  // both or neither
  config.mscale_all_dim = 0.5;
  EXPECT_DOUBLE_EQ(factor(), (0.0707 * std::log(4.0) + 1.0) / (0.05 * std::log(4.0) + 1.0));
  config.attention_factor = 1.25;
  EXPECT_EQ(factor(), 1.25);
}

// Every type and spelling against transformers (tests/goldens/models/rope.json), whose values are
// float: theta^(dim / head_dim) with an exponent rounded to 2^-24 is off by ln(theta) * 2^-24
// relatively, and half a dozen further roundings add 2^-24 each. The blends of llama3 and YaRN
// weigh a frequency with its `factor`-th part, so that an error of the weight counts up to
// `factor`-fold; llama3's weight itself is off by the frequency's error times high / (high - low)
// <= 2, YaRN's by 2^-24.
TEST(RopeFrequencies, MatchTransformers) {
  const std::string path = std::string(LS_SOURCE_DIR) + "/tests/goldens/models/rope.json";
  const Result<std::string> text = ReadTextFile(path);
  ASSERT_TRUE(text.ok()) << text.status().message();
  const Result<Json> goldens = ParseJson(text.value());
  ASSERT_TRUE(goldens.ok()) << goldens.status().message();
  ASSERT_GE(goldens.value().as_array().size(), 14u);
  for (const Json& golden : goldens.value().as_array()) {
    SCOPED_TRACE(golden.Find("name")->as_string());
    const Result<ModelConfig> parsed =
        ParseModelConfig(WriteJson(*golden.Find("config")), "", "golden");
    ASSERT_TRUE(parsed.ok()) << parsed.status().message();
    const ModelConfig& config = parsed.value();
    const RopeFrequencies frequencies =
        MakeRopeFrequencies(config.rope, config.head_dim, config.max_position_embeddings,
                            golden.Find("max_model_len")->as_int());
    EXPECT_NEAR(frequencies.attention_factor, golden.Find("attention_factor")->as_double(), 1e-15);
    const Json::Array& expected = golden.Find("inv_freq")->as_array();
    ASSERT_EQ(frequencies.inv_freq.size(), expected.size());
    const double one = (std::log(config.rope.theta) + 6.0) * 0x1p-24;
    const double tolerance = one * (1.0 + 2.0 * config.rope.factor);
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(frequencies.inv_freq[i] / expected[i].as_double(), 1.0, tolerance) << i;
    }
  }
}

// An angle in double is off by at most two roundings of 2^-53 (the frequency and the product) and
// one of the frequency's pow, together below angle * 2^-51; cos and sin have slope at most 1; the
// rounding to float adds half an ulp of 1, 2^-25.
TEST(FillRope, IsExactAtAMillionAndBeyond) {
  const RopeFrequencies frequencies =
      MakeRopeFrequencies(Config(RopeType::kDefault, 5e5, 1.0), kHeadDim, 1 << 20, 1 << 20);
  const std::vector<int64_t> positions = {0, 1, 63, 64, 4097, 131071, 1000000, 1048575, 16777217};
  std::vector<float> cos(positions.size() * 32);
  std::vector<float> sin(cos.size());
  FillRopeRows(frequencies, positions, cos, sin);
  for (size_t row = 0; row < positions.size(); ++row) {
    for (size_t i = 0; i < 32; ++i) {
      const long double angle = static_cast<long double>(positions[row]) *
                                std::pow(5e5L, -2.0L * static_cast<long double>(i) / 64.0L);
      const double tolerance = 0x1p-25 + static_cast<double>(angle) * 0x1p-51;
      EXPECT_NEAR(cos[row * 32 + i], static_cast<double>(std::cos(angle)), tolerance);
      EXPECT_NEAR(sin[row * 32 + i], static_cast<double>(std::sin(angle)), tolerance);
    }
  }
}

TEST(FillRope, ARangeEqualsItsRowsAndCarriesTheAttentionFactor) {
  const RopeFrequencies frequencies =
      MakeRopeFrequencies(Config(RopeType::kYarn, 1e6, 4.0), kHeadDim, 32768, 32768);
  std::vector<float> cos(3 * 32), sin(3 * 32), row_cos(3 * 32), row_sin(3 * 32);
  FillRopeRange(frequencies, 999999, 3, cos, sin);
  const std::vector<int64_t> positions = {999999, 1000000, 1000001};
  FillRopeRows(frequencies, positions, row_cos, row_sin);
  EXPECT_EQ(cos, row_cos);
  EXPECT_EQ(sin, row_sin);
  const double scale = frequencies.attention_factor;
  for (size_t i = 0; i < cos.size(); ++i) {
    // Two roundings to float of values up to `scale`.
    EXPECT_NEAR(std::hypot(double{cos[i]}, double{sin[i]}), scale, scale * 0x1p-23);
  }
}

}  // namespace
}  // namespace lserve
