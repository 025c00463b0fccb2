// Our logits and greedy continuations against those of Hugging Face transformers, for every
// architecture and option (tests/goldens/models/README.md), on every backend path.
//
// Tolerance: the golden is a float32 run. We round the inputs of bf16 Linears, q, K, V and the
// softmax weights to bf16 and keep the rest in float; transformers' own bf16 run rounds all of
// these and every other intermediate too, the residual stream included. So its largest and its mean
// deviation from the float32 run, stored with each golden, bound ours from above.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "backend/registry.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "loader/model_config.h"
#include "support/engine_runner.h"
#include "tokenizer/tokenizer.h"

namespace lserve {
namespace {

const std::string kGoldens = std::string(LS_SOURCE_DIR) + "/tests/goldens/models/";

struct Golden {
  std::string model_dir;
  int64_t max_model_len = 0;
  std::vector<int32_t> tokens;
  std::vector<int64_t> positions;
  std::vector<float> logits;  // [positions, vocab]
  std::vector<int32_t> continuation;
  double max_deviation = 0;
  double mean_deviation = 0;
  std::string answer;  // needle goldens only
  int64_t vocab = 0;
};

template <class T>
std::vector<T> Integers(const Json& json) {
  std::vector<T> values;
  for (const Json& item : json.as_array()) values.push_back(static_cast<T>(item.as_int()));
  return values;
}

Golden Load(const std::string& name) {
  const std::string dir = kGoldens + name + "/";
  const Json json = ParseJson(ReadTextFile(dir + "golden.json").value()).value();
  Golden golden;
  const std::string& checkpoint = json.Find("checkpoint")->as_string();
  golden.model_dir = checkpoint == "." ? dir : std::string(LS_SOURCE_DIR) + "/" + checkpoint;
  golden.max_model_len = json.Find("max_model_len")->as_int();
  golden.tokens = Integers<int32_t>(*json.Find("tokens"));
  golden.positions = Integers<int64_t>(*json.Find("logit_positions"));
  golden.continuation = Integers<int32_t>(*json.Find("continuation"));
  golden.max_deviation = json.Find("bf16_max_deviation")->as_double();
  golden.mean_deviation = json.Find("bf16_mean_deviation")->as_double();
  if (const Json* answer = json.Find("answer")) golden.answer = answer->as_string();
  const std::string bytes = ReadTextFile(dir + "logits.bin").value();
  golden.logits.resize(bytes.size() / sizeof(float));
  std::memcpy(golden.logits.data(), bytes.data(), bytes.size());
  golden.vocab = static_cast<int64_t>(golden.logits.size() / golden.positions.size());
  return golden;
}

struct Case {
  std::string golden;
  std::string device;
  std::string isa;
};

std::vector<Case> Cases() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kGoldens)) {
    if (entry.is_directory()) names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  std::vector<Case> cases;
  for (const std::string& name : names) {
    // The scalar reference would take minutes on the bundled model.
    if (!name.starts_with("needle")) cases.push_back({name, "reference", "auto"});
    for (const char* isa : {"generic", "avx2", "avx512", "avx512bf16"}) {
      // The 4K prompt runs once, on the processor's own path.
      const bool once = name == "needle_4k";
      if (once && std::string(isa) != "generic") continue;
      const std::string path = once ? "auto" : isa;
      if (MakeBackend({.device = "cpu", .num_threads = 1, .cpu_isa = path}).ok()) {
        cases.push_back({name, "cpu", path});
      }
    }
  }
  return cases;
}

class GoldenTest : public testing::TestWithParam<Case> {
 protected:
  Answer Run(const Golden& golden, const std::vector<int32_t>& tokens) {
    EngineConfig config;
    config.model_dir = golden.model_dir;
    config.device = GetParam().device;
    config.cpu_isa = GetParam().isa;
    config.num_threads = 2;
    config.kv_cache_bytes = size_t{512} << 20;
    config.max_model_len = golden.max_model_len;
    config.attention.mode = AttentionMode::kDense;
    const std::unique_ptr<Engine> engine = MakeEngine(config);
    Request request;
    request.prompt = tokens;
    request.sampling.temperature = 0;
    request.max_tokens = static_cast<int64_t>(golden.continuation.size());
    request.ignore_eos = golden.answer.empty();
    return RunOne(*engine, std::move(request));
  }
};

struct Deviation {
  double max = 0;
  double mean = 0;
};

Deviation Compare(const Golden& golden, const std::vector<float>& logits) {
  Deviation deviation;
  for (size_t i = 0; i < golden.positions.size(); ++i) {
    for (int64_t v = 0; v < golden.vocab; ++v) {
      const double ours = logits[static_cast<size_t>(golden.positions[i] * golden.vocab + v)];
      const double theirs =
          golden.logits[i * static_cast<size_t>(golden.vocab) + static_cast<size_t>(v)];
      const double error = std::abs(ours - theirs);
      // Written so that NaN is a failure.
      if (!(error <= deviation.max)) deviation.max = error;
      deviation.mean += error / static_cast<double>(golden.logits.size());
    }
  }
  return deviation;
}

TEST_P(GoldenTest, LogitsAndGreedyTokensMatchTransformers) {
  const Golden golden = Load(GetParam().golden);
  const Answer answer = Run(golden, golden.tokens);
  ASSERT_EQ(answer.prompt_logits.size(), golden.tokens.size() * static_cast<size_t>(golden.vocab));
  const Deviation deviation = Compare(golden, answer.prompt_logits);
  EXPECT_LE(deviation.max, golden.max_deviation);
  EXPECT_LE(deviation.mean, golden.mean_deviation);
  EXPECT_EQ(answer.tokens, golden.continuation);
  if (!golden.answer.empty()) {
    EXPECT_EQ(answer.text, golden.answer);
  }
  RecordProperty("max_deviation", std::to_string(deviation.max));
}

// The comparison can fail: eight other tokens among the last 128 are seen.
TEST_P(GoldenTest, WrongTokensAreSeen) {
  const Golden golden = Load(GetParam().golden);
  if (!golden.answer.empty()) return;  // the random checkpoints show it
  std::vector<int32_t> tokens = golden.tokens;
  for (size_t back = 16; back <= 128; back += 16) tokens[tokens.size() - back] ^= 1;
  EXPECT_GT(Compare(golden, Run(golden, tokens).prompt_logits).mean, golden.mean_deviation);
}

INSTANTIATE_TEST_SUITE_P(All, GoldenTest, testing::ValuesIn(Cases()), [](const auto& named) {
  return named.param.golden + "_" + named.param.device + "_" + named.param.isa;
});

}  // namespace
}  // namespace lserve
