// Linear against the reference, and the exactness that batching relies on. Shapes and edges of the
// kernels themselves: src/backend/cpu/linear_test.cc.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <optional>

#include "backend/weight_quant.h"
#include "base/half.h"
#include "parity/parity_cases.h"

namespace lserve::parity {
namespace {

// How a weight is stored and held.
struct WeightType {
  const char* name;
  DType stored;
  WeightFormat format = WeightFormat::kAsStored;

  bool is_quantised() const { return format != WeightFormat::kAsStored; }
};
constexpr WeightType kWeightTypes[] = {{"bf16", DType::kBf16},
                                       {"f16", DType::kF16},
                                       {"f32", DType::kF32},
                                       {"int8", DType::kBf16, WeightFormat::kInt8},
                                       {"int4", DType::kBf16, WeightFormat::kInt4},
                                       {"w8a8", DType::kBf16, WeightFormat::kW8A8}};

struct LinearCase {
  int64_t rows = 1;
  int64_t in = 1;
  int64_t out = 1;
  bool bias = false;
  bool accumulate = false;
};

std::vector<std::byte> Encode(const std::vector<float>& x, DType dtype) {
  std::vector<std::byte> bytes(x.size() * static_cast<size_t>(BitsOf(dtype) / 8));
  for (size_t i = 0; i < x.size(); ++i) {
    if (dtype == DType::kF32) {
      std::memcpy(bytes.data() + 4 * i, &x[i], 4);
    } else {
      const uint16_t bits = dtype == DType::kBf16 ? ToBf16(x[i]).bits : ToF16(x[i]).bits;
      std::memcpy(bytes.data() + 2 * i, &bits, 2);
    }
  }
  return bytes;
}

// |x| and |w| < 1, |bias| < 1, |y| < 1: both sides sum the same rounded products, the fast one in
// float with at most two roundings of 2^-24 per term, relative to S = sum |x w| + |bias| + |y|, and
// both round the result once. S <= in + 2; what bf16 rounding adds to |x| <= 1 is nothing: 1 is
// representable.
//
// Quantised: groups of n <= 128 with exact products, so 2 n roundings within a group, and 4 for
// each of the G groups that a sum passes through; an int4 weight is two terms of at most |min|
// <= 1.01 and 15 scale <= 2.03 (|w| < 1, min rounded down and the scale up by at most 2^-7 each).
//
// w8a8: codes of x are equal and a group's sum is exact, so only its scaling (1) and the sums that
// it passes through round; |x| <= 1 and |w| <= 1.01 as they are dequantised.
double LinearTolerance(const LinearCase& c, const WeightType& type) {
  const double terms = static_cast<double>(c.in + 2);
  if (!type.is_quantised()) return 2 * (terms + 1) * kFloatRoundoff * terms;
  const double in_group = static_cast<double>(std::min<int64_t>(c.in, kWeightGroup));
  const double groups = static_cast<double>(NumWeightGroups(c.in));
  if (type.format == WeightFormat::kW8A8) return (groups + 4) * kFloatRoundoff * 1.01 * terms;
  const double magnitude = type.format == WeightFormat::kInt8 ? terms : 3.04 * terms;
  return (2 * in_group + 4 * groups + 4) * kFloatRoundoff * magnitude;
}

// A weight, inputs and outputs; all rows or some of them.
class LinearHarness {
 public:
  // Weights are random, or all of them `value`.
  LinearHarness(Backend& backend,
                const WeightType& type,
                const LinearCase& c,
                std::optional<float> value = {})
      : backend_(backend), c_(c) {
    const DType stored = type.stored;
    std::vector<float> values = RandomFloats(1, c.in * c.out);
    if (value) std::fill(values.begin(), values.end(), *value);
    const std::vector<std::byte> w = Encode(values, stored);
    const std::vector<float> bias = c.bias ? RandomFloats(2, c.out) : std::vector<float>();
    // Two parts, as q and k of one projection.
    const int64_t first = c.out / 3;
    const WeightPart parts[] = {
        {w.data(), stored, first},
        {w.data() + first * c.in * BitsOf(stored) / 8, stored, c.out - first}};
    weight_ = backend.PackLinear(parts, c.in, bias, type.format).value();
  }

  std::vector<float>& x() { return x_; }

  // Rows [first, first + count) of y, without the gap between rows, which must stay.
  std::vector<float> Run(int64_t first, int64_t count) const {
    const int64_t stride = c_.out + 3;
    std::vector<float> y = RandomFloats(4, c_.rows * stride);
    const std::vector<float> before = y;
    const Status status = backend_.Linear(
        {.x = {x_.data() + first * (c_.in + 5), DType::kF32, count, c_.in, c_.in + 5},
         .weight = &weight_,
         .y = {.data = y.data() + first * stride, .rows = count, .cols = c_.out, .stride = stride},
         .accumulate = c_.accumulate});
    EXPECT_TRUE(status.ok()) << status.message();
    std::vector<float> out;
    for (int64_t r = 0; r < c_.rows; ++r) {
      for (int64_t i = 0; i < stride; ++i) {
        const size_t at = static_cast<size_t>(r * stride + i);
        if (r >= first && r < first + count && i < c_.out) {
          out.push_back(y[at]);
        } else {
          EXPECT_EQ(y[at], before[at]) << "row " << r << " element " << i << " is not its output";
        }
      }
    }
    return out;
  }
  std::vector<float> Run() const { return Run(0, c_.rows); }

 private:
  Backend& backend_;
  LinearCase c_;
  LinearWeight weight_;
  std::vector<float> x_ = RandomFloats(3, c_.rows*(c_.in + 5));
};

using SubjectAndWeight = std::tuple<Subject, WeightType>;

class LinearParity : public testing::TestWithParam<SubjectAndWeight> {
 protected:
  const Subject& subject() const { return std::get<0>(GetParam()); }
  const WeightType& type() const { return std::get<1>(GetParam()); }

  // Whether this backend has such weights; one that has none must say so.
  bool HasWeights() const { return !subject().is_cuda() || type().format != WeightFormat::kW8A8; }
  // Where a GPU multiplies bf16 in place of codes (ADR 0024), each product is off by 2^-8 of itself
  // at most. They point either way, but for weights and inputs that are all the same.
  double Tolerance(const LinearCase& c, bool all_same = false) const {
    const double exact = LinearTolerance(c, type());
    const bool streams = subject().config.kernels == "sm90" && c.in % 8 == 0 &&
                         (c.rows <= 64 || subject().is_batch_invariant());
    if (!subject().is_cuda() || !type().is_quantised() || streams) return exact;
    const double terms = static_cast<double>(c.in + 2);
    return exact + 0x1p-8 * (all_same ? 1.01 * terms : std::sqrt(terms));
  }
};

TEST_P(LinearParity, WeightsThatABackendLacksAreRefused) {
  if (HasWeights()) return;
  const std::vector<std::byte> w = Encode({1.0f}, type().stored);
  const WeightPart parts[] = {{w.data(), type().stored, 1}};
  const Status status = Make(subject())->PackLinear(parts, 1, {}, type().format).status();
  EXPECT_EQ(status.code(), Code::kUnsupported);
  EXPECT_NE(status.message().find("w8a8"), std::string::npos) << status.message();
}

TEST_P(LinearParity, WeightsThatAreNotFiniteAreRefused) {
  if (!type().is_quantised() || !HasWeights()) return;
  const std::unique_ptr<Backend> backend = Make(subject());
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    std::vector<float> values = RandomFloats(1, 3 * 300);
    values[300 + 257] = bad;
    const std::vector<std::byte> w = Encode(values, type().stored);
    const WeightPart parts[] = {{w.data(), type().stored, 1},
                                {w.data() + 300 * BitsOf(type().stored) / 8, type().stored, 2}};
    const std::string message =
        backend->PackLinear(parts, 300, {}, type().format).status().message();
    EXPECT_NE(message.find("row 1 "), std::string::npos) << message;
    EXPECT_NE(message.find("columns 256 to"), std::string::npos) << message;
  }
}

TEST_P(LinearParity, EqualsTheReference) {
  if (subject().is_reference() || !HasWeights()) return;
  const std::unique_ptr<Backend> backend = Make(subject());
  const std::unique_ptr<Backend> reference = Make(Subjects().front());
  for (LinearCase c : {LinearCase{1, 1, 1},
                       {1, 64, 64},
                       {3, 63, 65},
                       {17, 130, 31},
                       {5, 1031, 70},
                       {9, 2056, 40},
                       {130, 65, 129},
                       {321, 20, 7}}) {
    for (const bool extras : {false, true}) {
      c.bias = c.accumulate = extras;
      SCOPED_TRACE(StrCat(c.rows, " x ", c.in, " x ", c.out, extras ? " bias, accumulate" : ""));
      ASSERT_TRUE(Near(LinearHarness(*backend, type(), c).Run(),
                       LinearHarness(*reference, type(), c).Run(), Tolerance(c), c.out));
    }
  }
}

// Rows that one tile and that several tiles hold, K and N beside the sizes of groups and panels.
TEST_P(LinearParity, EqualsTheReferenceForAnyNumberOfRows) {
  if (subject().is_reference() || !HasWeights()) return;
  const std::unique_ptr<Backend> backend = Make(subject());
  const std::unique_ptr<Backend> reference = Make(Subjects().front());
  for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 16, 31, 33, 64, 513}) {
    for (const int64_t in : {128, 300, 641}) {
      const LinearCase c = {.rows = rows, .in = in, .out = rows > 64 ? 67 : 130, .bias = true};
      SCOPED_TRACE(StrCat(c.rows, " x ", c.in, " x ", c.out));
      ASSERT_TRUE(Near(LinearHarness(*backend, type(), c).Run(),
                       LinearHarness(*reference, type(), c).Run(), Tolerance(c), c.out));
    }
  }
}

// What few rows of a decoding batch give does not depend on the batch; larger products are
// cuBLAS's, whose kernels change with the number of rows.
TEST_P(LinearParity, BitsOfFewRowsDependOnTheRowAlone) {
  if (subject().is_batch_invariant()) return;  // held to more below
  if (!HasWeights()) return;
  const std::unique_ptr<Backend> backend = Make(subject());
  for (const int64_t in : {97, 512}) {
    // bf16 in whole vectors: tiles of tensor cores, up to 32 rows; codes on Hopper, up to 64.
    const bool vectors = in % 8 == 0;
    if (type().is_quantised() && (!vectors || subject().config.kernels != "sm90")) continue;
    const int64_t most = type().stored == DType::kBf16 && vectors ? 32 : 8;
    const LinearCase c = {.rows = most, .in = in, .out = 70, .bias = true, .accumulate = true};
    const LinearHarness linear(*backend, type(), c);
    const std::vector<float> all = linear.Run();
    for (int64_t rows = 1; rows <= c.rows; ++rows) {
      for (int64_t from = 0; from + rows <= c.rows; ++from) {
        const std::vector<float> part(all.begin() + from * c.out,
                                      all.begin() + (from + rows) * c.out);
        ASSERT_TRUE(SameBits(linear.Run(from, rows), part, c.out)) << rows << " from " << from;
      }
    }
  }
}

TEST_P(LinearParity, BitsDependOnTheRowAlone) {
  if (!subject().is_batch_invariant()) {
    GTEST_SKIP() << "cuBLAS multiplies many rows; see the test above, and the GPU's other mode";
  }
  if (!HasWeights()) return;
  // Several quantization groups and chunks of K for the quantised types.
  const LinearCase c = {.rows = 130,
                        .in = type().is_quantised() ? 417 : 97,
                        .out = 70,
                        .bias = true,
                        .accumulate = true};
  const std::unique_ptr<Backend> first = Make(subject(), 1);
  const LinearHarness linear(*first, type(), c);
  const std::vector<float> all = linear.Run();
  EXPECT_TRUE(SameBits(linear.Run(), all, c.out));
  for (const int threads : {1, 2, 3}) {
    const std::unique_ptr<Backend> backend = Make(subject(), threads);
    const LinearHarness other(*backend, type(), c);
    ASSERT_TRUE(SameBits(other.Run(), all, c.out)) << threads << " threads";
    for (int64_t rows = 1; rows <= c.rows; rows += rows < 20 ? 1 : 22) {
      const int64_t from = (rows * 37) % (c.rows - rows + 1);
      const std::vector<float> part(all.begin() + from * c.out,
                                    all.begin() + (from + rows) * c.out);
      ASSERT_TRUE(SameBits(other.Run(from, rows), part, c.out))
          << rows << " rows from " << from << ", " << threads << " threads";
    }
  }
  for (int64_t row = 0; row < c.rows; ++row) {
    const std::vector<float> part(all.begin() + row * c.out, all.begin() + (row + 1) * c.out);
    ASSERT_TRUE(SameBits(linear.Run(row, 1), part, c.out)) << "row " << row << " alone";
  }
}

// The same where a GPU has several kernels for it: K in whole vectors and in several turns of each
// slice of it, rows and out features beside the sizes of tiles, numbers of rows on either side of
// every change of kernel.
TEST_P(LinearParity, BitsOfTilesDependOnTheRowAlone) {
  if (!subject().is_cuda() || !subject().is_batch_invariant() || !HasWeights()) return;
  const std::unique_ptr<Backend> backend = Make(subject());
  for (const auto& [in, out] : {std::pair{72, 17}, {520, 200}, {2312, 131}, {8840, 40}}) {
    const LinearCase c = {.rows = 600, .in = in, .out = out, .bias = true, .accumulate = true};
    const LinearHarness linear(*backend, type(), c);
    const std::vector<float> all = linear.Run();
    for (const int64_t rows : {1, 2, 7, 8, 9, 16, 17, 32, 33, 64, 65, 127, 129, 512}) {
      for (const int64_t from : {int64_t{0}, rows * 37 % (c.rows - rows + 1), c.rows - rows}) {
        const std::vector<float> part(all.begin() + from * c.out,
                                      all.begin() + (from + rows) * c.out);
        ASSERT_TRUE(SameBits(linear.Run(from, rows), part, c.out))
            << rows << " rows from " << from << " of " << c.rows << " x " << in << " x " << out;
      }
    }
  }
}

// Bytes that overflow nothing: the largest codes of either sign in every place, where 16-bit sums
// of two products would saturate.
TEST_P(LinearParity, LargestValues) {
  if (subject().is_reference() || !HasWeights()) return;
  const std::unique_ptr<Backend> backend = Make(subject());
  const std::unique_ptr<Backend> reference = Make(Subjects().front());
  const LinearCase c = {.rows = 7, .in = 300, .out = 65};
  for (const float sign : {1.0f, -1.0f}) {
    LinearHarness fast(*backend, type(), c, 1.0f), expected(*reference, type(), c, 1.0f);
    for (float& x : fast.x()) x = sign;
    expected.x() = fast.x();
    ASSERT_TRUE(Near(fast.Run(), expected.Run(), Tolerance(c, true), c.out)) << sign;
  }
}

// A row of x and what comes of it when a norm and a gate join the product.
struct FusedCase {
  int64_t rows = 1;
  int64_t in = 1;
  int64_t out = 1;  // with a gate: of y; W has twice as many
  bool norm = false;
  bool gate = false;
  bool bias = false;
  bool any_x = false;  // else, with a norm, as follows
};

// The magnitudes of a row of x are equal, so that its norm is the weight up to its sign and an ulp
// of float, and rounds to the same bf16 on every backend; W and bias are random.
std::vector<float> RunFused(Backend& backend, const WeightType& type, const FusedCase& c) {
  const int64_t width = c.gate ? 2 * c.out : c.out;
  const std::vector<std::byte> w = Encode(RandomFloats(1, width * c.in), type.stored);
  const std::vector<float> bias = c.bias ? RandomFloats(2, width) : std::vector<float>();
  const WeightPart parts[] = {{w.data(), type.stored, width}};
  const LinearWeight weight = backend.PackLinear(parts, c.in, bias, type.format).value();
  std::vector<float> x = RandomFloats(3, c.rows * c.in), norm_weight = RandomFloats(4, c.in);
  for (float& value : norm_weight) value = ToFloat(ToBf16(value));
  for (int64_t i = 0; i < c.rows * c.in && c.norm && !c.any_x; ++i) {
    float& value = x[static_cast<size_t>(i)];
    const int64_t row = i / c.in;
    value = std::copysign(static_cast<float>(row + 1), value);
  }
  std::vector<float> normed(x.size()), product(static_cast<size_t>(c.rows * width));
  std::vector<float> gated(static_cast<size_t>(c.rows * c.out));
  const auto matrix = [&](std::vector<float>& data, int64_t cols) {
    return Matrix{.data = data.data(), .rows = c.rows, .cols = cols, .stride = cols};
  };
  FusedLinearParams p;
  p.linear = {
      .x = matrix(c.norm ? normed : x, c.in), .weight = &weight, .y = matrix(product, width)};
  if (c.norm) {
    p.norm = {.x = matrix(x, c.in),
              .weight = norm_weight.data(),
              .eps = 1e-6f,
              .y = matrix(normed, c.in)};
  }
  if (c.gate) p.gate = {.x = matrix(product, width), .y = matrix(gated, c.out)};
  const Status status = backend.FusedLinear(p);
  EXPECT_TRUE(status.ok()) << status.message();
  return c.gate ? gated : product;
}

// With |gate|, |up| <= m and each off by at most t (LinearTolerance), and the slope of silu at most
// 1.1, silu(gate) up is off by at most 2.2 m t + the rounding of silu, which SiluMul's test bounds.
// m is sqrt(in) for random signs, taken 8 times; the norm's own rounding is t's.
TEST_P(LinearParity, JoinedWithItsNeighboursEqualsTheReference) {
  if (subject().is_reference() || !HasWeights()) return;
  const std::unique_ptr<Backend> backend = Make(subject());
  const std::unique_ptr<Backend> reference = Make(Subjects().front());
  // Host backends call the ops one after another, whatever the shape.
  const std::vector<int64_t> all_rows = {1, 2, 7, 8, 9, 16, 17, 40, 70}, few_rows = {1, 9};
  for (const int64_t rows : subject().is_cuda() ? all_rows : few_rows) {
    for (const int64_t in : {64, 520, 2056}) {
      for (const int extras : {1, 2, 3, 7}) {
        // An ulp of the norm may move a code of w8a8's input by a step.
        if (type().format == WeightFormat::kW8A8 && (extras & 1) != 0) continue;
        const FusedCase c = {.rows = rows,
                             .in = in,
                             .out = 44,
                             .norm = (extras & 1) != 0,
                             .gate = (extras & 2) != 0,
                             .bias = (extras & 4) != 0};
        SCOPED_TRACE(StrCat(c.rows, " x ", c.in, c.norm ? " norm" : "", c.gate ? " gate" : "",
                            c.bias ? " bias" : ""));
        const double t = Tolerance({.rows = rows, .in = in, .out = c.out});
        const double m = 8 * std::sqrt(static_cast<double>(in));
        const double tolerance = c.gate ? 2.2 * m * t + 0x1p-21 * m * m : t;
        ASSERT_TRUE(
            Near(RunFused(*backend, type(), c), RunFused(*reference, type(), c), tolerance, c.out));
      }
    }
  }
}

// The norm of few rows is computed within the product, of more as they are rounded; the gate too.
TEST_P(LinearParity, BitsOfRowsJoinedWithTheirNeighboursDependOnTheRowAlone) {
  if (!subject().is_batch_invariant() || !HasWeights()) return;
  const std::unique_ptr<Backend> backend = Make(subject());
  for (const int64_t in : {76, 520, 2056}) {
    FusedCase c = {.rows = subject().is_cuda() ? 200 : 20, .in = in, .out = 44, .any_x = true};
    for (const bool gate : {false, true}) {
      c.norm = c.bias = true;
      c.gate = gate;
      const int64_t all_rows = c.rows, width = c.out;
      const std::vector<float> all = RunFused(*backend, type(), c);
      for (const int64_t rows : {1, 2, 8, 9, 17, 33, 64, 65, 129}) {
        if (rows >= all_rows) break;
        FusedCase part = c;
        part.rows = rows;
        ASSERT_TRUE(SameBits(RunFused(*backend, type(), part),
                             {all.begin(), all.begin() + rows * width}, width))
            << rows << " of " << all_rows << " rows, K " << in << (gate ? ", gate" : "");
      }
    }
  }
}

// An input element changed by a little more than one step of its format (127 codes, here for
// values up to 1) moves the result beyond the tolerance.
TEST(LinearParityCases, PlantedErrorsAreCaught) {
  const std::unique_ptr<Backend> reference = Make(Subjects().front());
  const LinearCase c = {.rows = 3, .in = 63, .out = 65};
  for (const WeightType& type : kWeightTypes) {
    LinearHarness linear(*reference, type, c);
    const std::vector<float> before = linear.Run();
    linear.x()[7] += 0x1p-6f;
    EXPECT_FALSE(Near(linear.Run(), before, LinearTolerance(c, type), c.out)) << type.name;
  }
}

INSTANTIATE_TEST_SUITE_P(All,
                         LinearParity,
                         testing::Combine(testing::ValuesIn(SubjectsAndModes()),
                                          testing::ValuesIn(kWeightTypes)),
                         [](const auto& test) {
                           return StrCat(std::get<0>(test.param).name, "_",
                                         std::get<1>(test.param).name);
                         });

}  // namespace
}  // namespace lserve::parity
