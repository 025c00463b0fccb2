// select_pages: which pages of a decoding sequence the retrieval heads read (ops.h, SelectPages).
//
//   1. Scores: for every page that competes and every query head, the largest of its logical pages'
//      bounds sum over d of max(q_d min_d, q_d max_d); for every piece of four pages that a warp
//      scores at once also their maximum and the sum of their exponentials. Bytes: the statistics
//      once for 8 heads of the group, 16 D per page; the bound is memory.
//   2. Choice, one block per (request, slot): softmax per head, from the pieces, mean over the
//      group, then the k largest by radix selection on the bits of the (non-negative) floats, ties
//      to the lower page, and the pages as runs.
#include <algorithm>
#include <cstdint>

#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/kernels/kv_part.cuh"
#include "backend/cuda/kernels/launch.cuh"
#include "backend/cuda/kernels/mma.cuh"
#include "backend/cuda/kernels/top_pages.cuh"

namespace lserve {
namespace {

constexpr int kWarp = 32;
constexpr int kScoreWarps = 8;
constexpr int kScoreHeads = 8;  // query heads scored at once: n of the tensor-core tile
constexpr int kScorePages = 16 / kLogicalPagesPerPage;  // pages of a warp: m of the tile
constexpr int kChoiceThreads = 1024;
constexpr int kHeadsAtOnce = 4;  // of the softmax
constexpr int kRadixBits = 10;
constexpr int kBuckets = 1 << kRadixBits;
static_assert(kBuckets == kChoiceThreads, "a thread has a bucket");

// What the first kernel leaves of each (request, slot, query head), in `scratch`: (maximum, sum of
// exponentials relative to it) of every piece of kScorePages candidates, then, behind those of all,
// every candidate's score.
__host__ __device__ int64_t NumScoreRows(const SelectPagesArgs& args) {
  return int64_t{args.num_requests} * args.layer.ways[0].num_slots * args.layer.group;
}
__host__ __device__ int PiecesOf(int candidates) {
  return (candidates + kScorePages - 1) / kScorePages;
}
__device__ int64_t ScoreRow(const SelectPagesArgs& args, int request, int slot, int g) {
  const int num_slots = args.layer.ways[0].num_slots;
  return (int64_t{request} * num_slots + slot) * args.layer.group + g;
}
__device__ float2* PieceSums(const SelectPagesArgs& args, int64_t row) {
  return reinterpret_cast<float2*>(args.scratch) + row * PiecesOf(args.max_candidates);
}
__device__ float* Scores(const SelectPagesArgs& args, int64_t row) {
  return reinterpret_cast<float*>(PieceSums(args, NumScoreRows(args))) + row * args.max_candidates;
}

__device__ uint64_t GlobalTime() {
  uint64_t ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
  return ns;
}

// When the selection before this one is done: adds what it took, and tells the host.
__device__ void Begin(SelectorClock* clock) {
  if (clock->end > clock->begin) clock->total += clock->end - clock->begin;
  clock->begin = clock->end = GlobalTime();
  *static_cast<volatile uint64_t*>(clock->published) = clock->total;
}

// The halves of a pair of bf16 that are positive, or those that are negative.
__device__ uint32_t KeepSign(uint32_t pair, bool positive) {
  const uint32_t negative = (pair >> 15 & 0x00010001u) * 0xffffu;
  return pair & (positive ? ~negative : negative);
}

// With q+ = max(q, 0) and q- = min(q, 0), a bound is q+ . max + q- . min: a product of bf16 numbers
// on tensor cores, 16 logical pages (4 pages) by 8 query heads. Fragments as in
// decode_attention.cu: lane (r, j) = (lane / 4, lane % 4) holds elements 32 c + 8 j .. + 7 of rows
// r and r + 8.
template <int D>
__global__ void __launch_bounds__(kScoreWarps* kWarp) ScorePagesKernel(SelectPagesArgs args) {
  LetNextStart();
  WaitForPrevious();
  if (blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0 && threadIdx.x == 0) {
    Begin(args.clock);
  }
  const PageSelect& request = args.requests[blockIdx.z];
  const int slot = blockIdx.y, group = args.layer.group;
  const WayView& way = args.layer.ways[0];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, r = lane / 4, j = lane % 4;
  const PageId* table = args.sequences[request.sequence].pages[0];

  for (int first_head = 0; first_head < group; first_head += kScoreHeads) {
    uint4 up[D / 32] = {}, down[D / 32] = {};  // q+ and q- of head r
    if (first_head + r < group) {
      const float* q = args.q.data + request.query_row * args.q.stride +
                       (way.heads[slot] * group + first_head + r) * D;
#pragma unroll
      for (int c = 0; c < D / 32; ++c) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* at = q + c * 32 + j * 8 + 2 * i;
          const uint32_t pair = PackBf16(at[0], at[1]);
          (&up[c].x)[i] = KeepSign(pair, true);
          (&down[c].x)[i] = KeepSign(pair, false);
        }
      }
    }
    const int step = static_cast<int>(gridDim.x) * kScoreWarps * kScorePages;
    for (int first =
             request.first + (static_cast<int>(blockIdx.x) * kScoreWarps + warp) * kScorePages;
         first < request.last; first += step) {
      const std::byte* rows[2];  // statistics of the lane's two logical pages
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int page = min(first + half * 2 + r / kLogicalPagesPerPage, request.last - 1);
        rows[half] = way.stats + table[page] * way.page_stride + slot * way.stats_bytes +
                     r % kLogicalPagesPerPage * 2 * D * sizeof(uint16_t);
      }
      uint4 low[2][D / 32], high[2][D / 32];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int c = 0; c < D / 32; ++c) {
          const uint4* at = reinterpret_cast<const uint4*>(rows[half]) + c * 4 + j;
          low[half][c] = at[0];
          high[half][c] = at[D / 8];
        }
      }
      float bounds[4] = {};
#pragma unroll
      for (int c = 0; c < D / 32; ++c) {
        const uint4 &l0 = low[0][c], &l1 = low[1][c], &h0 = high[0][c], &h1 = high[1][c];
        Mma(bounds, h0.x, h1.x, h0.y, h1.y, up[c].x, up[c].y);
        Mma(bounds, h0.z, h1.z, h0.w, h1.w, up[c].z, up[c].w);
        Mma(bounds, l0.x, l1.x, l0.y, l1.y, down[c].x, down[c].y);
        Mma(bounds, l0.z, l1.z, l0.w, l1.w, down[c].z, down[c].w);
      }
      // A page's score is the largest of its logical pages': rows r .. r + 3.
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        bounds[e] = fmaxf(bounds[e], __shfl_xor_sync(0xffffffffu, bounds[e], 4));
        bounds[e] = fmaxf(bounds[e], __shfl_xor_sync(0xffffffffu, bounds[e], 8));
        const int page = first + e / 2 * 2 + r / kLogicalPagesPerPage;
        bounds[e] = page < request.last ? bounds[e] * args.scale : -INFINITY;
      }
      // Pieces are cut by position, so that sums do not depend on the grid, which follows the
      // batch.
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        const float a = bounds[odd], b = bounds[2 + odd];
        const float pair = fmaxf(a, b);
        const float max = fmaxf(pair, __shfl_xor_sync(0xffffffffu, pair, 16));
        const float base = max == -INFINITY ? 0.0f : max;
        float sum = expf(a - base) + expf(b - base);
        sum += __shfl_xor_sync(0xffffffffu, sum, 16);
        const int head = first_head + 2 * j + odd;
        if (r % kLogicalPagesPerPage != 0 || head >= group) continue;
        const int64_t row = ScoreRow(args, blockIdx.z, slot, head);
        float* scores = Scores(args, row) + (first - request.first) + r / kLogicalPagesPerPage;
        const int left = request.last - first - r / kLogicalPagesPerPage;
        if (left > 0) scores[0] = a;
        if (left > 2) scores[2] = b;
        if (r == 0) PieceSums(args, row)[(first - request.first) / kScorePages] = {max, sum};
      }
    }
  }
}

// Reduces kCount values per thread over the block at once; every thread gets all results.
template <int kCount, class Op>
__device__ void BlockReduce(float (&x)[kCount], float (*shared)[kChoiceThreads / kWarp], Op op) {
  static_assert(kCount <= kChoiceThreads / kWarp, "a warp finishes a value");
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      x[i] = op(x[i], __shfl_xor_sync(0xffffffffu, x[i], offset));
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (lane == 0) shared[i][warp] = x[i];
  }
  __syncthreads();
  if (warp < kCount) {
    float value = shared[warp][lane];
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      value = op(value, __shfl_xor_sync(0xffffffffu, value, offset));
    }
    if (lane == 0) shared[warp][0] = value;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) x[i] = shared[i][0];
}

struct Cut {
  uint32_t bits = 0;  // the k-th largest value
  int num_ties = 0;   // how many of those equal to it are kept
};

struct CutShared {
  int histogram[kBuckets];
  int sums[33];
  uint32_t bucket;
  int wanted;
};

// The k-th largest of values[0, n), 0 < k <= n: non-negative floats, of which `high` is the largest
// and `low` the smallest. Radix selection over the bits in which these two differ. Thread t has the
// bucket t from the top.
__device__ Cut
FindCut(const float* values, int n, int k, float low, float high, CutShared* shared) {
  const uint32_t top = __float_as_uint(high), differ = top ^ __float_as_uint(low);
  int shift = differ == 0 ? 0 : 32 - __clz(differ);  // the bits above are all the same
  uint32_t prefix = shift < 32 ? top >> shift : 0;
  int wanted = k;  // rank among those that share the prefix
  while (shift > 0) {
    const int bits = min(kRadixBits, shift);
    const int next = shift - bits;
    shared->histogram[threadIdx.x] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += kChoiceThreads) {
      const uint32_t value = __float_as_uint(values[i]);
      if (value >> shift == prefix) {
        atomicAdd(&shared->histogram[value >> next & ((1u << bits) - 1)], 1);
      }
    }
    __syncthreads();
    const uint32_t bucket = kBuckets - 1 - threadIdx.x;
    const int count = shared->histogram[bucket];
    int total = 0;
    const int above = ExclusiveSum(count, shared->sums, &total);
    if (above < wanted && wanted <= above + count) {
      shared->bucket = bucket;
      shared->wanted = wanted - above;
    }
    __syncthreads();
    prefix = prefix << bits | shared->bucket;
    wanted = shared->wanted;
    shift = next;
  }
  return {prefix, wanted};
}

__global__ void __launch_bounds__(kChoiceThreads) ChoosePagesKernel(SelectPagesArgs args) {
  LetNextStart();
  WaitForPrevious();
  extern __shared__ float mean[];  // [max_candidates], then the bitmap
  __shared__ float reduce[kHeadsAtOnce][kChoiceThreads / kWarp];
  __shared__ CutShared cut_shared;
  uint32_t* bitmap = reinterpret_cast<uint32_t*>(mean + args.max_candidates);
  const PageSelect& request = args.requests[blockIdx.y];
  const int slot = blockIdx.x, group = args.layer.group;
  const int n = request.last - request.first;
  const int num_words = (request.num_pages + 31) / 32;
  const auto larger = [](float a, float b) { return fmaxf(a, b); };

  float bounds[2] = {0, -INFINITY};  // of the means: the largest, and the smallest negated
  for (int first = 0; first < group && n > 0; first += kHeadsAtOnce) {
    const int64_t first_row = ScoreRow(args, blockIdx.y, slot, 0);
    const float* scores[kHeadsAtOnce];
    const float2* pieces[kHeadsAtOnce];
    float max[kHeadsAtOnce], sum[kHeadsAtOnce];
#pragma unroll
    for (int g = 0; g < kHeadsAtOnce; ++g) {
      const int64_t row = first_row + min(first + g, group - 1);
      scores[g] = Scores(args, row);
      pieces[g] = PieceSums(args, row);
      max[g] = -INFINITY;
      sum[g] = 0;
    }
    for (int i = threadIdx.x; i < PiecesOf(n); i += kChoiceThreads) {
#pragma unroll
      for (int g = 0; g < kHeadsAtOnce; ++g) max[g] = fmaxf(max[g], pieces[g][i].x);
    }
    BlockReduce(max, reduce, larger);
    for (int i = threadIdx.x; i < PiecesOf(n); i += kChoiceThreads) {
#pragma unroll
      for (int g = 0; g < kHeadsAtOnce; ++g) {
        const float2 piece = pieces[g][i];
        sum[g] += piece.y * expf(piece.x - max[g]);
      }
    }
    BlockReduce(sum, reduce, [](float a, float b) { return a + b; });
    const bool last = first + kHeadsAtOnce >= group;
#pragma unroll 4
    for (int i = threadIdx.x; i < n; i += kChoiceThreads) {
      float share = first > 0 ? mean[i] : 0;
#pragma unroll
      for (int g = 0; g < kHeadsAtOnce; ++g) {
        if (first + g >= group) continue;
        share += expf(scores[g][i] - max[g]) / sum[g] / static_cast<float>(group);
      }
      // NaN (from a broken model) has no order.
      if (last && !(share >= 0)) share = 0;
      mean[i] = share;
      if (!last) continue;
      bounds[0] = fmaxf(bounds[0], share);
      bounds[1] = fmaxf(bounds[1], -share);
    }
  }
  BlockReduce(bounds, reduce, larger);

  for (int w = threadIdx.x; w < num_words; w += blockDim.x) {
    uint32_t forced = 0;
    for (int b = 0; b < 32; ++b) {
      const int page = w * 32 + b;
      const bool in = page < request.num_pages && (page < request.first || page >= request.last);
      forced |= in ? 1u << b : 0u;
    }
    bitmap[w] = forced;
  }
  __syncthreads();
  if (request.keep >= n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
      const int page = request.first + i;
      atomicOr(&bitmap[page / 32], 1u << (page % 32));
    }
  } else if (request.keep > 0) {
    const Cut cut = FindCut(mean, n, request.keep, -bounds[1], bounds[0], &cut_shared);
    int ties = 0;
    for (int first = 0; first < n; first += blockDim.x) {
      const int i = first + threadIdx.x;
      const uint32_t bits = i < n ? __float_as_uint(mean[i]) : 0;
      const bool tie = i < n && bits == cut.bits;
      int total = 0;
      const int rank = ties + ExclusiveSum(tie ? 1 : 0, cut_shared.sums, &total);
      ties += total;
      if (i < n && (bits > cut.bits || (tie && rank < cut.num_ties))) {
        const int page = request.first + i;
        atomicOr(&bitmap[page / 32], 1u << (page % 32));
      }
    }
  }
  __syncthreads();
  WriteRuns(bitmap, num_words, 1, request.table, args.layer.ways[0].first_entry + slot,
            cut_shared.sums);
  // After its last barrier: this thread's share of the runs is as long as any other's.
  if (threadIdx.x == 0 && args.max_candidates > 0) {
    atomicMax(reinterpret_cast<unsigned long long*>(&args.clock->end), GlobalTime());
  }
}

template <int D>
cudaError_t LaunchScores(const SelectPagesArgs& args, cudaStream_t stream) {
  constexpr int kBlockPages = kScoreWarps * kScorePages;
  const unsigned blocks = static_cast<unsigned>(
      std::clamp((args.max_candidates + kBlockPages - 1) / kBlockPages, 1, 256));
  const dim3 grid(blocks, static_cast<unsigned>(args.layer.ways[0].num_slots),
                  static_cast<unsigned>(args.num_requests));
  return LaunchChained(ScorePagesKernel<D>, grid, kScoreWarps * kWarp, 0, stream, args);
}

}  // namespace

size_t SelectPagesScratchBytes(const SelectPagesArgs& args) {
  const size_t row = static_cast<size_t>(PiecesOf(args.max_candidates)) * sizeof(float2) +
                     static_cast<size_t>(args.max_candidates) * sizeof(float);
  return static_cast<size_t>(NumScoreRows(args)) * row;
}

cudaError_t LaunchSelectPages(const SelectPagesArgs& args, cudaStream_t stream) {
  if (args.num_requests == 0 || args.layer.ways[0].num_slots == 0) return cudaSuccess;
  if (args.max_candidates > 0) {
    cudaError_t scored = cudaSuccess;
    switch (args.layer.head_dim) {
      case 32:
        scored = LaunchScores<32>(args, stream);
        break;
      case 64:
        scored = LaunchScores<64>(args, stream);
        break;
      case 96:
        scored = LaunchScores<96>(args, stream);
        break;
      case 128:
        scored = LaunchScores<128>(args, stream);
        break;
      default:
        return cudaErrorInvalidValue;
    }
    if (scored != cudaSuccess) return scored;
  }
  const dim3 grid(static_cast<unsigned>(args.layer.ways[0].num_slots),
                  static_cast<unsigned>(args.num_requests));
  const size_t shared = static_cast<size_t>(args.max_candidates) * sizeof(float) +
                        static_cast<size_t>(args.max_pages + 31) / 32 * sizeof(uint32_t);
  const cudaError_t error = cudaFuncSetAttribute(
      ChoosePagesKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  if (error != cudaSuccess) return error;
  return LaunchChained(ChoosePagesKernel, grid, kChoiceThreads, shared, stream, args);
}

}  // namespace lserve
