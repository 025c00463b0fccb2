// Rotary embedding on the host: the inverse frequencies of every RoPE type and the cos/sin rows
// that the backends rotate queries and keys with. No device code. Used by model/ and its tests.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "loader/model_config.h"

namespace lserve {

struct RopeFrequencies {
  std::vector<double> inv_freq;   // [head_dim / 2], radians per position
  double attention_factor = 1.0;  // scales cos and sin (YaRN's temperature)
};

// The frequencies of `config`, computed in double from the published formulas.
//
// dynamic: the base grows with the sequence in the original; here it is fixed from
// `max_model_len`, because keys are stored rotated and a base that moved would make them stale. The
// result equals transformers' for a sequence of max(max_model_len, max_position_embeddings) tokens.
// The other types do not depend on `max_model_len`.
// REQUIRES: `config` is from a valid ModelConfig; head_dim is even and > 0.
RopeFrequencies MakeRopeFrequencies(const RopeConfig& config,
                                    int64_t head_dim,
                                    int64_t max_position_embeddings,
                                    int64_t max_model_len);

// Writes cos and sin, times the attention factor, of positions first .. first + num_positions - 1.
// transformers multiplies float positions by float frequencies, so its angles are off by up to
// position * inv_freq * 2^-23 (0.1 rad at a million). Ours are double throughout: off by at most
// position * inv_freq * 2^-51 (5e-10 rad at a million), then rounded to float once.
// REQUIRES: first >= 0; cos and sin hold [num_positions, head_dim / 2].
void FillRopeRange(const RopeFrequencies& frequencies,
                   int64_t first,
                   int64_t num_positions,
                   std::span<float> cos,
                   std::span<float> sin);

// The same for any positions (a batch of sequences of different lengths).
void FillRopeRows(const RopeFrequencies& frequencies,
                  std::span<const int64_t> positions,
                  std::span<float> cos,   // [positions.size(), head_dim / 2]
                  std::span<float> sin);  // [positions.size(), head_dim / 2]

}  // namespace lserve
