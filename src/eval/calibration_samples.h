// What a calibration reads: questions about passkey documents of its own making, and the user's
// texts. A sample is a known continuation: the answer's tokens are forced, so that every setting
// computes the same positions. Used by calibration.cc and head_measure.cc.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "tokenizer/tokenizer.h"

namespace lserve {

struct CalibrationSample {
  std::string name;
  std::vector<int32_t> prompt;
  std::vector<int32_t> answer;
  // Positions whose attention says what the heads are for, ascending: those that write the answer,
  // and in a text also some of the prompt.
  std::vector<int64_t> positions;
  bool is_question = false;  // the answer is right or wrong
  // Tokens that the next sample begins with too; 0: it begins anew.
  int64_t shared_prefix = 0;

  int64_t size() const { return static_cast<int64_t>(prompt.size() + answer.size()); }
};

struct PasskeyOptions {
  int64_t length = 4096;  // tokens of prompt and answer
  int documents = 4;
  int questions = 5;  // per document, about facts at depths from its first to its last part
  uint64_t seed = 1;
};

// Facts in the wordings of models/needle, which any model that follows instructions can answer.
// Error: `length` has no room for the facts and the question.
Result<std::vector<CalibrationSample>> PasskeySamples(const Tokenizer& tokenizer,
                                                      const PasskeyOptions& options);

// `num_tokens` tokens of FillerText or a few more: prose to measure on where the user gives none.
Result<std::vector<int32_t>> MadeText(const Tokenizer& tokenizer,
                                      int64_t num_tokens,
                                      uint64_t seed);

// The end of every text sample, forced like an answer.
inline constexpr int64_t kTextAnswerTokens = 64;

// Pieces of `length` tokens, at most `most` of them, spread over the text. `out_of_sight` is what a
// streaming head can see: positions before it say nothing. Error: the text is too short.
Result<std::vector<CalibrationSample>> TextSamples(const std::string& name,
                                                   std::span<const int32_t> tokens,
                                                   int64_t length,
                                                   int most,
                                                   int64_t out_of_sight);

}  // namespace lserve
