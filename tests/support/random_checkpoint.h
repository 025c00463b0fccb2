// Writes small random checkpoints to a temporary directory, so that tests can make any shape they
// need. Not for golden comparisons: those use checkpoints that transformers wrote.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lserve {

struct RandomModelShape {
  int64_t vocab = 97;
  int64_t hidden = 64;
  int64_t intermediate = 96;
  int64_t layers = 3;
  int64_t q_heads = 4;
  int64_t kv_heads = 2;
  int64_t head_dim = 16;
  int64_t max_positions = 4096;
  uint64_t seed = 1;
  std::vector<uint8_t> kinds;  // [layers * kv_heads], 1 = retrieval; empty: no streaming_heads.json
};

// The directory is removed with the object.
class RandomCheckpoint {
 public:
  explicit RandomCheckpoint(const RandomModelShape& shape);
  ~RandomCheckpoint();
  RandomCheckpoint(const RandomCheckpoint&) = delete;
  RandomCheckpoint& operator=(const RandomCheckpoint&) = delete;

  const std::string& dir() const { return dir_; }

 private:
  std::string dir_;
};

// `count` tokens in [0, vocab).
std::vector<int32_t> RandomTokens(int64_t count, int64_t vocab, uint64_t seed);

}  // namespace lserve
