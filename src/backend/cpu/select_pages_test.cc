#include <gtest/gtest.h>

#include <algorithm>

#include "backend/cpu/attention_test_util.h"
#include "backend/cpu/page_choice.h"

namespace lserve {
namespace {

std::vector<CpuIsa> Isas() {
  std::vector<CpuIsa> isas;
  for (const CpuIsa isa : kAllCpuIsas) {
    if (isa <= BestCpuIsa()) isas.push_back(isa);
  }
  return isas;
}

// A table for `slots` lists.
struct Lists {
  explicit Lists(int slots, int capacity = 64)
      : num_runs(static_cast<size_t>(slots), -1), runs(static_cast<size_t>(slots * capacity)) {
    table = {.capacity = capacity, .num_runs = num_runs.data(), .runs = runs.data()};
  }
  std::vector<PageIdx> Pages(int entry) const {
    std::vector<PageIdx> pages;
    for (const PageRun& run : table.list(entry)) {
      for (PageIdx p = run.first; p < run.last; ++p) pages.push_back(p);
    }
    return pages;
  }
  std::vector<int> num_runs;
  std::vector<PageRun> runs;
  SelectionTable table;
};

// Mean softmax of the bounds of the pages [first, last), in double from the definition.
std::vector<double> NaiveMass(
    const TestCache& cache, const std::vector<float>& q, int head, PageIdx first, PageIdx last) {
  std::vector<double> mean(static_cast<size_t>(last - first), 0.0);
  const int dim = cache.shape.head_dim;
  for (int g = 0; g < cache.shape.group; ++g) {
    const float* x = q.data() + (head * cache.shape.group + g) * dim;
    std::vector<double> scores;
    for (PageIdx page = first; page < last; ++page) {
      double best = -1e300;
      for (int l = 0; l < kLogicalPagesPerPage; ++l) {
        const int begin = page * kPageTokens + l * kLogicalPageTokens;
        const int end = std::min(begin + kLogicalPageTokens, cache.shape.num_tokens[0]);
        if (begin >= end) break;
        std::vector<double> max(static_cast<size_t>(dim), -1e300);
        std::vector<double> min(static_cast<size_t>(dim), 1e300);
        for (int t = begin; t < end; ++t) {
          const std::vector<double> key = cache.Stored(cache.k[0], t, head);
          for (size_t d = 0; d < key.size(); ++d) {
            max[d] = std::max(max[d], key[d]);
            min[d] = std::min(min[d], key[d]);
          }
        }
        double bound = 0;
        for (int d = 0; d < dim; ++d) {
          const double a = ToFloat(ToBf16(x[d]));
          bound += std::max(a * max[static_cast<size_t>(d)], a * min[static_cast<size_t>(d)]);
        }
        best = std::max(best, bound);
      }
      scores.push_back(best * static_cast<double>(cache.scale()));
    }
    const double top = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    for (const double s : scores) sum += std::exp(s - top);
    for (size_t i = 0; i < scores.size(); ++i) mean[i] += std::exp(scores[i] - top) / sum;
  }
  return mean;
}

class CpuSelectPages : public testing::TestWithParam<DType> {};

TEST_P(CpuSelectPages, KeepsTheBest) {
  for (const CpuIsa isa : Isas()) {
    CpuBackend backend(isa, 2);
    for (const int head_dim : {16, 64, 128}) {
      for (const int newest : {2, 0}) {
        // Without forced newest pages the last one, with 5 tokens, competes too.
        TestCache cache(backend, {.dtype = GetParam(),
                                  .head_dim = head_dim,
                                  .kinds = {0, 1, 1},
                                  .group = 3,
                                  .num_tokens = {64 * 40 + 5}});
        cache.Fill(500);
        const std::vector<float> q = RandomFloats(static_cast<size_t>(cache.q_cols()), 5);
        Lists lists(2);
        cache.Select(q, {.num_pages = 41,
                         .sink_pages = 1,
                         .newest_pages = newest,
                         .budget_pages = 12,
                         .table = lists.table});
        for (int slot = 0; slot < 2; ++slot) {
          const int chosen = 11 - newest;
          const PageIdx last = 41 - newest;
          const std::vector<double> mass = NaiveMass(cache, q, slot + 1, 1, last);
          std::vector<double> sorted = mass;
          std::sort(sorted.rbegin(), sorted.rend());
          // Float scores may swap pages whose masses agree to 1e-5; here no two at the border do.
          ASSERT_GT(sorted[static_cast<size_t>(chosen - 1)],
                    sorted[static_cast<size_t>(chosen)] * (1 + 1e-5));
          std::vector<PageIdx> expected = {0};
          for (PageIdx p = 1; p < last; ++p) {
            if (mass[static_cast<size_t>(p - 1)] >= sorted[static_cast<size_t>(chosen - 1)])
              expected.push_back(p);
          }
          for (PageIdx p = last; p < 41; ++p) expected.push_back(p);
          EXPECT_EQ(lists.Pages(slot), expected)
              << Name(isa) << " D " << head_dim << " slot " << slot;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types,
                         CpuSelectPages,
                         testing::Values(DType::kBf16, DType::kInt8, DType::kInt4),
                         [](const auto& type) { return std::string(Name(type.param)); });

TEST(CpuSelectPages, TiesGoToTheLowerPage) {
  for (const CpuIsa isa : Isas()) {
    CpuBackend backend(isa, 1);
    TestCache cache(backend, {.kinds = {1}, .num_tokens = {64 * 30}});
    for (size_t i = 0; i < cache.k[0].size(); ++i) cache.k[0][i] = 0.5f;
    cache.Fill();
    const std::vector<float> q = RandomFloats(static_cast<size_t>(cache.q_cols()), 5);
    Lists lists(1);
    cache.Select(q, {.num_pages = 30, .budget_pages = 8, .table = lists.table});
    EXPECT_EQ(lists.Pages(0), (std::vector<PageIdx>{0, 1, 2, 3, 4, 5, 28, 29}));
    EXPECT_EQ(lists.num_runs[0], 2);
  }
}

TEST(CpuSelectPages, BudgetsThatNeedNoScores) {
  CpuBackend backend(BestCpuIsa(), 1);
  TestCache cache(backend, {.kinds = {1}, .num_tokens = {64 * 10}});
  cache.Fill();
  const std::vector<float> q = RandomFloats(static_cast<size_t>(cache.q_cols()), 5);
  Lists lists(1);
  cache.Select(q, {.num_pages = 10, .budget_pages = 10, .table = lists.table});
  EXPECT_EQ(lists.num_runs[0], 1);
  EXPECT_EQ(lists.runs[0], (PageRun{0, 10}));
  cache.Select(q, {.num_pages = 10, .budget_pages = 2, .table = lists.table});  // forced ones stay
  EXPECT_EQ(lists.Pages(0), (std::vector<PageIdx>{0, 8, 9}));
  cache.Select(q, {.num_pages = 2, .budget_pages = 1, .table = lists.table});  // all are forced
  EXPECT_EQ(lists.Pages(0), (std::vector<PageIdx>{0, 1}));
}

// A broken model must not become a crash.
TEST(CpuSelectPages, NanQueriesGiveSomeValidList) {
  for (const CpuIsa isa : Isas()) {
    CpuBackend backend(isa, 1);
    TestCache cache(backend, {.kinds = {1}, .num_tokens = {64 * 60}});
    cache.Fill();
    const std::vector<float> q(static_cast<size_t>(cache.q_cols()), std::nanf(""));
    Lists lists(1);
    cache.Select(q, {.num_pages = 60, .budget_pages = 20, .table = lists.table});
    EXPECT_EQ(lists.Pages(0).size(), 20u);
  }
}

TEST(PageChoice, KeepsTheOrderOfPagesFarBelowTheBest) {
  const std::vector<float> scores = {0, -200, -150, -100, -300};  // exp(-150) is 0 in float
  const std::vector<double> mass = MeanSoftmax(scores, 1, 1.0f);
  EXPECT_EQ(BestPages(mass, 3), (std::vector<PageIdx>{0, 2, 3}));
}

}  // namespace
}  // namespace lserve
