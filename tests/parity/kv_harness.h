// KvHarness: a K/V store with chosen head kinds and shuffled physical pages, filled through
// AppendKv, and the ops that read it. Nothing here knows how a backend stores a page. Matrices
// have strides that are no multiple of anything, and what lies between their rows is checked.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "backend/host_kv_store.h"
#include "backend/kv_quant.h"
#include "parity/parity_cases.h"

namespace lserve::parity {

struct KvShape {
  DType dtype = DType::kBf16;
  int head_dim = 64;
  int num_kv_heads = 2;
  std::vector<uint8_t> kinds = {1, 0};  // [layers, num_kv_heads], 1 = retrieval
  int group = 2;
  std::vector<int64_t> num_tokens = {300};  // per sequence

  int num_layers() const { return static_cast<int>(kinds.size()) / num_kv_heads; }
  int num_q_heads() const { return num_kv_heads * group; }
  int64_t q_cols() const { return int64_t{num_q_heads()} * head_dim; }
  int64_t kv_cols() const { return int64_t{num_kv_heads} * head_dim; }
};

struct TokenAt {
  int layer = 0;
  int sequence = 0;
  int64_t position = 0;
  int head = 0;
};

// Writes the key and the value [head_dim] of one token of one KV head.
using TokenFill = std::function<void(const TokenAt& at, float* k, float* v)>;

// What the format of kv_quant.h leaves of a vector.
inline std::vector<float> Stored(const std::vector<float>& x, DType dtype) {
  std::vector<float> stored;
  if (dtype == DType::kBf16) {
    for (const float value : x) stored.push_back(ToFloat(ToBf16(value)));
    return stored;
  }
  if (dtype == DType::kFp8) {
    const uint8_t exponent = ChooseFp8Exponent(x.data(), static_cast<int>(x.size()));
    for (const float value : x) {
      stored.push_back(ToFloat(DequantizeFp8(Fp8Code(value, exponent), exponent)));
    }
    return stored;
  }
  const int levels = QuantLevels(dtype);
  const QuantScale scale = ChooseQuantScale(x.data(), static_cast<int>(x.size()), levels);
  for (const float value : x) {
    stored.push_back(ToFloat(Dequantize(QuantCode(value, scale, levels), scale)));
  }
  return stored;
}

// Uniform in [-amplitude, amplitude), the same whatever the order of the calls.
inline TokenFill RandomTokens(uint64_t seed, int head_dim, float amplitude = 1.0f) {
  return [=](const TokenAt& at, float* k, float* v) {
    const uint64_t place = static_cast<uint64_t>(at.position) * 64 +
                           static_cast<uint64_t>(at.head * 16 + at.sequence * 4 + at.layer);
    Rng rng(Rng(seed * 0x10001 + place).NextU64());
    for (int d = 0; d < head_dim; ++d) k[d] = amplitude * rng.NextFloat();
    for (int d = 0; d < head_dim; ++d) v[d] = amplitude * rng.NextFloat();
  };
}

enum class Op { kPrefill, kDecode };

class KvHarness {
 public:
  // `page_seed` shuffles the physical pages, which no result may depend on.
  KvHarness(Backend& backend, KvShape shape, TokenFill fill, uint64_t page_seed = 1)
      : backend_(backend), shape_(std::move(shape)), fill_(std::move(fill)) {
    layout_ = MakeKvLayout(shape_.num_layers(), shape_.num_kv_heads, shape_.head_dim, shape_.dtype,
                           shape_.kinds, backend.kv_head_bytes(shape_.dtype, shape_.head_dim));
    PageId total = 2;
    for (const int64_t n : shape_.num_tokens) total += NumPages(n);
    store_ = backend.MakeKvStore(layout_, {total, total}).value();
    Rng rng(page_seed);
    for (const Way way : kWays) {
      EXPECT_TRUE(store_->Commit(way, 0, total).ok());
      Poison(way, total);
      std::vector<PageId> ids;
      for (PageId id = 0; id < total; ++id) ids.push_back(id);
      for (size_t i = ids.size(); i > 1; --i) std::swap(ids[i - 1], ids[rng.NextBelow(i)]);
      for (const int64_t n : shape_.num_tokens) {
        tables_[Index(way)].emplace_back(ids.end() - NumPages(n), ids.end());
        ids.resize(ids.size() - static_cast<size_t>(NumPages(n)));
      }
    }
    for (size_t s = 0; s < shape_.num_tokens.size(); ++s) {
      sequences_.push_back({{tables_[0][s], tables_[1][s]}});
    }
  }

  const KvShape& shape() const { return shape_; }
  const KvLayout& layout() const { return layout_; }
  int num_sequences() const { return static_cast<int>(sequences_.size()); }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)); }

  // Other tokens from here on: the pages are recycled.
  void Refill(TokenFill fill) { fill_ = std::move(fill); }

  // Appends [first, first + count) of every sequence that has such tokens, in one batch.
  void Append(int64_t first, int64_t count) {
    std::vector<RowRange> ranges;
    int rows = 0;
    for (int s = 0; s < num_sequences(); ++s) {
      const int64_t n = std::min(count, shape_.num_tokens[static_cast<size_t>(s)] - first);
      if (n <= 0) continue;
      ranges.push_back({s, rows, static_cast<int>(n), first});
      rows += static_cast<int>(n);
    }
    for (int layer = 0; layer < layout_.num_layers; ++layer) AppendLayer(layer, ranges, rows);
  }

  void Fill(int64_t chunk = 1 << 20) {
    const int64_t longest = *std::max_element(shape_.num_tokens.begin(), shape_.num_tokens.end());
    for (int64_t t = 0; t < longest; t += chunk) Append(t, chunk);
  }

  // From here on the rows that attention reads and writes begin at multiples of 16 bytes, as an
  // engine's do; kernels may then take other loads and stores.
  void AlignRows() {
    q_gap_ = 4;
    out_gap_ = 8;
  }

  // q is [rows, q_cols]; elements that the plan does not name come back as kUntouched.
  static constexpr float kUntouched = 12345.0f;
  std::vector<float> Attend(Op op,
                            const std::vector<float>& q,
                            const PagePlan& plan,
                            int layer = 0) {
    const int64_t cols = shape_.q_cols();
    const int64_t rows = static_cast<int64_t>(q.size()) / cols;
    const std::vector<float> in = Widen(q, cols, q_gap_);
    std::vector<float> out(static_cast<size_t>(rows * (cols + out_gap_)), kUntouched);
    const AttentionParams params = {
        .q = {in.data(), DType::kF32, rows, cols, cols + q_gap_},
        .out = {.data = out.data(), .rows = rows, .cols = cols, .stride = cols + out_gap_},
        .num_q_heads = shape_.num_q_heads(),
        .scale = scale(),
        .store = store_.get(),
        .layer = layer,
        .sequences = sequences_,
        .plan = &plan};
    const Status status =
        op == Op::kPrefill ? backend_.PrefillAttention(params) : backend_.DecodeAttention(params);
    EXPECT_TRUE(status.ok()) << status.message();
    return Narrow(out, cols, out_gap_);
  }

  // Of the first layer, [rows of the plan, query heads, pages of the longest sequence].
  std::vector<float> LogSums(const std::vector<float>& q, const PagePlan& plan) {
    const int64_t cols = shape_.q_cols();
    const int64_t longest = *std::max_element(shape_.num_tokens.begin(), shape_.num_tokens.end());
    const int64_t stride = NumPages(longest);
    const std::vector<float> in = Widen(q, cols, 3);
    std::vector<float> sums(plan.rows.size() * static_cast<size_t>(shape_.num_q_heads() * stride),
                            kUntouched);
    const Status status = backend_.PageLogSums(
        {.q = {in.data(), DType::kF32, static_cast<int64_t>(q.size()) / cols, cols, cols + 3},
         .num_q_heads = shape_.num_q_heads(),
         .scale = scale(),
         .store = store_.get(),
         .layer = 0,
         .sequences = sequences_,
         .plan = &plan,
         .log_sums = sums.data(),
         .stride = stride});
    EXPECT_TRUE(status.ok()) << status.message();
    return sums;
  }

  // The lists of all slots of a layer; request.table is set here.
  std::vector<std::vector<PageRun>> Select(const std::vector<float>& q,
                                           SelectRequest request,
                                           int layer = 0) {
    const int64_t cols = shape_.q_cols();
    const WayLayout& way = layout_.way(Way::kRetrieval);
    // Every kept page may be a run of its own.
    const int capacity =
        std::min<int>(request.num_pages, std::max(1, request.budget_pages) + request.sink_pages +
                                             request.newest_pages);
    std::vector<int> num_runs(static_cast<size_t>(way.num_entries), -1);
    std::vector<PageRun> runs(num_runs.size() * static_cast<size_t>(capacity), PageRun{-7, -7});
    request.table = {.capacity = capacity, .num_runs = num_runs.data(), .runs = runs.data()};
    const std::vector<float> in = Widen(q, cols, 3);
    const Status status = backend_.SelectPages(
        {.q = {in.data(), DType::kF32, static_cast<int64_t>(q.size()) / cols, cols, cols + 3},
         .num_q_heads = shape_.num_q_heads(),
         .scale = scale(),
         .store = store_.get(),
         .layer = layer,
         .sequences = sequences_,
         .requests = {&request, 1}});
    EXPECT_TRUE(status.ok()) << status.message();
    std::vector<std::vector<PageRun>> lists;
    const int first = way.first_entry[static_cast<size_t>(layer)];
    for (int entry = 0; entry < way.num_entries; ++entry) {
      const bool mine = entry >= first && entry < first + way.num_slots(layer);
      const int count = num_runs[static_cast<size_t>(entry)];
      EXPECT_EQ(count >= 0, mine) << "entry " << entry;
      if (!mine || count < 0) continue;
      const std::span<const PageRun> list = request.table.list(entry);
      lists.emplace_back(list.begin(), list.end());
    }
    return lists;
  }

  // For each request the lists of all slots of a layer; the requests' tables are set here.
  std::vector<std::vector<std::vector<PageRun>>> SelectTiles(
      const std::vector<float>& q, std::vector<TileSelectRequest> requests, int layer = 0) {
    const int64_t cols = shape_.q_cols();
    const WayLayout& way = layout_.way(Way::kRetrieval);
    const size_t entries = static_cast<size_t>(way.num_entries);
    std::vector<std::vector<int>> num_runs(requests.size(), std::vector<int>(entries, -1));
    std::vector<std::vector<PageRun>> runs(requests.size());
    for (size_t i = 0; i < requests.size(); ++i) {
      const int capacity = static_cast<int>(requests[i].first_position / kTileTokens) / 2 + 1;
      runs[i].assign(entries * static_cast<size_t>(capacity), PageRun{-7, -7});
      requests[i].table = {
          .capacity = capacity, .num_runs = num_runs[i].data(), .runs = runs[i].data()};
    }
    const std::vector<float> in = Widen(q, cols, 3);
    const Status status = backend_.SelectTiles(
        {.q = {in.data(), DType::kF32, static_cast<int64_t>(q.size()) / cols, cols, cols + 3},
         .num_q_heads = shape_.num_q_heads(),
         .scale = scale(),
         .store = store_.get(),
         .layer = layer,
         .sequences = sequences_,
         .requests = requests});
    EXPECT_TRUE(status.ok()) << status.message();
    std::vector<std::vector<std::vector<PageRun>>> lists(requests.size());
    const int first = way.first_entry[static_cast<size_t>(layer)];
    for (size_t i = 0; i < requests.size(); ++i) {
      for (int entry = 0; entry < way.num_entries; ++entry) {
        const bool mine = entry >= first && entry < first + way.num_slots(layer);
        const int count = num_runs[i][static_cast<size_t>(entry)];
        EXPECT_EQ(count >= 0, mine) << "entry " << entry;
        if (!mine || count < 0) continue;
        const std::span<const PageRun> list = requests[i].table.list(entry);
        lists[i].emplace_back(list.begin(), list.end());
      }
    }
    return lists;
  }

  void CopyPage(Way way, PageIdx from, PageIdx to, int num_tokens) {
    store_->CopyPage(way, sequences_[0].page(way, from), sequences_[0].page(way, to), num_tokens);
  }

 private:
  // Every bit pattern of an unwritten page is a NaN: it held another sequence's numbers, and must
  // not be seen.
  void Poison(Way way, PageId total) const {
    const auto* host = dynamic_cast<const HostKvStore*>(store_.get());
    if (host == nullptr) return;
    const KvHeadBytes bytes = layout_.way(way).head_bytes;
    for (PageId page = 0; page < total; ++page) {
      for (int layer = 0; layer < layout_.num_layers; ++layer) {
        for (int slot = 0; slot < layout_.way(way).num_slots(layer); ++slot) {
          std::memset(host->kv_part(way, page, layer, slot), 0xff, bytes.kv);
          if (bytes.stats > 0) {
            std::memset(host->stats_part(way, page, layer, slot), 0xff, bytes.stats);
          }
        }
      }
    }
  }

  void AppendLayer(int layer, const std::vector<RowRange>& ranges, int rows) {
    const int64_t cols = shape_.kv_cols();
    const int64_t stride = 2 * cols + 1;  // K and V beside each other, as in a fused projection
    std::vector<float> kv(static_cast<size_t>(rows * stride), kUntouched);
    for (const RowRange& range : ranges) {
      for (int i = 0; i < range.num_rows; ++i) {
        float* row = kv.data() + (range.first_row + i) * stride;
        for (int head = 0; head < shape_.num_kv_heads; ++head) {
          fill_({layer, range.sequence, range.first_position + i, head},
                row + head * shape_.head_dim, row + cols + head * shape_.head_dim);
        }
      }
    }
    const Status status =
        backend_.AppendKv({.k = {kv.data(), DType::kF32, rows, cols, stride},
                           .v = {kv.data() + cols, DType::kF32, rows, cols, stride},
                           .store = store_.get(),
                           .layer = layer,
                           .sequences = sequences_,
                           .ranges = ranges});
    EXPECT_TRUE(status.ok()) << status.message();
  }

  static std::vector<float> Widen(const std::vector<float>& x, int64_t cols, int64_t gap) {
    std::vector<float> wide;
    for (size_t i = 0; i < x.size(); i += static_cast<size_t>(cols)) {
      wide.insert(wide.end(), x.data() + i, x.data() + i + cols);
      wide.insert(wide.end(), static_cast<size_t>(gap), kUntouched);
    }
    return wide;
  }

  static std::vector<float> Narrow(const std::vector<float>& wide, int64_t cols, int64_t gap) {
    std::vector<float> x;
    for (size_t i = 0; i < wide.size(); i += static_cast<size_t>(cols + gap)) {
      x.insert(x.end(), wide.data() + i, wide.data() + i + cols);
      for (int64_t g = 0; g < gap; ++g) {
        EXPECT_EQ(wide[i + static_cast<size_t>(cols + g)], kUntouched) << "between rows";
      }
    }
    return x;
  }

  Backend& backend_;
  KvShape shape_;
  int64_t q_gap_ = 3, out_gap_ = 5;  // elements between rows
  TokenFill fill_;
  KvLayout layout_;
  std::unique_ptr<KvStore> store_;
  std::vector<std::vector<PageId>> tables_[kNumWays];  // [way][sequence][page]
  std::vector<SequencePages> sequences_;
};

}  // namespace lserve::parity
