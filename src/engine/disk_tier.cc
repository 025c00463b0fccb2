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

std::string DiskTier::ParentOf(const PrefixSnapshot& snapshot) const {
  return PrefixName(
      config_.origin, snapshot.family,
      std::span(snapshot.tokens).first(static_cast<size_t>(snapshot.first_token)));
}

Status DiskTier::ReadIndex() {
  std::error_code error;
  std::vector<std::pair<std::filesystem::file_time_type, std::string>> found;
  for (const auto& file : std::filesystem::directory_iterator(config_.dir, error)) {
    const std::filesystem::path path = file.path();
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
    const PrefixSnapshot& snapshot = read.value().snapshot;
    const std::vector<int32_t>& tokens = snapshot.tokens;
    Insert(name, {.bytes = std::filesystem::file_size(PathOf(name), error),
                  .parent = ParentOf(snapshot),
                  .tokens = {tokens.begin() + snapshot.first_token, tokens.end()}});
  }
  MakeRoom(0);  // the budget may be smaller than last time
  return Status();
}

Result<DiskTier::Stretch> DiskTier::Read(const std::string& name, bool with_pages) const {
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
                         " bytes, expected ", config_.page_bytes[0], " and ",
                         config_.page_bytes[1], "; the file is not used"));
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

void DiskTier::Insert(const std::string& name, Entry entry) {
  entry.last_used = ++now_;
  stats_.bytes += entry.bytes;
  ++stats_.files;
  children_.emplace(entry.parent, name);
  entries_.emplace(name, std::move(entry));
}

void DiskTier::Forget(const std::string& name) {
  const auto entry = entries_.find(name);
  if (entry == entries_.end()) return;
  stats_.bytes -= entry->second.bytes;
  --stats_.files;
  const auto [first, last] = children_.equal_range(entry->second.parent);
  for (auto child = first; child != last; ++child) {
    if (child->second != name) continue;
    children_.erase(child);
    break;
  }
  entries_.erase(entry);
}

// Deletes what was used longest ago until `bytes` more fit; false: they never will.
bool DiskTier::MakeRoom(uint64_t bytes) {
  if (bytes > config_.max_bytes) return false;
  while (stats_.bytes + bytes > config_.max_bytes) {
    const auto oldest = std::min_element(
        entries_.begin(), entries_.end(),
        [](const auto& a, const auto& b) { return a.second.last_used < b.second.last_used; });
    const std::string name = oldest->first;
    unlink(PathOf(name).c_str());
    Forget(name);
  }
  return true;
}

bool DiskTier::Has(std::string_view family, std::span<const int32_t> tokens) const {
  const std::string name = PrefixName(config_.origin, family, tokens);
  const std::lock_guard lock(mutex_);
  return entries_.contains(name) || pending_.contains(name);
}

void DiskTier::Save(PrefixSnapshot snapshot, std::vector<std::byte> pages) {
  LS_CHECK_EQ(snapshot.first_token % kStretchTokens, 0);
  snapshot.origin = config_.origin;
  Write write{.name = PrefixName(config_.origin, snapshot.family, snapshot.tokens),
              .entry = {.parent = ParentOf(snapshot),
                        .tokens = {snapshot.tokens.begin() + snapshot.first_token,
                                   snapshot.tokens.end()}},
              .prologue = SnapshotPrologue(snapshot, config_.page_bytes, pages),
              .pages = std::move(pages)};
  write.entry.bytes = write.prologue.size() + write.pages.size();
  {
    const std::lock_guard lock(mutex_);
    if (queued_bytes_ + write.entry.bytes > kMaxQueuedBytes) {
      ++stats_.dropped;
      return;
    }
    queued_bytes_ += write.entry.bytes;
    pending_.insert(write.name);
    queue_.push_back(std::move(write));
  }
  wake_.notify_one();
}

std::optional<DiskTier::Stretch> DiskTier::Load(std::string_view family,
                                                std::span<const int32_t> prompt,
                                                int64_t first_token,
                                                int64_t at_least) {
  LS_CHECK_EQ(first_token % kStretchTokens, 0);
  const std::span<const int32_t> before = prompt.first(static_cast<size_t>(first_token));
  const std::span<const int32_t> rest = prompt.subspan(before.size());
  const std::string parent = PrefixName(config_.origin, family, before);
  for (;;) {
    std::string name;
    {
      const std::lock_guard lock(mutex_);
      int64_t most = at_least;
      const auto [first, last] = children_.equal_range(parent);
      for (auto child = first; child != last; ++child) {
        const std::vector<int32_t>& tokens = entries_.at(child->second).tokens;
        const int64_t common =
            std::mismatch(tokens.begin(), tokens.end(), rest.begin(), rest.end()).first -
            tokens.begin();
        if (common <= most) continue;
        most = common;
        name = child->second;
      }
      if (name.empty()) return std::nullopt;
      entries_.at(name).last_used = ++now_;
    }
    Result<Stretch> read = Read(name, /*with_pages=*/true);
    const std::lock_guard lock(mutex_);
    if (read.ok()) {
      Stretch stretch = std::move(read).value();
      // The name of what lies before may be another prefix's by accident.
      const std::vector<int32_t>& tokens = stretch.snapshot.tokens;
      if (stretch.snapshot.family == family &&
          stretch.snapshot.first_token == first_token &&
          std::equal(before.begin(), before.end(), tokens.begin())) {
        stats_.loaded_tokens += static_cast<int64_t>(tokens.size()) - first_token;
        return stretch;
      }
      return std::nullopt;
    }
    ++stats_.refused;
    LogWarning(StrCat("KV disk tier: ", read.status().message()));
    // Damaged, so it only takes room; the prefix is written again when it is computed.
    unlink(PathOf(name).c_str());
    Forget(name);
  }
}

void DiskTier::WriteLoop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [&] { return stop_ || !queue_.empty(); });
    if (queue_.empty()) return;
    Write write = std::move(queue_.front());
    queue_.pop_front();
    const bool fits = MakeRoom(write.entry.bytes);
    Status status;
    if (fits) {
      lock.unlock();
      status = WriteFiles(write);
      lock.lock();
    }
    queued_bytes_ -= write.entry.bytes;
    if (fits && status.ok() && pending_.contains(write.name)) {
      Insert(write.name, std::move(write.entry));
    } else {
      ++stats_.dropped;
    }
    if (!status.ok()) {
      // A full disk: what is there now is all that fits, and from here on the old makes room.
      config_.max_bytes = stats_.bytes;
      LogWarning(StrCat("KV disk tier: ", status.message(), "; it stays at ", stats_.bytes,
                        " bytes until the next start"));
    }
    pending_.erase(write.name);
    done_.notify_all();
  }
}

Status DiskTier::WriteFiles(const Write& write) const {
  const std::string path = PathOf(write.name), temporary = path + ".tmp";
  {
    const File file(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW);
    if (!file.ok()) return IoError(temporary, "make it");
    if (!file.Append(write.prologue) || !file.Append(write.pages)) {
      const Status status = IoError(temporary, "write it");
      unlink(temporary.c_str());
      return status;
    }
  }
  if (rename(temporary.c_str(), path.c_str()) == 0) return Status();
  const Status status = IoError(path, "rename the new file to it");
  unlink(temporary.c_str());
  return status;
}

void DiskTier::Clear() {
  Flush();
  const std::lock_guard lock(mutex_);
  while (!entries_.empty()) {
    const std::string name = entries_.begin()->first;
    unlink(PathOf(name).c_str());
    Forget(name);
  }
}

void DiskTier::Flush() {
  std::unique_lock lock(mutex_);
  done_.wait(lock, [&] { return pending_.empty(); });
}

DiskTierStats DiskTier::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

}  // namespace lserve
