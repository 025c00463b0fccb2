// PrefixArchive: carries kept prefixes between the tree, whose pages are in the cache, and the
// other tiers. Used by the engine (what to keep) and the scheduler (what to bring back). Engine
// thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend/kv_store.h"
#include "engine/prefix_tier.h"
#include "engine/prefix_tree.h"

namespace lserve {

// The tiers there are; a nearer one is asked first.
struct PrefixTiers {
  std::unique_ptr<PrefixTier> host;
  std::unique_ptr<PrefixTier> disk;

  std::vector<PrefixTier*> all() const {
    std::vector<PrefixTier*> tiers;
    for (PrefixTier* tier : {host.get(), disk.get()}) {
      if (tier != nullptr) tiers.push_back(tier);
    }
    return tiers;
  }
};

class PrefixArchive {
 public:
  // All must outlive the archive.
  PrefixArchive(PrefixTree* tree, PagePool* pool, KvStore* store, PrefixTiers* tiers)
      : tree_(tree), pool_(pool), store_(store), tiers_(tiers) {}

  // Gives the tiers the stretch that ends at `num_tokens`, which the tree has just been given.
  void Keep(std::span<const int32_t> prompt, int64_t num_tokens, const PrefixKey& key);
  // Gives the tree what the tiers have beyond it for a prompt, as far as there are pages; whether
  // that was something.
  bool Restore(std::span<const int32_t> prompt, const PrefixKey& key);

  // Forgets everything in the tiers.
  void Clear();

 private:
  // Whether the stretch is in the tree now.
  bool Add(const Stretch& stretch, const PrefixKey& key);

  PrefixTree* tree_;
  PagePool* pool_;
  KvStore* store_;
  PrefixTiers* tiers_;
};

}  // namespace lserve
