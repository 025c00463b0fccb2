// Scheduler: which sequences are in the next step, with how many tokens. It counts pages and
// tokens and computes nothing. Used by the engine.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "attention/attention_settings.h"
#include "engine/prefix_archive.h"
#include "engine/prefix_tree.h"
#include "engine/sequence.h"
#include "kv/page_pool.h"

namespace lserve {

// Pages that a sequence of `total_tokens` holds at most, per way, while it is computed in chunks of
// at most `max_chunk` tokens.
SequenceCache::Need WorstCasePages(const AttentionSettings& settings,
                                   int64_t total_tokens,
                                   int max_chunk);

// Sequence::rank of a request that came at `arrival_seconds`. With ageing, the time at which it
// would have come with priority 0 to stand where it does: so a worse priority is a later arrival,
// who waits is overtaken only by requests that come soon after it, and nothing has to be sorted
// again as time passes.
double RankOf(int64_t priority, double ageing_seconds, double arrival_seconds);

// A sequence's share of one step: its next `num_tokens` tokens.
struct Scheduled {
  Sequence* sequence = nullptr;
  int num_tokens = 0;
};

// Ranks: RankOf(), then arrival. A request is admitted, in the order of ranks, once its prompt and
// the first tokens of its answer fit beside what the others need so far; what answers need beyond
// is taken when they get there. When pages run out, kept prefixes go first, then the sequence of
// the lowest rank is preempted: it gives its pages back, keeps its tokens, and waits at its rank.
// So the highest rank always makes progress, and who was preempted comes back before whoever came
// later. It comes back only where the worst case of all fits, so that it is not taken out again for
// the same reason.
class Scheduler {
 public:
  // `archive`: where prefixes are looked for beyond the tree when a request is admitted. Those that
  // have to be read from a disk come while others are computed.
  // `max_decode_gap_ms`: 0, or the time a step should take while answers are being written, prompts
  // get smaller chunks then.
  Scheduler(PagePool* pool,
            PrefixTree* prefixes,
            PrefixArchive* archive,
            int max_num_seqs,
            int max_num_batched_tokens,
            double max_decode_gap_ms)
      : pool_(pool),
        prefixes_(prefixes),
        archive_(archive),
        max_num_seqs_(max_num_seqs),
        max_num_batched_tokens_(max_num_batched_tokens),
        max_decode_gap_ms_(max_decode_gap_ms) {}

  void Add(std::unique_ptr<Sequence> sequence);
  bool has_work() const { return size() > 0; }
  // Whether some sequence waits for its prefix to be read.
  bool is_loading() const;
  size_t size() const { return waiting_.size() + running_.size(); }

  // Admits what fits and picks the next step: every decoding sequence with one token, then prompt
  // chunks while the step's budget lasts. Better priorities first, and who has waited until it
  // ranks before one of these shares with them; within one, half the budget goes
  // to prompts that fit into a step, the shortest rest first, so that a short prompt overtakes long
  // ones; the other half, or all without such, is shared out evenly in tiles, so that none waits
  // for the others' ends. Chunks end at multiples of kTileTokens or at the prompt's end. Cache
  // pages for all of it are reserved. May be empty although there is work: then a sequence is
  // `starved`.
  std::vector<Scheduled> Schedule();

  // After Schedule() was left by std::bad_alloc: what it was about to do is forgotten. Pages that
  // running sequences had reserved stay theirs for the next step.
  void DropPlan();

  // How long the step took that Schedule() returned: what the time budget goes by.
  void RecordStep(const std::vector<Scheduled>& step, double milliseconds);

  // Every sequence, running ones first.
  std::vector<Sequence*> sequences() const;
  Sequence* Find(RequestId id) const;  // null: not here
  // Of all, the one that ranks last; null: there is none.
  Sequence* lowest() const;
  // Ends a sequence and frees its pages.
  void Remove(RequestId id);

  int64_t num_preemptions() const { return num_preemptions_; }

 private:
  void Admit();
  bool FindPlace(const Sequence& candidate);
  void FindPrefix(Sequence* sequence) const;
  // Goes on bringing back what the tiers have of its prompt.
  void RestorePrefix(Sequence* sequence) const;
  // Tokens that its pages are counted for.
  static int64_t ExpectedTokens(const Sequence& sequence, bool worst_case);
  SequenceCache::Need Needs(const Sequence& sequence, bool worst_case) const;
  bool Fits(const Sequence& candidate) const;
  // Whether the candidate could fit beside the first `count` running sequences if no prefix were
  // kept: a guess, that takes no shared page into account.
  bool CouldFit(const Sequence& candidate, size_t count) const;
  // Running sequences that a candidate can not preempt: all but the last ones that rank after it
  // and have a worse priority. Having waited gives the next place, but takes none.
  size_t NumNotWorse(const Sequence& candidate) const;
  void PreemptLowest();
  bool ReservePages(const Scheduled& scheduled);

  // Tokens of prompts that go into a step beside `num_decodes` decode tokens.
  int PrefillBudget(int num_decodes) const;
  // What each of the prompts, given by rank, counts as: the best priority of those that rank with
  // or after it.
  static std::vector<int64_t> Classes(std::span<Sequence* const> prompts);
  // Who counts as a better priority by having waited begins level with that, as a newcomer does,
  // and makes up for nothing.
  static void LevelAged(std::span<Sequence* const> group, int64_t its_class);
  // Shares `budget` among prompts of one class, in order of rank; what is left of it.
  int SharePrefill(std::span<Sequence* const> prompts, int budget, std::vector<Scheduled>* step);

  PagePool* pool_;
  PrefixTree* prefixes_;
  PrefixArchive* archive_;
  int max_num_seqs_;
  int max_num_batched_tokens_;
  double max_decode_gap_ms_;
  double prefill_ms_per_token_ = 0;  // of the last steps; 0: not known
  int64_t num_preemptions_ = 0;
  bool even_turn_ = false;
  std::vector<std::unique_ptr<Sequence>> waiting_;  // both by rank, the highest first
  std::vector<std::unique_ptr<Sequence>> running_;
};

}  // namespace lserve
