// CpuIsa: the instruction sets that the cpu backend has kernels for, and which of them this
// processor and operating system can run. Used by the kernel tables, the backend and its registry.
#pragma once

#include <string>

#include "base/status.h"

namespace lserve {

// Each a superset of the one before.
enum class CpuIsa { kGeneric, kAvx2, kAvx512, kAvx512Bf16 };

inline constexpr CpuIsa kAllCpuIsas[] = {CpuIsa::kGeneric, CpuIsa::kAvx2, CpuIsa::kAvx512,
                                         CpuIsa::kAvx512Bf16};

// The best instruction set that this processor and operating system support.
CpuIsa BestCpuIsa();

// "generic", "avx2", "avx512", "avx512bf16".
const char* Name(CpuIsa isa);

// What --cpu-isa asks for: a name, or "auto" for the best. An error if this processor lacks it.
Result<CpuIsa> ChooseCpuIsa(const std::string& name);

}  // namespace lserve
