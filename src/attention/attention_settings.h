// AttentionSettings: what the user can say about sparsity. Plain data; attention/policy.h turns it
// into plans.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace lserve {

enum class AttentionMode : uint8_t {
  kAuto,    // each query is dense below `min_context`, sparse from there on
  kDense,   // every query sees everything; nothing is trimmed, no selector runs
  kSparse,  // as auto with min_context 0
};
std::string_view Name(AttentionMode mode);
std::optional<AttentionMode> ParseAttentionMode(std::string_view name);

inline constexpr double kDefaultPrefillThreshold = 0.9;
inline constexpr int kDefaultPrefillMaxTokens = 16384;
inline constexpr int64_t kMinBlockSparsePosition = 4096;

struct AttentionSettings {
  AttentionMode mode = AttentionMode::kAuto;

  // Tokens that a retrieval head reads in a decode step, in whole pages of 64 (rounded down), the
  // always-kept first and two newest pages included. At or below it every page is read: exact
  // attention. Larger is safer and slower.
  int token_budget = 4096;

  // What a streaming head sees: the first `sink_tokens` and the newest `recent_tokens` positions,
  // itself included, exact to the token.
  int sink_tokens = 128;
  int recent_tokens = 256;
  // The window while a prompt is read; 0: recent_tokens. A wider one costs prefill time and, until
  // the prompt ends, pages.
  int prefill_recent_tokens = 0;

  // In auto mode a query at a position below this is dense, in prefill and in decode, so that short
  // prompts are exact. It decides by position, never by the length of the prompt (design: the
  // prefix rule).
  int64_t min_context = 8192;

  // Prefill of the retrieval heads: a tile of 128 queries reads the tiles of 128 keys that together
  // carry this share of its estimated attention (SelectTiles). 0 or 1: all of them.
  double prefill_threshold = kDefaultPrefillThreshold;
  // Keys that such a tile of queries reads at most, in whole tiles (rounded down), the always-kept
  // first tile and two newest ones included: past it what is read of a prompt grows with its
  // length, not with its square (the estimate still sees all keys). 0: as many as the threshold
  // asks for. What it costs: docs/adr/0035-tiles-at-most.md.
  int prefill_max_tokens = kDefaultPrefillMaxTokens;
  // Tiles that begin below this position are dense: there the estimate and what a short list leaves
  // cost as much as reading everything. Measured, see docs/adr/0012-block-sparse-prefill.md.
  int64_t prefill_min_position = kMinBlockSparsePosition;

  // A page list is chosen anew every this many decode steps of its sequence. 1 is the most exact.
  // 0: as many as the budget carries, interval().
  int selector_interval = 0;

  int prefill_window() const {
    return prefill_recent_tokens > 0 ? prefill_recent_tokens : recent_tokens;
  }

  // 4 (LServe's) at the default budget of 4096 tokens, less below: budget / 1024, at least 1. A
  // list that is reused must hold what the next queries ask for, and a small one does not: see
  // docs/adr/0010-reuse-needs-budget.md for the counts.
  int interval() const {
    return selector_interval > 0 ? selector_interval : std::clamp(token_budget / 1024, 1, 4);
  }

  // Whether some tile of a long prompt may be block-sparse.
  bool selects_tiles() const {
    return mode != AttentionMode::kDense && prefill_threshold > 0 && prefill_threshold < 1;
  }

  // All problems, one line each; empty if there is none.
  std::vector<std::string> Problems() const;
};

// What prefill's keys and values follow from: settings of the same key give the same, so that the
// cached prefix of one serves the other. The decode-only settings do not count. Part of what
// prefixes on disk are kept under.
std::string PrefillKey(const AttentionSettings& settings);
inline bool SamePrefill(const AttentionSettings& a, const AttentionSettings& b) {
  return PrefillKey(a) == PrefillKey(b);
}

}  // namespace lserve
