// The packed layout of a Linear weight on the CPU, and the copy into it at load. Plain x86-64 code:
// it runs once per weight. The layout itself: linear_kernels.h.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "backend/cpu/linear_kernels.h"
#include "backend/ops.h"
#include "base/status.h"
#include "tensor/dtype.h"

namespace lserve {

inline std::optional<WeightKind> WeightKindOf(DType dtype) {
  if (dtype == DType::kBf16) return WeightKind::kBf16;
  if (dtype == DType::kF16) return WeightKind::kF16;
  if (dtype == DType::kF32) return WeightKind::kF32;
  if (dtype == DType::kInt8) return WeightKind::kInt8;
  if (dtype == DType::kInt4) return WeightKind::kInt4;
  return std::nullopt;
}

inline WeightKind KindOf(const LinearWeight& weight) {
  return weight.quantizes_input ? WeightKind::kW8A8 : WeightKindOf(weight.dtype).value();
}

// Bytes of one step of K of a panel; of a quantised panel, its codes.
constexpr int64_t PanelStepBytes(WeightKind kind) {
  if (kind == WeightKind::kInt4) return kPanelCols;
  return kPanelCols * (kind == WeightKind::kBf16 || kind == WeightKind::kF32 ? 4 : 2);
}

// Bytes of the scales and minima of a quantization group; 0 for the kinds without.
constexpr int64_t GroupScaleBytes(WeightKind kind) {
  if (!IsQuantized(kind)) return 0;
  return kPanelCols * (kind == WeightKind::kInt4 ? 4 : 2);
}

// Bytes of a whole quantization group.
constexpr int64_t GroupBytes(WeightKind kind) {
  return kGroupSteps * PanelStepBytes(kind) + GroupScaleBytes(kind);
}

constexpr int64_t NumSteps(WeightKind kind, int64_t in_features) {
  return (in_features + StepOf(kind) - 1) / StepOf(kind);
}

constexpr int64_t PanelBytes(WeightKind kind, int64_t in_features) {
  const int64_t steps = NumSteps(kind, in_features);
  const int64_t groups = (steps + kGroupSteps - 1) / kGroupSteps;
  return steps * PanelStepBytes(kind) + groups * GroupScaleBytes(kind);
}

// Packs columns [first_col, first_col + kPanelCols) of the stacked parts, as far as they exist;
// the rest is zeros. `out`: PanelBytes(kind, in_features). REQUIRES: !IsQuantized(kind)
void PackPanel(WeightKind kind,
               std::span<const WeightPart> parts,
               int64_t in_features,
               int64_t first_col,
               char* out);

// The same, quantised. Fails if a weight is not finite.
Status PackQuantizedPanel(WeightKind kind,
                          std::span<const WeightPart> parts,
                          int64_t in_features,
                          int64_t first_col,
                          char* out);

}  // namespace lserve
