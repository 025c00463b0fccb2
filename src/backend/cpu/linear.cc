// Linear on the CPU: how weights are packed, and how one product is cut into tiles and spread over
// the threads. The tiles themselves: linear_kernels-inl.h. Numbers: docs/kernels/cpu_gemm.md.
#include <algorithm>
#include <cstring>
#include <optional>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/linear_kernels.h"
#include "backend/cpu/linear_pack.h"
#include "base/check.h"
#include "base/strings.h"

namespace lserve {
namespace {

constexpr int64_t kCacheLine = 64;

int64_t CeilDiv(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// How a product of `rows` rows is cut. Nothing here changes a result: a row's sums are chains over
// K that a tile only extends.
struct LinearSchedule {
  int64_t num_panels = 0;
  int64_t steps = 0;            // of K
  int64_t chunk_steps = 0;      // of K, between two visits of a tile
  int64_t num_tiles = 0;        // of rows; tile t holds rows [rows t / num_tiles, ...)
  int64_t tiles_per_group = 0;  // a work item is a panel times a group of tiles
  int64_t num_groups = 0;
  int64_t x_element_bytes = 0;  // of a converted x
  int64_t x_stride = 0;         // bytes of a converted row
  int64_t x_bytes = 0;          // all converted rows
  int64_t partial_floats = 0;   // of one thread
};

// The part of a panel that stays in the L1 cache (32-48 KiB) while the row tiles pass over it. Few
// tiles leave it sooner, and gain from a shorter wait for the first chunk.
constexpr int64_t ChunkBytes(int64_t num_tiles) {
  return num_tiles <= 3 ? 16 << 10 : 32 << 10;
}

LinearSchedule MakeSchedule(const LinearWeight& weight,
                            WeightKind kind,
                            const LinearKernels& kernels,
                            int64_t rows,
                            int num_threads) {
  LinearSchedule s;
  s.num_panels = CeilDiv(weight.out_features, kPanelCols);
  s.steps = CeilDiv(weight.in_features, StepOf(kind));
  s.num_tiles = CeilDiv(rows, kMaxTileRows);
  s.x_element_bytes = kernels.x_bytes[static_cast<size_t>(kind)];
  const bool one_pass = s.num_tiles == 1 && kernels.single_pass;
  s.chunk_steps = one_pass ? s.steps : ChunkBytes(s.num_tiles) / PanelStepBytes(kind);
  // Enough items that the last ones to finish cost little, but groups so large that bringing a
  // panel into L1 is paid for by several tiles.
  constexpr int64_t kItemsPerThread = 8;
  constexpr int64_t kMinTilesPerGroup = 8;
  const int64_t groups_wanted = CeilDiv(kItemsPerThread * num_threads, s.num_panels);
  s.tiles_per_group =
      std::min(s.num_tiles, std::max(kMinTilesPerGroup, CeilDiv(s.num_tiles, groups_wanted)));
  s.num_groups = CeilDiv(s.num_tiles, s.tiles_per_group);
  // An odd number of cache lines, so that the rows of a tile fall into different cache sets.
  s.x_stride = CeilDiv(s.steps * StepOf(kind) * s.x_element_bytes, kCacheLine) * kCacheLine;
  if (s.x_stride / kCacheLine % 2 == 0) s.x_stride += kCacheLine;
  s.x_bytes = rows * s.x_stride;
  if (s.steps > s.chunk_steps) s.partial_floats = s.tiles_per_group * kMaxTileRows * kPanelCols;
  return s;
}

// The first tiles over a chunk fetch the next one, a part each: otherwise few rows (M of 7 to 50)
// would wait for memory at every chunk with nothing else to do.
void SetPrefetch(LinearTile& tile,
                 const char* next_chunk,
                 int64_t index,
                 int64_t num_tiles,
                 int64_t step_bytes) {
  const int64_t parts = num_tiles < 4 ? 2 : 4;  // two cache lines of four per step, or one
  const bool fetches = next_chunk != nullptr && index < parts;
  tile.prefetch_step = fetches ? step_bytes / parts : 0;
  tile.prefetch = fetches ? next_chunk + index * tile.steps * tile.prefetch_step : nullptr;
}

// One work item: all K of a group of row tiles and one panel.
void RunItem(const LinearKernels& kernels,
             WeightKind kind,
             const LinearParams& p,
             const LinearSchedule& s,
             int64_t item,
             const char* x,
             float* partial) {
  const int64_t panel = item / s.num_groups;
  const int64_t group = item % s.num_groups;
  const int64_t step_bytes = PanelStepBytes(kind);
  const char* weights = p.weight->data.as<char>() + panel * s.steps * step_bytes;
  const int64_t first_col = panel * kPanelCols;
  const int64_t first_tile = group * s.tiles_per_group;
  const int64_t last_tile = std::min(first_tile + s.tiles_per_group, s.num_tiles);
  LinearTile tile;
  tile.x_stride = s.x_stride;
  tile.y_stride = p.y.stride;
  tile.cols = static_cast<int>(std::min<int64_t>(kPanelCols, p.y.cols - first_col));
  const float* bias = p.weight->bias.as<float>();
  tile.bias = bias == nullptr ? nullptr : bias + first_col;
  tile.accumulate = p.accumulate;
  for (int64_t step = 0; step < s.steps; step += s.chunk_steps) {
    tile.steps = std::min(s.chunk_steps, s.steps - step);
    tile.panel = weights + step * step_bytes;
    const bool ends = step + tile.steps == s.steps;
    for (int64_t t = first_tile; t < last_tile; ++t) {
      const int64_t row = p.y.rows * t / s.num_tiles;
      float* sums = partial + (t - first_tile) * kMaxTileRows * kPanelCols;
      tile.rows = static_cast<int>(p.y.rows * (t + 1) / s.num_tiles - row);
      tile.x = x + row * s.x_stride + step * (s.x_element_bytes * StepOf(kind));
      tile.partial_in = step == 0 ? nullptr : sums;
      tile.partial_out = ends ? nullptr : sums;
      tile.y = p.y.row<float>(row) + first_col;
      SetPrefetch(tile, ends ? nullptr : weights + (step + s.chunk_steps) * step_bytes,
                  t - first_tile, last_tile - first_tile, step_bytes);
      kernels.tile(kind, tile);
    }
  }
}

}  // namespace

Result<LinearWeight> CpuBackend::PackLinear(std::span<const WeightPart> parts,
                                            int64_t in_features,
                                            std::span<const float> bias) {
  LS_CHECK(!parts.empty());
  LS_CHECK_GT(in_features, 0);
  LinearWeight weight;
  weight.dtype = parts[0].dtype;
  weight.in_features = in_features;
  for (const WeightPart& part : parts) {
    LS_CHECK(part.dtype == weight.dtype) << Name(part.dtype) << "beside" << Name(weight.dtype);
    weight.out_features += part.rows;
  }
  const std::optional<WeightKind> kind = WeightKindOf(weight.dtype);
  if (!kind) {
    return Status(Code::kUnsupported, StrCat("Linear weight of type ", Name(weight.dtype),
                                             ": the cpu backend has bf16, f16 and f32; convert the "
                                             "checkpoint to one of them"));
  }
  const int64_t num_panels = CeilDiv(weight.out_features, kPanelCols);
  const int64_t panel_bytes = CeilDiv(in_features, StepOf(*kind)) * PanelStepBytes(*kind);
  weight.data = LS_TRY(Allocate(static_cast<size_t>(num_panels * panel_bytes)));
  pool_.Run(num_panels, [&](int64_t panel, int) {
    PackPanel(*kind, parts, in_features, panel * kPanelCols,
              weight.data.as<char>() + panel * panel_bytes);
  });
  if (!bias.empty()) {
    LS_CHECK_EQ(static_cast<int64_t>(bias.size()), weight.out_features);
    weight.bias = LS_TRY(Allocate(bias.size_bytes()));
    std::memcpy(weight.bias.data.get(), bias.data(), bias.size_bytes());
  }
  return weight;
}

Status CpuBackend::Linear(const LinearParams& p) {
  const LinearWeight& weight = *p.weight;
  LS_CHECK_EQ(p.x.cols, weight.in_features);
  LS_CHECK_EQ(p.y.cols, weight.out_features);
  LS_CHECK_EQ(p.x.rows, p.y.rows);
  LS_CHECK(p.x.dtype == DType::kF32 && p.y.dtype == DType::kF32);
  if (p.x.rows == 0) return Status();
  const WeightKind kind = WeightKindOf(weight.dtype).value();
  const int num_threads = pool_.num_threads();
  const LinearSchedule s = MakeSchedule(weight, kind, *linear_, p.x.rows, num_threads);

  const int64_t scratch_bytes =
      s.x_bytes + num_threads * s.partial_floats * static_cast<int64_t>(sizeof(float));
  if (linear_scratch_.bytes < static_cast<size_t>(scratch_bytes)) {
    linear_scratch_ = Buffer();  // free first
    linear_scratch_ = LS_TRY(Allocate(static_cast<size_t>(scratch_bytes)));
  }
  char* x = linear_scratch_.as<char>();
  float* partial = reinterpret_cast<float*>(x + s.x_bytes);

  // Converting a few rows costs less than waking a thread.
  constexpr int64_t kConvertGrain = 32 << 10;
  const int64_t rows_per_item = std::max<int64_t>(1, kConvertGrain / p.x.cols);
  pool_.Run(CeilDiv(p.x.rows, rows_per_item), [&](int64_t item, int) {
    const int64_t last = std::min((item + 1) * rows_per_item, p.x.rows);
    for (int64_t r = item * rows_per_item; r < last; ++r) {
      linear_->convert_x(kind, p.x.row<float>(r), p.x.cols, x + r * s.x_stride);
    }
  });
  pool_.Run(s.num_panels * s.num_groups, [&](int64_t item, int thread) {
    RunItem(*linear_, kind, p, s, item, x, partial + thread * s.partial_floats);
  });
  return Status();
}

}  // namespace lserve
