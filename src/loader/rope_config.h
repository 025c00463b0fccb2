// ParseRopeConfig: the rotary-embedding part of config.json. Split from model_config.cc for size;
// used by it alone.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "loader/json_fields.h"
#include "loader/model_config.h"

namespace lserve {

// REQUIRES: config.architecture and config.max_position_embeddings are set.
Result<RopeConfig> ParseRopeConfig(const JsonFields& fields, const ModelConfig& config);

}  // namespace lserve
