// Fidelity: how near sparse attention stays to dense attention on any text, position by position:
// the same most probable token, KL divergence of the next-token distributions, perplexity, and the
// share of attention that each head was shown; while
// the text is read (prefill) and while it is decoded token by token with the text's own tokens, as
// functions of the share of streaming heads and of the page budget. Used by `lserve eval fidelity`.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "eval/logit_compare.h"
#include "eval/result_log.h"
#include "eval/trial.h"
#include "lserve/engine.h"

namespace lserve {

struct FidelityText {
  std::string name;
  std::vector<int32_t> tokens;
};

struct FidelityOptions {
  EngineConfig config;          // attention: the sparse arm's
  std::vector<double> ratios;   // of streaming heads; empty: as the engine has it
  std::vector<int> budgets;     // tokens
  int64_t decode_tokens = 256;  // of the end of each text, decoded one by one
  std::vector<FidelityText> texts;
};

// The share of attention that lies on the keys which the heads were shown, by layer and KV head.
struct HeadRecall {
  int64_t kv_heads = 0;            // of a layer
  int64_t positions = 0;           // decode steps that were looked at
  std::vector<double> sum;         // [layers * KV heads], over positions; empty: not measured
  std::vector<uint8_t> streaming;  // [layers * KV heads], 1: sink and window, 0: selected pages

  void Add(const HeadRecall& other);
  double mean(size_t head) const { return sum[head] / static_cast<double>(positions); }
};

// What one phase of one text came to under one setting.
struct FidelityRecord {
  std::string text;
  std::optional<double> ratio;  // nothing: the head file's own choice
  int64_t streaming_heads = 0;
  std::optional<int> budget;  // nothing: prefill, which does not depend on it
  Divergence divergence;
  double visited = 0.0;  // pages per decode step, or tiles of the whole prefill
  double present = 0.0;
  HeadRecall recall = {};  // of decode
};

Json ToJson(const FidelityRecord& record);
Result<FidelityRecord> FidelityFromJson(const Json& json, const std::string& source);

struct FidelityRun {
  std::vector<FidelityRecord> records;
  EngineInfo info;
  Status status;  // why it ended early, if it did
  bool interrupted = false;
};

FidelityRun RunFidelity(const FidelityOptions& options, ResultLog& log, const EvalHooks& hooks);

// The text, checked: long enough to decode the last tokens of, short enough for the model.
Status CheckFidelityText(const FidelityText& text, int64_t decode_tokens, int64_t max_model_len);

// Over all texts, one line per phase and setting.
std::string FidelityTable(std::span<const FidelityRecord> records);
Json FidelityToJson(const FidelityRun& run, const Json& settings, bool complete);
std::string FidelityToSvg(const FidelityRun& run, bool complete);

}  // namespace lserve
