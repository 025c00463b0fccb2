#include "backend/cuda_probe.h"

#include "base/strings.h"

namespace lserve {
namespace {

std::string CudaVersion(int version) {
  return StrCat(version / 1000, ".", version % 1000 / 10);
}

}  // namespace

std::string Describe(const GpuInfo& gpu) {
  const uint64_t tenths_of_gib = gpu.memory_bytes * 10 / (uint64_t{1} << 30);
  return StrCat("cuda:", gpu.index, " ", gpu.name, ", sm_", gpu.compute_major, gpu.compute_minor,
                ", ", gpu.num_multiprocessors, " SMs, ", tenths_of_gib / 10, ".",
                tenths_of_gib % 10, " GiB, CUDA ", CudaVersion(gpu.runtime_version), " (driver ",
                CudaVersion(gpu.driver_version), ")");
}

}  // namespace lserve
