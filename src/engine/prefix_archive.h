// PrefixArchive: carries kept prefixes between the tree, whose pages are in the cache, and the
// other tiers. Used by the engine (what to keep) and the scheduler (what to bring back). Engine
// thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/kv_store.h"
#include "engine/prefix_tier.h"
#include "engine/prefix_tree.h"
#include "engine/stretch_loader.h"

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
  // All must outlive the archive. `seconds`: a clock that never goes back.
  PrefixArchive(PrefixTree* tree,
                PagePool* pool,
                KvStore* store,
                PrefixTiers* tiers,
                const std::function<double()>& seconds)
      : tree_(tree), pool_(pool), store_(store), tiers_(tiers) {
    if (tiers->disk != nullptr) loader_.emplace(tiers->disk.get(), seconds);
  }

  // Gives the tiers the stretch that ends at `num_tokens`, which the tree has just been given.
  void Keep(std::span<const int32_t> prompt, int64_t num_tokens, const PrefixKey& key);
  struct Restored {
    bool some = false;     // the tree has more of the prompt than before
    bool loading = false;  // a stretch is being read: call again after a step or Wait()
  };
  // Gives the tree what the tiers have beyond it for a prompt, as far as there are pages. `load`
  // is what is being read for this prompt, from call to call; to give up, drop it. What is damaged,
  // or takes too long to be read, is left to be computed.
  Restored Restore(std::span<const int32_t> prompt,
                   const PrefixKey& key,
                   std::shared_ptr<StretchLoad>* load);
  // Until something that is being read is there, at most so long.
  void Wait(std::chrono::milliseconds most);
  // Times that a prompt did not wait for a disk any longer. On any thread.
  int64_t num_slow() const { return loader_ ? loader_->num_slow() : 0; }

  // Forgets everything in the tiers, and what is being read.
  void Clear();

 private:
  // From host memory at once; from the disk by a load, which may have no room yet.
  std::shared_ptr<const Stretch> Fetch(std::span<const int32_t> prompt,
                                       const std::string& family,
                                       int64_t common,
                                       std::shared_ptr<StretchLoad>* load,
                                       bool* loading);
  // Whether the stretch is in the tree now.
  bool Add(const Stretch& stretch, const PrefixKey& key);

  PrefixTree* tree_;
  PagePool* pool_;
  KvStore* store_;
  PrefixTiers* tiers_;
  std::optional<StretchLoader> loader_;  // if there is a disk tier
};

}  // namespace lserve
