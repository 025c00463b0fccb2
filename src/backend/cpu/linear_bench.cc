// Linear in GFLOP/s (many rows) and in bytes of weights per second (few), by instruction set.
// Weights are copied until they exceed the caches, as the layers of a model do. Peaks to compare
// with, and what was tried: docs/kernels/cpu_gemm.md.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "base/half.h"
#include "base/rng.h"

namespace lserve {
namespace {

constexpr int64_t kWorkingSet = int64_t{192} << 20;

// Arguments: instruction set, rows, in features, out features, bits of a weight (16: bf16).
void BM_Linear(benchmark::State& state) {
  const CpuIsa isa = static_cast<CpuIsa>(state.range(0));
  const int64_t rows = state.range(1);
  const int64_t in = state.range(2);
  const int64_t out = state.range(3);
  if (isa > BestCpuIsa()) {
    state.SkipWithError("this processor lacks the instruction set");
    return;
  }
  CpuBackend backend(isa, 0);
  Rng rng(1);
  std::vector<Bf16> values(static_cast<size_t>(in * out));
  for (Bf16& v : values) v = ToBf16(rng.NextFloat());
  const WeightPart part{values.data(), DType::kBf16, out};
  const WeightFormat format = state.range(4) == 16  ? WeightFormat::kAsStored
                              : state.range(4) == 8 ? WeightFormat::kInt8
                                                    : WeightFormat::kInt4;
  std::vector<LinearWeight> weights;
  int64_t bytes = 0;
  do {
    weights.push_back(backend.PackLinear({&part, 1}, in, {}, format).value());
    bytes = static_cast<int64_t>(weights.back().data.bytes);
  } while (static_cast<int64_t>(weights.size()) * bytes < kWorkingSet);
  std::vector<float> x(static_cast<size_t>(rows * in));
  for (float& v : x) v = rng.NextFloat();
  std::vector<float> y(static_cast<size_t>(rows * out));
  LinearParams p;
  p.x = ConstMatrix(x.data(), DType::kF32, rows, in, in);
  p.y = Matrix{y.data(), DType::kF32, rows, out, out};
  size_t next = 0;
  for (auto _ : state) {
    p.weight = &weights[next++ % weights.size()];
    if (!backend.Linear(p).ok()) state.SkipWithError("Linear failed");
  }
  const double runs = static_cast<double>(state.iterations());
  const double flop = 2.0 * static_cast<double>(rows * in * out) * runs;
  state.counters["FLOP/s"] = benchmark::Counter(flop, benchmark::Counter::kIsRate);
  state.counters["weight_B/s"] =
      benchmark::Counter(static_cast<double>(bytes) * runs, benchmark::Counter::kIsRate);
  state.SetLabel(backend.description());
}

void Arguments(benchmark::internal::Benchmark* bench) {
  for (const CpuIsa isa : {CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16}) {
    for (const int64_t bits : {16, 8, 4}) {
      for (const int64_t rows : {1, 4, 16, 512}) {
        bench->Args({static_cast<int64_t>(isa), rows, 2048, 8192, bits});
      }
      // The bundled model's layers and the 100M shape's.
      bench->Args({static_cast<int64_t>(isa), 512, 256, 1024, bits});
      bench->Args({static_cast<int64_t>(isa), 512, 704, 256, bits});
      bench->Args({static_cast<int64_t>(isa), 512, 768, 2048, bits});
    }
  }
}

BENCHMARK(BM_Linear)->Apply(Arguments)->UseRealTime()->MinTime(0.2);

}  // namespace
}  // namespace lserve
