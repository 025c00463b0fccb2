#include "eval/logit_compare.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace lserve {
namespace {

double LogSum(std::span<const float> logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  return largest + std::log(sum);
}

}  // namespace

void Divergence::Add(const Divergence& other) {
  positions += other.positions;
  same_top += other.same_top;
  clear += other.clear;
  same_clear += other.same_clear;
  kl += other.kl;
  covered += other.covered;
  reference_loss += other.reference_loss;
  loss += other.loss;
}

LogitReference::LogitReference(int64_t vocab, std::span<const int32_t> tokens) : tokens_(tokens) {
  LS_CHECK_GT(tokens.size(), size_t{1});
  const int64_t fair = kEntries / static_cast<int64_t>(tokens.size());
  kept_ = static_cast<size_t>(std::min(vocab, std::clamp(fair, kFewest, kMost)));
  positions_.resize(tokens.size() - 1);
  ids_.resize(positions_.size() * kept_);
  logits_.resize(positions_.size() * kept_);
}

void LogitReference::Keep(int64_t position, std::span<const float> logits) {
  const size_t at = static_cast<size_t>(position);
  LS_CHECK_LT(at, positions_.size());
  order_.resize(logits.size());
  std::iota(order_.begin(), order_.end(), 0);
  const auto middle = order_.begin() + static_cast<std::ptrdiff_t>(kept_);
  // Ties to the lower id, as the sampler has it.
  std::partial_sort(order_.begin(), middle, order_.end(), [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x > y || (x == y && a < b);
  });
  for (size_t i = 0; i < kept_; ++i) {
    ids_[at * kept_ + i] = order_[i];
    logits_[at * kept_ + i] = logits[static_cast<size_t>(order_[i])];
  }
  positions_[at] = {.log_sum = LogSum(logits),
                    .next_logit = logits[static_cast<size_t>(tokens_[at + 1])],
                    .kept = true};
}

void LogitReference::Compare(int64_t position,
                             std::span<const float> logits,
                             Divergence& sum) const {
  const size_t at = static_cast<size_t>(position);
  LS_CHECK_LT(at, positions_.size());
  const Position& reference = positions_[at];
  LS_CHECK(reference.kept) << "position " << position << " has no reference";
  const double log_sum = LogSum(logits);
  double kl = 0.0, covered = 0.0, other_covered = 0.0;
  for (size_t i = 0; i < kept_; ++i) {
    const double log_p = static_cast<double>(logits_[at * kept_ + i]) - reference.log_sum;
    const size_t id = static_cast<size_t>(ids_[at * kept_ + i]);
    const double log_q = static_cast<double>(logits[id]) - log_sum;
    const double p = std::exp(log_p);
    kl += p * (log_p - log_q);
    covered += p;
    other_covered += std::exp(log_q);
  }
  // Rounding may leave a rest of -1e-16.
  const double rest = std::max(0.0, 1.0 - covered);
  const double other_rest = std::max(0.0, 1.0 - other_covered);
  if (rest > 0.0 && other_rest > 0.0) kl += rest * std::log(rest / other_rest);
  const auto top = std::max_element(logits.begin(), logits.end()) - logits.begin();
  ++sum.positions;
  const bool same = top == ids_[at * kept_];
  const bool clear =
      kept_ < 2 || logits_[at * kept_] - logits_[at * kept_ + 1] >= static_cast<float>(kClearLead);
  sum.same_top += same ? 1 : 0;
  sum.clear += clear ? 1 : 0;
  sum.same_clear += same && clear ? 1 : 0;
  sum.kl += std::max(0.0, kl);
  sum.covered += covered;
  sum.reference_loss += reference.log_sum - static_cast<double>(reference.next_logit);
  sum.loss += log_sum - static_cast<double>(logits[static_cast<size_t>(tokens_[at + 1])]);
}

}  // namespace lserve
