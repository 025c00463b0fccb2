// What `lserve bench` prints: Markdown tables row by row, as the tests end, and JSON Lines. Used by
// bench_command.cc and tests.
#pragma once

#include <string>

#include "base/json.h"
#include "bench/engine_bench.h"
#include "bench/kernel_bench.h"

namespace lserve {

// The machine and what its figures are measured against.
struct BenchMachine {
  std::string processor;
  int num_threads = 0;
  std::string isa;
  CpuCeilings ceilings;
  std::string note;
};

// Lines above a table.
std::string MachineText(const BenchMachine& machine);
std::string ModelText(const EngineInfo& info, bool random_weights);

// The first JSON line; `info` is null for the kernel benches.
Json MachineToJson(const BenchMachine& machine, const EngineInfo* info);

std::string EngineTableHeader();
std::string EngineTableRow(const EngineTest& test, const CpuCeilings& ceilings);
Json EngineTestToJson(const EngineTest& test, const CpuCeilings& ceilings);

std::string KernelTableHeader();
std::string KernelTableRow(const KernelTest& test, const CpuCeilings& ceilings);
Json KernelTestToJson(const KernelTest& test, const CpuCeilings& ceilings);

}  // namespace lserve
