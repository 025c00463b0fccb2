// The elementwise ops of the cpu backend against double arithmetic, on every instruction set.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/linear_kernels.h"
#include "base/half.h"
#include "base/rng.h"

namespace lserve {
namespace {

constexpr double kU = 0x1p-24;  // unit roundoff of float

std::vector<CpuIsa> UsableIsas() {
  std::vector<CpuIsa> isas;
  for (const CpuIsa isa : kAllCpuIsas) {
    if (isa <= BestCpuIsa()) isas.push_back(isa);
  }
  return isas;
}

std::vector<float> RandomFloats(uint64_t seed, int64_t count, float scale) {
  Rng rng(seed);
  std::vector<float> out(static_cast<size_t>(count));
  for (float& f : out) f = scale * rng.NextFloat();
  return out;
}

ConstMatrix View(const std::vector<float>& data, int64_t rows, int64_t cols) {
  return ConstMatrix(data.data(), DType::kF32, rows, cols,
                     static_cast<int64_t>(data.size()) / rows);
}
Matrix View(std::vector<float>& data, int64_t rows, int64_t cols) {
  return Matrix{data.data(), DType::kF32, rows, cols, static_cast<int64_t>(data.size()) / rows};
}

class ElementwiseTest : public testing::TestWithParam<CpuIsa> {
 protected:
  CpuBackend backend_{GetParam(), 2};
};

TEST_P(ElementwiseTest, GatherWidensEveryHalfExactly) {
  // Every bit pattern once, in rows of an odd length (tails).
  constexpr int64_t kCols = 257;
  constexpr int64_t kRows = 255;
  std::vector<uint16_t> table;
  for (int64_t i = 0; i < kRows * kCols; ++i) table.push_back(static_cast<uint16_t>(i));
  std::vector<int32_t> indices;
  for (int32_t i = 0; i < kRows; ++i) indices.push_back(kRows - 1 - i);
  for (const DType dtype : {DType::kBf16, DType::kF16}) {
    std::vector<float> out(kRows * kCols);
    ASSERT_TRUE(backend_
                    .GatherRows({ConstMatrix(table.data(), dtype, kRows, kCols, kCols), indices,
                                 View(out, kRows, kCols)})
                    .ok());
    for (int64_t i = 0; i < kRows * kCols; ++i) {
      const uint16_t bits = table[static_cast<size_t>((kRows - 1 - i / kCols) * kCols + i % kCols)];
      const float want = dtype == DType::kBf16 ? ToFloat(Bf16{bits}) : ToFloat(F16{bits});
      const float got = out[static_cast<size_t>(i)];
      ASSERT_TRUE(got == want || (std::isnan(got) && std::isnan(want)))
          << Name(dtype) << " " << bits << ": " << got << " against " << want;
    }
  }
}

TEST_P(ElementwiseTest, GatherCopiesFloats) {
  const std::vector<float> table = RandomFloats(1, 5 * 33, 1);
  const std::vector<int32_t> indices = {4, 0, 4};
  std::vector<float> out(3 * 33);
  ASSERT_TRUE(backend_.GatherRows({View(table, 5, 33), indices, View(out, 3, 33)}).ok());
  for (size_t i = 0; i < out.size(); ++i) {
    EXPECT_EQ(out[i], table[static_cast<size_t>(indices[i / 33]) * 33 + i % 33]);
  }
}

// Sum of squares: all terms positive, so at most n + 4 roundings (2 n without fused multiply-add),
// halved by the square root; then mean, + eps, sqrt, 1 / s and two products: 6 more.
TEST_P(ElementwiseTest, RmsNormIsWithinItsBound) {
  for (const int64_t n : {1, 5, 64, 100, 2048, 2049}) {
    for (const int groups : {1, 3}) {
      const int64_t rows = 9;
      const std::vector<float> x = RandomFloats(2, rows * (n * groups + 2), 3);
      const std::vector<float> weight = RandomFloats(3, n, 2);
      std::vector<float> y(x.size());
      RmsNormParams p;
      p.x = View(x, rows, n * groups);
      p.weight = weight.data();
      p.eps = 1e-5f;
      p.groups = groups;
      p.y = View(y, rows, n * groups);
      ASSERT_TRUE(backend_.RmsNorm(p).ok());
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t g = 0; g < groups; ++g) {
          const float* in = p.x.row<float>(r) + g * n;
          double squares = 0;
          for (int64_t i = 0; i < n; ++i) squares += double{in[i]} * in[i];
          const double scale = 1 / std::sqrt(squares / static_cast<double>(n) + double{p.eps});
          for (int64_t i = 0; i < n; ++i) {
            const double want = in[i] * scale * weight[static_cast<size_t>(i)];
            const double bound = (static_cast<double>(n) + 8) * kU * std::abs(want);
            ASSERT_NEAR(p.y.row<float>(r)[g * n + i], want, bound) << n << " " << groups;
          }
        }
      }
      // In place gives the same bits, and a row alone too.
      std::vector<float> same = x;
      p.x = View(same, rows, n * groups);
      p.y = View(same, rows, n * groups);
      ASSERT_TRUE(backend_.RmsNorm(p).ok());
      EXPECT_EQ(std::vector<float>(same.begin(), same.begin() + n),
                std::vector<float>(y.begin(), y.begin() + n));
    }
  }
}

// e^-a to 2^-22 (linear_kernels-inl.h) enters silu with a factor below 1; sum, quotient and product
// add three roundings: 2^-22 + 3 * 2^-24. Below a = -88 see the
// code.
TEST_P(ElementwiseTest, SiluMulIsWithinItsBound) {
  std::vector<float> gate;
  for (float a = -120; a <= 120; a += 0.0137f) gate.push_back(a);
  gate.insert(gate.end(), {0.0f, -0.0f, 1e-30f, -1e-30f, 87.9f, 88.1f, -88.1f, 3e38f, -3e38f});
  const int64_t n = static_cast<int64_t>(gate.size());
  std::vector<float> x = gate;
  const std::vector<float> up = RandomFloats(4, n, 2);
  x.insert(x.end(), up.begin(), up.end());
  std::vector<float> y(gate.size());
  ASSERT_TRUE(backend_.SiluMul({View(x, 1, 2 * n), View(y, 1, n)}).ok());
  double worst = 0;
  for (size_t i = 0; i < gate.size(); ++i) {
    const double want = gate[i] / (1 + std::exp(-double{gate[i]})) * up[i];
    const double error = std::abs(y[i] - want);
    // Below -88 the quotient stays at a e^-88; a denormal result is rounded to 2^-149.
    const double floor = gate[i] < -88 ? std::abs(gate[i] * std::exp(-88.0) * up[i]) : 0x1p-149;
    ASSERT_LE(error, (0x1p-22 + 3 * kU) * std::abs(want) + (1 + 4 * kU) * floor) << gate[i];
    if (want != 0 && gate[i] > -60) worst = std::max(worst, error / std::abs(want) / kU);
  }
  RecordProperty("worst_error_in_2^-24", std::to_string(worst));
}

TEST_P(ElementwiseTest, SiluMulPassesNotANumberOn) {
  const std::vector<float> x = {std::numeric_limits<float>::quiet_NaN(), 1, 1, 1};
  std::vector<float> y(2);
  ASSERT_TRUE(backend_.SiluMul({View(x, 1, 4), View(y, 1, 2)}).ok());
  EXPECT_TRUE(std::isnan(y[0]));
  EXPECT_FALSE(std::isnan(y[1]));
}

// Two products and a sum: three roundings, each relative to |a c| + |b s|.
TEST_P(ElementwiseTest, RopeIsWithinItsBoundAndLeavesOtherHeads) {
  for (const int head_dim : {2, 64, 80, 128}) {
    const int64_t rows = 5;
    const int64_t cols = 3 * head_dim;
    const std::vector<float> before = RandomFloats(5, rows * cols, 2);
    const std::vector<float> cos = RandomFloats(6, rows * head_dim / 2, 1);
    const std::vector<float> sin = RandomFloats(7, rows * head_dim / 2, 1);
    std::vector<float> x = before;
    RopeParams p;
    p.x = View(x, rows, cols);
    p.num_heads = 2;
    p.head_dim = head_dim;
    p.cos = View(cos, rows, head_dim / 2);
    p.sin = View(sin, rows, head_dim / 2);
    ASSERT_TRUE(backend_.Rope(p).ok());
    for (int64_t r = 0; r < rows; ++r) {
      const float* old = before.data() + r * cols;
      const float* now = x.data() + r * cols;
      for (int64_t h = 0; h < 2; ++h) {
        for (int64_t i = 0; i < head_dim / 2; ++i) {
          const double a = old[h * head_dim + i];
          const double b = old[h * head_dim + head_dim / 2 + i];
          const double c = p.cos.row<float>(r)[i];
          const double s = p.sin.row<float>(r)[i];
          const double first = a * c - b * s;
          const double second = b * c + a * s;
          ASSERT_NEAR(now[h * head_dim + i], first, 3 * kU * (std::abs(a * c) + std::abs(b * s)));
          ASSERT_NEAR(now[h * head_dim + head_dim / 2 + i], second,
                      3 * kU * (std::abs(b * c) + std::abs(a * s)));
        }
      }
      for (int64_t i = 2 * head_dim; i < cols; ++i) ASSERT_EQ(now[i], old[i]);
    }
  }
}

// Rows are spread over threads in groups; alone or together, on one thread or three: the same bits.
TEST_P(ElementwiseTest, ARowDependsOnNothingButItself) {
  const int64_t rows = 70;
  const int64_t n = 1003;
  const std::vector<float> x = RandomFloats(8, rows * 2 * n, 5);
  CpuBackend three(GetParam(), 3);
  std::vector<float> silu(static_cast<size_t>(rows * n));
  std::vector<float> norm(x.size());
  const std::vector<float> weight = RandomFloats(9, 2 * n, 1);
  RmsNormParams p;
  p.x = View(x, rows, 2 * n);
  p.weight = weight.data();
  p.y = View(norm, rows, 2 * n);
  ASSERT_TRUE(three.SiluMul({View(x, rows, 2 * n), View(silu, rows, n)}).ok());
  ASSERT_TRUE(three.RmsNorm(p).ok());
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<float> y(static_cast<size_t>(2 * n));
    const ConstMatrix row(x.data() + r * 2 * n, DType::kF32, 1, 2 * n, 2 * n);
    ASSERT_TRUE(backend_.SiluMul({row, Matrix{y.data(), DType::kF32, 1, n, n}}).ok());
    ASSERT_TRUE(std::equal(y.begin(), y.begin() + n, silu.begin() + r * n));
    p.x = row;
    p.y = View(y, 1, 2 * n);
    ASSERT_TRUE(backend_.RmsNorm(p).ok());
    ASSERT_TRUE(std::equal(y.begin(), y.end(), norm.begin() + r * 2 * n));
  }
}

TEST_P(ElementwiseTest, MemoryIsAlignedAndDescribed) {
  for (const size_t bytes : {size_t{1}, size_t{1000}, size_t{5} << 20}) {
    const Result<Buffer> buffer = backend_.Allocate(bytes);
    ASSERT_TRUE(buffer.ok());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.value().data.get()) % 64, 0u);
    EXPECT_EQ(buffer.value().bytes, bytes);
  }
  EXPECT_FALSE(backend_.Allocate(size_t{1} << 60).ok());
  EXPECT_FALSE(backend_.Allocate(std::numeric_limits<size_t>::max()).ok());
  EXPECT_EQ(backend_.description(), std::string("cpu, ") + Name(GetParam()) + ", 2 threads");
}

INSTANTIATE_TEST_SUITE_P(AllIsas,
                         ElementwiseTest,
                         testing::ValuesIn(UsableIsas()),
                         [](const auto& test) { return std::string(Name(test.param)); });

}  // namespace
}  // namespace lserve
