#include "backend/cpu/linear_pack.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace lserve {
namespace {

using Columns = std::array<const char*, kPanelCols>;  // null: no such column

// out[i][c] = column c's element i, for `n` elements of `Element`. A strip of one cache line per
// column is read before the next, so that a strip of `out` stays in L1.
template <class Element>
void Transpose(const Columns& columns, int64_t n, char* out) {
  constexpr int64_t kStrip = 64 / sizeof(Element);
  for (int64_t first = 0; first < n; first += kStrip) {
    const int64_t last = std::min(first + kStrip, n);
    for (size_t c = 0; c < kPanelCols; ++c) {
      for (int64_t i = first; i < last; ++i) {
        Element e{};
        if (columns[c] != nullptr) {  // the file's alignment may be that of a byte
          std::memcpy(&e, columns[c] + i * static_cast<int64_t>(sizeof(e)), sizeof(e));
        }
        std::memcpy(
            out + (i * kPanelCols + static_cast<int64_t>(c)) * static_cast<int64_t>(sizeof(e)), &e,
            sizeof(e));
      }
    }
  }
}

}  // namespace

void PackPanel(WeightKind kind,
               std::span<const WeightPart> parts,
               int64_t in_features,
               int64_t first_col,
               char* out) {
  Columns columns{};
  const int64_t row_bytes = in_features * (kind == WeightKind::kF32 ? 4 : 2);
  int64_t part_first = 0;
  for (const WeightPart& part : parts) {
    const int64_t from = std::max(first_col, part_first);
    const int64_t to = std::min(first_col + kPanelCols, part_first + part.rows);
    for (int64_t col = from; col < to; ++col) {
      columns[static_cast<size_t>(col - first_col)] =
          static_cast<const char*>(part.data) + (col - part_first) * row_bytes;
    }
    part_first += part.rows;
  }
  if (kind == WeightKind::kF16) return Transpose<uint16_t>(columns, in_features, out);
  if (kind == WeightKind::kF32) return Transpose<uint32_t>(columns, in_features, out);
  // A pair of bf16 neighbours along K is one 32-bit element.
  const int64_t pairs = in_features / 2;
  Transpose<uint32_t>(columns, pairs, out);
  if (in_features % 2 == 0) return;
  char* last = out + pairs * PanelStepBytes(kind);
  for (size_t c = 0; c < kPanelCols; ++c) {
    uint16_t pair[2] = {0, 0};
    if (columns[c] != nullptr) std::memcpy(pair, columns[c] + pairs * 4, sizeof(uint16_t));
    std::memcpy(last + c * sizeof(pair), pair, sizeof(pair));
  }
}

}  // namespace lserve
