// dequantize_pages: quantised pages as bf16 pages, once per chunk of a prompt, for prefill kernels
// that read each of them with hundreds of tiles of queries (ADR 0036).
//
// One block per (page, slot), 256 threads. Each takes vectors of eight elements of K and V^T, and
// loads all of them before it widens the first: K and V are read once and written once, so bytes in
// flight are all that counts.
//
// Bytes of a part, D = 128: 16 KiB of int8 or fp8 codes or 8 KiB of int4, their scales, and 32 KiB
// written. Bound: memory, 3 bytes an element of int8: a picosecond at 3 TB/s, in which 132
// multiprocessors have time for 29 instructions. An element takes four.
#include <cstdint>

#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/kernels/kv_part.cuh"

namespace lserve {
namespace {

constexpr int kThreads = 256;
constexpr int kVectorsOfRow = kPageTokens / 8;  // of V^T
static_assert(kThreads % kVectorsOfRow == 0, "a thread's vectors of V^T are of the same tokens");

template <KvType T, int D>
__global__ void __launch_bounds__(kThreads) DequantizePagesKernel(DequantizePagesArgs args) {
  constexpr int kVectors = kPageTokens * D / 8;  // of K, and of V^T
  constexpr int kEach = kVectors / kThreads;
  static_assert(kVectors % kThreads == 0);
  const int64_t first_parts = int64_t{args.ways[0].num_pages} * args.ways[0].num_slots;
  const int way_index = blockIdx.x < first_parts ? 0 : 1;
  const int part_index = static_cast<int>(blockIdx.x - (way_index == 0 ? 0 : first_parts));
  const DequantizeWay& way = args.ways[way_index];
  const WayView& view = args.layer.ways[way_index];
  const int slot = way.first_slot + part_index % way.num_slots;
  const std::byte* part =
      view.kv + way.pages[part_index / way.num_slots] * view.page_stride + slot * view.kv_bytes;
  uint4* to = reinterpret_cast<uint4*>(way.to) + int64_t{part_index} * 2 * kVectors;

  RawEight<T> keys[kEach], values[kEach];
  float2 key_scales[kEach], value_scales[8];
#pragma unroll
  for (int n = 0; n < kEach; ++n) {
    const int i = threadIdx.x + n * kThreads;
    const int token = i / (D / 8), d = i % (D / 8) * 8;
    keys[n] = LoadRaw<T>(part + token * KeyRowBytes<T>(D), d);
    key_scales[n] = Affine(Scales<T>(part, D)[token]);
  }
  const int first_token = threadIdx.x % kVectorsOfRow * 8;
#pragma unroll
  for (int n = 0; n < kEach; ++n) {
    const int d = (threadIdx.x + n * kThreads) / kVectorsOfRow;
    values[n] = LoadRaw<T>(part + HalfBytes<T>(D) + d * ValueRowBytes<T>(), first_token);
  }
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    value_scales[e] = Affine(Scales<T>(part, D)[kPageTokens + first_token + e]);
  }
#pragma unroll
  for (int n = 0; n < kEach; ++n) {
    const float2 scale = key_scales[n];
    to[threadIdx.x + n * kThreads] = Expand<T>(keys[n], [&](int) { return scale; });
  }
#pragma unroll
  for (int n = 0; n < kEach; ++n) {
    to[kVectors + threadIdx.x + n * kThreads] =
        Expand<T>(values[n], [&](int e) { return value_scales[e]; });
  }
}

template <KvType T>
cudaError_t Launch(const DequantizePagesArgs& args, cudaStream_t stream) {
  int64_t parts = 0;
  for (const DequantizeWay& way : args.ways) parts += int64_t{way.num_pages} * way.num_slots;
  if (parts == 0) return cudaSuccess;
  const auto grid = static_cast<unsigned>(parts);
  switch (args.layer.head_dim) {
    case 32:
      DequantizePagesKernel<T, 32><<<grid, kThreads, 0, stream>>>(args);
      break;
    case 64:
      DequantizePagesKernel<T, 64><<<grid, kThreads, 0, stream>>>(args);
      break;
    case 96:
      DequantizePagesKernel<T, 96><<<grid, kThreads, 0, stream>>>(args);
      break;
    case 128:
      DequantizePagesKernel<T, 128><<<grid, kThreads, 0, stream>>>(args);
      break;
    default:
      return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchDequantizePages(const DequantizePagesArgs& args, cudaStream_t stream) {
  switch (args.dtype) {
    case DType::kInt8:
      return Launch<KvType::kInt8>(args, stream);
    case DType::kInt4:
      return Launch<KvType::kInt4>(args, stream);
    case DType::kFp8:
      return Launch<KvType::kFp8>(args, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace lserve
