// What a log keeps over an interrupt, and what it refuses.
#include "eval/result_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/check.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;

class ResultLogTest : public ::testing::Test {
 protected:
  ResultLogTest() {
    std::string pattern = (std::filesystem::temp_directory_path() / "lserve_log_XXXXXX").string();
    LS_CHECK(mkdtemp(pattern.data()) != nullptr);
    folder_ = pattern;
    path_ = (folder_ / "log.jsonl").string();
  }
  ~ResultLogTest() override { std::filesystem::remove_all(folder_); }

  static Json Header(int seed) {
    return Json(Json::Object{{"eval", Json("niah")}, {"seed", Json(seed)}});
  }
  static Json Record(int score) { return Json(Json::Object{{"score", Json(score)}}); }
  std::string Content() const {
    std::ifstream file(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  void Write(const std::string& text) const { std::ofstream(path_, std::ios::binary) << text; }
  Status OpenStatus(int seed = 1) const { return ResultLog::Open(path_, Header(seed)).status(); }

  std::filesystem::path folder_;
  std::string path_;
};

TEST_F(ResultLogTest, KeepsRecords) {
  {
    ResultLog log = ResultLog::Open(path_, Header(1)).value();
    EXPECT_EQ(log.Find("a"), nullptr);
    ASSERT_TRUE(log.Append("a", Record(1)).ok());
    ASSERT_TRUE(log.Append("b", Record(2)).ok());
    EXPECT_EQ(log.num_resumed(), 0u);
  }
  const ResultLog log = ResultLog::Open(path_, Header(1)).value();
  EXPECT_EQ(log.num_resumed(), 2u);
  ASSERT_NE(log.Find("b"), nullptr);
  EXPECT_EQ(log.Find("b")->Find("score")->as_int(), 2);
}

TEST_F(ResultLogTest, DropsALineThatWasCutShort) {
  { ASSERT_TRUE(ResultLog::Open(path_, Header(1)).value().Append("a", Record(1)).ok()); }
  const std::string whole = Content();
  Write(whole + "{\"key\":\"b\",\"sc");
  {
    ResultLog log = ResultLog::Open(path_, Header(1)).value();
    EXPECT_EQ(log.num_resumed(), 1u);
    EXPECT_EQ(Content(), whole);
    ASSERT_TRUE(log.Append("c", Record(3)).ok());
  }
  EXPECT_EQ(ResultLog::Open(path_, Header(1)).value().num_resumed(), 2u);
  // Cut in the header: as a new file.
  Write("{\"lserve_ev");
  EXPECT_EQ(ResultLog::Open(path_, Header(1)).value().num_resumed(), 0u);
  EXPECT_TRUE(OpenStatus().ok());
}

TEST_F(ResultLogTest, RefusesWhatIsNotItsOwn) {
  { ASSERT_TRUE(ResultLog::Open(path_, Header(1)).ok()); }
  EXPECT_THAT(OpenStatus(2).message(), HasSubstr("\"seed\" is 1, expected 2"));
  Write("hello\n");
  EXPECT_THAT(OpenStatus().message(), HasSubstr("line 1 is no JSON"));
  Write("{\"a\":1}\n");
  EXPECT_THAT(OpenStatus().message(), HasSubstr("line 1 names no evaluation"));
  EXPECT_EQ(Content(), "{\"a\":1}\n");  // somebody's file stays as it is
  const std::string missing = (folder_ / "no" / "log").string();
  EXPECT_THAT(ResultLog::Open(missing, Header(1)).status().message(), HasSubstr("can not open"));
}

TEST_F(ResultLogTest, WithoutAPathOnlyRemembers) {
  ResultLog log = ResultLog::Open("", Header(1)).value();
  ASSERT_TRUE(log.Append("a", Record(1)).ok());
  EXPECT_NE(log.Find("a"), nullptr);
}

}  // namespace
}  // namespace lserve
