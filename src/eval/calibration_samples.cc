#include "eval/calibration_samples.h"

#include <algorithm>
#include <utility>

#include "base/strings.h"
#include "eval/chat_prompt.h"
#include "eval/filler_text.h"
#include "eval/needle_document.h"

namespace lserve {
namespace {

constexpr int kPositionsOfText = 64;

int64_t CommonLength(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  const auto [at, other] = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  return at - a.begin();
}

NeedleOptions DocumentOptions(const PasskeyOptions& options, int document) {
  NeedleOptions needle;
  needle.seed = options.seed * 1000003 + static_cast<uint64_t>(document);
  needle.depths.clear();
  for (int i = 0; i < options.questions; ++i) {
    needle.depths.push_back((static_cast<double>(i) + 0.5) / options.questions);
  }
  needle.num_distractors = 4;
  return needle;
}

Result<std::vector<CalibrationSample>> SamplesOf(const Tokenizer& tokenizer,
                                                 const NeedleDocument& document,
                                                 const std::string& name) {
  std::vector<CalibrationSample> samples;
  for (const NeedleQuestion& question : document.questions) {
    CalibrationSample sample{.name = StrCat(name, ", question ", samples.size() + 1),
                             .prompt = {},
                             .answer = {},
                             .positions = {},
                             .is_question = true};
    sample.prompt = LS_TRY(EvalPrompt(tokenizer, StrCat(document.text, "\n\n", question.question)));
    sample.answer = LS_TRY(PlainTokens(tokenizer, question.answer));
    const int64_t first = static_cast<int64_t>(sample.prompt.size()) - 1;
    for (int64_t i = 0; i < static_cast<int64_t>(sample.answer.size()); ++i) {
      sample.positions.push_back(first + i);
    }
    samples.push_back(std::move(sample));
  }
  for (size_t i = 0; i + 1 < samples.size(); ++i) {
    samples[i].shared_prefix = CommonLength(samples[i].prompt, samples[i + 1].prompt);
  }
  return samples;
}

}  // namespace

Result<std::vector<CalibrationSample>> PasskeySamples(const Tokenizer& tokenizer,
                                                      const PasskeyOptions& options) {
  std::vector<CalibrationSample> all;
  for (int i = 0; i < options.documents; ++i) {
    NeedleOptions needle = DocumentOptions(options, i);
    needle.num_tokens = options.length;
    std::vector<CalibrationSample> samples;
    // Template, question and answer come on top, and sentences are counted one by one.
    for (int attempt = 0; attempt < 8 && needle.num_tokens > 0; ++attempt) {
      const NeedleDocument document = LS_TRY(MakeNeedleDocument(tokenizer, needle));
      if (document.text.empty()) break;  // no room for a sentence between the facts
      samples = LS_TRY(SamplesOf(tokenizer, document, StrCat("passkey document ", i + 1)));
      int64_t longest = 0;
      for (const CalibrationSample& sample : samples) longest = std::max(longest, sample.size());
      if (longest <= options.length) break;
      constexpr int64_t kSentence = 16;
      needle.num_tokens -= longest - options.length + kSentence * attempt;
      samples.clear();
    }
    if (samples.empty()) {
      return Status(
          Code::kInvalidArgument,
          StrCat("--length: got ", options.length, " tokens, expected room for ", options.questions,
                 " facts, a question and its answer; give 1024 or more"));
    }
    for (CalibrationSample& sample : samples) all.push_back(std::move(sample));
  }
  return all;
}

Result<std::vector<int32_t>> MadeText(const Tokenizer& tokenizer,
                                      int64_t num_tokens,
                                      uint64_t seed) {
  FillerText filler(seed);
  std::vector<int32_t> tokens;
  while (static_cast<int64_t>(tokens.size()) < num_tokens) {
    const std::vector<int32_t> sentence = LS_TRY(PlainTokens(tokenizer, filler.Sentence() + " "));
    tokens.insert(tokens.end(), sentence.begin(), sentence.end());
  }
  return tokens;
}

Result<std::vector<CalibrationSample>> TextSamples(const std::string& name,
                                                   std::span<const int32_t> tokens,
                                                   int64_t length,
                                                   int most,
                                                   int64_t out_of_sight) {
  const int64_t size = static_cast<int64_t>(tokens.size());
  const int64_t shortest = out_of_sight + kPositionsOfText + kTextAnswerTokens;
  if (size < shortest) {
    return Status(Code::kInvalidArgument,
                  StrCat(name, ": has ", size, " tokens, expected at least ", shortest,
                         ", more than a streaming head can see; give a longer text"));
  }
  const int64_t piece = std::min(length, size);
  const int64_t count = std::clamp<int64_t>(size / piece, 1, most);
  std::vector<CalibrationSample> samples;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = count > 1 ? (size - piece) * i / (count - 1) : 0;
    const auto begin = tokens.begin() + first;
    CalibrationSample sample{.name = StrCat(name, ", part ", i + 1),
                             .prompt = {begin, begin + (piece - kTextAnswerTokens)},
                             .answer = {begin + (piece - kTextAnswerTokens), begin + piece},
                             .positions = {}};
    const int64_t last = static_cast<int64_t>(sample.prompt.size()) - 1;
    for (int64_t k = 0; k < kPositionsOfText; ++k) {
      sample.positions.push_back(out_of_sight + (last - out_of_sight) * (k + 1) / kPositionsOfText);
    }
    for (int64_t k = 1; k < kTextAnswerTokens; ++k) sample.positions.push_back(last + k);
    samples.push_back(std::move(sample));
  }
  return samples;
}

}  // namespace lserve
