// Who runs when, and what happens when pages run out: priorities, fair shares of long prompts,
// preemption, and that none of it changes an answer.
#include <gtest/gtest.h>

#include "lserve/engine.h"
#include "support/engine_runner.h"
#include "support/random_checkpoint.h"

namespace lserve {
namespace {

class Scheduling : public testing::Test {
 protected:
  // Few and wide, so that pages are large (150 and 50 KB) and steps are short.
  static RandomModelShape Shape() {
    RandomModelShape shape;
    shape.head_dim = 192;
    shape.layers = 2;
    shape.max_positions = 4096;
    shape.kinds = {1, 1, 1, 0};
    return shape;
  }
  EngineConfig Config(AttentionMode mode, size_t kv_bytes) {
    EngineConfig config;
    config.model_dir = checkpoint_.dir();
    config.num_threads = 2;
    config.kv_cache_bytes = kv_bytes;
    config.max_num_batched_tokens = 256;
    config.attention.mode = mode;
    config.attention.token_budget = 256;
    config.attention.recent_tokens = 64;
    config.attention.selector_interval = 4;
    return config;
  }
  static Request Ask(int64_t length, uint64_t seed, int64_t max_tokens, int64_t priority = 0) {
    Request request;
    request.prompt = RandomTokens(length, 97, seed);
    request.sampling.temperature = 0;
    request.max_tokens = max_tokens;
    request.ignore_eos = true;
    request.priority = priority;
    return request;
  }
  // The steps at which requests got their first token, in order of Add().
  static std::vector<int> FirstTokenSteps(Engine& engine, std::vector<Request> requests) {
    std::map<RequestId, size_t> index;
    std::vector<int> first(requests.size(), -1);
    for (size_t i = 0; i < requests.size(); ++i)
      index[engine.Add(std::move(requests[i])).value()] = i;
    for (int step = 0; engine.has_work(); ++step) {
      for (const RequestEvent& event : engine.Step().value()) {
        int& at = first[index.at(event.id)];
        if (event.token && at < 0) at = step;
      }
    }
    return first;
  }

  RandomCheckpoint checkpoint_{Shape()};
};

// Sparse, so that page lists and the trimmed way have to come back as they were.
TEST_F(Scheduling, PreemptionChangesNoAnswer) {
  const auto requests = [&] {
    std::vector<Request> all;
    for (uint64_t i = 0; i < 4; ++i) {
      all.push_back(Ask(200 + 10 * static_cast<int64_t>(i), i, 800));
      all.back().keep_prefix = i % 2 == 0 ? 200 : 0;
      if (i == 3) {  // draws, and with penalties: its state must survive
        all.back().sampling.temperature = 1;
        all.back().sampling.frequency_penalty = 0.2;
        all.back().sampling.seed = 5;
      }
    }
    return all;
  };
  const std::unique_ptr<Engine> small = MakeEngine(Config(AttentionMode::kSparse, size_t{8} << 20));
  const std::vector<Answer> pressed = RunAll(*small, requests());
  EXPECT_GT(small->num_preemptions(), 0);
  EXPECT_LT(small->num_preemptions(), 8) << "work is thrown away again and again";
  const std::unique_ptr<Engine> large =
      MakeEngine(Config(AttentionMode::kSparse, size_t{256} << 20));
  const std::vector<Answer> undisturbed = RunAll(*large, requests());
  int64_t preemptions = 0;
  for (size_t i = 0; i < undisturbed.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(pressed[i].reason, FinishReason::kLength);
    EXPECT_EQ(pressed[i].tokens, undisturbed[i].tokens);
    EXPECT_TRUE(SameBits(pressed[i].token_logits, undisturbed[i].token_logits));
    EXPECT_TRUE(SameBits(pressed[i].prompt_logits, undisturbed[i].prompt_logits));
    EXPECT_EQ(pressed[i].stats.preemptions > 0, pressed[i].stats.recomputed_tokens > 0);
    preemptions += pressed[i].stats.preemptions;
  }
  EXPECT_EQ(large->num_preemptions(), 0);
  EXPECT_EQ(preemptions, small->num_preemptions());
  EXPECT_EQ(pressed[0].stats.preemptions, 0) << "the oldest is never taken out";
  small->DropPrefixes();
  EXPECT_EQ(small->kv_bytes_in_use(), 0u);
}

// More than fits, of all sizes and priorities, some cancelled: everything ends, in as many steps as
// one after the other would take at most, and every page comes back.
TEST_F(Scheduling, AFullCacheAlwaysMakesProgress) {
  const std::unique_ptr<Engine> engine =
      MakeEngine(Config(AttentionMode::kSparse, size_t{8} << 20));
  std::vector<RequestId> ids;
  int64_t most_steps = 0;
  for (uint64_t i = 0; i < 14; ++i) {
    const int64_t size = 50 + static_cast<int64_t>(i * 97 % 700);
    const int64_t answer = 30 + static_cast<int64_t>(i * 53 % 400);
    ids.push_back(engine->Add(Ask(size, i, answer, static_cast<int64_t>(i % 3) - 1)).value());
    most_steps += size / 128 + 1 + answer;
  }
  std::map<RequestId, FinishReason> ends;
  int64_t steps = 0;
  while (engine->has_work()) {
    ASSERT_LT(steps++, most_steps);
    if (steps == 60) engine->Cancel(ids[4]);
    if (steps == 90) engine->Cancel(ids[13]);
    for (const RequestEvent& event : engine->Step().value()) {
      if (event.finished) {
        EXPECT_TRUE(ends.emplace(event.id, *event.finished).second);
      }
    }
  }
  EXPECT_EQ(ends.size(), ids.size());
  EXPECT_EQ(engine->kv_bytes_in_use(), 0u);
}

TEST_F(Scheduling, LowerValuesComeFirst) {
  EngineConfig config = Config(AttentionMode::kSparse, size_t{64} << 20);
  config.max_num_seqs = 1;
  const std::unique_ptr<Engine> engine = MakeEngine(config);
  std::vector<Request> requests;
  for (const int64_t priority : {3, 0, 7, 0, -2})
    requests.push_back(Ask(300, static_cast<uint64_t>(requests.size()), 5, priority));
  const std::vector<int> first = FirstTokenSteps(*engine, std::move(requests));
  EXPECT_LT(first[4], first[1]);
  EXPECT_LT(first[1], first[3]) << "of equal ones the older first";
  EXPECT_LT(first[3], first[0]);
  EXPECT_LT(first[0], first[2]);
}

// Who comes later and is worth more takes the place of who runs, which then goes on where it was.
TEST_F(Scheduling, ABetterPriorityTakesAPlace) {
  EngineConfig config = Config(AttentionMode::kSparse, size_t{64} << 20);
  config.max_num_seqs = 1;
  const std::unique_ptr<Engine> engine = MakeEngine(config);
  const Answer alone = RunOne(*engine, Ask(300, 1, 40));
  const RequestId batch = engine->Add(Ask(300, 1, 40, 10)).value();
  std::vector<int32_t> tokens;
  bool chat_ended = false, batch_ended_after = false;
  RequestId chat = 0;
  for (int step = 0; engine->has_work(); ++step) {
    if (step == 15) chat = engine->Add(Ask(100, 2, 10, 0)).value();
    for (const RequestEvent& event : engine->Step().value()) {
      if (event.id == chat && event.finished) chat_ended = true;
      if (event.id != batch) continue;
      if (event.token) tokens.push_back(*event.token);
      EXPECT_EQ(event.prefill_done == 300, step >= 1) << "progress never goes back";
      if (event.finished) {
        batch_ended_after = chat_ended;
        EXPECT_EQ(event.stats.preemptions, 1);
        EXPECT_EQ(event.stats.completion_tokens, 40);
      }
    }
  }
  EXPECT_TRUE(batch_ended_after);
  EXPECT_EQ(tokens, alone.tokens);
  EXPECT_EQ(engine->num_preemptions(), 1);
}

TEST_F(Scheduling, LongPromptsShareEvenlyAndShortOnesOvertake) {
  const std::unique_ptr<Engine> engine =
      MakeEngine(Config(AttentionMode::kSparse, size_t{64} << 20));
  std::vector<Request> requests;
  for (uint64_t i = 0; i < 3; ++i) requests.push_back(Ask(2048, i, 1));
  requests.push_back(Ask(100, 9, 1));
  std::map<RequestId, int64_t> done;
  std::vector<RequestId> ids;
  for (Request& request : requests) ids.push_back(engine->Add(std::move(request)).value());
  for (int step = 0; step < 20; ++step) {
    for (const RequestEvent& event : engine->Step().value()) {
      done[event.id] = event.prefill_done;
      if (event.id == ids[3] && event.token) {
        EXPECT_EQ(step, 0);
      }
    }
    const auto [least, most] = std::minmax({done[ids[0]], done[ids[1]], done[ids[2]]});
    EXPECT_LE(most - least, 256) << "step " << step;
  }
  EXPECT_GT(done[ids[2]], 1200);
  while (engine->has_work()) ASSERT_TRUE(engine->Step().ok());
}

// A stream of short prompts does not keep a long one from its end.
TEST_F(Scheduling, ShortPromptsWithoutEndDoNotStopALongOne) {
  const std::unique_ptr<Engine> engine =
      MakeEngine(Config(AttentionMode::kSparse, size_t{64} << 20));
  const RequestId big = engine->Add(Ask(2048, 1, 1)).value();
  bool ended = false;
  int steps = 0;
  for (; !ended && steps < 40; ++steps) {
    for (uint64_t i = 0; i < 2; ++i) ASSERT_TRUE(engine->Add(Ask(200, 100 + i, 1)).ok());
    for (const RequestEvent& event : engine->Step().value())
      ended |= event.id == big && event.finished.has_value();
  }
  EXPECT_LE(steps, 17) << "half of every step is the least it gets";
}

}  // namespace
}  // namespace lserve
