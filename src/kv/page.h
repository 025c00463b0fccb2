// The vocabulary of KV storage: pages, logical pages, ways. See docs/architecture.md.
#pragma once

#include <compare>
#include <cstdint>

namespace lserve {

// A page is 64 tokens of one way, across all layers. 64 keys are four 16-lane vectors (AVX-512) or
// half a 128-key tile (GPU), and a smaller page costs decode bandwidth (LServe, table 1: pages of
// 16 tokens are up to 1.5 x slower than pages of 64).
inline constexpr int kPageTokens = 64;

// A logical page is the sub-unit of a page that carries its own key statistics.
inline constexpr int kLogicalPageTokens = 16;
inline constexpr int kLogicalPagesPerPage = kPageTokens / kLogicalPageTokens;

// The KV cache has one way per kind of KV head.
enum class Way : uint8_t { kRetrieval = 0, kStreaming = 1 };
inline constexpr int kNumWays = 2;
inline constexpr Way kWays[kNumWays] = {Way::kRetrieval, Way::kStreaming};
constexpr int Index(Way way) {
  return static_cast<int>(way);
}

// A physical page of one way; ids of different ways are unrelated.
using PageId = int32_t;
inline constexpr PageId kNoPage = -1;

// The place of a page in its sequence: tokens [64 i, 64 i + 64).
using PageIdx = int32_t;

constexpr PageIdx NumPages(int64_t num_tokens) {
  return static_cast<PageIdx>((num_tokens + kPageTokens - 1) / kPageTokens);
}

}  // namespace lserve
