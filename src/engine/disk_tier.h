// DiskTier: kept prefixes as files (kv/prefix_snapshot.h), so that a restart finds them again. It
// knows files, names and a byte budget, nothing of pages in memory. A file holds a stretch of a
// prefix; stretches begin at multiples of kStretchTokens and follow one another by the tokens
// before them. Writes happen on a thread of its own; nothing is synchronised with the disk, after a
// crash of the machine the checksums tell. Used by PrefixArchive.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/status.h"
#include "kv/prefix_snapshot.h"
#include "lserve/engine.h"

namespace lserve {

inline constexpr int64_t kStretchTokens = 2048;

// Public methods are for one thread, the engine's, but for stats().
class DiskTier {
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
  ~DiskTier();
  DiskTier(const DiskTier&) = delete;
  DiskTier& operator=(const DiskTier&) = delete;

  // Whether a stretch with this end is kept, or will be.
  bool Has(std::string_view family, std::span<const int32_t> tokens) const;
  // Queues a stretch to be written. Dropped, and counted, if the disk is too slow or full: then a
  // later prompt is computed, nothing else.
  void Save(PrefixSnapshot snapshot, std::vector<std::byte> pages);

  struct Stretch {
    PrefixSnapshot snapshot;
    std::vector<std::byte> pages;
  };
  // The stretch that begins at `first_token` and goes on like the prompt for the most tokens, if
  // these are more than `at_least`. Waits for the disk.
  std::optional<Stretch> Load(std::string_view family,
                              std::span<const int32_t> prompt,
                              int64_t first_token,
                              int64_t at_least);

  // Deletes the files of this origin.
  void Clear();
  // Waits until everything queued is written.
  void Flush();
  DiskTierStats stats() const;

 private:
  struct Entry {
    uint64_t bytes = 0;
    uint64_t last_used = 0;
    std::string parent;           // name of the prefix before the stretch
    std::vector<int32_t> tokens;  // of the stretch
  };
  struct Write {
    std::string name;
    Entry entry;
    std::vector<std::byte> prologue, pages;
  };

  explicit DiskTier(Config config) : config_(std::move(config)) {}
  Status ReadIndex();
  Result<Stretch> Read(const std::string& name, bool with_pages) const;
  std::string PathOf(const std::string& name) const;
  std::string ParentOf(const PrefixSnapshot& snapshot) const;
  // These need mutex_.
  void Insert(const std::string& name, Entry entry);
  void Forget(const std::string& name);
  bool MakeRoom(uint64_t bytes);

  void WriteLoop();
  Status WriteFiles(const Write& write) const;

  Config config_;
  mutable std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::map<std::string, Entry> entries_;
  std::multimap<std::string, std::string> children_;  // parent -> name
  std::set<std::string> pending_;                     // queued or being written
  std::deque<Write> queue_;
  uint64_t queued_bytes_ = 0;
  uint64_t now_ = 0;
  DiskTierStats stats_;
  bool stop_ = false;
  std::thread writer_;  // last: it uses all of the above
};

}  // namespace lserve
