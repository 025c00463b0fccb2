// Auditor: watches what sparse decode steps leave out (design 2.10, ADR 0017). A step that is
// audited is computed twice: as it is served, and, on a scratch copy of its page, with retrieval
// heads that read every page. It decides which steps and requests, and adds up what they say; the
// engine runs the passes. Engine thread only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/attention_probe.h"
#include "lserve/request.h"

namespace lserve {

// Picks a share of a row of events: deterministic, evenly spaced, the first one always.
class EvenSample {
 public:
  explicit EvenSample(double rate) : rate_(rate) {}
  // Whether the next event is one.
  bool Next();

 private:
  double rate_;
  int64_t count_ = 0;
};

// One step of one sequence.
class StepAudit {
 public:
  // From the shadow pass; empty if no retrieval head left a page out.
  std::vector<float> all_pages_logits;  // [vocab]
  double seconds = 0;                   // what the audit cost so far

  // Of the pass that is served, in every layer.
  Status Observe(const AttentionView& view);
  // `logits`: of the pass that is served.
  void Finish(std::span<const float> logits, AuditStats* stats) const;

 private:
  struct Shares {
    int64_t heads = 0;
    double sum = 0;
    double lowest = 1;
  };
  Shares shares_[kNumWays];
};

// KL(a || b) of the distributions of two rows of logits, in nats; and whether their most probable
// token is the same (ties: the lower id).
struct LogitDifference {
  double kl = 0;
  bool same_top = false;
};
LogitDifference CompareLogits(std::span<const float> a, std::span<const float> b);

}  // namespace lserve
