// DecodeAttention: few queries, many pages, lists that a selector left.
#include <gtest/gtest.h>

#include "parity/attention_cases.h"

namespace lserve::parity {
namespace {

class DecodeParity : public testing::TestWithParam<SubjectAndType> {
 protected:
  const Subject& subject() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }
};

TEST_P(DecodeParity, CountsExactlyTheVisibleKeys) {
  const std::unique_ptr<Backend> backend = Make(subject());
  std::vector<AttentionCase> cases = MaskCases(subject(), 1);
  cases.push_back({.name = "speculation",
                   .head_dim = subject().small_head_dim(),
                   .contexts = {0, 62, 64, 500}});
  cases.back().num_queries = 4;
  cases.push_back(
      {.name = "long", .head_dim = subject().small_head_dim(), .contexts = {4097, 0, 1031}});
  for (const AttentionCase& c : cases) {
    SCOPED_TRACE(c.name);
    KvHarness cache(*backend, c.Shape(dtype()), CountingTokens(c.head_dim));
    cache.Fill(128);
    const PagePlan plan = MakePlan(c);
    ASSERT_TRUE(Near(cache.Attend(Op::kDecode, RandomQueries(c), plan), ExpectedCounts(c, plan),
                     kCountTolerance, cache.shape().q_cols()));
  }
}

TEST_P(DecodeParity, EqualsTheReference) {
  if (subject().is_reference()) return;
  const std::unique_ptr<Backend> backend = Make(subject());
  std::vector<AttentionCase> cases = ShapeCases(1);
  cases.push_back({.name = "mixed lengths", .contexts = {0, 1, 63, 64, 65, 1031, 4097}});
  cases.push_back({.name = "batch of 17", .contexts = std::vector<int64_t>(17, 70)});
  for (const AttentionCase& c : cases) {
    if (!subject().Supports(c.head_dim)) continue;
    SCOPED_TRACE(c.name);
    KvHarness cache(*backend, c.Shape(dtype()), RandomTokens(1, c.head_dim), 5);
    cache.Fill(131);
    const std::vector<float> out = cache.Attend(Op::kDecode, RandomQueries(c), MakePlan(c));
    ASSERT_TRUE(Near(out, ReferenceOutput(c, dtype(), Op::kDecode), Tolerance(c, subject()),
                     cache.shape().q_cols()));
  }
}

// Lists in a table, one per slot: the cut at newest.first, the newest pages, and what they skip.
TEST_P(DecodeParity, ReadsTheSelectedPagesAndNoOthers) {
  const std::unique_ptr<Backend> backend = Make(subject());
  // 16 pages and 20 tokens; both heads retrieve, each with its own list.
  AttentionCase c = {
      .head_dim = subject().small_head_dim(), .kinds = {1, 1}, .contexts = {16 * 64 + 19}};
  KvHarness cache(*backend, c.Shape(dtype()), CountingTokens(c.head_dim));
  cache.Fill();
  const std::vector<float> q = RandomQueries(c);
  struct Lists {
    std::vector<PageRun> of_slot[2];
    PageRun newest;
  };
  const Lists lists[] = {
      {{{{0, 1}, {3, 5}}, {{0, 2}, {9, 10}}}, {15, 17}},
      {{{{0, 1}, {14, 17}}, {{0, 17}}}, {15, 17}},  // reach into the newest: cut, not read twice
      {{{{0, 1}}, {{0, 1}}}, {16, 17}},             // only sinks and the newest page
      {{{{7, 8}}, {}}, {16, 16}},                   // one page only; nothing at all
      {{{}, {}}, {0, 17}},
  };
  for (const Lists& list : lists) {
    int num_runs[2];
    PageRun runs[2][3];
    for (int slot = 0; slot < 2; ++slot) {
      num_runs[slot] = static_cast<int>(list.of_slot[slot].size());
      std::copy(list.of_slot[slot].begin(), list.of_slot[slot].end(), runs[slot]);
    }
    PagePlan plan;
    AddRow(plan, c, Way::kRetrieval, 0, 0, 1);
    plan.rows[0].newest = list.newest;
    plan.rows[0].selection = 0;
    plan.selections = {{.capacity = 3, .num_runs = num_runs, .runs = runs[0]}};
    const std::vector<float> out = cache.Attend(Op::kDecode, q, plan);
    // The same lists as host runs, slot by slot.
    for (int slot = 0; slot < 2; ++slot) {
      PagePlan one = plan;
      one.rows[0].selection = kNoSelection;
      one.rows[0].slot = slot;
      one.runs = list.of_slot[slot];
      one.rows[0].num_runs = num_runs[slot];
      const std::vector<float> expected = ExpectedCounts(c, one);
      for (int64_t i = slot * c.group * c.head_dim; i < (slot + 1) * c.group * c.head_dim; ++i) {
        ASSERT_NEAR(out[static_cast<size_t>(i)], expected[static_cast<size_t>(i)], kCountTolerance)
            << "slot " << slot << " element " << i;
      }
    }
  }
}

TEST_P(DecodeParity, AllPagesSelectedIsDense) {
  const std::unique_ptr<Backend> backend = Make(subject());
  const AttentionCase c = {.kinds = {1, 1}, .contexts = {2600}};
  KvHarness cache(*backend, c.Shape(dtype()), RandomTokens(4, c.head_dim));
  cache.Fill();
  const std::vector<float> q = RandomQueries(c);
  const PagePlan dense = MakePlan(c);
  int num_runs[2] = {1, 3};
  PageRun runs[2][3] = {{{0, 41}}, {{0, 1}, {1, 30}, {30, 39}}};
  PagePlan selected = dense;
  selected.rows.resize(1);
  selected.rows[0].selection = 0;
  selected.rows[0].newest = {39, 41};
  selected.selections = {{.capacity = 3, .num_runs = num_runs, .runs = runs[0]}};
  EXPECT_TRUE(SameBits(cache.Attend(Op::kDecode, q, selected), cache.Attend(Op::kDecode, q, dense),
                       cache.shape().q_cols()));
}

TEST_P(DecodeParity, BitsDependOnTheRowAlone) {
  const AttentionCase c = {.name = "bits",
                           .num_kv_heads = 3,
                           .kinds = {1, 0, 1},
                           .group = 3,
                           .contexts = {2600, 0, 64, 1031}};
  const std::vector<float> q = RandomQueries(c);
  const std::unique_ptr<Backend> first = Make(subject(), 1);
  KvHarness cache(*first, c.Shape(dtype()), RandomTokens(3, c.head_dim), 5);
  cache.Fill();
  const PagePlan all = MakePlan(c);
  const std::vector<float> expected = cache.Attend(Op::kDecode, q, all);
  for (const int threads : {1, 2, 3}) {
    SCOPED_TRACE(threads);
    const std::unique_ptr<Backend> backend = Make(subject(), threads);
    KvHarness other(*backend, c.Shape(dtype()), RandomTokens(3, c.head_dim), 17);
    other.Fill(200);
    ASSERT_TRUE(SameBits(other.Attend(Op::kDecode, q, all), expected, cache.shape().q_cols()));
    std::vector<float> joined(expected.size(), KvHarness::kUntouched);
    for (const PlanRow& row : all.rows) {  // one by one
      PagePlan one;
      one.runs = all.runs;
      one.rows = {row};
      const std::vector<float> out = other.Attend(Op::kDecode, q, one);
      for (size_t i = 0; i < out.size(); ++i) {
        if (out[i] != KvHarness::kUntouched) joined[i] = out[i];
      }
    }
    ASSERT_TRUE(SameBits(joined, expected, cache.shape().q_cols()));
  }
}

INSTANTIATE_TEST_SUITE_P(All,
                         DecodeParity,
                         testing::ValuesIn(WithKvTypes(Subjects())),
                         SubjectTypeName);

}  // namespace
}  // namespace lserve::parity
