// HostStaging: large copies from pageable host memory (a mapped checkpoint) to the device, through
// pinned blocks that several threads fill while the device reads others. A plain copy is bound by
// the one thread that faults the file's pages in and moves them. Used by CudaBackend; engine thread
// only.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <memory>

#include "base/status.h"
#include "base/thread_pool.h"

namespace lserve {

class HostStaging {
 public:
  // Copies below this gain nothing.
  static constexpr size_t kMinBytes = size_t{4} << 20;

  explicit HostStaging(cudaStream_t stream) : stream_(stream) {}
  ~HostStaging();
  HostStaging(const HostStaging&) = delete;
  HostStaging& operator=(const HostStaging&) = delete;

  // Queues the copy of `bytes` bytes on the stream; when it returns the source may change. The
  // first call takes kBlocks * kBlockBytes of pinned memory and starts the threads.
  Status CopyToDevice(void* device, const void* host, size_t bytes);

  // Gives memory and threads back, after the copies have ended.
  Status Release();

 private:
  static constexpr size_t kBlockBytes = size_t{16} << 20;
  static constexpr int kBlocks = 3;

  struct Block {
    void* memory = nullptr;      // pinned
    cudaEvent_t read = nullptr;  // the device has read it
  };

  Status Start();

  cudaStream_t stream_;
  std::array<Block, kBlocks> blocks_ = {};
  size_t next_ = 0;
  std::unique_ptr<ThreadPool> pool_;
};

}  // namespace lserve
