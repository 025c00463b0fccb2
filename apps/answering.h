// Answering: drives an engine until a list of requests is done, and collects what it says. One
// after another or side by side is the engine's max_num_seqs. Used by `lserve run`, the demo and
// tests.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "lserve/engine.h"

namespace lserve {

struct Answer {
  std::string text;
  std::vector<int32_t> token_ids;
  FinishReason finish_reason = FinishReason::kCancelled;
  RequestStats stats;
};

struct AnswerHooks {
  // Every event of request `index`. An error cancels everything.
  std::function<Status(size_t index, const RequestEvent& event)> on_event;
  // Asked after every step: true cancels everything; the answers so far are returned.
  std::function<bool()> should_stop;
};

// If the first request keeps a prefix, the others wait until it has one to share.
Result<std::vector<Answer>> AnswerAll(Engine& engine,
                                      std::vector<Request> requests,
                                      const AnswerHooks& hooks = {});
Result<Answer> AnswerOne(Engine& engine, Request request, const AnswerHooks& hooks = {});

// "sparse" if a page or tile was left out, else "dense": what ran, not what was asked for.
const char* AttentionThatRan(const RequestStats& stats);

}  // namespace lserve
