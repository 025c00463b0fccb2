// Explanation: where an answer was read, as passages of the documents. Maps token positions of a
// prompt to bytes of what the user gave. Used by `lserve run --explain`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "apps/prompts.h"
#include "base/json.h"
#include "engine/reading.h"
#include "tokenizer/tokenizer.h"

namespace lserve {

struct Passage {
  std::optional<std::string> source;  // the file; nothing for a prompt, or without a tokenizer
  int64_t first_token = 0;            // of the prompt, half open
  int64_t last_token = 0;
  // Bytes [begin, end) of the file or prompt, widened to whole sentences where they end nearby.
  // Without a tokenizer nothing.
  std::optional<size_t> begin;
  std::optional<size_t> end;
  std::string text;
  double weight = 0;  // of all that was read
};

// Where a text lies in a prompt.
class PromptMap {
 public:
  // `text`: the documents as they stand in the prompt, or the prompt itself. If the tokens do not
  // spell it byte for byte (the tokenizer normalises), passages have tokens and their text, but no
  // bytes.
  static Result<PromptMap> Make(const Tokenizer* tokenizer,
                                const std::vector<int32_t>& prompt,
                                const Documents& documents);

  // Positions of the prompt that hold the text.
  int64_t first() const { return first_; }
  int64_t last() const { return last_; }

  std::vector<Passage> Passages(const std::vector<ReadPart>& parts) const;

 private:
  Passage PassageOf(const ReadPart& part) const;

  std::string decoded_;          // the prompt as its tokens spell it; empty without a tokenizer
  std::vector<size_t> offsets_;  // [tokens + 1], into decoded_
  std::vector<DocumentPart> documents_;
  std::optional<size_t> text_begin_;  // of the documents, trimmed, in decoded_
  int64_t first_ = 0;
  int64_t last_ = 0;
};

Json ToJson(const Passage& passage);
// For people: one paragraph per passage.
std::string PassagesText(const std::vector<Passage>& passages);

}  // namespace lserve
