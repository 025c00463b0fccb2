// The whole engine on a GPU: what the parity suites can not see, since they judge one op at a time.
#include <gtest/gtest.h>

#include <cmath>

#include "base/clock.h"
#include "base/strings.h"
#include "support/draws_by_rule.h"
#include "support/engine_runner.h"
#include "support/random_checkpoint.h"

namespace lserve {
namespace {

constexpr int64_t kVocab = 97;

class CudaEngine : public testing::Test {
 protected:
  void SetUp() override {
    const Status made = Engine::Create(Config()).status();
    if (made.code() == Code::kUnsupported || made.code() == Code::kNotFound) {
      GTEST_SKIP() << "no GPU: " << made.message();
    }
    ASSERT_TRUE(made.ok()) << made.message();
  }

  static RandomModelShape Shape(int64_t head_dim = 32) {
    RandomModelShape shape;
    shape.hidden = 128;
    shape.intermediate = 192;
    shape.head_dim = head_dim;
    shape.kinds = {0, 1, 1, 1, 1, 0};
    return shape;
  }
  EngineConfig Config() const {
    EngineConfig config;
    config.model_dir = checkpoint_.dir();
    config.device = "cuda";
    config.kv_cache_bytes = size_t{64} << 20;
    config.attention.mode = AttentionMode::kSparse;
    config.attention.token_budget = 512;
    config.attention.recent_tokens = 128;
    config.quantization_cache_dir = "";
    return config;
  }
  // Prompts of several lengths, with tokens to follow where answers are to be compared.
  static std::vector<Request> Requests(bool forced) {
    std::vector<Request> requests;
    for (const int64_t length : {40, 900, 2300}) {
      Request request;
      request.prompt = RandomTokens(length, kVocab, static_cast<uint64_t>(length));
      request.sampling.temperature = 0;
      request.max_tokens = 70;  // into another page, and through graphs
      request.ignore_eos = true;
      if (forced) request.forced_tokens = RandomTokens(70, kVocab, 5);
      requests.push_back(std::move(request));
    }
    return requests;
  }

  // Prompts whole and in chunks, alone and in company.
  static void ExpectAnswersToDependOnTheRequestAlone(EngineConfig config) {
    for (const double threshold : {0.0, 0.8}) {
      SCOPED_TRACE(StrCat("prefill threshold ", threshold));
      config.batch_invariant = true;
      config.attention.prefill_threshold = threshold;
      config.attention.prefill_min_position = 0;
      const std::unique_ptr<Engine> whole = MakeEngine(config);
      const std::vector<Answer> together = RunAll(*whole, Requests(false));
      EngineConfig in_chunks = config;
      in_chunks.max_num_batched_tokens = 136;
      const std::unique_ptr<Engine> chunked = MakeEngine(in_chunks);
      std::vector<Request> alone = Requests(false);
      for (size_t i = 0; i < alone.size(); ++i) {
        const Answer answer = RunOne(*chunked, std::move(alone[i]));
        EXPECT_EQ(answer.stats.tile_selections > 0, threshold > 0 && i > 0);
        EXPECT_EQ(answer.tokens.size(), 70u) << answer.error.message();
        EXPECT_EQ(answer.tokens, together[i].tokens) << "request " << i;
        EXPECT_TRUE(SameBits(answer.prompt_logits, together[i].prompt_logits)) << "request " << i;
        EXPECT_TRUE(SameBits(answer.token_logits, together[i].token_logits)) << "request " << i;
      }
    }
  }

  RandomCheckpoint checkpoint_{Shape()};
};

// sqrt(mean (a - b)^2 / mean b^2)
double RelativeError(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double error = 0, size = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    error += std::pow(double{a[i]} - double{b[i]}, 2);
    size += std::pow(double{b[i]}, 2);
  }
  return std::sqrt(error / size);
}

TEST_F(CudaEngine, GraphsChangeNoBit) {
  for (const char* quantization : {"none", "int8", "int4"}) {
    for (const char* kv_dtype : {"bf16", "int8", "fp8"}) {
      SCOPED_TRACE(StrCat("weights ", quantization, ", KV ", kv_dtype));
      EngineConfig config = Config();
      config.quantization = quantization;
      config.kv_cache_dtype = kv_dtype;
      const std::vector<Answer> with = RunAll(*MakeEngine(config), Requests(false));
      config.cuda_graphs = "off";
      const std::vector<Answer> without = RunAll(*MakeEngine(config), Requests(false));
      for (size_t i = 0; i < with.size(); ++i) {
        EXPECT_EQ(with[i].tokens, without[i].tokens) << "request " << i;
        EXPECT_EQ(with[i].tokens.size(), 70u) << with[i].error.message();
        EXPECT_TRUE(SameBits(with[i].token_logits, without[i].token_logits)) << "request " << i;
      }
    }
  }
}

// Over given tokens, so that one near tie does not send the answers apart, and for the same reason
// with a budget that keeps every page: which ones are chosen is the parity suites'. Activations are
// rounded to bf16 (2^-8) at some ten places a layer on either side; a few percent would be a bug.
TEST_F(CudaEngine, LogitsAreNearTheCpus) {
  for (const AttentionMode mode : {AttentionMode::kDense, AttentionMode::kSparse}) {
    for (const char* quantization : {"none", "int8", "int4"}) {
      SCOPED_TRACE(StrCat(mode == AttentionMode::kDense ? "dense" : "sparse", ", ", quantization));
      EngineConfig config = Config();
      config.attention.mode = mode;
      config.attention.token_budget = 4096;
      config.quantization = quantization;
      const std::vector<Answer> gpu = RunAll(*MakeEngine(config), Requests(true));
      config.device = "cpu";
      const std::vector<Answer> cpu = RunAll(*MakeEngine(config), Requests(true));
      for (size_t i = 0; i < gpu.size(); ++i) {
        ASSERT_EQ(gpu[i].token_logits.size(), size_t{70} * kVocab) << gpu[i].error.message();
        EXPECT_LT(RelativeError(gpu[i].token_logits, cpu[i].token_logits), 0.02) << "request " << i;
      }
    }
  }
}

// How far fp8 pages move the logits is the format's, not the device's: as far on the reference. The
// codes differ only where K or V lie within float rounding of a tie.
TEST_F(CudaEngine, Fp8PagesCostWhatTheyCostTheReference) {
  const auto loss = [&](const char* device) {
    EngineConfig config = Config();
    config.device = device;
    config.attention.mode = AttentionMode::kDense;
    std::vector<Request> requests = Requests(true);
    requests.resize(1);
    const std::vector<Answer> exact = RunAll(*MakeEngine(config), requests);
    config.kv_cache_dtype = "fp8";
    const std::vector<Answer> rounded = RunAll(*MakeEngine(config), requests);
    return RelativeError(rounded[0].token_logits, exact[0].token_logits);
  };
  const double gpu = loss("cuda"), reference = loss("reference");
  EXPECT_GT(reference, 0);
  EXPECT_NEAR(gpu / reference, 1, 0.25);
}

// Rows of a product come 1 to 8192 at a time, and tile lists are chosen for one tile or for many.
// As engine_exactness_test.cc asks of the CPU.
TEST_F(CudaEngine, BatchInvariantAnswersDependOnTheRequestAlone) {
  for (const char* quantization : {"none", "int8", "int4"}) {
    SCOPED_TRACE(StrCat("weights ", quantization));
    EngineConfig config = Config();
    config.quantization = quantization;
    ExpectAnswersToDependOnTheRequestAlone(config);
  }
}

// With head_dim 64 Hopper's prefill kernel runs, over quantised pages as over others.
TEST_F(CudaEngine, BatchInvariantAnswersOverPagesOfEveryType) {
  const RandomCheckpoint checkpoint(Shape(64));
  for (const char* kv_dtype : {"bf16", "int8", "fp8", "int4"}) {
    SCOPED_TRACE(StrCat("KV ", kv_dtype));
    EngineConfig config = Config();
    config.model_dir = checkpoint.dir();
    config.kv_cache_dtype = kv_dtype;
    ExpectAnswersToDependOnTheRequestAlone(config);
  }
}

// A prefix ends within a tile, so that the streaming heads of what follows begin at another page
// than they would in the whole tile.
TEST_F(CudaEngine, BatchInvariantPrefixHitsEqualRecomputation) {
  const RandomCheckpoint checkpoint(Shape(64));
  for (const char* kv_dtype : {"bf16", "int8", "fp8", "int4"}) {
    SCOPED_TRACE(kv_dtype);
    EngineConfig config = Config();
    config.model_dir = checkpoint.dir();
    config.kv_cache_dtype = kv_dtype;
    config.batch_invariant = true;
    config.attention.prefill_threshold = 0;
    Request request = Requests(false)[1];
    const Answer expected = RunOne(*MakeEngine(config), request);
    const std::unique_ptr<Engine> engine = MakeEngine(config);
    Request first = request;
    first.prompt.resize(600);
    first.keep_prefix = 600;
    first.max_tokens = 1;
    EXPECT_EQ(RunOne(*engine, first).tokens.size(), 1u);
    const Answer hit = RunOne(*engine, request);
    EXPECT_EQ(hit.stats.cached_tokens, 600);
    EXPECT_EQ(hit.tokens, expected.tokens) << hit.error.message();
    EXPECT_TRUE(SameBits(hit.token_logits, expected.token_logits));
  }
}

TEST_F(CudaEngine, PenaltiesAndMasksActWhereTheLogitsAre) {
  // Short enough for one chunk: how a prompt is cut may change its bits here.
  ExpectDrawsByRule(*MakeEngine(Config()), std::move(Requests(false)[0]));
}

// By the GPU's clock, in graphs and without; and never longer than all steps together.
TEST_F(CudaEngine, SaysHowLongPagesWereChosen) {
  for (const char* graphs : {"on", "off"}) {
    SCOPED_TRACE(graphs);
    EngineConfig config = Config();
    config.cuda_graphs = graphs;
    const std::unique_ptr<Engine> engine = MakeEngine(config);
    EXPECT_EQ(engine->selector_seconds(), 0);
    Request dense = Requests(false)[2];
    dense.attention = AttentionSettings{.mode = AttentionMode::kDense};
    RunOne(*engine, std::move(dense));
    EXPECT_EQ(engine->selector_seconds(), 0);
    const Stopwatch watch;
    const Answer answer = RunOne(*engine, std::move(Requests(false)[2]));
    EXPECT_GT(answer.stats.selections, 1);
    const double once = engine->selector_seconds();
    EXPECT_GT(once, 0);
    EXPECT_LT(once, watch.seconds());
    RunOne(*engine, std::move(Requests(false)[2]));
    EXPECT_GT(engine->selector_seconds(), once);
  }
}

}  // namespace
}  // namespace lserve
