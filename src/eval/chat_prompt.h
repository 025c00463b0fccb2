// ChatPrompt: the tokens of an evaluation's prompt: the user's text in the checkpoint's chat
// template (or as it is, without one), then the beginning of the answer if the task gives it. Used
// by the tasks of this folder.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "tokenizer/tokenizer.h"

namespace lserve {

enum class ChatUse : uint8_t { kIfAvailable, kNever };

Result<std::vector<int32_t>> EvalPrompt(const Tokenizer& tokenizer,
                                        const std::string& user_text,
                                        std::string_view answer_prefix = "",
                                        ChatUse chat = ChatUse::kIfAvailable);

// Tokens of plain text: nothing added, nothing special.
Result<std::vector<int32_t>> PlainTokens(const Tokenizer& tokenizer, std::string_view text);

// The largest n in [low, high] for which `tokens_of(n)` is at most `budget`, by binary search that
// begins where a proportional guess points; low - 1 if there is none. `tokens_of` grows with n but
// for small dips, so the n that is returned was itself tried.
template <class TokensOf>
Result<int64_t> LargestThatFits(int64_t low, int64_t high, int64_t budget, TokensOf&& tokens_of) {
  int64_t best = low - 1;
  const int64_t at_low = LS_TRY(tokens_of(low));
  if (at_low > budget) return best;
  best = low;
  // Two probes give the tokens per unit; the guess is then a little too small and a little too
  // large, which leaves a short range.
  int64_t probe = low + 64 < high ? low + 64 : high;
  if (probe > low) {
    const int64_t at_probe = LS_TRY(tokens_of(probe));
    if (at_probe <= budget) best = probe;
    const int64_t growth = at_probe > at_low ? at_probe - at_low : 1;
    const double units = static_cast<double>(budget - at_low) * static_cast<double>(probe - low) /
                         static_cast<double>(growth);
    for (const double factor : {0.98, 1.02}) {
      const double guess = static_cast<double>(low) + units * factor;
      if (guess <= static_cast<double>(best) || guess >= static_cast<double>(high)) continue;
      const int64_t n = static_cast<int64_t>(guess);
      if (n <= best) continue;
      if (LS_TRY(tokens_of(n)) <= budget) {
        best = n;
      } else {
        high = n - 1;
        break;
      }
    }
  }
  while (best < high) {
    const int64_t middle = best + (high - best + 1) / 2;
    if (LS_TRY(tokens_of(middle)) <= budget) {
      best = middle;
    } else {
      high = middle - 1;
    }
  }
  return best;
}

}  // namespace lserve
