// Longer documents with block-sparse prefill: what reading every tile finds is found. Fast: 4K, in
// retrieval_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "attention/page_plan.h"
#include "base/strings.h"
#include "tests/retrieval/retrieval.h"

namespace lserve {
namespace {

class BlockRetrieval : public ::testing::TestWithParam<int64_t> {};

TEST_P(BlockRetrieval, NoAnswerIsLost) {
  const std::unique_ptr<Engine> engine = MakeNeedleEngine("bf16");
  NeedleOptions options;
  options.num_tokens = GetParam();
  options.seed = 29;
  options.depths = {0.0, 0.15, 0.3, 0.5, 0.7, 0.85, 1.0};
  options.num_distractors = 12;
  const Result<NeedleDocument> document = MakeNeedleDocument(*engine->tokenizer(), options);
  ASSERT_TRUE(document.ok()) << document.status().message();

  const RetrievalResult all = AskEverything(*engine, document.value(), SparseAttention(4096));
  const RetrievalResult chosen = AskEverything(
      *engine, document.value(), BlockSparseAttention(4096, kDefaultPrefillThreshold));
  // What the model gets wrong with every tile is the model's own.
  EXPECT_LE(chosen.wrong.size(), all.wrong.size()) << chosen.wrong.front();
  EXPECT_LE(all.wrong.size(), 1u) << all.wrong.front();
  // Every complete tile of the prompt but the first three, which have nothing to choose.
  const RequestStats& first = chosen.answers[0].stats;
  EXPECT_EQ(first.tile_selections, first.prompt_tokens / kTileTokens - 3);
  EXPECT_LT(first.prefill_tiles_visited, all.answers[0].stats.prefill_tiles_visited * 7 / 10);
}

// With no flag at all. What any text could cost: FirstToken in counted_work_test.cc.
TEST(FirstToken, WithTheDefaultsLessThanAThirdOfTheTilesAt32k) {
  const std::unique_ptr<Engine> engine = MakeNeedleEngine("auto");
  NeedleOptions options;
  options.num_tokens = 32768;
  options.seed = 29;
  options.depths = {0.1, 0.5, 0.9};
  const Result<NeedleDocument> document = MakeNeedleDocument(*engine->tokenizer(), options);
  ASSERT_TRUE(document.ok()) << document.status().message();
  const RetrievalResult result = AskEverything(*engine, document.value(), AttentionSettings());
  EXPECT_TRUE(result.wrong.empty()) << result.wrong.front();
  const RequestStats& first = result.answers[0].stats;
  EXPECT_LT(static_cast<double>(first.prefill_tiles_visited),
            static_cast<double>(first.prefill_tiles_present) / 3);
}

INSTANTIATE_TEST_SUITE_P(Lengths,
                         BlockRetrieval,
                         ::testing::Values(8192, 16384, 32768, 65536, 131072),
                         [](const auto& length) { return StrCat(length.param / 1024, "k"); });

}  // namespace
}  // namespace lserve
