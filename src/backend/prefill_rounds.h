// Prefill over quantised pages with kernels that read bf16 ones (ADR 0036): what is dequantised
// into a scratch together. The scratch is counted in parts, of one page and one slot of a layer.
// What a row may read of its sequence lies in it at once, so sequences share it in groups; the
// slots of a layer pass through it in rounds. A row's result depends on neither.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "attention/page_plan.h"
#include "backend/ops.h"
#include "kv/page.h"

namespace lserve {

// Sequences whose pages lie in the scratch together.
struct ScratchGroup {
  std::vector<int> rows;                // of the plan
  std::vector<PageId> pages[kNumWays];  // [place in the scratch] -> the page that is there
  // [sequence][logical page] -> place; 0 for a page that no row may read, empty for a sequence of
  // another group.
  std::vector<std::vector<PageId>> places[kNumWays];
};

// `order` are the plan's rows, and those of a group keep its order. Every page that a row of the
// group may read, whatever a device selector lists, has a place; a page of several sequences has
// one. One slot of a group takes at most `most_parts`, unless a sequence alone takes more.
std::vector<ScratchGroup> GroupSequences(const PagePlan& plan,
                                         std::span<const SequencePages> sequences,
                                         std::span<const int> order,
                                         size_t most_parts);

// Slots [first, first + count) of either way.
struct SlotRound {
  int first[kNumWays] = {};
  int count[kNumWays] = {};
};

// Every slot of both ways in one round, but for those of a way without pages. `num_pages` of a
// group and way are parts of each of its slots; a round has at most `most_parts`, or a single slot.
std::vector<SlotRound> SlotRounds(const int (&num_pages)[kNumWays],
                                  const int (&num_slots)[kNumWays],
                                  size_t most_parts);

}  // namespace lserve
