// The probe tells the truth in all three situations: no CUDA in the build, no GPU in the machine,
// GPUs. The machine decides which of them this run sees; the log says which.
#include "backend/cuda_probe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace lserve {
namespace {

using ::testing::HasSubstr;

TEST(CudaProbe, AnswersWithGpusOrTheReason) {
  const Result<std::vector<GpuInfo>> gpus = ProbeGpus();
  if (!BuiltWithCuda()) {
    ASSERT_FALSE(gpus.ok());
    EXPECT_EQ(gpus.status().code(), Code::kUnsupported);
    EXPECT_THAT(gpus.status().message(), HasSubstr("LSERVE_CUDA=ON"));
  }
  if (!gpus.ok()) {
    EXPECT_THAT(gpus.status().message(), HasSubstr("--device cpu"));
    EXPECT_EQ(gpus.status().message().find('\n'), std::string::npos);
    EXPECT_NE(gpus.status().code(), Code::kDeviceLost) << gpus.status().message();
    RecordProperty("probe", gpus.status().message());
    return;
  }
  ASSERT_FALSE(gpus.value().empty());
  for (size_t i = 0; i < gpus.value().size(); ++i) {
    const GpuInfo& gpu = gpus.value()[i];
    EXPECT_EQ(gpu.index, static_cast<int>(i));
    EXPECT_FALSE(gpu.name.empty());
    EXPECT_GE(gpu.compute_major, 5);  // nothing older runs with a driver for CUDA 13
    EXPECT_GT(gpu.num_multiprocessors, 0);
    EXPECT_GT(gpu.memory_bytes, uint64_t{1} << 30);
    EXPECT_GE(gpu.driver_version, gpu.runtime_version / 1000 * 1000);
    RecordProperty("probe", Describe(gpu));
  }
}

TEST(CudaProbe, DescribesAGpuInOneLine) {
  const GpuInfo gpu = {.index = 1,
                       .name = "NVIDIA Test",
                       .compute_major = 9,
                       .compute_minor = 0,
                       .num_multiprocessors = 132,
                       .memory_bytes = (uint64_t{139} << 30) + (uint64_t{820} << 20),
                       .driver_version = 13020,
                       .runtime_version = 12080};
  EXPECT_EQ(Describe(gpu),
            "cuda:1 NVIDIA Test, sm_90, 132 SMs, 139.8 GiB, CUDA 12.8 (driver 13.2)");
}

}  // namespace
}  // namespace lserve
