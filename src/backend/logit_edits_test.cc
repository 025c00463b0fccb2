// Edits of rows against the rule of one token, written out for each.
#include "backend/logit_edits.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/rng.h"

namespace lserve {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(LogitEdits, TheOrderOfATokensEdits) {
  EXPECT_EQ(EditedLogit(1, true, 2, 1.5f, 0.25f), (1.0f + 2.0f) / 1.5f - 0.25f);
  EXPECT_EQ(EditedLogit(1, true, -3, 1.5f, 0.25f), (1.0f - 3.0f) * 1.5f - 0.25f);
  EXPECT_EQ(EditedLogit(7, false, 100, 0.5f, -100), -kInf);
  EXPECT_EQ(EditedLogit(kNan, false, 1, 1.5f, 1), -kInf);
  EXPECT_TRUE(std::isnan(EditedLogit(kNan, true, 1, 1.5f, 1)));
  for (const float same : {3.5f, -3.5f, 0.0f, kInf, -kInf, 0x1p-140f}) {
    EXPECT_EQ(EditedLogit(same, true, 0, 1, 0), same);
  }
  // The product is no float: fused with the subtraction it would not be rounded, and differ.
  volatile float product = -1.1f * 1.3f;
  EXPECT_EQ(EditedLogit(-1.1f, true, 0, 1.3f, product), 0.0f);
}

TEST(LogitEdits, RowsOfAllLengths) {
  Rng rng(3);
  for (const int64_t cols : {1, 63, 64, 65, 128, 1000}) {
    for (int kinds = 0; kinds < 8; ++kinds) {
      std::vector<float> row(static_cast<size_t>(cols));
      for (float& x : row) x = 8 * rng.NextFloat() - 4;
      std::vector<uint64_t> allowed(static_cast<size_t>(NumTokenWords(cols)));
      for (uint64_t& word : allowed) word = rng.NextU64() | rng.NextU64();
      // Shorter than the row, where it can be.
      std::vector<uint64_t> repeated(static_cast<size_t>(std::max<int64_t>(1, cols / 128)));
      for (uint64_t& word : repeated) word = rng.NextU64();
      std::vector<LogitShift> shifts;
      for (int32_t token = 0; token < cols; ++token) {
        if (rng.NextBelow(5) > 0) continue;
        shifts.push_back({.token = token, .bias = rng.NextFloat(), .penalty = rng.NextFloat()});
      }
      if ((kinds & 1) == 0) allowed.clear();
      if ((kinds & 2) == 0) repeated.clear();
      if ((kinds & 4) == 0) shifts.clear();
      const LogitEdits edits = {
          .allowed = allowed, .repeated = repeated, .repetition = 1.3f, .shifts = shifts};
      EXPECT_EQ(edits.any(), (kinds & 3) != 0 || !shifts.empty());
      std::vector<float> expected = row;
      for (int64_t c = 0; c < cols; ++c) {
        LogitShift shift;
        for (const LogitShift& s : shifts) {
          if (s.token == c) shift = s;
        }
        const bool is_repeated = c < static_cast<int64_t>(repeated.size()) * 64 &&
                                 (repeated[static_cast<size_t>(c / 64)] >> (c % 64) & 1) != 0;
        const bool is_allowed =
            allowed.empty() || (allowed[static_cast<size_t>(c / 64)] >> (c % 64) & 1) != 0;
        float& x = expected[static_cast<size_t>(c)];
        x = EditedLogit(x, is_allowed, shift.bias, is_repeated ? 1.3f : 1, shift.penalty);
      }
      EditLogits(row, edits);
      ASSERT_EQ(row, expected) << cols << " columns, kinds " << kinds;
    }
  }
}

TEST(LogitEdits, SetsOfTokens) {
  std::vector<uint64_t> words(static_cast<size_t>(NumTokenWords(65)));
  ASSERT_EQ(words.size(), 2u);
  AddToken(words.data(), 64);
  AddToken(words.data(), 3);
  EXPECT_EQ(words, (std::vector<uint64_t>{8, 1}));
  EXPECT_TRUE(HasToken(words.data(), 64));
  RemoveToken(words.data(), 64);
  EXPECT_FALSE(HasToken(words.data(), 64));
  EXPECT_TRUE(HasToken(words.data(), 3));
}

}  // namespace
}  // namespace lserve
