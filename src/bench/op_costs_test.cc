// FLOP, bytes and statistics against numbers worked out by hand.
#include "bench/op_costs.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "attention/policy.h"
#include "backend/kv_store.h"
#include "bench/summary.h"

namespace lserve {
namespace {

// A store that has a layout and no memory: costs follow from sizes alone.
class LayoutOnly final : public KvStore {
 public:
  using KvStore::KvStore;
  Status Commit(Way, PageId, int) override { return Status(); }
  void Decommit(Way, PageId, int) override {}
  void CopyPage(Way, PageId, PageId, int) override {}
  Status ReadPage(Way, PageId, std::span<std::byte>) const override { return Status(); }
  Status WritePage(Way, PageId, std::span<const std::byte>) override { return Status(); }
};

// One layer of 3 KV heads of 64, of which `kinds` says which retrieve; 1000 bytes of K/V and 100 of
// statistics per head and page.
LayoutOnly Store(const std::vector<uint8_t>& kinds) {
  return LayoutOnly(MakeKvLayout(1, static_cast<int>(kinds.size()), 64, DType::kBf16, kinds,
                                 {.kv = 1000, .stats = 100}));
}

OpCost AttentionCost(const KvStore& store, int num_q_heads, const PagePlan& plan) {
  AttentionParams params;
  params.num_q_heads = num_q_heads;
  params.store = &store;
  params.plan = &plan;
  return CostOf(params);
}

TEST(OpCosts, LinearCountsEveryProductOnceAndTheWeightAsStored) {
  LinearWeight weight;
  weight.in_features = 768;
  weight.out_features = 2048;
  weight.data.bytes = 768 * 2048 * 2;
  weight.scales.bytes = 100;
  weight.zeros.bytes = 10;
  weight.bias.bytes = 1;
  LinearParams params;
  params.weight = &weight;
  params.x.rows = 5;
  const OpCost cost = CostOf(params);
  EXPECT_EQ(cost.flop, 15728640);        // 2 x 5 x 768 x 2048
  EXPECT_EQ(cost.bytes, 3145728 + 111);  // 2 bytes each
}

TEST(OpCosts, DensePrefillSeesTheTriangle) {
  const LayoutOnly store = Store({1, 1});
  AttentionSettings settings;
  settings.mode = AttentionMode::kDense;
  PagePlan plan;
  PlanPrefill(settings, store.layout(), {.sequence = 0, .first_row = 0, .num_rows = 200}, &plan);
  const OpCost cost = AttentionCost(store, 6, plan);
  // 200 x 201 / 2 pairs, 4 x 64 FLOP each, 6 query heads.
  EXPECT_EQ(cost.flop, 20100.0 * 256 * 6);
  // Tiles of 128 and 72 queries visit 2 and 4 pages, of each of 2 KV heads.
  EXPECT_EQ(cost.bytes, (2 + 4) * 2 * 1000);
}

TEST(OpCosts, StreamingPrefillSeesSinkAndWindow) {
  const LayoutOnly store = Store({0});
  AttentionSettings settings;
  settings.mode = AttentionMode::kSparse;
  settings.sink_tokens = 128;
  settings.recent_tokens = 256;
  PagePlan plan;
  PlanPrefill(settings, store.layout(),
              {.sequence = 0, .first_row = 0, .num_rows = 128, .first_position = 1024}, &plan);
  const OpCost cost = AttentionCost(store, 1, plan);
  // Every query sees 128 + 256 keys.
  EXPECT_EQ(cost.flop, 128.0 * 384 * 256);
  // The first query's window begins at 769, in the tile of page 12; pages 12 to 17, and 2 of sink.
  EXPECT_EQ(cost.bytes, (6 + 2) * 1000);
}

TEST(OpCosts, WindowThatMeetsTheSinkCountsNoKeyTwice) {
  const LayoutOnly store = Store({0});
  AttentionSettings settings;
  settings.mode = AttentionMode::kSparse;
  settings.sink_tokens = 128;
  settings.recent_tokens = 256;
  PagePlan plan;
  PlanPrefill(settings, store.layout(),
              {.sequence = 0, .first_row = 0, .num_rows = 1, .first_position = 300}, &plan);
  ASSERT_EQ(plan.rows.size(), 1u);
  EXPECT_EQ(VisiblePairs(plan, plan.rows[0], 0), 301);
}

TEST(OpCosts, DecodeCountsTheListOfEveryHead) {
  const LayoutOnly store = Store({1, 1, 0});
  // Head 0 keeps pages 0 and 5, head 1 pages 0 to 3; both also the two newest of 10.
  std::vector<int> num_runs = {2, 1};
  std::vector<PageRun> runs = {{0, 1}, {5, 6}, {0, 4}, {}};
  PagePlan plan;
  plan.selections.push_back({.capacity = 2, .num_runs = num_runs.data(), .runs = runs.data()});
  plan.rows.push_back({.way = Way::kRetrieval,
                       .num_queries = 1,
                       .first_position = 600,
                       .selection = 0,
                       .newest = {8, 10}});
  const OpCost cost = AttentionCost(store, 6, plan);
  EXPECT_EQ(cost.bytes, (4 + 6) * 1000);
  // The newest page holds tokens 576 to 600 only: 25 keys. Two query heads per KV head.
  const double keys = (2 * 64 + 64 + 25) + (4 * 64 + 64 + 25);
  EXPECT_EQ(cost.flop, keys * 4 * 64 * 2);
}

TEST(OpCosts, SelectionReadsTheStatisticsOfWhatIsScored) {
  const LayoutOnly store = Store({1, 1, 0});
  SelectRequest request;
  request.num_pages = 100;
  request.sink_pages = 1;
  request.newest_pages = 2;
  request.budget_pages = 64;
  SelectPagesParams params;
  params.store = &store;
  params.requests = {&request, 1};
  EXPECT_EQ(CostOf(params).bytes, 97 * 2 * 100);
  request.num_pages = 64;  // everything is kept, so nothing is scored
  EXPECT_EQ(CostOf(params).bytes, 0);
}

TEST(Summary, MedianAndRange) {
  const std::vector<double> odd = {3, 1, 2};
  EXPECT_EQ(Summarize(odd).median, 2);
  EXPECT_EQ(Summarize(odd).min, 1);
  EXPECT_EQ(Summarize(odd).max, 3);
  const std::vector<double> even = {4, 1, 3, 100};
  EXPECT_EQ(Summarize(even).median, 3.5);
  EXPECT_EQ(Summarize({}).median, 0);
}

}  // namespace
}  // namespace lserve
