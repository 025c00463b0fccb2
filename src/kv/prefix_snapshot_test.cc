#include "kv/prefix_snapshot.h"

#include <gtest/gtest.h>

#include <cstring>

namespace lserve {
namespace {

constexpr std::array<size_t, kNumWays> kPageBytes = {5, 3};

// Tokens 0..199, the pages from the second on.
PrefixSnapshot Snapshot() {
  PrefixSnapshot snapshot{.origin = "model, cpu", .family = "dense", .first_token = 64};
  for (int32_t i = 0; i < 200; ++i) snapshot.tokens.push_back(i);
  snapshot.masks = {1, 3, 2};
  return snapshot;
}
std::vector<std::byte> Pages() {
  std::vector<std::byte> pages;
  for (int i = 0; i < 5 + 8 + 3; ++i) pages.push_back(static_cast<std::byte>(i));
  return pages;
}
std::vector<std::byte> File() {
  std::vector<std::byte> file = SnapshotPrologue(Snapshot(), kPageBytes, Pages());
  const std::vector<std::byte> pages = Pages();
  file.insert(file.end(), pages.begin(), pages.end());
  return file;
}
// Reads a file as the disk tier does.
Result<PrefixSnapshot> Read(const std::vector<std::byte>& file, const char* origin = "model, cpu") {
  const SnapshotHead head = LS_TRY(ParseSnapshotHead(file, file.size(), "f.kv"));
  const std::span<const std::byte> rest = std::span(file).subspan(sizeof(head));
  const PrefixSnapshot snapshot =
      LS_TRY(ParseSnapshotMeta(head, rest.first(MetaBytes(head)), origin, "f.kv"));
  LS_TRY(CheckSnapshotPages(head, rest.subspan(MetaBytes(head)), "f.kv"));
  return snapshot;
}

TEST(PrefixSnapshot, ReadsWhatWasWritten) {
  const Result<PrefixSnapshot> read = Read(File());
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(read.value().family, "dense");
  EXPECT_EQ(read.value().tokens, Snapshot().tokens);
  EXPECT_EQ(read.value().first_token, 64);
  EXPECT_EQ(read.value().masks, Snapshot().masks);
}

TEST(PrefixSnapshot, EveryBitCounts) {
  const std::vector<std::byte> good = File();
  for (size_t i = 0; i < good.size(); ++i) {
    for (const int bit : {0, 5}) {
      std::vector<std::byte> bad = good;
      bad[i] ^= static_cast<std::byte>(1 << bit);
      const Result<PrefixSnapshot> read = Read(bad);
      ASSERT_FALSE(read.ok()) << "byte " << i;
      EXPECT_NE(read.status().message().find("f.kv: "), std::string::npos);
      EXPECT_NE(read.status().message().find("the file is not used"), std::string::npos);
    }
  }
}

TEST(PrefixSnapshot, CutOffLongerAndForeignFilesAreRefused) {
  const std::vector<std::byte> good = File();
  for (size_t size = 0; size < good.size(); ++size) {
    ASSERT_FALSE(Read({good.begin(), good.begin() + static_cast<int64_t>(size)}).ok()) << size;
  }
  std::vector<std::byte> longer = good;
  longer.push_back(std::byte{0});
  EXPECT_FALSE(Read(longer).ok());
  const std::string message = Read(good, "another model").status().message();
  EXPECT_NE(message.find("another model, backend, element type or version"), std::string::npos);
}

TEST(PrefixSnapshot, NamesFollowFromAllTheirParts) {
  const std::vector<int32_t> a = {1, 2, 3}, b = {1, 2, 4};
  EXPECT_EQ(PrefixName("o", "f", a), PrefixName("o", "f", a));
  EXPECT_NE(PrefixName("o", "f", a), PrefixName("o", "f", b));
  EXPECT_NE(PrefixName("of", "", a), PrefixName("o", "f", a));
  EXPECT_EQ(PrefixName("o", "f", a).size(), 32u);
}

}  // namespace
}  // namespace lserve
