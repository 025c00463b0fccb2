// A small KV cache with random tokens, and attention over it computed naively in double from the
// stored values. Used by the tests of the attention ops.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_kv_store.h"
#include "base/check.h"
#include "base/half.h"

namespace lserve {

struct CacheShape {
  DType dtype = DType::kBf16;
  int head_dim = 64;
  std::vector<uint8_t> kinds = {1, 0};  // one layer; 1 = retrieval
  int group = 2;
  std::vector<int> num_tokens = {300};  // per sequence
};

inline std::vector<float> RandomFloats(size_t count, size_t seed) {
  std::mt19937 rng(static_cast<uint32_t>(seed));
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  std::vector<float> x(count);
  for (float& v : x) v = uniform(rng);
  return x;
}

class TestCache {
 public:
  TestCache(CpuBackend& backend, CacheShape cache_shape) : backend_(backend), shape(cache_shape) {
    const int heads = static_cast<int>(shape.kinds.size());
    layout = MakeKvLayout(1, heads, shape.head_dim, shape.dtype, shape.kinds,
                          backend.kv_head_bytes(shape.dtype, shape.head_dim));
    PageId total = 0;
    for (const int n : shape.num_tokens) total += NumPages(n) + 1;
    Result<std::unique_ptr<KvStore>> made = backend.MakeKvStore(layout, {total, total});
    LS_CHECK(made.ok());
    store = std::move(made.value());
    const CpuKvStore& cpu_store = static_cast<const CpuKvStore&>(*store);
    PageId next = total;  // descending: logical and physical order differ
    for (const int n : shape.num_tokens) {
      tables.emplace_back();
      for (int p = 0; p < NumPages(n); ++p) tables.back().push_back(--next);
      k.push_back(RandomFloats(static_cast<size_t>(n * heads * shape.head_dim), 1000 + k.size()));
      v.push_back(RandomFloats(static_cast<size_t>(n * heads * shape.head_dim), 2000 + v.size()));
    }
    for (const std::vector<PageId>& table : tables) sequences.push_back({{table, table}});
    for (const Way way : kWays) {
      // A page that held another model's numbers: every bit pattern here is a NaN.
      for (PageId p = 0; p < total; ++p) {
        for (int s = 0; s < layout.way(way).num_slots(0); ++s) {
          const KvHeadBytes bytes = layout.way(way).head_bytes;
          std::memset(cpu_store.kv_part(way, p, 0, s), 0xff, bytes.kv);
          if (bytes.stats > 0) std::memset(cpu_store.stats_part(way, p, 0, s), 0xff, bytes.stats);
        }
      }
    }
  }

  // Appends all tokens of all sequences, `chunk` at a time.
  void Fill(int chunk = 1 << 30) {
    for (size_t s = 0; s < tables.size(); ++s) {
      for (int t = 0; t < shape.num_tokens[s]; t += chunk) {
        Append(static_cast<int>(s), t, std::min(chunk, shape.num_tokens[s] - t));
      }
    }
  }

  void Append(int sequence, int first, int count) {
    const size_t s = static_cast<size_t>(sequence);
    const RowRange range = {sequence, first, count, first};
    const Status status = backend_.AppendKv({.k = MatrixOf(k[s], s),
                                             .v = MatrixOf(v[s], s),
                                             .store = store.get(),
                                             .layer = 0,
                                             .sequences = sequences,
                                             .ranges = {&range, 1}});
    LS_CHECK(status.ok());
  }

  int num_kv_heads() const { return static_cast<int>(shape.kinds.size()); }
  int num_q_heads() const { return num_kv_heads() * shape.group; }
  int64_t q_cols() const { return int64_t{num_q_heads()} * shape.head_dim; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape.head_dim)); }

  enum class Op { kPrefill, kDecode };
  // q is [rows, q_cols]; rows that the plan does not name stay NaN.
  std::vector<float> Attend(Op op, const std::vector<float>& q, const PagePlan& plan) const {
    const int64_t rows = static_cast<int64_t>(q.size()) / q_cols();
    std::vector<float> out(q.size(), std::nanf(""));
    const AttentionParams params = {.q = {q.data(), DType::kF32, rows, q_cols(), q_cols()},
                                    .out = {.data = out.data(),
                                            .dtype = DType::kF32,
                                            .rows = rows,
                                            .cols = q_cols(),
                                            .stride = q_cols()},
                                    .num_q_heads = num_q_heads(),
                                    .scale = scale(),
                                    .store = store.get(),
                                    .layer = 0,
                                    .sequences = sequences,
                                    .plan = &plan};
    const Status status =
        op == Op::kPrefill ? backend_.PrefillAttention(params) : backend_.DecodeAttention(params);
    LS_CHECK(status.ok());
    return out;
  }

  // Lists of layer 0 for one request, into its table.
  void Select(const std::vector<float>& q, const SelectRequest& request) const {
    const Status status =
        backend_.SelectPages({.q = {q.data(), DType::kF32,
                                    static_cast<int64_t>(q.size()) / q_cols(), q_cols(), q_cols()},
                              .num_q_heads = num_q_heads(),
                              .scale = scale(),
                              .store = store.get(),
                              .layer = 0,
                              .sequences = sequences,
                              .requests = {&request, 1}});
    LS_CHECK(status.ok());
  }

  // The same for the tiles of a plan's queries.
  void SelectTiles(const std::vector<float>& q,
                   const std::vector<TileSelectRequest>& requests) const {
    const Status status =
        backend_.SelectTiles({.q = {q.data(), DType::kF32,
                                    static_cast<int64_t>(q.size()) / q_cols(), q_cols(), q_cols()},
                              .num_q_heads = num_q_heads(),
                              .scale = scale(),
                              .store = store.get(),
                              .layer = 0,
                              .sequences = sequences,
                              .requests = requests});
    LS_CHECK(status.ok());
  }

  // The keys (or values) of a token of a head as stored: bf16 of what quantisation leaves.
  std::vector<double> Stored(const std::vector<float>& rows, int64_t token, int head) const;

  // One query head's output.
  std::vector<double> Naive(const std::vector<float>& q,
                            const PagePlan& plan,
                            const PlanRow& row,
                            int query,
                            int q_head) const {
    const int head = q_head / shape.group;
    const HeadSlot at = layout.slots[static_cast<size_t>(head)];
    const size_t s = static_cast<size_t>(row.sequence);
    const int64_t p = row.first_position + query;
    std::vector<double> scores;
    std::vector<int64_t> keys;
    const float* x = q.data() + (row.first_query + query) * q_cols() + q_head * shape.head_dim;
    ForEachPage(plan, row, at.slot, [&](PageIdx page) {
      for (int64_t t = int64_t{page} * kPageTokens; t < (page + 1) * kPageTokens; ++t) {
        if (!Visible(row, p, t)) continue;
        const std::vector<double> key = Stored(k[s], t, head);
        double dot = 0;
        for (int d = 0; d < shape.head_dim; ++d)
          dot += double{ToFloat(ToBf16(x[d]))} * key[static_cast<size_t>(d)];
        scores.push_back(dot * double{scale()});
        keys.push_back(t);
      }
    });
    std::vector<double> out(static_cast<size_t>(shape.head_dim), 0.0);
    if (keys.empty()) return out;
    const double max = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    for (double& score : scores) sum += score = std::exp(score - max);
    for (size_t i = 0; i < keys.size(); ++i) {
      const std::vector<double> value = Stored(v[s], keys[i], head);
      for (size_t d = 0; d < out.size(); ++d) out[d] += scores[i] / sum * value[d];
    }
    return out;
  }

 private:
  ConstMatrix MatrixOf(const std::vector<float>& x, size_t s) const {
    const int64_t cols = int64_t{num_kv_heads()} * shape.head_dim;
    return {x.data(), DType::kF32, shape.num_tokens[s], cols, cols};
  }

  CpuBackend& backend_;

 public:
  const CacheShape shape;
  KvLayout layout;
  std::unique_ptr<KvStore> store;
  std::vector<std::vector<PageId>> tables;  // [sequence], the same ids in both ways
  std::vector<SequencePages> sequences;
  std::vector<std::vector<float>> k;  // [sequence][token, kv head, head_dim]
  std::vector<std::vector<float>> v;
};

inline std::vector<double> TestCache::Stored(const std::vector<float>& rows,
                                             int64_t token,
                                             int head) const {
  const float* x = rows.data() + (token * num_kv_heads() + head) * shape.head_dim;
  std::vector<double> stored;
  const int levels = QuantLevels(shape.dtype);
  const QuantScale scale = ChooseQuantScale(x, shape.head_dim, levels);
  for (int d = 0; d < shape.head_dim; ++d) {
    const Bf16 value = shape.dtype == DType::kBf16
                           ? ToBf16(x[d])
                           : Dequantize(QuantCode(x[d], scale, levels), scale);
    stored.push_back(double{ToFloat(value)});
  }
  return stored;
}

// All of a sequence's pages up to its newest token, for queries [first, first + count).
inline PlanRow DenseRow(
    PagePlan& plan, int sequence, Way way, int first_query, int64_t first, int count) {
  PlanRow row;
  row.sequence = sequence;
  row.way = way;
  row.first_query = first_query;
  row.num_queries = count;
  row.first_position = first;
  row.first_run = static_cast<int>(plan.runs.size());
  row.newest = {0, NumPages(first + count)};
  plan.rows.push_back(row);
  return row;
}

}  // namespace lserve
