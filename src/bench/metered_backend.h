// MeteredBackend: stands between a model and its backend and adds up time, FLOP and bytes of each
// kind of op. The model, the engine and the backend know nothing of it, so a run without it pays
// nothing. Used by the engine benches. For backends whose ops are done when they return.
#pragma once

#include <memory>
#include <string>

#include "backend/backend.h"
#include "bench/op_costs.h"

namespace lserve {

enum class OpKind : uint8_t {
  kLinear,
  kPrefillAttention,
  kDecodeAttention,
  kSelectPages,
  kSelectTiles,
  kAppendKv,
  kElementwise,
};
inline constexpr int kNumOpKinds = 7;
const char* Name(OpKind kind);  // "linear", "prefill_attention", ...

struct OpTotals {
  double seconds = 0;
  OpCost cost;
};

struct OpMeter {
  OpTotals totals[kNumOpKinds];

  const OpTotals& of(OpKind kind) const { return totals[static_cast<size_t>(kind)]; }
  OpTotals& of(OpKind kind) { return totals[static_cast<size_t>(kind)]; }
  double flop() const;
  double bytes() const;
  // Attention and the choice of its pages and tiles.
  double attention_seconds() const;
};

class MeteredBackend : public Backend {
 public:
  // `meter` must outlive the backend.
  MeteredBackend(std::unique_ptr<Backend> inner, OpMeter* meter)
      : inner_(std::move(inner)), meter_(meter) {}

  std::string name() const override { return inner_->name(); }
  std::string description() const override { return inner_->description(); }
  Result<Buffer> Allocate(size_t bytes) override { return inner_->Allocate(bytes); }
  Status CopyToDevice(void* device, const void* host, size_t bytes) override;
  Status CopyToHost(void* host, const void* device, size_t bytes) override;
  std::optional<DeviceMemory> Memory() const override { return inner_->Memory(); }
  std::optional<double> selector_seconds() const override { return inner_->selector_seconds(); }
  void BeginStep() override { inner_->BeginStep(); }
  Status RunStep(const std::function<Status()>& ops) override { return inner_->RunStep(ops); }
  Result<Buffer> ImportConstant(std::span<const std::byte> bytes) override;
  bool has_kv_dtype(DType dtype) const override { return inner_->has_kv_dtype(dtype); }
  KvHeadBytes kv_head_bytes(DType dtype, int head_dim) const override;
  Result<std::unique_ptr<KvStore>> MakeKvStore(const KvLayout& layout,
                                               const PageId (&max_pages)[kNumWays]) override;
  Result<LinearWeight> PackLinear(std::span<const WeightPart> parts,
                                  int64_t in_features,
                                  std::span<const float> bias,
                                  WeightFormat format) override;
  std::string packed_layout() const override { return inner_->packed_layout(); }
  Result<LinearWeight> ImportLinear(WeightFormat format,
                                    int64_t out_features,
                                    int64_t in_features,
                                    std::span<const std::byte> data,
                                    std::span<const float> bias) override;
  std::string format_note(WeightFormat format) const override {
    return inner_->format_note(format);
  }
  size_t AttentionScratchBytes(const KvLayout& layout,
                               const AttentionLimits& limits) const override {
    return inner_->AttentionScratchBytes(layout, limits);
  }
  size_t LinearScratchBytes(const LinearWeight& weight, int64_t rows) const override {
    return inner_->LinearScratchBytes(weight, rows);
  }

  Status GatherRows(const GatherRowsParams& params) override;
  Status RmsNorm(const RmsNormParams& params) override;
  Status Linear(const LinearParams& params) override;
  Status SiluMul(const SiluMulParams& params) override;
  Status Rope(const RopeParams& params) override;
  Status PickTokens(const PickTokensParams& params) override { return inner_->PickTokens(params); }
  Status AppendKv(const AppendKvParams& params) override;
  Status SelectPages(const SelectPagesParams& params) override;
  Status SelectTiles(const SelectTilesParams& params) override;
  Status PrefillAttention(const AttentionParams& params) override;
  Status DecodeAttention(const AttentionParams& params) override;
  Status PageLogSums(const PageLogSumsParams& params) override;

 private:
  std::unique_ptr<Backend> inner_;
  OpMeter* meter_;
};

}  // namespace lserve
