// PagePlan: which pages each attention row visits. A policy (attention/policy.h) writes it, a
// device selector may fill parts of it, a kernel walks it and decides nothing. Dense, streaming and
// page-selected attention are three ways to write a plan (ADR 0001).
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "kv/page.h"

namespace lserve {

// Prefill rows hold at most this many queries, and prefill lists are in tiles of this many keys
// (two pages), both at absolute alignment.
inline constexpr int kTileTokens = 128;
inline constexpr int kAllTiles = std::numeric_limits<int>::max();  // a list without a limit

// Half-open range of logical page indices of one sequence.
struct PageRun {
  PageIdx first = 0;
  PageIdx last = 0;
  bool operator==(const PageRun&) const = default;
};

// Consecutive rows of a matrix = consecutive positions of one sequence.
struct RowRange {
  int sequence = 0;
  int first_row = 0;
  int num_rows = 0;
  int64_t first_position = 0;
};

inline constexpr int64_t kNoWindow = std::numeric_limits<int64_t>::max();
inline constexpr int kAllSlots = -1;
inline constexpr int kNoSelection = -1;

// One (sequence, KV head of a way, query tile). A row whose pages are the same for every head of
// its way has slot kAllSlots and serves all layers and slots; the kernel expands it.
//
// Visited pages, ascending: the row's runs cut off at newest.first, then `newest`. The runs are
// plan.runs[first_run, first_run + num_runs), or, if `selection` is set, the list that SelectPages
// (decode) or SelectTiles (prefill) left in that table for (layer, slot); the host knows `newest`
// at every step without asking the device, so a reused list never misses the newest pages.
//
// Key k is visible to the query at position p if k <= p and (k < sink_end or p - k < window).
struct PlanRow {
  int sequence = 0;  // index into the batch's sequences
  Way way = Way::kRetrieval;
  int slot = kAllSlots;
  int first_query = 0;         // row of the query matrix
  int num_queries = 0;         // consecutive rows and positions
  int64_t first_position = 0;  // absolute position of the first query
  int64_t sink_end = 0;
  int64_t window = kNoWindow;
  int first_run = 0;
  int num_runs = 0;
  int selection = kNoSelection;  // index into plan.selections
  PageRun newest = {};
};

// The page lists that a device selector fills: for each (layer, slot) of the retrieval way at most
// `capacity` runs, at a fixed stride. Entry = WayLayout::first_entry[layer] + slot. A decoding
// sequence has one table, at a fixed address for its life, which later steps reuse; in prefill
// every tile of queries has one, for the step.
struct SelectionTable {
  int capacity = 0;
  int max_pages = 0;        // that a list names at most, for sizing a launch; 0: not known
  int* num_runs = nullptr;  // [num_entries]
  PageRun* runs = nullptr;  // [num_entries, capacity]

  std::span<const PageRun> list(int entry) const {
    return {runs + static_cast<int64_t>(entry) * capacity, static_cast<size_t>(num_runs[entry])};
  }
};

struct PagePlan {
  std::vector<PlanRow> rows;
  std::vector<PageRun> runs;
  std::vector<SelectionTable> selections;

  void Clear() {
    rows.clear();
    runs.clear();
    selections.clear();
  }

  // The listed runs of a row, before the cut at newest.first. `entry` is used by selected rows.
  std::span<const PageRun> RunsOf(const PlanRow& row, int entry) const {
    if (row.selection != kNoSelection) {
      return selections[static_cast<size_t>(row.selection)].list(entry);
    }
    return std::span(runs).subspan(static_cast<size_t>(row.first_run),
                                   static_cast<size_t>(row.num_runs));
  }
};

// Calls f(page) for every page that a row visits, ascending.
template <class F>
void ForEachPage(const PagePlan& plan, const PlanRow& row, int entry, F&& f) {
  for (const PageRun& run : plan.RunsOf(row, entry)) {
    const PageIdx last = std::min(run.last, row.newest.first);
    for (PageIdx page = run.first; page < last; ++page) f(page);
  }
  for (PageIdx page = row.newest.first; page < row.newest.last; ++page) f(page);
}

// Whether the query at position `p` sees key `k` (both absolute).
constexpr bool Visible(const PlanRow& row, int64_t p, int64_t k) {
  return k <= p && (k < row.sink_end || p - k < row.window);
}

}  // namespace lserve
