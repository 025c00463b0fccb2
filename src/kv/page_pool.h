// PagePool: which physical pages exist, who holds them and how many bytes they take. It never
// touches their content. Used by TwoWayCache only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "kv/kv_layout.h"
#include "kv/page.h"
#include "kv/page_storage.h"

namespace lserve {

class PagePool;

// One reference to one page; dropping it returns the page when it was the last. Move-only, so that
// a leak can not be written down; Share() is the named cost of a second reference.
class PageRef {
 public:
  PageRef() = default;
  PageRef(PageRef&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)),
        way_(other.way_),
        id_(std::exchange(other.id_, kNoPage)) {}
  PageRef& operator=(PageRef&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(way_, other.way_);
    std::swap(id_, other.id_);
    return *this;
  }
  PageRef(const PageRef&) = delete;
  PageRef& operator=(const PageRef&) = delete;
  ~PageRef() { Reset(); }

  PageId id() const { return id_; }
  explicit operator bool() const { return pool_ != nullptr; }

  PageRef Share() const;
  bool shared() const;  // REQUIRES: holds a page
  void Reset();

 private:
  friend class PagePool;
  PageRef(PagePool* pool, Way way, PageId id) : pool_(pool), way_(way), id_(id) {}

  PagePool* pool_ = nullptr;
  Way way_ = Way::kRetrieval;
  PageId id_ = kNoPage;
};

// Invariants: a page is free xor has references; the committed bytes never exceed the budget.
// Memory is committed and given back in granules of a few pages, and both ways draw on one budget:
// when one way runs dry, empty granules of the other are taken back. Pages come from granules that
// are in use already, as long as these have any, so that the others stay free to move. Engine
// thread only.
class PagePool {
 public:
  // `storage` must outlive the pool and hold MaxPages() pages of each way.
  PagePool(const KvLayout& layout, PageStorage* storage, size_t budget_bytes);
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  // Pages of `way` that the budget could hold if the other way had none.
  static PageId MaxPages(const KvLayout& layout, Way way, size_t budget_bytes);

  // A page with unspecified content, or nothing if the budget is spent.
  std::optional<PageRef> Allocate(Way way);

  // Gives the memory of granules without a page back to the storage, for whoever else needs it; it
  // is taken again when pages are.
  void DecommitEmpty();

  // Whether `retrieval` and `streaming` further pages could be allocated together.
  bool CanAllocate(int64_t retrieval, int64_t streaming) const;

  size_t page_bytes(Way way) const { return ways_[Index(way)].page_bytes; }
  int64_t pages_in_use(Way way) const { return ways_[Index(way)].in_use; }
  size_t bytes_in_use() const;
  size_t budget_bytes() const { return budget_bytes_; }

 private:
  friend class PageRef;

  using Granules = std::set<int>;
  struct Granule {
    bool committed = false;
    Granules::node_type place;       // in `partial` or `empty`, while it is in neither
    std::vector<PageId> free_pages;  // a stack; empty while not committed
  };
  struct WayPages {
    size_t page_bytes = 0;
    int pages_per_granule = 1;
    std::vector<Granule> granules;
    std::vector<uint32_t> references;  // [page]; 0 = free
    Granules partial;                  // granules with both pages in use and free pages
    Granules empty;                    // committed granules with no page in use
    int64_t num_full = 0;              // granules with no free page
    int64_t in_use = 0;                // pages

    size_t granule_bytes() const { return page_bytes * static_cast<size_t>(pages_per_granule); }
    int granule_of(PageId id) const { return id / pages_per_granule; }
  };

  // Nothing here allocates once the pool is made, but for a granule's stack when it is first
  // committed: to give a page back takes no memory.
  static void Enter(WayPages& pages, int granule, Granules* set);
  static void Leave(WayPages& pages, int granule, Granules* set);
  bool CommitGranule(Way way);
  bool DecommitEmptyGranule(Way way);
  void Release(Way way, PageId id);

  PageStorage* storage_;
  size_t budget_bytes_;
  size_t committed_bytes_ = 0;
  WayPages ways_[kNumWays];
};

}  // namespace lserve
