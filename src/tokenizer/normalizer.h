// Normalizer: what tokenizer.json's "normalizer" does to text before it is split: NFC and its
// kin, Prepend, Replace, Strip, Sequence. Used by Tokenizer only.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "tokenizer/rendered_prompt.h"

namespace lserve {

// A text with the parts of it that came from a user.
struct MarkedText {
  std::string text;
  std::vector<ByteRange> user;  // ascending, disjoint
};

class NormalizerStep {
 public:
  virtual ~NormalizerStep() = default;
  // Keeps the marks right, or widens them.
  virtual Status Apply(MarkedText& text) const = 0;
};

class Normalizer {
 public:
  // `json` is the "normalizer" member; null changes nothing.
  static Result<Normalizer> FromJson(const Json& json);
  // REQUIRES: valid UTF-8.
  Status Run(MarkedText& text) const;
  bool changes_nothing() const { return steps_.empty(); }

 private:
  Status AddStep(const Json& json, std::string_view where, int depth);
  std::vector<std::shared_ptr<const NormalizerStep>> steps_;
};

}  // namespace lserve
