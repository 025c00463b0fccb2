// Makes the CUDA backend. Two implementations, as for the probe: cuda/cuda_backend.cc, and
// no_cuda.cc in builds without CUDA.
#pragma once

#include <memory>
#include <string>

#include "backend/backend.h"
#include "backend/cuda_probe.h"
#include "base/status.h"

namespace lserve {

// `kernels`: auto, sm80 or sm90. `use_graphs`: decode steps are replayed as CUDA graphs.
// kUnsupported for a GPU that is too old, or in a build without CUDA.
Result<std::unique_ptr<Backend>> MakeCudaBackend(const GpuInfo& gpu,
                                                 const std::string& kernels,
                                                 bool use_graphs);

}  // namespace lserve
