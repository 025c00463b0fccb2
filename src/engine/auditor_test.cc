#include "engine/auditor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace lserve {
namespace {

int CountOf(double rate, int events) {
  EvenSample sample(rate);
  int count = 0;
  for (int i = 0; i < events; ++i) count += sample.Next() ? 1 : 0;
  return count;
}

TEST(EvenSample, TakesItsShareAndTheFirst) {
  EXPECT_EQ(CountOf(0, 100), 0);
  EXPECT_EQ(CountOf(1, 100), 100);
  EXPECT_EQ(CountOf(0.25, 100), 25);
  EXPECT_EQ(CountOf(0.3, 1000), 300);
  EvenSample rare(0.01);
  EXPECT_TRUE(rare.Next());
  for (int i = 1; i < 100; ++i) EXPECT_FALSE(rare.Next()) << i;
  EXPECT_TRUE(rare.Next());
}

TEST(CompareLogits, IsTheDivergence) {
  const float a[] = {std::log(0.5f), std::log(0.25f), std::log(0.25f)};
  const float b[] = {3 + std::log(0.25f), 3 + std::log(0.5f), 3 + std::log(0.25f)};
  const LogitDifference difference = CompareLogits(a, b);
  // 0.5 ln 2 - 0.25 ln 2; a few roundings of floats below 4.
  EXPECT_NEAR(difference.kl, 0.25 * std::log(2.0), 1e-6);
  EXPECT_FALSE(difference.same_top);
  EXPECT_EQ(CompareLogits(a, a).kl, 0);
  EXPECT_TRUE(CompareLogits(a, a).same_top);
  // What the first run never says costs nothing.
  const float never[] = {0, -std::numeric_limits<float>::infinity()};
  const float even[] = {0, 0};
  EXPECT_NEAR(CompareLogits(never, even).kl, std::log(2.0), 1e-6);
}

TEST(AuditStats, AddsUp) {
  AuditStats sum;
  sum.Add({.steps = 1,
           .retrieval_steps = 1,
           .retrieval_recall = 0.9,
           .lowest_retrieval_recall = 0.5,
           .same_top = 1,
           .kl = 0.1,
           .seconds = 2});
  sum.Add(
      {.steps = 1, .streaming_steps = 1, .streaming_recall = 0.8, .lowest_streaming_recall = 0.2});
  EXPECT_EQ(sum.steps, 2);
  EXPECT_EQ(sum.lowest_retrieval_recall, 0.5);
  EXPECT_EQ(sum.lowest_streaming_recall, 0.2);
  EXPECT_EQ(sum.retrieval_recall, 0.9);
  EXPECT_EQ(sum.seconds, 2);
}

}  // namespace
}  // namespace lserve
