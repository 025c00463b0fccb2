// Rows, prompts, truncation and the choice of metric of LongBench.
#include "eval/longbench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/check.h"
#include "eval/chat_prompt.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;

constexpr const char kRow[] =
    R"({"input": "Who?", "context": "Anna did it.", "answers": ["Anna"], "length": 3, )"
    R"("dataset": "hotpotqa", "language": "en", "all_classes": null, "_id": "x1"})";

const Tokenizer& NeedleTokenizer() {
  static const std::unique_ptr<Tokenizer> tokenizer = [] {
    Result<std::unique_ptr<Tokenizer>> loaded = Tokenizer::Load(LS_SOURCE_DIR "/models/needle");
    LS_CHECK(loaded.ok()) << loaded.status().message();
    return std::move(loaded).value();
  }();
  return *tokenizer;
}

class Folder {
 public:
  Folder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "lserve_lb_XXXXXX").string();
    LS_CHECK(mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  void Write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ / name, std::ios::binary) << text;
  }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

TEST(LongBench, DefinesTwentyOneDatasets) {
  EXPECT_EQ(LongBenchDatasets().size(), 21u);
  for (const LongBenchDataset& dataset : LongBenchDatasets()) {
    EXPECT_THAT(dataset.prompt, HasSubstr("{context}")) << dataset.name;
    EXPECT_GE(dataset.max_tokens, 32);
  }
  EXPECT_EQ(FindLongBenchDataset("hotpotqa_e"), FindLongBenchDataset("hotpotqa"));
  EXPECT_EQ(FindLongBenchDataset("squad"), nullptr);
}

TEST(LongBench, ReadsARow) {
  const Result<LongBenchRow> row = ParseLongBenchRow(kRow, "f: line 1");
  ASSERT_TRUE(row.ok()) << row.status().message();
  EXPECT_EQ(row.value().input, "Who?");
  EXPECT_EQ(row.value().answers, std::vector<std::string>{"Anna"});
  EXPECT_EQ(row.value().length, 3);
}

TEST(LongBench, NamesTheFieldThatIsWrong) {
  for (const char* field : {"input", "context", "answers", "length", "all_classes", "_id"}) {
    std::string text = kRow;
    text.replace(text.find("\"" + std::string(field)), 2, "\"q");
    const Result<LongBenchRow> row = ParseLongBenchRow(text, "f: line 7");
    ASSERT_FALSE(row.ok()) << field;
    EXPECT_THAT(row.status().message(), HasSubstr("f: line 7: \"" + std::string(field)));
    EXPECT_THAT(row.status().message(), HasSubstr("is missing, expected"));
  }
  EXPECT_FALSE(ParseLongBenchRow("{\"input\"", "f").ok());
  EXPECT_FALSE(ParseLongBenchRow("[]", "f").ok());
}

TEST(LongBench, PromptIsFilledAndLosesItsMiddle) {
  LongBenchRow row;
  row.input = "What is {context}?";  // braces of the data are data
  for (int i = 0; i < 500; ++i) row.context += "word" + std::to_string(i) + " ";
  const LongBenchDataset& dataset = *FindLongBenchDataset("multifieldqa_en");
  const std::string whole = LongBenchPrompt(NeedleTokenizer(), dataset, row, 1 << 20).value();
  EXPECT_THAT(whole, HasSubstr("Question: What is {context}?\nAnswer:"));
  const std::string cut = LongBenchPrompt(NeedleTokenizer(), dataset, row, 200).value();
  EXPECT_LE(PlainTokens(NeedleTokenizer(), cut).value().size(), 202u);  // a seam may split anew
  EXPECT_EQ(cut.substr(0, 60), whole.substr(0, 60));
  EXPECT_EQ(cut.substr(cut.size() - 60), whole.substr(whole.size() - 60));
  EXPECT_THAT(cut, HasSubstr("word1 "));
  EXPECT_EQ(cut.find("word250"), std::string::npos);
}

TEST(LongBench, BestOfTheAnswersByTheDatasetsMetric) {
  LongBenchRow row;
  row.answers = {"red", "blue sky"};
  row.classes = {"red", "blue"};
  EXPECT_DOUBLE_EQ(ScoreLongBench(*FindLongBenchDataset("qasper"), row, "The blue sky"), 1.0);
  // Few-shot tasks are scored by their first line.
  EXPECT_DOUBLE_EQ(ScoreLongBench(*FindLongBenchDataset("triviaqa"), row, "\nred\nQuestion: x"),
                   1.0);
  EXPECT_LT(ScoreLongBench(*FindLongBenchDataset("qasper"), row, "\nred\nQuestion: x"), 0.6);
  EXPECT_DOUBLE_EQ(ScoreLongBench(*FindLongBenchDataset("trec"), row, "red or blue"), 0.5);
  row.answers = {"Paragraph 4"};
  EXPECT_DOUBLE_EQ(
      ScoreLongBench(*FindLongBenchDataset("passage_retrieval_en"), row, "Paragraph 4"), 1.0);
  row.answers = {"3"};
  EXPECT_DOUBLE_EQ(ScoreLongBench(*FindLongBenchDataset("passage_count"), row, "3"), 1.0);
}

TEST(LongBench, TrialsOfAFolder) {
  const Folder folder;
  folder.Write("hotpotqa.jsonl", std::string(kRow) + "\n" + kRow + "\n");
  folder.Write("lcc.jsonl", std::string(kRow) + "\n");
  folder.Write("notes.jsonl", "not a dataset");
  LongBenchOptions options{
      .directory = folder.path(), .datasets = {}, .samples = 0, .max_prompt_tokens = 4096};
  Result<std::vector<TrialSpec>> specs = LongBenchTrials(NeedleTokenizer(), options);
  ASSERT_TRUE(specs.ok()) << specs.status().message();
  ASSERT_EQ(specs.value().size(), 3u);
  EXPECT_EQ(specs.value()[0].task, "hotpotqa");
  EXPECT_EQ(specs.value()[2].task, "lcc");
  const Result<TrialPrompt> prompt = specs.value()[0].make();
  ASSERT_TRUE(prompt.ok());
  EXPECT_EQ(prompt.value().max_tokens, 32);
  EXPECT_EQ(prompt.value().score("Anna"), 1.0);

  options.samples = 1;
  EXPECT_EQ(LongBenchTrials(NeedleTokenizer(), options).value().size(), 2u);
  options.datasets = {"squad"};
  EXPECT_THAT(LongBenchTrials(NeedleTokenizer(), options).status().message(),
              HasSubstr("got \"squad\", expected a dataset of LongBench"));
  options.datasets = {"qasper"};
  EXPECT_FALSE(LongBenchTrials(NeedleTokenizer(), options).ok());  // not there
  folder.Write("qasper.jsonl", std::string(kRow) + "\n{\"input\": \"cut");
  options.samples = 0;
  EXPECT_THAT(LongBenchTrials(NeedleTokenizer(), options).status().message(),
              HasSubstr("qasper.jsonl: line 2 is no JSON object"));
}

}  // namespace
}  // namespace lserve
