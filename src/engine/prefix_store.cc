#include "engine/prefix_store.h"

#include <algorithm>
#include <utility>

#include "attention/policy.h"

namespace lserve {
namespace {

// Tokens of `prompt` that can be taken from a prefix.
int64_t UsableTokens(std::span<const int32_t> prompt,
                     const AttentionSettings& settings,
                     std::span<const int32_t> tokens,
                     const SequenceCache& cache) {
  const auto differ = std::mismatch(prompt.begin(), prompt.end(), tokens.begin(), tokens.end());
  const int64_t common = ResumePosition(
      settings,
      std::min<int64_t>(differ.first - prompt.begin(), static_cast<int64_t>(prompt.size()) - 1));
  const bool untrimmed = cache.streaming_first_token() == 0;
  const bool window_there =
      StreamingKeepFrom(settings, common, /*in_prompt=*/true) >= cache.streaming_first_token();
  return untrimmed || window_there ? common : 0;
}

}  // namespace

void PrefixStore::Add(std::vector<int32_t> tokens,
                      const AttentionSettings& settings,
                      const std::string& salt,
                      SequenceCache cache) {
  // The same prompt again: the newer fork holds the same keys and values.
  std::erase_if(prefixes_, [&](const Prefix& prefix) {
    return prefix.salt == salt && prefix.tokens == tokens && SamePrefill(prefix.settings, settings);
  });
  if (prefixes_.size() >= kMaxPrefixes) DropOldest();
  prefixes_.push_back({std::move(tokens), settings, salt, std::move(cache)});
}

std::optional<SequenceCache> PrefixStore::Find(std::span<const int32_t> prompt,
                                               const AttentionSettings& settings,
                                               const std::string& salt) {
  int64_t most = 0;
  size_t best = 0;
  for (size_t i = 0; i < prefixes_.size(); ++i) {
    const Prefix& prefix = prefixes_[i];
    if (prefix.salt != salt || !SamePrefill(prefix.settings, settings)) continue;
    const int64_t usable = UsableTokens(prompt, settings, prefix.tokens, prefix.cache);
    if (usable > most) {
      most = usable;
      best = i;
    }
  }
  if (most == 0) return std::nullopt;
  std::rotate(prefixes_.begin() + static_cast<int64_t>(best),
              prefixes_.begin() + static_cast<int64_t>(best) + 1, prefixes_.end());
  return prefixes_.back().cache.Fork(most);
}

bool PrefixStore::DropOldest() {
  if (prefixes_.empty()) return false;
  prefixes_.erase(prefixes_.begin());
  return true;
}

}  // namespace lserve
