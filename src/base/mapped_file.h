// MappedFile: a whole file as read-only bytes, mapped and not copied; and ReadTextFile for small
// ones, ReadTextStream for what may be a pipe. Used by the loader and the tokenizer.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "base/status.h"

namespace lserve {

// Move-only owner of the mapping; `bytes()` stays valid for its lifetime. The file must not shrink
// meanwhile: reading past its new end raises SIGBUS, as with every mapping.
class MappedFile {
 public:
  static Result<MappedFile> Open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

  // Gives the memory of `part`, a part of bytes(), back to the system, for what is not needed soon:
  // it is read again when it is touched.
  void Release(std::span<const std::byte> part) const;

 private:
  MappedFile() = default;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  std::string path_;
};

// The content of a regular file of at most `max_bytes`.
Result<std::string> ReadTextFile(const std::string& path, size_t max_bytes = size_t{1} << 30);

// Everything up to the end of a file or a pipe (`<(command)`, /dev/stdin), at most `max_bytes`.
// Waits for a pipe's writer.
Result<std::string> ReadTextStream(const std::string& path, size_t max_bytes = size_t{1} << 30);

// Writes the whole file or reports why not (a full disk too); never leaves a short file behind.
Status WriteFile(const std::string& path, std::span<const std::byte> bytes);

}  // namespace lserve
