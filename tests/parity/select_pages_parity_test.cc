// SelectPages: page lists, compared exactly wherever the score at the cut leaves no doubt.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "parity/attention_cases.h"

namespace lserve::parity {
namespace {

std::vector<PageIdx> Pages(const std::vector<PageRun>& runs) {
  std::vector<PageIdx> pages;
  for (const PageRun& run : runs) {
    for (PageIdx page = run.first; page < run.last; ++page) pages.push_back(page);
  }
  return pages;
}

struct SelectCase {
  KvShape shape;
  SelectRequest request;
  int sequence() const { return request.sequence; }
  PageIdx first() const { return request.sink_pages; }
  PageIdx last() const { return request.num_pages - request.newest_pages; }
};

// The mass of every page that is not forced, straight from the definition in ops.h and from the
// tokens, without a store: [last - first].
std::vector<double> Mass(const SelectCase& c,
                         const TokenFill& fill,
                         const std::vector<float>& q,
                         int kv_head) {
  const int d = c.shape.head_dim;
  const size_t pages = static_cast<size_t>(c.last() - c.first());
  std::vector<std::vector<double>> score(static_cast<size_t>(c.shape.group));
  std::vector<float> k(static_cast<size_t>(d)), v(k);
  for (PageIdx page = c.first(); page < c.last(); ++page) {
    for (std::vector<double>& s : score) s.push_back(-1e300);
    for (int j = 0; j < kLogicalPagesPerPage; ++j) {
      std::vector<double> low(static_cast<size_t>(d), 1e300), high(static_cast<size_t>(d), -1e300);
      for (int t = 0; t < kLogicalPageTokens; ++t) {
        fill({0, c.sequence(), int64_t{page} * kPageTokens + j * kLogicalPageTokens + t, kv_head},
             k.data(), v.data());
        const std::vector<float> stored = Stored(k, c.shape.dtype);
        for (size_t i = 0; i < stored.size(); ++i) {
          low[i] = std::min<double>(low[i], stored[i]);
          high[i] = std::max<double>(high[i], stored[i]);
        }
      }
      for (int h = 0; h < c.shape.group; ++h) {
        const float* x =
            q.data() + c.request.query_row * c.shape.q_cols() + (kv_head * c.shape.group + h) * d;
        double sum = 0;
        for (int i = 0; i < d; ++i) {
          const double qi = ToFloat(ToBf16(x[i]));
          sum += std::max(qi * low[static_cast<size_t>(i)], qi * high[static_cast<size_t>(i)]);
        }
        double& best = score[static_cast<size_t>(h)].back();
        best = std::max(best, sum / std::sqrt(static_cast<double>(d)));
      }
    }
  }
  std::vector<double> mass(pages, 0.0);
  for (const std::vector<double>& s : score) {
    const double max = *std::max_element(s.begin(), s.end());
    double sum = 0;
    for (const double x : s) sum += std::exp(x - max);
    for (size_t i = 0; i < pages; ++i) mass[i] += std::exp(s[i] - max) / sum / c.shape.group;
  }
  return mass;
}

// A float score of D products of numbers up to `amplitude_q` and 1 is off by at most 2 D u times
// the sum of their magnitudes, and the scale 1 / sqrt(D) is a float: (2 D + 2) u sqrt(D) a. A
// softmax weight then lies within a factor e^{+-2 x} of its exact value, and so does the mean.
double RelativeError(int head_dim, double amplitude_q) {
  const double d = head_dim;
  return std::expm1(2 * (2 * d + 2) * kFloatRoundoff * std::sqrt(d) * amplitude_q);
}

// Whether `list` is what the masses demand; counts the lists that had no doubt in `exact`.
void ExpectBest(const SelectCase& c,
                const std::vector<double>& mass,
                const std::vector<PageRun>& list,
                double relative_error,
                int* exact) {
  const std::vector<PageIdx> pages = Pages(list);
  const int forced = c.request.sink_pages + c.request.newest_pages;
  const size_t keep = static_cast<size_t>(c.request.budget_pages - forced);
  for (size_t i = 1; i < list.size(); ++i) {
    ASSERT_GT(list[i].first, list[i - 1].last) << "ascending, merged runs";
  }
  ASSERT_EQ(pages.size(), keep + static_cast<size_t>(forced));
  std::vector<size_t> order(mass.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return mass[a] > mass[b]; });
  const double last_in = mass[order[keep - 1]], first_out = mass[order[keep]];
  std::vector<PageIdx> expected;
  for (PageIdx p = 0; p < c.first(); ++p) expected.push_back(p);
  for (size_t i = 0; i < keep; ++i) expected.push_back(c.first() + static_cast<PageIdx>(order[i]));
  for (PageIdx p = c.last(); p < c.request.num_pages; ++p) expected.push_back(p);
  std::sort(expected.begin(), expected.end());
  if (last_in * (1 - relative_error) > first_out * (1 + relative_error)) {
    ++*exact;
    ASSERT_EQ(pages, expected);
    return;
  }
  for (const PageIdx page : pages) {
    if (std::binary_search(expected.begin(), expected.end(), page)) continue;
    ASSERT_GE(mass[static_cast<size_t>(page - c.first())] * (1 + relative_error),
              last_in * (1 - relative_error))
        << "page " << page;
  }
}

class SelectParity : public testing::TestWithParam<SubjectAndType> {
 protected:
  const Subject& subject() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }
  KvShape Shape(int head_dim, int group, std::vector<int64_t> num_tokens) const {
    return {.dtype = dtype(),
            .head_dim = head_dim,
            .num_kv_heads = 3,
            .kinds = {1, 0, 1},
            .group = group,
            .num_tokens = std::move(num_tokens)};
  }
};

TEST_P(SelectParity, KeepsTheBestPages) {
  const std::unique_ptr<Backend> backend = Make(subject());
  int exact = 0, lists = 0;
  for (const auto& [head_dim, group] :
       {std::pair{16, 1}, {20, 2}, {64, 2}, {80, 3}, {128, 5}, {96, 8}, {256, 1}}) {
    if (!subject().Supports(head_dim)) continue;
    // The second sequence; 22 pages with a newest one of 5 tokens, filled in chunks.
    const KvShape shape = Shape(head_dim, group, {100, 21 * 64 + 5});
    const TokenFill fill = RandomTokens(30, head_dim);
    KvHarness cache(*backend, shape, fill);
    cache.Fill(100);
    const std::vector<float> q = RandomFloats(31, 2 * shape.q_cols(), 4.0f);
    for (const auto& [sinks, newest, budget] :
         {std::tuple{1, 2, 4}, {1, 2, 10}, {2, 1, 21}, {0, 1, 5}}) {
      const SelectCase c = {shape,
                            {.sequence = 1,
                             .query_row = 1,
                             .num_pages = 22,
                             .sink_pages = sinks,
                             .newest_pages = newest,
                             .budget_pages = budget,
                             .table = {}}};
      const std::vector<std::vector<PageRun>> got = cache.Select(q, c.request);
      ASSERT_EQ(got.size(), 2u);
      for (int slot = 0; slot < 2; ++slot) {
        SCOPED_TRACE(StrCat("head_dim ", head_dim, " group ", group, " sinks ", sinks, " budget ",
                            budget, " slot ", slot));
        ExpectBest(c, Mass(c, fill, q, slot * 2), got[static_cast<size_t>(slot)],
                   RelativeError(head_dim, 4.0), &exact);
        ++lists;
      }
      if (HasFatalFailure()) return;
    }
  }
  EXPECT_GE(exact, lists * 3 / 4) << "of " << lists << " lists had no doubt";
}

// Equal keys everywhere: all masses are equal, and ties go to the lower page.
TEST_P(SelectParity, TiesGoToTheLowerPage) {
  const std::unique_ptr<Backend> backend = Make(subject());
  const KvShape shape = Shape(64, 3, {12 * 64});
  const TokenFill fill = [](const TokenAt& at, float* k, float* v) {
    const TokenAt same = {at.layer, 0, 0, at.head};
    RandomTokens(32, 64)(same, k, v);
  };
  KvHarness cache(*backend, shape, fill);
  cache.Fill();
  const std::vector<float> q = RandomFloats(33, shape.q_cols());
  const std::vector<PageRun> expected = {{0, 5}, {10, 12}};
  for (const auto& list : cache.Select(q, {.num_pages = 12, .budget_pages = 7, .table = {}})) {
    EXPECT_EQ(list, expected);
  }
}

TEST_P(SelectParity, BudgetsAtTheEdges) {
  const std::unique_ptr<Backend> backend = Make(subject());
  const KvShape shape = Shape(32, 2, {8 * 64 - 3});
  KvHarness cache(*backend, shape, RandomTokens(34, 32));
  cache.Fill();
  const std::vector<float> q = RandomFloats(35, shape.q_cols());
  using Runs = std::vector<PageRun>;
  struct Edge {
    PageIdx num_pages;
    int sinks, newest, budget;
    Runs expected;
  };
  const Edge edges[] = {
      {8, 1, 2, 8, {{0, 8}}},          // everything
      {8, 1, 2, 100, {{0, 8}}},        // more than everything
      {8, 1, 2, 3, {{0, 1}, {6, 8}}},  // forced pages only
      {8, 1, 2, 1, {{0, 1}, {6, 8}}},  // forced pages are kept whatever the budget
      {3, 1, 2, 3, {{0, 3}}},          // nothing to choose from
      {1, 1, 2, 3, {{0, 1}}},          // one page
      {2, 4, 4, 8, {{0, 2}}},          // forced ranges overlap
      {8, 0, 1, 1, {{7, 8}}},          // no sinks
  };
  for (const Edge& e : edges) {
    SCOPED_TRACE(StrCat(e.num_pages, " pages, budget ", e.budget));
    for (const auto& list : cache.Select(q, {.num_pages = e.num_pages,
                                            .sink_pages = e.sinks,
                                            .newest_pages = e.newest,
                                            .budget_pages = e.budget,
                                            .table = {}})) {
      EXPECT_EQ(list, e.expected);
    }
  }
}

// Same lists with any chunks, threads and physical pages; per layer; for one request as in company.
TEST_P(SelectParity, ListsDependOnTheSequenceAlone) {
  const KvShape shape = Shape(32, 3, {300 * 64, 700});
  const std::vector<float> q = RandomFloats(36, 2 * shape.q_cols(), 4.0f);
  const SelectRequest request = {.query_row = 1, .num_pages = 300, .budget_pages = 64, .table = {}};
  std::vector<std::vector<PageRun>> expected;
  for (const int threads : {1, 2, 3}) {
    const std::unique_ptr<Backend> backend = Make(subject(), threads);
    KvHarness cache(*backend, shape, RandomTokens(37, 32), static_cast<uint64_t>(threads));
    cache.Fill(1000 * threads + 3);
    if (expected.empty()) expected = cache.Select(q, request);
    EXPECT_EQ(cache.Select(q, request), expected) << threads;
  }
}

// A mass moved by twice the bound must change the list that ExpectBest accepts.
TEST(SelectParityCases, PlantedErrorsAreCaught) {
  const std::unique_ptr<Backend> backend = Make(Subjects().front());
  const KvShape shape = {.head_dim = 64, .kinds = {1, 1}, .num_tokens = {20 * 64}};
  const TokenFill fill = RandomTokens(38, 64);
  KvHarness cache(*backend, shape, fill);
  cache.Fill();
  const SelectCase c = {shape, {.num_pages = 20, .budget_pages = 8, .table = {}}};
  const std::vector<float> q = RandomFloats(39, shape.q_cols(), 4.0f);
  std::vector<PageIdx> right = Pages(cache.Select(q, c.request)[0]);
  const std::vector<double> mass = Mass(c, fill, q, 0);
  // Swap the weakest kept page for the strongest dropped one: the gap is beyond the bound.
  double weakest = 1, strongest = 0;
  for (PageIdx p = c.first(); p < c.last(); ++p) {
    const double m = mass[static_cast<size_t>(p - c.first())];
    const bool kept = std::binary_search(right.begin(), right.end(), p);
    if (kept) weakest = std::min(weakest, m);
    if (!kept) strongest = std::max(strongest, m);
  }
  EXPECT_GT(weakest / strongest - 1, 2 * RelativeError(64, 4.0));
}

INSTANTIATE_TEST_SUITE_P(All,
                         SelectParity,
                         testing::ValuesIn(WithKvTypes(Subjects())),
                         SubjectTypeName);

}  // namespace
}  // namespace lserve::parity
