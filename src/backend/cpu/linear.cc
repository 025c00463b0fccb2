// Linear on the CPU: how weights are packed, and how one product is cut into tiles and spread over
// the threads. The tiles themselves: linear_kernels-inl.h. Numbers: docs/kernels/cpu_gemm.md.
#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/linear_kernels.h"
#include "backend/cpu/linear_pack.h"
#include "backend/weight_quant.h"
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
  int64_t num_groups_of_k = 0;  // quantization groups for which x has a number per row; or 0
  int64_t partial_floats = 0;   // of one thread
  // A chunk of a quantised panel in bf16 or in quads: bytes of a group, or 0, and of one thread.
  int64_t expanded_group = 0;
  int64_t expanded_bytes = 0;

  int64_t x_groups_bytes(int64_t rows) const {
    return CeilDiv(rows * num_groups_of_k * 4, kCacheLine) * kCacheLine;
  }
  int64_t thread_bytes() const { return expanded_bytes + partial_floats * 4; }
  int64_t scratch_bytes(int64_t rows, int num_threads) const {
    return x_bytes + x_groups_bytes(rows) + num_threads * thread_bytes();
  }
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
  s.steps = NumSteps(kind, weight.in_features);
  s.num_tiles = CeilDiv(rows, kMaxTileRows);
  s.x_element_bytes = kernels.x_bytes[static_cast<size_t>(kind)];
  const bool one_pass = s.num_tiles == 1 && kernels.single_pass;
  // One tile decodes a quantised panel on its way; several share a chunk that was expanded to bf16
  // or to quads.
  const bool is_quads = kind == WeightKind::kW8A8 && kernels.has_quads;
  const bool expands =
      IsQuantized(kind) && (s.num_tiles > 1 || (is_quads && rows > kMaxPackedQuadRows));
  const int64_t step_bytes =
      PanelStepBytes(IsQuantized(kind) && !is_quads ? WeightKind::kBf16 : kind);
  s.chunk_steps = one_pass && !expands ? s.steps : ChunkBytes(s.num_tiles) / step_bytes;
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
  if (s.steps > s.chunk_steps || IsQuantized(kind)) {
    s.partial_floats = s.tiles_per_group * kMaxTileRows * kPanelCols;
  }
  if (kind == WeightKind::kInt4 || kind == WeightKind::kW8A8) {
    s.num_groups_of_k = CeilDiv(s.steps, kGroupSteps);
  }
  if (expands) {
    s.expanded_group = is_quads ? kQuadGroupBytes : kGroupSteps * step_bytes;
    s.expanded_bytes = s.chunk_steps / kGroupSteps * s.expanded_group;
  }
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

// What all tiles of a panel have in common.
LinearTile TileOfPanel(const LinearParams& p, const LinearSchedule& s, int64_t panel) {
  const int64_t first_col = panel * kPanelCols;
  LinearTile tile;
  tile.x_stride = s.x_stride;
  tile.y_stride = p.y.stride;
  tile.cols = static_cast<int>(std::min<int64_t>(kPanelCols, p.y.cols - first_col));
  const float* bias = p.weight->bias.as<float>();
  tile.bias = bias == nullptr ? nullptr : bias + first_col;
  tile.accumulate = p.accumulate;
  return tile;
}

// Where one thread works.
struct Scratch {
  const char* x = nullptr;          // converted rows
  const float* x_groups = nullptr;  // [rows][num_groups_of_k]: sums (kInt4) or scales (kW8A8)
  float* partial = nullptr;         // this thread's
  char* expanded = nullptr;         // this thread's
};

// One work item: all K of a group of row tiles and one panel.
void RunItem(const LinearKernels& kernels,
             WeightKind kind,
             const LinearParams& p,
             const LinearSchedule& s,
             int64_t item,
             const Scratch& scratch) {
  const int64_t panel = item / s.num_groups;
  const int64_t group = item % s.num_groups;
  const int64_t step_bytes = PanelStepBytes(kind);
  const char* weights = p.weight->data.as<char>() + panel * s.steps * step_bytes;
  const int64_t first_tile = group * s.tiles_per_group;
  const int64_t last_tile = std::min(first_tile + s.tiles_per_group, s.num_tiles);
  LinearTile tile = TileOfPanel(p, s, panel);
  for (int64_t step = 0; step < s.steps; step += s.chunk_steps) {
    tile.steps = std::min(s.chunk_steps, s.steps - step);
    tile.panel = weights + step * step_bytes;
    const bool ends = step + tile.steps == s.steps;
    for (int64_t t = first_tile; t < last_tile; ++t) {
      const int64_t row = p.y.rows * t / s.num_tiles;
      float* sums = scratch.partial + (t - first_tile) * kMaxTileRows * kPanelCols;
      tile.rows = static_cast<int>(p.y.rows * (t + 1) / s.num_tiles - row);
      tile.x = scratch.x + row * s.x_stride + step * (s.x_element_bytes * StepOf(kind));
      tile.partial_in = step == 0 ? nullptr : sums;
      tile.partial_out = ends ? nullptr : sums;
      tile.y = p.y.row<float>(row) + panel * kPanelCols;
      SetPrefetch(tile, ends ? nullptr : weights + (step + s.chunk_steps) * step_bytes,
                  t - first_tile, last_tile - first_tile, step_bytes);
      kernels.tile(kind, tile);
    }
  }
}

// RunItem of a quantised weight: chunks are whole quantization groups, and several row tiles share
// what a chunk was expanded to.
void RunQuantizedItem(const LinearKernels& kernels,
                      WeightKind kind,
                      const LinearParams& p,
                      const LinearSchedule& s,
                      int64_t item,
                      const Scratch& scratch) {
  const int64_t panel = item / s.num_groups;
  const int64_t first_tile = item % s.num_groups * s.tiles_per_group;
  const int64_t last_tile = std::min(first_tile + s.tiles_per_group, s.num_tiles);
  const bool expands = s.expanded_bytes > 0;
  const bool is_quads = expands && kind == WeightKind::kW8A8 && kernels.has_quads;
  const char* weights = p.weight->data.as<char>() + panel * PanelBytes(kind, p.weight->in_features);
  LinearTile tile = TileOfPanel(p, s, panel);
  tile.scales_stride = GroupBytes(kind);
  tile.group_stride = expands ? s.expanded_group : GroupBytes(kind);
  tile.x_groups_stride = s.num_groups_of_k;
  for (int64_t step = 0; step < s.steps; step += s.chunk_steps) {
    tile.steps = std::min(s.chunk_steps, s.steps - step);
    tile.ends = step + tile.steps == s.steps;
    const int64_t group = step / kGroupSteps;
    tile.scales = weights + group * GroupBytes(kind);
    const char* codes = tile.scales + GroupScaleBytes(kind);
    for (int64_t done = 0; expands && done < tile.steps; done += kGroupSteps) {
      const char* from = codes + done / kGroupSteps * GroupBytes(kind);
      const int64_t steps = std::min(kGroupSteps, tile.steps - done);
      char* to = scratch.expanded + done / kGroupSteps * s.expanded_group;
      if (is_quads) {
        kernels.expand_quads(from, steps, to);
      } else {
        kernels.expand(kind, from, steps, to);
      }
    }
    tile.panel = expands ? scratch.expanded : codes;
    for (int64_t t = first_tile; t < last_tile; ++t) {
      const int64_t row = p.y.rows * t / s.num_tiles;
      const float* x_groups = scratch.x_groups + row * s.num_groups_of_k + group;
      tile.rows = static_cast<int>(p.y.rows * (t + 1) / s.num_tiles - row);
      tile.x = scratch.x + row * s.x_stride + step * (s.x_element_bytes * StepOf(kind));
      tile.x_sums = kind == WeightKind::kInt4 ? x_groups : nullptr;
      tile.x_scales = kind == WeightKind::kW8A8 ? x_groups : nullptr;
      tile.partial_out = scratch.partial + (t - first_tile) * kMaxTileRows * kPanelCols;
      tile.partial_in = step == 0 ? nullptr : tile.partial_out;
      tile.y = p.y.row<float>(row) + panel * kPanelCols;
      // While the first tile passes over a chunk, the next one comes nearer.
      const bool fetches = t == first_tile && !tile.ends;
      tile.prefetch =
          fetches ? codes + CeilDiv(tile.steps, kGroupSteps) * GroupBytes(kind) : nullptr;
      tile.prefetch_step = fetches ? PanelStepBytes(kind) : 0;
      if (is_quads) {
        kernels.quads_tile(tile);
      } else {
        kernels.quantized_tile(expands ? WeightKind::kBf16 : kind, tile);
      }
    }
  }
}

}  // namespace

Result<LinearWeight> CpuBackend::PackLinear(std::span<const WeightPart> parts,
                                            int64_t in_features,
                                            std::span<const float> bias,
                                            WeightFormat format) {
  LS_CHECK(!parts.empty());
  LS_CHECK_GT(in_features, 0);
  const DType stored = parts[0].dtype;
  int64_t out_features = 0;
  for (const WeightPart& part : parts) {
    LS_CHECK(part.dtype == stored) << Name(part.dtype) << "beside" << Name(stored);
    out_features += part.rows;
  }
  if (stored != DType::kBf16 && stored != DType::kF16 && stored != DType::kF32) {
    return Status(Code::kUnsupported, StrCat("Linear weight of type ", Name(stored),
                                             ": the cpu backend has bf16, f16 and f32; convert the "
                                             "checkpoint to one of them"));
  }
  const DType dtype = format == WeightFormat::kAsStored ? stored : QuantizedType(format);
  const WeightKind kind = WeightKindOf(dtype).value();
  LinearWeight weight = LS_TRY(NewWeight(dtype, out_features, in_features, bias));
  weight.quantizes_input = format == WeightFormat::kW8A8;
  const int64_t num_panels = CeilDiv(out_features, kPanelCols);
  const int64_t panel_bytes = PanelBytes(kind, in_features);
  weight.data = LS_TRY(Allocate(static_cast<size_t>(num_panels * panel_bytes)));
  char* data = weight.data.as<char>();
  if (!IsQuantized(kind)) {
    pool_.Run(num_panels, [&](int64_t panel, int) {
      PackPanel(kind, parts, in_features, panel * kPanelCols, data + panel * panel_bytes);
    });
    return weight;
  }
  std::vector<Status> problems(static_cast<size_t>(pool_.num_threads()));
  pool_.Run(num_panels, [&](int64_t panel, int thread) {
    const Status status = PackQuantizedPanel(kind, parts, in_features, panel * kPanelCols,
                                             data + panel * panel_bytes);
    if (!status.ok()) problems[static_cast<size_t>(thread)] = status;
  });
  for (Status& problem : problems) {
    if (!problem.ok()) return std::move(problem);
  }
  return weight;
}

// Version 1: linear_kernels.h describes it.
std::string CpuBackend::packed_layout() const {
  return "cpu-panels64-1";
}

Result<LinearWeight> CpuBackend::ImportLinear(WeightFormat format,
                                              int64_t out_features,
                                              int64_t in_features,
                                              std::span<const std::byte> data,
                                              std::span<const float> bias) {
  const DType dtype = QuantizedType(format);
  const int64_t panel_bytes = PanelBytes(WeightKindOf(dtype).value(), in_features);
  const uint64_t expected = static_cast<uint64_t>(CeilDiv(out_features, kPanelCols) * panel_bytes);
  if (data.size() != expected) {
    return Status(Code::kCorruptModel,
                  StrCat("packed weight: has ", data.size(), " bytes, expected ", expected, " for ",
                         out_features, " x ", in_features, " in ", Name(dtype)));
  }
  if (reinterpret_cast<uintptr_t>(data.data()) % kCacheLine != 0) {
    return Status(Code::kCorruptModel,
                  StrCat("packed weight: begins between cache lines, expected a multiple of ",
                         kCacheLine, " bytes"));
  }
  LinearWeight weight = LS_TRY(NewWeight(dtype, out_features, in_features, bias));
  weight.quantizes_input = format == WeightFormat::kW8A8;
  weight.data = LS_TRY(ImportConstant(data));
  return weight;
}

Result<LinearWeight> CpuBackend::NewWeight(DType dtype,
                                           int64_t out_features,
                                           int64_t in_features,
                                           std::span<const float> bias) {
  LinearWeight weight;
  weight.dtype = dtype;
  weight.out_features = out_features;
  weight.in_features = in_features;
  if (dtype == DType::kInt8 || dtype == DType::kInt4) weight.quantization_group = kWeightGroup;
  if (bias.empty()) return weight;
  LS_CHECK_EQ(static_cast<int64_t>(bias.size()), out_features);
  weight.bias = LS_TRY(Allocate(bias.size_bytes()));
  std::memcpy(weight.bias.data.get(), bias.data(), bias.size_bytes());
  return weight;
}

std::string CpuBackend::format_note(WeightFormat format) const {
  if (format != WeightFormat::kW8A8 || linear_->has_quads) return {};
  return StrCat("--quantization w8a8: ", Name(isa_), " has no products of bytes here, expected ",
                Name(CpuIsa::kAvx512Bf16),
                "; results are the same, at the speed of float: use int8 if its smaller error "
                "is worth more");
}

size_t CpuBackend::LinearScratchBytes(const LinearWeight& weight, int64_t rows) const {
  const WeightKind kind = KindOf(weight);
  const int num_threads = pool_.num_threads();
  const LinearSchedule s = MakeSchedule(weight, kind, *linear_, rows, num_threads);
  return static_cast<size_t>(s.scratch_bytes(rows, num_threads));
}

Status CpuBackend::Linear(const LinearParams& p) {
  const LinearWeight& weight = *p.weight;
  LS_CHECK_EQ(p.x.cols, weight.in_features);
  LS_CHECK_EQ(p.y.cols, weight.out_features);
  LS_CHECK_EQ(p.x.rows, p.y.rows);
  LS_CHECK(p.x.dtype == DType::kF32 && p.y.dtype == DType::kF32);
  if (p.x.rows == 0) return Status();
  const WeightKind kind = KindOf(weight);
  const int num_threads = pool_.num_threads();
  const LinearSchedule s = MakeSchedule(weight, kind, *linear_, p.x.rows, num_threads);

  const size_t scratch_bytes = static_cast<size_t>(s.scratch_bytes(p.x.rows, num_threads));
  if (linear_scratch_.bytes < scratch_bytes) {
    linear_scratch_ = Buffer();  // free first
    linear_scratch_ = LS_TRY(Allocate(scratch_bytes));
  }
  char* x = linear_scratch_.as<char>();
  float* x_groups = reinterpret_cast<float*>(x + s.x_bytes);
  char* of_threads = x + s.x_bytes + s.x_groups_bytes(p.x.rows);

  // Converting a few rows costs less than waking a thread.
  constexpr int64_t kConvertGrain = 32 << 10;
  const int64_t rows_per_item = std::max<int64_t>(1, kConvertGrain / p.x.cols);
  pool_.Run(CeilDiv(p.x.rows, rows_per_item), [&](int64_t item, int) {
    const int64_t last = std::min((item + 1) * rows_per_item, p.x.rows);
    for (int64_t r = item * rows_per_item; r < last; ++r) {
      char* to = x + r * s.x_stride;
      float* groups = x_groups + r * s.num_groups_of_k;
      if (kind == WeightKind::kW8A8) {
        linear_->quantize_x(p.x.row<float>(r), p.x.cols, to, groups);
        continue;
      }
      linear_->convert_x(kind, p.x.row<float>(r), p.x.cols, to);
      if (kind == WeightKind::kInt4) linear_->sum_groups(to, p.x.cols, groups);
    }
  });
  pool_.Run(s.num_panels * s.num_groups, [&](int64_t item, int thread) {
    char* own = of_threads + thread * s.thread_bytes();
    const Scratch scratch = {.x = x,
                             .x_groups = x_groups,
                             .partial = reinterpret_cast<float*>(own + s.expanded_bytes),
                             .expanded = own};
    if (IsQuantized(kind)) {
      RunQuantizedItem(*linear_, kind, p, s, item, scratch);
    } else {
      RunItem(*linear_, kind, p, s, item, scratch);
    }
  });
  return Status();
}

}  // namespace lserve
