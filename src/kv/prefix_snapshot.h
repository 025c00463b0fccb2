// PrefixSnapshot: a stretch of a kept prefix as one file, for the disk tier: what its pages follow
// from, all tokens up to its end, and the pages of the stretch. What is read may be damaged, cut
// off, foreign or made to harm: nothing is believed before its checksum, and no size before the
// file's. Used by engine/disk_tier.
//
// Format, version 1, little endian: SnapshotHead; origin, family, tokens (int32) and a mask per
// page (bit of Way::kRetrieval, bit of Way::kStreaming); then for each page the records that its
// mask names, retrieval first. A record is what KvStore::ReadPage gives: the layout inside a page
// is the backend's, and `origin` names it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "kv/page.h"

namespace lserve {

struct PrefixSnapshot {
  // Model, backend, element type and program version: whatever the bits of pages follow from beside
  // tokens and settings. Files of another origin are of no use.
  std::string origin = {};
  // Attention settings and salt: only the same family shares prefixes.
  std::string family = {};
  std::vector<int32_t> tokens = {};  // from the prompt's start to the stretch's end
  int64_t first_token = 0;           // of the stretch; a multiple of kPageTokens, < tokens.size()
  std::vector<uint8_t> masks = {};   // [NumPages(tokens.size()) - first_token / kPageTokens]

  // Bytes of all records.
  uint64_t PageBytes(const std::array<size_t, kNumWays>& page_bytes) const;
};
constexpr uint8_t MaskOf(Way way) {
  return static_cast<uint8_t>(1u << Index(way));
}

struct SnapshotHead {
  uint64_t magic = 0;
  uint32_t version = 0;
  uint32_t origin_bytes = 0;
  uint32_t family_bytes = 0;
  uint32_t num_tokens = 0;
  uint32_t first_token = 0;
  uint32_t unused = 0;
  uint64_t page_bytes[kNumWays] = {};  // of a record
  uint64_t file_bytes = 0;
  uint64_t meta_checksum = 0;   // XXH3 of what lies between head and pages
  uint64_t pages_checksum = 0;  // XXH3 of the pages
  uint64_t head_checksum = 0;   // XXH3 of the head before this
};
static_assert(sizeof(SnapshotHead) == 80);

// The head, if it is one and its sizes fit a file of `file_bytes`. `path` serves messages.
Result<SnapshotHead> ParseSnapshotHead(std::span<const std::byte> bytes,
                                       uint64_t file_bytes,
                                       const std::string& path);
// Bytes between head and pages: at most what the checks of the head allow.
uint64_t MetaBytes(const SnapshotHead& head);
// Everything but the pages. `meta` is MetaBytes(head) long. The origin must be `origin`.
Result<PrefixSnapshot> ParseSnapshotMeta(const SnapshotHead& head,
                                         std::span<const std::byte> meta,
                                         std::string_view origin,
                                         const std::string& path);
// Whether the pages are those that were written.
Status CheckSnapshotPages(const SnapshotHead& head,
                          std::span<const std::byte> pages,
                          const std::string& path);

// Head and meta data of a file whose pages are `pages`. REQUIRES: what PrefixSnapshot says, and
// pages.size() == snapshot.PageBytes(page_bytes).
std::vector<std::byte> SnapshotPrologue(const PrefixSnapshot& snapshot,
                                        const std::array<size_t, kNumWays>& page_bytes,
                                        std::span<const std::byte> pages);

// A name for the prefix of these tokens in this family and origin, 32 hexadecimal digits. Two
// prefixes may share it by accident: compare tokens.
std::string PrefixName(std::string_view origin,
                       std::string_view family,
                       std::span<const int32_t> tokens);

}  // namespace lserve
