// What NVIDIA GPUs this machine has, for `lserve inspect` and for the message when `--device cuda`
// can not be served. It computes nothing. Two implementations: cuda/cuda_probe.cu asks the CUDA
// runtime, no_cuda.cc stands in for it in builds without CUDA.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace lserve {

struct GpuInfo {
  int index = 0;  // as in --device cuda:N
  std::string name;
  int compute_major = 0;
  int compute_minor = 0;
  int num_multiprocessors = 0;
  uint64_t memory_bytes = 0;
  int driver_version = 0;   // newest CUDA that the driver serves: 1000 * major + 10 * minor
  int runtime_version = 0;  // CUDA that this program was built with, in the same form
};

bool BuiltWithCuda();

// At least one GPU, or why there is none: kUnsupported without CUDA in the build, kNotFound without
// a GPU or driver, kDeviceLost if a GPU does not answer.
Result<std::vector<GpuInfo>> ProbeGpus();

// One line for people: `cuda:0 NVIDIA H200, sm_90, 132 SMs, 139.8 GiB, CUDA 13.0 (driver 13.0)`.
std::string Describe(const GpuInfo& gpu);

}  // namespace lserve
