// PrefixArchive: carries kept prefixes between the tree, whose pages are in the cache, and the disk
// tier. Used by the engine (what to keep) and the scheduler (what to bring back). Engine thread
// only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "backend/kv_store.h"
#include "engine/disk_tier.h"
#include "engine/prefix_tree.h"

namespace lserve {

class PrefixArchive {
 public:
  // All must outlive the archive.
  PrefixArchive(PrefixTree* tree, PagePool* pool, KvStore* store, std::unique_ptr<DiskTier> disk)
      : tree_(tree), pool_(pool), store_(store), disk_(std::move(disk)) {}

  // Writes the stretch that ends at `num_tokens`, which the tree has just been given.
  void Keep(std::span<const int32_t> prompt, int64_t num_tokens, const PrefixKey& key);
  // Gives the tree what the disk has beyond it for a prompt, as far as there are pages.
  void Restore(std::span<const int32_t> prompt, const PrefixKey& key);

  DiskTier& disk() { return *disk_; }

 private:
  // Whether the stretch is in the tree now.
  bool Add(const DiskTier::Stretch& stretch, const PrefixKey& key);

  PrefixTree* tree_;
  PagePool* pool_;
  KvStore* store_;
  std::unique_ptr<DiskTier> disk_;
};

}  // namespace lserve
