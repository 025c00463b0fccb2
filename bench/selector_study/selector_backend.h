// SelectorBackend: the CPU backend with another SelectPages, so that one engine and one cache serve
// every selector of the study. The engine asks for lists at every decode step; whether a list is
// made anew or kept is decided here, per KV head. Used by selector_study.cc.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "bench/metered_backend.h"
#include "bench/selector_study/page_scores.h"

namespace lserve::study {

struct Strategy {
  Score score = Score::kBound;
  int logical = 16;  // tokens of a logical page
  Grouping grouping = Grouping::kSoftmaxMean;
  int budget = 4096;  // tokens
  // A list is kept for `interval` steps at most ...
  int interval = 1;
  // ... of which the first steps of an answer may be exempt: there each makes its own ...
  int eager_steps = 0;
  // ... and no longer than every query head's cosine with the query it was made for is at least
  // this; -1: however the query turns.
  double least_cosine = -1;
};

class SelectorBackend final : public MeteredBackend {
 public:
  SelectorBackend(std::unique_ptr<Backend> inner, OpMeter* meter)
      : MeteredBackend(std::move(inner), meter) {}

  // For the next request; nothing: the product's own SelectPages, as the check of all this.
  void Use(const std::optional<Strategy>& strategy);
  // (layer, KV head, step) triples since Use(), and those that made a list.
  int64_t lists_due() const { return lists_due_; }
  int64_t lists_made() const { return lists_made_; }

  Result<std::unique_ptr<KvStore>> MakeKvStore(const KvLayout& layout,
                                               const PageId (&max_pages)[kNumWays]) override;
  Status AppendKv(const AppendKvParams& params) override;
  Status SelectPages(const SelectPagesParams& params) override;

 private:
  // Of one KV head: the queries that its list was made for, [group, head_dim], and how long ago.
  struct Kept {
    std::vector<float> q;
    int age = 0;
  };
  bool IsDue(const Kept& kept, const std::vector<float>& q, int head_dim) const;
  void Select(const SelectPagesParams& params, const SelectRequest& request, int slot);

  std::optional<Strategy> strategy_;
  std::unique_ptr<PageScores> scores_;
  std::vector<Kept> kept_;  // by entry of the retrieval way
  int64_t lists_due_ = 0, lists_made_ = 0;
};

}  // namespace lserve::study
