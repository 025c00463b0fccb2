// Memory that runs out at every place where a step asks a backend for some: nothing is lost, nobody
// else notices, the engine goes on. What the system's allocator does is in bad_alloc_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/engine_inputs.h"
#include "support/engine_runner.h"
#include "support/faulty_backend.h"
#include "support/random_checkpoint.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;

// An engine whose device can run out of memory, and what should come of it.
class Pressed {
 public:
  // `head_dim` 192 makes pages large, so that a few prompts take several granules.
  explicit Pressed(int64_t head_dim = 16) : checkpoint_(Shape(head_dim)) {
    EngineConfig config;
    config.model_dir = checkpoint_.dir();
    config.device = "cpu";
    config.num_threads = 1;
    config.kv_cache_bytes = size_t{64} << 20;
    config.max_num_batched_tokens = 512;
    config.attention.mode = AttentionMode::kSparse;
    config.attention.token_budget = 256;
    config.attention.recent_tokens = 64;
    config.attention.selector_interval = 4;
    config.attention.prefill_min_position = 256;
    EngineInputs inputs;
    inputs.wrap_backend = [this](std::unique_ptr<Backend> inner) -> std::unique_ptr<Backend> {
      return std::make_unique<FaultyBackend>(std::move(inner), &faults);
    };
    engine_ = Engine::Create(config, std::move(inputs)).value();
  }
  // A prompt with chosen tiles and a prefix to keep, one that draws, and a dense one.
  static std::vector<Request> Three() {
    std::vector<Request> all = {};
    all.push_back(Ask(530, 1, 7));
    all.back().keep_prefix = 530;
    all.push_back(Ask(330, 2, 9));
    all.back().sampling.temperature = 1;
    all.back().sampling.seed = 3;
    all.push_back(Ask(150, 3, 5));
    all.back().attention = AttentionSettings{.mode = AttentionMode::kDense};
    return all;
  }
  // As RunAll(), but asks for no logits of the prompt.
  std::vector<Answer> Run(std::vector<Request> requests) {
    std::vector<Answer> answers(requests.size());
    std::map<RequestId, size_t> index;
    for (size_t i = 0; i < requests.size(); ++i) {
      // Who draws shows none, so that its token is drawn where that is quickest.
      if (requests[i].sampling.temperature == 0)
        requests[i].on_token_logits = [&answer = answers[i]](std::span<const float> logits) {
          answer.token_logits.insert(answer.token_logits.end(), logits.begin(), logits.end());
        };
      index[engine_->Add(std::move(requests[i])).value()] = i;
    }
    for (int step = 0; engine_->has_work(); ++step) {
      EXPECT_LT(step, 500) << "no progress";
      const Result<std::vector<RequestEvent>> events = engine_->Step();
      EXPECT_TRUE(events.ok()) << events.status().message();
      if (!events.ok() || step >= 500) break;
      for (const RequestEvent& event : events.value()) {
        Answer& answer = answers[index.at(event.id)];
        if (event.token) answer.tokens.push_back(*event.token);
        if (!event.finished) continue;
        EXPECT_TRUE(answer.stats.prompt_tokens == 0) << "it ends twice";
        answer.reason = *event.finished;
        answer.error = event.error;
        answer.stats = event.stats;
      }
    }
    return answers;
  }
  // The same answers, or for some an error that says why; how many of these.
  static int NumFailed(const std::vector<Answer>& answers, const std::vector<Answer>& right) {
    int failed = 0;
    for (size_t i = 0; i < right.size(); ++i) {
      if (answers[i].reason == FinishReason::kError) {
        ++failed;
        EXPECT_EQ(answers[i].error.code(), Code::kOutOfMemory);
        EXPECT_THAT(answers[i].error.message(), HasSubstr("memory"));
        continue;
      }
      EXPECT_EQ(answers[i].reason, FinishReason::kLength);
      EXPECT_EQ(answers[i].tokens, right[i].tokens);
      EXPECT_TRUE(SameBits(answers[i].token_logits, right[i].token_logits));
    }
    return failed;
  }
  void ExpectNoPageIsLost() {
    engine_->DropPrefixes();
    EXPECT_EQ(engine_->kv_bytes_in_use(), 0u);
  }

  Faults faults;

 private:
  static RandomModelShape Shape(int64_t head_dim) {
    RandomModelShape shape;
    shape.head_dim = head_dim;
    shape.layers = head_dim > 16 ? 2 : 1;
    shape.kinds = {1, 0};
    if (shape.layers == 2) shape.kinds = {1, 1, 1, 0};
    return shape;
  }
  static Request Ask(int64_t length, uint64_t seed, int64_t max_tokens) {
    Request request;
    request.prompt = RandomTokens(length, 97, seed);
    request.sampling.temperature = 0;
    request.max_tokens = max_tokens;
    request.ignore_eos = true;
    return request;
  }

  RandomCheckpoint checkpoint_;
  std::unique_ptr<Engine> engine_;
};

// The step is run again without whoever had its part: in halves, and bit for bit the same.
TEST(MemoryFaults, AFailureThatPassesCostsNobodyAnything) {
  Pressed engine;
  for (Fault* fault : {&engine.faults.ops, &engine.faults.allocations}) {
    fault->Disarm();
    const std::vector<Answer> right = engine.Run(Pressed::Three());
    const int64_t calls = fault->calls();
    ASSERT_GT(calls, 0);
    ASSERT_EQ(Pressed::NumFailed(right, right), 0);
    EXPECT_GT(right[0].stats.tile_selections, 0);
    EXPECT_GT(right[0].stats.selections, 1);
    engine.ExpectNoPageIsLost();
    for (int64_t call = 1; call <= calls; ++call) {
      SCOPED_TRACE(call);
      fault->Arm(call, 1);
      EXPECT_EQ(Pressed::NumFailed(engine.Run(Pressed::Three()), right), 0);
      engine.ExpectNoPageIsLost();
      if (testing::Test::HasFailure()) return;
    }
    fault->Disarm();
  }
}

TEST(MemoryFaults, AFailureThatLastsEndsRequestsAndNotTheEngine) {
  Pressed engine;
  engine.faults.ops.Disarm();
  const std::vector<Answer> right = engine.Run(Pressed::Three());
  const int64_t calls = engine.faults.ops.calls();
  engine.ExpectNoPageIsLost();
  int most = 0, least = 3;
  for (int64_t call = 1; call <= calls; call += 5) {
    SCOPED_TRACE(call);
    engine.faults.ops.Arm(call, 4);
    const int failed = Pressed::NumFailed(engine.Run(Pressed::Three()), right);
    most = std::max(most, failed);
    least = std::min(least, failed);
    engine.ExpectNoPageIsLost();
    engine.faults.ops.Disarm();
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_LT(least, 3);
  EXPECT_GT(most, 0);
  EXPECT_EQ(Pressed::NumFailed(engine.Run(Pressed::Three()), right), 0);
}

// Page lists need memory of their own; who reads everything needs none.
TEST(MemoryFaults, WhoNeedsWhatThereIsNotFailsAlone) {
  Pressed engine;
  engine.faults.allocations.Arm(1, Fault::kForEver);
  const std::vector<Answer> answers = engine.Run(Pressed::Three());
  EXPECT_EQ(answers[0].reason, FinishReason::kError);
  EXPECT_EQ(answers[1].reason, FinishReason::kError);
  EXPECT_EQ(answers[2].reason, FinishReason::kLength);
  EXPECT_THAT(answers[0].error.message(), HasSubstr("no memory"));
  engine.ExpectNoPageIsLost();
  engine.faults.allocations.Disarm();
  EXPECT_EQ(Pressed::NumFailed(answers, engine.Run(Pressed::Three())), 2);
}

// From some granule on the device has no memory for the cache, whatever its budget says: requests
// wait for one another's pages, and only who does not fit alone is told so.
TEST(MemoryFaults, ADeviceWithLessThanItsBudgetServesWhatFits) {
  Pressed whole(192);
  whole.faults.pages.Disarm();
  const std::vector<Answer> right = whole.Run(Pressed::Three());
  const int64_t granules = whole.faults.pages.calls();
  ASSERT_GT(granules, 2);
  whole.ExpectNoPageIsLost();
  int before = 3;
  for (int64_t missing = 1; missing <= granules; ++missing) {
    SCOPED_TRACE(missing);
    Pressed engine(192);
    engine.faults.pages.Arm(missing, Fault::kForEver);
    const int failed = Pressed::NumFailed(engine.Run(Pressed::Three()), right);
    EXPECT_LE(failed, before) << "more memory, fewer answers";
    before = failed;
    EXPECT_EQ(failed == 3, missing <= 2) << "each way needs one";
    engine.ExpectNoPageIsLost();
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_EQ(before, 0) << "without the last granule they have to wait, no more";
}

}  // namespace
}  // namespace lserve
