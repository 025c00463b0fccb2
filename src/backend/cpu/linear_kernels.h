// The innermost loops of Linear and of the elementwise ops, once per instruction set: plain
// functions over raw pointers, reached through a table. What they are called with (tiles, scratch,
// threads) is decided in linear.cc and elementwise.cc.
//
// Code behind this table is compiled with flags that the rest of the program must not depend on:
// it uses no std:: template, so that the linker cannot pick one of its copies for another file.
#pragma once

#include <cstdint>

#include "backend/cpu/cpu_isa.h"

namespace lserve {

// A packed weight is a row of panels of kPanelCols output columns, zero-padded on the right. Inside
// a panel, K is outermost: bf16 as pairs, [ceil(K / 2)][kPanelCols][2]; f16 and f32 as
// [K][kPanelCols]. One row of x (decode) and many (prefill) read it alike.
//
// A quantised panel is one quantization group of K after the other, each in one piece, so that one
// row reads it as one stream: [kPanelCols] bf16 scales, for int4 [kPanelCols] bf16 minima, then
// the codes of its steps (pairs of K), which are fewer in the last group.
//   int8: a step is [kPanelCols][2] bytes, as the pairs of bf16.
//   int4: a step is 32 16-bit words; bits [4 v, 4 v + 4) of word 2 i + j are column 16 v + i,
//   element j of the pair: 16 columns of pairs are one shift away.
inline constexpr int kPanelCols = 64;

// Rows of the largest register tile.
inline constexpr int kMaxTileRows = 6;

// kW8A8 is a panel of kInt8 whose x is quantised too.
enum class WeightKind : uint8_t { kBf16, kF16, kF32, kInt8, kInt4, kW8A8 };
inline constexpr int kNumWeightKinds = 6;

// K elements of one step of the layout.
constexpr int StepOf(WeightKind kind) {
  return kind == WeightKind::kF16 || kind == WeightKind::kF32 ? 1 : 2;
}

constexpr bool IsQuantized(WeightKind kind) {
  return kind == WeightKind::kInt8 || kind == WeightKind::kInt4 || kind == WeightKind::kW8A8;
}

// Steps of a whole quantization group.
inline constexpr int64_t kGroupSteps = 64;

// What expand_quads makes of a group, for dot products of four unsigned and four signed bytes:
// [kPanelCols] int32 to begin with, then the codes as [kGroupSteps / 2][kPanelCols][4].
// Tiles of more rows than kMaxPackedQuadRows need it: fewer have registers left to do without.
inline constexpr int kMaxPackedQuadRows = 4;
inline constexpr int64_t kQuadGroupBytes = kPanelCols * 4 + kGroupSteps * 2 * kPanelCols;

// One register tile: [rows, kPanelCols] of y over `steps` of K. Every element is one chain of
// additions in the order of K, whatever `rows` is; a chain may be cut and continued from
// `partial_in`, which does not change it.
struct LinearTile {
  const void* x = nullptr;  // [rows][steps], converted by ConvertX
  int64_t x_stride = 0;     // bytes
  const void* panel = nullptr;
  int64_t steps = 0;
  int rows = 0;                       // 1..kMaxTileRows
  const float* partial_in = nullptr;  // [rows][kPanelCols], or null: zeros
  float* partial_out = nullptr;       // as partial_in; null: the chain ends here, in y
  float* y = nullptr;                 // [rows][cols]
  int64_t y_stride = 0;               // floats
  int cols = 0;                       // 1..kPanelCols
  const float* bias = nullptr;        // [cols], or null
  bool accumulate = false;
  // A hint: while step s runs, the two cache lines at prefetch + s * prefetch_step come nearer.
  const char* prefetch = nullptr;
  int64_t prefetch_step = 0;  // bytes

  // Quantised weights only: the panel begins at a group, and the sums of a tile stay in partial_out
  // between groups; partial_in is the same place, or null.
  int64_t group_stride = 0;         // bytes from the steps of one group to those of the next
  const char* scales = nullptr;     // of the first group, its minima behind them
  int64_t scales_stride = 0;        // bytes to the next group's
  const float* x_sums = nullptr;    // [rows][groups], from sum_groups; null: no minima
  const float* x_scales = nullptr;  // [rows][groups], from quantize_x; null: x is no codes
  int64_t x_groups_stride = 0;      // floats, of x_sums and x_scales
  bool ends = false;                // the chains end here, in y
};

struct LinearKernels {
  // Whether a tile passes over its panel once, or once per few columns (then a panel had better
  // lie in L1).
  bool single_pass;
  // Whether kW8A8 multiplies bytes (expand_quads, quads_tile) or, without such instructions, codes
  // in floats (expand, quantized_tile). Sums of a group are exact in either: the same bits.
  bool has_quads;
  // Bytes of one K element of x as the tile kernels of `kind` read it (a byte, bf16 or float).
  int x_bytes[kNumWeightKinds];  // by WeightKind
  // x[0, k) rounded as `kind` asks, then zeros up to a multiple of StepOf(kind).
  void (*convert_x)(WeightKind kind, const float* x, int64_t k, void* out);
  void (*tile)(WeightKind kind, const LinearTile& tile);
  // x[0, k) as codes of QuantizeInputGroup (weight_quant.h), zeros up to a multiple of 4 (bytes,
  // each plus 128) or of 2 (floats), and the scale of each group.
  void (*quantize_x)(const float* x, int64_t k, void* codes, float* scales);
  // The same for a quantised weight. `kind` is that of the tile's panel: the quantised ones decode
  // it on the way, once per tile; kBf16 reads what `expand` made of it. Both give the same bits.
  void (*quantized_tile)(WeightKind kind, const LinearTile& tile);
  // The codes of `steps` steps as exact integers in bf16, in the layout of kBf16.
  void (*expand)(WeightKind kind, const void* codes, int64_t steps, void* out);
  // has_quads only, else null: a kW8A8 tile over groups of kQuadGroupBytes, and what makes one of
  // the int8 codes of `steps` <= kGroupSteps steps.
  void (*quads_tile)(const LinearTile& tile);
  void (*expand_quads)(const void* codes, int64_t steps, void* out);
  // sums[g] = the sum of the converted x[0, k) over group g.
  void (*sum_groups)(const void* x, int64_t k, float* sums);

  // out[i] = x[i], i < n.
  void (*widen_bf16)(const uint16_t* x, int64_t n, float* out);
  void (*widen_f16)(const uint16_t* x, int64_t n, float* out);
  // One slice: y = x / sqrt(mean(x^2) + eps) * weight.
  void (*rms_norm)(const float* x, const float* weight, int64_t n, float eps, float* y);
  void (*silu_mul)(const float* gate, const float* up, int64_t n, float* y);
  // One head: x[i], x[i + half] rotated by angle i, i < half.
  void (*rope)(float* x, const float* cos, const float* sin, int64_t half);
};

// REQUIRES: isa <= BestCpuIsa() before any of them is called.
const LinearKernels& GetLinearKernels(CpuIsa isa);

}  // namespace lserve
