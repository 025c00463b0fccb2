#include "backend/cpu/linear_pack.h"

#include <emmintrin.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "backend/weight_quant.h"

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

// Transpose of 32-bit elements when every column exists: blocks of 4 x 4 in the registers that
// every x86-64 has. The memory's rate is what remains, so that wider vectors would gain nothing.
void TransposeWords(const Columns& columns, int64_t n, char* out) {
  constexpr int64_t kStrip = 16;
  constexpr int64_t kWord = 4;
  constexpr int64_t kRowBytes = kPanelCols * kWord;
  const int64_t whole = n / kStrip * kStrip;
  for (int64_t first = 0; first < whole; first += kStrip) {
    for (size_t c = 0; c < kPanelCols; c += 4) {
      for (int64_t i = first; i < first + kStrip; i += 4) {
        const auto load = [&](size_t column) {
          return _mm_loadu_si128(reinterpret_cast<const __m128i*>(columns[column] + i * kWord));
        };
        const __m128i a = load(c), b = load(c + 1), d = load(c + 2), e = load(c + 3);
        const __m128i low_left = _mm_unpacklo_epi32(a, b), low_right = _mm_unpacklo_epi32(d, e);
        const __m128i high_left = _mm_unpackhi_epi32(a, b), high_right = _mm_unpackhi_epi32(d, e);
        char* to = out + i * kRowBytes + static_cast<int64_t>(c) * kWord;
        const auto store = [to](int64_t row, __m128i words) {
          _mm_storeu_si128(reinterpret_cast<__m128i*>(to + row * kRowBytes), words);
        };
        store(0, _mm_unpacklo_epi64(low_left, low_right));
        store(1, _mm_unpackhi_epi64(low_left, low_right));
        store(2, _mm_unpacklo_epi64(high_left, high_right));
        store(3, _mm_unpackhi_epi64(high_left, high_right));
      }
    }
  }
  if (whole == n) return;
  Columns rest = columns;
  for (const char*& column : rest) column += whole * kWord;
  Transpose<uint32_t>(rest, n - whole, out + whole * kRowBytes);
}

// Where the columns of a panel begin in the file.
Columns ColumnsOf(std::span<const WeightPart> parts, int64_t in_features, int64_t first_col) {
  Columns columns{};
  int64_t part_first = 0;
  for (const WeightPart& part : parts) {
    const int64_t row_bytes = in_features * BitsOf(part.dtype) / 8;
    const int64_t from = std::max(first_col, part_first);
    const int64_t to = std::min(first_col + kPanelCols, part_first + part.rows);
    for (int64_t col = from; col < to; ++col) {
      columns[static_cast<size_t>(col - first_col)] =
          static_cast<const char*>(part.data) + (col - part_first) * row_bytes;
    }
    part_first += part.rows;
  }
  return columns;
}

static_assert(kWeightGroup == kGroupSteps * StepOf(WeightKind::kInt8));

// The codes of one column's group, zeros behind its end.
using Codes = std::array<uint8_t, kWeightGroup>;

// Quantises one group of one column; a column that does not exist has codes and scales of 0.
bool QuantizeColumn(WeightKind kind,
                    const char* column,
                    DType dtype,
                    int64_t first,
                    int count,
                    Codes& codes,
                    WeightScale* scale) {
  codes = {};
  *scale = {};
  if (column == nullptr) return true;
  float w[kWeightGroup];
  // The next group of this column: rows lie kilobytes apart, of which the hardware sees no pattern.
  // Beyond the end nothing is read: a prefetch of no memory does nothing.
  const int64_t group_bytes = kWeightGroup * BitsOf(dtype) / 8;
  const char* next = column + (first / kWeightGroup + 1) * group_bytes;
  for (int64_t at = 0; at < group_bytes; at += 64) __builtin_prefetch(next + at);
  WidenWeights(column, dtype, first, count, w);
  const WeightFormat format = kind == WeightKind::kInt8 ? WeightFormat::kInt8 : WeightFormat::kInt4;
  return QuantizeWeightGroup(format, w, count, scale, codes.data());
}

// The codes of column c and, for int4, of those 16, 32 and 48 to its right.
void StoreCodes(
    WeightKind kind, const std::array<Codes, 4>& codes, int64_t c, int64_t steps, char* out) {
  const int64_t step_bytes = PanelStepBytes(kind);
  if (kind == WeightKind::kInt8) {
    for (int64_t s = 0; s < steps; ++s) {
      std::memcpy(out + s * step_bytes + c * 2, codes[0].data() + 2 * s, 2);
    }
    return;
  }
  Codes low;
  Codes high;
  for (size_t i = 0; i < low.size(); ++i) {
    low[i] = static_cast<uint8_t>(codes[0][i] | codes[1][i] << 4);
    high[i] = static_cast<uint8_t>(codes[2][i] | codes[3][i] << 4);
  }
  for (int64_t s = 0; s < steps; ++s) {
    const size_t i = static_cast<size_t>(2 * s);
    const uint8_t words[4] = {low[i], high[i], low[i + 1], high[i + 1]};
    std::memcpy(out + s * step_bytes + c * 4, words, sizeof(words));
  }
}

}  // namespace

Status PackQuantizedPanel(WeightKind kind,
                          std::span<const WeightPart> parts,
                          int64_t in_features,
                          int64_t first_col,
                          char* out) {
  const Columns columns = ColumnsOf(parts, in_features, first_col);
  const DType dtype = parts.front().dtype;
  const int64_t together = kind == WeightKind::kInt8 ? 1 : 4;
  for (int64_t first = 0; first < in_features; first += kWeightGroup) {
    const int count = static_cast<int>(std::min<int64_t>(kWeightGroup, in_features - first));
    const int64_t steps = (count + 1) / 2;
    uint16_t scales[2][kPanelCols];
    for (int64_t c = 0; c < kPanelCols / together; ++c) {
      std::array<Codes, 4> codes;
      for (int64_t v = 0; v < together; ++v) {
        const size_t col = static_cast<size_t>(c + v * 16);
        WeightScale scale;
        if (!QuantizeColumn(kind, columns[col], dtype, first, count, codes[static_cast<size_t>(v)],
                            &scale)) {
          return NotFinite(first_col + static_cast<int64_t>(col), first);
        }
        scales[0][col] = scale.scale.bits;
        scales[1][col] = scale.min.bits;
      }
      StoreCodes(kind, codes, c, steps, out + GroupScaleBytes(kind));
    }
    std::memcpy(out, scales, static_cast<size_t>(GroupScaleBytes(kind)));
    out += GroupScaleBytes(kind) + steps * PanelStepBytes(kind);
  }
  return Status();
}

void PackPanel(WeightKind kind,
               std::span<const WeightPart> parts,
               int64_t in_features,
               int64_t first_col,
               char* out) {
  const Columns columns = ColumnsOf(parts, in_features, first_col);
  if (kind == WeightKind::kF16) return Transpose<uint16_t>(columns, in_features, out);
  const bool is_whole = columns.back() != nullptr;
  const auto transpose = is_whole ? TransposeWords : Transpose<uint32_t>;
  if (kind == WeightKind::kF32) return transpose(columns, in_features, out);
  // A pair of bf16 neighbours along K is one 32-bit element.
  const int64_t pairs = in_features / 2;
  transpose(columns, pairs, out);
  if (in_features % 2 == 0) return;
  char* last = out + pairs * PanelStepBytes(kind);
  for (size_t c = 0; c < kPanelCols; ++c) {
    uint16_t pair[2] = {0, 0};
    if (columns[c] != nullptr) std::memcpy(pair, columns[c] + pairs * 4, sizeof(uint16_t));
    std::memcpy(last + c * sizeof(pair), pair, sizeof(pair));
  }
}

}  // namespace lserve
