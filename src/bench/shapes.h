// Shapes of known models, for benches of random weights: sizes only, no checkpoint. Used by
// `lserve bench --shape`.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "loader/model_config.h"

namespace lserve {

// In the order of size; for messages and --help.
std::vector<std::string> ShapeNames();

// The configuration of a shape. It may be asked for any position up to a million: random weights
// were trained on none, and speed depends on no angle.
Result<ModelConfig> FindShape(const std::string& name);

}  // namespace lserve
