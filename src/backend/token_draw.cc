#include "backend/token_draw.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/check.h"

namespace lserve {
namespace {

// Tokens in their order, sorted as far as it is asked for: a share of the mass and the draw itself
// mostly end within the first few hundred of a vocabulary of 10^5.
class Ranking {
 public:
  void Add(uint32_t level, size_t token) { keys_.push_back(uint64_t{level} << 32 | token); }
  void Reserve(size_t count) { keys_.reserve(count); }
  size_t size() const { return keys_.size(); }

  void KeepFirst(size_t count) {
    if (count >= keys_.size()) return;
    std::nth_element(keys_.begin(), keys_.begin() + static_cast<int64_t>(count) - 1, keys_.end());
    keys_.resize(count);
  }
  // In no order.
  std::span<const uint64_t> keys() const { return keys_; }
  uint64_t Sorted(size_t i) {
    if (i >= sorted_) {
      const size_t to = std::min(keys_.size(), std::max<size_t>(256, sorted_ * 4));
      std::partial_sort(keys_.begin() + static_cast<int64_t>(sorted_),
                        keys_.begin() + static_cast<int64_t>(to), keys_.end());
      sorted_ = to;
    }
    return keys_[i];
  }

 private:
  std::vector<uint64_t> keys_;  // level, then token
  size_t sorted_ = 0;
};

uint32_t Level(uint64_t key) {
  return static_cast<uint32_t>(key >> 32);
}

}  // namespace

int32_t DrawToken(std::span<const float> logits, const TokenDraw& draw) {
  LS_CHECK(!logits.empty() && static_cast<int64_t>(logits.size()) <= kMaxDrawTokens)
      << logits.size();
  size_t first = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i])) return -1;
    if (logits[i] > logits[first]) first = i;
  }
  const float largest = logits[first];
  if (draw.takes_largest || largest == -std::numeric_limits<float>::infinity()) {
    return static_cast<int32_t>(first);
  }
  Ranking ranking;
  ranking.Reserve(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    const uint32_t level = DrawLevel(logits[i], largest, draw.scale);
    if (level < kNoLevel) ranking.Add(level, i);
  }
  if (draw.top_k > 0) ranking.KeepFirst(static_cast<size_t>(draw.top_k));

  uint64_t total = 0, passing = 0;  // `passing`: of the tokens up to max_level, which come first
  for (const uint64_t key : ranking.keys()) {
    const uint64_t weight = LevelWeight(Level(key));
    total += weight;
    if (Level(key) <= draw.max_level) passing += weight;
  }
  uint64_t mass = passing;
  if (draw.top_p != TokenDraw::kWhole) {
    const uint64_t enough = std::min(WantedMass(total, draw.top_p), passing);
    mass = 0;
    for (size_t i = 0; mass < enough; ++i) mass += LevelWeight(Level(ranking.Sorted(i)));
  }
  uint64_t point = MulHigh(mass, draw.random);
  for (size_t i = 0; i < ranking.size(); ++i) {
    const uint64_t key = ranking.Sorted(i);
    const uint64_t weight = LevelWeight(Level(key));
    if (point < weight) return static_cast<int32_t>(key & 0xffffffff);
    point -= weight;
  }
  LS_CHECK(false) << "the point lies beyond the mass";
  return -1;
}

}  // namespace lserve
