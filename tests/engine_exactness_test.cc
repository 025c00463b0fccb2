// What the engine promises bit for bit, on every backend path of this machine: the same tokens give
// the same logits whatever the chunks, the batch, the prefix cache, the threads or the run, and
// sparse attention whose budget covers the context is dense attention.
#include <gtest/gtest.h>

#include <algorithm>

#include "backend/registry.h"
#include "support/engine_runner.h"
#include "support/random_checkpoint.h"

namespace lserve {
namespace {

struct Path {
  const char* device;
  const char* isa;
};

// Reference first, then every instruction set that this processor has. Under a sanitizer the best
// one: what they look for here is the engine's, and the kernels of all have parity tests.
std::vector<Path> Paths() {
#if defined(__SANITIZE_THREAD__)
  return {{"cpu", "auto"}};  // the reference computes on one thread
#elif defined(__SANITIZE_ADDRESS__)
  return {{"reference", "auto"}, {"cpu", "auto"}};
#endif
  std::vector<Path> paths = {{"reference", "auto"}};
  for (const char* isa : {"generic", "avx2", "avx512", "avx512bf16"}) {
    if (MakeBackend({.device = "cpu", .num_threads = 1, .cpu_isa = isa}).ok())
      paths.push_back({"cpu", isa});
  }
  return paths;
}

// Layer 0 streams in full, layer 1 retrieves in full, layer 2 is mixed.
RandomModelShape TestShape() {
  RandomModelShape shape;
  shape.kinds = {0, 0, 1, 1, 1, 0};
  return shape;
}

// Small enough that 300 tokens are far beyond every limit.
AttentionSettings TightSparse() {
  AttentionSettings s;
  s.mode = AttentionMode::kSparse;
  s.token_budget = 256;
  s.sink_tokens = 20;
  s.recent_tokens = 50;
  s.selector_interval = 3;
  return s;
}

// And block-sparse prefill from the fourth tile on: the first that has something to choose.
AttentionSettings TightBlocks() {
  AttentionSettings s = TightSparse();
  s.prefill_threshold = 0.8;
  s.prefill_min_position = 0;
  return s;
}

class Exactness : public testing::TestWithParam<Path> {
 protected:
  EngineConfig Config(const AttentionSettings& attention) {
    EngineConfig config;
    config.model_dir = checkpoint_.dir();
    config.device = GetParam().device;
    config.cpu_isa = GetParam().isa;
    config.num_threads = 2;
    config.kv_cache_bytes = size_t{256} << 20;
    config.attention = attention;
    return config;
  }
  Request Ask(int64_t length, uint64_t seed, int64_t max_tokens = 12) {
    Request request;
    request.prompt = RandomTokens(length, 97, seed);
    request.sampling.temperature = 0;
    request.max_tokens = max_tokens;
    request.ignore_eos = true;
    return request;
  }

  RandomCheckpoint checkpoint_{TestShape()};
};

void ExpectSame(const Answer& a, const Answer& b) {
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_TRUE(SameBits(a.token_logits, b.token_logits));
  EXPECT_TRUE(SameBits(a.prompt_logits, b.prompt_logits));
}

TEST_P(Exactness, TwoRunsAreIdentical) {
  const std::unique_ptr<Engine> first = MakeEngine(Config(TightSparse()));
  const std::unique_ptr<Engine> second = MakeEngine(Config(TightSparse()));
  const Answer a = RunOne(*first, Ask(330, 1)), b = RunOne(*second, Ask(330, 1));
  EXPECT_GT(a.stats.sparse_steps, 0);
  EXPECT_GT(a.stats.selections, 0);
  EXPECT_LT(a.stats.pages_visited, a.stats.pages_present);
  ExpectSame(a, b);
  // And again on an engine whose pages have been used: recycled pages leave no trace.
  ExpectSame(a, RunOne(*first, Ask(330, 1)));
}

TEST_P(Exactness, SparseWithinBudgetAndNoStreamingHeadsIsDense) {
  EngineConfig config = Config(TightSparse());
  config.streaming_heads = "none";
  config.attention.token_budget = 512;
  const std::unique_ptr<Engine> engine = MakeEngine(config);
  Request sparse = Ask(330, 2), dense = Ask(330, 2);
  dense.attention = AttentionSettings{.mode = AttentionMode::kDense};
  const Answer a = RunOne(*engine, std::move(sparse)), b = RunOne(*engine, std::move(dense));
  EXPECT_EQ(a.stats.sparse_steps, 0);
  EXPECT_EQ(a.stats.pages_visited, a.stats.pages_present);
  ExpectSame(a, b);
}

TEST_P(Exactness, AutoBelowItsThresholdIsDense) {
  AttentionSettings settings = TightSparse();
  settings.mode = AttentionMode::kAuto;
  settings.min_context = 400;
  const std::unique_ptr<Engine> engine = MakeEngine(Config(settings));
  Request dense = Ask(330, 3);
  dense.attention = AttentionSettings{.mode = AttentionMode::kDense};
  const Answer a = RunOne(*engine, Ask(330, 3)), b = RunOne(*engine, std::move(dense));
  EXPECT_EQ(a.stats.sparse_steps, 0);
  EXPECT_EQ(a.stats.prefill_tiles_visited, a.stats.prefill_tiles_present);
  ExpectSame(a, b);
}

TEST_P(Exactness, ChunkedPrefillEqualsUnchunked) {
  for (const AttentionMode mode :
       {AttentionMode::kDense, AttentionMode::kSparse, AttentionMode::kAuto}) {
    AttentionSettings settings = TightSparse();
    settings.mode = mode;
    settings.min_context = 150;  // inside a tile and inside a chunk
    EngineConfig whole = Config(settings);
    const std::unique_ptr<Engine> one_chunk = MakeEngine(whole);
    whole.max_num_batched_tokens = 136;
    const std::unique_ptr<Engine> chunked = MakeEngine(whole);
    ExpectSame(RunOne(*one_chunk, Ask(400, 4)), RunOne(*chunked, Ask(400, 4)));
  }
}

TEST_P(Exactness, PrefixHitEqualsRecomputation) {
  for (const int64_t kept : {1, 64, 100, 128, 256, 299}) {
    const std::unique_ptr<Engine> engine = MakeEngine(Config(TightSparse()));
    Request first = Ask(300, 5);
    first.keep_prefix = kept;
    RunOne(*engine, std::move(first));
    Request second = Ask(300, 5);
    second.prompt.resize(static_cast<size_t>(kept));
    const std::vector<int32_t> question = RandomTokens(70, 97, 6);
    second.prompt.insert(second.prompt.end(), question.begin(), question.end());
    Request again = second;
    const Answer hit = RunOne(*engine, std::move(second));
    EXPECT_EQ(hit.stats.cached_tokens, kept);
    engine->DropPrefixes();
    Answer fresh = RunOne(*engine, std::move(again));
    EXPECT_EQ(fresh.stats.cached_tokens, 0);
    // The hit computed only what comes after the prefix.
    fresh.prompt_logits.erase(fresh.prompt_logits.begin(), fresh.prompt_logits.begin() + kept * 97);
    ExpectSame(hit, fresh);
  }
}

TEST_P(Exactness, SeveralQuestionsOverOnePrefix) {
  const std::unique_ptr<Engine> engine = MakeEngine(Config(TightSparse()));
  const std::vector<int32_t> document = RandomTokens(333, 97, 7);
  std::vector<Answer> answers;
  for (uint64_t q = 0; q < 3; ++q) {
    Request request = Ask(10, 100 + q);
    request.prompt.insert(request.prompt.begin(), document.begin(), document.end());
    request.keep_prefix = q == 0 ? 333 : 0;
    answers.push_back(RunOne(*engine, std::move(request)));
    EXPECT_EQ(answers.back().stats.cached_tokens, q == 0 ? 0 : 333);
  }
  engine->DropPrefixes();
  for (uint64_t q = 0; q < 3; ++q) {
    Request request = Ask(10, 100 + q);
    request.prompt.insert(request.prompt.begin(), document.begin(), document.end());
    const Answer alone = RunOne(*engine, std::move(request));
    EXPECT_EQ(answers[q].tokens, alone.tokens);
    EXPECT_TRUE(SameBits(answers[q].token_logits, alone.token_logits));
  }
  EXPECT_EQ(engine->kv_bytes_in_use(), 0u);
}

// Also defects e (mixed lengths), h (a list outlives its sequence) and a batch of dense and sparse.
TEST_P(Exactness, BatchEqualsItsMembersAlone) {
  const std::unique_ptr<Engine> engine = MakeEngine(Config(TightSparse()));
  const auto requests = [&] {
    std::vector<Request> all;
    const int64_t lengths[] = {1, 63, 64, 65, 257, 320, 449, 300};
    for (size_t i = 0; i < std::size(lengths); ++i) {
      all.push_back(Ask(lengths[i], 20 + i, 5 + static_cast<int64_t>(i)));
      if (i % 3 == 2) all.back().attention = AttentionSettings{.mode = AttentionMode::kDense};
    }
    return all;
  };
  const std::vector<Answer> together = RunAll(*engine, requests());
  std::vector<Request> alone = requests();
  for (size_t i = 0; i < alone.size(); ++i) {
    SCOPED_TRACE(i);
    ExpectSame(together[i], RunOne(*engine, std::move(alone[i])));
  }
  EXPECT_EQ(engine->kv_bytes_in_use(), 0u);
}

TEST_P(Exactness, ThreadsDoNotMatter) {
  std::vector<Answer> answers;
  for (const int threads : {1, 2, 3}) {
    EngineConfig config = Config(TightSparse());
    config.num_threads = threads;
    const std::unique_ptr<Engine> engine = MakeEngine(config);
    answers.push_back(RunOne(*engine, Ask(330, 9)));
  }
  ExpectSame(answers[0], answers[1]);
  ExpectSame(answers[0], answers[2]);
}

// What makes the tests below mean something: lists are chosen, they leave tiles out, and that
// changes the logits.
TEST_P(Exactness, BlockSparsePrefillIsSparseAndCounted) {
  const std::unique_ptr<Engine> engine = MakeEngine(Config(TightBlocks()));
  Request all = Ask(900, 11);
  all.attention = TightSparse();
  const Answer chosen = RunOne(*engine, Ask(900, 11)), whole = RunOne(*engine, std::move(all));
  EXPECT_EQ(chosen.stats.tile_selections, 4);  // 900 tokens: tiles 3 to 6 are complete
  EXPECT_EQ(whole.stats.tile_selections, 0);
  EXPECT_LT(chosen.stats.prefill_tiles_visited, whole.stats.prefill_tiles_visited);
  EXPECT_EQ(chosen.stats.prefill_tiles_present, whole.stats.prefill_tiles_present);
  EXPECT_FALSE(SameBits(chosen.prompt_logits, whole.prompt_logits));
}

TEST_P(Exactness, BlockSparseChunkedEqualsUnchunked) {
  for (const char* dtype : {"bf16", "int8"}) {
    for (const int64_t min_context : {0, 600}) {  // 600: inside a tile
      AttentionSettings settings = TightBlocks();
      settings.mode = min_context == 0 ? AttentionMode::kSparse : AttentionMode::kAuto;
      settings.min_context = min_context;
      EngineConfig config = Config(settings);
      config.kv_cache_dtype = dtype;
      config.max_num_batched_tokens = 1024;
      const std::unique_ptr<Engine> one_chunk = MakeEngine(config);
      config.max_num_batched_tokens = 136;
      const std::unique_ptr<Engine> chunked = MakeEngine(config);
      const Answer a = RunOne(*one_chunk, Ask(930, 12)), b = RunOne(*chunked, Ask(930, 12));
      EXPECT_GT(a.stats.tile_selections, 0);
      ExpectSame(a, b);
      EXPECT_EQ(a.stats.prefill_tiles_visited, b.stats.prefill_tiles_visited);
    }
  }
}

// A prefix is kept up to the last place where no tile that may be block-sparse is cut.
TEST_P(Exactness, BlockSparsePrefixHitEqualsRecomputation) {
  struct Kept {
    int64_t asked, got;
  };
  // Also what ends inside the prompt's last, incomplete tile; and what ends in a dense tile.
  for (const Kept kept : {Kept{700, 640}, {640, 640}, {795, 768}, {130, 130}}) {
    AttentionSettings settings = TightBlocks();
    settings.prefill_min_position = 384;
    const std::unique_ptr<Engine> engine = MakeEngine(Config(settings));
    Request first = Ask(800, 13);
    first.keep_prefix = kept.asked;
    const Answer whole = RunOne(*engine, std::move(first));
    Request second = Ask(800, 13);
    second.prompt.resize(static_cast<size_t>(kept.asked));
    const std::vector<int32_t> question = RandomTokens(400, 97, 14);
    second.prompt.insert(second.prompt.end(), question.begin(), question.end());
    Request again = second, same = Ask(800, 13);
    const Answer hit = RunOne(*engine, std::move(second));
    EXPECT_EQ(hit.stats.cached_tokens, kept.got);
    const Answer same_hit = RunOne(*engine, std::move(same));
    EXPECT_EQ(same_hit.stats.cached_tokens, kept.got);
    EXPECT_TRUE(SameBits(same_hit.token_logits, whole.token_logits));
    engine->DropPrefixes();
    Answer fresh = RunOne(*engine, std::move(again));
    EXPECT_EQ(fresh.stats.cached_tokens, 0);
    EXPECT_GT(fresh.stats.tile_selections, 0);
    fresh.prompt_logits.erase(fresh.prompt_logits.begin(),
                              fresh.prompt_logits.begin() + kept.got * 97);
    ExpectSame(hit, fresh);
  }
}

// A prompt that shares only part of a kept prefix resumes at a place of its own.
TEST_P(Exactness, BlockSparsePartOfAPrefixEqualsRecomputation) {
  AttentionSettings settings = TightBlocks();
  settings.recent_tokens = 1000;  // nothing is trimmed away
  const std::unique_ptr<Engine> engine = MakeEngine(Config(settings));
  Request first = Ask(900, 15);
  first.keep_prefix = 900;
  RunOne(*engine, std::move(first));
  Request second = Ask(900, 15);
  second.prompt.resize(600);
  second.prompt.push_back(1);
  const Answer hit = RunOne(*engine, Request(second));
  EXPECT_EQ(hit.stats.cached_tokens, 512);
  engine->DropPrefixes();
  const Answer fresh = RunOne(*engine, std::move(second));
  EXPECT_EQ(hit.tokens, fresh.tokens);
  EXPECT_TRUE(SameBits(hit.token_logits, fresh.token_logits));
}

TEST_P(Exactness, BlockSparseBatchAndThreadsDoNotMatter) {
  const auto requests = [&] {
    std::vector<Request> all;
    const int64_t lengths[] = {900, 65, 640, 777, 513};
    for (size_t i = 0; i < std::size(lengths); ++i) {
      all.push_back(Ask(lengths[i], 30 + i, 3));
      if (i == 2) all.back().attention = TightSparse();
      if (i == 3) {
        all.back().attention = TightBlocks();
        all.back().attention->prefill_threshold = 0.5;
      }
    }
    return all;
  };
  EngineConfig config = Config(TightBlocks());
  const std::unique_ptr<Engine> engine = MakeEngine(config);
  const std::vector<Answer> together = RunAll(*engine, requests());
  config.num_threads = 3;
  const std::unique_ptr<Engine> other = MakeEngine(config);
  std::vector<Request> alone = requests();
  for (size_t i = 0; i < alone.size(); ++i) {
    SCOPED_TRACE(i);
    ExpectSame(together[i], RunOne(*other, std::move(alone[i])));
  }
  EXPECT_EQ(engine->kv_bytes_in_use(), 0u);
}

TEST_P(Exactness, QuantisedCachesKeepThePromises) {
  std::vector<const char*> dtypes = {"int8", "int4"};
  if (GetParam().device == std::string("reference")) dtypes.push_back("fp8");
  for (const char* dtype : dtypes) {
    SCOPED_TRACE(dtype);
    EngineConfig config = Config(TightSparse());
    config.kv_cache_dtype = dtype;
    const std::unique_ptr<Engine> whole = MakeEngine(config);
    config.max_num_batched_tokens = 136;
    const std::unique_ptr<Engine> chunked = MakeEngine(config);
    Request keeps = Ask(330, 10);
    keeps.keep_prefix = 201;
    const Answer a = RunOne(*whole, Ask(330, 10)), b = RunOne(*chunked, std::move(keeps));
    ExpectSame(a, b);
    const Answer hit = RunOne(*chunked, Ask(330, 10));
    EXPECT_EQ(hit.stats.cached_tokens, 201);
    EXPECT_TRUE(SameBits(a.token_logits, hit.token_logits));
  }
}

TEST_P(Exactness, QuantisedWeightsKeepThePromises) {
  for (const char* format : {"int8", "w8a8", "int4"}) {
    SCOPED_TRACE(format);
    EngineConfig config = Config(TightSparse());
    const Answer as_stored = RunOne(*MakeEngine(config), Ask(300, 30, 5));
    config.quantization = format;
    const std::unique_ptr<Engine> whole = MakeEngine(config);
    config.max_num_batched_tokens = 136;
    config.num_threads = 3;
    const std::unique_ptr<Engine> chunked = MakeEngine(config);
    const Answer alone = RunOne(*whole, Ask(300, 30, 5));
    EXPECT_FALSE(SameBits(alone.prompt_logits, as_stored.prompt_logits)) << "not quantised";
    ExpectSame(alone, RunOne(*chunked, Ask(300, 30, 5)));
    std::vector<Request> batch;
    for (const uint64_t seed : {31, 30, 32}) batch.push_back(Ask(seed * 10, seed, 5));
    ExpectSame(alone, RunAll(*whole, std::move(batch))[1]);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends,
                         Exactness,
                         testing::ValuesIn(Paths()),
                         [](const testing::TestParamInfo<Path>& path) {
                           return std::string(path.param.device) + "_" + path.param.isa;
                         });

}  // namespace
}  // namespace lserve
