// KvStore: the pages of one model on one device. The pool decides which pages exist (PageStorage);
// only the backend that made the store reads or writes their bytes, or takes and gives them as a
// whole.
#pragma once

#include <cstddef>
#include <span>
#include <utility>

#include "kv/kv_layout.h"
#include "kv/page_storage.h"

namespace lserve {

class KvStore : public PageStorage {
 public:
  explicit KvStore(KvLayout layout) : layout_(std::move(layout)) {}
  const KvLayout& layout() const { return layout_; }

  // The bytes of a page as this backend lays them out, its K/V record and then its statistics:
  // way(way).page_bytes() of them, to and from host memory. Written ones come from ReadPage of a
  // store with the same Backend::kv_signature(). Both wait until ops before them are done.
  virtual Status ReadPage(Way way, PageId page, std::span<std::byte> bytes) const = 0;
  virtual Status WritePage(Way way, PageId page, std::span<const std::byte> bytes) = 0;

 private:
  KvLayout layout_;
};

}  // namespace lserve
