// Any bytes either parse or give a one-line error, in memory that the input's size bounds. The
// checksums would keep a fuzzer out, so the input is also tried with them made right.
#include <xxhash.h>

#include <cstdint>
#include <cstring>

#include "base/check.h"
#include "kv/prefix_snapshot.h"

namespace {

void Try(std::span<const std::byte> bytes) {
  const auto one_line = [](const lserve::Status& status) {
    LS_CHECK(status.ok() || status.message().find('\n') == std::string::npos) << status.message();
  };
  const lserve::Result<lserve::SnapshotHead> head =
      lserve::ParseSnapshotHead(bytes, bytes.size(), "fuzz");
  one_line(head.status());
  if (!head.ok()) return;
  const uint64_t meta_bytes = lserve::MetaBytes(head.value());
  LS_CHECK_LE(meta_bytes, bytes.size() - sizeof(lserve::SnapshotHead));
  const auto meta = bytes.subspan(sizeof(lserve::SnapshotHead), meta_bytes);
  const lserve::Result<lserve::PrefixSnapshot> snapshot =
      lserve::ParseSnapshotMeta(head.value(), meta, "", "fuzz");
  one_line(snapshot.status());
  if (!snapshot.ok()) return;
  LS_CHECK_EQ(snapshot.value().PageBytes({head.value().page_bytes[0], head.value().page_bytes[1]}),
              bytes.size() - sizeof(lserve::SnapshotHead) - meta_bytes);
  one_line(lserve::CheckSnapshotPages(
      head.value(), bytes.subspan(sizeof(lserve::SnapshotHead) + meta_bytes), "fuzz"));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<std::byte> bytes(size);
  if (size > 0) std::memcpy(bytes.data(), data, size);
  Try(bytes);
  lserve::SnapshotHead head;
  if (size < sizeof(head)) return 0;
  std::memcpy(&head, data, sizeof(head));
  const lserve::SnapshotHead good = [] {
    lserve::PrefixSnapshot one;
    one.tokens = {1};
    one.masks = {0};
    const std::vector<std::byte> file = lserve::SnapshotPrologue(one, {1, 1}, {});
    lserve::SnapshotHead h;
    std::memcpy(&h, file.data(), sizeof(h));
    return h;
  }();
  head.magic = good.magic;
  head.version = good.version;
  head.file_bytes = size;
  head.origin_bytes = 0;
  head.num_tokens %= 1 << 12;
  head.first_token = head.first_token % 64 * 64;
  if (head.num_tokens > head.first_token && lserve::MetaBytes(head) <= size - sizeof(head)) {
    head.meta_checksum = XXH3_64bits(bytes.data() + sizeof(head), lserve::MetaBytes(head));
  }
  head.head_checksum = XXH3_64bits(&head, offsetof(lserve::SnapshotHead, head_checksum));
  std::memcpy(bytes.data(), &head, sizeof(head));
  Try(bytes);
  return 0;
}
