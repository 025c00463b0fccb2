// How much work is asked for, counted and not timed, at lengths that nobody wants to wait for:
// sparse attention against dense, one length against the next, the prefix cache against none.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "attention/policy.h"
#include "support/counted_engine.h"

namespace lserve {
namespace {

AttentionSettings Of(AttentionMode mode) {
  return {.mode = mode};
}

EngineConfig Config(const char* kv_cache_dtype = "auto") {
  EngineConfig config;
  config.kv_cache_dtype = kv_cache_dtype;
  config.kv_cache_bytes = size_t{1} << 30;  // address space: nothing is written
  return config;
}

int64_t NumTiles(int64_t num_tokens) {
  return (num_tokens + kTileTokens - 1) / kTileTokens;
}

// Where something changes with the defaults: pages, tiles, chunks, the budget, the first
// block-sparse tile of `sparse`, the first sparse position and block-sparse tile of `auto`.
constexpr int64_t kBorders[] = {64,   128,        512,        4096, 4096 + 128,
                                8192, 8192 + 128, 8192 + 512, 16384};

// Minutes to the first token are attention's, which grows with the square of the length. With the
// defaults and the bundled model's heads 58% of it is left out at 32K whatever the text: its
// streaming heads read 8% of what dense ones read, its retrieval heads, of which a tile reads at
// most 16384 tokens, at most 76%, the estimate included. What a text leaves:
// WithTheDefaultsLessThanAThirdOfTheTilesAt32k (slow).
TEST(FirstToken, AtMost42PercentOfDenseAttentionAt32kWhateverTheText) {
  EngineConfig config = Config();
  config.model_dir = LS_SOURCE_DIR "/models/needle";
  CountedEngine engine(config);
  const Work sparse = engine.Run(32768, 1, AttentionSettings());
  const Work dense = engine.Run(32768, 1, Of(AttentionMode::kDense));
  // 6 layers x 8 query heads of 64, over the causal triangle.
  ASSERT_EQ(Work::Attention(dense.prefill).flop, 6 * 8 * 4.0 * 64 * (32768.0 * 32769 / 2));
  EXPECT_LE(Work::Attention(sparse.prefill).flop, 0.42 * Work::Attention(dense.prefill).flop);
  EXPECT_LE(static_cast<double>(sparse.stats.prefill_tiles_visited),
            0.42 * static_cast<double>(sparse.stats.prefill_tiles_present));
  EXPECT_EQ(sparse.stats.prefill_tiles_present, dense.stats.prefill_tiles_visited);
  // All else is the same.
  EXPECT_EQ(sparse.prefill.size(), dense.prefill.size());
  EXPECT_EQ(Work::Linear(sparse.prefill).flop, Work::Linear(dense.prefill).flop);
}

// Past the length at which lists are full, the same number of tokens more costs the same, whatever
// the text and wherever it is; but for the estimate, which sees all keys.
TEST(FirstToken, GrowsWithTheLengthPastTheMostTokensOfATile) {
  CountedEngine engine(Config(), CountedModel({1, 0}));
  AttentionSettings settings;
  settings.prefill_max_tokens = 8192;
  const auto attention = [&](int64_t length) {
    OpCost cost;
    for (const OpMeter& step : engine.Run(length, 1, settings).prefill) {
      cost += step.of(OpKind::kPrefillAttention).cost;
    }
    return cost.flop;
  };
  constexpr int64_t kMore = 8192;
  const double full = attention(2 * kMore);  // 0.9 of 128 tiles: more than the 64 that are allowed
  const double more = attention(3 * kMore) - full;
  EXPECT_EQ(attention(4 * kMore) - attention(3 * kMore), more);
  EXPECT_LT(more, full);
  // Without the limit it grows with the square.
  settings.prefill_max_tokens = 0;
  EXPECT_GT(attention(4 * kMore) - attention(3 * kMore), 2 * more);
}

class SparseAgainstDense : public testing::Test {
 protected:
  static constexpr int kTokens = 8;  // of the answer behind the first: two choices of pages

  void Compare(CountedEngine& engine, int64_t length) {
    SCOPED_TRACE(length);
    sparse_ = engine.Run(length, 1 + kTokens, AttentionSettings());
    dense_ = engine.Run(length, 1 + kTokens, Of(AttentionMode::kDense));
    ASSERT_EQ(sparse_.prefill.size(), dense_.prefill.size());
    ASSERT_EQ(sparse_.decode.size(), dense_.decode.size());
    for (const auto steps : {&Work::prefill, &Work::decode}) {
      const OpCost with = Work::Attention(sparse_.*steps), without = Work::Attention(dense_.*steps);
      EXPECT_LE(with.flop, without.flop);
      EXPECT_EQ(Work::Linear(sparse_.*steps).flop, Work::Linear(dense_.*steps).flop);
      EXPECT_EQ(Work::Linear(sparse_.*steps).bytes, Work::Linear(dense_.*steps).bytes);
      if (length + kTokens <= AttentionSettings().min_context) {
        EXPECT_EQ(with.flop, without.flop);
        EXPECT_EQ(with.bytes, without.bytes);
      }
    }
    EXPECT_LE(sparse_.stats.prefill_tiles_visited, dense_.stats.prefill_tiles_visited);
    // Decode waits for memory, and both kinds of page count: those that are read and the statistics
    // of those that could be.
    EXPECT_LE(Work::Attention(sparse_.decode).bytes, Work::Attention(dense_.decode).bytes);
    EXPECT_LE(sparse_.stats.pages_visited, dense_.stats.pages_visited);
  }
  static std::vector<int64_t> Lengths() {
    std::vector<int64_t> lengths = {1, 1000, 12345, 32768, 65536};
    for (const int64_t border : kBorders)
      for (int64_t length = border - 1; length <= border + 1; ++length) lengths.push_back(length);
    return lengths;
  }

  Work sparse_, dense_;
};

TEST_F(SparseAgainstDense, IsNeverMoreWorkWhateverTheText) {
  CountedEngine engine(Config(), CountedModel({1, 0}));
  for (const int64_t length : Lengths()) {
    Compare(engine, length);
    // Even an estimate's own reading is less than what its streaming neighbours leave out.
    EXPECT_LE(Work::Attention(sparse_.prefill).bytes, Work::Attention(dense_.prefill).bytes);
    if (length > AttentionSettings().min_context) {
      EXPECT_LT(Work::Attention(sparse_.prefill).flop, Work::Attention(dense_.prefill).flop);
      EXPECT_LT(Work::Attention(sparse_.prefill).bytes, Work::Attention(dense_.prefill).bytes);
      EXPECT_LT(Work::Attention(sparse_.decode).flop, Work::Attention(dense_.decode).flop);
      EXPECT_LT(Work::Attention(sparse_.decode).bytes, Work::Attention(dense_.decode).bytes);
    }
  }
}

// Where no head streams all has to come from the choice of tiles and pages; and the smaller the
// keys, the more their statistics count. Of prefill, which computes, FLOP alone: the estimate reads
// the keys once more, which for a text that needs nine tiles of ten is more than is left out.
TEST_F(SparseAgainstDense, IsNeverMoreWorkWithoutStreamingHeads) {
  const int64_t first = FirstBlockSparsePosition(AttentionSettings());
  for (const char* dtype : {"bf16", "int8", "int4"}) {
    SCOPED_TRACE(dtype);
    CountedEngine engine(Config(dtype), CountedModel({1, 1}));
    for (const int64_t length : Lengths()) {
      Compare(engine, length);
      if (length >= first + kTileTokens) {
        EXPECT_LT(Work::Attention(sparse_.prefill).flop, Work::Attention(dense_.prefill).flop);
      }
      if (length > AttentionSettings().min_context) {
        EXPECT_LT(Work::Attention(sparse_.decode).bytes, Work::Attention(dense_.decode).bytes);
      }
    }
  }
}

// Sparse from the first token on: prefill from the first tile that may choose, decode from the
// first page above the budget, over the steps that share a choice. With 8 and 4 bit that page saves
// less than the statistics take: there it is four pages, 4352 tokens.
TEST_F(SparseAgainstDense, PaysAtItsCrossoverWhateverTheText) {
  const AttentionSettings settings = Of(AttentionMode::kSparse);
  const int64_t tokens = 1 + settings.interval();
  for (const auto& [dtype, above] : {std::pair("bf16", 0), {"int8", 4}, {"int4", 4}}) {
    SCOPED_TRACE(dtype);
    CountedEngine engine(Config(dtype), CountedModel({1, 1}));
    for (const int64_t tiles : {33, 34, 40, 64}) {
      SCOPED_TRACE(tiles);
      const Work sparse = engine.Run(tiles * kTileTokens, 1, settings);
      const Work dense = engine.Run(tiles * kTileTokens, 1, Of(AttentionMode::kDense));
      ASSERT_EQ(sparse.stats.tile_selections, tiles - 32);
      EXPECT_LT(Work::Attention(sparse.prefill).flop, Work::Attention(dense.prefill).flop);
    }
    for (const int more : {0, 1, 5, 64}) {
      const int64_t length = (64 + above + more) * kPageTokens;
      SCOPED_TRACE(length);
      const Work sparse = engine.Run(length, tokens, settings);
      const Work dense = engine.Run(length, tokens, Of(AttentionMode::kDense));
      ASSERT_EQ(sparse.stats.selections, 1);
      EXPECT_LT(Work::Attention(sparse.decode).flop, Work::Attention(dense.decode).flop);
      EXPECT_LT(Work::Attention(sparse.decode).bytes, Work::Attention(dense.decode).bytes);
    }
  }
}

// One more token of prompt, or of depth, is that token's work, and at a border a fixed part at
// most: a step's weights, a tile's pages. No length is a cliff.
class OneTokenMore : public testing::Test {
 protected:
  static constexpr int kHeads = 2;  // KV heads; two query heads each
  static constexpr double kKeyFlop = 4.0 * kCountedHeadDim * 2 * kHeads;
  static constexpr double kPageBytes = 64 * kCountedHeadDim * 2 * 2 * kHeads;  // bf16 K and V
  static constexpr double kStatsBytes = 4 * kCountedHeadDim * 2 * 2 * kHeads;  // of the page
  static constexpr int kChunk = 256;

  OneTokenMore() : engine_(ChunkConfig(), CountedModel({1, 0})) {
    const auto linear = [&](int64_t length) {
      return Work::Linear(engine_.Run(length, 1, Of(AttentionMode::kDense)).prefill);
    };
    token_flop_ = linear(2).flop - linear(1).flop;
    step_bytes_ = linear(kChunk + 1).bytes - linear(kChunk).bytes;
  }
  static EngineConfig ChunkConfig() {
    EngineConfig config = Config();
    config.max_num_batched_tokens = kChunk;
    return config;
  }
  // All borders below 700 tokens.
  static AttentionSettings Small() {
    AttentionSettings settings;
    settings.token_budget = 256;
    settings.sink_tokens = 64;
    settings.recent_tokens = 100;
    settings.min_context = 333;
    return settings;
  }

  // `more` has one token more of prompt than `less`, and `length` in all.
  void ExpectOneTokenMore(const Work& less, const Work& more, int64_t length) {
    SCOPED_TRACE(length);
    const int64_t steps = static_cast<int64_t>(more.prefill.size());
    ASSERT_EQ(steps, (length + kChunk - 1) / kChunk);
    const OpCost linear_before = Work::Linear(less.prefill), linear = Work::Linear(more.prefill);
    EXPECT_EQ(linear.flop - linear_before.flop, token_flop_);
    EXPECT_EQ(linear.bytes - linear_before.bytes,
              static_cast<double>(steps - static_cast<int64_t>(less.prefill.size())) * step_bytes_);
    const OpCost before = Work::Attention(less.prefill), after = Work::Attention(more.prefill);
    // The token sees all keys at most. Work falls only where a tile is complete and chooses.
    EXPECT_LE(after.flop - before.flop, kKeyFlop * static_cast<double>(length));
    EXPECT_GE(after.flop - before.flop, -kKeyFlop * static_cast<double>(length) * kTileTokens);
    EXPECT_LE(after.bytes - before.bytes, kPageBytes * static_cast<double>(NumPages(length)));
    EXPECT_LE(more.stats.prefill_tiles_visited - less.stats.prefill_tiles_visited,
              kHeads * NumTiles(length));
  }
  // Consecutive decode steps, the first of which is at `position`.
  void ExpectNoJump(const Work& work, int64_t position) {
    for (size_t i = 1; i < work.decode.size(); ++i) {
      SCOPED_TRACE(position + static_cast<int64_t>(i));
      const OpMeter& less = work.decode[i - 1];
      const OpMeter& more = work.decode[i];
      EXPECT_EQ(more.of(OpKind::kLinear).cost.flop, less.of(OpKind::kLinear).cost.flop);
      EXPECT_EQ(more.of(OpKind::kLinear).cost.bytes, less.of(OpKind::kLinear).cost.bytes);
      const double pages = NumPages(position + static_cast<int64_t>(i) + 1);
      EXPECT_LE(AttentionCost(more).flop - AttentionCost(less).flop, kKeyFlop * kPageTokens);
      EXPECT_LE(AttentionCost(more).bytes - AttentionCost(less).bytes,
                kPageBytes + kStatsBytes * pages);
    }
  }

  CountedEngine engine_;
  double token_flop_ = 0, step_bytes_ = 0;
};

TEST_F(OneTokenMore, OfAPromptIsNoCliffAtAnyLength) {
  std::vector<Work> works;
  for (int64_t length = 1; length <= 700; ++length) {
    works.push_back(engine_.Run(length, 1, Small()));
    if (length > 1) ExpectOneTokenMore(*(works.end() - 2), works.back(), length);
    // Over a tile it is the rows of one, or two where sparsity begins, and never 128 of them.
    if (length <= kTileTokens) continue;
    const Work& tile_before = works[works.size() - 1 - kTileTokens];
    EXPECT_LE(
        Work::Attention(works.back().prefill).bytes - Work::Attention(tile_before.prefill).bytes,
        2 * kPageBytes * static_cast<double>(NumPages(length)))
        << length;
    if (HasFailure()) return;
  }
  EXPECT_LT(works.back().stats.prefill_tiles_visited, works.back().stats.prefill_tiles_present);
}

TEST_F(OneTokenMore, OfAPromptIsNoCliffAtTheDefaultBorders) {
  for (const AttentionMode mode : {AttentionMode::kAuto, AttentionMode::kSparse}) {
    SCOPED_TRACE(std::string(Name(mode)));
    for (const int64_t border : kBorders) {
      Work less = engine_.Run(border - 2, 1, Of(mode));
      for (int64_t length = border - 1; length <= border + 2; ++length) {
        Work more = engine_.Run(length, 1, Of(mode));
        ExpectOneTokenMore(less, more, length);
        less = std::move(more);
      }
    }
  }
}

TEST_F(OneTokenMore, OfDepthIsNoCliff) {
  const Work small = engine_.Run(100, 600, Small());
  EXPECT_GT(small.stats.dense_steps, 200);
  EXPECT_GT(small.stats.selections, 200);
  ExpectNoJump(small, 100);
  for (const auto& [mode, prompt] : {std::pair(AttentionMode::kAuto, int64_t{8150}),
                                     std::pair(AttentionMode::kSparse, int64_t{4050})}) {
    const Work work = engine_.Run(prompt, 100, Of(mode));
    EXPECT_GT(work.stats.selections, 10);
    ExpectNoJump(work, prompt);
  }
}

// With a prefix in the cache a prompt costs less than without, or the same: wherever it parts from
// what is kept, and wherever it can be resumed.
TEST(PrefixCache, AHitIsNeverMoreWorkThanAMiss) {
  EngineConfig config = Config();
  config.attention.token_budget = 512;
  config.attention.min_context = 1024;
  config.attention.prefill_min_position = 1024;
  CountedEngine engine(config, CountedModel({1, 0}));
  AttentionSettings streaming_only = config.attention;
  streaming_only.prefill_threshold = 0;
  int partial = 0;
  for (const AttentionSettings& attention :
       {config.attention, streaming_only, Of(AttentionMode::kDense)}) {
    for (const int64_t length : {1000, 2048, 2049, 5000}) {
      for (const int64_t common :
           {1, 63, 64, 100, 128, 999, 1024, 1100, 2047, 2048, 2049, 2300, 3000, 4096, 4999, 5000}) {
        if (common > length) continue;
        SCOPED_TRACE(std::string(Name(attention.mode)) + " " + std::to_string(length) +
                     " tokens, of which " + std::to_string(common) + " are kept");
        Request ask;
        ask.prompt.assign(static_cast<size_t>(length), 2);
        std::fill_n(ask.prompt.begin(), common, 1);
        ask.max_tokens = 9;
        ask.attention = attention;
        const Work uncached = engine.Run(ask);
        ask.keep_prefix = length;
        const Work miss = engine.Run(ask);
        engine.engine().DropPrefixes();
        Request before = ask;
        before.prompt.assign(static_cast<size_t>(common + 700), 1);
        before.keep_prefix = common + 700;
        engine.Run(std::move(before));
        const Work hit = engine.Run(ask);
        engine.engine().DropPrefixes();

        EXPECT_EQ(miss.stats.cached_tokens, 0);
        EXPECT_EQ(Work::Attention(miss.prefill).bytes, Work::Attention(uncached.prefill).bytes);
        EXPECT_EQ(miss.prefill.size(), uncached.prefill.size()) << "to keep it costs no step";
        EXPECT_EQ(hit.stats.prefix.common, common);
        EXPECT_LE(hit.prefill.size(), miss.prefill.size());
        EXPECT_LE(hit.stats.prefill_tiles_visited, miss.stats.prefill_tiles_visited);
        EXPECT_EQ(hit.stats.recomputed_tokens, 0);
        for (const auto cost : {&Work::Attention, &Work::Linear}) {
          EXPECT_LE(cost(hit.prefill).flop, cost(miss.prefill).flop);
          EXPECT_LE(cost(hit.prefill).bytes, cost(miss.prefill).bytes);
          EXPECT_EQ(cost(hit.decode).bytes, cost(miss.decode).bytes);
        }
        if (hit.stats.cached_tokens > 0) {
          EXPECT_LT(Work::Linear(hit.prefill).flop, Work::Linear(miss.prefill).flop);
        }
        partial += hit.stats.cached_tokens > 0 && hit.stats.cached_tokens < common ? 1 : 0;
        if (testing::Test::HasFailure()) return;
      }
    }
  }
  EXPECT_GT(partial, 20) << "cut back to where the window is, or to a tile";
}

}  // namespace
}  // namespace lserve
