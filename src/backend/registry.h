// Makes a backend from what the user asked for; the only file that knows them all.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "backend/backend.h"
#include "backend/cuda_factory.h"
#include "base/status.h"

namespace lserve {

struct BackendConfig {
  std::string device = "auto";   // auto, cpu, cuda[:N], reference
  int num_threads = 0;           // 0: every core this process may use
  std::string cpu_isa = "auto";  // auto, generic, avx2, avx512, avx512bf16
  std::string kernels = "auto";  // of a GPU: auto, sm80, sm90
  bool cuda_graphs = true;       // decode steps are replayed as CUDA graphs
  bool batch_invariant = false;  // of a GPU: no row's result depends on the others of its op
  size_t prefill_scratch_bytes = kPrefillScratchBytes;  // of a GPU, for tests: CudaOptions
};

Result<std::unique_ptr<Backend>> MakeBackend(const BackendConfig& config);

}  // namespace lserve
