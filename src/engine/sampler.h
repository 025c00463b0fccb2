// Sampler: what the next token of one sequence is drawn by: how its logits change first, the cuts,
// the random number. Host code, one instance per sequence, used by the engine; the drawing is
// Backend::PickTokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/logit_edits.h"
#include "backend/token_draw.h"
#include "base/rng.h"
#include "base/status.h"
#include "lserve/request.h"

namespace lserve {

// Deterministic: the tokens drawn depend on the logits, the parameters and the seed only.
class Sampler {
 public:
  Sampler(const SamplingParams& params, std::span<const int32_t> prompt);

  // Both are of the next token, the same until Take(): a step that is tried again draws what it
  // would have. Penalties and biases; the arrays are the sampler's.
  LogitEdits Edits() const;
  TokenDraw NextDraw() const;
  // `token` is what NextDraw() gave for the logits after Edits(); -1 is an error: one of them is
  // NaN. The token counts for the penalties of the following calls, and has used its random number.
  Result<int32_t> Take(int32_t token);

 private:
  bool takes_largest() const;
  float repetition() const { return static_cast<float>(params_.repetition_penalty); }
  void Repeat(int32_t token);
  // The place of a token in shifts_, which it has from now on.
  size_t ShiftOf(int32_t token);

  SamplingParams params_;
  Rng rng_;
  // Both change by one token at a time, so that a step costs nothing that grows with the prompt.
  std::vector<uint64_t> repeated_;  // the tokens so far; empty without a penalty for them
  std::vector<LogitShift> shifts_;  // ascending tokens
  std::vector<int> counts_;         // in the answer, of the tokens of shifts_
};

}  // namespace lserve
