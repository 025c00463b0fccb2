// decode_attention: rows with few queries against many planned pages.
//
//   o = softmax(scale q K^T) V, the heads of a group and the queries of a row together as columns.
//
// Bytes: K and V of the planned pages, once per 8 columns; FLOPs per byte of bf16: 2 * columns.
// Memory is the bound, so the pages go straight from global memory into fragments, 16 bytes per
// lane and load, with no shared memory between: scores are S^T = K Q^T and outputs O^T = V^T P^T
// (K and V^T as A, 16 rows; columns as B, 8), and the order of the summed axis is free, so that a
// lane's 16 bytes of a row are what its fragments hold (see Keys below). P^T becomes the second B
// by movmatrix. Accumulators: 8 columns of D, a quarter of what rows of 16 queries would take.
//
// Grid: x = item, a split of a row; y = slot; z = columns by kColumns. A row's pages are dealt to
// NumDecodeSplits() blocks in contiguous shares, within a block to its warps in turn, half a page
// at a time; both depend on the row's own page count only, and everything is merged in a fixed
// order: the warps of a block by that block, the splits of a row by whichever of its blocks ends
// last. Pages are listed while the kernel before this one still runs, unless it may be the one that
// lists them.
#include <algorithm>
#include <cstdint>

#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/kernels/kv_part.cuh"
#include "backend/cuda/kernels/launch.cuh"
#include "backend/cuda/kernels/mma.cuh"
#include "backend/cuda/kernels/plan.cuh"
#include "backend/cuda/kernels/top_pages.cuh"

namespace lserve {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = kDecodeWarps;
constexpr int kThreads = kWarps * kWarp;
// With two, 128 registers do not hold K and V of 32 keys in bf16: 8 to 20% slower (H100). Codes
// wait as they are.
template <KvType T>
constexpr int kBlocksPerSm = T == KvType::kBf16 ? 1 : 2;
constexpr int kMaxShare = kMaxDecodePages / kMaxDecodeSplits;
constexpr int kColumns = 8;  // (query, head) pairs of a block: n of the tensor-core tile
constexpr int kUnits = 2;    // of a page, that warps take in turn
constexpr int kHalfPage = kPageTokens / kUnits;
static_assert(kHalfPage == 32);
constexpr float kLog2E = 1.4426950408889634f;

// What a warp, a block or a split knows of its columns: sums relative to 2^max.
template <int D>
struct Partial {
  float out[kColumns][D];
  float max[kColumns];
  float sum[kColumns];
};

// Where a block leaves its partial result, and where it counts itself if `item` is its row's first.
__device__ int64_t PlaceOf(int item) {
  return (int64_t{item} * gridDim.y + blockIdx.y) * gridDim.z + blockIdx.z;
}
// From a split's partial result to the next one's.
__device__ int64_t SplitStride() {
  return int64_t{gridDim.y} * gridDim.z;
}

// Fragments of 32 keys. With r = lane / 4 and j = lane % 4, lane (r, j) holds of tile t (8 keys)
// the key 8 (r / 2) + 2 t + r % 2, elements 32 c + 8 j .. + 7, and of V^T row d the keys 8 j .. 8 j
// + 7: pair t of them are the keys that row 2 j and 2 j + 1 of tile t stand for.
__device__ int KeyOf(int tile, int r) {
  return 8 * (r / 2) + 2 * tile + r % 2;
}

// The exponents of the eight keys that row r of the tiles stands for, and for row r ^ 1; `of` are
// those of the half page.
__device__ uint2 LoadExponents(const uint8_t* of, int r) {
  return *reinterpret_cast<const uint2*>(of + r / 2 * 8);
}

// Multiplies what belongs to row r of the tiles by the scales of its keys. Powers of two: it comes
// to the same whether codes or sums of their products take them, and there are far fewer sums.
__device__ void ScaleTiles(const uint2& exponents, int r, float (&s)[2][4]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t four = (i == 0 ? exponents.x : exponents.y) >> (8 * (r % 2));
    const float even = Fp8Scale(four & 0xff), odd = Fp8Scale(four >> 16 & 0xff);
    s[i][0] *= even;
    s[i][1] *= even;
    s[i][2] *= odd;
    s[i][3] *= odd;
  }
}

template <int D>
struct WarpState {
  float out[D / 16][4];  // O^T: rows d = 16 m + r, + 8; columns 2 j, 2 j + 1
  float max[2];          // of columns 2 j, 2 j + 1, the same in all lanes of a column
  float sum[2];
};

__device__ uint32_t Word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// Zeroes the halves of a vector of 8 keys from `valid` on.
__device__ uint4 KeepKeys(uint4 v, int64_t valid) {
  uint32_t* words = &v.x;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (2 * i >= valid) {
      words[i] = 0;
    } else if (2 * i + 1 >= valid) {
      words[i] &= 0xffffu;
    }
  }
  return v;
}

// Attends to keys [first_key, first_key + 32), the given half of a page.
template <KvType T, int D, class Sees>
__device__ void AttendHalf(const std::byte* kv,
                           int half,
                           int64_t valid,  // keys of this half that have been written
                           float scale_log2,
                           const uint4 (&q)[D / 32],
                           bool all_visible,
                           Sees sees,
                           WarpState<D>* state) {
  const int lane = threadIdx.x % kWarp, r = lane / 4, j = lane % 4;
  const int first = half * kHalfPage;
  constexpr bool kInteger = T == KvType::kInt8 || T == KvType::kInt4;
  RawEight<T> k[4][D / 32];
  __half2 key_scales[4] = {}, value_scales[8] = {};
  uint2 key_exponents = {}, value_exponents = {};
  if constexpr (T == KvType::kFp8) {
    key_exponents = LoadExponents(Scales<T>(kv, D) + first, r);
    value_exponents = LoadExponents(Scales<T>(kv, D) + kPageTokens + first, r);
  }
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    const int token = first + KeyOf(t, r);
    if constexpr (kInteger) key_scales[t] = Scales<T>(kv, D)[token];
#pragma unroll
    for (int c = 0; c < D / 32; ++c) {
      k[t][c] = LoadRaw<T>(kv + token * KeyRowBytes<T>(D), c * 32 + j * 8);
    }
  }
  if constexpr (kInteger) {
#pragma unroll
    for (int i = 0; i < 8; ++i) value_scales[i] = Scales<T>(kv, D)[kPageTokens + first + j * 8 + i];
  }
  RawEight<T> v[D / 8];  // rows r of V^T, 8 apart
#pragma unroll
  for (int d = 0; d < D / 8; ++d) {
    v[d] = LoadRaw<T>(kv + HalfBytes<T>(D) + (8 * d + r) * ValueRowBytes<T>(), first + j * 8);
  }
  const auto widen = [](const RawEight<T>& raw, auto scale) {
    if constexpr (T == KvType::kFp8) {
      return WidenFp8(raw);
    } else {
      return Expand<T>(raw, scale);
    }
  };
  const auto key = [&](int t, int c) {
    const float2 scale = Affine(key_scales[t]);
    return widen(k[t][c], [&](int) { return scale; });
  };

  float s[2][4];  // tiles 2 i (elements 0, 1) and 2 i + 1 (elements 2, 3)
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    s[i][0] = s[i][1] = s[i][2] = s[i][3] = 0;
#pragma unroll
    for (int c = 0; c < D / 32; ++c) {
      const uint4 even = key(2 * i, c), odd = key(2 * i + 1, c);
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        Mma(s[i], Word(even, 2 * u), Word(odd, 2 * u), Word(even, 2 * u + 1), Word(odd, 2 * u + 1),
            Word(q[c], 2 * u), Word(q[c], 2 * u + 1));
      }
    }
  }
  if constexpr (T == KvType::kFp8) ScaleTiles(key_exponents, r, s);
  if (!all_visible) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (!sees(first + KeyOf(2 * i + e / 2, r), 2 * j + e % 2)) s[i][e] = -INFINITY;
      }
    }
  }

#pragma unroll
  for (int column = 0; column < 2; ++column) {
    float max = fmaxf(fmaxf(s[0][column], s[0][column + 2]), fmaxf(s[1][column], s[1][column + 2]));
#pragma unroll
    for (int offset = 4; offset < kWarp; offset *= 2) {
      max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, offset));
    }
    const float old = state->max[column];
    const float now = fmaxf(old, max * scale_log2);
    const float base = now == -INFINITY ? 0.0f : now;
    const float rescale = Exp2(old - base);
    state->max[column] = now;
    state->sum[column] *= rescale;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int e = column; e < 4; e += 2) {
        s[i][e] = Exp2(fmaf(s[i][e], scale_log2, -base));
        state->sum[column] += s[i][e];
      }
    }
#pragma unroll
    for (int m = 0; m < D / 16; ++m) {
      state->out[m][column] *= rescale;
      state->out[m][column + 2] *= rescale;
    }
  }

  if constexpr (T == KvType::kFp8) ScaleTiles(value_exponents, r, s);
  uint32_t weights[2][2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    weights[i][0] = Transpose(PackBf16(s[i][0], s[i][1]));
    weights[i][1] = Transpose(PackBf16(s[i][2], s[i][3]));
  }
  const auto value = [&](int d) {
    const uint4 eight = widen(v[d], [&](int i) { return Affine(value_scales[i]); });
    // Memory past the last token may hold anything, and 0 * NaN is NaN.
    return valid < kHalfPage ? KeepKeys(eight, valid - j * 8) : eight;
  };
#pragma unroll
  for (int m = 0; m < D / 16; ++m) {
    const uint4 low = value(2 * m), high = value(2 * m + 1);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      Mma(state->out[m], Word(low, 2 * i), Word(high, 2 * i), Word(low, 2 * i + 1),
          Word(high, 2 * i + 1), weights[i][0], weights[i][1]);
    }
  }
}

// Merges the warps of a block, in their order, into one partial.
template <int D>
__device__ void MergeWarps(const WarpState<D>& state, Partial<D>* shared, Partial<D>* to) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, r = lane / 4, j = lane % 4;
  Partial<D>& mine = shared[warp];
#pragma unroll
  for (int column = 0; column < 2; ++column) {
    float sum = state.sum[column];
#pragma unroll
    for (int offset = 4; offset < kWarp; offset *= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    }
    if (r == 0) {
      mine.max[2 * j + column] = state.max[column];
      mine.sum[2 * j + column] = sum;
    }
#pragma unroll
    for (int m = 0; m < D / 16; ++m) {
      mine.out[2 * j + column][16 * m + r] = state.out[m][column];
      mine.out[2 * j + column][16 * m + 8 + r] = state.out[m][column + 2];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kColumns * D; i += kThreads) {
    const int column = i / D, d = i % D;
    float max = -INFINITY;
    for (int w = 0; w < kWarps; ++w) max = fmaxf(max, shared[w].max[column]);
    const float base = max == -INFINITY ? 0.0f : max;
    float out = 0, sum = 0;
    for (int w = 0; w < kWarps; ++w) {
      const float weight = Exp2(shared[w].max[column] - base);
      out += weight * shared[w].out[column][d];
      sum += weight * shared[w].sum[column];
    }
    to->out[column][d] = out;
    if (d == 0) {
      to->max[column] = max;
      to->sum[column] = sum;
    }
  }
}

// What a block works on.
struct Work {
  PlanRow row;
  int column = 0;  // first (query, head) pair
  int num_columns = 0;
  bool any = false;
};

__device__ Work FindWork(const AttentionArgs& args, int row, int chunk, int slot) {
  Work work;
  work.row = args.plan.rows[row];
  const WayView& way = args.layer.ways[static_cast<int>(work.row.way)];
  if (slot >= way.num_slots || (work.row.slot != kAllSlots && work.row.slot != slot)) return work;
  work.column = chunk * kColumns;
  work.num_columns = work.row.num_queries * args.layer.group - work.column;
  work.any = work.num_columns > 0;
  return work;
}

// The pages of one split, as indices and as physical pages.
struct Share {
  PageIdx pages[kMaxShare];
  PageId ids[kMaxShare];
  int sums[33];
};

// Lists the split's pages, all threads together: a run each, placed by a sum over those before.
// Returns how many there are, or -1 if the row has fewer splits; `num_splits` gets the row's.
__device__ int ListShare(const RowPages& pages,
                         const PageId* table,
                         const DecodeItem& item,
                         Share* share,
                         int* num_splits) {
  const auto run_at = [&](int i) {
    if (i > pages.num_runs) return PageRun{};
    if (i == pages.num_runs) return pages.newest;
    const PageRun run = pages.runs[i];
    return PageRun{run.first, max(run.first, min(run.last, pages.newest.first))};
  };
  int own = 0;
  for (int i = threadIdx.x; i <= pages.num_runs; i += kThreads) {
    const PageRun run = run_at(i);
    own += run.last - run.first;
  }
  int num_pages = 0;
  const int before = ExclusiveSum(own, share->sums, &num_pages);
  const bool one_each = pages.num_runs < kThreads;
  const int split = item.split;
  *num_splits = min(NumDecodeSplits(num_pages), item.max_splits);
  if (split >= *num_splits) return -1;
  const int begin = static_cast<int>(int64_t{num_pages} * split / *num_splits);
  const int end = static_cast<int>(int64_t{num_pages} * (split + 1) / *num_splits);
  int done = 0;
  for (int first = 0; first <= pages.num_runs; first += kThreads) {
    const PageRun run = run_at(first + static_cast<int>(threadIdx.x));
    const int length = run.last - run.first;
    int total = 0;
    const int start = one_each ? before : done + ExclusiveSum(length, share->sums, &total);
    for (int i = max(start, begin); i < min(start + length, end); ++i) {
      share->pages[i - begin] = run.first + i - start;
    }
    done += total;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < end - begin; i += kThreads) share->ids[i] = table[share->pages[i]];
  __syncthreads();
  return end - begin;
}

// Merges the splits of a row's columns in their order and divides.
template <int D>
__device__ void MergeSplits(const AttentionArgs& args,
                            const Work& work,
                            int slot,
                            const Partial<D>* parts,
                            int num_splits) {
  const WayView& way = args.layer.ways[static_cast<int>(work.row.way)];
  // A warp per column, a lane per split: what a split weighs, and the sum.
  __shared__ float weights[kColumns][kMaxDecodeSplits];
  __shared__ float sums[kColumns];
  static_assert(kWarps == kColumns && kWarp >= kMaxDecodeSplits);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t stride = SplitStride();
  const Partial<D>& own = parts[lane < num_splits ? lane * stride : 0];
  const float split_max = lane < num_splits ? __ldcg(&own.max[warp]) : -INFINITY;
  float max = split_max;
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, offset));
  }
  const float weight = Exp2(split_max - (max == -INFINITY ? 0.0f : max));
  float sum = lane < num_splits ? weight * __ldcg(&own.sum[warp]) : 0.0f;
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  }
  weights[warp][lane] = weight;
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  for (int i = threadIdx.x; i < min(kColumns, work.num_columns) * D; i += kThreads) {
    const int column = i / D, d = i % D;
    const float total = sums[column];
    float out = 0;
#pragma unroll 8
    for (int s = 0; s < num_splits; ++s) {
      out += weights[column][s] * __ldcg(&parts[s * stride].out[column][d]);
    }
    const int n = work.column + column, group = args.layer.group;
    args.out.data[(work.row.first_query + n / group) * args.out.stride +
                  (way.heads[slot] * group + n % group) * D + d] =
        total == 0.0f ? 0.0f : out / total;
  }
}

// Whether this block is the last of `blocks` to get here; what the others wrote is visible then.
// The counter is left at zero.
__device__ bool IsLastBlock(int* counter, int blocks) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1) == blocks - 1;
    if (last) *counter = 0;
    __threadfence();
  }
  __syncthreads();
  return last;
}

template <KvType T, int D>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm<T>) DecodeAttentionKernel(
    AttentionArgs args, const DecodeItem* items, std::byte* partials, int* counters) {
  LetNextStart();
  extern __shared__ uint4 raw_shared[];
  __shared__ Share share;
  const DecodeItem item = items[blockIdx.x];
  const int slot = blockIdx.y;
  const Work work = FindWork(args, item.row, blockIdx.z, slot);
  const PlanRow& row = work.row;
  const int way_index = static_cast<int>(row.way);
  const WayView& way = args.layer.ways[way_index];
  int num_splits = 0, num_pages = -1;
  const auto list = [&] {
    if (!work.any) return;
    num_pages = ListShare(PagesOf(args.plan, row, way.first_entry + slot),
                          args.sequences[row.sequence].pages[way_index], item, &share, &num_splits);
  };
  if (args.lists_are_final) list();
  WaitForPrevious();
  if (!args.lists_are_final) list();
  if (num_pages < 0) return;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, r = lane / 4, j = lane % 4;
  const int group = args.layer.group;

  // Column n of the tile: query (column + n) / group, head (column + n) % group.
  uint4 q[D / 32] = {};
  if (r < work.num_columns) {
    const int n = work.column + r;
    const float* from = args.q.data + (row.first_query + n / group) * args.q.stride +
                        (way.heads[slot] * group + n % group) * D;
#pragma unroll
    for (int c = 0; c < D / 32; ++c) {
      const float* at = from + c * 32 + j * 8;
      q[c] = {PackBf16(at[0], at[1]), PackBf16(at[2], at[3]), PackBf16(at[4], at[5]),
              PackBf16(at[6], at[7])};
    }
  }

  WarpState<D> state;
#pragma unroll
  for (int m = 0; m < D / 16; ++m) {
    state.out[m][0] = state.out[m][1] = state.out[m][2] = state.out[m][3] = 0;
  }
  state.max[0] = state.max[1] = -INFINITY;
  state.sum[0] = state.sum[1] = 0;

  const Mask mask = {row.sink_end, row.window};
  const int64_t last_position = row.first_position + row.num_queries - 1;
  const float scale_log2 = args.scale * kLog2E;
  for (int i = warp; i < num_pages * kUnits; i += kWarps) {
    const PageIdx page = share.pages[i / kUnits];
    const std::byte* kv = way.kv + share.ids[i / kUnits] * way.page_stride + slot * way.kv_bytes;
    const int64_t first_key = int64_t{page} * kPageTokens;
    const bool all = mask.SeesAll(row.first_position, last_position, page);
    const auto sees = [&](int key, int column) {
      return mask.Sees(row.first_position + (work.column + column) / group, first_key + key);
    };
    const int half = i % kUnits;
    const int64_t valid = last_position + 1 - first_key - half * kHalfPage;
    AttendHalf<T, D>(kv, half, valid, scale_log2, q, all, sees, &state);
  }
  Partial<D>* parts = reinterpret_cast<Partial<D>*>(partials);
  const int first_item = static_cast<int>(blockIdx.x) - item.split;
  MergeWarps(state, reinterpret_cast<Partial<D>*>(raw_shared), parts + PlaceOf(blockIdx.x));
  if (!IsLastBlock(counters + PlaceOf(first_item), num_splits)) return;
  MergeSplits(args, work, slot, parts + PlaceOf(first_item), num_splits);
}

int NumSlots(const AttentionArgs& args) {
  return std::max(args.layer.ways[0].num_slots, args.layer.ways[1].num_slots);
}

int NumChunks(const AttentionArgs& args, const DecodeWork& work) {
  return (work.num_queries * args.layer.group + kColumns - 1) / kColumns;
}

static_assert(sizeof(Partial<128>) == sizeof(float) * kColumns * (128 + 2));

template <KvType T, int D>
cudaError_t Launch(const AttentionArgs& args,
                   const DecodeWork& work,
                   std::byte* partials,
                   int* counters,
                   cudaStream_t stream) {
  const auto kernel = DecodeAttentionKernel<T, D>;
  constexpr int kSharedBytes = static_cast<int>(sizeof(Partial<D>)) * kWarps;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>(work.num_items), static_cast<unsigned>(NumSlots(args)),
                  static_cast<unsigned>(NumChunks(args, work)));
  return LaunchChained(kernel, grid, kThreads, kSharedBytes, stream, args, work.items, partials,
                       counters);
}

template <KvType T>
cudaError_t LaunchType(const AttentionArgs& args,
                       const DecodeWork& work,
                       std::byte* partials,
                       int* counters,
                       cudaStream_t stream) {
  switch (args.layer.head_dim) {
    case 32:
      return Launch<T, 32>(args, work, partials, counters, stream);
    case 64:
      return Launch<T, 64>(args, work, partials, counters, stream);
    case 96:
      return Launch<T, 96>(args, work, partials, counters, stream);
    case 128:
      return Launch<T, 128>(args, work, partials, counters, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace

size_t NumDecodeCounters(const AttentionArgs& args, const DecodeWork& work) {
  return static_cast<size_t>(work.num_items) * static_cast<size_t>(NumSlots(args)) *
         static_cast<size_t>(NumChunks(args, work));
}

size_t DecodePartialBytes(const AttentionArgs& args, const DecodeWork& work) {
  const size_t partial =
      sizeof(float) * kColumns * static_cast<size_t>(args.layer.head_dim + 2);  // Partial<D>
  return partial * NumDecodeCounters(args, work);
}

cudaError_t LaunchDecodeAttention(const AttentionArgs& args,
                                  const DecodeWork& work,
                                  std::byte* partials,
                                  int* counters,
                                  cudaStream_t stream) {
  if (work.num_items == 0) return cudaSuccess;
  switch (args.dtype) {
    case DType::kBf16:
      return LaunchType<KvType::kBf16>(args, work, partials, counters, stream);
    case DType::kInt8:
      return LaunchType<KvType::kInt8>(args, work, partials, counters, stream);
    case DType::kInt4:
      return LaunchType<KvType::kInt4>(args, work, partials, counters, stream);
    case DType::kFp8:
      return LaunchType<KvType::kFp8>(args, work, partials, counters, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace lserve
