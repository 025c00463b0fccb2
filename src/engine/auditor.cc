#include "engine/auditor.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/clock.h"

namespace lserve {
namespace {

double LogSum(std::span<const float> logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit} - largest);
  return largest + std::log(sum);
}

}  // namespace

void AuditStats::Add(const AuditStats& other) {
  steps += other.steps;
  skipped_steps += other.skipped_steps;
  retrieval_steps += other.retrieval_steps;
  retrieval_recall += other.retrieval_recall;
  lowest_retrieval_recall = std::min(lowest_retrieval_recall, other.lowest_retrieval_recall);
  streaming_steps += other.streaming_steps;
  streaming_recall += other.streaming_recall;
  lowest_streaming_recall = std::min(lowest_streaming_recall, other.lowest_streaming_recall);
  same_top += other.same_top;
  kl += other.kl;
  seconds += other.seconds;
}

bool EvenSample::Next() {
  const double n = static_cast<double>(count_++);
  return std::ceil((n + 1) * rate_) > std::ceil(n * rate_);
}

Status StepAudit::Observe(const AttentionView& view) {
  const Stopwatch watch;
  const int64_t position = view.range.first_position;
  const std::vector<QueryMass> masses = LS_TRY(MeasureMass(view, {&position, 1}));
  for (const HeadMass& head : masses[0].heads) {
    if (head.way == Way::kRetrieval && all_pages_logits.empty()) continue;  // it read everything
    Shares& shares = shares_[Index(head.way)];
    const double seen = std::min(head.seen, 1.0);
    ++shares.heads;
    shares.sum += seen;
    shares.lowest = std::min(shares.lowest, seen);
  }
  seconds += watch.seconds();
  return Status();
}

void StepAudit::Finish(std::span<const float> logits, AuditStats* stats) const {
  AuditStats step{.steps = 1, .seconds = seconds};
  if (const Shares& retrieval = shares_[Index(Way::kRetrieval)]; retrieval.heads > 0) {
    step.retrieval_steps = 1;
    step.retrieval_recall = retrieval.sum / static_cast<double>(retrieval.heads);
    step.lowest_retrieval_recall = retrieval.lowest;
    const LogitDifference difference = CompareLogits(all_pages_logits, logits);
    step.kl = difference.kl;
    step.same_top = difference.same_top ? 1 : 0;
  }
  if (const Shares& streaming = shares_[Index(Way::kStreaming)]; streaming.heads > 0) {
    step.streaming_steps = 1;
    step.streaming_recall = streaming.sum / static_cast<double>(streaming.heads);
    step.lowest_streaming_recall = streaming.lowest;
  }
  stats->Add(step);
}

LogitDifference CompareLogits(std::span<const float> a, std::span<const float> b) {
  LS_CHECK_EQ(a.size(), b.size());
  const double sum_a = LogSum(a), sum_b = LogSum(b);
  double kl = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double log_a = a[i] - sum_a;
    const double p = std::exp(log_a);
    if (p > 0) kl += p * (log_a - (b[i] - sum_b));
  }
  const auto top = [](std::span<const float> x) {
    return std::max_element(x.begin(), x.end()) - x.begin();
  };
  return {.kl = std::max(0.0, kl), .same_top = top(a) == top(b)};
}

}  // namespace lserve
