#include "attention/policy.h"

#include <gtest/gtest.h>

#include <limits>
#include <set>

#include "kv/kv_layout.h"

namespace lserve {
namespace {

// One layer with a head of each kind.
const KvLayout& BothWays() {
  static const KvLayout layout =
      MakeKvLayout(1, 2, 16, DType::kBf16, {1, 0}, {.kv = 64, .stats = 64});
  return layout;
}

// The keys that a row lets the query at `p` see, from the plan alone.
std::set<int64_t> VisibleKeys(const PagePlan& plan, const PlanRow& row, int64_t p, int entry = 0) {
  std::set<int64_t> keys;
  ForEachPage(plan, row, entry, [&](PageIdx page) {
    for (int64_t k = int64_t{page} * kPageTokens; k < int64_t{page + 1} * kPageTokens; ++k) {
      if (Visible(row, p, k)) {
        EXPECT_TRUE(keys.insert(k).second) << "page " << page << " twice";
      }
    }
  });
  return keys;
}

// What the definition says: everything, or sink + window.
std::set<int64_t> Expected(const AttentionSettings& s, Way way, int64_t p, int64_t window) {
  std::set<int64_t> keys;
  const bool sparse = way == Way::kStreaming && p >= FirstSparsePosition(s);
  for (int64_t k = 0; k <= p; ++k) {
    if (!sparse || k < s.sink_tokens || p - k < window) keys.insert(k);
  }
  return keys;
}

struct PrefillCase {
  int sink, window;
  AttentionMode mode;
  int64_t min_context;
};

class PrefillPlan : public testing::TestWithParam<PrefillCase> {};

TEST_P(PrefillPlan, SeesExactlyTheDefinitionWhateverTheChunks) {
  const PrefillCase c = GetParam();
  AttentionSettings s;
  s.mode = c.mode;
  s.sink_tokens = c.sink;
  s.recent_tokens = c.window;
  s.min_context = c.min_context;
  for (const int chunk : {1000, 128, 100, 67}) {
    int64_t rows_seen[kNumWays] = {};
    for (int64_t first = 0; first < 1000; first += chunk) {
      const int count = static_cast<int>(std::min<int64_t>(chunk, 1000 - first));
      PagePlan plan;
      PlanPrefill(s, BothWays(),
                  {.sequence = 0, .first_row = 5, .num_rows = count, .first_position = first},
                  &plan);
      for (const PlanRow& row : plan.rows) {
        EXPECT_LE(row.num_queries, kTileTokens);
        EXPECT_EQ(row.first_query, 5 + static_cast<int>(row.first_position - first));
        for (int q = 0; q < row.num_queries; q += 13) {
          const int64_t p = row.first_position + q;
          ASSERT_EQ(VisibleKeys(plan, row, p), Expected(s, row.way, p, c.window)) << "query " << p;
        }
        rows_seen[Index(row.way)] += row.num_queries;
      }
    }
    EXPECT_EQ(rows_seen[0], 1000);
    EXPECT_EQ(rows_seen[1], 1000);
  }
}

INSTANTIATE_TEST_SUITE_P(Edges,
                         PrefillPlan,
                         testing::Values(PrefillCase{128, 256, AttentionMode::kSparse, 0},
                                         PrefillCase{0, 1, AttentionMode::kSparse, 0},
                                         PrefillCase{1, 63, AttentionMode::kSparse, 0},
                                         PrefillCase{64, 64, AttentionMode::kSparse, 0},
                                         PrefillCase{65, 65, AttentionMode::kSparse, 0},
                                         PrefillCase{128, 2000, AttentionMode::kSparse, 0},
                                         PrefillCase{2000, 8, AttentionMode::kSparse, 0},
                                         PrefillCase{16, 100, AttentionMode::kAuto, 500},
                                         PrefillCase{16, 100, AttentionMode::kAuto, 512},
                                         PrefillCase{16, 100, AttentionMode::kAuto, 5000},
                                         PrefillCase{16, 100, AttentionMode::kDense, 0}));

AttentionSettings BlockSparse() {
  AttentionSettings s;
  s.mode = AttentionMode::kSparse;
  s.prefill_threshold = 0.9;
  s.prefill_min_position = 640;
  return s;
}

// Complete tiles from the first block-sparse position on name a list of their own, and read the
// tile before and their own whatever is in it.
TEST(BlockSparsePrefillPlan, CompleteTilesReadAList) {
  const AttentionSettings s = BlockSparse();
  PagePlan plan;
  PlanPrefill(s, BothWays(), {.sequence = 0, .first_row = 7, .num_rows = 1000, .first_position = 0},
              &plan);
  std::vector<int64_t> selected;
  for (const PlanRow& row : plan.rows) {
    if (row.way == Way::kStreaming) {
      EXPECT_EQ(row.selection, kNoSelection);
      continue;
    }
    if (row.selection == kNoSelection) {
      EXPECT_EQ(row.newest.first, 0) << "dense";
      continue;
    }
    selected.push_back(row.first_position);
    EXPECT_EQ(row.selection, static_cast<int>(selected.size()) - 1) << "a list of its own";
    EXPECT_EQ(row.num_queries, kTileTokens);
    EXPECT_EQ(row.first_query, 7 + row.first_position);
    EXPECT_EQ(row.newest.first, (row.first_position - kTileTokens) / kPageTokens);
    EXPECT_EQ(row.newest.last, (row.first_position + kTileTokens) / kPageTokens);
    EXPECT_EQ(row.sink_end, 0);
    EXPECT_EQ(row.window, kNoWindow);
    // Every other tile before the newest ones a run of its own.
    const SelectionTable& table = plan.selections[static_cast<size_t>(row.selection)];
    EXPECT_EQ(table.capacity, (row.first_position / kTileTokens - 1 + 1) / 2);
  }
  // The tile at 896 has 104 queries only.
  EXPECT_EQ(selected, (std::vector<int64_t>{640, 768}));
}

TEST(BlockSparsePrefillPlan, ListsHoldNoMoreThanAllowed) {
  AttentionSettings s = BlockSparse();
  s.prefill_max_tokens = 0;
  EXPECT_EQ(MaxListedTiles(s), kAllTiles);
  s.prefill_max_tokens = 512;  // sink, own, previous and one more
  EXPECT_EQ(MaxListedTiles(s), 2);
  s.prefill_max_tokens = 1023;
  EXPECT_EQ(MaxListedTiles(s), 5);
  PagePlan plan;
  PlanPrefill(s, BothWays(),
              {.sequence = 0, .first_row = 0, .num_rows = 256, .first_position = 640}, &plan);
  PlanPrefill(s, BothWays(),
              {.sequence = 0, .first_row = 0, .num_rows = 128, .first_position = 64000}, &plan);
  ASSERT_EQ(plan.selections.size(), 3u);
  EXPECT_EQ(plan.selections[0].capacity, 2) << "4 tiles to choose from";
  EXPECT_EQ(plan.selections[0].max_pages, 8);
  EXPECT_EQ(plan.selections[2].capacity, 5) << "each a run of its own";
  EXPECT_EQ(plan.selections[2].max_pages, 10);
}

TEST(BlockSparsePrefillPlan, FirstPositionIsTheLaterOfBothLimits) {
  AttentionSettings s = BlockSparse();
  EXPECT_EQ(FirstBlockSparsePosition(s), 640);
  s.mode = AttentionMode::kAuto;
  s.min_context = 1000;
  EXPECT_EQ(FirstBlockSparsePosition(s), 1000);
  const auto none = std::numeric_limits<int64_t>::max();
  s.mode = AttentionMode::kDense;
  EXPECT_EQ(FirstBlockSparsePosition(s), none);
  for (const double threshold : {0.0, 1.0}) {
    s = BlockSparse();
    s.prefill_threshold = threshold;
    EXPECT_EQ(FirstBlockSparsePosition(s), none);
  }
}

// With fewer tiles than the forced ones and one more there is nothing to choose.
TEST(BlockSparsePrefillPlan, TheFirstTilesAreDense) {
  AttentionSettings s = BlockSparse();
  s.prefill_min_position = 0;
  PagePlan plan;
  PlanPrefill(s, BothWays(), {.sequence = 0, .first_row = 0, .num_rows = 512, .first_position = 0},
              &plan);
  std::vector<int64_t> selected;
  for (const PlanRow& row : plan.rows) {
    if (row.selection != kNoSelection) selected.push_back(row.first_position);
  }
  EXPECT_EQ(selected, (std::vector<int64_t>{384}));
}

// The prefix rule: cutting a prompt at a ResumePosition leaves the plan of every query as it was.
TEST(BlockSparsePrefillPlan, ResumePositionsDoNotCutABlockSparseTile) {
  for (const int64_t first : {0, 600, 640, 700}) {
    AttentionSettings s = BlockSparse();
    s.prefill_min_position = first;
    PagePlan whole;
    PlanPrefill(s, BothWays(),
                {.sequence = 0, .first_row = 0, .num_rows = 1024, .first_position = 0}, &whole);
    for (int64_t n = 1; n < 1024; n += 13) {
      const int64_t cut = ResumePosition(s, n);
      ASSERT_LE(cut, n);
      ASSERT_GT(cut, n - kTileTokens);
      PagePlan parts;
      if (cut > 0) {
        PlanPrefill(
            s, BothWays(),
            {.sequence = 0, .first_row = 0, .num_rows = static_cast<int>(cut), .first_position = 0},
            &parts);
      }
      PlanPrefill(s, BothWays(),
                  {.sequence = 0,
                   .first_row = static_cast<int>(cut),
                   .num_rows = static_cast<int>(1024 - cut),
                   .first_position = cut},
                  &parts);
      const auto selected = [](const PagePlan& plan) {
        std::vector<int64_t> positions;
        for (const PlanRow& row : plan.rows) {
          if (row.selection != kNoSelection) positions.push_back(row.first_position);
        }
        return positions;
      };
      ASSERT_EQ(selected(parts), selected(whole)) << n << " first " << first;
    }
    if (first == 600) {
      EXPECT_EQ(ResumePosition(s, 639), 639) << "in a dense tile";
    }
    EXPECT_EQ(ResumePosition(s, 900), 896);
  }
}

TEST(BlockSparsePrefillPlan, TilesVisitedCountsTheList) {
  PlanRow row;
  row.newest = {12, 16};
  const std::vector<PageRun> runs = {{0, 2}, {6, 10}, {10, 14}};
  EXPECT_EQ(TilesVisited(row, runs), 2 + 1 + 2 + 1);
}

// A selection table on the host, filled by hand.
struct HandTable {
  explicit HandTable(const AttentionSettings& s)
      : capacity(SelectionCapacity(s)), num_runs(1), runs(static_cast<size_t>(capacity)) {}
  SelectionState State() {
    return {.table = {.capacity = capacity, .num_runs = num_runs.data(), .runs = runs.data()}};
  }
  int capacity;
  std::vector<int> num_runs;
  std::vector<PageRun> runs;
};

RowRange QueryAt(int64_t p) {
  return {.sequence = 0, .first_row = 0, .num_rows = 1, .first_position = p};
}

TEST(DecodePlan, DenseAtOrBelowTheBudgetAndBelowMinContext) {
  AttentionSettings s;
  s.token_budget = 512;
  s.min_context = 2000;
  HandTable hand(s);
  SelectionState state = hand.State();
  PagePlan plan;
  // auto, position below min_context: dense for both ways.
  EXPECT_FALSE(PlanDecode(s, BothWays(), QueryAt(1999), &state, &plan).sparse);
  ASSERT_EQ(plan.rows.size(), 2u);
  EXPECT_EQ(VisibleKeys(plan, plan.rows[0], 1999).size(), 2000u);
  EXPECT_EQ(VisibleKeys(plan, plan.rows[1], 1999).size(), 2000u);
  // sparse mode, context equal to the budget: every page, no selection.
  s.mode = AttentionMode::kSparse;
  plan.Clear();
  const DecodeDecision at_budget = PlanDecode(s, BothWays(), QueryAt(511), &state, &plan);
  EXPECT_FALSE(at_budget.selects);
  EXPECT_EQ(plan.rows[0].selection, kNoSelection);
  EXPECT_EQ(VisibleKeys(plan, plan.rows[0], 511).size(), 512u);
  plan.Clear();
  EXPECT_TRUE(PlanDecode(s, BothWays(), QueryAt(512), &state, &plan).selects);
}

TEST(DecodePlan, IntervalCountsTheStepsOfTheSequence) {
  AttentionSettings s;
  s.mode = AttentionMode::kSparse;
  s.token_budget = 256;
  s.selector_interval = 3;
  HandTable hand(s);
  SelectionState state = hand.State();
  std::vector<bool> selects;
  for (int64_t p = 1000; p < 1008; ++p) {
    PagePlan plan;
    selects.push_back(PlanDecode(s, BothWays(), QueryAt(p), &state, &plan).selects);
  }
  EXPECT_EQ(selects, (std::vector<bool>{true, false, false, true, false, false, true, false}));
}

TEST(DecodePlan, AWayWithoutHeadsIsNeitherReadNorCountedAsSparse) {
  AttentionSettings s;
  s.mode = AttentionMode::kSparse;
  const KvLayout retrieval_only =
      MakeKvLayout(1, 1, 16, DType::kBf16, {1}, {.kv = 64, .stats = 64});
  const KvLayout streaming_only =
      MakeKvLayout(1, 1, 16, DType::kBf16, {0}, {.kv = 64, .stats = 64});
  HandTable hand(s);
  SelectionState state = hand.State();
  PagePlan plan;
  EXPECT_FALSE(PlanDecode(s, retrieval_only, QueryAt(2000), &state, &plan).sparse);
  ASSERT_EQ(plan.rows.size(), 1u);
  EXPECT_EQ(plan.rows[0].way, Way::kRetrieval);
  plan.Clear();
  const DecodeDecision streaming = PlanDecode(s, streaming_only, QueryAt(9000), &state, &plan);
  EXPECT_TRUE(streaming.sparse);
  EXPECT_FALSE(streaming.selects);
  ASSERT_EQ(plan.rows.size(), 1u);
  EXPECT_EQ(plan.rows[0].way, Way::kStreaming);
}

// Defect f of the released code: a list that is reused across a page boundary must keep every
// recent token.
TEST(DecodePlan, ReusedListKeepsTheNewestTokensAcrossAPageBoundary) {
  AttentionSettings s;
  s.mode = AttentionMode::kSparse;
  s.token_budget = 320;
  s.selector_interval = 8;
  HandTable hand(s);
  SelectionState state = hand.State();
  // Chosen at p = 1022 (16 pages): sink, page 5, and the newest two, as SelectPages leaves them.
  hand.num_runs[0] = 3;
  hand.runs[0] = {0, 1};
  hand.runs[1] = {5, 6};
  hand.runs[2] = {14, 16};
  for (int64_t p = 1022; p < 1030; ++p) {
    PagePlan plan;
    PlanDecode(s, BothWays(), QueryAt(p), &state, &plan);
    const std::set<int64_t> keys = VisibleKeys(plan, plan.rows[0], p);
    for (int64_t k = 14 * 64; k <= p; ++k) ASSERT_TRUE(keys.contains(k)) << "p " << p << " k " << k;
    EXPECT_TRUE(keys.contains(0));
    EXPECT_TRUE(keys.contains(5 * 64));
    EXPECT_FALSE(keys.contains(6 * 64));
    EXPECT_FALSE(keys.contains(p + 1));
  }
}

// A list that is older than the newest pages are long: what filled up meanwhile is read as well.
TEST(DecodePlan, AListReusedForLongLosesNoPageThatCameAfterIt) {
  AttentionSettings s;
  s.mode = AttentionMode::kSparse;
  s.token_budget = 320;
  s.selector_interval = 1000;
  HandTable hand(s);
  SelectionState state = hand.State();
  hand.num_runs[0] = 2;
  hand.runs[0] = {0, 1};
  hand.runs[1] = {14, 16};  // chosen at p = 1022: 16 pages
  for (int64_t p = 1022; p < 1022 + 400; ++p) {
    PagePlan plan;
    PlanDecode(s, BothWays(), QueryAt(p), &state, &plan);
    const std::set<int64_t> keys = VisibleKeys(plan, plan.rows[0], p);
    ASSERT_EQ(keys.size(), static_cast<size_t>(64 + p + 1 - 14 * 64)) << p;
  }
}

// Defect g: "all pages" must not read a page that does not exist.
TEST(DecodePlan, PageCountIsExactAtPageBoundaries) {
  AttentionSettings s;
  s.mode = AttentionMode::kDense;
  HandTable hand(s);
  SelectionState state = hand.State();
  for (const int64_t p : {62, 63, 64, 127, 128}) {
    PagePlan plan;
    PlanDecode(s, BothWays(), QueryAt(p), &state, &plan);
    for (const PlanRow& row : plan.rows) EXPECT_EQ(row.newest.last, p / 64 + 1);
  }
}

TEST(DecodePlan, StreamingWindowIsExactToTheToken) {
  AttentionSettings s;
  s.mode = AttentionMode::kSparse;
  for (const int sink : {0, 1, 64, 100}) {
    for (const int window : {1, 63, 64, 65, 256}) {
      s.sink_tokens = sink;
      s.recent_tokens = window;
      HandTable hand(s);
      SelectionState state = hand.State();
      for (const int64_t p : {0, 1, 64, 255, 256, 1000, 1023, 1024}) {
        PagePlan plan;
        PlanDecode(s, BothWays(), QueryAt(p), &state, &plan);
        ASSERT_EQ(VisibleKeys(plan, plan.rows[1], p), Expected(s, Way::kStreaming, p, window));
      }
    }
  }
}

TEST(Trimming, NeverDropsWhatALaterQueryReads) {
  for (const AttentionMode mode :
       {AttentionMode::kAuto, AttentionMode::kDense, AttentionMode::kSparse}) {
    for (const int window : {1, 64, 200}) {
      for (const int prefill_window : {0, 100, 400}) {
        AttentionSettings s;
        s.mode = mode;
        s.min_context = 640;
        s.recent_tokens = window;
        s.prefill_recent_tokens = prefill_window;
        s.sink_tokens = window;  // 1, 64 and 200: not whole tiles
        const PageIdx sink_pages = NumPages(StreamingSinkEnd(s));
        for (int64_t next = 0; next < 1500; next += 31) {
          const int64_t keep = StreamingKeepFrom(s, next, /*in_prompt=*/true);
          PagePlan plan;
          PlanPrefill(s, BothWays(),
                      {.sequence = 0, .first_row = 0, .num_rows = 300, .first_position = next},
                      &plan);
          for (const PlanRow& row : plan.rows) {
            if (row.way != Way::kStreaming) continue;
            ForEachPage(plan, row, 0, [&](PageIdx page) {
              const bool in_sink = page < sink_pages;
              ASSERT_TRUE(in_sink || page >= keep / kPageTokens)
                  << "next " << next << " page " << page;
            });
          }
          const int64_t keep_decode = StreamingKeepFrom(s, next, /*in_prompt=*/false);
          HandTable hand(s);
          SelectionState state = hand.State();
          plan.Clear();
          PlanDecode(s, BothWays(), QueryAt(next), &state, &plan);
          ForEachPage(plan, plan.rows[1], 0, [&](PageIdx page) {
            ASSERT_TRUE(page < sink_pages || page >= keep_decode / kPageTokens);
          });
        }
      }
    }
  }
}

TEST(Settings, ProblemsNameTheFlag) {
  AttentionSettings s;
  EXPECT_TRUE(s.Problems().empty());
  s.token_budget = 255;
  s.recent_tokens = 0;
  s.selector_interval = -1;
  s.prefill_threshold = 1.5;
  s.prefill_max_tokens = 511;
  ASSERT_EQ(s.Problems().size(), 5u);
  EXPECT_NE(s.Problems()[0].find("--sparse-token-budget is 255"), std::string::npos);
}

TEST(Settings, ASmallBudgetIsReusedLess) {
  AttentionSettings s;
  EXPECT_EQ(s.interval(), 4);
  for (const auto& [budget, interval] :
       {std::pair{8192, 4}, {4095, 3}, {2048, 2}, {1024, 1}, {256, 1}}) {
    s.token_budget = budget;
    EXPECT_EQ(s.interval(), interval) << budget;
  }
  s.selector_interval = 16;  // what the user says holds
  EXPECT_EQ(s.interval(), 16);
}

TEST(Settings, PrefixKeyHoldsWhatPrefillDependsOn) {
  AttentionSettings a, b;
  b.token_budget = 1024;
  b.selector_interval = 1;
  b.recent_tokens = 256;
  EXPECT_TRUE(SamePrefill(a, b));  // decode-only settings differ
  b.min_context = 100;
  EXPECT_FALSE(SamePrefill(a, b));
  b = a;
  b.prefill_recent_tokens = 1000;
  EXPECT_FALSE(SamePrefill(a, b));
  b = a;
  b.prefill_threshold = 0.9;
  a.prefill_threshold = 0;
  EXPECT_FALSE(SamePrefill(a, b));
  a.prefill_threshold = 0.8;
  EXPECT_FALSE(SamePrefill(a, b));
  a.prefill_threshold = 0.9;
  EXPECT_TRUE(SamePrefill(a, b));
  b.prefill_min_position = 1 << 20;
  EXPECT_FALSE(SamePrefill(a, b));
  b = a;
  b.prefill_max_tokens = a.prefill_max_tokens + 1024;
  EXPECT_FALSE(SamePrefill(a, b));
  a.prefill_threshold = b.prefill_threshold = 1.0;  // off, both
  EXPECT_TRUE(SamePrefill(a, b));
  a.prefill_threshold = 0.0;
  EXPECT_TRUE(SamePrefill(a, b));
  a.mode = b.mode = AttentionMode::kDense;
  EXPECT_TRUE(SamePrefill(a, b));
  b.mode = AttentionMode::kSparse;
  EXPECT_FALSE(SamePrefill(a, b));
}

}  // namespace
}  // namespace lserve
