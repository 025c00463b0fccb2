// PickTokens against the host's draw, whose token it gives exactly: every cut, ties, infinities,
// NaN, rows of one column to those of a vocabulary.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numbers>

#include "parity/parity_cases.h"

namespace lserve::parity {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class PickTokensParity : public testing::TestWithParam<Subject> {
 protected:
  // Rows of `cols`, three floats apart, each with its draw: the backend's tokens are the host's.
  void Expect(const std::vector<float>& rows, int64_t cols, const std::vector<TokenDraw>& draws) {
    const int64_t num_rows = static_cast<int64_t>(draws.size());
    const ConstMatrix x(rows.data(), DType::kF32, num_rows, cols, cols + 3);
    std::vector<int32_t> got(draws.size(), -2), expected(draws.size());
    ASSERT_TRUE(backend_->PickTokens({.x = x, .draws = draws, .out = got}).ok());
    for (size_t r = 0; r < draws.size(); ++r) {
      const float* row = rows.data() + static_cast<int64_t>(r) * (cols + 3);
      expected[r] = DrawToken({row, static_cast<size_t>(cols)}, draws[r]);
    }
    EXPECT_EQ(got, expected) << cols << " columns";
  }

  std::unique_ptr<Backend> backend_ = Make(GetParam());
};

TEST_P(PickTokensParity, LargestIsTheFirstOfEqualOnesAndNanIsTold) {
  for (const int64_t cols : {1, 31, 512, 4099}) {
    std::vector<float> rows = RandomFloats(6, 7 * (cols + 3));
    const auto at = [&](int64_t row, int64_t col) -> float& {
      return rows[static_cast<size_t>(row * (cols + 3) + col)];
    };
    const int64_t middle = cols / 2, last = cols - 1;
    at(0, middle) = 2;
    at(1, middle) = at(1, last) = 2;
    at(2, last) = kInf;
    for (int64_t c = 0; c < cols; ++c) at(3, c) = -kInf;
    at(4, last) = kNan;
    at(5, last) = 2;
    for (int64_t c = 0; c < cols; ++c) at(6, c) = c % 2 == 0 ? -0.0f : 0.0f;
    std::vector<TokenDraw> draws(7, {.takes_largest = true});
    const std::vector<int32_t> expected = {static_cast<int32_t>(middle),
                                           static_cast<int32_t>(middle),
                                           static_cast<int32_t>(last),
                                           0,
                                           -1,
                                           static_cast<int32_t>(last),
                                           0};
    const ConstMatrix x(rows.data(), DType::kF32, 7, cols, cols + 3);
    std::vector<int32_t> got(expected.size());
    ASSERT_TRUE(backend_->PickTokens({.x = x, .draws = draws, .out = got}).ok());
    EXPECT_EQ(got, expected) << cols << " columns";
    // The same beside one that draws, and drawing: NaN, infinities and zeros again.
    draws[0] = {.random = uint64_t{1} << 63};
    Expect(rows, cols, draws);
    for (TokenDraw& draw : draws) draw = {.top_k = 3, .random = ~uint64_t{0}};
    Expect(rows, cols, draws);
  }
}

// Temperatures, cuts and random numbers by a generator; the rows spread, tied, and partly
// forbidden.
TEST_P(PickTokensParity, DrawsAreTheHosts) {
  Rng rng(11);
  for (const int64_t cols : {1, 2, 257, 2048, 2049, 6000}) {
    constexpr int kRows = 24;
    std::vector<float> rows = RandomFloats(static_cast<uint64_t>(cols), kRows * (cols + 3));
    std::vector<TokenDraw> draws;
    for (int r = 0; r < kRows; ++r) {
      const float spread = std::exp2(static_cast<float>(r % 8) - 1);
      float* row = rows.data() + r * (cols + 3);
      for (int64_t c = 0; c < cols; ++c) {
        row[c] *= spread;
        if (r % 3 == 1) row[c] = std::round(row[c]);
        if (r % 4 == 3 && rng.NextBelow(3) > 0) row[c] = -kInf;
      }
      TokenDraw draw = {.takes_largest = r % 12 == 5, .random = rng.NextU64()};
      constexpr double kTemperatures[] = {1e-30, 0.1, 0.8, 1, 3, 100};
      const double scale = std::numbers::log2e / kTemperatures[rng.NextBelow(6)];
      draw.scale = static_cast<float>(scale);
      constexpr int kTopK[] = {0, 2, 50, 1000, 1 << 30};
      draw.top_k = kTopK[rng.NextBelow(5)];
      if (rng.NextBelow(2) == 0) draw.top_p = std::max<uint64_t>(1, rng.NextU64());
      if (rng.NextBelow(3) == 0) draw.max_level = static_cast<uint32_t>(rng.NextBelow(kNoLevel));
      draws.push_back(draw);
    }
    Expect(rows, cols, draws);
    // Each alone, so that the passes of the others are not its own.
    for (int r = 0; r < kRows; r += 7) {
      const auto first = rows.begin() + r * (cols + 3);
      Expect({first, first + cols + 3}, cols, {draws[static_cast<size_t>(r)]});
    }
  }
}

// The ends of the random numbers, and a point on each border between two tokens.
TEST_P(PickTokensParity, BordersBetweenTokens) {
  constexpr int64_t kCols = 300;
  std::vector<float> rows;
  std::vector<TokenDraw> draws;
  for (int r = 0; r < 40; ++r) {
    for (int64_t c = 0; c < kCols + 3; ++c) rows.push_back(c % 4 == 0 ? 1.0f : -1.0f);
    TokenDraw draw = {.scale = 1};
    // 75 tokens of weight 1, 225 of 1/4: a mass of 131.25 or, with top-k, 80.
    if (r % 2 == 1) draw.top_k = 95;
    const double mass = r % 2 == 1 ? 80 : 131.25;
    const double border = r < 20 ? r * 4 : 75 + (r - 20) * 0.25;
    draw.random = static_cast<uint64_t>(border / mass * 0x1p64);
    if (r % 4 == 0 && draw.random > 0) --draw.random;
    draws.push_back(draw);
  }
  draws[0].random = 0;
  draws[1].random = draws[2].random = ~uint64_t{0};
  Expect(rows, kCols, draws);
}

TEST_P(PickTokensParity, AVocabulary) {
  constexpr int64_t kCols = 128256;
  std::vector<float> rows = RandomFloats(3, 3 * (kCols + 3), 10.0f);
  const std::vector<TokenDraw> draws = {
      {.scale = 1.8f, .top_p = 0xf333333333333333, .random = 0xc000000000000000},
      {.scale = 0.3f, .random = 0xe000000000000000},
      {.scale = 0.5f, .top_k = 20000, .top_p = 0xe000000000000000, .random = 0x8000000000000000}};
  Expect(rows, kCols, draws);
  // All equal: one level holds everything.
  std::fill(rows.begin(), rows.end(), 0.5f);
  Expect(rows, kCols, draws);
}

INSTANTIATE_TEST_SUITE_P(All, PickTokensParity, testing::ValuesIn(Subjects()), SubjectName);

}  // namespace
}  // namespace lserve::parity
