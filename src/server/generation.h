// Generation: one request for answers on its way: turns the engine's events into a response or a
// stream, in the words of a ReplyFormat, and a client that leaves into a cancellation. Lives as
// long as either of them needs it; everything but Start() runs as a posted task of its exchange.
// Used by the service.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "server/engine_thread.h"
#include "server/exchange.h"
#include "server/key_limits.h"
#include "server/reply_format.h"
#include "server/tool_calls.h"

namespace lserve {

struct GenerationSetup {
  std::shared_ptr<Exchange> exchange;
  EngineThread* engine = nullptr;
  std::unique_ptr<ReplyFormat> format;
  HttpHeaders headers;  // of the response
  bool stream = false;
  size_t choices_per_prompt = 1;
  std::vector<int32_t> stop_token_ids;
  ToolStyle tool_style = ToolStyle::kDescribed;
  ToolOptions tools;
  double heartbeat_seconds = 1.0;
  std::shared_ptr<KeyLease> lease;  // of the key that asks; null: it has no limits
};

class Generation : public std::enable_shared_from_this<Generation> {
 public:
  // Hands the requests to the engine; a stream's head goes out at once. Or says why the queue does
  // not take them; nothing has been sent then.
  static std::optional<Refusal> Start(GenerationSetup setup,
                                      std::vector<Request> requests,
                                      bool first_alone,
                                      std::optional<int> top_logprobs);

  Generation(GenerationSetup setup, size_t num_choices, int64_t prompt_tokens);

 private:
  void BeginStream();
  // Part of the stream; nothing for an empty text.
  void Write(std::string events);
  void OnEvent(JobEvent event);
  // Adds what the event's text says to the choice.
  std::vector<OutputPiece> ReadPieces(size_t index, const RequestEvent& event);
  void OnError(const Status& error);
  void Complete();
  Usage TotalUsage() const;
  void NoteUsage();
  // Before the last bytes go out: a client that has them may ask again at once.
  void EndLease();

  GenerationSetup setup_;
  std::vector<ChoiceState> choices_;
  std::vector<ToolCallReader> readers_;  // of each choice
  std::vector<bool> started_;            // the choice's first token came
  const int64_t prompt_tokens_;
  std::optional<JobId> job_;
  size_t open_;
  bool stream_begun_ = false;
  bool ended_ = false;
  Stopwatch since_start_;
};

}  // namespace lserve
