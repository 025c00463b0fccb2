// Memory of one GPU: blocks that live as long as their Buffer, scratch that grows to what the
// largest call needed, and the copies of the small host arrays (plans, page tables) that ops get.
// Used by CudaBackend; engine thread only.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <span>
#include <unordered_map>
#include <vector>

#include "backend/buffer.h"
#include "base/status.h"

namespace lserve {

// `bytes` of the current device, content unspecified; at least 256-byte aligned.
Result<Buffer> AllocateOnDevice(size_t bytes);

// One block that ops on the stream take turns with. A larger request replaces the block, after the
// work that uses it has ended.
class DeviceScratch {
 public:
  Result<std::byte*> Get(size_t bytes, cudaStream_t stream);
  size_t bytes() const { return block_.bytes; }

 private:
  Buffer block_;
};

// Copies of host arrays for the kernels of one op or, between BeginStep() and the next, of a whole
// step: there an array that was copied is not copied again, whichever op and layer asks for it. In
// a step the arrays keep their address and content (Backend::BeginStep). The copies are ordered on
// the stream, so memory may be used again while earlier kernels still run.
//
// For a step whose ops are called twice (StepGraphs): between BeginRecord() and EndRecord() arrays
// are gathered in pinned memory, for one copy to a fixed place; after BeginRepeat() the same calls
// get the same addresses and copy nothing. The order and sizes of the arrays decide the addresses.
class StepUploads {
 public:
  explicit StepUploads(cudaStream_t stream) : stream_(stream) {}
  ~StepUploads();
  StepUploads(const StepUploads&) = delete;
  StepUploads& operator=(const StepUploads&) = delete;

  Status BeginRecord();
  // False: the arrays are too large for the fixed place, and addresses given since are no good.
  Result<bool> EndRecord();
  void BeginRepeat();
  void EndRepeat();

  void BeginStep();
  // Outside of a step: forgets the copies of the last op.
  void BeginOp();

  // The device's copy of `values`. `key` names the source where it is not the array itself (the
  // values were computed from it); nullptr: the array.
  template <class T>
  Result<const T*> Upload(std::span<const T> values, const void* key = nullptr) {
    if (key == nullptr) key = values.data();
    if (const void* copy = Find(key); copy != nullptr) return static_cast<const T*>(copy);
    const void* copy = LS_TRY(CopyBytes(values.data(), values.size_bytes()));
    copies_[key] = copy;
    return static_cast<const T*>(copy);
  }
  // A copy that is not found again: of an array whose address tells nothing.
  template <class T>
  Result<const T*> UploadAnew(std::span<const T> values) {
    return static_cast<const T*>(LS_TRY(CopyBytes(values.data(), values.size_bytes())));
  }
  // The copy under `key`; nullptr if there is none.
  const void* Find(const void* key) const;

 private:
  enum class Mode { kCopy, kRecord, kRepeat };

  Result<const void*> CopyBytes(const void* values, size_t bytes);

  cudaStream_t stream_;
  bool in_step_ = false;
  std::unordered_map<const void*, const void*> copies_;
  std::vector<Buffer> blocks_;
  size_t block_ = 0;   // in use
  size_t offset_ = 0;  // first free byte of it

  Mode mode_ = Mode::kCopy;
  Buffer fixed_;                  // the place of recorded arrays
  std::byte* staging_ = nullptr;  // pinned, as large as fixed_
  cudaEvent_t copied_ = nullptr;  // staging_ may be written again
  size_t fixed_offset_ = 0;
};

}  // namespace lserve
