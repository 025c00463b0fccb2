// `lserve tokenize`: text to token ids and back with a checkpoint's tokenizer. Used by lserve.cc
// only.
#pragma once

#include <optional>
#include <string>

#include "apps/flags.h"

namespace lserve {

struct TokenizeOptions {
  std::string model_dir;
  std::optional<std::string> text;
  std::optional<std::string> file;
  std::optional<std::string> chat_file;
  std::optional<std::string> date_text;
  bool decode = false;
  bool no_special_tokens = false;
  bool match_special_tokens = false;
  bool skip_special_tokens = false;
  bool no_generation_prompt = false;
  bool json = false;
};

void AddTokenizeFlags(FlagSet& flags, TokenizeOptions& out);
// Usage errors.
Status FinishTokenizeOptions(const TokenizeOptions& options);
int TokenizeCommand(const TokenizeOptions& options);

}  // namespace lserve
