// Splits a template into text and the tokens inside its tags, and applies white-space control
// (trim_blocks and lstrip_blocks are on, as transformers sets them). Used by the parser only.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace lserve::jinja {

enum class TokenKind : uint8_t {
  kText,
  kTagBegin,  // {%
  kTagEnd,
  kPrintBegin,  // {{
  kPrintEnd,
  kName,
  kString,
  kInt,
  kFloat,
  kOperator,
  kEnd
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  std::string text;  // decoded, for strings
  int line = 1;
};

// Ends with a kEnd token.
Result<std::vector<Token>> Tokenize(std::string_view source);

// "line 7: what; expected x; advice", on one line; ChatTemplate puts the file before it.
Status TemplateError(int line,
                     std::string_view what,
                     std::string_view expected,
                     std::string_view advice = "correct the template");

}  // namespace lserve::jinja
