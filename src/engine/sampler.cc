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
  if (repetition() != 1.0f) {
    for (const int32_t token : prompt) Repeat(token);
  }
  // By token, so that each finds its place at the end; several of one token add up.
  std::stable_sort(params_.logit_bias.begin(), params_.logit_bias.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& [token, bias] : params_.logit_bias) shifts_[ShiftOf(token)].bias += bias;
}

void Sampler::Repeat(int32_t token) {
  const size_t words = static_cast<size_t>(NumTokenWords(int64_t{token} + 1));
  if (words > repeated_.size()) repeated_.resize(words);
  AddToken(repeated_.data(), token);
}

size_t Sampler::ShiftOf(int32_t token) {
  const auto at = std::lower_bound(
      shifts_.begin(), shifts_.end(), token,
      [](const LogitShift& shift, int32_t wanted) { return shift.token < wanted; });
  const auto index = at - shifts_.begin();
  if (at == shifts_.end() || at->token != token) {
    counts_.insert(counts_.begin() + index, 0);
    shifts_.insert(at, {.token = token});
  }
  return static_cast<size_t>(index);
}

LogitEdits Sampler::Edits() const {
  return {.allowed = {}, .repeated = repeated_, .repetition = repetition(), .shifts = shifts_};
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
  if (repetition() != 1.0f) Repeat(token);
  if (params_.presence_penalty != 0 || params_.frequency_penalty != 0) {
    const size_t shift = ShiftOf(token);
    const int count = ++counts_[shift];
    shifts_[shift].penalty =
        static_cast<float>(params_.presence_penalty + params_.frequency_penalty * count);
  }
  return token;
}

}  // namespace lserve
