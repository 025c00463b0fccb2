#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "base/strings.h"

namespace lserve {
namespace {

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

bool Sampler::changes_logits() const {
  return !params_.logit_bias.empty() || params_.repetition_penalty != 1.0 ||
         params_.presence_penalty != 0 || params_.frequency_penalty != 0;
}

bool Sampler::takes_largest() const {
  return params_.temperature == 0 || params_.top_k == 1;
}

TokenDraw Sampler::NextDraw() const {
  TokenDraw draw;
  draw.takes_largest = takes_largest();
  if (draw.takes_largest) return draw;
  constexpr double kLargest = std::numeric_limits<float>::max();
  draw.scale = static_cast<float>(std::min(kLargest, std::numbers::log2e / params_.temperature));
  draw.top_k = params_.top_k;
  if (params_.top_p < 1) {
    draw.top_p = std::max<uint64_t>(1, static_cast<uint64_t>(params_.top_p * 0x1p64));
  }
  if (params_.min_p > 0) {
    const double level = -std::log2(params_.min_p) * (1 << kLevelFractionBits);
    if (level < kNoLevel) draw.max_level = std::min(draw.max_level, static_cast<uint32_t>(level));
  }
  Rng next = rng_;
  draw.random = next.NextU64();
  return draw;
}

Result<int32_t> Sampler::Take(int32_t token) {
  if (token < 0) return NanLogits();
  if (!takes_largest()) rng_.NextU64();
  ++answer_counts_[token];
  return token;
}

Result<int32_t> Sampler::Sample(std::span<float> logits) {
  ApplyPenalties(logits);
  return Take(DrawToken(logits, NextDraw()));
}

}  // namespace lserve
