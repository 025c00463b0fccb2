#include <gtest/gtest.h>

#include <map>
#include <set>

#include "base/rng.h"
#include "kv/kv_layout.h"
#include "kv/page_pool.h"
#include "kv/two_way_cache.h"

namespace lserve {
namespace {

// Records what the pool asks for; remembers the copies.
class FakeStorage : public PageStorage {
 public:
  Status Commit(Way way, PageId first, int count) override {
    for (PageId id = first; id < first + count; ++id) {
      EXPECT_TRUE(committed[Index(way)].insert(id).second) << "committed twice";
    }
    return Status();
  }
  void Decommit(Way way, PageId first, int count) override {
    for (PageId id = first; id < first + count; ++id) {
      EXPECT_EQ(committed[Index(way)].erase(id), 1u) << "given back without memory";
    }
  }
  void CopyPage(Way way, PageId from, PageId to, int num_tokens) override {
    EXPECT_TRUE(committed[Index(way)].contains(from) && committed[Index(way)].contains(to));
    copies.push_back({from, to, num_tokens});
  }

  struct Copy {
    PageId from, to;
    int num_tokens;
  };
  std::set<PageId> committed[kNumWays];
  std::vector<Copy> copies;
};

// 4 layers x 2 heads: layer 0 all retrieval, layer 1 all streaming, layers 2 and 3 mixed.
KvLayout TestLayout(size_t kv = 1 << 18, size_t stats = 1 << 12) {
  return MakeKvLayout(4, 2, 64, DType::kBf16, {1, 1, 0, 0, 1, 0, 0, 1}, {.kv = kv, .stats = stats});
}

TEST(KvLayout, LayersWithoutHeadsOfAKindHaveZeroBytes) {
  const KvLayout layout = TestLayout(100, 10);
  const WayLayout& retrieval = layout.way(Way::kRetrieval);
  const WayLayout& streaming = layout.way(Way::kStreaming);
  EXPECT_EQ(retrieval.kv_bytes, 400u);
  EXPECT_EQ(retrieval.stats_bytes, 40u);
  EXPECT_EQ(streaming.kv_bytes, 400u);
  EXPECT_EQ(streaming.stats_bytes, 0u);  // nothing is selected in the streaming way
  EXPECT_EQ(retrieval.kv_offset, (std::vector<size_t>{0, 200, 200, 300}));
  EXPECT_EQ(streaming.kv_offset, (std::vector<size_t>{0, 0, 200, 300}));
  EXPECT_EQ(retrieval.first_entry, (std::vector<int>{0, 2, 2, 3}));
  EXPECT_EQ(layout.slots[7].way, Way::kRetrieval);  // layer 3, head 1
  EXPECT_EQ(layout.slots[7].slot, 0);
  EXPECT_EQ(retrieval.heads[3], std::vector<int>{1});
}

TEST(PagePool, BudgetIsSharedAndGranulesMoveBetweenWays) {
  const KvLayout layout = TestLayout();
  FakeStorage storage;
  const size_t budget = size_t{8} << 20;
  PagePool pool(layout, &storage, budget);
  std::vector<PageRef> pages;
  while (std::optional<PageRef> page = pool.Allocate(Way::kRetrieval))
    pages.push_back(*std::move(page));
  const size_t full = pages.size();
  EXPECT_GT(full, 0u);
  EXPECT_LE(pool.bytes_in_use(), budget);
  EXPECT_FALSE(pool.CanAllocate(0, 1));
  EXPECT_FALSE(pool.Allocate(Way::kStreaming).has_value());
  pages.clear();
  EXPECT_EQ(pool.bytes_in_use(), 0u);
  while (std::optional<PageRef> page = pool.Allocate(Way::kStreaming))
    pages.push_back(*std::move(page));
  EXPECT_GE(pages.size(), full);  // a streaming page has no statistics, so at least as many fit
  EXPECT_TRUE(storage.committed[Index(Way::kRetrieval)].empty());
}

TEST(PagePool, CanAllocateIsExact) {
  const KvLayout layout = TestLayout(1 << 16, 1 << 10);
  FakeStorage storage;
  PagePool pool(layout, &storage, size_t{9} << 20);
  Rng rng(1);
  std::vector<PageRef> held[kNumWays];
  for (int round = 0; round < 300; ++round) {
    const int64_t want[2] = {static_cast<int64_t>(rng.NextBelow(12)),
                             static_cast<int64_t>(rng.NextBelow(12))};
    const bool can = pool.CanAllocate(want[0], want[1]);
    std::vector<PageRef> got;
    bool all = true;
    for (const Way way : kWays) {
      for (int64_t i = 0; i < want[Index(way)] && all; ++i) {
        std::optional<PageRef> page = pool.Allocate(way);
        all = page.has_value();
        if (all) got.push_back(*std::move(page));
      }
    }
    ASSERT_EQ(can, all) << "round " << round;
    const int to = static_cast<int>(rng.NextBelow(2));
    for (PageRef& page : got) held[to].push_back(std::move(page));
    if (rng.NextBelow(3) == 0) held[rng.NextBelow(2)].clear();
  }
}

TEST(PagePool, GivesBackWhatIsEmptyAndTakesItAgain) {
  FakeStorage storage;
  const KvLayout layout = TestLayout();
  PagePool pool(layout, &storage, size_t{64} << 20);
  std::optional<PageRef> held = pool.Allocate(Way::kRetrieval);
  for (const Way way : kWays) {
    std::vector<PageRef> pages;
    for (int i = 0; i < 8; ++i) pages.push_back(pool.Allocate(way).value());
  }
  const auto committed = [&] { return storage.committed[0].size() + storage.committed[1].size(); };
  const size_t before = committed();
  pool.DecommitEmpty();
  EXPECT_LT(committed(), before);
  EXPECT_TRUE(storage.committed[Index(Way::kRetrieval)].contains(held->id()));
  EXPECT_TRUE(storage.committed[Index(Way::kStreaming)].empty());
  EXPECT_TRUE(pool.Allocate(Way::kStreaming).has_value());
  held.reset();
  pool.DecommitEmpty();
  EXPECT_EQ(committed(), 0u);
}

TEST(SequenceCache, ReserveIsAllOrNothing) {
  const KvLayout layout = TestLayout();
  FakeStorage storage;
  PagePool pool(layout, &storage, size_t{8} << 20);
  SequenceCache cache(&pool, &storage);
  EXPECT_FALSE(cache.Reserve(1'000'000));
  EXPECT_EQ(pool.bytes_in_use(), 0u);
  EXPECT_TRUE(cache.Reserve(65));
  cache.Advance(65);
  EXPECT_EQ(cache.pages(Way::kRetrieval).size(), 2u);
  EXPECT_EQ(cache.pages(Way::kStreaming).size(), 2u);
}

TEST(SequenceCache, ForkSharesFullPagesAndCopiesTheTailOnAppend) {
  const KvLayout layout = TestLayout(1 << 12, 1 << 8);
  FakeStorage storage;
  PagePool pool(layout, &storage, size_t{64} << 20);
  SequenceCache parent(&pool, &storage);
  ASSERT_TRUE(parent.Reserve(150));
  parent.Advance(150);
  SequenceCache fork = parent.Fork(100);
  EXPECT_EQ(pool.pages_in_use(Way::kRetrieval), 3);
  EXPECT_EQ(fork.num_tokens(), 100);
  EXPECT_TRUE(storage.copies.empty());
  EXPECT_EQ(fork.NeedFor(1).pages[0], 1);
  ASSERT_TRUE(fork.Reserve(1));
  ASSERT_EQ(storage.copies.size(), 2u);  // one per way
  EXPECT_EQ(storage.copies[0].num_tokens, 36);
  EXPECT_EQ(fork.pages(Way::kRetrieval)[0], parent.pages(Way::kRetrieval)[0]);
  EXPECT_NE(fork.pages(Way::kRetrieval)[1], parent.pages(Way::kRetrieval)[1]);
  // The parent's tail page is its own again: appending copies nothing.
  ASSERT_TRUE(parent.Reserve(1));
  EXPECT_EQ(storage.copies.size(), 2u);
  // A fork at a page boundary has no tail to copy.
  SequenceCache even = parent.Fork(128);
  ASSERT_TRUE(even.Reserve(1));
  EXPECT_EQ(storage.copies.size(), 2u);
}

TEST(SequenceCache, TrimKeepsSinkAndWindowAndFreesTheRest) {
  const KvLayout layout = TestLayout(1 << 12, 1 << 8);
  FakeStorage storage;
  PagePool pool(layout, &storage, size_t{64} << 20);
  SequenceCache cache(&pool, &storage);
  ASSERT_TRUE(cache.Reserve(1000));
  cache.Advance(1000);
  cache.TrimStreaming(/*sink_end=*/100, /*first_token=*/700);
  const std::span<const PageId> ids = cache.pages(Way::kStreaming);
  for (size_t i = 0; i < ids.size(); ++i) {
    // Sink pages 0 and 1; page 10 holds token 700 and stays.
    EXPECT_EQ(ids[i] != kNoPage, i < 2 || i >= 10) << i;
  }
  EXPECT_EQ(pool.pages_in_use(Way::kStreaming), 2 + 6);
  EXPECT_EQ(pool.pages_in_use(Way::kRetrieval), 16);
  EXPECT_EQ(cache.streaming_first_token(), 640);
  cache.TrimStreaming(100, 700);  // again: nothing more to drop
  EXPECT_EQ(pool.pages_in_use(Way::kStreaming), 8);
  EXPECT_EQ(cache.bytes(),
            8 * pool.page_bytes(Way::kStreaming) + 16 * pool.page_bytes(Way::kRetrieval));
}

TEST(SequenceCache, AWayWithoutHeadsTakesNothing) {
  const KvLayout layout =
      MakeKvLayout(2, 2, 64, DType::kBf16, {1, 1, 1, 1}, {.kv = 4096, .stats = 256});
  FakeStorage storage;
  PagePool pool(layout, &storage, size_t{64} << 20);
  SequenceCache cache(&pool, &storage);
  ASSERT_TRUE(cache.Reserve(200));
  cache.Advance(200);
  cache.TrimStreaming(128, 190);
  EXPECT_EQ(pool.pages_in_use(Way::kStreaming), 0);
  EXPECT_EQ(cache.pages(Way::kStreaming).size(), 0u);
  SequenceCache fork = cache.Fork(130);
  EXPECT_TRUE(fork.Reserve(5));
}

TEST(SequenceCache, EveryPageComesBack) {
  const KvLayout layout = TestLayout(1 << 12, 1 << 8);
  FakeStorage storage;
  PagePool pool(layout, &storage, size_t{16} << 20);
  Rng rng(7);
  {
    std::vector<SequenceCache> live;
    for (int step = 0; step < 500; ++step) {
      if (live.size() < 8 && rng.NextBelow(3) == 0) {
        if (!live.empty() && rng.NextBelow(2) == 0) {
          const SequenceCache& from = live[rng.NextBelow(live.size())];
          const int64_t first = from.streaming_first_token();
          const uint64_t room = static_cast<uint64_t>(from.num_tokens() - first) + 1;
          live.push_back(from.Fork(first + static_cast<int64_t>(rng.NextBelow(room))));
        } else {
          live.emplace_back(&pool, &storage);
        }
      } else if (!live.empty()) {
        SequenceCache& cache = live[rng.NextBelow(live.size())];
        const int64_t count = static_cast<int64_t>(rng.NextBelow(150));
        if (cache.Reserve(count)) cache.Advance(count);
        if (rng.NextBelow(4) == 0) cache.TrimStreaming(64, cache.num_tokens() - 100);
        if (rng.NextBelow(10) == 0) live.erase(live.begin());
      }
    }
  }
  EXPECT_EQ(pool.bytes_in_use(), 0u);
}

}  // namespace
}  // namespace lserve
