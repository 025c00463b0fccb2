// Sampler: draws the next token of one sequence from its logits. Host code, one instance per
// sequence, used by the engine.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>

#include "backend/token_draw.h"
#include "base/rng.h"
#include "base/status.h"
#include "lserve/request.h"

namespace lserve {

// Deterministic: the tokens drawn depend on the logits, the parameters and the seed only.
class Sampler {
 public:
  Sampler(const SamplingParams& params, std::span<const int32_t> prompt);

  // Whether the logits change before the draw: penalties, a bias. Then Sample() draws; else any
  // backend does, by NextDraw() (backend/token_draw.h), with the same result.
  bool changes_logits() const;
  // Of the next token, the same until Take(): a step that is tried again draws what it would have.
  TokenDraw NextDraw() const;
  // `token` is what NextDraw() gave for the logits; -1 is an error: one of them is NaN. The token
  // counts for the penalties of the following calls, and has used its random number.
  Result<int32_t> Take(int32_t token);

  // All of that for `logits`, which is [vocab] and is changed.
  Result<int32_t> Sample(std::span<float> logits);

 private:
  bool takes_largest() const;
  void ApplyPenalties(std::span<float> logits) const;

  SamplingParams params_;
  Rng rng_;
  std::unordered_map<int32_t, int> answer_counts_;
  std::unordered_map<int32_t, bool> prompt_tokens_;  // filled only if a penalty asks for it
};

}  // namespace lserve
