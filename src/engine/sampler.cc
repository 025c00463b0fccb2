#include "engine/sampler.h"

#include <algorithm>
#include <cmath>

#include "base/strings.h"

namespace lserve {
namespace {

// The highest logit; of equal ones the lowest id.
int32_t ArgMax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

Status NanLogits() {
  return Status(Code::kCorruptModel,
                "the model's logits contain NaN, expected finite values; the checkpoint is damaged "
                "or overflows");
}

}  // namespace

std::vector<std::string> SamplingParams::Problems() const {
  std::vector<std::string> problems;
  // Written so that NaN fails every check.
  const auto check = [&](bool good, const char* name, double value, const char* expected) {
    if (!good) problems.push_back(StrCat(name, " is ", value, ", expected ", expected));
  };
  check(temperature >= 0 && temperature <= 100, "temperature", temperature, "0 to 100");
  check(top_k >= 0, "top_k", top_k, "0 (off) or more");
  check(top_p > 0 && top_p <= 1, "top_p", top_p, "above 0, at most 1");
  check(min_p >= 0 && min_p <= 1, "min_p", min_p, "0 to 1");
  check(repetition_penalty > 0 && repetition_penalty <= 100, "repetition_penalty",
        repetition_penalty, "above 0, at most 100");
  check(std::abs(presence_penalty) <= 100, "presence_penalty", presence_penalty, "-100 to 100");
  check(std::abs(frequency_penalty) <= 100, "frequency_penalty", frequency_penalty, "-100 to 100");
  for (const auto& [token, bias] : logit_bias) {
    check(std::abs(bias) <= 100, "logit_bias", static_cast<double>(bias), "-100 to 100");
  }
  return problems;
}

Sampler::Sampler(const SamplingParams& params, std::span<const int32_t> prompt)
    : params_(params), rng_(params.seed) {
  if (params_.repetition_penalty == 1.0) return;
  for (const int32_t token : prompt) prompt_tokens_[token] = true;
}

void Sampler::ApplyPenalties(std::span<float> logits) const {
  for (const auto& [token, bias] : params_.logit_bias) logits[static_cast<size_t>(token)] += bias;
  // Keskar et al. 2019 (CTRL), section 4.1, in transformers' form: a seen token's logit moves away
  // from "likely" whatever its sign.
  const float repetition = static_cast<float>(params_.repetition_penalty);
  if (repetition != 1.0f) {
    const auto repeat = [&](int32_t token) {
      float& logit = logits[static_cast<size_t>(token)];
      logit = logit > 0 ? logit / repetition : logit * repetition;
    };
    for (const auto& [token, seen] : prompt_tokens_) repeat(token);
    for (const auto& [token, count] : answer_counts_) {
      if (!prompt_tokens_.contains(token)) repeat(token);
    }
  }
  if (params_.presence_penalty == 0 && params_.frequency_penalty == 0) return;
  for (const auto& [token, count] : answer_counts_) {
    logits[static_cast<size_t>(token)] -=
        static_cast<float>(params_.presence_penalty + params_.frequency_penalty * count);
  }
}

bool Sampler::is_plain_greedy() const {
  return params_.temperature == 0 && params_.logit_bias.empty() &&
         params_.repetition_penalty == 1.0 && params_.presence_penalty == 0 &&
         params_.frequency_penalty == 0;
}

Result<int32_t> Sampler::TakeLargest(int32_t token) {
  if (token < 0) return NanLogits();
  Count(token);
  return token;
}

Result<int32_t> Sampler::Sample(std::span<float> logits) {
  const bool has_nan =
      std::any_of(logits.begin(), logits.end(), [](float x) { return std::isnan(x); });
  if (has_nan) return NanLogits();
  ApplyPenalties(logits);
  const int32_t token = params_.temperature == 0 ? ArgMax(logits) : Draw(logits);
  Count(token);
  return token;
}

int32_t Sampler::Draw(std::span<const float> logits) {
  candidates_.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    // Forbidden tokens are none, or rounding of the last weights could draw one.
    if (std::isinf(logits[i]) && logits[i] < 0) continue;
    candidates_.push_back({logits[i], static_cast<int32_t>(i)});
  }
  if (candidates_.empty()) return ArgMax(logits);
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  };
  size_t kept = candidates_.size();
  if (params_.top_k > 0 && static_cast<size_t>(params_.top_k) < kept) {
    kept = static_cast<size_t>(params_.top_k);
    std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<int64_t>(kept) - 1,
                     candidates_.end(), before);
  }
  const double best =
      std::max_element(candidates_.begin(), candidates_.begin() + static_cast<int64_t>(kept),
                       [&](const Candidate& a, const Candidate& b) { return before(b, a); })
          ->logit;
  const auto weight = [&](const Candidate& c) {
    return std::exp((static_cast<double>(c.logit) - best) / params_.temperature);
  };
  double total = 0;
  for (size_t i = 0; i < kept; ++i) total += weight(candidates_[i]);

  // Sorted in growing steps: the mass of top-p, and the draw itself, mostly end within the first
  // few hundred of a vocabulary of 10^5.
  const double mass_wanted = params_.top_p * total;
  size_t sorted = 0;
  const auto sort_to = [&](size_t count) {
    const size_t to = std::min(kept, count);
    if (to <= sorted) return;
    std::partial_sort(candidates_.begin() + static_cast<int64_t>(sorted),
                      candidates_.begin() + static_cast<int64_t>(to),
                      candidates_.begin() + static_cast<int64_t>(kept), before);
    sorted = to;
  };
  double mass = 0;
  size_t end = 0;
  while (end < kept && (end == 0 || mass < mass_wanted)) {
    if (end == sorted) sort_to(std::max<size_t>(256, sorted * 4));
    const double w = weight(candidates_[end]);
    if (end > 0 && w < params_.min_p) break;  // the best has weight 1
    mass += w;
    ++end;
  }
  double point = rng_.NextDouble() * mass;
  for (size_t i = 0; i + 1 < end; ++i) {
    point -= weight(candidates_[i]);
    if (point < 0) return candidates_[i].token;
  }
  return candidates_[end - 1].token;
}

}  // namespace lserve
