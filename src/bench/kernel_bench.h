// KernelBench: the ops of a backend one by one, against the roof that the machine's measured
// ceilings put over them. Used by `lserve bench --kernels`.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "backend/backend.h"
#include "backend/cpu/ceilings.h"
#include "bench/op_costs.h"
#include "bench/summary.h"

namespace lserve {

struct KernelTest {
  std::string op = {};     // "linear", "prefill attention", ...
  std::string shape = {};  // "512 x 2048 x 8192", "32768 tokens, 4 x 3 heads of 64, dense"
  std::string dtype = {};  // of the weight or of the cache; "w8a8": of weight and input
  Summary seconds = {};    // of one call
  OpCost cost = {};        // of one call
  double cores = 0;        // processors that the threads had on average
  double gauge = 0;        // FLOP/s, the lower of before and after

  // FLOP/s that bound it: of bf16 dot products, or of int8 ones if both sides are int8.
  double arithmetic_ceiling(const CpuCeilings& ceilings) const;
  // The least time that the ceilings allow: arithmetic or memory, whatever is longer.
  double roof_seconds(const CpuCeilings& ceilings) const;
  bool memory_bound(const CpuCeilings& ceilings) const;
};

struct KernelBenchConfig {
  double min_seconds = 0.3;  // of the calls of one test
  int repeats = 5;           // samples, at least
};

struct KernelHooks {
  std::function<Status(const KernelTest&)> on_test;
  std::function<bool()> should_stop;
};

// GEMM on the shapes of the models that we compare, prefill and decode attention in every cache
// type, page selection and append. One layer, random data; weights and pages exceed the caches.
Status RunKernelBench(Backend& backend,
                      CeilingMeter& meter,
                      const KernelBenchConfig& config,
                      const KernelHooks& hooks);

}  // namespace lserve
