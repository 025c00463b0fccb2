// StepDraws: the tokens of the sequences whose logits one product gave. They are drawn where the
// logits are, after what changes these; whoever wants to look at logits gets a copy. Used by the
// engine, on its thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "base/status.h"
#include "engine/sequence.h"
#include "loader/model_config.h"

namespace lserve {

class StepDraws {
 public:
  // Both must outlive it.
  StepDraws(Backend* backend, const ModelConfig* model) : backend_(backend), model_(model) {}

  struct Row {
    const Sequence* sequence = nullptr;
    bool is_copied = false;  // someone wants to look at the logits
  };
  // `logits` is [rows, vocab], on the device, and is changed. What the host has to work out is done
  // while the device still computes them.
  Status Draw(std::span<const Row> rows, const Matrix& logits);

  // Of the last Draw(): the logits as they were; empty if they are not copied.
  std::span<const float> logits(size_t row) const;
  // The token, to be given to Sampler::Take(); of a sequence with forced tokens it says nothing.
  // Error: the sequence's constraint's.
  Result<int32_t> token(size_t row) const;

 private:
  void PlanRow(const Sequence& sequence, std::span<uint64_t> allowed);
  Status CopyLogits(std::span<const Row> rows, const Matrix& logits);

  Backend* backend_;
  const ModelConfig* model_;
  // A row each.
  std::vector<TokenDraw> draws_;
  std::vector<LogitEdits> edits_;
  std::vector<Status> errors_;
  std::vector<int32_t> tokens_;
  std::vector<size_t> copies_;        // which of copied_logits_; kNotCopied
  std::vector<uint64_t> allowed_;     // [rows, words of the vocabulary]
  std::vector<float> copied_logits_;  // [rows that are copied, vocab]
};

}  // namespace lserve
