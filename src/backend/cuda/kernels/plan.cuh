// How kernels walk a PagePlan (attention/page_plan.h): the device's twin of ForEachPage and
// Visible.
#pragma once

#include "backend/cuda/device_views.h"

namespace lserve {

// What of a row's plan one slot reads: the listed runs, then the newest pages.
struct RowPages {
  const PageRun* runs = nullptr;
  int num_runs = 0;
  PageRun newest = {};
};

__device__ inline RowPages PagesOf(const PlanView& plan, const PlanRow& row, int entry) {
  if (row.selection == kNoSelection) {
    return {plan.runs + row.first_run, row.num_runs, row.newest};
  }
  const SelectionTable table = plan.selections[row.selection];
  return {table.runs + int64_t{entry} * table.capacity, table.num_runs[entry], row.newest};
}

// Steps through the pages of a row, ascending.
class PageCursor {
 public:
  static constexpr PageIdx kEnd = -1;

  __device__ explicit PageCursor(const RowPages& pages) : pages_(pages) { NextRun(); }

  // The page at the cursor, then forward; kEnd when there is none.
  __device__ PageIdx Next() {
    if (page_ < last_) return page_++;
    while (run_ <= pages_.num_runs) {
      NextRun();
      if (page_ < last_) return page_++;
    }
    return kEnd;
  }

 private:
  __device__ void NextRun() {
    if (run_ < pages_.num_runs) {
      const PageRun run = pages_.runs[run_];
      page_ = run.first;
      last_ = min(run.last, pages_.newest.first);
    } else {
      page_ = pages_.newest.first;
      last_ = pages_.newest.last;
    }
    ++run_;
  }

  RowPages pages_;
  int run_ = 0;
  PageIdx page_ = 0;
  PageIdx last_ = 0;
};

// Visible() of a row.
struct Mask {
  int64_t sink_end = 0;
  int64_t window = kNoWindow;

  __device__ bool Sees(int64_t position, int64_t key) const {
    return key <= position && (key < sink_end || position - key < window);
  }
  // Whether every query at [first, last] sees every key of the page.
  __device__ bool SeesAll(int64_t first, int64_t last, PageIdx page) const {
    const int64_t first_key = int64_t{page} * kPageTokens, last_key = first_key + kPageTokens - 1;
    return last_key <= first && (last_key < sink_end || last - first_key < window);
  }
};

}  // namespace lserve
