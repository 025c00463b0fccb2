// Makes the CUDA backend. Two implementations, as for the probe: cuda/cuda_backend.cc, and
// no_cuda.cc in builds without CUDA.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "backend/backend.h"
#include "backend/cuda_probe.h"
#include "base/status.h"

namespace lserve {

// Two heads of 1M tokens at head_dim 128; a whole layer of Llama-3-8B at 256K.
inline constexpr size_t kPrefillScratchBytes = size_t{1} << 30;

struct CudaOptions {
  std::string kernels = "auto";  // auto, sm80, sm90
  bool graphs = true;            // decode steps are replayed as CUDA graphs
  bool batch_invariant = false;  // no row's result depends on the others of its op (ADR 0034)
  // For quantised pages as bf16 (ADR 0036); one head of one sequence takes what it needs.
  size_t prefill_scratch_bytes = kPrefillScratchBytes;
};

// kUnsupported for a GPU that is too old, or in a build without CUDA.
Result<std::unique_ptr<Backend>> MakeCudaBackend(const GpuInfo& gpu, const CudaOptions& options);

}  // namespace lserve
