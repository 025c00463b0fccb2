// `lserve inspect`: what a model directory holds and whether this program can run it; or, with
// --support, what this machine can run. Used by lserve.cc only.
#pragma once

#include <string>

#include "apps/flags.h"

namespace lserve {

struct InspectOptions {
  std::string model_dir;
  bool support = false;
  bool json = false;
};

void AddInspectFlags(FlagSet& flags, InspectOptions& out);
int InspectCommand(const InspectOptions& options);

}  // namespace lserve
