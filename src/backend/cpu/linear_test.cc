// Linear of the cpu backend against a double loop, on every instruction set of this processor.
//
// The bound: both sides multiply the same rounded inputs. In float, each of the K terms costs at
// most two roundings (product and sum; one with a fused multiply-add), bias and y one each, every
// one relative to a partial sum of at most S = sum |x w| + |bias| + |y|: |error| <= (2 K + 2) u S
// with u = 2^-24, to first order in K u < 1e-3. The bf16 dot product also flushes denormals, which
// the test data has none of.
//
// A quantised weight has groups of n <= 128: the products with codes are exact in float (8 bits
// times 8), so a group costs 2 n roundings at most, its scale and its minimum two each, and every
// later group lets them pass through 4 more: (2 n + 4 G + 2) u S for G groups, where an int4 weight
// counts in S with the magnitudes of both its terms, |x| (scale code + |min|). If x is quantised
// too, sums of a group are exact: (G + 3) u S.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/weight_quant.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/strings.h"

namespace lserve {
namespace {

std::vector<CpuIsa> UsableIsas() {
  std::vector<CpuIsa> isas;
  for (const CpuIsa isa : kAllCpuIsas) {
    if (isa <= BestCpuIsa()) isas.push_back(isa);
  }
  return isas;
}

// A matrix [rows, cols] of a type, and the values it holds as doubles.
struct TestMatrix {
  std::vector<uint8_t> bytes;
  std::vector<double> values;
};

// The types that a checkpoint stores; quantised weights are made from bf16.
struct WeightType {
  const char* name;
  DType stored;
  WeightFormat format = WeightFormat::kAsStored;
};
constexpr WeightType kInt8 = {"int8", DType::kBf16, WeightFormat::kInt8};
constexpr WeightType kInt4 = {"int4", DType::kBf16, WeightFormat::kInt4};
constexpr WeightType kW8A8 = {"w8a8", DType::kBf16, WeightFormat::kW8A8};
constexpr WeightType kWeightTypes[] = {
    {"bf16", DType::kBf16}, {"f16", DType::kF16}, {"f32", DType::kF32}, kInt8, kInt4, kW8A8};

TestMatrix RandomWeights(Rng& rng, DType dtype, int64_t count) {
  TestMatrix m;
  m.bytes.resize(static_cast<size_t>(count * BitsOf(dtype) / 8));
  for (int64_t i = 0; i < count; ++i) {
    const float f = rng.NextFloat();
    if (dtype == DType::kF32) {
      std::memcpy(m.bytes.data() + 4 * i, &f, 4);
      m.values.push_back(f);
    } else if (dtype == DType::kBf16) {
      const Bf16 b = ToBf16(f);
      std::memcpy(m.bytes.data() + 2 * i, &b, 2);
      m.values.push_back(ToFloat(b));
    } else {
      const F16 h = ToF16(f);
      std::memcpy(m.bytes.data() + 2 * i, &h, 2);
      m.values.push_back(ToFloat(h));
    }
  }
  return m;
}

// Replaces the values of a matrix of `in` columns by what its codes stand for; magnitudes as above.
void QuantizeValues(WeightFormat format,
                    int64_t in,
                    std::vector<double>& values,
                    std::vector<double>& magnitudes) {
  magnitudes.resize(values.size());
  const int64_t rows = static_cast<int64_t>(values.size()) / in;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t first = 0; first < in; first += kWeightGroup) {
      const int count = static_cast<int>(std::min<int64_t>(kWeightGroup, in - first));
      const size_t at = static_cast<size_t>(row * in + first);
      std::vector<float> w(values.begin() + at, values.begin() + at + count);
      uint8_t codes[kWeightGroup];
      WeightScale scale;
      ASSERT_TRUE(QuantizeWeightGroup(format, w.data(), count, &scale, codes));
      for (int i = 0; i < count; ++i) {
        const double code =
            format == WeightFormat::kInt4 ? codes[i] : static_cast<int8_t>(codes[i]);
        values[at + i] = ToFloat(scale.min) + ToFloat(scale.scale) * code;
        magnitudes[at + i] = std::abs(ToFloat(scale.min)) + ToFloat(scale.scale) * std::abs(code);
      }
    }
  }
}

std::vector<float> RandomFloats(Rng& rng, int64_t count) {
  std::vector<float> out(static_cast<size_t>(count));
  for (float& f : out) f = rng.NextFloat();
  return out;
}

struct Shape {
  int64_t rows;
  int64_t in;
  int64_t out;
};

// A Linear with everything that can go wrong around it: two parts, strides, values between rows.
struct Problem {
  Problem(const WeightType& weight_type, Shape s, bool with_bias, uint64_t seed)
      : type(weight_type), shape(s) {
    Rng rng(seed);
    weights = RandomWeights(rng, type.stored, s.in * s.out);
    if (type.format == WeightFormat::kAsStored) {
      for (const double w : weights.values) magnitudes.push_back(std::abs(w));
    } else {
      QuantizeValues(type.format, s.in, weights.values, magnitudes);
    }
    if (with_bias) bias = RandomFloats(rng, s.out);
    x_stride = s.in + 5;
    y_stride = s.out + 3;
    x = RandomFloats(rng, s.rows * x_stride);
    y = RandomFloats(rng, s.rows * y_stride);
  }

  LinearWeight Pack(CpuBackend& backend) const {
    const int64_t first = shape.out / 3;
    const DType stored = type.stored;
    const uint8_t* second = weights.bytes.data() + first * shape.in * BitsOf(stored) / 8;
    const WeightPart parts[] = {{weights.bytes.data(), stored, first},
                                {second, stored, shape.out - first}};
    Result<LinearWeight> weight = backend.PackLinear(parts, shape.in, bias, type.format);
    EXPECT_TRUE(weight.ok());
    return std::move(weight).value();
  }

  // Rows [first, first + rows) of y, the rest of y as it was.
  std::vector<float> Run(CpuBackend& backend,
                         const LinearWeight& weight,
                         bool accumulate,
                         int64_t first,
                         int64_t rows) const {
    std::vector<float> result = y;
    LinearParams p;
    p.x = ConstMatrix(x.data() + first * x_stride, DType::kF32, rows, shape.in, x_stride);
    p.weight = &weight;
    p.y = Matrix{result.data() + first * y_stride, DType::kF32, rows, shape.out, y_stride};
    p.accumulate = accumulate;
    EXPECT_TRUE(backend.Linear(p).ok());
    return result;
  }

  WeightType type;
  Shape shape;
  TestMatrix weights;
  std::vector<double> magnitudes;  // of the weights
  std::vector<float> bias;
  int64_t x_stride = 0;
  int64_t y_stride = 0;
  std::vector<float> x;
  std::vector<float> y;
};

double Roundings(const Problem& p) {
  const int64_t in = p.shape.in;
  if (p.type.format == WeightFormat::kAsStored) return static_cast<double>(2 * in + 2);
  if (p.type.format == WeightFormat::kW8A8) return static_cast<double>(NumWeightGroups(in) + 3);
  return static_cast<double>(2 * std::min<int64_t>(in, kWeightGroup) + 4 * NumWeightGroups(in) + 2);
}

// A row of x as the product sees it.
std::vector<double> RoundedInput(const Problem& p, int64_t row) {
  std::vector<double> rounded;
  for (int64_t first = 0; first < p.shape.in; first += kWeightGroup) {
    const float* x = p.x.data() + row * p.x_stride + first;
    const int count = static_cast<int>(std::min<int64_t>(kWeightGroup, p.shape.in - first));
    int8_t codes[kWeightGroup];
    const double scale = QuantizeInputGroup(x, count, codes);
    for (int i = 0; i < count; ++i) {
      const double bf16_or_float = p.type.stored == DType::kBf16 ? ToFloat(ToBf16(x[i])) : x[i];
      rounded.push_back(p.type.format == WeightFormat::kW8A8 ? scale * codes[i] : bf16_or_float);
    }
  }
  return rounded;
}

void ExpectWithinBound(const Problem& p, const std::vector<float>& got, bool accumulate) {
  for (int64_t r = 0; r < p.shape.rows; ++r) {
    const std::vector<double> x = RoundedInput(p, r);
    for (int64_t c = 0; c < p.shape.out; ++c) {
      const size_t at = static_cast<size_t>(r * p.y_stride + c);
      double sum = 0;
      double magnitude = 0;
      const double* w = p.weights.values.data() + c * p.shape.in;
      const double* magnitudes = p.magnitudes.data() + c * p.shape.in;
      for (size_t k = 0; k < x.size(); ++k) {
        sum += x[k] * w[k];
        magnitude += std::abs(x[k]) * magnitudes[k];
      }
      if (!p.bias.empty()) {
        sum += p.bias[static_cast<size_t>(c)];
        magnitude += std::abs(p.bias[static_cast<size_t>(c)]);
      }
      if (accumulate) {
        sum += p.y[at];
        magnitude += std::abs(p.y[at]);
      }
      const double bound = Roundings(p) * 0x1p-24 * magnitude;
      ASSERT_NEAR(got[at], sum, bound) << "row " << r << " column " << c;
    }
    for (int64_t c = p.shape.out; c < p.y_stride; ++c) {
      const size_t at = static_cast<size_t>(r * p.y_stride + c);
      ASSERT_EQ(got[at], p.y[at]) << "between the rows of y, row " << r;
    }
  }
}

class LinearTest : public testing::TestWithParam<std::tuple<CpuIsa, WeightType>> {
 protected:
  CpuIsa isa() const { return std::get<0>(GetParam()); }
  const WeightType& type() const { return std::get<1>(GetParam()); }
};

TEST_P(LinearTest, EqualsADoubleLoopForEveryNumberOfRows) {
  CpuBackend backend(isa(), 2);
  for (int64_t rows = 1; rows <= 130; rows += rows < 14 ? 1 : 29) {
    const Problem p(type(), {rows, 37, 100}, false, 1);
    const LinearWeight weight = p.Pack(backend);
    ExpectWithinBound(p, p.Run(backend, weight, false, 0, rows), false);
  }
}

TEST_P(LinearTest, EqualsADoubleLoopForOddShapesWithBiasAndAccumulate) {
  CpuBackend backend(isa(), 2);
  // 64 columns are a panel; 32 KiB of a panel a chunk of K: 128 to 256 elements.
  for (const Shape shape :
       {Shape{1, 1, 1}, Shape{3, 2, 63}, Shape{7, 5, 64}, Shape{2, 129, 65}, Shape{19, 255, 3},
        Shape{13, 256, 128}, Shape{8, 257, 191}, Shape{9, 1031, 70}}) {
    for (const bool with_bias : {false, true}) {
      for (const bool accumulate : {false, true}) {
        SCOPED_TRACE(StrCat(shape.rows, "x", shape.in, "x", shape.out, with_bias ? " bias" : "",
                            accumulate ? " accumulate" : ""));
        const Problem p(type(), shape, with_bias, 2);
        const LinearWeight weight = p.Pack(backend);
        ExpectWithinBound(p, p.Run(backend, weight, accumulate, 0, shape.rows), accumulate);
      }
    }
  }
}

// The contract of ops.h, bit for bit: alone, in any company, at any place, on any number of
// threads.
TEST_P(LinearTest, ARowDependsOnNothingButItself) {
  const Problem p(type(), {67, 1031, 150}, true, 3);
  CpuBackend one(isa(), 1);
  CpuBackend three(isa(), 3);
  const LinearWeight weight = p.Pack(one);
  const std::vector<float> all = p.Run(three, weight, true, 0, 67);
  EXPECT_EQ(p.Run(one, weight, true, 0, 67), all);
  for (const auto& [first, rows] : {std::pair<int64_t, int64_t>{0, 1},
                                    {66, 1},
                                    {5, 2},
                                    {1, 3},
                                    {7, 4},
                                    {30, 5},
                                    {11, 6},
                                    {13, 7},
                                    {1, 66}}) {
    const std::vector<float> some = p.Run(three, weight, true, first, rows);
    for (int64_t r = first; r < first + rows; ++r) {
      for (int64_t c = 0; c < p.shape.out; ++c) {
        const size_t at = static_cast<size_t>(r * p.y_stride + c);
        ASSERT_EQ(some[at], all[at]) << "row " << r << " of " << rows << " from " << first;
      }
    }
  }
}

TEST_P(LinearTest, NotANumberStaysInItsRow) {
  CpuBackend backend(isa(), 2);
  Problem p(type(), {8, 40, 70}, false, 4);
  const LinearWeight weight = p.Pack(backend);
  const std::vector<float> before = p.Run(backend, weight, false, 0, 8);
  uint32_t bits = 0x7fffffffu;  // a NaN that naive rounding to bf16 turns into -0
  std::memcpy(&p.x[static_cast<size_t>(3 * p.x_stride)], &bits, sizeof(bits));
  const std::vector<float> after = p.Run(backend, weight, false, 0, 8);
  for (int64_t r = 0; r < 8; ++r) {
    for (int64_t c = 0; c < 70; ++c) {
      const size_t at = static_cast<size_t>(r * p.y_stride + c);
      if (r == 3) {
        ASSERT_TRUE(std::isnan(after[at]));
      } else {
        ASSERT_EQ(after[at], before[at]);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(AllIsas,
                         LinearTest,
                         testing::Combine(testing::ValuesIn(UsableIsas()),
                                          testing::ValuesIn(kWeightTypes)),
                         [](const auto& test) {
                           return StrCat(Name(std::get<0>(test.param)), "_",
                                         std::get<1>(test.param).name);
                         });

// Sums of codes are exact, so that instruction sets without products of bytes give the same bits:
// the order of what is left is fixed. All but generic, whose multiply-add rounds twice.
TEST(CpuLinearTest, QuantisedInputsGiveTheSameBitsOnEveryInstructionSet) {
  const Problem p(kW8A8, {7, 1031, 70}, true, 6);
  std::vector<float> first;
  for (const CpuIsa isa : UsableIsas()) {
    if (isa == CpuIsa::kGeneric) continue;
    CpuBackend backend(isa, 2);
    const std::vector<float> y = p.Run(backend, p.Pack(backend), true, 0, 7);
    if (first.empty()) first = y;
    EXPECT_EQ(y, first) << Name(isa);
  }
}

// Groups of zeros, of values too small to have an inverse, and of infinities.
TEST(CpuLinearTest, QuantisedInputsOfAnyMagnitude) {
  for (const CpuIsa isa : UsableIsas()) {
    CpuBackend backend(isa, 1);
    Problem p(kW8A8, {4, 140, 70}, false, 7);
    for (int64_t k = 0; k < 140; ++k) {
      p.x[static_cast<size_t>(k)] = 0;
      p.x[static_cast<size_t>(p.x_stride + k)] *= 0x1p-120f;
      p.x[static_cast<size_t>(2 * p.x_stride + k)] *= 0x1p100f;
    }
    p.x[static_cast<size_t>(3 * p.x_stride + 130)] = -INFINITY;
    const LinearWeight weight = p.Pack(backend);
    const std::vector<float> y = p.Run(backend, weight, false, 0, 4);
    for (size_t c = 0; c < 70; ++c) {
      EXPECT_EQ(y[c], 0.0f);
      EXPECT_EQ(y[static_cast<size_t>(p.y_stride) + c], 0.0f);
      EXPECT_TRUE(std::isnan(y[static_cast<size_t>(3 * p.y_stride) + c]));
    }
    p.shape.rows = 3;
    ExpectWithinBound(p, y, false);
  }
}

// What a cache on disk relies on: the bytes of `data` are the whole weight but for its bias.
TEST(CpuLinearTest, AnImportedWeightIsTheWeight) {
  CpuBackend backend(BestCpuIsa(), 2);
  for (const WeightType& type : {kInt8, kInt4, kW8A8}) {
    const Problem p(type, {9, 300, 100}, true, 5);
    const LinearWeight packed = p.Pack(backend);
    const std::span<const std::byte> data(packed.data.as<const std::byte>(), packed.data.bytes);
    const WeightFormat format = type.format;
    const LinearWeight imported = backend.ImportLinear(format, 100, 300, data, p.bias).value();
    EXPECT_EQ(p.Run(backend, imported, false, 0, 9), p.Run(backend, packed, false, 0, 9));
    for (const auto& [out, in, bytes] : {std::tuple<int64_t, int64_t, std::span<const std::byte>>{
                                             100, 300, data.first(data.size() - 1)},
                                         {129, 300, data},
                                         {100, 301, data},
                                         {100, 300, {}}}) {
      EXPECT_EQ(backend.ImportLinear(format, out, in, bytes, {}).status().code(),
                Code::kCorruptModel);
    }
  }
}

TEST(CpuLinearTest, RefusesToQuantiseWhatIsNotFinite) {
  CpuBackend backend(BestCpuIsa(), 2);
  std::vector<float> w(2 * 200, 1.0f);
  w[300] = INFINITY;
  const WeightPart part{w.data(), DType::kF32, 2};
  const Status status = backend.PackLinear({&part, 1}, 200, {}, WeightFormat::kInt4).status();
  EXPECT_EQ(status.code(), Code::kCorruptModel);
  EXPECT_NE(status.message().find("row 1 "), std::string::npos) << status.message();
}

TEST(CpuLinearTest, RefusesAWeightTypeItHasNoKernelFor) {
  CpuBackend backend(CpuIsa::kGeneric, 1);
  const int8_t bytes[4] = {};
  const WeightPart part{bytes, DType::kInt8, 2};
  const Result<LinearWeight> weight =
      backend.PackLinear({&part, 1}, 2, {}, WeightFormat::kAsStored);
  ASSERT_FALSE(weight.ok());
  EXPECT_EQ(weight.status().code(), Code::kUnsupported);
}

}  // namespace
}  // namespace lserve
