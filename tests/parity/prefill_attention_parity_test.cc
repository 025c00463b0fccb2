// PrefillAttention: rows of up to 128 queries, chunks that start anywhere.
#include <gtest/gtest.h>

#include "parity/attention_cases.h"

namespace lserve::parity {
namespace {

// And a GPU with a scratch for one slot of one sequence, so that quantised pages take as many
// rounds as they can.
std::vector<Subject> SubjectsAndRounds() {
  std::vector<Subject> subjects = Subjects();
  for (const Subject& subject : Subjects()) {
    if (!subject.is_cuda()) continue;
    subjects.push_back(subject);
    subjects.back().name += "_rounds";
    subjects.back().config.prefill_scratch_bytes = 1;
  }
  return subjects;
}

class PrefillParity : public testing::TestWithParam<SubjectAndType> {
 protected:
  const Subject& subject() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }
};

TEST_P(PrefillParity, CountsExactlyTheVisibleKeys) {
  const std::unique_ptr<Backend> backend = Make(subject());
  for (const AttentionCase& c : MaskCases(subject(), subject().is_reference() ? 9 : 70)) {
    SCOPED_TRACE(c.name);
    KvHarness cache(*backend, c.Shape(dtype()), CountingTokens(c.head_dim));
    cache.Fill(77);
    const PagePlan plan = MakePlan(c);
    const std::vector<float> out = cache.Attend(Op::kPrefill, RandomQueries(c), plan);
    ASSERT_TRUE(Near(out, ExpectedCounts(c, plan), kCountTolerance, c.Shape(dtype()).q_cols()));
  }
}

TEST_P(PrefillParity, EqualsTheReference) {
  if (subject().is_reference()) return;  // held to the counts above and to its own tests
  const std::unique_ptr<Backend> backend = Make(subject());
  std::vector<AttentionCase> cases = ShapeCases(19);
  cases.push_back({.name = "one tile and a bit", .contexts = {0}, .num_queries = 130});
  cases.push_back({.name = "long", .contexts = {4097}, .num_queries = 3, .window = 256});
  for (const AttentionCase& c : cases) {
    if (!subject().Supports(c.head_dim)) continue;
    SCOPED_TRACE(c.name);
    KvHarness cache(*backend, c.Shape(dtype()), RandomTokens(1, c.head_dim), 5);
    cache.Fill(131);
    const std::vector<float> out = cache.Attend(Op::kPrefill, RandomQueries(c), MakePlan(c));
    ASSERT_TRUE(Near(out, ReferenceOutput(c, dtype(), Op::kPrefill), Tolerance(c, subject()),
                     cache.shape().q_cols()));
    cache.AlignRows();
    ASSERT_TRUE(SameBits(cache.Attend(Op::kPrefill, RandomQueries(c), MakePlan(c)), out,
                         cache.shape().q_cols()));
  }
}

// Block-sparse tiles: a list per slot, cut off where the newest tiles begin.
TEST_P(PrefillParity, WalksAListPerSlot) {
  const std::unique_ptr<Backend> backend = Make(subject());
  const AttentionCase c = {.name = "lists",
                           .head_dim = subject().small_head_dim(),
                           .num_kv_heads = 3,
                           .kinds = {1, 0, 1},
                           .contexts = {6 * kTileTokens, 5 * kTileTokens},
                           .num_queries = kTileTokens};
  PagePlan plan = MakePlan(c);
  int num_runs[2][2] = {{2, 1}, {3, 0}};
  PageRun runs[2][2][3] = {{{{0, 2}, {6, 8}}, {{0, 4}}}, {{{0, 2}, {4, 6}, {6, 12}}, {}}};
  for (PlanRow& row : plan.rows) {
    if (row.way != Way::kRetrieval) continue;
    const size_t s = static_cast<size_t>(row.sequence);
    row.selection = static_cast<int>(plan.selections.size());
    row.num_runs = 0;
    row.newest.first = row.newest.last - 4;
    plan.selections.push_back({.capacity = 3, .num_runs = num_runs[s], .runs = runs[s][0]});
  }
  ASSERT_EQ(plan.selections.size(), 2u);
  KvHarness cache(*backend, c.Shape(dtype()), CountingTokens(c.head_dim));
  cache.Fill(200);
  const std::vector<float> expected = ExpectedCounts(c, plan);
  EXPECT_TRUE(Near(cache.Attend(Op::kPrefill, RandomQueries(c), plan), expected, kCountTolerance,
                   cache.shape().q_cols()));
  // And a list that is another slot's would show.
  std::swap(num_runs[0][0], num_runs[0][1]);
  EXPECT_FALSE(
      Near(ExpectedCounts(c, plan), expected, 100 * kCountTolerance, cache.shape().q_cols()));
}

// Layers have different heads of a kind, and one has none.
TEST_P(PrefillParity, EveryLayerReadsItsOwnPart) {
  const std::unique_ptr<Backend> backend = Make(subject());
  const std::unique_ptr<Backend> reference = Make(Subjects().front());
  const std::vector<uint8_t> kinds = {1, 0, 0, 0, 0, 0, 0, 1, 1};
  AttentionCase c = {.num_kv_heads = 3, .kinds = kinds, .contexts = {70, 0}, .num_queries = 20};
  KvHarness cache(*backend, c.Shape(dtype()), RandomTokens(2, c.head_dim), 5);
  KvHarness expected(*reference, c.Shape(dtype()), RandomTokens(2, c.head_dim), 6);
  cache.Fill();
  expected.Fill();
  const PagePlan plan = MakePlan(c);
  const std::vector<float> q = RandomQueries(c);
  std::vector<std::vector<float>> seen;
  for (int layer = 0; layer < 3; ++layer) {
    SCOPED_TRACE(layer);
    seen.push_back(cache.Attend(Op::kPrefill, q, plan, layer));
    EXPECT_TRUE(Near(seen.back(), expected.Attend(Op::kPrefill, q, plan, layer),
                     Tolerance(c, subject()), cache.shape().q_cols()));
  }
  EXPECT_NE(seen[0], seen[1]);
  EXPECT_NE(seen[1], seen[2]);
}

// The prefix rule: neither tiles nor chunks nor threads nor physical pages change a bit.
TEST_P(PrefillParity, BitsDependOnTheRowAlone) {
  const AttentionCase c = {.name = "bits",
                           .head_dim = std::max(32, subject().small_head_dim()),
                           .num_kv_heads = 3,
                           .kinds = {1, 0, 1},
                           .group = 3,
                           .contexts = {90, 0, 64},
                           .num_queries = 75,
                           .sink_end = 30,
                           .window = 70};
  const std::vector<float> q = RandomQueries(c);
  const std::unique_ptr<Backend> first = Make(subject(), 1);
  KvHarness cache(*first, c.Shape(dtype()), RandomTokens(3, c.head_dim), 5);
  cache.Fill();
  const std::vector<float> expected = cache.Attend(Op::kPrefill, q, MakePlan(c));
  EXPECT_TRUE(
      SameBits(cache.Attend(Op::kPrefill, q, MakePlan(c)), expected, cache.shape().q_cols()));
  // All tiles with one chunk size and all chunk sizes with one tile say as much as all pairs.
  for (const int threads : {1, 2, 3}) {
    const std::unique_ptr<Backend> backend = Make(subject(), threads);
    if (subject().is_reference() && threads > 1) continue;  // it has one thread
    for (const int chunk : {1, 37, 128}) {
      KvHarness other(*backend, c.Shape(dtype()), RandomTokens(3, c.head_dim),
                      static_cast<uint64_t>(chunk));
      other.Fill(chunk);
      for (const int tile : {1, 5, 64, 128}) {
        if (chunk != 37 && tile != 64) continue;
        SCOPED_TRACE(StrCat(threads, " threads, chunks of ", chunk, ", tiles of ", tile));
        ASSERT_TRUE(SameBits(other.Attend(Op::kPrefill, q, MakePlan(c, tile)), expected,
                             cache.shape().q_cols()));
      }
    }
  }
}

// A sequence alone gives the bits that it has in a batch.
TEST_P(PrefillParity, BitsDependOnNoNeighbour) {
  const std::unique_ptr<Backend> backend = Make(subject());
  const AttentionCase c = {.contexts = {65, 0, 130}, .num_queries = 20};
  KvHarness cache(*backend, c.Shape(dtype()), RandomTokens(3, c.head_dim));
  cache.Fill();
  const std::vector<float> q = RandomQueries(c);
  const PagePlan all = MakePlan(c);
  const std::vector<float> expected = cache.Attend(Op::kPrefill, q, all);
  std::vector<float> joined(expected.size(), KvHarness::kUntouched);
  for (const PlanRow& row : all.rows) {
    PagePlan one;
    one.runs = all.runs;
    one.rows = {row};
    const std::vector<float> out = cache.Attend(Op::kPrefill, q, one);
    for (size_t i = 0; i < out.size(); ++i) {
      if (out[i] != KvHarness::kUntouched) joined[i] = out[i];
    }
  }
  EXPECT_TRUE(SameBits(joined, expected, cache.shape().q_cols()));
}

// A GPU reads of quantised pages what bf16 pages of the dequantised values would hold, and its sums
// do not depend on how the pages came to its kernel: all in one round, or in any other number.
TEST_P(PrefillParity, AttendsAsToBf16PagesOfTheSameValues) {
  if (!subject().is_cuda() || dtype() == DType::kBf16) return;
  for (const int head_dim : {32, 64, 96, 128}) {
    const AttentionCase c = {.head_dim = head_dim,
                             .num_kv_heads = 5,
                             .kinds = {1, 0, 1, 1, 0},
                             .group = 3,
                             .contexts = {300, 0, 64, 131},
                             .num_queries = 140,
                             .sink_end = 70,
                             .window = 100};
    const TokenFill random = RandomTokens(5, head_dim);
    const TokenFill stored = [&](const TokenAt& at, float* k, float* v) {
      random(at, k, v);
      for (float* x : {k, v}) {
        const std::vector<float> values = Stored(std::vector<float>(x, x + head_dim), dtype());
        std::copy(values.begin(), values.end(), x);
      }
    };
    const std::vector<float> q = RandomQueries(c);
    const std::unique_ptr<Backend> backend = Make(subject());
    KvHarness plain(*backend, c.Shape(DType::kBf16), stored, 5);
    plain.Fill();
    const std::vector<float> expected = plain.Attend(Op::kPrefill, q, MakePlan(c));
    // A part is 256 bytes times head_dim; three slots of the longest sequence are 21 parts.
    for (const size_t parts : {0, 8, 21, 1000}) {
      SCOPED_TRACE(StrCat("head_dim ", head_dim, ", ", parts, " parts"));
      Subject other = subject();
      other.config.prefill_scratch_bytes = parts * 256 * static_cast<size_t>(head_dim);
      const std::unique_ptr<Backend> in_rounds = Make(other);
      KvHarness cache(*in_rounds, c.Shape(dtype()), random, 6);
      cache.Fill();
      ASSERT_TRUE(
          SameBits(cache.Attend(Op::kPrefill, q, MakePlan(c)), expected, cache.shape().q_cols()));
    }
  }
}

TEST(PrefillParityCases, PlantedErrorsAreCaught) {
  // One key more or less at either edge, in the expected counts themselves.
  AttentionCase c = {.head_dim = 16, .contexts = {331}, .num_queries = 70};
  c.sink_end = 65;
  c.window = 64;
  const PagePlan plan = MakePlan(c);
  const int64_t cols = c.Shape(DType::kBf16).q_cols();
  const std::vector<float> expected = ExpectedCounts(c, plan);
  for (const int sign : {-1, 1}) {
    PagePlan wrong = plan;
    for (PlanRow& row : wrong.rows) {
      if (row.way == Way::kStreaming) row.window += sign;
    }
    EXPECT_FALSE(Near(ExpectedCounts(c, wrong), expected, 100 * kCountTolerance, cols));
    wrong = plan;
    for (PlanRow& row : wrong.rows) {
      if (row.way == Way::kStreaming) row.sink_end += sign;
    }
    EXPECT_FALSE(Near(ExpectedCounts(c, wrong), expected, 100 * kCountTolerance, cols));
  }
  // With random data: a key dropped from the 65 that the last query sees.
  const std::unique_ptr<Backend> reference = Make(Subjects().front());
  const AttentionCase random = {.kinds = {0, 0}, .contexts = {200}, .sink_end = 1, .window = 64};
  KvHarness cache(*reference, random.Shape(DType::kBf16), RandomTokens(1, random.head_dim));
  cache.Fill();
  PagePlan dropped = MakePlan(random);
  --dropped.rows.back().window;
  const std::vector<float> q = RandomQueries(random);
  const Subject worst = {.name = "", .config = {}, .rounds_weights = true};
  EXPECT_FALSE(Near(cache.Attend(Op::kPrefill, q, dropped),
                    cache.Attend(Op::kPrefill, q, MakePlan(random)), Tolerance(random, worst),
                    cache.shape().q_cols()));
}

INSTANTIATE_TEST_SUITE_P(All,
                         PrefillParity,
                         testing::ValuesIn(WithKvTypes(SubjectsAndRounds())),
                         SubjectTypeName);

}  // namespace
}  // namespace lserve::parity
