// Prefixes on a disk that takes its time, fails, or hangs: who does not need it goes on, who does
// starts from what was read, or computes. The disk is as slow as the test says.
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <new>
#include <thread>

#include "engine/engine_inputs.h"
#include "engine/stretch_loader.h"
#include "support/engine_runner.h"
#include "support/random_checkpoint.h"

namespace lserve {
namespace {

// When the disk answers, and how.
class Gate {
 public:
  void Open() {
    const std::lock_guard lock(mutex_);
    is_open_ = true;
    opened_.notify_all();
  }
  // A read is there; waits until the gate is open.
  void Pass() {
    std::unique_lock lock(mutex_);
    ++reads_;
    opened_.wait(lock, [&] { return is_open_; });
    if (fails_) throw std::bad_alloc();
  }
  void Fail() { fails_ = true; }
  int reads() const {
    const std::lock_guard lock(mutex_);
    return reads_;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable opened_;
  bool is_open_ = false;
  std::atomic<bool> fails_ = false;
  int reads_ = 0;
};

class GatedTier final : public PrefixTier {
 public:
  GatedTier(std::unique_ptr<PrefixTier> inner, Gate* gate)
      : inner_(std::move(inner)), gate_(gate) {}
  bool Has(std::string_view family, std::span<const int32_t> tokens) const override {
    return inner_->Has(family, tokens);
  }
  void Save(std::shared_ptr<const Stretch> stretch) override { inner_->Save(std::move(stretch)); }
  std::string Find(std::string_view family,
                   std::span<const int32_t> prompt,
                   int64_t first_token,
                   int64_t at_least) override {
    return inner_->Find(family, prompt, first_token, at_least);
  }
  std::shared_ptr<const Stretch> Load(std::string_view family,
                                      std::span<const int32_t> prompt,
                                      int64_t first_token,
                                      int64_t at_least) override {
    gate_->Pass();
    return inner_->Load(family, prompt, first_token, at_least);
  }
  void Clear() override { inner_->Clear(); }
  KvTierStats stats() const override { return inner_->stats(); }

 private:
  std::unique_ptr<PrefixTier> inner_;
  Gate* gate_;
};

class SlowDisk : public testing::Test {
 protected:
  // An engine has computed Document(0), which is on disk now.
  SlowDisk() {
    right_ = RunOne(*Make(false), Document(0));
    engine_ = Make(true);
    EXPECT_EQ(engine_->disk_tier().stretches, 2);
  }
  ~SlowDisk() override { gate_.Open(); }

  std::unique_ptr<Engine> Make(bool gated) {
    EngineConfig config;
    config.model_dir = checkpoint_.dir();
    config.device = "cpu";
    config.num_threads = 1;
    config.kv_cache_bytes = size_t{64} << 20;
    config.kv_disk_dir = checkpoint_.dir() + "/tier";
    config.attention.mode = AttentionMode::kSparse;
    config.attention.token_budget = 256;
    config.attention.recent_tokens = 64;
    config.attention.prefill_min_position = 512;
    EngineInputs inputs;
    inputs.seconds = [this] { return now_.load(); };
    if (gated) {
      inputs.wrap_disk_tier = [this](std::unique_ptr<PrefixTier> inner) {
        return std::make_unique<GatedTier>(std::move(inner), &gate_);
      };
    }
    return Engine::Create(config, std::move(inputs)).value();
  }
  static RandomModelShape Shape() {
    RandomModelShape shape;
    shape.layers = 2;
    shape.kinds = {0, 1, 1, 0};
    return shape;
  }
  static Request Ask(std::vector<int32_t> prompt, int64_t max_tokens) {
    Request request;
    request.prompt = std::move(prompt);
    request.sampling.temperature = 0;
    request.max_tokens = max_tokens;
    request.ignore_eos = true;
    return request;
  }
  // 2500 tokens and a question.
  static Request Document(uint64_t question) {
    std::vector<int32_t> prompt = RandomTokens(2500, 97, 1);
    const std::vector<int32_t> more = RandomTokens(40, 97, 100 + question);
    prompt.insert(prompt.end(), more.begin(), more.end());
    const int64_t size = static_cast<int64_t>(prompt.size());
    Request request = Ask(std::move(prompt), 4);
    request.keep_prefix = size;
    return request;
  }
  // Steps until nothing is left; the tokens of each request.
  std::map<RequestId, std::vector<int32_t>> RunToTheEnd() {
    std::map<RequestId, std::vector<int32_t>> tokens;
    while (engine_->has_work()) {
      for (const RequestEvent& event : engine_->Step().value()) {
        if (event.token) tokens[event.id].push_back(*event.token);
        if (event.finished) stats_[event.id] = event.stats;
      }
    }
    return tokens;
  }
  void ExpectNoPageIsLost() {
    engine_->DropPrefixes();
    EXPECT_EQ(engine_->kv_bytes_in_use(), 0u);
  }

  RandomCheckpoint checkpoint_{Shape()};
  Gate gate_;
  std::atomic<double> now_ = 100;
  std::unique_ptr<Engine> engine_;
  Answer right_;
  std::map<RequestId, RequestStats> stats_;
};

TEST_F(SlowDisk, OthersAreAnsweredMeanwhile) {
  const RequestId document = engine_->Add(Document(0)).value();
  const RequestId other = engine_->Add(Ask(RandomTokens(300, 97, 9), 20)).value();
  bool ended = false;
  for (int step = 0; !ended; ++step) {
    ASSERT_LT(step, 40) << "a token in each step";
    for (const RequestEvent& event : engine_->Step().value()) {
      EXPECT_EQ(event.id, other);
      ended |= event.finished.has_value();
    }
  }
  while (gate_.reads() == 0) std::this_thread::yield();
  // With nothing else to do a step gives up soon, so that a cancellation would be seen.
  EXPECT_TRUE(engine_->Step().value().empty());
  gate_.Open();
  EXPECT_EQ(RunToTheEnd()[document], right_.tokens);
  EXPECT_EQ(stats_[document].cached_tokens, 2432);
  EXPECT_EQ(engine_->disk_tier().slow, 0);
  ExpectNoPageIsLost();
}

TEST_F(SlowDisk, WhoLeavesWhileItsPrefixIsReadLeavesNothing) {
  for (const bool opens_first : {false, true}) {
    const RequestId document = engine_->Add(Document(0)).value();
    ASSERT_TRUE(engine_->Step().value().empty());
    while (gate_.reads() == 0) std::this_thread::yield();
    if (opens_first) gate_.Open();
    engine_->Cancel(document);
    const std::vector<RequestEvent> events = engine_->Step().value();
    ASSERT_EQ(events.size(), 1u);
    EXPECT_EQ(events[0].finished, FinishReason::kCancelled);
    EXPECT_FALSE(engine_->has_work());
    EXPECT_EQ(engine_->kv_bytes_in_use(), 0u);
  }
  EXPECT_EQ(RunOne(*engine_, Document(0)).tokens, right_.tokens);
  ExpectNoPageIsLost();
}

TEST_F(SlowDisk, AReadThatFailsIsComputed) {
  gate_.Fail();
  gate_.Open();
  const Answer answer = RunOne(*engine_, Document(0));
  EXPECT_EQ(answer.stats.cached_tokens, 0);
  EXPECT_TRUE(SameBits(answer.token_logits, right_.token_logits));
  ExpectNoPageIsLost();
}

// Damage is found while others run, and counted.
TEST_F(SlowDisk, DamageIsComputed) {
  for (const auto& file :
       std::filesystem::recursive_directory_iterator(checkpoint_.dir() + "/tier")) {
    if (!file.is_regular_file()) continue;
    std::fstream bytes(file.path(), std::ios::in | std::ios::out | std::ios::binary);
    bytes.seekp(static_cast<std::streamoff>(file.file_size()) - 100).put('x');
  }
  const RequestId document = engine_->Add(Document(0)).value();
  ASSERT_TRUE(engine_->Step().value().empty());
  gate_.Open();
  EXPECT_EQ(RunToTheEnd()[document], right_.tokens);
  EXPECT_EQ(stats_[document].cached_tokens, 0);
  EXPECT_GT(engine_->disk_tier().refused, 0);
  ExpectNoPageIsLost();
}

TEST_F(SlowDisk, AHangingDiskIsNotWaitedFor) {
  const RequestId first = engine_->Add(Document(0)).value();
  ASSERT_TRUE(engine_->Step().value().empty());
  while (gate_.reads() == 0) std::this_thread::yield();
  now_ = now_ + StretchLoader::kMostSeconds + 1;
  EXPECT_EQ(RunToTheEnd()[first], right_.tokens);
  EXPECT_EQ(stats_[first].cached_tokens, 0);
  EXPECT_EQ(engine_->disk_tier().slow, 1);
  gate_.Open();
  ExpectNoPageIsLost();
}

// More documents' questions than are read at a time; the document itself is read once.
TEST_F(SlowDisk, ManyWhoWantOneDocumentReadItOnce) {
  std::vector<RequestId> ids;
  for (uint64_t i = 0; i < 2 * StretchLoader::kMostLoads; ++i)
    ids.push_back(engine_->Add(Document(i)).value());
  ASSERT_TRUE(engine_->Step().value().empty());
  gate_.Open();
  EXPECT_EQ(RunToTheEnd()[ids[0]], right_.tokens);
  for (const RequestId id : ids) EXPECT_EQ(stats_[id].cached_tokens, 2432) << id;
  EXPECT_EQ(gate_.reads(), 2) << "it has two stretches";
  ExpectNoPageIsLost();
}

// What is being read when the cache is emptied does not fill it again.
TEST_F(SlowDisk, AnEmptiedCacheStaysEmpty) {
  const RequestId document = engine_->Add(Document(0)).value();
  ASSERT_TRUE(engine_->Step().value().empty());
  while (gate_.reads() == 0) std::this_thread::yield();
  engine_->DropPrefixes();
  gate_.Open();
  EXPECT_EQ(RunToTheEnd()[document], right_.tokens);
  EXPECT_EQ(stats_[document].cached_tokens, 0);
}

}  // namespace
}  // namespace lserve
