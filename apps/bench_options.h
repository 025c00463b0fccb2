// BenchOptions: what `lserve bench` is told, parsed and checked as far as that goes without a
// model. Used by bench_command.cc only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "apps/engine_flags.h"
#include "bench/engine_bench.h"

namespace lserve {

struct BenchOptions {
  EngineFlags engine;
  std::string shape;  // instead of a model directory
  bool kernels = false;
  std::string prompts;  // as given; lists after FinishBenchOptions
  std::string depths;
  std::string batches = "1";
  int repeats = 5;
  int decode_tokens = 32;
  int64_t seed = 0;
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<double> repetition_penalty;
  std::optional<std::string> json;  // a file, or "-"
  std::string note;

  EngineBenchConfig tests;

  bool json_to_stdout() const { return json && *json == "-"; }
};

void AddBenchFlags(FlagSet& flags, BenchOptions& out);
// Usage errors: contradictions, bad lists.
Status FinishBenchOptions(BenchOptions& out);

// "2k,8k" -> {2048, 8192}; `what` begins the message.
Result<std::vector<int64_t>> ParseSizeList(std::string_view text,
                                           int64_t min,
                                           int64_t max,
                                           std::string_view what);

}  // namespace lserve
