#include "backend/prefill_rounds.h"

#include <algorithm>

namespace lserve {
namespace {

using Runs = std::vector<PageRun>;

// What a row may read, as runs that may overlap.
void AddRuns(const PagePlan& plan, const PlanRow& row, Runs* runs) {
  const auto add = [&](PageIdx first, PageIdx last) {
    if (first < last) runs->push_back({first, last});
  };
  if (row.selection != kNoSelection) {
    add(0, row.newest.first);  // the device knows which of them
  } else {
    for (const PageRun& run : plan.RunsOf(row, 0)) {
      add(run.first, std::min(run.last, row.newest.first));
    }
  }
  add(row.newest.first, row.newest.last);
  if (runs->empty()) add(0, 1);  // a kernel may copy what it masks, for a row without pages
}

// The pages of the runs, ascending, each once.
std::vector<PageIdx> PagesOf(Runs runs) {
  std::sort(runs.begin(), runs.end(),
            [](const PageRun& a, const PageRun& b) { return a.first < b.first; });
  std::vector<PageIdx> pages;
  PageIdx next = 0;
  for (const PageRun& run : runs) {
    for (next = std::max(next, run.first); next < run.last; ++next) pages.push_back(next);
  }
  return pages;
}

// Gives out the places of one way, to each page of the cache one.
class Places {
 public:
  int CountNew(std::span<const PageId> table, const std::vector<PageIdx>& indices) const {
    return static_cast<int>(std::count_if(indices.begin(), indices.end(), [&](PageIdx index) {
      return Find(table[static_cast<size_t>(index)]) == kNone;
    }));
  }

  PageId PlaceOf(PageId page, std::vector<PageId>* pages) {
    const size_t at = static_cast<size_t>(page);
    if (at >= places_.size()) places_.resize(at + 1, kNone);
    if (places_[at] == kNone) {
      places_[at] = static_cast<PageId>(pages->size());
      pages->push_back(page);
    }
    return places_[at];
  }

 private:
  static constexpr PageId kNone = -1;

  PageId Find(PageId page) const {
    const size_t at = static_cast<size_t>(page);
    return at < places_.size() ? places_[at] : kNone;
  }

  std::vector<PageId> places_;  // [page]
};

}  // namespace

std::vector<ScratchGroup> GroupSequences(const PagePlan& plan,
                                         std::span<const SequencePages> sequences,
                                         std::span<const int> order,
                                         size_t most_parts) {
  std::vector<Runs> runs[kNumWays];
  for (std::vector<Runs>& way : runs) way.resize(sequences.size());
  for (const PlanRow& row : plan.rows) {
    AddRuns(plan, row, &runs[Index(row.way)][static_cast<size_t>(row.sequence)]);
  }
  std::vector<ScratchGroup> groups;
  std::vector<size_t> group_of(sequences.size());
  Places places[kNumWays];
  for (size_t s = 0; s < sequences.size(); ++s) {
    std::vector<PageIdx> indices[kNumWays];
    bool fits = !groups.empty();
    for (int w = 0; w < kNumWays; ++w) {
      const std::span<const PageId> table = sequences[s].pages[w];
      indices[w] = PagesOf(std::move(runs[w][s]));
      // A page that was trimmed is in nobody's list.
      std::erase_if(indices[w],
                    [&](PageIdx i) { return table[static_cast<size_t>(i)] == kNoPage; });
      if (!fits) continue;
      const size_t parts = groups.back().pages[w].size();
      fits = parts + static_cast<size_t>(places[w].CountNew(table, indices[w])) <= most_parts;
    }
    if (!fits &&
        (groups.empty() || !groups.back().pages[0].empty() || !groups.back().pages[1].empty())) {
      groups.emplace_back();
      for (int w = 0; w < kNumWays; ++w) {
        groups.back().places[w].resize(sequences.size());
        places[w] = {};
      }
    }
    ScratchGroup& group = groups.back();
    group_of[s] = groups.size() - 1;
    for (int w = 0; w < kNumWays; ++w) {
      if (indices[w].empty()) continue;
      std::vector<PageId>& to = group.places[w][s];
      to.resize(static_cast<size_t>(indices[w].back()) + 1);
      for (const PageIdx index : indices[w]) {
        const auto i = static_cast<size_t>(index);
        to[i] = places[w].PlaceOf(sequences[s].pages[w][i], &group.pages[w]);
      }
    }
  }
  for (const int row : order) {
    const auto s = static_cast<size_t>(plan.rows[static_cast<size_t>(row)].sequence);
    groups[group_of[s]].rows.push_back(row);
  }
  std::erase_if(groups, [](const ScratchGroup& group) { return group.rows.empty(); });
  return groups;
}

std::vector<SlotRound> SlotRounds(const int (&num_pages)[kNumWays],
                                  const int (&num_slots)[kNumWays],
                                  size_t most_parts) {
  std::vector<SlotRound> rounds;
  size_t parts = 0;
  for (int w = 0; w < kNumWays; ++w) {
    if (num_pages[w] == 0) continue;  // no row is of this way
    const auto pages = static_cast<size_t>(num_pages[w]);
    for (int slot = 0; slot < num_slots[w]; ++slot) {
      if (rounds.empty() || parts + pages > most_parts) {
        rounds.emplace_back();
        parts = 0;
      }
      SlotRound& round = rounds.back();
      if (round.count[w]++ == 0) round.first[w] = slot;
      parts += pages;
    }
  }
  return rounds;
}

}  // namespace lserve
