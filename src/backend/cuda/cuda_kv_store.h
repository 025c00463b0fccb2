// CudaKvStore: the pages of the cache in GPU memory. Address space for every page that may ever
// exist is reserved at once, so that a page's address is a multiplication; Commit and Decommit put
// physical memory behind it (CUDA's virtual memory management), block by block. Engine thread only.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <vector>

#include "backend/buffer.h"
#include "backend/cuda/device_views.h"
#include "backend/cuda/kernels/kernels.h"
#include "backend/kv_store.h"

namespace lserve {

// The maps (PrefillMaps) of bf16 pages, wherever they lie. REQUIRES: num_slots > 0.
Status EncodeMaps(
    const WayView& pages, size_t num_pages, int head_dim, CUtensorMap* keys, CUtensorMap* values);

class CudaKvStore : public KvStore {
 public:
  // `max_pages` per way. All work on the pages is on `stream`, which must outlive the store.
  static Result<std::unique_ptr<CudaKvStore>> Make(const KvLayout& layout,
                                                   const PageId (&max_pages)[kNumWays],
                                                   int device,
                                                   cudaStream_t stream);
  ~CudaKvStore() override;

  Status Commit(Way way, PageId first, int count) override;
  void Decommit(Way way, PageId first, int count) override;
  void CopyPage(Way way, PageId from, PageId to, int num_tokens) override;

  Status ReadPage(Way way, PageId page, std::span<std::byte> bytes) const override;
  Status WritePage(Way way, PageId page, std::span<const std::byte> bytes) override;

  // A layer's pages as TMA sees them. REQUIRES: they are bf16, and HasSm90Prefill().
  Result<const PrefillMaps*> Maps(int layer) const;

  // One layer as kernels see it, for `group` query heads per KV head.
  LayerView View(int layer, int group) const;

 private:
  // The address space of a way, cut into blocks; a block may carry parts of several granules.
  struct Region {
    CUdeviceptr base = 0;
    size_t bytes = 0;
    size_t page_stride = 0;
    std::vector<CUmemGenericAllocationHandle> blocks;  // [block], 0: not mapped
    std::vector<int> users;                            // [block], Commit calls that need it
  };

  CudaKvStore(const KvLayout& layout, int device, cudaStream_t stream)
      : KvStore(layout), device_(device), stream_(stream) {}
  Status Reserve(Way way, PageId max_pages);
  Status UploadHeads();
  Status MapBlock(Region* region, size_t block);
  void UnmapBlock(Region* region, size_t block);

  int device_;
  cudaStream_t stream_;
  size_t block_bytes_ = 0;
  Region regions_[kNumWays];
  std::vector<CUmemGenericAllocationHandle> spare_;  // of blocks unmapped, for the next Commit
  Buffer heads_[kNumWays];                           // [entry] -> KV head
  // [layer], made when first asked for; the addresses never change.
  mutable std::vector<std::unique_ptr<PrefillMaps>> maps_;
  Buffer slots_;  // [layer * num_kv_heads + head] HeadSlotView
};

}  // namespace lserve
