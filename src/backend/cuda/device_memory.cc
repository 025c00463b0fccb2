#include "backend/cuda/device_memory.h"

#include <algorithm>
#include <cstring>

#include "backend/cuda/cuda_status.h"
#include "base/strings.h"

namespace lserve {
namespace {

constexpr size_t kUploadAlignment = 256;
constexpr size_t kUploadBlock = size_t{4} << 20;
// Of recorded steps: the page tables of 64 sequences of 128K tokens are 1 MiB.
constexpr size_t kFixedBytes = size_t{8} << 20;

}  // namespace

Result<Buffer> AllocateOnDevice(size_t bytes) {
  if (bytes == 0) return Buffer{};
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, bytes);
  if (error == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());  // not sticky
    size_t free_bytes = 0, total = 0;
    LS_CUDA(cudaMemGetInfo(&free_bytes, &total));
    return Status(Code::kOutOfMemory,
                  StrCat("allocate ", bytes, " bytes on the GPU: ", free_bytes, " of ", total,
                         " are free; use a smaller model, context or batch, or free the GPU of "
                         "other programs"));
  }
  LS_CUDA(error);
  // A failure to free means that the device is lost, which the next call of an op reports.
  return Buffer{std::shared_ptr<void>(memory, [](void* p) { static_cast<void>(cudaFree(p)); }),
                bytes};
}

Result<std::byte*> DeviceScratch::Get(size_t bytes, cudaStream_t stream) {
  if (bytes > block_.bytes) {
    LS_CUDA(cudaStreamSynchronize(stream));
    block_ = {};  // give back first: both together may be too much
    block_ = LS_TRY(AllocateOnDevice(bytes));
  }
  return block_.as<std::byte>();
}

void StepUploads::BeginStep() {
  in_step_ = true;
  copies_.clear();
  block_ = offset_ = 0;
}

void StepUploads::BeginOp() {
  if (in_step_) return;
  copies_.clear();
  block_ = offset_ = 0;
}

const void* StepUploads::Find(const void* key) const {
  const auto found = copies_.find(key);
  return found == copies_.end() ? nullptr : found->second;
}

StepUploads::~StepUploads() {
  if (copied_ != nullptr) static_cast<void>(cudaEventDestroy(copied_));
  if (staging_ != nullptr) static_cast<void>(cudaFreeHost(staging_));
}

Status StepUploads::BeginRecord() {
  if (staging_ == nullptr) {
    fixed_ = LS_TRY(AllocateOnDevice(kFixedBytes));
    LS_CUDA(cudaEventCreateWithFlags(&copied_, cudaEventDisableTiming));
    void* staging = nullptr;
    LS_CUDA(cudaHostAlloc(&staging, kFixedBytes, cudaHostAllocDefault));
    staging_ = static_cast<std::byte*>(staging);
  }
  LS_CUDA(cudaEventSynchronize(copied_));
  mode_ = Mode::kRecord;
  copies_.clear();
  fixed_offset_ = 0;
  return Status();
}

Result<bool> StepUploads::EndRecord() {
  mode_ = Mode::kCopy;
  copies_.clear();
  if (fixed_offset_ > kFixedBytes) return false;
  if (fixed_offset_ == 0) return true;
  LS_CUDA(
      cudaMemcpyAsync(fixed_.data.get(), staging_, fixed_offset_, cudaMemcpyHostToDevice, stream_));
  LS_CUDA(cudaEventRecord(copied_, stream_));
  return true;
}

void StepUploads::BeginRepeat() {
  mode_ = Mode::kRepeat;
  copies_.clear();
  fixed_offset_ = 0;
}

void StepUploads::EndRepeat() {
  mode_ = Mode::kCopy;
  copies_.clear();
}

Result<const void*> StepUploads::CopyBytes(const void* values, size_t bytes) {
  if (bytes == 0) return static_cast<const void*>(nullptr);
  if (mode_ != Mode::kCopy) {
    const size_t at = fixed_offset_;
    fixed_offset_ += (bytes + kUploadAlignment - 1) / kUploadAlignment * kUploadAlignment;
    if (fixed_offset_ > kFixedBytes) return static_cast<const void*>(fixed_.data.get());
    if (mode_ == Mode::kRecord) std::memcpy(staging_ + at, values, bytes);
    return static_cast<const void*>(fixed_.as<std::byte>() + at);
  }
  while (block_ < blocks_.size() && offset_ + bytes > blocks_[block_].bytes) {
    ++block_;
    offset_ = 0;
  }
  if (block_ == blocks_.size()) {
    blocks_.push_back(LS_TRY(AllocateOnDevice(std::max(bytes, kUploadBlock))));
  }
  std::byte* to = blocks_[block_].as<std::byte>() + offset_;
  offset_ += (bytes + kUploadAlignment - 1) / kUploadAlignment * kUploadAlignment;
  // From pageable memory: CUDA takes the bytes before the call returns.
  LS_CUDA(cudaMemcpyAsync(to, values, bytes, cudaMemcpyHostToDevice, stream_));
  return static_cast<const void*>(to);
}

}  // namespace lserve
