// Attention, selection and append against this processor's limits. Rates are per second of
// processor time with one thread, since neighbours on a shared machine take wall time; use
// --benchmark_repetitions and medians. BM_Bf16Peak is the roof of the prefill rates.
#include <benchmark/benchmark.h>
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <random>

#include "backend/cpu/attention_test_util.h"

namespace lserve {
namespace {

using Op = TestCache::Op;
constexpr int64_t kGiga = 1000000000;

__attribute__((target("avx512f,avx512bf16"))) void DotsInRegisters(benchmark::State& state) {
  constexpr int kChains = 24;
  __m512 acc[kChains];
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) acc[i] = _mm512_setzero_ps();
  const __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f80);
  for (auto _ : state) {
    for (int step = 0; step < 1000; ++step) {
#pragma GCC unroll 24
      for (int i = 0; i < kChains; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], a, a);
#pragma GCC unroll 24
      for (int i = 0; i < kChains; ++i) asm volatile("" : "+v"(acc[i]));
    }
  }
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) benchmark::DoNotOptimize(_mm512_cvtss_f32(acc[i]));
  state.counters["GFLOP/s"] =
      benchmark::Counter(static_cast<double>(state.iterations()) * 1000 * kChains * 64 / kGiga,
                         benchmark::Counter::kIsRate);
}

void BM_Bf16Peak(benchmark::State& state) {
  if (BestCpuIsa() < CpuIsa::kAvx512Bf16) return state.SkipWithError("no bf16 dot product");
  DotsInRegisters(state);
}
BENCHMARK(BM_Bf16Peak);

// One tile of 128 queries at the end of `tokens` tokens, one KV head.
void BM_Prefill(benchmark::State& state, CpuIsa isa, DType dtype) {
  if (isa > BestCpuIsa()) return state.SkipWithError("not on this processor");
  const int head_dim = static_cast<int>(state.range(0));
  const int group = static_cast<int>(state.range(1));
  const int tokens = static_cast<int>(state.range(2));
  CpuBackend backend(isa, 1);
  TestCache cache(
      backend,
      {.dtype = dtype, .head_dim = head_dim, .kinds = {1}, .group = group, .num_tokens = {tokens}});
  cache.Fill();
  const std::vector<float> q = RandomFloats(static_cast<size_t>(128 * cache.q_cols()), 3);
  PagePlan plan;
  DenseRow(plan, 0, Way::kRetrieval, 0, tokens - 128, 128);
  for (auto _ : state) benchmark::DoNotOptimize(cache.Attend(Op::kPrefill, q, plan));
  const double flops = 4.0 * head_dim * group * 128 * (tokens - 64);
  state.counters["GFLOP/s"] = benchmark::Counter(
      flops * static_cast<double>(state.iterations()) / kGiga, benchmark::Counter::kIsRate);
}
#define LS_PREFILL(isa, dtype)                                            \
  BENCHMARK_CAPTURE(BM_Prefill, isa##_##dtype, CpuIsa::isa, DType::dtype) \
      ->ArgNames({"head_dim", "group", "tokens"})                         \
      ->Args({64, 2, 4096})                                               \
      ->Args({128, 4, 4096})                                              \
      ->Unit(benchmark::kMicrosecond)
LS_PREFILL(kAvx512Bf16, kBf16);
LS_PREFILL(kAvx512Bf16, kInt8);
LS_PREFILL(kAvx512Bf16, kInt4);
LS_PREFILL(kAvx512, kBf16);
LS_PREFILL(kAvx2, kBf16);
LS_PREFILL(kGeneric, kBf16);

// A chunk of 4 query tiles at the end of `tokens` tokens, two KV heads of the bundled model's
// shape: dense, or the estimate and lists that keep `percent` of the tiles (seeded; sink, own and
// previous tile among them). The three times of one `tokens` belong together.
struct Chunk {
  static constexpr int kTiles = 4;

  Chunk(CpuBackend& backend, DType dtype, int num_tokens)
      : tokens(num_tokens),
        cache(backend, {.dtype = dtype, .kinds = {1, 1}, .num_tokens = {num_tokens}}) {
    cache.Fill();
    q = RandomFloats(static_cast<size_t>(kTiles * kTileTokens * cache.q_cols()), 3);
    for (int i = 0; i < kTiles; ++i) {
      DenseRow(dense, 0, Way::kRetrieval, i * kTileTokens, position(i), kTileTokens);
    }
  }
  int64_t position(int i) const { return tokens - (kTiles - i) * kTileTokens; }

  PagePlan Seeded(int percent) {
    PagePlan plan = dense;
    std::mt19937 rng(7);
    const int capacity = NumPages(tokens) / 4 + 1;
    for (int i = 0; i < kTiles; ++i) {
      PlanRow& row = plan.rows[static_cast<size_t>(i)];
      row.selection = i;
      row.newest.first = row.newest.last - 4;
      num_runs.emplace_back();
      runs.emplace_back(static_cast<size_t>(2 * capacity));
      const int listed = row.newest.first / 2;
      const int keep = static_cast<int>((listed + 2) * percent / 100) - 2;
      for (int slot = 0; slot < 2; ++slot) {
        std::vector<int> order(static_cast<size_t>(listed - 1));
        std::iota(order.begin(), order.end(), 1);
        std::shuffle(order.begin(), order.end(), rng);
        order.resize(static_cast<size_t>(keep - 1));
        order.push_back(0);
        std::sort(order.begin(), order.end());
        int count = 0;
        PageRun* list = runs.back().data() + slot * capacity;
        for (const int tile : order) {
          if (count > 0 && list[count - 1].last == 2 * tile) {
            list[count - 1].last += 2;
          } else {
            list[count++] = {2 * tile, 2 * tile + 2};
          }
        }
        num_runs.back()[static_cast<size_t>(slot)] = count;
      }
    }
    for (size_t i = 0; i < runs.size(); ++i) {
      plan.selections.push_back(
          {.capacity = capacity, .num_runs = num_runs[i].data(), .runs = runs[i].data()});
    }
    return plan;
  }

  // Every tile of the chunk asks for its lists; 0.9 of flat attention is the longest list.
  std::vector<TileSelectRequest> Requests() {
    const int capacity = NumPages(tokens) / 4 + 1;
    std::vector<TileSelectRequest> requests;
    num_runs.resize(kTiles);
    runs.assign(kTiles, std::vector<PageRun>(static_cast<size_t>(2 * capacity)));
    for (int i = 0; i < kTiles; ++i) {
      const size_t at = static_cast<size_t>(i);
      requests.push_back(
          {.first_query = i * kTileTokens,
           .first_position = position(i),
           .threshold = 0.9,
           .table = {
               .capacity = capacity, .num_runs = num_runs[at].data(), .runs = runs[at].data()}});
    }
    return requests;
  }

  int tokens;
  TestCache cache;
  std::vector<float> q;
  PagePlan dense;
  std::vector<std::array<int, 2>> num_runs;  // [tile][slot]
  std::vector<std::vector<PageRun>> runs;    // [tile], two lists each
};

void BM_PrefillChunk(benchmark::State& state, DType dtype) {
  CpuBackend backend(BestCpuIsa(), 1);
  Chunk chunk(backend, dtype, static_cast<int>(state.range(0)));
  const int percent = static_cast<int>(state.range(1));
  const PagePlan plan = percent == 100 ? chunk.dense : chunk.Seeded(percent);
  for (auto _ : state) benchmark::DoNotOptimize(chunk.cache.Attend(Op::kPrefill, chunk.q, plan));
}
void BM_SelectTiles(benchmark::State& state, DType dtype) {
  CpuBackend backend(BestCpuIsa(), 1);
  Chunk chunk(backend, dtype, static_cast<int>(state.range(0)));
  const std::vector<TileSelectRequest> requests = chunk.Requests();
  for (auto _ : state) chunk.cache.SelectTiles(chunk.q, requests);
}
#define LS_CHUNK(dtype)                                   \
  BENCHMARK_CAPTURE(BM_PrefillChunk, dtype, DType::dtype) \
      ->ArgNames({"tokens", "percent"})                   \
      ->ArgsProduct({{4096, 8192, 32768}, {100, 50, 25}}) \
      ->Unit(benchmark::kMicrosecond);                    \
  BENCHMARK_CAPTURE(BM_SelectTiles, dtype, DType::dtype)  \
      ->ArgName("tokens")                                 \
      ->Arg(4096)                                         \
      ->Arg(8192)                                         \
      ->Arg(32768)                                        \
      ->Unit(benchmark::kMicrosecond)
LS_CHUNK(kBf16);
LS_CHUNK(kInt8);

// One token over `tokens` tokens of 4 KV heads; bytes are those of K and V.
void BM_Decode(benchmark::State& state, CpuIsa isa, DType dtype) {
  if (isa > BestCpuIsa()) return state.SkipWithError("not on this processor");
  const int tokens = static_cast<int>(state.range(0));
  CpuBackend backend(isa, static_cast<int>(state.range(1)));
  TestCache cache(backend, {.dtype = dtype, .kinds = {1, 1, 1, 1}, .num_tokens = {tokens}});
  cache.Fill();
  const std::vector<float> q = RandomFloats(static_cast<size_t>(cache.q_cols()), 3);
  PagePlan plan;
  DenseRow(plan, 0, Way::kRetrieval, 0, tokens - 1, 1);
  for (auto _ : state) benchmark::DoNotOptimize(cache.Attend(Op::kDecode, q, plan));
  const double bytes = static_cast<double>(cache.layout.ways[0].kv_bytes) * NumPages(tokens);
  state.counters["GB/s"] = benchmark::Counter(
      bytes * static_cast<double>(state.iterations()) / kGiga, benchmark::Counter::kIsRate);
}
#define LS_DECODE(isa, dtype)                                            \
  BENCHMARK_CAPTURE(BM_Decode, isa##_##dtype, CpuIsa::isa, DType::dtype) \
      ->ArgNames({"tokens", "threads"})                                  \
      ->Args({1024, 1})                                                  \
      ->Args({65536, 1})                                                 \
      ->Args({65536, 2})                                                 \
      ->Unit(benchmark::kMicrosecond)                                    \
      ->UseRealTime()
LS_DECODE(kAvx512Bf16, kBf16);
LS_DECODE(kAvx512Bf16, kInt8);
LS_DECODE(kAvx512Bf16, kInt4);
LS_DECODE(kAvx2, kBf16);

// Read bandwidth of one thread, the roof of decode.
void BM_Read(benchmark::State& state) {
  const std::vector<float> x = RandomFloats(64 << 20 >> 2, 1);
  for (auto _ : state) {
    __m128 sum[8] = {};
    for (size_t i = 0; i < x.size(); i += 32) {
      for (size_t j = 0; j < 8; ++j) sum[j] = _mm_add_ps(sum[j], _mm_loadu_ps(&x[i + 4 * j]));
    }
    benchmark::DoNotOptimize(sum);
  }
  state.counters["GB/s"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * static_cast<double>(x.size()) * 4 / kGiga,
      benchmark::Counter::kIsRate);
}
BENCHMARK(BM_Read)->Unit(benchmark::kMicrosecond)->UseRealTime();

void BM_SelectPages(benchmark::State& state) {
  const int tokens = static_cast<int>(state.range(0));
  CpuBackend backend(BestCpuIsa(), 1);
  TestCache cache(backend, {.kinds = {1, 1}, .num_tokens = {tokens}});
  cache.Fill();
  const std::vector<float> q = RandomFloats(static_cast<size_t>(cache.q_cols()), 3);
  std::vector<int> num_runs(2);
  std::vector<PageRun> runs(128);
  const SelectRequest request = {
      .num_pages = NumPages(tokens),
      .budget_pages = 64,
      .table = {.capacity = 64, .num_runs = num_runs.data(), .runs = runs.data()}};
  for (auto _ : state) cache.Select(q, request);
  const double bytes = static_cast<double>(cache.layout.ways[0].stats_bytes) * NumPages(tokens);
  state.counters["GB/s"] = benchmark::Counter(
      bytes * static_cast<double>(state.iterations()) / kGiga, benchmark::Counter::kIsRate);
}
BENCHMARK(BM_SelectPages)->Arg(32768)->Arg(262144)->Unit(benchmark::kMicrosecond)->UseRealTime();

void BM_AppendKv(benchmark::State& state, DType dtype) {
  CpuBackend backend(BestCpuIsa(), 1);
  TestCache cache(backend, {.dtype = dtype, .kinds = {1, 1, 0, 0}, .num_tokens = {2048}});
  for (auto _ : state) cache.Fill();
  state.counters["ns/token/head"] =
      benchmark::Counter(static_cast<double>(state.iterations()) * 2048 * 4 / kGiga,
                         benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}
BENCHMARK_CAPTURE(BM_AppendKv, kBf16, DType::kBf16)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(BM_AppendKv, kInt8, DType::kInt8)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(BM_AppendKv, kInt4, DType::kInt4)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace lserve
