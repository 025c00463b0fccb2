// A million tokens from end to end, as far as it is quick: streaming heads are computed, a model
// with retrieval heads is scheduled, planned and counted. Computed: million_slow_test.cc.
#include "support/million.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "support/counted_engine.h"
#include "support/engine_runner.h"
#include "support/random_checkpoint.h"

namespace lserve {
namespace {

// What the last token of a million sees is what it sees in a short prompt: the model has one layer
// and no sink, so that nothing but the window counts, and RoPE only counts distances.
TEST(Million, StreamingHeadsAnswerAsBehindAShortPrompt) {
  RandomModelShape shape;
  shape.layers = shape.q_heads = shape.kv_heads = 1;
  shape.hidden = shape.intermediate = 32;
  shape.kinds = {0};
  shape.max_positions = kMillion + 64;
  const RandomCheckpoint checkpoint(shape);
  EngineConfig config = MillionConfig(checkpoint.dir());
  config.attention.sink_tokens = 0;
  config.attention.recent_tokens = 128;
  const std::unique_ptr<Engine> engine = MakeEngine(config);
  Request ask = AskMillion(8);
  const Answer answer = RunQuietly(*engine, ask);
  ASSERT_EQ(answer.reason, FinishReason::kLength) << answer.error.message();
  EXPECT_EQ(answer.stats.prompt_tokens, kMillion);
  EXPECT_EQ(answer.stats.sparse_steps, 7);
  // Window and chunk are held, however long the prompt is.
  EXPECT_LT(answer.stats.kv_bytes, 2u << 20);

  ask.prompt.erase(ask.prompt.begin(), ask.prompt.end() - 1000);
  ask.forced_tokens = answer.tokens;
  const Answer near = RunQuietly(*engine, ask);
  ASSERT_EQ(near.token_logits.size(), answer.token_logits.size());
  double most = 0, largest = 0;
  for (size_t i = 0; i < near.token_logits.size(); ++i) {
    most = std::max<double>(most, std::abs(near.token_logits[i] - answer.token_logits[i]));
    largest = std::max<double>(largest, std::abs(near.token_logits[i]));
  }
  // Rotated keys and queries are rounded to bf16, elsewhere at other positions: 2^-9 of each.
  EXPECT_LT(most, 0.02 * largest);
  EXPECT_GT(largest, 1);
}

// The defaults, half of the heads streaming.
TEST(Million, IsScheduledAndPlanned) {
  EngineConfig config;
  config.kv_cache_bytes = size_t{1} << 30;
  config.max_model_len = kMillion + 64;
  ModelInMemory model = CountedModel({1, 0});
  model.config.max_position_embeddings = kMillion + 64;
  CountedEngine engine(config, std::move(model));
  const Work work = engine.Run(kMillion, 33, AttentionSettings());
  EXPECT_EQ(work.prefill.size(), static_cast<size_t>(kMillion / 512));
  EXPECT_EQ(work.decode.size(), 32u);
  const RequestStats& stats = work.stats;
  constexpr int64_t kTiles = kMillion / kTileTokens;
  EXPECT_EQ(stats.prefill_tiles_present, 2 * kTiles * (kTiles + 1) / 2);
  EXPECT_EQ(stats.tile_selections, kTiles - 64);
  EXPECT_LT(static_cast<double>(stats.prefill_tiles_visited),
            0.46 * static_cast<double>(stats.prefill_tiles_present));
  // The budget and a page that came after the choice, a sink and a window.
  EXPECT_EQ(stats.sparse_steps, 32);
  EXPECT_LE(stats.pages_visited, 65 + 8);
  EXPECT_GT(stats.pages_present, 2 * kMillion / kPageTokens);
}

}  // namespace
}  // namespace lserve
