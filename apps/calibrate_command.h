// `lserve calibrate`: measures which KV heads may stream, and writes streaming_heads.json.
#pragma once

#include "apps/calibrate_options.h"

namespace lserve {

// The exit status.
int CalibrateCommand(CalibrateOptions options);

}  // namespace lserve
