// Sequence: everything the engine knows of one request while it lives. Plain data; the scheduler
// and the engine change it, on the engine's thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "attention/policy.h"
#include "backend/buffer.h"
#include "base/clock.h"
#include "engine/sampler.h"
#include "engine/text_output.h"
#include "kv/two_way_cache.h"
#include "lserve/request.h"

namespace lserve {

struct StretchLoad;  // engine/stretch_loader.h

struct Sequence {
  Sequence(RequestId request_id, Request r, const AttentionSettings& settings, SequenceCache kv)
      : id(request_id),
        request(std::move(r)),
        attention(settings),
        cache(std::move(kv)),
        sampler(request.sampling, request.prompt) {}

  RequestId id;
  // Its place among all: the lower first, of equal ones the lower id (RankOf()). It never changes.
  double rank = 0;
  Request request;
  AttentionSettings attention;
  SequenceCache cache;
  Sampler sampler;
  std::optional<TextOutput> text;  // without a tokenizer there is none
  std::vector<int32_t> answer;
  int64_t max_tokens = 0;  // request.max_tokens, cut to what the model length leaves
  bool cancelled = false;
  // The streaming way is not trimmed, so that an audit can say what its heads do not see.
  bool keeps_streaming = false;
  // Pages of each way that it may need beyond its own: the copy of a tail that it shares with a
  // prefix, and that of an audit.
  int spare_pages = 1;

  // Runs, but computes nothing while a stretch of its prefix is read.
  bool loading = false;
  std::shared_ptr<StretchLoad> load;
  void StopLoading() {
    loading = false;
    load.reset();
  }

  // Tokens that were in the cache at most: what a preempted sequence computes again is below.
  int64_t computed_tokens = 0;
  // Alone in an empty cache, since even then pages ran out: they lay scattered.
  bool needs_all_pages = false;
  // Not even then: the device gives less memory than the budget says.
  bool starved = false;
  // Prompt tokens that it got in even shares; a newcomer starts level with the others.
  int64_t even_tokens = 0;

  // Memory of the page lists, allocated at the first decode step that is sparse.
  Buffer selection_memory;
  SelectionState selection;
  SelectionState selection_before;  // as it was before the step
  // The lists as the host last read them, after a selection; empty: not yet. As SelectionTable.
  std::vector<int> selected_num_runs;
  std::vector<PageRun> selected_runs;

  Stopwatch since_added;
  double first_token_ms = 0;
  double last_token_ms = 0;
  double pages_visited = 0;  // sums over decode steps
  double pages_present = 0;
  RequestStats stats;

  // What its pages follow from.
  AttentionSettings cache_settings() const {
    AttentionSettings settings = attention;
    if (keeps_streaming) settings.mode = AttentionMode::kDense;
    return settings;
  }
  int64_t prompt_size() const { return static_cast<int64_t>(request.prompt.size()); }
  bool in_prompt() const { return cache.num_tokens() < prompt_size(); }
  // Of the prompt and the answer so far; all but the last are computed, unless it was preempted and
  // computes them again.
  int64_t num_known_tokens() const { return prompt_size() + static_cast<int64_t>(answer.size()); }
  // The token at position cache.num_tokens(), the next to be computed.
  int32_t token_at(int64_t position) const {
    return position < prompt_size() ? request.prompt[static_cast<size_t>(position)]
                                    : answer[static_cast<size_t>(position - prompt_size())];
  }
};

}  // namespace lserve
