// The GPU probe of a build without CUDA; the backend is in no_cuda_backend.cc.
#include "backend/cuda_probe.h"

namespace lserve {

bool BuiltWithCuda() {
  return false;
}

Result<std::vector<GpuInfo>> ProbeGpus() {
  return Status(
      Code::kUnsupported,
      "this lserve was built without CUDA, expected one configured with "
      "-DLSERVE_CUDA=ON; build that (cmake --workflow --preset cuda) or use --device cpu");
}

}  // namespace lserve
