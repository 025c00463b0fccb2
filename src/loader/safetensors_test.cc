#include "loader/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>

#include "base/strings.h"

namespace lserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

std::span<const std::byte> Bytes(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

// A file of the given header, whose length field may lie, and data.
std::string File(const std::string& header, size_t data_bytes, int64_t lie = 0) {
  const uint64_t length = header.size() + static_cast<uint64_t>(lie);
  std::string file(8, '\0');
  for (int i = 0; i < 8; ++i) file[i] = static_cast<char>(length >> (8 * i));
  file += header;
  for (size_t i = 0; i < data_bytes; ++i) file += static_cast<char>(i);
  return file;
}

std::string Entry(const std::string& name,
                  const std::string& dtype,
                  const std::string& shape,
                  int64_t begin,
                  int64_t end) {
  return StrCat("\"", name, "\":{\"dtype\":\"", dtype, "\",\"shape\":", shape,
                ",\"data_offsets\":[", begin, ",", end, "]}");
}

std::string ErrorOf(const std::string& file) {
  const Result<SafetensorsFile> parsed = ParseSafetensors(Bytes(file), "m.safetensors");
  EXPECT_FALSE(parsed.ok());
  return parsed.status().message();
}

TEST(ParseSafetensors, ReadsEveryUsableDTypeAndListsTheOthers) {
  const std::string file =
      File("{\"__metadata__\":{\"format\":\"pt\"}," + Entry("c", "F32", "[2]", 16, 24) + "," +
               Entry("a", "BF16", "[2,3]", 0, 12) + "," + Entry("b", "F16", "[2,1]", 12, 16) + "," +
               Entry("ids", "I64", "[1]", 24, 32) + "," + Entry("e", "F32", "[0,7]", 32, 32) + "," +
               Entry("s", "BF16", "[]", 32, 34) + "}   ",
           34);
  const Result<SafetensorsFile> parsed = ParseSafetensors(Bytes(file), "m");
  ASSERT_TRUE(parsed.ok()) << parsed.status().message();
  const std::vector<TensorInfo>& tensors = parsed.value().tensors;
  ASSERT_EQ(tensors.size(), 5u);
  EXPECT_EQ(tensors[0].name, "a");
  EXPECT_EQ(tensors[0].dtype, DType::kBf16);
  EXPECT_THAT(tensors[0].shape, ElementsAre(2, 3));
  EXPECT_EQ(tensors[1].dtype, DType::kF16);
  EXPECT_EQ(static_cast<int>(tensors[1].data[0]), 12);  // the data bytes count up from 0
  EXPECT_EQ(tensors[1].data.size(), 4u);
  EXPECT_EQ(tensors[2].dtype, DType::kF32);
  EXPECT_TRUE(tensors[3].data.empty());
  EXPECT_EQ(tensors[4].data.size(), 2u);
  ASSERT_EQ(parsed.value().listed.size(), 1u);
  EXPECT_EQ(parsed.value().listed[0].dtype_name, "I64");
  EXPECT_EQ(parsed.value().data_bytes, 34u);
}

struct Lie {
  const char* name;
  std::string file;
  const char* message;
};

class LyingFile : public ::testing::TestWithParam<Lie> {};

TEST_P(LyingFile, IsAnErrorOfOneLine) {
  const std::string message = ErrorOf(GetParam().file);
  EXPECT_THAT(message, HasSubstr(GetParam().message));
  EXPECT_THAT(message, HasSubstr("m.safetensors: "));
  EXPECT_THAT(message, HasSubstr("expected"));
  EXPECT_THAT(message, Not(HasSubstr("\n")));
}

std::vector<Lie> Lies() {
  const std::string good = "{" + Entry("a", "F32", "[2]", 0, 8) + "}";
  const auto with = [](const std::string& entries, size_t bytes) {
    return File("{" + entries + "}", bytes);
  };
  return {
      {"Empty", "", "has 0 bytes"},
      {"SevenBytes", std::string(7, '\0'), "has 7 bytes"},
      {"HeaderBeyondFile", File(good, 8, 9), "truncated"},
      {"HeaderLengthHuge", std::string(8, '\xff') + "{}", "header length is 18446744073709551615"},
      {"HeaderLengthShort", File(good, 8, -1), "no valid JSON"},
      {"HeaderEmpty", File("", 0), "no valid JSON"},
      {"HeaderArray", File("[]", 0), "header is an array"},
      {"HeaderDeep", File(std::string(100000, '['), 0), "no valid JSON"},
      {"HeaderBadUtf8", File("{\"\xff\":1}", 0), "no valid JSON"},
      {"DataTruncated", File(good, 7), "expected an ascending range within the 7 bytes"},
      {"DataTrailing", File(good, 9), "has 9 bytes of data, expected 8"},
      {"DuplicateName",
       with(Entry("a", "F32", "[1]", 0, 4) + "," + Entry("a", "F32", "[1]", 4, 8), 8),
       "no valid JSON"},
      {"EntryNoObject", with("\"a\":3", 0), "is 3, expected an object"},
      {"NoDType", with("\"a\":{\"shape\":[],\"data_offsets\":[0,4]}", 4), "\"dtype\" is missing"},
      {"DTypeNumber", with("\"a\":{\"dtype\":4,\"shape\":[],\"data_offsets\":[0,4]}", 4),
       "\"dtype\" is 4"},
      {"DTypeUnknown", with(Entry("a", "Q4_K", "[2]", 0, 8), 8), "dtype is \"Q4_K\""},
      {"NoShape", with("\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}", 4),
       "\"shape\" is missing"},
      {"ShapeNegative", with(Entry("a", "F32", "[-2]", 0, 8), 8), "shape has -2"},
      {"ShapeFraction", with(Entry("a", "F32", "[2.0]", 0, 8), 8), "expected integers"},
      {"ShapeOverflow", with(Entry("a", "F32", "[4294967296,4294967296,4]", 0, 8), 8), "overflows"},
      // 2^60 elements of 4 bytes are 2^62 bytes but 2^65 bits: the count wraps to 0 bits.
      {"ShapeOverflowOfBits", with(Entry("a", "F32", "[1152921504606846976]", 0, 0), 0),
       "overflows"},
      {"ShapeTooManyDims", with(Entry("a", "F32", "[1,1,1,1,1,1,1,1,1]", 0, 4), 4),
       "at most 8 integers"},
      {"ShapeTooLarge", with(Entry("a", "F32", "[3]", 0, 8), 8),
       "has 8 bytes of data, expected 12"},
      {"ShapeTooSmall", with(Entry("a", "BF16", "[3]", 0, 8), 8), "expected 6"},
      {"ShapeHalfByte", with(Entry("a", "F4", "[3]", 0, 1), 1), "no whole number of bytes"},
      {"NoOffsets", with("\"a\":{\"dtype\":\"F32\",\"shape\":[1]}", 4),
       "\"data_offsets\" is missing"},
      {"OffsetsOfThree",
       with("\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}", 8), "two integers"},
      {"OffsetNegative", with(Entry("a", "F32", "[2]", -8, 0), 8), "[-8, 0]"},
      {"OffsetBeyond", with(Entry("a", "F32", "[2]", 8, 16), 8), "[8, 16]"},
      {"OffsetDescending", with(Entry("a", "F32", "[2]", 8, 0), 8), "[8, 0]"},
      {"OffsetHuge", with(Entry("a", "F32", "[2]", 0, INT64_MAX), 8), "9223372036854775807"},
      {"Gap", with(Entry("a", "F32", "[1]", 0, 4) + "," + Entry("b", "F32", "[1]", 8, 12), 12),
       "begins at byte 8 after a gap, expected 4"},
      {"GapAtStart", with(Entry("a", "F32", "[1]", 4, 8), 8), "after a gap, expected 0"},
      {"Overlap", with(Entry("a", "F32", "[2]", 0, 8) + "," + Entry("b", "F32", "[2]", 4, 12), 12),
       "begins at byte 4 inside another tensor"},
      {"SameRange", with(Entry("a", "F32", "[2]", 0, 8) + "," + Entry("b", "F32", "[2]", 0, 8), 8),
       "inside another tensor"},
      {"MetadataNoObject", with("\"__metadata__\":[]", 0), "__metadata__"},
      {"MetadataNoStrings", with("\"__metadata__\":{\"a\":1}", 0), "__metadata__"},
      {"NewlineInName", with("\"a\\nb\":3", 0), "\"a\\nb\""},
  };
}

INSTANTIATE_TEST_SUITE_P(Safetensors,
                         LyingFile,
                         ::testing::ValuesIn(Lies()),
                         [](const auto& param_info) { return param_info.param.name; });

// Every prefix of a good file is an error, whatever byte it ends at.
TEST(ParseSafetensors, EveryTruncationIsAnError) {
  const std::string file =
      File("{" + Entry("a", "F32", "[2]", 0, 8) + "," + Entry("b", "BF16", "[4]", 8, 16) + "}", 16);
  ASSERT_TRUE(ParseSafetensors(Bytes(file), "m").ok());
  for (size_t size = 0; size < file.size(); ++size) {
    EXPECT_FALSE(ParseSafetensors(Bytes(file).first(size), "m").ok()) << size;
  }
}

class CheckpointTest : public ::testing::Test {
 protected:
  CheckpointTest() {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    dir_ = StrCat(::testing::TempDir(), "lserve_checkpoint_", test->name());
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
  }
  ~CheckpointTest() override { std::filesystem::remove_all(dir_); }

  void Write(const std::string& name, const std::string& content) {
    ASSERT_TRUE(WriteFile(StrCat(dir_, "/", name), Bytes(content)).ok());
  }
  void WriteIndex(const std::string& weight_map) {
    Write("model.safetensors.index.json",
          StrCat("{\"metadata\":{\"total_size\":16},\"weight_map\":", weight_map, "}"));
  }
  std::string OpenError() {
    const Result<Checkpoint> opened = Checkpoint::Open(dir_);
    EXPECT_FALSE(opened.ok());
    EXPECT_THAT(opened.status().message(), Not(HasSubstr("\n")));
    return opened.status().message();
  }

  const std::string one_ = File("{" + Entry("a", "F32", "[2]", 0, 8) + "}", 8);
  const std::string two_ = File("{" + Entry("b", "BF16", "[2,2]", 0, 8) + "}", 8);
  std::string dir_;
};

TEST_F(CheckpointTest, OpensASingleFileAndSurvivesAMove) {
  Write("model.safetensors", one_);
  Result<Checkpoint> opened = Checkpoint::Open(dir_);
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  const Checkpoint moved = std::move(opened).value();
  const TensorInfo* tensor = moved.Find("a");
  ASSERT_NE(tensor, nullptr);
  EXPECT_EQ(static_cast<int>(tensor->data[7]), 7);
  EXPECT_EQ(moved.total_bytes(), 8u);
  EXPECT_EQ(moved.Find("b"), nullptr);
}

TEST_F(CheckpointTest, OpensShards) {
  Write("x-1.safetensors", one_);
  Write("x-2.safetensors", two_);
  WriteIndex(R"({"a":"x-1.safetensors","b":"x-2.safetensors"})");
  const Result<Checkpoint> opened = Checkpoint::Open(dir_);
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  EXPECT_THAT(opened.value().names(), ElementsAre("a", "b"));
  EXPECT_EQ(opened.value().total_bytes(), 16u);
}

// The header is one byte longer than a multiple of four.
TEST_F(CheckpointTest, AlignsMisalignedTensors) {
  std::string header = "{" + Entry("a", "F32", "[2]", 0, 8) + "}";
  while (header.size() % 4 != 1) header += ' ';
  Write("model.safetensors", File(header, 8));
  const Result<Checkpoint> opened = Checkpoint::Open(dir_);
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  const TensorInfo* tensor = opened.value().Find("a");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor->data.data()) % 4, 0u);
  EXPECT_EQ(static_cast<int>(tensor->data[5]), 5);
}

TEST_F(CheckpointTest, GetSaysWhyATensorCannotBeRead) {
  Write("model.safetensors",
        File("{" + Entry("a", "F32", "[2]", 0, 8) + "," + Entry("q", "F8_E4M3", "[8]", 8, 16) + "}",
             16));
  const Result<Checkpoint> opened = Checkpoint::Open(dir_);
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  const Checkpoint& checkpoint = opened.value();
  EXPECT_THAT(checkpoint.names(), ElementsAre("a", "q"));
  EXPECT_EQ(checkpoint.Find("q"), nullptr);
  EXPECT_THAT(checkpoint.Get("q").status().message(), HasSubstr("has dtype F8_E4M3"));
  EXPECT_EQ(checkpoint.Get("q").status().code(), Code::kUnsupported);
  EXPECT_THAT(checkpoint.Get("lm_head.weight").status().message(),
              HasSubstr("\"lm_head.weight\" is missing"));
  const int64_t right[] = {2};
  const int64_t wrong[] = {2, 1};
  EXPECT_TRUE(checkpoint.Get("a", right).ok());
  EXPECT_THAT(checkpoint.Get("a", wrong).status().message(), HasSubstr("is [2], expected [2, 1]"));
}

TEST_F(CheckpointTest, RefusesWhatIsNotThere) {
  EXPECT_THAT(OpenError(), HasSubstr("has neither model.safetensors nor"));
  Write("x-1.safetensors", one_);
  WriteIndex(R"({"a":"x-1.safetensors","b":"x-2.safetensors"})");
  EXPECT_THAT(OpenError(), HasSubstr("x-2.safetensors: shard is missing"));
}

TEST_F(CheckpointTest, RefusesAnIndexThatLies) {
  Write("x-1.safetensors", one_);
  Write("x-2.safetensors", two_);
  WriteIndex(R"({"a":"x-1.safetensors","b":"x-2.safetensors","c":"x-2.safetensors"})");
  EXPECT_THAT(OpenError(), HasSubstr("maps tensor \"c\" to \"x-2.safetensors\", which lacks it"));
  WriteIndex(R"({"a":"x-2.safetensors","b":"x-1.safetensors"})");
  EXPECT_THAT(OpenError(), HasSubstr("which lacks it"));
  Write("x-2.safetensors", one_);
  WriteIndex(R"({"a":"x-1.safetensors","b":"x-2.safetensors"})");
  EXPECT_THAT(OpenError(), HasSubstr("of an earlier shard again"));
}

TEST_F(CheckpointTest, RefusesAnIndexThatIsNone) {
  for (const char* name : {"../x-1.safetensors", "/etc/passwd", ""}) {
    WriteIndex(StrCat("{\"a\":\"", name, "\"}"));
    EXPECT_THAT(OpenError(), HasSubstr("a file in the same directory")) << name;
  }
  WriteIndex("{}");
  EXPECT_THAT(OpenError(), HasSubstr("weight_map"));
  Write("model.safetensors.index.json", "{");
  EXPECT_THAT(OpenError(), HasSubstr("no valid JSON"));
  Write("model.safetensors.index.json", std::string(100000, '['));
  EXPECT_THAT(OpenError(), HasSubstr("no valid JSON"));
}

TEST_F(CheckpointTest, RefusesATruncatedShard) {
  Write("x-1.safetensors", one_.substr(0, one_.size() - 3));
  WriteIndex(R"({"a":"x-1.safetensors"})");
  EXPECT_THAT(OpenError(), HasSubstr("x-1.safetensors: tensor \"a\""));
}

// Checkpoints written by the safetensors library itself, one of them sharded, of all usable dtypes.
TEST(Checkpoint, OpensTheGoldenCheckpoints) {
  const std::string goldens = std::string(LS_SOURCE_DIR) + "/tests/goldens/models/";
  const std::pair<const char*, DType> cases[] = {{"llama_gqa3_sharded", DType::kBf16},
                                                 {"llama_mqa_f16", DType::kF16},
                                                 {"llama_bias_f32", DType::kF32}};
  for (const auto& [name, dtype] : cases) {
    const Result<Checkpoint> opened = Checkpoint::Open(goldens + name);
    ASSERT_TRUE(opened.ok()) << opened.status().message();
    const TensorInfo* tensor = opened.value().Find("model.embed_tokens.weight");
    ASSERT_NE(tensor, nullptr) << name;
    EXPECT_EQ(tensor->dtype, dtype);
    EXPECT_EQ(tensor->shape[0], 128);
    EXPECT_NE(opened.value().Find("model.layers.0.self_attn.q_proj.weight"), nullptr) << name;
  }
}

TEST(Checkpoint, OpensTheBundledModel) {
  const Result<Checkpoint> opened = Checkpoint::Open(std::string(LS_SOURCE_DIR) + "/models/needle");
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  const int64_t shape[] = {4096, 256};
  EXPECT_TRUE(opened.value().Get("model.embed_tokens.weight", shape).ok());
}

}  // namespace
}  // namespace lserve
