// PickTokens against the host's edits and draw, whose bits and token it gives exactly: every cut,
// ties, infinities, NaN, penalties, masks, rows of one column to those of a vocabulary.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <span>

#include "parity/parity_cases.h"

namespace lserve::parity {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class PickTokensParity : public testing::TestWithParam<Subject> {
 protected:
  // Rows of `cols`, three floats apart, each with its draw and, unless there are none, its edits:
  // the backend's tokens and edited logits are the host's.
  void Expect(std::vector<float> rows,
              int64_t cols,
              const std::vector<TokenDraw>& draws,
              const std::vector<LogitEdits>& edits = {}) {
    std::vector<float> expected_rows = rows;
    std::vector<int32_t> got(draws.size(), -2), expected(draws.size());
    for (size_t r = 0; r < draws.size(); ++r) {
      const auto row = std::span(expected_rows)
                           .subspan(r * static_cast<size_t>(cols + 3), static_cast<size_t>(cols));
      if (!edits.empty()) EditLogits(row, edits[r]);
      expected[r] = DrawToken(row, draws[r]);
    }
    const Matrix x = {rows.data(), DType::kF32, static_cast<int64_t>(draws.size()), cols, cols + 3};
    ASSERT_TRUE(backend_->PickTokens({.x = x, .draws = draws, .edits = edits, .out = got}).ok());
    EXPECT_EQ(got, expected) << cols << " columns";
    for (size_t i = 0; i < rows.size(); ++i) {
      if (std::isnan(rows[i]) && std::isnan(expected_rows[i])) continue;
      ASSERT_EQ(rows[i], expected_rows[i])
          << "row " << i / static_cast<size_t>(cols + 3) << ", column "
          << i % static_cast<size_t>(cols + 3) << " of " << cols;
    }
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
    const Matrix x = {rows.data(), DType::kF32, 7, cols, cols + 3};
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

// What a row's edits refer to.
struct Changes {
  std::vector<uint64_t> allowed, repeated;
  float repetition = 1;
  std::vector<LogitShift> shifts;

  LogitEdits Edits() const {
    return {.allowed = allowed, .repeated = repeated, .repetition = repetition, .shifts = shifts};
  }
};

// Some of the kinds: a mask, repetition, shifts.
Changes RandomChanges(Rng& rng, int64_t cols) {
  Changes changes;
  const size_t words = static_cast<size_t>(NumTokenWords(cols));
  if (rng.NextBelow(2) == 0) {
    // Most, or nearly none.
    const bool few = rng.NextBelow(2) == 0;
    for (size_t w = 0; w < words; ++w) {
      const uint64_t a = rng.NextU64(), b = rng.NextU64();
      changes.allowed.push_back(few ? a & b & rng.NextU64() & rng.NextU64() : a | b);
    }
  }
  if (rng.NextBelow(2) == 0) {
    changes.repetition = 0.5f + 1.5f * static_cast<float>(rng.NextDouble());
    for (size_t w = 0; w < rng.NextBelow(words) + 1; ++w) changes.repeated.push_back(rng.NextU64());
  }
  if (rng.NextBelow(2) == 0) {
    const uint64_t spacing = rng.NextBelow(2) == 0 ? 2 : 100;
    for (int32_t token = 0; token < cols; ++token) {
      if (rng.NextBelow(spacing) > 0) continue;
      changes.shifts.push_back({.token = token,
                                .bias = rng.NextBelow(2) == 0 ? 0 : 3 * rng.NextFloat(),
                                .penalty = 2 * rng.NextFloat()});
    }
  }
  return changes;
}

// Rows with and without edits side by side, greedy and drawn; now and then a logit that is not
// finite.
TEST_P(PickTokensParity, EditsAreTheHosts) {
  Rng rng(12);
  for (const int64_t cols : {1, 64, 257, 2048, 2049, 6001}) {
    constexpr int kRows = 20;
    std::vector<float> rows = RandomFloats(static_cast<uint64_t>(cols), kRows * (cols + 3), 4.0f);
    std::vector<TokenDraw> draws;
    std::vector<Changes> changes;
    for (int r = 0; r < kRows; ++r) {
      float* row = rows.data() + r * (cols + 3);
      for (int64_t c = 0; r % 3 == 1 && c < cols; ++c) row[c] = std::round(row[c]);
      constexpr float kSpecial[] = {kNan, kInf, -kInf};
      if (r % 4 == 3) row[rng.NextBelow(static_cast<uint64_t>(cols))] = kSpecial[r % 3];
      TokenDraw draw = {.takes_largest = r % 2 == 0, .scale = 1.8f, .random = rng.NextU64()};
      if (r % 5 == 1) draw.top_k = 20;
      if (r % 5 == 3) draw.top_p = uint64_t{15} << 60;
      draws.push_back(draw);
      changes.push_back(r % 7 == 6 ? Changes() : RandomChanges(rng, cols));
    }
    std::vector<LogitEdits> edits;
    for (const Changes& c : changes) edits.push_back(c.Edits());
    Expect(rows, cols, draws, edits);
    for (int r = 0; r < kRows; r += 6) {
      SCOPED_TRACE(r);
      const auto first = rows.begin() + r * (cols + 3);
      const size_t at = static_cast<size_t>(r);
      Expect({first, first + cols + 3}, cols, {draws[at]}, {edits[at]});
    }
  }
}

TEST_P(PickTokensParity, MasksThatLeaveOneTokenOrNone) {
  constexpr int64_t kCols = 3000;
  constexpr int32_t kOnly = 2990;
  std::vector<float> rows = RandomFloats(8, 6 * (kCols + 3));
  std::vector<uint64_t> none(static_cast<size_t>(NumTokenWords(kCols))), one = none;
  AddToken(one.data(), kOnly);
  one.back() |= ~uint64_t{0} << (kCols % kTokensPerWord);  // beyond the row: no matter
  // NaN where nothing is allowed does not count, and counts where something is.
  rows[4 * (kCols + 3) + 7] = kNan;
  rows[5 * (kCols + 3) + kOnly] = kNan;
  const std::vector<LogitShift> bias = {{.token = 1, .bias = 100}, {.token = kOnly, .bias = -100}};
  const std::vector<LogitEdits> edits = {{.allowed = one},  {.allowed = one, .shifts = bias},
                                         {.allowed = none}, {.allowed = none, .shifts = bias},
                                         {.allowed = one},  {.allowed = one}};
  for (const bool takes_largest : {true, false}) {
    const std::vector<TokenDraw> draws(
        6, {.takes_largest = takes_largest, .top_p = uint64_t{1} << 63, .random = ~uint64_t{0}});
    Expect(rows, kCols, draws, edits);
    std::vector<float> copy = rows;
    std::vector<int32_t> got(6);
    const Matrix x = {copy.data(), DType::kF32, 6, kCols, kCols + 3};
    ASSERT_TRUE(backend_->PickTokens({.x = x, .draws = draws, .edits = edits, .out = got}).ok());
    EXPECT_EQ(got, (std::vector<int32_t>{kOnly, kOnly, 0, 0, kOnly, -1}));
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
  // A grammar that forbids half, a long prompt's repetition, a long answer's frequencies.
  Rng rng(4);
  Changes changes;
  for (int64_t w = 0; w < NumTokenWords(kCols); ++w) {
    changes.allowed.push_back(rng.NextU64());
    changes.repeated.push_back(rng.NextU64() & rng.NextU64());
  }
  changes.repetition = 1.1f;
  for (int32_t token = 0; token < kCols; token += 37) {
    changes.shifts.push_back({.token = token, .penalty = 0.3f});
  }
  Expect(rows, kCols, draws, {changes.Edits(), {}, changes.Edits()});
  // All equal: one level holds everything.
  std::fill(rows.begin(), rows.end(), 0.5f);
  Expect(rows, kCols, draws);
}

INSTANTIATE_TEST_SUITE_P(All, PickTokensParity, testing::ValuesIn(Subjects()), SubjectName);

}  // namespace
}  // namespace lserve::parity
