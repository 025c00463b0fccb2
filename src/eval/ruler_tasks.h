// RulerTasks: the texts of RULER's synthetic tasks (Hsieh et al., "RULER: What's the Real Context
// Size of Your Long-Context Language Models?", arXiv 2404.06654), at a given size of hay and from a
// given seed. Own code after the published definitions; no tokenizer here: ruler.h finds the size
// that fills a context. What differs: words and essays are our own (words.h, haystack.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "eval/haystack.h"
#include "eval/squad.h"

namespace lserve {

enum class RulerTask : uint8_t {
  kNiahSingle1,
  kNiahSingle2,
  kNiahSingle3,
  kNiahMultiKey1,
  kNiahMultiKey2,
  kNiahMultiKey3,
  kNiahMultiValue,
  kNiahMultiQuery,
  kVariableTracking,
  kCommonWords,
  kFrequentWords,
  kQa,
};
inline constexpr RulerTask kRulerTasks[] = {
    RulerTask::kNiahSingle1,    RulerTask::kNiahSingle2,    RulerTask::kNiahSingle3,
    RulerTask::kNiahMultiKey1,  RulerTask::kNiahMultiKey2,  RulerTask::kNiahMultiKey3,
    RulerTask::kNiahMultiValue, RulerTask::kNiahMultiQuery, RulerTask::kVariableTracking,
    RulerTask::kCommonWords,    RulerTask::kFrequentWords,  RulerTask::kQa,
};
std::string_view Name(RulerTask task);  // RULER's own: "niah_single_1", "vt", "cwe"
std::optional<RulerTask> ParseRulerTask(std::string_view name);

struct RulerText {
  std::string input;          // the user's turn
  std::string answer_prefix;  // how the answer begins; part of the prompt
  std::vector<std::string> answers;
  bool any_answer = false;  // one of them is enough (QA)
};

struct RulerSize {
  int64_t hay = 1;         // sentences, words, documents: what the task is stretched with
  int64_t context = 4096;  // tokens that are to be filled; some tasks depend on it too
};

struct RulerSource {
  Haystack essay;
  SquadData qa;
};

// Tokens that the answer may have; they count as part of the context.
int64_t TokensToGenerate(RulerTask task);
// The least hay that the task can be made with.
int64_t LeastHay(RulerTask task);

// `depth`, of NIAH tasks: where the first needle that is asked for stands, the others spread evenly
// from there; without it all are at random depths. REQUIRES: size.hay >= LeastHay(task); with kQa,
// questions.
RulerText MakeRulerText(RulerTask task,
                        const RulerSize& size,
                        const RulerSource& source,
                        uint64_t seed,
                        std::optional<double> depth = {});

}  // namespace lserve
