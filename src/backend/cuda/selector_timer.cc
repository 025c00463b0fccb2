#include "backend/cuda/selector_timer.h"

#include "backend/cuda/cuda_status.h"
#include "backend/cuda/device_memory.h"

namespace lserve {

SelectorTimer::~SelectorTimer() {
  if (published_ != nullptr) static_cast<void>(cudaFreeHost(published_));
}

Status SelectorTimer::Init(cudaStream_t stream) {
  void* published = nullptr;
  LS_CUDA(cudaHostAlloc(&published, sizeof(uint64_t), cudaHostAllocMapped));
  published_ = static_cast<uint64_t*>(published);
  *published_ = 0;
  SelectorClock clock;
  void* device_address = nullptr;
  LS_CUDA(cudaHostGetDevicePointer(&device_address, published, 0));
  clock.published = static_cast<uint64_t*>(device_address);
  clock_ = LS_TRY(AllocateOnDevice(sizeof(clock)));
  // From pageable memory: CUDA takes the bytes before the call returns.
  LS_CUDA(
      cudaMemcpyAsync(clock_.data.get(), &clock, sizeof(clock), cudaMemcpyHostToDevice, stream));
  return Status();
}

double SelectorTimer::seconds() const {
  // Written at any time, in one piece.
  return 1e-9 * static_cast<double>(*static_cast<const volatile uint64_t*>(published_));
}

}  // namespace lserve
