// SelectorTimer: how long the GPU has been choosing pages for decode. Used by CudaBackend.
//
// The kernels of a selection read the GPU's clock themselves, add up what they find, and write the
// sum to the host's memory (kernels/select_pages.cu): no launch more, no copy and no wait. Events
// around the selection would be two nodes more for every layer of a graph, and would end the
// overlap of its kernels with their neighbours (kernels/launch.cuh).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "backend/buffer.h"
#include "backend/cuda/kernels/kernels.h"
#include "base/status.h"

namespace lserve {

class SelectorTimer {
 public:
  SelectorTimer() = default;
  ~SelectorTimer();
  SelectorTimer(const SelectorTimer&) = delete;
  SelectorTimer& operator=(const SelectorTimer&) = delete;

  Status Init(cudaStream_t stream);

  // For SelectPagesArgs. REQUIRES: Init().
  SelectorClock* clock() const { return clock_.as<SelectorClock>(); }
  // Of all selections that have run, but for the last one, which the next one adds. The clock ticks
  // in up to a microsecond, which a sum over many selections evens out.
  double seconds() const;

 private:
  Buffer clock_;
  uint64_t* published_ = nullptr;  // pinned; the GPU writes it
};

}  // namespace lserve
