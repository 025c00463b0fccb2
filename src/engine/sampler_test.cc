#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>

namespace lserve {
namespace {

std::map<int32_t, int> DrawMany(SamplingParams params,
                                const std::vector<float>& logits,
                                int count) {
  std::map<int32_t, int> seen;
  for (int i = 0; i < count; ++i) {
    params.seed = static_cast<uint64_t>(i);
    std::vector<float> copy = logits;
    ++seen[Sampler(params, {}).Sample(copy).value()];
  }
  return seen;
}

TEST(Sampler, GreedyTakesTheLowestOfEqualIds) {
  std::vector<float> logits = {1, 5, 5, -2};
  EXPECT_EQ(Sampler({.temperature = 0}, {}).Sample(logits).value(), 1);
}

TEST(Sampler, SameSeedSameTokens) {
  std::vector<float> logits(1000);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = std::sin(static_cast<float>(i));
  Sampler a({.seed = 42}, {}), b({.seed = 42}, {}), c({.seed = 43}, {});
  int differ = 0;
  for (int i = 0; i < 50; ++i) {
    std::vector<float> la = logits, lb = logits, lc = logits;
    const int32_t token = a.Sample(la).value();
    ASSERT_EQ(token, b.Sample(lb).value());
    differ += token != c.Sample(lc).value();
  }
  EXPECT_GT(differ, 25);
}

TEST(Sampler, TemperatureDistributionIsSoftmax) {
  // Probabilities 0.5, 0.25, 0.25 at temperature 1; 2/3, 1/6, 1/6 at 0.5. 20000 draws: the standard
  // deviation of a frequency is below 0.0036, so 0.015 is over four of them.
  const std::vector<float> logits = {std::log(2.0f), 0, 0};
  EXPECT_NEAR(DrawMany({}, logits, 20000)[0] / 20000.0, 0.5, 0.015);
  EXPECT_NEAR(DrawMany({.temperature = 0.5}, logits, 20000)[0] / 20000.0, 2.0 / 3, 0.015);
}

TEST(Sampler, TopKTopPMinPCutTheTail) {
  const std::vector<float> logits = {std::log(0.4f), std::log(0.3f), std::log(0.2f),
                                     std::log(0.1f)};
  EXPECT_EQ(DrawMany({.top_k = 2}, logits, 500).size(), 2u);
  EXPECT_EQ(DrawMany({.top_p = 0.39}, logits, 500).size(), 1u);
  EXPECT_EQ(DrawMany({.top_p = 0.65}, logits, 500).size(), 2u);  // 0.4 < 0.65: the second is needed
  EXPECT_EQ(DrawMany({.top_p = 0.75}, logits, 500).size(), 3u);
  EXPECT_EQ(DrawMany({.min_p = 0.6}, logits, 500).size(), 2u);  // 0.3 / 0.4 = 0.75, 0.2 / 0.4 = 0.5
  EXPECT_EQ(DrawMany({}, logits, 500).size(), 4u);
}

TEST(Sampler, Penalties) {
  const std::vector<float> logits = {2.0f, 1.9f, -1.0f};
  const std::vector<int32_t> prompt = {0};
  std::vector<float> copy = logits;
  // 2 / 1.5 < 1.9: the repeated prompt token loses.
  EXPECT_EQ(Sampler({.temperature = 0, .repetition_penalty = 1.5}, prompt).Sample(copy).value(), 1);
  Sampler presence({.temperature = 0, .presence_penalty = 0.2}, prompt);
  std::vector<int32_t> drawn;
  for (int i = 0; i < 3; ++i) {
    copy = logits;
    drawn.push_back(presence.Sample(copy).value());
  }
  // The prompt does not count; then 1.8 < 1.9; then 1.8 against 1.7.
  EXPECT_EQ(drawn, (std::vector<int32_t>{0, 1, 0}));
  Sampler frequency({.temperature = 0, .frequency_penalty = 0.2}, prompt);
  drawn.clear();
  for (int i = 0; i < 4; ++i) {
    copy = logits;
    drawn.push_back(frequency.Sample(copy).value());
  }
  EXPECT_EQ(drawn, (std::vector<int32_t>{0, 1, 0, 1}));  // 2.0; 1.8/1.9; 1.8/1.7; 1.6/1.7
}

// Whoever draws by NextDraw() gives what Sample() does, token after token.
TEST(Sampler, DrawsElsewhereAreTheSame) {
  Rng rng(5);
  std::vector<float> logits(700);
  for (const SamplingParams& params :
       {SamplingParams{.seed = 3}, SamplingParams{.temperature = 0.7, .top_k = 40, .seed = 4},
        SamplingParams{.temperature = 1.3, .top_p = 0.9, .min_p = 0.01, .seed = 5},
        SamplingParams{.temperature = 0, .seed = 6}}) {
    Sampler here(params, {}), there(params, {});
    EXPECT_FALSE(here.changes_logits());
    for (int step = 0; step < 20; ++step) {
      for (float& x : logits) x = 4 * rng.NextFloat();
      const int32_t token = DrawToken(logits, there.NextDraw());
      ASSERT_EQ(DrawToken(logits, there.NextDraw()), token) << "asked again, step " << step;
      EXPECT_EQ(there.Take(token).value(), token);
      std::vector<float> copy = logits;
      ASSERT_EQ(here.Sample(copy).value(), token) << "step " << step;
    }
  }
  EXPECT_TRUE(Sampler({.repetition_penalty = 1.1}, {}).changes_logits());
  EXPECT_TRUE(Sampler({.presence_penalty = 0.1}, {}).changes_logits());
  EXPECT_TRUE(Sampler({.frequency_penalty = 0.1}, {}).changes_logits());
  EXPECT_TRUE(Sampler({.logit_bias = {{1, 2.0f}}}, {}).changes_logits());
}

TEST(Sampler, ExtremeParameters) {
  const std::vector<float> logits = {1, 1 + 1e-6f, 0.5f};
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const auto only = [&](const SamplingParams& params) {
    const std::map<int32_t, int> seen = DrawMany(params, logits, 50);
    return seen.size() == 1 ? seen.begin()->first : -1;
  };
  EXPECT_EQ(only({.temperature = 1e-300}), 1);
  EXPECT_EQ(only({.temperature = 100, .top_k = 1}), 1);
  EXPECT_EQ(only({.top_p = 1e-300}), 1);
  EXPECT_EQ(only({.min_p = 1}), 1);
  EXPECT_EQ(DrawMany({.temperature = 100, .min_p = 1e-300}, logits, 200).size(), 3u);
  std::vector<float> nothing = {-kInf, -kInf};
  EXPECT_EQ(Sampler({}, {}).Sample(nothing).value(), 0);
}

TEST(Sampler, NanIsAnErrorAndProblemsAreNamed) {
  std::vector<float> logits = {1, std::numeric_limits<float>::quiet_NaN()};
  EXPECT_EQ(Sampler({}, {}).Sample(logits).status().code(), Code::kCorruptModel);
  EXPECT_EQ(Sampler({}, {}).Take(-1).status().code(), Code::kCorruptModel);
  SamplingParams bad;
  bad.temperature = -1;
  bad.top_p = 0;
  bad.min_p = std::nan("");
  EXPECT_EQ(bad.Problems().size(), 3u);
  EXPECT_TRUE(SamplingParams{}.Problems().empty());
}

}  // namespace
}  // namespace lserve
