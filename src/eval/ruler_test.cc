// The generators against RULER's published definitions: how many needles, distractors and answers,
// what is asked, that it fits; and that a seed gives the same text.
#include "eval/ruler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <regex>
#include <set>

#include "base/check.h"
#include "eval/niah.h"
#include "eval/words.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;
using ::testing::StartsWith;

constexpr const char kNeedle[] = "One of the special magic ";

int Count(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

RulerText Make(RulerTask task, int64_t hay, int64_t context = 4096, uint64_t seed = 7) {
  return MakeRulerText(task, {.hay = hay, .context = context}, RulerSource(), seed);
}

const Tokenizer& NeedleTokenizer() {
  static const std::unique_ptr<Tokenizer> tokenizer = [] {
    Result<std::unique_ptr<Tokenizer>> loaded = Tokenizer::Load(LS_SOURCE_DIR "/models/needle");
    LS_CHECK(loaded.ok()) << loaded.status().message();
    return std::move(loaded).value();
  }();
  return *tokenizer;
}

struct NiahCase {
  RulerTask task;
  int needles;      // hidden in the hay
  int hay_needles;  // hay that is made of needles, per unit
  size_t answers;
  const char* value;  // a regular expression
  const char* kind;   // as the question says
};

class RulerNiah : public ::testing::TestWithParam<NiahCase> {};

TEST_P(RulerNiah, HoldsWhatIsDefined) {
  const NiahCase& c = GetParam();
  constexpr int kHay = 60;
  const RulerText text = Make(c.task, kHay);
  EXPECT_EQ(Count(text.input, kNeedle), c.needles + c.hay_needles * kHay);
  EXPECT_THAT(text.answers, SizeIs(c.answers));
  for (const std::string& answer : text.answers) {
    EXPECT_TRUE(std::regex_match(answer, std::regex(c.value))) << answer;
    EXPECT_EQ(Count(text.input, answer + "."), 1) << answer;
  }
  EXPECT_EQ(std::set<std::string>(text.answers.begin(), text.answers.end()).size(), c.answers);
  const bool one = c.answers == 1;
  EXPECT_THAT(text.input, StartsWith(one ? "A special magic " : "Some special magic "));
  EXPECT_THAT(text.input, HasSubstr(one ? "What is the special magic " + std::string(c.kind)
                                        : "What are all the special magic " + std::string(c.kind)));
  EXPECT_THAT(text.answer_prefix, StartsWith(" The special magic " + std::string(c.kind)));
  EXPECT_TRUE(text.answer_prefix.ends_with(one ? " provided text is" : " provided text are"));
}

constexpr const char kNumber[] = "[1-9][0-9]{6}";
constexpr const char kUuid[] =
    "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}";
INSTANTIATE_TEST_SUITE_P(
    Tasks,
    RulerNiah,
    ::testing::Values(NiahCase{RulerTask::kNiahSingle1, 1, 0, 1, kNumber, "number "},
                      NiahCase{RulerTask::kNiahSingle2, 1, 0, 1, kNumber, "number "},
                      NiahCase{RulerTask::kNiahSingle3, 1, 0, 1, kUuid, "uuid "},
                      NiahCase{RulerTask::kNiahMultiKey1, 4, 0, 1, kNumber, "number "},
                      NiahCase{RulerTask::kNiahMultiKey2, 1, 1, 1, kNumber, "number "},
                      NiahCase{RulerTask::kNiahMultiKey3, 1, 1, 1, kUuid, "uuid "},
                      NiahCase{RulerTask::kNiahMultiValue, 4, 0, 4, kNumber, "numbers "},
                      NiahCase{RulerTask::kNiahMultiQuery, 4, 0, 4, kNumber, "numbers "}),
    [](const auto& c) { return std::string(Name(c.param.task)); });

TEST(RulerNiahText, FirstVariantHasTheNoiseSentences) {
  const RulerText text = Make(RulerTask::kNiahSingle1, 20);
  EXPECT_EQ(Count(text.input,
                  "The grass is green. The sky is blue. The sun is yellow. Here we go. "
                  "There and back again."),
            20);
}

TEST(RulerNiahText, MultiQueryAsksForEveryKey) {
  const RulerText text = Make(RulerTask::kNiahMultiQuery, 20);
  const size_t question = text.input.rfind("\nWhat are all");
  const std::string asked = text.input.substr(question);
  EXPECT_EQ(Count(asked, ","), 3);  // k, k, k, and k
  EXPECT_EQ(Count(asked, ", and "), 1);
}

TEST(RulerNiahText, DepthPlacesTheNeedle) {
  for (const double depth : {0.0, 0.3, 0.75, 1.0}) {
    const RulerText text =
        MakeRulerText(RulerTask::kNiahSingle2, {.hay = 400}, RulerSource(), 3, depth);
    const double at = static_cast<double>(text.input.find(kNeedle));
    EXPECT_NEAR(at / static_cast<double>(text.input.size()), depth, 0.05) << depth;
  }
}

TEST(RulerVariables, OneChainOfFourHops) {
  const RulerText text = Make(RulerTask::kVariableTracking, 30);
  ASSERT_THAT(text.answers, SizeIs(5));
  for (size_t i = 0; i < text.answers.size(); ++i) {
    EXPECT_TRUE(std::regex_match(text.answers[i], std::regex("[A-Z]{5}"))) << text.answers[i];
    if (i == 0) continue;
    EXPECT_EQ(Count(text.input, "VAR " + text.answers[i] + " = VAR " + text.answers[i - 1]), 1);
  }
  // In order, after the solved example, whose names have three letters.
  size_t last = text.input.rfind("Memorize and track");
  EXPECT_GT(last, size_t{0});
  for (const std::string& name : text.answers) {
    const size_t at = text.input.find("VAR " + name + " = ");
    EXPECT_GT(at, last);
    last = at;
  }
  std::smatch value;
  ASSERT_TRUE(std::regex_search(text.input, value,
                                std::regex("VAR " + text.answers[0] + " = ([0-9]{5})\n")));
  EXPECT_THAT(text.input,
              ::testing::EndsWith("assigned the value " + value[1].str() + " in the text above."));
  EXPECT_THAT(text.answer_prefix,
              HasSubstr(" 5 variables are assigned the value " + value[1].str()));
}

// Words and their counts in the list that is asked about, the second one.
std::map<std::string, int> WordCounts(const std::string& input) {
  const size_t begin = input.rfind("Below is a numbered list");
  const std::string list = input.substr(input.find('\n', begin) + 1);
  std::map<std::string, int> counts;
  const std::regex item("[0-9]+\\. ([a-z]+)");
  for (std::sregex_iterator at(list.begin(), list.end(), item), end; at != end; ++at) {
    ++counts[(*at)[1].str()];
  }
  return counts;
}

TEST(RulerWords, TenCommonWordsThirtyTimes) {
  for (const auto& [context, common, other] : {std::tuple(4096, 30, 3), std::tuple(2048, 6, 1)}) {
    const RulerText text = Make(RulerTask::kCommonWords, 100, context);
    ASSERT_THAT(text.answers, SizeIs(10));
    const std::map<std::string, int> counts = WordCounts(text.input);
    EXPECT_THAT(counts, SizeIs(100));
    for (const auto& [word, count] : counts) {
      const bool is_common =
          std::find(text.answers.begin(), text.answers.end(), word) != text.answers.end();
      EXPECT_EQ(count, is_common ? common : other) << word;
    }
    EXPECT_EQ(Count(text.input, "Answer: The top 10 words"), 1);  // the example's
  }
}

TEST(RulerWords, ThousandsAreDistinct) {
  Rng rng(1);
  const std::vector<std::string> words = DistinctWords(rng, 20000);
  EXPECT_EQ(std::set<std::string>(words.begin(), words.end()).size(), 20000u);
}

TEST(RulerFrequent, FollowsTheZetaDistribution) {
  constexpr int64_t kWords = 2000;
  const RulerText text = Make(RulerTask::kFrequentWords, kWords);
  ASSERT_THAT(text.answers, SizeIs(3));
  // Rank k has floor(n / (k^2 zeta(2))) words; rank 1 is the dots.
  const auto expected = [](int k) {
    return static_cast<int>(static_cast<double>(kWords) / (k * k) / 1.6449340668482264);
  };
  EXPECT_EQ(Count(text.input, " ..."), expected(1));
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(Count(text.input, text.answers[static_cast<size_t>(i)]), expected(i + 2));
    EXPECT_THAT(text.answers[static_cast<size_t>(i)], SizeIs(6));
  }
}

constexpr const char kSquad[] = R"({"data": [{"title": "t", "paragraphs": [
  {"context": "Anna lives in Oslo.", "qas": [
    {"question": "Where does Anna live?", "answers": [{"text": "Oslo"}, {"text": "in Oslo"}]},
    {"question": "Who is Bert?", "is_impossible": true, "answers": []}]},
  {"context": "The lake is deep.", "qas": []}, {"context": "Birds sing.", "qas": []}]}]})";

TEST(RulerQa, HidesTheParagraphAmongOthers) {
  RulerSource source;
  const Result<SquadData> data = ParseSquad(kSquad, "f");
  ASSERT_TRUE(data.ok()) << data.status().message();
  source.qa = data.value();
  EXPECT_THAT(source.qa.questions, SizeIs(1));  // the impossible one is left out
  EXPECT_THAT(source.qa.documents, SizeIs(3));
  const RulerText text = MakeRulerText(RulerTask::kQa, {.hay = 3}, source, 5);
  EXPECT_EQ(Count(text.input, "Anna lives in Oslo."), 1);
  EXPECT_EQ(Count(text.input, "Document "), 3);
  EXPECT_THAT(text.input, HasSubstr("Question: Where does Anna live?"));
  EXPECT_TRUE(text.any_answer);
  EXPECT_THAT(text.answers, SizeIs(2));
}

TEST(RulerQa, BadFilesAreNamed) {
  for (const auto& [text, part] :
       {std::pair("[1", "f: is no JSON"), std::pair("{}", "\"data\" of the file is missing"),
        std::pair(R"({"data": [{"paragraphs": [{"context": 3}]}]})",
                  "\"context\" of data[0].paragraphs[0] is an integer"),
        std::pair(R"({"data": []})", "has no question")}) {
    const Result<SquadData> data = ParseSquad(text, "f");
    ASSERT_FALSE(data.ok()) << text;
    EXPECT_THAT(data.status().message(), HasSubstr(part));
  }
}

TEST(RulerFill, FillsTheContextAndNeverMore) {
  RulerSource source;
  source.qa = ParseSquad(kSquad, "f").value();
  for (const RulerTask task : kRulerTasks) {
    for (const int64_t length : {2048, 5000}) {
      const Result<RulerSample> sample = FillContext(NeedleTokenizer(), task, length, source, 11);
      ASSERT_TRUE(sample.ok()) << Name(task) << ": " << sample.status().message();
      const int64_t used =
          static_cast<int64_t>(sample.value().tokens.size()) + TokensToGenerate(task);
      EXPECT_LE(used, length) << Name(task);
      // One more sentence, document or noise would not fit: they have fewer than 100 tokens. A step
      // of the frequent words adds at most the 8 most frequent.
      EXPECT_GT(used, length - 100) << Name(task);
    }
  }
}

TEST(RulerFill, TooShortIsAnError) {
  const Result<RulerSample> sample =
      FillContext(NeedleTokenizer(), RulerTask::kVariableTracking, 256, RulerSource(), 1);
  ASSERT_FALSE(sample.ok());
  EXPECT_THAT(sample.status().message(), HasSubstr("got 256 tokens for vt, expected at least "));
}

TEST(RulerTrials, DeterministicBySeed) {
  RulerSource source;
  source.qa = ParseSquad(kSquad, "f").value();
  for (const RulerTask task : kRulerTasks) {
    const auto input = [&](uint64_t seed) {
      return MakeRulerText(task, {.hay = 110}, source, seed).input;
    };
    EXPECT_EQ(input(1), input(1)) << Name(task);
    if (task != RulerTask::kQa) {
      EXPECT_NE(input(1), input(2)) << Name(task);
    }
  }
  EXPECT_NE(CellSeed(1, "vt", 4096, 0), CellSeed(1, "vt", 4096, 1));
  EXPECT_NE(CellSeed(1, "vt", 4096, 0), CellSeed(1, "vt", 8192, 0));
  EXPECT_NE(CellSeed(1, "vt", 4096, 0), CellSeed(1, "cwe", 4096, 0));
}

TEST(Haystack, AUsersTextIsCutIntoSentencesAndRepeats) {
  const Result<Haystack> hay = Haystack::FromText("One two.  Three?\nFour 3.5 five! Six", "f");
  ASSERT_TRUE(hay.ok());
  EXPECT_THAT(hay.value().Sentences(5, 0),
              ::testing::ElementsAre("One two.", "Three?", "Four 3.5 five!", "Six", "One two."));
  EXPECT_FALSE(Haystack::FromText(" \n ", "f").ok());
}

TEST(Niah, NeedleWordingFitsAndScoresByValues) {
  for (const NiahKind kind : kNiahKinds) {
    for (const double depth : {0.0, 0.4, 1.0}) {
      for (uint64_t seed = 1; seed < 6; ++seed) {
        const Result<TrialPrompt> prompt =
            MakeNeedleTrial(NeedleTokenizer(), kind, 2048, depth, seed);
        ASSERT_TRUE(prompt.ok()) << prompt.status().message();
        const int64_t used =
            static_cast<int64_t>(prompt.value().tokens.size()) + prompt.value().max_tokens;
        EXPECT_LE(used, 2048);
        EXPECT_GT(used, 2048 - 100);
        EXPECT_EQ(prompt.value().score(prompt.value().expected[0]), 1.0);
        EXPECT_EQ(prompt.value().score("The pass key is 12."), 0.0);
      }
    }
  }
  EXPECT_FALSE(MakeNeedleTrial(NeedleTokenizer(), NiahKind::kSingle, 110, 0.5, 1).ok());
}

}  // namespace
}  // namespace lserve
