// Draws against the softmax in double, and the integers they are made of.
#include "backend/token_draw.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include "base/rng.h"

namespace lserve {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

TEST(TokenDraw, WeightsAreThePowersOfTwo) {
  EXPECT_EQ(LevelWeight(0), kFullWeight);
  EXPECT_EQ(LevelWeight(1u << kLevelFractionBits), kFullWeight / 2);
  EXPECT_GE(LevelWeight(kNoLevel - 1), 1u);
  Rng rng(1);
  for (int i = 0; i < 20000; ++i) {
    const uint32_t level = static_cast<uint32_t>(rng.NextBelow(kNoLevel));
    const double exact = std::exp2(kDrawOctaves - static_cast<double>(level) * 0x1p-25);
    ASSERT_NEAR(static_cast<double>(LevelWeight(level)), exact, 1.2e-8 * exact + 1) << level;
  }
}

TEST(TokenDraw, HalvesOfProducts) {
  constexpr uint64_t kMost = ~uint64_t{0};
  EXPECT_EQ(MulHigh(kMost, kMost), kMost - 1);
  EXPECT_EQ(MulHigh(uint64_t{1} << 63, 6), 3u);
  EXPECT_EQ(MulHigh(0x123456789abcdef0, 0xfedcba9876543210), 0x121fa00ad77d7422u);
  // Shares: the whole, a part that is exact, one that is rounded up.
  EXPECT_EQ(WantedMass(1000, TokenDraw::kWhole), 1000u);
  EXPECT_EQ(WantedMass(1000, uint64_t{1} << 62), 250u);
  EXPECT_EQ(WantedMass(1001, uint64_t{1} << 62), 251u);
  EXPECT_EQ(WantedMass(1000, 1), 1u);
}

TEST(TokenDraw, LevelsFollowTheLogits) {
  const float scale = static_cast<float>(std::numbers::log2e);
  EXPECT_EQ(DrawLevel(kInf, kInf, scale), 0u);
  EXPECT_EQ(DrawLevel(3, kInf, scale), kNoLevel);
  EXPECT_EQ(DrawLevel(-kInf, 3, scale), kNoLevel);
  EXPECT_EQ(DrawLevel(3, 3, std::numeric_limits<float>::max()), 0u);
  EXPECT_EQ(DrawLevel(-28, 0, scale), kNoLevel);  // 40.4 octaves
  EXPECT_LT(DrawLevel(-27, 0, scale), kNoLevel);
  uint32_t before = 0;
  for (float x = 10; x > -20; x -= 0.01f) {
    const uint32_t level = DrawLevel(x, 10, scale);
    ASSERT_GE(level, before);
    before = level;
  }
}

// What a draw means, in double: the token at share `u` of the kept tokens' mass. None where a
// rounding could decide.
int32_t SoftmaxToken(const std::vector<float>& logits,
                     double temperature,
                     int top_k,
                     double top_p,
                     double min_p,
                     double u) {
  constexpr double kMargin = 1e-5;
  std::vector<int32_t> order(logits.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  const auto logit = [&](int32_t token) { return double{logits[static_cast<size_t>(token)]}; };
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logit(a) > logit(b); });
  if (top_k > 0 && static_cast<size_t>(top_k) < order.size()) {
    order.resize(static_cast<size_t>(top_k));
  }
  const auto weight = [&](int32_t token) {
    return std::exp((logit(token) - logit(order[0])) / temperature);
  };
  double total = 0;
  for (const int32_t token : order) total += weight(token);
  double mass = 0;
  size_t end = 0;
  for (; end < order.size(); ++end) {
    if (top_p < 1 && std::abs(mass - top_p * total) < kMargin * total) return -1;
    if (top_p < 1 && mass >= top_p * total) break;
    if (std::abs(weight(order[end]) - min_p) < kMargin * min_p) return -1;
    if (weight(order[end]) < min_p) break;
    mass += weight(order[end]);
  }
  double point = u * mass;
  for (size_t i = 0; i < end; ++i) {
    point -= weight(order[i]);
    if (std::abs(point) < kMargin * mass) return -1;
    if (point < 0) return order[i];
  }
  return -1;
}

TEST(TokenDraw, IsTheSoftmaxWithItsCuts) {
  Rng rng(7);
  int compared = 0;
  for (int round = 0; round < 600; ++round) {
    std::vector<float> logits(1 + rng.NextBelow(1500));
    const float spread = static_cast<float>(rng.NextBelow(12)) + 0.5f;
    for (float& x : logits) {
      x = spread * (rng.NextFloat() + rng.NextFloat() + rng.NextFloat());
      if (round % 3 == 0) x = std::round(x);  // ties
      if (round % 5 == 0 && rng.NextBelow(4) == 0) x = -kInf;
    }
    logits[rng.NextBelow(logits.size())] = spread;
    constexpr double kTemperatures[] = {0.3, 0.8, 1, 2, 30};
    constexpr int kTopK[] = {0, 0, 1, 7, 400, 5000};
    constexpr double kTopP[] = {1, 1, 0.95, 0.5, 0.01};
    constexpr double kMinP[] = {0, 0, 0, 0.03, 0.6};
    const double temperature = kTemperatures[rng.NextBelow(5)];
    const int top_k = kTopK[rng.NextBelow(6)];
    const double top_p = kTopP[rng.NextBelow(5)];
    const double min_p = kMinP[rng.NextBelow(5)];
    TokenDraw draw = {.scale = static_cast<float>(std::numbers::log2e / temperature),
                      .top_k = top_k,
                      .random = rng.NextU64()};
    if (top_p < 1) draw.top_p = static_cast<uint64_t>(top_p * 0x1p64);
    if (min_p > 0) draw.max_level = static_cast<uint32_t>(-std::log2(min_p) * 0x1p25);
    const int32_t expected = SoftmaxToken(logits, temperature, top_k, top_p, min_p,
                                          static_cast<double>(draw.random) * 0x1p-64);
    if (expected < 0) continue;
    ++compared;
    ASSERT_EQ(DrawToken(logits, draw), expected)
        << "round " << round << ", temperature " << temperature << ", top_k " << top_k << ", top_p "
        << top_p << ", min_p " << min_p;
  }
  EXPECT_GT(compared, 400);
}

TEST(TokenDraw, OrderOfEqualOnesIsTheirIds) {
  const std::vector<float> logits(1000, 2.5f);
  // 1000 equal weights: the draw walks the ids.
  for (const uint64_t id : {0, 1, 499, 999}) {
    TokenDraw draw = {.random = id * (~uint64_t{0} / 1000) + (uint64_t{1} << 50)};
    EXPECT_EQ(DrawToken(logits, draw), static_cast<int32_t>(id));
    draw.top_k = 10;
    EXPECT_EQ(DrawToken(logits, draw), static_cast<int32_t>(id / 100));
    draw.top_k = 0;
    draw.top_p = uint64_t{1} << 63;
    EXPECT_EQ(DrawToken(logits, draw), static_cast<int32_t>(id / 2));
  }
}

TEST(TokenDraw, LargestInfiniteAndNan) {
  const TokenDraw last = {.random = ~uint64_t{0}};
  const TokenDraw greedy = {.takes_largest = true};
  EXPECT_EQ(DrawToken(std::vector<float>{1, 5, 5, -2}, greedy), 1);
  EXPECT_EQ(DrawToken(std::vector<float>{-0.0f, 0.0f}, greedy), 0);
  EXPECT_EQ(DrawToken(std::vector<float>{-kInf, -kInf}, greedy), 0);
  EXPECT_EQ(DrawToken(std::vector<float>{-kInf, -kInf}, last), 0);
  EXPECT_EQ(DrawToken(std::vector<float>{-kInf, 3, -kInf}, last), 1);
  EXPECT_EQ(DrawToken(std::vector<float>{7, kInf, 9}, last), 1);
  EXPECT_EQ(DrawToken(std::vector<float>{7, std::nanf(""), 9}, last), -1);
  EXPECT_EQ(DrawToken(std::vector<float>{7, std::nanf("")}, greedy), -1);
  EXPECT_EQ(DrawToken(std::vector<float>{-4}, last), 0);
}

}  // namespace
}  // namespace lserve
