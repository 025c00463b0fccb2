#include "bench/op_costs.h"

#include <algorithm>

#include "backend/kv_store.h"

namespace lserve {
namespace {

// Keys in both [a_first, a_last) and [b_first, b_last).
int64_t Overlap(int64_t a_first, int64_t a_last, int64_t b_first, int64_t b_last) {
  return std::max<int64_t>(0, std::min(a_last, b_last) - std::max(a_first, b_first));
}

// Keys of [first, last) that the query at position `p` sees: the sink, and the window behind it.
int64_t VisibleKeys(const PlanRow& row, int64_t p, int64_t first, int64_t last) {
  const int64_t sink_end = std::min(row.sink_end, p + 1);
  const int64_t window_first = std::max(sink_end, row.window > p ? int64_t{0} : p + 1 - row.window);
  return Overlap(first, last, 0, sink_end) + Overlap(first, last, window_first, p + 1);
}

struct PagesAndPairs {
  double pages = 0;
  double pairs = 0;
};

PagesAndPairs Count(const PagePlan& plan, const PlanRow& row, int entry) {
  PagesAndPairs count;
  const int64_t last_position = row.first_position + row.num_queries - 1;
  const auto add = [&](PageIdx first_page, PageIdx last_page) {
    if (last_page <= first_page) return;
    count.pages += last_page - first_page;
    const int64_t first = int64_t{first_page} * kPageTokens;
    const int64_t last = int64_t{last_page} * kPageTokens;
    for (int64_t p = row.first_position; p <= last_position; ++p) {
      count.pairs += static_cast<double>(VisibleKeys(row, p, first, last));
    }
  };
  for (const PageRun& run : plan.RunsOf(row, entry)) {
    add(run.first, std::min(run.last, row.newest.first));
  }
  add(row.newest.first, row.newest.last);
  return count;
}

}  // namespace

double VisiblePairs(const PagePlan& plan, const PlanRow& row, int entry) {
  return Count(plan, row, entry).pairs;
}

OpCost CostOf(const LinearParams& params) {
  const LinearWeight& w = *params.weight;
  return {
      .flop = 2.0 * static_cast<double>(params.x.rows) * static_cast<double>(w.in_features) *
              static_cast<double>(w.out_features),
      .bytes = static_cast<double>(w.data.bytes + w.scales.bytes + w.zeros.bytes + w.bias.bytes)};
}

OpCost CostOf(const AttentionParams& params) {
  const KvLayout& layout = params.store->layout();
  const int group = params.num_q_heads / layout.num_kv_heads;
  OpCost cost;
  for (const PlanRow& row : params.plan->rows) {
    const WayLayout& way = layout.way(row.way);
    const int first_entry = way.first_entry[static_cast<size_t>(params.layer)];
    const bool all = row.slot == kAllSlots;
    const int num_slots = all ? way.num_slots(params.layer) : 1;
    // Only selected lists differ from slot to slot.
    const bool same = row.selection == kNoSelection;
    PagesAndPairs count;
    for (int slot = 0; slot < num_slots; ++slot) {
      if (slot == 0 || !same) {
        count = Count(*params.plan, row, first_entry + (all ? slot : row.slot));
      }
      cost.flop += 4.0 * layout.head_dim * group * count.pairs;
      cost.bytes += count.pages * static_cast<double>(way.head_bytes.kv);
    }
  }
  return cost;
}

OpCost CostOf(const SelectTilesParams& params) {
  const KvLayout& layout = params.store->layout();
  const WayLayout& way = layout.way(Way::kRetrieval);
  const int heads_per_group = params.num_q_heads / layout.num_kv_heads;
  const double group = heads_per_group;
  const double slots = way.num_slots(params.layer);
  OpCost cost;
  for (const TileSelectRequest& request : params.requests) {
    const double keys = static_cast<double>(request.first_position + kTileTokens);
    cost.flop += slots * group * 2.0 * layout.head_dim * kTileTokens * keys / kTileStride;
    // Keys are half of the record.
    cost.bytes += slots * keys / kPageTokens * static_cast<double>(way.head_bytes.kv) / 2;
  }
  return cost;
}

OpCost CostOf(const SelectPagesParams& params) {
  const WayLayout& way = params.store->layout().way(Way::kRetrieval);
  OpCost cost;
  for (const SelectRequest& request : params.requests) {
    const int forced = request.sink_pages + request.newest_pages;
    const int candidates = request.num_pages - forced;
    // Nothing is scored if all of them are kept, or none.
    if (candidates <= request.budget_pages - forced || request.budget_pages <= forced) continue;
    cost.bytes += static_cast<double>(candidates) * way.num_slots(params.layer) *
                  static_cast<double>(way.head_bytes.stats);
  }
  return cost;
}

}  // namespace lserve
