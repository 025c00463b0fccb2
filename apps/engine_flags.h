// The options that every command with an engine shares (design 4.2), and those of sampling. Used by
// `lserve run` and the demo.
#pragma once

#include <optional>
#include <string>

#include "apps/flags.h"
#include "loader/model_config.h"
#include "lserve/config.h"
#include "lserve/request.h"

namespace lserve {

struct EngineFlags {
  EngineConfig config;
  // Text until Finish() checks it and moves it into `config`.
  std::string attention_mode = "auto";
  std::optional<double> prefill_threshold;  // unset: the default
  std::string value_dtype;                  // llama.cpp's -ctv
  int64_t kv_cache_bytes = 0;
  int64_t kv_host_bytes = 0;
  int64_t kv_disk_bytes = int64_t{16} << 30;
  std::string quantization_cache;  // a directory, "none", or "" for the default
};

void AddEngineFlags(FlagSet& flags, EngineFlags& out);
// What the flags say together; all problems in one message.
Status FinishEngineFlags(EngineFlags& out);

// What was given on the command line; the rest comes from generation_config.json.
struct SamplingFlags {
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<double> min_p;
  std::optional<double> repetition_penalty;
  std::optional<double> presence_penalty;
  std::optional<double> frequency_penalty;
  std::optional<int64_t> top_k;
  int64_t seed = 0;
};

void AddSamplingFlags(FlagSet& flags, SamplingFlags& out);
// A model that does not ask for sampling is run greedily, as transformers does.
SamplingParams MakeSampling(const SamplingFlags& flags, const GenerationDefaults& defaults);

// Rewrites llama.cpp's short names of several letters, which CLI11 can not declare ("-ctk").
std::string ExpandShortName(const std::string& argument);

}  // namespace lserve
