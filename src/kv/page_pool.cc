#include "kv/page_pool.h"

#include <algorithm>

#include "base/check.h"

namespace lserve {
namespace {

// A granule is what moves between the ways. 2 MiB is one huge page; a page that is larger is its
// own granule.
constexpr size_t kGranuleBytes = size_t{2} << 20;

int PagesPerGranule(size_t page_bytes) {
  return static_cast<int>(std::max<size_t>(1, kGranuleBytes / std::max<size_t>(1, page_bytes)));
}

}  // namespace

PageRef PageRef::Share() const {
  LS_CHECK(pool_ != nullptr);
  ++pool_->ways_[Index(way_)].references[static_cast<size_t>(id_)];
  return PageRef(pool_, way_, id_);
}

bool PageRef::shared() const {
  LS_CHECK(pool_ != nullptr);
  return pool_->ways_[Index(way_)].references[static_cast<size_t>(id_)] > 1;
}

void PageRef::Reset() {
  if (pool_ == nullptr) return;
  std::exchange(pool_, nullptr)->Release(way_, std::exchange(id_, kNoPage));
}

PageId PagePool::MaxPages(const KvLayout& layout, Way way, size_t budget_bytes) {
  const size_t page_bytes = layout.way(way).page_bytes();
  if (page_bytes == 0) return 0;
  const size_t pages = static_cast<size_t>(PagesPerGranule(page_bytes));
  // At least one granule, so that a tiny budget gives an error about bytes and not about nothing.
  const size_t granules = std::max<size_t>(1, budget_bytes / (page_bytes * pages));
  return static_cast<PageId>(std::min<size_t>(granules * pages, size_t{1} << 30));
}

PagePool::PagePool(const KvLayout& layout, PageStorage* storage, size_t budget_bytes)
    : storage_(storage), budget_bytes_(budget_bytes) {
  for (const Way way : kWays) {
    WayPages& w = ways_[Index(way)];
    w.page_bytes = layout.way(way).page_bytes();
    w.pages_per_granule = PagesPerGranule(w.page_bytes);
    const PageId max_pages = MaxPages(layout, way, budget_bytes);
    w.references.assign(static_cast<size_t>(max_pages), 0);
    w.granules.resize(static_cast<size_t>(max_pages / w.pages_per_granule));
    for (int i = 0; i < static_cast<int>(w.granules.size()); ++i) {
      w.empty.insert(i);
      Leave(w, i, &w.empty);
    }
  }
}

PagePool::~PagePool() {
  for (const WayPages& w : ways_) LS_CHECK_EQ(w.in_use, 0) << "a page outlives its pool";
}

void PagePool::Enter(WayPages& pages, int granule, Granules* set) {
  set->insert(std::move(pages.granules[static_cast<size_t>(granule)].place));
}

void PagePool::Leave(WayPages& pages, int granule, Granules* set) {
  pages.granules[static_cast<size_t>(granule)].place = set->extract(granule);
}

std::optional<PageRef> PagePool::Allocate(Way way) {
  WayPages& w = ways_[Index(way)];
  if (w.partial.empty() && w.empty.empty() && !CommitGranule(way)) return std::nullopt;
  if (w.partial.empty()) w.partial.insert(w.empty.extract(w.empty.begin()));
  const int index = *w.partial.begin();
  std::vector<PageId>& free_pages = w.granules[static_cast<size_t>(index)].free_pages;
  const PageId id = free_pages.back();
  free_pages.pop_back();
  if (free_pages.empty()) {
    Leave(w, index, &w.partial);
    ++w.num_full;
  }
  LS_CHECK_EQ(w.references[static_cast<size_t>(id)], 0u);
  w.references[static_cast<size_t>(id)] = 1;
  ++w.in_use;
  return PageRef(this, way, id);
}

void PagePool::Release(Way way, PageId id) {
  WayPages& w = ways_[Index(way)];
  uint32_t& references = w.references[static_cast<size_t>(id)];
  LS_CHECK_GT(references, 0u);
  if (--references > 0) return;
  --w.in_use;
  const int index = w.granule_of(id);
  std::vector<PageId>& free_pages = w.granules[static_cast<size_t>(index)].free_pages;
  if (free_pages.empty()) {
    --w.num_full;
    Enter(w, index, &w.partial);
  }
  free_pages.push_back(id);
  if (static_cast<int>(free_pages.size()) == w.pages_per_granule) {
    w.empty.insert(w.partial.extract(index));
  }
}

bool PagePool::CommitGranule(Way way) {
  WayPages& w = ways_[Index(way)];
  if (w.page_bytes == 0) return false;
  while (committed_bytes_ + w.granule_bytes() > budget_bytes_) {
    const Way other = way == Way::kRetrieval ? Way::kStreaming : Way::kRetrieval;
    if (!DecommitEmptyGranule(other)) return false;
  }
  const auto granule = std::find_if(w.granules.begin(), w.granules.end(),
                                    [](const Granule& g) { return !g.committed; });
  if (granule == w.granules.end()) return false;
  const int index = static_cast<int>(granule - w.granules.begin());
  const PageId first = index * w.pages_per_granule;
  granule->free_pages.reserve(static_cast<size_t>(w.pages_per_granule));
  if (!storage_->Commit(way, first, w.pages_per_granule).ok()) return false;
  granule->committed = true;
  committed_bytes_ += w.granule_bytes();
  // Pushed high to low: the lowest id is handed out first.
  for (PageId id = first + w.pages_per_granule; id-- > first;) granule->free_pages.push_back(id);
  Enter(w, index, &w.empty);
  return true;
}

bool PagePool::DecommitEmptyGranule(Way way) {
  WayPages& w = ways_[Index(way)];
  if (w.empty.empty()) return false;
  const int index = *w.empty.begin();
  Leave(w, index, &w.empty);
  Granule& granule = w.granules[static_cast<size_t>(index)];
  storage_->Decommit(way, index * w.pages_per_granule, w.pages_per_granule);
  granule.committed = false;
  granule.free_pages.clear();
  committed_bytes_ -= w.granule_bytes();
  return true;
}

void PagePool::DecommitEmpty() {
  for (const Way way : kWays) {
    while (DecommitEmptyGranule(way)) {
    }
  }
}

bool PagePool::CanAllocate(int64_t retrieval, int64_t streaming) const {
  const int64_t wanted[kNumWays] = {retrieval, streaming};
  size_t needed_bytes = 0;
  for (int i = 0; i < kNumWays; ++i) {
    const WayPages& w = ways_[i];
    if (w.page_bytes == 0) {
      if (wanted[i] > 0) return false;
      continue;
    }
    // Granules in use can not move; further pages fill their room first, then whole granules.
    const int64_t used = w.num_full + static_cast<int64_t>(w.partial.size());
    const int64_t room = used * w.pages_per_granule - w.in_use;
    const int64_t beyond = std::max<int64_t>(0, wanted[i] - room);
    const int64_t granules = used + (beyond + w.pages_per_granule - 1) / w.pages_per_granule;
    if (granules > static_cast<int64_t>(w.granules.size())) return false;
    needed_bytes += static_cast<size_t>(granules) * w.granule_bytes();
  }
  return needed_bytes <= budget_bytes_;
}

size_t PagePool::bytes_in_use() const {
  size_t bytes = 0;
  for (const WayPages& w : ways_) bytes += static_cast<size_t>(w.in_use) * w.page_bytes;
  return bytes;
}

}  // namespace lserve
