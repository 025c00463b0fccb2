#include "backend/cuda/draw_upload.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "backend/cuda/cuda_status.h"
#include "base/round_up.h"

namespace lserve {
namespace {

constexpr size_t kAlignment = 16;
constexpr size_t kLeastBytes = size_t{64} << 10;  // three masks of 128K tokens

// Calls `add` with each array, in the order in which they lie.
template <class Add>
void ForEachArray(const PickTokensParams& params, Add&& add) {
  add(std::as_bytes(params.draws));
  if (!HasEdits(params.edits)) return;
  add(std::as_bytes(params.edits));
  for (const LogitEdits& edits : params.edits) {
    add(std::as_bytes(edits.allowed));
    add(std::as_bytes(edits.repeated));
    add(std::as_bytes(edits.shifts));
  }
}

size_t Padded(size_t bytes) {
  return RoundUp(bytes, kAlignment);
}

}  // namespace

DrawUpload::~DrawUpload() {
  if (staging_ != nullptr) static_cast<void>(cudaFreeHost(staging_));
}

size_t DrawUpload::Bytes(const PickTokensParams& params) {
  size_t bytes = 0;
  ForEachArray(params, [&](std::span<const std::byte> array) { bytes += Padded(array.size()); });
  return bytes;
}

Result<DrawUpload::Arrays> DrawUpload::Copy(const PickTokensParams& params,
                                            std::byte* device,
                                            cudaStream_t stream) {
  const size_t bytes = Bytes(params);
  if (bytes > bytes_) {
    if (staging_ != nullptr) LS_CUDA(cudaFreeHost(staging_));
    staging_ = nullptr;
    const size_t wanted = std::max({bytes, 2 * bytes_, kLeastBytes});
    bytes_ = 0;
    void* memory = nullptr;
    LS_CUDA(cudaHostAlloc(&memory, wanted, cudaHostAllocDefault));
    staging_ = static_cast<std::byte*>(memory);
    bytes_ = wanted;
  }
  size_t at = 0;
  ForEachArray(params, [&](std::span<const std::byte> array) {
    if (!array.empty()) std::memcpy(staging_ + at, array.data(), array.size());
    at += Padded(array.size());
  });
  Arrays arrays = {.draws = reinterpret_cast<const TokenDraw*>(device)};
  if (HasEdits(params.edits)) {
    // The copies of the rows' edits point to the copies of their arrays.
    at = Padded(params.draws.size_bytes());
    arrays.edits = reinterpret_cast<const LogitEdits*>(device + at);
    LogitEdits* edits = reinterpret_cast<LogitEdits*>(staging_ + at);
    at += Padded(params.edits.size_bytes());
    const auto place = [&]<class T>(std::span<const T>* array) {
      *array = {reinterpret_cast<const T*>(device + at), array->size()};
      at += Padded(array->size_bytes());
    };
    for (size_t r = 0; r < params.edits.size(); ++r) {
      place(&edits[r].allowed);
      place(&edits[r].repeated);
      place(&edits[r].shifts);
    }
  }
  LS_CUDA(cudaMemcpyAsync(device, staging_, bytes, cudaMemcpyHostToDevice, stream));
  return arrays;
}

}  // namespace lserve
