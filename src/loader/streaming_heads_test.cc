#include "loader/streaming_heads.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

namespace lserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

StreamingHeadsFile Parsed(const std::string& text) {
  Result<StreamingHeadsFile> file = ParseStreamingHeads(text, "heads");
  EXPECT_TRUE(file.ok()) << file.status().message();
  return file.ok() ? std::move(file).value() : StreamingHeadsFile();
}

TEST(StreamingHeads, ReadsOurJson) {
  const StreamingHeadsFile file = Parsed(
      R"( {"layers":2,"kv_heads":3,"score":[[0.5,0,1],[2,0.25,0]],"kind":[[1,0,1],[1,1,0]],"x":1})");
  EXPECT_EQ(file.layers, 2);
  EXPECT_EQ(file.kv_heads, 3);
  EXPECT_THAT(file.score, ElementsAre(0.5f, 0.0f, 1.0f, 2.0f, 0.25f, 0.0f));
  EXPECT_THAT(file.kind.value(), ElementsAre(1, 0, 1, 1, 1, 0));
}

TEST(StreamingHeads, ReadsDuoAttentionTsv) {
  const StreamingHeadsFile file = Parsed("0.5\t1.0e+00\t0\r\n\n1\t-0.25\t0.75");
  EXPECT_EQ(file.layers, 2);
  EXPECT_EQ(file.kv_heads, 3);
  EXPECT_THAT(file.score, ElementsAre(0.5f, 1.0f, 0.0f, 1.0f, -0.25f, 0.75f));
  EXPECT_FALSE(file.kind.has_value());
}

TEST(StreamingHeads, CutsTheLowestScoresAndTiesByPosition) {
  const StreamingHeadsFile file = Parsed("0.5\t0\t1\n0\t0\t0.5\n");
  EXPECT_THAT(CutByRatio(file, 0.0).value(), ElementsAre(1, 1, 1, 1, 1, 1));
  EXPECT_THAT(CutByRatio(file, 1.0).value(), ElementsAre(0, 0, 0, 0, 0, 0));
  // Two of three zeros: the first two by position.
  EXPECT_THAT(CutByRatio(file, 1.0 / 3).value(), ElementsAre(1, 0, 1, 0, 1, 1));
  // The first of the two halves.
  EXPECT_THAT(CutByRatio(file, 4.0 / 6).value(), ElementsAre(0, 0, 1, 0, 0, 1));
  // 0.25 * 6 = 1.5 heads are rounded up, 0.24 * 6 = 1.44 down.
  EXPECT_THAT(CutByRatio(file, 0.25).value(), ElementsAre(1, 0, 1, 0, 1, 1));
  EXPECT_THAT(CutByRatio(file, 0.24).value(), ElementsAre(1, 0, 1, 1, 1, 1));
}

TEST(StreamingHeads, RefusesImpossibleRatiosAndScores) {
  StreamingHeadsFile file = Parsed("0.5\t0\n");
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const double ratio : {-0.1, 1.1, nan}) {
    EXPECT_THAT(CutByRatio(file, ratio).status().message(), HasSubstr("from 0 to 1"));
  }
  file.score[1] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(CutByRatio(file, 0.5).status().message(), HasSubstr("NaN"));
}

TEST(StreamingHeads, ChecksTheShapeOfTheModel) {
  const StreamingHeadsFile file = Parsed("0.5\t0\n");
  EXPECT_TRUE(CheckShape(file, 1, 2, "heads").ok());
  EXPECT_THAT(CheckShape(file, 2, 2, "heads").message(),
              HasSubstr("1 layers of 2 KV heads, expected 2 layers of 2"));
  EXPECT_FALSE(CheckShape(file, 1, 1, "heads").ok());
}

TEST(StreamingHeads, BadFilesAreErrorsOfOneLine) {
  const std::string begin = R"({"layers":1,"kv_heads":2,)";
  for (const std::string& text : {std::string(),
                                  std::string(" \n"),
                                  std::string("0.5\tnan\n"),
                                  std::string("inf\n"),
                                  std::string("1e39\n"),
                                  std::string("1\t2\n3\n"),
                                  std::string("0.5,0.5\n"),
                                  std::string("score\n"),
                                  std::string("{"),
                                  std::string("{}"),
                                  std::string(100000, '{'),
                                  begin + "\"kind\":[[0,1]]}",
                                  begin + "\"score\":[[0,1],[0,1]]}",
                                  begin + "\"score\":[[0]]}",
                                  begin + "\"score\":[[0,1e39]]}",
                                  begin + "\"score\":[[0,\"1\"]]}",
                                  begin + "\"score\":[0,1]}",
                                  begin + "\"score\":[[0,1]],\"kind\":[[0,2]]}",
                                  std::string(R"({"layers":0,"kv_heads":2,"score":[]})"),
                                  std::string(R"({"layers":99999999,"kv_heads":2,"score":[]})")}) {
    const Result<StreamingHeadsFile> file = ParseStreamingHeads(text, "heads.x");
    ASSERT_FALSE(file.ok()) << text.substr(0, 60);
    EXPECT_THAT(file.status().message(), HasSubstr("heads.x"));
    EXPECT_THAT(file.status().message(), Not(HasSubstr("\n")));
  }
}

// The bundled model's own cut is the one that its scores give at half.
TEST(LoadStreamingHeads, ReadsTheBundledModel) {
  const Result<StreamingHeadsFile> file =
      LoadStreamingHeads(std::string(LS_SOURCE_DIR) + "/models/needle/streaming_heads.json");
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_TRUE(CheckShape(file.value(), 6, 4, "needle").ok());
  EXPECT_EQ(CutByRatio(file.value(), 0.5).value(), file.value().kind.value());
}

}  // namespace
}  // namespace lserve
