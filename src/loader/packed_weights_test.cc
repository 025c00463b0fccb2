// A file comes back as it was written; any damage is noticed, and nothing is left behind by a
// writer that fails.
#include "loader/packed_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <vector>

namespace lserve {
namespace {

using ::testing::HasSubstr;

std::vector<std::byte> Bytes(size_t count, int seed) {
  std::vector<std::byte> bytes(count);
  for (size_t i = 0; i < count; ++i) {
    bytes[i] = static_cast<std::byte>((i * 37 + static_cast<size_t>(seed)) & 255);
  }
  return bytes;
}

class PackedWeightsTest : public testing::Test {
 protected:
  PackedWeightsTest() {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "lserve_packed_XXXXXX").string();
    EXPECT_NE(mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    path_ = dir_ + "/deeper/model.weights";
  }
  ~PackedWeightsTest() override {
    std::error_code ignored;
    std::filesystem::remove_all(dir_, ignored);
  }
  void WriteTwo(const std::string& key = "key") const {
    PackedWeightsWriter writer = PackedWeightsWriter::Create(path_, key).value();
    ASSERT_TRUE(writer.Add("a", Bytes(10000, 1)).ok());
    ASSERT_TRUE(writer.Add("b", Bytes(33, 2)).ok());
    ASSERT_TRUE(writer.Finish().ok());
  }
  size_t NumFiles() const {
    size_t count = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(dir_)) {
      count += entry.is_regular_file() ? 1 : 0;
    }
    return count;
  }
  std::vector<std::byte> Read() const {
    const MappedFile file = MappedFile::Open(path_).value();
    return {file.bytes().begin(), file.bytes().end()};
  }

  std::string dir_;
  std::string path_;
};

TEST_F(PackedWeightsTest, ComesBackAsItWasWritten) {
  WriteTwo();
  EXPECT_EQ(NumFiles(), 1u);
  const PackedWeights weights = PackedWeights::Open(path_, "key").value();
  for (const auto& [name, expected] :
       {std::pair{"a", Bytes(10000, 1)}, std::pair{"b", Bytes(33, 2)}}) {
    const std::span<const std::byte> got = weights.Get(name).value();
    EXPECT_TRUE(std::equal(got.begin(), got.end(), expected.begin(), expected.end()));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(got.data()) % 4096, 0u);
  }
  EXPECT_THAT(weights.Get("c").status().message(), HasSubstr("lacks \"c\""));
}

TEST_F(PackedWeightsTest, AnotherKeyIsForeign) {
  WriteTwo("other");
  EXPECT_THAT(PackedWeights::Open(path_, "key").status().message(), HasSubstr("made for another"));
  WriteTwo();  // replaces it
  EXPECT_TRUE(PackedWeights::Open(path_, "key").ok());
  EXPECT_EQ(NumFiles(), 1u);
}

TEST_F(PackedWeightsTest, EveryTruncationIsNoticed) {
  WriteTwo();
  const std::vector<std::byte> whole = Read();
  for (size_t size = 0; size < whole.size(); size += size < 80 ? 1 : 97) {
    EXPECT_FALSE(ParsePackedWeights(std::span(whole).first(size), "key", "x").ok()) << size;
  }
  ASSERT_TRUE(ParsePackedWeights(whole, "key", "x").ok());
}

TEST_F(PackedWeightsTest, EveryFlippedBitOfHeadAndTableAndBlobsIsNoticed) {
  WriteTwo();
  std::vector<std::byte> bytes = Read();
  uint64_t table_offset = 0;
  std::memcpy(&table_offset, bytes.data() + 16, sizeof(table_offset));
  const auto is_noticed = [&](size_t at) {
    bytes[at] ^= std::byte{4};
    const Result<PackedTable> table = ParsePackedWeights(bytes, "key", "x");
    bool noticed = !table.ok();
    if (table.ok()) {
      for (const auto& [name, blob] : table.value()) {
        noticed |= ChecksumOf(blob.data) != blob.checksum;
      }
    }
    bytes[at] ^= std::byte{4};
    return noticed;
  };
  for (size_t at = 0; at < 40; ++at) EXPECT_TRUE(is_noticed(at)) << at;
  for (size_t at = table_offset; at < bytes.size(); ++at) EXPECT_TRUE(is_noticed(at)) << at;
  for (size_t at = 4096; at < 4096 + 10000; at += 11) EXPECT_TRUE(is_noticed(at)) << at;
}

TEST_F(PackedWeightsTest, BlobsBeyondTheFileAreRefused) {
  for (const char* blob :
       {R"({"offset":0,"bytes":1000000,"checksum":1})", R"({"offset":-1,"bytes":1,"checksum":1})",
        R"({"offset":9223372036854775807,"bytes":9223372036854775807,"checksum":1})",
        R"({"offset":0,"bytes":1})", R"([])"}) {
    const std::string table = std::string(R"({"key":"key","blobs":{"a":)") + blob + "}}";
    std::vector<std::byte> bytes(64 + table.size());
    const std::span<const std::byte> text = std::as_bytes(std::span(table));
    const uint64_t head[5] = {0x3156'5456'5245'534c, bytes.size(), 64, table.size(),
                              ChecksumOf(text)};
    std::memcpy(bytes.data(), head, sizeof(head));
    std::memcpy(bytes.data() + 64, table.data(), table.size());
    EXPECT_EQ(ParsePackedWeights(bytes, "key", "x").status().code(), Code::kCorruptModel) << blob;
  }
}

TEST_F(PackedWeightsTest, AnUnfinishedWriterLeavesNothing) {
  {
    PackedWeightsWriter writer = PackedWeightsWriter::Create(path_, "key").value();
    ASSERT_TRUE(writer.Add("a", Bytes(100, 1)).ok());
    EXPECT_EQ(NumFiles(), 1u);
  }
  EXPECT_EQ(NumFiles(), 0u);
  EXPECT_FALSE(PackedWeights::Open(path_, "key").ok());
}

TEST_F(PackedWeightsTest, WhereNothingCanBeWrittenItSaysSo) {
  // A file where the directory should be: also root can not write there.
  ASSERT_TRUE(WriteFile(dir_ + "/deeper", Bytes(1, 1)).ok());
  const Status status = PackedWeightsWriter::Create(path_, "key").status();
  EXPECT_EQ(status.code(), Code::kIoError);
  EXPECT_THAT(status.message(), HasSubstr("--quantization-cache"));
}

// A limit on the size of files fails as a full disk does.
TEST_F(PackedWeightsTest, AFullDiskIsAStatusAndLeavesNothing) {
  struct rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit small = {.rlim_cur = 6000, .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  Status status;
  {
    PackedWeightsWriter writer = PackedWeightsWriter::Create(path_, "key").value();
    status = writer.Add("a", Bytes(10000, 1));
  }
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(status.code(), Code::kIoError);
  EXPECT_EQ(NumFiles(), 0u);
}

}  // namespace
}  // namespace lserve
