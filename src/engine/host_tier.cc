#include "engine/host_tier.h"

namespace lserve {

bool HostTier::Has(std::string_view family, std::span<const int32_t> tokens) const {
  return index_.Contains(index_.NameOf(family, tokens));
}

void HostTier::Save(std::shared_ptr<const Stretch> stretch) {
  const PrefixSnapshot& snapshot = stretch->snapshot;
  // The index has the stretch's own tokens once more.
  const uint64_t tokens = 2 * snapshot.tokens.size() - static_cast<uint64_t>(snapshot.first_token);
  const uint64_t bytes = stretch->pages.size() + tokens * sizeof(int32_t);
  const std::lock_guard lock(mutex_);
  if (bytes > max_bytes_) {
    ++stats_.dropped;
    return;
  }
  while (index_.bytes() + bytes > max_bytes_) {
    const std::string oldest = index_.Oldest();
    stretches_.erase(oldest);
    index_.Erase(oldest);
  }
  const std::string name = index_.NameOf(snapshot.family, snapshot.tokens);
  if (!index_.Contains(name)) {
    // In this order: what the index finds is there.
    stretches_.insert_or_assign(name, stretch);
    index_.Insert(name, snapshot, bytes);
  }
  stats_.bytes = index_.bytes();
  stats_.stretches = index_.size();
}

std::string HostTier::Find(std::string_view family,
                           std::span<const int32_t> prompt,
                           int64_t first_token,
                           int64_t at_least) {
  return index_.Find(family, prompt, first_token, at_least);
}

std::shared_ptr<const Stretch> HostTier::Load(std::string_view family,
                                              std::span<const int32_t> prompt,
                                              int64_t first_token,
                                              int64_t at_least) {
  const std::string name = index_.Find(family, prompt, first_token, at_least);
  if (name.empty()) return nullptr;
  const std::shared_ptr<const Stretch>& stretch = stretches_.at(name);
  if (!Continues(stretch->snapshot, family, prompt, first_token)) return nullptr;
  const std::lock_guard lock(mutex_);
  stats_.loaded_tokens += static_cast<int64_t>(stretch->snapshot.tokens.size()) - first_token;
  return stretch;
}

void HostTier::Clear() {
  const std::lock_guard lock(mutex_);
  for (const auto& [name, stretch] : stretches_) index_.Erase(name);
  stretches_.clear();
  stats_.bytes = 0;
  stats_.stretches = 0;
}

KvTierStats HostTier::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

}  // namespace lserve
