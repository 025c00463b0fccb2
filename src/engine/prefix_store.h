// PrefixStore: prefixes that stay in the cache for later requests. A prefix is a fork of the
// sequence that computed it: page references, no copy. Used by the engine.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "attention/attention_settings.h"
#include "kv/two_way_cache.h"

namespace lserve {

class PrefixStore {
 public:
  // Find() compares with each of them; their pages are bounded by the pool, this by itself.
  static constexpr size_t kMaxPrefixes = 256;

  // Keeps `cache`, whose keys and values belong to `tokens` under `settings`, in the
  // place of one that is equal. `salt` as in Find().
  void Add(std::vector<int32_t> tokens,
           const AttentionSettings& settings,
           const std::string& salt,
           SequenceCache cache);

  // A cache with as many leading tokens of `prompt` as some kept prefix can give, at least one
  // and never all of them (the last one's logits are needed). Nothing if there is none: only a
  // prefix computed under settings that give the same keys and values counts, and it may be
  // resumed only where the streaming window of the next query is still there, and at a
  // ResumePosition of the settings; and only one that was added with the same `salt`.
  std::optional<SequenceCache> Find(std::span<const int32_t> prompt,
                                    const AttentionSettings& settings,
                                    const std::string& salt);

  // Forgets the one that was used longest ago; false if there was none.
  bool DropOldest();
  void Clear() { prefixes_.clear(); }

 private:
  struct Prefix {
    std::vector<int32_t> tokens;
    AttentionSettings settings;
    std::string salt;
    SequenceCache cache;
  };
  std::vector<Prefix> prefixes_;  // most recently used last
};

}  // namespace lserve
