#include "eval/niah.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/strings.h"
#include "eval/chat_prompt.h"
#include "eval/needle_document.h"
#include "eval/ruler.h"

namespace lserve {
namespace {

constexpr const char* kNames[] = {"single", "multikey", "multivalue", "multiquery"};
constexpr int64_t kAnswerTokens = 96;
constexpr int kOtherKeys = 3;
constexpr int kValues = 3;  // the bundled model knows two and three
constexpr int kQueries = 2;

double Wrapped(double depth) {
  return depth > 1.0 ? depth - 1.0 : depth;
}

NeedleOptions OptionsOf(NiahKind kind, double depth, uint64_t seed) {
  NeedleOptions options;
  options.seed = seed;
  options.num_distractors = 0;
  options.depths = {depth};
  switch (kind) {
    case NiahKind::kSingle:
      break;
    case NiahKind::kMultiKey:
      options.num_distractors = kOtherKeys;
      options.form = static_cast<int>(seed % kNumNeedleForms);
      break;
    case NiahKind::kMultiValue:
      options.depths.clear();
      options.num_values_of_one_key = kValues;
      for (int i = 0; i < kValues; ++i) {
        options.value_depths.push_back(Wrapped(depth + static_cast<double>(i) / kValues));
      }
      // The answer lists them in the order of the document.
      std::sort(options.value_depths.begin(), options.value_depths.end());
      break;
    case NiahKind::kMultiQuery:
      options.depths.push_back(Wrapped(depth + 1.0 / kQueries));
      break;
  }
  return options;
}

NeedleQuestion QuestionOf(NiahKind kind, const NeedleDocument& document) {
  if (kind == NiahKind::kMultiValue) return document.all_values.at(0);
  if (kind == NiahKind::kMultiQuery) return AskBoth(document.questions[0], document.questions[1]);
  return document.questions[0];
}

RulerTask RulerTaskOf(NiahKind kind) {
  switch (kind) {
    case NiahKind::kSingle:
      return RulerTask::kNiahSingle2;
    case NiahKind::kMultiKey:
      return RulerTask::kNiahMultiKey1;
    case NiahKind::kMultiValue:
      return RulerTask::kNiahMultiValue;
    case NiahKind::kMultiQuery:
      return RulerTask::kNiahMultiQuery;
  }
  LS_CHECK(false);
  return RulerTask::kNiahSingle2;
}

}  // namespace

std::string_view Name(NiahKind kind) {
  return kNames[static_cast<size_t>(kind)];
}

std::optional<NiahKind> ParseNiahKind(std::string_view name) {
  for (const NiahKind kind : kNiahKinds) {
    if (Name(kind) == name) return kind;
  }
  return std::nullopt;
}

std::string_view Name(NiahWording wording) {
  return wording == NiahWording::kNeedle ? "needle" : "ruler";
}

Result<TrialPrompt> MakeNeedleTrial(
    const Tokenizer& tokenizer, NiahKind kind, int64_t length, double depth, uint64_t seed) {
  NeedleOptions options = OptionsOf(kind, depth, seed);
  const int64_t budget = length - kAnswerTokens;
  // Documents are counted sentence by sentence, which is off by a few tokens, and chat template and
  // question come on top: shorten by what is too much until it fits.
  options.num_tokens = budget;
  for (int attempt = 0; attempt < 8; ++attempt) {
    const NeedleDocument document = LS_TRY(MakeNeedleDocument(tokenizer, options));
    const NeedleQuestion question = QuestionOf(kind, document);
    TrialPrompt prompt;
    prompt.tokens = LS_TRY(EvalPrompt(tokenizer, StrCat(document.text, "\n\n", question.question)));
    const int64_t excess = static_cast<int64_t>(prompt.tokens.size()) - budget;
    if (excess > 0) {
      constexpr int64_t kSentence = 16;  // what the document's end may be off by
      options.num_tokens -= excess + kSentence * attempt;
      if (options.num_tokens < 1) break;
      continue;
    }
    prompt.max_tokens = kAnswerTokens;
    prompt.expected = {question.answer};
    prompt.score = [expected = question.answer](const std::string& answer) {
      return ValueScore(answer, expected);
    };
    return prompt;
  }
  return Status(Code::kInvalidArgument, StrCat("--lengths: got ", length,
                                               " tokens, expected enough for a question, its "
                                               "fact and an answer of ",
                                               kAnswerTokens, " tokens; give 512 or more"));
}

std::vector<TrialSpec> NiahTrials(const Tokenizer& tokenizer, const NiahOptions& options) {
  std::vector<int64_t> lengths = options.lengths;
  std::sort(lengths.begin(), lengths.end());
  std::vector<TrialSpec> specs;
  for (const int64_t length : lengths) {
    for (const NiahKind kind : options.kinds) {
      for (const double depth : options.depths) {
        for (int64_t i = 0; i < options.samples; ++i) {
          const uint64_t seed = CellSeed(options.seed, StrCat(Name(kind), depth), length, i);
          const auto make = [&tokenizer, wording = options.wording, source = options.source, kind,
                             length, depth, seed]() -> Result<TrialPrompt> {
            if (wording == NiahWording::kNeedle) {
              return MakeNeedleTrial(tokenizer, kind, length, depth, seed);
            }
            const RulerTask task = RulerTaskOf(kind);
            return ToTrialPrompt(
                task, LS_TRY(FillContext(tokenizer, task, length, *source, seed, depth)));
          };
          specs.push_back({.task = std::string(Name(kind)),
                           .length = length,
                           .depth = depth,
                           .sample = i,
                           .make = make});
        }
      }
    }
  }
  return specs;
}

}  // namespace lserve
