// RunOptions: what `lserve run` is told, parsed and checked as far as that goes without a model.
// Used by run_command.cc only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "apps/engine_flags.h"
#include "tokenizer/chat_template.h"

namespace lserve {

struct RunOptions {
  EngineFlags engine;
  SamplingFlags sampling;
  std::vector<std::string> documents;
  std::vector<std::string> questions;
  std::optional<std::string> system;
  std::optional<std::string> prompt;
  std::optional<std::string> prompt_file;
  std::optional<std::string> tokens_file;
  std::optional<std::string> logits_file;
  std::optional<std::string> date_text;
  std::optional<ChatDate> date;
  std::optional<int64_t> max_tokens;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  bool match_special_tokens = false;
  bool explain = false;
  bool json = false;
  bool print_config = false;

  // Plain completion of a text or of token ids, no chat.
  bool is_completion() const { return prompt || prompt_file || tokens_file; }
  bool is_interactive() const { return !is_completion() && questions.empty(); }
};

// What chat templates write as the date unless --chat-date says another.
ChatDate Today();

void AddRunFlags(FlagSet& flags, RunOptions& out);
// Usage errors: contradictions, settings out of range.
Status FinishRunOptions(RunOptions& out);

}  // namespace lserve
