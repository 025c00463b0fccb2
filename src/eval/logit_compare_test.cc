// Divergences worked out by hand.
#include "eval/logit_compare.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/rng.h"

namespace lserve {
namespace {

TEST(LogitCompare, EqualLogitsDifferByNothing) {
  const std::vector<int32_t> tokens = {0, 1, 2};
  LogitReference reference(3, tokens);
  const std::vector<float> logits = {0.3f, -1.2f, 2.0f};
  reference.Keep(0, logits);
  Divergence sum;
  reference.Compare(0, logits, sum);
  EXPECT_EQ(sum.positions, 1);
  EXPECT_EQ(sum.same_top, 1);
  // The rest is 1 minus a sum of rounded terms: below 1e-15 each way.
  EXPECT_NEAR(sum.kl, 0.0, 1e-15);
  EXPECT_EQ(sum.loss, sum.reference_loss);
}

TEST(LogitCompare, TwoTokens) {
  const std::vector<int32_t> tokens = {0, 1};
  LogitReference reference(2, tokens);
  // p = (3/4, 1/4), q = (1/4, 3/4); the next token is 1.
  const float log3 = std::log(3.0f);
  reference.Keep(0, std::vector<float>{log3, 0.0f});
  Divergence sum;
  reference.Compare(0, std::vector<float>{5.0f, 5.0f + log3}, sum);
  // The logits are floats: log 3 is off by 3e-8, at 5 + log 3 by 2.4e-7.
  EXPECT_NEAR(sum.kl, 0.5 * std::log(3.0), 1e-6);  // 3/4 log 3 + 1/4 log 1/3
  EXPECT_EQ(sum.same_top, 0);
  EXPECT_NEAR(sum.reference_loss, std::log(4.0), 1e-6);
  EXPECT_NEAR(sum.loss, std::log(4.0 / 3.0), 1e-6);
  EXPECT_NEAR(sum.covered, 1.0, 1e-12);
}

// A lead of less than a tenth counts among all positions only.
TEST(LogitCompare, ClearPositions) {
  const std::vector<int32_t> tokens = {0, 1, 0};
  LogitReference reference(2, tokens);
  reference.Keep(0, std::vector<float>{1.0f, 0.5f});
  reference.Keep(1, std::vector<float>{1.0f, 0.95f});
  Divergence sum;
  reference.Compare(0, std::vector<float>{1.0f, 0.0f}, sum);
  reference.Compare(1, std::vector<float>{0.0f, 1.0f}, sum);
  EXPECT_EQ(sum.positions, 2);
  EXPECT_EQ(sum.same_top, 1);
  EXPECT_EQ(sum.clear, 1);
  EXPECT_EQ(sum.same_clear, 1);
}

// With more tokens than are kept, the others are one class: a lower bound of the whole divergence.
TEST(LogitCompare, TheRestIsOneClass) {
  constexpr int kVocab = 10000;  // above kMost
  const std::vector<int32_t> tokens = {0, 1};
  LogitReference reference(kVocab, tokens);
  Rng rng(3);
  std::vector<float> p(kVocab), q(kVocab);
  for (int i = 0; i < kVocab; ++i) {
    p[static_cast<size_t>(i)] = rng.NextFloat() * 4.0f;
    q[static_cast<size_t>(i)] = p[static_cast<size_t>(i)] + rng.NextFloat() * 0.5f;
  }
  reference.Keep(0, p);
  Divergence sum;
  reference.Compare(0, q, sum);
  double p_total = 0.0, q_total = 0.0, whole = 0.0;
  for (int i = 0; i < kVocab; ++i) {
    p_total += std::exp(p[static_cast<size_t>(i)]);
    q_total += std::exp(q[static_cast<size_t>(i)]);
  }
  for (int i = 0; i < kVocab; ++i) {
    const double a = std::exp(p[static_cast<size_t>(i)]) / p_total;
    const double b = std::exp(q[static_cast<size_t>(i)]) / q_total;
    whole += a * std::log(a / b);
  }
  EXPECT_LE(sum.kl, whole + 1e-6);
  // The kept tokens hold most of the probability, and differ as the others do.
  EXPECT_GT(sum.covered, 0.7);
  EXPECT_GT(sum.kl, whole * 0.7);
}

}  // namespace
}  // namespace lserve
