// Generation: one chat or completion request on its way: turns the engine's events into a response
// or a stream, and a client that leaves into a cancellation. Lives as long as either of them needs
// it; everything but Start() runs as a posted task of its exchange. Used by the service.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "server/engine_thread.h"
#include "server/exchange.h"
#include "server/openai_replies.h"
#include "server/openai_types.h"

namespace lserve {

struct GenerationSetup {
  std::shared_ptr<Exchange> exchange;
  EngineThread* engine = nullptr;
  ReplyHead head;
  HttpHeaders headers;  // of the response
  bool stream = false;
  bool include_usage = false;
  bool return_progress = false;
  bool scores = false;
  size_t choices_per_prompt = 1;
  std::vector<std::string>
      echoes;  // of each choice: the text that goes before the answer, or empty
  std::vector<int32_t> stop_token_ids;
  double heartbeat_seconds = 1.0;
};

class Generation : public std::enable_shared_from_this<Generation> {
 public:
  // Hands the requests to the engine; a stream's head goes out at once. Or says why the queue does
  // not take them; nothing has been sent then.
  static std::optional<Refusal> Start(GenerationSetup setup,
                                      std::vector<Request> requests,
                                      bool first_alone,
                                      std::optional<int> top_logprobs);

  explicit Generation(GenerationSetup setup, size_t num_choices);

 private:
  void BeginStream();
  void OnEvent(JobEvent event);
  void StreamEvent(const JobEvent& event, const ScoredToken* scored);
  void OnError(const Status& error);
  void Complete();
  Usage TotalUsage() const;
  void NoteUsage();

  GenerationSetup setup_;
  std::vector<ChoiceState> choices_;
  std::vector<bool> started_;  // the choice's first chunk was sent
  std::optional<JobId> job_;
  size_t open_;
  bool stream_begun_ = false;
  bool ended_ = false;
  Stopwatch since_start_;
};

}  // namespace lserve
