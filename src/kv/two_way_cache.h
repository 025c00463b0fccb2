// SequenceCache: the KV cache of one sequence, in both ways. It is the only class that knows that
// there are two: callers speak of tokens, kernels get page tables. Policy (what may be trimmed)
// comes from attention/; bytes are written by the backend's AppendKv only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kv/page_pool.h"

namespace lserve {

// Invariants: pages before the tail are full and never written again; a shared tail is copied
// before the first append. Engine thread only.
class SequenceCache {
 public:
  // Both must outlive the cache.
  SequenceCache(PagePool* pool, PageStorage* storage) : pool_(pool), storage_(storage) {}
  SequenceCache(SequenceCache&&) = default;
  SequenceCache& operator=(SequenceCache&&) = default;

  int64_t num_tokens() const { return num_tokens_; }

  // Pages that Reserve(count) would take from the pool, per way.
  struct Need {
    int64_t pages[kNumWays] = {};
  };
  Need NeedFor(int64_t count) const;

  // Makes positions [num_tokens, num_tokens + count) writable in both ways. False, and nothing is
  // changed, if the pool has not enough pages.
  bool Reserve(int64_t count);
  // Declares `count` reserved tokens written.
  void Advance(int64_t count);

  // A second sequence with the first `num_tokens` tokens of this one: pages are shared, a partial
  // tail is copied on the next append. REQUIRES: num_tokens <= num_tokens(), and no page that the
  // first query after the fork may see has been trimmed.
  SequenceCache Fork(int64_t num_tokens) const;

  // A sequence whose first `num_tokens` tokens lie in `pages`, [way][logical index], with an empty
  // reference where the streaming way has nothing. REQUIRES: NumPages(num_tokens) pages of each way
  // that has bytes; after the last hole, every page that the next query may see.
  static SequenceCache FromPages(PagePool* pool,
                                 PageStorage* storage,
                                 int64_t num_tokens,
                                 std::vector<PageRef> (&&pages)[kNumWays]);

  // A second reference to one page; empty where trimmed, or where the way has no bytes.
  PageRef SharePage(Way way, PageIdx page) const;

  // Drops the references of the streaming way to pages with every token in [sink_end, first_token).
  // Both arguments are positions; pages that straddle a bound stay.
  void TrimStreaming(int64_t sink_end, int64_t first_token);

  // First position whose streaming page, and every later one, is still here.
  int64_t streaming_first_token() const;

  // Logical index -> physical page, kNoPage where trimmed. Valid until the next call that is not
  // const.
  std::span<const PageId> pages(Way way) const { return tables_[Index(way)].ids; }

  // Pages of one way that this sequence refers to, shared or not.
  int64_t num_held(Way way) const { return tables_[Index(way)].num_held; }
  // Bytes of the pages this sequence refers to (shared ones count in full).
  size_t bytes() const;

 private:
  struct Table {
    std::vector<PageRef> refs;  // [logical index]
    std::vector<PageId> ids;    // the same as ids, for the kernels
    int64_t num_held = 0;
  };
  bool tail_is_partial() const { return num_tokens_ % kPageTokens != 0; }

  PagePool* pool_;
  PageStorage* storage_;
  int64_t num_tokens_ = 0;
  PageIdx trimmed_last_ = 0;  // streaming pages [sink pages, trimmed_last_) are dropped
  Table tables_[kNumWays];
};

}  // namespace lserve
