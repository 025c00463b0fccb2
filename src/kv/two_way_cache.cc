#include "kv/two_way_cache.h"

#include <utility>

#include "base/check.h"

namespace lserve {

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
  for (const Way way : kWays) {
    if (pool_->page_bytes(way) == 0 || count == 0) continue;
    Table& table = tables_[Index(way)];
    if (tail_is_partial() && table.refs.back().shared()) {
      std::optional<PageRef> copy = pool_->Allocate(way);
      LS_CHECK(copy.has_value()) << "CanAllocate promised a page";
      storage_->CopyPage(way, table.ids.back(), copy->id(),
                         static_cast<int>(num_tokens_ % kPageTokens));
      table.ids.back() = copy->id();
      table.refs.back() = *std::move(copy);
    }
    while (static_cast<PageIdx>(table.ids.size()) < NumPages(num_tokens_ + count)) {
      std::optional<PageRef> page = pool_->Allocate(way);
      LS_CHECK(page.has_value()) << "CanAllocate promised a page";
      table.ids.push_back(page->id());
      table.refs.push_back(*std::move(page));
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
