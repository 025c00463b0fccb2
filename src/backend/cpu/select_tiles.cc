// SelectTiles: the antidiagonal estimate of each key tile's share of a query tile's attention (the
// kernels), in pieces of the key range; whoever ends a query tile's last piece folds them and
// chooses. Query tiles of a sequence share a piece's keys, which quantised caches dequantise once.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "backend/cpu/aligned_array.h"
#include "backend/cpu/attention_kernels.h"
#include "backend/cpu/attention_scratch.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_kv_store.h"
#include "backend/cpu/page_choice.h"
#include "base/check.h"

namespace lserve {
namespace {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr int kRows = kTileTokens / kTileStride;  // of a query head's estimate
constexpr int kTilePages = kTileTokens / kPageTokens;

// Keys of one item: 32 pages of 64-dimensional bf16 keys are 256 KiB, which stay in the L2 cache
// beside the queries of a few tiles. Results depend on where pieces end, so this is fixed.
constexpr int kPagesPerPiece = 32;
constexpr int kTilesPerPiece = kPagesPerPiece / kTilePages;
constexpr int kColumnsPerPiece = kPagesPerPiece * kLogicalPagesPerPage;
// Query tiles that share an item.
constexpr int kMaxSharing = 4;

// One (request, slot): what its pieces leave for the choice.
struct Unit {
  const TileSelectRequest* request;
  int slot;
  int num_tiles;  // of keys, its own included
  int num_pieces;
  std::vector<float> sums;  // [group * kRows, num_tiles] of weights relative to the piece's maximum
  std::vector<float> maxes;  // [group * kRows, num_pieces]
  std::unique_ptr<std::atomic<int>> pieces_left;
};

// One piece of keys for units [first, last), which differ in the query tile only.
struct Item {
  size_t first;
  size_t last;
  int piece;
};

class TileSelection {
 public:
  TileSelection(const SelectTilesParams& params, const AttentionKernels& kernels)
      : params_(params),
        kernels_(kernels),
        store_(static_cast<const CpuKvStore&>(*params.store)),
        way_(store_.layout().way(Way::kRetrieval)),
        head_dim_(store_.part().head_dim),
        group_(params.num_q_heads / store_.layout().num_kv_heads),
        head_bytes_(int64_t{kTileTokens} * head_dim_ * kernels.query_element_bytes) {
    LS_CHECK_EQ(group_ * store_.layout().num_kv_heads, params.num_q_heads);
    LS_CHECK_EQ(params.q.cols, int64_t{params.num_q_heads} * store_.part().width);
    ListUnits();
  }

  void Run(ThreadPool& pool);

 private:
  void ListUnits();
  void PackQueries(const Unit& unit, int head, std::byte* packed) const;
  void Estimate(const Item& item, uint16_t* keys, const std::byte* packed);
  std::vector<const uint16_t*> KeysOf(const Unit& unit, int piece, uint16_t* scratch) const;
  void Weigh(Unit& unit, int piece, int head, float* scores) const;
  std::vector<double> Masses(const Unit& unit) const;
  void Write(const Unit& unit, std::span<const PageRun> runs) const;

  const SelectTilesParams& params_;
  const AttentionKernels& kernels_;
  const CpuKvStore& store_;
  const WayLayout& way_;
  const int head_dim_;  // as stored, see KvPart
  const int group_;
  const int64_t head_bytes_;  // of one head's packed queries
  std::vector<Unit> units_;
  std::vector<Item> items_;
};

// Slot by slot, so that units which share keys are neighbours.
void TileSelection::ListUnits() {
  const std::span<const TileSelectRequest> requests = params_.requests;
  for (int slot = 0; slot < way_.num_slots(params_.layer); ++slot) {
    for (size_t begin = 0; begin < requests.size();) {
      const size_t first_unit = units_.size();
      int most_pieces = 0;
      size_t end = begin;
      for (; end < requests.size() && end - begin < kMaxSharing &&
             requests[end].sequence == requests[begin].sequence;
           ++end) {
        const TileSelectRequest& request = requests[end];
        LS_CHECK_EQ(request.first_position % kTileTokens, 0);
        LS_CHECK_LE(int64_t{request.first_query} + kTileTokens, params_.q.rows);
        const int tiles = static_cast<int>(request.first_position / kTileTokens) + 1;
        const int pieces = (tiles + kTilesPerPiece - 1) / kTilesPerPiece;
        const size_t rows = static_cast<size_t>(group_) * kRows;
        units_.push_back({&request, slot, tiles, pieces,
                          std::vector<float>(rows * static_cast<size_t>(tiles)),
                          std::vector<float>(rows * static_cast<size_t>(pieces)),
                          std::make_unique<std::atomic<int>>(pieces)});
        most_pieces = std::max(most_pieces, pieces);
      }
      for (int piece = 0; piece < most_pieces; ++piece) {
        items_.push_back({first_unit, units_.size(), piece});
      }
      begin = end;
    }
  }
}

void TileSelection::Run(ThreadPool& pool) {
  const int64_t heads = static_cast<int64_t>(units_.size()) * group_;
  const AlignedArray<std::byte> packed(heads * head_bytes_);
  pool.Run(heads, [&](int64_t i, int /*thread*/) {
    PackQueries(units_[static_cast<size_t>(i / group_)], static_cast<int>(i % group_),
                packed.data() + i * head_bytes_);
  });
  std::vector<AlignedArray<uint16_t>> keys;  // dequantised, per thread
  if (store_.part().dtype != DType::kBf16) {
    for (int t = 0; t < pool.num_threads(); ++t) {
      keys.emplace_back(int64_t{kPagesPerPiece} * kPageTokens * head_dim_);
    }
  }
  pool.Run(static_cast<int64_t>(items_.size()), [&](int64_t i, int thread) {
    Estimate(items_[static_cast<size_t>(i)],
             keys.empty() ? nullptr : keys[static_cast<size_t>(thread)].data(), packed.data());
  });
}

void TileSelection::PackQueries(const Unit& unit, int head, std::byte* packed) const {
  const int kv_head =
      way_.heads[static_cast<size_t>(params_.layer)][static_cast<size_t>(unit.slot)];
  const int width = store_.part().width;
  kernels_.pack_strided_queries({.q = params_.q.row<float>(unit.request->first_query) +
                                      (int64_t{kv_head} * group_ + head) * width,
                                 .q_stride = params_.q.stride,
                                 .width = width,
                                 .head_dim = head_dim_,
                                 .packed = packed});
}

// The keys of a piece's pages, up to the end of the unit's own tile.
std::vector<const uint16_t*> TileSelection::KeysOf(const Unit& unit,
                                                   int piece,
                                                   uint16_t* scratch) const {
  const KvPart& part = store_.part();
  const SequencePages& pages = params_.sequences[static_cast<size_t>(unit.request->sequence)];
  const PageIdx first = piece * kPagesPerPiece;
  const PageIdx last = std::min(first + kPagesPerPiece, unit.num_tiles * kTilePages);
  std::vector<const uint16_t*> keys;
  for (PageIdx page = first; page < last; ++page) {
    const PageId id = pages.page(Way::kRetrieval, page);
    LS_CHECK_GE(id, 0) << "page " << page << " of the retrieval way was trimmed";
    const std::byte* kv = store_.kv_part(Way::kRetrieval, id, params_.layer, unit.slot);
    if (part.dtype == DType::kBf16) {
      keys.push_back(reinterpret_cast<const uint16_t*>(kv));
      continue;
    }
    kernels_.dequantize_page(part.Quantized(kv), BitsOf(part.dtype), head_dim_, scratch, nullptr);
    keys.push_back(scratch);
    scratch += int64_t{kPageTokens} * head_dim_;
  }
  return keys;
}

void TileSelection::Estimate(const Item& item, uint16_t* keys, const std::byte* packed) {
  size_t longest = item.first;  // sees every page that one of them sees
  for (size_t u = item.first; u < item.last; ++u) {
    if (units_[u].num_tiles > units_[longest].num_tiles) longest = u;
  }
  const std::vector<const uint16_t*> pages = KeysOf(units_[longest], item.piece, keys);
  alignas(64) float scores[kRows * kColumnsPerPiece];
  for (size_t u = item.first; u < item.last; ++u) {
    Unit& unit = units_[u];
    if (item.piece >= unit.num_pieces) continue;
    const int seen = unit.num_tiles * kTilePages - item.piece * kPagesPerPiece;
    for (int head = 0; head < group_; ++head) {
      kernels_.score_strided({.head_dim = head_dim_,
                              .q = packed + (static_cast<int64_t>(u) * group_ + head) * head_bytes_,
                              .num_pages = std::min(seen, static_cast<int>(pages.size())),
                              .keys = pages.data(),
                              .scores = scores,
                              .stride = kColumnsPerPiece});
      Weigh(unit, item.piece, head, scores);
    }
    if (unit.pieces_left->fetch_sub(1, std::memory_order_acq_rel) == 1) {
      Write(unit, ChooseTiles(*unit.request, Masses(unit)));
    }
  }
}

void TileSelection::Weigh(Unit& unit, int piece, int head, float* scores) const {
  for (int r = 0; r < kRows; ++r) {
    // Row r sees the columns that do not begin ahead of it.
    const int columns = (unit.num_tiles - 1) * kRows + r + 1 - piece * kColumnsPerPiece;
    const int64_t row = int64_t{head} * kRows + r;
    unit.maxes[static_cast<size_t>(row * unit.num_pieces + piece)] = kernels_.sum_tile_weights(
        {.scores = scores + r * kColumnsPerPiece,
         .num_columns = std::min(columns, kColumnsPerPiece),
         .scale = params_.scale * kLog2E / kTileStride,
         .sums = unit.sums.data() + row * unit.num_tiles + int64_t{piece} * kTilesPerPiece});
  }
}

// In order of rows, pieces and tiles, whoever calls.
std::vector<double> TileSelection::Masses(const Unit& unit) const {
  const double scale = double{params_.scale} / kTileStride;
  std::vector<double> masses(static_cast<size_t>(unit.num_tiles), 0.0);
  std::vector<double> factors(static_cast<size_t>(unit.num_pieces));
  const int rows = group_ * kRows;
  for (int row = 0; row < rows; ++row) {
    const float* sums = unit.sums.data() + int64_t{row} * unit.num_tiles;
    const float* maxes = unit.maxes.data() + int64_t{row} * unit.num_pieces;
    const float max = *std::max_element(maxes, maxes + unit.num_pieces);
    double total = 0;
    for (int piece = 0; piece < unit.num_pieces; ++piece) {
      const double factor = std::exp((double{maxes[piece]} - double{max}) * scale);
      factors[static_cast<size_t>(piece)] = factor;
      const int last = std::min((piece + 1) * kTilesPerPiece, unit.num_tiles);
      for (int tile = piece * kTilesPerPiece; tile < last; ++tile) {
        total += factor * double{sums[tile]};
      }
    }
    for (double& factor : factors) factor /= total * rows;
    for (int tile = 0; tile < unit.num_tiles; ++tile) {
      masses[static_cast<size_t>(tile)] +=
          factors[static_cast<size_t>(tile / kTilesPerPiece)] * double{sums[tile]};
    }
  }
  return masses;
}

void TileSelection::Write(const Unit& unit, std::span<const PageRun> runs) const {
  const SelectionTable& table = unit.request->table;
  LS_CHECK_LE(static_cast<int64_t>(runs.size()), int64_t{table.capacity});
  const int entry = way_.first_entry[static_cast<size_t>(params_.layer)] + unit.slot;
  std::copy(runs.begin(), runs.end(), table.runs + int64_t{entry} * table.capacity);
  table.num_runs[entry] = static_cast<int>(runs.size());
}

}  // namespace

int64_t TileSelectionScratchBytes(const ScratchQuery& query) {
  const AttentionLimits& limits = query.limits;
  const int64_t head_dim = KvPart::Of(query.layout.dtype, query.layout.head_dim).head_dim;
  const int64_t tiles = limits.pages / kTilePages + 1;
  const int64_t pieces = tiles / kTilesPerPiece + 1;
  const int64_t head_bytes = kRows * (tiles + pieces) * int64_t{sizeof(float)} +
                             kTileTokens * head_dim * query.kernels.query_element_bytes;
  const int64_t keys_bytes = kPagesPerPiece * kPageTokens * head_dim * int64_t{sizeof(uint16_t)};
  return limits.rows / kTileTokens * limits.num_q_heads * head_bytes +
         query.num_threads * (keys_bytes + 4 * tiles * int64_t{sizeof(double)});
}

Status CpuBackend::SelectTiles(const SelectTilesParams& params) {
  TileSelection(params, *attention_).Run(pool_);
  return Status();
}

}  // namespace lserve
