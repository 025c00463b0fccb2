// page_log_sums: ln of the attention weight that single queries give each page (ops.h,
// PageLogSums).
//
//   A block is (share of the pages, slot, row). Its warps take turns with the pages; a lane has two
//   keys of a page and four query heads at once, so that a score is a dot product in registers and
//   a page's sum two shuffles' work. Bytes: K of the visited pages, once per four heads of the
//   group; lanes read rows of keys side by side, so a part of the bandwidth is all it gets. It is
//   for observers, who ask for some queries of some steps.
#include <algorithm>

#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/kernels/kv_part.cuh"
#include "backend/cuda/kernels/plan.cuh"

namespace lserve {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kPagesPerWarp = 4;  // that a warp gets at least, while the grid is not full
constexpr int kMaxBlocks = 64;    // of one row and slot
constexpr int kHeadsAtOnce = 4;
constexpr int kMaxHeadDim = 128;
constexpr int kKeysPerLane = kPageTokens / kWarp;

__global__ void FillKernel(float* values, int64_t count) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    values[i] = -INFINITY;
  }
}

// scores[h][i] += q of head h times elements d .. d + 7 of the lane's key i.
__device__ void AddProducts(uint4 key,
                            const float (*q)[kMaxHeadDim],
                            int d,
                            int i,
                            float (&scores)[kHeadsAtOnce][kKeysPerLane]) {
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    const uint32_t word = (&key.x)[pair];
    const float2 k = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&word));
#pragma unroll
    for (int h = 0; h < kHeadsAtOnce; ++h) {
      scores[h][i] = fmaf(q[h][d + 2 * pair], k.x, scores[h][i]);
      scores[h][i] = fmaf(q[h][d + 2 * pair + 1], k.y, scores[h][i]);
    }
  }
}

// ln(sum of exp(scale * score)) over the warp's keys; every lane gets it. -infinity: none is
// visible.
__device__ float LogSum(const float (&scores)[kKeysPerLane], float scale) {
  float max = -INFINITY;
#pragma unroll
  for (int i = 0; i < kKeysPerLane; ++i) max = fmaxf(max, scores[i]);
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, offset));
  }
  if (max == -INFINITY) return max;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kKeysPerLane; ++i) sum += expf(scale * (scores[i] - max));
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  }
  return scale * max + logf(sum);
}

template <KvType T>
__global__ void __launch_bounds__(kThreads) PageLogSumsKernel(PageLogSumsArgs args) {
  __shared__ float q[kHeadsAtOnce][kMaxHeadDim];
  const int slot = blockIdx.y;
  const PlanRow& row = args.plan.rows[blockIdx.z];
  const int way_index = static_cast<int>(row.way);
  const WayView& way = args.layer.ways[way_index];
  if (slot >= way.num_slots || (row.slot != kAllSlots && row.slot != slot)) return;
  const PageId* table = args.sequences[row.sequence].pages[way_index];
  const RowPages pages = PagesOf(args.plan, row, way.first_entry + slot);
  const Mask mask = {row.sink_end, row.window};
  const int head_dim = args.layer.head_dim, group = args.layer.group;
  const int lane = threadIdx.x % kWarp;
  const int own = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  const int num_warps = static_cast<int>(gridDim.x) * kWarps;

  for (int first = 0; first < group; first += kHeadsAtOnce) {
    __syncthreads();  // the last heads' q is no longer read
    for (int i = threadIdx.x; i < kHeadsAtOnce * head_dim; i += kThreads) {
      const int h = i / head_dim, d = i % head_dim;
      const int head = way.heads[slot] * group + first + h;
      q[h][d] = first + h < group
                    ? __bfloat162float(__float2bfloat16_rn(
                          args.q.data[row.first_query * args.q.stride + head * head_dim + d]))
                    : 0.0f;
    }
    __syncthreads();
    PageCursor cursor(pages);
    int turn = 0;
    for (PageIdx page = cursor.Next(); page != PageCursor::kEnd; page = cursor.Next()) {
      const bool mine = turn == own;
      turn = turn + 1 == num_warps ? 0 : turn + 1;
      if (!mine) continue;
      const std::byte* kv = way.kv + table[page] * way.page_stride + slot * way.kv_bytes;
      float scores[kHeadsAtOnce][kKeysPerLane] = {};
      for (int d = 0; d < head_dim; d += 8) {
#pragma unroll
        for (int i = 0; i < kKeysPerLane; ++i) {
          AddProducts(LoadKey<T>(kv, head_dim, lane + i * kWarp, d), q, d, i, scores);
        }
      }
#pragma unroll
      for (int i = 0; i < kKeysPerLane; ++i) {
        const int64_t key = int64_t{page} * kPageTokens + lane + i * kWarp;
        if (mask.Sees(row.first_position, key)) continue;
#pragma unroll
        for (int h = 0; h < kHeadsAtOnce; ++h) scores[h][i] = -INFINITY;
      }
#pragma unroll
      for (int h = 0; h < kHeadsAtOnce; ++h) {
        const float sum = LogSum(scores[h], args.scale);
        const int64_t head = int64_t{way.heads[slot]} * group + first + h;
        if (lane == 0 && first + h < group) {
          args.log_sums[(int64_t{blockIdx.z} * args.num_q_heads + head) * args.stride + page] = sum;
        }
      }
    }
  }
}

}  // namespace

cudaError_t LaunchPageLogSums(const PageLogSumsArgs& args, cudaStream_t stream) {
  if (args.plan.num_rows == 0) return cudaSuccess;
  const int64_t count = int64_t{args.plan.num_rows} * args.num_q_heads * args.stride;
  constexpr int kFillThreads = 256;
  const int64_t fill_blocks = std::min<int64_t>((count + kFillThreads - 1) / kFillThreads, 4096);
  FillKernel<<<static_cast<unsigned>(fill_blocks), kFillThreads, 0, stream>>>(args.log_sums, count);
  const int pages_per_block = kWarps * kPagesPerWarp;
  const dim3 grid(
      static_cast<unsigned>(
          std::clamp((args.max_pages + pages_per_block - 1) / pages_per_block, 1, kMaxBlocks)),
      static_cast<unsigned>(std::max(args.layer.ways[0].num_slots, args.layer.ways[1].num_slots)),
      static_cast<unsigned>(args.plan.num_rows));
  switch (args.dtype) {
    case DType::kBf16:
      PageLogSumsKernel<KvType::kBf16><<<grid, kThreads, 0, stream>>>(args);
      break;
    case DType::kInt8:
      PageLogSumsKernel<KvType::kInt8><<<grid, kThreads, 0, stream>>>(args);
      break;
    case DType::kInt4:
      PageLogSumsKernel<KvType::kInt4><<<grid, kThreads, 0, stream>>>(args);
      break;
    case DType::kFp8:
      PageLogSumsKernel<KvType::kFp8><<<grid, kThreads, 0, stream>>>(args);
      break;
    default:
      return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}

}  // namespace lserve
