#include "attention/attention_settings.h"

#include <algorithm>

#include "base/strings.h"
#include "kv/page.h"

namespace lserve {
namespace {

// The forced first page and two newest pages, and one that is chosen.
constexpr int kMinBudgetTokens = 4 * kPageTokens;
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
  return problems;
}

bool SamePrefill(const AttentionSettings& a, const AttentionSettings& b) {
  if (a.mode == AttentionMode::kDense || b.mode == AttentionMode::kDense) return a.mode == b.mode;
  const auto first_sparse = [](const AttentionSettings& s) {
    return s.mode == AttentionMode::kSparse ? 0 : s.min_context;
  };
  if (a.selects_tiles() != b.selects_tiles()) return false;
  if (a.selects_tiles() && (a.prefill_threshold != b.prefill_threshold ||
                            std::max(first_sparse(a), a.prefill_min_position) !=
                                std::max(first_sparse(b), b.prefill_min_position))) {
    return false;
  }
  return first_sparse(a) == first_sparse(b) && a.sink_tokens == b.sink_tokens &&
         a.prefill_window() == b.prefill_window();
}

}  // namespace lserve
