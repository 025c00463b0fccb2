#include "tests/instructions/hot_kernels_testing.h"

#include <memory>

#include "backend/cpu/attention_kernels.h"
#include "backend/cpu/linear_kernels.h"
#include "kv/page.h"

namespace lserve {
namespace {

constexpr int kHeadDim = 64;
constexpr int kRows = 12;  // queries x heads: whole register tiles of 6 and of 4
constexpr int kPages = 8;

// Zeroed memory whose address is a multiple of 64, so that loads cost alike in every run.
struct Bytes {
  explicit Bytes(size_t size) : data(size + 64) {
    aligned = data.data() + (64 - reinterpret_cast<uintptr_t>(data.data()) % 64);
  }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(aligned);
  }
  std::vector<char> data;
  char* aligned;
};

// Everything an attention kernel touches; values are zeros: what is counted does not depend on
// them, but for the running maximum, which then never rises.
struct AttentionBuffers {
  Bytes keys{kPageTokens * kHeadDim * 2}, values{kPageTokens * kHeadDim * 2};
  Bytes codes{2 * kPageTokens * kHeadDim}, affine{4 * kPageTokens * 2};
  Bytes floats{kRows * kHeadDim * 4}, queries{kRows * kHeadDim * 4}, out{kRows * kHeadDim * 4};
  Bytes max{kRows * 4}, sum{kRows * kSumLanes * 4}, bound_query{4 * 32 * kHeadDim};
  Bytes stats{2 * kLogicalPagesPerPage * kHeadDim * 2}, scores{4 * kPages * 4};
  std::vector<uint64_t> visible = std::vector<uint64_t>(kRows, 0x00ffffffffffffffu);
  std::vector<const uint16_t*> stat_pages =
      std::vector<const uint16_t*>(kPages, stats.as<uint16_t>());
};

void AddAttention(CpuIsa isa, std::vector<HotKernel>& kernels) {
  const AttentionKernels& table = GetAttentionKernels(isa);
  const auto buffers = std::make_shared<AttentionBuffers>();
  AttendArgs attend;
  attend.head_dim = kHeadDim;
  attend.num_rows = kRows;
  attend.scale = 1.0f;
  attend.q = buffers->queries.as<void>();
  attend.page = {buffers->keys.as<uint16_t>(), buffers->values.as<uint16_t>()};
  attend.state = {buffers->out.as<float>(), buffers->max.as<float>(), buffers->sum.as<float>()};
  kernels.push_back({"attend_page", [buffers, attend, &table] { table.attend_page(attend); }});
  AttendArgs masked = attend;
  masked.visible = buffers->visible.data();
  kernels.push_back(
      {"attend_page, masked", [buffers, masked, &table] { table.attend_page(masked); }});
  AttendArgs decode = attend;
  decode.num_rows = 4;  // the heads of a group
  kernels.push_back(
      {"attend_page, 4 rows", [buffers, decode, &table] { table.attend_page(decode); }});
  for (const int bits : {8, 4}) {
    const uint16_t* affine = buffers->affine.as<uint16_t>();
    const std::byte* codes = buffers->codes.as<std::byte>();
    const QuantizedPage page = {codes,
                                codes + kPageTokens * kHeadDim,
                                affine,
                                affine + kPageTokens,
                                affine + 2 * kPageTokens,
                                affine + 3 * kPageTokens};
    kernels.push_back(
        {"dequantize_page, " + std::to_string(bits) + " bits", [buffers, page, bits, &table] {
           table.dequantize_page(page, bits, kHeadDim, buffers->keys.as<uint16_t>(),
                                 buffers->values.as<uint16_t>());
         }});
  }
  ScoreArgs score;
  score.head_dim = kHeadDim;
  score.num_heads = 4;
  score.num_pages = kPages;
  score.q = buffers->bound_query.as<void>();
  score.stats = buffers->stat_pages.data();
  score.scores = buffers->scores.as<float>();
  score.stride = kPages;
  kernels.push_back({"score_pages", [buffers, score, &table] { table.score_pages(score); }});
  kernels.push_back({"pack_queries", [buffers, &table] {
                       table.pack_queries(buffers->floats.as<float>(), kRows * kHeadDim,
                                          buffers->queries.as<void>());
                     }});
}

void AddLinear(CpuIsa isa, std::vector<HotKernel>& kernels) {
  constexpr int kSteps = 64;
  const LinearKernels& table = GetLinearKernels(isa);
  struct Buffers {
    Bytes x{kMaxTileRows * kSteps * 8}, panel{kSteps * kPanelCols * 4};
    Bytes y{kMaxTileRows * kPanelCols * 4};
  };
  const auto buffers = std::make_shared<Buffers>();
  for (const int rows : {kMaxTileRows, 1}) {
    LinearTile tile;
    tile.x = buffers->x.as<void>();
    tile.x_stride = kSteps * 8;
    tile.panel = buffers->panel.as<void>();
    tile.steps = kSteps;
    tile.rows = rows;
    tile.y = buffers->y.as<float>();
    tile.y_stride = kPanelCols;
    tile.cols = kPanelCols;
    const std::string name = std::to_string(rows) + (rows == 1 ? " row" : " rows");
    kernels.push_back(
        {"bf16 tile, " + name, [buffers, tile, &table] { table.tile(WeightKind::kBf16, tile); }});
    // One quantization group, as several row tiles read it.
    tile.scales = buffers->panel.as<char>();
    tile.x_scales = buffers->x.as<float>();
    tile.partial_out = buffers->y.as<float>();
    tile.ends = true;
    kernels.push_back({"w8a8 tile, " + name, [buffers, tile, &table] {
                         if (table.has_quads) {
                           table.quads_tile(tile);
                         } else {
                           table.quantized_tile(WeightKind::kBf16, tile);
                         }
                       }});
  }
}

}  // namespace

std::vector<HotKernel> HotKernels(CpuIsa isa) {
  std::vector<HotKernel> kernels;
  AddAttention(isa, kernels);
  AddLinear(isa, kernels);
  return kernels;
}

}  // namespace lserve
