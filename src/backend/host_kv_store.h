// HostKvStore: pages in this process's memory, for the backends that compute on the CPU. It knows
// where a head's part lies; what the bytes in it mean is its subclass's business.
#pragma once

#include <cstddef>

#include "backend/kv_store.h"

namespace lserve {

// Address space for every page that may ever exist is reserved at once, so that a page's address
// is a multiplication; Commit and Decommit tell the kernel which of it is in use.
class HostKvStore : public KvStore {
 public:
  // `max_pages` per way. Call Reserve() before anything else.
  HostKvStore(KvLayout layout, const PageId (&max_pages)[kNumWays]);
  // Takes the address space, or says how much was asked for.
  Status Reserve();
  ~HostKvStore() override;
  HostKvStore(const HostKvStore&) = delete;
  HostKvStore& operator=(const HostKvStore&) = delete;

  Status Commit(Way way, PageId first, int count) override;
  void Decommit(Way way, PageId first, int count) override;
  void CopyPage(Way way, PageId from, PageId to, int num_tokens) override;

  Status ReadPage(Way way, PageId page, std::span<std::byte> bytes) const override;
  Status WritePage(Way way, PageId page, std::span<const std::byte> bytes) override;

  // The bytes of one head's part of a page. Parts are 64-byte aligned.
  std::byte* kv_part(Way way, PageId page, int layer, int slot) const {
    const WayLayout& w = layout().way(way);
    const size_t l = static_cast<size_t>(layer);
    return base_[Index(way)] + stride_[Index(way)] * static_cast<size_t>(page) + w.kv_offset[l] +
           w.head_bytes.kv * static_cast<size_t>(slot);
  }
  std::byte* stats_part(Way way, PageId page, int layer, int slot) const {
    const WayLayout& w = layout().way(way);
    const size_t l = static_cast<size_t>(layer);
    return base_[Index(way)] + stride_[Index(way)] * static_cast<size_t>(page) + w.kv_bytes +
           w.stats_offset[l] + w.head_bytes.stats * static_cast<size_t>(slot);
  }

 protected:
  // Rebuilds the statistics of a head's part from the first `num_tokens` stored keys.
  virtual void RebuildStats(const std::byte* kv, std::byte* stats, int num_tokens) const = 0;

 private:
  std::byte* base_[kNumWays] = {};
  size_t stride_[kNumWays] = {};    // bytes from page to page, a multiple of the system's page
  size_t reserved_[kNumWays] = {};  // bytes
};

}  // namespace lserve
