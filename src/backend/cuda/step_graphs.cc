#include "backend/cuda/step_graphs.h"

#include <algorithm>

#include "backend/cuda/cuda_status.h"

namespace lserve {
namespace {

// Batch sizes that alternate, times the steps of a selection interval. A graph of 32 layers takes
// about a megabyte.
constexpr size_t kMaxEntries = 48;

}  // namespace

StepGraphs::~StepGraphs() {
  for (const Entry& entry : entries_) {
    if (entry.graph != nullptr) static_cast<void>(cudaGraphExecDestroy(entry.graph));
  }
}

Status StepGraphs::Run(const StepTrace& trace, const std::function<Status()>& launch) {
  ++clock_;
  auto found = std::find_if(entries_.begin(), entries_.end(),
                            [&](const Entry& entry) { return entry.trace == trace; });
  if (found == entries_.end()) {
    if (entries_.size() == kMaxEntries) {
      const auto oldest = std::min_element(
          entries_.begin(), entries_.end(),
          [](const Entry& a, const Entry& b) { return a.last_used < b.last_used; });
      // A graph that still runs is freed when it has ended.
      if (oldest->graph != nullptr) LS_CUDA(cudaGraphExecDestroy(oldest->graph));
      entries_.erase(oldest);
    }
    entries_.push_back({.trace = trace, .graph = nullptr, .last_used = clock_});
    return launch();
  }
  found->last_used = clock_;
  if (found->graph == nullptr) LS_TRY(Capture(launch, &found->graph));
  LS_CUDA(cudaGraphLaunch(found->graph, stream_));
  return Status();
}

Status StepGraphs::Capture(const std::function<Status()>& launch, cudaGraphExec_t* graph) {
  LS_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  const Status launched = launch();
  cudaGraph_t captured = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream_, &captured);
  if (!launched.ok()) {
    if (captured != nullptr) static_cast<void>(cudaGraphDestroy(captured));
    return launched;
  }
  LS_CUDA(ended);
  const cudaError_t made = cudaGraphInstantiate(graph, captured, 0);
  static_cast<void>(cudaGraphDestroy(captured));
  LS_CUDA(made);
  return Status();
}

}  // namespace lserve
