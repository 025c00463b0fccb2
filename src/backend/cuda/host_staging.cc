#include "backend/cuda/host_staging.h"

#include <algorithm>
#include <cstring>

#include "backend/cuda/cuda_status.h"

namespace lserve {
namespace {

// More threads than fill PCIe 5 (55 GB/s) are of no use.
constexpr int kMaxThreads = 8;
constexpr size_t kPieceBytes = size_t{1} << 20;

}  // namespace

HostStaging::~HostStaging() {
  static_cast<void>(Release());
}

Status HostStaging::Start() {
  if (pool_ != nullptr) return Status();
  for (Block& block : blocks_) {
    LS_CUDA(cudaHostAlloc(&block.memory, kBlockBytes, cudaHostAllocDefault));
    LS_CUDA(cudaEventCreateWithFlags(&block.read, cudaEventDisableTiming));
  }
  pool_ = std::make_unique<ThreadPool>(std::min(kMaxThreads, NumUsableCores()));
  return Status();
}

Status HostStaging::Release() {
  if (blocks_.front().memory == nullptr) return Status();  // never started, or released
  pool_ = nullptr;
  const cudaError_t error = cudaStreamSynchronize(stream_);
  for (Block& block : blocks_) {
    if (block.read != nullptr) static_cast<void>(cudaEventDestroy(block.read));
    if (block.memory != nullptr) static_cast<void>(cudaFreeHost(block.memory));
    block = {};
  }
  LS_CUDA(error);
  return Status();
}

Status HostStaging::CopyToDevice(void* device, const void* host, size_t bytes) {
  LS_TRY(Start());
  for (size_t done = 0; done < bytes; done += kBlockBytes) {
    const size_t count = std::min(kBlockBytes, bytes - done);
    Block& block = blocks_[next_++ % kBlocks];
    LS_CUDA(cudaEventSynchronize(block.read));
    const auto* from = static_cast<const std::byte*>(host) + done;
    auto* to = static_cast<std::byte*>(block.memory);
    const size_t pieces = (count + kPieceBytes - 1) / kPieceBytes;
    pool_->Run(static_cast<int64_t>(pieces), [&](int64_t piece, int) {
      const size_t first = static_cast<size_t>(piece) * kPieceBytes;
      std::memcpy(to + first, from + first, std::min(kPieceBytes, count - first));
    });
    LS_CUDA(cudaMemcpyAsync(static_cast<std::byte*>(device) + done, to, count,
                            cudaMemcpyHostToDevice, stream_));
    LS_CUDA(cudaEventRecord(block.read, stream_));
  }
  return Status();
}

}  // namespace lserve
