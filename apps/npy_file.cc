#include "apps/npy_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/strings.h"

namespace lserve {

static_assert(std::endian::native == std::endian::little, "the header says little-endian");

std::string NpyHeader(int64_t rows, int64_t cols) {
  std::string dict =
      StrCat("{'descr': '<f4', 'fortran_order': False, 'shape': (", rows, ", ", cols, "), }");
  // Magic, version, two bytes of length, dictionary, newline: a multiple of 64 bytes in all.
  constexpr size_t kFixed = 10;
  const size_t total = (kFixed + dict.size() + 1 + 63) / 64 * 64;
  dict.append(total - kFixed - dict.size() - 1, ' ');
  dict.push_back('\n');
  std::string header("\x93NUMPY\x01\x00", 8);
  header.push_back(static_cast<char>(dict.size() & 0xff));
  header.push_back(static_cast<char>(dict.size() >> 8));
  return header + dict;
}

Result<NpyFile> NpyFile::Create(const std::string& path, int64_t rows, int64_t cols) {
  NpyFile file;
  file.path_ = path;
  file.rows_ = rows;
  file.cols_ = cols;
  struct stat info = {};
  const bool is_special =
      stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode);
  file.written_path_ = is_special ? path : path + ".part";
  if (!is_special && S_ISDIR(info.st_mode)) {
    return Status(Code::kIoError,
                  StrCat(path, ": is a directory, expected a file to write; name a file in it"));
  }
  file.fd_ = open(file.written_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file.fd_ < 0) return file.IoError("open for writing");
  const std::string header = NpyHeader(rows, cols);
  LS_TRY(file.Write(header.data(), header.size()));
  return file;
}

NpyFile::NpyFile(NpyFile&& other) noexcept
    : path_(std::move(other.path_)),
      written_path_(std::move(other.written_path_)),
      fd_(std::exchange(other.fd_, -1)),
      rows_(other.rows_),
      cols_(other.cols_),
      rows_written_(other.rows_written_) {}

NpyFile::~NpyFile() {
  if (fd_ < 0) return;
  close(fd_);
  if (written_path_ != path_) unlink(written_path_.c_str());
}

Status NpyFile::AppendRow(const float* row) {
  LS_TRY(Write(row, static_cast<size_t>(cols_) * sizeof(float)));
  ++rows_written_;
  return Status();
}

Status NpyFile::Finish() {
  if (rows_written_ != rows_) {
    return Status(Code::kInvalidArgument,
                  StrCat(path_, ": ", rows_written_, " rows were computed, expected ", rows_,
                         "; the prompt was not computed as a whole"));
  }
  const int fd = std::exchange(fd_, -1);
  const bool is_part = written_path_ != path_;
  if (close(fd) != 0 || (is_part && rename(written_path_.c_str(), path_.c_str()) != 0)) {
    Status status = IoError("finish");
    if (is_part) unlink(written_path_.c_str());
    return status;
  }
  return Status();
}

Status NpyFile::Write(const void* data, size_t bytes) {
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = write(fd_, at, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return IoError("write");
    at += n;
    bytes -= static_cast<size_t>(n);
  }
  return Status();
}

Status NpyFile::IoError(const char* verb) const {
  const int error = errno;
  const uint64_t bytes = static_cast<uint64_t>(rows_) * static_cast<uint64_t>(cols_) * 4;
  return Status(Code::kIoError,
                StrCat(path_, ": cannot ", verb, ": ", std::strerror(error), ", expected room for ",
                       bytes, " bytes of logits; choose another path or free some space"));
}

}  // namespace lserve
