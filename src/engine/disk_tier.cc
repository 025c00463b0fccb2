#include "engine/disk_tier.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/check.h"
#include "base/log.h"
#include "base/strings.h"
#include "base/within_memory.h"

namespace lserve {
namespace {

// What may wait for the disk in memory. A step of a GPU makes up to this much in a second.
constexpr uint64_t kMaxQueuedBytes = uint64_t{512} << 20;
constexpr std::string_view kSuffix = ".kv";
constexpr size_t kNameDigits = 32;

class File {
 public:
  File(const std::string& path, int flags) : fd_(open(path.c_str(), flags | O_CLOEXEC, 0600)) {}
  ~File() {
    if (fd_ >= 0) close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  bool ok() const { return fd_ >= 0; }
  int fd() const { return fd_; }

  bool ReadAt(std::span<std::byte> bytes, uint64_t offset) const {
    while (!bytes.empty()) {
      const ssize_t n = pread(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;
      bytes = bytes.subspan(static_cast<size_t>(n));
      offset += static_cast<uint64_t>(n);
    }
    return true;
  }
  bool Append(std::span<const std::byte> bytes) const {
    while (!bytes.empty()) {
      const ssize_t n = write(fd_, bytes.data(), bytes.size());
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;
      bytes = bytes.subspan(static_cast<size_t>(n));
    }
    return true;
  }

 private:
  int fd_;
};

Status IoError(const std::string& path, const char* action) {
  return Status(Code::kIoError, StrCat(path, ": cannot ", action, ": ", std::strerror(errno),
                                       ", expected a directory with room; give another "
                                       "--kv-disk-dir or a smaller --kv-disk-bytes"));
}

bool IsName(std::string_view name) {
  return name.size() == kNameDigits &&
         name.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

}  // namespace

Result<std::unique_ptr<DiskTier>> DiskTier::Open(Config config) {
  // A directory for each origin: models may share the disk, and none counts the others' files.
  config.dir = (std::filesystem::path(config.dir) / PrefixName(config.origin, "", {})).string();
  std::error_code error;
  std::filesystem::create_directories(config.dir, error);
  if (error) {
    errno = error.value();
    return IoError(config.dir, "make it");
  }
  // Files hold what users asked.
  if (chmod(config.dir.c_str(), 0700) != 0) return IoError(config.dir, "make it private");
  std::unique_ptr<DiskTier> tier(new DiskTier(std::move(config)));
  LS_TRY(tier->ReadIndex());
  tier->writer_ = std::thread([t = tier.get()] { t->WriteLoop(); });
  return tier;
}

DiskTier::~DiskTier() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  if (writer_.joinable()) writer_.join();
}

std::string DiskTier::PathOf(const std::string& name) const {
  return StrCat(config_.dir, "/", name, kSuffix);
}

Status DiskTier::ReadIndex() {
  std::error_code error;
  std::vector<std::pair<std::filesystem::file_time_type, std::string>> found;
  for (const auto& file : std::filesystem::directory_iterator(config_.dir, error)) {
    const std::filesystem::path& path = file.path();
    const std::string name = path.stem().string();
    if (path.extension() == ".tmp") {
      std::filesystem::remove(path, error);  // of a run that was killed
    } else if (path.extension() == kSuffix && IsName(name)) {
      found.emplace_back(file.last_write_time(error), name);
    }
  }
  if (error) {
    errno = error.value();
    return IoError(config_.dir, "list it");
  }
  std::sort(found.begin(), found.end());
  for (const auto& [time, name] : found) {
    Result<Stretch> read = Read(name, /*with_pages=*/false);
    if (!read.ok()) {
      ++stats_.refused;
      LogWarning(StrCat("KV disk tier: ", read.status().message()));
      continue;
    }
    index_.Insert(name, read.value().snapshot, std::filesystem::file_size(PathOf(name), error));
  }
  MakeRoom(0);  // the budget may be smaller than last time
  return Status();
}

Result<Stretch> DiskTier::Read(const std::string& name, bool with_pages) const {
  const std::string path = PathOf(name);
  const File file(path, O_RDONLY | O_NOFOLLOW);
  struct stat info = {};
  if (!file.ok() || fstat(file.fd(), &info) != 0) return IoError(path, "open it");
  const auto short_file = [&] {
    return Status(Code::kCorruptModel, StrCat(path, ": ends too soon; the file is not used"));
  };
  const uint64_t file_bytes = static_cast<uint64_t>(info.st_size);
  std::vector<std::byte> bytes(std::min<uint64_t>(sizeof(SnapshotHead), file_bytes));
  if (!file.ReadAt(bytes, 0)) return short_file();
  const SnapshotHead head = LS_TRY(ParseSnapshotHead(bytes, file_bytes, path));
  if (head.page_bytes[0] != config_.page_bytes[0] || head.page_bytes[1] != config_.page_bytes[1]) {
    return Status(Code::kCorruptModel,
                  StrCat(path, ": has pages of ", head.page_bytes[0], " and ", head.page_bytes[1],
                         " bytes, expected ", config_.page_bytes[0], " and ", config_.page_bytes[1],
                         "; the file is not used"));
  }
  bytes.resize(MetaBytes(head));
  if (!file.ReadAt(bytes, sizeof(head))) return short_file();
  Stretch stretch;
  stretch.snapshot = LS_TRY(ParseSnapshotMeta(head, bytes, config_.origin, path));
  const PrefixSnapshot& snapshot = stretch.snapshot;
  if (PrefixName(config_.origin, snapshot.family, snapshot.tokens) != name ||
      snapshot.first_token % kStretchTokens != 0) {
    return Status(Code::kCorruptModel,
                  StrCat(path, ": holds another prefix than its name says; the file is not used"));
  }
  if (!with_pages) return stretch;
  const uint64_t begin = sizeof(head) + bytes.size();
  stretch.pages.resize(file_bytes - begin);
  if (!file.ReadAt(stretch.pages, begin)) return short_file();
  LS_TRY(CheckSnapshotPages(head, stretch.pages, path));
  futimens(file.fd(), nullptr);  // the next start orders files by use
  return stretch;
}

// Deletes what was used longest ago until `bytes` more fit.
void DiskTier::MakeRoom(uint64_t bytes) {
  while (index_.size() > 0 && index_.bytes() + bytes > config_.max_bytes) {
    const std::string oldest = index_.Oldest();
    unlink(PathOf(oldest).c_str());
    index_.Erase(oldest);
  }
}

bool DiskTier::Has(std::string_view family, std::span<const int32_t> tokens) const {
  const std::string name = index_.NameOf(family, tokens);
  const std::lock_guard lock(mutex_);
  return index_.Contains(name) || pending_.contains(name);
}

void DiskTier::Save(std::shared_ptr<const Stretch> stretch) {
  std::string name = index_.NameOf(stretch->snapshot.family, stretch->snapshot.tokens);
  Write write{.name = std::move(name), .stretch = std::move(stretch)};
  {
    const std::lock_guard lock(mutex_);
    const uint64_t bytes = write.stretch->pages.size();
    if (queued_bytes_ + bytes > kMaxQueuedBytes) {
      ++stats_.dropped;
      return;
    }
    // In this order: what is pending is in the queue, whenever memory runs out.
    queue_.push_back(std::move(write));
    queued_bytes_ += bytes;
    pending_.insert(queue_.back().name);
  }
  wake_.notify_one();
}

std::string DiskTier::Find(std::string_view family,
                           std::span<const int32_t> prompt,
                           int64_t first_token,
                           int64_t at_least) {
  const std::lock_guard lock(mutex_);
  return index_.Find(family, prompt, first_token, at_least);
}

std::shared_ptr<const Stretch> DiskTier::Load(std::string_view family,
                                              std::span<const int32_t> prompt,
                                              int64_t first_token,
                                              int64_t at_least) {
  for (;;) {
    const std::string name = Find(family, prompt, first_token, at_least);
    if (name.empty()) return nullptr;
    Result<Stretch> read = Read(name, /*with_pages=*/true);
    const std::lock_guard lock(mutex_);
    if (read.ok()) {
      auto stretch = std::make_shared<const Stretch>(std::move(read).value());
      if (!Continues(stretch->snapshot, family, prompt, first_token)) return nullptr;
      stats_.loaded_tokens += static_cast<int64_t>(stretch->snapshot.tokens.size()) - first_token;
      return stretch;
    }
    if (!index_.Contains(name)) continue;  // the writer has just made room of it
    ++stats_.refused;
    LogWarning(StrCat("KV disk tier: ", read.status().message()));
    // Damaged, so it only takes room; the prefix is written again when it is computed.
    unlink(PathOf(name).c_str());
    index_.Erase(name);
  }
}

void DiskTier::WriteLoop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [&] { return stop_ || !queue_.empty(); });
    if (queue_.empty()) return;
    const Write write = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    bool kept = false;
    const Status status = WithinMemory([&] { return Store(write, &kept); });
    lock.lock();
    queued_bytes_ -= write.stretch->pages.size();
    if (!kept) ++stats_.dropped;
    if (status.code() == Code::kIoError) {
      // A full disk: what is there now is all that fits, and from here on the old makes room.
      config_.max_bytes = index_.bytes();
      LogWarning(StrCat("KV disk tier: ", status.message(), "; it stays at ", index_.bytes(),
                        " bytes until the next start"));
    }
    pending_.erase(write.name);
    done_.notify_all();
  }
}

Status DiskTier::Store(const Write& write, bool* kept) {
  PrefixSnapshot snapshot = write.stretch->snapshot;
  snapshot.origin = config_.origin;
  const std::vector<std::byte> prologue =
      SnapshotPrologue(snapshot, config_.page_bytes, write.stretch->pages);
  const uint64_t bytes = prologue.size() + write.stretch->pages.size();
  {
    const std::lock_guard lock(mutex_);
    if (bytes > config_.max_bytes) return Status();
    MakeRoom(bytes);
  }
  LS_TRY(WriteFile(write, prologue));
  const std::lock_guard lock(mutex_);
  index_.Erase(write.name);
  index_.Insert(write.name, snapshot, bytes);
  *kept = true;
  return Status();
}

Status DiskTier::WriteFile(const Write& write, std::span<const std::byte> prologue) const {
  const std::string path = PathOf(write.name), temporary = path + ".tmp";
  {
    const File file(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW);
    if (!file.ok()) return IoError(temporary, "make it");
    if (!file.Append(prologue) || !file.Append(write.stretch->pages)) {
      Status status = IoError(temporary, "write it");
      unlink(temporary.c_str());
      return status;
    }
  }
  if (rename(temporary.c_str(), path.c_str()) == 0) return Status();
  Status status = IoError(path, "rename the new file to it");
  unlink(temporary.c_str());
  return status;
}

void DiskTier::Clear() {
  Flush();
  const std::lock_guard lock(mutex_);
  while (index_.size() > 0) {
    const std::string name = index_.Oldest();
    unlink(PathOf(name).c_str());
    index_.Erase(name);
  }
}

void DiskTier::Flush() {
  std::unique_lock lock(mutex_);
  done_.wait(lock, [&] { return pending_.empty(); });
}

KvTierStats DiskTier::stats() const {
  const std::lock_guard lock(mutex_);
  KvTierStats stats = stats_;
  stats.bytes = index_.bytes();
  stats.stretches = index_.size();
  return stats;
}

}  // namespace lserve
