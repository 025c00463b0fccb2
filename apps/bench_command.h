// `lserve bench`: how fast this machine runs a model or a shape, dense and sparse, and how near
// that is to what the machine can do. Used by lserve.cc only.
#pragma once

#include "apps/bench_options.h"

namespace lserve {

int BenchCommand(const BenchOptions& options);

}  // namespace lserve
