// Copies of every size around the blocks' edges arrive whole, also when the source changes as soon
// as the call returns.
#include "backend/cuda/host_staging.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "backend/cuda/device_memory.h"
#include "backend/cuda_probe.h"
#include "base/rng.h"

namespace lserve {
namespace {

TEST(HostStaging, EveryByteArrives) {
  const Result<std::vector<GpuInfo>> gpus = ProbeGpus();
  if (!gpus.ok()) GTEST_SKIP() << gpus.status().message();
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  {
    HostStaging staging(stream);
    constexpr size_t kMiB = size_t{1} << 20;
    Rng rng(1);
    for (const size_t bytes : {size_t{1}, 4 * kMiB, 16 * kMiB, 16 * kMiB + 1, 100 * kMiB + 12345}) {
      std::vector<uint64_t> words(bytes / 8 + 1);
      for (uint64_t& word : words) word = rng.NextU64();
      const std::vector<uint64_t> original = words;
      const Buffer device = AllocateOnDevice(bytes).value();
      ASSERT_TRUE(staging.CopyToDevice(device.data.get(), words.data(), bytes).ok());
      std::fill(words.begin(), words.end(), 0);
      ASSERT_EQ(
          cudaMemcpyAsync(words.data(), device.data.get(), bytes, cudaMemcpyDeviceToHost, stream),
          cudaSuccess);
      ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
      EXPECT_EQ(std::memcmp(words.data(), original.data(), bytes), 0) << bytes << " bytes";
    }
    EXPECT_TRUE(staging.Release().ok());
    // And again after that.
    const Buffer device = AllocateOnDevice(8).value();
    const uint64_t word = 42;
    ASSERT_TRUE(staging.CopyToDevice(device.data.get(), &word, sizeof(word)).ok());
  }
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

}  // namespace
}  // namespace lserve
