// Models in memory, the metered backend, and the engine bench on a model small enough for a test.
#include "bench/engine_bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "backend/registry.h"
#include "base/half.h"
#include "bench/kernel_bench.h"
#include "bench/random_model.h"
#include "bench/shapes.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kVocab = 500;

// 2 layers of hidden 128, 4 query / 2 KV heads of 32, FFN 256.
ModelConfig SmallShape() {
  ModelConfig config = FindShape("100m").value();
  config.hidden_size = 128;
  config.intermediate_size = 256;
  config.num_layers = 2;
  config.num_q_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 32;
  config.vocab_size = kVocab;
  return config;
}

// Multiply-adds per token in the layers: q, k, v, o, gate and up, down.
constexpr int64_t kLayerProducts = 128 * (128 + 64 + 64) + 128 * 128 + 3 * 128 * 256;

EngineConfig SmallEngine() {
  EngineConfig config;
  config.num_threads = 1;
  config.kv_cache_bytes = size_t{64} << 20;
  return config;
}

// One for all tests: measuring the ceilings takes half a second.
EngineBench& SmallBench() {
  static const std::unique_ptr<EngineBench> bench = [] {
    auto made = EngineBench::Create(SmallEngine(), MakeRandomModel(SmallShape(), 1));
    EXPECT_TRUE(made.ok()) << made.status().message();
    return std::move(made).value();
  }();
  return *bench;
}

BenchArm Arm(AttentionMode mode) {
  AttentionSettings settings;
  settings.mode = mode;
  settings.token_budget = 512;
  return {std::string(Name(mode)), settings};
}

std::vector<EngineTest> RunTests(EngineBench& bench, const EngineBenchConfig& config) {
  std::vector<EngineTest> tests;
  BenchHooks hooks;
  hooks.on_test = [&](const EngineTest& test) {
    tests.push_back(test);
    return Status();
  };
  const Status status = bench.Run(config, hooks);
  EXPECT_TRUE(status.ok()) << status.message();
  return tests;
}

std::vector<float> FirstLogits(uint64_t seed) {
  EngineInputs inputs;
  inputs.model = MakeRandomModel(SmallShape(), seed);
  auto engine = Engine::Create(SmallEngine(), std::move(inputs));
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  std::vector<float> first;
  Request request;
  request.prompt = {1, 2, 3};
  request.max_tokens = 1;
  request.on_token_logits = [&](std::span<const float> logits) {
    first.assign(logits.begin(), logits.end());
  };
  EXPECT_TRUE(engine.value()->Add(std::move(request)).ok());
  while (engine.value()->has_work()) EXPECT_TRUE(engine.value()->Step().ok());
  return first;
}

TEST(RandomModel, TheSeedDecidesTheWeights) {
  EXPECT_EQ(FirstLogits(1).size(), static_cast<size_t>(kVocab));
  EXPECT_EQ(FirstLogits(1), FirstLogits(1));
  EXPECT_NE(FirstLogits(1), FirstLogits(2));
}

TEST(RandomModel, WeightsHaveTheDeviationTheyClaim) {
  const ModelInMemory model = MakeRandomModel(SmallShape(), 1);
  const TensorInfo* tensor = model.checkpoint.Find("model.embed_tokens.weight");
  ASSERT_NE(tensor, nullptr);
  const Bf16* data = reinterpret_cast<const Bf16*>(tensor->data.data());
  const int64_t count = kVocab * 128;
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += ToFloat(data[i]);
    squares += ToFloat(data[i]) * ToFloat(data[i]);
  }
  // 64,000 draws: the mean is within 4 x 0.02 / sqrt(n), the deviation within 4 / sqrt(2 n) of
  // itself, but for one seed in 10,000.
  EXPECT_NEAR(sum / static_cast<double>(count), 0, 4 * 0.02 / 253);
  EXPECT_NEAR(std::sqrt(squares / static_cast<double>(count)), 0.02, 0.02 * 4 / 357);
}

TEST(RandomModel, HalfOfTheKvHeadsStream) {
  const ModelConfig shape = FindShape("1b").value();
  // Only the heads are looked at: a model of one row per matrix.
  ModelConfig thin = shape;
  thin.hidden_size = thin.intermediate_size = thin.vocab_size = 1;
  const ModelInMemory model = MakeRandomModel(thin, 1);
  const HeadKinds& kinds = *model.heads->kind;
  EXPECT_EQ(kinds.size(), 16u * 8u);
  EXPECT_EQ(std::count(kinds.begin(), kinds.end(), 0), 64);
}

TEST(Shapes, HaveThePublishedNumberOfParameters) {
  const auto parameters = [](const char* name) {
    const ModelConfig c = FindShape(name).value();
    const int64_t q = c.num_q_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim;
    const int64_t layer = 2 * q * c.hidden_size + 2 * kv * c.hidden_size +
                          3 * c.intermediate_size * c.hidden_size + 2 * c.hidden_size;
    return c.num_layers * layer + c.hidden_size +
           c.vocab_size * c.hidden_size * (c.tie_word_embeddings ? 1 : 2);
  };
  EXPECT_EQ(parameters("llama-3.2-1b"), 1235814400);
  EXPECT_EQ(parameters("llama-3-8b"), 8030261248);
  EXPECT_EQ(parameters("llama-2-7b"), 6738415616);
  EXPECT_NEAR(static_cast<double>(parameters("100m")), 100e6, 10e6);
  EXPECT_NEAR(static_cast<double>(parameters("1b")), 1e9, 0.1e9);
  EXPECT_THAT(FindShape("llama-9").status().message(), HasSubstr("expected one of 100m, 1b"));
}

TEST(EngineBench, MeterAgreesWithTheFormulas) {
  EngineBenchConfig config;
  config.arms = {Arm(AttentionMode::kDense)};
  config.prompts = {1000};
  config.repeats = 1;
  const std::vector<EngineTest> tests = RunTests(SmallBench(), config);
  ASSERT_EQ(tests.size(), 1u);
  const EngineTest& test = tests[0];
  EXPECT_EQ(test.name, "pp1000");
  EXPECT_EQ(test.arm, "dense");
  ASSERT_EQ(test.seconds.size(), 1u);
  const double linear = 2.0 * 1000 * 2 * kLayerProducts + 2.0 * 128 * kVocab;  // one row of logits
  const double attention = 4.0 * 32 * 4 * 2 * (1000.0 * 1001 / 2);
  EXPECT_NEAR(test.flop_per_second * test.seconds[0], linear + attention, 1);
  EXPECT_NEAR(test.tokens_per_second.median, 1000 / test.seconds[0], 1e-9 / test.seconds[0]);
  EXPECT_EQ(test.gauges.size(), 2u);
  // One thread; the two clocks are read one after the other, and are not the same.
  ASSERT_EQ(test.cores.size(), 1u);
  EXPECT_GT(test.cores[0], 0);
  EXPECT_LT(test.cores[0], 1.1);
  // Ops and what is between them are the whole time, all of it counted once.
  double sum = test.other_seconds;
  for (const double seconds : test.op_seconds) sum += seconds;
  EXPECT_NEAR(sum, test.seconds[0], 1e-9);
  EXPECT_GT(test.other_seconds, 0);
  EXPECT_GT(test.attention_share, 0);
  EXPECT_LT(test.attention_share, 1);
}

TEST(EngineBench, DecodeReadsTheWeightsOncePerStepAndThePagesOfThePlan) {
  EngineBenchConfig config;
  config.arms = {Arm(AttentionMode::kDense), Arm(AttentionMode::kSparse)};
  config.depths = {2048};
  config.batches = {1, 2};
  config.decode_tokens = 4;
  config.repeats = 2;
  const std::vector<EngineTest> tests = RunTests(SmallBench(), config);
  ASSERT_EQ(tests.size(), 4u);
  EXPECT_EQ(tests[0].name, "tg4 @ d2048");
  EXPECT_EQ(tests[1].arm, "sparse");
  EXPECT_EQ(tests[2].name, "tg4 @ d2048 b2");
  for (const EngineTest& test : tests) {
    EXPECT_EQ(test.seconds.size(), 2u);
    EXPECT_EQ(test.gauges.size(), 4u);
    EXPECT_EQ(test.stats.cached_tokens, 2048);
    EXPECT_EQ(test.stats.completion_tokens, 5);
    EXPECT_GT(test.first_token_ms.median, 0);
  }
  EXPECT_EQ(tests[0].stats.dense_steps, 4);
  EXPECT_EQ(tests[1].stats.sparse_steps, 4);

  // Dense: 4 steps, each with every weight (packed: columns in panels of 64, so the 500 rows of
  // the LM head take 512) and 33 pages of 2 x 2 heads; a page of a head is 64 x 32 x 2 x 2 bytes.
  // Rates and seconds are medians of their own, so use the samples' common bounds.
  const double weights = 2.0 * (2 * kLayerProducts + 128 * 512);
  const double pages = 33.0 * 4 * 64 * 32 * 2 * 2;
  const auto bounds = std::minmax_element(tests[0].seconds.begin(), tests[0].seconds.end());
  EXPECT_GE(tests[0].bytes_per_second * *bounds.second, 4 * (weights + pages) * (1 - 1e-9));
  EXPECT_LE(tests[0].bytes_per_second * *bounds.first, 4 * (weights + pages) * (1 + 1e-9));
  EXPECT_LT(tests[1].bytes_per_second *
                *std::min_element(tests[1].seconds.begin(), tests[1].seconds.end()),
            4 * (weights + pages));
}

TEST(EngineBench, DecodeContinuesFromThePromptThatWasMeasured) {
  EngineBenchConfig config;
  config.arms = {Arm(AttentionMode::kDense), Arm(AttentionMode::kSparse)};
  config.prompts = {1000};
  config.depths = {0, 1000};
  config.batches = {2};
  config.decode_tokens = 2;
  config.repeats = 2;
  int64_t prompts_read = 0;  // progress falls back to its start with each
  std::vector<std::string> names;
  BenchHooks hooks;
  int64_t last = 0;
  hooks.on_progress = [&](const std::string& what, int64_t done, int64_t) {
    if (what == "warm-up") return;
    prompts_read += done <= last ? 1 : 0;
    last = done;
  };
  hooks.on_test = [&](const EngineTest& test) {
    names.push_back(test.name);
    EXPECT_EQ(test.stats.cached_tokens, test.phase == BenchPhase::kDecode ? test.context : 0);
    return Status();
  };
  ASSERT_TRUE(SmallBench().Run(config, hooks).ok());
  EXPECT_THAT(names, ::testing::ElementsAre("pp1000", "pp1000", "tg2 @ d1000 b2", "tg2 @ d1000 b2",
                                            "tg2 b2", "tg2 b2"));
  // 2 samples of each arm, then one more prompt per arm for the second sequence of the batch.
  EXPECT_EQ(prompts_read + 1, 2 * 2 + 2);
}

TEST(EngineBench, RefusesWhatTheModelCanNotTake) {
  EngineBenchConfig config;
  config.arms = {Arm(AttentionMode::kDense)};
  config.prompts = {int64_t{1} << 20};
  const Status status = SmallBench().Run(config, {});
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("--prompt: got 1048576, expected at most 1048575"));
}

TEST(EngineBench, SaysThatTheCacheIsTooSmallForItsPrompts) {
  EngineConfig engine = SmallEngine();
  // A token of 2 x 2 heads takes 512 bytes and some statistics: 8 MiB hold about 2 prompts of 6000.
  engine.kv_cache_bytes = size_t{10} << 20;
  auto bench = EngineBench::Create(engine, MakeRandomModel(SmallShape(), 1));
  ASSERT_TRUE(bench.ok());
  EngineBenchConfig config;
  config.arms = {Arm(AttentionMode::kDense)};
  config.depths = {6000};
  config.batches = {4};
  config.decode_tokens = 1;
  BenchHooks hooks;
  hooks.on_test = [](const EngineTest&) { return Status(); };
  const Status status = bench.value()->Run(config, hooks);
  EXPECT_EQ(status.code(), Code::kOutOfMemory);
  EXPECT_THAT(status.message(), HasSubstr("--kv-cache-bytes"));
}

TEST(EngineBench, StopsWhenAsked) {
  EngineBenchConfig config;
  config.arms = {Arm(AttentionMode::kDense)};
  config.prompts = {64};
  BenchHooks hooks;
  hooks.should_stop = [] { return true; };
  EXPECT_EQ(SmallBench().Run(config, hooks).code(), Code::kCancelled);
}

TEST(KernelTest, TheRoofIsTheNearerOfArithmeticAndMemory) {
  CpuCeilings ceilings;
  ceilings.bf16_flop_s = 400e9;
  ceilings.read_bytes_s = 20e9;
  KernelTest one_row = {.cost = {.flop = 2e6, .bytes = 2e6}};
  EXPECT_TRUE(one_row.memory_bound(ceilings));
  EXPECT_DOUBLE_EQ(one_row.roof_seconds(ceilings), 1e-4);
  KernelTest many_rows = {.cost = {.flop = 800e6, .bytes = 2e6}};
  EXPECT_FALSE(many_rows.memory_bound(ceilings));
  EXPECT_DOUBLE_EQ(many_rows.roof_seconds(ceilings), 2e-3);
}

TEST(MeteredBackend, StandsForTheBackendItWraps) {
  OpMeter meter;
  auto plain = MakeBackend({.device = "cpu", .num_threads = 1});
  ASSERT_TRUE(plain.ok());
  const std::string description = plain.value()->description();
  MeteredBackend metered(std::move(plain).value(), &meter);
  EXPECT_EQ(metered.name(), "cpu");
  EXPECT_EQ(metered.description(), description);
  const std::vector<Bf16> values(64 * 32, ToBf16(1.0f));
  const WeightPart part = {values.data(), DType::kBf16, 64};
  const LinearWeight weight =
      metered.PackLinear({&part, 1}, 32, {}, WeightFormat::kAsStored).value();
  std::vector<float> x(32, 2.0f), y(64);
  ASSERT_TRUE(
      metered
          .Linear(
              {.x = ConstMatrix(x.data(), DType::kF32, 1, 32, 32),
               .weight = &weight,
               .y = {.data = y.data(), .dtype = DType::kF32, .rows = 1, .cols = 64, .stride = 64}})
          .ok());
  EXPECT_EQ(y[63], 64.0f);
  EXPECT_EQ(meter.flop(), 2.0 * 32 * 64);
  EXPECT_EQ(meter.bytes(), 2.0 * 32 * 64);
  EXPECT_GT(meter.of(OpKind::kLinear).seconds, 0);
  EXPECT_EQ(meter.attention_seconds(), 0);
}

}  // namespace
}  // namespace lserve
