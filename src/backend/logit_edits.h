// What changes a row of logits before a token is drawn from it: penalties, biases, tokens that may
// not come next. A part of the op PickTokens, with one meaning for every backend, its kernels and
// the engine's sampler (ADR 0037).
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>

namespace lserve {

// A set of tokens is a bit each: token 0 is the lowest one of the first word.
inline constexpr int64_t kTokensPerWord = 64;
constexpr int64_t NumTokenWords(int64_t num_tokens) {
  return (num_tokens + kTokensPerWord - 1) / kTokensPerWord;
}
constexpr bool HasToken(const uint64_t* words, int64_t token) {
  return ((words[token / kTokensPerWord] >> (token % kTokensPerWord)) & 1) != 0;
}
constexpr void AddToken(uint64_t* words, int64_t token) {
  words[token / kTokensPerWord] |= uint64_t{1} << (token % kTokensPerWord);
}
constexpr void RemoveToken(uint64_t* words, int64_t token) {
  words[token / kTokensPerWord] &= ~(uint64_t{1} << (token % kTokensPerWord));
}

// Of one token.
struct LogitShift {
  int32_t token = 0;
  float bias = 0;     // added first
  float penalty = 0;  // subtracted last
};

// Of one row.
struct LogitEdits {
  std::span<const uint64_t> allowed = {};   // of every token whether it may come next; empty: all
  std::span<const uint64_t> repeated = {};  // tokens beyond its words are not
  float repetition = 1;                     // for these
  std::span<const LogitShift> shifts = {};  // ascending tokens, each once

  constexpr bool any() const { return !allowed.empty() || !repeated.empty() || !shifts.empty(); }
};

// A token's logit after its edits; `repetition` is 1 unless it is repeated. With bias 0, repetition
// 1 and penalty 0 it is the same number. Nothing here may be fused: a file that compiles it is
// compiled with -ffp-contract=off, or -fmad=false.
constexpr float EditedLogit(
    float logit, bool is_allowed, float bias, float repetition, float penalty) {
  if (!is_allowed) logit = -std::numeric_limits<float>::infinity();
  logit += bias;
  // Keskar et al. 2019 (CTRL), section 4.1, in transformers' form: a seen token's logit moves away
  // from "likely" whatever its sign.
  logit = logit > 0 ? logit / repetition : logit * repetition;
  return logit - penalty;
}

// Whether any row has some.
inline bool HasEdits(std::span<const LogitEdits> rows) {
  return std::any_of(rows.begin(), rows.end(), [](const LogitEdits& row) { return row.any(); });
}

// REQUIRES: shifts are of tokens of `logits`; `allowed`, if not empty, has their words. Bits beyond
// `logits` are not looked at.
void EditLogits(std::span<float> logits, const LogitEdits& edits);

}  // namespace lserve
