// The packed layout of a Linear weight on the CPU, and the copy into it at load. Plain x86-64 code:
// it runs once per weight. The layout itself: linear_kernels.h.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "backend/cpu/linear_kernels.h"
#include "backend/ops.h"
#include "tensor/dtype.h"

namespace lserve {

inline std::optional<WeightKind> WeightKindOf(DType dtype) {
  if (dtype == DType::kBf16) return WeightKind::kBf16;
  if (dtype == DType::kF16) return WeightKind::kF16;
  if (dtype == DType::kF32) return WeightKind::kF32;
  return std::nullopt;
}

// Bytes of one step of K of a panel.
constexpr int64_t PanelStepBytes(WeightKind kind) {
  return kPanelCols * (kind == WeightKind::kF16 ? 2 : 4);
}

// Packs columns [first_col, first_col + kPanelCols) of the stacked parts, as far as they exist;
// the rest is zeros. `out`: ceil(in_features / StepOf(kind)) steps.
void PackPanel(WeightKind kind,
               std::span<const WeightPart> parts,
               int64_t in_features,
               int64_t first_col,
               char* out);

}  // namespace lserve
