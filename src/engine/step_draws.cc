#include "engine/step_draws.h"

#include <algorithm>
#include <limits>

#include "base/within_memory.h"

namespace lserve {
namespace {

constexpr size_t kNotCopied = std::numeric_limits<size_t>::max();

// Whether some tokens may not come next.
bool ForbidsTokens(const Sequence& sequence) {
  return sequence.request.constraint != nullptr ||
         static_cast<int64_t>(sequence.answer.size()) < sequence.request.min_tokens;
}

// Clears the bits of the tokens that may not come next.
Status Forbid(const Sequence& sequence, const ModelConfig& model, std::span<uint64_t> allowed) {
  if (static_cast<int64_t>(sequence.answer.size()) < sequence.request.min_tokens) {
    for (const auto* ids : {&model.eos_token_ids, &sequence.request.stop_token_ids}) {
      for (const int32_t id : *ids) {
        if (id >= 0 && id < model.vocab_size) RemoveToken(allowed.data(), id);
      }
    }
  }
  const auto& constraint = sequence.request.constraint;
  return constraint == nullptr ? Status() : constraint->Mask(allowed);
}

}  // namespace

void StepDraws::PlanRow(const Sequence& sequence, std::span<uint64_t> allowed) {
  draws_.push_back({.takes_largest = true});  // the cheapest, where nobody asks for a token
  edits_.emplace_back();
  errors_.emplace_back();
  if (!sequence.request.forced_tokens.empty()) return;
  LogitEdits edits = sequence.sampler.Edits();
  if (ForbidsTokens(sequence)) {
    std::fill(allowed.begin(), allowed.end(), ~uint64_t{0});
    errors_.back() = WithinMemory([&] { return Forbid(sequence, *model_, allowed); });
    if (!errors_.back().ok()) return;
    edits.allowed = allowed;
  }
  draws_.back() = sequence.sampler.NextDraw();
  edits_.back() = edits;
}

Status StepDraws::CopyLogits(std::span<const Row> rows, const Matrix& logits) {
  copies_.clear();
  size_t num_copies = 0;
  for (const Row& row : rows) copies_.push_back(row.is_copied ? num_copies++ : kNotCopied);
  const size_t vocab = static_cast<size_t>(logits.cols);
  copied_logits_.resize(num_copies * vocab);
  // Neighbours in one copy.
  for (size_t r = 0; r < rows.size();) {
    size_t end = r + 1;
    if (copies_[r] != kNotCopied) {
      while (end < rows.size() && copies_[end] != kNotCopied) ++end;
      LS_TRY(backend_->CopyToHost(copied_logits_.data() + copies_[r] * vocab,
                                  logits.row<float>(static_cast<int64_t>(r)),
                                  (end - r) * vocab * sizeof(float)));
    }
    r = end;
  }
  return Status();
}

Status StepDraws::Draw(std::span<const Row> rows, const Matrix& logits) {
  draws_.clear();
  edits_.clear();
  errors_.clear();
  const size_t words = static_cast<size_t>(NumTokenWords(logits.cols));
  allowed_.resize(rows.size() * words);
  for (size_t r = 0; r < rows.size(); ++r) {
    PlanRow(*rows[r].sequence, std::span(allowed_).subspan(r * words, words));
  }
  LS_TRY(CopyLogits(rows, logits));  // before they are changed
  tokens_.resize(rows.size());
  return backend_->PickTokens({.x = logits, .draws = draws_, .edits = edits_, .out = tokens_});
}

std::span<const float> StepDraws::logits(size_t row) const {
  if (copies_[row] == kNotCopied) return {};
  const size_t vocab = static_cast<size_t>(model_->vocab_size);
  return std::span(copied_logits_).subspan(copies_[row] * vocab, vocab);
}

Result<int32_t> StepDraws::token(size_t row) const {
  if (!errors_[row].ok()) return errors_[row];
  return tokens_[row];
}

}  // namespace lserve
