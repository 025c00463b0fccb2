// HeadMeasure: what each KV head would lose if it saw only sink and window, observed while a model
// answers with dense attention. Used by calibration.cc.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/attention_probe.h"
#include "eval/ask.h"
#include "eval/calibration_samples.h"

namespace lserve {

// Of one KV head.
struct HeadLoss {
  double outside = 0;  // share of the attention outside sink and window, mean over queries
  double change = 0;   // relative change of the head's output without it, likewise
  // The most of outside * change that one query of a sample has: the mean over questions and the
  // mean over texts, which weigh the same however many there are of each. A head that
  // retrieves does so at few tokens, so a mean over tokens hides it; the share alone is large for
  // heads that look everywhere and learn nothing there, the change alone for those whose output is
  // small (ADR 0016 has the figures).
  double peak = 0;
};

struct HeadLosses {
  int num_layers = 0;
  int num_kv_heads = 0;
  int64_t queries = 0;
  std::vector<double> outside, change;  // [layers * KV heads], sums over queries
  struct Peaks {
    int64_t samples = 0;
    std::vector<double> sum;  // [layers * KV heads], over samples
  };
  Peaks questions, texts;

  HeadLosses(int layers, int kv_heads);
  std::vector<HeadLoss> Means() const;
};

// Runs `sample` through `engine`, which has dense attention or no streaming heads, and adds what
// its positions say. False: interrupted.
Result<bool> MeasureSample(Engine& engine,
                           const CalibrationSample& sample,
                           const AttentionSettings& streaming,
                           const AskHooks& hooks,
                           HeadLosses* losses);

// The request of a sample: its answer forced, its shared prefix kept.
Request SampleRequest(const CalibrationSample& sample, const AttentionSettings& attention);

}  // namespace lserve
