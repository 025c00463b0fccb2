#include "backend/registry.h"

#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cuda_probe.h"
#include "backend/reference/reference_backend.h"
#include "base/log.h"
#include "base/strings.h"

namespace lserve {
namespace {

// `device` is cuda or cuda:N.
Result<std::unique_ptr<Backend>> MakeCuda(const std::string& device, const BackendConfig& config) {
  const std::vector<GpuInfo> gpus = LS_TRY(ProbeGpus());
  const std::string number = device == "cuda" ? "0" : device.substr(std::string("cuda:").size());
  for (const GpuInfo& gpu : gpus) {
    if (StrCat(gpu.index) == number)
      return MakeCudaBackend(gpu, {.kernels = config.kernels,
                                   .graphs = config.cuda_graphs,
                                   .batch_invariant = config.batch_invariant,
                                   .prefill_scratch_bytes = config.prefill_scratch_bytes});
  }
  return Status(Code::kNotFound, StrCat("--device ", device, ": this machine has ", gpus.size(),
                                        " GPU(s), expected cuda:0 to cuda:", gpus.size() - 1));
}

}  // namespace

Result<std::unique_ptr<Backend>> MakeBackend(const BackendConfig& config) {
  if (config.device == "reference") {
    return std::unique_ptr<Backend>(std::make_unique<ReferenceBackend>());
  }
  if (config.device == "auto" && BuiltWithCuda()) {
    Result<std::unique_ptr<Backend>> cuda = MakeCuda("cuda", config);
    // No GPU, or one that is too old; anything else is a GPU that should work and does not.
    const Code code = cuda.status().code();
    if (cuda.ok() || (code != Code::kNotFound && code != Code::kUnsupported)) return cuda;
    LogInfo(StrCat("computing on the CPU: ", cuda.status().message()));
  }
  if (config.device == "auto" || config.device == "cpu") {
    const CpuIsa isa = LS_TRY(ChooseCpuIsa(config.cpu_isa));
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
    return MakeCuda(config.device, config);
  }
  return Status(Code::kInvalidArgument,
                StrCat("--device ", config.device, ": expected auto, cpu or cuda[:N]"));
}

}  // namespace lserve
