// EngineInputs: what a caller may hand to Engine::Create instead of files and defaults. Not
// configuration: these are objects, not settings. Used by the benches and by tests.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "backend/backend.h"
#include "engine/prefix_tier.h"
#include "loader/model_config.h"
#include "loader/safetensors.h"
#include "loader/streaming_heads.h"

namespace lserve {

// A model that is in no directory. It has no tokenizer.
struct ModelInMemory {
  ModelConfig config;
  Checkpoint checkpoint;
  // Takes the place of MODEL_DIR/streaming_heads.json.
  std::optional<StreamingHeadsFile> heads;
};

struct EngineInputs {
  std::optional<ModelInMemory> model;  // instead of EngineConfig::model_dir
  // Instead of the head file that comes with the model.
  std::optional<StreamingHeadsFile> heads;
  // Gets the backend that the engine made and returns the one that it is to use, which owns the
  // first: for counting and timing ops without a line in the engine.
  std::function<std::unique_ptr<Backend>(std::unique_ptr<Backend>)> wrap_backend;
  // The same for the disk tier, if there is one: for tests, of slow disks.
  std::function<std::unique_ptr<PrefixTier>(std::unique_ptr<PrefixTier>)> wrap_disk_tier;
  // The clock that ranks and deadlines of reads go by, in seconds, never backwards, for any thread;
  // empty: the system's steady clock.
  std::function<double()> seconds;
};

}  // namespace lserve
