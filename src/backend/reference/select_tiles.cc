#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "backend/reference/reference_backend.h"
#include "backend/reference/reference_kv_store.h"
#include "base/check.h"

namespace lserve {
namespace {

constexpr int kRows =
    kTileTokens / kTileStride;  // of a query head's estimate, and columns per tile
constexpr int kTilePages = kTileTokens / kPageTokens;

class TileChoice {
 public:
  TileChoice(const SelectTilesParams& params, const TileSelectRequest& request, int slot)
      : params_(params),
        request_(request),
        slot_(slot),
        store_(*static_cast<const ReferenceKvStore*>(params.store)),
        num_tiles_(static_cast<int>(request.first_position / kTileTokens) + 1) {}

  // Each tile's share of the estimated attention.
  std::vector<double> Masses() const {
    const KvLayout& layout = store_.layout();
    const int group = params_.num_q_heads / layout.num_kv_heads;
    const int kv_head = layout.way(Way::kRetrieval)
                            .heads[static_cast<size_t>(params_.layer)][static_cast<size_t>(slot_)];
    std::vector<double> masses(static_cast<size_t>(num_tiles_), 0.0);
    for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      for (int row = 0; row < kRows; ++row) AddRow(h, row, group * kRows, &masses);
    }
    // NaN (from a broken model) has no order, and a sort needs one.
    for (double& mass : masses) mass = mass >= 0 ? mass : 0;
    return masses;
  }

  // The chosen tiles before the newest ones, ascending.
  std::vector<PageIdx> Choose(const std::vector<double>& masses) const {
    const int listed = std::max(0, num_tiles_ - request_.newest_tiles);
    const int sink = std::min(request_.sink_tiles, listed);
    double all = 0, read = 0;
    std::vector<PageIdx> tiles, order;
    for (int tile = 0; tile < num_tiles_; ++tile) {
      const double mass = masses[static_cast<size_t>(tile)];
      all += mass;
      if (tile >= sink && tile < listed) {
        order.push_back(tile);
        continue;
      }
      read += mass;
      if (tile < sink) tiles.push_back(tile);
    }
    std::stable_sort(order.begin(), order.end(), [&](PageIdx a, PageIdx b) {
      return masses[static_cast<size_t>(a)] > masses[static_cast<size_t>(b)];
    });
    for (const PageIdx tile : order) {
      if (read >= request_.threshold * all) break;
      if (static_cast<int>(tiles.size()) >= request_.max_listed_tiles) break;
      read += masses[static_cast<size_t>(tile)];
      tiles.push_back(tile);
    }
    std::sort(tiles.begin(), tiles.end());
    return tiles;
  }

 private:
  void AddRow(int q_head, int row, int num_rows, std::vector<double>* masses) const {
    std::vector<double> scores;
    const int64_t last = request_.first_position / kTileStride + row;
    for (int64_t column = 0; column <= last; ++column) {
      scores.push_back(Antidiagonal(q_head, row, column) * double{params_.scale} / kTileStride);
    }
    const double max = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    for (double& score : scores) sum += score = std::exp(score - max);
    for (size_t column = 0; column < scores.size(); ++column) {
      (*masses)[column / kRows] += scores[column] / sum / num_rows;
    }
  }

  double Antidiagonal(int q_head, int row, int64_t column) const {
    const int head_dim = store_.layout().head_dim;
    const SequencePages& pages = params_.sequences[static_cast<size_t>(request_.sequence)];
    const PageIdx page = static_cast<PageIdx>(column * kTileStride / kPageTokens);
    const ReferencePart part =
        store_.Part(Way::kRetrieval, pages.page(Way::kRetrieval, page), params_.layer, slot_);
    const int first_token = static_cast<int>(column * kTileStride % kPageTokens);
    double sum = 0;
    for (int s = 0; s < kTileStride; ++s) {
      const float* q = params_.q.row<float>(request_.first_query + row * kTileStride + s) +
                       int64_t{q_head} * head_dim;
      for (int d = 0; d < head_dim; ++d) {
        sum += double{ToFloat(ToBf16(q[d]))} *
               double{part.Load(ReferencePart::kKey, first_token + kTileStride - 1 - s, d)};
      }
    }
    return sum;
  }

  const SelectTilesParams& params_;
  const TileSelectRequest& request_;
  int slot_;
  const ReferenceKvStore& store_;
  int num_tiles_;
};

// Ascending tiles as merged runs of pages.
void WriteRuns(const std::vector<PageIdx>& tiles, const SelectionTable& table, int entry) {
  PageRun* runs = table.runs + int64_t{entry} * table.capacity;
  int count = 0;
  for (const PageIdx tile : tiles) {
    const PageRun run = {.first = tile * kTilePages, .last = (tile + 1) * kTilePages};
    if (count > 0 && runs[count - 1].last == run.first) {
      runs[count - 1].last = run.last;
      continue;
    }
    LS_CHECK_LT(count, table.capacity);
    runs[count++] = run;
  }
  table.num_runs[entry] = count;
}

}  // namespace

Status ReferenceBackend::SelectTiles(const SelectTilesParams& params) {
  const KvLayout& layout = params.store->layout();
  const WayLayout& way = layout.way(Way::kRetrieval);
  LS_CHECK_EQ(params.num_q_heads % layout.num_kv_heads, 0);
  for (const TileSelectRequest& request : params.requests) {
    LS_CHECK_EQ(request.first_position % kTileTokens, 0);
    for (int slot = 0; slot < way.num_slots(params.layer); ++slot) {
      const TileChoice choice(params, request, slot);
      WriteRuns(choice.Choose(choice.Masses()), request.table,
                way.first_entry[static_cast<size_t>(params.layer)] + slot);
    }
  }
  return Status();
}

}  // namespace lserve
