// The reference backend against expectations written by hand: no formula here is shared with it.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "backend/kv_quant.h"
#include "backend/reference/reference_backend.h"
#include "backend/reference/reference_kv_store.h"

namespace lserve {
namespace {

ConstMatrix View(const std::vector<float>& x, int64_t cols) {
  return {x.data(), DType::kF32, static_cast<int64_t>(x.size()) / cols, cols, cols};
}
Matrix View(std::vector<float>& x, int64_t cols) {
  return {.data = x.data(),
          .rows = static_cast<int64_t>(x.size()) / cols,
          .cols = cols,
          .stride = cols};
}

TEST(Reference, LinearRoundsItsInputOnlyForBf16Weights) {
  ReferenceBackend backend;
  const float x0 = 1.0f + 0x1p-10f;  // bf16 has 7 bits behind the point: becomes 1
  const std::vector<float> x = {x0, 2.0f};
  const Bf16 bf16[] = {ToBf16(3.0f), ToBf16(-1.0f), ToBf16(0.5f), ToBf16(4.0f)};
  const float f32[] = {3.0f, -1.0f, 0.5f, 4.0f};
  const std::vector<float> bias = {10.0f, 20.0f};
  const auto run = [&](const void* data, DType dtype, bool accumulate) {
    // One row per part.
    const size_t row_bytes = static_cast<size_t>(2 * BitsOf(dtype) / 8);
    const WeightPart parts[] = {{data, dtype, 1},
                                {static_cast<const std::byte*>(data) + row_bytes, dtype, 1}};
    const LinearWeight weight = backend.PackLinear(parts, 2, bias, WeightFormat::kAsStored).value();
    std::vector<float> y = {100.0f, 200.0f};
    EXPECT_TRUE(
        backend
            .Linear({.x = View(x, 2), .weight = &weight, .y = View(y, 2), .accumulate = accumulate})
            .ok());
    return y;
  };
  EXPECT_EQ(run(bf16, DType::kBf16, false), (std::vector<float>{11.0f, 28.5f}));
  EXPECT_EQ(run(bf16, DType::kBf16, true), (std::vector<float>{111.0f, 228.5f}));
  EXPECT_EQ(run(f32, DType::kF32, false), (std::vector<float>{3 * x0 + 8, 0.5f * x0 + 28}));
}

TEST(Reference, LinearRefusesAWeightTypeItCannotRead) {
  ReferenceBackend backend;
  const int8_t bytes[4] = {};
  const WeightPart part = {bytes, DType::kInt8, 2};
  EXPECT_EQ(backend.PackLinear({&part, 1}, 2, {}, WeightFormat::kAsStored).status().code(),
            Code::kUnsupported);
}

TEST(Reference, RmsNormPerGroup) {
  ReferenceBackend backend;
  std::vector<float> x = {3, 4, 0, 2};
  const float weight[] = {1, 10};
  ASSERT_TRUE(
      backend.RmsNorm({.x = View(x, 4), .weight = weight, .eps = 0, .groups = 2, .y = View(x, 4)})
          .ok());
  // Mean squares 12.5 and 2.
  const float expected[] = {0.84852814f, 11.3137085f, 0.0f, 14.1421356f};
  for (size_t i = 0; i < 4; ++i) EXPECT_FLOAT_EQ(x[i], expected[i]);
}

TEST(Reference, RmsNormEpsilonIsInsideTheRoot) {
  ReferenceBackend backend;
  std::vector<float> x = {1, 1};
  const float weight[] = {1, 1};
  ASSERT_TRUE(backend.RmsNorm({.x = View(x, 2), .weight = weight, .eps = 3, .y = View(x, 2)}).ok());
  EXPECT_EQ(x, (std::vector<float>{0.5f, 0.5f}));
}

TEST(Reference, SiluMul) {
  ReferenceBackend backend;
  const std::vector<float> x = {0.0f, 1.0f, -1000.0f, 5.0f, 2.0f, 7.0f};  // gates, then ups
  std::vector<float> y(3);
  ASSERT_TRUE(backend.SiluMul({View(x, 6), View(y, 3)}).ok());
  EXPECT_EQ(y[0], 0.0f);
  EXPECT_FLOAT_EQ(y[1], 2 * 0.7310585786f);
  EXPECT_EQ(y[2], 0.0f);
}

TEST(Reference, GatherRows) {
  ReferenceBackend backend;
  const Bf16 table[] = {ToBf16(1), ToBf16(2), ToBf16(3), ToBf16(-4)};
  const std::vector<int32_t> indices = {1, 0, 1};
  std::vector<float> out(6);
  ASSERT_TRUE(backend.GatherRows({{table, DType::kBf16, 2, 2, 2}, indices, View(out, 2)}).ok());
  EXPECT_EQ(out, (std::vector<float>{3, -4, 1, 2, 3, -4}));
}

// Position 1,000,000 with frequencies 1 and 1/1000: cosines and sines of 1e6 and of 1000 radians.
TEST(Reference, RopeAtAMillion) {
  ReferenceBackend backend;
  const std::vector<float> cos = {0.93675212753314474f, 0.56237907629070295f};
  const std::vector<float> sin = {-0.34999350217129296f, 0.82687954053200256f};
  // Two heads and one more that stays. Element i pairs with i + 2.
  std::vector<float> x = {1, 0, 0, 1, 0, 2, 1, 0, 5, 6, 7, 8};
  ASSERT_TRUE(backend
                  .Rope({.x = View(x, 12),
                         .num_heads = 2,
                         .head_dim = 4,
                         .cos = View(cos, 2),
                         .sin = View(sin, 2)})
                  .ok());
  const std::vector<float> expected = {cos[0], -sin[1],    sin[0], cos[1], -sin[0], 2 * cos[1],
                                       cos[0], 2 * sin[1], 5,      6,      7,       8};
  EXPECT_EQ(x, expected);
}

// One retrieval head of 16 dimensions, one layer, with a page per 64 tokens.
class ReferenceCache : public testing::Test {
 protected:
  static constexpr int kDim = 16;
  using Vector = std::vector<float>;

  void Make(DType dtype, PageId pages) {
    const KvLayout layout =
        MakeKvLayout(1, 1, kDim, dtype, {1}, backend_.kv_head_bytes(dtype, kDim));
    store_ = backend_.MakeKvStore(layout, {pages, 0}).value();
    ASSERT_TRUE(store_->Commit(Way::kRetrieval, 0, pages).ok());
    for (PageId p = pages; p > 0; --p) table_.push_back(p - 1);  // backwards
    sequence_.pages[Index(Way::kRetrieval)] = table_;
  }

  // A vector that is zero but for dimension `dim`.
  static Vector Unit(int dim, float value) {
    Vector x(kDim, 0.0f);
    x[static_cast<size_t>(dim)] = value;
    return x;
  }

  void Append(int64_t position, const Vector& k, const Vector& v) {
    const RowRange range = {0, 0, static_cast<int>(k.size()) / kDim, position};
    ASSERT_TRUE(backend_
                    .AppendKv({.k = View(k, kDim),
                               .v = View(v, kDim),
                               .store = store_.get(),
                               .layer = 0,
                               .sequences = {&sequence_, 1},
                               .ranges = {&range, 1}})
                    .ok());
  }

  Vector Attend(const Vector& q, const PlanRow& row, int num_q_heads = 1) {
    PagePlan plan;
    plan.rows = {row};
    Vector out(q.size(), -1.0f);
    const int cols = num_q_heads * kDim;
    EXPECT_TRUE(backend_
                    .DecodeAttention({.q = View(q, cols),
                                      .out = View(out, cols),
                                      .num_q_heads = num_q_heads,
                                      .scale = 0.5f,
                                      .store = store_.get(),
                                      .layer = 0,
                                      .sequences = {&sequence_, 1},
                                      .plan = &plan})
                    .ok());
    return out;
  }

  const ReferencePart Part(PageIdx page) const {
    const auto& store = static_cast<const ReferenceKvStore&>(*store_);
    return store.Part(Way::kRetrieval, table_[static_cast<size_t>(page)], 0, 0);
  }

  ReferenceBackend backend_;
  std::unique_ptr<KvStore> store_;
  std::vector<PageId> table_;
  SequencePages sequence_;
};

TEST_F(ReferenceCache, TwoKeysAndALogarithm) {
  Make(DType::kBf16, 1);
  // Scores 0.5 * q * k: 0 and 0.5 * 4 * 0.5 = 1, so that the second key weighs e times the first.
  Append(0, Unit(3, 0.0f), Unit(0, 1.0f));
  Append(1, Unit(3, 0.5f), Unit(1, 1.0f));
  const PlanRow row = {.num_queries = 1, .first_position = 1, .newest = {0, 1}};
  const Vector out = Attend(Unit(3, 4.0f), row);
  EXPECT_FLOAT_EQ(out[0], 0.26894142f);
  EXPECT_FLOAT_EQ(out[1], 0.73105858f);
  for (size_t d = 2; d < kDim; ++d) EXPECT_EQ(out[d], 0.0f);
}

TEST_F(ReferenceCache, QueriesAreRoundedToBf16) {
  Make(DType::kBf16, 1);
  Append(0, Unit(3, 0.0f), Unit(0, 1.0f));
  Append(1, Unit(3, 64.0f), Unit(1, 1.0f));
  const PlanRow row = {.num_queries = 1, .first_position = 1, .newest = {0, 1}};
  // 1/32 + 2^-14 is not a bf16; its neighbour 1/32 gives the score 1.
  EXPECT_FLOAT_EQ(Attend(Unit(3, 0.03125f + 0x1p-14f), row)[1], 0.73105858f);
}

TEST_F(ReferenceCache, SinkAndWindowAndNothing) {
  Make(DType::kBf16, 2);
  // Equal keys; token t's value is t in dimension 0, up to 127 exact.
  for (int t = 0; t < 128; ++t) Append(t, Unit(0, 0.0f), Unit(0, static_cast<float>(t)));
  PlanRow row = {.num_queries = 1, .first_position = 100, .newest = {0, 2}};
  EXPECT_FLOAT_EQ(Attend(Unit(0, 1), row)[0], 50.0f);  // the mean of 0..100, not of 0..127
  row.window = 3;
  EXPECT_FLOAT_EQ(Attend(Unit(0, 1), row)[0], 99.0f);  // 98, 99, 100
  row.sink_end = 2;
  EXPECT_FLOAT_EQ(Attend(Unit(0, 1), row)[0], (0 + 1 + 98 + 99 + 100) / 5.0f);
  row.newest = {1, 2};
  EXPECT_FLOAT_EQ(Attend(Unit(0, 1), row)[0], 99.0f);  // the sinks' page is not visited
  row.first_position = 63;
  EXPECT_EQ(Attend(Unit(0, 1), row), Vector(kDim, 0.0f));  // all keys lie ahead
}

TEST_F(ReferenceCache, EveryQueryHeadOfTheGroupReadsTheHead) {
  Make(DType::kBf16, 1);
  Append(0, Unit(0, 0.0f), Unit(0, 1.0f));
  Append(1, Unit(0, 0.5f), Unit(0, 3.0f));
  const PlanRow row = {.num_queries = 1, .first_position = 1, .newest = {0, 1}};
  Vector q = Unit(0, 4.0f);
  const Vector zero(kDim, 0.0f);
  q.insert(q.end(), zero.begin(), zero.end());
  const Vector out = Attend(q, row, 2);
  EXPECT_FLOAT_EQ(out[0], 0.26894142f + 3 * 0.73105858f);
  EXPECT_FLOAT_EQ(out[kDim], 2.0f);
}

TEST_F(ReferenceCache, StatisticsResetWithTheFirstTokenOfALogicalPage) {
  Make(DType::kBf16, 1);
  for (int round = 0; round < 2; ++round) {  // the second round recycles the page
    for (int t = 0; t < 40; ++t) {
      const float key = round == 0 ? 100.0f * static_cast<float>(t - 20) : static_cast<float>(t);
      Append(t, Unit(1, key), Unit(0, 0));
    }
  }
  EXPECT_EQ(Part(0).StatsMin(0, 1), 0.0f);
  EXPECT_EQ(Part(0).StatsMax(0, 1), 15.0f);
  EXPECT_EQ(Part(0).StatsMin(1, 1), 16.0f);
  EXPECT_EQ(Part(0).StatsMax(1, 1), 31.0f);
  EXPECT_EQ(Part(0).StatsMin(2, 1), 32.0f);
  EXPECT_EQ(Part(0).StatsMax(2, 1), 39.0f);
  EXPECT_EQ(Part(0).StatsMax(2, 0), 0.0f);
}

// Pages with keys in one dimension; the page's bound is q times its largest key, or its smallest.
TEST_F(ReferenceCache, SelectsByTheBoundOfTheBestLogicalPage) {
  Make(DType::kBf16, 6);
  //                       sink  1     2     3     4     newest
  const float largest[] = {0.0f, 2.0f, 8.0f, 4.0f, 1.0f, 0.0f};
  const float smallest[] = {0.0f, -2.0f, -1.0f, -3.0f, -9.0f, 0.0f};
  for (int t = 0; t < 5 * 64 + 1; ++t) {
    const int page = t / 64;
    // In different logical pages.
    const float key = t % 64 == 20 ? largest[page] : t % 64 == 50 ? smallest[page] : 0.0f;
    Append(t, Unit(2, key), Unit(0, 0));
  }
  const auto select = [&](float q, int budget) {
    int num_runs = 0;
    PageRun runs[6];
    const SelectRequest request = {.num_pages = 6,
                                   .sink_pages = 1,
                                   .newest_pages = 1,
                                   .budget_pages = budget,
                                   .table = {.capacity = 6, .num_runs = &num_runs, .runs = runs}};
    const Vector query = Unit(2, q);
    EXPECT_TRUE(backend_
                    .SelectPages({.q = View(query, kDim),
                                  .num_q_heads = 1,
                                  .scale = 0.5f,
                                  .store = store_.get(),
                                  .layer = 0,
                                  .sequences = {&sequence_, 1},
                                  .requests = {&request, 1}})
                    .ok());
    return std::vector<PageRun>(runs, runs + num_runs);
  };
  using Runs = std::vector<PageRun>;
  EXPECT_EQ(select(1.0f, 3), (Runs{{0, 1}, {2, 3}, {5, 6}}));
  EXPECT_EQ(select(1.0f, 4), (Runs{{0, 1}, {2, 4}, {5, 6}}));
  EXPECT_EQ(select(-1.0f, 3), (Runs{{0, 1}, {4, 6}}));
  EXPECT_EQ(select(-1.0f, 4), (Runs{{0, 1}, {3, 6}}));
  EXPECT_EQ(select(0.0f, 4), (Runs{{0, 3}, {5, 6}}));  // ties: the lower pages
  EXPECT_EQ(select(1.0f, 6), (Runs{{0, 6}}));
}

// The mean of softmaxes, not the softmax of a mean: two heads are sure of page 0, and one is much
// surer of page 1.
TEST_F(ReferenceCache, HeadsOfAGroupAreAveragedAfterTheSoftmax) {
  Make(DType::kBf16, 3);
  for (int t = 0; t < 129; ++t) {
    Append(t, t < 64 ? Unit(0, 4.0f) : t < 128 ? Unit(1, 4.0f) : Unit(2, 0.0f), Unit(0, 0));
  }
  int num_runs = 0;
  PageRun runs[3];
  const SelectRequest request = {.num_pages = 3,
                                 .sink_pages = 0,
                                 .newest_pages = 1,
                                 .budget_pages = 2,
                                 .table = {.capacity = 3, .num_runs = &num_runs, .runs = runs}};
  // Two heads score the pages 4 and 0, the third 0 and 200.
  Vector q = Unit(0, 2.0f);
  const Vector second = q;
  const Vector third = Unit(1, 100.0f);
  q.insert(q.end(), second.begin(), second.end());
  q.insert(q.end(), third.begin(), third.end());
  ASSERT_TRUE(backend_
                  .SelectPages({.q = View(q, 3 * kDim),
                                .num_q_heads = 3,
                                .scale = 0.5f,
                                .store = store_.get(),
                                .layer = 0,
                                .sequences = {&sequence_, 1},
                                .requests = {&request, 1}})
                  .ok());
  // Means of softmaxes: (0.982 + 0.982 + 0) / 3 against (0.018 + 0.018 + 1) / 3; means of scores:
  // 8 / 3 against 200 / 3.
  ASSERT_EQ(num_runs, 2);
  EXPECT_EQ(runs[0], (PageRun{0, 1}));
  EXPECT_EQ(runs[1], (PageRun{2, 3}));
}

TEST_F(ReferenceCache, CopyPageForgetsWhatWasNotCopied) {
  Make(DType::kBf16, 2);
  for (int t = 0; t < 64; ++t) Append(t, Unit(0, static_cast<float>(t)), Unit(0, 1));
  store_->CopyPage(Way::kRetrieval, table_[0], table_[1], 20);
  EXPECT_EQ(Part(1).StatsMax(0, 0), 15.0f);
  EXPECT_EQ(Part(1).StatsMin(1, 0), 16.0f);
  EXPECT_EQ(Part(1).StatsMax(1, 0), 19.0f);
  EXPECT_EQ(Part(0).StatsMax(1, 0), 31.0f);
}

TEST_F(ReferenceCache, StoresInt4AsTheFormatSays) {
  Make(DType::kInt4, 1);
  Vector ramp;
  for (int d = 0; d < kDim; ++d) ramp.push_back(static_cast<float>(d));  // 16 levels of scale 1
  Append(0, ramp, Unit(0, 0.25f));
  for (int d = 0; d < kDim; ++d) {
    EXPECT_EQ(Part(0).Load(ReferencePart::kKey, 0, d), static_cast<float>(d));
    EXPECT_NEAR(Part(0).Load(ReferencePart::kValue, 0, d), d == 0 ? 0.25f : 0.0f, 0x1p-10);
  }
}

// x~ is within half a step of x, and then half a bf16 step.
TEST(KvQuant, ErrorIsAtMostHalfAStep) {
  for (const DType dtype : {DType::kInt8, DType::kInt4}) {
    const int levels = QuantLevels(dtype);
    const std::vector<std::vector<float>> rows = {
        {0, 0, 0},          {0.3f, 0.3f, 0.3f}, {-1, 1, 0.1f},        {1e-7f, -1e-7f, 0},
        {60000, -60000, 1}, {1e-8f, 2e-8f, 0},  {5, 5.0001f, 4.9999f}};
    for (const std::vector<float>& row : rows) {
      const QuantScale q = ChooseQuantScale(row.data(), 3, levels);
      for (const float x : row) {
        const float got = ToFloat(Dequantize(QuantCode(x, q, levels), q));
        const float half_step = ToFloat(q.scale) / 2;
        // A few float roundings while the code is chosen.
        const double slack = 4 * 0x1p-24 * (std::abs(x) + std::abs(ToFloat(q.min)));
        EXPECT_NEAR(got, x, half_step + (std::abs(x) + half_step) * 0x1p-8 + slack) << x;
      }
    }
  }
}

TEST_F(ReferenceCache, StoresFp8AsTheFormatSays) {
  Make(DType::kFp8, 1);
  Vector k, v;
  for (int d = 0; d < kDim; ++d) k.push_back(static_cast<float>(d));  // at most 4 bits: all exact
  for (int d = 0; d < kDim; ++d) v.push_back(std::ldexp(1.0f, -d));
  v[1] = -0.3f;
  Append(0, k, v);
  for (int d = 0; d < kDim; ++d) {
    EXPECT_EQ(Part(0).Load(ReferencePart::kKey, 0, d), static_cast<float>(d));
    EXPECT_EQ(Part(0).StatsMin(0, d), static_cast<float>(d));
    const float stored = d == 1 ? -0.3125f : v[static_cast<size_t>(d)];  // 10 / 8 of a quarter
    EXPECT_EQ(Part(0).Load(ReferencePart::kValue, 0, d), stored);
  }
}

// As kv_quant.h promises: the stored value is a bf16 that no rounding made, off by at most 2^-4 of
// itself, or 2^-17 of the largest; the largest itself does not saturate.
TEST(KvQuant, Fp8ErrorFollowsTheElementDownToAShareOfTheLargest) {
  std::vector<std::vector<float>> rows = {
      {0, 0, 0},          {0.3f, 0.3f, 0.3f},       {-1, 1, 0.1f},   {1e-7f, -1e-7f, 0},
      {65504, -65504, 1}, {1e-8f, 2e-8f, 0},        {255.9f, 1, -1}, {-100, 0.01f, 0.05f},
      {1, 0x1p-14f, 0},   {1.9f, 0x1.1p-13f, 0.5f}, {0, -0.0f, 0},   {3e-38f, 1e-45f, 0}};
  for (int i = 0; i < 1000; ++i) {
    const float x = std::ldexp(1.0f + static_cast<float>(i) / 1000, i % 40 - 30);
    rows.push_back({x, -x * 0.7f, std::ldexp(x, -i % 20)});
  }
  for (const std::vector<float>& row : rows) {
    const uint8_t exponent = ChooseFp8Exponent(row.data(), 3);
    float largest = 0;
    for (const float x : row) largest = std::max(largest, std::abs(x));
    if (largest >= 0x1p-93f) {
      EXPECT_GE(largest, 128 * Fp8Scale(exponent));
      EXPECT_LT(largest, 256 * Fp8Scale(exponent));
    }
    for (const float x : row) {
      const uint8_t code = Fp8Code(x, exponent);
      const float got = ToFloat(DequantizeFp8(code, exponent));
      EXPECT_EQ(double{got}, double{ToFloat(E4m3{code})} * double{Fp8Scale(exponent)});
      const double bound = std::max({std::abs(x) * 0x1p-4, largest * 0x1p-17, 0x1p-110});
      EXPECT_NEAR(got, x, bound) << x << " beside " << largest;
    }
  }
}

TEST(KvQuant, Fp8HasNoNan) {
  const float x[] = {std::nanf(""), HUGE_VALF, -HUGE_VALF, 1.0f};
  const uint8_t exponent = ChooseFp8Exponent(x, 4);
  EXPECT_EQ(ToFloat(DequantizeFp8(Fp8Code(x[0], exponent), exponent)), 0.0f);
  EXPECT_EQ(ToFloat(DequantizeFp8(Fp8Code(x[1], exponent), exponent)), 65536.0f);
  EXPECT_EQ(ToFloat(DequantizeFp8(Fp8Code(x[2], exponent), exponent)), -65536.0f);
  EXPECT_EQ(ToFloat(DequantizeFp8(Fp8Code(x[3], exponent), exponent)), 1.0f);
}

TEST(KvQuant, NotANumberIsZeroAndInfinityIsTheEndOfTheRange) {
  const float x[] = {std::nanf(""), HUGE_VALF, -HUGE_VALF, 1.0f};
  const QuantScale q = ChooseQuantScale(x, 4, 255);
  EXPECT_EQ(ToFloat(q.min), -65504.0f);
  EXPECT_NEAR(ToFloat(Dequantize(QuantCode(x[1], q, 255), q)), 65504.0f, 512.0f);
  EXPECT_NEAR(ToFloat(Dequantize(QuantCode(x[0], q, 255), q)), 0.0f, ToFloat(q.scale) / 2 + 2);
}

}  // namespace
}  // namespace lserve
