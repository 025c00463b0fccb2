// select_tiles: which key tiles a tile of queries reads in prefill (ops.h, SelectTiles; XAttention,
// arXiv 2503.16428).
//
//   1. Estimate: an antidiagonal score is a product over the summed axis (s, d) of 16 D, so that
//      all of them are one matrix product: row r of a head's queries 16 r + 15 - s times column c
//      of keys 16 c + s. Both are copied into that form here (a page's keys are four columns as
//      they lie), and cuBLAS multiplies them: 1 / 16 of the FLOPs of q K^T, at the rate of a large
//      GEMM, for which copying 1 / 8 of the bytes that the scores take is little.
//   2. Statistics: the maximum and the sum of the exponentials of each row.
//   3. Choice, one block per (request, slot): softmax summed per tile, mean over rows and heads,
//      sorted by mass, taken until the threshold.
#include <cstdint>

#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/kernels/kv_part.cuh"
#include "backend/cuda/kernels/top_pages.cuh"

namespace lserve {
namespace {

constexpr int kWarp = 32;
constexpr int kStride = kLogicalPageTokens;  // kTileStride of ops.h
constexpr int kRows = kTileEstimateRows;
constexpr int kTilePages = kTileTokens / kPageTokens;
constexpr int kCopyThreads = 256;
constexpr int kStatsThreads = 256;
constexpr int kChoiceThreads = 512;

__device__ int64_t Columns(const SelectTilesArgs& args) {
  return int64_t{args.max_tiles} * kRows;
}

// Grid (page, slot).
template <KvType T>
__global__ void __launch_bounds__(kCopyThreads) CopyKeysKernel(SelectTilesArgs args) {
  const int dim = args.layer.head_dim, slot = args.first_slot + blockIdx.y;
  const WayView& way = args.layer.ways[0];
  const PageId page = args.sequences[args.sequence].pages[0][blockIdx.x];
  const std::byte* part = way.kv + page * way.page_stride + slot * way.kv_bytes;
  uint16_t* to =
      args.keys + (blockIdx.y * Columns(args) * kStride + int64_t{blockIdx.x} * kPageTokens) * dim;
  for (int i = threadIdx.x; i < kPageTokens * dim / 8; i += blockDim.x) {
    const int token = i * 8 / dim, d = i * 8 % dim;
    *reinterpret_cast<uint4*>(to + int64_t{8} * i) = LoadKey<T>(part, dim, token, d);
  }
}

// Grid (request, slot and query head).
__global__ void __launch_bounds__(kCopyThreads) CopyQueriesKernel(SelectTilesArgs args) {
  const int dim = args.layer.head_dim, group = args.layer.group;
  const int slot = blockIdx.y / group, g = blockIdx.y % group;
  const int q_head = args.layer.ways[0].heads[args.first_slot + slot] * group + g;
  const TileSelect& request = args.requests[blockIdx.x];
  const float* from = args.q.data + request.first_query * args.q.stride + int64_t{q_head} * dim;
  uint16_t* to = args.queries +
                 ((int64_t{slot} * args.num_requests + blockIdx.x) * group + g) * kTileTokens * dim;
  for (int i = threadIdx.x; i < kTileTokens * dim / 2; i += blockDim.x) {
    const int row = i * 2 / dim, d = i * 2 % dim;
    const int query = row / kStride * kStride + kStride - 1 - row % kStride;
    const float* at = from + query * args.q.stride + d;
    *reinterpret_cast<uint32_t*>(to + int64_t{2} * i) = PackBf16(at[0], at[1]);
  }
}

// Of the block's threads; the same for all.
template <class Op>
__device__ float BlockReduce(float x, float* shared, Op op) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    x = op(x, __shfl_xor_sync(0xffffffffu, x, offset));
  }
  __syncthreads();
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = x;
  __syncthreads();
  float all = shared[0];
  for (int w = 1; w < static_cast<int>(blockDim.x) / kWarp; ++w) all = op(all, shared[w]);
  return all;
}

// The sum of exp(x - max) over numbers that have been seen.
struct RowStats {
  float max = -INFINITY;
  float sum = 0;

  __device__ void Add(float other_max, float other_sum) {
    const float now = fmaxf(max, other_max);
    if (now == -INFINITY) return;  // nothing seen by either
    sum = sum * expf(max - now) + other_sum * expf(other_max - now);
    max = now;
  }
};

// Grid (row of the estimate, request, slot).
__global__ void __launch_bounds__(kStatsThreads) RowStatsKernel(SelectTilesArgs args) {
  __shared__ RowStats shared[kStatsThreads / kWarp];
  const int64_t row =
      (int64_t{blockIdx.z} * args.num_requests + blockIdx.y) * gridDim.x + blockIdx.x;
  const float* scores = args.scores + row * Columns(args);
  // Up to the column that begins with the row's queries.
  const int count = (args.requests[blockIdx.y].num_tiles - 1) * kRows + blockIdx.x % kRows + 1;
  RowStats stats;
  for (int c = 4 * threadIdx.x; c < count; c += 4 * kStatsThreads) {
    const float4 x = *reinterpret_cast<const float4*>(scores + c);
    const float values[4] = {x.x, c + 1 < count ? x.y : -INFINITY, c + 2 < count ? x.z : -INFINITY,
                             c + 3 < count ? x.w : -INFINITY};
    const float max = fmaxf(fmaxf(values[0], values[1]), fmaxf(values[2], values[3]));
    float sum = 0;
#pragma unroll
    for (const float value : values) sum += expf(value - max);
    stats.Add(max, sum);
  }
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const float max = __shfl_down_sync(0xffffffffu, stats.max, offset);
    const float sum = __shfl_down_sync(0xffffffffu, stats.sum, offset);
    stats.Add(max, sum);
  }
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = stats;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int w = 1; w < kStatsThreads / kWarp; ++w) stats.Add(shared[w].max, shared[w].sum);
  args.row_stats[row] = {stats.max, stats.sum};
}

// The estimated mass of one tile: softmax summed over its columns, mean over rows and heads.
__device__ float TileMass(const SelectTilesArgs& args, int tile, int num_tiles) {
  const int num_rows = args.layer.group * kRows;
  const int64_t first_row = (int64_t{blockIdx.x} * args.num_requests + blockIdx.y) * num_rows;
  const float* scores = args.scores + first_row * Columns(args) + int64_t{tile} * kRows;
  const float2* stats = args.row_stats + first_row;
  float mass = 0;
#pragma unroll 4
  for (int row = 0; row < num_rows; ++row) {
    const auto* from = reinterpret_cast<const float4*>(scores + row * Columns(args));
    const float4 a = from[0], b = from[1];
    const float values[kRows] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    const float2 row_stats = stats[row];
    // In the queries' own tile, up to the column that begins with the row.
    const int count = tile + 1 < num_tiles ? kRows : row % kRows + 1;
    float sum = 0;
#pragma unroll
    for (int c = 0; c < kRows; ++c) {
      if (c < count) sum += expf(values[c] - row_stats.x);
    }
    mass += sum / row_stats.y;
  }
  mass /= static_cast<float>(num_rows);
  return mass >= 0 ? mass : 0;  // NaN (from a broken model) has no order
}

// Descending by mass, then ascending by index: the mass's bits above the inverted index.
__device__ uint64_t SortKey(float mass, int index) {
  return uint64_t{__float_as_uint(mass)} << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}

// Sorts keys[0, n), n a power of two, descending (bitonic).
__device__ void SortDescending(uint64_t* keys, int n) {
  for (int size = 2; size <= n; size *= 2) {
    for (int step = size / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const int other = i ^ step;
        if (other <= i) continue;
        const bool descending = (i & size) == 0;
        if ((keys[i] < keys[other]) == descending) {
          const uint64_t swap = keys[i];
          keys[i] = keys[other];
          keys[other] = swap;
        }
      }
    }
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kChoiceThreads) ChooseTilesKernel(SelectTilesArgs args) {
  extern __shared__ uint64_t keys[];  // [a power of two >= max_tiles], then the bitmap
  __shared__ float reduce[kChoiceThreads / kWarp];
  __shared__ int sums[33];
  const TileSelect& request = args.requests[blockIdx.y];
  const int slot = args.first_slot + blockIdx.x;
  const int num_tiles = request.num_tiles;
  const int listed = max(0, num_tiles - request.newest_tiles);
  const int sink = min(request.sink_tiles, listed);
  int capacity = 2;
  while (capacity < args.max_tiles) capacity *= 2;
  uint32_t* bitmap = reinterpret_cast<uint32_t*>(keys + capacity);
  const int num_words = (num_tiles + 31) / 32;

  int sorted = 2;
  while (sorted < listed - sink) sorted *= 2;
  float all = 0, read = 0;
  for (int tile = threadIdx.x; tile < num_tiles; tile += blockDim.x) {
    const float mass = TileMass(args, tile, num_tiles);
    all += mass;
    if (tile < sink || tile >= listed) {
      read += mass;
    } else {
      keys[tile - sink] = SortKey(mass, tile);
    }
  }
  for (int i = max(0, listed - sink) + threadIdx.x; i < sorted; i += blockDim.x) keys[i] = 0;
  const auto plus = [](float a, float b) { return a + b; };
  all = BlockReduce(all, reduce, plus);
  read = BlockReduce(read, reduce, plus);

  SortDescending(keys, sorted);

  for (int w = threadIdx.x; w < num_words; w += blockDim.x) {
    bitmap[w] = w * 32 >= sink ? 0u : sink - w * 32 >= 32 ? ~0u : (1u << (sink - w * 32)) - 1;
  }
  __syncthreads();
  // The first tiles in order whose predecessors do not reach the threshold: one warp's scan.
  if (threadIdx.x < kWarp) {
    const int most = min(listed - sink, max(0, request.max_listed_tiles - sink));
    double have = read;
    bool more = true;
    for (int first = 0; more && first < most; first += kWarp) {
      const int i = first + static_cast<int>(threadIdx.x);
      const uint64_t key = i < most ? keys[i] : 0;
      const double mass = double{__uint_as_float(static_cast<uint32_t>(key >> 32))};
      double before = mass;
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const double other = __shfl_up_sync(0xffffffffu, before, offset);
        if (static_cast<int>(threadIdx.x) >= offset) before += other;
      }
      const double after = __shfl_sync(0xffffffffu, before, kWarp - 1);
      const bool taken = i < most && have + (before - mass) < request.threshold * double{all};
      if (taken) {
        const uint32_t tile = 0xffffffffu - static_cast<uint32_t>(key);
        atomicOr(&bitmap[tile / 32], 1u << (tile % 32));
      }
      more = __all_sync(0xffffffffu, taken);
      have += after;
    }
  }
  __syncthreads();
  WriteRuns(bitmap, num_words, kTilePages, request.table, args.layer.ways[0].first_entry + slot,
            sums);
}

template <KvType T>
void CopyKeys(const SelectTilesArgs& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(args.max_tiles * kTilePages),
                  static_cast<unsigned>(args.num_slots));
  CopyKeysKernel<T><<<grid, kCopyThreads, 0, stream>>>(args);
}

}  // namespace

cudaError_t LaunchCopyTiles(const SelectTilesArgs& args, cudaStream_t stream) {
  switch (args.dtype) {
    case DType::kBf16:
      CopyKeys<KvType::kBf16>(args, stream);
      break;
    case DType::kInt8:
      CopyKeys<KvType::kInt8>(args, stream);
      break;
    case DType::kInt4:
      CopyKeys<KvType::kInt4>(args, stream);
      break;
    case DType::kFp8:
      CopyKeys<KvType::kFp8>(args, stream);
      break;
    default:
      return cudaErrorInvalidValue;
  }
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>(args.num_requests),
                  static_cast<unsigned>(args.num_slots * args.layer.group));
  CopyQueriesKernel<<<grid, kCopyThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t LaunchChooseTiles(const SelectTilesArgs& args, cudaStream_t stream) {
  const auto requests = static_cast<unsigned>(args.num_requests);
  const auto slots = static_cast<unsigned>(args.num_slots);
  const auto rows = static_cast<unsigned>(args.layer.group * kRows);
  RowStatsKernel<<<dim3(rows, requests, slots), kStatsThreads, 0, stream>>>(args);
  cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  size_t capacity = 2;
  while (capacity < static_cast<size_t>(args.max_tiles)) capacity *= 2;
  const size_t shared = capacity * sizeof(uint64_t) + (capacity / 32 + 1) * sizeof(uint32_t);
  error = cudaFuncSetAttribute(ChooseTilesKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared));
  if (error != cudaSuccess) return error;
  ChooseTilesKernel<<<dim3(slots, requests), kChoiceThreads, shared, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace lserve
