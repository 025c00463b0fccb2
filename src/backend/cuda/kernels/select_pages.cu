// select_pages: which pages of a decoding sequence the retrieval heads read (ops.h, SelectPages).
//
//   1. Scores: for every page that competes and every query head, the largest of its logical pages'
//      bounds sum over d of max(q_d min_d, q_d max_d). A warp takes a page: 8 lanes per logical
//      page, D / 8 elements each. Bytes: the statistics once for all heads of the group, 16 D per
//      page; the bound is memory.
//   2. Choice, one block per (request, slot): softmax per head, mean over the group, then the k
//      largest by radix selection on the bits of the (non-negative) floats, ties to the lower page,
//      and the pages as runs.
#include <algorithm>
#include <cstdint>

#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/kernels/kv_part.cuh"
#include "backend/cuda/kernels/mma.cuh"
#include "backend/cuda/kernels/top_pages.cuh"

namespace lserve {
namespace {

constexpr int kWarp = 32;
constexpr int kScoreWarps = 8;
constexpr int kLanesPerLogical = kWarp / kLogicalPagesPerPage;
constexpr int kChoiceThreads = 1024;
constexpr int kMaxGroup = 16;  // query heads scored at once
constexpr int kRadixBits = 8;
constexpr int kBuckets = 1 << kRadixBits;

__device__ float* ScoresOf(const SelectPagesArgs& args, int request, int slot, int g) {
  const int num_slots = args.layer.ways[0].num_slots;
  return args.scores + ((int64_t{request} * num_slots + slot) * (args.layer.group + 1) + g) *
                           args.max_candidates;
}

__device__ float2 Widen(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}

template <int D>
__global__ void __launch_bounds__(kScoreWarps* kWarp) ScorePagesKernel(SelectPagesArgs args) {
  __shared__ float q[kMaxGroup][D];
  const PageSelect& request = args.requests[blockIdx.z];
  const int slot = blockIdx.y, group = args.layer.group;
  const WayView& way = args.layer.ways[0];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int logical = lane / kLanesPerLogical, piece = lane % kLanesPerLogical;
  constexpr int kOwn = D / kLanesPerLogical;  // elements of a lane: 4 to 16
  const PageId* table = args.sequences[request.sequence].pages[0];

  for (int first_head = 0; first_head < group; first_head += kMaxGroup) {
    const int heads = min(kMaxGroup, group - first_head);
    __syncthreads();
    for (int i = threadIdx.x; i < heads * D; i += blockDim.x) {
      const float* from = args.q.data + request.query_row * args.q.stride +
                          (way.heads[slot] * group + first_head) * D;
      q[i / D][i % D] = __bfloat162float(__float2bfloat16_rn(from[i]));
    }
    __syncthreads();
    for (int i = request.first + blockIdx.x * kScoreWarps + warp; i < request.last;
         i += gridDim.x * kScoreWarps) {
      const std::byte* stats =
          way.stats + table[i] * way.page_stride + slot * way.stats_bytes;
      const uint32_t* min_at = reinterpret_cast<const uint32_t*>(stats) + logical * D + piece * kOwn / 2;
      const uint32_t* max_at = min_at + D / 2;
      float2 low[kOwn / 2], high[kOwn / 2];
#pragma unroll
      for (int e = 0; e < kOwn / 2; ++e) {
        low[e] = Widen(min_at[e]);
        high[e] = Widen(max_at[e]);
      }
      for (int g = 0; g < heads; ++g) {
        float bound = 0;
#pragma unroll
        for (int e = 0; e < kOwn / 2; ++e) {
          const float2 own = *reinterpret_cast<const float2*>(&q[g][piece * kOwn + 2 * e]);
          bound += fmaxf(own.x * low[e].x, own.x * high[e].x);
          bound += fmaxf(own.y * low[e].y, own.y * high[e].y);
        }
        for (int offset = 1; offset < kLanesPerLogical; offset *= 2) {
          bound += __shfl_xor_sync(0xffffffffu, bound, offset);
        }
        for (int offset = kLanesPerLogical; offset < kWarp; offset *= 2) {
          bound = fmaxf(bound, __shfl_xor_sync(0xffffffffu, bound, offset));
        }
        if (lane == 0) {
          ScoresOf(args, blockIdx.z, slot, first_head + g)[i - request.first] = bound * args.scale;
        }
      }
    }
  }
}

// The result of `op` over the values of all threads, which every thread gets.
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

struct Cut {
  uint32_t bits = 0;   // the k-th largest value
  int num_ties = 0;    // how many of those equal to it are kept
};

// The k-th largest of values[0, n), 0 < k <= n, non-negative floats.
__device__ Cut FindCut(const float* values, int n, int k, int* histogram) {
  uint32_t prefix = 0;
  int wanted = k;  // rank among those that share the prefix
  for (int shift = 32 - kRadixBits; shift >= 0; shift -= kRadixBits) {
    __syncthreads();
    for (int i = threadIdx.x; i < kBuckets; i += blockDim.x) histogram[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
      const uint32_t bits = __float_as_uint(values[i]);
      const bool same = shift + kRadixBits == 32 || bits >> (shift + kRadixBits) == prefix;
      if (same) atomicAdd(&histogram[bits >> shift & (kBuckets - 1)], 1);
    }
    __syncthreads();
    int bucket = kBuckets - 1;  // every thread walks, to the same end
    while (histogram[bucket] < wanted) wanted -= histogram[bucket--];
    prefix = prefix << kRadixBits | static_cast<uint32_t>(bucket);
  }
  return {prefix, wanted};
}

__global__ void __launch_bounds__(kChoiceThreads) ChoosePagesKernel(SelectPagesArgs args) {
  extern __shared__ uint32_t bitmap[];
  __shared__ float reduce[kChoiceThreads / kWarp];
  __shared__ int histogram[kBuckets];
  __shared__ int sums[33];
  const PageSelect& request = args.requests[blockIdx.y];
  const int slot = blockIdx.x, group = args.layer.group;
  const int n = request.last - request.first;
  const int num_words = (request.num_pages + 31) / 32;

  float* mean = ScoresOf(args, blockIdx.y, slot, group);
  for (int i = threadIdx.x; i < n; i += blockDim.x) mean[i] = 0;
  for (int g = 0; g < group && n > 0; ++g) {
    const float* scores = ScoresOf(args, blockIdx.y, slot, g);
    float max = -INFINITY;
    for (int i = threadIdx.x; i < n; i += blockDim.x) max = fmaxf(max, scores[i]);
    max = BlockReduce(max, reduce, [](float a, float b) { return fmaxf(a, b); });
    float sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += expf(scores[i] - max);
    sum = BlockReduce(sum, reduce, [](float a, float b) { return a + b; });
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
      mean[i] += expf(scores[i] - max) / sum / static_cast<float>(group);
    }
  }
  // NaN (from a broken model) has no order.
  for (int i = threadIdx.x; i < n; i += blockDim.x) mean[i] = mean[i] >= 0 ? mean[i] : 0.0f;

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
    const Cut cut = FindCut(mean, n, request.keep, histogram);
    int ties = 0;
    for (int first = 0; first < n; first += blockDim.x) {
      const int i = first + threadIdx.x;
      const uint32_t bits = i < n ? __float_as_uint(mean[i]) : 0;
      const bool tie = i < n && bits == cut.bits;
      int total = 0;
      const int rank = ties + ExclusiveSum(tie ? 1 : 0, sums, &total);
      ties += total;
      if (i < n && (bits > cut.bits || (tie && rank < cut.num_ties))) {
        const int page = request.first + i;
        atomicOr(&bitmap[page / 32], 1u << (page % 32));
      }
    }
  }
  __syncthreads();
  WriteRuns(bitmap, num_words, 1, request.table, args.layer.ways[0].first_entry + slot, sums);
}

template <int D>
void LaunchScores(const SelectPagesArgs& args, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>(
      std::clamp((args.max_candidates + kScoreWarps - 1) / kScoreWarps, 1, 256));
  const dim3 grid(blocks, static_cast<unsigned>(args.layer.ways[0].num_slots),
                  static_cast<unsigned>(args.num_requests));
  ScorePagesKernel<D><<<grid, kScoreWarps * kWarp, 0, stream>>>(args);
}

}  // namespace

size_t SelectPagesScratchBytes(const SelectPagesArgs& args) {
  return sizeof(float) * static_cast<size_t>(args.num_requests) *
         static_cast<size_t>(args.layer.ways[0].num_slots) *
         static_cast<size_t>(args.layer.group + 1) * static_cast<size_t>(args.max_candidates);
}

cudaError_t LaunchSelectPages(const SelectPagesArgs& args, cudaStream_t stream) {
  if (args.num_requests == 0 || args.layer.ways[0].num_slots == 0) return cudaSuccess;
  if (args.max_candidates > 0) {
    switch (args.layer.head_dim) {
      case 32: LaunchScores<32>(args, stream); break;
      case 64: LaunchScores<64>(args, stream); break;
      case 96: LaunchScores<96>(args, stream); break;
      case 128: LaunchScores<128>(args, stream); break;
      default: return cudaErrorInvalidValue;
    }
  }
  const dim3 grid(static_cast<unsigned>(args.layer.ways[0].num_slots),
                  static_cast<unsigned>(args.num_requests));
  const size_t bitmap_bytes = static_cast<size_t>(args.max_pages + 31) / 32 * sizeof(uint32_t);
  ChoosePagesKernel<<<grid, kChoiceThreads, bitmap_bytes, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace lserve
