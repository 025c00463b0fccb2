// The CUDA backend of a build without CUDA.
#include "backend/cuda_factory.h"

namespace lserve {

Result<std::unique_ptr<Backend>> MakeCudaBackend(const GpuInfo& /*gpu*/,
                                                 const CudaOptions& /*options*/) {
  return ProbeGpus().status();
}

}  // namespace lserve
