// The hot kernels of the CPU backend as things that can be run alone, on fixed inputs that fit the
// caches: what instruction_count_test.cc counts.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "backend/cpu/cpu_isa.h"

namespace lserve {

struct HotKernel {
  std::string name;
  std::function<void()> run;  // owns its buffers; the same work at every call
};

// REQUIRES: isa <= BestCpuIsa().
std::vector<HotKernel> HotKernels(CpuIsa isa);

}  // namespace lserve
