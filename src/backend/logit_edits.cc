#include "backend/logit_edits.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace lserve {

void EditLogits(std::span<float> logits, const LogitEdits& edits) {
  const int64_t num_tokens = static_cast<int64_t>(logits.size());
  const int64_t num_words = NumTokenWords(num_tokens);
  LS_CHECK(edits.allowed.empty() || static_cast<int64_t>(edits.allowed.size()) == num_words)
      << edits.allowed.size() << " words for " << num_tokens << " tokens";
  auto shift = edits.shifts.begin();
  for (int64_t w = 0; w < num_words; ++w) {
    const size_t word = static_cast<size_t>(w);
    const int64_t first = w * kTokensPerWord;
    const int64_t end = std::min(first + kTokensPerWord, num_tokens);
    const uint64_t allowed = edits.allowed.empty() ? ~uint64_t{0} : edits.allowed[word];
    const uint64_t repeated = word < edits.repeated.size() ? edits.repeated[word] : 0;
    uint64_t changed = ~allowed | repeated;
    for (auto s = shift; s != edits.shifts.end() && s->token < end; ++s) {
      changed |= uint64_t{1} << (s->token - first);
    }
    for (; changed != 0; changed &= changed - 1) {
      const int bit = std::countr_zero(changed);
      const int64_t token = first + bit;
      if (token >= num_tokens) break;  // padding of the last word
      const bool shifts = shift != edits.shifts.end() && shift->token == token;
      float& logit = logits[static_cast<size_t>(token)];
      logit = EditedLogit(logit, ((allowed >> bit) & 1) != 0, shifts ? shift->bias : 0,
                          ((repeated >> bit) & 1) != 0 ? edits.repetition : 1,
                          shifts ? shift->penalty : 0);
      if (shifts) ++shift;
    }
  }
}

}  // namespace lserve
