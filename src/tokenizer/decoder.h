// Decoder: from tokens to text, as tokenizer.json's "decoder" says. TextAssembler is its state for
// one text, fed token by token; decoding all at once is the same loop, so both agree by
// construction. Used by Tokenizer only.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/status.h"

namespace lserve {

// What a token contributes. Bytes of a fallback token may be a part of a character.
struct TokenText {
  std::string text;
  bool is_byte = false;
};

class Decoder {
 public:
  // `json` is the "decoder" member.
  static Result<Decoder> FromJson(const Json& json);

  TokenText TextOf(std::string_view token) const;
  // The same if it is the first token of a text: Metaspace drops its spaces there.
  TokenText FirstTextOf(std::string_view token) const;

  bool byte_level() const { return byte_level_; }
  // Leading text to drop, at most `strip_count` times, at the start of the whole output.
  const std::string& strip_text() const { return strip_text_; }
  int strip_count() const { return strip_count_; }
  // A space that begins the whole output does not show.
  bool drops_leading_space() const {
    return !first_token_drop_.empty() || (strip_count_ > 0 && strip_text_ == " ");
  }

 private:
  Status AddStep(const Json& json, std::string_view where, int depth);
  Status AddStrip(const Json& json, std::string_view where);

  std::vector<std::pair<std::string, std::string>> replacements_;
  std::string first_token_drop_;
  std::string strip_text_;
  int strip_count_ = 0;
  bool byte_level_ = false;
  bool byte_fallback_ = false;
  bool fused_ = false;
};

class TextAssembler {
 public:
  explicit TextAssembler(const Decoder& decoder)
      : decoder_(&decoder), strips_left_(decoder.strip_count()) {}

  bool at_start() const { return at_start_; }  // the next token is the first

  // Appends to `out` what is complete now.
  void Push(const TokenText& token, std::string& out);
  // Appends what is left, incomplete characters as U+FFFD.
  void Finish(std::string& out);

 private:
  void PushBytes(std::string_view bytes, std::string& out);
  void Replace(size_t num_bytes, std::string& out);
  void FlushBytes(std::string& out);
  void Emit(std::string_view text, std::string& out);

  const Decoder* decoder_;
  std::string bytes_;  // the beginning of a character: at most 3 bytes
  int strips_left_;
  bool at_start_ = true;
};

}  // namespace lserve
