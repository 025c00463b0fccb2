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
inline constexpr int kPanelCols = 64;

// Rows of the largest register tile.
inline constexpr int kMaxTileRows = 6;

enum class WeightKind : uint8_t { kBf16, kF16, kF32 };

// K elements of one step of the layout.
constexpr int StepOf(WeightKind kind) {
  return kind == WeightKind::kBf16 ? 2 : 1;
}

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
};

struct LinearKernels {
  // Whether a tile passes over its panel once, or once per few columns (then a panel had better
  // lie in L1).
  bool single_pass;
  // Bytes of one K element of x as the tile kernels of `kind` read it (bf16 or float).
  int x_bytes[3];  // by WeightKind
  // x[0, k) rounded as `kind` asks, then zeros up to a multiple of StepOf(kind).
  void (*convert_x)(WeightKind kind, const float* x, int64_t k, void* out);
  void (*tile)(WeightKind kind, const LinearTile& tile);

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
