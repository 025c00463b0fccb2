// PreTokenizer: cuts a text into the pieces inside which BPE merges, as tokenizer.json's
// "pre_tokenizer" says: Sequence, Split, Digits, Metaspace, ByteLevel. Used by Tokenizer only.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/status.h"

namespace lserve {

// A text and where its pieces end; the first starts at 0. No piece is empty.
struct SplitText {
  std::string text;
  std::vector<size_t> ends;
  bool at_start = false;  // the first piece starts where the whole input starts

  size_t num_pieces() const { return ends.size(); }
  std::string_view piece(size_t i) const {
    const size_t begin = i == 0 ? 0 : ends[i - 1];
    return std::string_view(text).substr(begin, ends[i] - begin);
  }
};

class SplitStep {
 public:
  virtual ~SplitStep() = default;
  virtual Status Apply(SplitText& pieces) const = 0;
};

class PreTokenizer {
 public:
  // `json` is the "pre_tokenizer" member; null makes one piece of everything.
  static Result<PreTokenizer> FromJson(const Json& json);

  // REQUIRES: valid UTF-8.
  Result<SplitText> Run(std::string text, bool at_start) const;

  // Whether the model sees bytes (a ByteLevel step) rather than characters.
  bool byte_level() const { return byte_level_; }

 private:
  Status AddStep(const Json& json, std::string_view where, int depth);

  std::vector<std::shared_ptr<const SplitStep>> steps_;
  bool byte_level_ = false;
};

}  // namespace lserve
