// Makes the CUDA backend. Two implementations, as for the probe: cuda/cuda_backend.cc, and
// no_cuda.cc in builds without CUDA.
#pragma once

#include <memory>
#include <string>

#include "backend/backend.h"
#include "backend/cuda_probe.h"
#include "base/status.h"

namespace lserve {

struct CudaOptions {
  std::string kernels = "auto";  // auto, sm80, sm90
  bool graphs = true;            // decode steps are replayed as CUDA graphs
  bool batch_invariant = false;  // no row's result depends on the others of its op (ADR 0034)
};

// kUnsupported for a GPU that is too old, or in a build without CUDA.
Result<std::unique_ptr<Backend>> MakeCudaBackend(const GpuInfo& gpu, const CudaOptions& options);

}  // namespace lserve
