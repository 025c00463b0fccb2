#include "kv/prefix_snapshot.h"

#include <xxhash.h>

#include <cstring>

#include "base/check.h"
#include "base/strings.h"

namespace lserve {
namespace {

constexpr uint64_t kMagic = 0x3153'4e50'564b'534c;  // "LSKVPNS1"
constexpr uint32_t kVersion = 1;
// Above every prompt (2^24 tokens) and name; they bound what is allocated for a file's meta data.
constexpr uint32_t kMaxTokens = uint32_t{1} << 24;
constexpr uint32_t kMaxNameBytes = 4096;
constexpr uint64_t kMaxPageBytes = uint64_t{1} << 32;

uint64_t Checksum(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}
uint64_t HeadChecksum(const SnapshotHead& head) {
  return XXH3_64bits(&head, offsetof(SnapshotHead, head_checksum));
}

uint64_t NumMasks(const SnapshotHead& head) {
  return static_cast<uint64_t>(NumPages(head.num_tokens)) - head.first_token / kPageTokens;
}

Status Refused(const std::string& path, const std::string& what) {
  return Status(Code::kCorruptModel, StrCat(path, ": ", what, "; the file is not used"));
}

void Append(const void* data, size_t bytes, std::vector<std::byte>* out) {
  const std::byte* first = static_cast<const std::byte*>(data);
  out->insert(out->end(), first, first + bytes);
}

}  // namespace

uint64_t PrefixSnapshot::PageBytes(const std::array<size_t, kNumWays>& page_bytes) const {
  uint64_t bytes = 0;
  for (const uint8_t mask : masks) {
    for (const Way way : kWays) {
      if (mask & MaskOf(way)) bytes += page_bytes[static_cast<size_t>(Index(way))];
    }
  }
  return bytes;
}

uint64_t MetaBytes(const SnapshotHead& head) {
  return uint64_t{head.origin_bytes} + head.family_bytes +
         uint64_t{head.num_tokens} * sizeof(int32_t) + NumMasks(head);
}

Result<SnapshotHead> ParseSnapshotHead(std::span<const std::byte> bytes,
                                       uint64_t file_bytes,
                                       const std::string& path) {
  SnapshotHead head;
  if (bytes.size() < sizeof(head)) {
    return Refused(path, StrCat("has ", bytes.size(), " bytes, expected a head of ", sizeof(head)));
  }
  std::memcpy(&head, bytes.data(), sizeof(head));
  if (head.magic != kMagic) return Refused(path, "begins with other bytes, expected a KV prefix");
  if (head.version != kVersion) {
    return Refused(path, StrCat("has version ", head.version, ", expected ", kVersion));
  }
  if (head.head_checksum != HeadChecksum(head)) {
    return Refused(path, "has a damaged head, expected its checksum");
  }
  if (head.file_bytes != file_bytes) {
    return Refused(path,
                   StrCat("has ", file_bytes, " bytes, expected ", head.file_bytes, " as written"));
  }
  if (head.num_tokens == 0 || head.num_tokens > kMaxTokens || head.first_token >= head.num_tokens ||
      head.first_token % kPageTokens != 0 || head.origin_bytes > kMaxNameBytes ||
      head.family_bytes > kMaxNameBytes || head.page_bytes[0] > kMaxPageBytes ||
      head.page_bytes[1] > kMaxPageBytes || MetaBytes(head) > file_bytes - sizeof(head)) {
    return Refused(path, "has sizes in its head that no writer gives, expected ones that fit");
  }
  return head;
}

Result<PrefixSnapshot> ParseSnapshotMeta(const SnapshotHead& head,
                                         std::span<const std::byte> meta,
                                         std::string_view origin,
                                         const std::string& path) {
  LS_CHECK_EQ(meta.size(), MetaBytes(head));
  if (Checksum(meta) != head.meta_checksum) {
    return Refused(path, "has damaged tokens, expected their checksum");
  }
  PrefixSnapshot snapshot;
  const std::byte* at = meta.data();
  const auto take = [&](void* to, size_t bytes) {
    if (bytes > 0) std::memcpy(to, at, bytes);
    at += bytes;
  };
  snapshot.origin.resize(head.origin_bytes);
  take(snapshot.origin.data(), snapshot.origin.size());
  if (snapshot.origin != origin) {
    return Refused(path,
                   "was written for another model, backend, element type or version, "
                   "expected this one's");
  }
  snapshot.family.resize(head.family_bytes);
  take(snapshot.family.data(), snapshot.family.size());
  snapshot.tokens.resize(head.num_tokens);
  take(snapshot.tokens.data(), snapshot.tokens.size() * sizeof(int32_t));
  snapshot.first_token = head.first_token;
  snapshot.masks.resize(NumMasks(head));
  take(snapshot.masks.data(), snapshot.masks.size());
  for (const uint8_t mask : snapshot.masks) {
    if (mask > (MaskOf(Way::kRetrieval) | MaskOf(Way::kStreaming)))
      return Refused(path, "has a page of a third kind, expected two");
  }
  const uint64_t pages = snapshot.PageBytes({head.page_bytes[0], head.page_bytes[1]});
  if (pages != head.file_bytes - sizeof(head) - meta.size()) {
    return Refused(path, StrCat("has other bytes of pages than the ", pages, " its masks name"));
  }
  return snapshot;
}

Status CheckSnapshotPages(const SnapshotHead& head,
                          std::span<const std::byte> pages,
                          const std::string& path) {
  if (Checksum(pages) == head.pages_checksum) return Status();
  return Refused(path, "has damaged pages, expected their checksum");
}

std::vector<std::byte> SnapshotPrologue(const PrefixSnapshot& snapshot,
                                        const std::array<size_t, kNumWays>& page_bytes,
                                        std::span<const std::byte> pages) {
  LS_CHECK_EQ(pages.size(), snapshot.PageBytes(page_bytes));
  SnapshotHead head{.magic = kMagic,
                    .version = kVersion,
                    .origin_bytes = static_cast<uint32_t>(snapshot.origin.size()),
                    .family_bytes = static_cast<uint32_t>(snapshot.family.size()),
                    .num_tokens = static_cast<uint32_t>(snapshot.tokens.size()),
                    .first_token = static_cast<uint32_t>(snapshot.first_token),
                    .page_bytes = {page_bytes[0], page_bytes[1]}};
  LS_CHECK_EQ(snapshot.masks.size(), NumMasks(head));
  std::vector<std::byte> meta;
  meta.reserve(MetaBytes(head));
  Append(snapshot.origin.data(), snapshot.origin.size(), &meta);
  Append(snapshot.family.data(), snapshot.family.size(), &meta);
  Append(snapshot.tokens.data(), snapshot.tokens.size() * sizeof(int32_t), &meta);
  Append(snapshot.masks.data(), snapshot.masks.size(), &meta);
  head.file_bytes = sizeof(head) + meta.size() + pages.size();
  head.meta_checksum = Checksum(meta);
  head.pages_checksum = Checksum(pages);
  head.head_checksum = HeadChecksum(head);
  std::vector<std::byte> out;
  out.reserve(sizeof(head) + meta.size());
  Append(&head, sizeof(head), &out);
  Append(meta.data(), meta.size(), &out);
  return out;
}

std::string PrefixName(std::string_view origin,
                       std::string_view family,
                       std::span<const int32_t> tokens) {
  XXH3_state_t state;
  XXH3_128bits_reset(&state);
  for (const std::string_view text : {origin, family}) {
    const uint64_t size = text.size();
    XXH3_128bits_update(&state, &size, sizeof(size));
    XXH3_128bits_update(&state, text.data(), text.size());
  }
  XXH3_128bits_update(&state, tokens.data(), tokens.size_bytes());
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(&state));
  std::string name;
  for (const unsigned char byte : canonical.digest) {
    name.push_back("0123456789abcdef"[byte >> 4]);
    name.push_back("0123456789abcdef"[byte & 15]);
  }
  return name;
}

}  // namespace lserve
