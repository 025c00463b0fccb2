// Niah: "needle in a haystack": facts hidden at chosen depths of documents of chosen lengths. Two
// wordings: those that models/needle was trained on, scored by the values that the answer states,
// and RULER's, for every other model. Used by `lserve eval niah`.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "eval/ruler_tasks.h"
#include "eval/trial.h"
#include "tokenizer/tokenizer.h"

namespace lserve {

// single: one fact. multikey: three more of the same form, about other keys. multivalue: one key,
// several values, all asked for. multiquery: several keys, all asked for in one turn.
enum class NiahKind : uint8_t { kSingle, kMultiKey, kMultiValue, kMultiQuery };
inline constexpr NiahKind kNiahKinds[] = {NiahKind::kSingle, NiahKind::kMultiKey,
                                          NiahKind::kMultiValue, NiahKind::kMultiQuery};
std::string_view Name(NiahKind kind);
std::optional<NiahKind> ParseNiahKind(std::string_view name);

enum class NiahWording : uint8_t { kNeedle, kRuler };
std::string_view Name(NiahWording wording);

struct NiahOptions {
  std::vector<NiahKind> kinds;
  std::vector<int64_t> lengths;  // prompt and answer together
  std::vector<double> depths;    // of the first fact asked for; others are spread evenly from there
  int64_t samples = 1;
  uint64_t seed = 1;
  NiahWording wording = NiahWording::kNeedle;
  std::shared_ptr<const RulerSource> source;  // the hay of kRuler
};

// One trial per length, kind, depth and sample; short ones first. `tokenizer` must outlive them.
std::vector<TrialSpec> NiahTrials(const Tokenizer& tokenizer, const NiahOptions& options);

// The prompt of one cell in the bundled model's wording.
Result<TrialPrompt> MakeNeedleTrial(
    const Tokenizer& tokenizer, NiahKind kind, int64_t length, double depth, uint64_t seed);

}  // namespace lserve
