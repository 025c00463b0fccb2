#include "bench/kernel_bench.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "attention/policy.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/strings.h"
#include "kv/page_pool.h"
#include "kv/two_way_cache.h"

namespace lserve {
namespace {

// Copies of a weight until they exceed every cache, as the layers of a model do.
constexpr int64_t kWeightsWorkingSet = int64_t{192} << 20;
constexpr int kChunk = 512;  // tokens of a prefill step

struct GemmShape {
  int64_t in;
  int64_t out;
};
// The 1B shape's, its larger square and LM head; the 100M shape's; the bundled model's.
constexpr GemmShape kGemmShapes[] = {{2048, 8192}, {2048, 2048},  {8192, 2048},
                                     {8192, 8192}, {2048, 32000}, {768, 2048},
                                     {768, 768},   {256, 1408},   {704, 256}};
constexpr int64_t kGemmRows[] = {1, 4, 16, 512};

struct HeadShape {
  int kv_heads;
  int group;
  int head_dim;
};
constexpr HeadShape kSmallHeads = {4, 3, 64};   // of the 100M shape
constexpr HeadShape kLargeHeads = {8, 4, 128};  // of Llama-3-8B

std::vector<float> RandomFloats(int64_t count, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = rng.NextFloat();
  return values;
}

// One layer's cache of one sequence, filled with random keys and values, and queries for it.
class LayerCache {
 public:
  static Result<std::unique_ptr<LayerCache>> Make(
      Backend& backend, const HeadShape& heads, DType dtype, bool streaming, int64_t num_tokens) {
    std::unique_ptr<LayerCache> cache(new LayerCache(backend, heads));
    const std::vector<uint8_t> kinds(static_cast<size_t>(heads.kv_heads), streaming ? 0 : 1);
    const KvLayout layout = MakeKvLayout(1, heads.kv_heads, heads.head_dim, dtype, kinds,
                                         backend.kv_head_bytes(dtype, heads.head_dim));
    const size_t page_bytes = layout.ways[0].page_bytes() + layout.ways[1].page_bytes();
    const size_t budget =
        (static_cast<size_t>(NumPages(num_tokens)) + 2) * page_bytes + (size_t{64} << 20);
    cache->store_ =
        LS_TRY(backend.MakeKvStore(layout, {PagePool::MaxPages(layout, Way::kRetrieval, budget),
                                            PagePool::MaxPages(layout, Way::kStreaming, budget)}));
    cache->pool_ = std::make_unique<PagePool>(layout, cache->store_.get(), budget);
    cache->cache_.emplace(cache->pool_.get(), cache->store_.get());
    LS_TRY(cache->Fill(num_tokens));
    return cache;
  }

  const KvLayout& layout() const { return store_->layout(); }
  int64_t num_tokens() const { return cache_->num_tokens(); }
  KvStore* store() { return store_.get(); }

  // The last `rows` tokens as queries.
  RowRange LastRows(int rows) const { return {0, 0, rows, num_tokens() - rows}; }

  AttentionParams Attention(const PagePlan& plan, int rows) {
    return {.q = MatrixOf(q_, rows, q_cols()),
            .out = MatrixOf(out_, rows, q_cols()),
            .num_q_heads = num_q_heads(),
            .scale = scale(),
            .store = store_.get(),
            .layer = 0,
            .sequences = {&pages_, 1},
            .plan = &plan};
  }
  SelectPagesParams Selection(std::span<const SelectRequest> requests) {
    return {.q = MatrixOf(q_, 1, q_cols()),
            .num_q_heads = num_q_heads(),
            .scale = scale(),
            .store = store_.get(),
            .layer = 0,
            .sequences = {&pages_, 1},
            .requests = requests};
  }
  SelectTilesParams TileSelection(std::span<const TileSelectRequest> requests) {
    return {.q = MatrixOf(q_, kChunk, q_cols()),
            .num_q_heads = num_q_heads(),
            .scale = scale(),
            .store = store_.get(),
            .layer = 0,
            .sequences = {&pages_, 1},
            .requests = requests};
  }
  // The tokens of `range`, which is short enough for the buffers, once more.
  AppendKvParams Append(const RowRange& range) {
    return {.k = MatrixOf(k_, range.num_rows, kv_cols()),
            .v = MatrixOf(v_, range.num_rows, kv_cols()),
            .store = store_.get(),
            .layer = 0,
            .sequences = {&pages_, 1},
            .ranges = {&range, 1}};
  }

 private:
  LayerCache(Backend& backend, const HeadShape& heads)
      : backend_(backend),
        heads_(heads),
        q_(RandomFloats(kChunk * q_cols(), 1)),
        k_(RandomFloats(kChunk * kv_cols(), 2)),
        v_(RandomFloats(kChunk * kv_cols(), 3)),
        out_(q_.size()) {}

  int num_q_heads() const { return heads_.kv_heads * heads_.group; }
  int64_t q_cols() const { return int64_t{num_q_heads()} * heads_.head_dim; }
  int64_t kv_cols() const { return int64_t{heads_.kv_heads} * heads_.head_dim; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(heads_.head_dim)); }
  static Matrix MatrixOf(std::vector<float>& values, int64_t rows, int64_t cols) {
    return {
        .data = values.data(), .dtype = DType::kF32, .rows = rows, .cols = cols, .stride = cols};
  }

  Status Fill(int64_t num_tokens) {
    Rng rng(4);
    for (int64_t first = 0; first < num_tokens; first += kChunk) {
      const int count = static_cast<int>(std::min<int64_t>(kChunk, num_tokens - first));
      LS_CHECK(cache_->Reserve(count));
      for (const Way way : kWays) pages_.pages[Index(way)] = cache_->pages(way);
      // Other keys in every chunk, so that pages differ.
      for (float& x : k_) x += 0.125f * rng.NextFloat();
      const RowRange range = {0, 0, count, first};
      LS_TRY(backend_.AppendKv(Append(range)));
      cache_->Advance(count);
    }
    return Status();
  }

  Backend& backend_;
  HeadShape heads_;
  std::unique_ptr<KvStore> store_;
  std::unique_ptr<PagePool> pool_;
  std::optional<SequenceCache> cache_;
  SequencePages pages_;
  std::vector<float> q_, k_, v_, out_;
};

// Memory for the key-tile lists of a plan's rows, [row][head][capacity].
class TileLists {
 public:
  TileLists(const PagePlan& plan, int num_heads) : num_heads_(num_heads) {
    for (const SelectionTable& table : plan.selections) {
      capacities_.push_back(table.capacity);
      num_runs_.emplace_back(static_cast<size_t>(num_heads));
      runs_.emplace_back(static_cast<size_t>(num_heads * table.capacity));
    }
  }

  SelectionTable table(size_t at) {
    return {
        .capacity = capacities_[at], .num_runs = num_runs_[at].data(), .runs = runs_[at].data()};
  }

  // Every head of `row` keeps `percent` of the tiles that it could read, evenly spread with a
  // seeded start in each interval.
  void Seed(const PlanRow& row, int percent) {
    const size_t at = static_cast<size_t>(row.selection);
    const int listed = row.newest.first / kTilePages;
    const int newest = (row.newest.last - row.newest.first) / kTilePages;
    const int keep = std::max(1, (listed + newest) * percent / 100 - newest);
    for (int head = 0; head < num_heads_; ++head) {
      PageRun* list = runs_[at].data() + int64_t{head} * capacities_[at];
      int& count = num_runs_[at][static_cast<size_t>(head)];
      count = 0;
      for (int i = 0; i < keep; ++i) {
        const int first = static_cast<int>(int64_t{listed} * i / keep);
        const int last = static_cast<int>(int64_t{listed} * (i + 1) / keep);
        const int tile =
            first + static_cast<int>(rng_.NextBelow(static_cast<uint64_t>(last - first)));
        const PageIdx page = (i == 0 ? 0 : tile) * kTilePages;
        if (count > 0 && list[count - 1].last == page) {
          list[count - 1].last += kTilePages;
        } else {
          list[count++] = {page, page + kTilePages};
        }
      }
    }
  }

 private:
  static constexpr int kTilePages = kTileTokens / kPageTokens;
  int num_heads_;
  Rng rng_{7};
  std::vector<int> capacities_;
  std::vector<std::vector<int>> num_runs_;
  std::vector<std::vector<PageRun>> runs_;
};

class Runner {
 public:
  Runner(Backend& backend,
         CeilingMeter& meter,
         const KernelBenchConfig& config,
         const KernelHooks& hooks)
      : backend_(backend), meter_(meter), config_(config), hooks_(hooks) {}

  Status Run() {
    for (const GemmShape& shape : kGemmShapes) LS_TRY(Gemm(shape, WeightFormat::kAsStored));
    for (const WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
      LS_TRY(Gemm(kGemmShapes[0], format));
    }
    for (const GemmShape& shape : kGemmShapes) LS_TRY(Gemm(shape, WeightFormat::kW8A8));
    for (const HeadShape& heads : {kSmallHeads, kLargeHeads}) {
      LS_TRY(Prefill(heads, DType::kBf16, false, 8192));
      LS_TRY(Prefill(heads, DType::kBf16, false, 32768));
      LS_TRY(Prefill(heads, DType::kBf16, true, 32768));
      for (const int percent : {50, 25}) LS_TRY(PrefillLists(heads, percent, 32768));
    }
    LS_TRY(Prefill(kSmallHeads, DType::kInt8, false, 8192));
    LS_TRY(Prefill(kSmallHeads, DType::kInt4, false, 8192));
    for (const DType dtype : kKvDTypes) {
      if (!backend_.has_kv_dtype(dtype)) continue;
      LS_TRY(Decode(kSmallHeads, dtype, 65536));
      LS_TRY(Decode(kLargeHeads, dtype, 32768));
    }
    LS_TRY(Select(kSmallHeads, 65536));
    LS_TRY(Select(kSmallHeads, 262144));
    for (const DType dtype : kKvDTypes) {
      if (!backend_.has_kv_dtype(dtype)) continue;
      LS_TRY(Append(kSmallHeads, dtype));
    }
    return Status();
  }

 private:
  // Times `call` until there are enough samples; a sample is so many calls that a clock can tell.
  template <class F>
  Status Time(KernelTest test, F&& call) {
    if (hooks_.should_stop && hooks_.should_stop()) {
      return Status(Code::kCancelled, "interrupted; what was measured so far is above");
    }
    constexpr double kMinSampleSeconds = 0.002;
    LS_TRY(call());
    const Stopwatch probe;
    LS_TRY(call());
    const int calls = std::max(
        1, static_cast<int>(std::ceil(kMinSampleSeconds / std::max(probe.seconds(), 1e-7))));
    const double gauge_before = meter_.Gauge();
    std::vector<double> samples;
    const Stopwatch total;
    const double processor_begin = ProcessorSeconds();
    while (static_cast<int>(samples.size()) < config_.repeats ||
           total.seconds() < config_.min_seconds) {
      const Stopwatch watch;
      for (int i = 0; i < calls; ++i) LS_TRY(call());
      samples.push_back(watch.seconds() / calls);
    }
    test.cores = (ProcessorSeconds() - processor_begin) / total.seconds();
    test.seconds = Summarize(samples);
    test.gauge = std::min(gauge_before, meter_.Gauge());
    return hooks_.on_test(test);
  }

  Status Gemm(const GemmShape& shape, WeightFormat format) {
    std::vector<Bf16> values(static_cast<size_t>(shape.in * shape.out));
    Rng rng(1);
    for (Bf16& v : values) v = ToBf16(rng.NextFloat());
    const WeightPart part{values.data(), DType::kBf16, shape.out};
    const int64_t bytes = shape.in * shape.out * 2;
    std::vector<LinearWeight> weights;
    for (int64_t i = 0; i < std::max<int64_t>(1, kWeightsWorkingSet / bytes); ++i) {
      weights.push_back(LS_TRY(backend_.PackLinear({&part, 1}, shape.in, {}, format)));
    }
    for (const int64_t rows : kGemmRows) {
      std::vector<float> x = RandomFloats(rows * shape.in, 2);
      std::vector<float> y(static_cast<size_t>(rows * shape.out));
      LinearParams params = {.x = ConstMatrix(x.data(), DType::kF32, rows, shape.in, shape.in),
                             .weight = weights.data(),
                             .y = {.data = y.data(),
                                   .dtype = DType::kF32,
                                   .rows = rows,
                                   .cols = shape.out,
                                   .stride = shape.out}};
      KernelTest test = {
          .op = "linear",
          .shape = StrCat(rows, " x ", shape.in, " x ", shape.out),
          .dtype = format == WeightFormat::kW8A8 ? "w8a8" : std::string(Name(weights[0].dtype)),
          .cost = CostOf(params)};
      size_t next = 0;
      LS_TRY(Time(std::move(test), [&] {
        params.weight = &weights[next++ % weights.size()];
        return backend_.Linear(params);
      }));
    }
    return Status();
  }

  static KernelTest TestOf(const char* op, const HeadShape& heads, DType dtype, int64_t tokens) {
    return {.op = op,
            .shape = StrCat(tokens, " tokens, ", heads.kv_heads, " x ", heads.group, " heads of ",
                            heads.head_dim),
            .dtype = std::string(Name(dtype))};
  }

  // The last chunk of a prompt.
  Status Prefill(const HeadShape& heads, DType dtype, bool streaming, int64_t tokens) {
    const std::unique_ptr<LayerCache> cache =
        LS_TRY(LayerCache::Make(backend_, heads, dtype, streaming, tokens));
    AttentionSettings settings;
    settings.mode = streaming ? AttentionMode::kSparse : AttentionMode::kDense;
    PagePlan plan;
    PlanPrefill(settings, cache->layout(), cache->LastRows(kChunk), &plan);
    const AttentionParams params = cache->Attention(plan, kChunk);
    KernelTest test = TestOf("prefill attention", heads, dtype, tokens);
    test.shape += streaming ? ", streaming" : ", dense";
    test.cost = CostOf(params);
    return Time(std::move(test), [&] { return backend_.PrefillAttention(params); });
  }

  // The same with seeded lists of `percent` of the key tiles, sink, own and previous tile among
  // them, and the estimate that would choose them: random keys have no structure to find.
  Status PrefillLists(const HeadShape& heads, int percent, int64_t tokens) {
    const std::unique_ptr<LayerCache> cache =
        LS_TRY(LayerCache::Make(backend_, heads, DType::kBf16, false, tokens));
    AttentionSettings settings;
    settings.mode = AttentionMode::kSparse;
    settings.prefill_threshold = 0.9;
    settings.prefill_max_tokens = 0;
    settings.prefill_min_position = 0;
    PagePlan plan;
    PlanPrefill(settings, cache->layout(), cache->LastRows(kChunk), &plan);
    TileLists chosen(plan, heads.kv_heads), seeded(plan, heads.kv_heads);
    std::vector<TileSelectRequest> requests;
    for (const PlanRow& row : plan.rows) {
      const size_t at = static_cast<size_t>(row.selection);
      requests.push_back({.first_query = row.first_query,
                          .first_position = row.first_position,
                          .sink_tiles = kForcedSinkTiles,
                          .newest_tiles = kForcedNewestTiles,
                          .threshold = settings.prefill_threshold,
                          .table = chosen.table(at)});
      seeded.Seed(row, percent);
      plan.selections[at] = seeded.table(at);
    }
    const SelectTilesParams selection = cache->TileSelection(requests);
    const AttentionParams params = cache->Attention(plan, kChunk);
    KernelTest test = TestOf("prefill attention", heads, DType::kBf16, tokens);
    test.shape += StrCat(", ", percent, "% + estimate");
    test.cost = CostOf(params);
    return Time(std::move(test), [&]() -> Status {
      LS_TRY(backend_.SelectTiles(selection));
      return backend_.PrefillAttention(params);
    });
  }

  Status Decode(const HeadShape& heads, DType dtype, int64_t tokens) {
    const std::unique_ptr<LayerCache> cache =
        LS_TRY(LayerCache::Make(backend_, heads, dtype, false, tokens));
    AttentionSettings settings;
    settings.mode = AttentionMode::kDense;
    SelectionState state;
    PagePlan plan;
    static_cast<void>(PlanDecode(settings, cache->layout(), cache->LastRows(1), &state, &plan));
    const AttentionParams params = cache->Attention(plan, 1);
    KernelTest test = TestOf("decode attention", heads, dtype, tokens);
    test.cost = CostOf(params);
    return Time(std::move(test), [&] { return backend_.DecodeAttention(params); });
  }

  Status Select(const HeadShape& heads, int64_t tokens) {
    const std::unique_ptr<LayerCache> cache =
        LS_TRY(LayerCache::Make(backend_, heads, DType::kBf16, false, tokens));
    const AttentionSettings settings;
    const size_t capacity = static_cast<size_t>(SelectionCapacity(settings));
    std::vector<int> num_runs(static_cast<size_t>(heads.kv_heads));
    std::vector<PageRun> runs(num_runs.size() * capacity);
    const SelectRequest request = {.num_pages = NumPages(tokens),
                                   .sink_pages = kForcedSinkPages,
                                   .newest_pages = kForcedNewestPages,
                                   .budget_pages = BudgetPages(settings),
                                   .table = {.capacity = static_cast<int>(capacity),
                                             .num_runs = num_runs.data(),
                                             .runs = runs.data()}};
    const SelectPagesParams params = cache->Selection({&request, 1});
    KernelTest test = TestOf("page selection", heads, DType::kBf16, tokens);
    test.cost = CostOf(params);
    return Time(std::move(test), [&] { return backend_.SelectPages(params); });
  }

  // A chunk, written again and again to the same pages. No ceiling here is about writing.
  Status Append(const HeadShape& heads, DType dtype) {
    const std::unique_ptr<LayerCache> cache =
        LS_TRY(LayerCache::Make(backend_, heads, dtype, false, kChunk));
    const RowRange range = cache->LastRows(kChunk);
    const AppendKvParams params = cache->Append(range);
    return Time(TestOf("append", heads, dtype, kChunk), [&] { return backend_.AppendKv(params); });
  }

  Backend& backend_;
  CeilingMeter& meter_;
  const KernelBenchConfig& config_;
  const KernelHooks& hooks_;
};

}  // namespace

double KernelTest::arithmetic_ceiling(const CpuCeilings& ceilings) const {
  return dtype == "w8a8" && ceilings.int8_op_s > 0 ? ceilings.int8_op_s : ceilings.dot_flop_s();
}

double KernelTest::roof_seconds(const CpuCeilings& ceilings) const {
  const double arithmetic = cost.flop / std::max(arithmetic_ceiling(ceilings), 1.0);
  const double memory = cost.bytes / std::max(ceilings.read_bytes_s, 1.0);
  return std::max(arithmetic, memory);
}

bool KernelTest::memory_bound(const CpuCeilings& ceilings) const {
  return cost.bytes * arithmetic_ceiling(ceilings) > cost.flop * ceilings.read_bytes_s;
}

Status RunKernelBench(Backend& backend,
                      CeilingMeter& meter,
                      const KernelBenchConfig& config,
                      const KernelHooks& hooks) {
  return Runner(backend, meter, config, hooks).Run();
}

}  // namespace lserve
