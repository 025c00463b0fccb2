// Where an answer was read: the fact that was asked for stands in the first passage, with the bytes
// it has in its file.
#include "apps/explanation.h"

#include <gmock/gmock.h>

#include "tests/retrieval/retrieval.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

// Answers one question and says where it was read.
std::vector<Passage> Explained(Engine& engine,
                               const Documents& documents,
                               const NeedleQuestion& question,
                               int budget = 4096) {
  Request request;
  request.attention = SparseAttention(budget);
  request.prompt =
      MakePrompt(*engine.tokenizer(), {.document = documents.text, .system = {}, .date = {}},
                 question.question)
          .value();
  request.sampling.temperature = 0;
  request.max_tokens = 40;
  const PromptMap map = PromptMap::Make(engine.tokenizer(), request.prompt, documents).value();
  Reading reading(static_cast<int64_t>(request.prompt.size()), map.first(), map.last());
  request.on_attention = [&](const AttentionView& view) { return reading.Observe(view); };
  const Answer answer = AnswerOne(engine, std::move(request)).value();
  EXPECT_TRUE(HasSameValues(answer.text, question.answer)) << answer.text;
  return map.Passages(reading.Parts(5));
}

// The value of "The access code for K is V."
std::string ValueOf(const NeedleQuestion& question) {
  const size_t last = question.answer.find_last_of("0123456789");
  const size_t first = question.answer.find_last_not_of("0123456789", last) + 1;
  return question.answer.substr(first, last + 1 - first);
}

TEST(Explanation, TheFactIsInTheFirstPassage) {
  const std::unique_ptr<Engine> engine = MakeNeedleEngine("auto");
  const NeedleDocument needle =
      MakeNeedleDocument(*engine->tokenizer(), {.num_tokens = 1000, .seed = 11}).value();
  const Documents documents{
      needle.text, {{.source = "a.txt", .begin = 0, .end = needle.text.size(), .skipped = 3}}};
  for (size_t i = 0; i < needle.questions.size(); ++i) {
    const NeedleQuestion& question = needle.questions[i];
    const int budget = i % 2 == 0 ? 512 : 4096;  // lists are selected; everything is read
    const std::vector<Passage> passages = Explained(*engine, documents, question, budget);
    ASSERT_FALSE(passages.empty());
    const Passage& first = passages[0];
    EXPECT_THAT(first.text, HasSubstr(ValueOf(question))) << question.question;
    EXPECT_EQ(first.source, "a.txt");
    EXPECT_EQ(needle.text.substr(*first.begin - 3, *first.end - *first.begin), first.text);
    EXPECT_LT(first.text.size(), needle.text.size() / 4);
    EXPECT_GT(first.weight, 0.5) << question.question;
    double sum = 0;
    for (const Passage& passage : passages) sum += passage.weight;
    EXPECT_LE(sum, 1.0 + 1e-9);
  }
}

TEST(Explanation, NamesTheDocument) {
  const std::unique_ptr<Engine> engine = MakeNeedleEngine("auto");
  Documents documents;
  std::vector<NeedleQuestion> questions;
  for (const uint64_t seed : {21, 22, 23}) {
    const NeedleDocument needle =
        MakeNeedleDocument(*engine->tokenizer(),
                           {.num_tokens = 400, .seed = seed, .depths = {0.5}, .num_distractors = 1})
            .value();
    if (!documents.text.empty()) documents.text += "\n\n";
    // A template may trim the blank lines at the top.
    const std::string text = (seed == 21 ? "\n\n" : "") + needle.text;
    documents.parts.push_back({.source = std::to_string(seed),
                               .begin = documents.text.size(),
                               .end = documents.text.size() + text.size()});
    documents.text += text;
    questions.push_back(needle.questions[0]);
  }
  for (size_t i = 0; i < questions.size(); ++i) {
    const std::vector<Passage> passages = Explained(*engine, documents, questions[i]);
    ASSERT_FALSE(passages.empty());
    const DocumentPart& part = documents.parts[i];
    EXPECT_EQ(passages[0].source, part.source);
    EXPECT_THAT(passages[0].text, HasSubstr(ValueOf(questions[i])));
    EXPECT_EQ(documents.text.substr(part.begin + *passages[0].begin, passages[0].text.size()),
              passages[0].text);
  }
}

TEST(Explanation, WithoutATokenizerThereAreTokens) {
  const PromptMap map = PromptMap::Make(nullptr, std::vector<int32_t>(300, 1), {}).value();
  EXPECT_EQ(map.first(), 0);
  EXPECT_EQ(map.last(), 300);
  const std::vector<Passage> passages = map.Passages({{64, 128, 0.5}});
  ASSERT_THAT(passages, SizeIs(1));
  EXPECT_EQ(passages[0].first_token, 64);
  EXPECT_EQ(passages[0].begin, std::nullopt);
  EXPECT_THAT(PassagesText(passages), HasSubstr("50% in the prompt, tokens 64 to 128"));
}

}  // namespace
}  // namespace lserve
