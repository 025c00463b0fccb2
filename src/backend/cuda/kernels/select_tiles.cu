// select_tiles: which key tiles a tile of queries reads in prefill (ops.h, SelectTiles; XAttention,
// arXiv 2503.16428).
//
//   1. Estimate: per query head an [8, columns] matrix of antidiagonal scores, a product with the
//      summed axis (s, d) of 16 D: S^T = K' Q'^T on tensor cores, K' row c = keys 16 c + 15 - s,
//      Q'^T column r = queries 16 r + s. FLOPs: 1 / 16 of q K^T. A warp takes 16 columns (4 pages);
//      the tile's queries lie in shared memory.
//   2. Choice, one block per (request, slot): softmax per row and sum per tile, mean over rows and
//      heads, sort by mass, take until the threshold.
#include <algorithm>
#include <cstdint>

#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/kernels/kv_part.cuh"
#include "backend/cuda/kernels/mma.cuh"
#include "backend/cuda/kernels/top_pages.cuh"

namespace lserve {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kHeadsAtOnce = 4;  // at most: query heads whose queries lie in shared memory together
constexpr int kStride = kLogicalPageTokens;   // kTileStride of ops.h
constexpr int kRows = kTileTokens / kStride;  // of a head's estimate; columns of a tile
constexpr int kColumnsPerPage = kPageTokens / kStride;
constexpr int kWarpColumns = 16;
constexpr int kTilePages = kTileTokens / kPageTokens;
constexpr int kChoiceThreads = 512;

// Scores of (request, slot, head) are [kRows][max columns]; after all of them come the masses.
__device__ int64_t MaxColumns(const SelectTilesArgs& args) {
  return int64_t{args.max_tiles} * kRows;
}
__device__ float* ScoresOf(const SelectTilesArgs& args, int request, int slot, int g) {
  const int num_slots = args.layer.ways[0].num_slots;
  return args.scores +
         ((int64_t{request} * num_slots + slot) * args.layer.group + g) * kRows * MaxColumns(args);
}

// Scores of columns [first, first + 16) for `heads` query heads from `first_head` on, whose queries
// are in q: a warp's work. Keys are read once for all of them.
template <KvType T, int D>
__device__ void EstimateColumns(const SelectTilesArgs& args,
                                int first,
                                int num_columns,
                                int first_head,
                                int heads,
                                const uint16_t (*q)[kTileTokens][D + 8]) {
  const TileSelect& request = args.requests[blockIdx.z];
  const WayView& way = args.layer.ways[0];
  const int slot = blockIdx.y;
  const int lane = threadIdx.x % kWarp, r = lane / 4, j = lane % 4;
  // The second half may lie past the end (columns come in tiles of 8): it reads the first again.
  const int columns[2] = {first + r, first + 8 < num_columns ? first + 8 + r : first + r};
  const PageId* table = args.sequences[request.sequence].pages[0];
  const std::byte* parts[2];
  int tokens[2];  // the last token of the column, in its page
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const PageId page = table[columns[half] / kColumnsPerPage];
    parts[half] = way.kv + page * way.page_stride + slot * way.kv_bytes;
    tokens[half] = columns[half] % kColumnsPerPage * kStride + kStride - 1;
  }
  float sums[kHeadsAtOnce][4] = {};
#pragma unroll 4
  for (int s = 0; s < kStride; ++s) {
#pragma unroll
    for (int c = 0; c < D / 32; ++c) {
      const int d = c * 32 + j * 8;
      const uint4 low = LoadKey<T>(parts[0], D, tokens[0] - s, d);
      const uint4 high = LoadKey<T>(parts[1], D, tokens[1] - s, d);
#pragma unroll
      for (int g = 0; g < kHeadsAtOnce; ++g) {
        if (g >= heads) continue;
        const uint4 query = *reinterpret_cast<const uint4*>(&q[g][s * kRows + r][d]);
        Mma(sums[g], low.x, high.x, low.y, high.y, query.x, query.y);
        Mma(sums[g], low.z, high.z, low.w, high.w, query.z, query.w);
      }
    }
  }
  const float scale = args.scale / kStride;
#pragma unroll
  for (int g = 0; g < kHeadsAtOnce; ++g) {
    if (g >= heads) continue;
    float* scores = ScoresOf(args, blockIdx.z, slot, first_head + g);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int column = first + half * 8 + r;
      if (column >= num_columns) continue;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        scores[(2 * j + e) * MaxColumns(args) + column] = sums[g][2 * half + e] * scale;
      }
    }
  }
}

template <KvType T, int D>
__global__ void __launch_bounds__(kWarps* kWarp, 1)
    EstimateKernel(SelectTilesArgs args, int heads_at_once) {
  // Query 16 r + s lies in row 8 s + r: the rows of a fragment are neighbours, and with 16 bytes
  // more per row their vectors lie in different banks.
  constexpr int kQueryStride = D + 8;
  extern __shared__ uint4 raw_shared[];
  auto* q = reinterpret_cast<uint16_t(*)[kTileTokens][kQueryStride]>(raw_shared);
  const TileSelect& request = args.requests[blockIdx.z];
  const int group = args.layer.group, slot = blockIdx.y;
  const WayView& way = args.layer.ways[0];
  const int num_columns = request.num_tiles * kRows;
  const int warp = threadIdx.x / kWarp;

  for (int first_head = 0; first_head < group; first_head += heads_at_once) {
    const int heads = min(heads_at_once, group - first_head);
    const float* from = args.q.data + request.first_query * args.q.stride +
                        (way.heads[slot] * group + first_head) * D;
    __syncthreads();
    for (int i = threadIdx.x; i < heads * kTileTokens * D / 2; i += blockDim.x) {
      const int g = i / (kTileTokens * D / 2), row = i / (D / 2) % kTileTokens;
      const int d = i % (D / 2) * 2;
      const float* at = from + row * args.q.stride + g * D + d;
      const int place = row % kStride * kRows + row / kStride;
      *reinterpret_cast<uint32_t*>(&q[g][place][d]) = PackBf16(at[0], at[1]);
    }
    __syncthreads();
    const int step = static_cast<int>(gridDim.x) * kWarps * kWarpColumns;
    for (int first = (static_cast<int>(blockIdx.x) * kWarps + warp) * kWarpColumns;
         first < num_columns; first += step) {
      EstimateColumns<T, D>(args, first, num_columns, first_head, heads, q);
    }
  }
}

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
  const int slot = blockIdx.x, group = args.layer.group;
  const int num_tiles = request.num_tiles;
  const int listed = max(0, num_tiles - request.newest_tiles);
  const int sink = min(request.sink_tiles, listed);
  int capacity = 2;
  while (capacity < args.max_tiles) capacity *= 2;
  uint32_t* bitmap = reinterpret_cast<uint32_t*>(keys + capacity);
  const int num_words = (num_tiles + 31) / 32;

  // Thread t owns tiles t, t + threads, ...; their masses stay in the place of their keys.
  float* masses = reinterpret_cast<float*>(keys);
  for (int tile = threadIdx.x; tile < num_tiles; tile += blockDim.x) masses[tile] = 0;
  for (int row = 0; row < group * kRows; ++row) {
    const float* scores =
        ScoresOf(args, blockIdx.y, slot, row / kRows) + row % kRows * MaxColumns(args);
    const int last = (num_tiles - 1) * kRows + row % kRows;  // column that begins with the row
    float max = -INFINITY;
    for (int c = threadIdx.x; c <= last; c += blockDim.x) max = fmaxf(max, scores[c]);
    max = BlockReduce(max, reduce, [](float a, float b) { return fmaxf(a, b); });
    float sum = 0;
    for (int c = threadIdx.x; c <= last; c += blockDim.x) sum += expf(scores[c] - max);
    sum = BlockReduce(sum, reduce, [](float a, float b) { return a + b; });
    for (int tile = threadIdx.x; tile < num_tiles; tile += blockDim.x) {
      float mass = 0;
      for (int c = tile * kRows; c <= min(last, tile * kRows + kRows - 1); ++c) {
        mass += expf(scores[c] - max);
      }
      masses[tile] += mass / sum / static_cast<float>(group * kRows);
    }
  }
  float all = 0, read = 0;
  for (int tile = threadIdx.x; tile < num_tiles; tile += blockDim.x) {
    // NaN (from a broken model) has no order.
    if (!(masses[tile] >= 0)) masses[tile] = 0;
    all += masses[tile];
    if (tile < sink || tile >= listed) read += masses[tile];
  }
  const auto plus = [](float a, float b) { return a + b; };
  all = BlockReduce(all, reduce, plus);
  read = BlockReduce(read, reduce, plus);

  // Masses become keys in place, from the top down: a key is twice as wide.
  constexpr int kMaxOwn = kMaxSelectTiles / kChoiceThreads;
  float own[kMaxOwn];
#pragma unroll
  for (int e = 0; e < kMaxOwn; ++e) {
    const int tile = threadIdx.x + e * kChoiceThreads;
    own[e] = tile < num_tiles ? masses[tile] : 0.0f;
  }
  __syncthreads();
  int sorted = 2;
  while (sorted < listed - sink) sorted *= 2;
#pragma unroll
  for (int e = 0; e < kMaxOwn; ++e) {
    const int tile = threadIdx.x + e * kChoiceThreads;
    if (tile >= sink && tile < listed) keys[tile - sink] = SortKey(own[e], tile);
  }
  for (int i = max(0, listed - sink) + threadIdx.x; i < sorted; i += blockDim.x) keys[i] = 0;
  SortDescending(keys, sorted);

  for (int w = threadIdx.x; w < num_words; w += blockDim.x) {
    bitmap[w] = w * 32 >= sink ? 0u : sink - w * 32 >= 32 ? ~0u : (1u << (sink - w * 32)) - 1;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    double have = read;
    for (int i = 0; i < listed - sink && have < request.threshold * double{all}; ++i) {
      const uint64_t key = keys[i];
      const int tile = static_cast<int>(0xffffffffu - static_cast<uint32_t>(key));
      have += double{__uint_as_float(static_cast<uint32_t>(key >> 32))};
      bitmap[tile / 32] |= 1u << (tile % 32);
    }
  }
  __syncthreads();
  WriteRuns(bitmap, num_words, kTilePages, request.table, args.layer.ways[0].first_entry + slot,
            sums);
}

template <KvType T, int D>
cudaError_t LaunchEstimate(const SelectTilesArgs& args, cudaStream_t stream) {
  const int columns = args.max_tiles * kRows;
  // A block reads the queries once and then its share of the columns.
  constexpr int kBlockColumns = 8 * kWarps * kWarpColumns;
  const dim3 grid(static_cast<unsigned>((columns + kBlockColumns - 1) / kBlockColumns),
                  static_cast<unsigned>(args.layer.ways[0].num_slots),
                  static_cast<unsigned>(args.num_requests));
  const auto kernel = EstimateKernel<T, D>;
  int device = 0, available = 0;  // 99 KiB on sm_89, which holds two heads of D = 128
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&available, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  constexpr int kHeadBytes = kTileTokens * (D + 8) * static_cast<int>(sizeof(uint16_t));
  const int heads = std::min({kHeadsAtOnce, args.layer.group, available / kHeadBytes});
  error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, heads * kHeadBytes);
  if (error != cudaSuccess) return error;
  kernel<<<grid, kWarps * kWarp, static_cast<size_t>(heads * kHeadBytes), stream>>>(args, heads);
  return cudaGetLastError();
}

template <KvType T>
cudaError_t LaunchEstimateType(const SelectTilesArgs& args, cudaStream_t stream) {
  switch (args.layer.head_dim) {
    case 32:
      return LaunchEstimate<T, 32>(args, stream);
    case 64:
      return LaunchEstimate<T, 64>(args, stream);
    case 96:
      return LaunchEstimate<T, 96>(args, stream);
    case 128:
      return LaunchEstimate<T, 128>(args, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace

size_t SelectTilesScratchBytes(const SelectTilesArgs& args) {
  return sizeof(float) * static_cast<size_t>(args.num_requests) *
         static_cast<size_t>(args.layer.ways[0].num_slots) * static_cast<size_t>(args.layer.group) *
         kRows * kRows * static_cast<size_t>(args.max_tiles);
}

cudaError_t LaunchSelectTiles(const SelectTilesArgs& args, cudaStream_t stream) {
  if (args.num_requests == 0 || args.layer.ways[0].num_slots == 0) return cudaSuccess;
  cudaError_t error = cudaErrorInvalidValue;
  switch (args.dtype) {
    case DType::kBf16:
      error = LaunchEstimateType<KvType::kBf16>(args, stream);
      break;
    case DType::kInt8:
      error = LaunchEstimateType<KvType::kInt8>(args, stream);
      break;
    case DType::kInt4:
      error = LaunchEstimateType<KvType::kInt4>(args, stream);
      break;
    default:
      break;
  }
  if (error != cudaSuccess) return error;
  size_t capacity = 2;
  while (capacity < static_cast<size_t>(args.max_tiles)) capacity *= 2;
  const size_t shared = capacity * sizeof(uint64_t) + (capacity / 32 + 1) * sizeof(uint32_t);
  error = cudaFuncSetAttribute(ChooseTilesKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared));
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>(args.layer.ways[0].num_slots),
                  static_cast<unsigned>(args.num_requests));
  ChooseTilesKernel<<<grid, kChoiceThreads, shared, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace lserve
