// PageLogSums: the reference against the definition, every backend against the reference, and both
// against what attention itself says.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/half.h"
#include "parity/kv_harness.h"

namespace lserve::parity {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr int64_t kTokens = 300;

// 48 is no multiple of a vector's length.
KvShape Shape(DType dtype, int head_dim = 48, int group = 2) {
  return {.dtype = dtype,
          .head_dim = head_dim,
          .num_kv_heads = 3,
          .kinds = {1, 0, 1},
          .group = group,
          .num_tokens = {kTokens}};
}

// Three queries: everything; sink and window; a list with a hole, chosen for one slot.
PagePlan MixedPlan() {
  PagePlan plan;
  PlanRow row{.num_queries = 1};
  row.first_position = 299;
  row.newest = {0, 5};
  plan.rows.push_back(row);
  row.way = Way::kStreaming;
  row.first_query = 1;
  row.first_position = 250;
  row.sink_end = 10;
  row.window = 70;
  row.first_run = 0;
  row.num_runs = 1;
  row.newest = {2, 4};
  plan.rows.push_back(row);
  row = {.num_queries = 1};
  row.slot = 1;
  row.first_query = 2;
  row.first_position = 130;
  row.first_run = 0;
  row.num_runs = 1;
  row.newest = {2, 3};
  plan.rows.push_back(row);
  plan.runs = {{0, 1}};
  return plan;
}

// With |q| and |k| up to 1, a float dot product of d terms is off by at most d^2 u, the sum of up
// to 64 exponentials by 64 u relative, each exponential and the logarithm by a few u of values
// below 8.
double Tolerance(const KvShape& shape) {
  const double d = shape.head_dim;
  return d * d / std::sqrt(d) * kFloatRoundoff + (64 + 64) * kFloatRoundoff;
}

bool Same(float got, float expected, double tolerance) {
  if (expected == kNothing) return got == kNothing;
  return std::abs(double{got} - double{expected}) <= tolerance;
}

TEST(PageLogSums, ReferenceIsTheDefinition) {
  const std::unique_ptr<Backend> backend = Make(Subjects()[0]);
  const KvShape shape = Shape(DType::kBf16);
  const TokenFill fill = RandomTokens(3, shape.head_dim);
  KvHarness harness(*backend, shape, fill);
  harness.Fill();
  const std::vector<float> q = RandomFloats(5, 3 * shape.q_cols());
  const PagePlan plan = MixedPlan();
  const std::vector<float> sums = harness.LogSums(q, plan);
  const int stride = 5;
  std::vector<float> k(static_cast<size_t>(shape.head_dim)), v(k);
  for (size_t r = 0; r < plan.rows.size(); ++r) {
    const PlanRow& row = plan.rows[r];
    for (int head = 0; head < shape.num_q_heads(); ++head) {
      const int kv_head = head / shape.group;
      const HeadSlot at = harness.layout().slots[static_cast<size_t>(kv_head)];
      const bool mine = at.way == row.way && (row.slot == kAllSlots || row.slot == at.slot);
      std::vector<double> expected(stride, 0.0);
      const auto visit = [&](PageIdx page) {
        for (int64_t t = page * kPageTokens; t < std::min<int64_t>(kTokens, (page + 1) * 64); ++t) {
          if (!Visible(row, row.first_position, t)) continue;
          fill({0, 0, t, kv_head}, k.data(), v.data());
          double dot = 0;
          for (int d = 0; d < shape.head_dim; ++d) {
            const float* x = q.data() + row.first_query * shape.q_cols() + head * shape.head_dim;
            dot += double{ToFloat(ToBf16(x[d]))} * ToFloat(ToBf16(k[static_cast<size_t>(d)]));
          }
          expected[static_cast<size_t>(page)] += std::exp(dot * harness.scale());
        }
      };
      if (mine) ForEachPage(plan, row, 0, visit);
      for (int page = 0; page < stride; ++page) {
        const size_t i =
            (r * static_cast<size_t>(shape.num_q_heads()) + static_cast<size_t>(head)) * stride +
            static_cast<size_t>(page);
        const double sum = expected[static_cast<size_t>(page)];
        // The result is a float below 8.
        EXPECT_TRUE(Same(sums[i], sum > 0 ? static_cast<float>(std::log(sum)) : kNothing,
                         16 * kFloatRoundoff))
            << "row " << r << " head " << head << " page " << page << ": " << sums[i] << " ln "
            << sum;
      }
    }
  }
}

class PageLogSumsParity : public testing::TestWithParam<SubjectAndType> {};

TEST_P(PageLogSumsParity, AsTheReference) {
  const auto& [subject, dtype] = GetParam();
  const KvShape shape = Shape(dtype, subject.Supports(48) ? 48 : 96, 5);
  const TokenFill fill = RandomTokens(7, shape.head_dim);
  const std::vector<float> q = RandomFloats(9, 3 * shape.q_cols());
  const std::unique_ptr<Backend> reference = Make(Subjects()[0]), backend = Make(subject);
  KvHarness expected(*reference, shape, fill, 1), got(*backend, shape, fill, 2);
  expected.Fill();
  got.Fill(100);
  const std::vector<float> want = expected.LogSums(q, MixedPlan()),
                           have = got.LogSums(q, MixedPlan());
  ASSERT_EQ(want.size(), have.size());
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_TRUE(Same(have[i], want[i], Tolerance(shape)))
        << "value " << i << ": " << have[i] << ", expected " << want[i];
  }
}

INSTANTIATE_TEST_SUITE_P(All,
                         PageLogSumsParity,
                         testing::ValuesIn(WithKvTypes(FastSubjects())),
                         SubjectTypeName);

}  // namespace
}  // namespace lserve::parity
