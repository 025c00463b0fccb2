#include "backend/cuda/cuda_kv_store.h"

#include <cudaTypedefs.h>

#include <algorithm>

#include "backend/cuda/cuda_status.h"
#include "backend/cuda/device_memory.h"
#include "backend/cuda/kernels/kernels.h"
#include "base/check.h"
#include "base/log.h"
#include "base/round_up.h"
#include "base/strings.h"

namespace lserve {
namespace {

// Mapping costs some 50 us per block whatever its size; a block holds a few granules of the pool.
constexpr size_t kMinBlockBytes = size_t{4} << 20;
// A page starts where 16-byte vectors and bulk copies may.
constexpr size_t kPageAlignment = 256;

// The driver's functions, found through the runtime: linking libcuda would keep the program from
// starting on machines without a driver.
struct Driver {
  PFN_cuMemGetAllocationGranularity_v10020 granularity = nullptr;
  PFN_cuMemAddressReserve_v10020 reserve = nullptr;
  PFN_cuMemAddressFree_v10020 free = nullptr;
  PFN_cuMemCreate_v10020 create = nullptr;
  PFN_cuMemRelease_v10020 release = nullptr;
  PFN_cuMemMap_v10020 map = nullptr;
  PFN_cuMemUnmap_v10020 unmap = nullptr;
  PFN_cuMemSetAccess_v10020 set_access = nullptr;
  PFN_cuTensorMapEncodeTiled_v12000 encode_tiled = nullptr;
};

// `version`: of the CUDA that brought the function, 1000 * major + 10 * minor.
template <class F>
Status Find(const char* name, unsigned version, F* function) {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  LS_CUDA(cudaGetDriverEntryPointByVersion(name, &address, version, cudaEnableDefault, &found));
  if (found != cudaDriverEntryPointSuccess) {
    return Status(Code::kUnsupported,
                  StrCat("the GPU's driver has no ", name, ", expected one for CUDA ",
                         version / 1000, ".", version % 1000 / 10, " or newer; update the driver"));
  }
  *function = reinterpret_cast<F>(address);
  return Status();
}

Result<Driver> FindDriver() {
  Driver d;
  LS_TRY(Find("cuMemGetAllocationGranularity", 10020, &d.granularity));
  LS_TRY(Find("cuMemAddressReserve", 10020, &d.reserve));
  LS_TRY(Find("cuMemAddressFree", 10020, &d.free));
  LS_TRY(Find("cuMemCreate", 10020, &d.create));
  LS_TRY(Find("cuMemRelease", 10020, &d.release));
  LS_TRY(Find("cuMemMap", 10020, &d.map));
  LS_TRY(Find("cuMemUnmap", 10020, &d.unmap));
  LS_TRY(Find("cuMemSetAccess", 10020, &d.set_access));
  LS_TRY(Find("cuTensorMapEncodeTiled", 12000, &d.encode_tiled));
  return d;
}

const Result<Driver>& FoundDriver() {
  static const Result<Driver> driver = FindDriver();
  return driver;
}

const Driver& TheDriver() {
  return FoundDriver().value();
}

Status DriverStatus(CUresult error, const char* call) {
  if (error == CUDA_SUCCESS) return Status();
  if (error == CUDA_ERROR_OUT_OF_MEMORY) {
    return CudaStatus(cudaErrorMemoryAllocation, call);
  }
  return Status(Code::kDeviceLost, StrCat("GPU driver error ", static_cast<int>(error), " in ",
                                          call, ", expected success; check nvidia-smi"));
}

CUmemAllocationProp BlockProperties(int device) {
  CUmemAllocationProp properties = {};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.location.id = device;
  return properties;
}

}  // namespace

Result<std::unique_ptr<CudaKvStore>> CudaKvStore::Make(const KvLayout& layout,
                                                       const PageId (&max_pages)[kNumWays],
                                                       int device,
                                                       cudaStream_t stream) {
  LS_TRY(FoundDriver().status());
  std::unique_ptr<CudaKvStore> store(new CudaKvStore(layout, device, stream));
  const CUmemAllocationProp properties = BlockProperties(device);
  size_t granularity = 0;
  LS_TRY(DriverStatus(
      TheDriver().granularity(&granularity, &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
      "cuMemGetAllocationGranularity"));
  store->block_bytes_ = RoundUp(kMinBlockBytes, granularity);
  for (const Way way : kWays) LS_TRY(store->Reserve(way, max_pages[Index(way)]));
  LS_TRY(store->UploadHeads());
  return store;
}

Status CudaKvStore::Reserve(Way way, PageId max_pages) {
  Region& region = regions_[Index(way)];
  region.page_stride = RoundUp(layout().way(way).page_bytes(), kPageAlignment);
  region.bytes = RoundUp(region.page_stride * static_cast<size_t>(max_pages), block_bytes_);
  if (region.bytes == 0) return Status();
  region.blocks.assign(region.bytes / block_bytes_, 0);
  region.users.assign(region.blocks.size(), 0);
  return DriverStatus(TheDriver().reserve(&region.base, region.bytes, block_bytes_, 0, 0),
                      "cuMemAddressReserve");
}

Status CudaKvStore::UploadHeads() {
  const auto copy = [&](const auto& values, Buffer* to) {
    const size_t bytes = values.size() * sizeof(values[0]);
    *to = LS_TRY(AllocateOnDevice(bytes));
    if (bytes > 0) LS_CUDA(cudaMemcpy(to->data.get(), values.data(), bytes, cudaMemcpyDefault));
    return Status();
  };
  for (const Way way : kWays) {
    std::vector<int> heads;
    for (const std::vector<int>& layer : layout().way(way).heads) {
      heads.insert(heads.end(), layer.begin(), layer.end());
    }
    LS_TRY(copy(heads, &heads_[Index(way)]));
  }
  std::vector<HeadSlotView> slots;
  for (const HeadSlot& slot : layout().slots) slots.push_back({Index(slot.way), slot.slot});
  return copy(slots, &slots_);
}

CudaKvStore::~CudaKvStore() {
  static_cast<void>(cudaStreamSynchronize(stream_));
  for (Region& region : regions_) {
    if (region.base == 0) continue;
    for (size_t block = 0; block < region.blocks.size(); ++block) {
      if (region.blocks[block] != 0) UnmapBlock(&region, block);
    }
    TheDriver().free(region.base, region.bytes);
  }
  for (const CUmemGenericAllocationHandle handle : spare_) TheDriver().release(handle);
}

Status CudaKvStore::MapBlock(Region* region, size_t block) {
  const CUmemAllocationProp properties = BlockProperties(device_);
  CUmemGenericAllocationHandle handle = 0;
  if (!spare_.empty()) {
    handle = spare_.back();
    spare_.pop_back();
  } else {
    LS_TRY(DriverStatus(TheDriver().create(&handle, block_bytes_, &properties, 0), "cuMemCreate"));
  }
  const CUdeviceptr at = region->base + block * block_bytes_;
  const CUmemAccessDesc access = {.location = properties.location,
                                  .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  Status status = DriverStatus(TheDriver().map(at, block_bytes_, 0, handle, 0), "cuMemMap");
  if (!status.ok()) {
    spare_.push_back(handle);
    return status;
  }
  region->blocks[block] = handle;
  status = DriverStatus(TheDriver().set_access(at, block_bytes_, &access, 1), "cuMemSetAccess");
  if (!status.ok()) UnmapBlock(region, block);
  return status;
}

void CudaKvStore::UnmapBlock(Region* region, size_t block) {
  TheDriver().unmap(region->base + block * block_bytes_, block_bytes_);
  spare_.push_back(region->blocks[block]);
  region->blocks[block] = 0;
}

Status CudaKvStore::Commit(Way way, PageId first, int count) {
  Region& region = regions_[Index(way)];
  const size_t begin = static_cast<size_t>(first) * region.page_stride;
  const size_t end = begin + static_cast<size_t>(count) * region.page_stride;
  LS_CHECK_LE(end, region.bytes);
  for (size_t block = begin / block_bytes_; block * block_bytes_ < end; ++block) {
    if (region.users[block] == 0) {
      const Status mapped = MapBlock(&region, block);
      if (!mapped.ok()) {
        while (block-- > begin / block_bytes_) {
          if (--region.users[block] == 0) UnmapBlock(&region, block);
        }
        return mapped;
      }
    }
    ++region.users[block];
  }
  return Status();
}

void CudaKvStore::Decommit(Way way, PageId first, int count) {
  Region& region = regions_[Index(way)];
  const size_t begin = static_cast<size_t>(first) * region.page_stride;
  const size_t end = begin + static_cast<size_t>(count) * region.page_stride;
  // Kernels that still run may read the pages. An error shows at the next op.
  static_cast<void>(cudaStreamSynchronize(stream_));
  for (size_t block = begin / block_bytes_; block * block_bytes_ < end; ++block) {
    if (--region.users[block] == 0) UnmapBlock(&region, block);
  }
}

// Tokens past `num_tokens` are copied too: nothing reads them before they are written again.
void CudaKvStore::CopyPage(Way way, PageId from, PageId to, int num_tokens) {
  const Region& region = regions_[Index(way)];
  const WayLayout& w = layout().way(way);
  std::byte* base = reinterpret_cast<std::byte*>(region.base);  // NOLINT: a device address
  const std::byte* source = base + static_cast<size_t>(from) * region.page_stride;
  std::byte* target = base + static_cast<size_t>(to) * region.page_stride;
  // Errors are sticky: the next op reports them.
  static_cast<void>(cudaMemcpyAsync(target, source, w.kv_bytes, cudaMemcpyDeviceToDevice, stream_));
  if (w.stats_bytes == 0) return;
  for (int layer = 0; layer < layout().num_layers; ++layer) {
    static_cast<void>(LaunchRebuildStats(View(layer, 1).ways[Index(way)], layout().dtype,
                                         layout().head_dim, to, num_tokens, stream_));
  }
}

Status CudaKvStore::ReadPage(Way way, PageId page, std::span<std::byte> bytes) const {
  const Region& region = regions_[Index(way)];
  const std::byte* base = reinterpret_cast<std::byte*>(region.base);  // NOLINT: a device address
  LS_CUDA(cudaMemcpyAsync(bytes.data(), base + static_cast<size_t>(page) * region.page_stride,
                          bytes.size(), cudaMemcpyDeviceToHost, stream_));
  LS_CUDA(cudaStreamSynchronize(stream_));
  return Status();
}

Status CudaKvStore::WritePage(Way way, PageId page, std::span<const std::byte> bytes) {
  const Region& region = regions_[Index(way)];
  std::byte* base = reinterpret_cast<std::byte*>(region.base);  // NOLINT: a device address
  LS_CUDA(cudaMemcpyAsync(base + static_cast<size_t>(page) * region.page_stride, bytes.data(),
                          bytes.size(), cudaMemcpyHostToDevice, stream_));
  LS_CUDA(cudaStreamSynchronize(stream_));
  return Status();
}

namespace {

// A map of bf16 elements whose boxes are swizzled rows of 64. `strides`: in bytes, of all
// dimensions but the first.
template <size_t kRank>
Status EncodeMap(std::byte* base,
                 const cuuint64_t (&sizes)[kRank],
                 const cuuint64_t (&strides)[kRank - 1],
                 const cuuint32_t (&box)[kRank],
                 CUtensorMap* map) {
  cuuint32_t steps[kRank];
  std::fill_n(steps, kRank, 1u);
  return DriverStatus(TheDriver().encode_tiled(
                          map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, kRank, base, sizes, strides, box,
                          steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                          CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
                      "cuTensorMapEncodeTiled");
}

}  // namespace

Status EncodeMaps(
    const WayView& pages, size_t num_pages, int head_dim, CUtensorMap* keys, CUtensorMap* values) {
  constexpr cuuint64_t kRow = 64, kRowBytes = kRow * sizeof(uint16_t);
  static_assert(kPageTokens == kRow, "a row of V^T is a swizzled row");
  const cuuint64_t dim = static_cast<cuuint64_t>(head_dim);
  const cuuint64_t slots = static_cast<cuuint64_t>(pages.num_slots);
  LS_TRY(EncodeMap<5>(pages.kv, {kRow, kPageTokens, dim / kRow, slots, num_pages},
                      {dim * sizeof(uint16_t), kRowBytes, pages.kv_bytes, pages.page_stride},
                      {kRow, kPageTokens, 1, 1, 1}, keys));
  return EncodeMap<4>(pages.kv + kPageTokens * dim * sizeof(uint16_t),
                      {kRow, dim, slots, num_pages}, {kRowBytes, pages.kv_bytes, pages.page_stride},
                      {kRow, static_cast<cuuint32_t>(dim), 1, 1}, values);
}

Result<const PrefillMaps*> CudaKvStore::Maps(int layer) const {
  LS_CHECK(layout().dtype == DType::kBf16) << Name(layout().dtype);
  maps_.resize(static_cast<size_t>(layout().num_layers));
  std::unique_ptr<PrefillMaps>& maps = maps_[static_cast<size_t>(layer)];
  if (maps != nullptr) return static_cast<const PrefillMaps*>(maps.get());
  auto made = std::make_unique<PrefillMaps>();
  const LayerView view = View(layer, 1);
  for (int w = 0; w < kNumWays; ++w) {
    const WayView& way = view.ways[w];
    if (way.num_slots == 0) continue;
    LS_TRY(EncodeMaps(way, regions_[w].bytes / way.page_stride, layout().head_dim, &made->keys[w],
                      &made->values[w]));
  }
  maps = std::move(made);
  return static_cast<const PrefillMaps*>(maps.get());
}

LayerView CudaKvStore::View(int layer, int group) const {
  LayerView view;
  view.num_kv_heads = layout().num_kv_heads;
  view.head_dim = layout().head_dim;
  view.group = group;
  view.slots = slots_.as<HeadSlotView>() + int64_t{layer} * layout().num_kv_heads;
  for (const Way way : kWays) {
    const WayLayout& w = layout().way(way);
    const size_t l = static_cast<size_t>(layer);
    std::byte* base = reinterpret_cast<std::byte*>(regions_[Index(way)].base);  // NOLINT
    view.ways[Index(way)] = {.kv = base + w.kv_offset[l],
                             .stats = base + w.kv_bytes + w.stats_offset[l],
                             .page_stride = regions_[Index(way)].page_stride,
                             .kv_bytes = w.head_bytes.kv,
                             .stats_bytes = w.head_bytes.stats,
                             .num_slots = w.num_slots(layer),
                             .first_entry = w.first_entry[l],
                             .heads = heads_[Index(way)].as<int>() + w.first_entry[l]};
  }
  return view;
}

}  // namespace lserve
