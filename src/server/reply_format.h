// ReplyFormat: how one protocol says what was generated: a whole response, or the events of a
// stream. Generation feeds it and knows no protocol; OpenAI's, Anthropic's and the Responses
// endpoint's formats implement it. One instance per HTTP request, used on its exchange only.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "lserve/request.h"
#include "server/api_error.h"
#include "server/engine_thread.h"
#include "server/output_options.h"

namespace lserve {

// A token with what it was likely as, and the most likely ones at its place.
struct ScoredToken {
  std::vector<TokenScore> scores;  // the drawn one first
  int64_t text_offset = 0;         // characters of the answer before it
};

// One answer so far.
struct ChoiceState {
  std::string text;
  std::vector<ToolCall> calls;
  int64_t characters = 0;  // of the text so far, sent ones included
  std::vector<ScoredToken> scored;
  std::optional<FinishReason> finished;
  std::string stop_string;  // that ended it, if one did
  RequestStats stats;
};

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t completion_tokens = 0;
};

// What one step did to one choice.
struct StreamStep {
  size_t index = 0;
  bool is_first = false;  // of this choice's steps with a token
  const std::vector<OutputPiece>* pieces = nullptr;
  const ScoredToken* scored = nullptr;
  // With its calls; texts and scores that were sent are gone.
  const ChoiceState* choice = nullptr;
};

class ReplyFormat {
 public:
  virtual ~ReplyFormat() = default;

  virtual Json Whole(const std::vector<ChoiceState>& choices, const Usage& usage) = 0;

  // The texts of a stream, each some events or "".
  virtual std::string Opening(int64_t prompt_tokens) = 0;
  virtual std::string Progress(const RequestStats& stats, int64_t done, double milliseconds) = 0;
  virtual std::string Step(const StreamStep& step) = 0;
  virtual std::string Closing(const std::vector<ChoiceState>& choices, const Usage& usage) = 0;
  // The status line is gone: an error after it, and the end.
  virtual std::string Failure(const ApiError& error) = 0;
  // Sent when nothing else is.
  virtual std::string Heartbeat() const = 0;

  virtual Json Error(const ApiError& error) const = 0;
};

}  // namespace lserve
