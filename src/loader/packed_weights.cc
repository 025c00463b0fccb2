#include "loader/packed_weights.h"

#include <fcntl.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/json.h"
#include "base/round_up.h"
#include "base/strings.h"
#include "loader/json_fields.h"

namespace lserve {
namespace {

constexpr uint64_t kMagic = 0x3156'5456'5245'534c;  // "LSERVTV1"
constexpr uint64_t kBlobAlignment = 4096;
constexpr uint64_t kMaxTableBytes = uint64_t{64} << 20;

struct Head {
  uint64_t magic = kMagic;
  uint64_t file_bytes = 0;
  uint64_t table_offset = 0;
  uint64_t table_bytes = 0;
  uint64_t table_checksum = 0;
  uint64_t unused[3] = {};
};
static_assert(sizeof(Head) == 64);

Status Damaged(const std::string& path, const std::string& what) {
  return Status(Code::kCorruptModel, StrCat(path, ": ", what, "; it is made anew"));
}

Status CannotWrite(const std::string& path, const char* action) {
  return Status(Code::kIoError, StrCat(path, ": cannot ", action, ": ", std::strerror(errno),
                                       ", expected a writable directory with room; give "
                                       "--quantization-cache DIR or none"));
}

}  // namespace

uint64_t ChecksumOf(std::span<const std::byte> bytes) {
  // Four independent chains of multiplications, so that memory and not latency is the limit.
  constexpr uint64_t kOdd = 0x9e37'79b9'7f4a'7c15;
  uint64_t chain[4] = {1, 2, 3, 4};
  size_t i = 0;
  for (; i + 32 <= bytes.size(); i += 32) {
    uint64_t words[4];
    std::memcpy(words, bytes.data() + i, sizeof(words));
    for (int c = 0; c < 4; ++c) chain[c] = std::rotl((chain[c] ^ words[c]) * kOdd, 29);
  }
  uint64_t sum = bytes.size();
  for (const uint64_t c : chain) sum = std::rotl((sum ^ c) * kOdd, 29);
  for (; i < bytes.size(); ++i) {
    sum = std::rotl((sum ^ static_cast<uint64_t>(bytes[i])) * kOdd, 29);
  }
  return sum ^ (sum >> 32);
}

Result<PackedTable> ParsePackedWeights(std::span<const std::byte> bytes,
                                       std::string_view key,
                                       const std::string& path) {
  Head head;
  if (bytes.size() < sizeof(head)) {
    return Damaged(path, StrCat("has ", bytes.size(), " bytes, expected a head of ", sizeof(head)));
  }
  std::memcpy(&head, bytes.data(), sizeof(head));
  if (head.magic != kMagic) {
    return Damaged(path, "begins with other bytes, expected packed weights, version 1");
  }
  if (head.file_bytes != bytes.size()) {
    return Damaged(
        path, StrCat("has ", bytes.size(), " bytes, expected ", head.file_bytes, " as written"));
  }
  if (head.table_bytes > kMaxTableBytes || head.table_bytes > bytes.size() ||
      head.table_offset > bytes.size() - head.table_bytes) {
    return Damaged(path, StrCat("has a table of ", head.table_bytes, " bytes at ",
                                head.table_offset, ", expected one inside the file"));
  }
  const std::span<const std::byte> table_bytes = bytes.subspan(head.table_offset, head.table_bytes);
  if (ChecksumOf(table_bytes) != head.table_checksum) {
    return Damaged(path, "has a damaged table, expected its checksum");
  }
  const std::string_view text(reinterpret_cast<const char*>(table_bytes.data()),
                              table_bytes.size());
  Result<Json> json = ParseJson(text, {.max_depth = 4, .max_bytes = kMaxTableBytes});
  if (!json.ok() || !json.value().is_object()) {
    return Damaged(path, "has a table that is no JSON object, expected one");
  }
  const Json* made_for = json.value().Find("key");
  if (made_for == nullptr || !made_for->is_string() || made_for->as_string() != key) {
    return Damaged(path, "was made for another checkpoint, format or version, expected this one's");
  }
  const Json* blobs = json.value().Find("blobs");
  if (blobs == nullptr || !blobs->is_object()) {
    return Damaged(path, "lists no blobs, expected an object of them");
  }
  PackedTable table;
  const int64_t size = static_cast<int64_t>(bytes.size());
  for (const auto& [name, entry] : blobs->as_object()) {
    if (!entry.is_object()) return Damaged(path, "has a blob without place, expected an object");
    const JsonFields fields(entry, StrCat(path, ": blob ", Quoted(name)));
    const int64_t offset = LS_TRY(fields.RequiredInt("offset", 0, size));
    const int64_t count = LS_TRY(fields.RequiredInt("bytes", 0, size - offset));
    const int64_t checksum = LS_TRY(fields.RequiredInt("checksum", INT64_MIN, INT64_MAX));
    table[name] = {bytes.subspan(static_cast<size_t>(offset), static_cast<size_t>(count)),
                   static_cast<uint64_t>(checksum)};
  }
  return table;
}

Result<PackedWeights> PackedWeights::Open(const std::string& path, std::string_view key) {
  PackedWeights weights;
  weights.file_ = std::make_shared<const MappedFile>(LS_TRY(MappedFile::Open(path)));
  weights.table_ = LS_TRY(ParsePackedWeights(weights.file_->bytes(), key, path));
  return weights;
}

Result<std::span<const std::byte>> PackedWeights::Get(std::string_view name) const {
  const auto it = table_.find(name);
  if (it == table_.end()) {
    return Damaged(file_->path(), StrCat("lacks ", Quoted(name), ", expected every weight"));
  }
  if (ChecksumOf(it->second.data) != it->second.checksum) {
    return Damaged(file_->path(), StrCat(Quoted(name), " is damaged, expected its checksum"));
  }
  return it->second.data;
}

Result<PackedWeightsWriter> PackedWeightsWriter::Create(const std::string& path, std::string key) {
  PackedWeightsWriter writer;
  writer.path_ = path;
  writer.key_ = std::move(key);
  std::error_code error;
  const std::filesystem::path directory = std::filesystem::path(path).parent_path();
  if (!directory.empty()) std::filesystem::create_directories(directory, error);
  if (error) {
    errno = error.value();
    return CannotWrite(directory.string(), "make the directory");
  }
  std::string name = path + ".XXXXXX";
  writer.fd_ = mkostemp(name.data(), O_CLOEXEC);
  if (writer.fd_ < 0) return CannotWrite(path, "make a file");
  writer.temporary_ = name;
  writer.end_ = sizeof(Head);
  return writer;
}

PackedWeightsWriter::PackedWeightsWriter(PackedWeightsWriter&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::exchange(other.temporary_, {})),
      key_(std::move(other.key_)),
      fd_(std::exchange(other.fd_, -1)),
      end_(other.end_),
      blobs_(std::move(other.blobs_)) {}

PackedWeightsWriter::~PackedWeightsWriter() {
  if (fd_ >= 0) close(fd_);
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

Status PackedWeightsWriter::Write(std::span<const std::byte> bytes, uint64_t offset) {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n =
        pwrite(fd_, bytes.data() + done, bytes.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return CannotWrite(path_, "write");
    done += static_cast<size_t>(n);
  }
  return Status();
}

Status PackedWeightsWriter::Add(const std::string& name, std::span<const std::byte> data) {
  const uint64_t offset = RoundUp(end_, kBlobAlignment);
  LS_TRY(Write(data, offset));
  end_ = offset + data.size();
  blobs_[name] = {offset, PackedBlob{data, ChecksumOf(data)}};
  return Status();
}

Status PackedWeightsWriter::Finish() {
  Json::Object blobs;
  for (const auto& [name, place] : blobs_) {
    blobs.emplace_back(
        name, Json(Json::Object{{"offset", Json(static_cast<int64_t>(place.first))},
                                {"bytes", Json(static_cast<int64_t>(place.second.data.size()))},
                                {"checksum", Json(static_cast<int64_t>(place.second.checksum))}}));
  }
  const std::string table =
      WriteJson(Json(Json::Object{{"key", Json(key_)}, {"blobs", Json(std::move(blobs))}}));
  const std::span<const std::byte> bytes = std::as_bytes(std::span(table));
  Head head;
  head.table_offset = RoundUp(end_, kBlobAlignment);
  head.table_bytes = bytes.size();
  head.table_checksum = ChecksumOf(bytes);
  head.file_bytes = head.table_offset + bytes.size();
  LS_TRY(Write(bytes, head.table_offset));
  LS_TRY(Write(std::as_bytes(std::span(&head, 1)), 0));
  if (close(std::exchange(fd_, -1)) != 0) return CannotWrite(path_, "close");
  if (rename(temporary_.c_str(), path_.c_str()) != 0) return CannotWrite(path_, "rename to it");
  temporary_.clear();
  return Status();
}

}  // namespace lserve
