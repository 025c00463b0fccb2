// DrawUpload: what a PickTokens is given beside the logits (draws, masks, penalties), gathered in
// pinned memory as it is to lie on the device, for one copy. Used by CudaBackend; engine thread
// only.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "backend/ops.h"
#include "base/status.h"

namespace lserve {

class DrawUpload {
 public:
  DrawUpload() = default;
  ~DrawUpload();
  DrawUpload(const DrawUpload&) = delete;
  DrawUpload& operator=(const DrawUpload&) = delete;

  // On the device.
  struct Arrays {
    const TokenDraw* draws = nullptr;  // [rows]
    const LogitEdits* edits =
        nullptr;  // [rows], with arrays of the device; nullptr: no row has any
  };

  // What Copy() writes to `device`.
  static size_t Bytes(const PickTokensParams& params);
  // REQUIRES: the copy before is done, which the caller waits for.
  Result<Arrays> Copy(const PickTokensParams& params, std::byte* device, cudaStream_t stream);

 private:
  std::byte* staging_ = nullptr;  // pinned
  size_t bytes_ = 0;              // of it
};

}  // namespace lserve
