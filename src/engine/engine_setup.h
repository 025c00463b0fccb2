// The parts an engine is made of, built from its configuration in the one order that works:
// configuration, backend, head kinds, weights, cache. Used by engine.cc only.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "backend/backend.h"
#include "engine/engine_inputs.h"
#include "engine/prefix_archive.h"
#include "kv/page_pool.h"
#include "loader/model_config.h"
#include "loader/safetensors.h"
#include "loader/streaming_heads.h"
#include "lserve/config.h"
#include "lserve/engine.h"
#include "model/llama.h"
#include "tokenizer/tokenizer.h"

namespace lserve {

// Destroyed from the bottom up: what stands below refers to what stands above.
struct EngineParts {
  EngineConfig config;  // in effect
  ModelConfig model_config;
  EngineInfo info;
  std::function<double()> seconds;       // EngineInputs::seconds, or the steady clock
  std::unique_ptr<Tokenizer> tokenizer;  // null: the directory has none
  std::unique_ptr<Backend> backend;
  std::optional<Checkpoint> checkpoint;
  std::unique_ptr<LlamaModel> model;
  std::unique_ptr<KvStore> store;
  std::unique_ptr<PagePool> pool;
  PrefixTiers tiers;
};

Result<EngineParts> BuildEngine(const EngineConfig& config, EngineInputs inputs);

}  // namespace lserve
