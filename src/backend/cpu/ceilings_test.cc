#include "backend/cpu/ceilings.h"

#include <gtest/gtest.h>

#include <vector>

#include "backend/cpu/aligned_array.h"

namespace lserve {
namespace {

// The loops on numbers that say what they computed: a loop that the compiler folded away, or one
// that does another amount of work than it states, is no ceiling.
TEST(CeilingsTest, LoopsDoTheWorkThatTheyState) {
  for (const CpuIsa isa : kAllCpuIsas) {
    if (isa > BestCpuIsa()) continue;
    const CeilingKernels& kernels = GetCeilingKernels(isa);
    // x = x / 2 + 1/2 from 0 is 1 - 2^-n: after 3 steps 0.875, once per chain.
    float f32 = 0;
    kernels.f32_fma(3, &f32);
    const int lanes = isa >= CpuIsa::kAvx512 ? 16 : isa == CpuIsa::kAvx2 ? 8 : 4;
    EXPECT_EQ(f32 / 0.875 * 2 * lanes, kernels.f32_flop) << Name(isa);
    EXPECT_EQ(kernels.bf16_dot != nullptr, isa == CpuIsa::kAvx512Bf16);
    EXPECT_EQ(kernels.int8_dot != nullptr, isa == CpuIsa::kAvx512Bf16);
    if (kernels.bf16_dot == nullptr) continue;
    // Each step adds 2 products of 1 per 32-bit lane (bf16) or 4 (int8); 16 lanes.
    float bf16 = 0;
    kernels.bf16_dot(3, &bf16);
    EXPECT_EQ(bf16 / 3 * 16 * 2, kernels.bf16_flop);
    uint32_t int8 = 0;
    kernels.int8_dot(3, &int8);
    EXPECT_EQ(int8 / 3.0 * 16 * 2, kernels.int8_op);
  }
}

TEST(CeilingsTest, ReadTouchesEveryWord) {
  constexpr int64_t kBytes = 1024;
  const AlignedArray<uint64_t> memory(kBytes / 8);
  for (const CpuIsa isa : kAllCpuIsas) {
    if (isa > BestCpuIsa()) continue;
    // The result is the sum of the first 64-bit lane of every vector, so each vector counts.
    const int64_t lanes = isa >= CpuIsa::kAvx512 ? 8 : isa == CpuIsa::kAvx2 ? 4 : 2;
    uint64_t expected = 0;
    for (int64_t i = 0; i < kBytes / 8; ++i) {
      memory.data()[i] = static_cast<uint64_t>(i * i + 1);
      if (i % lanes == 0) expected += memory.data()[i];
    }
    EXPECT_EQ(GetCeilingKernels(isa).read(memory.data(), kBytes), expected) << Name(isa);
  }
}

// Nothing is said about how fast a machine is; only what holds on every one.
TEST(CeilingsTest, RatesArePositiveAndAbsentInstructionsAreZero) {
  CeilingMeter meter(CpuIsa::kGeneric, 2);
  EXPECT_EQ(meter.num_threads(), 2);
  const CpuCeilings ceilings = meter.Measure();
  EXPECT_GT(ceilings.f32_flop_s, 0);
  EXPECT_GT(ceilings.read_bytes_s, 0);
  EXPECT_EQ(ceilings.bf16_flop_s, 0);
  EXPECT_EQ(ceilings.int8_op_s, 0);
  EXPECT_EQ(ceilings.dot_flop_s(), ceilings.f32_flop_s);
  EXPECT_GT(meter.Gauge(), 0);
}

}  // namespace
}  // namespace lserve
