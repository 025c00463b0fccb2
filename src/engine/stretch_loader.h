// StretchLoader: reads stretches from a tier that may wait for a disk, on a thread of its own, so
// that steps go on meanwhile. Used by PrefixArchive.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "engine/prefix_tier.h"

namespace lserve {

// A stretch that is being read for those who hold this. When nobody does any more, it is not read,
// or forgotten once it is.
struct StretchLoad {
  std::string name;  // PrefixTier::Find
  std::string family;
  std::vector<int32_t> prompt;
  int64_t first_token = 0;
  int64_t at_least = 0;
  double begun = 0;  // seconds
  // Guarded by the loader's mutex.
  bool done = false;
  std::shared_ptr<const Stretch> stretch = {};  // null: there is none, or it is damaged
};

// Methods are for one thread, the engine's, but for num_slow().
class StretchLoader {
 public:
  // A stretch may be hundreds of MB, so few are read ahead; who finds no room asks again.
  static constexpr size_t kMostLoads = 4;
  // Computing the 2048 tokens takes about that long on a slow machine.
  static constexpr double kMostSeconds = 10;

  // `tier` must outlive the loader; Load() is called on its thread. `seconds`: a clock that never
  // goes back.
  StretchLoader(PrefixTier* tier, std::function<double()> seconds);
  // Waits for the read in progress.
  ~StretchLoader();
  StretchLoader(const StretchLoader&) = delete;
  StretchLoader& operator=(const StretchLoader&) = delete;

  // Reads what PrefixTier::Load says, or joins whoever has had the stretch called `name` read;
  // null: there are kMostLoads already.
  std::shared_ptr<StretchLoad> Begin(const std::string& name,
                                     std::string_view family,
                                     std::span<const int32_t> prompt,
                                     int64_t first_token,
                                     int64_t at_least);
  // Whether it was read, or takes too long to be waited for; then `stretch` is what came of it.
  bool Done(const StretchLoad& load, std::shared_ptr<const Stretch>* stretch);
  // The read in progress takes longer than anybody waits: nothing is worth a beginning.
  bool stuck() const;
  // What is being read comes to nothing.
  void DropAll();
  // Until a load is done that was not when this began, at most so long.
  void Wait(std::chrono::milliseconds most);
  // Loads that were not waited for any longer. On any thread.
  int64_t num_slow() const { return num_slow_; }

 private:
  void Loop();

  PrefixTier* const tier_;
  const std::function<double()> seconds_;
  std::atomic<int64_t> num_slow_ = 0;
  mutable std::mutex mutex_;  // of what is below
  std::condition_variable wake_, done_;
  std::vector<std::weak_ptr<StretchLoad>> open_;  // those that are held, read or not
  std::deque<std::weak_ptr<StretchLoad>> queue_;
  bool reading_ = false;
  double reading_since_ = 0;
  int64_t num_done_ = 0;
  bool stop_ = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace lserve
