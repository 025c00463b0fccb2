#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "base/strings.h"

namespace lserve {
namespace {

// Closes a descriptor at the end of its scope.
class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }
  int Release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

Status IoError(const std::string& path, const char* action, const char* advice) {
  const Code code = errno == ENOENT ? Code::kNotFound : Code::kIoError;
  return Status(code, StrCat(path, ": cannot ", action, ": ", std::strerror(errno), "; ", advice));
}

// Opens `path` for reading and checks that it is a regular file; its size goes to `size`.
Result<int> OpenRegular(const std::string& path, size_t& size) {
  // Opening a pipe must not wait for its writer only to refuse it.
  FileDescriptor fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd.get() < 0) return IoError(path, "open for reading", "check the path and permissions");
  struct stat info = {};
  if (fstat(fd.get(), &info) != 0) return IoError(path, "stat", "check the file system");
  if (!S_ISREG(info.st_mode)) {
    return Status(
        Code::kInvalidArgument,
        StrCat(path, ": is ", S_ISDIR(info.st_mode) ? "a directory" : "not a regular file",
               ", expected a file; check the path"));
  }
  size = static_cast<size_t>(info.st_size);
  return fd.Release();
}

}  // namespace

Result<MappedFile> MappedFile::Open(const std::string& path) {
  MappedFile file;
  file.path_ = path;
  FileDescriptor fd(LS_TRY(OpenRegular(path, file.size_)));
  if (file.size_ == 0) return file;
  void* data = mmap(nullptr, file.size_, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (data == MAP_FAILED) return IoError(path, "map", "check the free address space");
  file.data_ = static_cast<const std::byte*>(data);
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      path_(std::move(other.path_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(path_, other.path_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::Release(std::span<const std::byte> part) const {
  constexpr uintptr_t kPage = 4096;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(part.data());
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  const uintptr_t last = (begin + part.size()) / kPage * kPage;
  // Advice only.
  if (first < last) {
    const std::byte* from = part.data() + (first - begin);
    static_cast<void>(madvise(const_cast<std::byte*>(from), last - first, MADV_DONTNEED));
  }
}

Result<std::string> ReadTextFile(const std::string& path, size_t max_bytes) {
  size_t size = 0;
  FileDescriptor fd(LS_TRY(OpenRegular(path, size)));
  if (size > max_bytes) {
    return Status(Code::kInvalidArgument, StrCat(path, ": has ", size, " bytes, expected at most ",
                                                 max_bytes, "; is this the right file?"));
  }
  std::string text(size, '\0');
  size_t done = 0;
  while (done < size) {
    const ssize_t n = read(fd.get(), text.data() + done, size - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return IoError(path, "read", "check the disk");
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  text.resize(done);
  return text;
}

Result<std::string> ReadTextStream(const std::string& path, size_t max_bytes) {
  FileDescriptor fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) return IoError(path, "open for reading", "check the path and permissions");
  struct stat info = {};
  if (fstat(fd.get(), &info) == 0 && S_ISDIR(info.st_mode)) {
    return Status(Code::kInvalidArgument,
                  StrCat(path, ": is a directory, expected a file; check the path"));
  }
  std::string text;
  constexpr size_t kPiece = size_t{1} << 20;
  while (text.size() <= max_bytes) {
    const size_t done = text.size();
    text.resize(done + kPiece);
    const ssize_t n = read(fd.get(), text.data() + done, kPiece);
    text.resize(done + static_cast<size_t>(std::max<ssize_t>(n, 0)));
    if (n == 0) return text;
    if (n < 0) return IoError(path, "read", "check the disk or the program that writes");
  }
  return Status(Code::kInvalidArgument, StrCat(path, ": has more than ", max_bytes,
                                               " bytes, expected fewer; is this the right file?"));
}

Status WriteFile(const std::string& path, std::span<const std::byte> bytes) {
  FileDescriptor fd(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (fd.get() < 0) return IoError(path, "open for writing", "check the path and permissions");
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = write(fd.get(), bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      Status status = IoError(path, "write", "free some disk space or choose another path");
      struct stat info = {};
      if (fstat(fd.get(), &info) == 0 && S_ISREG(info.st_mode)) unlink(path.c_str());
      return status;
    }
    done += static_cast<size_t>(n);
  }
  if (close(fd.Release()) != 0) return IoError(path, "close", "free some disk space");
  return Status();
}

}  // namespace lserve
