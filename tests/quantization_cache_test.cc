// The cache of quantised weights, through the engine: a start from it gives the same bits as the
// start that made it; damaged, cut off, foreign or unwritable, it costs time and never an answer.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/mapped_file.h"
#include "support/engine_runner.h"
#include "support/random_checkpoint.h"

namespace lserve {
namespace {

class QuantizationCache : public testing::Test {
 protected:
  QuantizationCache() {
    config_.model_dir = checkpoint_.dir();
    config_.device = "cpu";
    config_.num_threads = 2;
    config_.kv_cache_bytes = size_t{64} << 20;
    config_.quantization = "int4";
    config_.quantization_cache_dir = checkpoint_.dir() + "/cache";
    expected_ = Run();
  }
  Answer Run() const {
    Request request;
    request.prompt = RandomTokens(70, 97, 1);
    request.sampling.temperature = 0;
    request.max_tokens = 3;
    request.ignore_eos = true;
    return RunOne(*MakeEngine(config_), std::move(request));
  }
  std::filesystem::path CacheFile() const {
    std::filesystem::path found;
    for (const auto& entry : std::filesystem::directory_iterator(config_.quantization_cache_dir)) {
      EXPECT_TRUE(found.empty()) << "more than one file: " << entry.path();
      found = entry.path();
    }
    return found;
  }
  std::vector<std::byte> Content() const {
    const MappedFile file = MappedFile::Open(CacheFile().string()).value();
    return {file.bytes().begin(), file.bytes().end()};
  }
  void ExpectSameAnswer() const {
    const Answer answer = Run();
    EXPECT_EQ(answer.tokens, expected_.tokens);
    EXPECT_TRUE(SameBits(answer.prompt_logits, expected_.prompt_logits));
  }

  RandomCheckpoint checkpoint_{RandomModelShape{}};
  EngineConfig config_;
  Answer expected_;
};

TEST_F(QuantizationCache, ASecondStartReadsWhatTheFirstWrote) {
  const auto written = std::filesystem::last_write_time(CacheFile());
  ExpectSameAnswer();
  EXPECT_EQ(std::filesystem::last_write_time(CacheFile()), written);
  config_.quantization_cache_dir.clear();
  ExpectSameAnswer();
}

TEST_F(QuantizationCache, DamageIsNoticedAndRepaired) {
  const std::vector<std::byte> good = Content();
  // The head, a weight, the table, and half of it all.
  for (const size_t at : {size_t{3}, size_t{70}, size_t{4096 + 100}, good.size() - 9, size_t{0}}) {
    std::vector<std::byte> bad = good;
    if (at == 0) {
      bad.resize(good.size() / 2);
    } else {
      bad[at] ^= std::byte{1};
    }
    ASSERT_TRUE(WriteFile(CacheFile().string(), bad).ok());
    ExpectSameAnswer();
    // Byte 70 is padding, which nobody reads.
    EXPECT_EQ(Content() == good, at != 70) << at;
  }
}

TEST_F(QuantizationCache, AChangedCheckpointReplacesItsCache) {
  const std::vector<std::byte> before = Content();
  const std::string file = checkpoint_.dir() + "/model.safetensors";
  std::fstream weights(file, std::ios::in | std::ios::out | std::ios::binary);
  weights.seekp(static_cast<std::streamoff>(std::filesystem::file_size(file) / 2));
  weights.write("\x11\x3c\x22\x3c\x33\x3c", 6);
  weights.close();
  config_.quantization_cache_dir.clear();
  expected_ = Run();
  config_.quantization_cache_dir = checkpoint_.dir() + "/cache";
  ExpectSameAnswer();
  EXPECT_NE(Content(), before);
}

TEST_F(QuantizationCache, ADirectoryThatCannotBeIsOnlyAWarning) {
  config_.quantization_cache_dir = checkpoint_.dir() + "/config.json";
  ExpectSameAnswer();
}

}  // namespace
}  // namespace lserve
