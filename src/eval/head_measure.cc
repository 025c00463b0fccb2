#include "eval/head_measure.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace lserve {

HeadLosses::HeadLosses(int layers, int kv_heads) : num_layers(layers), num_kv_heads(kv_heads) {
  const size_t heads = static_cast<size_t>(layers) * static_cast<size_t>(kv_heads);
  for (std::vector<double>* sums : {&outside, &change, &questions.sum, &texts.sum}) {
    sums->resize(heads);
  }
}

std::vector<HeadLoss> HeadLosses::Means() const {
  std::vector<HeadLoss> means(outside.size());
  const double n = std::max<double>(1.0, static_cast<double>(queries));
  for (size_t i = 0; i < means.size(); ++i) {
    means[i].outside = outside[i] / n;
    means[i].change = change[i] / n;
    double kinds = 0;
    for (const Peaks* peaks : {&questions, &texts}) {
      if (peaks->samples == 0) continue;
      means[i].peak += peaks->sum[i] / static_cast<double>(peaks->samples);
      ++kinds;
    }
    if (kinds > 0) means[i].peak /= kinds;
  }
  return means;
}

Request SampleRequest(const CalibrationSample& sample, const AttentionSettings& attention) {
  Request request;
  request.prompt = sample.prompt;
  request.forced_tokens = sample.answer;
  request.sampling.temperature = 0.0;
  request.attention = attention;
  request.keep_prefix = sample.shared_prefix;
  return request;
}

Result<bool> MeasureSample(Engine& engine,
                           const CalibrationSample& sample,
                           const AttentionSettings& streaming,
                           const AskHooks& hooks,
                           HeadLosses* losses) {
  AttentionSettings dense = streaming;
  dense.mode = AttentionMode::kDense;
  Request request = SampleRequest(sample, dense);
  const size_t num_kv_heads = static_cast<size_t>(losses->num_kv_heads);
  std::vector<double> peaks(losses->outside.size());
  request.on_attention = [&](const AttentionView& view) {
    const auto& wanted = sample.positions;
    const auto first = std::lower_bound(wanted.begin(), wanted.end(), view.range.first_position);
    const auto last = std::lower_bound(first, wanted.end(), view.end());
    if (first == last) return Status();
    const std::span<const int64_t> positions(first, last);
    const std::vector<QueryMass> masses = LS_TRY(MeasureMass(view, positions, streaming));
    const std::vector<std::vector<double>> changes =
        LS_TRY(MeasureStreamingChange(view, positions, streaming));
    const size_t first_head = static_cast<size_t>(view.layer()) * num_kv_heads;
    for (size_t i = 0; i < positions.size(); ++i) {
      for (const HeadMass& head : masses[i].heads) {
        const size_t at = first_head + static_cast<size_t>(head.kv_head);
        const double outside = std::max(0.0, 1.0 - head.seen);
        const double change = changes[i][static_cast<size_t>(head.kv_head)];
        losses->outside[at] += outside;
        losses->change[at] += change;
        peaks[at] = std::max(peaks[at], outside * change);
      }
    }
    if (view.layer() == 0) losses->queries += static_cast<int64_t>(positions.size());
    return Status();
  };
  if (!LS_TRY(Ask(engine, std::move(request), hooks))) return false;
  HeadLosses::Peaks& kind = sample.is_question ? losses->questions : losses->texts;
  for (size_t i = 0; i < peaks.size(); ++i) kind.sum[i] += peaks[i];
  ++kind.samples;
  return true;
}

}  // namespace lserve
