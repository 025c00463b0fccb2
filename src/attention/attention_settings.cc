#include "attention/attention_settings.h"

#include <algorithm>
#include <bit>

#include "attention/page_plan.h"
#include "base/strings.h"
#include "kv/page.h"

namespace lserve {
namespace {

// The forced first page and two newest pages, and one that is chosen.
constexpr int kMinBudgetTokens = 4 * kPageTokens;
// The same in tiles, for prefill.
constexpr int kMinPrefillTokens = 4 * kTileTokens;
constexpr int kMaxTokens = 1 << 30;

}  // namespace

std::string_view Name(AttentionMode mode) {
  switch (mode) {
    case AttentionMode::kAuto:
      return "auto";
    case AttentionMode::kDense:
      return "dense";
    case AttentionMode::kSparse:
      return "sparse";
  }
  return "?";
}

std::optional<AttentionMode> ParseAttentionMode(std::string_view name) {
  for (const AttentionMode mode :
       {AttentionMode::kAuto, AttentionMode::kDense, AttentionMode::kSparse}) {
    if (Name(mode) == name) return mode;
  }
  return std::nullopt;
}

std::vector<std::string> AttentionSettings::Problems() const {
  std::vector<std::string> problems;
  const auto check = [&](const char* flag, int64_t value, int64_t low, int64_t high) {
    if (value >= low && value <= high) return;
    problems.push_back(StrCat(flag, " is ", value, ", expected ", low, " to ", high));
  };
  check("--sparse-token-budget", token_budget, kMinBudgetTokens, kMaxTokens);
  check("--sparse-sink-tokens", sink_tokens, 0, kMaxTokens);
  check("--sparse-recent-tokens", recent_tokens, 1, kMaxTokens);
  check("--sparse-prefill-recent-tokens", prefill_recent_tokens, 0, kMaxTokens);
  check("--sparse-min-context", min_context, 0, int64_t{1} << 40);
  check("--sparse-prefill-min-context", prefill_min_position, 0, int64_t{1} << 40);
  check("--selector-interval", selector_interval, 0, 1 << 20);
  if (!(prefill_threshold >= 0 && prefill_threshold <= 1)) {
    problems.push_back(StrCat("--sparse-prefill-threshold is ", prefill_threshold,
                              ", expected 0 (off) to 1 (everything)"));
  }
  if (prefill_max_tokens != 0 && prefill_max_tokens < kMinPrefillTokens) {
    problems.push_back(StrCat("--sparse-prefill-max-tokens is ", prefill_max_tokens,
                              ", expected 0 (no limit) or at least ", kMinPrefillTokens));
  }
  return problems;
}

std::string PrefillKey(const AttentionSettings& s) {
  if (s.mode == AttentionMode::kDense) return "dense";
  const int64_t first_sparse = s.mode == AttentionMode::kSparse ? 0 : s.min_context;
  std::string key = StrCat("sparse from ", first_sparse, ", sink ", s.sink_tokens, ", window ",
                           s.prefill_window());
  if (s.selects_tiles()) {
    key += StrCat(", tiles from ", std::max(first_sparse, s.prefill_min_position), ", threshold ",
                  std::bit_cast<uint64_t>(s.prefill_threshold), ", most ",
                  s.prefill_max_tokens / kTileTokens);
  }
  return key;
}

}  // namespace lserve
