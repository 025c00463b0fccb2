// GatherRows, RmsNorm, SiluMul and Rope against the reference, in place and with odd strides.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <functional>

#include "base/half.h"
#include "parity/parity_cases.h"

namespace lserve::parity {
namespace {

bool SameRow(const float* a, const float* b, size_t count) {
  return std::equal(a, a + count, b, [](float x, float y) {
    return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y);
  });
}

constexpr double kU = kFloatRoundoff;

// A float matrix whose rows are `cols + 3` apart.
struct Floats {
  Floats(uint64_t seed, int64_t num_rows, int64_t num_cols, float scale = 1.0f)
      : rows(num_rows),
        cols(num_cols),
        data(RandomFloats(seed, num_rows * (num_cols + 3), scale)) {}
  Matrix view() { return {.data = data.data(), .rows = rows, .cols = cols, .stride = cols + 3}; }
  int64_t rows, cols;
  std::vector<float> data;
};

// The suites run over what Subjects() finds; this says so where it finds no GPU.
TEST(ParitySubjects, IncludeTheGpu) {
  const Status made = MakeBackend({.device = "cuda"}).status();
  if (!made.ok()) GTEST_SKIP() << "no case of these suites runs on a GPU: " << made.message();
  EXPECT_TRUE(Subjects().back().is_cuda());
}

class ElementwiseParity : public testing::TestWithParam<Subject> {
 protected:
  std::unique_ptr<Backend> backend_ = Make(GetParam());
  std::unique_ptr<Backend> reference_ = Make(Subjects().front());
};

// Every element within `bound(expected element)`, gaps included (they are the same bits before).
void ExpectNear(const Floats& got,
                const Floats& expected,
                const std::function<double(double)>& bound) {
  for (size_t i = 0; i < got.data.size(); ++i) {
    ASSERT_NEAR(got.data[i], expected.data[i], bound(expected.data[i]))
        << "row " << static_cast<int64_t>(i) / (got.cols + 3) << " column "
        << static_cast<int64_t>(i) % (got.cols + 3);
  }
}

TEST_P(ElementwiseParity, GatherRowsIsExact) {
  const std::vector<int32_t> indices = {4, 0, 4, 3};
  for (const int64_t cols : {1, 15, 64, 129}) {
    std::vector<uint16_t> halves;
    for (int64_t i = 0; i < 5 * (cols + 2); ++i) halves.push_back(ToF16(0.1f * i - 3).bits);
    std::vector<float> floats = RandomFloats(1, 5 * (cols + 2));
    for (const DType dtype : {DType::kBf16, DType::kF16, DType::kF32}) {
      const void* data = dtype == DType::kF32 ? static_cast<const void*>(floats.data())
                                              : static_cast<const void*>(halves.data());
      const ConstMatrix table(data, dtype, 5, cols, cols + 2);
      Floats got(2, 4, cols), expected(2, 4, cols);
      ASSERT_TRUE(backend_->GatherRows({table, indices, got.view()}).ok());
      ASSERT_TRUE(reference_->GatherRows({table, indices, expected.view()}).ok());
      ASSERT_TRUE(SameBits(got.data, expected.data, cols + 3)) << Name(dtype);
    }
  }
}

// The sum of n squares is off by n + 4 roundings at most (all terms are positive), the root halves
// them; mean, eps, root, reciprocal, two products and the result's own rounding: 7 more.
TEST_P(ElementwiseParity, RmsNorm) {
  for (const int64_t n : {1, 16, 80, 256, 2049}) {
    for (const int groups : {1, 3, 8}) {
      const std::vector<float> weight = RandomFloats(1, n);
      Floats x(2, 5, n * groups, 3.0f), got(3, 5, n * groups), expected(3, 5, n * groups);
      RmsNormParams p = {
          .x = x.view(), .weight = weight.data(), .eps = 1e-5f, .groups = groups, .y = {}};
      p.y = got.view();
      ASSERT_TRUE(backend_->RmsNorm(p).ok());
      p.y = expected.view();
      ASSERT_TRUE(reference_->RmsNorm(p).ok());
      ExpectNear(got, expected,
                 [&](double y) { return (static_cast<double>(n) / 2 + 9) * kU * std::abs(y); });
      // In place: the same bits.
      p.y = x.view();
      ASSERT_TRUE(backend_->RmsNorm(p).ok());
      for (int64_t r = 0; r < 5; ++r) {
        ASSERT_EQ(std::memcmp(x.view().row<float>(r), got.view().row<float>(r),
                              static_cast<size_t>(n * groups) * sizeof(float)),
                  0);
      }
    }
  }
}

// e^-a within 2^-22, then a sum, a quotient, a product and the reference's rounding.
TEST_P(ElementwiseParity, SiluMul) {
  for (const int64_t n : {1, 17, 64, 1000}) {
    Floats x(2, 7, 2 * n, 20.0f), got(3, 7, n), expected(3, 7, n);
    ASSERT_TRUE(backend_->SiluMul({x.view(), got.view()}).ok());
    ASSERT_TRUE(reference_->SiluMul({x.view(), expected.view()}).ok());
    ExpectNear(got, expected, [](double y) { return (0x1p-22 + 4 * kU) * std::abs(y) + 1e-37; });
  }
}

// Two products, their sum and the reference's rounding, with |x| < 1 and |cos|, |sin| <= 1: at most
// 2 u for the products, 2 * 2 u for sum and rounding. Heads beyond num_heads stay as they are.
TEST_P(ElementwiseParity, Rope) {
  for (const int head_dim : {16, 64, 80, 128}) {
    const int64_t half = head_dim / 2;
    Floats got(4, 6, 5 * head_dim), expected(4, 6, 5 * head_dim);
    Floats cos(5, 6, half), sin(5, 6, half);
    const int64_t positions[] = {0, 1, 63, 4097, 131071, 1000000};
    for (int64_t r = 0; r < 6; ++r) {
      for (int64_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(positions[r]) *
                             std::pow(5e5, -static_cast<double>(i) / static_cast<double>(half));
        cos.view().row<float>(r)[i] = static_cast<float>(std::cos(angle));
        sin.view().row<float>(r)[i] = static_cast<float>(std::sin(angle));
      }
    }
    for (const auto& [backend, x] :
         {std::pair{backend_.get(), &got}, {reference_.get(), &expected}})
      ASSERT_TRUE(backend
                      ->Rope({.x = x->view(),
                              .num_heads = 3,
                              .head_dim = head_dim,
                              .cos = cos.view(),
                              .sin = sin.view()})
                      .ok());
    ExpectNear(got, expected, [](double) { return 6 * kU; });
    const Floats before(4, 6, 5 * head_dim);
    for (int64_t r = 0; r < 6; ++r) {
      for (int64_t i = 3 * head_dim; i < 5 * head_dim; ++i) {
        const size_t at = static_cast<size_t>(r * (before.cols + 3) + i);
        ASSERT_EQ(got.data[at], before.data[at]);
      }
    }
  }
}

TEST_P(ElementwiseParity, BitsDependOnTheRowAlone) {
  Floats x(6, 70, 130, 5.0f), all(7, 70, 65), norm(8, 70, 130);
  const std::vector<float> weight = RandomFloats(9, 130);
  RmsNormParams p = {.x = x.view(), .weight = weight.data(), .eps = 1e-6f, .y = norm.view()};
  ASSERT_TRUE(backend_->SiluMul({x.view(), all.view()}).ok());
  ASSERT_TRUE(backend_->RmsNorm(p).ok());
  for (const int threads : {1, 2, 3}) {
    const std::unique_ptr<Backend> backend = Make(GetParam(), threads);
    for (int64_t r = 0; r < 70; ++r) {
      Floats silu(7, 1, 65), one(8, 1, 130);
      const ConstMatrix row(x.view().row<float>(r), DType::kF32, 1, 130, 133);
      ASSERT_TRUE(backend->SiluMul({row, silu.view()}).ok());
      ASSERT_TRUE(SameRow(silu.data.data(), all.view().row<float>(r), 65));
      p.x = row;
      p.y = one.view();
      ASSERT_TRUE(backend->RmsNorm(p).ok());
      ASSERT_TRUE(SameRow(one.data.data(), norm.view().row<float>(r), 130));
    }
  }
}

// A step of 2^-20 in one input exceeds every bound above.
TEST(ElementwiseParityCases, PlantedErrorsAreCaught) {
  const std::unique_ptr<Backend> reference = Make(Subjects().front());
  Floats x(2, 1, 34, 5.0f), expected(3, 1, 17), got(3, 1, 17);
  ASSERT_TRUE(reference->SiluMul({x.view(), expected.view()}).ok());
  x.data[17 + 5] *= 1 + 0x1p-20f;
  ASSERT_TRUE(reference->SiluMul({x.view(), got.view()}).ok());
  const double error = std::abs(double{got.data[5]} - double{expected.data[5]});
  EXPECT_GT(error, (0x1p-22 + 4 * kU) * std::abs(double{expected.data[5]}));
}

INSTANTIATE_TEST_SUITE_P(All, ElementwiseParity, testing::ValuesIn(Subjects()), SubjectName);

}  // namespace
}  // namespace lserve::parity
