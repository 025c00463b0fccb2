// The engine's own rules: what it accepts, how requests end, what it counts, that pages come back.
#include "lserve/engine.h"

#include <gtest/gtest.h>

#include <memory>

#include "engine/scheduler.h"
#include "support/draws_by_rule.h"
#include "support/engine_runner.h"
#include "support/random_checkpoint.h"

namespace lserve {
namespace {

class EngineTest : public testing::Test {
 protected:
  static RandomModelShape Shape() {
    RandomModelShape shape;
    shape.layers = 2;
    shape.kinds = {1, 0, 0, 1};
    shape.max_positions = 1000;
    return shape;
  }
  EngineConfig Config() {
    EngineConfig config;
    config.model_dir = checkpoint_.dir();
    config.num_threads = 2;
    config.kv_cache_bytes = size_t{64} << 20;
    config.attention.mode = AttentionMode::kSparse;
    config.attention.token_budget = 256;
    config.attention.selector_interval = 4;
    config.attention.recent_tokens = 64;
    return config;
  }
  Request Ask(int64_t length, int64_t max_tokens = 8) {
    Request request;
    request.prompt = RandomTokens(length, 97, static_cast<uint64_t>(length));
    request.sampling.temperature = 0;
    request.max_tokens = max_tokens;
    request.ignore_eos = true;
    return request;
  }
  std::string AddError(Engine& engine, Request request) {
    return engine.Add(std::move(request)).status().message();
  }

  RandomCheckpoint checkpoint_{Shape()};
};

// Decode steps over known tokens see what they see when the same tokens are drawn; nothing stops
// them early.
TEST_F(EngineTest, ForcedTokensAreComputedAsDrawnOnes) {
  const std::unique_ptr<Engine> engine = MakeEngine(Config());
  const Answer drawn = RunOne(*engine, Ask(400, 12));
  ASSERT_EQ(drawn.tokens.size(), 12u);
  Request request = Ask(400, 3);  // max_tokens does not count
  request.forced_tokens = drawn.tokens;
  request.ignore_eos = false;
  request.stop_token_ids = drawn.tokens;
  const Answer forced = RunOne(*engine, request);
  EXPECT_EQ(forced.reason, FinishReason::kLength);
  EXPECT_EQ(forced.tokens, drawn.tokens);
  EXPECT_TRUE(SameBits(forced.token_logits, drawn.token_logits));
  EXPECT_EQ(forced.stats.sparse_steps, 11);

  // Another first token changes every step after it, and is what the answer says.
  request.forced_tokens[0] = (drawn.tokens[0] + 1) % 97;
  const Answer other = RunOne(*engine, request);
  EXPECT_EQ(other.tokens, request.forced_tokens);
  EXPECT_FALSE(SameBits(other.token_logits, drawn.token_logits));

  request.forced_tokens[5] = 97;
  EXPECT_NE(AddError(*engine, request).find("forced token 97 at position 5"), std::string::npos);
  request = Ask(995);
  request.forced_tokens.assign(10, 1);
  EXPECT_NE(AddError(*engine, request).find("are 1005 tokens, expected at most 1000"),
            std::string::npos);
}

TEST_F(EngineTest, RefusesWhatItCannotServeAndSaysWhy) {
  const std::unique_ptr<Engine> engine = MakeEngine(Config());
  EXPECT_NE(AddError(*engine, Ask(0)).find("0 tokens"), std::string::npos);
  EXPECT_NE(AddError(*engine, Ask(1000)).find("expected fewer than 1000"), std::string::npos);
  Request beyond = Ask(10);
  beyond.prompt[7] = 97;
  EXPECT_NE(AddError(*engine, beyond).find("token 97 at position 7, expected 0 to 96"),
            std::string::npos);
  Request negative = Ask(10);
  negative.prompt[0] = -1;
  EXPECT_NE(AddError(*engine, negative).find("token -1"), std::string::npos);
  Request stop = Ask(10);
  stop.stop = {"x"};
  EXPECT_NE(AddError(*engine, stop).find("tokenizer"), std::string::npos);
  Request sampling = Ask(10);
  sampling.sampling.top_p = 2;
  EXPECT_NE(AddError(*engine, sampling).find("top_p is 2"), std::string::npos);
  EXPECT_FALSE(engine->has_work());
}

TEST_F(EngineTest, RefusesBadConfigurations) {
  const auto error = [&](auto change) {
    EngineConfig config = Config();
    change(config);
    return Engine::Create(config).status().message();
  };
  EXPECT_NE(error([](EngineConfig& c) { c.model_dir = "/no/such/dir"; }).find("/no/such/dir"),
            std::string::npos);
  EXPECT_NE(error([](EngineConfig& c) { c.device = "cuda"; }).find("cuda"), std::string::npos);
  EXPECT_NE(error([](EngineConfig& c) { c.device = "tpu"; }).find("tpu"), std::string::npos);
  EXPECT_NE(error([](EngineConfig& c) { c.cpu_isa = "sse9"; }).find("sse9"), std::string::npos);
  EXPECT_NE(error([](EngineConfig& c) {
              c.device = "cpu";
              c.kv_cache_dtype = "fp8";
            }).find("is for GPUs, this is the cpu backend, expected auto, bf16, int8 or int4"),
            std::string::npos);
  EXPECT_NE(error([](EngineConfig& c) { c.kv_cache_dtype = "f32"; }).find("int8, fp8 or int4"),
            std::string::npos);
  EXPECT_NE(error([](EngineConfig& c) { c.max_num_batched_tokens = -1; }).find("expected 0 (auto)"),
            std::string::npos);
  EXPECT_NE(error([](EngineConfig& c) { c.attention.token_budget = 1; }).find("token-budget"),
            std::string::npos);
}

TEST_F(EngineTest, ACacheThatIsTooSmallNamesTheLongestThatFits) {
  EngineConfig config = Config();
  config.kv_cache_bytes = size_t{10} << 20;
  config.attention.mode = AttentionMode::kDense;
  RandomModelShape shape = Shape();
  shape.max_positions = 1 << 20;
  const RandomCheckpoint large(shape);
  config.model_dir = large.dir();
  const std::unique_ptr<Engine> engine = MakeEngine(config);
  const std::string message = AddError(*engine, Ask(300'000));
  EXPECT_NE(message.find("KV cache"), std::string::npos) << message;
  const size_t at = message.find("at most ");
  ASSERT_NE(at, std::string::npos) << message;
  const int64_t longest = std::stoll(message.substr(at + 8));
  EXPECT_GT(longest, 1000);
  EXPECT_TRUE(engine->Add(Ask(longest - 8)).ok());
  EXPECT_FALSE(engine->Add(Ask(longest - 7)).ok());
}

TEST_F(EngineTest, EndsByLengthModelLengthEosAndStopToken) {
  const std::unique_ptr<Engine> engine = MakeEngine(Config());
  const Answer by_length = RunOne(*engine, Ask(50, 8));
  EXPECT_EQ(by_length.reason, FinishReason::kLength);
  EXPECT_EQ(by_length.tokens.size(), 8u);
  const Answer by_model = RunOne(*engine, Ask(995, 100));
  EXPECT_EQ(by_model.reason, FinishReason::kLength);
  EXPECT_EQ(by_model.tokens.size(), 5u);
  Request stops = Ask(50, 8);
  stops.stop_token_ids = {by_length.tokens[2]};
  const Answer by_token = RunOne(*engine, std::move(stops));
  EXPECT_EQ(by_token.reason, FinishReason::kStop);
  EXPECT_LE(by_token.tokens.size(), 3u);
  EXPECT_EQ(by_token.tokens.back(), by_length.tokens[2]);
}

TEST_F(EngineTest, CountersProveWhichPathRan) {
  const std::unique_ptr<Engine> engine = MakeEngine(Config());
  const Answer sparse = RunOne(*engine, Ask(700, 9));
  EXPECT_EQ(sparse.stats.prompt_tokens, 700);
  EXPECT_EQ(sparse.stats.completion_tokens, 9);
  EXPECT_EQ(sparse.stats.dense_steps, 0);
  EXPECT_EQ(sparse.stats.sparse_steps, 8);  // the first token comes from the prompt's last position
  EXPECT_EQ(sparse.stats.selections, 2);    // steps 0 and 4
  // 2 retrieval heads read at most 4 pages and one after a boundary, 2 streaming ones sink +
  // window.
  EXPECT_LE(sparse.stats.pages_visited, 2 * 5 + 2 * 4);
  EXPECT_GE(sparse.stats.pages_visited, 2 * 4 + 2 * 3);
  EXPECT_NEAR(sparse.stats.pages_present, 4 * 11.5, 2.1);
  EXPECT_LT(sparse.stats.prefill_tiles_visited, sparse.stats.prefill_tiles_present);
  // Tiles of 700 causal tokens: 1 + 2 + ... + 6 per head.
  EXPECT_EQ(sparse.stats.prefill_tiles_present, 4 * 21);

  Request ask = Ask(700, 9);
  ask.attention = AttentionSettings{.mode = AttentionMode::kDense};
  const Answer dense = RunOne(*engine, std::move(ask));
  EXPECT_EQ(dense.stats.dense_steps, 8);
  EXPECT_EQ(dense.stats.sparse_steps + dense.stats.selections, 0);
  EXPECT_EQ(dense.stats.pages_visited, dense.stats.pages_present);
  EXPECT_EQ(dense.stats.prefill_tiles_visited, dense.stats.prefill_tiles_present);
  // Dense requests trim nothing.
  EXPECT_GT(dense.stats.kv_bytes, sparse.stats.kv_bytes);
}

// A token is the same whether someone looks at the logits or not, alone or in a batch with others,
// and only those who look get them.
TEST_F(EngineTest, TokensDoNotDependOnWhoLooks) {
  const std::unique_ptr<Engine> engine = MakeEngine(Config());
  std::vector<Request> requests;
  for (const SamplingParams& sampling :
       {SamplingParams{.seed = 1}, SamplingParams{.temperature = 0.8, .top_p = 0.95, .seed = 2},
        SamplingParams{.temperature = 0}, SamplingParams{.repetition_penalty = 1.2, .seed = 3},
        SamplingParams{.temperature = 2, .top_k = 20, .min_p = 0.02, .seed = 4}}) {
    Request request = Ask(100 + 10 * static_cast<int64_t>(requests.size()), 20);
    request.sampling = sampling;
    requests.push_back(request);
  }
  // RunAll asks for the logits of every token.
  const std::vector<Answer> seen = RunAll(*engine, requests);
  const std::vector<Answer> unseen = RunUnseen(*engine, requests);
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(unseen[i].tokens, seen[i].tokens) << "request " << i;
    EXPECT_EQ(seen[i].stats.logit_copies, 20) << "request " << i;
    EXPECT_EQ(unseen[i].stats.logit_copies, 0) << "request " << i;
  }
}

TEST_F(EngineTest, PenaltiesAndMasksActWhereTheLogitsAre) {
  for (const char* device : {"cpu", "reference"}) {
    SCOPED_TRACE(device);
    EngineConfig config = Config();
    config.device = device;
    ExpectDrawsByRule(*MakeEngine(config), Ask(60, 24));
  }
}

TEST_F(EngineTest, AConstraintsErrorEndsItsRequestOnly) {
  const std::unique_ptr<Engine> engine = MakeEngine(Config());
  const auto constraint = std::make_shared<EveryThird>();
  constraint->fail_at = 3;
  Request fails = Ask(60, 8), other = Ask(70, 8);
  fails.ignore_eos = false;
  fails.constraint = constraint;
  const std::vector<Answer> answers = RunUnseen(*engine, {fails, other});
  EXPECT_EQ(answers[0].reason, FinishReason::kError);
  EXPECT_EQ(answers[0].error.message(), "nothing may come next");
  EXPECT_EQ(answers[0].tokens.size(), 3u);
  EXPECT_EQ(answers[1].reason, FinishReason::kLength);
  EXPECT_EQ(answers[1].tokens, RunOne(*engine, other).tokens);
}

TEST_F(EngineTest, CancelFreesPagesInQueueInPrefillAndInDecode) {
  EngineConfig config = Config();
  config.max_num_seqs = 1;
  config.max_num_batched_tokens = 256;
  const std::unique_ptr<Engine> engine = MakeEngine(config);
  for (const int steps : {0, 1, 5}) {
    const RequestId running = engine->Add(Ask(600, 50)).value();
    const RequestId queued = engine->Add(Ask(600, 50)).value();
    for (int i = 0; i < steps; ++i) ASSERT_TRUE(engine->Step().ok());
    engine->Cancel(running);
    engine->Cancel(queued);
    const std::vector<RequestEvent> events = engine->Step().value();
    ASSERT_EQ(events.size(), 2u);
    for (const RequestEvent& event : events) EXPECT_EQ(event.finished, FinishReason::kCancelled);
    EXPECT_FALSE(engine->has_work());
    EXPECT_EQ(engine->kv_bytes_in_use(), 0u);
  }
}

TEST_F(EngineTest, MoreRequestsThanTheCacheHoldsWaitTheirTurn) {
  EngineConfig config = Config();
  config.attention.mode = AttentionMode::kDense;
  config.kv_cache_bytes = size_t{9} << 20;
  RandomModelShape shape = Shape();
  shape.head_dim = 64;
  shape.layers = 6;
  shape.kinds.clear();
  const RandomCheckpoint checkpoint(shape);
  config.model_dir = checkpoint.dir();
  const std::unique_ptr<Engine> engine = MakeEngine(config);
  std::vector<Request> requests;
  for (int i = 0; i < 8; ++i) requests.push_back(Ask(900, 4));
  for (const Answer& answer : RunAll(*engine, std::move(requests))) {
    EXPECT_EQ(answer.reason, FinishReason::kLength) << answer.error.message();
  }
  EXPECT_EQ(engine->kv_bytes_in_use(), 0u);
}

TEST_F(EngineTest, AnErrorOfTheCallbackEndsThatRequestOnly) {
  const std::unique_ptr<Engine> engine = MakeEngine(Config());
  Request bad = Ask(50);
  bad.on_prompt_logits = [](int64_t, const ConstMatrix&) {
    return Status(Code::kIoError, "disk full");
  };
  const RequestId bad_id = engine->Add(std::move(bad)).value();
  const RequestId good_id = engine->Add(Ask(50)).value();
  std::map<RequestId, FinishReason> ends;
  while (engine->has_work()) {
    for (const RequestEvent& event : engine->Step().value()) {
      if (event.finished.has_value()) ends[event.id] = *event.finished;
      if (event.id == bad_id) {
        EXPECT_EQ(event.error.message(), "disk full");
      }
    }
  }
  EXPECT_EQ(ends[bad_id], FinishReason::kError);
  EXPECT_EQ(ends[good_id], FinishReason::kLength);
}

TEST(WorstCase, NeverBelowWhatTrimmingKeeps) {
  AttentionSettings s;
  s.mode = AttentionMode::kAuto;
  s.min_context = 1000;
  s.recent_tokens = 100;
  for (const int chunk : {136, 512}) {
    for (int64_t total = 1; total < 5000; total += 97) {
      const int64_t worst = WorstCasePages(s, total, chunk).pages[Index(Way::kStreaming)];
      for (int64_t done = 0; done < total; done += chunk) {
        const int64_t end = std::min<int64_t>(total, done + chunk);
        const int64_t keep = StreamingKeepFrom(s, done, true);
        const int64_t sink = keep > 0 ? std::min(NumPages(StreamingSinkEnd(s)), NumPages(end)) : 0;
        const int64_t held = NumPages(end) - std::max<int64_t>(keep / kPageTokens, sink) + sink;
        ASSERT_LE(held, worst) << "total " << total << " at " << done;
      }
    }
  }
}

}  // namespace
}  // namespace lserve
