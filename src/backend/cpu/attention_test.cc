#include <gtest/gtest.h>

#include <algorithm>

#include "backend/cpu/attention_test_util.h"
#include "backend/cpu/page_visits.h"

namespace lserve {
namespace {

using Op = TestCache::Op;

// The naive sums take nearly all of the time, thirty times as much under a sanitizer: there the
// shapes whose borders differ (padded heads, an odd group), in every instruction set.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kHeadDims[] = {80, 128};
constexpr int kGroups[] = {3};
#else
constexpr int kHeadDims[] = {16, 64, 80, 128};
constexpr int kGroups[] = {1, 2, 3};
#endif

std::vector<CpuIsa> Isas() {
  std::vector<CpuIsa> isas;
  for (const CpuIsa isa : kAllCpuIsas) {
    if (isa <= BestCpuIsa()) isas.push_back(isa);
  }
  return isas;
}

// Scores: float sums of head_dim products |q k| <= 1 err by at most head_dim ulps of the sum of
// magnitudes, head_dim; an error of a score is a relative error of its weight, twice (numerator
// and denominator). The exponential: 4e-6. Weights rounded to bf16 err by 2^-9 each, and so may
// numerator against denominator. |v| <= 1.
double Tolerance(const TestCache& cache, CpuIsa isa) {
  const double d = cache.shape.head_dim;
  const double scores = 2 * d * std::ldexp(d, -24) * static_cast<double>(cache.scale());
  return scores + 8e-6 + (isa == CpuIsa::kAvx512Bf16 ? std::ldexp(1.0, -8) : 0.0);
}

void ExpectNaive(
    const TestCache& cache, CpuIsa isa, Op op, const std::vector<float>& q, const PagePlan& plan) {
  const std::vector<float> out = cache.Attend(op, q, plan);
  const double tolerance = Tolerance(cache, isa);
  for (const PlanRow& row : plan.rows) {
    for (int i = 0; i < row.num_queries; ++i) {
      for (int h = 0; h < cache.num_q_heads(); ++h) {
        const HeadSlot at = cache.layout.slots[static_cast<size_t>(h / cache.shape.group)];
        if (at.way != row.way || (row.slot != kAllSlots && row.slot != at.slot)) continue;
        const std::vector<double> expected = cache.Naive(q, plan, row, i, h);
        for (int d = 0; d < cache.shape.head_dim; ++d) {
          const float got = out[static_cast<size_t>((row.first_query + i) * cache.q_cols() +
                                                    h * cache.shape.head_dim + d)];
          ASSERT_NEAR(got, expected[static_cast<size_t>(d)], tolerance)
              << Name(isa) << " query " << i << " head " << h << " dim " << d;
        }
      }
    }
  }
}

class CpuAttention : public testing::TestWithParam<DType> {};

TEST_P(CpuAttention, EqualsNaive) {
  for (const CpuIsa isa : Isas()) {
    CpuBackend backend(isa, 2);
    for (const int head_dim : kHeadDims) {
      for (const int group : kGroups) {
        SCOPED_TRACE(testing::Message() << Name(isa) << " D " << head_dim << " group " << group);
        TestCache cache(
            backend,
            {.dtype = GetParam(), .head_dim = head_dim, .group = group, .num_tokens = {203}});
        cache.Fill(77);  // pages are filled in pieces
        const std::vector<float> q = RandomFloats(static_cast<size_t>(75 * cache.q_cols()), 7);
        PagePlan plan;
        DenseRow(plan, 0, Way::kRetrieval, 0, 128, 75);
        DenseRow(plan, 0, Way::kStreaming, 0, 128, 75);
        plan.rows.back().sink_end = 5;
        plan.rows.back().window = 40;
        ExpectNaive(cache, isa, Op::kPrefill, q, plan);
        plan.Clear();
        DenseRow(plan, 0, Way::kRetrieval, 0, 202, 1);
        DenseRow(plan, 0, Way::kStreaming, 0, 202, 1);
        ExpectNaive(cache, isa, Op::kDecode, q, plan);
      }
    }
  }
}

// More pages than one decode piece; selected pages; several queries.
TEST_P(CpuAttention, DecodesLongLists) {
  for (const CpuIsa isa : Isas()) {
    CpuBackend backend(isa, 2);
    TestCache cache(backend, {.dtype = GetParam(), .kinds = {1, 1}, .num_tokens = {2600}});
    cache.Fill();
    const std::vector<float> q = RandomFloats(static_cast<size_t>(3 * cache.q_cols()), 7);
    PagePlan plan;
    DenseRow(plan, 0, Way::kRetrieval, 0, 2597, 3);
    ExpectNaive(cache, isa, Op::kDecode, q, plan);

    int num_runs[2] = {2, 3};
    PageRun runs[2][3] = {{{0, 1}, {3, 30}}, {{0, 2}, {9, 10}, {20, 41}}};
    plan.selections.push_back({.capacity = 3, .num_runs = num_runs, .runs = runs[0]});
    plan.rows[0].selection = 0;
    plan.rows[0].newest = {39, 41};
    ExpectNaive(cache, isa, Op::kDecode, q, plan);
  }
}

INSTANTIATE_TEST_SUITE_P(Types,
                         CpuAttention,
                         testing::Values(DType::kBf16, DType::kInt8, DType::kInt4),
                         [](const auto& type) { return std::string(Name(type.param)); });

// Cuts queries [first, first + count) into rows of at most `rows` at positions of their own.
PagePlan CutPlan(
    int first, int count, int piece, int64_t sink_end, int64_t window, bool only_seen) {
  PagePlan plan;
  for (int i = 0; i < count; i += piece) {
    const PlanRow row =
        DenseRow(plan, 0, Way::kRetrieval, i, first + i, std::min(piece, count - i));
    plan.rows.back().sink_end = sink_end;
    plan.rows.back().window = window;
    if (!only_seen) continue;
    PlanRow& last = plan.rows.back();
    last.num_runs = 0;
    for (PageIdx p = 0; p < row.newest.last - 1; ++p) {
      const QueryRange some = QueriesSeeingSome(last, p);
      if (some.first == some.last) continue;
      plan.runs.push_back({p, p + 1});
      ++last.num_runs;
    }
    last.newest.first = row.newest.last - 1;
  }
  return plan;
}

TEST(CpuAttentionBits, DependOnNeitherTileNorThreadsNorBatch) {
  for (const CpuIsa isa : Isas()) {
    CpuBackend one(isa, 1);
    CpuBackend three(isa, 3);
    const CacheShape shape = {.kinds = {1, 1, 1}, .group = 3, .num_tokens = {400, 90}};
    TestCache cache(one, shape);
    TestCache other(three, shape);
    cache.Fill();
    other.Fill(13);
    const std::vector<float> q = RandomFloats(static_cast<size_t>(220 * cache.q_cols()), 9);
    for (const int64_t window : {kNoWindow, int64_t{70}, int64_t{3}}) {
      for (const int64_t sink_end : {0, 30, 64, 100}) {
        const auto plan = [&](int piece, bool only_seen) {
          return CutPlan(180, 220, piece, sink_end, window, only_seen);
        };
        const std::vector<float> expected = cache.Attend(Op::kPrefill, q, plan(128, false));
        for (const int piece : {1, 7, 64, 100}) {
          const std::vector<float> got = cache.Attend(Op::kPrefill, q, plan(piece, true));
          ASSERT_EQ(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)), 0)
              << Name(isa) << " window " << window << " sink " << sink_end << " piece " << piece;
        }
        PagePlan batch = plan(128, true);
        // Another sequence beside it, whose output rows are past these.
        std::vector<float> more = q;
        more.insert(more.end(), q.begin(), q.begin() + 50 * cache.q_cols());
        DenseRow(batch, 1, Way::kRetrieval, 220, 40, 50);
        const std::vector<float> got = other.Attend(Op::kPrefill, more, batch);
        ASSERT_EQ(std::memcmp(got.data(), expected.data(), expected.size() * sizeof(float)), 0)
            << Name(isa);
      }
    }
  }
}

TEST(CpuAttentionBits, OfDecodeDependOnNeitherThreadsNorBatch) {
  for (const CpuIsa isa : Isas()) {
    CpuBackend one(isa, 1);
    CpuBackend three(isa, 3);
    const CacheShape shape = {.kinds = {1, 1}, .num_tokens = {2500, 1200}};
    TestCache cache(one, shape);
    TestCache other(three, shape);
    cache.Fill();
    other.Fill();
    const std::vector<float> q = RandomFloats(static_cast<size_t>(2 * cache.q_cols()), 9);
    PagePlan alone;
    DenseRow(alone, 0, Way::kRetrieval, 0, 2499, 1);
    PagePlan batch;
    DenseRow(batch, 1, Way::kRetrieval, 1, 1199, 1);
    DenseRow(batch, 0, Way::kRetrieval, 0, 2499, 1);
    const std::vector<float> expected = cache.Attend(Op::kDecode, q, alone);
    const std::vector<float> got = other.Attend(Op::kDecode, q, batch);
    EXPECT_EQ(std::memcmp(got.data(), expected.data(),
                          static_cast<size_t>(cache.q_cols()) * sizeof(float)),
              0)
        << Name(isa);
  }
}

TEST(CpuAttention, NothingSeenGivesZeros) {
  for (const CpuIsa isa : Isas()) {
    CpuBackend backend(isa, 1);
    TestCache cache(backend, {.kinds = {1}, .num_tokens = {200}});
    cache.Fill();
    const std::vector<float> q = RandomFloats(static_cast<size_t>(cache.q_cols()), 9);
    PagePlan plan;
    DenseRow(plan, 0, Way::kRetrieval, 0, 40, 1);
    plan.rows[0].newest = {1, 3};  // all ahead of the query
    for (const Op op : {Op::kPrefill, Op::kDecode}) {
      for (const float x : cache.Attend(op, q, plan)) ASSERT_EQ(x, 0.0f);
    }
  }
}

// Rows of many lengths against Visible(), the definition.
TEST(PageVisits, MasksFollowTheDefinition) {
  for (const int64_t sink_end : {0, 1, 63, 64, 65, 130}) {
    for (const int64_t window :
         {int64_t{1}, int64_t{2}, int64_t{63}, int64_t{64}, int64_t{65}, int64_t{150}, kNoWindow}) {
      PlanRow row;
      row.num_queries = 128;
      row.first_position = 100;
      row.sink_end = sink_end;
      row.window = window;
      for (PageIdx page = 0; page < 5; ++page) {
        const QueryRange some = QueriesSeeingSome(row, page);
        const QueryRange all = QueriesSeeingAll(row, page);
        for (int i = 0; i < row.num_queries; ++i) {
          const int64_t p = row.first_position + i;
          uint64_t bits = 0;
          for (int k = 0; k < kPageTokens; ++k) {
            if (Visible(row, p, int64_t{page} * kPageTokens + k)) bits |= uint64_t{1} << k;
          }
          ASSERT_EQ(VisibleKeys(row, p, page), bits);
          ASSERT_EQ(some.first <= i && i < some.last, bits != 0)
              << sink_end << " " << window << " " << page << " " << i;
          ASSERT_EQ(all.first <= i && i < all.last, bits == ~uint64_t{0});
        }
      }
    }
  }
}

TEST(PageVisits, CutAnywhereVisitsTheSamePages) {
  PagePlan plan;
  plan.runs = {{0, 2}, {5, 6}, {8, 20}, {21, 25}};
  PlanRow row;
  row.num_runs = 4;
  row.newest = {10, 13};
  std::vector<PageIdx> expected;
  ForEachPage(plan, row, 0, [&](PageIdx page) { expected.push_back(page); });
  const PageVisits visits(plan, row, 0);
  ASSERT_EQ(visits.count(), static_cast<int>(expected.size()));
  for (int piece = 1; piece <= visits.count() + 1; ++piece) {
    std::vector<PageIdx> got;
    for (int first = 0; first < visits.count(); first += piece) {
      visits.ForEach(first, first + piece, [&](PageIdx page) { got.push_back(page); });
    }
    EXPECT_EQ(got, expected);
  }
}

}  // namespace
}  // namespace lserve
