#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

namespace lserve {
namespace {

// As the engine does it, with a backend whose logits the host has.
Result<int32_t> Sample(Sampler& sampler, std::vector<float> logits) {
  EditLogits(logits, sampler.Edits());
  return sampler.Take(DrawToken(logits, sampler.NextDraw()));
}
Result<int32_t> Sample(Sampler&& sampler, const std::vector<float>& logits) {
  return Sample(sampler, logits);
}

std::map<int32_t, int> DrawMany(SamplingParams params,
                                const std::vector<float>& logits,
                                int count) {
  std::map<int32_t, int> seen;
  for (int i = 0; i < count; ++i) {
    params.seed = static_cast<uint64_t>(i);
    ++seen[Sample(Sampler(params, {}), logits).value()];
  }
  return seen;
}

TEST(Sampler, GreedyTakesTheLowestOfEqualIds) {
  std::vector<float> logits = {1, 5, 5, -2};
  EXPECT_EQ(Sample(Sampler({.temperature = 0}, {}), logits).value(), 1);
}

TEST(Sampler, SameSeedSameTokens) {
  std::vector<float> logits(1000);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = std::sin(static_cast<float>(i));
  Sampler a({.seed = 42}, {}), b({.seed = 42}, {}), c({.seed = 43}, {});
  int differ = 0;
  for (int i = 0; i < 50; ++i) {
    const int32_t token = Sample(a, logits).value();
    ASSERT_EQ(token, Sample(b, logits).value());
    differ += token != Sample(c, logits).value();
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
  // 2 / 1.5 < 1.9: the repeated prompt token loses.
  EXPECT_EQ(Sample(Sampler({.temperature = 0, .repetition_penalty = 1.5}, prompt), logits).value(),
            1);
  Sampler presence({.temperature = 0, .presence_penalty = 0.2}, prompt);
  std::vector<int32_t> drawn;
  for (int i = 0; i < 3; ++i) drawn.push_back(Sample(presence, logits).value());
  // The prompt does not count; then 1.8 < 1.9; then 1.8 against 1.7.
  EXPECT_EQ(drawn, (std::vector<int32_t>{0, 1, 0}));
  Sampler frequency({.temperature = 0, .frequency_penalty = 0.2}, prompt);
  drawn.clear();
  for (int i = 0; i < 4; ++i) drawn.push_back(Sample(frequency, logits).value());
  EXPECT_EQ(drawn, (std::vector<int32_t>{0, 1, 0, 1}));  // 2.0; 1.8/1.9; 1.8/1.7; 1.6/1.7
}

// The penalties as they are written down, token by token from the whole history, in the order and
// with the roundings that are promised.
std::vector<float> PenalisedByRule(std::vector<float> logits,
                                   const SamplingParams& params,
                                   const std::vector<int32_t>& prompt,
                                   const std::vector<int32_t>& answer) {
  for (const auto& [token, bias] : params.logit_bias) logits[static_cast<size_t>(token)] += bias;
  const float repetition = static_cast<float>(params.repetition_penalty);
  std::set<int32_t> seen(prompt.begin(), prompt.end());
  seen.insert(answer.begin(), answer.end());
  for (const int32_t token : seen) {
    float& logit = logits[static_cast<size_t>(token)];
    logit = logit > 0 ? logit / repetition : logit * repetition;
  }
  for (const int32_t token : std::set<int32_t>(answer.begin(), answer.end())) {
    const auto count = std::count(answer.begin(), answer.end(), token);
    logits[static_cast<size_t>(token)] -= static_cast<float>(
        params.presence_penalty + params.frequency_penalty * static_cast<double>(count));
  }
  return logits;
}

TEST(Sampler, EditsAreThePenaltiesOfTheHistory) {
  constexpr int32_t kVocab = 700;
  Rng rng(5);
  std::vector<int32_t> prompt;
  for (int i = 0; i < 40; ++i) prompt.push_back(static_cast<int32_t>(rng.NextBelow(kVocab)));
  for (const SamplingParams& params :
       {SamplingParams{.seed = 3}, SamplingParams{.temperature = 0.7, .top_k = 40, .seed = 4},
        SamplingParams{.temperature = 0, .repetition_penalty = 1.3},
        SamplingParams{.repetition_penalty = 0.7, .seed = 5},
        SamplingParams{.temperature = 0, .frequency_penalty = 0.4},
        SamplingParams{.temperature = 1.3, .presence_penalty = -0.3, .seed = 6},
        SamplingParams{.temperature = 0.5,
        .repetition_penalty = 1.1,
        .presence_penalty = 0.7,
        .frequency_penalty = 0.3,
        .seed = 7,
        .logit_bias = {{699, 3.5f}, {17, -100}, {prompt[0], 1.25f}}}}) {
    Sampler sampler(params, prompt);
    std::vector<int32_t> answer;
    std::vector<float> logits(kVocab);
    for (int step = 0; step < 60; ++step) {
      for (float& x : logits) x = 4 * rng.NextFloat();
      const std::vector<float> expected = PenalisedByRule(logits, params, prompt, answer);
      std::vector<float> edited = logits;
      EditLogits(edited, sampler.Edits());
      ASSERT_EQ(edited, expected) << "step " << step;
      const int32_t token = DrawToken(edited, sampler.NextDraw());
      ASSERT_EQ(DrawToken(edited, sampler.NextDraw()), token) << "asked again, step " << step;
      answer.push_back(sampler.Take(token).value());
    }
  }
}

// What a step uploads: nothing without penalties, and nothing that grows with the prompt.
TEST(Sampler, EditsAreAsFewAsTheParametersAskFor) {
  const std::vector<int32_t> prompt = {5, 900, 5, 3};
  const auto edits_after = [&](const SamplingParams& params, const auto& check) {
    Sampler sampler(params, prompt);
    for (const int32_t token : {7, 5, 7}) EXPECT_TRUE(sampler.Take(token).ok());
    check(sampler.Edits());
  };
  edits_after({}, [](const LogitEdits& edits) { EXPECT_FALSE(edits.any()); });
  edits_after({.repetition_penalty = 1.1}, [](const LogitEdits& edits) {
    EXPECT_EQ(edits.repeated.size(), 15u);  // up to token 900
    EXPECT_TRUE(edits.shifts.empty());
  });
  edits_after({.presence_penalty = 0.5, .frequency_penalty = 0.25}, [](const LogitEdits& edits) {
    EXPECT_TRUE(edits.repeated.empty());
    ASSERT_EQ(edits.shifts.size(), 2u);
    EXPECT_EQ(edits.shifts[0].token, 5);
    EXPECT_EQ(edits.shifts[0].penalty, 0.75f);
    EXPECT_EQ(edits.shifts[1].penalty, 1.0f);
  });
  // Several biases of one token are one.
  edits_after({.logit_bias = {{8, 1}, {2, 4}, {8, 0.5f}}}, [](const LogitEdits& edits) {
    ASSERT_EQ(edits.shifts.size(), 2u);
    EXPECT_EQ(edits.shifts[0].token, 2);
    EXPECT_EQ(edits.shifts[1].bias, 1.5f);
  });
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
  const std::vector<float> nothing = {-kInf, -kInf};
  EXPECT_EQ(Sample(Sampler({}, {}), nothing).value(), 0);
}

TEST(Sampler, NanIsAnErrorAndProblemsAreNamed) {
  const std::vector<float> logits = {1, std::numeric_limits<float>::quiet_NaN()};
  EXPECT_EQ(Sample(Sampler({}, {}), logits).status().code(), Code::kCorruptModel);
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
