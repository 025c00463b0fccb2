// Tables, JSON and pictures from made-up records; records through JSON and back.
#include "eval/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/check.h"
#include "eval/fidelity.h"
#include "eval/svg.h"
#include "eval/text_table.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;

TrialRecord Record(
    const std::string& task, int64_t length, double depth, double dense, double sparse) {
  TrialRecord record;
  record.task = task;
  record.length = length;
  record.depth = depth;
  record.expected = {"1234"};
  record.arm(Arm::kDense) = {.text = "d <&>\n", .score = dense, .stats = {}};
  record.arm(Arm::kSparse) = {.text = "s", .score = sparse, .stats = {}};
  RequestStats& stats = record.arm(Arm::kSparse).stats;
  stats.sparse_steps = 4;
  stats.pages_visited = 10;
  stats.pages_present = 40;
  stats.prefill_tiles_visited = 5;
  stats.prefill_tiles_present = 10;
  record.ran_sparse = true;
  return record;
}

// Whether tags nest and close, attributes are quoted, and there is one root: what a picture needs
// to be shown at all.
testing::AssertionResult IsWellFormed(const std::string& xml) {
  std::vector<std::string> open;
  size_t roots = 0;
  for (size_t at = 0; at < xml.size();) {
    const size_t begin = xml.find('<', at);
    const std::string text = xml.substr(at, begin - at);
    if (text.find('>') != std::string::npos)
      return testing::AssertionFailure() << "stray > " << text;
    for (size_t amp = text.find('&'); amp != std::string::npos; amp = text.find('&', amp + 1)) {
      if (text.find(';', amp) == std::string::npos) return testing::AssertionFailure() << text;
    }
    if (begin == std::string::npos) break;
    const size_t end = xml.find('>', begin);
    if (end == std::string::npos) return testing::AssertionFailure() << "open tag at the end";
    const std::string tag = xml.substr(begin + 1, end - begin - 1);
    if (std::count(tag.begin(), tag.end(), '"') % 2 != 0 || tag.find('<') != std::string::npos) {
      return testing::AssertionFailure() << "bad tag " << tag;
    }
    const std::string name =
        tag.substr(tag[0] == '/' ? 1 : 0, tag.find_first_of(" /", 1) - (tag[0] == '/' ? 1 : 0));
    if (tag[0] == '/') {
      if (open.empty() || open.back() != name) return testing::AssertionFailure() << "</" << name;
      open.pop_back();
    } else {
      if (open.empty()) ++roots;
      if (tag.back() != '/') open.push_back(name);
    }
    at = end + 1;
  }
  if (!open.empty() || roots != 1) return testing::AssertionFailure() << roots << " roots";
  return testing::AssertionSuccess();
}

TEST(SvgCheck, SeesWhatIsBroken) {
  EXPECT_TRUE(IsWellFormed("<a><b c=\"1\"/>x &amp; y</a>"));
  for (const char* bad : {"<a>", "<a></b>", "<a/><b/>", "<a c=\"1></a>", "<a>x & y</a>", "<a"}) {
    EXPECT_FALSE(IsWellFormed(bad)) << bad;
  }
}

TEST(TextTable, AlignsColumns) {
  EXPECT_EQ(TextTable({{"name", "x"}, {"a", "100"}}), "name    x\na     100\n");
  EXPECT_EQ(Grouped(1234567), "1,234,567");
  EXPECT_EQ(Grouped(-123), "-123");
  EXPECT_EQ(Percent(0.98765), "98.8%");
}

TEST(Report, MeansByCell) {
  const std::vector<TrialRecord> records = {
      Record("single", 4096, 0.0, 1.0, 1.0), Record("single", 4096, 0.0, 1.0, 0.0),
      Record("single", 4096, 0.5, 1.0, 1.0), Record("multi", 8192, 0.5, 0.0, 1.0)};
  const TrialSummary summary = Summarize(records);
  EXPECT_EQ(summary.trials, 4);
  EXPECT_DOUBLE_EQ(summary.dense, 0.75);
  EXPECT_DOUBLE_EQ(summary.sparse, 0.75);
  EXPECT_EQ(summary.worse, 1);
  EXPECT_DOUBLE_EQ(summary.page_share, 0.25);
  EXPECT_DOUBLE_EQ(summary.tile_share, 0.5);
  const std::string tables = TrialTables(records, GridLayout::kDepthByLength);
  EXPECT_THAT(tables, HasSubstr("single: score in %, dense / sparse"));
  EXPECT_THAT(tables, HasSubstr("100.0 / 50.0"));
  EXPECT_THAT(SummaryLines(records), HasSubstr("worse: single, 4,096 tokens, depth 0%"));
  EXPECT_THAT(TrialTables(records, GridLayout::kTaskByLength), HasSubstr("100.0 / 66.7"));
}

TEST(Report, RecordsThroughJson) {
  const TrialRecord record = Record("single", 4096, 0.5, 1.0, 0.25);
  const Result<TrialRecord> read = TrialFromJson(ToJson(record), "r");
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(WriteJson(ToJson(read.value())), WriteJson(ToJson(record)));
  Json broken = ToJson(record);
  broken.mutable_object()[0] = {"task", Json(3)};
  EXPECT_THAT(TrialFromJson(broken, "r").status().message(),
              HasSubstr("r: \"task\" is an integer"));
}

TEST(Report, JsonAndPicture) {
  const std::vector<TrialRecord> records = {Record("a<b>&\"c\"", 4096, 0.0, 1.0, 0.5)};
  EngineInfo info;
  info.model = "m & n";
  const TrialReport report{.eval = "niah",
                           .layout = GridLayout::kDepthByLength,
                           .settings = Json(Json::Object{}),
                           .complete = false};
  const Json json = TrialsToJson(records, report, info);
  EXPECT_EQ(json.Find("complete")->as_bool(), false);
  EXPECT_EQ(json.Find("cells")->as_array().size(), 1u);
  EXPECT_DOUBLE_EQ(json.Find("cells")->as_array()[0].Find("sparse")->as_double(), 0.5);
  const std::string svg = TrialsToSvg(records, report, info);
  EXPECT_TRUE(IsWellFormed(svg));
  EXPECT_THAT(svg, HasSubstr("m &amp; n"));
  EXPECT_THAT(svg, HasSubstr("(incomplete)"));
  // An empty run has a picture too.
  EXPECT_TRUE(IsWellFormed(TrialsToSvg({}, report, info)));
}

TEST(Report, HeatMapColoursFollowTheValue) {
  HeatMap map{.title = "t",
              .x_label = "x",
              .y_label = "y",
              .columns = {"a", "b", "c"},
              .rows = {"r"},
              .panels = {}};
  map.panels.push_back({"p", {{0.0, 1.0, std::nullopt}}});
  const std::string svg = DrawHeatMap(map);
  EXPECT_TRUE(IsWellFormed(svg));
  EXPECT_THAT(svg, HasSubstr("#b2182b"));  // 0
  EXPECT_THAT(svg, HasSubstr("#1b7851"));  // 1
  EXPECT_THAT(svg, HasSubstr("#eeeeee"));  // not measured
}

TEST(FidelityReport, MergesTextsAndDrawsCurves) {
  FidelityRun run;
  for (const char* text : {"a", "b"}) {
    for (const int budget : {256, 1024}) {
      FidelityRecord record{.text = text,
                            .ratio = 0.5,
                            .streaming_heads = 12,
                            .budget = budget,
                            .divergence = {},
                            .visited = 5,
                            .present = 20};
      record.divergence = {.positions = 10,
                           .same_top = budget == 256 ? 8 : 10,
                           .kl = 1.0,
                           .covered = 10.0,
                           .reference_loss = 20.0,
                           .loss = 21.0};
      run.records.push_back(record);
      const Result<FidelityRecord> read = FidelityFromJson(ToJson(record), "r");
      ASSERT_TRUE(read.ok());
      EXPECT_EQ(WriteJson(ToJson(read.value())), WriteJson(ToJson(record)));
    }
  }
  const std::string table = FidelityTable(run.records);
  EXPECT_THAT(table, HasSubstr("80.00%"));
  EXPECT_THAT(table, HasSubstr("0.10000"));  // KL: 2 / 20
  EXPECT_THAT(table, HasSubstr("7.389"));    // exp(40 / 20)
  EXPECT_THAT(table, HasSubstr("25.0%"));
  EXPECT_TRUE(IsWellFormed(FidelityToSvg(run, true)));
  EXPECT_EQ(FidelityToJson(run, Json(), true).Find("cells")->as_array().size(), 2u);
  EXPECT_TRUE(IsWellFormed(FidelityToSvg({}, false)));
}

}  // namespace
}  // namespace lserve
