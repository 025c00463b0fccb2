#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/check.h"

namespace lserve {
namespace {

constexpr double kTwoPi = 2.0 * std::numbers::pi;

std::vector<double> PlainFrequencies(double theta, int64_t head_dim) {
  std::vector<double> inv_freq;
  for (int64_t dim = 0; dim < head_dim; dim += 2) {
    inv_freq.push_back(std::pow(theta, -static_cast<double>(dim) / static_cast<double>(head_dim)));
  }
  return inv_freq;
}

// Low frequencies (wavelengths that the original context did not complete) are divided by the
// factor, high ones are kept, and those between are blended in the inverse wavelength.
void ScaleLlama3(const RopeConfig& config, std::vector<double>& inv_freq) {
  const double context = static_cast<double>(config.original_max_position_embeddings);
  for (double& freq : inv_freq) {
    const double turns = context * freq / kTwoPi;  // over the original context
    if (turns > config.high_freq_factor) continue;
    const double smooth =
        (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor);
    const double kept = std::clamp(smooth, 0.0, 1.0);
    freq = (1.0 - kept) * freq / config.factor + kept * freq;
  }
}

// The dimension (of head_dim, not of pairs) whose pair makes `turns` turns over the original
// context.
double DimOfTurns(const RopeConfig& config, int64_t head_dim, double turns) {
  const double context = static_cast<double>(config.original_max_position_embeddings);
  return static_cast<double>(head_dim) * std::log(context / (turns * kTwoPi)) /
         (2.0 * std::log(config.theta));
}

// YaRN (arXiv 2309.00071): pairs below `low` turn often enough to be kept, pairs above `high` are
// interpolated, a linear ramp between. The clamp to head_dim - 1, not to the number of pairs, is
// the original implementation's, and checkpoints were trained with it.
void ScaleYarn(const RopeConfig& config, int64_t head_dim, std::vector<double>& inv_freq) {
  double low = DimOfTurns(config, head_dim, config.beta_fast);
  double high = DimOfTurns(config, head_dim, config.beta_slow);
  if (config.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(head_dim - 1));
  if (low == high) high += 0.001;  // the original's guard against a division by zero
  for (size_t pair = 0; pair < inv_freq.size(); ++pair) {
    const double ramp = std::clamp((static_cast<double>(pair) - low) / (high - low), 0.0, 1.0);
    inv_freq[pair] = inv_freq[pair] / config.factor * ramp + inv_freq[pair] * (1.0 - ramp);
  }
}

double YarnMscale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

double YarnAttentionFactor(const RopeConfig& config) {
  if (config.attention_factor) return *config.attention_factor;
  const double mscale = config.mscale.value_or(0.0);
  const double mscale_all_dim = config.mscale_all_dim.value_or(0.0);
  // Zero stands for "not set" here, as in the original.
  if (mscale != 0.0 && mscale_all_dim != 0.0) {
    return YarnMscale(config.factor, mscale) / YarnMscale(config.factor, mscale_all_dim);
  }
  return YarnMscale(config.factor, 1.0);
}

// NTK-aware scaling: the base for which the lowest frequency reaches over `length` tokens.
double DynamicTheta(const RopeConfig& config,
                    int64_t head_dim,
                    int64_t max_position_embeddings,
                    int64_t max_model_len) {
  if (head_dim <= 2) return config.theta;  // one pair of frequency 1, whatever the base
  const double trained = static_cast<double>(max_position_embeddings);
  const double length = std::max(trained, static_cast<double>(max_model_len));
  const double dim = static_cast<double>(head_dim);
  const double stretch = config.factor * length / trained - (config.factor - 1.0);
  return config.theta * std::pow(stretch, dim / (dim - 2.0));
}

}  // namespace

RopeFrequencies MakeRopeFrequencies(const RopeConfig& config,
                                    int64_t head_dim,
                                    int64_t max_position_embeddings,
                                    int64_t max_model_len) {
  LS_CHECK(head_dim > 0 && head_dim % 2 == 0) << head_dim;
  LS_CHECK(max_position_embeddings > 0) << max_position_embeddings;
  RopeFrequencies result;
  const double theta = config.type == RopeType::kDynamic
                           ? DynamicTheta(config, head_dim, max_position_embeddings, max_model_len)
                           : config.theta;
  result.inv_freq = PlainFrequencies(theta, head_dim);
  switch (config.type) {
    case RopeType::kDefault:
    case RopeType::kDynamic:
      break;
    case RopeType::kLinear:
      for (double& freq : result.inv_freq) freq /= config.factor;
      break;
    case RopeType::kLlama3:
      ScaleLlama3(config, result.inv_freq);
      break;
    case RopeType::kYarn:
      ScaleYarn(config, head_dim, result.inv_freq);
      result.attention_factor = YarnAttentionFactor(config);
      break;
  }
  return result;
}

void FillRopeRange(const RopeFrequencies& frequencies,
                   int64_t first,
                   int64_t num_positions,
                   std::span<float> cos,
                   std::span<float> sin) {
  std::vector<int64_t> positions(static_cast<size_t>(num_positions));
  for (size_t i = 0; i < positions.size(); ++i) positions[i] = first + static_cast<int64_t>(i);
  FillRopeRows(frequencies, positions, cos, sin);
}

void FillRopeRows(const RopeFrequencies& frequencies,
                  std::span<const int64_t> positions,
                  std::span<float> cos,
                  std::span<float> sin) {
  const size_t pairs = frequencies.inv_freq.size();
  LS_CHECK_EQ(cos.size(), positions.size() * pairs);
  LS_CHECK_EQ(sin.size(), positions.size() * pairs);
  for (size_t row = 0; row < positions.size(); ++row) {
    LS_CHECK(positions[row] >= 0) << positions[row];
    const double position = static_cast<double>(positions[row]);
    for (size_t pair = 0; pair < pairs; ++pair) {
      const double angle = position * frequencies.inv_freq[pair];
      cos[row * pairs + pair] = static_cast<float>(frequencies.attention_factor * std::cos(angle));
      sin[row * pairs + pair] = static_cast<float>(frequencies.attention_factor * std::sin(angle));
    }
  }
}

}  // namespace lserve
