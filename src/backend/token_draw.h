// How a token is drawn from a row of logits, in integers: the meaning of the op PickTokens, shared
// by every backend, its kernels and the engine's sampler (ADR 0032). A sum of integers has one
// value in any order, so the same row, parameters and random number give the same token everywhere.
#pragma once

#include <cstdint>
#include <span>

namespace lserve {

// The level of a token says how far its weight exp((logit - largest) / temperature) is below 1, in
// steps of 2^-25 octaves (2e-8 of the weight, less than the roundings that made the logit). What is
// 40 octaves or more below is never drawn; no vocabulary's sum of such weights reaches 2^-16.
inline constexpr int kLevelFractionBits = 25;
inline constexpr int kDrawOctaves = 40;
inline constexpr uint32_t kNoLevel = uint32_t{kDrawOctaves} << kLevelFractionBits;
// The weight of level 0.
inline constexpr uint64_t kFullWeight = uint64_t{1} << kDrawOctaves;
// Sums of weights fit into 64 bits.
inline constexpr int64_t kMaxDrawTokens = int64_t{1} << 23;

// Tokens are ordered by level, then by id. The first `top_k` are kept; of these the fewest first
// ones with `top_p` of their weight; of these the ones up to `max_level`. One of them is drawn by
// its weight.
struct TokenDraw {
  static constexpr uint64_t kWhole = ~uint64_t{0};

  // The largest logit, of equal ones the lowest id; nothing else counts.
  bool takes_largest = false;
  float scale = 1;          // octaves per unit of a logit: log2(e) / temperature, finite
  int32_t top_k = 0;        // 0: all
  uint64_t top_p = kWhole;  // in 2^-64, at least 1; kWhole: all
  uint32_t max_level = kNoLevel - 1;
  uint64_t random = 0;  // uniform
};

// REQUIRES: neither is NaN, logit <= largest, largest > -inf.
constexpr uint32_t DrawLevel(float logit, float largest, float scale) {
  if (logit == largest) return 0;  // both may be infinite
  // Products only, each rounded once: nothing that a compiler could fuse.
  const float octaves = (largest - logit) * scale;
  if (!(octaves < static_cast<float>(kDrawOctaves))) return kNoLevel;
  return static_cast<uint32_t>(static_cast<int32_t>(octaves * 0x1p25f));
}

// The upper half of the product.
constexpr uint32_t MulHigh32(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((uint64_t{a} * b) >> 32);
}
constexpr uint64_t MulHigh(uint64_t a, uint64_t b) {
  constexpr uint64_t kLow = 0xffffffff;
  const uint64_t low = (a & kLow) * (b & kLow);
  const uint64_t left = (a >> 32) * (b & kLow) + (low >> 32);
  const uint64_t right = (a & kLow) * (b >> 32) + (left & kLow);
  return (a >> 32) * (b >> 32) + (left >> 32) + (right >> 32);
}

// 2^(40 - level / 2^25), within 1.1e-8 of it and one unit: at least 1. REQUIRES: level < kNoLevel.
constexpr uint64_t LevelWeight(uint32_t level) {
  // (1 - 2^-f) / f for f in [0, 1] by Chebyshev interpolation, in units of 2^-32, signs
  // alternating.
  constexpr uint32_t kCoefficients[] = {0x78809,   0x54a612,   0x274f388,
                                        0xe353290, 0x3d7f7506, 0xb17217df};
  const uint32_t fraction = level << (32 - kLevelFractionBits);
  uint32_t sum = kCoefficients[0];
  for (int i = 1; i < 6; ++i) sum = kCoefficients[i] - MulHigh32(fraction, sum);
  const uint64_t power = (uint64_t{1} << 32) - MulHigh32(fraction, sum);
  return (power << (kDrawOctaves - 32)) >> (level >> kLevelFractionBits);
}

// The least mass that is at least the share `top_p` of `total`; `total` for kWhole.
constexpr uint64_t WantedMass(uint64_t total, uint64_t top_p) {
  return MulHigh(total, top_p) + (total * top_p != 0 ? 1 : 0);
}

// The token, or -1: a logit is NaN. A row of -inf alone gives token 0. REQUIRES: `logits` is not
// empty, at most kMaxDrawTokens.
int32_t DrawToken(std::span<const float> logits, const TokenDraw& draw);

}  // namespace lserve
