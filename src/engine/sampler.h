// Sampler: draws the next token of one sequence from its logits. Host code, one instance per
// sequence, used by the engine.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/rng.h"
#include "base/status.h"
#include "lserve/request.h"

namespace lserve {

// Deterministic: the tokens drawn depend on the logits, the parameters and the seed only.
class Sampler {
 public:
  Sampler(const SamplingParams& params, std::span<const int32_t> prompt);

  // True: Sample() would take the largest logit as it is, so TakeLargest() does.
  bool is_plain_greedy() const;
  // `token` is the column of the largest logit, or -1: one is NaN.
  Result<int32_t> TakeLargest(int32_t token);

  // `logits` is [vocab] and is changed. Error: a logit is NaN. The token counts for the penalties
  // of the following calls.
  Result<int32_t> Sample(std::span<float> logits);

 private:
  struct Candidate {
    float logit;
    int32_t token;
  };
  void ApplyPenalties(std::span<float> logits) const;
  int32_t Draw(std::span<const float> logits);
  void Count(int32_t token) { ++answer_counts_[token]; }

  SamplingParams params_;
  Rng rng_;
  std::unordered_map<int32_t, int> answer_counts_;
  std::unordered_map<int32_t, bool> prompt_tokens_;  // filled only if a penalty asks for it
  std::vector<Candidate> candidates_;
};

}  // namespace lserve
