// 4K tokens: every answer is right with dense attention, and with 50% streaming heads and page
// selection; and the counters say that this is what ran. Longer documents: retrieval_slow_test.cc.
#include "tests/retrieval/retrieval.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "attention/page_plan.h"
#include "base/check.h"

namespace lserve {
namespace {

using ::testing::IsEmpty;

class Retrieval4k : public ::testing::Test {
 protected:
  Retrieval4k() : engine_(MakeNeedleEngine("bf16")) {
    NeedleOptions options;
    options.num_tokens = 4096;
    options.seed = 11;
    options.depths = {0.0, 0.2, 0.45, 0.7, 0.95, 1.0};
    Result<NeedleDocument> document = MakeNeedleDocument(*engine_->tokenizer(), options);
    LS_CHECK(document.ok()) << document.status().message();
    document_ = std::move(document).value();
  }

  RetrievalResult Ask(const AttentionSettings& attention) {
    return AskEverything(*engine_, document_, attention);
  }

  std::unique_ptr<Engine> engine_;
  NeedleDocument document_;
};

TEST_F(Retrieval4k, Dense) {
  const RetrievalResult result = Ask(DenseAttention());
  EXPECT_THAT(result.wrong, IsEmpty());
  for (const Answer& answer : result.answers) {
    EXPECT_EQ(answer.stats.sparse_steps, 0);
    EXPECT_EQ(answer.stats.selections, 0);
    EXPECT_EQ(answer.stats.pages_visited, answer.stats.pages_present);
    EXPECT_EQ(answer.stats.prefill_tiles_visited, answer.stats.prefill_tiles_present);
  }
}

// The document is within the budget: retrieval heads read everything, streaming heads do not.
TEST_F(Retrieval4k, SparseWithBudget4096) {
  const RetrievalResult result = Ask(SparseAttention(4096));
  EXPECT_THAT(result.wrong, IsEmpty());
  const RequestStats& first = result.answers[0].stats;
  EXPECT_LT(first.prefill_tiles_visited, first.prefill_tiles_present);
  for (const Answer& answer : result.answers) {
    EXPECT_LT(answer.stats.pages_visited, answer.stats.pages_present);
  }
}

TEST_F(Retrieval4k, SparseWithBudget2048ReusesItsLists) {
  const RetrievalResult result = Ask(SparseAttention(2048));
  EXPECT_THAT(result.wrong, IsEmpty());
  for (const Answer& answer : result.answers) {
    // A list is used for two steps.
    EXPECT_EQ(answer.stats.selections, (answer.stats.sparse_steps + 1) / 2);
  }
}

TEST_F(Retrieval4k, SparseWithBudget1024) {
  const RetrievalResult result = Ask(SparseAttention(1024));
  EXPECT_THAT(result.wrong, IsEmpty());
  for (size_t i = 0; i < result.answers.size(); ++i) {
    const RequestStats& stats = result.answers[i].stats;
    EXPECT_EQ(stats.dense_steps, 0);
    EXPECT_GT(stats.sparse_steps, 0);
    EXPECT_EQ(stats.selections, stats.sparse_steps);
    // Half of the heads read at most 16 pages of 64 tokens; a streaming head sees 128 + 256 tokens,
    // which touch at most 2 + 5 pages.
    const double heads = 24.0;
    EXPECT_LE(stats.pages_visited, heads / 2 * 16 + heads / 2 * 7);
    EXPECT_GT(stats.pages_present, heads * 60);
    if (i > 0) {
      EXPECT_GT(stats.cached_tokens, 4000 - 2048);
    }
  }
}

// Retrieval heads that read a part of the tiles while the prompt is read.
TEST_F(Retrieval4k, BlockSparsePrefill) {
  const RetrievalResult all = Ask(SparseAttention(1024));
  const RetrievalResult chosen = Ask(BlockSparseAttention(1024, kDefaultPrefillThreshold));
  EXPECT_THAT(chosen.wrong, IsEmpty());
  const RequestStats& first = chosen.answers[0].stats;
  // Every complete tile of the prompt but the first three, which have nothing to choose.
  EXPECT_EQ(first.tile_selections, first.prompt_tokens / kTileTokens - 3);
  EXPECT_LE(first.prefill_tiles_visited, all.answers[0].stats.prefill_tiles_visited * 3 / 4);
  for (size_t i = 1; i < chosen.answers.size(); ++i) {
    // The document is kept up to the end of a tile.
    const RequestStats& stats = chosen.answers[i].stats;
    EXPECT_EQ(stats.cached_tokens % kTileTokens, 0);
    EXPECT_GT(stats.cached_tokens, all.answers[i].stats.cached_tokens - kTileTokens);
  }
}

TEST_F(Retrieval4k, QuantisedKv) {
  for (const char* dtype : {"int8", "int4"}) {
    engine_ = MakeNeedleEngine(dtype);
    EXPECT_THAT(Ask(SparseAttention(1024)).wrong, IsEmpty()) << dtype;
    EXPECT_THAT(Ask(BlockSparseAttention(1024, kDefaultPrefillThreshold)).wrong, IsEmpty())
        << dtype;
  }
}

TEST_F(Retrieval4k, QuantisedWeights) {
  for (const std::string format : {"int8", "w8a8", "int4"}) {
    engine_ = MakeNeedleEngine("bf16", format);
    EXPECT_THAT(Ask(DenseAttention()).wrong, IsEmpty()) << format;
    EXPECT_THAT(Ask(SparseAttention(1024)).wrong, IsEmpty()) << format;
  }
}

}  // namespace
}  // namespace lserve
