// ReferenceBackend: every op in plain scalar C++ with double accumulation. Slow, obvious and
// normative: the other backends are tested against it, it against golden logits of transformers.
#pragma once

#include <string>

#include "backend/backend.h"

namespace lserve {

class ReferenceBackend final : public Backend {
 public:
  std::string name() const override { return "reference"; }
  std::string description() const override { return "reference (scalar, double accumulation)"; }

  Result<Buffer> Allocate(size_t bytes) override;
  Status CopyToDevice(void* device, const void* host, size_t bytes) override;
  Status CopyToHost(void* host, const void* device, size_t bytes) override;

  KvHeadBytes kv_head_bytes(DType dtype, int head_dim) const override;
  Result<std::unique_ptr<KvStore>> MakeKvStore(const KvLayout& layout,
                                               const PageId (&max_pages)[kNumWays]) override;
  Result<LinearWeight> PackLinear(std::span<const WeightPart> parts,
                                  int64_t in_features,
                                  std::span<const float> bias,
                                  WeightFormat format) override;

  Status GatherRows(const GatherRowsParams& params) override;
  Status RmsNorm(const RmsNormParams& params) override;
  Status Linear(const LinearParams& params) override;
  Status SiluMul(const SiluMulParams& params) override;
  Status Rope(const RopeParams& params) override;
  Status AppendKv(const AppendKvParams& params) override;
  Status SelectPages(const SelectPagesParams& params) override;
  Status SelectTiles(const SelectTilesParams& params) override;
  Status PrefillAttention(const AttentionParams& params) override;
  Status DecodeAttention(const AttentionParams& params) override;
  Status PageLogSums(const PageLogSumsParams& params) override;
};

}  // namespace lserve
