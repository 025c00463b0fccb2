#include "kv/two_way_cache.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace lserve {

namespace {

// Capacity for `more` further elements, growing as push_back does.
template <class T>
void MakeRoom(size_t more, std::vector<T>* v) {
  const size_t size = v->size() + more;
  if (size > v->capacity()) v->reserve(std::max(size, 2 * v->capacity()));
}

}  // namespace

SequenceCache::Need SequenceCache::NeedFor(int64_t count) const {
  Need need;
  for (const Way way : kWays) {
    if (pool_->page_bytes(way) == 0 || count == 0) continue;
    const Table& table = tables_[Index(way)];
    int64_t& pages = need.pages[Index(way)];
    pages = NumPages(num_tokens_ + count) - static_cast<int64_t>(table.ids.size());
    if (tail_is_partial() && table.refs.back().shared()) ++pages;
  }
  return need;
}

bool SequenceCache::Reserve(int64_t count) {
  LS_CHECK_GE(count, 0);
  const Need need = NeedFor(count);
  if (!pool_->CanAllocate(need.pages[0], need.pages[1])) return false;
  std::vector<PageRef> got[kNumWays];
  for (const Way way : kWays) {
    // All memory first, so that nothing is changed if there is none.
    const size_t pages = static_cast<size_t>(need.pages[Index(way)]);
    Table& table = tables_[Index(way)];
    got[Index(way)].reserve(pages);
    MakeRoom(pages, &table.refs);
    MakeRoom(pages, &table.ids);
    for (int64_t i = 0; i < need.pages[Index(way)]; ++i) {
      std::optional<PageRef> page = pool_->Allocate(way);
      if (!page) return false;  // the device has less memory than the budget
      got[Index(way)].push_back(*std::move(page));
    }
  }
  for (const Way way : kWays) {
    if (pool_->page_bytes(way) == 0 || count == 0) continue;
    Table& table = tables_[Index(way)];
    auto next = got[Index(way)].begin();
    if (tail_is_partial() && table.refs.back().shared()) {
      storage_->CopyPage(way, table.ids.back(), next->id(),
                         static_cast<int>(num_tokens_ % kPageTokens));
      table.ids.back() = next->id();
      table.refs.back() = std::move(*next++);
    }
    for (; next != got[Index(way)].end(); ++next) {
      table.ids.push_back(next->id());
      table.refs.push_back(std::move(*next));
      ++table.num_held;
    }
  }
  return true;
}

void SequenceCache::Advance(int64_t count) {
  num_tokens_ += count;
  for (const Way way : kWays) {
    if (pool_->page_bytes(way) == 0) continue;
    LS_CHECK_GE(static_cast<PageIdx>(tables_[Index(way)].ids.size()), NumPages(num_tokens_))
        << "Advance without Reserve";
  }
}

SequenceCache SequenceCache::Fork(int64_t num_tokens) const {
  LS_CHECK_LE(num_tokens, num_tokens_);
  SequenceCache fork(pool_, storage_);
  fork.num_tokens_ = num_tokens;
  fork.trimmed_last_ = std::min(trimmed_last_, NumPages(num_tokens));
  for (const Way way : kWays) {
    const Table& from = tables_[Index(way)];
    Table& to = fork.tables_[Index(way)];
    const size_t count = std::min(from.ids.size(), static_cast<size_t>(NumPages(num_tokens)));
    for (size_t i = 0; i < count; ++i) {
      to.ids.push_back(from.ids[i]);
      to.refs.push_back(from.refs[i] ? from.refs[i].Share() : PageRef());
      to.num_held += from.refs[i] ? 1 : 0;
    }
  }
  return fork;
}

SequenceCache SequenceCache::FromPages(PagePool* pool,
                                       PageStorage* storage,
                                       int64_t num_tokens,
                                       std::vector<PageRef> (&&pages)[kNumWays]) {
  SequenceCache cache(pool, storage);
  cache.num_tokens_ = num_tokens;
  for (const Way way : kWays) {
    if (pool->page_bytes(way) == 0) continue;
    Table& table = cache.tables_[Index(way)];
    table.refs = std::move(pages[Index(way)]);
    LS_CHECK_EQ(static_cast<PageIdx>(table.refs.size()), NumPages(num_tokens));
    for (size_t i = 0; i < table.refs.size(); ++i) {
      const bool held = static_cast<bool>(table.refs[i]);
      LS_CHECK(held || way == Way::kStreaming) << "retrieval page " << i << " is missing";
      table.ids.push_back(held ? table.refs[i].id() : kNoPage);
      table.num_held += held ? 1 : 0;
      if (!held) cache.trimmed_last_ = static_cast<PageIdx>(i) + 1;
    }
  }
  return cache;
}

PageRef SequenceCache::SharePage(Way way, PageIdx page) const {
  const Table& table = tables_[Index(way)];
  const size_t at = static_cast<size_t>(page);
  return at < table.refs.size() && table.refs[at] ? table.refs[at].Share() : PageRef();
}

void SequenceCache::TrimStreaming(int64_t sink_end, int64_t first_token) {
  Table& table = tables_[Index(Way::kStreaming)];
  const PageIdx last =
      static_cast<PageIdx>(std::min<int64_t>(first_token, num_tokens_) / kPageTokens);
  for (PageIdx i = std::max(NumPages(sink_end), trimmed_last_); i < last; ++i) {
    const size_t at = static_cast<size_t>(i);
    if (at >= table.refs.size()) break;
    if (table.refs[at]) --table.num_held;
    table.refs[at].Reset();
    table.ids[at] = kNoPage;
  }
  if (last > NumPages(sink_end)) trimmed_last_ = std::max(trimmed_last_, last);
}

int64_t SequenceCache::streaming_first_token() const {
  return int64_t{trimmed_last_} * kPageTokens;
}

size_t SequenceCache::bytes() const {
  size_t bytes = 0;
  for (const Way way : kWays) {
    bytes += static_cast<size_t>(tables_[Index(way)].num_held) * pool_->page_bytes(way);
  }
  return bytes;
}

}  // namespace lserve
