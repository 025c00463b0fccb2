// SplitRegex: a pattern from tokenizer.json, run by PCRE2. Those files are written for another
// engine (Oniguruma), so a pattern is first read construct by construct: what means the same in
// both passes, `\s` is spelled out where the two differ, anything else is refused by name.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"
#include "tokenizer/rendered_prompt.h"

namespace lserve {

class SplitRegex {
 public:
  static Result<SplitRegex> Compile(std::string_view pattern);

  // The first match that starts at or after `from`, seeing the whole text around it; empty
  // matches are passed over. An error if the match takes more steps than the limits allow.
  // REQUIRES: valid UTF-8, `from` on a character.
  Result<std::optional<ByteRange>> Find(std::string_view text, size_t from) const;

 private:
  SplitRegex() = default;
  std::shared_ptr<const void> code_;  // pcre2_code, immutable
  std::string pattern_;
};

}  // namespace lserve
