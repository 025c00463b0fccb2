// NeedleDocument: a long document with facts hidden at chosen depths, and the questions that ask
// for them with the exact answers: the wordings that models/needle was trained on. Deterministic in
// its seed. Used by niah.cc, `./dev demo` and tests/retrieval.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "tokenizer/tokenizer.h"

namespace lserve {

inline constexpr int kNumNeedleForms = 6;  // ways to state a fact

struct NeedleOptions {
  int64_t num_tokens = 4096;  // of the document, within 2%: sentences are counted one by one
  uint64_t seed = 1;
  // One fact at each depth: 0 is the first sentence, 1 the last. The forms take turns.
  std::vector<double> depths = {0.0, 0.25, 0.5, 0.75, 1.0};
  // If set, every fact has this form, distractors too: only the keys tell them apart.
  std::optional<int> form = {};
  // Facts that nobody asks for, at random depths.
  int num_distractors = 6;
  // If not 0: one key with this many values, at random depths or, if they are as many, at
  // `value_depths`.
  int num_values_of_one_key = 0;
  std::vector<double> value_depths = {};
};

struct NeedleQuestion {
  std::string question;
  std::string answer;
  double depth = 0.0;
};

struct NeedleDocument {
  std::string text;
  int64_t num_tokens = 0;
  std::vector<NeedleQuestion> questions;   // one per depth, in order
  std::vector<NeedleQuestion> all_values;  // one, if num_values_of_one_key > 0
};

Result<NeedleDocument> MakeNeedleDocument(const Tokenizer& tokenizer, const NeedleOptions& options);

// Whether `answer` states the values of `expected`, all of them, in order and no other: what counts
// as right. Wording is not judged: the model may misspell a name that it repeats.
bool HasSameValues(std::string_view answer, std::string_view expected);

// The share of values that are right: those of `expected` that `answer` states, of the values that
// either has. 1: all of them and no other.
double ValueScore(std::string_view answer, std::string_view expected);

// Two questions in one turn; the answers come in order.
NeedleQuestion AskBoth(const NeedleQuestion& first, const NeedleQuestion& second);

}  // namespace lserve
