#include "bench/metered_backend.h"

#include "base/clock.h"

namespace lserve {
namespace {

// Runs an op and books its time and cost.
template <class F>
Status Metered(OpMeter* meter, OpKind kind, const OpCost& cost, F&& op) {
  OpTotals& totals = meter->of(kind);
  const Stopwatch watch;
  Status status = op();
  totals.seconds += watch.seconds();
  totals.cost += cost;
  return status;
}

}  // namespace

const char* Name(OpKind kind) {
  switch (kind) {
    case OpKind::kLinear:
      return "linear";
    case OpKind::kPrefillAttention:
      return "prefill_attention";
    case OpKind::kDecodeAttention:
      return "decode_attention";
    case OpKind::kSelectPages:
      return "select_pages";
    case OpKind::kSelectTiles:
      return "select_tiles";
    case OpKind::kAppendKv:
      return "append_kv";
    case OpKind::kElementwise:
      return "elementwise";
  }
  return "?";
}

double OpMeter::flop() const {
  double sum = 0;
  for (const OpTotals& t : totals) sum += t.cost.flop;
  return sum;
}

double OpMeter::bytes() const {
  double sum = 0;
  for (const OpTotals& t : totals) sum += t.cost.bytes;
  return sum;
}

double OpMeter::attention_seconds() const {
  return of(OpKind::kPrefillAttention).seconds + of(OpKind::kDecodeAttention).seconds +
         of(OpKind::kSelectPages).seconds + of(OpKind::kSelectTiles).seconds;
}

Status MeteredBackend::CopyToDevice(void* device, const void* host, size_t bytes) {
  return inner_->CopyToDevice(device, host, bytes);
}

Status MeteredBackend::CopyToHost(void* host, const void* device, size_t bytes) {
  return inner_->CopyToHost(host, device, bytes);
}

Result<Buffer> MeteredBackend::ImportConstant(std::span<const std::byte> bytes) {
  return inner_->ImportConstant(bytes);
}

KvHeadBytes MeteredBackend::kv_head_bytes(DType dtype, int head_dim) const {
  return inner_->kv_head_bytes(dtype, head_dim);
}

Result<std::unique_ptr<KvStore>> MeteredBackend::MakeKvStore(const KvLayout& layout,
                                                             const PageId (&max_pages)[kNumWays]) {
  return inner_->MakeKvStore(layout, max_pages);
}

Result<LinearWeight> MeteredBackend::PackLinear(std::span<const WeightPart> parts,
                                                int64_t in_features,
                                                std::span<const float> bias,
                                                WeightFormat format) {
  return inner_->PackLinear(parts, in_features, bias, format);
}

Result<LinearWeight> MeteredBackend::ImportLinear(WeightFormat format,
                                                  int64_t out_features,
                                                  int64_t in_features,
                                                  std::span<const std::byte> data,
                                                  std::span<const float> bias) {
  return inner_->ImportLinear(format, out_features, in_features, data, bias);
}

Status MeteredBackend::GatherRows(const GatherRowsParams& params) {
  return Metered(meter_, OpKind::kElementwise, {}, [&] { return inner_->GatherRows(params); });
}

Status MeteredBackend::RmsNorm(const RmsNormParams& params) {
  return Metered(meter_, OpKind::kElementwise, {}, [&] { return inner_->RmsNorm(params); });
}

Status MeteredBackend::Linear(const LinearParams& params) {
  return Metered(meter_, OpKind::kLinear, CostOf(params), [&] { return inner_->Linear(params); });
}

Status MeteredBackend::SiluMul(const SiluMulParams& params) {
  return Metered(meter_, OpKind::kElementwise, {}, [&] { return inner_->SiluMul(params); });
}

Status MeteredBackend::Rope(const RopeParams& params) {
  return Metered(meter_, OpKind::kElementwise, {}, [&] { return inner_->Rope(params); });
}

Status MeteredBackend::AppendKv(const AppendKvParams& params) {
  return Metered(meter_, OpKind::kAppendKv, {}, [&] { return inner_->AppendKv(params); });
}

Status MeteredBackend::SelectPages(const SelectPagesParams& params) {
  return Metered(meter_, OpKind::kSelectPages, CostOf(params),
                 [&] { return inner_->SelectPages(params); });
}

Status MeteredBackend::SelectTiles(const SelectTilesParams& params) {
  return Metered(meter_, OpKind::kSelectTiles, CostOf(params),
                 [&] { return inner_->SelectTiles(params); });
}

Status MeteredBackend::PrefillAttention(const AttentionParams& params) {
  return Metered(meter_, OpKind::kPrefillAttention, CostOf(params),
                 [&] { return inner_->PrefillAttention(params); });
}

Status MeteredBackend::DecodeAttention(const AttentionParams& params) {
  return Metered(meter_, OpKind::kDecodeAttention, CostOf(params),
                 [&] { return inner_->DecodeAttention(params); });
}

// An observer's, no part of what is measured.
Status MeteredBackend::PageLogSums(const PageLogSumsParams& params) {
  return inner_->PageLogSums(params);
}

}  // namespace lserve
