#include "eval/head_measure.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace lserve {

std::vector<HeadLoss> HeadLosses::Means() const {
  std::vector<HeadLoss> means = heads;
  const double n = std::max<double>(1.0, static_cast<double>(queries));
  for (HeadLoss& loss : means) {
    loss.outside /= n;
    loss.change /= n;
    loss.peak /= std::max<double>(1.0, static_cast<double>(samples));
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
  std::vector<double> peaks(losses->heads.size());
  request.on_attention = [&](const AttentionView& view) {
    const auto& wanted = sample.positions;
    const auto first =
        std::lower_bound(wanted.begin(), wanted.end(), view.range.first_position);
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
        losses->heads[at].outside += outside;
        losses->heads[at].change += change;
        peaks[at] = std::max(peaks[at], outside * change);
      }
    }
    if (view.layer() == 0) losses->queries += static_cast<int64_t>(positions.size());
    return Status();
  };
  if (!LS_TRY(Ask(engine, std::move(request), hooks))) return false;
  for (size_t i = 0; i < peaks.size(); ++i) losses->heads[i].peak += peaks[i];
  ++losses->samples;
  return true;
}

}  // namespace lserve
