#include "backend/registry.h"

#include <optional>
#include <utility>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cuda_probe.h"
#include "backend/reference/reference_backend.h"
#include "base/strings.h"

namespace lserve {
namespace {

constexpr std::pair<const char*, CpuIsa> kIsaNames[] = {
    {"generic", CpuIsa::kGeneric},
    {"avx2", CpuIsa::kAvx2},
    {"avx512", CpuIsa::kAvx512},
    {"avx512bf16", CpuIsa::kAvx512Bf16},
};

Result<CpuIsa> ChooseIsa(const std::string& name) {
  const CpuIsa best = BestCpuIsa();
  if (name == "auto") return best;
  for (const auto& [isa_name, isa] : kIsaNames) {
    if (name != isa_name) continue;
    if (isa <= best) return isa;
    return Status(Code::kUnsupported,
                  StrCat("--cpu-isa ", name, ": this processor has at most ",
                         kIsaNames[static_cast<size_t>(best)].first, "; use that or auto"));
  }
  return Status(Code::kInvalidArgument,
                StrCat("--cpu-isa ", name, ": expected auto, generic, avx2, avx512 or avx512bf16"));
}

// Says what is there, so that the user knows whether the build or the machine lacks something.
Status NoCudaBackend(const std::string& device) {
  const std::vector<GpuInfo> gpus = LS_TRY(ProbeGpus());
  return Status(
      Code::kUnsupported,
      StrCat("--device ", device, ": this version has no CUDA backend yet (the machine has ",
             Describe(gpus.front()), "), expected cpu; use --device cpu"));
}

}  // namespace

Result<std::unique_ptr<Backend>> MakeBackend(const BackendConfig& config) {
  if (config.device == "reference") {
    return std::unique_ptr<Backend>(std::make_unique<ReferenceBackend>());
  }
  if (config.device == "auto" || config.device == "cpu") {
    const CpuIsa isa = LS_TRY(ChooseIsa(config.cpu_isa));
    auto backend = std::make_unique<CpuBackend>(isa, config.num_threads);
    if (backend->num_threads() < config.num_threads) {
      return Status(
          Code::kOutOfMemory,
          StrCat("--threads ", config.num_threads, ": the system started ", backend->num_threads(),
                 ", expected all of them; lower --threads or "
                 "raise the limit (ulimit -u, ulimit -v, a container's pids)"));
    }
    return std::unique_ptr<Backend>(std::move(backend));
  }
  if (config.device == "cuda" || config.device.starts_with("cuda:")) {
    return NoCudaBackend(config.device);
  }
  return Status(Code::kInvalidArgument,
                StrCat("--device ", config.device, ": expected auto, cpu or cuda[:N]"));
}

}  // namespace lserve
