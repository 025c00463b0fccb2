// PrefillAttention and DecodeAttention: one walk of the plan. A unit is a (row, KV head); prefill
// cuts it by query heads, decode by pages. The kernels see one page at a time.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "backend/cpu/aligned_array.h"
#include "backend/cpu/attention_kernels.h"
#include "backend/cpu/attention_scratch.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_kv_store.h"
#include "backend/cpu/page_visits.h"
#include "base/check.h"

namespace lserve {
namespace {

constexpr float kLog2E = 1.44269504088896340736f;

// Decode reads one piece of this many pages per item: 16 pages of 64-dimensional bf16 heads are
// 256 KiB, some 20 us of memory time, against about 1 us to hand an item out. The boundaries depend
// on the row's own list only, so results depend on neither threads nor batch.
constexpr int kPagesPerPiece = 16;
constexpr int kOnePiece = std::numeric_limits<int>::max();

// State of an item's rows should stay in the L2 cache beside the page: out is [rows, head_dim].
constexpr int64_t kMaxStateFloats = 64 * 1024;

// One (row, KV head), cut into pieces of its page list.
struct Unit {
  const PlanRow* row;
  int slot;
  PageVisits visits;
  int num_pieces;
  int64_t first_partial;  // row of the partial states; unused with one piece
};

struct Item {
  int unit;
  int first_head;  // of the group
  int num_heads;
  int piece;
  int64_t cost;
};

// What one thread needs for one item of at most `rows` rows.
struct Scratch {
  Scratch(int64_t rows, int head_dim, int query_element_bytes)
      : queries(rows * head_dim * query_element_bytes),
        out(rows * head_dim),
        max(rows),
        sum(rows * kSumLanes),
        visible(rows),
        keys(int64_t{kPageTokens} * head_dim),
        values(int64_t{kPageTokens} * head_dim) {}

  RowState state() const { return {out.data(), max.data(), sum.data()}; }

  AlignedArray<std::byte> queries;
  AlignedArray<float> out;
  AlignedArray<float> max;
  AlignedArray<float> sum;
  AlignedArray<uint64_t> visible;
  AlignedArray<uint16_t> keys;  // dequantised page
  AlignedArray<uint16_t> values;
};

class Attention {
 public:
  Attention(const AttentionParams& params, const AttentionKernels& kernels, int pages_per_piece)
      : params_(params),
        kernels_(kernels),
        store_(static_cast<const CpuKvStore&>(*params.store)),
        head_dim_(store_.part().head_dim),
        width_(store_.part().width),
        group_(params.num_q_heads / store_.layout().num_kv_heads),
        pages_per_piece_(pages_per_piece) {
    LS_CHECK_EQ(group_ * store_.layout().num_kv_heads, params.num_q_heads);
    LS_CHECK_EQ(params.q.cols, int64_t{params.num_q_heads} * width_);
    LS_CHECK_GT(params.scale, 0.0f);  // the running maximum is of unscaled scores
    ListUnits();
  }

  void Run(ThreadPool& pool);

 private:
  void ListUnits();
  std::vector<Item> ListItems(int num_threads) const;
  void RunItem(const Item& item, const Scratch& scratch);
  void PackQueries(const Unit& unit, const Item& item, std::byte* packed) const;
  void AttendPage(const Unit& unit,
                  int num_heads,
                  PageIdx page,
                  const Scratch& scratch,
                  const RowState& state) const;
  const std::byte* PartOf(const Unit& unit, PageIdx page) const;
  void Prefetch(const Unit& unit, PageIdx page) const;
  PageTile TileOf(const Unit& unit, PageIdx page, const Scratch& scratch) const;
  void Combine(const Unit& unit) const;
  void WriteOut(const Unit& unit, int first_head, int num_heads, const RowState& state) const;

  int rows_of(const Unit& unit, int num_heads) const { return unit.row->num_queries * num_heads; }
  // Query head 0 of a unit's group.
  int first_q_head(const Unit& unit) const {
    const WayLayout& way = store_.layout().way(unit.row->way);
    return way.heads[static_cast<size_t>(params_.layer)][static_cast<size_t>(unit.slot)] * group_;
  }
  RowState PartialState(const Unit& unit, int piece) const {
    const int64_t row = unit.first_partial + int64_t{piece} * rows_of(unit, group_);
    return {partial_out_->data() + row * head_dim_, partial_max_->data() + row,
            partial_sum_->data() + row * kSumLanes};
  }

  const AttentionParams& params_;
  const AttentionKernels& kernels_;
  const CpuKvStore& store_;
  const int head_dim_;  // as stored, see KvPart
  const int width_;     // as in q and out
  const int group_;
  const int pages_per_piece_;
  std::vector<Unit> units_;
  std::unique_ptr<std::atomic<int>[]> pieces_left_;  // [units]
  std::unique_ptr<AlignedArray<float>> partial_out_;
  std::unique_ptr<AlignedArray<float>> partial_max_;
  std::unique_ptr<AlignedArray<float>> partial_sum_;
};

void Attention::ListUnits() {
  int64_t partials = 0;
  for (const PlanRow& row : params_.plan->rows) {
    const WayLayout& way = store_.layout().way(row.way);
    const int num_slots = way.num_slots(params_.layer);
    const int first = row.slot == kAllSlots ? 0 : row.slot;
    const int last = row.slot == kAllSlots ? num_slots : row.slot + 1;
    LS_CHECK_LE(last, num_slots);
    for (int slot = first; slot < last; ++slot) {
      const int entry = way.first_entry[static_cast<size_t>(params_.layer)] + slot;
      Unit unit = {&row, slot, PageVisits(*params_.plan, row, entry), 1, partials};
      const int pages = unit.visits.count();
      if (pages > pages_per_piece_) {
        unit.num_pieces = (pages + pages_per_piece_ - 1) / pages_per_piece_;
        partials += int64_t{unit.num_pieces} * rows_of(unit, group_);
      }
      units_.push_back(unit);
    }
  }
  pieces_left_ = std::make_unique<std::atomic<int>[]>(units_.size());
  for (size_t i = 0; i < units_.size(); ++i) pieces_left_[i] = units_[i].num_pieces;
  if (partials > 0) {
    partial_out_ = std::make_unique<AlignedArray<float>>(partials * head_dim_);
    partial_max_ = std::make_unique<AlignedArray<float>>(partials);
    partial_sum_ = std::make_unique<AlignedArray<float>>(partials * kSumLanes);
  }
}

// Longest first, so that the threads end together although retrieval and streaming heads differ in
// length by orders of magnitude.
std::vector<Item> Attention::ListItems(int num_threads) const {
  std::vector<Item> items;
  const bool few = units_.size() < 8 * static_cast<size_t>(num_threads);
  for (size_t u = 0; u < units_.size(); ++u) {
    const Unit& unit = units_[u];
    // Heads of a group share a page's loads; in prefill these cost little, balance may cost more.
    int heads = group_;
    if (pages_per_piece_ == kOnePiece) {
      const int64_t fit = kMaxStateFloats / std::max(1, unit.row->num_queries * head_dim_);
      heads = few ? 1 : static_cast<int>(std::clamp<int64_t>(fit, 1, group_));
    }
    for (int head = 0; head < group_; head += heads) {
      for (int piece = 0; piece < unit.num_pieces; ++piece) {
        const int num_heads = std::min(heads, group_ - head);
        const int pages =
            std::min(unit.visits.count() - (unit.num_pieces > 1 ? piece * pages_per_piece_ : 0),
                     pages_per_piece_);
        const int64_t cost = int64_t{pages} * rows_of(unit, num_heads);
        items.push_back({static_cast<int>(u), head, num_heads, piece, cost});
      }
    }
  }
  std::stable_sort(items.begin(), items.end(),
                   [](const Item& a, const Item& b) { return a.cost > b.cost; });
  return items;
}

void Attention::Run(ThreadPool& pool) {
  const std::vector<Item> items = ListItems(pool.num_threads());
  int64_t max_rows = 0;
  for (const Item& item : items) {
    max_rows = std::max<int64_t>(max_rows,
                                 rows_of(units_[static_cast<size_t>(item.unit)], item.num_heads));
  }
  std::vector<Scratch> scratch;
  for (int t = 0; t < pool.num_threads(); ++t) {
    scratch.emplace_back(max_rows, head_dim_, kernels_.query_element_bytes);
  }
  pool.Run(static_cast<int64_t>(items.size()), [&](int64_t i, int thread) {
    RunItem(items[static_cast<size_t>(i)], scratch[static_cast<size_t>(thread)]);
  });
}

// Rows are query-major, the item's heads inside: consecutive queries are consecutive rows, and a
// query's heads lie together in q as they do here.
void Attention::PackQueries(const Unit& unit, const Item& item, std::byte* packed) const {
  const int64_t count = int64_t{item.num_heads} * head_dim_;
  const int64_t column = int64_t{first_q_head(unit) + item.first_head} * width_;
  std::vector<float> padded(width_ < head_dim_ ? static_cast<size_t>(count) : 0, 0.0f);
  for (int i = 0; i < unit.row->num_queries; ++i) {
    const float* q = params_.q.row<float>(unit.row->first_query + i) + column;
    if (!padded.empty()) {
      for (int h = 0; h < item.num_heads; ++h) {
        std::copy_n(q + h * width_, width_, padded.begin() + int64_t{h} * head_dim_);
      }
      q = padded.data();
    }
    kernels_.pack_queries(q, count, packed + i * count * kernels_.query_element_bytes);
  }
}

// Parts of neighbouring pages lie a whole page apart; the hardware's own prefetching starts anew in
// every 4 KiB.
void Attention::Prefetch(const Unit& unit, PageIdx page) const {
  const std::byte* kv = PartOf(unit, page);
  const size_t bytes = store_.layout().way(unit.row->way).head_bytes.kv;
  for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(kv + at, 0, 2);
}

const std::byte* Attention::PartOf(const Unit& unit, PageIdx page) const {
  const SequencePages& pages = params_.sequences[static_cast<size_t>(unit.row->sequence)];
  const PageId id = pages.page(unit.row->way, page);
  LS_CHECK_GE(id, 0) << "the plan visits page " << page << ", which was trimmed";
  return store_.kv_part(unit.row->way, id, params_.layer, unit.slot);
}

PageTile Attention::TileOf(const Unit& unit, PageIdx page, const Scratch& scratch) const {
  const KvPart& part = store_.part();
  const std::byte* kv = PartOf(unit, page);
  if (part.dtype == DType::kBf16) {
    return {reinterpret_cast<const uint16_t*>(kv),
            reinterpret_cast<const uint16_t*>(kv + part.codes_bytes())};
  }
  kernels_.dequantize_page(part.Quantized(kv), BitsOf(part.dtype), head_dim_, scratch.keys.data(),
                           scratch.values.data());
  return {scratch.keys.data(), scratch.values.data()};
}

// Queries that see nothing of a page are not even touched by it, so that no neighbour's page can
// change a bit of their state; those that see all of it need no masks.
void Attention::AttendPage(const Unit& unit,
                           int num_heads,
                           PageIdx page,
                           const Scratch& scratch,
                           const RowState& state) const {
  const PlanRow& row = *unit.row;
  const QueryRange some = QueriesSeeingSome(row, page);
  if (some.first >= some.last) return;
  const QueryRange all = QueriesSeeingAll(row, page);
  AttendArgs args;
  args.head_dim = head_dim_;
  args.scale = params_.scale * kLog2E;
  args.page = TileOf(unit, page, scratch);
  const auto attend = [&](int first, int last, bool masked) {
    if (first >= last) return;
    const int64_t r = int64_t{first} * num_heads;
    args.num_rows = (last - first) * num_heads;
    args.q = scratch.queries.data() + r * head_dim_ * kernels_.query_element_bytes;
    args.state = {state.out + r * head_dim_, state.max + r, state.sum + r * kSumLanes};
    args.visible = nullptr;
    if (masked) {
      uint64_t* visible = scratch.visible.data();
      args.visible = visible;
      for (int i = first; i < last; ++i) {
        visible = std::fill_n(visible, num_heads, VisibleKeys(row, row.first_position + i, page));
      }
    }
    kernels_.attend_page(args);
  };
  if (all.first >= all.last) return attend(some.first, some.last, true);
  attend(some.first, all.first, true);
  attend(all.first, all.last, false);
  attend(all.last, some.last, true);
}

void Attention::RunItem(const Item& item, const Scratch& scratch) {
  const Unit& unit = units_[static_cast<size_t>(item.unit)];
  const int64_t rows = rows_of(unit, item.num_heads);
  const bool whole = unit.num_pieces == 1;
  const RowState state = whole ? scratch.state() : PartialState(unit, item.piece);
  std::fill_n(state.out, rows * head_dim_, 0.0f);
  std::fill_n(state.max, rows, -std::numeric_limits<float>::infinity());
  std::fill_n(state.sum, rows * kSumLanes, 0.0f);
  PackQueries(unit, item, scratch.queries.data());
  const int count = unit.visits.count();
  const int first = whole ? 0 : item.piece * pages_per_piece_;
  const int last = whole ? count : std::min(count, first + pages_per_piece_);
  // Attending lags one page behind, so that the next page is on its way meanwhile.
  PageIdx current = -1;
  unit.visits.ForEach(first, last, [&](PageIdx page) {
    Prefetch(unit, page);
    if (current >= 0) AttendPage(unit, item.num_heads, current, scratch, state);
    current = page;
  });
  if (current >= 0) AttendPage(unit, item.num_heads, current, scratch, state);
  if (whole) return WriteOut(unit, item.first_head, item.num_heads, state);
  // Whoever ends last combines; the order inside Combine is fixed.
  if (pieces_left_[static_cast<size_t>(item.unit)].fetch_sub(1, std::memory_order_acq_rel) == 1) {
    Combine(unit);
  }
}

// Folds the pieces into the first one, in order.
void Attention::Combine(const Unit& unit) const {
  const RowState total = PartialState(unit, 0);
  const float scale = params_.scale * kLog2E;
  const int rows = rows_of(unit, group_);
  for (int r = 0; r < rows; ++r) {
    float max = total.max[r];
    for (int p = 1; p < unit.num_pieces; ++p) max = std::max(max, PartialState(unit, p).max[r]);
    if (max == -std::numeric_limits<float>::infinity()) continue;  // nothing seen: zeros
    float* out = total.out + int64_t{r} * head_dim_;
    float* sum = total.sum + int64_t{r} * kSumLanes;
    for (int p = 0; p < unit.num_pieces; ++p) {
      const RowState part = PartialState(unit, p);
      const float factor = std::exp2((part.max[r] - max) * scale);
      const float* part_out = part.out + int64_t{r} * head_dim_;
      const float* part_sum = part.sum + int64_t{r} * kSumLanes;
      const float keep = p == 0 ? 0.0f : 1.0f;
      for (int d = 0; d < head_dim_; ++d) out[d] = keep * out[d] + factor * part_out[d];
      for (int l = 0; l < kSumLanes; ++l) sum[l] = keep * sum[l] + factor * part_sum[l];
    }
  }
  WriteOut(unit, 0, group_, total);
}

void Attention::WriteOut(const Unit& unit,
                         int first_head,
                         int num_heads,
                         const RowState& state) const {
  const int64_t column = int64_t{first_q_head(unit) + first_head} * width_;
  for (int i = 0; i < unit.row->num_queries; ++i) {
    float* out = params_.out.row<float>(unit.row->first_query + i) + column;
    for (int h = 0; h < num_heads; ++h) {
      const int64_t r = int64_t{i} * num_heads + h;
      const float sum =
          std::accumulate(state.sum + r * kSumLanes, state.sum + (r + 1) * kSumLanes, 0.0f);
      // Nothing seen gives 0 / 1. Something seen gives a sum of about 1 or more: the maximum's
      // weight.
      const float inverse = 1.0f / (sum == 0.0f ? 1.0f : sum);
      const float* from = state.out + r * head_dim_;
      for (int d = 0; d < width_; ++d) out[h * width_ + d] = from[d] * inverse;
    }
  }
}

}  // namespace

int64_t WalkScratchBytes(const ScratchQuery& query) {
  const KvLayout& layout = query.layout;
  const int64_t head_dim = KvPart::Of(layout.dtype, layout.head_dim).head_dim;
  const int64_t group = query.limits.num_q_heads / layout.num_kv_heads;
  const int64_t state_floats = head_dim + 1 + kSumLanes;
  // As ListItems chooses heads: all of a group, but one if that exceeds kMaxStateFloats.
  const int64_t rows =
      std::max<int64_t>(kTileTokens, std::min(kTileTokens * group, kMaxStateFloats / head_dim));
  const int64_t row_bytes = head_dim * query.kernels.query_element_bytes +
                            state_floats * int64_t{sizeof(float)} + int64_t{sizeof(uint64_t)};
  const int64_t page_bytes = 2 * kPageTokens * head_dim * int64_t{sizeof(uint16_t)};
  // Of every KV head of a layer.
  const int64_t pieces = query.limits.sequences * (query.limits.pages / kPagesPerPiece + 1);
  const int64_t units = query.limits.sequences + query.limits.rows / kTileTokens + 1;
  return query.num_threads * (rows * row_bytes + page_bytes) +
         pieces * query.limits.num_q_heads * state_floats * int64_t{sizeof(float)} +
         layout.num_kv_heads *
             (units * int64_t{sizeof(Unit)} + 2 * (pieces + units * group) * int64_t{sizeof(Item)});
}

size_t CpuBackend::AttentionScratchBytes(const KvLayout& layout,
                                         const AttentionLimits& limits) const {
  const ScratchQuery query = {layout, limits, *attention_, pool_.num_threads()};
  return static_cast<size_t>(std::max({WalkScratchBytes(query), PageSelectionScratchBytes(query),
                                       TileSelectionScratchBytes(query)}));
}

Status CpuBackend::PrefillAttention(const AttentionParams& params) {
  Attention(params, *attention_, kOnePiece).Run(pool_);
  return Status();
}

Status CpuBackend::DecodeAttention(const AttentionParams& params) {
  Attention(params, *attention_, kPagesPerPiece).Run(pool_);
  return Status();
}

}  // namespace lserve
