// How many pages the rows of a plan visit, as far as the host knows. Used by cuda_attention.cc and
// cuda_prefill.cc.
#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <vector>

#include "attention/page_plan.h"

namespace lserve {

// Pages a row reads; of a selected list, whose length only the device knows, `selected`.
inline int NumPages(const PagePlan& plan, const PlanRow& row, int selected) {
  int pages = row.newest.last - row.newest.first;
  if (row.selection != kNoSelection) return pages + selected;
  for (int i = 0; i < row.num_runs; ++i) {
    const PageRun& run = plan.runs[static_cast<size_t>(row.first_run + i)];
    pages += std::max(0, std::min(run.last, row.newest.first) - run.first);
  }
  return pages;
}

// Of `pages` those that the list of a row may hold.
inline int Listable(const PagePlan& plan, const PlanRow& row, int pages) {
  if (row.selection == kNoSelection) return pages;
  const int most = plan.selections[static_cast<size_t>(row.selection)].max_pages;
  return most > 0 ? std::min(pages, most) : pages;
}

inline int MostPages(const PagePlan& plan, const PlanRow& row) {
  return NumPages(plan, row, Listable(plan, row, row.newest.first));
}

// Rows by falling number of pages (a list is taken for a quarter of what it chooses from, or all
// it may hold), so that short ones fill the end of the grid.
inline std::vector<int> LongestFirst(const PagePlan& plan) {
  std::vector<int> costs;
  for (const PlanRow& row : plan.rows) {
    costs.push_back(NumPages(plan, row, Listable(plan, row, row.newest.first / 4)));
  }
  std::vector<int> order(plan.rows.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return costs[static_cast<size_t>(a)] > costs[static_cast<size_t>(b)];
  });
  return order;
}

}  // namespace lserve
