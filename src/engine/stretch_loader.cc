#include "engine/stretch_loader.h"

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "base/strings.h"
#include "base/within_memory.h"

namespace lserve {

StretchLoader::StretchLoader(PrefixTier* tier, std::function<double()> seconds)
    : tier_(tier), seconds_(std::move(seconds)) {
  thread_ = std::thread([this] { Loop(); });
}

StretchLoader::~StretchLoader() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

std::shared_ptr<StretchLoad> StretchLoader::Begin(const std::string& name,
                                                  std::string_view family,
                                                  std::span<const int32_t> prompt,
                                                  int64_t first_token,
                                                  int64_t at_least) {
  const double now = seconds_();
  // What lies behind the stretch is of no use to it.
  const std::span<const int32_t> own =
      prompt.first(std::min(prompt.size(), static_cast<size_t>(first_token + kStretchTokens)));
  const std::lock_guard lock(mutex_);
  std::erase_if(open_, [](const auto& load) { return load.expired(); });
  for (const auto& open : open_) {
    std::shared_ptr<StretchLoad> load = open.lock();
    if (load != nullptr && load->name == name && (!load->done || load->stretch != nullptr))
      return load;
  }
  if (open_.size() >= kMostLoads) return nullptr;
  auto load = std::make_shared<StretchLoad>(StretchLoad{.name = name,
                                                        .family = std::string(family),
                                                        .prompt = {own.begin(), own.end()},
                                                        .first_token = first_token,
                                                        .at_least = at_least,
                                                        .begun = now});
  open_.push_back(load);
  queue_.push_back(load);
  wake_.notify_one();
  return load;
}

bool StretchLoader::Done(const StretchLoad& load, std::shared_ptr<const Stretch>* stretch) {
  const double now = seconds_();
  const std::lock_guard lock(mutex_);
  *stretch = load.stretch;
  if (load.done) return true;
  if (now - load.begun <= kMostSeconds) return false;
  ++num_slow_;
  return true;
}

bool StretchLoader::stuck() const {
  const double now = seconds_();
  const std::lock_guard lock(mutex_);
  return reading_ && now - reading_since_ > kMostSeconds;
}

void StretchLoader::DropAll() {
  const std::lock_guard lock(mutex_);
  for (const auto& open : open_) {
    const std::shared_ptr<StretchLoad> load = open.lock();
    if (load == nullptr) continue;
    load->done = true;
    load->stretch = nullptr;
  }
  queue_.clear();
}

void StretchLoader::Wait(std::chrono::milliseconds most) {
  std::unique_lock lock(mutex_);
  const int64_t before = num_done_;
  const auto is_over = [&](const std::weak_ptr<StretchLoad>& open) {
    const std::shared_ptr<StretchLoad> load = open.lock();
    return load != nullptr && load->done;
  };
  if (std::any_of(open_.begin(), open_.end(), is_over)) return;
  done_.wait_for(lock, most, [&] { return num_done_ > before; });
}

void StretchLoader::Loop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [&] { return stop_ || !queue_.empty(); });
    if (stop_) return;
    const std::shared_ptr<StretchLoad> load = queue_.front().lock();
    queue_.pop_front();
    if (load == nullptr) continue;  // nobody waits for it any more
    reading_ = true;
    reading_since_ = seconds_();
    lock.unlock();
    std::shared_ptr<const Stretch> stretch;
    const Status status = WithinMemory([&] {
      stretch = tier_->Load(load->family, load->prompt, load->first_token, load->at_least);
      return Status();
    });
    if (!status.ok()) LogWarning(StrCat("KV tiers: a prefix is not read: ", status.message()));
    lock.lock();
    reading_ = false;
    if (!load->done) load->stretch = std::move(stretch);
    load->done = true;
    ++num_done_;
    done_.notify_all();
  }
}

}  // namespace lserve
