#include "engine/scheduler.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "attention/policy.h"
#include "base/check.h"

namespace lserve {
namespace {

// Of an answer, what an admission counts on beside what is known: some steps of every sequence, so
// that who is admitted is not preempted at once.
constexpr int64_t kExpectedAnswerTokens = 512;

bool RanksBefore(const Sequence& a, const Sequence& b) {
  return a.rank != b.rank ? a.rank < b.rank : a.id < b.id;
}

// REQUIRES: the queue has capacity for one more, so that no sequence is lost for want of memory.
void InsertByRank(std::unique_ptr<Sequence> sequence,
                  std::vector<std::unique_ptr<Sequence>>* queue) {
  LS_CHECK_LT(queue->size(), queue->capacity());
  const auto place =
      std::upper_bound(queue->begin(), queue->end(), sequence,
                       [](const auto& a, const auto& b) { return RanksBefore(*a, *b); });
  queue->insert(place, std::move(sequence));
}

int64_t Rest(const Sequence& sequence) {
  return sequence.prompt_size() - sequence.cache.num_tokens();
}

// A prompt's part of a step.
struct Share {
  Sequence* sequence = nullptr;
  int tokens = 0;

  // Adds up to `budget` tokens that end at a tile or at the prompt's end; how many.
  int Take(int budget) {
    const int64_t from = sequence->cache.num_tokens();
    int64_t to = std::min<int64_t>(from + tokens + budget, sequence->prompt_size());
    if (to < sequence->prompt_size()) to = to / kTileTokens * kTileTokens;
    const int more = static_cast<int>(std::max<int64_t>(0, to - from - tokens));
    tokens += more;
    return more;
  }
};

}  // namespace

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

double RankOf(int64_t priority, double ageing_seconds, double arrival_seconds) {
  const double value = static_cast<double>(priority);
  return ageing_seconds > 0 ? arrival_seconds + value * ageing_seconds : value;
}

void Scheduler::Add(std::unique_ptr<Sequence> sequence) {
  // Either may have to take all; from here on they change hands without allocating.
  const size_t all = waiting_.size() + running_.size() + 1;
  const auto make_room = [&](std::vector<std::unique_ptr<Sequence>>* queue) {
    if (queue->capacity() < all) queue->reserve(2 * all);
  };
  make_room(&waiting_);
  make_room(&running_);
  InsertByRank(std::move(sequence), &waiting_);
}

int64_t Scheduler::ExpectedTokens(const Sequence& sequence, bool worst_case) {
  const int64_t most = sequence.prompt_size() + sequence.max_tokens;
  if (worst_case) return most;
  const int64_t known = std::max(sequence.prompt_size(), sequence.computed_tokens);
  return std::min(most, known + kExpectedAnswerTokens);
}

SequenceCache::Need Scheduler::Needs(const Sequence& sequence, bool worst_case) const {
  SequenceCache::Need need = WorstCasePages(
      sequence.cache_settings(), ExpectedTokens(sequence, worst_case), max_num_batched_tokens_);
  for (const Way way : kWays) {
    int64_t& pages = need.pages[Index(way)];
    pages = pool_->page_bytes(way) == 0 ? 0 : pages + sequence.spare_pages;
  }
  return need;
}

bool Scheduler::Fits(const Sequence& candidate) const {
  const bool worst_case = candidate.stats.preemptions > 0;
  int64_t more[kNumWays] = {};
  const auto add = [&](const Sequence& sequence) {
    const SequenceCache::Need need = Needs(sequence, worst_case);
    for (const Way way : kWays) {
      more[Index(way)] +=
          std::max<int64_t>(0, need.pages[Index(way)] - sequence.cache.num_held(way));
    }
  };
  for (const auto& sequence : running_) add(*sequence);
  add(candidate);
  return pool_->CanAllocate(more[0], more[1]);
}

bool Scheduler::CouldFit(const Sequence& candidate, size_t count) const {
  const bool worst_case = candidate.stats.preemptions > 0;
  size_t bytes = 0;
  const auto add = [&](const Sequence& sequence) {
    const SequenceCache::Need need = Needs(sequence, worst_case);
    for (const Way way : kWays)
      bytes += static_cast<size_t>(need.pages[Index(way)]) * pool_->page_bytes(way);
  };
  for (size_t i = 0; i < count; ++i) add(*running_[i]);
  add(candidate);
  return bytes <= pool_->budget_bytes();
}

size_t Scheduler::NumNotWorse(const Sequence& candidate) const {
  size_t count = running_.size();
  const auto is_worse = [&](const Sequence& other) {
    return RanksBefore(candidate, other) && other.request.priority > candidate.request.priority;
  };
  while (count > 0 && is_worse(*running_[count - 1])) --count;
  return count;
}

void Scheduler::PreemptLowest() {
  std::unique_ptr<Sequence> victim = std::move(running_.back());
  running_.pop_back();
  victim->StopLoading();
  victim->cache = victim->cache.Fork(0);
  victim->selection.age = -1;
  victim->selection.num_pages = 0;
  ++victim->stats.preemptions;
  ++num_preemptions_;
  InsertByRank(std::move(victim), &waiting_);
}

void Scheduler::FindPrefix(Sequence* sequence) const {
  PrefixTree::Found found =
      prefixes_->Find(sequence->request.prompt,
                      {.settings = sequence->attention, .salt = sequence->request.cache_salt});
  sequence->cache = std::move(found.cache);
  // What a prefix has dropped can not be looked at.
  if (sequence->cache.streaming_first_token() > 0) sequence->keeps_streaming = false;
  if (sequence->stats.preemptions > 0) return;  // the first look is what the user is told of
  sequence->stats.prefix = found.match;
  sequence->stats.cached_tokens = sequence->cache.num_tokens();
}

void Scheduler::RestorePrefix(Sequence* sequence) const {
  const PrefixArchive::Restored restored = archive_->Restore(
      sequence->request.prompt,
      {.settings = sequence->attention, .salt = sequence->request.cache_salt}, &sequence->load);
  sequence->loading = restored.loading;
  if (restored.some) FindPrefix(sequence);
}

bool Scheduler::is_loading() const {
  return std::any_of(running_.begin(), running_.end(),
                     [](const auto& sequence) { return sequence->loading; });
}

// Makes room for a candidate that FindPrefix() has seen, at the cost of prefixes and of sequences
// of a worse priority; false: it has to wait, and then nothing was taken from a sequence in vain.
bool Scheduler::FindPlace(const Sequence& candidate) {
  if (candidate.needs_all_pages && !running_.empty()) return false;
  if (running_.size() == 1 && running_.front()->needs_all_pages) return false;
  const size_t not_worse = NumNotWorse(candidate);
  if (running_.size() >= static_cast<size_t>(max_num_seqs_)) {
    if (!CouldFit(candidate, not_worse)) return false;
    PreemptLowest();
  }
  while (!Fits(candidate)) {
    // A kept prefix is worth less than a request that waits.
    if (CouldFit(candidate, running_.size()) || running_.empty()) {
      if (prefixes_->EvictOne()) continue;
    }
    if (running_.size() == not_worse || !CouldFit(candidate, not_worse)) return false;
    PreemptLowest();
  }
  return true;
}

void Scheduler::Admit() {
  while (!waiting_.empty()) {
    Sequence& next = *waiting_.front();
    if (NumNotWorse(next) >= static_cast<size_t>(max_num_seqs_)) return;
    FindPrefix(&next);
    bool placed = FindPlace(next);
    if (!placed && running_.empty() && next.cache.num_tokens() > 0) {
      // Its own prefix, with pages that only others would resume from, is what is in the way.
      next.cache = next.cache.Fork(0);
      if (next.stats.preemptions == 0) next.stats.cached_tokens = 0;
      placed = FindPlace(next);
    }
    if (!placed) {
      LS_CHECK(!running_.empty())
          << "a request that passed Engine::Add does not fit an empty cache";
      next.cache = next.cache.Fork(0);  // who waits holds no page
      return;
    }
    RestorePrefix(&next);
    // Preempted sequences wait behind the one that took their place.
    std::unique_ptr<Sequence> admitted = std::move(waiting_.front());
    waiting_.erase(waiting_.begin());
    for (const auto& other : running_) {
      if (!other->in_prompt()) continue;
      admitted->even_tokens = std::max(admitted->even_tokens, other->even_tokens);
    }
    InsertByRank(std::move(admitted), &running_);
  }
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

int Scheduler::SharePrefill(std::span<Sequence* const> prompts,
                            int budget,
                            std::vector<Scheduled>* step) {
  std::vector<Share> shares;
  for (Sequence* sequence : prompts) shares.push_back({.sequence = sequence});
  // Quick ones: a step could end them. The others share evenly, and so does the oldest, which no
  // stream of shorter ones may stop.
  std::vector<Share*> quick, even;
  for (Share& share : shares) {
    const bool is_quick = Rest(*share.sequence) <= max_num_batched_tokens_;
    if (is_quick) quick.push_back(&share);
    if (!is_quick || &share == &shares.front()) even.push_back(&share);
  }
  std::stable_sort(quick.begin(), quick.end(), [](const Share* a, const Share* b) {
    return Rest(*a->sequence) < Rest(*b->sequence);
  });
  const auto give_quick = [&](int limit) {
    for (Share* share : quick) {
      const int taken = share->Take(limit);
      limit -= taken;
      budget -= taken;
    }
  };
  // With room for one tile only, the half is every other step.
  even_turn_ = !even_turn_;
  const int half = budget >= 2 * kTileTokens ? budget / 2 / kTileTokens * kTileTokens
                                             : (even_turn_ ? budget : 0);
  give_quick(budget - half);
  // Tile by tile to whoever got the least so far.
  while (!even.empty() && budget > 0) {
    const auto least =
        std::min_element(even.begin(), even.end(), [](const Share* a, const Share* b) {
          return a->sequence->even_tokens < b->sequence->even_tokens;
        });
    const int taken = (*least)->Take(std::min(budget, kTileTokens));
    if (taken == 0) {
      even.erase(least);
      continue;
    }
    (*least)->sequence->even_tokens += taken;
    budget -= taken;
  }
  give_quick(budget);
  for (const Share& share : shares) {
    if (share.tokens > 0) step->push_back({share.sequence, share.tokens});
  }
  return budget;
}

bool Scheduler::ReservePages(const Scheduled& scheduled) {
  Sequence* sequence = scheduled.sequence;
  while (!sequence->cache.Reserve(scheduled.num_tokens)) {
    if (prefixes_->EvictOne()) continue;
    const bool is_lowest = running_.back().get() == sequence;
    if (is_lowest && running_.size() == 1) {
      if (sequence->needs_all_pages) {
        sequence->starved = true;
        return false;
      }
      sequence->needs_all_pages = true;
    }
    PreemptLowest();
    if (is_lowest) return false;
  }
  return true;
}

std::vector<int64_t> Scheduler::Classes(std::span<Sequence* const> prompts) {
  std::vector<int64_t> classes(prompts.size());
  int64_t best = std::numeric_limits<int64_t>::max();
  for (size_t i = prompts.size(); i-- > 0;)
    classes[i] = best = std::min(best, prompts[i]->request.priority);
  return classes;
}

void Scheduler::LevelAged(std::span<Sequence* const> group, int64_t its_class) {
  int64_t least = std::numeric_limits<int64_t>::max();
  for (const Sequence* sequence : group) {
    if (sequence->request.priority == its_class) least = std::min(least, sequence->even_tokens);
  }
  for (Sequence* sequence : group) {
    if (sequence->request.priority > its_class)
      sequence->even_tokens = std::max(sequence->even_tokens, least);
  }
}

std::vector<Scheduled> Scheduler::Schedule() {
  for (const auto& sequence : running_) {
    if (sequence->loading) RestorePrefix(sequence.get());
  }
  Admit();
  std::vector<Scheduled> step;
  std::vector<Sequence*> prompts;  // by rank
  for (const auto& sequence : running_) {
    if (sequence->loading) continue;
    if (sequence->in_prompt()) {
      prompts.push_back(sequence.get());
    } else {
      step.push_back({sequence.get(), 1});
    }
  }
  int budget = PrefillBudget(static_cast<int>(step.size()));
  const std::vector<int64_t> classes = Classes(prompts);
  for (size_t first = 0; first < prompts.size();) {
    size_t last = first + 1;
    while (last < prompts.size() && classes[last] == classes[first]) ++last;
    const std::span<Sequence* const> group = std::span(prompts).subspan(first, last - first);
    LevelAged(group, classes[first]);
    budget = SharePrefill(group, budget, &step);
    first = last;
  }
  // By rank: who is preempted for pages comes after whom it is preempted for.
  std::vector<Scheduled*> by_rank;
  for (Scheduled& scheduled : step) by_rank.push_back(&scheduled);
  std::sort(by_rank.begin(), by_rank.end(), [](const Scheduled* a, const Scheduled* b) {
    return RanksBefore(*a->sequence, *b->sequence);
  });
  for (Scheduled* scheduled : by_rank) {
    const auto runs = [&](const auto& sequence) { return sequence.get() == scheduled->sequence; };
    if (std::none_of(running_.begin(), running_.end(), runs) || !ReservePages(*scheduled))
      scheduled->num_tokens = 0;
  }
  std::erase_if(step, [](const Scheduled& scheduled) { return scheduled.num_tokens == 0; });
  return step;
}

void Scheduler::DropPlan() {
  for (const auto& sequence : waiting_) {
    sequence->StopLoading();
    sequence->cache = sequence->cache.Fork(0);
  }
}

std::vector<Sequence*> Scheduler::sequences() const {
  std::vector<Sequence*> all;
  all.reserve(size());
  for (const auto& sequence : running_) all.push_back(sequence.get());
  for (const auto& sequence : waiting_) all.push_back(sequence.get());
  return all;
}

Sequence* Scheduler::Find(RequestId id) const {
  for (const auto* queue : {&running_, &waiting_}) {
    for (const auto& sequence : *queue) {
      if (sequence->id == id) return sequence.get();
    }
  }
  return nullptr;
}

Sequence* Scheduler::lowest() const {
  if (waiting_.empty()) return running_.empty() ? nullptr : running_.back().get();
  if (running_.empty()) return waiting_.back().get();
  Sequence* const a = running_.back().get();
  Sequence* const b = waiting_.back().get();
  return RanksBefore(*a, *b) ? b : a;
}

void Scheduler::Remove(RequestId id) {
  std::erase_if(running_, [&](const auto& sequence) { return sequence->id == id; });
  std::erase_if(waiting_, [&](const auto& sequence) { return sequence->id == id; });
}

}  // namespace lserve
