// Prefixes on disk and in host memory, through the engine: a restart starts from them, bit for bit
// as if it had computed them; damaged, foreign or gone, they cost time and never an answer.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "support/engine_runner.h"
#include "support/random_checkpoint.h"

namespace lserve {
namespace {

class KvTiers : public testing::Test {
 protected:
  static RandomModelShape Shape() {
    RandomModelShape shape;
    shape.kinds = {0, 0, 1, 1, 1, 0};
    return shape;
  }
  EngineConfig Config() {
    EngineConfig config;
    config.model_dir = checkpoint_.dir();
    config.device = "cpu";
    config.num_threads = 2;
    config.kv_cache_bytes = size_t{64} << 20;
    config.kv_disk_dir = checkpoint_.dir() + "/tier";
    config.attention.mode = AttentionMode::kSparse;
    config.attention.token_budget = 256;
    config.attention.recent_tokens = 64;
    config.attention.prefill_min_position = 512;
    return config;
  }
  // A document of 2500 tokens and a question.
  static Request Ask(uint64_t question) {
    Request request;
    request.prompt = RandomTokens(2500, 97, 1);
    const std::vector<int32_t> more = RandomTokens(40, 97, question);
    request.prompt.insert(request.prompt.end(), more.begin(), more.end());
    request.sampling.temperature = 0;
    request.max_tokens = 4;
    request.ignore_eos = true;
    request.keep_prefix = static_cast<int64_t>(request.prompt.size());
    return request;
  }
  std::vector<std::filesystem::path> Files() {
    std::vector<std::filesystem::path> files;
    for (const auto& file : std::filesystem::recursive_directory_iterator(Config().kv_disk_dir)) {
      if (file.is_regular_file()) files.push_back(file.path());
    }
    return files;
  }

  RandomCheckpoint checkpoint_{Shape()};
};

TEST_F(KvTiers, ARestartComputesOnlyTheQuestion) {
  for (const char* dtype : {"bf16", "int8"}) {
    SCOPED_TRACE(dtype);
    EngineConfig config = Config();
    config.kv_cache_dtype = dtype;
    EngineConfig without = config;
    without.kv_disk_dir.clear();
    RunOne(*MakeEngine(config), Ask(2));  // its end writes the files
    const std::unique_ptr<Engine> again = MakeEngine(config);
    EXPECT_EQ(again->disk_tier().stretches, 2);
    EXPECT_EQ(again->kv_bytes_in_use(), 0u);
    // The same prompt, but for its last tile; and another question: 256 tokens before the end.
    const Answer same = RunOne(*again, Ask(2)), other = RunOne(*again, Ask(3));
    EXPECT_EQ(same.stats.cached_tokens, 2432);
    EXPECT_EQ(other.stats.cached_tokens, 2432);
    EXPECT_EQ(again->disk_tier().loaded_tokens, 2432);
    const std::unique_ptr<Engine> fresh = MakeEngine(without);
    EXPECT_EQ(RunOne(*fresh, Ask(2)).token_logits, same.token_logits);
    fresh->DropPrefixes();
    const Answer computed = RunOne(*fresh, Ask(3));
    EXPECT_EQ(computed.stats.cached_tokens, 0);
    EXPECT_EQ(computed.tokens, other.tokens);
    EXPECT_TRUE(SameBits(computed.token_logits, other.token_logits));
    again->DropPrefixes();
    EXPECT_TRUE(Files().empty());
    EXPECT_EQ(again->kv_bytes_in_use(), 0u);
  }
}

TEST_F(KvTiers, OtherSettingsSaltsAndModelsDoNotShare) {
  RunOne(*MakeEngine(Config()), Ask(2));
  const std::unique_ptr<Engine> engine = MakeEngine(Config());
  Request salted = Ask(2), dense = Ask(2);
  salted.cache_salt = "x";
  dense.attention = AttentionSettings{.mode = AttentionMode::kDense};
  EXPECT_EQ(RunOne(*engine, std::move(salted)).stats.cached_tokens, 0);
  EXPECT_EQ(RunOne(*engine, std::move(dense)).stats.cached_tokens, 0);
  EngineConfig other = Config();
  other.kv_cache_dtype = "int8";
  EXPECT_EQ(RunOne(*MakeEngine(other), Ask(2)).stats.cached_tokens, 0);
  other = Config();
  other.streaming_heads = "none";
  EXPECT_EQ(RunOne(*MakeEngine(other), Ask(2)).stats.cached_tokens, 0);
}

TEST_F(KvTiers, DamagedFilesAreComputedAgain) {
  const Answer good = RunOne(*MakeEngine(Config()), Ask(2));
  for (const auto& path : Files()) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(std::filesystem::file_size(path)) - 100).put('x');
  }
  const std::unique_ptr<Engine> engine = MakeEngine(Config());
  const Answer answer = RunOne(*engine, Ask(2));
  EXPECT_EQ(answer.stats.cached_tokens, 0);
  EXPECT_GT(engine->disk_tier().refused, 0);
  EXPECT_TRUE(SameBits(answer.token_logits, good.token_logits));
}

// Pages for what is on disk are taken from what is kept, not from who runs.
TEST_F(KvTiers, ASmallCacheTakesWhatFits) {
  EngineConfig config = Config();
  config.kv_cache_bytes = size_t{6} << 20;
  const std::unique_ptr<Engine> engine = MakeEngine(config);
  const Answer first = RunOne(*engine, Ask(2));
  for (uint64_t i = 0; i < 4; ++i) {
    Request filler = Ask(2);
    filler.prompt = RandomTokens(2300, 97, 50 + i);
    filler.keep_prefix = 2300;
    EXPECT_EQ(RunOne(*engine, std::move(filler)).reason, FinishReason::kLength);
  }
  const Answer again = RunOne(*engine, Ask(2));
  EXPECT_GT(again.stats.cached_tokens, 2000);
  EXPECT_TRUE(SameBits(again.token_logits, first.token_logits));
}

// What the cache drops for others is fetched from host memory.
TEST_F(KvTiers, HostMemoryKeepsWhatTheCacheDrops) {
  EngineConfig config = Config();
  config.kv_disk_dir.clear();
  config.kv_host_bytes = uint64_t{64} << 20;
  config.kv_cache_bytes = size_t{6} << 20;
  const std::unique_ptr<Engine> engine = MakeEngine(config);
  const Answer first = RunOne(*engine, Ask(2));
  for (uint64_t i = 0; engine->host_tier().stretches < 24; ++i) {
    Request filler = Ask(2);
    filler.prompt = RandomTokens(2300, 97, 50 + i);
    filler.keep_prefix = 2300;
    RunOne(*engine, std::move(filler));
  }
  EXPECT_EQ(engine->host_tier().loaded_tokens, 0);
  const Answer again = RunOne(*engine, Ask(2));
  EXPECT_EQ(again.stats.cached_tokens, 2432);
  EXPECT_EQ(engine->host_tier().loaded_tokens, 2432);
  EXPECT_TRUE(SameBits(again.token_logits, first.token_logits));
}

}  // namespace
}  // namespace lserve
