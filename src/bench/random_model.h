// A model of any shape with random bf16 weights, made in memory: for speed, never for answers. Used
// by `lserve bench --shape` and tests.
#pragma once

#include <cstdint>

#include "engine/engine_inputs.h"

namespace lserve {

// Share of the KV heads that stream where no file says which.
inline constexpr double kRandomStreamingRatio = 0.5;

// Weights with a standard deviation of 0.02 and norms of 1, the same for the same seed. All
// matrices are windows, at different places, of one pool as large as the largest of them: a backend
// that packs a weight into memory of its own then has every byte of it, at half the memory and a
// tenth of the time. Head scores are random, and half of the KV heads stream.
ModelInMemory MakeRandomModel(const ModelConfig& config, uint64_t seed);

}  // namespace lserve
