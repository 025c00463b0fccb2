// Files that a long run writes at its end: checked before it begins. Used by `lserve eval` and
// `lserve calibrate`.
#pragma once

#include <optional>
#include <string>

#include "base/status.h"

namespace lserve {

// Hours of work must not end at a folder that is not there. `flag` begins the message; no file is
// fine.
Status CheckWritable(const char* flag, const std::optional<std::string>& file);

// Nothing without a file.
Status WriteOutput(const std::optional<std::string>& file, const std::string& text);

}  // namespace lserve
