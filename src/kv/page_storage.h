// PageStorage: the memory behind physical pages, as the pool sees it. The backend implements it;
// the pool decides which pages exist.
#pragma once

#include "base/status.h"
#include "kv/page.h"

namespace lserve {

class PageStorage {
 public:
  virtual ~PageStorage() = default;

  // Gives memory to pages [first, first + count) of `way` / takes it back. The content of a page
  // just committed is unspecified.
  virtual Status Commit(Way way, PageId first, int count) = 0;
  virtual void Decommit(Way way, PageId first, int count) = 0;

  // Copies the first `num_tokens` tokens of a page into another of the same way, in all layers.
  // Statistics come out as if only these tokens had ever been appended.
  virtual void CopyPage(Way way, PageId from, PageId to, int num_tokens) = 0;
};

}  // namespace lserve
