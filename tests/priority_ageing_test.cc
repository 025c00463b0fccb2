// Who waits gains on better priorities that come later: nobody waits without end. With a clock of
// the test's own.
#include <gtest/gtest.h>

#include "engine/engine_inputs.h"
#include "support/engine_runner.h"
#include "support/random_checkpoint.h"

namespace lserve {
namespace {

class PriorityAgeing : public testing::Test {
 protected:
  std::unique_ptr<Engine> Make(double ageing_seconds, int max_num_seqs) {
    EngineConfig config;
    config.model_dir = checkpoint_.dir();
    config.num_threads = 1;
    config.kv_cache_bytes = size_t{64} << 20;
    config.max_num_batched_tokens = 256;
    config.max_num_seqs = max_num_seqs;
    config.priority_ageing_seconds = ageing_seconds;
    EngineInputs inputs;
    inputs.seconds = [this] { return now_; };
    now_ = 1000;
    return Engine::Create(config, std::move(inputs)).value();
  }
  static Request Ask(int64_t length, int64_t max_tokens, int64_t priority) {
    Request request;
    request.prompt = RandomTokens(length, 97, 1);
    request.sampling.temperature = 0;
    request.max_tokens = max_tokens;
    request.ignore_eos = true;
    request.priority = priority;
    return request;
  }
  // A second passes with each step.
  std::vector<RequestEvent> Step(Engine& engine) {
    std::vector<RequestEvent> events = engine.Step().value();
    now_ += 1;
    return events;
  }
  // Every second comes a request of priority 0 that needs the only place for two; after how many
  // seconds one of `priority` has its first token, or -1.
  int SecondsUntilServed(double ageing_seconds, int64_t priority) {
    const std::unique_ptr<Engine> engine = Make(ageing_seconds, 1);
    EXPECT_TRUE(engine->Add(Ask(20, 2, 0)).ok());
    const RequestId low = engine->Add(Ask(20, 1, priority)).value();
    for (int second = 0; second < 60; ++second) {
      for (const RequestEvent& event : Step(*engine)) {
        if (event.id == low && event.token) return second;
      }
      EXPECT_TRUE(engine->Add(Ask(20, 2, 0)).ok());
    }
    return -1;
  }

  RandomCheckpoint checkpoint_{RandomModelShape()};
  double now_ = 0;
};

TEST_F(PriorityAgeing, BetterPrioritiesThatKeepComingDoNotStopAWorseOne) {
  EXPECT_EQ(SecondsUntilServed(0, 1), -1) << "without ageing it would wait for ever";
  // Those that come within ten seconds go before it, and each takes two.
  const int one = SecondsUntilServed(10, 1), two = SecondsUntilServed(10, 2);
  EXPECT_GE(one, 20);
  EXPECT_LE(one, 22);
  EXPECT_GE(two, 40);
  EXPECT_LE(two, 42);
  EXPECT_EQ(SecondsUntilServed(10, -1), 0) << "a better one does not wait at all";
}

TEST_F(PriorityAgeing, WhoHasWaitedGetsTheNextPlaceAndTakesNone) {
  const std::unique_ptr<Engine> engine = Make(10, 1);
  const RequestId runs = engine->Add(Ask(20, 30, 0)).value();
  const RequestId waits = engine->Add(Ask(20, 1, 5)).value();
  now_ += 100;
  RequestId newer = 0;
  std::vector<RequestId> order;
  for (int step = 0; engine->has_work(); ++step) {
    if (step == 3) newer = engine->Add(Ask(20, 1, 0)).value();
    for (const RequestEvent& event : Step(*engine)) {
      if (event.finished) order.push_back(event.id);
    }
  }
  EXPECT_EQ(order, (std::vector<RequestId>{runs, waits, newer}));
  EXPECT_EQ(engine->num_preemptions(), 0);
}

TEST_F(PriorityAgeing, WhoRunsLongIsNotTakenOutAnyMore) {
  const std::unique_ptr<Engine> engine = Make(10, 1);
  ASSERT_TRUE(engine->Add(Ask(20, 40, 1)).ok());
  for (int step = 0; engine->has_work(); ++step) {
    // Five seconds after it came: better, since the level is worth ten. And twenty seconds after.
    if (step == 5 || step == 20) {
      ASSERT_TRUE(engine->Add(Ask(20, 1, 0)).ok());
    }
    Step(*engine);
    EXPECT_EQ(engine->num_preemptions(), step < 5 ? 0 : 1);
  }
}

// In the step itself: a long prompt gets nothing beside better ones, until it has waited.
TEST_F(PriorityAgeing, APromptThatHasWaitedSharesTheStep) {
  for (const double ageing : {0.0, 10.0}) {
    SCOPED_TRACE(ageing);
    const std::unique_ptr<Engine> engine = Make(ageing, 8);
    const RequestId low = engine->Add(Ask(3000, 1, 1)).value();
    std::map<RequestId, int64_t> done;
    for (int step = 0; step < 24; ++step) {
      // Ten steps' work each, so that there is always one.
      if (step % 6 == 1) {
        ASSERT_TRUE(engine->Add(Ask(2560, 1, 0)).ok());
      }
      for (const RequestEvent& event : Step(*engine)) done[event.id] = event.prefill_done;
      if (step < 12) {
        EXPECT_EQ(done[low], 256) << "its first step, alone";
      }
    }
    EXPECT_EQ(done[low] > 600, ageing > 0) << done[low];
    // An even share of the last eleven steps, not what it did not get before.
    EXPECT_LT(done[low], 256 + 11 * 160);
    if (ageing == 0) {
      EXPECT_EQ(done[low], 256);
    }
  }
}

TEST_F(PriorityAgeing, BadValuesAreRefused) {
  EngineConfig config;
  config.model_dir = checkpoint_.dir();
  config.priority_ageing_seconds = -1;
  EXPECT_EQ(Engine::Create(config).status().code(), Code::kInvalidArgument);
}

}  // namespace
}  // namespace lserve
