// Scheduler: which sequences are in the next step, with how many tokens. It counts pages and
// tokens and computes nothing. Used by the engine.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "attention/attention_settings.h"
#include "engine/prefix_store.h"
#include "engine/sequence.h"
#include "kv/page_pool.h"

namespace lserve {

// Pages that a sequence of `total_tokens` holds at most, per way, while it is computed in chunks of
// at most `max_chunk` tokens.
SequenceCache::Need WorstCasePages(const AttentionSettings& settings,
                                   int64_t total_tokens,
                                   int max_chunk);

// A sequence's share of one step: its next `num_tokens` tokens.
struct Scheduled {
  Sequence* sequence = nullptr;
  int num_tokens = 0;
};

// Admitted in order of arrival. A request is admitted once the worst case of everything running,
// and its own, fits into the pool; so an admitted request always finishes and nothing is preempted.
class Scheduler {
 public:
  // `max_decode_gap_ms`: 0, or the time a step should take while answers are being written, prompts
  // get smaller chunks then.
  Scheduler(PagePool* pool,
            PrefixStore* prefixes,
            int max_num_seqs,
            int max_num_batched_tokens,
            double max_decode_gap_ms)
      : pool_(pool),
        prefixes_(prefixes),
        max_num_seqs_(max_num_seqs),
        max_num_batched_tokens_(max_num_batched_tokens),
        max_decode_gap_ms_(max_decode_gap_ms) {}

  void Add(std::unique_ptr<Sequence> sequence) { waiting_.push_back(std::move(sequence)); }
  bool has_work() const { return !waiting_.empty() || !running_.empty(); }

  // Admits what fits and picks the next step: every decoding sequence with one token, then prompt
  // chunks, the shortest rest first, while the step's budget lasts. Chunks end at multiples of
  // kTileTokens, at the prompt's end or where a prefix is to be kept (at a ResumePosition). Cache
  // pages for all of it are reserved.
  std::vector<Scheduled> Schedule();

  // How long the step took that Schedule() returned: what the time budget goes by.
  void RecordStep(const std::vector<Scheduled>& step, double milliseconds);

  // Every sequence, running ones first.
  std::vector<Sequence*> sequences() const;
  // Ends a sequence and frees its pages.
  void Remove(RequestId id);

 private:
  void Admit();
  // Tokens of prompts that go into a step beside `num_decodes` decode tokens.
  int PrefillBudget(int num_decodes) const;
  bool Fits(const Sequence& candidate) const;
  int ChunkSize(const Sequence& sequence, int budget, bool step_is_empty) const;

  PagePool* pool_;
  PrefixStore* prefixes_;
  int max_num_seqs_;
  int max_num_batched_tokens_;
  double max_decode_gap_ms_;
  double prefill_ms_per_token_ = 0;  // of the last steps; 0: not known
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;  // in order of admission
};

}  // namespace lserve
