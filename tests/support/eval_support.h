// Engines and needle trials for tests/eval.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/json.h"
#include "base/rng.h"
#include "eval/niah.h"
#include "eval/report.h"
#include "eval/words.h"
#include "lserve/engine.h"

namespace lserve {

// The bundled model with sparse attention and a budget that makes short texts long.
inline EngineConfig NeedleConfig(int token_budget) {
  EngineConfig config;
  config.model_dir = LS_SOURCE_DIR "/models/needle";
  config.attention.mode = AttentionMode::kSparse;
  config.attention.token_budget = token_budget;
  config.max_num_seqs = 1;
  return config;
}

inline std::unique_ptr<Engine> MustMake(const EngineConfig& config) {
  Result<std::unique_ptr<Engine>> engine = Engine::Create(config);
  LS_CHECK(engine.ok()) << engine.status().message();
  return std::move(engine).value();
}

inline TrialRun RunNiah(Engine& engine, const NiahOptions& options, const EvalHooks& hooks = {}) {
  ResultLog log = ResultLog::Open("", Json()).value();
  return RunTrials(engine, NiahTrials(*engine.tokenizer(), options), log, hooks);
}

// A head file that gives the model's 24 heads scores in an order drawn from `seed`: as a
// calibration that measured nothing would.
class RandomHeads {
 public:
  explicit RandomHeads(uint64_t seed) {
    std::string pattern = (std::filesystem::temp_directory_path() / "lserve_heads_XXXXXX").string();
    LS_CHECK(mkdtemp(pattern.data()) != nullptr);
    folder_ = pattern;
    constexpr int kLayers = 6, kHeads = 4;
    std::vector<int> order(kLayers * kHeads);
    std::iota(order.begin(), order.end(), 0);
    Rng rng(seed);
    Shuffle(order, rng);
    std::string tsv;
    for (int i = 0; i < kLayers * kHeads; ++i) {
      tsv += std::to_string(order[static_cast<size_t>(i)]);
      tsv += i % kHeads == kHeads - 1 ? "\n" : "\t";
    }
    std::ofstream(path()) << tsv;
  }
  ~RandomHeads() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  RandomHeads(const RandomHeads&) = delete;
  RandomHeads& operator=(const RandomHeads&) = delete;

  std::string path() const { return (folder_ / "heads.tsv").string(); }

 private:
  std::filesystem::path folder_;
};

}  // namespace lserve
