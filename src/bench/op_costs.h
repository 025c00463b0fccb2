// What an op costs at least, from its parameters alone: the arithmetic that it can not avoid and
// the bytes that it has to fetch. No times. Used by MeteredBackend and the kernel benches.
#pragma once

#include "backend/ops.h"

namespace lserve {

// FLOP counts a multiplication and an addition as two. Bytes are weights, K/V and statistics, each
// once: what must come from memory when the caches are too small for it. Activations are not
// counted.
struct OpCost {
  double flop = 0;
  double bytes = 0;

  OpCost& operator+=(const OpCost& other) {
    flop += other.flop;
    bytes += other.bytes;
    return *this;
  }
};

// 2 x rows x in x out; the weight as the backend stores it.
OpCost CostOf(const LinearParams& params);

// 4 x head_dim (q K^T and weights x V) for each visible pair of a query and a key, per query head;
// the visited pages of each row, masked or not. Rows of a tile share a page, and so do the query
// heads of a group. REQUIRES: the plan's tables lie in host memory.
OpCost CostOf(const AttentionParams& params);

// The statistics of the pages that are scored; a few FLOP per byte, not counted.
OpCost CostOf(const SelectPagesParams& params);

// 2 x head_dim for each pair of a query and a key that does not begin ahead of its tile, divided by
// the stride: the folded products. Keys are read once per request and slot.
OpCost CostOf(const SelectTilesParams& params);

// Visible (query, key) pairs of one row and one query head, among the pages it visits.
double VisiblePairs(const PagePlan& plan, const PlanRow& row, int entry);

}  // namespace lserve
