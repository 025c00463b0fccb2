#include "backend/cpu/cpu_isa.h"

#include <gtest/gtest.h>

#include "backend/cpu/linear_kernels.h"

namespace lserve {
namespace {

// libgcc's own CPUID code is an independent opinion.
TEST(CpuIsaTest, AgreesWithTheCompilersDetection) {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16") &&
                    __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
  const CpuIsa expected = bf16     ? CpuIsa::kAvx512Bf16
                          : avx512 ? CpuIsa::kAvx512
                          : avx2   ? CpuIsa::kAvx2
                                   : CpuIsa::kGeneric;
  EXPECT_STREQ(Name(BestCpuIsa()), Name(expected));
}

TEST(CpuIsaTest, TheOrderIsFromWeakToStrong) {
  EXPECT_LT(CpuIsa::kGeneric, CpuIsa::kAvx2);
  EXPECT_LT(CpuIsa::kAvx2, CpuIsa::kAvx512);
  EXPECT_LT(CpuIsa::kAvx512, CpuIsa::kAvx512Bf16);
}

TEST(CpuIsaTest, EveryInstructionSetHasKernelsOfItsOwn) {
  for (const CpuIsa a : kAllCpuIsas) {
    for (const CpuIsa b : kAllCpuIsas) {
      EXPECT_EQ(GetLinearKernels(a).tile == GetLinearKernels(b).tile, a == b) << Name(a) << Name(b);
    }
  }
}

}  // namespace
}  // namespace lserve
