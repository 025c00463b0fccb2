// DiskTier: kept prefixes as files (kv/prefix_snapshot.h), so that a restart finds them again.
// Writes happen on a thread of its own, reads on that of whoever calls Load(); nothing is
// synchronised with the disk, after a crash of the machine the checksums tell.
#pragma once

#include <array>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <set>
#include <thread>

#include "base/status.h"
#include "engine/prefix_tier.h"

namespace lserve {

class DiskTier final : public PrefixTier {
 public:
  struct Config {
    std::string dir;         // made if there is none, for this user's eyes only
    uint64_t max_bytes = 0;  // of all files of this origin; what was used longest ago goes
    std::string origin;      // PrefixSnapshot::origin
    std::array<size_t, kNumWays> page_bytes = {};
  };
  // Reads the index of what earlier runs left; files that are of no use are a line in the log each.
  static Result<std::unique_ptr<DiskTier>> Open(Config config);
  // Writes what is still to be written.
  ~DiskTier() override;
  DiskTier(const DiskTier&) = delete;
  DiskTier& operator=(const DiskTier&) = delete;

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
  // Deletes the files of this origin.
  void Clear() override;
  KvTierStats stats() const override;
  // Waits until everything queued is written.
  void Flush();

 private:
  struct Write {
    std::string name;
    std::shared_ptr<const Stretch> stretch;
  };

  explicit DiskTier(Config config) : config_(std::move(config)), index_(config_.origin) {}
  Status ReadIndex();
  Result<Stretch> Read(const std::string& name, bool with_pages) const;
  std::string PathOf(const std::string& name) const;
  // Needs mutex_.
  void MakeRoom(uint64_t bytes);

  void WriteLoop();
  // Writes a stretch if it fits at all; whether it is there now.
  Status Store(const Write& write, bool* kept);
  Status WriteFile(const Write& write, std::span<const std::byte> prologue) const;

  Config config_;
  mutable std::mutex mutex_;  // of what is below
  std::condition_variable wake_, done_;
  StretchIndex index_;
  std::set<std::string> pending_;  // queued or being written
  std::deque<Write> queue_;
  uint64_t queued_bytes_ = 0;
  KvTierStats stats_;
  bool stop_ = false;
  std::thread writer_;  // last: it uses all of the above
};

}  // namespace lserve
