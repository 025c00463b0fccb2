// LogitCompare: how far the logits of one run are from those of another over the same tokens. The
// first run is kept compactly: of each position the most probable tokens, the logarithm of the sum
// and the logit of the token that follows, so that a text of 100,000 positions takes 270 MB and not
// 50 GB. Used by fidelity.cc.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace lserve {

struct Divergence {
  int64_t positions = 0;
  int64_t same_top = 0;  // positions with the same most probable token
  // The same of the positions where the first run's most probable token leads by kClearLead: the
  // order of the others turns with the rounding of a sum (docs/studies/fidelity.md).
  int64_t clear = 0, same_clear = 0;
  double kl = 0.0;              // sums over positions from here on, in nats
  double covered = 0.0;         // probability that the kept tokens have
  double reference_loss = 0.0;  // -log p of the token that follows
  double loss = 0.0;

  void Add(const Divergence& other);
};

// In nats: a tenth more probable than the next.
inline constexpr double kClearLead = 0.1;

class LogitReference {
 public:
  // Tokens that are kept in all, 8 bytes each: 256 MiB. A short text has all of a small vocabulary.
  static constexpr int64_t kEntries = int64_t{1} << 25;
  static constexpr int64_t kFewest = 128, kMost = 4096;  // of a position

  // `tokens` must outlive it: the text whose logits are compared.
  LogitReference(int64_t vocab, std::span<const int32_t> tokens);

  // The logits at `position` of the first run; every position but the last has a next token.
  void Keep(int64_t position, std::span<const float> logits);

  // Adds what the second run's `logits` at `position` differ by. KL(first || second) is taken over
  // the kept tokens and one class of all others, which makes it a lower bound: exact where the
  // whole vocabulary is kept, and short by what the rest would add otherwise (`covered`).
  // REQUIRES: the position was kept.
  void Compare(int64_t position, std::span<const float> logits, Divergence& sum) const;

 private:
  struct Position {
    double log_sum = 0.0;
    float next_logit = 0.0f;
    bool kept = false;
  };

  std::span<const int32_t> tokens_;
  size_t kept_;  // per position
  std::vector<Position> positions_;
  std::vector<int32_t> ids_;  // [positions, kept], by falling logit
  std::vector<float> logits_;
  std::vector<int32_t> order_;  // scratch
};

}  // namespace lserve
