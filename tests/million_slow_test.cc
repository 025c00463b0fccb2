// A million tokens, every one of them computed: two layers, streaming and retrieval heads, chosen
// tiles and pages, and the prefix that stays. A quarter of a minute on two
// cores.
#include <gtest/gtest.h>

#include "attention/page_plan.h"
#include "support/million.h"

namespace lserve {
namespace {

TEST(Million, IsReadAnsweredAndKept) {
  RandomModelShape shape;
  shape.layers = 2;
  shape.q_heads = 2;
  shape.hidden = shape.intermediate = 32;
  shape.kinds = {0, 0, 1, 0};
  shape.max_positions = kMillion + 64;
  const RandomCheckpoint checkpoint(shape);
  EngineConfig config = MillionConfig(checkpoint.dir());
  // Random keys weigh alike: at the default nine tiles of ten would be read.
  config.attention.prefill_threshold = 0.02;
  const std::unique_ptr<Engine> engine = MakeEngine(config);
  Request ask = AskMillion(32);
  ask.keep_prefix = kMillion;
  const Answer first = RunQuietly(*engine, ask);
  ASSERT_EQ(first.reason, FinishReason::kLength) << first.error.message();
  EXPECT_EQ(first.tokens.size(), 32u);
  EXPECT_EQ(first.stats.prompt_tokens, kMillion);
  EXPECT_EQ(first.stats.cached_tokens, 0);
  constexpr int64_t kTiles = kMillion / kTileTokens;
  EXPECT_EQ(first.stats.prefill_tiles_present, 4 * kTiles * (kTiles + 1) / 2);
  EXPECT_EQ(first.stats.tile_selections, kTiles - 32);
  EXPECT_LT(first.stats.prefill_tiles_visited, first.stats.prefill_tiles_present / 10);
  EXPECT_EQ(first.stats.sparse_steps, 31);
  EXPECT_EQ(first.stats.selections, 8);
  // One head reads its budget, three a sink and a window of 256 tokens.
  EXPECT_LE(first.stats.pages_visited, 65 + 3 * 8);
  EXPECT_GT(first.stats.pages_present, 4 * kMillion / kPageTokens);
  // One head of 16 keeps every key and value in bf16, with statistics, in whole system pages.
  EXPECT_LT(first.stats.kv_bytes, uint64_t{kMillion} * 2 * 16 * 2 * 5 / 4);

  // And again: only what was cut off is computed, and nothing of the answer changes.
  const Answer again = RunQuietly(*engine, ask);
  EXPECT_GE(again.stats.cached_tokens, kMillion - kTileTokens);
  EXPECT_EQ(again.tokens, first.tokens);
  EXPECT_TRUE(SameBits(again.token_logits, first.token_logits));
  engine->DropPrefixes();
  EXPECT_EQ(engine->kv_bytes_in_use(), 0u);
}

}  // namespace
}  // namespace lserve
