// The CUDA backend of a build without CUDA.
#include "backend/cuda_factory.h"

namespace lserve {

Result<std::unique_ptr<Backend>> MakeCudaBackend(const GpuInfo& /*gpu*/,
                                                 const std::string& /*kernels*/,
                                                 bool /*use_graphs*/) {
  return ProbeGpus().status();
}

}  // namespace lserve
