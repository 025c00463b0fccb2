// PrefixTier: where kept prefixes lie beside the cache, in stretches: files (disk_tier.h) or host
// memory (host_tier.h). A tier knows tokens, bytes and a budget, nothing of pages in the cache.
// Used by PrefixArchive.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kv/prefix_snapshot.h"
#include "lserve/engine.h"

namespace lserve {

// Stretches begin at multiples of this, and follow one another by the tokens before them.
inline constexpr int64_t kStretchTokens = 2048;

struct Stretch {
  PrefixSnapshot snapshot;
  std::vector<std::byte> pages;
};

// Methods are for one thread, the engine's, but for stats(), and for Load() of a tier that may wait
// for a disk: a StretchLoader calls it beside the others.
class PrefixTier {
 public:
  virtual ~PrefixTier() = default;

  // Whether a stretch with this end is kept, or will be.
  virtual bool Has(std::string_view family, std::span<const int32_t> tokens) const = 0;
  // Keeps a stretch. It may be dropped, and counted, for want of room or time: then a later prompt
  // is computed, nothing else.
  virtual void Save(std::shared_ptr<const Stretch> stretch) = 0;
  // The name of what Load() would read, without waiting for a disk; "": nothing.
  virtual std::string Find(std::string_view family,
                           std::span<const int32_t> prompt,
                           int64_t first_token,
                           int64_t at_least) = 0;
  // The stretch that begins at `first_token` and goes on like the prompt for the most tokens, if
  // these are more than `at_least`; otherwise null. May wait for a disk.
  virtual std::shared_ptr<const Stretch> Load(std::string_view family,
                                              std::span<const int32_t> prompt,
                                              int64_t first_token,
                                              int64_t at_least) = 0;
  virtual void Clear() = 0;
  virtual KvTierStats stats() const = 0;
};

// What a tier has, by name (PrefixName), and what was used longest ago. Not thread-safe.
class StretchIndex {
 public:
  explicit StretchIndex(std::string origin) : origin_(std::move(origin)) {}

  std::string NameOf(std::string_view family, std::span<const int32_t> tokens) const {
    return PrefixName(origin_, family, tokens);
  }
  const std::string& origin() const { return origin_; }

  // `bytes` it takes. REQUIRES: the name is not there.
  void Insert(const std::string& name, const PrefixSnapshot& snapshot, uint64_t bytes);
  void Erase(const std::string& name);
  bool Contains(const std::string& name) const { return entries_.contains(name); }
  // As PrefixTier::Load, by name; "": none. Counts as use.
  std::string Find(std::string_view family,
                   std::span<const int32_t> prompt,
                   int64_t first_token,
                   int64_t at_least);
  std::string Oldest() const;  // REQUIRES: size() > 0

  int64_t size() const { return static_cast<int64_t>(entries_.size()); }
  uint64_t bytes() const { return bytes_; }

 private:
  struct Entry {
    uint64_t bytes = 0;
    uint64_t last_used = 0;
    std::string parent;           // name of the prefix before the stretch
    std::vector<int32_t> tokens;  // of the stretch
  };
  std::string origin_;
  std::map<std::string, Entry> entries_;
  std::multimap<std::string, std::string> children_;  // parent -> name
  uint64_t bytes_ = 0;
  uint64_t now_ = 0;
};

// Whether a stretch that an index found is what it was asked for: a name may be another prefix's by
// accident, so tokens are compared.
bool Continues(const PrefixSnapshot& snapshot,
               std::string_view family,
               std::span<const int32_t> prompt,
               int64_t first_token);

}  // namespace lserve
