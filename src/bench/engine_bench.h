// EngineBench: how fast an engine reads prompts and writes tokens, dense and sparse side by side.
// It runs the requests that `lserve run` would, and measures; it prints nothing. Used by
// `lserve bench`.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/cpu/ceilings.h"
#include "bench/metered_backend.h"
#include "bench/summary.h"
#include "engine/engine_inputs.h"
#include "lserve/engine.h"

namespace lserve {

// One way to run the same requests.
struct BenchArm {
  std::string name;  // "dense", "sparse", ...
  AttentionSettings attention;
};

struct EngineBenchConfig {
  std::vector<BenchArm> arms;
  std::vector<int64_t> prompts;  // prefill tests, one per length
  std::vector<int64_t> depths;   // decode tests, for every batch
  std::vector<int> batches = {1};
  int decode_tokens = 32;
  int repeats = 5;
  uint64_t seed = 0;  // of the tokens
  SamplingParams sampling = {.temperature = 0};
};

enum class BenchPhase : uint8_t { kPrefill, kDecode };

// One test of one arm; a sample is one run.
struct EngineTest {
  std::string name;  // as llama-bench: "pp32768", "tg32 @ d131072", "tg32 @ d8192 b4 t0.8 r1.1"
  std::string arm;
  BenchPhase phase = BenchPhase::kPrefill;
  int64_t context = 0;  // prompt or depth
  int batch = 1;
  int decode_tokens = 0;

  std::vector<double> seconds;  // of each sample
  // Of each sample, the processors that its threads had on average: less than their number where
  // others ran, or where threads had nothing to do.
  std::vector<double> cores;
  Summary tokens_per_second;  // of all sequences together
  // From Add() to the first token. Of a decode test: of the prompts that made its depth.
  Summary first_token_ms;
  double ms_per_token = 0;  // of one sequence, median; the mean over the tokens of a sample
  uint64_t kv_bytes = 0;    // of all sequences

  // Medians over the samples.
  double attention_share = 0;  // of the time: attention and the choice of pages
  double flop_per_second = 0;
  double bytes_per_second = 0;
  double op_seconds[kNumOpKinds] = {};
  double other_seconds = 0;  // outside of ops: plans, sampling, counters
  // Choosing pages for decode, by the engine's own count, which a GPU has as well.
  double selector_seconds = 0;

  // Around the samples: the speed gauge (FLOP/s) before and after each, the highest load average.
  std::vector<double> gauges;
  double load_average = 0;

  RequestStats stats;  // of one sequence of the last sample

  double share_of(const CpuCeilings& ceilings) const;
};

struct BenchHooks {
  std::function<Status(const EngineTest&)> on_test;
  // What runs, and how far it is, in tokens.
  std::function<void(const std::string& what, int64_t done, int64_t total)> on_progress;
  std::function<bool()> should_stop;
};

class EngineBench {
 public:
  // `model`: instead of config.model_dir. Measures the ceilings, too.
  static Result<std::unique_ptr<EngineBench>> Create(const EngineConfig& config,
                                                     std::optional<ModelInMemory> model);

  // Whether the model takes these lengths; Run asks, too.
  Status Check(const EngineBenchConfig& config) const;

  // Prompts in their order, each followed by the decode tests at the same depth if there are any,
  // which continue from it; then the other depths. The samples of the arms alternate, so that a
  // change of the machine's speed meets all of them. An interrupted run ends with kCancelled.
  Status Run(const EngineBenchConfig& config, const BenchHooks& hooks);

  const CpuCeilings& ceilings() const { return ceilings_; }
  const CeilingMeter& ceiling_meter() const { return ceiling_meter_; }
  const EngineInfo& info() const { return engine_->info(); }

 private:
  // What one batch of requests did.
  struct Sample {
    double first_token_seconds = 0;    // until every sequence has one
    double decode_seconds = 0;         // from then on
    double first_token_processor = 0;  // processor seconds, as the two above
    double decode_processor = 0;
    double selector_seconds = 0;  // while decoding
    OpMeter prefill;
    OpMeter decode;
    uint64_t kv_bytes = 0;
    RequestStats stats;
  };

  EngineBench(CpuIsa isa, int num_threads) : ceiling_meter_(isa, num_threads) {}
  Status WarmUp(const EngineBenchConfig& config, const BenchHooks& hooks);
  // With `keep` the last sample's prompt stays in the cache, for RunDepth. Returns the times to the
  // first token, [arm][sample].
  using FirstTokens = std::vector<std::vector<double>>;
  Result<FirstTokens> RunPrefill(const EngineBenchConfig& config,
                                 int64_t prompt,
                                 bool keep,
                                 const BenchHooks& hooks);
  // `known`: from RunPrefill, whose prompt is then not read again; or empty.
  Status RunDepth(const EngineBenchConfig& config,
                  int64_t depth,
                  FirstTokens known,
                  const BenchHooks& hooks);
  Result<Sample> RunBatch(std::vector<Request> requests,
                          const std::string& what,
                          const BenchHooks& hooks);
  // RunBatch between two gauges, booked in `test`.
  Result<Sample> Measure(std::vector<Request> requests, EngineTest* test, const BenchHooks& hooks);

  CeilingMeter ceiling_meter_;
  CpuCeilings ceilings_;
  OpMeter meter_;
  std::unique_ptr<Engine> engine_;  // refers to meter_
};

}  // namespace lserve
