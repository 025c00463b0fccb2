// What attention needs to know about a plan's row: which pages it visits, in pieces, and which of
// its queries see which keys of a page. Pure arithmetic on positions; used by attention.cc.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "attention/page_plan.h"

namespace lserve {

// The pages of one row as a sequence that can be cut anywhere (ForEachPage of page_plan.h, but
// skipping costs a step per run, not per page).
class PageVisits {
 public:
  PageVisits(const PagePlan& plan, const PlanRow& row, int entry)
      : runs_(plan.RunsOf(row, entry)), newest_(row.newest) {
    for (const PageRun& run : runs_) count_ += Length(run);
    count_ += std::max(0, newest_.last - newest_.first);
  }

  int count() const { return count_; }

  // Calls f(page) for visits [first, last), in order.
  template <class F>
  void ForEach(int first, int last, F&& f) const {
    int at = 0;
    for (const PageRun& run : runs_) {
      Clip(run.first, Length(run), at, first, last, f);
      at += Length(run);
    }
    Clip(newest_.first, newest_.last - newest_.first, at, first, last, f);
  }

 private:
  // Pages of a listed run that lie before the newest ones.
  int Length(const PageRun& run) const {
    return std::max(0, std::min(run.last, newest_.first) - run.first);
  }

  template <class F>
  static void Clip(PageIdx page, int length, int at, int first, int last, F& f) {
    const int end = std::min(length, last - at);
    for (int i = std::max(0, first - at); i < end; ++i) f(page + i);
  }

  std::span<const PageRun> runs_;
  PageRun newest_;
  int count_ = 0;
};

// Half-open range of a row's queries.
struct QueryRange {
  int first = 0;
  int last = 0;
};

// Far beyond any position, and safe to add to one.
inline constexpr int64_t kUnbounded = int64_t{1} << 60;

namespace internal {
// The queries of a row whose positions lie in [first, last).
inline QueryRange QueriesBetween(const PlanRow& row, int64_t first, int64_t last) {
  const int64_t n = row.num_queries;
  const int64_t begin = std::clamp<int64_t>(first - row.first_position, 0, n);
  const int64_t end = std::clamp<int64_t>(last - row.first_position, begin, n);
  return {static_cast<int>(begin), static_cast<int>(end)};
}

constexpr uint64_t LowBits(int64_t n) {
  if (n <= 0) return 0;
  return n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1;
}
}  // namespace internal

// Queries that see at least one key of the page. They are consecutive: the page's first key must
// not lie ahead and, unless the page begins inside the sink, its last one not behind the window.
inline QueryRange QueriesSeeingSome(const PlanRow& row, PageIdx page) {
  const int64_t first_key = int64_t{page} * kPageTokens;
  const int64_t last_key = first_key + kPageTokens - 1;
  const int64_t window = std::min(row.window, kUnbounded);
  if (first_key < row.sink_end) return internal::QueriesBetween(row, first_key, kUnbounded);
  if (window <= 0) return {};
  return internal::QueriesBetween(row, first_key, last_key + window);
}

// Queries that see every key of the page; consecutive, and among those that see some.
inline QueryRange QueriesSeeingAll(const PlanRow& row, PageIdx page) {
  const int64_t first_key = int64_t{page} * kPageTokens;
  const int64_t last_key = first_key + kPageTokens - 1;
  const int64_t window = std::min(row.window, kUnbounded);
  if (last_key < row.sink_end) return internal::QueriesBetween(row, last_key, kUnbounded);
  return internal::QueriesBetween(row, last_key, std::max(first_key, row.sink_end) + window);
}

// Bit k: the query at position `p` sees the page's key k.
inline uint64_t VisibleKeys(const PlanRow& row, int64_t p, PageIdx page) {
  static_assert(kPageTokens == 64);
  const int64_t first_key = int64_t{page} * kPageTokens;
  const int64_t window = std::min(row.window, kUnbounded);
  const uint64_t causal = internal::LowBits(p + 1 - first_key);
  const uint64_t sink = internal::LowBits(row.sink_end - first_key);
  const uint64_t near = ~internal::LowBits(p + 1 - window - first_key);
  return causal & (sink | near);
}

}  // namespace lserve
