// Calibration: which KV heads may stream, found without training and for any model: run with dense
// attention, measure what each head would lose with sink and window only (head_measure.h), cut the
// order at a ratio or at a loss, and check the cut by switching the heads for real. Used by `lserve
// calibrate`. ADR 0016 says why this measure.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "eval/head_measure.h"
#include "eval/trial.h"
#include "loader/streaming_heads.h"
#include "lserve/engine.h"

namespace lserve {

// What the score of a head is.
enum class HeadRank : uint8_t {
  kPeak,      // HeadLoss::peak: one dense run finds all heads
  kAblation,  // what the logits lose when this head alone streams: a run per head, and the truth
};
std::string_view Name(HeadRank rank);

struct CalibrationOptions {
  EngineConfig config;  // of its attention settings, sink and window count
  std::vector<CalibrationSample> samples;
  std::vector<CalibrationSample> checks;  // other ones
  HeadRank rank = HeadRank::kPeak;
  // The share that streams, or the most that it may cost (CutCheck::kl). One of them is set.
  std::optional<double> target_ratio;
  std::optional<double> max_loss;
  std::vector<double> ratios;  // also checked, so that the user sees what else there was
  std::optional<StreamingHeadsFile> other;  // to compare with
  std::string other_name;
};

// What a set of streaming heads did on the checks.
struct CutCheck {
  std::string name;  // "calibrated", or of the file that is compared
  int64_t streaming_heads = 0;
  int64_t answers = 0;  // that dense attention gives right; texts have none
  int64_t right = 0;    // of them
  // KL(dense || cut) in nats per token, of answers and of texts; nothing without any.
  std::optional<double> answer_kl = {}, text_kl = {};

  // The larger one.
  double kl() const { return std::max(answer_kl.value_or(0), text_kl.value_or(0)); }
  // Of what there is; answers and texts weigh the same however many there are of each.
  double mean_kl() const;
};

struct CalibrationResult {
  EngineInfo info;
  std::vector<HeadLoss> heads;  // [layers * KV heads]
  int64_t queries = 0;
  StreamingHeadsFile file;  // score, by CalibrationOptions::rank, and kind
  // With HeadRank::kAblation, what each head costs alone, on the samples; [layers * KV heads].
  std::vector<CutCheck> alone;
  std::vector<CutCheck> checks;
  double measure_seconds = 0;
  double check_seconds = 0;
  bool interrupted = false;
};

// Only a result that is not interrupted is whole.
Result<CalibrationResult> RunCalibration(const CalibrationOptions& options, const EvalHooks& hooks);

// How two orders of the same heads agree.
struct HeadComparison {
  double rank_correlation = 0;  // Spearman's, ties share their mean rank
  int64_t both_retrieval = 0;   // with both cut at the same number of streaming heads
  int64_t retrieval = 0;
  std::vector<size_t> only_ours, only_theirs;  // retrieval in one only, as layer * KV heads + head
};
HeadComparison CompareHeads(const StreamingHeadsFile& ours, const StreamingHeadsFile& theirs);

// streaming_heads.json.
Json CalibrationToJson(const CalibrationResult& result, const CalibrationOptions& options);
// For a terminal: heat map, heads by layer, checks, comparison.
std::string CalibrationText(const CalibrationResult& result, const CalibrationOptions& options);
std::string CalibrationSvg(const CalibrationResult& result);

}  // namespace lserve
