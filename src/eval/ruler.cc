#include "eval/ruler.h"

#include <utility>

#include "base/rng.h"
#include "base/strings.h"
#include "eval/chat_prompt.h"
#include "eval/metrics.h"

namespace lserve {

uint64_t CellSeed(uint64_t seed, std::string_view task, int64_t length, int64_t sample) {
  Rng rng(seed);
  uint64_t mixed = rng.NextU64();
  for (const char c : task) mixed = Rng(mixed ^ static_cast<unsigned char>(c)).NextU64();
  mixed = Rng(mixed ^ static_cast<uint64_t>(length)).NextU64();
  return Rng(mixed ^ static_cast<uint64_t>(sample)).NextU64();
}

Result<RulerSample> FillContext(const Tokenizer& tokenizer,
                                RulerTask task,
                                int64_t length,
                                const RulerSource& source,
                                uint64_t seed,
                                std::optional<double> depth) {
  const int64_t budget = length - TokensToGenerate(task);
  RulerSample fitting;
  int64_t least_tokens = 0;
  const auto tokens_of = [&](int64_t hay) -> Result<int64_t> {
    RulerSample sample;
    sample.hay = hay;
    sample.text = MakeRulerText(task, {.hay = hay, .context = length}, source, seed, depth);
    sample.tokens = LS_TRY(EvalPrompt(tokenizer, sample.text.input, sample.text.answer_prefix));
    const int64_t count = static_cast<int64_t>(sample.tokens.size());
    if (hay == LeastHay(task)) least_tokens = count;
    if (count <= budget && hay > fitting.hay) fitting = std::move(sample);
    return count;
  };
  const int64_t least = LeastHay(task);
  // No piece of hay is less than a token.
  const int64_t best = LS_TRY(LargestThatFits(least, std::max(least, length), budget, tokens_of));
  if (best < least) {
    return Status(Code::kInvalidArgument,
                  StrCat("--lengths: got ", length, " tokens for ", Name(task),
                         ", expected at least ", least_tokens + TokensToGenerate(task),
                         " with this tokenizer; give a longer one or leave the task out"));
  }
  return fitting;
}

TrialPrompt ToTrialPrompt(RulerTask task, RulerSample sample) {
  TrialPrompt prompt;
  prompt.tokens = std::move(sample.tokens);
  prompt.max_tokens = TokensToGenerate(task);
  prompt.expected = sample.text.answers;
  prompt.score = [answers = sample.text.answers,
                  any = sample.text.any_answer](const std::string& answer) {
    return any ? StringMatchPart(answer, answers) : StringMatchAll(answer, answers);
  };
  return prompt;
}

std::vector<TrialSpec> RulerTrials(const Tokenizer& tokenizer, const RulerOptions& options) {
  std::vector<TrialSpec> specs;
  for (const int64_t length : options.lengths) {
    for (const RulerTask task : options.tasks) {
      for (int64_t i = 0; i < options.samples; ++i) {
        const uint64_t seed = CellSeed(options.seed, Name(task), length, i);
        specs.push_back({.task = std::string(Name(task)),
                         .length = length,
                         .depth = {},
                         .sample = i,
                         .make = [&tokenizer, task, length, seed,
                                  source = options.source]() -> Result<TrialPrompt> {
                           return ToTrialPrompt(
                               task, LS_TRY(FillContext(tokenizer, task, length, *source, seed)));
                         }});
      }
    }
  }
  return specs;
}

}  // namespace lserve
