// HostTier: kept prefixes in this process's memory: for a GPU, whose own memory is dear.
#pragma once

#include <mutex>

#include "engine/prefix_tier.h"

namespace lserve {

class HostTier final : public PrefixTier {
 public:
  // Up to `max_bytes` of pages and tokens; what was used longest ago goes.
  explicit HostTier(uint64_t max_bytes) : max_bytes_(max_bytes), index_("host") {}

  bool Has(std::string_view family, std::span<const int32_t> tokens) const override;
  void Save(std::shared_ptr<const Stretch> stretch) override;
  std::string Find(std::string_view family,
                   std::span<const int32_t> prompt,
                   int64_t first_token,
                   int64_t at_least) override;
  std::shared_ptr<const Stretch> Load(std::string_view family,
                                      std::span<const int32_t> prompt,
                                      int64_t first_token,
                                      int64_t at_least) override;
  void Clear() override;
  KvTierStats stats() const override;

 private:
  const uint64_t max_bytes_;
  mutable std::mutex mutex_;  // of stats_, which other threads read
  KvTierStats stats_;
  StretchIndex index_;
  std::map<std::string, std::shared_ptr<const Stretch>> stretches_;  // by name
};

}  // namespace lserve
