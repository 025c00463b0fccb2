#include "apps/machine.h"

#include <fstream>
#include <utility>
#include <vector>

#include "apps/quantities.h"
#include "backend/cpu/cpu_isa.h"
#include "backend/cuda_probe.h"
#include "base/strings.h"
#include "base/thread_pool.h"

namespace lserve {
namespace {

// What follows "key<spaces>:" in a file of /proc, or "".
std::string ProcField(const char* path, const std::string& key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    const size_t colon = line.find(':');
    if (!line.starts_with(key) || colon == std::string::npos) continue;
    if (line.find_first_not_of(" \t", key.size()) != colon) continue;
    const size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

struct SupportRow {
  std::string device;  // what to pass to --device and --cpu-isa
  bool usable = false;
  std::string detail;
};

std::vector<SupportRow> SupportRows() {
  std::vector<SupportRow> rows;
  const CpuIsa best = BestCpuIsa();
  for (const CpuIsa isa : kAllCpuIsas) {
    const bool usable = isa <= best;
    rows.push_back({StrCat("--device cpu --cpu-isa ", Name(isa)), usable,
                    isa == best ? "chosen by auto"
                    : usable    ? "usable"
                                : "this processor lacks it"});
  }
  rows.push_back({"--device reference", true, "scalar, double precision, very slow; for checks"});
  const Result<std::vector<GpuInfo>> gpus = ProbeGpus();
  if (!gpus.ok()) {
    rows.push_back({"--device cuda", false, gpus.status().message()});
    return rows;
  }
  for (const GpuInfo& gpu : gpus.value()) {
    rows.push_back({StrCat("--device cuda:", gpu.index), false,
                    StrCat(Describe(gpu), "; this version does not compute on GPUs")});
  }
  return rows;
}

}  // namespace

std::string ProcessorName() {
  const std::string name = ProcField("/proc/cpuinfo", "model name");
  return name.empty() ? "unknown processor" : name;
}

uint64_t AvailableMemoryBytes() {
  const std::string text = ProcField("/proc/meminfo", "MemAvailable");  // "123456 kB"
  const Result<int64_t> kib =
      ParseInteger(text.substr(0, text.find(' ')), 0, INT64_MAX >> 10, "MemAvailable");
  return kib.ok() ? static_cast<uint64_t>(kib.value()) << 10 : 0;
}

std::string MachineLine() {
  return StrCat(ProcessorName(), ", ", NumUsableCores(), " cores, ",
                FormatBytes(AvailableMemoryBytes()), " of memory available");
}

Json SupportJson() {
  Json::Array rows;
  for (SupportRow& row : SupportRows()) {
    rows.push_back(Json(Json::Object{{"device", Json(std::move(row.device))},
                                     {"usable", Json(row.usable)},
                                     {"detail", Json(std::move(row.detail))}}));
  }
  return Json(
      Json::Object{{"processor", Json(ProcessorName())},
                   {"cores", Json(NumUsableCores())},
                   {"memory_available_bytes", Json(static_cast<int64_t>(AvailableMemoryBytes()))},
                   {"backends", Json(std::move(rows))}});
}

std::string SupportTable() {
  std::string table = MachineLine() + "\n\n";
  for (const SupportRow& row : SupportRows()) {
    std::string device = row.device;
    device.resize(std::max<size_t>(device.size(), 34), ' ');
    table += StrCat(row.usable ? "  yes  " : "  no   ", device, "  ", row.detail, "\n");
  }
  return table;
}

}  // namespace lserve
