// KvStore: the pages of one model on one device. The pool decides which pages exist (PageStorage);
// only the backend that made the store reads or writes their bytes.
#pragma once

#include "kv/kv_layout.h"
#include "kv/page_storage.h"

namespace lserve {

class KvStore : public PageStorage {
 public:
  explicit KvStore(KvLayout layout) : layout_(std::move(layout)) {}
  const KvLayout& layout() const { return layout_; }

 private:
  KvLayout layout_;
};

}  // namespace lserve
