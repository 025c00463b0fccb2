// TokenizerConfig: what tokenizer_config.json adds to tokenizer.json: names of the special tokens,
// further added tokens and chat templates. Used by Tokenizer only.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "tokenizer/added_tokens.h"

namespace lserve {

struct TokenizerConfig {
  // "bos_token", "eos_token", ... and their texts, as templates see them.
  std::vector<std::pair<std::string, std::string>> named_tokens;
  std::vector<AddedToken> added_tokens;
  bool add_bos = false;
  bool add_eos = false;
  // By name; a single template is "default".
  std::vector<std::pair<std::string, std::string>> chat_templates;

  // `text` may be empty: no configuration.
  static Result<TokenizerConfig> Parse(std::string_view text);

  const std::string* FindNamed(std::string_view name) const;
};

}  // namespace lserve
