// PackedWeights: a file of named byte blobs, the weights of one model as one backend packed them:
// the cache of quantised weights (ADR 0011). It knows names, sizes and checksums, not what a blob
// means. What it reads may be damaged, foreign or made to harm. Used by model/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/mapped_file.h"
#include "base/status.h"

namespace lserve {

// The file: a head of 64 bytes (magic, sizes, the table's checksum), the blobs at multiples of 4
// KiB, and a table of them in JSON. The head is written last.
struct PackedBlob {
  std::span<const std::byte> data;
  uint64_t checksum = 0;
};
using PackedTable = std::map<std::string, PackedBlob, std::less<>>;

// Of damage, not of malice: 64 bits, at the speed of memory.
uint64_t ChecksumOf(std::span<const std::byte> bytes);

// Validates everything but the blobs' content. `key` says what the file must be made for; `path`
// serves messages. Spans point into `bytes`.
Result<PackedTable> ParsePackedWeights(std::span<const std::byte> bytes,
                                       std::string_view key,
                                       const std::string& path);

// A mapped file. Thread safety: const methods may be called from several threads.
class PackedWeights {
 public:
  static Result<PackedWeights> Open(const std::string& path, std::string_view key);

  // The content of the blob, whose checksum is checked here; it lives as long as owner().
  Result<std::span<const std::byte>> Get(std::string_view name) const;
  const std::shared_ptr<const MappedFile>& owner() const { return file_; }

 private:
  std::shared_ptr<const MappedFile> file_;
  PackedTable table_;
};

// Writes a file under a temporary name beside `path`; Finish() renames it, which replaces an older
// one as a whole. A writer that is destroyed unfinished leaves nothing. Nothing is synchronised
// with the disk: after a crash of the machine the checksums tell.
class PackedWeightsWriter {
 public:
  // Makes the directory of `path` if there is none.
  static Result<PackedWeightsWriter> Create(const std::string& path, std::string key);

  PackedWeightsWriter(PackedWeightsWriter&& other) noexcept;
  PackedWeightsWriter& operator=(PackedWeightsWriter&&) = delete;
  PackedWeightsWriter(const PackedWeightsWriter&) = delete;
  PackedWeightsWriter& operator=(const PackedWeightsWriter&) = delete;
  ~PackedWeightsWriter();

  Status Add(const std::string& name, std::span<const std::byte> data);
  Status Finish();

 private:
  PackedWeightsWriter() = default;
  Status Write(std::span<const std::byte> bytes, uint64_t offset);

  std::string path_;
  std::string temporary_;  // empty: nothing to clean up
  std::string key_;
  int fd_ = -1;
  uint64_t end_ = 0;
  std::map<std::string, std::pair<uint64_t, PackedBlob>> blobs_;  // name -> offset, blob
};

}  // namespace lserve
