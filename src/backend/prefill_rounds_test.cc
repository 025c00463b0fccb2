#include "backend/prefill_rounds.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <vector>

#include "base/rng.h"
#include "base/strings.h"

namespace lserve {
namespace {

constexpr size_t kPlenty = 1 << 20;

// Sequences of `num_pages` pages each; page i of sequence s is 100 s + i in the retrieval way and
// 50 more in the streaming way.
struct Batch {
  explicit Batch(const std::vector<int>& num_pages) {
    for (size_t s = 0; s < num_pages.size(); ++s) {
      for (int w = 0; w < kNumWays; ++w) {
        std::vector<PageId> table(static_cast<size_t>(num_pages[s]));
        std::iota(table.begin(), table.end(),
                  static_cast<PageId>(100 * s + 50 * static_cast<size_t>(w)));
        tables[w].push_back(std::move(table));
      }
    }
  }

  // A row over pages [0, sink) and [first, last).
  void AddRow(int sequence, Way way, PageIdx sink, PageIdx first, PageIdx last) {
    PlanRow row;
    row.sequence = sequence;
    row.way = way;
    row.first_run = static_cast<int>(plan.runs.size());
    row.num_runs = sink > 0 ? 1 : 0;
    if (sink > 0) plan.runs.push_back({0, sink});
    row.newest = {first, last};
    plan.rows.push_back(row);
  }

  std::vector<ScratchGroup> Group(size_t most_parts) const {
    std::vector<SequencePages> sequences;
    for (size_t s = 0; s < tables[0].size(); ++s) {
      sequences.push_back({{tables[0][s], tables[1][s]}});
    }
    std::vector<int> order(plan.rows.size());  // backwards, to tell it from 0, 1, 2 ...
    std::iota(order.rbegin(), order.rend(), 0);
    return GroupSequences(plan, sequences, order, most_parts);
  }

  PagePlan plan;
  std::vector<std::vector<PageId>> tables[kNumWays];
};

std::vector<int> RowsOf(const std::vector<ScratchGroup>& groups) {
  std::vector<int> rows;
  for (const ScratchGroup& group : groups) {
    rows.insert(rows.end(), group.rows.begin(), group.rows.end());
  }
  return rows;
}

TEST(GroupSequences, TakesWhatARowMayReadAndNoMore) {
  Batch batch({10});
  batch.AddRow(0, Way::kStreaming, 1, 5, 7);
  batch.AddRow(0, Way::kStreaming, 1, 6, 8);
  batch.AddRow(0, Way::kRetrieval, 0, 0, 8);
  const std::vector<ScratchGroup> groups = batch.Group(kPlenty);
  ASSERT_EQ(groups.size(), 1u);
  EXPECT_EQ(groups[0].rows, (std::vector<int>{2, 1, 0}));
  EXPECT_EQ(groups[0].pages[1], (std::vector<PageId>{50, 55, 56, 57}));
  EXPECT_EQ(groups[0].places[1][0], (std::vector<PageId>{0, 0, 0, 0, 0, 1, 2, 3}));
  EXPECT_EQ(groups[0].pages[0], (std::vector<PageId>{0, 1, 2, 3, 4, 5, 6, 7}));
}

// The host does not know what a list will name; runs are cut where the newest pages begin.
TEST(GroupSequences, TakesAllThatAListMayName) {
  Batch batch({10});
  batch.AddRow(0, Way::kRetrieval, 0, 6, 8);
  batch.plan.rows[0].selection = 0;
  batch.plan.selections.push_back({.capacity = 3});
  EXPECT_EQ(batch.Group(kPlenty)[0].pages[0].size(), 8u);
  batch = Batch({10});
  batch.AddRow(0, Way::kRetrieval, 7, 3, 4);
  EXPECT_EQ(batch.Group(kPlenty)[0].pages[0].size(), 4u);
}

// Nor what was trimmed, which a list of such a range can not name.
TEST(GroupSequences, TakesNoTrimmedPage) {
  Batch batch({6});
  batch.tables[0][0][2] = kNoPage;
  batch.AddRow(0, Way::kRetrieval, 0, 4, 5);
  batch.plan.rows[0].selection = 0;
  batch.plan.selections.push_back({.capacity = 3});
  const std::vector<ScratchGroup> groups = batch.Group(kPlenty);
  EXPECT_EQ(groups[0].pages[0], (std::vector<PageId>{0, 1, 3, 4}));
  EXPECT_EQ(groups[0].places[0][0], (std::vector<PageId>{0, 1, 0, 2, 3}));
}

// A kernel may copy the first page for a row that reads none.
TEST(GroupSequences, ARowWithoutPagesHasAPlace) {
  Batch batch({3});
  batch.AddRow(0, Way::kRetrieval, 0, 0, 0);
  const std::vector<ScratchGroup> groups = batch.Group(kPlenty);
  ASSERT_EQ(groups.size(), 1u);
  EXPECT_EQ(groups[0].pages[0], std::vector<PageId>{0});
  EXPECT_EQ(groups[0].places[0][0], std::vector<PageId>{0});
}

TEST(GroupSequences, ASharedPageHasOnePlace) {
  Batch batch({4, 5, 2});
  std::copy_n(batch.tables[0][0].begin(), 3, batch.tables[0][1].begin());
  for (const int s : {0, 1}) batch.AddRow(s, Way::kRetrieval, 0, 0, 4);
  const std::vector<ScratchGroup> groups = batch.Group(5);
  ASSERT_EQ(groups.size(), 1u);
  EXPECT_EQ(groups[0].pages[0], (std::vector<PageId>{0, 1, 2, 3, 103}));
  EXPECT_EQ(groups[0].places[0][1], (std::vector<PageId>{0, 1, 2, 4}));
  EXPECT_TRUE(groups[0].places[0][2].empty());
  // One part less, and they go apart: each has all of its own.
  const std::vector<ScratchGroup> apart = batch.Group(4);
  ASSERT_EQ(apart.size(), 2u);
  EXPECT_EQ(apart[1].pages[0], (std::vector<PageId>{0, 1, 2, 103}));
}

TEST(GroupSequences, APlanWithoutRowsHasNoGroup) {
  EXPECT_TRUE(Batch({}).Group(kPlenty).empty());
  EXPECT_TRUE(Batch({3, 4}).Group(kPlenty).empty());
}

// Random batches in scratches of all sizes.
TEST(GroupSequences, EveryPageThatIsVisitedHasAPlace) {
  Rng rng(1);
  for (int trial = 0; trial < 50; ++trial) {
    std::vector<int> num_pages;
    for (int s = 0; s < 5; ++s) num_pages.push_back(1 + static_cast<int>(rng.NextBelow(40)));
    Batch batch(num_pages);
    for (int r = 0; r < 12; ++r) {
      const int s = static_cast<int>(rng.NextBelow(4));  // the last one decodes
      const auto last = static_cast<PageIdx>(
          1 + rng.NextBelow(static_cast<uint64_t>(num_pages[static_cast<size_t>(s)])));
      const auto first = static_cast<PageIdx>(rng.NextBelow(static_cast<uint64_t>(last)));
      batch.AddRow(s, kWays[rng.NextBelow(2)], std::min<PageIdx>(first, 2), first, last);
    }
    for (const size_t most_parts : {size_t{0}, size_t{7}, size_t{40}, size_t{70}, kPlenty}) {
      SCOPED_TRACE(StrCat("trial ", trial, ", ", most_parts, " parts"));
      const std::vector<ScratchGroup> groups = batch.Group(most_parts);
      std::vector<int> rows = RowsOf(groups);
      std::sort(rows.begin(), rows.end());
      ASSERT_EQ(rows.size(), 12u);
      for (int r = 0; r < 12; ++r) ASSERT_EQ(rows[static_cast<size_t>(r)], r);
      for (const ScratchGroup& group : groups) {
        EXPECT_TRUE(std::is_sorted(group.rows.rbegin(), group.rows.rend())) << "order";
        std::set<int> members;
        for (const int r : group.rows) {
          const PlanRow& row = batch.plan.rows[static_cast<size_t>(r)];
          const int w = Index(row.way);
          const auto s = static_cast<size_t>(row.sequence);
          members.insert(row.sequence);
          ForEachPage(batch.plan, row, 0, [&](PageIdx page) {
            const auto i = static_cast<size_t>(page);
            ASSERT_LT(i, group.places[w][s].size());
            const auto place = static_cast<size_t>(group.places[w][s][i]);
            ASSERT_LT(place, group.pages[w].size());
            ASSERT_EQ(group.pages[w][place], batch.tables[w][s][i]);
          });
        }
        if (members.size() == 1) continue;
        for (const std::vector<PageId>& pages : group.pages) EXPECT_LE(pages.size(), most_parts);
      }
    }
  }
}

TEST(SlotRounds, NameEverySlotOnceWithinTheScratch) {
  for (const int first_pages : {0, 3, 10}) {
    for (const int second_pages : {0, 2}) {
      for (const int first_slots : {0, 1, 4}) {
        for (const int second_slots : {0, 4}) {
          for (const size_t most : {0, 2, 3, 9, 10, 13, 25, 1000}) {
            SCOPED_TRACE(StrCat(first_pages, " x ", first_slots, " + ", second_pages, " x ",
                                second_slots, " in ", most));
            const int pages[] = {first_pages, second_pages}, slots[] = {first_slots, second_slots};
            int next[kNumWays] = {};
            for (const SlotRound& round : SlotRounds(pages, slots, most)) {
              size_t parts = 0;
              int count = 0;
              for (int w = 0; w < kNumWays; ++w) {
                count += round.count[w];
                parts += static_cast<size_t>(round.count[w] * pages[w]);
                if (round.count[w] == 0) continue;
                EXPECT_EQ(round.first[w], next[w]);
                next[w] += round.count[w];
              }
              EXPECT_GT(count, 0);
              EXPECT_TRUE(parts <= most || count == 1);
            }
            for (int w = 0; w < kNumWays; ++w) EXPECT_EQ(next[w], pages[w] > 0 ? slots[w] : 0);
          }
        }
      }
    }
  }
}

// As few as filling them in turn gives: what fits is one launch.
TEST(SlotRounds, AreAsFullAsTheyCanBe) {
  const int pages[] = {10, 2}, slots[] = {4, 4};
  EXPECT_EQ(SlotRounds(pages, slots, 48).size(), 1u);
  EXPECT_EQ(SlotRounds(pages, slots, 47).size(), 2u);
  const std::vector<SlotRound> rounds = SlotRounds(pages, slots, 24);
  ASSERT_EQ(rounds.size(), 3u);  // 20, 20 + 2 x 2, 2 x 2
  EXPECT_EQ(rounds[1].count[0], 2);
  EXPECT_EQ(rounds[1].count[1], 2);
  EXPECT_EQ(rounds[2].first[1], 2);
}

}  // namespace
}  // namespace lserve
