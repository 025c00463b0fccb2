#include "eval/ruler_tasks.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <set>
#include <utility>

#include "base/check.h"
#include "base/rng.h"
#include "base/strings.h"
#include "eval/words.h"

namespace lserve {
namespace {

constexpr const char* kNames[] = {"niah_single_1",
                                  "niah_single_2",
                                  "niah_single_3",
                                  "niah_multikey_1",
                                  "niah_multikey_2",
                                  "niah_multikey_3",
                                  "niah_multivalue",
                                  "niah_multiquery",
                                  "vt",
                                  "cwe",
                                  "fwe",
                                  "qa"};

constexpr const char kNoiseText[] =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

// Streams of random numbers that do not disturb one another: with another size of hay the needles
// stay the same, so that the text grows evenly.
constexpr uint64_t kHayStream = 0x68617973u;
constexpr uint64_t kOrderStream = 0x6f726465u;

enum class Hay { kNoise, kEssay, kNeedles };
enum class Kind { kWords, kNumbers, kUuids };

struct NiahForm {
  Hay hay;
  Kind key;
  Kind value;
  int num_keys = 1;
  int num_values = 1;   // of each key
  int num_queries = 1;  // keys that are asked for
};

NiahForm FormOf(RulerTask task) {
  switch (task) {
    case RulerTask::kNiahSingle1:
      return {.hay = Hay::kNoise, .key = Kind::kWords, .value = Kind::kNumbers};
    case RulerTask::kNiahSingle2:
      return {.hay = Hay::kEssay, .key = Kind::kWords, .value = Kind::kNumbers};
    case RulerTask::kNiahSingle3:
      return {.hay = Hay::kEssay, .key = Kind::kWords, .value = Kind::kUuids};
    case RulerTask::kNiahMultiKey1:
      return {.hay = Hay::kEssay, .key = Kind::kWords, .value = Kind::kNumbers, .num_keys = 4};
    case RulerTask::kNiahMultiKey2:
      return {.hay = Hay::kNeedles, .key = Kind::kWords, .value = Kind::kNumbers};
    case RulerTask::kNiahMultiKey3:
      return {.hay = Hay::kNeedles, .key = Kind::kUuids, .value = Kind::kUuids};
    case RulerTask::kNiahMultiValue:
      return {.hay = Hay::kEssay, .key = Kind::kWords, .value = Kind::kNumbers, .num_values = 4};
    case RulerTask::kNiahMultiQuery:
      return {.hay = Hay::kEssay,
              .key = Kind::kWords,
              .value = Kind::kNumbers,
              .num_keys = 4,
              .num_queries = 4};
    default:
      LS_CHECK(false) << "not a NIAH task: " << Name(task);
      return {};
  }
}

std::string Draw(Kind kind, Rng& rng) {
  switch (kind) {
    case Kind::kWords:
      return RandomAdjectiveNoun(rng);
    case Kind::kNumbers:
      return RandomNumber(rng, 7);
    case Kind::kUuids:
      return RandomUuid(rng);
  }
  return "";
}

std::string_view Plural(Kind kind) {
  return kind == Kind::kNumbers ? "numbers" : kind == Kind::kUuids ? "uuids" : "words";
}

std::string NeedleSentence(Kind value_kind, const std::string& key, const std::string& value) {
  return StrCat("One of the special magic ", Plural(value_kind), " for ", key, " is: ", value, ".");
}

struct Needle {
  std::string text;
  double depth = 0.0;
};

std::string Joined(const std::vector<std::string>& items, std::string_view separator) {
  std::string text;
  for (const std::string& item : items) {
    if (!text.empty()) text += separator;
    text += item;
  }
  return text;
}

// The hay with each needle after the share of sentences that its depth says.
std::string Hide(std::vector<Needle> needles,
                 const std::vector<std::string>& hay,
                 std::string_view separator) {
  std::stable_sort(needles.begin(), needles.end(),
                   [](const Needle& a, const Needle& b) { return a.depth < b.depth; });
  std::vector<std::string> sentences;
  size_t next = 0;
  for (size_t i = 0; i <= hay.size(); ++i) {
    while (next < needles.size() &&
           static_cast<size_t>(needles[next].depth * static_cast<double>(hay.size())) <= i) {
      sentences.push_back(needles[next++].text);
    }
    if (i < hay.size()) sentences.push_back(hay[i]);
  }
  return Joined(sentences, separator);
}

// Of 40 depths from 0 to 100%, none twice.
std::vector<double> RandomDepths(size_t count, Rng& rng) {
  constexpr int kNumDepths = 40;
  std::vector<double> depths;
  for (int i = 0; i < kNumDepths; ++i) {
    depths.push_back(std::round(100.0 * i / (kNumDepths - 1)) / 100.0);
  }
  Shuffle(depths, rng);
  LS_CHECK_LE(count, depths.size());
  depths.resize(count);
  return depths;
}

std::string QueryOf(const std::vector<std::string>& keys) {
  if (keys.size() == 1) return keys[0];
  const std::vector<std::string> first(keys.begin(), keys.end() - 1);
  return StrCat(Joined(first, ", "), ", and ", keys.back());
}

RulerText MakeNiah(const NiahForm& form,
                   const RulerSize& size,
                   const Haystack& essay,
                   uint64_t seed,
                   std::optional<double> depth) {
  Rng rng(seed);
  std::set<std::string> keys_seen;
  std::vector<std::string> keys;
  while (static_cast<int>(keys.size()) < form.num_keys) {
    std::string key = Draw(form.key, rng);
    if (keys_seen.insert(key).second) keys.push_back(std::move(key));
  }
  // The first keys are asked for: they are random already.
  RulerText text;
  std::vector<Needle> needles;
  const size_t num_needles = keys.size() * static_cast<size_t>(form.num_values);
  const std::vector<double> depths = RandomDepths(num_needles, rng);
  const int num_asked = form.num_queries * form.num_values;
  for (size_t k = 0; k < keys.size(); ++k) {
    for (int v = 0; v < form.num_values; ++v) {
      const std::string value = Draw(form.value, rng);
      Needle needle{NeedleSentence(form.value, keys[k], value), depths[needles.size()]};
      if (static_cast<int>(k) < form.num_queries) {
        if (depth) {
          const double share = static_cast<double>(text.answers.size()) / num_asked;
          const double at = *depth + share;
          needle.depth = share > 0.0 && at >= 1.0 ? at - 1.0 : at;
        }
        text.answers.push_back(value);
      }
      needles.push_back(std::move(needle));
    }
  }

  std::vector<std::string> hay;
  if (form.hay == Hay::kEssay) {
    hay = essay.Sentences(size.hay, seed ^ kHayStream);
  } else {
    Rng hay_rng(seed ^ kHayStream);
    for (int64_t i = 0; i < size.hay; ++i) {
      if (form.hay == Hay::kNoise) {
        hay.emplace_back(kNoiseText);
        continue;
      }
      std::string key = Draw(form.key, hay_rng);
      while (keys_seen.contains(key)) key = Draw(form.key, hay_rng);
      hay.push_back(NeedleSentence(form.value, key, Draw(form.value, hay_rng)));
    }
  }
  const std::string context = Hide(std::move(needles), hay, form.hay == Hay::kEssay ? " " : "\n");

  const std::string query = QueryOf({keys.begin(), keys.begin() + form.num_queries});
  const bool one = num_asked == 1;
  std::string kind(Plural(form.value));
  if (one) kind.pop_back();
  const std::string fact =
      StrCat("special magic ", kind, " for ", query, " mentioned in the provided text");
  text.input = StrCat(one ? "A" : "Some", " special magic ", kind, one ? " is" : " are",
                      " hidden within the following text. Make sure to memorize it. I will quiz "
                      "you about the ",
                      kind, " afterwards.\n", context, "\nWhat ", one ? "is" : "are all", " the ",
                      fact, "?");
  text.answer_prefix = StrCat(" The ", fact, one ? " is" : " are");
  return text;
}

constexpr int kHops = 4;

struct Chain {
  std::vector<std::string> variables;
  std::vector<std::string> lines;
  std::string value;
};

Chain MakeChain(Rng& rng, int letters) {
  Chain chain;
  std::set<std::string> seen;
  while (static_cast<int>(chain.variables.size()) < kHops + 1) {
    std::string name = RandomLetters(rng, letters, 'A');
    if (seen.insert(name).second) chain.variables.push_back(std::move(name));
  }
  chain.value = RandomNumber(rng, 5);
  chain.lines.push_back(StrCat("VAR ", chain.variables[0], " = ", chain.value));
  for (size_t i = 1; i < chain.variables.size(); ++i) {
    chain.lines.push_back(
        StrCat("VAR ", chain.variables[i], " = VAR ", chain.variables[i - 1], " "));
  }
  return chain;
}

RulerText ChainText(const Chain& chain, int64_t num_noises, uint64_t seed) {
  Rng rng(seed ^ kOrderStream);
  std::vector<double> depths;
  for (size_t i = 0; i < chain.lines.size(); ++i) depths.push_back(rng.NextDouble());
  std::sort(depths.begin(), depths.end());
  std::vector<Needle> needles;
  for (size_t i = 0; i < chain.lines.size(); ++i) needles.push_back({chain.lines[i], depths[i]});
  const std::vector<std::string> hay(static_cast<size_t>(num_noises), kNoiseText);
  RulerText text;
  text.input = StrCat(
      "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n",
      Hide(std::move(needles), hay, "\n"),
      "\nQuestion: Find all variables that are assigned the value ", chain.value,
      " in the text above.");
  text.answer_prefix = StrCat(
      " Answer: According to the chain(s) of variable assignment in the text above, ",
      chain.variables.size(), " variables are assigned the value ", chain.value, ", they are: ");
  text.answers = chain.variables;
  return text;
}

RulerText MakeVariableTracking(const RulerSize& size, uint64_t seed) {
  Rng rng(seed);
  // A solved example, short, with names of three letters, comes first.
  constexpr int64_t kExampleNoises = 5;
  const Chain example_chain = MakeChain(rng, 3);
  const RulerText example = ChainText(example_chain, kExampleNoises, seed + 1);
  RulerText text = ChainText(MakeChain(rng, 5), size.hay, seed);
  text.input = StrCat(example.input, example.answer_prefix, " ", Joined(example.answers, " "),
                      "\n\n", text.input);
  return text;
}

// `common` words `common_repeats` times each and the others `other_repeats` times, in random order.
struct WordList {
  std::string numbered;
  std::vector<std::string> common;
};

constexpr int kCommonWords = 10;

std::string Numbered(const std::vector<std::string>& words) {
  std::string text;
  for (size_t i = 0; i < words.size(); ++i) {
    text += StrCat(i == 0 ? "" : " ", i + 1, ". ", words[i]);
  }
  return text;
}

WordList MakeWordList(int64_t num_words, int common_repeats, int other_repeats, uint64_t seed) {
  Rng rng(seed);
  const std::vector<std::string> words = DistinctWords(rng, num_words);
  std::vector<std::string> all;
  for (size_t i = 0; i < words.size(); ++i) {
    const int repeats = i < kCommonWords ? common_repeats : other_repeats;
    for (int r = 0; r < repeats; ++r) all.push_back(words[i]);
  }
  Rng order(seed ^ kOrderStream);
  Shuffle(all, order);
  return {Numbered(all), {words.begin(), words.begin() + kCommonWords}};
}

std::string CommonWordsQuestion(const std::string& numbered) {
  return StrCat(
      "Below is a numbered list of words. In these words, some appear more often than others. "
      "Memorize the ones that appear most often.\n",
      numbered, "\nQuestion: What are the 10 most common words in the above list?");
}

RulerText MakeCommonWords(const RulerSize& size, uint64_t seed) {
  // Short contexts have fewer repeats, as published.
  const bool is_short = size.context < 4096;
  const WordList example =
      is_short ? MakeWordList(20, 3, 1, seed + 1) : MakeWordList(40, 10, 3, seed + 1);
  const WordList list =
      is_short ? MakeWordList(size.hay, 6, 1, seed) : MakeWordList(size.hay, 30, 3, seed);
  RulerText text;
  text.answer_prefix = " Answer: The top 10 words that appear most often in the list are:";
  text.input = StrCat(CommonWordsQuestion(example.numbered), text.answer_prefix, " ",
                      Numbered(example.common), "\n", CommonWordsQuestion(list.numbered));
  text.answers = list.common;
  return text;
}

RulerText MakeFrequentWords(const RulerSize& size, uint64_t seed) {
  constexpr double kZeta2 = std::numbers::pi * std::numbers::pi / 6.0;  // alpha is 2
  const int64_t vocabulary =
      std::max<int64_t>(8, (size.context - TokensToGenerate(RulerTask::kFrequentWords)) / 50);
  Rng rng(seed);
  std::set<std::string> seen;
  std::vector<std::string> coded = {"..."};  // the most frequent is noise
  while (static_cast<int64_t>(coded.size()) < vocabulary) {
    std::string word = RandomLetters(rng, 6, 'a');
    if (seen.insert(word).second) coded.push_back(std::move(word));
  }
  std::vector<std::string> words;
  for (size_t rank = 0; rank < coded.size(); ++rank) {
    const double k = static_cast<double>(rank + 1);
    const int64_t count = static_cast<int64_t>(static_cast<double>(size.hay) / (k * k) / kZeta2);
    words.insert(words.end(), static_cast<size_t>(count), coded[rank]);
  }
  Rng order(seed ^ kOrderStream);
  Shuffle(words, order);
  RulerText text;
  text.input = StrCat(
      "Read the following coded text and track the frequency of each coded word. Find the three "
      "most frequently appeared coded words. ",
      Joined(words, " "),
      "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the "
      "three most frequently appeared words in the above coded text?");
  text.answer_prefix =
      " Answer: According to the coded text above, the three most frequently appeared words are:";
  text.answers = {coded.begin() + 1, coded.begin() + 4};
  return text;
}

RulerText MakeQa(const RulerSize& size, const SquadData& data, uint64_t seed) {
  LS_CHECK(!data.questions.empty());
  Rng rng(seed);
  const SquadQuestion& question = data.questions[rng.NextBelow(data.questions.size())];
  std::vector<size_t> others;
  for (size_t i = 0; i < data.documents.size(); ++i) {
    if (i != question.document) others.push_back(i);
  }
  Rng order(seed ^ kOrderStream);
  Shuffle(others, order);
  // Few documents begin again, as published.
  std::vector<size_t> chosen = {question.document};
  for (size_t i = 0; static_cast<int64_t>(chosen.size()) < size.hay && !others.empty(); ++i) {
    chosen.push_back(others[i % others.size()]);
  }
  Shuffle(chosen, order);
  std::vector<std::string> documents;
  for (size_t i = 0; i < chosen.size(); ++i) {
    documents.push_back(StrCat("Document ", i + 1, ":\n", data.documents[chosen[i]]));
  }
  constexpr const char kTask[] =
      "Answer the question based on the given documents. Only give me the answer and do not output "
      "any other words.";
  RulerText text;
  text.input =
      StrCat(kTask, "\n\nThe following are given documents.\n\n", Joined(documents, "\n\n"), "\n\n",
             kTask, "\n\nQuestion: ", question.question);
  text.answer_prefix = " Answer:";
  text.answers = question.answers;
  text.any_answer = true;
  return text;
}

}  // namespace

std::string_view Name(RulerTask task) {
  return kNames[static_cast<size_t>(task)];
}

std::optional<RulerTask> ParseRulerTask(std::string_view name) {
  for (const RulerTask task : kRulerTasks) {
    if (Name(task) == name) return task;
  }
  return std::nullopt;
}

int64_t TokensToGenerate(RulerTask task) {
  switch (task) {
    case RulerTask::kVariableTracking:
      return 30;
    case RulerTask::kCommonWords:
      return 120;
    case RulerTask::kFrequentWords:
      return 50;
    case RulerTask::kQa:
      return 32;
    default:
      return 128;
  }
}

int64_t LeastHay(RulerTask task) {
  switch (task) {
    case RulerTask::kCommonWords:
      return kCommonWords + 10;
    case RulerTask::kFrequentWords:
      return 100;  // ranks 2 to 5 differ in count from here on
    default:
      return 1;
  }
}

RulerText MakeRulerText(RulerTask task,
                        const RulerSize& size,
                        const RulerSource& source,
                        uint64_t seed,
                        std::optional<double> depth) {
  LS_CHECK_GE(size.hay, LeastHay(task));
  switch (task) {
    case RulerTask::kVariableTracking:
      return MakeVariableTracking(size, seed);
    case RulerTask::kCommonWords:
      return MakeCommonWords(size, seed);
    case RulerTask::kFrequentWords:
      return MakeFrequentWords(size, seed);
    case RulerTask::kQa:
      return MakeQa(size, source.qa, seed);
    default:
      return MakeNiah(FormOf(task), size, source.essay, seed, depth);
  }
}

}  // namespace lserve
