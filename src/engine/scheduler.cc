#include "engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "attention/policy.h"
#include "base/check.h"

namespace lserve {

SequenceCache::Need WorstCasePages(const AttentionSettings& settings,
                                   int64_t total_tokens,
                                   int max_chunk) {
  SequenceCache::Need need;
  need.pages[Index(Way::kRetrieval)] = NumPages(total_tokens);
  const int64_t first_sparse = FirstSparsePosition(settings);
  int64_t streaming = NumPages(total_tokens);
  if (first_sparse < total_tokens) {
    // Untrimmed up to the first sparse position and the chunk that crosses it; from then on the
    // sink, the window in whole tiles, and a chunk.
    const int64_t untrimmed = NumPages(std::min(total_tokens, first_sparse + max_chunk));
    const int64_t window = std::max(settings.prefill_window(), settings.recent_tokens);
    const int64_t trimmed = NumPages(StreamingSinkEnd(settings)) + NumPages(window + max_chunk) +
                            2 * kTileTokens / kPageTokens;
    streaming = std::min(streaming, std::max(untrimmed, trimmed));
  }
  need.pages[Index(Way::kStreaming)] = streaming;
  return need;
}

bool Scheduler::Fits(const Sequence& candidate) const {
  int64_t more[kNumWays] = {};
  const auto add = [&](const Sequence& sequence) {
    const SequenceCache::Need worst =
        WorstCasePages(sequence.cache_settings(), sequence.prompt_size() + sequence.max_tokens,
                       max_num_batched_tokens_);
    for (const Way way : kWays) {
      if (pool_->page_bytes(way) == 0) continue;
      more[Index(way)] += std::max<int64_t>(
          0, worst.pages[Index(way)] + sequence.spare_pages - sequence.cache.num_held(way));
    }
  };
  for (const auto& sequence : running_) add(*sequence);
  add(candidate);
  return pool_->CanAllocate(more[0], more[1]);
}

void Scheduler::Admit() {
  while (!waiting_.empty() && static_cast<int>(running_.size()) < max_num_seqs_) {
    Sequence& next = *waiting_.front();
    if (std::optional<SequenceCache> prefix =
            prefixes_->Find(next.request.prompt, next.attention, next.request.cache_salt)) {
      next.cache = *std::move(prefix);
      // What a prefix has dropped can not be looked at.
      if (next.cache.streaming_first_token() > 0) next.keeps_streaming = false;
    }
    while (!Fits(next)) {
      // A kept prefix is worth less than a request that waits, this one's own too.
      if (prefixes_->DropOldest()) continue;
      if (!running_.empty() || next.cache.num_tokens() == 0) break;
      next.cache = next.cache.Fork(0);
    }
    if (!Fits(next)) {
      LS_CHECK(!running_.empty())
          << "a request that passed Engine::Add does not fit an empty cache";
      return;
    }
    next.stats.cached_tokens = next.cache.num_tokens();
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

int Scheduler::ChunkSize(const Sequence& sequence, int budget, bool step_is_empty) const {
  const int64_t from = sequence.cache.num_tokens();
  int64_t goal = sequence.prompt_size();
  const int64_t keep = ResumePosition(sequence.attention, sequence.request.keep_prefix);
  if (keep > from) goal = std::min(goal, keep);
  if (goal - from <= budget) return static_cast<int>(goal - from);
  const int64_t aligned = (from + budget) / kTileTokens * kTileTokens;
  if (aligned > from) return static_cast<int>(aligned - from);
  // Too little budget is left to reach the next tile: wait for a step of its own.
  LS_CHECK(!step_is_empty) << "max_num_batched_tokens is below a tile";
  return 0;
}

int Scheduler::PrefillBudget(int num_decodes) const {
  const int room = max_num_batched_tokens_ - num_decodes;
  if (num_decodes == 0 || max_decode_gap_ms_ <= 0 || prefill_ms_per_token_ <= 0) return room;
  const double tokens = max_decode_gap_ms_ / prefill_ms_per_token_;
  if (tokens >= room) return room;
  // Whole tiles: a smaller chunk ends at a tile anyhow, and one tile is the least that always
  // makes progress.
  return std::max(kTileTokens, static_cast<int>(tokens) / kTileTokens * kTileTokens);
}

void Scheduler::RecordStep(const std::vector<Scheduled>& step, double milliseconds) {
  int tokens = 0;
  for (const Scheduled& scheduled : step) {
    if (scheduled.num_tokens > 1) tokens += scheduled.num_tokens;
  }
  if (tokens < kTileTokens) return;
  // The decode tokens of the step are counted in, on the safe side. Half of the old value: a
  // prompt's tokens get dearer as it goes on, and a single slow step should not last.
  const double now = milliseconds / tokens;
  prefill_ms_per_token_ = prefill_ms_per_token_ <= 0 ? now : (prefill_ms_per_token_ + now) / 2;
}

std::vector<Scheduled> Scheduler::Schedule() {
  Admit();
  std::vector<Scheduled> step;
  std::vector<Sequence*> prompts;  // the oldest first
  for (const auto& sequence : running_) {
    if (sequence->in_prompt()) {
      prompts.push_back(sequence.get());
    } else {
      step.push_back({sequence.get(), 1});
    }
  }
  int budget = PrefillBudget(static_cast<int>(step.size()));
  // The shortest rest first, so that a short prompt overtakes a long one; but the oldest keeps a
  // tile of every step that has two, so that short ones without end can not stop it.
  const Sequence* oldest = prompts.empty() ? nullptr : prompts.front();
  std::stable_sort(prompts.begin(), prompts.end(), [](const Sequence* a, const Sequence* b) {
    return a->prompt_size() - a->cache.num_tokens() < b->prompt_size() - b->cache.num_tokens();
  });
  int reserved = budget >= 2 * kTileTokens ? kTileTokens : 0;
  for (Sequence* sequence : prompts) {
    if (sequence == oldest) reserved = 0;
    if (budget - reserved <= 0) continue;
    const int count = ChunkSize(*sequence, budget - reserved, step.empty());
    if (count == 0) continue;
    step.push_back({sequence, count});
    budget -= count;
  }
  for (const Scheduled& scheduled : step) {
    LS_CHECK(scheduled.sequence->cache.Reserve(scheduled.num_tokens))
        << "an admitted sequence found no page";
  }
  return step;
}

std::vector<Sequence*> Scheduler::sequences() const {
  std::vector<Sequence*> all;
  for (const auto& sequence : running_) all.push_back(sequence.get());
  for (const auto& sequence : waiting_) all.push_back(sequence.get());
  return all;
}

void Scheduler::Remove(RequestId id) {
  std::erase_if(running_, [&](const auto& sequence) { return sequence->id == id; });
  std::erase_if(waiting_, [&](const auto& sequence) { return sequence->id == id; });
}

}  // namespace lserve
