// The GPU probe of a build with CUDA: every answer comes from the CUDA runtime.
#include <cuda_runtime_api.h>

#include "backend/cuda_probe.h"
#include "base/strings.h"

namespace lserve {
namespace {

// kNotFound for what a machine without a usable GPU says, kDeviceLost for everything else.
Status CudaError(cudaError_t error, const char* call) {
  const bool absent = error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver ||
                      error == cudaErrorStubLibrary || error == cudaErrorInitializationError;
  return Status(
      absent ? Code::kNotFound : Code::kDeviceLost,
      StrCat("no GPU to use: ", call, " says ", cudaGetErrorName(error), " (",
             cudaGetErrorString(error), "), expected an NVIDIA GPU and a driver for CUDA ",
             CUDART_VERSION / 1000, " or newer; check nvidia-smi, or use --device cpu"));
}

Result<GpuInfo> ProbeGpu(int index, int driver_version, int runtime_version) {
  cudaDeviceProp properties = {};
  const cudaError_t error = cudaGetDeviceProperties(&properties, index);
  if (error != cudaSuccess) return CudaError(error, "cudaGetDeviceProperties");
  return GpuInfo{.index = index,
                 .name = properties.name,
                 .compute_major = properties.major,
                 .compute_minor = properties.minor,
                 .num_multiprocessors = properties.multiProcessorCount,
                 .memory_bytes = properties.totalGlobalMem,
                 .driver_version = driver_version,
                 .runtime_version = runtime_version};
}

}  // namespace

bool BuiltWithCuda() {
  return true;
}

Result<std::vector<GpuInfo>> ProbeGpus() {
  int num_gpus = 0;
  cudaError_t error = cudaGetDeviceCount(&num_gpus);
  if (error != cudaSuccess) return CudaError(error, "cudaGetDeviceCount");
  if (num_gpus == 0) return CudaError(cudaErrorNoDevice, "cudaGetDeviceCount");

  int driver_version = 0;
  error = cudaDriverGetVersion(&driver_version);
  if (error != cudaSuccess) return CudaError(error, "cudaDriverGetVersion");
  int runtime_version = 0;
  error = cudaRuntimeGetVersion(&runtime_version);
  if (error != cudaSuccess) return CudaError(error, "cudaRuntimeGetVersion");

  std::vector<GpuInfo> gpus;
  for (int index = 0; index < num_gpus; ++index) {
    gpus.push_back(LS_TRY(ProbeGpu(index, driver_version, runtime_version)));
  }
  return gpus;
}

}  // namespace lserve
