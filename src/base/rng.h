// SplitMix64: a small seeded generator whose sequence is the same on every platform, for sampling
// and for test data. (G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number
// generators", OOPSLA 2014, section 4.)
#pragma once

#include <cstdint>

namespace lserve {

class Rng {
 public:
  explicit Rng(uint64_t seed) : state_(seed) {}

  uint64_t NextU64() {
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // Uniform in [0, 1).
  double NextDouble() { return static_cast<double>(NextU64() >> 11) * 0x1p-53; }
  // Uniform in [-1, 1).
  float NextFloat() { return static_cast<float>(NextDouble() * 2.0 - 1.0); }
  // Uniform in [0, n). REQUIRES: n > 0. The bias of n / 2^64 is below what a test can see.
  uint64_t NextBelow(uint64_t n) { return NextU64() % n; }

 private:
  uint64_t state_;
};

}  // namespace lserve
