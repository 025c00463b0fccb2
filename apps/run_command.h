// `lserve run`: asks questions about documents, or continues a prompt. Used by lserve.cc only.
#pragma once

#include "apps/run_options.h"

namespace lserve {

// REQUIRES: FinishRunOptions succeeded and engine.config.model_dir is set. Returns the exit status.
int RunCommand(RunOptions options);

}  // namespace lserve
